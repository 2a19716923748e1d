"""What a score owes to length, level and bandwidth: measured on sounds of which they are known."""

import numpy as np
import pytest

from laennec.audio.facts import bandwidth_hz, level_db
from laennec.corpora import load_corpus
from laennec.evaluation.baselines import middle_segments, segment_length_s


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


def test_stretches_are_of_one_length_about_the_middle_and_within_the_recording(tmp_path):
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
