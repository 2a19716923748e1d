"""Intervals over patients: as by hand, as wide as patients allow, and covering what they say."""

import numpy as np
import pytest
from evaluation_tables import TWO, cycles
from scipy import stats

from laennec.evaluation import evaluate_predictions, format_summary, patient_intervals, predictions_metrics
from laennec.evaluation.intervals import (
    effective_note,
    effective_patients,
    interval_note,
    patient_codes,
)
from laennec.evaluation.predictions import effective_numbers, read_predictions, statistics_of


def test_an_interval_is_that_of_scores_without_one_patient_each():
    table = cycles(n_patients=7, per_patient=12)
    codes = table.patient_id.astype("category").cat.codes.to_numpy()
    predictions = read_predictions(table, **TWO)
    found = patient_intervals(table, statistics_of(predictions), {"crackle": 4.0, "icbhi": 3.5})
    without = [predictions_metrics(table[codes != patient], **TWO)["values"] for patient in range(7)]
    whole = predictions_metrics(table, **TWO)["values"]
    for name, top, effective in (("crackle.roc_auc", 1, 4.0), ("icbhi.Score", 100, 3.5)):
        logit = np.log(whole[name] / (top - whole[name]))
        logits = np.array([np.log(values[name] / (top - values[name])) for values in without])
        error = np.sqrt(6 / 7 * ((logits - logits.mean()) ** 2).sum())
        ends = logit + stats.t.ppf([0.025, 0.975], effective - 1) * error
        assert found[name] == pytest.approx(top / (1 + np.exp(-ends)))


def test_patients_count_not_cycles():
    # Every cycle of a patient is right or wrong together: the interval is as wide as six patients allow.
    right, patients = np.repeat([1, 0, 1, 0, 1, 0], 100).astype(float), np.repeat(np.arange(6), 100)

    def share_right(weights):
        return {"right": weights @ right / weights.sum(1)}

    low, high = patient_intervals(patients, share_right)["right"]
    assert 0 < low < 0.5 < high < 1 and high - low > 0.6
    tens = patient_intervals(patients, lambda weights: {"tens": 10 * share_right(weights)["right"]})["tens"]
    assert sum(tens) == pytest.approx(10.0) and tens[0] < 10 * low  # of an unknown range


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_share_without_an_error_is_not_certain(right):
    patients = np.repeat(np.arange(10), 3)
    low, high = patient_intervals(patients, lambda w: {"recall": np.full(len(w), right)}, {"recall": 4.0})["recall"]
    assert (high if right else low) == right and high - low == pytest.approx(1 - 0.025**0.25)


@pytest.mark.parametrize("n_patients", [1, 4])
def test_too_few_patients_have_no_interval(n_patients):
    table = cycles(n_patients=n_patients)
    assert set(patient_intervals(table, statistics_of(read_predictions(table, **TWO))).values()) == {None}


def test_a_finding_of_one_patient_has_no_interval():
    table = cycles(n_patients=8)
    table["wheeze"] = (table.patient_id == "p0").astype(int)
    bounds = evaluate_predictions(table, **TWO)["intervals"]
    assert bounds["wheeze.roc_auc"] is None and bounds["crackle.roc_auc"] is not None


def test_specificity_rests_on_the_patients_of_normal_cycles_and_sensitivity_on_those_of_abnormal_ones():
    table = cycles(n_patients=8, per_patient=40)
    names = ["Normal", "Abnormal", "Poor Quality"]
    for rare, kept in (("Sp", "Se"), ("Se", "Sp")):
        own = table.patient_id == "p0"
        flags = (~own if rare == "Sp" else own).astype(int)
        changed = table.assign(crackle=flags, wheeze=0)
        bounds = evaluate_predictions(changed, **TWO)["intervals"]
        for family in ("icbhi", "any_abnormal"):
            assert bounds[f"{family}.{rare}"] is bounds[f"{family}.Score"] is None and bounds[f"{family}.{kept}"]
        assert bounds[f"sprsound.{rare.upper()}"] is None and bounds[f"sprsound.{kept.upper()}"]
    recordings = table.assign(label=[names[k % 2 if k < 40 else 2 * (k % 2)] for k in range(len(table))])
    recordings = recordings.assign(**{f"logit_{name}": table.logit_crackle for name in names})
    read = read_predictions(recordings, problem_type="single_label", label_names=names)
    numbers = effective_numbers(read)
    assert numbers["sprsound.SE"] == 1 and numbers["sprsound.SP"] == pytest.approx(8)  # Poor Quality is in neither


def test_effective_patients():
    codes = np.repeat(np.arange(4), 10)
    assert effective_patients(codes, np.ones(40)) == pytest.approx(4)
    assert effective_patients(codes, codes == 2) == pytest.approx(1) and effective_patients(codes, codes > 9) == 0
    assert effective_patients(np.array([0] * 9 + [1]), np.ones(10)) == pytest.approx(100 / 82)
    numbers = effective_numbers(read_predictions(cycles(n_patients=9), **TWO))
    assert numbers["roc_auc_macro"] == min(numbers["crackle"], numbers["wheeze"]) and numbers["icbhi"] <= 9


def test_they_are_shown_and_few_are_a_caution():
    evaluation = evaluate_predictions(cycles(n_patients=30), **TWO)
    text, number = format_summary(evaluation), evaluation["effective_patients"]["crackle"]
    assert f"effective patients: crackle {number:.1f}" in text and "jackknife" in text
    assert effective_note({"crackle": 5.0}) is None
    assert "wheeze (4.9)" in effective_note({"crackle": 5.0, "wheeze": 4.9})


def test_simulated_studies_are_covered():
    """AUROCs of studies whose patients differ in how often they have the finding and in how loud it is."""
    draw, truth, studies, held = np.random.default_rng(0), stats.norm.cdf(1.5 / np.sqrt(3)), 150, 0
    patients = np.repeat(np.arange(30), 20)
    for _ in range(studies):
        flags = draw.random(600) < draw.beta(0.3, 1.2, 30)[patients]
        scores = 1.5 * flags + draw.normal(0, np.sqrt(0.5), 30)[patients] + draw.normal(size=600)
        table = cycles(n_patients=30, per_patient=20).assign(patient_id=patients.astype(str))
        table = table.assign(crackle=flags.astype(int), logit_crackle=scores)
        predictions = read_predictions(table, problem_type="multi_label", label_names=["crackle"])
        bounds = patient_intervals(table, statistics_of(predictions), effective_numbers(predictions))
        low, high = bounds["crackle.roc_auc"]
        held += low <= truth <= high
    assert 0.91 <= held / studies <= 0.99


def test_few_patients_are_told():
    assert interval_note(1).startswith("1 patient:") and interval_note(2).startswith("2 patients:")
    assert "rough" in interval_note(5) and "rough" in interval_note(19) and interval_note(20) is None
    assert "of differences are rough" in interval_note(39, differences=True)
    assert interval_note(40, differences=True) is None


def test_rows_without_patient_are_clustered_by_recording():
    table = cycles(n_patients=3, per_patient=4)
    table.loc[table.patient_id == "p1", "patient_id"] = None
    codes, n = patient_codes(table)
    assert n == 4  # p0, p2 and the two recordings of the unknown one
    assert patient_codes(table.drop(columns="patient_id"))[1] == 6
    assert len(set(codes[table.patient_id == "p0"])) == 1
