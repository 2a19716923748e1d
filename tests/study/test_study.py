"""Studies are run, stopped, gone on with and gathered; runs of a method answer together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from laennec.cli import main
from laennec.errors import InputError
from laennec.evaluation.calibration import calibrated_logits, sigmoid
from laennec.sharing.results import render
from laennec.study.classical import score_classical
from laennec.study.ensemble import make_ensemble
from laennec.study.plan import CLASSICAL, Cell, Score, Study
from laennec.study.run import gather
from laennec.training.config import recipe_from_dict
from laennec.training.experiment import train
from laennec.training.parts import load_parts
from laennec.training.score import answer_part, load_model, score


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def two_runs(tiny_run, tiny_recipe, tmp_path_factory):
    """Two seeds of one recipe, scored on the test part; the second one cut short."""
    folder = tmp_path_factory.mktemp("study") / "tiny"
    shutil.copytree(tiny_run, folder / "0", ignore=shutil.ignore_patterns("evaluation-*", "export-*"))
    short = tiny_recipe | {"seed": 1, "train": tiny_recipe["train"] | {"epochs": 1}, "output_dir": str(folder / "1")}
    train(recipe_from_dict(short))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laennec.training.score.write_report", lambda place, *_: (place / "report.html").write_text(""))
        for seed in "01":
            score(folder / seed, split="test", draws=20)
    return [folder / "0", folder / "1"]


def test_an_ensemble_is_the_mean_of_calibrated_answers(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("laennec.study.derived.write_report", lambda *_: None)
    made = make_ensemble("tiny", two_runs, [Score("test", {}, "test")], tmp_path)
    table = pd.read_parquet(made / "evaluation-test" / "predictions.parquet")
    names = ["crackle", "wheeze"]
    members = []
    for run in two_runs:
        points = read(run / "run.json")["operating_points"]
        raw = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
        logits = raw[[f"logit_{name}" for name in names]].to_numpy(float)
        members.append(calibrated_logits(logits, names, points["temperatures"], points["intercepts"]))
    mean = np.mean(members, axis=0)
    assert table[[f"logit_{name}" for name in names]].to_numpy() == pytest.approx(mean)
    metrics, record = read(made / "evaluation-test" / "metrics.json"), read(made / "evaluation-test" / "run.json")
    assert record["name"] == "tiny, 2 together" and record["ensemble"] == [str(run) for run in two_runs]
    fitted = metrics["fitted"]
    assert fitted["fitted_on"]["split"] == "validation"
    temperatures, intercepts = (
        [fitted[key].get(name, default) for name in names] for key, default in (("temperatures", 1), ("intercepts", 0))
    )
    decided = sigmoid(mean / temperatures + intercepts)
    answered = decided > [fitted["threshold_probabilities"][n] for n in names]
    normal = ~table[names].to_numpy(bool).any(1)
    assert metrics["values"]["icbhi.Sp"] == pytest.approx(100 * (~answered[normal].any(1)).mean())
    assert metrics["floors"] == read(two_runs[0] / "evaluation-test" / "metrics.json")["floors"]


def test_members_of_other_cycles_are_refused(two_runs, tmp_path):
    other = shutil.copytree(two_runs[1], tmp_path / "other")
    path = other / "evaluation-test" / "predictions.parquet"
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    with pytest.raises(ValueError, match="other cycles"):
        make_ensemble("tiny", [two_runs[0], other], [Score("test", {}, "test")], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("run.json"))


def frozen(tiny_recipe, folder, **settings):
    """A run on mel statistics, scored on the test part."""
    changes = {"encoder": {"type": "statistics", "frozen": True}, "features": {"preset": "efficientat"}, **settings}
    run = train(recipe_from_dict(tiny_recipe | changes | {"output_dir": str(folder)}))
    score(run, split="test", draws=20)
    return run


@pytest.mark.parametrize("kind", ["gradient_boosting", "svc"])
@pytest.mark.parametrize("problem", ["multi_label", "single_label"])
def test_classical_classifiers_hear_what_the_head_heard(tiny_recipe, tmp_path, monkeypatch, kind, problem):
    monkeypatch.setattr("laennec.training.score.write_report", lambda *_: None)
    monkeypatch.setattr("laennec.study.derived.write_report", lambda *_: None)
    target = {"target": {"problem_type": problem}, "loss": {"task": "bce" if problem == "multi_label" else "ce"}}
    run = frozen(tiny_recipe, tmp_path / "run", **target)
    made = score_classical(kind, "statistics", run, [Score("test", {}, "test")], tmp_path / "run-classical")
    record = read(made / "evaluation-test" / "run.json")
    assert record["name"] == f"statistics, {CLASSICAL[kind]}" and record["classical"] == kind
    own = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    theirs = pd.read_parquet(made / "evaluation-test" / "predictions.parquet")
    logits = [column for column in own if column.startswith("logit_")]
    assert list(own["cycle_id"]) == list(theirs["cycle_id"]) and not own[logits].equals(theirs[logits])
    model, extractor = load_model(run)
    recipe = recipe_from_dict(read(run / "run.json")["config"])
    parts = load_parts(recipe)
    _, heard, part = answer_part(model, extractor, parts["train"], "train", recipe)
    _, asked, _ = answer_part(model, extractor, parts["test"], "test", recipe)
    plain = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
    truth = part.targets.labels[:, 0] if problem == "multi_label" else part.targets.labels
    if kind == "svc":
        expected = plain.fit(heard, truth.astype(int)).decision_function(asked)
        answered = theirs[logits].to_numpy() if problem == "single_label" else theirs[logits[0]].to_numpy()
        assert answered == pytest.approx(expected)
    metrics = read(made / "evaluation-test" / "metrics.json")
    assert metrics["fitted"]["fitted_on"]["split"] == "validation"
    assert metrics["floors"] == read(run / "evaluation-test" / "metrics.json")["floors"]


def test_a_trained_encoder_gives_no_classical_baseline(two_runs, tmp_path):
    with pytest.raises(InputError, match=r"encoder\.frozen: true"):
        score_classical("svc", "tiny", two_runs[0], [Score("test", {}, "test")], tmp_path / "out")


@pytest.mark.parametrize(("baseline", "said"), [("tiny", "tiny"), ("later", None)])
def test_a_baseline_that_is_still_to_come_is_no_error(two_runs, tmp_path, baseline, said):
    runs = [Path(shutil.copytree(run, tmp_path / "tiny" / run.name)) for run in two_runs]
    wanted = [("tiny", 0), ("tiny", 1), ("later", 0)]
    cells = tuple(Cell(name, Path("-"), n, None, {}, {}, scores=(Score("test", {}, "test"),)) for name, n in wanted)
    study = Study("s", "", tmp_path, tmp_path / "part.json", baseline, cells, {}, (), ("icbhi.Score",))
    content = read(gather(study, runs))
    compared = content["methods"]["test"]
    assert content["study"]["baseline"] == baseline and compared["baseline"] == said
    assert compared["figures"]["tiny"]["icbhi.Score"]["difference"] is None


@pytest.mark.soak
def test_a_study_is_stopped_gone_on_with_and_gathered(tiny_recipe, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe | {"name": "tiny", "output_dir": None}))
    study = {
        "output_dir": str(tmp_path / "out"),
        "baseline": "tiny, label fraction 1",
        "seeds": [0, 1],
        "evaluate": {"draws": 30},
        "methods": [str(tmp_path / "tiny.yaml")],
        "axes": {"label_fractions": [1.0, 0.5]},
        "ensembles": "tiny, label fraction 1",
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = ["study", str(tmp_path / "study.yaml")]
    assert main([*command, "--most", "1"]) == 0
    assert "left for later: 3 of the cells" in capsys.readouterr().out
    whole = (tmp_path / "out" / "tiny_label_fraction_1" / "0" / "run.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "out" / "tiny_label_fraction_1" / "0" / "run.json").stat().st_mtime_ns == whole
    content = read(tmp_path / "out" / "results.json")
    names = {row["name"] for row in content["results"]}
    assert names == {"tiny, label fraction 1", "tiny, label fraction 0.5", "tiny, label fraction 1, 2 together"}
    for row in (row for row in content["results"] if "together" not in row["name"]):
        assert row["cost"]["train"]["cpu_seconds"] > 0 and row["cost"]["evaluate"]["peak_memory_mb"] > 50
        assert row["scored"] == 1
    half = read(tmp_path / "out" / "tiny_label_fraction_0.5" / "1" / "run.json")
    assert half["labelled"] == pytest.approx(half["cycles"]["train"] / 2, rel=0.3) and half["config"]["seed"] == 1
    assert content["methods"]["test"]["baseline"] == "tiny, label fraction 1"
    document = tmp_path / "page.md"
    document.write_text("<!-- laennec:study out/results.json test -->\n<!-- laennec:end -->\n")
    assert not render(document) and render(document, check=True)
    assert "| tiny, label fraction 0.5 | 2 |" in document.read_text()
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0 and capsys.readouterr().out == ""
