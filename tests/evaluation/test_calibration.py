"""Calibration, thresholds and decision curves, by hand and by naive loops."""

import numpy as np
import pandas as pd
import pytest
from evaluation_tables import LABELS, TWO, cycles, with_class_logits

from laennec.errors import InputError
from laennec.evaluation import decision_curve, metrics
from laennec.evaluation.calibration.operating_point import (
    fit_classes_on_validation,
    fit_on_validation,
    fit_thresholds_on_validation,
)
from laennec.evaluation.calibration.probabilities import (
    brier_score,
    calibrated_logits,
    decision_curves,
    expected_calibration_error,
    fit_platt_on_validation,
    fit_temperature_on_validation,
    reliability_bins,
    sigmoid,
    softmax,
)
from laennec.evaluation.intervals import effective_patients, interval, patient_codes
from laennec.evaluation.predictions import read_predictions


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

    def cost(t):  # the summed cross entropy and the prior towards no calibration
        return np.logaddexp(0, np.where(truth == 1, -1, 1) * logits / t).sum() + 0.5 * (np.log(t) / 0.5) ** 2

    assert cost(fitted) <= min(cost(t) for t in np.linspace(0.2, 6, 400)) + 1e-6


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


def test_the_less_likely_label_needs_probability_one_half_too():
    table = cycles(n_patients=3, per_patient=15, skill=1.0).assign(split="validation")
    logits, truth = table[["logit_crackle", "logit_wheeze"]].to_numpy(), table[LABELS].to_numpy()

    def decided(c, w):
        """Label by label, in plain words."""
        rows = []
        for crackle, wheeze in logits:
            rows.append(
                [crackle > c and (crackle >= wheeze or crackle > 0), wheeze > w and (wheeze >= crackle or wheeze > 0)]
            )
        return np.array(rows)

    def score(c, w):
        predicted = metrics.four_class(*decided(c, w).T)
        return metrics.icbhi_score(metrics.confusion_matrix(metrics.four_class(*truth.T), predicted, 4))["Score"]

    fitted = fit_on_validation(table, LABELS, rule="icbhi_likeliest", calibration="none")
    chosen = fitted["thresholds"]
    best = max(score(c, w) for c in thresholds_tried(logits[:, 0]) for w in thresholds_tried(logits[:, 1]))
    assert score(chosen["crackle"], chosen["wheeze"]) == pytest.approx(best)
    assert fitted["second_thresholds"] == {"crackle": 0.5, "wheeze": 0.5}
    how = {name: fitted[name] for name in ("thresholds", "second_thresholds")}
    read = read_predictions(table, **TWO, **how)
    np.testing.assert_array_equal(read.decided, decided(chosen["crackle"], chosen["wheeze"]))
    low = dict.fromkeys(LABELS, -9.0)
    assert read_predictions(table, **TWO, thresholds=low).decided.all()
    one_or_two = read_predictions(table, **TWO, thresholds=low, second_thresholds=fitted["second_thresholds"]).decided
    np.testing.assert_array_equal(one_or_two, decided(-9.0, -9.0))
    assert (one_or_two.sum(1) == 1).any() and (one_or_two.sum(1) == 2).any()
    assert fit_on_validation(table, LABELS, rule="icbhi")["second_thresholds"] == {}


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


def test_brier_is_a_mean_of_squares_and_adds_up_a_cycles_classes():
    assert brier_score([0.2, 0.9, 0.5], [0, 1, 1]) == pytest.approx((0.04 + 0.01 + 0.25) / 3)
    classes, truth = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[1, 0, 0], [0, 1, 0]]
    assert brier_score(classes, truth) == pytest.approx((0.09 + 0.04 + 0.01 + 0.01 + 0.81 + 0.64) / 2)
    assert np.isnan(brier_score([], []))
    with pytest.raises(ValueError, match="truth"):
        brier_score([0.2], [0, 1])


