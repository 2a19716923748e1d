"""The comparison of losses in nested cross-validation, and which trainings of it are left."""

import numpy as np
import pytest
from benchmarks.fine_tuned_losses import FOLDS, SEEDS, TRIALS, Cell
from benchmarks.head_losses import MARGIN, compare, left_out, rarest

from benchmarks import fine_tuned_losses


def test_left_out_values_are_those_of_the_other_patients():
    truth = np.array([[0, 0], [1, 1], [0, 1], [1, 0], [1, 1], [0, 0]])
    logits = np.array([[0.1, 0.3], [0.9, 0.2], [0.5, 0.8], [0.4, 0.1], [0.7, 0.9], [0.2, 0.4]])
    patients = np.array(["b", "b", "a", "a", "c", "c"])
    # crackle: of 9 pairs one is in the wrong order, wheeze: of 9 pairs two
    assert np.allclose(
        left_out(truth, logits, patients), [(8 / 9 + 7 / 9) / 2, (1 + 2 / 4) / 2, (3 / 4 + 1) / 2, 3 / 4]
    )


def test_a_constant_gain_has_an_interval_without_width_over_patients():
    base = [np.full((2, 6), 0.9) for _ in range(3)]
    found = compare([one + 0.005 for one in base], base, 10.0)
    assert np.allclose([found["difference"], *found["interval"]], 0.005)
    assert found["folds ahead"] == 3 and found["p"] == found["smallest p"] == 2 / 8 and found["within margin"]


def test_the_interval_covers_seeds_and_few_patients():
    draw = np.random.default_rng(0)
    base = [np.full((5, 11), 0.9) for _ in range(5)]
    ours = [one + draw.normal(0, 0.002, (1, 11)) for one in base]
    narrow = compare(ours, base, 50.0)["interval"]
    seeds = draw.normal(0, 0.01, (5, 1))
    assert np.ptp(compare(ours, base, 4.0)["interval"]) > np.ptp(narrow)
    wide = compare([one + seeds - seeds.mean() for one in ours], base, 50.0)
    assert np.ptp(wide["interval"]) > 1.5 * np.ptp(narrow)
    assert wide["within margin"] == (wide["interval"][0] > -MARGIN and wide["interval"][1] < MARGIN)


def test_the_rarest_finding_counts_patients_by_their_events():
    truth = np.array([[1, 1], [1, 1], [1, 0], [0, 1], [0, 1]])
    assert rarest(truth, np.array(["a", "a", "b", "c", "d"])) == pytest.approx(3**2 / (2**2 + 1))


def test_the_search_comes_first_and_its_choice_gets_the_other_seeds():
    done = {Cell(loss, trial, 0, 0): {"validation": 0.9 + 0.01 * (trial == 2)} for loss in TRIALS for trial in range(3)}
    del done[Cell("ADD", 1, 0, 0)]
    left = list(fine_tuned_losses.missing(done))
    searched = 3 * len(TRIALS) * FOLDS - len(done)
    assert all(cell.seed == 0 for cell in left[:searched]) and Cell("ADD", 1, 0, 0) in left
    assert left[searched:] == [Cell(loss, 2, 0, seed) for seed in range(1, SEEDS) for loss in ("BCE", "SupCon")]
