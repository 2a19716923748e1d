"""Ensembles of models of one kind: they predict the members' mean, and are saved, loaded and checked like any model."""

import json

import pytest
import torch
from transformers import AutoModelForAudioClassification

from laennec import LaennecConfig, LaennecForAudioClassification
from laennec.encoders import EnsembleConfig, EnsembleEncoder, encoder_from_config, load_encoder
from laennec.encoders.composite import GroupsConfig, GroupsEncoder
from laennec.ensemble import ensemble_models, member_logits
from laennec.errors import InputError

FOUR = ["normal", "crackle", "wheeze", "both"]
EVENT = {"labels": ["Normal", "Wheeze", "Stridor"], "level": None, "logit_adjustment": {"two": 0.3}, "smoothing": 0.5}


def member(seed, names=("crackle", "wheeze"), encoder=None, **settings):
    """A small model with its own random encoder, head, standardisation and calibration."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    encoder = encoder or load_encoder(None, type="cnn", channels=[4, 8])
    config = LaennecConfig(
        encoder_config=encoder.config,
        id2label=dict(enumerate(names)),
        label2id={name: k for k, name in enumerate(names)},
        **settings,
    )
    model = LaennecForAudioClassification(config, encoder).eval()
    width = model.embedding_dim
    for head in (model.head, *model.tasks.values()):
        head.standardise(torch.randn(20, width, generator=generator) * 2 + 1)
        if settings.get("head_hidden_dim") and head is model.head:
            torch.nn.init.normal_(head.hidden[0].weight, generator=generator)
            torch.nn.init.normal_(head.hidden[0].bias, generator=generator)
        torch.nn.init.normal_(head.classifier.weight, generator=generator)
        torch.nn.init.normal_(head.classifier.bias, generator=generator)
    if model.config.is_multi_label:
        model.config.temperatures = {name: 0.5 + seed + k for k, name in enumerate(names)}
        model.config.intercepts = {name: 0.1 * seed - k for k, name in enumerate(names)}
    else:
        model.config.temperatures = dict.fromkeys(names, 0.5 + seed)
    model.config.thresholds = dict.fromkeys(names, 0.3)
    return model


def of_groups(frames):
    inner = load_encoder(None, type="cnn", channels=[4, 8])
    return GroupsEncoder(GroupsConfig(encoder_config=inner.config, group_frames=frames), inner)


def features(batch=3, frames=40, mels=64):
    return torch.randn(batch, frames, mels, generator=torch.Generator().manual_seed(9))


def calibrated(model, logits):
    names = model.config.label_names
    divisor = torch.tensor([model.config.temperatures.get(name, 1.0) for name in names])
    return logits / divisor + torch.tensor([model.config.intercepts.get(name, 0.0) for name in names])


@pytest.mark.parametrize("pooling", ["encoder", "mean"])
@pytest.mark.parametrize("concatenated_context", [False, True])
@pytest.mark.parametrize("hidden", [0, 5])
def test_the_output_is_the_mean_of_calibrated_log_odds(pooling, concatenated_context, hidden):
    kind = {"pooling": pooling, "concatenated_context": concatenated_context, "head_hidden_dim": hidden}
    models = [member(seed, **kind) for seed in range(3)]
    ensemble = ensemble_models(models)
    given = {"input_values": features(), "attention_mask": (torch.arange(40) < torch.tensor([[40], [31], [17]])).long()}
    if concatenated_context:
        given |= {"context_values": features(3, 60), "context_mask": torch.ones(3, 60, dtype=torch.long)}
    with torch.no_grad():
        each = torch.stack([calibrated(model, model(**given).logits) for model in models])
        outputs = ensemble(**given)
    torch.testing.assert_close(outputs.logits, each.mean(0), rtol=1e-4, atol=1e-4)
    own = torch.from_numpy(member_logits(ensemble, outputs.embeddings.numpy()))
    torch.testing.assert_close(own, each, rtol=1e-4, atol=1e-4)
    assert outputs.embeddings.shape == (3, 3 * models[0].embedding_dim)
    assert isinstance(ensemble.encoder, EnsembleEncoder) and not ensemble.config.frozen_encoder
    assert not (ensemble.config.temperatures or ensemble.config.intercepts or ensemble.config.thresholds)


def test_single_label_models_average_log_probabilities():
    models = [member(seed, FOUR, problem_type="single_label") for seed in range(2)]
    ensemble = ensemble_models(models)
    with torch.no_grad():
        logs = torch.stack([calibrated(m, m(input_values=features()).logits).log_softmax(-1) for m in models]).mean(0)
        outputs = ensemble(input_values=features()).logits
    torch.testing.assert_close(outputs.softmax(-1), logs.softmax(-1), rtol=1e-4, atol=1e-5)


def test_auxiliary_tasks_are_averaged_without_the_fitted_settings_of_members():
    models = [member(seed, tasks={"event": dict(EVENT)}) for seed in range(2)]
    ensemble = ensemble_models(models)
    with torch.no_grad():
        expected = torch.stack([m.tasks["event"](m.embed(features())) for m in models]).mean(0)
        outputs = ensemble.tasks["event"](ensemble.embed(features()))
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
    assert ensemble.config.tasks == {"event": {"labels": EVENT["labels"], "level": None}}
    assert models[0].config.tasks["event"]["logit_adjustment"] == {"two": 0.3}


@pytest.mark.parametrize("hidden", [0, 5])
def test_models_on_one_frozen_encoder_share_it(hidden):
    encoder = load_encoder(None, type="cnn", channels=[4, 8])
    models = [member(seed, encoder=encoder, frozen_encoder=True, head_hidden_dim=hidden) for seed in range(3)]
    ensemble = ensemble_models(models)
    assert type(ensemble.encoder) is type(encoder) and ensemble.config.frozen_encoder
    assert ensemble.embedding_dim == models[0].embedding_dim
    with torch.no_grad():
        each = torch.stack([calibrated(m, m(input_values=features()).logits) for m in models])
        outputs = ensemble(input_values=features())
        torch.testing.assert_close(outputs.logits, each.mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ensemble.head.by_member(outputs.embeddings), each, rtol=1e-4, atol=1e-4)


def test_adapters_are_merged_before_they_are_combined(tiny_ast):
    models = []
    for seed in range(2):
        model = member(seed, encoder=load_encoder(tiny_ast))
        model.add_adapters({"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]})
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(seed))
        models.append(model.eval())
    sound = features(2, 60, 128)
    with torch.no_grad():
        expected = torch.stack([calibrated(m, m(input_values=sound).logits) for m in models]).mean(0)
    ensemble = ensemble_models(models)
    assert ensemble.config.lora is None and not any("lora" in name for name in ensemble.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ensemble(input_values=sound).logits, expected, rtol=1e-4, atol=1e-4)


def test_it_is_saved_and_loaded_like_any_model(tmp_path):
    ensemble = ensemble_models([member(seed) for seed in range(2)])
    ensemble.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert isinstance(loaded.encoder.config, EnsembleConfig) and loaded.encoder.config.members == 2
    with torch.no_grad():
        given, wanted = loaded(input_values=features()), ensemble(input_values=features())
        torch.testing.assert_close(given.logits, wanted.logits, rtol=0, atol=0)
        own = ensemble.head.by_member(wanted.embeddings)
        torch.testing.assert_close(loaded.head.by_member(given.embeddings), own, rtol=0, atol=0)


def test_an_ensemble_copies_the_weights_of_its_members():
    models = [member(seed) for seed in range(2)]
    ensemble = ensemble_models(models)
    with torch.no_grad():
        before = ensemble(input_values=features()).logits
        for model in models:
            for weight in model.parameters():
                weight.zero_()
        torch.testing.assert_close(ensemble(input_values=features()).logits, before, rtol=0, atol=0)


def test_a_prediction_does_not_depend_on_the_batch():
    ensemble = ensemble_models([member(seed) for seed in range(2)])
    mask = (torch.arange(40) < torch.tensor([[40], [31], [17]])).long()
    with torch.no_grad():
        batched = ensemble(input_values=features(), attention_mask=mask).logits
        alone = [ensemble(input_values=features()[k : k + 1, :n]).logits for k, n in enumerate((40, 31, 17))]
    torch.testing.assert_close(batched, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_wrapped_encoders_have_the_geometry_of_their_inner_encoder():
    groups = GroupsEncoder(
        GroupsConfig(
            encoder_config=load_encoder(None, type="cnn", channels=[4, 8]).config, group_frames=12, group_step=6
        )
    )
    config = EnsembleConfig(encoder_config=groups.config.to_dict(), members=2)
    made = encoder_from_config(EnsembleConfig.from_dict(config.to_dict()))
    assert made.config.hidden_size == 2 * groups.config.hidden_size
    with torch.no_grad():
        assert made(input_values=features()).pooler_output.shape == (3, made.config.hidden_size)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (lambda: [member(0)], "two models or more, not 1"),
        (lambda: [member(0), member(1, ("crackle", "rhonchus"))], "differ in labels"),
        (lambda: [member(0), member(1, problem_type="single_label")], "differ in target.problem_type"),
        (lambda: [member(0), member(1, pooling="mean")], "differ in head.pooling"),
        (lambda: [member(0), member(1, head_hidden_dim=5)], r"differ in head\.hidden_dim"),
        (lambda: [member(0), member(1, tasks={"event": dict(EVENT)})], "differ in tasks"),
        (lambda: [member(0), member(1, features_fingerprint="x")], "differ in features"),
        (
            lambda: [member(0), member(1, encoder=load_encoder(None, type="cnn", channels=[4, 16]))],
            "encoders differ in kind, size",
        ),
        (lambda: [member(seed, encoder=of_groups(frames)) for seed, frames in enumerate((12, 20))], "groups of frames"),
        (lambda: [member(0, head_layer_norm=True), member(1, head_layer_norm=True)], "head.layer_norm is set"),
    ],
)
def test_what_cannot_form_an_ensemble_is_refused(models, said):
    with pytest.raises(InputError, match=said):
        ensemble_models(models())


@pytest.mark.parametrize("members", [0, -1, 2.5, "two", None])
def test_an_invalid_number_of_members_is_refused(members):
    with pytest.raises(ValueError, match=r"members is .*; it must be a whole number from 1"):
        EnsembleConfig(members=members)


def test_a_config_with_a_wrong_number_of_members_is_refused(tmp_path):
    ensemble_models([member(seed) for seed in range(2)]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    encoder = dict(values["encoder_config"])
    for members in (1, 3, "two"):
        values["encoder_config"]["members"] = members
        path.write_text(json.dumps(values))
        with pytest.raises(InputError):
            LaennecForAudioClassification.from_pretrained(tmp_path)
    for heads in (1, 3, "two"):
        path.write_text(json.dumps(values | {"encoder_config": encoder, "head_members": heads}))
        with pytest.raises(InputError):
            LaennecForAudioClassification.from_pretrained(tmp_path)