@pytest.mark.parametrize(("slope", "intercept"), [(0.4, -1.2), (3.0, 2.0)])
def test_platt_is_recovered_equals_sklearns_and_no_neighbour_is_better(slope, intercept):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(5)
    logits = rng.normal(-1, 3, 4000)
    truth = (rng.random(4000) < sigmoid(slope * logits + intercept)).astype(int)
    a, b = fit_platt_on_validation(logits, truth)
    assert a == pytest.approx(slope, rel=0.15) and b == pytest.approx(intercept, abs=0.3)
    positives = truth.sum()
    targets = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2))

    def cost(a, b):
        z = a * logits + b
        return (np.logaddexp(0, z) - targets * z).sum() + 0.5 * (a - 1) ** 2 + 0.5 * (b / 2) ** 2

    assert all(cost(a, b) <= cost(a + da, b + db) for da in (-1e-3, 0, 1e-3) for db in (-1e-3, 0, 1e-3))
    weighted = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(  # a soft target is two weighted hard ones
        np.r_[logits, logits][:, None], np.r_[np.ones(4000), np.zeros(4000)], np.r_[targets, 1 - targets]
    )
    # the prior of 4,000 cycles is worth about a percent
    assert a == pytest.approx(weighted.coef_[0, 0], rel=0.03) and b == pytest.approx(weighted.intercept_[0], rel=0.03)


def test_platt_stays_finite_where_the_logits_separate_the_label():
    a, b = fit_platt_on_validation([-1000.0, -999, 999, 1000], [0, 0, 1, 1])
    assert 0 < a < 1 and np.isfinite(b)
    assert sigmoid(a * 999 + b) == pytest.approx(3 / 4, abs=0.02)  # Platt's target for two of two
    assert fit_platt_on_validation([1.0, 2.0], [1, 1]) == (1.0, 0.0)
    assert np.isfinite(fit_platt_on_validation([2.0, 2.0, 2.0], [0, 1, 1])).all()
    with pytest.raises(ValueError, match="finite"):
        fit_platt_on_validation([np.nan, 1.0], [0, 1])


@pytest.mark.parametrize("rule", ["youden", "f1", "sensitivity", "icbhi", "icbhi_likeliest", None])
@pytest.mark.parametrize("calibration", ["none", "temperature", "platt"])
def test_a_calibration_never_changes_what_a_rule_decides(rule, calibration):
    """The thresholds in probability are those in logits, seen through the calibration."""
    table = cycles().assign(split="validation")
    table["logit_crackle"] = 3 * table["logit_crackle"] + 2
    fitted = fit_on_validation(table, LABELS, rule=rule, sensitivity=0.8, calibration=calibration)
    logits = table[["logit_crackle", "logit_wheeze"]].to_numpy()
    p = sigmoid(calibrated_logits(logits, LABELS, fitted["temperatures"], fitted["intercepts"]))
    for k, name in enumerate(LABELS):
        decided = p[:, k] > fitted["threshold_probabilities"][name]
        np.testing.assert_array_equal(decided, logits[:, k] > fitted["thresholds"][name])
        np.testing.assert_array_equal(np.argsort(p[:, k], kind="stable"), np.argsort(logits[:, k], kind="stable"))
        if rule is None:
            assert fitted["threshold_probabilities"][name] == pytest.approx(0.5)
        after = brier_score(p[:, k], table[name])
        assert fitted["brier_after"][name] == pytest.approx(after)
        assert fitted["brier_before"][name] == pytest.approx(brier_score(sigmoid(logits[:, k]), table[name]))
    if calibration == "platt":  # what a division cannot mend, a shift can
        divided = fit_on_validation(table, LABELS, calibration="temperature")
        assert fitted["brier_after"]["crackle"] < divided["brier_after"]["crackle"] < fitted["brier_before"]["crackle"]
    else:
        assert set(fitted["intercepts"].values()) == {0.0}
    if calibration == "none":
        assert set(fitted["temperatures"].values()) == {1.0} and fitted["ece_before"] == fitted["ece_after"]
    assert fitted["calibration"] == calibration and fitted["rule"] == rule and fitted["notes"] == []
    assert fitted["sensitivity"] == (0.8 if rule == "sensitivity" else None)


