"""Plots of trainings and of comparisons of runs.

Decisions: loss terms differ by orders of magnitude, so each also has a panel with its own scale, as it entered the
objective, with its weight; phases of a schedule that count their epochs anew are drawn one after the other. In a
comparison every metric has its own scale with zero in it; a dot is filled where the corrected p value is below 0.05
and open elsewhere, so that nothing depends on colour.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from laennec.evaluation.plots import (
    BLUE,
    DASHED,
    HAIR,
    INK,
    LEGEND,
    OTHER_COLOURS,
    QUIET,
    axis_labels,
    shown_name,
    styled_figure,
    styled_title,
)
from laennec.evaluation.summary import figure_name, is_percent

_MOST_LINES = 7
_MOST_TERMS = 12
_FIRST_PERCENT = ("icbhi.Score", "icbhi.Se", "icbhi.Sp", "uar", "accuracy", "any_abnormal.Score", "sprsound.Score")
_FIRST_SHARES = ("roc_auc", "average_precision", ".f1", "f1_macro", "f1_micro", "roc_auc_macro")


def learning_curves(history: Sequence[dict[str, Any]], best_epoch: int | float | None = None) -> dict[str, Figure]:
    """The plots of a training.

    Args:
        history: One entry per epoch: "epoch", "phase", "loss", "loss_terms", "validation".
        best_epoch: The epoch that was kept.

    Returns:
        {"training": the loss and its terms, "validation_percent" and "validation_shares": metrics by epoch,
        "loss_terms": each term alone}, those available.
    """
    x, starts, best = _places(history, best_epoch)
    found = {}
    for name, (title, lines) in _panels(history).items():
        if lines:
            found[name], (axes,) = styled_figure(4.7, 4.3, 1)
            for k, (label, line) in enumerate(list(lines.items())[:_MOST_LINES]):
                _draw(axes, x, line, (INK, *OTHER_COLOURS)[k], label)
            _epoch_axis(axes, x, starts, best)
            styled_title(axes, title)
            found[name].legend(loc="outside lower center", ncols=2, **LEGEND)
    terms = _lines(history, "loss_terms")
    if len(terms) > 1:
        found["loss_terms"] = _terms(terms, x, starts, best)
    return found


def _places(
    history: Sequence[dict[str, Any]], best_epoch: int | float | None
) -> tuple[list[float], list[tuple[float, str]], float | None]:
    """Position of each entry on the axis, starts of phases after the first, and position of the kept epoch."""
    epochs = [float(entry.get("epoch") or k + 1) for k, entry in enumerate(history)]
    if all(a < b for a, b in itertools.pairwise(epochs)):
        return epochs, [], None if best_epoch is None else float(best_epoch)
    x = [float(k + 1) for k in range(len(history))]
    phases = [str(entry.get("phase") or "") for entry in history]
    starts = [(x[k] - 0.5, phases[k]) for k in range(1, len(x)) if phases[k] != phases[k - 1]]
    kept = [place for place, epoch in zip(x, epochs, strict=True) if epoch == best_epoch]
    return x, starts, kept[-1] if kept else None  # the epoch is kept of the last phase


def _panels(history: Sequence[dict[str, Any]]) -> dict[str, tuple[str, dict[str, list[Any]]]]:
    """Lines drawn together: losses, scores in percent, shares of 1."""
    total = [entry.get("loss") for entry in history]
    losses = {"total loss": total} if any(map(_is_number, total)) else {}
    losses |= _lines(history, "loss_terms")
    measured = _lines(history, "validation")
    losses |= {f"validation {n}": v for n, v in measured.items() if "loss" in n}
    figures = {n: v for n, v in measured.items() if "loss" not in n}
    percent = {n: v for n, v in figures.items() if max(filter(_is_number, v)) > 1.5}
    shares = {n: v for n, v in figures.items() if n not in percent}
    return {
        "training": ("Loss and its terms", losses),
        "validation_percent": ("Validation, percent", _first(percent, _FIRST_PERCENT)),
        "validation_shares": ("Validation, shares of 1", _first(shares, _FIRST_SHARES)),
    }


def _first(lines: dict[str, list[Any]], wanted: Sequence[str]) -> dict[str, list[Any]]:
    """The most important lines, in a number that can be told apart."""

    def rank(name: str) -> int:
        return next((k for k, ending in enumerate(wanted) if name.endswith(ending)), len(wanted))

    return {figure_name(name): lines[name] for name in sorted(lines, key=rank)[:_MOST_LINES]}


def _terms(terms: dict[str, list[Any]], x: list[float], starts: list[tuple[float, str]], best: float | None) -> Figure:
    """A small panel for each term of the objective."""
    shown = list(terms.items())[:_MOST_TERMS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, panels = styled_figure(3.2 * columns, 2.3 * rows, columns, rows)
    for k, (axes, (name, line)) in enumerate(zip(panels, shown, strict=False)):
        _draw(axes, x, line, OTHER_COLOURS[k % len(OTHER_COLOURS)], name)
        _epoch_axis(axes, x, starts, best, words=False)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0) if low > 0 else low, high * 1.08 if high > 0 else high)
        styled_title(axes, name)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


def _draw(axes: Any, x: list[float], line: list[Any], colour: str, name: str) -> None:
    numbers = [value if _is_number(value) else np.nan for value in line]
    axes.plot(x, numbers, color=colour, lw=1.7, marker="o" if len(x) < 25 else None, ms=3.5, label=name)


def _epoch_axis(
    axes: Any, x: list[float], starts: list[tuple[float, str]], best: float | None, words: bool = True
) -> None:
    """Whole epochs, starts of phases, and the epoch that was kept."""
    if best is not None:
        axes.axvline(best, color=QUIET, lw=1, ls=DASHED, label="epoch kept" if words else None)
    for place, phase in starts:
        axes.axvline(place, color=HAIR, lw=1.2)
        axes.text(place, 1.0, f" {phase}", transform=axes.get_xaxis_transform(), fontsize=7, color=QUIET,
                  va="top")  # fmt: skip
    axis_labels(axes, "epoch" if not starts else "epoch, phases one after the other")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(x) > 1:
        axes.set_xlim(x[0] - 0.04 * (x[-1] - x[0]), x[-1] + 0.04 * (x[-1] - x[0]))


def _lines(history: Sequence[dict[str, Any]], key: str) -> dict[str, list[Any]]:
    """Every number under `key` as one line over the epochs."""
    names = dict.fromkeys(name for entry in history for name in entry.get(key) or {})
    lines = {name: [(entry.get(key) or {}).get(name) for entry in history] for name in names}
    return {name: line for name, line in lines.items() if any(map(_is_number, line))}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def forest_picture(compared: Mapping[str, Mapping[str, Any]], baseline: str, figures: Sequence[str]) -> Figure:
    """Differences from the baseline with their intervals, a panel for each metric.

    Args:
        compared: What `compare_methods` returned.
        baseline: The method that the others are compared with.
        figures: Names of the metrics.
    """
    others = [method for method in compared if method != baseline]
    columns = min(2, len(figures))
    lines = -(-len(figures) // columns)
    figure, panels = styled_figure(4.7 * columns, (0.95 + 0.46 * len(others)) * lines, columns, lines)
    for axes, name in zip(panels, figures, strict=False):
        _differences(axes, name, [(method, compared[method][name]) for method in others])
    for axes in panels[len(figures) :]:
        axes.set_visible(False)
    return figure


def _differences(axes: Any, name: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """One metric: a line for each method, its name above it."""
    seen = [0.0]
    for place, (method, cell) in enumerate(rows):
        bounds, significant = cell["difference_interval"], cell["p_holm"] is not None and cell["p_holm"] < 0.05
        if bounds:
            axes.plot(bounds, [place, place], color=BLUE, lw=1.8, solid_capstyle="round")
        axes.plot(cell["difference"], place, "o", ms=7, color=BLUE, mfc=BLUE if significant else "white", mew=1.6)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        text = axes.text(0.0, place - 0.28, shown_name(method, 60), transform=axes.get_yaxis_transform(), va="bottom")
        text.set(fontsize=8.5, color=INK, bbox=box, zorder=4)
        seen += [cell["difference"], *(bounds or [])]
    axes.axvline(0, color=QUIET, lw=1.2)
    low, high = min(seen), max(seen)
    room = 0.08 * (high - low) or 0.01
    axes.set(xlim=(low - room, high + room), ylim=(len(rows) - 0.55, -0.85), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axis_labels(axes, "difference, points" if is_percent(name) else "difference")
    styled_title(axes, figure_name(name))
