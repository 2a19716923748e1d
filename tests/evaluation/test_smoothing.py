"""Smoothing: the rule by a naive loop, what it leaves unchanged, and how the strength is chosen."""

import json

import numpy as np
import pandas as pd
import pytest
from evaluation_tables import LABELS, TWO, cycles

from laennec.errors import InputError
from laennec.evaluation.calibration.smoothing import (
    choose_smoothing,
    compare_smoothing,
    format_smoothing,
    smooth_predictions,
)


@pytest.fixture(scope="module")
def table():
    """Cycles whose recording says more than the cycle alone: neighbours share their truth."""
    made = cycles(per_patient=12, skill=1.0)
    rng = np.random.default_rng(3)
    for name in LABELS:
        truth = made["recording_id"].map({r: int(rng.random() < 0.4) for r in sorted(set(made["recording_id"]))})
        made[name] = truth
        made[f"logit_{name}"] = 1.2 * (truth - 0.5) + rng.normal(size=len(made))
    return made.drop(columns="label")


def by_loop(frame, strength):
    """The definition, a cycle at a time."""
    logits = frame[[f"logit_{n}" for n in LABELS]].to_numpy(float)
    wanted, recordings = logits.copy(), list(frame["recording_id"])
    for row, recording in enumerate(recordings):
        same = [k for k, other in enumerate(recordings) if other == recording]
        for column in range(len(LABELS)):
            mean = sum(logits[k, column] for k in same) / len(same)
            wanted[row, column] = (1 - strength) * logits[row, column] + strength * mean
    return wanted


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.65, 1.0])
def test_it_is_the_naive_loop(table, strength):
    smoothed = smooth_predictions(table, LABELS, strength)
    np.testing.assert_allclose(smoothed[["logit_crackle", "logit_wheeze"]], by_loop(table, strength), atol=1e-12)
    others = [c for c in table if not c.startswith("logit_")]
    pd.testing.assert_frame_equal(smoothed[others], table[others])


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("neighbours", [1, 2, 50])
def test_over_neighbours_it_is_the_naive_loop_in_any_order_of_rows(table, strength, neighbours):
    table = table.assign(start_s=np.random.default_rng(0).permutation(len(table)) / 7.0)
    wanted = table[["logit_crackle", "logit_wheeze"]].to_numpy(float).copy()
    for row in range(len(table)):
        same = table[table["recording_id"] == table["recording_id"].iloc[row]].sort_values("start_s")
        place = list(same.index).index(table.index[row])
        around = same.iloc[max(place - neighbours, 0) : place + neighbours + 1]
        for column, name in enumerate(("logit_crackle", "logit_wheeze")):
            mean = sum(around[name]) / len(around)
            wanted[row, column] += strength * (mean - wanted[row, column])
    for order in (slice(None), np.random.default_rng(1).permutation(len(table))):
        made = smooth_predictions(table.iloc[order], LABELS, strength, neighbours)
        found = made[["logit_crackle", "logit_wheeze"]].to_numpy(float)
        np.testing.assert_allclose(found, wanted[order], atol=1e-12)
    if neighbours == 50:
        np.testing.assert_allclose(wanted, by_loop(table, strength), atol=1e-12)
    with pytest.raises(InputError, match="no column start_s"):
        smooth_predictions(table.drop(columns="start_s"), LABELS, strength, neighbours)


def test_strength_zero_is_the_table_to_the_bit(table):
    odd = table.assign(logit_crackle=np.float32(0.1) * table["logit_crackle"].astype("float32"))
    odd.loc[3, "logit_wheeze"] = -0.0
    same = smooth_predictions(odd, LABELS, 0)
    pd.testing.assert_frame_equal(same, odd, check_exact=True)
    assert same["logit_wheeze"].to_numpy().tobytes() == odd["logit_wheeze"].to_numpy().tobytes()
    assert same is not odd


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_rows_changes_no_bit(table, seed):
    """Also of logits so unlike in size that a plain sum would depend on its order."""
    wild = table.assign(logit_crackle=table["logit_crackle"] * 10.0 ** np.arange(-8, 8)[np.arange(len(table)) % 16])
    order = np.random.default_rng(seed).permutation(len(wild))
    there = smooth_predictions(wild, LABELS, 0.37)
    back = smooth_predictions(wild.iloc[order], LABELS, 0.37).sort_index()
    pd.testing.assert_frame_equal(there, back, check_exact=True)


