"""Detection of breath cycles in recordings without annotation.

Decisions: a convenience, not a measurement of breathing. All beginnings are chosen jointly by dynamic programming (as
beats in Ellis 2007, Beat Tracking by Dynamic Programming): a beginning scores the rise of loudness around it and the
quiet before it, and an interval costs the square of its logarithmic distance from the local period, which comes from
the autocorrelation of the loudness. Every recording is covered from end to end. The defaults were chosen on every other
patient of real annotations; `python -m benchmarks breathing` evaluates them on the others.
"""

import math
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from laennec.audio.cycles import Span
from laennec.audio.recording import AudioSource, ButterworthFilter
from laennec.audio.streaming import open_recording

_RATE_HZ, _FRAME_SAMPLES = 4000, 80
_FRAMES_PER_S = _RATE_HZ / _FRAME_SAMPLES
_RANGE_DB = 50.0  # levels are clipped this far below the loud parts, digital silence too
_LOCAL_S = 60.0  # over which loudness and pace may change

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class BreathSegmentation:
    """Settings of breath cycle detection."""

    low_hz: float = 200.0  # lower edge of the band whose loudness is used; heart sounds lie below
    high_hz: float = 1200.0  # its upper edge
    smooth_s: float = 0.08  # standard deviation of the Gaussian that smooths the loudness, in seconds
    rise_s: float = 0.4  # width on either side of a beginning over which the rise of loudness is measured, in seconds
    quiet_weight: float = 0.2  # weight of the quiet before a beginning relative to the rise
    # cost of an interval of e times (or 1/e of) the period, in standard deviations of the loudness
    regularity: float = 2.0
    shortest_s: float = 1.0  # shortest cycle in seconds
    longest_s: float = 8.0  # longest cycle in seconds
    usual_s: float = 2.8  # the most likely period where the loudness has little structure
    usual_spread: float = 0.16  # standard deviation of the logarithm of periods around it

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not math.isfinite(value) or value < 0 or (value == 0 and one.name != "quiet_weight"):
                raise ValueError(f"{one.name} is {value}; it must be a positive number")
        if not self.low_hz < self.high_hz:
            raise ValueError(f"low_hz {self.low_hz:g} must lie below high_hz {self.high_hz:g}")
        if not 0.5 <= self.shortest_s < self.longest_s <= _LOCAL_S / 2:
            raise ValueError(
                f"shortest_s {self.shortest_s:g} and longest_s {self.longest_s:g} must rise, from 0.5 to "
                f"{_LOCAL_S / 2:g} s"
            )
        if self.low_hz >= _RATE_HZ / 2:
            raise ValueError(f"low_hz {self.low_hz:g} must lie below {_RATE_HZ // 2} Hz")


def breath_cycles(path: AudioSource, settings: BreathSegmentation | None = None) -> list[Span]:
    """Consecutive breath cycles (start_s, end_s) that cover a recording, which is read in blocks.

    A partial breath at either edge is its own cycle if it lasts half of `shortest_s`, else part of its neighbour.
    """
    settings = settings or BreathSegmentation()
    band = ButterworthFilter("bandpass", (settings.low_hz, settings.high_hz))
    powers: list[FloatArray] = []
    waiting = np.zeros(0, np.float32)
    with open_recording(path, _RATE_HZ, filter=band) as stream:
        for block in stream.blocks():
            waiting = np.concatenate([waiting, block])
            frames = len(waiting) // _FRAME_SAMPLES
            whole = waiting[: frames * _FRAME_SAMPLES].reshape(frames, _FRAME_SAMPLES).astype(np.float64)
            powers.append((whole**2).mean(1))
            waiting = waiting[frames * _FRAME_SAMPLES :]
    return _covering(breath_starts(np.concatenate(powers), settings), stream.duration_s, settings.shortest_s / 2)


def breath_starts(power: FloatArray, settings: BreathSegmentation) -> list[float]:
    """Beginnings of breaths in rising seconds, from the mean square of each frame of 20 ms (frames,)."""
    if len(power) < 2 * settings.shortest_s * _FRAMES_PER_S:
        return []
    loudness = _loudness(power, settings.smooth_s)
    periods = _local_periods(loudness, settings)
    before, after = _around(loudness, settings.rise_s)
    score = after - before - settings.quiet_weight * before
    return [frame / _FRAMES_PER_S for frame in _best_chain(score, periods, settings)]


