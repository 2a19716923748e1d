import numpy as np
import pytest
from evaluation_tables import cycles, with_class_logits

from laennec.evaluation import decision_curve
from laennec.evaluation.bootstrap import draw_patients, interval, patient_codes
from laennec.evaluation.calibration import decision_curves
from laennec.evaluation.predictions import read_predictions

TWO = {"problem_type": "multi_label", "label_names": ["crackle", "wheeze"]}


def naive(probabilities, truth, threshold):
    true = sum(1 for p, y in zip(probabilities, truth, strict=True) if p >= threshold and y)
    false = sum(1 for p, y in zip(probabilities, truth, strict=True) if p >= threshold and not y)
    return true / len(truth) - false / len(truth) * threshold / (1 - threshold)


def test_worked_numbers():
    # ten cycles, four with the label; at 0.5 three are found with two false alarms: 3/10 - 2/10 * 1
    p, y = [0.9, 0.8, 0.6, 0.2, 0.7, 0.5, 0.4, 0.3, 0.1, 0.1], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    curve = decision_curve(p, y, [0.0, 0.2, 0.5])
    assert curve["model"] == pytest.approx([0.4 - 0.0, 4 / 10 - 4 / 10 * 0.25, 0.1])
    assert curve["treat_all"] == pytest.approx([0.4, 0.4 - 0.6 * 0.25, 0.4 - 0.6])
    assert curve["treat_none"] == [0.0, 0.0, 0.0]
    assert curve["prevalence"] == 0.4 and curve["cycles"] == 10


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


def test_bands_are_percentiles_over_the_same_draws_of_patients():
    answers = read_predictions(cycles(), **TWO)
    curve = decision_curves(answers, n_draws=40, seed=5)["wheeze"]
    codes, n = patient_codes(answers.table)
    p, y = answers.probabilities[:, 1], answers.truth[:, 1]
    place = curve["thresholds"].index(0.3)
    drawn = []
    for patients in draw_patients(n, 40, 5):
        rows = np.concatenate([np.flatnonzero(codes == patient) for patient in patients])
        drawn.append(naive(p[rows], y[rows], 0.3))
    assert curve["intervals"][place] == pytest.approx(interval(np.array(drawn), n))
    assert curve["intervals"][place][0] < curve["model"][place] < curve["intervals"][place][1]


def test_single_label_answers_have_curves_of_the_same_labels_and_one_class_has_none():
    table = cycles()
    both, single = (
        decision_curves(read_predictions(t, problem_type=k, label_names=n), n_draws=0)
        for t, k, n in (
            (table, "multi_label", ["crackle", "wheeze"]),
            (with_class_logits(table), "single_label", ["normal", "crackle", "wheeze", "both"]),
        )
    )
    assert both["crackle"]["model"] == pytest.approx(single["crackle"]["model"])
    assert both["crackle"]["intervals"] == [None] * 99
    assert set(decision_curves(read_predictions(table.assign(wheeze=0), **TWO), n_draws=0)) == {"crackle"}


@pytest.mark.parametrize(
    "arguments, said",
    [
        (([0.5], [1, 0]), "1 probabilities but 2 labels"),
        (([1.5], [1]), "0..1"),
        (([np.nan], [1]), "0..1"),
        (([0.5], [2]), "0 or 1"),
        (([0.5], [1], [1.0]), "t < 1"),
        (([0.5], [1], [-0.1]), "t < 1"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        decision_curve(*arguments)


def test_no_cycles_have_no_benefit():
    curve = decision_curve([], [], [0.5])
    assert curve["model"] == [None] and curve["treat_all"] == [None] and curve["prevalence"] is None
