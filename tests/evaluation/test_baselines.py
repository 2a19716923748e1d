"""Shortcut baselines and the length audit, on sounds and tables with known results."""

import numpy as np
import pytest
from evaluation_tables import TWO, cycles

from laennec.audio.recording import bandwidth_hz, level_db
from laennec.corpora import load_corpus
from laennec.evaluation.baselines import length_groups, middle_segments, segment_length_s
from laennec.evaluation.predictions import read_predictions


def test_level_is_the_root_mean_square():
    square = np.where(np.arange(8000) % 20 < 10, 0.5, -0.5).astype(np.float32)
    assert level_db(square) == pytest.approx(20 * np.log10(0.5), abs=1e-4)
    assert level_db(square / 10) == pytest.approx(level_db(square) - 20, abs=1e-4)
    assert level_db(np.zeros(100, np.float32)) == -120 and level_db(np.zeros(0, np.float32)) == -120


@pytest.mark.parametrize("hz", [200.0, 1900.0, 3500.0])
def test_bandwidth_is_where_a_tone_is(hz):
    tone = np.sin(2 * np.pi * hz * np.arange(16000) / 16000).astype(np.float32)
    assert bandwidth_hz(tone, 16000) == pytest.approx(hz, abs=30)


def test_bandwidth_of_filtered_noise_and_of_nothing():
    noise = np.random.default_rng(0).standard_normal(64000).astype(np.float32)
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(64000, 1 / 16000) > 2000] = 0
    narrow = np.fft.irfft(spectrum).astype(np.float32)
    assert bandwidth_hz(narrow, 16000) == pytest.approx(1980, abs=40)
    assert bandwidth_hz(noise, 16000) == pytest.approx(7920, abs=40)
    assert bandwidth_hz(np.zeros(5000, np.float32), 16000) == 0
    assert bandwidth_hz(np.ones(3, np.float32), 16000) >= 0


def test_segments_are_of_one_length_around_the_middle_and_within_the_recording(tmp_path):
    table = load_corpus("synthetic", tmp_path / "corpus", protocol="none", cache_dir=tmp_path / "cache")["all"]
    seconds = segment_length_s(table)
    lengths = np.array(table["end_s"]) - np.array(table["start_s"])
    assert (lengths >= seconds - 1e-3).mean() == pytest.approx(0.95, abs=0.03)
    moved = middle_segments(table, seconds)
    assert moved.features == table.features and list(moved["cycle_id"]) == list(table["cycle_id"])
    start, end = np.array(moved["start_s"]), np.array(moved["end_s"])
    assert end - start == pytest.approx(np.full(len(end), seconds), abs=1e-5)
    inside = lengths >= seconds
    middle = (np.array(table["start_s"]) + np.array(table["end_s"])) / 2
    assert ((start + end) / 2)[inside] == pytest.approx(middle[inside], abs=1e-4)
    assert (start >= 0).all()
    last = {}
    for name, stop in zip(table["recording_id"], table["end_s"], strict=True):
        last[name] = max(last.get(name, 0), stop)
    assert all(stop <= last[name] + 1e-5 for name, stop in zip(moved["recording_id"], end, strict=True))


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
    found = length_groups(answers)
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
    found = length_groups(read_predictions(table.assign(logit_crackle=length), **TWO))
    assert found["overall"]["values"]["crackle"] > 0.65
    assert abs(found["within"]["values"]["crackle"] - 0.5) < 0.08
    low, high = found["within"]["intervals"]["crackle"]
    assert low < 0.5 < high


def test_equal_lengths_stay_together_and_unknown_ones_are_left_out():
    table = cycles()
    half = np.arange(len(table)) % 2
    found = length_groups(read_predictions(table.assign(start_s=0.0, end_s=1.0 + half), **TWO))
    assert [(g["low_s"], g["high_s"], g["cycles"]) for g in found["groups"]] == [(1.0, 1.0, 140), (2.0, 2.0, 140)]
    some = table.assign(end_s=table["end_s"].where(half == 1))
    assert sum(g["cycles"] for g in length_groups(read_predictions(some, **TWO))["groups"]) == 140


@pytest.mark.parametrize("change", [{"end_s": 3.0}, {"end_s": np.nan}])
def test_one_length_or_none_is_no_grouping(change):
    assert length_groups(read_predictions(cycles().assign(**change), **TWO)) is None
    assert length_groups(read_predictions(cycles().drop(columns="start_s"), **TWO)) is None
