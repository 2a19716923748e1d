"""An own metric, from Python, the command line and a recipe: interval, subgroups, report and comparison."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import laennec
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.intervals import patient_codes
from laennec.training.recipe import Recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def per_recording(monkeypatch):
    """The example's metric; its folder is the working directory, as for a user."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])
    from own_metric import per_recording

    return per_recording


def predictions(patients=12, seed=0):
    """A predictions table of four recordings of three cycles for each patient."""
    rng = np.random.default_rng(seed)
    n = patients * 12
    crackle, wheeze = (rng.random((2, n)) < 0.35).astype(int)
    return pd.DataFrame(
        {
            "cycle_id": [f"c{k}" for k in range(n)],
            "recording_id": [f"r{k // 3}" for k in range(n)],
            "patient_id": [f"p{k // 12}" for k in range(n)],
            "device": np.where(np.arange(n) // 12 % 2, "A", "B"),
            "crackle": crackle,
            "wheeze": wheeze,
            "logit_crackle": 2.0 * crackle - 1 + rng.normal(size=n),
            "logit_wheeze": 2.0 * wheeze - 1 + rng.normal(size=n),
        }
    )


def test_the_example_is_undefined_where_no_recording_is_predicted(per_recording):
    values = laennec.evaluate_predictions(predictions().assign(logit_crackle=-9.0), metrics=[per_recording])["values"]
    assert values["recording_precision"] is None and values["recording_recall"] == 0


def test_an_own_metric_gets_interval_and_subgroups(per_recording):
    table = predictions()
    evaluation = laennec.evaluate_predictions(table, metrics=[per_recording])
    codes, n = patient_codes(table)
    by_hand = []
    for left_out in (None, *range(n)):
        rows = table[codes != left_out]
        rows = rows.assign(true_crackle=rows.crackle, predicted_crackle=(rows.logit_crackle > 0).astype(int))
        by_hand.append(per_recording(rows)["recording_recall"])
    assert evaluation["own_metrics"]["left_out"]["recording_recall"] == pytest.approx(by_hand)
    low, high = evaluation["intervals"]["recording_recall"]
    assert 0 <= low < evaluation["values"]["recording_recall"] < high <= 1
    whole = table.assign(true_crackle=table.crackle, predicted_crackle=(table.logit_crackle > 0).astype(int))
    assert evaluation["values"]["recording_recall"] == per_recording(whole)["recording_recall"]
    rows = evaluation["subgroups"]["device"]
    for row in rows:
        own = per_recording(whole[whole.device == row["value"]])
        assert {name: row["values"][name] for name in own} == own
        assert row["intervals"]["recording_recall"] is not None
    built_in = laennec.evaluate_predictions(table)
    assert {name: evaluation["values"][name] for name in built_in["values"]} == built_in["values"]


def test_it_appears_wherever_a_score_does(per_recording, tiny_run, tmp_path, monkeypatch, capsys):
    runs = [shutil.copytree(tiny_run, tmp_path / name, ignore=shutil.ignore_patterns("eval*")) for name in ("a", "b")]
    command = ["--split", "train", "--metrics", "own_metric:per_recording"]
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    for run in runs[1:]:
        assert main(["evaluate", str(run), *command]) == 0
    monkeypatch.undo()
    monkeypatch.chdir(EXAMPLES)
    assert main(["evaluate", str(runs[0]), *command]) == 0
    assert "recording_recall" in capsys.readouterr().out
    folder = runs[0] / "evaluation-train"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics["own_metrics"]["left_out"]["recording_recall"]) == 1 + metrics["uncertainty"]["patients"]
    assert "recording_recall" in (folder / "report.html").read_text()
    record = json.loads((runs[0] / "run.json").read_text())
    assert "recording_recall" in record["evaluations"][-1]["result"]["metrics"]["values"]
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 0
    compared = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert "recording_recall" in compared["figures"]
    assert compared["methods"]["b"]["figures"]["recording_recall"]["difference"] == 0.0


@pytest.mark.usefixtures("per_recording")
def test_a_recipe_names_it(tiny_run, tmp_path, monkeypatch):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("eval*"))
    record = json.loads((run / "run.json").read_text())
    config = record["config"] | {"evaluation": {"metrics": ["own_metric:per_recording"]}}
    record["config"] = Recipe.from_record(config, "run.json").to_dict()
    (run / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    values = laennec.score(run).evaluation["values"]
    assert {"recording_recall", "recording_precision"} <= set(values)


@pytest.mark.usefixtures("per_recording")
def test_the_example_runs(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("eval*"))
    runpy.run_path(str(EXAMPLES / "own_metric.py"))["main"](str(run))
    assert "recording_recall" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError, KeyError, IndexError])
def test_a_metric_that_is_undefined_in_a_subgroup_is_none(per_recording, error):
    def of_the_first_device(table):
        if (table["device"] == "B").all():
            raise error("only one device")
        return {"share": float((table["device"] == "A").mean())}

    evaluation = laennec.evaluate_predictions(predictions(), metrics=[of_the_first_device])
    found = {row["value"]: row["values"]["share"] for row in evaluation["subgroups"]["device"]}
    assert found == {"A": 1.0, "B": None}


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda table: 1.0, "return a dictionary"),
        (lambda table: {"icbhi.Score": 1.0}, "already in use"),
        (lambda table: {"x": table["nothing"].mean()}, "KeyError: 'nothing'; correct the metric"),
        (3, "is not a function"),
    ],
)
def test_a_metric_that_cannot_be_used_is_one_line(metric, said):
    with pytest.raises(InputError, match=said):
        laennec.evaluate_predictions(predictions(), metrics=[metric])
