"""A teacher's probabilities change the training labels and nothing else."""

import json

import numpy as np
import pytest
import torch

import laennec
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.hub.card import write_card
from laennec.training.data.split_data import load_splits, make_extractor, make_split
from laennec.training.initial import soften_labels
from laennec.training.recipe import Recipe
from laennec.training.run import train


@pytest.fixture
def recipe(tiny_recipe, tiny_run, tmp_path):
    loss = {"teacher": str(tiny_run), "teacher_weight": 0.25}
    return Recipe(**(tiny_recipe | {"loss": loss, "output_dir": str(tmp_path / "run")}))


def softened(recipe):
    splits = load_splits(recipe)
    training = make_split("train", splits["train"], recipe, make_extractor(recipe.features), None, True)
    before = training.targets.labels.copy()
    return training, before, soften_labels(recipe, training, splits)


def test_labels_are_mixed_with_what_the_teacher_predicts(recipe, tiny_run):
    training, before, teacher = softened(recipe)
    model, extractor = load_model(tiny_run)
    for row in range(0, len(before), 7):
        sound = training.dataset.sound(row)
        with torch.inference_mode():
            logits = model(**extractor([sound], sampling_rate=extractor.sampling_rate, filtered=True)).logits
        wanted = 0.75 * before[row] + 0.25 * model.probabilities(logits)[0].numpy()
        np.testing.assert_allclose(training.dataset[(row, 0)]["label"], wanted, atol=1e-5)
    assert teacher.source == str(tiny_run) and set(training.targets.class_ids) <= {0, 1, 2, 3}


def test_a_teacher_may_have_another_front_end(recipe, tmp_path):
    teacher = laennec.LaennecForAudioClassification.from_encoder(
        None, labels=["wheeze", "crackle"], type="cnn", encoder_config={"channels": [4, 8]}
    ).eval()
    teacher.save_pretrained(tmp_path / "teacher")
    features = laennec.LaennecFeatureExtractor("efficientat", length="natural")
    features.save_pretrained(tmp_path / "teacher")
    recipe.loss.teacher, recipe.loss.teacher_weight = str(tmp_path / "teacher"), 1.0
    training, _, _ = softened(recipe)
    sound = make_split("train", training.table, recipe, features, ["crackle", "wheeze"], False).dataset.sound(3)
    with torch.inference_mode():
        logits = teacher(**features([sound], sampling_rate=features.sampling_rate, filtered=True)).logits
    wanted = teacher.probabilities(logits)[0].numpy()[::-1]
    np.testing.assert_allclose(training.targets.labels[3], wanted, atol=1e-5)


def test_record_and_card_name_the_teacher(recipe, tiny_run, tmp_path):
    run = train(recipe)
    assert json.loads((run / "run.json").read_text())["teacher"]["model"] == str(tiny_run)
    own, before = json.loads((run / "trained_on.json").read_text())["sets"]
    assert (
        own["patients"]
        == before["patients"]
        == json.loads((tiny_run / "trained_on.json").read_text())["sets"][0]["patients"]
    )
    assert "its probabilities are 0.25 of the training labels" in write_card(run, tmp_path).read_text()


def test_a_teacher_that_does_not_fit_is_refused_in_one_line(recipe, tiny_recipe, tmp_path):
    knows = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"split_seed": 5})})
    with pytest.raises(InputError, match="was trained on patients of"):
        softened(knows)
    other = laennec.LaennecForAudioClassification.from_encoder(
        None, labels=["stridor"], type="cnn", encoder_config={"channels": [4, 8]}
    )
    other.save_pretrained(tmp_path / "other")
    laennec.LaennecFeatureExtractor("song2021", length="natural").save_pretrained(tmp_path / "other")
    recipe.loss.teacher = str(tmp_path / "other")
    with pytest.raises(InputError, match="predicts stridor, not crackle, wheeze, each independently"):
        softened(recipe)
    with pytest.raises(ValueError, match=r"leave it or augment\.concatenate_probability out"):
        Recipe(**(tiny_recipe | {"loss": {"teacher": "x"}, "augment": {"concatenate_probability": 0.5}}))
