"""Studies: run, interrupted, continued and gathered; ensembles and classifiers; costs."""

import contextlib
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from docs.render import render
from evaluation_tables import read
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model, predict_split, score
from laennec.files import try_lock
from laennec.study import run as study_run
from laennec.study.classical import score_classical
from laennec.study.plan import CLASSICAL, Cell, Score, Study
from laennec.study.results import add_costs, cost_without_scoring, read_cost, training_cost
from laennec.study.run import gather, run_step, run_study
from laennec.study.stale import refuse_other_scores
from laennec.training.data.split_data import load_splits
from laennec.training.recipe import Recipe
from laennec.training.record import write_record
from laennec.training.run import train


@pytest.fixture(scope="module")
def two_runs(tiny_recipe, tmp_path_factory):
    """Two seeds of one recipe, scored on the test split."""
    folder = tmp_path_factory.mktemp("study") / "tiny"
    short = tiny_recipe | {"train": tiny_recipe["train"] | {"epochs": 1}, "head": {"threshold_rule": "youden"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "laennec.evaluation.evaluate.write_report", lambda place, *_: (place / "report.html").write_text("")
        )
        for seed in range(2):
            train(Recipe(**(short | {"seed": seed, "output_dir": str(folder / str(seed))})))
            score(folder / str(seed), split="test")
    return [folder / "0", folder / "1"]


def study_of(cells, output_dir, results, **more):
    """A study of these trainings, compared by the ICBHI score."""
    places = {"output_dir": output_dir, "results": results, "ensembles": ()}
    return Study.model_construct(name="s", cells=cells, figures=("icbhi.Score",), **places | more)


def test_runs_of_a_method_form_an_ensemble(two_runs, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [read(run / "run.json") for run in two_runs]
    for seed, run in enumerate(two_runs):
        shutil.copytree(run, tmp_path / "out" / "tiny" / run.name)
        took = {"seconds": 2.0, "cpu_seconds": 1.5 + seed, "peak_memory_mb": 100 + seed, "processes": 1}
        write_record(tmp_path / "out" / "tiny" / f"{seed}.cost.json", {"train": took, "evaluate": took})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(records[0]["config"]))
    cells = tuple(Cell("tiny", Path("tiny.yaml"), k, scores=(Score(),)) for k in range(2))
    study = study_of(cells, Path("out"), Path("s.json"), ensembles=("tiny",))
    said = []
    done = run_study(study, say=said.append)
    assert not done.failed and done.runs[-1] == Path("out/tiny-ensemble/2"), (done, said)
    assert said[0].startswith("laennec ensemble out/tiny/0 out/tiny/1 --name 'tiny, ensemble of 2'")
    rows = {(row["name"], row["seed"]): row for row in read(tmp_path / "s.json")["results"]}
    together = rows["tiny, ensemble of 2", 0]
    assert together["cost"]["train"] == {"seconds": 4, "cpu_seconds": 4, "peak_memory_mb": 101, "processes": 2}
    assert together["cost"]["ensemble"]["cpu_seconds"] > 0.1 and together["cost"]["evaluate"]["cpu_seconds"] > 2.6
    assert rows["tiny", 1]["cost"]["evaluate"]["cpu_seconds"] == 2.5 and "ensemble" not in rows["tiny", 1]["cost"]
    assert together["duration_blind"]["values"]["icbhi.Score"] > 0
    members = [pd.read_parquet(f"out/tiny/{k}/evaluation-test/predictions.parquet") for k in range(2)]
    table = pd.read_parquet("out/tiny-ensemble/2/evaluation-test/predictions.parquet")
    for name in ("crackle", "wheeze"):
        calibrated = []
        for record, member in zip(records, members, strict=True):
            points = record["operating_points"]
            temperature, intercept = points["temperatures"].get(name, 1), points["intercepts"].get(name, 0)
            calibrated.append(member[f"logit_{name}"] / temperature + intercept)
        assert table[f"logit_{name}"].to_numpy() == pytest.approx(np.mean(calibrated, axis=0), abs=1e-4)
    done, said[:] = run_study(study, say=said.append), []
    assert not said and done.results is not None
    write_record(tmp_path / "out" / "tiny" / "1" / "run.json", records[1] | {"timings": {"training": 0.5}})
    with pytest.raises(InputError, match="holds an ensemble of other runs than tiny/0, tiny/1 as they are now"):
        run_study(study, say=said.append)


@pytest.mark.parametrize(
    ("scored", "evaluate", "words"),
    [
        ({"evaluated": {"corpus": {"name": "siteA", "provenance": {}}}}, {}, "corpus siteA, where the study says tiny"),
        ({"evaluated": {"split": "validation"}}, {}, "split validation, where the study says test"),
        ({}, {"smoothing": 0.5}, "smoothing none, where the study says 0.5"),
        ({}, {"spans": "windows"}, "spans events, where the study says windows"),
    ],
)
def test_earlier_scores_of_something_else_are_refused(tmp_path, scored, evaluate, words):
    own = {"split": "test", "corpus": {"name": "tiny"}, "command": "laennec evaluate r --split test --out o"}
    record = {"trained_on": {"name": "tiny"}, "evaluated": own | scored.get("evaluated", {})}
    write_record(tmp_path / "evaluation-test" / "run.json", record)
    cell = Cell("tiny", Path("tiny.yaml"), 0, scores=(Score(),), evaluate=evaluate)
    with pytest.raises(InputError, match=words):
        refuse_other_scores(cell, tmp_path, tmp_path, lambda _: None)
    refuse_other_scores(cell, tmp_path, tmp_path / "another run", lambda _: None)
    same = Cell("tiny", Path("tiny.yaml"), 0, scores=(Score(),), evaluate={"smoothing": "none", "spans": "events"})
    if not scored:
        refuse_other_scores(same, tmp_path, tmp_path, lambda _: None)
    write_record(tmp_path / "run.json", {"history": [{"loss": 0.5}]})
    with pytest.raises(InputError, match="results of an earlier training"):
        refuse_other_scores(cell, tmp_path, tmp_path, lambda _: None)


def test_scores_of_other_data_are_refused(tmp_path):
    corpus = {"name": "folder", "fingerprint": "a", "provenance": {"protocol": "none"}}
    record = {"evaluated": {"split": "all", "corpus": corpus, "command": None}}
    write_record(tmp_path / "evaluation-site" / "run.json", record)
    score = Score(split="all", name="site", corpus="folder", data_dir="siteB", protocol="none")
    cell = Cell("tiny", Path("tiny.yaml"), 0, scores=(score,))
    refuse_other_scores(cell, tmp_path, tmp_path, lambda _: "a")
    refuse_other_scores(cell, tmp_path, tmp_path, lambda _: None)  # data that are not here
    with pytest.raises(InputError, match="fingerprint of the corpus a, where the study says b"):
        refuse_other_scores(cell, tmp_path, tmp_path, lambda _: "b")


def frozen(tiny_recipe, folder, **settings):
    """A run on mel statistics, scored on the test split."""
    changes = {
        "encoder": {"type": "statistics", "trainable": "frozen"},
        "features": {"preset": "efficientat"},
        **settings,
    }
    run = train(Recipe(**(tiny_recipe | changes | {"output_dir": str(folder)})))
    score(run, split="test")
    return run


@pytest.mark.parametrize("kind", ["gradient_boosting", "svc"])
@pytest.mark.parametrize("problem", ["multi_label", "single_label"])
def test_classical_classifiers_use_the_embeddings_of_the_head(tiny_recipe, tmp_path, monkeypatch, kind, problem):
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    target = {"target": {"problem_type": problem}, "loss": {"task": "bce" if problem == "multi_label" else "ce"}}
    run = frozen(tiny_recipe, tmp_path / "run", **target)
    made = score_classical(kind, run, [Score()], tmp_path / "run-classical")
    record = read(made / "evaluation-test" / "run.json")
    assert record["name"] == f"tiny, {CLASSICAL[kind]}" and record["classical"] == kind
    own = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    theirs = pd.read_parquet(made / "evaluation-test" / "predictions.parquet")
    logits = [column for column in own if column.startswith("logit_")]
    assert list(own["cycle_id"]) == list(theirs["cycle_id"]) and not own[logits].equals(theirs[logits])
    model, extractor = load_model(run)
    recipe = Recipe(**(read(run / "run.json")["config"]))
    parts = load_splits(recipe)
    _, heard, part = predict_split(model, extractor, parts["train"], "train", recipe)
    _, asked, _ = predict_split(model, extractor, parts["test"], "test", recipe)
    plain = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
    truth = part.targets.labels[:, 0] if problem == "multi_label" else part.targets.labels
    if kind == "svc":
        expected = plain.fit(heard, truth.astype(int)).decision_function(asked)
        answered = theirs[logits].to_numpy() if problem == "single_label" else theirs[logits[0]].to_numpy()
        assert answered == pytest.approx(expected)
    metrics = read(made / "evaluation-test" / "metrics.json")
    assert metrics["fitted"]["fitted_on"]["split"] == "validation"
    own = read(run / "evaluation-test" / "metrics.json")
    assert metrics["floors"] == own["floors"]
    blind, theirs = own["duration_blind"], metrics["duration_blind"]
    assert (theirs["seconds"], theirs["cycles"]) == (blind["seconds"], blind["cycles"])
    assert theirs["values"] != blind["values"] and set(theirs["values"]) == set(blind["values"])


def test_costs_of_steps_are_measured_and_added_to_those_of_their_sources(tmp_path):
    run, kind = tmp_path / "run", tmp_path / "run-svc"
    before = {"seconds": 1.0, "cpu_seconds": 50.0, "peak_memory_mb": 5, "processes": 1}  # of an interrupted process
    write_record(tmp_path / "run-svc.cost.json", {"train": before})
    said = []
    assert run_step(["-m", "timeit", "-n", "1", "-r", "1"], kind, said.append) is None
    took = read_cost(kind)["train"]
    assert " CPU seconds, " in said[0] and took["processes"] == 2 and took["peak_memory_mb"] > 5
    write_record(tmp_path / "run.cost.json", {"train": {**took, "cpu_seconds": 9.0}, "evaluate": took})
    cost = add_costs(read_cost(kind), cost_without_scoring(run))
    assert set(cost) == {"train"} and cost["train"]["seconds"] == pytest.approx(2 * took["seconds"])
    assert training_cost({"cost": cost})[0] == pytest.approx(9 + took["cpu_seconds"]) and training_cost({}) is None
    assert "No module named nowhere" in run_step(["-m", "nowhere"], kind)


def test_a_trained_encoder_gives_no_classical_baseline(two_runs, tmp_path):
    with pytest.raises(InputError, match=r"encoder\.trainable: frozen"):
        score_classical("svc", two_runs[0], [Score()], tmp_path / "out")


@pytest.mark.parametrize(("baseline", "said"), [("tiny", "tiny"), ("later", None)])
def test_an_unfinished_study_may_lack_its_baseline(two_runs, tmp_path, baseline, said):
    runs = [Path(shutil.copytree(run, tmp_path / "tiny" / run.name)) for run in two_runs]
    wanted = [("tiny", 0), ("tiny", 1), ("later", 0)]
    cells = tuple(Cell(name, Path("-"), n, scores=(Score(),)) for name, n in wanted)
    study = study_of(cells, tmp_path, tmp_path / "part.json", baseline=baseline)
    content = read(gather(study, runs))
    compared = content["methods"]["test"]
    assert content["study"]["baseline"] == baseline and compared["baseline"] == said
    assert compared["figures"]["tiny"]["icbhi.Score"]["difference"] is None
    assert content["study"]["missing"] == ["later/0"]


def test_a_count_that_a_kill_left_open_is_closed_by_the_same_command(two_runs, tiny_recipe, tmp_path):
    run = Path(shutil.copytree(two_runs[0], tmp_path / "out" / "tiny" / "0"))
    record = read(run / "run.json")
    recipe = record["config"] | {"name": "tiny", "output_dir": str(run)}
    write_record(run / "recipe.json", recipe)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({k: v for k, v in recipe.items() if k != "seed"}))
    open_count = [record["evaluations"][0] | {"coming": str(run / "evaluation-test")}]
    write_record(run / "run.json", record | {"evaluations": open_count})
    cell = Cell("tiny", tmp_path / "tiny.yaml", 0, scores=(Score(),))
    state = run_study(study_of((cell,), tmp_path / "out", tmp_path / "s.json", baseline="tiny"))
    assert state.runs == [run] and read(run / "run.json") == record


