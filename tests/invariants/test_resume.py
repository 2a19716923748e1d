"""A run that is stopped and resumed is bit for bit the same as a run without a stop."""

import json
import os
import signal

import pytest
import yaml
from safetensors.numpy import load_file
from transformers import TrainerCallback

from forked import laennec
from laennec.cli.main import main
from laennec.training.pretraining.run import pretrain
from laennec.training.recipe import Recipe
from laennec.training.run import train
from laennec.training.trainer import LaennecTrainer
from runs import what_it_left
from ways import settings_of, ways

EVERY_STEP = ("draws and mixing",)
# stopped in the middle and at the end of epochs; `make soak` stops after every step for all kinds of recipes
SOME_STEPS = ("alternation", "balance and warm-up", "accumulated, weighted, impatient")
NAMES = list(ways("ast"))


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            raise KeyboardInterrupt


def step_of(stops, every):
    """The step of a phase after which the run stops this time."""
    return stops % 7 + 1 if every else (3, 5, 8, 10)[(stops - 1) % 4]


CASES = [pytest.param(way, True, id=f"{way}, every step") for way in EVERY_STEP]
CASES += [pytest.param(way, False, id=f"{way}, some steps") for way in SOME_STEPS]
CASES += [pytest.param(way, True, id=way, marks=pytest.mark.soak) for way in NAMES if way not in EVERY_STEP]


@pytest.mark.parametrize(("way", "every"), CASES)
def test_stopping_and_going_on_changes_nothing(tiny_recipe, tiny_ast, tmp_path, monkeypatch, way, every):
    settings = settings_of(tiny_recipe, ways(tiny_ast)[way], save_steps=1)

    def run(name):
        return train(Recipe(**{**settings, "output_dir": str(tmp_path / name)}))

    wanted = what_it_left(run("straight"))
    original, stops = LaennecTrainer.train, 0

    def interrupted(self, *arguments, **settings):
        self.add_callback(StopAfter(step_of(stops, every)))  # the middle of an epoch included
        return original(self, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(LaennecTrainer, "train", interrupted)
        while not (tmp_path / "stopped" / "run.json").exists():
            try:
                stops += 1
                assert stops < 60
                run("stopped")
            except KeyboardInterrupt:
                if way == "lora":  # a checkpoint does not contain the base encoder
                    (weights, *_) = (tmp_path / "stopped").rglob("checkpoint-*/model.safetensors")
                    assert all(".lora_" in name for name in load_file(weights) if name.startswith("encoder."))
    assert stops > 2
    assert what_it_left(tmp_path / "stopped") == wanted
    history = json.loads((tmp_path / "stopped" / "run.json").read_text())["history"]
    logged = [term for row in history for term, value in row.get("loss_terms", {}).items() if value]
    for name in settings.get("loss", {}).get("auxiliary", {}):
        assert any(term.startswith(name) for term in logged), name


def test_pre_training_goes_on_too(tiny_recipe, tmp_path, monkeypatch):
    pre = {"views": ["raw", "spec"], "epochs": 2, "batch_size": 8, "save_steps": 1}
    settings = {**tiny_recipe, "pretrain": {**pre, "pairs": "age_band"}}

    def run(name):
        pretrain(Recipe(**{**settings, "output_dir": str(tmp_path / name)}))
        record = json.loads((tmp_path / name / "pretrain.json").read_text())
        weights = load_file(tmp_path / name / "encoder" / "model.safetensors")
        return {k: v.tobytes() for k, v in weights.items()}, record["history"], record["embeddings"]

    wanted = run("straight")
    original, stops = LaennecTrainer.train, 0

    def interrupted(self, *arguments, **settings):
        self.add_callback(StopAfter((2, 4, 5, 7, 100)[stops]))
        return original(self, *arguments, **settings)

    monkeypatch.setattr(LaennecTrainer, "train", interrupted)
    while stops < 5:
        try:
            found = run("stopped")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 2 and found == wanted


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    settings = {**tiny_recipe, "train": {**tiny_recipe["train"], "epochs": 20}, "output_dir": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "recipe.yaml"


def test_a_termination_leaves_a_whole_checkpoint_and_exit_code_143(recipe_file, tmp_path, capsys):
    running = laennec("train", recipe_file)
    for line in running.stdout:
        if "epoch 2" in line:
            break
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 143
    assert said.strip().splitlines()[-1].startswith("laennec: stopped after step ")
    step = int(said.rsplit("step ", 1)[1].split(";")[0])
    folder = tmp_path / "run" / "checkpoints" / "train"
    assert (folder / f"checkpoint-{step}" / "manifest.json").exists()
    assert main(["train", str(recipe_file)]) == 0
    assert os.path.exists(tmp_path / "run" / "run.json")
