"""Studies that are killed, terminated or interrupted while they run, and data that change between runs."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from transformers import TrainerCallback

from forked import Forked, laennec
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.study.run import run_step
from laennec.training.recipe import Recipe
from laennec.training.run import train

WAIT_S = 600  # generous: a busy machine must not fail a test
ENDINGS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
ENDING = pytest.mark.parametrize("ending", ENDINGS, ids=lambda number: number.name)


def wait_for(condition):
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def is_alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("ending", [9, 2], ids=["killed", "interrupted"])
@pytest.mark.parametrize("deaf", [False, True], ids=["ends when told", "ignores SIGTERM"])
def test_a_step_ends_with_its_study(tmp_path, monkeypatch, ending, deaf):
    (tmp_path / "endless.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN if {deaf and ending == 9} else signal.SIG_DFL)\n"
        "pathlib.Path(sys.argv[1], 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(3600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    study = Forked(lambda: run_step(["-m", "endless", str(tmp_path), "", ""], tmp_path / "run"))
    step = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    study.send_signal(ending)
    assert study.done(WAIT_S).returncode != 0
    wait_for(lambda: not is_alive(step))


@pytest.fixture(scope="module")
def study(tiny_recipe, tmp_path_factory):
    """A function that writes a study of two seeds into a folder and returns the words of its command."""
    recipe = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe | {"name": "tiny", "output_dir": None}))

    def write(folder):
        content = {"output_dir": str(folder / "out"), "seeds": [0, 1]}
        (folder / "study.yaml").write_text(yaml.safe_dump(content | {"methods": [str(recipe)]}))
        return "study", folder / "study.yaml"

    return write


def figures(folder):
    """Results of a study, without times."""
    content = json.loads((folder / "out" / "results.json").read_text())
    assert "missing" not in content["study"]
    rows = [{key: value for key, value in row.items() if key in ("name", "seed", "figures", "split", "epoch")}
            for row in content["results"]]  # fmt: skip
    return rows, content["methods"]


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    """The folder of a study that ran without interruption."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = laennec(*study(folder)).done(WAIT_S)
    assert done.returncode == 0, done
    return folder


@pytest.fixture
def begun(study, undisturbed, tmp_path):
    """The command of a study whose first seed is finished."""
    shutil.copytree(undisturbed / "out" / "tiny" / "0", tmp_path / "out" / "tiny" / "0")
    return study(tmp_path)


@ENDING
def test_a_study_that_was_ended_is_continued_to_the_same_result(begun, undisturbed, tmp_path, ending):
    first = laennec(*begun)
    wait_for((tmp_path / "out" / "tiny" / "1" / "recipe.json").exists)
    steps = children(first.pid)
    assert steps and first.poll() is None
    first.send_signal(ending)
    assert first.done(WAIT_S).returncode == ENDINGS[ending]
    again = laennec(*begun).done(WAIT_S)
    assert again.returncode == 0 and "FAILED" not in again.stdout, again
    assert not any(map(is_alive, steps))
    assert figures(tmp_path) == figures(undisturbed) and len(figures(undisturbed)[0]) == 2


def test_results_without_a_seed_say_so(begun, tmp_path):
    (tmp_path / "out" / "tiny" / "1").write_text("in the way")
    done = laennec(*begun).done(WAIT_S)
    assert done.returncode == 2 and "failed: tiny/1" in done.stdout, done
    assert json.loads((tmp_path / "out" / "results.json").read_text())["study"]["missing"] == ["tiny/1"]


class Interrupt(TrainerCallback):
    """Stops a training after its first epoch, as Ctrl+C does."""

    def on_save(self, *given, **named):
        raise KeyboardInterrupt


@pytest.fixture
def on_own_corpus(small_corpus, tiny_recipe, tmp_path):
    """The tiny recipe on a corpus that a test may change."""
    folder = shutil.copytree(small_corpus, tmp_path / "corpus")
    return folder, tiny_recipe | {"corpus": tiny_recipe["corpus"] | {"data_dir": str(folder)}}


def relabel(folder):
    path = sorted(folder.glob("*.txt"))[0]
    lines = path.read_text().splitlines()
    begin, end, crackle, wheeze = lines[0].split()
    path.write_text("\n".join([f"{begin}\t{end}\t{1 - int(crackle)}\t{wheeze}", *lines[1:]]) + "\n")


def test_a_training_does_not_resume_with_other_labels(on_own_corpus, tmp_path):
    folder, settings = on_own_corpus
    recipe = Recipe(**settings, output_dir=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, watch=Interrupt())
    relabel(folder)
    with pytest.raises(InputError, match=r"unfinished run on other data.*--overwrite"):
        train(recipe)
    assert (train(recipe, overwrite=True) / "run.json").exists()


def test_a_study_keeps_no_run_on_labels_that_were_replaced(on_own_corpus, tmp_path, capsys):
    folder, settings = on_own_corpus
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    plan = {
        "methods": [str(tmp_path / "tiny.yaml")],
        "seeds": [0],
        "baseline": "tiny",
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plan))
    command = ["study", str(tmp_path / "study.yaml"), "--dry-run"]
    train(Recipe(**settings, output_dir=str(tmp_path / "out" / "tiny" / "0")))
    assert main(command) == 0
    relabel(folder)
    assert main(command) == 2
    assert "holds a run on other data" in capsys.readouterr().err
    for path in folder.glob("*.txt"):
        path.write_text("")  # results can be gathered where the corpus is not available
    assert main(command) == 0
