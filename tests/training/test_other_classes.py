"""Corpora with other classes than those of lung sounds, from training to the report."""

import json

import numpy as np
import pandas as pd
import pytest
from docs.render import render

import audio_twins
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation import evaluate_predictions, format_summary, write_report
from laennec.evaluation.baselines import shortcut_baselines
from laennec.evaluation.evaluate import score
from laennec.study.results import gather_results
from laennec.training.recipe import Recipe
from laennec.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CLASSES = sorted(audio_twins.ESC50_CLASSES)


@pytest.fixture(scope="module")
def esc50(some_recordings, tmp_path_factory):
    return audio_twins.esc50_github(tmp_path_factory.mktemp("esc50") / "d", some_recordings)


def settings(tiny_recipe, corpus, column, **groups):
    made = tiny_recipe | {"corpus": corpus, "target": {"problem_type": "single_label", "column": column}}
    made |= {"loss": {"task": "ce"}, "train": tiny_recipe["train"] | {"epochs": 1, "selection_metric": "uar"}}
    return made | groups


@pytest.fixture(scope="module")
def esc50_recipe(tiny_recipe, esc50):
    options = {"label_column": "category", "fold_column": "fold", "patient_column": "src_file"}
    corpus = {"name": "hub", "data_dir": str(esc50), "protocol": "published-folds", "options": options}
    return settings(tiny_recipe, corpus, "category")


def run(values, out, **corpus):
    recipe = Recipe(**(values | {"corpus": values["corpus"] | corpus}))
    recipe.output_dir = str(out)
    return train(recipe)


