"""Differences from a baseline as a picture.

Decisions: every figure has a scale of its own, zero in it; a dot is filled where the corrected p value is below
0.05 and hollow elsewhere, so that nothing hangs on colour. Names stand above their lines, because they are long.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from laennec.evaluation.picture_style import BLUE, INK, QUIET, house_figure, house_title, shown_name
from laennec.evaluation.summary import figure_name, is_percent

_COLUMNS = 2
_SURE = 0.05


def forest_picture(compared: Mapping[str, Mapping[str, Any]], baseline: str, figures: Sequence[str]) -> Figure:
    """Differences from the baseline with their intervals, a panel for each figure.

    Args:
        compared: What `compare_methods` returned.
        baseline: The method that the others are compared with.
        figures: Names of the figures.
    """
    others = [method for method in compared if method != baseline]
    columns = min(_COLUMNS, len(figures))
    lines = -(-len(figures) // columns)
    figure, panels = house_figure(4.7 * columns, (0.95 + 0.46 * len(others)) * lines, columns, lines)
    for axes, name in zip(panels, figures, strict=False):
        _panel(axes, name, [(method, compared[method][name]) for method in others])
    for axes in panels[len(figures) :]:
        axes.set_visible(False)
    return figure


def _panel(axes: Any, name: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """One figure: a line for each method."""
    seen = [0.0]
    for place, (method, cell) in enumerate(rows):
        bounds, sure = cell["difference_interval"], cell["p_holm"] is not None and cell["p_holm"] < _SURE
        if bounds:
            axes.plot(bounds, [place, place], color=BLUE, lw=1.8, solid_capstyle="round")
        axes.plot(cell["difference"], place, "o", ms=7, color=BLUE, mfc=BLUE if sure else "white", mew=1.6)
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
    axes.set_xlabel("difference, points" if is_percent(name) else "difference", color=INK, fontsize=9)
    house_title(axes, figure_name(name))