@pytest.mark.parametrize("meanwhile", ["running", "finished", "given up"])
def test_a_cell_of_another_process_is_left_to_it(two_runs, tmp_path, monkeypatch, meanwhile):
    for run in two_runs:
        shutil.copytree(run, tmp_path / "out" / "tiny" / run.name)
    results = tmp_path / "out" / "tiny" / "0" / "evaluation-test"
    results.rename(tmp_path / "kept")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(read(two_runs[0] / "run.json")["config"]))
    cells = tuple(Cell("tiny", tmp_path / "tiny.yaml", k, scores=(Score(),)) for k in range(2))
    study = study_of(cells, tmp_path / "out", tmp_path / "s.json")
    run_all, other = study_run._run_all, contextlib.ExitStack()

    def beside(*arguments):
        if meanwhile == "finished" and not results.exists():
            (tmp_path / "kept").rename(results)
        if meanwhile == "given up":
            other.close()
        run_all(*arguments)

    monkeypatch.setattr(study_run, "_run_all", beside)
    said = []
    with other:
        other.enter_context(try_lock(tmp_path / "out" / "tiny" / "0.cell"))
        done = run_study(study, say=said.append)
    left = ["tiny/0"] if meanwhile == "running" else []
    assert any("laennec evaluate" in line for line in said) == (meanwhile == "given up")
    assert done.elsewhere == left and {run.name for run in done.runs} == ({"1"} if left else {"0", "1"})
    assert read(tmp_path / "s.json")["study"].get("missing") == (left or None)