@pytest.mark.parametrize("calibration", ["none", "temperature", "platt"])
@pytest.mark.parametrize("rule", ["youden", "icbhi", "icbhi_likeliest", "sensitivity"])
@pytest.mark.parametrize("value", [0, 1])
def test_a_label_with_one_class_is_left_as_it_is_and_said(calibration, rule, value):
    table = cycles().assign(split="validation", wheeze=value)
    fitted = fit_on_validation(table, LABELS, rule=rule, calibration=calibration)
    own = (fitted["temperatures"]["wheeze"], fitted["intercepts"]["wheeze"], fitted["thresholds"]["wheeze"])
    assert own == (1.0, 0.0, 0.0) and fitted["threshold_probabilities"]["wheeze"] == 0.5
    no_normal = rule in ("icbhi", "icbhi_likeliest") and value == 1
    assert [f"rule {rule}: validation has no normal cycle" in note for note in fitted["notes"][1:]] == [
        True
    ] * no_normal
    assert fitted["notes"][0].startswith("wheeze: in validation ")
    assert ("all rows" if value else "no row") in fitted["notes"][0]
    assert (fitted["thresholds"]["crackle"] == 0.0) == no_normal


@pytest.mark.parametrize("calibration", ["temperature", "platt"])
def test_few_positives_are_not_calibrated_and_some_only_a_little(calibration):
    """Wrong and confident logits: 9 positives are refused; 12 do not end at the limit as without the prior."""
    rng = np.random.default_rng(11)

    def fitted(positives, rows):
        truth = np.r_[np.ones(positives, int), np.zeros(rows - positives, int)]
        table = pd.DataFrame({"logit_w": 6 * rng.normal(size=rows), "w": truth, "split": "validation"})
        return table, fit_on_validation(table, ["w"], rule=None, calibration=calibration)

    _, few = fitted(9, 26)
    assert (few["temperatures"], few["intercepts"]) == ({"w": 1.0}, {"w": 0.0})
    assert few["notes"] == [
        "w: 9 of 26 validation rows have the label, and calibration needs 10 with and 10 without it; left uncalibrated"
    ]
    if calibration == "temperature":
        _, some = fitted(12, 26)
        assert some["notes"] == [] and 1 < some["temperatures"]["w"] < 10


def test_platt_leaves_logits_that_fall_with_the_label():
    table = cycles().assign(split="validation")
    table["logit_wheeze"] *= -1
    fitted = fit_on_validation(table, LABELS, calibration="platt")
    assert (fitted["temperatures"]["wheeze"], fitted["intercepts"]["wheeze"]) == (1.0, 0.0)
    assert ["wheeze: its logits on validation do not increase" in note for note in fitted["notes"]] == [True]
    with pytest.raises(ValueError, match="none, temperature, platt"):
        fit_on_validation(table, LABELS, calibration="isotonic")


