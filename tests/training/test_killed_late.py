"""A kill at the end of a command: evaluations counted without results, checkpoints of a finished run."""

import json
import shutil

import pytest

from laennec.cli.main import main
from laennec.training.recipe import Recipe
from laennec.training.record import counted_evaluation, settled_evaluations, write_record
from laennec.training.run import train

LOOKED = {"split": "test", "created": "2026-01-01T00:00:00+00:00", "command": "laennec evaluate run"}


def counted(path):
    return json.loads(path.read_text())["evaluations"]


@pytest.fixture
def record(tmp_path):
    write_record(tmp_path / "run.json", {"name": "run", "evaluations": []})
    with counted_evaluation(tmp_path / "run.json", LOOKED | {"created": "earlier"}):
        pass
    return tmp_path / "run.json"


def test_an_evaluation_counted_without_results_is_removed(record, tmp_path):
    with pytest.raises(KeyboardInterrupt), counted_evaluation(record, LOOKED, tmp_path / "evaluation-test"):
        assert len(counted(record)) == 2  # counted before the results exist
        raise KeyboardInterrupt
    assert len(counted(record)) == 2
    assert [e["created"] for e in settled_evaluations(record)["evaluations"]] == ["earlier"]
    assert [e["created"] for e in counted(record)] == ["earlier"]


@pytest.mark.parametrize("created, kept", [(LOOKED["created"], 2), ("another scoring", 1)])
def test_an_evaluation_counted_with_results_is_kept(record, tmp_path, created, kept):
    with pytest.raises(KeyboardInterrupt), counted_evaluation(record, LOOKED, tmp_path / "evaluation-test"):
        write_record(tmp_path / "evaluation-test" / "run.json", {"evaluated": LOOKED | {"created": created}})
        raise KeyboardInterrupt
    settled = settled_evaluations(record)["evaluations"]
    assert len(settled) == kept and settled == counted(record)
    assert all(set(looked) == set(LOOKED) for looked in settled)


def test_a_complete_evaluation_is_counted_once(record, tmp_path):
    with counted_evaluation(record, LOOKED, tmp_path / "evaluation-test"):
        pass
    assert counted(record)[1] == LOOKED and settled_evaluations(record)["evaluations"] == counted(record)


def test_a_scoring_that_is_stopped_before_its_results_are_shown_counts_once_in_the_end(tiny_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    before = len(counted(run / "run.json"))
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)

    def stop(new, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("laennec.files._take_place", stop)
        assert main(["evaluate", str(run)]) != 0
    assert not (run / "evaluation-test").exists() and len(counted(run / "run.json")) == before + 1
    assert main(["evaluate", str(run)]) == 0
    assert len(counted(run / "run.json")) == before + 1
    assert "coming" not in (run / "run.json").read_text()


def test_a_finished_run_that_was_killed_during_cleanup_is_cleaned_up(tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    recipe = Recipe(**(json.loads((run / "recipe.json").read_text()) | {"output_dir": str(run)}))
    write_record(run / "recipe.json", recipe.to_dict())
    (run / "checkpoints" / "train" / "checkpoint-3").mkdir(parents=True)
    written = (run / "run.json").read_bytes()
    assert train(recipe) == run
    assert not (run / "checkpoints").exists() and (run / "run.json").read_bytes() == written
    with pytest.raises(ValueError, match="holds a finished run"):
        train(recipe)
    (run / "checkpoints").mkdir()
    recipe.seed += 1
    with pytest.raises(ValueError, match="holds a finished run"):  # another recipe: the run stays unchanged
        train(recipe)
    assert (run / "checkpoints").exists()