def _loudness(power: FloatArray, smooth_s: float) -> FloatArray:
    """Smoothed level in standard deviations of its surroundings, (frames,)."""
    from scipy.ndimage import gaussian_filter1d, uniform_filter1d

    level = 10 * np.log10(power + 1e-20)
    level = np.maximum(level, np.percentile(level, 95) - _RANGE_DB)
    level = gaussian_filter1d(level, smooth_s * _FRAMES_PER_S)
    around = min(int(2 * _LOCAL_S * _FRAMES_PER_S), 2 * len(level))
    centred = level - uniform_filter1d(level, around, mode="reflect")
    spread = np.sqrt(np.maximum(uniform_filter1d(centred**2, around, mode="reflect"), 0))
    return np.asarray(centred / np.maximum(spread, 1e-6))


def _around(loudness: FloatArray, reach_s: float) -> tuple[FloatArray, FloatArray]:
    """Mean loudness over `reach_s` before and after each frame, over less at the edges."""
    reach = max(int(reach_s * _FRAMES_PER_S), 1)
    total = np.concatenate([[0.0], np.cumsum(loudness)])
    frame = np.arange(len(loudness))
    first, last = np.maximum(frame - reach, 0), np.minimum(frame + reach, len(loudness))
    before = (total[frame] - total[first]) / np.maximum(frame - first, 1)
    return before, (total[last] - total[frame]) / np.maximum(last - frame, 1)


def _local_periods(loudness: FloatArray, settings: BreathSegmentation) -> FloatArray:
    """The period around each frame in seconds, (frames,)."""
    local = int(_LOCAL_S * _FRAMES_PER_S)
    if len(loudness) <= 1.5 * local:
        return np.full(len(loudness), _period(loudness, settings))
    middles = np.arange(local // 2, len(loudness) - local // 2 + 1, local // 2)
    found = [math.log(_period(loudness[m - local // 2 : m + local // 2], settings)) for m in middles]
    return np.exp(np.interp(np.arange(len(loudness)), middles, found))


def _period(loudness: FloatArray, settings: BreathSegmentation) -> float:
    """The lag of the largest autocorrelation of the loudness, weighted by a prior over periods."""
    centred = loudness - loudness.mean()
    size = len(centred)
    longest = min(int(settings.longest_s * _FRAMES_PER_S) + 1, size - 2)
    spectrum = np.abs(np.fft.rfft(centred, 2 * size)) ** 2
    alike = np.fft.irfft(spectrum)[: longest + 1] / (size - np.arange(longest + 1))
    lags = np.arange(1, longest + 1) / _FRAMES_PER_S
    usual = np.exp(-0.5 * (np.log(lags / settings.usual_s) / settings.usual_spread) ** 2)
    weighed = np.where(lags >= settings.shortest_s, alike[1:] * usual, -np.inf)
    inner = 1 + np.flatnonzero((weighed[1:-1] >= weighed[:-2]) & (weighed[1:-1] >= weighed[2:]))
    if not len(inner):
        return min(max(settings.usual_s, settings.shortest_s), settings.longest_s)
    return float(lags[inner[weighed[inner].argmax()]])


def _best_chain(score: FloatArray, periods: FloatArray, settings: BreathSegmentation) -> list[int]:
    """The frames of the sequence of beginnings with the largest total score."""
    frames = len(score)
    shortest = max(int(settings.shortest_s * _FRAMES_PER_S), 1)
    longest = int(settings.longest_s * _FRAMES_PER_S)
    # longest first, as the frames lie in memory
    logs = np.log(np.arange(longest, shortest - 1, -1) / _FRAMES_PER_S)
    centres = np.round(np.log(periods), 2)
    costs = {centre: settings.regularity * (logs - centre) ** 2 for centre in np.unique(centres).tolist()}
    costs_of = [costs[centre] for centre in centres.tolist()]
    anew = (1.2 * periods * _FRAMES_PER_S).tolist()
    best = np.empty(frames)
    before = np.full(frames, -1)
    for frame in range(frames):
        value = 0.0
        if frame >= shortest:
            first = max(frame - longest, 0)
            chains = best[first : frame - shortest + 1] - costs_of[frame][first - (frame - longest) :]
            nearest = int(chains.argmax())
            # a new sequence may begin only where no earlier beginning is within reach
            if chains[nearest] > 0 or frame > anew[frame]:
                value, before[frame] = float(chains[nearest]), first + nearest
        best[frame] = value + score[frame]
    # the last beginning lies within a period of the end
    first = max(frames - int(periods[-1] * _FRAMES_PER_S), 0)
    frame = first + int(best[first:].argmax())
    chain = []
    while frame >= 0:
        chain.append(frame)
        frame = int(before[frame])
    return chain[::-1]


def _covering(starts: list[float], duration_s: float, least_s: float) -> list[Span]:
    """Cycles from the beginning to the end of a recording."""
    inner = [start for start in starts if start >= least_s and duration_s - start >= least_s]
    return list(pairwise([0.0, *inner, duration_s]))
