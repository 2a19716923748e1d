"""Checkpoints have a manifest of hashes; a damaged one is named, and the one before it is used."""

import json
import shutil

import pytest

from laennec.errors import InputError
from laennec.training.checkpoints import MANIFEST, damage, last_whole, seal
from laennec.training.recipe import Recipe
from laennec.training.run import train
from laennec.training.trainer import LaennecTrainer
from runs import what_it_left

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "sums.json")


@pytest.fixture(scope="module")
def unfinished(tiny_recipe, tmp_path_factory):
    """The checkpoints of a run that was stopped after its second epoch."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    recipe = Recipe(**{**tiny_recipe, "output_dir": str(out)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LaennecTrainer, "_load_best_model", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    return out


@pytest.fixture
def folder(unfinished, tmp_path):
    """checkpoint-5 and checkpoint-10; the latter names one of them as the best."""
    return shutil.copytree(unfinished / "checkpoints" / "train", tmp_path / "train")


def make_best(folder, step):
    """Let the newest checkpoint name another one as the best, with a valid manifest."""
    newest = folder / "checkpoint-10"
    state = json.loads((newest / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = str(folder / f"checkpoint-{step}")
    (newest / "trainer_state.json").write_text(json.dumps(state))
    (newest / MANIFEST).unlink()
    seal(newest, 1)


def damages():
    for name in FILES:
        yield name, "missing"
        yield name, "shorter"
        yield name, "other bits"
    for how in ("missing", "shorter", "other bits", "empty"):
        yield MANIFEST, how


def spoil(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "shorter":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :])


def test_a_checkpoint_holds_what_going_on_needs_and_nothing_is_wrong_with_it(folder):
    for step in (5, 10):
        listed = json.loads((folder / f"checkpoint-{step}" / MANIFEST).read_text())
        assert set(FILES) <= set(listed["files"]) and listed["processes"] == 1
        assert damage(folder / f"checkpoint-{step}") is None
    assert last_whole(folder).name == "checkpoint-10"


@pytest.mark.parametrize(("name", "how"), list(damages()))
def test_a_damaged_checkpoint_is_named_and_skipped(folder, caplog, name, how):
    make_best(folder, 5)
    spoil(folder / "checkpoint-10" / name, how)
    wrong = damage(folder / "checkpoint-10")
    # a checkpoint with a damaged manifest is not used
    assert wrong is not None and (name in wrong or name == MANIFEST)
    assert last_whole(folder) == folder / "checkpoint-5"
    assert "checkpoint-10: not whole" in caplog.text and wrong in caplog.text
    assert not (folder / "checkpoint-10").exists()


def test_a_checkpoint_is_not_used_without_the_checkpoint_of_its_best_epoch(folder, caplog):
    make_best(folder, 5)
    spoil(folder / "checkpoint-5" / "model.safetensors", "other bits")
    assert last_whole(folder) is None
    assert "checkpoint-5: model.safetensors differs from what was written" in caplog.text


def test_a_checkpoint_that_a_kill_left_unsealed_is_removed(folder):
    (folder / "checkpoint-15").mkdir()
    (folder / "checkpoint-15" / "model.safetensors").write_bytes(b"half")
    assert last_whole(folder).name == "checkpoint-10" and not (folder / "checkpoint-15").exists()


def test_another_number_of_processes_is_refused_in_one_line(folder):
    with pytest.raises(InputError, match="the number of processes was 1, now it is 2"):
        last_whole(folder, world_size=2)
    assert (folder / "checkpoint-10").is_dir()


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(unfinished, tiny_recipe, tmp_path, caplog):
    straight = train(Recipe(**{**tiny_recipe, "output_dir": str(tmp_path / "straight")}))
    out = shutil.copytree(unfinished, tmp_path / "run")
    spoil(out / "checkpoints" / "train" / "checkpoint-10" / "optimizer.pt", "missing")
    (out / "recipe.json").write_text(
        json.dumps({**json.loads((out / "recipe.json").read_text()), "output_dir": str(out)})
    )
    train(Recipe(**{**tiny_recipe, "output_dir": str(out)}))
    assert "optimizer.pt is missing" in caplog.text
    assert what_it_left(out) == what_it_left(straight)
    timed = [json.loads((folder / "run.json").read_text())["timings"] for folder in (straight, out)]
    assert ["training" in one for one in timed] == [True, False]
    assert 0 < timed[1]["training since an interruption"] <= timed[1]["total"]
