"""Draws of patients: equal to explicit resampling, and without an interval for few patients."""

import numpy as np
import pytest
from evaluation_tables import cycles

from laennec.evaluation import predictions_metrics
from laennec.evaluation.intervals import bootstrap_values, draw_patients, interval, interval_note, patient_codes
from laennec.evaluation.predictions import read_predictions, statistics_of

TWO = {"problem_type": "multi_label", "label_names": ["crackle", "wheeze"]}


def test_intervals_equal_explicit_resampling_with_the_same_draws():
    table = cycles(n_patients=7, per_patient=12)
    answers = read_predictions(table, **TWO)
    codes, n_patients = patient_codes(table)
    naive = []
    for patients in draw_patients(n_patients, 60, seed=3):
        rows = np.concatenate([np.flatnonzero(codes == p) for p in patients])
        naive.append(predictions_metrics(table.iloc[rows], **TWO)["values"])
    fast = bootstrap_values(table, statistics_of(answers), n_draws=60, seed=3)
    for name, values in fast.items():
        expected = [np.nan if draw[name] is None else draw[name] for draw in naive]
        assert values == pytest.approx(expected, nan_ok=True), name


def test_draws_are_a_function_of_the_seed():
    assert (draw_patients(9, 20, 1) == draw_patients(9, 20, 1)).all()
    assert (draw_patients(9, 20, 1) != draw_patients(9, 20, 2)).any()


def test_few_patients_are_told():
    assert interval_note(1).startswith("1 patient:") and interval_note(2).startswith("2 patients:")
    assert "rough" in interval_note(5) and "rough" in interval_note(19) and interval_note(20) is None
    drawn = np.linspace(0, 1, 41)
    assert interval(drawn, 4) is None and interval(drawn, 5) == pytest.approx((0.025, 0.975))


def test_a_statistic_undefined_in_many_draws_has_no_interval():
    values = np.r_[np.full(20, np.nan), np.linspace(0, 1, 80)]
    assert interval(values, 30) is None
    assert interval(np.r_[np.full(5, np.nan), np.linspace(0, 1, 95)], 30) == pytest.approx((0.025, 0.975))


def test_rows_without_patient_are_clustered_by_recording():
    table = cycles(n_patients=3, per_patient=4)
    table.loc[table.patient_id == "p1", "patient_id"] = None
    codes, n = patient_codes(table)
    assert n == 4  # p0, p2 and the two recordings of the unknown one
    assert patient_codes(table.drop(columns="patient_id"))[1] == 6
    assert len(set(codes[table.patient_id == "p0"])) == 1
