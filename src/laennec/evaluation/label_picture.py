"""The picture of a label-efficiency table.

Decisions: one panel a figure, the fraction on a logarithmic axis; a line is the mean over draws of labels, its band
the interval over patients, and every draw of labels is a dot of its own, so that the two kinds of doubt stay apart.
Each mode keeps its colour and its marker, and what guessing reaches is drawn where it is in reach.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from laennec.evaluation.label_table import MODE_NAMES, percent
from laennec.evaluation.picture_style import BLUE, HAIR, INK, QUIET, VERMILION, house_figure, house_title
from laennec.evaluation.summary import figure_name, is_percent

_STYLES = {"linear": (BLUE, "o"), "finetune": (VERMILION, "s")}
_MOST_PANELS = 6
_CHANCE = {"roc_auc": 0.5, "roc_auc_macro": 0.5, "icbhi.Score": 50.0}


def label_efficiency_picture(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Figures against the fraction of labelled training cycles, on logarithmic axes side by side.

    Args:
        rows: What `label_table` returned.
        title: What was measured on how much.
    """
    every = list(dict.fromkeys(row["figure"] for row in rows))
    # of many labels the first ones are drawn; the headline is last in the table and stays
    figures = every if len(every) <= _MOST_PANELS else [*every[: _MOST_PANELS - 1], every[-1]]
    columns = min(len(figures), 2) if len(figures) <= 4 else 3
    lines = -(-len(figures) // columns)
    figure, panels = house_figure(4.6 * columns + 0.2, 3.35 * lines + 0.75, columns, lines)
    for axes, name in zip(panels, figures, strict=False):
        _draw(axes, [row for row in rows if row["figure"] == name], name)
    # AUROCs are compared with one another, so they share a scale
    areas = [axes for axes, name in zip(panels, figures, strict=False) if "roc_auc" in name]
    limits = [axes.get_ylim() for axes in areas]
    for axes in areas:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axes in panels[len(figures) :]:
        axes.set_visible(False)
    for axes in panels[max(len(figures) - columns, 0) : len(figures)]:
        axes.set_xlabel("labelled training cycles, share and number", color=INK, fontsize=9)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="outside lower center", ncols=3, fontsize=8, frameon=True, edgecolor=HAIR, framealpha=0.9
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=INK, fontweight="bold")
    return figure


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """One figure of every mode."""
    for mode in dict.fromkeys(row["mode"] for row in rows):
        colour, marker = _STYLES.get(mode, (INK, "D"))
        line = [row for row in rows if row["mode"] == mode and row["mean"] is not None]
        x = np.array([row["fraction"] for row in line])
        bounded = [row for row in line if row["low"] is not None]
        _band(axes, bounded, colour)
        axes.plot(x, [row["mean"] for row in line], color=colour, lw=2, marker=marker, ms=6.5, mec="white", mew=1.1,
                  label=f"{MODE_NAMES.get(mode, mode)}: mean over draws of labels", zorder=4)  # fmt: skip
        dots = [(row["fraction"], v) for row in line if row["draws"] > 1 for v in row["values"] if v is not None]
        if dots:
            axes.plot(*zip(*dots, strict=True), color=colour, ls="none", marker=marker, ms=3.2, mec="none", alpha=0.55,
                      label="one draw", zorder=5)  # fmt: skip
    _chance(axes, rows, name)
    _axis(axes, rows)
    axes.set_ylabel("percent" if is_percent(name) else "AUROC", color=INK, fontsize=9)
    house_title(axes, figure_name(name))


def _band(axes: Any, bounded: Sequence[Mapping[str, Any]], colour: str) -> None:
    """The interval over patients; a lone fraction has no width, so it gets a bar."""
    x, low, high = ([row[key] for row in bounded] for key in ("fraction", "low", "high"))
    said = "95 % interval, other patients"
    if len(bounded) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0, label=said, zorder=2)
    elif bounded:
        axes.plot([x[0], x[0]], [low[0], high[0]], color=colour, alpha=0.4, lw=5, solid_capstyle="butt", label=said)


def _chance(axes: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """A dashed line at what needs no listening, where the curves come near it."""
    level = _CHANCE.get(name, _CHANCE.get(name.rpartition(".")[2]))
    ends = [row[key] for row in rows for key in ("low", "mean", "high") if row[key] is not None]
    if level is None or not ends:
        return
    low, high = min(ends), max(ends)
    if low - level < 0.8 * (high - low):
        axes.axhline(level, color=QUIET, lw=1, ls=(0, (4, 3)), label="guessing", zorder=1)


def _axis(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """A logarithmic axis with a tick for every fraction, in percent and in cycles."""
    counts = {row["fraction"]: row["cycles"] for row in rows}
    fractions = sorted(counts)
    axes.set_xscale("log")
    axes.set_xticks(fractions, [f"{percent(f)}\n{counts[f]:,}" for f in fractions])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    spread = max(fractions) / min(fractions)
    room = spread**0.06 if spread > 1 else 1.5
    axes.set_xlim(min(fractions) / room, max(fractions) * room)
