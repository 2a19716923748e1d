"""Scores: against the published cases, worked numbers, and naive loops."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from laennec.evaluation import metrics

CASES = {
    case["id"]: case for case in json.loads((Path(__file__).parents[1] / "golden/metrics.json").read_text())["cases"]
}
WORKED = [[1290, 160, 110, 19], [330, 250, 40, 29], [190, 45, 140, 10], [50, 60, 13, 20]]


def assert_close(got, expected):
    assert set(expected) <= set(got)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("case", ["score_hand_small", "score_all_normal_on_official_test"])
def test_every_score_variant_matches_the_published_case(case):
    confusion = np.array(CASES[case]["inputs"]["confusion_matrix_rows_true_cols_pred"])
    expected = CASES[case]["expected"]
    score = metrics.icbhi_score(confusion)
    assert_close(score, expected["official_4class"])
    assert_close(metrics.any_abnormal_score(confusion), expected["two_class_se"])
    assert_close(metrics.any_abnormal_score(confusion), expected["sam_ast_repo"])
    assert_close(metrics.macro_one_vs_rest(confusion), expected["macro_ovr_wrong"])
    assert_close(metrics.sprsound_score(score["Se"], score["Sp"]), expected["sprsound"])
    assert float(metrics.accuracy(confusion)) == pytest.approx(expected["accuracy"], rel=1e-12)
    assert float(metrics.uar(confusion)) == pytest.approx(expected["uar"], rel=1e-12)
    assert metrics.per_class_recall(confusion) == pytest.approx(expected["per_class_recall"], rel=1e-12)


def test_binary_figures_match_the_published_case():
    case = CASES["binary_strict_icbhi_ensemble"]
    confusion = np.array(case["inputs"]["confusion_matrix_rows_true_cols_pred"])
    se, sp = float(metrics.exact_sensitivity(confusion)) / 100, float(metrics.specificity(confusion)) / 100
    score = metrics.sprsound_score(se, sp)
    figures = {"sensitivity": se, "specificity": sp, "average_score": score["AS"], "harmonic_score": score["HS"]}
    figures |= {"score": score["Score"], "accuracy": float(metrics.accuracy(confusion)) / 100}
    figures |= {"uar": float(metrics.uar(confusion)) / 100}
    figures["macro_f1"] = float(metrics.f1_of(np.diag(confusion), confusion.sum(0), confusion.sum(1)).mean())
    assert_close(figures, case["expected"])


def test_multilabel_metrics_have_the_published_layout_and_numbers():
    case = CASES["multilabel_metrics"]
    inputs, expected = case["inputs"], case["expected"]
    got = metrics.multilabel_metrics(inputs["logits"], inputs["labels"], inputs["label_names"])
    assert_close(got["aggregated"], expected["aggregated"])
    for label, figures in expected["label_specific"].items():
        assert_close(got["label_specific"][label], figures)
        assert set(got["label_specific"][label]) == {*figures, "average_precision"}


def test_worked_confusion_gives_the_written_score():
    score = metrics.icbhi_score(WORKED)
    assert [round(score[name], 4) for name in ("Sp", "Se", "Score")] == [81.6973, 34.8343, 58.2658]


def test_always_normal_scores_25_under_sprsound_scoring():
    assert metrics.sprsound_score(0.0, 100.0) == {"AS": 50.0, "HS": 0.0, "Score": 25.0}
    assert metrics.sprsound_score(0.0, 0.0)["HS"] == 0.0


def test_scores_work_on_stacks_of_confusions_one_by_one():
    stack = np.random.default_rng(0).integers(0, 9, (5, 4, 4))
    for name in ("specificity", "exact_sensitivity", "any_abnormal_sensitivity", "accuracy", "uar"):
        together = getattr(metrics, name)(stack)
        assert together == pytest.approx([float(getattr(metrics, name)(one)) for one in stack])


def test_confusion_and_four_classes_agree_with_counting():
    rng = np.random.default_rng(1)
    truth, answer = rng.integers(0, 2, (2, 60, 2))
    true, predicted = (metrics.four_class(flags[:, 0], flags[:, 1]) for flags in (truth, answer))
    names = {(0, 0): 0, (1, 0): 1, (0, 1): 2, (1, 1): 3}
    assert true.tolist() == [names[tuple(flags)] for flags in truth]
    counted = [
        [sum(t == i and p == j for t, p in zip(true, predicted, strict=True)) for j in range(4)] for i in range(4)
    ]
    assert metrics.confusion_matrix(true, predicted, 4).tolist() == counted


MISUSES = [
    lambda: metrics.four_class([0.4], [1]),
    lambda: metrics.four_class([0, 1], [1]),
    lambda: metrics.confusion_matrix([4], [0], 4),
    lambda: metrics.confusion_matrix([0], [0, 1], 4),
    lambda: metrics.multilabel_metrics([[0.0]], [[1]], ["a", "b"]),
    lambda: metrics.threshold_row({"other": 1.0}, ["crackle"]),
]


@pytest.mark.parametrize("bad", MISUSES)
def test_misuse_is_refused(bad):
    with pytest.raises(ValueError):
        bad()


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_auroc_and_ap_equal_sklearn_with_ties_and_without(digits):
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = np.random.default_rng(digits)
    truth, scores = rng.integers(0, 2, 500), rng.normal(size=500).round(digits)
    assert metrics.auroc(truth, scores) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert metrics.average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores), abs=1e-12)


def test_row_weights_equal_repeated_rows():
    rng = np.random.default_rng(2)
    truth, scores, weights = rng.integers(0, 2, 40), rng.normal(size=40).round(1), rng.integers(0, 4, (6, 40))
    ranked = metrics.RankedLabel(scores, truth)
    for k, times in enumerate(weights):
        rows = np.repeat(np.arange(40), times)
        assert ranked.auroc(weights)[k] == pytest.approx(metrics.auroc(truth[rows], scores[rows]))
        assert ranked.average_precision(weights)[k] == pytest.approx(
            metrics.average_precision(truth[rows], scores[rows])
        )


def test_a_label_with_one_class_has_null_auroc_and_a_note():
    got = metrics.multilabel_metrics([[1.0, 2.0], [-1.0, 0.5]], [[1, 0], [0, 0]], ["crackle", "wheeze"])
    assert got["label_specific"]["label_crackle"]["roc_auc"] == 1.0
    assert got["label_specific"]["label_wheeze"]["roc_auc"] is None
    assert got["label_specific"]["label_wheeze"]["average_precision"] is None
    assert got["aggregated"]["auc_macro"] is None
    assert any("wheeze" in note and "undefined" in note for note in got["notes"])
    json.dumps(got, allow_nan=False)


def test_what_the_truth_cannot_define_is_nan_not_zero():
    only_normal = np.array([[3, 1], [0, 0]])
    assert math.isnan(metrics.icbhi_score(only_normal)["Se"]) and math.isnan(metrics.icbhi_score(only_normal)["Score"])
    assert metrics.icbhi_score(only_normal)["Sp"] == 75.0
    assert math.isnan(metrics.auroc([], [])) and math.isnan(metrics.average_precision([0, 0], [1, 2]))
    assert float(metrics.uar(only_normal)) == 75.0


def test_thresholds_are_one_for_each_label_in_their_order_or_one_for_all():
    logits, labels = np.array([[0.5, -1.0], [1.5, 3.0], [0.9, 1.0]]), np.array([[1, 0], [1, 1], [0, 1]])
    by_name = metrics.multilabel_metrics(logits, labels, ["a", "b"], thresholds={"a": 1.0, "b": 0.5})
    assert metrics.multilabel_metrics(logits, labels, ["a", "b"], thresholds=[1.0, 0.5]) == by_name
    for_all = metrics.multilabel_metrics(logits, labels, ["a", "b"], thresholds={"a": 0.7, "b": 0.7})
    assert metrics.multilabel_metrics(logits, labels, ["a", "b"], thresholds=0.7) == for_all != by_name
    with pytest.raises(ValueError, match="3 thresholds for 2 labels"):
        metrics.multilabel_metrics(logits, labels, ["a", "b"], thresholds=[1.0, 0.5, 0.0])
