"""The model as a transformers model: registered, saved, loaded, and refused where it does not fit."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import ASTConfig, ASTForAudioClassification, AutoModelForAudioClassification

from laennec import LaennecConfig, LaennecFeatureExtractor, LaennecForAudioClassification
from laennec.encoders import load_encoder
from laennec.ensemble import ensemble_models
from laennec.errors import InputError
from laennec.modeling import LORA_DEFAULTS

FOUR = ["normal", "crackle", "wheeze", "both"]
LABEL_SETS = {
    "two flags": ("multi_label", ["crackle", "wheeze"]),
    "four classes": ("single_label", FOUR),
    "any classes": ("single_label", ["COPD", "Healthy", "URTI"]),
    "any flags": ("multi_label", ["Fine Crackle", "Rhonchi", "Stridor", "Wheeze", "Coarse Crackle"]),
}


def small_model(problem="multi_label", names=("crackle", "wheeze"), encoder=None, **settings):
    torch.manual_seed(0)
    if encoder is None:
        encoder = load_encoder(None, type="cnn", channels=[4, 8])
    config = LaennecConfig(
        encoder_config=encoder.config,
        problem_type=problem,
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
        **settings,
    )
    return LaennecForAudioClassification(config, encoder)


def features(batch=3, frames=40, mels=64, seed=0):
    return torch.randn(batch, frames, mels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def saved(tmp_path):
    """A small model with its front end, saved."""
    model = small_model().eval()
    model.save_pretrained(tmp_path / "model")
    LaennecFeatureExtractor("song2021", length="natural").save_pretrained(tmp_path / "model")
    return tmp_path / "model", model


@pytest.fixture(scope="module")
def released(shared_root):
    """A released checkpoint of a real encoder."""
    return shared_root / "weights" / "mn04_as_mAP_432.pt"


def in_a_fresh_process(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "first",
    [
        "import laennec.modeling",
        "from transformers import AutoModelForAudioClassification, pipeline; from laennec import LaennecPipeline",
    ],
)
def test_importing_the_model_is_enough_for_the_auto_classes(saved, first):
    folder, model = saved
    code = f"""
        import sys
        {first}
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
        import numpy, json
        model = AutoModelForAudioClassification.from_pretrained(sys.argv[1])
        extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1])
        config = AutoConfig.from_pretrained(sys.argv[1])
        pipe = pipeline("audio-classification", model=sys.argv[1])
        sound = (numpy.random.default_rng(0).standard_normal(16000) * 0.1).astype("float32")
        answer = pipe({{"raw": sound, "sampling_rate": 16000}})
        names = [type(x).__name__ for x in (model, extractor, config, pipe.model, pipe.feature_extractor)]
        print(json.dumps([names, answer]))
    """
    names, answer = json.loads(in_a_fresh_process(code, folder).splitlines()[-1])
    model_class, extractor_class = "LaennecForAudioClassification", "LaennecFeatureExtractor"
    assert names == [model_class, extractor_class, "LaennecConfig", model_class, extractor_class]
    sound = (np.random.default_rng(0).standard_normal(16000) * 0.1).astype("float32")
    extractor = LaennecFeatureExtractor.from_pretrained(folder)
    with torch.inference_mode():
        wanted = model(**extractor(sound, sampling_rate=16000)).logits.sigmoid()[0]
    got = {row["label"]: row["score"] for row in answer}
    assert got == pytest.approx({"crackle": float(wanted[0]), "wheeze": float(wanted[1])}, abs=1e-6)


@pytest.mark.parametrize("command", ["import laennec", "import laennec.cli.main; laennec.cli.main.main(['--help'])"])
def test_importing_laennec_and_asking_for_help_load_nothing_heavy(command):
    code = f"""
        import sys
        try:
            {command}
        except SystemExit:
            pass
        heavy = {{"torch", "transformers", "datasets", "numpy", "pandas", "librosa", "scipy", "sklearn", "matplotlib"}}
        print("loaded:", sorted(heavy & set(sys.modules)))
    """
    assert in_a_fresh_process(code).splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("which", LABEL_SETS)
def test_forward_with_labels_gives_the_plain_mean_loss(which):
    problem, names = LABEL_SETS[which]
    model = small_model(problem, names).eval()
    x = features()
    if problem == "multi_label":
        labels = torch.tensor(np.random.default_rng(0).integers(0, 2, (3, len(names)))).float()
        out = model(x, labels=labels)
        p = out.logits.sigmoid()
        naive = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
        assert torch.equal(out.loss, binary_cross_entropy_with_logits(out.logits, labels))
    else:
        labels = torch.tensor([0, 2, 1])
        out = model(x, labels=labels)
        naive = -out.logits.log_softmax(-1)[torch.arange(3), labels].mean()
        assert torch.equal(out.loss, cross_entropy(out.logits, labels))
    assert out.logits.shape == (3, len(names))
    assert torch.allclose(out.loss, naive, atol=1e-6)
    assert model(x).loss is None
    assert torch.equal(model(x, labels=labels, return_dict=False)[0], out.loss)


def test_forward_takes_features_or_embeddings_and_needs_one_of_them():
    model = small_model().eval()
    out = model(features())
    assert torch.equal(model(embeddings=out.embeddings).logits, out.logits)
    with pytest.raises(ValueError, match="input_values"):
        model()


@pytest.mark.parametrize("which", LABEL_SETS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_saved_model_loads_bit_for_bit(tmp_path, which, frozen):
    problem, names = LABEL_SETS[which]
    model = small_model(problem, names, frozen_encoder=frozen, thresholds={names[0]: 0.3}, temperatures={names[0]: 2.0})
    model.head.standardise(torch.randn(20, model.head.mean.numel()))
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForAudioClassification.from_pretrained(tmp_path)
    assert again.config.label_names == names and again.config.thresholds == {names[0]: 0.3}
    assert again.config.is_multi_label == (problem == "multi_label") and again.config.frozen_encoder == frozen
    one, two = model.state_dict(), again.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    with torch.inference_mode():
        assert torch.equal(model(features()).logits, again(features()).logits)


def test_transformers_name_of_a_problem_type_is_kept_from_the_first_assignment_on():
    config = LaennecConfig(problem_type="multi_label")
    config.problem_type = "single_label"
    assert config.problem_type == "single_label_classification" and not config.is_multi_label


def test_a_configuration_of_the_first_edition_is_read_and_written_in_present_names(tmp_path):
    small_model(concatenated_context=True, tasks={"event": {"labels": ["a", "b"], "level": None}}).save_pretrained(
        tmp_path
    )
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["joins_context"] = values.pop("concatenated_context")
    values["tasks"]["event"]["leanings"] = {"two": 0.5}
    path.write_text(json.dumps(values))
    model = LaennecForAudioClassification.from_pretrained(tmp_path)
    assert model.config.concatenated_context and model.config.tasks["event"]["logit_adjustment"] == {"two": 0.5}
    model.save_pretrained(tmp_path)
    assert not {"joins_context", "leanings"} & set(path.read_text().replace('"', " ").split())


def test_probabilities_apply_the_temperatures():
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    multi = small_model(temperatures={"crackle": 2.0})
    assert torch.allclose(multi.probabilities(logits), torch.tensor([[2.0 / 2, -1.0], [0.0, 3.0]]).sigmoid())
    single = small_model("single_label", ["normal", "wheeze"], temperatures={"normal": 4.0, "wheeze": 4.0})
    assert torch.allclose(single.probabilities(logits), (logits / 4).softmax(-1))


@pytest.mark.parametrize("frozen", [True, False])
def test_only_an_encoder_that_is_not_frozen_learns(frozen):
    model = small_model(frozen_encoder=frozen)
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    model.train()
    assert model.encoder.training is not frozen and model.head.training
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    for seed in range(3):
        model(features(seed=seed), labels=torch.ones(3, 2)).loss.backward()
        optimizer.step()
    # a frozen encoder also keeps its batch statistics
    same = [torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items()]
    assert all(same) if frozen else not any(s for s, v in zip(same, before.values(), strict=True) if v.ndim > 1)


def test_a_relu_comes_before_the_last_layer_and_is_saved(tmp_path):
    made = LaennecForAudioClassification.from_encoder(None, type="statistics", head_relu=True, seed=1).eval()
    embeddings = torch.randn(6, made.embedding_dim)
    layer = made.head.classifier
    expected = embeddings.relu() @ layer.weight.T + layer.bias
    torch.testing.assert_close(made(embeddings=embeddings).logits, expected)
    made.save_pretrained(tmp_path)
    again = LaennecForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again(embeddings=embeddings).logits, expected)
    with pytest.raises(InputError, match=r"head\.relu"):
        ensemble_models([made, again])


def test_the_head_gets_standardised_embeddings():
    model = small_model()
    embeddings = torch.randn(50, model.head.mean.numel()) * 7 + 3
    model.head.standardise(embeddings)
    seen = (embeddings - model.head.mean) / model.head.spread
    assert torch.allclose(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-5)
    assert torch.allclose(seen.std(0, correction=0), torch.ones(seen.shape[1]), atol=1e-5)


@pytest.fixture(scope="module")
def head_only(released, tmp_path_factory):
    """A model on the released encoder, saved as the head alone."""
    folder = tmp_path_factory.mktemp("head")
    encoder = load_encoder(released)
    model = small_model(encoder=encoder, frozen_encoder=True, base_model_name_or_path="somebody/base").eval()
    model.save_pretrained(folder)
    return folder, model


def test_a_head_only_checkpoint_is_a_few_kilobytes_and_loads_with_its_base(head_only, released, tmp_path):
    folder, model = head_only
    assert (folder / "model.safetensors").stat().st_size < 20_000
    model.encoder.save_pretrained(tmp_path / "base")
    x = features(2, 100, 128)
    with torch.inference_mode():
        wanted = model(x).logits
        for base in (released, str(released), tmp_path / "base", load_encoder(released)):
            again = LaennecForAudioClassification.from_pretrained(folder, base=base)
            assert torch.equal(again(x).logits, wanted)
            assert again.config.frozen_encoder and not any(p.requires_grad for p in again.encoder.parameters())


def test_a_head_only_checkpoint_finds_the_base_that_its_config_names(head_only, released, tmp_path):
    model = small_model(encoder=load_encoder(released), frozen_encoder=True, base_model_name_or_path=str(released))
    model.save_pretrained(tmp_path)
    again = AutoModelForAudioClassification.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(model.eval()(features(1, 50, 128)).logits, again(features(1, 50, 128)).logits)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").stat().st_size < 20_000


def test_a_head_saved_with_a_relative_base_finds_it_from_any_folder(released, tmp_path, monkeypatch):
    monkeypatch.chdir(released.parents[1])
    named = "/".join(released.parts[-2:])  # looks like a Hub id
    small_model(encoder=load_encoder(named), frozen_encoder=True, base_model_name_or_path=named).save_pretrained(
        tmp_path / "head"
    )
    monkeypatch.chdir(tmp_path)
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "head").config.base_model_name_or_path == named


def test_a_head_refuses_another_base_and_says_where_it_looked(head_only, released, tmp_path, monkeypatch):
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "another-machine"))
    folder, _ = head_only
    other = load_encoder(released)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-4
    with pytest.raises(InputError, match=r"not the encoder this head was trained on .*somebody/base"):
        LaennecForAudioClassification.from_pretrained(folder, base=other)
    with pytest.raises(InputError, match=r"somebody/base.*--base"):
        LaennecForAudioClassification.from_pretrained(folder)
    with pytest.raises(InputError, match=r"nowhere\.pt"):
        LaennecForAudioClassification.from_pretrained(folder, base="nowhere.pt")


def foreign(tmp_path, kind, shared_root):
    """A checkpoint of another library, or one that does not match its config.json."""
    folder = tmp_path / kind
    if kind == "transformers AST":
        small = ASTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        ASTForAudioClassification(small).save_pretrained(folder)
    elif kind == "whisper":
        return shared_root / "weights" / "whisper_base_encoder"
    else:
        small_model().save_pretrained(folder)
    if kind == "other sizes":
        wide = small_model(encoder=load_encoder(None, type="cnn", channels=[8, 16]))
        wide.save_pretrained(tmp_path / "wide")
        (folder / "model.safetensors").write_bytes((tmp_path / "wide" / "model.safetensors").read_bytes())
    if kind == "torn":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    if kind == "no weights":
        (folder / "model.safetensors").unlink()
    if kind in ("no json", "no settings"):
        (folder / "config.json").write_text("{" if kind == "no json" else "[1]")
    return folder


@pytest.mark.parametrize(
    "kind", ["transformers AST", "whisper", "other sizes", "torn", "no weights", "no json", "no settings"]
)
def test_a_checkpoint_of_another_model_is_one_line(tmp_path, kind, shared_root):
    folder = foreign(tmp_path, kind, shared_root)
    with pytest.raises(InputError) as error:
        LaennecForAudioClassification.from_pretrained(folder)
    assert str(folder) in str(error.value) and ";" in str(error.value)


def tuned(source):
    """A model whose encoder does not have the weights of its source any more."""
    model = LaennecForAudioClassification.from_encoder(source)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    return model


@pytest.mark.parametrize("loaded", [False, True])
def test_an_encoder_that_was_tuned_before_it_was_frozen_is_saved(released, tmp_path, loaded):
    model = tuned(released)
    if loaded:
        model.save_pretrained(tmp_path / "first")
        model = LaennecForAudioClassification.from_pretrained(tmp_path / "first")
    model.freeze_encoder()
    model.save_pretrained(tmp_path / "frozen")
    again = LaennecForAudioClassification.from_pretrained(tmp_path / "frozen")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").stat().st_size > 1_000_000
    model.save_pretrained(tmp_path / "head", head_only=True)
    with pytest.raises(InputError, match="not the encoder this head was trained on"):
        LaennecForAudioClassification.from_pretrained(tmp_path / "head", base=released)


def test_an_encoder_that_was_frozen_before_training_stays_with_its_base(released, tmp_path):
    model = LaennecForAudioClassification.from_encoder(released)
    model.save_pretrained(tmp_path / "full")
    model = LaennecForAudioClassification.from_pretrained(tmp_path / "full")
    model.freeze_encoder()
    model.save_pretrained(tmp_path / "frozen")
    assert (tmp_path / "frozen" / "model.safetensors").stat().st_size < 20_000
    half = LaennecForAudioClassification.from_pretrained(tmp_path / "frozen").to(torch.bfloat16)
    for head_only in (None, True):
        half.save_pretrained(tmp_path / "half", head_only=head_only)
        assert (tmp_path / "half" / "model.safetensors").stat().st_size < 20_000
        assert LaennecForAudioClassification.from_pretrained(tmp_path / "half").config.encoder_digest


def test_adapters_on_a_tuned_encoder_are_merged_before_they_are_saved(shared_root, tmp_path):
    model = tuned(shared_root / "conformance" / "beats_tiny.pt")
    model.add_adapters(LORA_DEFAULTS)
    with pytest.raises(ValueError, match=r"call merge_adapters\(\)"):
        model.save_pretrained(tmp_path)
    model.merge_adapters()
    model.save_pretrained(tmp_path)
    again = LaennecForAudioClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_settings_are_changed_as_a_model_is_loaded(saved):
    folder, _ = saved
    model = LaennecForAudioClassification.from_pretrained(folder, thresholds={"crackle": 0.3}, pooling="mean")
    assert model.config.per_label("thresholds") == {"crackle": 0.3, "wheeze": 0.5} and model.config.pooling == "mean"
    with pytest.raises(InputError, match=r"thresholds.crackle is 3"):
        LaennecForAudioClassification.from_pretrained(folder, thresholds={"crackle": 3})


def test_a_base_that_is_a_module_is_wrapped_as_the_model_says(tmp_path):
    encoder = load_encoder(None, type="cnn", channels=[4, 8])
    settings = {"trainable": "frozen", "group_frames": 12}
    model = LaennecForAudioClassification.from_encoder(encoder, **settings).eval()
    model.save_pretrained(tmp_path, head_only=True)
    for base in (encoder, model.encoder):
        again = LaennecForAudioClassification.from_pretrained(tmp_path, base=base)
        with torch.inference_mode():
            assert torch.equal(again(features()).logits, model(features()).logits)


def test_a_single_class_and_checkpointing_of_convolutions_are_refused():
    with pytest.raises(InputError, match="single_label needs two labels or more"):
        LaennecForAudioClassification.from_encoder(None, ["a"], "single_label", type="cnn")
    assert not small_model().supports_gradient_checkpointing
