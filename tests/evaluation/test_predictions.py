"""The predictions table: mapping, nulls, one-class labels, other class lists."""

import json

import numpy as np
import pandas as pd
import pytest
from evaluation_tables import TWO, cycles, with_class_logits

from laennec.errors import InputError
from laennec.evaluation import metrics, predictions_metrics
from laennec.evaluation.predictions import read_predictions

FOUR = {"problem_type": "single_label", "label_names": ["both", "normal", "wheeze", "crackle"]}


def test_two_labels_map_to_four_classes_by_their_bits():
    table = cycles()
    got = predictions_metrics(table, **TWO)
    predicted = (table.logit_crackle > 0).astype(int) + 2 * (table.logit_wheeze > 0).astype(int)
    confusion = metrics.confusion_matrix(table.crackle + 2 * table.wheeze, predicted, 4)
    assert got["confusion"]["matrix"] == confusion.tolist()
    assert got["scores"]["icbhi"]["Score"] == pytest.approx(metrics.icbhi_score(confusion)["Score"])
    assert got["scores"]["any_abnormal"]["Se"] == pytest.approx(metrics.any_abnormal_score(confusion)["Se"])
    sprsound = metrics.sprsound_score(metrics.icbhi_score(confusion)["Se"], metrics.icbhi_score(confusion)["Sp"])
    assert got["scores"]["sprsound"]["Score"] == pytest.approx(sprsound["Score"])
    assert "exact class" in got["definitions"]["icbhi"]
    json.dumps(got, allow_nan=False)


def test_columns_of_decisions_replace_thresholds_and_change_no_ranking():
    table = cycles()
    decided = table.assign(decided_crackle=table.crackle, decided_wheeze=1 - table.wheeze)
    got, plain = predictions_metrics(decided, **TWO), predictions_metrics(table, **TWO)
    expected = metrics.confusion_matrix(table.crackle + 2 * table.wheeze, table.crackle + 2 * (1 - table.wheeze), 4)
    assert got["confusion"]["matrix"] == expected.tolist() != plain["confusion"]["matrix"]
    assert got["values"]["crackle.roc_auc"] == plain["values"]["crackle.roc_auc"]
    assert got["calibration"] == plain["calibration"]


def test_flat_values_equal_the_nested_multilabel_figures():
    got = predictions_metrics(cycles(), **TWO, thresholds={"crackle": 0.3, "wheeze": -0.2})
    for label in ("crackle", "wheeze"):
        figures = got["labels"]["label_specific"][f"label_{label}"]
        assert got["values"][f"{label}.f1"] == pytest.approx(figures["f1_score"])
        assert got["values"][f"{label}.roc_auc"] == pytest.approx(figures["roc_auc"])
        assert got["values"][f"{label}.average_precision"] == pytest.approx(figures["average_precision"])
    assert got["values"]["f1_micro"] == pytest.approx(got["labels"]["aggregated"]["f1_micro"])
    assert got["thresholds"] == {"crackle": 0.3, "wheeze": -0.2}


def test_class_logits_of_independent_labels_equal_the_labels():
    table = cycles()
    two, four = predictions_metrics(table, **TWO), predictions_metrics(with_class_logits(table), **FOUR)
    assert four["class_names"] == list(metrics.CLASSES)
    assert four["confusion"] == two["confusion"]
    for name in ("icbhi.Score", "crackle.roc_auc", "wheeze.average_precision", "crackle.f1"):
        assert four["values"][name] == pytest.approx(two["values"][name])
    assert set(four["calibration"]["ece"]) == {"crackle", "wheeze", "answered class"}


def test_rows_without_truth_are_left_out_and_counted():
    table = cycles()
    holed = table.copy()
    holed["crackle"] = holed["crackle"].astype("Int8")
    holed.loc[[0, 5, 9], "crackle"] = pd.NA
    got, kept = predictions_metrics(holed, **TWO), predictions_metrics(table.drop(index=[0, 5, 9]), **TWO)
    assert got["counts"]["unlabelled"] == 3 and got["counts"]["cycles"] == len(table) - 3
    assert got["values"] == kept["values"]
    assert any("3 rows" in note for note in got["notes"])


def test_other_class_lists_have_no_icbhi_score():
    rng = np.random.default_rng(0)
    names = ["Adventitious", "Normal", "Poor Quality"]
    table = pd.DataFrame({f"logit_{name}": rng.normal(size=30) for name in names})
    table["label"] = rng.choice(names, 30)
    got = predictions_metrics(table, problem_type="single_label", label_names=names)
    assert got["class_names"][0] == "Normal" and got["headline"] == "sprsound.Score"
    assert "icbhi" not in got["scores"] and "any_abnormal" not in got["scores"]
    from laennec.evaluation import sprsound_task

    answer = [names[k] for k in table[[f"logit_{name}" for name in names]].to_numpy().argmax(1)]
    expected = sprsound_task("2-1", table["label"].tolist(), answer)
    assert got["scores"]["sprsound"]["Score"] == pytest.approx(expected["Score"])
    assert any("Poor Quality" in note for note in got["notes"])


def test_binary_class_list_scores_its_abnormal_class():
    rng = np.random.default_rng(1)
    table = pd.DataFrame({"logit_normal": rng.normal(size=40), "logit_abnormal": rng.normal(size=40)})
    table["label"] = np.where(rng.random(40) < 0.5, "normal", "abnormal")
    got = predictions_metrics(table, problem_type="single_label", label_names=["normal", "abnormal"])
    margin = table.logit_abnormal - table.logit_normal
    assert got["label_names"] == ["abnormal"]
    assert got["values"]["abnormal.roc_auc"] == pytest.approx(metrics.auroc(table.label == "abnormal", margin))


def test_labels_without_classes_have_label_metrics_only():
    table = cycles().rename(columns={"wheeze": "murmur", "logit_wheeze": "logit_murmur"})
    got = predictions_metrics(table, problem_type="multi_label", label_names=["crackle", "murmur"])
    assert got["confusion"] is None and got["scores"] == {} and got["headline"] == "roc_auc_macro"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="logit_wheeze"), "logit_wheeze"),
        (lambda t: t.drop(columns="wheeze"), "truth column wheeze"),
        (lambda t: t.assign(logit_wheeze=np.nan), "not a number"),
        (lambda t: t.assign(crackle=None), "nothing to score"),
        (lambda t: t.assign(crackle=2), "0 or 1"),
    ],
)
def test_bad_tables_are_named(change, message):
    with pytest.raises(InputError, match=message):
        read_predictions(change(cycles()), **TWO)


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(InputError, match="squawk"):
        read_predictions(with_class_logits(cycles()).assign(label="squawk"), **FOUR)
