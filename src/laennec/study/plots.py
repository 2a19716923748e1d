"""Plots of a study.

Decisions: every run is a dot beside the mean, so that a reader sees the spread and the number of runs. Where methods
differ along an axis (label fractions, input rates) that axis is the abscissa, with one line for each combination of
the others.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from laennec.evaluation.metrics import is_percent
from laennec.evaluation.report.plots import (
    BLUE,
    INK,
    LEGEND,
    OTHER_COLOURS,
    figure_png,
    panels,
    shown_name,
    styled_title,
)
from laennec.evaluation.summary import figure_name

_MOST_PANELS = 4
_Rows = Mapping[str, list[dict[str, Any]]]


def study_plots(content: Mapping[str, Any]) -> dict[str, bytes]:
    """{file name: PNG}: "<split>-methods.png", and "<split>-<axis>.png" for each axis with several values."""
    study = content["study"]
    made: dict[str, bytes] = {}
    for split in dict.fromkeys(row["split"] for row in content["results"]):
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in content["results"]:
            if row["split"] == split:
                rows.setdefault(row["name"], []).append(row)
        known = {name for runs in rows.values() for run in runs for name, v in run["values"].items() if v is not None}
        figures = [name for name in study["figures"] if name in known][:_MOST_PANELS]
        if not figures:
            continue
        plots: dict[str, Figure | None] = {"methods": _methods(rows, figures)}
        for axis in dict.fromkeys(axis for places in study["methods"].values() for axis in places):
            plots[axis.replace(".", "_")] = _along(axis, rows, study["methods"], figures)
        made |= {f"{split}-{name}.png": figure_png(plot) for name, plot in plots.items() if plot is not None}
    return made


def _values(runs: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    return [run["values"][figure] for run in runs if run["values"].get(figure) is not None]


def _methods(rows: _Rows, figures: Sequence[str]) -> Figure:
    figure, all_axes = panels(len(figures), 4.7, 0.9 + 0.42 * len(rows))
    for axes, name in zip(all_axes, figures, strict=True):
        for place, (method, runs) in enumerate(rows.items()):
            values = _values(runs, name)
            axes.plot(values, [place] * len(values), "o", ms=5, color=BLUE, alpha=0.55, mew=0)
            if values:
                mean = statistics.mean(values)
                axes.plot([mean, mean], [place - 0.22, place + 0.22], color=INK, lw=2)
            _method_name(axes, place, method)
        axes.set(ylim=(len(rows) - 0.5, -0.85), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        styled_title(axes, _title(name))
    return figure


def _method_name(axes: Any, place: float, name: str) -> None:
    """The name of a method above its line in a panel."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    text = axes.text(0.0, place - 0.26, shown_name(name, 60), transform=axes.get_yaxis_transform(), va="bottom")
    text.set(fontsize=8.5, color=INK, bbox=box, zorder=4)


def _along(axis: str, rows: _Rows, places: Mapping[str, Mapping[str, str]], figures: Sequence[str]) -> Figure | None:
    """Metrics along an axis; None where no method has two values on it."""
    labels = list(dict.fromkeys(place[axis] for place in places.values() if axis in place))
    lines: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for method, runs in rows.items():
        if label := places.get(method, {}).get(axis):
            others = ", ".join(part for part in method.split(", ") if part != label)
            lines.setdefault(others, {})[labels.index(label)] = runs
    if not any(len(line) > 1 for line in lines.values()):
        return None
    figure, all_axes = panels(len(figures), 4.7, 3.0)
    for axes, name in zip(all_axes, figures, strict=True):
        for k, (method, line) in enumerate(lines.items()):
            colour = OTHER_COLOURS[k % len(OTHER_COLOURS)]
            values = {x: found for x, runs in sorted(line.items()) if (found := _values(runs, name))}
            means = [statistics.mean(found) for found in values.values()]
            axes.plot(list(values), means, "-", color=colour, lw=1.8, label=shown_name(method, 40))
            for x, found in values.items():
                axes.plot([x] * len(found), found, "o", ms=4.5, color=colour, alpha=0.55, mew=0)
        axes.set_xticks(range(len(labels)), [shown_name(label, 26) for label in labels])
        axes.margins(x=0.08, y=0.1)
        styled_title(axes, _title(name))
    all_axes[0].legend(**LEGEND)
    return figure


def _title(name: str) -> str:
    return figure_name(name) + (", %" if is_percent(name) else "")
