"""Calibration: ECE by a loop, temperatures and thresholds by exhaustive search, validation only."""

import numpy as np
import pytest
from evaluation_tables import cycles

from laennec.errors import InputError
from laennec.evaluation import metrics
from laennec.evaluation.calibration import (
    expected_calibration_error,
    fit_on_validation,
    fit_temperature_on_validation,
    fit_thresholds_on_validation,
    reliability_bins,
    sigmoid,
    softmax,
)

LABELS = ["crackle", "wheeze"]


def looped_ece(probabilities, truth, n_bins=15):
    total = 0.0
    for k in range(n_bins):
        inside = [i for i, p in enumerate(probabilities) if (k / n_bins < p <= (k + 1) / n_bins) or (k == 0 and p == 0)]
        if inside:
            gap = np.mean([probabilities[i] for i in inside]) - np.mean([truth[i] for i in inside])
            total += len(inside) / len(probabilities) * abs(gap)
    return total


def test_ece_equals_a_loop_over_bins_edges_included():
    rng = np.random.default_rng(0)
    probabilities = np.r_[rng.random(300), 0.0, 1.0, 1 / 15, 0.5]
    truth = (rng.random(304) < probabilities**2).astype(int)
    assert expected_calibration_error(probabilities, truth) == pytest.approx(
        looped_ece(probabilities, truth), abs=1e-12
    )


def test_bins_count_every_cycle_once_and_empty_ones_are_null():
    bins = reliability_bins([0.01, 0.02, 0.99], [0, 1, 1])
    assert [entry["count"] for entry in bins] == [2, *[0] * 13, 1]
    assert bins[0]["observed"] == 0.5 and bins[5]["observed"] is None
    assert np.isnan(expected_calibration_error([], []))
    with pytest.raises(ValueError, match=r"0\.\.1"):
        reliability_bins([1.2], [1])


@pytest.mark.parametrize("true_temperature", [0.5, 3.0])
def test_temperature_is_recovered_and_no_grid_point_is_better(true_temperature):
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, 4000)
    truth = (rng.random(4000) < sigmoid(honest)).astype(int)
    logits = honest * true_temperature
    fitted = fit_temperature_on_validation(logits, truth)
    assert fitted == pytest.approx(true_temperature, rel=0.1)

    def bce(t):
        return np.logaddexp(0, np.where(truth == 1, -1, 1) * logits / t).mean()

    assert bce(fitted) <= min(bce(t) for t in np.linspace(0.2, 6, 400)) + 1e-9


def test_temperature_of_classes_is_softmax_cross_entropy():
    rng = np.random.default_rng(2)
    honest = rng.normal(0, 1.5, (3000, 4))
    truth = (softmax(honest).cumsum(1) < rng.random((3000, 1))).sum(1)
    assert fit_temperature_on_validation(2 * honest, truth) == pytest.approx(2.0, rel=0.1)
    assert fit_temperature_on_validation([1.0, 2.0], [1, 1]) == 1.0


def thresholds_tried(scores):
    unique = np.unique(scores)
    return np.r_[unique[0] - 1, (unique[1:] + unique[:-1]) / 2, unique[-1] + 1]


def f1(truth, called):
    return 2 * (truth & called).sum() / max(truth.sum() + called.sum(), 1)


def youden(truth, called):
    return called[truth].mean() - called[~truth].mean()


@pytest.mark.parametrize(("rule", "gain"), [("youden", youden), ("f1", f1)])
def test_one_label_rules_reach_the_best_of_all_thresholds(rule, gain):
    rng = np.random.default_rng(3)
    truth = rng.random(80) < 0.3
    scores = (rng.normal(size=80) + truth).round(1)
    chosen = fit_thresholds_on_validation(scores[:, None], truth[:, None], ["crackle"], rule)["crackle"]
    assert gain(truth, scores > chosen) == pytest.approx(max(gain(truth, scores > t) for t in thresholds_tried(scores)))
    assert chosen not in scores  # half-way between two scores, so rounding cannot flip a decision


def test_fixed_sensitivity_takes_the_highest_threshold_that_reaches_it():
    scores, truth = np.array([[0.1], [0.2], [0.3], [0.4], [0.35]]), np.array([[1], [1], [1], [1], [0]])
    assert fit_thresholds_on_validation(scores, truth, ["w"], "sensitivity", sensitivity=0.75)["w"] == pytest.approx(
        0.15
    )
    assert fit_thresholds_on_validation(scores, truth, ["w"], "sensitivity", sensitivity=0.25)["w"] == pytest.approx(
        0.375
    )


def test_icbhi_rule_reaches_the_best_of_all_pairs_of_thresholds():
    table = cycles(n_patients=3, per_patient=15, skill=1.0)
    logits, truth = table[["logit_crackle", "logit_wheeze"]].to_numpy(), table[LABELS].to_numpy()

    def score(c, w):
        predicted = metrics.four_class(logits[:, 0] > c, logits[:, 1] > w)
        return metrics.icbhi_score(metrics.confusion_matrix(metrics.four_class(*truth.T), predicted, 4))["Score"]

    chosen = fit_thresholds_on_validation(logits, truth, LABELS, "icbhi")
    best = max(score(c, w) for c in thresholds_tried(logits[:, 0]) for w in thresholds_tried(logits[:, 1]))
    assert score(chosen["crackle"], chosen["wheeze"]) == pytest.approx(best)
    swapped = fit_thresholds_on_validation(logits[:, ::-1], truth[:, ::-1], LABELS[::-1], "icbhi")
    assert score(swapped["crackle"], swapped["wheeze"]) == pytest.approx(best)


def test_one_class_labels_keep_the_neutral_threshold():
    assert fit_thresholds_on_validation([[1.0], [2.0]], [[0], [0]], ["w"], "f1") == {"w": 0.0}
    assert fit_thresholds_on_validation([[1.0, 1], [2.0, 1]], [[0, 0], [0, 0]], LABELS, "icbhi") == {
        "crackle": 0.0,
        "wheeze": 0.0,
    }


def test_fitting_uses_validation_and_refuses_test():
    table = cycles().assign(split="validation")
    table["logit_crackle"] *= 4
    fitted = fit_on_validation(table, LABELS, rule="icbhi")
    assert fitted["ece_after"]["crackle"] < fitted["ece_before"]["crackle"]
    assert fitted["fitted_on"] == {"split": "validation", "cycles": len(table), "patients": 14}
    expected = 1 / (1 + np.exp(-fitted["thresholds"]["crackle"] / fitted["temperatures"]["crackle"]))
    assert fitted["threshold_probabilities"]["crackle"] == pytest.approx(expected)
    with pytest.raises(InputError, match="never on test"):
        fit_on_validation(cycles(), LABELS)
    with pytest.raises(InputError, match="nothing to fit"):
        fit_on_validation(table.assign(crackle=None), LABELS)


def test_unknown_rules_and_labels_are_refused():
    with pytest.raises(ValueError, match="youden"):
        fit_thresholds_on_validation([[1.0]], [[1]], ["w"], "best")
    with pytest.raises(ValueError, match="crackle and wheeze"):
        fit_thresholds_on_validation([[1.0], [0.0]], [[1], [0]], ["w"], "icbhi")
