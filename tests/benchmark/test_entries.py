"""Benchmarks: what is refused, that a file scores as its model does, and that result files are checked."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from docs.render import render

from laennec.benchmark.definitions import BENCHMARKS, Benchmark, FixedSplit, load_benchmark
from laennec.benchmark.result_file import read_result
from laennec.cli.main import main
from laennec.corpora import load_corpus, provenance
from laennec.errors import InputError
from laennec.evaluation.calibration.probabilities import calibrated_logits, sigmoid
from runs import one_line

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("crackle", "wheeze")
# enters the model tester/entered in a process of its own, for the address of the Hub is read when one starts
ENTERS = """
import sys
import laennec.evaluation.evaluate
from laennec.benchmark.definitions import BENCHMARKS, Benchmark, FixedSplit
from laennec.cli.main import main
from laennec.corpora import load_corpus, provenance
laennec.evaluation.evaluate.write_report = lambda *_: None
data, out = sys.argv[1:]
splits = load_corpus("synthetic", data, protocol="patient-60-20-20")
found = provenance(splits)["part_fingerprints"]
train, test = (FixedSplit(found[name], len(splits[name])) for name in ("train", "test"))
tests = {"test": test, "test_inter": FixedSplit("0" * 64, 7)}
BENCHMARKS["tiny"] = Benchmark("tiny", 1, "a small corpus", "synthetic", "patient-60-20-20", train, tests)
words = ["benchmark", "tiny", "tester/entered", "--data-dir", data, "--out", out, "--trained-on", "synthetic, train"]
sys.exit(main([*words, "--selection", "validation patients"]))
"""


@pytest.fixture(scope="module", autouse=True)
def tiny(small_corpus):
    """A benchmark on the small corpus, with a second test split that nobody has."""
    splits = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")
    found = provenance(splits)["part_fingerprints"]
    fixed = {name: FixedSplit(found[name], len(splits[name])) for name in ("train", "test")}
    tests = {"test": fixed["test"], "test_inter": FixedSplit("0" * 64, 7)}
    made = Benchmark("tiny", 1, "a small corpus", "synthetic", "patient-60-20-20", fixed["train"], tests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "tiny", made)
        yield made


@pytest.fixture
def run(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation-*", "export-*"))
    (run / "run.json").write_text(json.dumps(json.loads((run / "run.json").read_text()) | {"evaluations": []}))
    return run


@pytest.fixture(scope="module")
def cycles(small_corpus):
    """The cycle tables of the corpus."""
    return load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")


@pytest.fixture(scope="module")
def predictions(cycles):
    """Probabilities for the test split, drawn around the truth."""
    rng, test = np.random.default_rng(0), cycles["test"]
    columns = {f"p_{n}": np.clip(0.3 * np.array(test[n][:]) + 0.6 * rng.random(len(test)), 0, 1) for n in LABELS}
    return pd.DataFrame({"cycle_id": test["cycle_id"][:], **columns})


@pytest.fixture
def enter(small_corpus, tmp_path):
    """Enter a table or a source; the exit code and the result file."""

    def enter(source, *flags, benchmark="tiny", data_dir=small_corpus, suffix=".csv"):
        out = tmp_path / f"result-{len(list(tmp_path.iterdir()))}.json"
        if isinstance(source, pd.DataFrame):
            table, source = source, tmp_path / f"predictions{suffix}"
            table.to_csv(source, index=False) if suffix == ".csv" else table.to_parquet(source)
        words = ["benchmark", benchmark, str(source), "--data-dir", str(data_dir), "--out", str(out)]
        declared = [] if (Path(source) / "run.json").exists() else ["--trained-on", "synthetic, train"]
        code = main([*words, "--selection", "validation patients", *declared, *flags])
        assert out.exists() == (code == 0)
        return code, out

    return enter


def test_a_file_of_predictions_has_the_scores_of_its_model(run, enter, tmp_path, small_corpus, monkeypatch, capsys):
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    code, out = enter(run, "--entry", "tiny CNN")
    assert code == 0 and "test_inter" in capsys.readouterr().out
    text, model = out.read_text(), read_result(out)
    assert str(tmp_path) not in text and str(small_corpus) not in text and "--data-dir" not in text
    looked = json.loads((run / "run.json").read_text())["evaluations"]
    assert [entry["split"] for entry in looked] == ["test"] and looked[0]["command"] == model.command
    assert (model.entry, model.trained_on, model.splits["test_inter"]) == ("tiny CNN", "synthetic", None)
    assert model.cost.parameters > 0 and model.cost.cpu_s_per_hour > 0
    assert main(["evaluate", str(run), "--out", str(tmp_path / "scored")]) == 0
    table = pd.read_parquet(tmp_path / "scored" / "predictions.parquet")
    metrics = json.loads((tmp_path / "scored" / "metrics.json").read_text())
    logits = table[[f"logit_{name}" for name in LABELS]].to_numpy(dtype=float)
    p = sigmoid(calibrated_logits(logits, LABELS, metrics["temperatures"], metrics["intercepts"]))
    columns = {f"p_{name}": p[:, k] for k, name in enumerate(LABELS)}
    columns |= {name: (logits[:, k] > metrics["thresholds"][name]).astype(int) for k, name in enumerate(LABELS)}
    for suffix in (".csv", ".parquet"):
        code, out = enter(pd.DataFrame({"cycle_id": table["cycle_id"], **columns}).iloc[::-1], suffix=suffix)
        own, theirs = read_result(out).splits["test"], model.splits["test"]
        assert code == 0 and own.confusion == theirs.confusion and own.patients == theirs.patients
        for part in ("values", "within_lengths", "calibration_error", "effective_patients"):
            assert getattr(own, part) == pytest.approx(getattr(theirs, part), abs=1e-6), part
        assert own.intervals["icbhi.Score"] == pytest.approx(theirs.intervals["icbhi.Score"])
        assert {row.name for row in own.baselines} == {row.name for row in theirs.baselines}
    assert metrics["values"]["icbhi.Score"] == pytest.approx(own.values["icbhi.Score"]) and own.middle is None
    assert theirs.middle["icbhi.Score"] == pytest.approx(metrics["duration_blind"]["values"]["icbhi.Score"])


def test_without_decisions_a_label_is_predicted_above_one_half(enter, predictions, cycles):
    code, out = enter(predictions)
    confusion = np.zeros((4, 4), int)
    truth = [2 * w + c for c, w in zip(*(cycles["test"][name][:] for name in LABELS), strict=True)]
    np.add.at(confusion, (truth, (predictions.p_crackle > 0.5) + 2 * (predictions.p_wheeze > 0.5)), 1)
    result = read_result(out)
    assert code == 0 and result.splits["test"].confusion == confusion.tolist()
    assert result.decisions == "probability above 0.5" and result.cost is None


def test_predictions_of_0_and_1_have_no_auroc_and_no_calibration(enter, predictions):
    scores = read_result(enter(predictions.round())[1]).splits["test"]
    assert "icbhi.Score" in scores.values and not any("roc" in name or "precision" in name for name in scores.values)
    assert scores.calibration_error is None and scores.within_lengths is None


def test_small_and_saturated_probabilities_of_any_type_are_ranked_as_they_are(enter, predictions):
    expected = read_result(enter(predictions)[1]).splits["test"].values
    for changed in (
        predictions.assign(p_crackle=predictions.p_crackle * 1e-13),
        predictions.assign(p_crackle=predictions.p_crackle.astype("Float64")),
        predictions.astype({"p_crackle": "float32", "p_wheeze": "float32"}),
    ):
        code, out = enter(changed, suffix=".parquet")
        assert code == 0
        assert read_result(out).splits["test"].values["crackle.roc_auc"] == pytest.approx(expected["crackle.roc_auc"])
    saturated = predictions.assign(p_crackle=np.where(predictions.p_crackle > 0.7, 1, predictions.p_crackle))
    values = [
        read_result(enter(saturated.astype({"p_crackle": kind}), suffix=".parquet")[1]).splits["test"].values
        for kind in ("float64", "float32")
    ]
    assert values[0]["crackle.roc_auc"] == pytest.approx(values[1]["crackle.roc_auc"])
    decided = predictions.assign(**{name: (predictions[f"p_{name}"] > 0.5).astype("Int64") for name in LABELS})
    assert enter(decided.set_index("cycle_id"), suffix=".parquet")[0] == 0


def test_a_missing_value_of_a_nullable_column_is_refused(enter, predictions, capsys):
    missing = predictions.convert_dtypes()
    missing.loc[0, "p_wheeze"] = pd.NA
    assert enter(missing, suffix=".parquet")[0] == 2
    one_line(capsys, "predictions.parquet", "p_wheeze is not a number from 0 to 1 in 1 rows")


def test_what_cannot_be_written_is_refused_before_scoring(enter, predictions, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("laennec.benchmark.entry.evaluate_predictions", None)
    (tmp_path / "file").touch()
    assert enter(predictions, "--out", str(tmp_path / "file" / "result.json"))[0] == 2
    one_line(capsys, tmp_path / "file", "cannot write")
    assert enter(predictions, "--origin", "caf\udce9")[0] == 2
    one_line(capsys, "--origin", "must be one line of text in UTF-8")


WRONG = {
    "missing": (lambda t: t.iloc[2:], "2 of the {n} cycles of test are missing ('{0}', '{1}')"),
    "unknown": (
        lambda t: pd.concat([t, t.head(1).assign(cycle_id="other#00")]),
        "1 cycles are unknown or of other splits ('other",
    ),
    "nameless": (lambda t: t.assign(cycle_id=[None, *t["cycle_id"][1:]]), "no cycle_id in row 1"),
    "repeated": (lambda t: pd.concat([t, t.head(1)]), "1 cycles occur more than once ('{0}')"),
    "nan": (
        lambda t: t.assign(p_crackle=[np.nan, *t.p_crackle[1:]]),
        "p_crackle is not a number from 0 to 1 in 1 rows",
    ),
    "range": (lambda t: t.assign(p_wheeze=1.01), "p_wheeze is not a number from 0 to 1 in {n} rows"),
    "column": (lambda t: t.drop(columns="p_wheeze"), "no column p_wheeze"),
    "decisions": (lambda t: t.assign(crackle=2, wheeze=0), "crackle is not 0 or 1 in {n} rows"),
    "one decision": (lambda t: t.assign(crackle=1), "there are decisions of crackle alone"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_in_one_line(kind, enter, predictions, capsys):
    change, said = WRONG[kind]
    assert enter(change(predictions))[0] == 2
    one_line(capsys, "predictions.csv", said.format(*predictions.cycle_id[:2], n=len(predictions)))


def test_a_file_of_another_split_is_refused(enter, cycles, capsys):
    rows = pd.DataFrame({"cycle_id": cycles["validation"]["cycle_id"][:], "p_crackle": 0.1, "p_wheeze": 0.2})
    assert enter(rows)[0] == 2
    one_line(capsys, f"{len(rows)} cycles are unknown or of other splits, validation", "cycles of test are missing")


def test_columns_with_the_labels_are_no_decisions(enter, predictions, cycles, capsys):
    assert enter(predictions.assign(**{name: cycles["test"][name][:] for name in LABELS}))[0] == 2
    one_line(capsys, "crackle and wheeze are the true labels of test")
    assert enter(predictions.assign(**{f"p_{name}": cycles["test"][name][:] for name in LABELS}))[0] == 2
    one_line(capsys, "p_crackle and p_wheeze are the true labels of test")
    assert enter(predictions.assign(**{f"p_{n}": 0.99 - 0.98 * np.array(cycles["test"][n][:]) for n in LABELS}))[0] == 2
    one_line(capsys, "p_crackle and p_wheeze rank every cycle of test without an error")


def test_probabilities_that_are_true_or_false_are_refused(enter, predictions, capsys):
    for suffix in (".csv", ".parquet"):
        assert enter(predictions.assign(p_crackle=predictions.p_crackle > 0.5), suffix=suffix)[0] == 2
        one_line(capsys, f"p_crackle is not a number from 0 to 1 in {len(predictions)} rows")


def test_a_file_that_is_no_table_is_refused(enter, tmp_path, capsys):
    for name, content in (("a.csv", b"\xff\xfe\x00"), ("a.parquet", b"PAR1"), ("empty.csv", b"")):
        (tmp_path / name).write_bytes(content)
        assert enter(tmp_path / name)[0] == 2
        one_line(capsys, name, "no table in CSV or Parquet")
    for name in ("a.tsv", "a.xlsx"):
        (tmp_path / name).write_bytes(b"cycle_id")
        assert enter(tmp_path / name)[0] == 2
        one_line(capsys, name, "predictions are read from .csv and .parquet")
    (tmp_path / "twice.csv").write_text("cycle_id,p_crackle,p_wheeze,p_crackle\nc,0.1,0.2,0.3\n")
    assert enter(tmp_path / "twice.csv")[0] == 2
    one_line(capsys, "twice.csv", "two columns p_crackle")
    (tmp_path / "commas.csv").write_text("cycle_id,p_crackle,p_wheeze\nc,0,1,0,2\n")  # decimal commas
    assert enter(tmp_path / "commas.csv")[0] == 2
    one_line(capsys, "commas.csv", "no table in CSV or Parquet (line 2 has 5 values, line 1 names 3)")
    assert enter(tmp_path / "none.csv")[0] == 2
    one_line(capsys, "none.csv", "cannot be read")


def test_a_corpus_that_lacks_a_recording_or_has_other_labels_is_refused(
    enter, predictions, small_corpus, tiny, tmp_path, monkeypatch, capsys
):
    partial = shutil.copytree(small_corpus, tmp_path / "partial")
    name = predictions.cycle_id[0].partition("#")[0]
    for path in list(partial.rglob(f"{name}.*")):
        path.unlink()
    assert enter(predictions, data_dir=partial)[0] == 2
    one_line(capsys, "is not the published split", "needs the complete corpus")
    tests = {"test": FixedSplit(tiny.tests["test"].fingerprint, len(predictions), {"normal": len(predictions)})}
    monkeypatch.setitem(BENCHMARKS, "tiny", Benchmark(**{**vars(tiny), "tests": tests}))
    assert enter(predictions)[0] == 2
    one_line(capsys, "test is not the published split")
    tests = {"test": FixedSplit(tiny.tests["test"].fingerprint, len(predictions), annotations="0" * 64)}
    monkeypatch.setitem(BENCHMARKS, "tiny", Benchmark(**{**vars(tiny), "tests": tests}))
    assert enter(predictions)[0] == 2
    one_line(capsys, "labels or starts of cycles in test are not the published ones")


def test_the_real_subset_of_icbhi_is_refused_and_says_what_is_missing(enter, predictions, shared_data, capsys):
    for name in ("icbhi", "cross"):
        flags = ("--trained-on", "SPRSound, train")
        assert enter(predictions, *flags, benchmark=name, data_dir=shared_data / "icbhi2017_subset")[0] == 2
        one_line(capsys, "819 of the 920 recordings are missing (101_1b1_Al_sc_Meditron,", "bhichallenge.med.auth.gr")


@pytest.mark.parametrize(("name", "folder"), [("sprsound", "sprsound"), ("icbhi", "icbhi2017_annotations")])
def test_the_fixed_splits_are_those_of_the_published_corpora(name, folder, shared_data, shared_root):
    splits = load_benchmark(BENCHMARKS[name], shared_data / folder)
    assert {len(splits[test]) for test in BENCHMARKS[name].tests if test in splits} <= {1004, 1429, 2756}
    facts = json.loads((shared_root / "conformance" / "icbhi2017_facts.json").read_text())["cases"][0]["expected"]
    assert {"total": 2756, **BENCHMARKS["icbhi"].tests["test"].classes} == facts["official_cycles"]["test"]


def test_what_a_model_was_chosen_on_is_as_declared(run, enter, monkeypatch, capsys):
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    code, _ = enter(run / "model")
    assert code == 0 and "selection set: validation patients" in capsys.readouterr().out


def test_a_model_of_the_hub_is_entered_with_its_commit(run, hub, user, small_corpus, tmp_path):
    repo = hub.add("tester/entered", run / "model")
    user.runs(ENTERS, small_corpus, tmp_path / "result.json").done()
    assert read_result(tmp_path / "result.json").source.revision == repo.branches["main"]


def test_a_model_that_was_trained_elsewhere_or_predicts_other_labels_is_refused(enter, run, tiny, monkeypatch, capsys):
    config = run / "model" / "config.json"
    names = {"id2label": {"0": "crackle", "1": "stridor"}, "label2id": {"crackle": 0, "stridor": 1}}
    before = json.loads(config.read_text())
    config.write_text(
        json.dumps({**before, **names, "thresholds": {}, "temperatures": {}, "intercepts": {}, "operating_points": {}})
    )
    assert enter(run, "--trained-on", "my own")[0] == 2
    one_line(capsys, "--trained-on", "recorded its training data, synthetic")
    assert enter(run)[0] == 2
    one_line(capsys, "predicts crackle, stridor; a benchmark needs crackle and wheeze")
    monkeypatch.setitem(BENCHMARKS, "tiny", Benchmark(**{**vars(tiny), "trained_on": "sprsound"}))
    assert enter(run)[0] == 2
    one_line(capsys, "trained on synthetic; tiny is for models trained on sprsound alone")
    assert enter(run / "model", "--trained-on", "SPRSound and synthetic")[0] == 2
    one_line(capsys, "tiny is for models trained on sprsound alone")
    record = json.loads((run / "run.json").read_text())
    facts = {"sprsound": {"protocol": "none"}, "synthetic": {"protocol": "corpus-out"}}
    out_of_training = record["corpus"] | {"name": "sprsound+synthetic", "provenance": {"corpora": facts}}
    (run / "run.json").write_text(json.dumps(record | {"corpus": out_of_training}))
    config.write_text(json.dumps(before))
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
    code, out = enter(run)
    assert code == 0 and read_result(out).trained_on == "sprsound"
    (run / "run.json").write_text(json.dumps(record))
    capsys.readouterr()
    monkeypatch.setitem(BENCHMARKS, "tiny", Benchmark(**{**vars(tiny), "protocol": "patient-5fold"}))
    assert enter(run)[0] == 2
    one_line(capsys, "trained under protocol patient-60-20-20", "tiny needs patient-5fold")


def test_wrong_words_on_the_command_line_are_one_line(enter, predictions, small_corpus, tmp_path, capsys):
    _, out = enter(predictions)
    again = ["--data-dir", str(small_corpus), "--out", str(out)]
    capsys.readouterr()
    for words, said in (
        (["sprsund"], "no benchmark is called 'sprsund'; there are sprsound, icbhi, cross"),
        (["tiny", "a.csv"], "--data-dir"),
        (["tiny", "a.csv", "b.csv"], "b.csv: a second entry"),
        (["tiny", "a.csv", "--data-dir", str(small_corpus)], "--trained-on is missing"),
        (["tiny", "a.csv", "--data-dir", str(small_corpus), "--trained-on", "x"], "--selection is missing"),
        (["tiny", str(tmp_path / "predictions.csv"), "--selection", "x", *again], f"{out}: exists already"),
        (["sprsound", "--data-dir", "x", "--selection", "y"], "--selection: known for the model in the package"),
        (["check"], "name the result files"),
        (["check", str(out), "--entry", "x"], "--entry: check takes result files alone"),
    ):
        assert main(["benchmark", *words]) == 2
        one_line(capsys, said)


CHANGED = {
    "score": (lambda r: r["splits"]["test"]["values"].update({"icbhi.Score": 99.0}), "icbhi.Score is 99.0, but"),
    "interval": (lambda r: r["splits"]["test"]["intervals"].update({"icbhi.Sp": [0.0, 0.1]}), "outside its interval"),
    "cycles": (lambda r: r["splits"]["test"]["confusion"][0].__setitem__(0, 999), "the confusion is not of the"),
    "split": (lambda r: r["splits"]["test"].update(fingerprint="f" * 64), "ffffffffffff is not that of the published"),
    "digest": (lambda r: r["source"].update(sha256="abc"), "source.sha256"),
    "baseline": (lambda r: r["splits"]["test"]["baselines"][0].update(difference=99.0), "the difference from baseline"),
    "splits": (lambda r: r["splits"].pop("test_inter"), "splits test, not test and test_inter"),
    "version": (lambda r: r.update(version=2), "version 2 of tiny, which is at 1"),
    "benchmark": (lambda r: r.update(benchmark="mine"), "no benchmark is called 'mine'"),
    "twice": (lambda r: r["splits"]["test"]["baselines"].append(r["splits"]["test"]["baselines"][-1]), "there twice"),
    "gone": (lambda r: r["splits"]["test"]["baselines"].pop(0), "baseline 'always normal', whose icbhi.Score is 50"),
    "kind": (lambda r: r["source"].update(kind="guess"), "source.kind is 'guess'"),
    "a model": (lambda r: r["source"].update(kind="model"), "middle is missing (source.kind is model)"),
    "value": (lambda r: r["splits"]["test"]["values"].pop("crackle.roc_auc"), "not those of a result: crackle.roc_auc"),
    "lengths": (lambda r: r["splits"]["test"].update(within_lengths=None), "within_lengths is missing"),
    "cost": (
        lambda r: r.update(cost={"parameters": 1, "cpu_s_per_hour": 1, "processor": "x"}),
        "cost should not be there",
    ),
    "wide": (lambda r: r["splits"]["test"]["intervals"].update({"icbhi.Sp": [-5, 99]}), "not within 0 and 100"),
    "invented": (lambda r: r["splits"]["test"]["baselines"][1].update(name="<b>x"), "baselines.1.name is '<b>x'"),
    "day": (lambda r: r.update(date="2026-13-45"), "date is '2026-13-45'"),
    "two lines": (lambda r: r.update(trained_on="a\nb"), "trained_on"),
}


@pytest.fixture(scope="module")
def result_file(small_corpus, predictions, tmp_path_factory):
    """What entering the predictions writes."""
    folder = tmp_path_factory.mktemp("entered")
    predictions.to_csv(folder / "predictions.csv", index=False)
    words = ["benchmark", "tiny", str(folder / "predictions.csv"), "--data-dir", str(small_corpus)]
    declared = ["--selection", "validation patients", "--trained-on", "synthetic, train"]
    assert main([*words, *declared, "--out", str(folder / "result.json")]) == 0
    return (folder / "result.json").read_text()


@pytest.mark.parametrize("kind", CHANGED)
def test_a_result_file_that_was_changed_is_refused(kind, result_file, tmp_path, capsys):
    result, (change, said) = json.loads(result_file), CHANGED[kind]
    change(result)
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(result))
    capsys.readouterr()
    assert main(["benchmark", "check", str(changed)]) == 2
    one_line(capsys, changed, said)


def test_baselines_patients_and_training_data_are_those_of_the_benchmark(tiny, result_file, tmp_path, monkeypatch):
    own, path = json.loads(result_file)["splits"]["test"], tmp_path / "result.json"
    path.write_text(result_file)
    facts = {
        "patients": own["patients"],
        "effective_patients": own["effective_patients"],
        "baselines": {row["name"]: row["values"]["icbhi.Score"] for row in own["baselines"][:3]},
    }
    for changed, said in (
        ({}, None),
        ({"patients": 99}, "but 99 in the published split"),
        ({"effective_patients": {"crackle": 1.5, "wheeze": 1.5}}, "effective patients with crackle"),
        (
            {"baselines": facts["baselines"] | {"event length": 99.0}},
            "baseline 'event length', whose icbhi.Score is 99",
        ),
        ({"baselines": {"gone": 50.0}}, "baseline 'gone'"),
    ):
        tests = tiny.tests | {"test": FixedSplit(**{**vars(tiny.tests["test"]), **facts, **changed})}
        monkeypatch.setitem(BENCHMARKS, "tiny", Benchmark(**{**vars(tiny), "tests": tests}))
        with pytest.raises(InputError, match=said) if said else contextlib.nullcontext():
            read_result(path)
    monkeypatch.setitem(BENCHMARKS, "tiny", Benchmark(**{**vars(tiny), "trained_on": "sprsound"}))
    with pytest.raises(InputError, match="trained on synthetic, train; tiny is for models trained on sprsound alone"):
        read_result(path)


def test_check_goes_through_all_files(enter, predictions, tmp_path, capsys):
    _, out = enter(predictions, "--entry", "mine")
    (tmp_path / "broken.json").write_text("{")
    capsys.readouterr()
    assert main(["benchmark", "check", str(out)]) == 0
    assert main(["benchmark", "check", str(tmp_path / "broken.json"), str(tmp_path / "none.json"), str(out)]) == 2
    said = capsys.readouterr()
    assert said.out.count("mine on tiny, without test_inter") == 2 and said.err.count("\n") == 2
    assert "cannot be recomputed without predictions: AUROC" in said.out
    assert "test: cycles of each class and effective patients are not known here" in said.out


def test_the_page_lists_the_entries_by_score_and_leaves_blank_what_a_file_does_not_say(enter, predictions, tmp_path):
    folder = tmp_path / "entries"
    folder.mkdir()
    better = predictions.assign(p_crackle=0.0, p_wheeze=0.0)
    worse = predictions.assign(p_crackle=0.0, p_wheeze=1.0)
    for name, table in (("a worse", worse), ("b <better>", better), ("c ranked", predictions)):
        shutil.copy(enter(table, "--entry", name)[1], folder / f"{name[0]}.json")
    page = tmp_path / "page.md"
    tables = ("leaderboard entries tiny/test", "leaderboard entries tiny/test_inter", "entries entries")
    page.write_text("\n".join(f"<!-- laennec:{table} -->\n<!-- laennec:end -->" for table in tables))
    assert not render(page) and render(page, check=True)
    scores, empty, entries, _ = page.read_text().split("<!-- laennec:end -->")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in scores.splitlines() if line.startswith("| ")]
    shown = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    values = [float(row["ICBHI Score"].split()[0]) for row in shown.values()]
    assert values == sorted(values, reverse=True) and list(shown).index("b &lt;better&gt;") < list(shown).index(
        "a worse"
    )
    assert shown["c ranked"]["crackle AUROC"] and not shown["a worse"]["crackle AUROC"]
    assert all(row["above the highest baseline"] and not row["parameters"] for row in shown.values())
    assert "No entry yet." in empty and "tiny, without test_inter" in entries and "validation patients" in entries
    shutil.copy(folder / "a.json", folder / "d.json")
    with pytest.raises(SystemExit, match=r"two entries are called a worse \(tiny\); give one of them another name"):
        render(page, check=True)
    (folder / "d.json").write_text((folder / "a.json").read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(SystemExit, match="version 2 of tiny"):
        render(page, check=True)


def test_published_figures_state_their_split_and_the_data_they_were_chosen_on():
    page = (ROOT / "docs" / "results" / "leaderboard.md").read_text().partition("laennec:published")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 6 and all(row[0] and row[1] and row[4] and row[5] and row[6] for row in rows)
    assert {row[1] for row in rows} >= {"63.26", "64.84", "78.18"}
