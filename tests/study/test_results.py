import json
import shutil

import pandas as pd
import pytest
from docs.render import render

from laennec.errors import InputError
from laennec.evaluation import four_properties
from laennec.evaluation.evaluate import score
from laennec.study.results import comparison_lines, gather_results
from laennec.training.record import write_record

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture(scope="module")
def tiny_run(tiny_run, tmp_path_factory):
    """A copy of its own: scoring writes into a run."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def scored(tiny_run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        return score(tiny_run, split="validation")


def test_a_document_is_rendered_and_a_changed_number_is_found(scored, tmp_path):
    gather_results([scored.folder], tmp_path / "results.json")
    document = tmp_path / "README.md"
    document.write_text("before\n\n<!-- laennec:study results.json validation -->\n<!-- laennec:end -->\n\nafter\n")
    assert not render(document)
    text = document.read_text()
    score_text = f"{scored.evaluation['values']['icbhi.Score']:.1f}"
    assert f" | {score_text}" in text and text.startswith("before") and text.endswith("after\n")
    assert render(document) and render(document, check=True)
    document.write_text(text.replace(score_text, "99.9", 1))
    assert not render(document, check=True)
    assert "99.9" in document.read_text()


def test_methods_are_compared_and_their_table_rendered(scored, tmp_path):
    path = gather_results([scored.folder], tmp_path / "results.json", baseline="tiny")
    figures = json.loads(path.read_text())["methods"]["validation"]["figures"]["tiny"]
    values = json.loads((scored.folder / "metrics.json").read_text())["values"]
    assert figures["icbhi.Score"]["mean"] == pytest.approx(values["icbhi.Score"])
    assert figures["crackle.roc_auc"]["mean"] == pytest.approx(values["crackle.roc_auc"])
    document = tmp_path / "README.md"
    document.write_text("<!-- laennec:study results.json validation -->\n<!-- laennec:end -->\n")
    render(document)
    assert f"| {values['icbhi.Score']:.1f} " in document.read_text()
    assert "s of CPU" not in document.read_text()
    assert "Too few patients for a claim about crackle (" in document.read_text()
    content = json.loads(path.read_text())
    trained, before = {"cpu_seconds": 8.4, "peak_memory_mb": 12}, {"cpu_seconds": 4.0, "peak_memory_mb": 345}
    cost = {"train": trained, "pretrain": before, "evaluate": {"cpu_seconds": 99, "peak_memory_mb": 999}}
    content["results"][0]["cost"] = cost | {"gpu_seconds": 0.0}
    path.write_text(json.dumps(content))
    render(document)
    lines = document.read_text().splitlines()
    assert lines[1].endswith("| training, s of CPU (GPU) | memory, MB |") and lines[3].endswith(" | 12 | 345 |")
    compared = json.loads(gather_results([scored.folder], path, baseline="later").read_text())["methods"]["validation"]
    assert compared["baseline"] is None and compared["figures"]["tiny"]["icbhi.Score"]["difference"] is None
    document.write_text("<!-- laennec:study results.json test -->\n<!-- laennec:end -->\n")
    with pytest.raises(KeyError, match="test"):
        render(document)


def test_earlier_results_have_power_from_their_intervals_beside_the_differences_that_are_shown(scored, tmp_path):
    path = gather_results([scored.folder], tmp_path / "results.json", baseline="tiny")
    content = json.loads(path.read_text())
    row, methods = content["results"][0], content["methods"]["validation"]
    row["effective_patients"] = {"crackle": 9.0, "wheeze": 7.0}
    cell = {"mean": 0.7, "sd": None, "interval": None, "p": 0.5, "p_holm": 0.5}
    cell |= {"difference": 0.1, "difference_interval": [-0.196, 0.196]}
    methods["figures"]["tiny"] = {"icbhi.Score": dict(cell), "roc_auc_macro": dict(cell)}
    path.write_text(json.dumps(content))
    document = tmp_path / "README.md"
    columns = "columns=method;mean_AUROC,_difference"
    document.write_text(f"<!-- laennec:study results.json validation {columns} -->\n<!-- laennec:end -->\n")
    render(document)
    # (1.96 + 0.84) standard errors, of which the interval has 1.96 on each side
    assert "power: about 0.280; smallest possible p: 0.002" in document.read_text()
    assert "Differences of ICBHI Score" not in document.read_text()


def test_folds_that_score_the_same_cycles_are_runs_and_those_of_other_cycles_are_pooled(scored, tmp_path):
    half = tmp_path / "half"
    folds = []
    for number, rows in enumerate((slice(None), slice(None), slice(None, None, 2), slice(1, None, 2))):
        folds.append(shutil.copytree(scored.folder, half / str(number)))
        table = pd.read_parquet(folds[-1] / "predictions.parquet").iloc[rows]
        table.to_parquet(folds[-1] / "predictions.parquet")
    whole = json.loads((scored.folder / "metrics.json").read_text())["values"]["icbhi.Score"]
    for chosen, sd in ((folds[:2], 0.0), (folds[2:], None)):
        content = json.loads(gather_results(chosen, tmp_path / "results.json").read_text())
        figure = content["methods"]["validation"]["figures"]["tiny"]["icbhi.Score"]
        assert figure["mean"] == pytest.approx(whole) and figure["sd"] == sd


def test_a_seed_without_some_folds_is_not_compared(scored, tmp_path):
    """As in a study that was stopped: its runs are listed, and the methods that have all folds are compared."""
    evaluations = []
    for name, fold, first in (("whole", 0, 0), ("whole", 1, 1), ("stopped", 0, 0)):
        evaluations.append(shutil.copytree(scored.folder, tmp_path / f"{name}{fold}"))
        pd.read_parquet(scored.folder / "predictions.parquet").iloc[first::2].to_parquet(
            evaluations[-1] / "predictions.parquet"
        )
        record = json.loads((evaluations[-1] / "run.json").read_text()) | {"name": name}
        record["evaluated"]["corpus"]["provenance"]["fold"] = fold
        write_record(evaluations[-1] / "run.json", record)
    content = json.loads(gather_results(evaluations, tmp_path / "results.json", "whole").read_text())
    assert [row["name"] for row in content["results"]] == ["stopped", "whole", "whole"]
    assert list(content["methods"]["validation"]["figures"]) == ["whole"]
    assert "split validation: without 1 seed of stopped, scored on fewer folds than other runs" in comparison_lines(
        content
    )


def test_two_scores_on_splits_of_one_name_are_two_tables(scored, tmp_path):
    """As with `split: all` of the recordings of two hospitals."""
    evaluations = [shutil.copytree(scored.folder, tmp_path / f"evaluation-site{name}") for name in "AB"]
    record = json.loads((evaluations[1] / "run.json").read_text())
    record["evaluated"]["corpus"]["fingerprint"] = "another"
    write_record(evaluations[1] / "run.json", record)
    study = {"name": "s", "figures": ["icbhi.scroe"]}
    content = json.loads(gather_results(evaluations, tmp_path / "results.json", study=study).read_text())
    assert list(content["methods"]) == ["siteA", "siteB"] == [row["split"] for row in content["results"]]
    assert len(content["methods"]["siteA"]["figures"]) == 1
    assert "figures: no run has the metric 'icbhi.scroe'; did you mean 'icbhi.Score'?" in comparison_lines(content)


def test_smoothing_is_shown_beside_none(tiny_run, tmp_path):
    smoothed = score(tiny_run, split="validation", smoothing="1", out=tmp_path / "smoothed")
    gather_results([smoothed.folder], tmp_path / "results.json")
    document = tmp_path / "README.md"
    document.write_text("<!-- laennec:smoothing results.json validation -->\n<!-- laennec:end -->\n")
    render(document)
    figures = json.loads((smoothed.folder / "metrics.json").read_text())["smoothing"]["figures"]["roc_auc_macro"]
    assert figures["with"]["value"] != figures["without"]["value"]
    before, after = (f"{figures[side]['value']:.3f}" for side in ("without", "with"))
    assert "| tiny | 0 | 1 |" in document.read_text() and f"| {before} → {after} |" in document.read_text()


def test_a_marker_selects_methods(scored, tmp_path):
    gather_results([scored.folder], tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    content["results"].append(content["results"][0] | {"name": "tiny, SVC"})
    content["methods"]["validation"]["figures"]["tiny, SVC"] = content["methods"]["validation"]["figures"]["tiny"]
    content["methods"]["validation"]["seeds"]["tiny, SVC"] = [0]
    (tmp_path / "results.json").write_text(json.dumps(content))
    document = tmp_path / "README.md"
    for kind in ("study", "audit"):
        for only, there, gone in (
            ("", ("| tiny |", "| tiny, SVC |"), ()),
            (" only=tiny,_SVC", ("| tiny, SVC |",), ("| tiny |",)),
            (" only=tiny,_SVC;tiny", ("| tiny |", "| tiny, SVC |"), ()),
        ):
            document.write_text(f"<!-- laennec:{kind} results.json validation{only} -->\n<!-- laennec:end -->\n")
            render(document)
            text = document.read_text()
            assert all(name in text for name in there) and not any(name in text for name in gone), (kind, only)
    content["results"] += [row | {"split": "test"} for row in content["results"]]
    content["methods"]["test"] = content["methods"]["validation"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    marker = "<!-- laennec:study results.json validation;test columns=method;split;{} -->\n<!-- laennec:end -->\n"
    document.write_text(marker.format("AUROC"))
    with pytest.raises(SystemExit, match=r"\.md: columns= names AUROC; there are method, split, "):
        render(document)
    document.write_text(marker.format("ICBHI_Score"))
    render(document)
    assert "| method | split | ICBHI Score |\n" in (text := document.read_text())
    assert "| tiny | validation | " in text and "| tiny, SVC | test | " in text
    document.write_text("<!-- laennec:study results.json validation only=nobody -->\n<!-- laennec:end -->\n")
    with pytest.raises(SystemExit, match=r"\.md: only= names nobody; there are tiny, tiny,_SVC"):
        render(document)


def test_an_unknown_marker_or_a_missing_file_is_an_error(tmp_path):
    document = tmp_path / "README.md"
    document.write_text("<!-- laennec:glory results.json -->\n<!-- laennec:end -->\n")
    with pytest.raises(SystemExit, match="unknown table laennec:glory"):
        (tmp_path / "results.json").write_text("{}")
        render(document)
    with pytest.raises(InputError, match=r"run\.json: cannot read"):
        gather_results([tmp_path], tmp_path / "gathered.json")


def test_the_geometry_of_an_embedding_is_a_table(scored, tmp_path):
    gather_results([scored.folder], tmp_path / "results.json")
    page = tmp_path / "page.md"
    page.write_text("<!-- laennec:geometry results.json validation -->\n<!-- laennec:end -->\n")
    render(page)
    own = four_properties(json.loads((scored.folder / "metrics.json").read_text())["geometry"])
    line = next(line for line in page.read_text().splitlines() if line.startswith("| tiny"))
    shown = [own[kind][key] for kind in ("intra", "inter") for key in ("mean", "cv")]
    ratio = f"{own['inter']['mean'] / own['intra']['mean']:.2f}"
    assert line.split(" | ")[2:] == [*(f"{value:.3f}" for value in shown), f"{ratio} |"]


def test_a_corpus_that_was_scored_whole_has_no_split(tiny_run, small_corpus, tmp_path):
    whole = {"name": "synthetic", "data_dir": str(small_corpus), "protocol": "none"}
    found = score(tiny_run / "model", split="all", corpus=whole, out=tmp_path / "scored")
    (row,) = json.loads(gather_results([found.folder], tmp_path / "results.json").read_text())["results"]
    assert row["split"] == "all" and row["split_fingerprint"] is None and row["protocol"] == "none"


def compared(effective, **other):
    """The comparison of two methods on a split, as in a results file."""
    cell = {"mean": 0.5, "interval": [0.4, 0.6], "difference": None, "effective": effective}
    tested = {"difference_interval": [0.0, 0.2], "p_holm": 0.04, "freedom": 7.25, "smallest_p": 0.01, "detectable": 0.3}
    against = cell | {"difference": 0.1} | tested | other
    figures = {"base": {"icbhi.Score": cell, "crackle.roc_auc": cell}, "other": {"crackle.roc_auc": against}}
    return {"baseline": "base", "figures": figures}


def test_a_method_without_a_metric_is_listed_with_the_others():
    lines = comparison_lines({"methods": {"test": compared(8.0)}})
    assert [line.split()[:2] for line in lines if line.startswith("other")] == [["other", "undefined"], ["other", "-"]]
    assert any("undefined (–; –)" in line and "+0.100 [+0.000, +0.200] (7.2; 0.040)" in line for line in lines)


def test_a_comparison_says_what_it_can_find_or_why_it_finds_nothing():
    lines = comparison_lines({"methods": {"test": compared(8.0)}})
    assert "crackle AUROC (8.0 effective patients)" in lines[2] and not any("incomplete" in line for line in lines)
    assert lines[-1] == (
        "crackle AUROC: smallest difference detectable with 80 % power: 0.300; smallest possible p: 0.010"
    )
    unknown = dict.fromkeys(("difference_interval", "p_holm", "freedom", "smallest_p", "detectable"))
    lines = comparison_lines({"methods": {"test": compared(2.5, **unknown)}})
    assert lines[-1] == "ICBHI Score, crackle AUROC: no interval and no p value: fewer than 3 effective patients"
    few = compared(3.5, **unknown)
    for cells in few["figures"].values():
        for cell in cells.values():
            cell["interval"] = None
    lines = comparison_lines({"methods": {"test": few}})
    assert lines[-1] == "ICBHI Score, crackle AUROC: no interval and no p value: fewer than 5 patients"


def test_a_comparison_without_some_runs_names_their_methods():
    study = {"methods": {"base": {}, "other, rate 1": {}}, "missing": ["other_rate_1/0", "other_rate_1/2-fold1"]}
    lines = comparison_lines({"methods": {"test": compared(8.0)}, "study": study})
    assert lines[1] == "incomplete comparison: fewer runs than planned of other, rate 1 (2 missing)"
