"""Studies whose process is killed, terminated or interrupted in mid-run."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from forked import Forked, laennec
from laennec.study.run import run_step

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
    """Writes a study of two seeds into a folder; returns the words of its command."""
    recipe = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe | {"name": "tiny", "output_dir": None}))

    def write(folder):
        content = {"output_dir": str(folder / "out"), "seeds": [0, 1], "evaluate": {"draws": 20}}
        (folder / "study.yaml").write_text(yaml.safe_dump(content | {"methods": [str(recipe)]}))
        return "study", folder / "study.yaml"

    return write


def figures(folder):
    """What a study found, without what it took."""
    content = json.loads((folder / "out" / "results.json").read_text())
    assert "missing" not in content["study"]
    rows = [{key: value for key, value in row.items() if key in ("name", "seed", "figures", "split", "epoch")}
            for row in content["results"]]  # fmt: skip
    return rows, content["methods"]


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    """The folder of a study that nobody ended."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = laennec(*study(folder)).done(WAIT_S)
    assert done.returncode == 0, done
    return folder


@pytest.fixture
def begun(study, undisturbed, tmp_path):
    """The words of the command of a study that has its first seed."""
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
