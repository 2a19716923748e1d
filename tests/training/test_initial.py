"""Training starts from the weights of a model, but not if the model was trained on its held-out patients."""

import json

import numpy as np
import pytest
import torch
from tests.runs import one_line

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.hub.card import write_card
from laennec.training.data.split_data import load_splits, make_extractor
from laennec.training.initial import InitialModel
from laennec.training.recipe import Recipe
from laennec.training.run import make_model, train


@pytest.fixture
def recipe(tiny_recipe, tiny_run, tmp_path):
    return Recipe(**(tiny_recipe | {"initial_model": str(tiny_run), "output_dir": str(tmp_path / "run")}))


def logits(model, embeddings):
    with torch.inference_mode():
        return model.eval().head(embeddings).numpy()


def test_encoder_and_head_are_those_of_the_model(recipe):
    start = InitialModel.of(recipe)
    model = make_model(recipe, ["wheeze", "crackle"], start)  # in another order
    assert start.keep_head(model)
    x = torch.randn(5, model.embedding_dim)
    np.testing.assert_array_equal(logits(model, x), logits(start.model, x)[:, ::-1])
    for name, value in start.model.encoder.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name])


def test_a_reused_head_keeps_its_scale(recipe):
    start = InitialModel.of(recipe)
    model = make_model(recipe, ["crackle", "wheeze"], start)
    start.keep_head(model)
    model.head.standardise(torch.randn(9, model.embedding_dim) * 7 + 3)
    assert torch.equal(model.head.mean, start.model.head.mean)


@pytest.mark.parametrize("change", [{"names": ["stridor", "wheeze"]}, {"hidden_dim": 5}, {"relu": True}])
def test_a_head_of_other_labels_or_form_is_new(recipe, change):
    names = change.pop("names", ["crackle", "wheeze"])
    changed = recipe.model_copy(update={"head": recipe.head.model_copy(update=change)})
    start = InitialModel.of(changed)
    model = make_model(changed, names, start)
    before = model.head.classifier.weight.clone()
    assert not start.keep_head(model) and torch.equal(before, model.head.classifier.weight)


def test_a_head_of_other_groups_of_frames_is_new(recipe):
    changed = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"group_frames": 20})})
    start = InitialModel.of(changed)
    assert not start.keep_head(make_model(changed, ["crackle", "wheeze"], start))


def test_the_weights_of_layers_are_kept(recipe):
    encoder = {"config": {"channels": [4, 4]}, "layers": [1, 2], "combine_layers": "weighted_mean"}
    changed = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update=encoder | {"weights": None})})
    trained = make_model(changed, ["crackle", "wheeze"])
    torch.nn.init.normal_(trained.encoder.layer_weights)
    start = InitialModel("trained", trained, make_extractor(changed.features), [])
    model = make_model(changed, ["crackle", "wheeze"], start)
    assert start.keep_head(model) and torch.equal(model.encoder.layer_weights, trained.encoder.layer_weights)


def test_record_and_card_say_where_a_run_started(recipe, tiny_run, tmp_path):
    run = train(recipe)
    record = json.loads((run / "run.json").read_text())
    told = record["initialised_from"]
    assert told["model"] == str(tiny_run) and told["head"] == "kept" and told["trained_on"][0]["patients"] > 3
    sets = json.loads((run / "trained_on.json").read_text())["sets"]
    assert len(sets) == 2 and sets[0]["patients"] == sets[1]["patients"]
    card = write_card(run, tmp_path).read_text()
    assert "Started from" in card and "head kept; it was trained on synthetic" in card
    assert not set(sets[0]["patients"]) & set(card.split())


def test_patients_of_the_initial_model_must_not_be_held_out(recipe, tiny_run, capsys, tmp_path):
    other = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"split_seed": 5})})
    with pytest.raises(InputError, match=r"was trained on patients of (validation|test)"):
        train(other)
    assert not (tmp_path / "run").exists()
    start = InitialModel.of(recipe)
    start.refuse_seen_patients(load_splits(recipe))  # the same split
    renamed = [note | {"corpus": "other", "corpus_fingerprint": "x"} for note in start.trained_on]
    copies = InitialModel(start.source, start.model, start.extractor, renamed)
    with pytest.raises(InputError, match="was trained on sounds of"):
        copies.refuse_seen_patients(load_splits(other))


def test_an_initial_model_without_a_patient_note_gives_a_warning(recipe, tiny_run, caplog):
    exported = recipe.model_copy(update={"initial_model": str(tiny_run / "model")})
    start = InitialModel.of(exported)
    start.refuse_seen_patients(load_splits(exported))
    assert "patients it was trained on are unknown" in caplog.text


def test_what_does_not_fit_is_one_line(tiny_recipe, tiny_run, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(tiny_recipe | {"output_dir": str(tmp_path / "run")}))
    command = ["train", str(file), "--init"]
    assert main([*command, str(tiny_run), "--features.length", "crop", "--features.duration_s", "2"]) == 2
    one_line(capsys, "front end", "duration_s None (recipe: 2.0)", "length natural (recipe: crop)")
    assert main([*command, str(tiny_run), "--encoder.type", "mobilenet", "--encoder.config", "{}"]) == 2
    one_line(capsys, "encoder.type")
    assert main([*command, str(tmp_path / "nowhere")]) == 2
    one_line(capsys, "no such run or model")
    assert not (tmp_path / "run").exists()
