"""examples/own_encoder.py: an encoder of the user's own."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from laennec.errors import InputError
from laennec.training.recipe import Recipe
from laennec.training.run import make_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def python(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The model that the example makes, and what it prints."""
    folder = tmp_path_factory.mktemp("own") / "model"
    return folder, python(EXAMPLES / "own_encoder.py", folder)


def test_the_example_runs_as_it_stands(made):
    assert "same after loading: True" in made[1]
    assert len((EXAMPLES / "own_encoder.py").read_text().splitlines()) <= 80


def test_its_model_loads_where_the_class_was_imported_and_is_refused_elsewhere(made):
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from laennec import LaennecForAudioClassification
        try:
            LaennecForAudioClassification.from_pretrained(sys.argv[2])
        except ValueError as error:
            print(error)
        assert "own_encoder" not in sys.modules
        import own_encoder
        print(type(LaennecForAudioClassification.from_pretrained(sys.argv[2]).encoder.module).__name__)
    """
    refusal, name = python("-c", textwrap.dedent(code), EXAMPLES, made[0]).splitlines()
    assert "'ConvEncoder'" in refusal and "import the module that defines it" in refusal and name == "ConvEncoder"


def test_a_recipe_with_another_front_end_is_refused(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    features = {"preset": "efficientat"}
    recipe = Recipe(**tiny_recipe | {"encoder": {"class": "own_encoder:ConvEncoder"}, "features": features})
    with pytest.raises(InputError, match="made for 'song2021'; set features") as refused:
        make_model(recipe, ["crackle", "wheeze"])
    assert "own_encoder:ConvEncoder" in str(refused.value)


def test_a_recipe_trains_it_and_its_run_is_scored_in_another_process(tiny_recipe, tmp_path):
    recipe = tiny_recipe | {"encoder": {"class": "own_encoder:ConvEncoder", "config": {"width": 8}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copy(EXAMPLES / "own_encoder.py", tmp_path)
    for command in (
        ["train", "recipe.yaml", "--output_dir", "run"],
        ["evaluate", "run", "--split", "validation", "--import", "own_encoder:ConvEncoder"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "laennec", *command], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["encoder"]["config"] == {"width": 8}


def test_a_space_is_refused_because_its_app_could_not_import_the_class(made, tmp_path):
    command = ("-m", "laennec", "export", made[0], "--import", "own_encoder:ConvEncoder", "--format", "space")
    done = subprocess.run(
        [sys.executable, *map(str, command), "--out", str(tmp_path / "space")],
        capture_output=True, text=True, timeout=300, cwd=EXAMPLES,
    )  # fmt: skip
    assert done.returncode == 2 and "no space export: app.py cannot import" in done.stderr
    assert not (tmp_path / "space").exists()
