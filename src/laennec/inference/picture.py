"""Plot one recording and its predictions: spectrogram, probabilities, and where each label is present.

Decisions: the spectrogram shows the filtered and resampled sound that the model takes as input. Edges of cycles are
drawn only where there are few of them.
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from laennec.audio.spectrogram import RANGE_DB, Spectrogram
from laennec.errors import one_line
from laennec.evaluation.report.plots import HAIR, INK, QUIET, label_colour, save_picture
from laennec.inference.outputs import Timeline, stretches

_MOST_LINES, _MOST_DOTS, _MOST_POINTS = 80, 120, 1200
_MOST_LABELS = 6
_STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)


def write_picture(path: Path, timeline: Timeline, spectrogram: Spectrogram) -> Path:
    """Write the picture of one recording as PNG."""
    return save_picture(timeline_figure(timeline, spectrogram), path)


def timeline_figure(timeline: Timeline, spectrogram: Spectrogram, width_in: float = 12.0) -> Figure:
    """Plot spectrogram, probabilities and present labels over a common time axis."""
    labels = shown_labels(timeline)
    duration_s = timeline["duration_s"]
    figure = Figure(figsize=(width_in, 5.0 + 0.22 * len(labels)), dpi=160, layout="constrained", facecolor="white")
    heights = [3.0, 1.9, 0.28 * len(labels) + 0.1]
    sound, probabilities, bars = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    for axes in (sound, probabilities, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(QUIET)
        axes.tick_params(colors=QUIET, labelsize=9, labelcolor=INK)
    _draw_spectrogram(figure, sound, spectrogram, duration_s)
    _draw_probabilities(probabilities, timeline, labels)
    _draw_presence(bars, timeline, labels)
    _draw_cycles((sound, probabilities, bars), timeline)
    step = next((s for s in _STEPS_S if duration_s / s <= 1.2 * width_in), _STEPS_S[-1])
    ticks = np.arange(0, duration_s + 1e-9, step) if duration_s >= 1 else np.linspace(0, duration_s, 5)
    bars.set(xlim=(0, duration_s), xticks=ticks)
    bars.xaxis.set_major_formatter(FuncFormatter(lambda s, _: _clock(s, duration_s)))
    unit = "s" if duration_s < 60 else "min:s" if duration_s < 3600 else "h:min"
    bars.set_xlabel(f"time ({unit})", color=INK, fontsize=9.5)
    title = textwrap.fill(one_line(_title(timeline)), round(11 * width_in))
    sound.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold", pad=8, parse_math=False)
    figure.align_ylabels()
    return figure


def shown_labels(timeline: Timeline) -> list[str]:
    """The labels of a picture: all of them, or the six with the highest probabilities."""
    labels = list(timeline["labels"])
    if len(labels) <= _MOST_LABELS:
        return labels
    highest = {label: max(row[f"{label}_probability"] for row in timeline["timeline"]) for label in labels}
    kept = sorted(labels, key=lambda label: -highest[label])[:_MOST_LABELS]
    return [label for label in labels if label in kept]


def _draw_spectrogram(figure: Figure, axes: Any, spectrogram: Spectrogram, duration_s: float) -> None:
    level = spectrogram.level_db()
    top_khz = max(spectrogram.top_hz, 1.0) / 1000
    column_s = spectrogram.column_s or duration_s
    # the rest of the sound after the last whole column is drawn like that column
    level = np.pad(level, ((0, 0), (0, max(int(np.ceil(duration_s / column_s)) - level.shape[1], 0))), mode="edge")
    end_s = level.shape[1] * column_s
    picture = axes.imshow(
        level, origin="lower", aspect="auto", extent=(0, end_s, 0, top_khz), cmap="magma", vmin=-RANGE_DB, vmax=0,
        interpolation="nearest",
    )  # fmt: skip
    axes.set_ylabel("frequency (kHz)", color=INK, fontsize=9.5)
    axes.set_facecolor("black")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    bar = figure.colorbar(picture, ax=axes, pad=0.01, aspect=18)
    bar.set_label("dB re peak above 100 Hz", color=INK, fontsize=9)
    bar.ax.tick_params(colors=QUIET, labelsize=8.5, labelcolor=INK)
    bar.outline.set_visible(False)


def _draw_probabilities(axes: Any, timeline: Timeline, labels: list[str]) -> None:
    rows = timeline["timeline"]
    thresholds = timeline["decision"].get("thresholds") or {}
    windows = timeline["spans"].get("from") == "windows"
    for k, label in enumerate(labels):
        colour = label_colour(label, k)
        times = np.array([[row["start_s"], row["end_s"]] for row in rows], dtype=float).reshape(-1, 2)
        values = np.array([row[f"{label}_probability"] for row in rows], dtype=float)
        text = f"{label}, present above {thresholds[label]:.2f}" if label in thresholds else label
        if len(rows) > _MOST_POINTS:
            middles, low, high = _thinned(times.mean(1), values)
            axes.fill_between(middles, low, high, color=colour, alpha=0.25, lw=0)
            axes.plot(middles, high, color=colour, lw=0.9, label=text)
        elif windows and len(rows) > 1:
            dots = {"marker": "o", "ms": 3.2} if len(rows) <= _MOST_DOTS else {}
            axes.plot(times.mean(1), values, color=colour, lw=1.5, label=text, **dots)
        else:
            axes.hlines(values, times[:, 0], times[:, 1], color=colour, lw=2.4, label=text)
        if label in thresholds:
            axes.axhline(thresholds[label], color=colour, lw=1, ls=(0, (5, 3)), alpha=0.8)
    axes.set(ylim=(-0.03, 1.03), yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("probability", color=INK, fontsize=9.5)
    axes.grid(axis="y", color=HAIR, lw=0.6)
    axes.set_axisbelow(True)
    columns = min(len(labels), max(1, int(axes.figure.get_size_inches()[0] / 3)))
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, fontsize=9, frameon=False, borderaxespad=0.2,
        handlelength=1.6,
    )  # fmt: skip


def _draw_presence(axes: Any, timeline: Timeline, labels: list[str]) -> None:
    for k, label in enumerate(labels):
        pieces = [(s.start_s, s.end_s - s.start_s) for s in stretches(timeline) if s.label == label]
        axes.broken_barh(pieces, (k - 0.36, 0.72), color=label_colour(label, k), lw=0)
    axes.set(ylim=(len(labels) - 0.4, -0.6), yticks=range(len(labels)))
    axes.set_yticklabels(labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("present", color=INK, fontsize=9.5)


def _draw_cycles(panels: tuple[Any, ...], timeline: Timeline) -> None:
    if timeline["spans"].get("from") == "windows" or len(timeline["timeline"]) > _MOST_LINES:
        return
    edges = sorted({time for row in timeline["timeline"] for time in (row["start_s"], row["end_s"])})
    for place, axes in enumerate(panels):
        for edge in edges:
            look = {"color": HAIR, "zorder": 0.5} if place else {"color": "white", "alpha": 0.6}
            axes.axvline(edge, lw=0.8, **look)


def _thinned(times: Any, values: Any) -> tuple[Any, Any, Any]:
    """Mean time, minimum and maximum of groups of neighbouring points, as many groups as a picture shows."""
    parts = np.array_split(np.arange(len(times)), _MOST_POINTS)
    return (
        np.array([times[part].mean() for part in parts]),
        np.array([values[part].min() for part in parts]),
        np.array([values[part].max() for part in parts]),
    )


def _title(timeline: Timeline) -> str:
    """The title: file name, number and kind of spans, smoothing, threshold rule."""
    name = Path(timeline["recording"]).name
    name = name if len(name) <= 60 else f"{name[:28]}…{name[-28:]}"
    places, count = timeline["spans"], len(timeline["timeline"])
    if places.get("from") == "windows":
        what = f"{count:,} windows of {places['window_s']:g} s every {places['hop_s']:g} s"
    elif places.get("from") == "recording":
        what = "the recording as a whole"
    else:
        what = f"{count:,} {'annotated' if places.get('from') == 'annotation' else 'segmented'} cycles"
    smoothing = timeline.get("smoothing")
    smoothed = f", smoothed ({smoothing['rule']} {smoothing['strength']:g})" if smoothing else ""
    rule = timeline["decision"].get("rule", "")
    return f"{name}: {what}{smoothed}; threshold rule: {rule}" if rule else f"{name}: {what}{smoothed}"


def _clock(seconds: float, duration_s: float) -> str:
    """A time in the format that suits the length of the recording."""
    if duration_s < 1:
        return f"{seconds:.2f}"
    whole = round(seconds)
    if duration_s < 60:
        return f"{whole}"
    whole = whole // 60 if duration_s >= 3600 else whole
    return f"{whole // 60}:{whole % 60:02d}"
