"""Learning curves, the objective term by term.

Decisions: terms differ by orders of magnitude, so each has a panel with a scale of its own beside the one picture of
all; a term is drawn as it entered the objective, with its weight. Phases of a schedule that count their epochs anew
are drawn one after the other, with a line between.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from laennec.evaluation.picture_style import HAIR, INK, LEGEND, OTHER_COLOURS, QUIET, house_figure, house_title
from laennec.evaluation.summary import figure_name

_MOST_LINES = 7
_FIRST_PERCENT = ("icbhi.Score", "icbhi.Se", "icbhi.Sp", "uar", "accuracy", "any_abnormal.Score", "sprsound.Score")
_FIRST_SHARES = ("roc_auc", "average_precision", ".f1", "f1_macro", "f1_micro", "roc_auc_macro")
_MOST_TERMS = 12
_COLUMNS = 3


def learning_curves(history: Sequence[dict[str, Any]], best_epoch: int | float | None = None) -> dict[str, Figure]:
    """The pictures of a training.

    Args:
        history: One entry an epoch: "epoch", "phase", "loss", "loss_terms", "validation".
        best_epoch: The epoch that was kept.

    Returns:
        {"training": the loss and its terms, "validation_percent" and "validation_shares": figures by epoch,
        "loss_terms": each term alone}, those that there are.
    """
    x, starts, best = _places(history, best_epoch)
    found = {
        name: _together(title, lines, x, starts, best) for name, (title, lines) in _panels(history).items() if lines
    }
    terms = _lines(history, "loss_terms")
    if len(terms) > 1:
        found["loss_terms"] = _terms(terms, x, starts, best)
    return found


def _places(
    history: Sequence[dict[str, Any]], best_epoch: int | float | None
) -> tuple[list[float], list[tuple[float, str]], float | None]:
    """Where each entry lies on the axis, where phases after the first begin, and where the kept epoch lies."""
    epochs = [float(entry.get("epoch") or k + 1) for k, entry in enumerate(history)]
    if all(a < b for a, b in itertools.pairwise(epochs)):
        return epochs, [], None if best_epoch is None else float(best_epoch)
    x = [float(k + 1) for k in range(len(history))]
    phases = [str(entry.get("phase") or "") for entry in history]
    starts = [(x[k] - 0.5, phases[k]) for k in range(1, len(x)) if phases[k] != phases[k - 1]]
    kept = [place for place, epoch in zip(x, epochs, strict=True) if epoch == best_epoch]
    return x, starts, kept[-1] if kept else None  # the last phase is the one that an epoch is kept of


def _panels(history: Sequence[dict[str, Any]]) -> dict[str, tuple[str, dict[str, list[Any]]]]:
    """What is drawn together: losses, scores in percent, shares of 1."""
    losses = {
        name: line for name, line in {"total loss": [e.get("loss") for e in history]}.items() if any(map(_number, line))
    }
    losses |= _lines(history, "loss_terms")
    measured = _lines(history, "validation")
    losses |= {f"validation {n}": v for n, v in measured.items() if "loss" in n}
    figures = {n: v for n, v in measured.items() if "loss" not in n}
    percent = {n: v for n, v in figures.items() if max(filter(_number, v)) > 1.5}
    shares = {n: v for n, v in figures.items() if n not in percent}
    return {
        "training": ("Loss and its terms", losses),
        "validation_percent": ("Validation, percent", _first(percent, _FIRST_PERCENT)),
        "validation_shares": ("Validation, shares of 1", _first(shares, _FIRST_SHARES)),
    }


def _first(lines: dict[str, list[Any]], wanted: Sequence[str]) -> dict[str, list[Any]]:
    """The lines that say most, as many as can be told apart."""

    def rank(name: str) -> int:
        return next((k for k, ending in enumerate(wanted) if name.endswith(ending)), len(wanted))

    names = sorted(lines, key=rank)[:_MOST_LINES]
    return {figure_name(name): lines[name] for name in names}


def _together(
    title: str, lines: dict[str, list[Any]], x: list[float], starts: list[tuple[float, str]], best: float | None
) -> Figure:
    """Several lines on one scale, named beside one another below the axes."""
    figure, (axes,) = house_figure(4.7, 4.3, 1)
    for k, (name, line) in enumerate(list(lines.items())[:_MOST_LINES]):
        _draw(axes, x, line, (INK, *OTHER_COLOURS)[k], name)
    _axis(axes, x, starts, best)
    house_title(axes, title)
    figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    return figure


def _terms(terms: dict[str, list[Any]], x: list[float], starts: list[tuple[float, str]], best: float | None) -> Figure:
    """A small panel for each term of the objective."""
    shown = list(terms.items())[:_MOST_TERMS]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure, all_axes = house_figure(3.2 * columns, 2.3 * rows, columns, rows)
    for k, (axes, (name, line)) in enumerate(zip(all_axes, shown, strict=False)):
        _draw(axes, x, line, OTHER_COLOURS[k % len(OTHER_COLOURS)], name)
        _axis(axes, x, starts, best, words=False)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0) if low > 0 else low, high * 1.08 if high > 0 else high)
        house_title(axes, name)
    for axes in all_axes[len(shown) :]:
        axes.set_visible(False)
    return figure


def _draw(axes: Any, x: list[float], line: list[Any], colour: str, name: str) -> None:
    numbers = [value if _number(value) else np.nan for value in line]
    axes.plot(x, numbers, color=colour, lw=1.7, marker="o" if len(x) < 25 else None, ms=3.5, label=name)


def _axis(axes: Any, x: list[float], starts: list[tuple[float, str]], best: float | None, words: bool = True) -> None:
    """Whole epochs, where phases begin, and the epoch that was kept."""
    dashed: dict[str, Any] = {"color": QUIET, "lw": 1, "ls": (0, (4, 3))}
    if best is not None:
        axes.axvline(best, **dashed, label="epoch kept" if words else None)
    for place, phase in starts:
        axes.axvline(place, color=HAIR, lw=1.2)
        axes.text(place, 1.0, f" {phase}", transform=axes.get_xaxis_transform(), fontsize=7, color=QUIET,
                  va="top")  # fmt: skip
    axes.set_xlabel("epoch" if not starts else "epoch, phases one after the other", color=INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(x) > 1:
        axes.set_xlim(x[0] - 0.04 * (x[-1] - x[0]), x[-1] + 0.04 * (x[-1] - x[0]))


def _lines(history: Sequence[dict[str, Any]], key: str) -> dict[str, list[Any]]:
    """Every number under `key` as one line over the epochs."""
    names = dict.fromkeys(name for entry in history for name in entry.get(key) or {})
    lines = {name: [(entry.get(key) or {}).get(name) for entry in history] for name in names}
    return {name: line for name, line in lines.items() if any(map(_number, line))}


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