def test_lone_cycles_and_cycles_of_no_known_recording_stay_as_they_are(table):
    lone = table.assign(recording_id=[f"r{k}" for k in range(len(table))])
    pd.testing.assert_frame_equal(smooth_predictions(lone, LABELS, 0.7), lone, check_exact=True)
    unknown = table.assign(recording_id=[None] * len(table))
    pd.testing.assert_frame_equal(smooth_predictions(unknown, LABELS, 0.7), unknown, check_exact=True)


def test_validation_chooses_the_strength_that_ranks_best(table):
    from sklearn.metrics import roc_auc_score

    validation = table.assign(split="validation")
    chosen = choose_smoothing(validation, **TWO)

    def area(strength):
        smoothed = smooth_predictions(table, LABELS, strength)
        return np.mean([roc_auc_score(table[n], smoothed[f"logit_{n}"]) for n in LABELS])

    areas = {strength: area(strength) for strength, _ in chosen["tried"]}
    assert chosen["strength"] == max(areas, key=areas.get) > 0.3
    assert chosen["value"] == pytest.approx(max(areas.values())) and chosen["without"] == pytest.approx(areas[0.0])
    assert chosen["chosen_on"] == {"split": "validation", "cycles": 168, "patients": 14, "recordings": 28}
    # where neighbours say nothing about a cycle, nothing is gained by listening to them
    rng = np.random.default_rng(0)
    unrelated = validation.assign(recording_id=rng.permutation(validation["recording_id"].to_numpy()))
    assert choose_smoothing(unrelated, **TWO)["strength"] <= 0.1
    assert choose_smoothing(validation.assign(crackle=0, wheeze=0), **TWO)["strength"] == 0


def test_a_test_table_is_refused(table):
    with pytest.raises(InputError, match="on validation, never on test"):
        choose_smoothing(table.assign(split="test_intra"), **TWO)


def test_the_difference_is_paired_over_patients(table):
    section = compare_smoothing(table, 0.5, **TWO)
    row = section["figures"]["crackle.roc_auc"]
    assert row["difference"]["value"] == pytest.approx(row["with"]["value"] - row["without"]["value"])
    low, high = row["difference"]["interval"]
    apart = row["with"]["interval"][1] - row["without"]["interval"][0]
    assert 0 < low <= row["difference"]["value"] <= high < apart
    nothing = compare_smoothing(table, 0.0, **TWO)
    assert all(f["difference"] == {"value": 0.0, "interval": [0.0, 0.0]} for f in nothing["figures"].values())
    assert json.loads(json.dumps(section)) == section
    text = format_smoothing(section)
    assert "recording-mean" in text and "0.5, as given" in text and "crackle AUROC" in text
    assert "nothing is smoothed" in format_smoothing(nothing)


def test_each_side_has_thresholds_of_its_own(table):
    decisions = [{"thresholds": {"crackle": at, "wheeze": at}} for at in (-9.0, 9.0)]
    figures = compare_smoothing(table, 0.5, **TWO, decisions=decisions)["figures"]
    assert figures["icbhi.Sp"]["without"]["value"] == 0 and figures["icbhi.Sp"]["with"]["value"] == 100


def test_what_cannot_be_smoothed_is_one_line(table):
    with pytest.raises(InputError, match="no column recording_id"):
        smooth_predictions(table.drop(columns="recording_id"), LABELS, 0.5)
    with pytest.raises(InputError, match="no column logit_wheeze"):
        smooth_predictions(table.drop(columns="logit_wheeze"), LABELS, 0.5)