@pytest.fixture(scope="module")
def scored(esc50_recipe, tmp_path_factory):
    """Folds 1 and 2 of the small copy of ESC-50, trained and scored."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(folder / "cache"))
        return [score(run(esc50_recipe, folder / f"f{fold}", fold=fold)) for fold in (1, 2)]


def test_a_run_predicts_the_classes_of_its_corpus(scored):
    record = json.loads((scored[0].folder / "run.json").read_text())
    assert record["labels"] == CLASSES
    assert {"accuracy", "uar", "f1_macro"} <= set(record["history"][0]["validation"])
    assert record["corpus"]["provenance"]["fold"] == 1
    assert record["selection_metric"] == "uar"


def test_the_figures_are_those_of_classes_and_of_no_lung(scored):
    evaluation = scored[0].evaluation
    table = pd.read_parquet(scored[0].folder / "predictions.parquet")
    logits = table[[f"logit_{name}" for name in CLASSES]].to_numpy()
    hit = np.array(CLASSES)[logits.argmax(1)] == table["label"]
    assert evaluation["headline"] == "accuracy"
    assert evaluation["values"]["accuracy"] == pytest.approx(100 * hit.mean())
    assert evaluation["values"]["uar"] == pytest.approx(100 * hit.groupby(table["label"]).mean().mean())
    # macro F1 by hand
    called = pd.Series(np.array(CLASSES)[logits.argmax(1)])
    f1 = [
        2 * (hit & (table["label"] == c)).sum() / ((called == c).sum() + (table["label"] == c).sum()) for c in CLASSES
    ]
    assert evaluation["values"]["f1_macro"] == pytest.approx(np.mean(f1))
    families = {name.split(".")[0] for name in evaluation["values"]}
    assert not families & {"icbhi", "any_abnormal", "sprsound", "crackle", "wheeze", "normal"}
    assert "ICBHI" not in scored[0].summary and "protocol published-folds fold 1" in scored[0].summary
    assert evaluation["geometry"]["classes"] == CLASSES
    assert evaluation["floors"][0]["name"] == "majority class"


def test_the_report_is_of_these_classes(scored):
    page = (scored[0].folder / "report.html").read_text()
    assert "Crying_baby alone" in page and "ICBHI" not in page and "SPRSound" not in page
    assert (scored[0].folder / "pictures" / "confusion.png").stat().st_size > 1000


def test_folds_are_results_of_their_own(scored, tmp_path):
    into = gather_results([s.folder for s in scored], tmp_path / "results.json")
    rows = json.loads(into.read_text())["results"]
    assert [row["fold"] for row in rows] == [1, 2]
    document = tmp_path / "README.md"
    document.write_text("<!-- laennec:study results.json test -->\n<!-- laennec:end -->\n")
    render(document)
    mean = np.mean([s.evaluation["values"]["accuracy"] for s in scored])
    uar = np.mean([s.evaluation["values"]["uar"] for s in scored])
    assert f"| {mean:.1f}" in document.read_text() and f"| {uar:.1f}" in document.read_text()


def test_a_run_predicts_its_own_classes(scored, esc50, tmp_path):
    sound = next((esc50 / "audio").iterdir())
    assert main(["predict", str(scored[0].folder.parent), str(sound), "--out", str(tmp_path / "out")]) == 0
    assert json.loads(next((tmp_path / "out").rglob("*.json")).read_text())["labels"] == CLASSES


def test_heart_sounds_from_training_to_the_report(tiny_recipe, some_recordings, tmp_path):
    folder = audio_twins.physionet2016(tmp_path / "d", some_recordings)
    corpus = {"name": "physionet2016", "data_dir": str(folder), "level": "window", "protocol": "recording-80-20"}
    out = run(settings(tiny_recipe, corpus | {"options": {"window_s": 1.0}}, "heart_sound"), tmp_path / "run")
    done = score(out)
    assert json.loads((out / "run.json").read_text())["labels"] == ["normal", "abnormal"]
    values = done.evaluation["values"]
    # the score of these classes is the mean of sensitivity and specificity, and no SPRSound score is shown
    assert done.evaluation["headline"] == "any_abnormal.Score"
    assert values["any_abnormal.Score"] == pytest.approx(values["uar"])
    assert not any(name.startswith(("sprsound", "icbhi")) for name in values)
    assert "database" in {row["name"] for row in done.evaluation["floors"]}
    assert "patients are not known" in done.summary


def test_a_recipe_that_asks_the_wrong_column_is_told_the_right_one(esc50_recipe, tmp_path):
    wrong = esc50_recipe | {"target": {"problem_type": "single_label"}}
    with pytest.raises(InputError, match=r"no cycle has a label in label; this corpus has labels in category"):
        run(wrong, tmp_path / "run", fold=1)


def many(n=50, rows=300, seed=0):
    """Class names, true classes, logits, and a predictions table of many classes."""
    random = np.random.default_rng(seed)
    names = [f"class {k:02d}" for k in range(n)]
    truth = random.integers(0, n, rows)
    logits = random.normal(size=(rows, n)) + 3 * np.eye(n)[truth]
    table = pd.DataFrame({f"logit_{name}": logits[:, k] for k, name in enumerate(names)})
    table = table.assign(cycle_id=[f"{k}#record" for k in range(rows)], recording_id=[str(k) for k in range(rows)])
    table = table.assign(patient_id=None, label=[names[k] for k in truth], start_s=0.0, end_s=5.0, split="test")
    return names, truth, logits, table


def test_fifty_classes_are_scored_and_drawn(tmp_path):
    names, truth, logits, table = many()
    evaluation = evaluate_predictions(table, problem_type="single_label", label_names=names, train_table=table.copy())
    assert evaluation["values"]["accuracy"] == pytest.approx(100 * (logits.argmax(1) == truth).mean())
    assert "accuracy" in format_summary(evaluation)
    write_report(tmp_path, {"name": "many"}, evaluation, table)
    assert sorted(path.stem for path in (tmp_path / "pictures").iterdir()) == ["confusion", "reliability"]


def test_the_length_baseline_of_other_classes_prefers_none():
    """Without a normal class the baseline predicts the likeliest class, as an argmax over counts does."""
    names = ["a", "b", "c"]
    truth = np.repeat([0, 1, 2], [60, 30, 10])
    table = pd.DataFrame({"label": [names[k] for k in truth], "start_s": 0.0, "end_s": 1.0, "patient_id": "p"})
    row = next(r for r in shortcut_baselines(table, table, class_names=names) if r["name"] == "event length")
    assert row["values"]["accuracy"] == pytest.approx(60)
