"""Shapes of a recording: worked numbers, and what a viewer relies on."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from laennec.audio.cycles import sliding_windows
from laennec.inference import waveform_plot as sketch


def test_the_envelope_touches_the_edges_where_the_sound_does():
    sound = np.zeros(10_000, np.float32)
    sound[2500], sound[7500] = 0.2, -0.4
    points = [tuple(map(float, p.split(","))) for p in sketch.envelope_path(sound, 0.4)[1:-1].split("L")]
    assert min(y for _, y in points) == 25.0 and max(y for _, y in points) == 100.0
    assert [x for x, y in points if y == 25.0] == [pytest.approx(250, abs=1)]
    assert [x for x, y in points if y == 100.0] == [pytest.approx(750, abs=1)]
    clipped = sketch.envelope_path(sound, 0.1)
    assert all(0 <= float(p.split(",")[1]) <= 100 for p in clipped[1:-1].split("L"))
    assert sketch.envelope_path(np.array([0.1], np.float32), 0.1).count("L") == 1  # a recording of one sample


@pytest.mark.parametrize("rate", [4000, 8000, 44100])
def test_a_tone_is_at_its_frequency_and_its_time(rate):
    t = np.arange(4 * rate) / rate
    sound = (0.1 * np.sin(2 * np.pi * 700 * t) * (t >= 1) * (t < 2)).astype(np.float32)
    levels, top_hz = sketch.spectrogram_levels(sound, rate)
    assert top_hz == 2000 and levels.shape[1] <= sketch.COLUMNS
    row, _ = np.unravel_index(levels.argmax(), levels.shape)
    assert row / (levels.shape[0] - 1) * top_hz == pytest.approx(700, abs=16)
    loud = np.flatnonzero(levels[row] > levels.max() - 20) / levels.shape[1] * 4
    assert 0.9 < loud.min() < 1.1 and 1.9 < loud.max() < 2.1


def test_a_crackle_of_a_few_milliseconds_is_seen_in_minutes_of_sound():
    rng = np.random.default_rng(0)
    sound = (0.001 * rng.standard_normal(4000 * 240)).astype(np.float32)
    at = 4000 * 100
    sound[at : at + 20] += 0.1 * np.sin(np.arange(20))
    levels, _ = sketch.spectrogram_levels(sound, 4000)
    assert levels.shape[1] == sketch.COLUMNS
    assert abs(levels.max(0).argmax() / levels.shape[1] * 240 - 100) < 0.5


def test_a_short_or_slow_recording_is_drawn_too():
    for samples, rate in ((1, 8000), (30, 1000), (500, 1500)):
        levels, top_hz = sketch.spectrogram_levels(np.full(samples, 0.1, np.float32), rate)
        assert np.isfinite(levels).all() and top_hz == min(rate / 2, 2000)
        Image.open(io.BytesIO(sketch.spectrogram_png(levels))).load()


def test_the_picture_has_low_frequencies_at_its_foot_and_bright_means_loud():
    levels = np.full((3, 2), -100.0)
    levels[0, 1] = 0.0
    picture = np.asarray(Image.open(io.BytesIO(sketch.spectrogram_png(levels))).convert("RGB")).astype(int)
    assert picture[2, 1].tolist() == [253, 231, 37] and picture[0, 0].tolist() == [68, 1, 84]  # viridis' two ends


def test_a_knock_does_not_hide_the_breathing():
    rng = np.random.default_rng(0)
    breath = (0.01 * rng.standard_normal(40_000)).astype(np.float32)
    assert sketch.usual_peak(breath) == np.abs(breath).max()
    knocked = breath.copy()
    knocked[1000:1010] = 0.9
    assert sketch.usual_peak(knocked) < 0.3
    one = np.zeros(1000, np.float32)
    one[3] = 0.5
    assert sketch.usual_peak(one) == 0.5


def test_ticks_are_round_and_no_more_than_asked_for():
    assert sketch.nice_ticks(20, 7) == [0, 5, 10, 15, 20]
    assert sketch.nice_ticks(2, 5) == [0, 0.5, 1, 1.5, 2]
    assert sketch.nice_ticks(9.2, 7) == [0, 2, 4, 6, 8]
    assert sketch.nice_ticks(0, 5) == [0]
    for top in np.geomspace(0.01, 1e4, 97):
        for most in (5, 7):
            ticks = sketch.nice_ticks(float(top), most)
            assert len(ticks) <= most and ticks[-1] <= top * (1 + 1e-9) and len(ticks) >= 2


def test_windows_share_their_overlap_and_cycles_keep_their_place():
    assert sketch.cells([(0, 3), (1.5, 4.5), (3, 6)]) == [(0, 2.25), (2.25, 3.75), (3.75, 6)]
    assert sketch.cells([(4, 6), (0.5, 2)]) == [(4, 6), (0.5, 2)]
    assert sketch.cells([(0, 10), (2, 3)]) == [(0, 2.5), (2.5, 3)]
    rng = np.random.default_rng(1)
    for _ in range(200):
        starts = rng.uniform(0, 20, 8)
        spans = [(s, s + w) for s, w in zip(starts, rng.uniform(0, 8, 8), strict=True)]
        drawn = sorted(sketch.cells(spans))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(drawn))
        assert all(a <= b for a, b in drawn)


def test_what_overlaps_stands_in_rows_of_its_own():
    windows = sliding_windows(9.2, 3, 1.5)
    assert sketch.lanes(windows) == [0, 1, 0, 1, 0, 2]
    assert sketch.lanes([(0, 1), (1, 2), (2, 3)]) == [0, 0, 0]
    assert sketch.lanes([(0, 9)] * 6) == [0, 1, 2, 3, 3, 3]