def test_classes_share_one_temperature_and_keep_their_order():
    rng = np.random.default_rng(7)
    names = ["normal", "abnormal", "noise"]
    honest = rng.normal(0, 1.5, (2000, 3))
    truth = (softmax(honest).cumsum(1) < rng.random((2000, 1))).sum(1)
    table = pd.DataFrame({f"logit_{n}": 3 * honest[:, k] for k, n in enumerate(names)})
    table = table.assign(label=[names[k] for k in truth], split="validation", patient_id=np.arange(2000) // 10)
    fitted = fit_classes_on_validation(table, names)
    assert len(set(fitted["temperatures"].values())) == 1
    assert fitted["temperatures"]["noise"] == pytest.approx(3.0, rel=0.1)
    assert fitted["thresholds"] is None and fitted["threshold_probabilities"] == {}
    scaled = softmax(3 * honest / fitted["temperatures"]["noise"])
    assert fitted["brier_after"]["all classes"] == pytest.approx(((scaled - np.eye(3)[truth]) ** 2).sum(1).mean())
    right = scaled.argmax(1) == truth
    assert fitted["ece_after"]["answered class"] == pytest.approx(looped_ece(scaled.max(1), right), abs=1e-12)
    assert fitted["fitted_on"] == {"split": "validation", "cycles": 2000, "patients": 200}
    alone = fit_classes_on_validation(table[table["label"] == "noise"], names)
    assert alone["temperatures"]["noise"] == 1.0 and "left uncalibrated" in alone["notes"][0]
    assert fit_classes_on_validation(table, names, calibration="none")["temperatures"]["noise"] == 1.0
    with pytest.raises(ValueError, match="binary labels"):
        fit_classes_on_validation(table, names, calibration="platt")
    with pytest.raises(InputError, match="never on test"):
        fit_classes_on_validation(table.assign(split="test_intra"), names)


def naive(probabilities, truth, threshold):
    true = sum(1 for p, y in zip(probabilities, truth, strict=True) if p >= threshold and y)
    false = sum(1 for p, y in zip(probabilities, truth, strict=True) if p >= threshold and not y)
    return true / len(truth) - false / len(truth) * threshold / (1 - threshold)


def test_curve_equals_a_naive_loop_and_ties_with_a_threshold_are_acted_on():
    random = np.random.default_rng(3)
    p, y = random.integers(0, 11, 300) / 10, random.integers(0, 2, 300)  # many lie on a threshold exactly
    curve = decision_curve(p, y)
    assert len(curve["thresholds"]) == 99
    assert curve["model"] == pytest.approx([naive(p, y, t) for t in curve["thresholds"]])
    # a model that says 1 to everything acts on all
    everyone = decision_curve(np.ones(300), y)
    assert everyone["model"] == pytest.approx(everyone["treat_all"])
    assert decision_curve(np.zeros(300), y)["model"] == [0.0] * 99
    assert decision_curve(np.ones(1), np.ones(1))["model"] == [1.0] * 99


def test_bands_leave_out_one_patient_at_a_time():
    answers = read_predictions(cycles(), **TWO)
    curve = decision_curves(answers)["wheeze"]
    codes, n = patient_codes(answers.table)
    p, y = answers.probabilities[:, 1], answers.truth[:, 1]
    place = curve["thresholds"].index(0.3)
    values = [naive(p[codes != patient], y[codes != patient], 0.3) for patient in (None, *range(n))]
    assert curve["intervals"][place] == pytest.approx(interval(np.array(values), effective_patients(codes, y)))
    assert curve["intervals"][place][0] < curve["model"][place] < curve["intervals"][place][1]


def test_single_label_predictions_have_curves_of_the_same_labels_and_one_class_has_none():
    table = cycles()
    both, single = (
        decision_curves(read_predictions(t, problem_type=k, label_names=n))
        for t, k, n in (
            (table, "multi_label", ["crackle", "wheeze"]),
            (with_class_logits(table), "single_label", ["normal", "crackle", "wheeze", "both"]),
        )
    )
    assert both["crackle"]["model"] == pytest.approx(single["crackle"]["model"])
    assert both["crackle"]["intervals"][30] == pytest.approx(single["crackle"]["intervals"][30])
    assert set(decision_curves(read_predictions(table.assign(wheeze=0), **TWO))) == {"crackle"}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (([0.5], [1, 0]), "1 probabilities but 2 labels"),
        (([np.nan], [1]), "0..1"),
        (([0.5], [2]), "0 or 1"),
        (([0.5], [1], [1.0]), "t < 1"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        decision_curve(*arguments)
