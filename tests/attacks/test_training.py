"""Initial models and teachers of a training: damaged notes on their patients, and outputs of NaN or infinity."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from laennec.errors import InputError
from laennec.training.data.split_data import load_splits, make_extractor, make_split
from laennec.training.initial import TRAINED_ON, InitialModel, soften_labels
from laennec.training.pretraining.dataset import PRETRAINING, refuse_seen_patients
from laennec.training.recipe import Recipe


@pytest.fixture(scope="module")
def splits(tiny_recipe):
    return load_splits(Recipe(**tiny_recipe))


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


# a damaged note names no patient; it must not pass as a note of a model that has seen none
DAMAGES = {
    ("patients",): (None, True, 7, "P1", {"P1": 1}, [7], [None]),
    ("corpus",): ([], {}, 7),
    ("corpus_fingerprint",): ([], 7),
    ("sounds",): (None, True, 7, "x", [None]),
    ("sounds", "files"): (None, True, 7, "x", [7], [[]], ["x"]),
    ("sounds", "stretches"): (None, True, 7, "x", [None], ["<script>"], [""]),
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place in DAMAGES for value in DAMAGES[place]])
def test_a_damaged_note_is_refused(run, splits, place, value):
    note = copy.deepcopy(json.loads((run / TRAINED_ON).read_text())["sets"][0])
    inner = note[place[0]] if len(place) > 1 else note
    inner[place[-1]] = value
    (run / TRAINED_ON).write_text(json.dumps({"sets": [note]}))
    (run / PRETRAINING).write_text(json.dumps(note))
    for name, load in (
        (TRAINED_ON, lambda: InitialModel.load(str(run))),
        (PRETRAINING, lambda: refuse_seen_patients(run, splits)),
    ):
        with pytest.raises(InputError) as error:
            load()
        line = str(error.value)
        assert f"{run / name}: not of the form" in line and "\n" not in line


@pytest.mark.parametrize("sets", [None, True, 7, "x", [None], [7], [[]], {"a": 1}, [{}]])
def test_training_sets_of_another_form_are_one_line(run, sets):
    (run / TRAINED_ON).write_text(json.dumps({"sets": sets}))
    with pytest.raises(InputError, match="not of the form"):
        InitialModel.load(str(run))


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_a_teacher_with_non_finite_outputs_is_refused(run, tiny_recipe, splits, value):
    weights = load_file(run / "model" / "model.safetensors")
    for name in ("head.classifier.weight", "head.classifier.bias"):
        weights[name] = torch.full_like(weights[name], value)
    save_file(weights, run / "model" / "model.safetensors", {"format": "pt"})
    recipe = Recipe(**(tiny_recipe | {"loss": {"teacher": str(run), "teacher_weight": 0.5}}))
    training = make_split("train", splits["train"], recipe, make_extractor(recipe.features), None, True)
    before = training.targets.labels.copy()
    with pytest.raises(InputError, match="outputs NaN or infinity"):
        soften_labels(recipe, training, splits)
    assert (training.targets.labels == before).all()