@pytest.mark.soak
def test_a_study_is_interrupted_continued_and_gathered(tiny_recipe, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe | {"name": "tiny", "output_dir": None}))
    study = {
        "output_dir": str(tmp_path / "out"),
        "baseline": "tiny, label fraction 1",
        "seeds": [0, 1],
        "methods": [str(tmp_path / "tiny.yaml")],
        "axes": {"label_fractions": [1.0, 0.5]},
        "ensembles": "tiny, label fraction 1",
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = ["study", str(tmp_path / "study.yaml")]
    assert main([*command, "--most", "1"]) == 0
    assert "not yet run: 3 cells" in capsys.readouterr().out
    whole = (tmp_path / "out" / "tiny_label_fraction_1" / "0" / "run.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "out" / "tiny_label_fraction_1" / "0" / "run.json").stat().st_mtime_ns == whole
    content = read(tmp_path / "out" / "results.json")
    names = {row["name"] for row in content["results"]}
    assert names == {"tiny, label fraction 1", "tiny, label fraction 0.5", "tiny, label fraction 1, ensemble of 2"}
    for row in content["results"]:
        assert row["cost"]["train"]["cpu_seconds"] > 0 and row["cost"]["evaluate"]["peak_memory_mb"] > 50
        assert row["scored"] == 1
    printed = capsys.readouterr().out
    assert "tiny, label fraction 0.5 - tiny, label fraction 1" in printed
    assert "p, Holm" in printed and "\\n" not in printed
    half = read(tmp_path / "out" / "tiny_label_fraction_0.5" / "1" / "run.json")
    assert half["labelled"] == pytest.approx(half["cycles"]["train"] / 2, rel=0.3) and half["config"]["seed"] == 1
    assert content["methods"]["test"]["baseline"] == "tiny, label fraction 1"
    document = tmp_path / "page.md"
    document.write_text("<!-- laennec:study out/results.json test -->\n<!-- laennec:end -->\n")
    assert not render(document) and render(document, check=True)
    assert "| tiny, label fraction 0.5 | 0, 1 | 2 |" in document.read_text()
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert re.fullmatch(r"(\d+) cells: \1 finished, 0 to run\n", capsys.readouterr().out)
