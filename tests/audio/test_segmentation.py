"""Breath cycles are found where they were made, whatever the level and the length, and cover every recording."""

import io
import itertools

import numpy as np
import pytest
import soundfile

from laennec.audio.cycles import read_annotation
from laennec.audio.recording import DecodeError
from laennec.audio.segmentation import BreathSegmentation, breath_cycles


def breaths(starts, duration_s, rate=4000, level=0.1, expiration=0.35):
    """Noise that swells at each start, fades into a softer expiration and ends in a pause."""
    rng = np.random.default_rng(1)
    time = np.arange(int(duration_s * rate)) / rate
    loud = np.full(len(time), 0.02)
    for start, end in zip(starts, [*starts[1:], duration_s], strict=True):
        phase = (time - start) / (end - start)
        loud += np.where((phase >= 0) & (phase < 0.4), np.sin(np.pi * np.clip(phase, 0, 0.4) / 0.4), 0)
        late = np.clip((phase - 0.4) / 0.35, 0, 1)
        loud += expiration * np.where((phase >= 0.4) & (phase < 0.75), np.sin(np.pi * late), 0)
    return (level * loud * rng.standard_normal(len(time))).astype(np.float32)


def as_file(sound, rate=4000):
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize("level", [0.5, 0.001])
@pytest.mark.parametrize("period_s", [2.0, 2.8, 3.6])
def test_even_breaths_are_found(period_s, level):
    starts = [0.7 + period_s * i for i in range(int(30 / period_s))]
    spans = breath_cycles(as_file(breaths(starts, starts[-1] + period_s, level=level)))
    found = np.array([start for start, _ in spans[1:]])
    for start in starts[1:-1]:
        assert np.abs(found - start).min() < 0.3
    assert len(spans) <= len(starts) + 2


def test_the_pace_may_change_over_a_long_recording():
    starts = [0.5]
    while starts[-1] < 240:
        starts.append(starts[-1] + (2.2 if starts[-1] < 120 else 3.4))
    found = np.array([start for start, _ in breath_cycles(as_file(breaths(starts, starts[-1] + 3)))])
    errors = np.array([np.abs(found - start).min() for start in starts[1:-1]])
    assert np.mean(errors < 0.3) > 0.9 and abs(len(found) - len(starts)) <= 8


@pytest.mark.parametrize("seconds", [0.001, 0.3, 1.9, 2.1, 7.3, 61.0])
@pytest.mark.parametrize("kind", ["noise", "clicks", "mostly digital silence"])
def test_every_recording_is_covered_from_end_to_end(seconds, kind):
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(max(int(8000 * seconds), 2)).astype(np.float32) * 0.1
    if kind != "noise":
        sound[np.arange(len(sound)) % 9000 > (50 if kind == "clicks" else 4000)] = 0
    settings = BreathSegmentation()
    spans = breath_cycles(as_file(sound, 8000), settings)
    assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(len(sound) / 8000, abs=1e-3)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    lengths = [end - start for start, end in spans]
    if len(spans) > 1:
        assert (
            min(lengths) >= settings.shortest_s / 2 - 0.021
            and min(lengths[1:-1], default=9) >= 0.979
            and max(lengths) <= settings.longest_s + settings.shortest_s
        )


def test_real_breaths_are_found_better_than_by_the_clock(shared_data):
    """A few real recordings; all of them are `laennec bench breathing`."""
    folder = shared_data / "icbhi2017_subset"
    ours, clock = [], []
    for name in (
        "105_1b1_Tc_sc_Meditron",
        "121_1p1_Tc_sc_Meditron",
        "201_1b1_Al_sc_Meditron",
        "226_1b1_Al_sc_Meditron",
    ):
        truth = np.array([cycle.start_s for cycle in read_annotation(folder / f"{name}.txt")][1:])
        spans = breath_cycles(folder / f"{name}.flac")
        found = np.array([start for start, _ in spans[1:]])
        ours += list(np.abs(truth[:, None] - found).min(1))
        fixed = np.arange(0, spans[-1][1], 2.5)
        clock += list(np.abs(truth[:, None] - fixed).min(1))
    assert np.median(ours) < 0.6 * np.median(clock)


@pytest.mark.parametrize(
    "values",
    [{"low_hz": 1300}, {"low_hz": -1}, {"smooth_s": 0}, {"shortest_s": 9}, {"longest_s": 40}, {"usual_s": float("nan")},
     {"low_hz": 2500, "high_hz": 3000}, {"regularity": float("inf")}],
)  # fmt: skip
def test_parameters_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        BreathSegmentation(**values)


def test_a_bad_recording_is_refused_as_everywhere():
    with pytest.raises(DecodeError, match="silent"):
        breath_cycles(as_file(np.zeros(9000, np.float32)))
