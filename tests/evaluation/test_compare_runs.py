"""Comparison of runs on the command line: differences by a naive loop, grouping, and errors."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from evaluation_tables import TWO
from matplotlib.figure import Figure
from scipy import stats

from laennec.cli.main import main
from laennec.evaluation.evaluate import score
from laennec.evaluation.intervals import patient_codes
from laennec.evaluation.metrics import auroc, exact_sensitivity, specificity
from laennec.evaluation.predictions import read_predictions
from laennec.evaluation.report.plots import figure_png
from laennec.evaluation.summary import evaluate_predictions
from laennec.training.record import write_record
from pages import check_page, open_in_browser


@pytest.fixture(scope="module")
def first(tiny_run, tmp_path_factory):
    """A run that was scored on its test split."""
    run = shutil.copytree(tiny_run, tmp_path_factory.mktemp("compared") / "first-0",
                          ignore=shutil.ignore_patterns("evaluation-*", "export-*"))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        patch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
        score(run, split="train")  # more patients than its test split has
    return run


@pytest.fixture
def no_pictures(monkeypatch):
    """The same small picture everywhere: drawing takes most of the time, and two tests look at it."""
    pixel = figure_png(Figure(figsize=(0.1, 0.1)))
    monkeypatch.setattr("laennec.evaluation.comparison.runs.figure_png", lambda _: pixel)


def other(first, folder, seed=0, skill=0.8, name="other", run_seed=0, change=None):
    """A run with other answers on the same cycles: the first one's files, its logits moved towards the truth."""
    run = shutil.copytree(first, folder)
    evaluation = run / "evaluation-train"
    table = pd.read_parquet(evaluation / "predictions.parquet")
    random = np.random.default_rng(seed)
    for label in ("crackle", "wheeze"):
        table[f"logit_{label}"] = skill * (table[label].astype(float) - 0.5) + random.normal(size=len(table))
    record = json.loads((evaluation / "run.json").read_text())
    record["name"], record["config"]["seed"] = name, run_seed
    if change:
        change(record, table)
    metrics = evaluate_predictions(table, **TWO)
    table.to_parquet(evaluation / "predictions.parquet")
    write_record(evaluation / "metrics.json", metrics)
    write_record(evaluation / "run.json", record)
    return run


