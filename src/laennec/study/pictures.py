"""What a study came to, as pictures.

Decisions: every run is a dot, so that a reader sees the spread and how many there are; the mean is a line beside
them. Where methods differ along an axis (label fractions, input rates) that axis lies below, one line for each of the
others. Accuracy against cost has a logarithmic axis of processor seconds, because methods differ in it many times over.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from laennec.evaluation.plots import (
    BLUE,
    INK,
    LEGEND,
    OTHER_COLOURS,
    QUIET,
    figure_png,
    shown_name,
    styled_figure,
    styled_title,
)
from laennec.evaluation.summary import figure_name, is_percent
from laennec.study.cost import cost_of_making

_COLUMNS = 2
_FIGURES = 4  # no more panels than these
_Rows = Mapping[str, list[dict[str, Any]]]


def study_pictures(content: Mapping[str, Any]) -> dict[str, bytes]:
    """Pictures of a study's results.

    Args:
        content: Its results file.

    Returns:
        {name of a file: PNG}: "<part>-methods.png"; "<part>-cost.png" where costs were measured; "<part>-<axis>.png"
        for each axis along which a method has several values.
    """
    study = content["study"]
    made: dict[str, bytes] = {}
    for part in dict.fromkeys(row["split"] for row in content["results"]):
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in content["results"]:
            if row["split"] == part:
                rows.setdefault(row["name"], []).append(row)
        known = {name for runs in rows.values() for run in runs for name, v in run["values"].items() if v is not None}
        figures = [name for name in study["figures"] if name in known][:_FIGURES]
        if not figures:
            continue
        made[f"{part}-methods.png"] = _methods(rows, figures)
        if sum(_seconds(runs) is not None for runs in rows.values()) > 1:
            made[f"{part}-cost.png"] = _against_cost(rows, figures)
        for axis in dict.fromkeys(axis for places in study["methods"].values() for axis in places):
            if picture := _along(axis, rows, study["methods"], figures):
                made[f"{part}-{axis.replace('.', '_')}.png"] = picture
    return made


def _values(runs: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    return [run["values"][figure] for run in runs if run["values"].get(figure) is not None]


def _seconds(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """CPU seconds of all that had to be trained for a run, on average."""
    costs = [made[0] for run in runs if (made := cost_of_making(run))]
    return statistics.mean(costs) if costs else None


def _panels(figures: Sequence[str], height: float, width: float = 4.7) -> tuple[Any, list[Any]]:
    columns = min(_COLUMNS, len(figures))
    lines = -(-len(figures) // columns)
    figure, panels = styled_figure(width * columns, height * lines, columns, lines)
    for axes in panels[len(figures) :]:
        axes.set_visible(False)
    return figure, panels


def _methods(rows: _Rows, figures: Sequence[str]) -> bytes:
    """A line for each method, a dot for each of its runs."""
    figure, panels = _panels(figures, 0.9 + 0.42 * len(rows))
    for axes, name in zip(panels, figures, strict=False):
        for place, (method, runs) in enumerate(rows.items()):
            values = _values(runs, name)
            axes.plot(values, [place] * len(values), "o", ms=5, color=BLUE, alpha=0.55, mew=0)
            if values:
                mean = statistics.mean(values)
                axes.plot([mean, mean], [place - 0.22, place + 0.22], color=INK, lw=2)
            text = axes.text(0, place - 0.24, shown_name(method, 60), transform=axes.get_yaxis_transform(), va="bottom")
            text.set(fontsize=8.5, color=INK)
        axes.set(ylim=(len(rows) - 0.5, -0.85), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        styled_title(axes, _title(name))
    return figure_png(figure)


def _along(axis: str, rows: _Rows, places: Mapping[str, Mapping[str, str]], figures: Sequence[str]) -> bytes | None:
    """Figures along an axis; None where no method has two values on it."""
    labels = list(dict.fromkeys(place[axis] for place in places.values() if axis in place))
    lines: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for method, runs in rows.items():
        if axis in (place := places.get(method, {})):
            others = ", ".join(part for part in method.split(", ") if part != place[axis])
            lines.setdefault(others, {})[place[axis]] = runs
    if not any(len(found) > 1 for found in lines.values()):
        return None
    figure, panels = _panels(figures, 3.0)
    for axes, name in zip(panels, figures, strict=False):
        for k, (method, found) in enumerate(lines.items()):
            colour = OTHER_COLOURS[k % len(OTHER_COLOURS)]
            steps = [(labels.index(label), _values(runs, name)) for label, runs in found.items()]
            steps = sorted(((x, values) for x, values in steps if values), key=lambda step: step[0])
            means = [statistics.mean(values) for _, values in steps]
            axes.plot([x for x, _ in steps], means, "-", color=colour, lw=1.8, label=shown_name(method, 40))
            for x, values in steps:
                axes.plot([x] * len(values), values, "o", ms=4.5, color=colour, alpha=0.55, mew=0)
        axes.set_xticks(range(len(labels)), [shown_name(label, 26) for label in labels])
        axes.margins(x=0.08, y=0.1)
        styled_title(axes, _title(name))
    panels[0].legend(**LEGEND)
    return figure_png(figure)


def _against_cost(rows: _Rows, figures: Sequence[str]) -> bytes:
    """Mean figure of each method against what its training took."""
    seconds = {method: took for method, runs in rows.items() if (took := _seconds(runs)) is not None}
    low, high = min(seconds.values()), max(seconds.values())
    figure, panels = _panels(figures, 3.4, 5.2)
    for axes, name in zip(panels, figures, strict=False):
        for method, took in seconds.items():
            if not (values := _values(rows[method], name)):
                continue
            mean, cheap = statistics.mean(values), took * took <= low * high  # names stand where there is room
            axes.plot(took, mean, "o", ms=6, color=BLUE)
            said = axes.annotate(
                shown_name(method, 40), (took, mean), (6 if cheap else -6, 4), textcoords="offset points"
            )
            said.set(fontsize=7.5, color=QUIET, ha="left" if cheap else "right")
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.15)
        axes.set_xlabel("processor seconds of training", color=INK, fontsize=9)
        styled_title(axes, _title(name))
    return figure_png(figure)


def _title(name: str) -> str:
    return figure_name(name) + (", %" if is_percent(name) else "")
