"""A recording drawn for a page: envelope, spectrogram, axes, where each answer stands.

Decisions: shapes know nothing of pixels (a page stretches them to its width and writes the text beside them), so one
drawing is readable on a phone and on a wall. The spectrogram ends at 2 kHz, where lung sounds end, and keeps the
loudest moment under each column, or a crackle would be averaged away in a long recording. Colours: viridis.
"""

import io
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from laennec.audio.recording import Waveform, resample

COLUMNS = 1000
DEPTH_DB = 60.0
TOP_HZ = 2000
_WINDOW_S, _HOP_S = 0.064, 0.008
_RUMBLE_HZ = 80
_KNOCK = 8.0  # a sample this many times as loud as nearly all others is a knock on the stethoscope


def usual_peak(waveform: Waveform) -> float:
    """An amplitude that shows the breathing: the peak, or where a knock is far louder than the rest, less.

    Args:
        waveform: Shape (samples,), not silent.
    """
    loud = np.abs(waveform)
    peak, common = float(loud.max()), float(np.quantile(loud, 0.98))
    return peak if common == 0 or peak <= _KNOCK * common else _KNOCK * common


def envelope_path(waveform: Waveform, limit: float, columns: int = COLUMNS) -> str:
    """An SVG path round the lowest and highest sample under each column, in a box of `columns` x 100.

    Args:
        waveform: Shape (samples,).
        limit: The amplitude at the upper and lower edge of the box.
        columns: Width of the box.
    """
    edges = np.linspace(0, len(waveform), min(columns, len(waveform)) + 1).astype(int)[:-1]
    high, low = (50 - 50 * np.clip(pick.reduceat(waveform, edges) / limit, -1, 1) for pick in (np.maximum, np.minimum))
    x = np.linspace(0, columns, len(edges))
    there = [f"{a:.0f},{b:.1f}" for a, b in zip(x, high, strict=True)]
    back = [f"{a:.0f},{b:.1f}" for a, b in zip(x[::-1], low[::-1], strict=True)]
    return f"M{'L'.join(there + back)}Z"


def spectrogram_levels(waveform: Waveform, rate: int, columns: int = COLUMNS) -> tuple[npt.NDArray[np.float64], float]:
    """Levels in dB, shape (frequencies, at most `columns`), and the frequency at the upper edge.

    0 dB is what one point in 500 exceeds, rumble aside, so that neither that nor a knock darkens the breathing.

    Args:
        waveform: Shape (samples,).
        rate: Its rate in Hz.
        columns: The most columns; where frames are more, a column is the loudest of its frames.
    """
    enough = round(2.5 * TOP_HZ)  # beyond twice the edge, where resampling fades out
    if rate > enough:
        waveform, rate = resample(waveform, rate, enough), enough
    window, hop = round(_WINDOW_S * rate), max(1, round(_HOP_S * rate))
    padded = np.pad(waveform, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(waveform) : hop]
    edges = np.linspace(0, len(frames), min(columns, len(frames)) + 1).astype(int)
    # column by column: the frames of minutes of sound would take more memory than the sound
    power = np.stack(
        [
            (np.abs(np.fft.rfft(frames[a:b] * np.hanning(window), axis=1)) ** 2).max(0)
            for a, b in itertools.pairwise(edges)
        ],
        axis=1,
    )
    top_hz = min(rate / 2, TOP_HZ)
    power = power[: math.floor(top_hz / (rate / window) + 1e-6) + 1]
    above = power[math.ceil(_RUMBLE_HZ / (rate / window)) :]
    reference = float(np.quantile(above, 0.998)) or float(power.max()) or 1.0
    return 10 * np.log10(np.maximum(power / reference, 1e-12)), top_hz


def spectrogram_png(levels: npt.NDArray[np.float64]) -> bytes:
    """Levels as a picture without text, low frequencies at the bottom, `DEPTH_DB` from the darkest to the brightest."""
    from matplotlib import colormaps
    from PIL import Image

    shades = np.clip((levels[::-1] + DEPTH_DB) / DEPTH_DB * 255, 0, 255).astype(np.uint8)
    picture = Image.fromarray(shades, "P")
    picture.putpalette((colormaps["viridis"](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def nice_ticks(top: float, most: int) -> list[float]:
    """Round numbers from 0 to at most `top`, no more than `most` of them."""
    if not top > 0:
        return [0.0]
    scale = 10.0 ** math.floor(math.log10(top / most))
    step = next(s * scale for s in (1, 2, 5, 10, 20, 50) if top / (s * scale) <= most - 1 + 1e-9)
    return [round(i * step, 10) for i in range(int(top / step + 1e-9) + 1)]


def cells(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each answer stands on the time axis: its span, overlaps shared out in their middle.

    Args:
        spans: (start_s, end_s), in any order.

    Returns:
        (start_s, end_s) in the order of `spans`; none overlaps its neighbour in time.
    """
    starts, ends = [s for s, _ in spans], [e for _, e in spans]
    order = sorted(range(len(spans)), key=lambda i: spans[i])
    for last, i in itertools.pairwise(order):
        if starts[i] < ends[last]:
            middle = (max(starts[i], starts[last]) + min(ends[last], ends[i])) / 2
            ends[last] = starts[i] = min(max(middle, starts[last]), ends[last])
        ends[i] = max(ends[i], starts[i])
    return list(zip(starts, ends, strict=True))


def lanes(spans: Sequence[tuple[float, float]], most: int = 4) -> list[int]:
    """A row for each span, so that what overlaps in time stands in rows of its own (the last row takes what is left).

    Args:
        spans: (start_s, end_s), in any order.
        most: The most rows.
    """
    free = [-math.inf] * most
    chosen = [0] * len(spans)
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        chosen[i] = next((row for row, end in enumerate(free) if end <= spans[i][0] + 1e-6), most - 1)
        free[chosen[i]] = max(free[chosen[i]], spans[i][1])
    return chosen