def compare(capsys, *arguments, code=0):
    assert main(["compare", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    if code:
        assert captured.err.startswith("laennec: ") and captured.err.count("\n") == 1, captured.err
        return captured.err
    return captured.out


def figures_of(table, thresholds, rows):
    """Score, Sp, Se and AUROCs of some rows, from scratch."""
    answers = read_predictions(table.iloc[rows].reset_index(drop=True), **TWO, thresholds=thresholds)
    sp, se = float(specificity(answers.confusion)), float(exact_sensitivity(answers.confusion))
    areas = [auroc(answers.truth[:, k], answers.logits[:, k]) for k in (0, 1)]
    names = ("icbhi.Score", "icbhi.Sp", "icbhi.Se", "crackle.roc_auc", "wheeze.roc_auc", "roc_auc_macro")
    return dict(zip(names, ((sp + se) / 2, sp, se, *areas, np.mean(areas)), strict=True))


def test_differences_intervals_and_p_values_equal_a_naive_loop(first, tmp_path, capsys):
    runs = [first, other(first, tmp_path / "second-0"), other(first, tmp_path / "third-0", 1, 4.0, "third")]
    out = compare(capsys, *runs, "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    tables, thresholds = [], []
    for run in runs:
        tables.append(pd.read_parquet(run / "evaluation-train" / "predictions.parquet"))
        thresholds.append(json.loads((run / "evaluation-train" / "metrics.json").read_text())["thresholds"])
    codes, n = patient_codes(tables[0])
    kept = [np.flatnonzero(codes != patient) for patient in (None, *range(n))]
    values = [[figures_of(t, h, rows) for rows in kept] for t, h in zip(tables, thresholds, strict=True)]
    assert content["figures"] == list(values[0][0]) and content["baseline"] == "first-0"
    for figure in content["figures"]:
        p_values = {}
        for k, name in ((1, "second-0"), (2, "third-0")):
            cell = content["methods"][name]["figures"][figure]
            whole, *others = [a[figure] - b[figure] for a, b in zip(values[k], values[0], strict=True)]
            error = np.sqrt((n - 1) / n * ((np.array(others) - np.mean(others)) ** 2).sum())
            squares = (np.array(others) - np.mean(others)) ** 2
            t = stats.t(min(cell["effective"] - 1, max(squares.sum() ** 2 / (squares**2).sum() - 1, 2)))
            assert cell["difference"] == pytest.approx(whole)
            assert cell["difference_interval"] == pytest.approx(whole + error * t.ppf([0.025, 0.975]))
            p_values[name] = cell["p"]
            assert cell["p"] == pytest.approx(max(2 * t.sf(abs(whole) / error), 2 ** (1 - cell["effective"])))
        small, large = sorted(p_values, key=p_values.get)
        holm = [content["methods"][name]["figures"][figure]["p_holm"] for name in (small, large)]
        assert holm[0] == pytest.approx(min(1, 2 * p_values[small]))
        assert holm[1] == pytest.approx(max(holm[0], p_values[large]))
    score = content["methods"]["third-0"]["figures"]["icbhi.Score"]
    low, high = score["difference_interval"]
    assert f"{score['difference']:+.1f} [{low:+.1f}, {high:+.1f}]" in out and "baseline" in out
    assert (
        content["corpus_fingerprint"][:12] in out and content["split_fingerprint"][:12] in out and "split train" in out
    )
    page = check_page((tmp_path / "out" / "compare.html").read_text())
    assert f"{score['difference']:+.1f} [{low:+.1f}, {high:+.1f}]" in page.text
    bars = [a["style"] for a in page.all("i") if a["style"].startswith("left:")]
    assert len(bars) == 2 * len(content["figures"])
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    for seen in open_in_browser(tmp_path / "out" / "compare.html").values():
        assert seen["said"] == [] and seen["fetched"] == [] and seen["overflow"] <= 0


def test_another_baseline_turns_the_signs(first, tmp_path, capsys, no_pictures):
    second = other(first, tmp_path / "second-0")

    def difference(*more):
        compare(capsys, first, second, "--out", tmp_path / "out", *more)
        content = json.loads((tmp_path / "out" / "compare.json").read_text())
        (name,) = set(content["methods"]) - {content["baseline"]}
        return content["methods"][name]["figures"]["wheeze.roc_auc"]["difference_interval"]

    usual = difference()
    assert difference("--baseline", "second-0") == pytest.approx([-usual[1], -usual[0]])
    assert difference("--baseline", second) == pytest.approx([-usual[1], -usual[0]])
    said = compare(capsys, first, second, "--baseline", "nobody", "--out", tmp_path / "out", code=2)
    assert "--baseline nobody" in said and "first-0, second-0" in said


def test_seeds_of_a_recipe_are_one_method_where_several_recipes_are_given(first, tmp_path, capsys, no_pictures):
    seeds = [other(first, tmp_path / f"a-{k}", k, name="recipe a", run_seed=k) for k in range(3)]
    record = json.loads((seeds[1] / "evaluation-train" / "run.json").read_text())
    del record["config"]["head"]["relu"]  # as recorded before a setting was added
    (seeds[1] / "evaluation-train" / "run.json").write_text(json.dumps(record))
    lone = other(first, tmp_path / "b-0", 9, name="recipe b")
    out = compare(capsys, lone, *seeds, "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (
        set(content["methods"]) == {"recipe a", "recipe b"}
        and "recipe a (3)" in out
        and "over patients and seeds" in out
    )
    cell = content["methods"]["recipe a"]["figures"]["icbhi.Score"]
    values = [run["values"]["icbhi.Score"] for run in content["methods"]["recipe a"]["runs"]]
    assert cell["mean"] == pytest.approx(np.mean(values)) and cell["sd"] == pytest.approx(np.std(values, ddof=1))
    # one recipe alone: its seeds against one another; and whenever that is asked for
    compare(capsys, *seeds, "--out", tmp_path / "out")
    assert set(json.loads((tmp_path / "out" / "compare.json").read_text())["methods"]) == {"a-0", "a-1", "a-2"}
    compare(capsys, lone, *seeds, "--no-group-seeds", "--out", tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "compare.json").read_text())["methods"]) == 4
    assert "a single method" in compare(capsys, *seeds, "--group-seeds", "--out", tmp_path / "out", code=2)
    twin = other(first, tmp_path / "a-again", 5, name="recipe a", run_seed=2)
    said = compare(capsys, lone, *seeds, twin, "--out", tmp_path / "out", code=2)
    assert "with seed 2" in said and "--no-group-seeds" in said

    def longer(record, table):
        record["config"]["train"]["epochs"] = 99

    changed = other(first, tmp_path / "a-long", 6, name="recipe a", run_seed=7, change=longer)
    said = compare(capsys, lone, *seeds, changed, "--out", tmp_path / "out", code=2)
    assert "another train.epochs" in said


def test_runs_scored_on_other_data_are_refused(first, tmp_path, capsys, no_pictures):
    def origin(key, value):
        def change(record, table):
            record["evaluated"]["corpus"]["provenance"][key] = value

        return change

    def fewer(record, table):
        table.drop(index=table.index[:3], inplace=True)

    def relabelled(record, table):
        table.loc[0, "crackle"] = 1 - table.loc[0, "crackle"]

    def part(record, table):
        record["evaluated"]["split"] = "validation"

    cases = [
        (origin("corpus_fingerprint", "f" * 64), "on corpus ffffffffffff"),
        (origin("split_fingerprint", "e" * 64), "on split fingerprint eeeeeeeeeeee"),
        (origin("protocol", "random-80-20"), "on protocol random-80-20"),
        (part, "on split validation"),
        (fewer, "cycles"),
        (relabelled, "another truth or patient"),
    ]
    for k, (change, said) in enumerate(cases):
        run = other(first, tmp_path / f"case-{k}", change=change)
        line = compare(capsys, first, run, "--out", tmp_path / "out", code=2)
        assert said in line and str(run) in line
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line_and_loses_nothing(first, tmp_path, capsys, no_pictures):
    second = other(first, tmp_path / "second-0")
    out = tmp_path / "out"
    assert "two runs or more" in compare(capsys, first, "--out", out, code=2)
    assert "given twice" in compare(capsys, first, first, "--out", out, code=2)
    assert "no such folder" in compare(capsys, first, tmp_path / "absent", "--out", out, code=2)
    assert "no evaluation" in compare(capsys, first, tmp_path, "--out", out, code=2)
    assert "no evaluation of test" in compare(capsys, first, second, "--split", "test", "--out", out, code=2)
    path = second / "evaluation-train" / "predictions.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "no readable predictions table" in compare(capsys, first, second, "--out", out, code=2)
    path.unlink()
    assert "predictions.parquet: missing" in compare(capsys, first, second, "--out", out, code=2)
    shutil.copy(first / "evaluation-train" / "predictions.parquet", path)
    assert "do not belong together" in compare(capsys, first, second, "--out", out, code=2)
    path.write_bytes(whole)
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert "thesis.txt" in compare(capsys, first, second, "--out", out, code=2)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_a_figure_that_some_run_lacks_is_left_out_and_few_patients_have_no_p(first, tmp_path, capsys, no_pictures):
    def few(record, table):
        table.drop(index=table.index[table["patient_id"].isin(sorted(table["patient_id"].unique())[3:])], inplace=True)
        table["wheeze"] = table["wheeze"] * 0
        table["label"] = np.where(table["crackle"] == 1, "crackle", "normal")

    runs = [other(first, tmp_path / name, k, change=few) for k, name in enumerate(("x-0", "y-0"))]
    out = compare(capsys, *runs, "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert "wheeze.roc_auc" not in content["figures"] and "wheeze.roc_auc" in content["left_out"]
    assert "wheeze AUROC: left out" in out and "too few for an interval" in out
    cell = content["methods"]["y-0"]["figures"]["crackle.roc_auc"]
    assert [cell[name] for name in ("interval", "difference_interval", "p", "p_holm")] == [None] * 4
    check_page((tmp_path / "out" / "compare.html").read_text())
