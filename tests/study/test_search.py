"""A search of settings on validation patients, which continues after a kill."""

import json
import sqlite3

import pytest
import yaml

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.study.search import Space
from laennec.training.recipe import Recipe
from runs import interrupted

RECIPE = {
    "name": "searched",
    "corpus": {"name": "synthetic", "protocol": "patient-60-20-20"},
    "features": {"preset": "song2021", "length": "natural"},
    "encoder": {"type": "cnn", "config": {"channels": [4]}},
    "train": {"epochs": 2, "batch_size": 16, "selection_metric": "loss"},
}
SPACE = {
    "trials": 3,
    "space": {
        "train.learning_rate": {"low": "1e-4", "high": 1e-2, "log": True},
        "train.betas": {"choices": [[0.9, 0.99], [0.8, 0.9]]},
    },
}


@pytest.fixture
def files(tmp_path, small_corpus):
    recipe = {**RECIPE, "corpus": {**RECIPE["corpus"], "data_dir": str(small_corpus)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return tmp_path


def command(files, *more):
    out = ["--search", str(files / "space.yaml"), "--output_dir", str(files / "out")]
    return ["train", str(files / "recipe.yaml"), *out, *more]


def test_a_killed_search_goes_on_and_the_best_recipe_is_that_of_the_best_trial(files, capsys):
    with interrupted(5):
        assert main(command(files)) == 130
    with sqlite3.connect(files / "out" / "search.db") as store:
        (drawn,) = store.execute("select count(*) from trials").fetchone()
    assert drawn >= 1
    assert main(command(files)) == 0
    found = json.loads((files / "out" / "search.json").read_text())
    assert len(found["trials"]) == 3 and found["selection_set"] == "validation"
    runs = {path.parent.name: json.loads(path.read_text()) for path in (files / "out").glob("trial-*/run.json")}
    assert set(runs) == {trial["folder"] for trial in found["trials"]}  # a killed trial is finished, not drawn anew
    best = min(runs.values(), key=lambda run: run["best_metric"])
    assert found["value"] == best["best_metric"]
    again = Recipe.from_yaml(files / "out" / "best.yaml")
    assert again.train.learning_rate == best["config"]["train"]["learning_rate"]
    assert again.train.betas == best["config"]["train"]["betas"] and not any(r["evaluations"] for r in runs.values())
    capsys.readouterr()
    assert main(command(files)) == 0  # nothing is left to do
    assert "trial" not in capsys.readouterr().out.split("search:")[0]
    (files / "space.yaml").write_text(yaml.safe_dump({**SPACE, "seed": 5}))
    assert main(command(files)) == 2 and "another search" in capsys.readouterr().err


def test_validation_that_may_share_patients_is_refused(files, capsys):
    assert main(command(files, "--corpus.protocol", "random-80-20")) == 2
    assert "splits by patient" in capsys.readouterr().err and not (files / "out").exists()


@pytest.mark.parametrize(
    ("key", "setting", "words"),
    [
        ("head.hidden_dim", {"choices": [64, None]}, "head.hidden_dim is None; it must be a valid integer"),
        ("head.dropout", {"low": 0.5, "high": 1.5}, "head.dropout is 1.5"),
    ],
)
def test_a_value_that_no_recipe_can_have_is_refused_before_the_first_trial(files, capsys, key, setting, words):
    (files / "space.yaml").write_text(yaml.safe_dump({**SPACE, "space": {**SPACE["space"], key: setting}}))
    assert main(command(files)) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and not (files / "out").exists()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, "space: Field required"),
        ({"space": {"train.learning_rat": {"low": 1, "high": 2}}}, "did you mean 'train.learning_rate'"),
        ({"space": {"train.epochs": {"low": 3, "high": 2}}}, "space.train.epochs: needs numbers low < high"),
        ({"space": {"train.epochs": {"low": 0, "high": 2, "log": True}}}, "low above 0"),
        ({"space": {"train.epochs": {"choices": [1], "low": 1}}}, "give choices, or low and high"),
        ({"space": {"corpus.split_seed": {"choices": [1, 2]}}}, "trials must share it"),
        ({"space": {"train.epochs": {"choices": [1]}}, "pruner": "hard"}, "it must be 'median' or 'none'"),
    ],
)
def test_bad_spaces_are_refused(files, space, words):
    (files / "space.yaml").write_text(yaml.safe_dump(space))
    with pytest.raises(InputError, match=words):
        Space.read(files / "space.yaml", "settings to search")
