import numpy as np
import pytest
from evaluation_tables import cycles

from laennec.evaluation.baselines import length_groups
from laennec.evaluation.predictions import read_predictions

TWO = {"problem_type": "multi_label", "label_names": ["crackle", "wheeze"]}


def table_of(n_patients=14):
    """Crackles last longer, but not so much that no length has both."""
    table = cycles(n_patients)
    return table.assign(end_s=1 + 2 * np.random.default_rng(7).random(len(table)) + 0.7 * table["crackle"])


def pairs_right(scores, truth):
    """Rightly ranked (positive, negative) pairs, ties half, and how many pairs there are: loops."""
    right = total = 0.0
    for s, y in zip(scores, truth, strict=True):
        for other, z in zip(scores, truth, strict=True):
            if y == 1 and z == 0:
                total += 1
                right += 1.0 if s > other else 0.5 if s == other else 0.0
    return right, total


def test_groups_and_within_equal_naive_loops():
    table = table_of()
    answers = read_predictions(table, **TWO)
    found = length_groups(answers, n_draws=30)
    length = (table["end_s"] - table["start_s"]).to_numpy()
    assert len(found["groups"]) == 10 and sum(group["cycles"] for group in found["groups"]) == len(table)
    sums = np.zeros(2)
    for group in found["groups"]:
        rows = (length >= group["low_s"]) & (length <= group["high_s"])
        assert rows.sum() == group["cycles"] == 28
        right, total = pairs_right(answers.logits[rows, 0], answers.truth[rows, 0])
        assert group["positives"]["crackle"] == answers.truth[rows, 0].sum()
        assert group["patients"] == table[rows]["patient_id"].nunique()
        if total:
            assert group["values"]["crackle"] == pytest.approx(right / total)
        else:
            assert group["values"]["crackle"] is None
        sums += (right, total)
    assert found["within"]["values"]["crackle"] == pytest.approx(sums[0] / sums[1])
    low, high = found["within"]["intervals"]["crackle"]
    assert low < found["within"]["values"]["crackle"] < high


def test_a_model_that_measures_length_ranks_well_overall_and_hardly_within():
    table = table_of(n_patients=40)
    length = table["end_s"] - table["start_s"]
    found = length_groups(read_predictions(table.assign(logit_crackle=length), **TWO), n_draws=0)
    assert found["overall"]["values"]["crackle"] > 0.65
    assert abs(found["within"]["values"]["crackle"] - 0.5) < 0.08
    assert found["within"]["intervals"]["crackle"] is None


def test_equal_lengths_stay_together_and_unknown_ones_are_left_out():
    table = cycles()
    half = np.arange(len(table)) % 2
    found = length_groups(read_predictions(table.assign(start_s=0.0, end_s=1.0 + half), **TWO), n_draws=0)
    assert [(g["low_s"], g["high_s"], g["cycles"]) for g in found["groups"]] == [(1.0, 1.0, 140), (2.0, 2.0, 140)]
    some = table.assign(end_s=table["end_s"].where(half == 1))
    assert sum(g["cycles"] for g in length_groups(read_predictions(some, **TWO), n_draws=0)["groups"]) == 140


@pytest.mark.parametrize("change", [{"end_s": 3.0}, {"end_s": np.nan}])
def test_one_length_or_none_is_no_grouping(change):
    assert length_groups(read_predictions(cycles().assign(**change), **TWO)) is None
    assert length_groups(read_predictions(cycles().drop(columns="start_s"), **TWO)) is None
