"""Plots of trainings, of comparisons of runs, and of studies.

Decisions: loss terms differ by orders of magnitude, so each also has a panel with its own scale, with its weight;
phases of a schedule that restart their epochs are drawn one after the other. In a comparison metrics of one unit share
a scale with zero in its middle, and a dot is filled where the corrected p value is below 0.05, so that nothing depends
on colour. In a study every run is a dot beside the mean, so that a reader sees the spread and the number of runs. Where
methods differ along an axis (label fractions, input rates) that axis is the x axis, with one line for each combination
of the other axes.
"""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from laennec.evaluation.metrics import is_percent
from laennec.evaluation.report.plots import (
    BLUE,
    DASHED,
    HAIR,
    INK,
    LEGEND,
    OTHER_COLOURS,
    QUIET,
    axis_labels,
    figure_png,
    panels,
    shown_name,
    styled_figure,
    styled_title,
)
from laennec.evaluation.summary import figure_name, figure_text

_MOST_LINES = 7
_MOST_TERMS = 12
_MOST_PANELS = 4
_FIRST_PERCENT = ("icbhi.Score", "icbhi.Se", "icbhi.Sp", "uar", "accuracy", "any_abnormal.Score", "sprsound.Score")
_FIRST_SHARES = ("roc_auc", "average_precision", ".f1", "f1_macro", "f1_micro", "roc_auc_macro")
Line = list[float]
"""One value per epoch, nan where there is none."""
_Rows = Mapping[str, list[dict[str, Any]]]


def learning_curves(history: Sequence[dict[str, Any]], best_epoch: float | None = None) -> dict[str, Figure]:
    """The plots of a training from one history entry per epoch: "training", "validation_percent" and the like."""
    terms, measured = (_lines([entry.get(key) or {} for entry in history]) for key in ("loss_terms", "validation"))
    total = _lines([{"total loss": entry.get("loss")} for entry in history])
    losses = total | terms | {f"validation {n}": line for n, line in measured.items() if "loss" in n}
    metrics = {n: line for n, line in measured.items() if "loss" not in n}
    percent = {n: line for n, line in metrics.items() if np.nanmax(line) > 1.5}
    shares = {n: line for n, line in metrics.items() if n not in percent}
    found = {}
    for name, title, lines in (
        ("training", "Loss and its terms", losses),
        ("validation_percent", "Validation, percent", _most_important(percent, _FIRST_PERCENT)),
        ("validation_shares", "Validation, shares of 1", _most_important(shares, _FIRST_SHARES)),
    ):
        if lines:
            found[name], (axes,) = styled_figure(4.7, 4.3, 1)
            _draw_epochs(axes, dict(list(lines.items())[:_MOST_LINES]), (INK, *OTHER_COLOURS), history, best_epoch)
            styled_title(axes, title)
            found[name].legend(loc="outside lower center", ncols=2, **LEGEND)
    if len(terms) > 1:
        shown = list(terms.items())[:_MOST_TERMS]
        found["loss_terms"], all_axes = panels(len(shown), 3.2, 2.3, columns=3)
        for k, (axes, (name, line)) in enumerate(zip(all_axes, shown, strict=True)):
            _draw_epochs(axes, {name: line}, OTHER_COLOURS[k % len(OTHER_COLOURS) :], history, best_epoch)
            styled_title(axes, name)
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.0), high * 1.08 if high > 0 else high)
    return found


def _draw_epochs(
    axes: Any, lines: Mapping[str, Line], colours: Sequence[str], history: Sequence[Any], best: float | None
) -> None:
    """Lines over the epochs of a history, the starts of phases after the first, and the epoch that was kept."""
    for colour, (name, line) in zip(colours, lines.items(), strict=False):
        marker = "o" if len(line) < 25 else None
        axes.plot(range(1, len(line) + 1), line, color=colour, lw=1.7, marker=marker, ms=3.5, label=name)
    kept = [k for k, entry in enumerate(history, start=1) if best and entry.get("epoch") == round(best, 6)]
    if kept:  # each phase counts its epochs from 1, and the best epoch is one of the last phase
        axes.axvline(kept[-1], color=QUIET, lw=1, ls=DASHED, label="epoch kept")
    phases = [str(entry.get("phase") or "") for entry in history]
    starts = [k for k in range(1, len(phases)) if phases[k] != phases[k - 1]]
    for k in starts:
        axes.axvline(k + 0.5, color=HAIR, lw=1.2)
        axes.text(k + 0.5, 1, f" {phases[k]}", transform=axes.get_xaxis_transform(), fontsize=7, color=QUIET, va="top")
    axis_labels(axes, "epoch, phases one after the other" if starts else "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.04)


def _lines(epochs: Sequence[dict[str, Any]]) -> dict[str, Line]:
    """Every number of the epochs as one line over them."""
    table = pd.DataFrame(epochs).apply(pd.to_numeric, errors="coerce").dropna(axis="columns", how="all")
    return {str(name): line.tolist() for name, line in table.astype(float).items()}


def _most_important(lines: dict[str, Line], wanted: Sequence[str]) -> dict[str, Line]:
    """The first few lines in the order of `wanted`, with the names of their metrics."""

    def rank(name: str) -> int:
        return next((k for k, ending in enumerate(wanted) if name.endswith(ending)), len(wanted))

    return {figure_name(name): lines[name] for name in sorted(lines, key=rank)[:_MOST_LINES]}


def figure_reach(content: Mapping[str, Any], figure: str) -> float:
    """The end of the axis of differences; metrics in percent share one, and so do AUROCs."""

    def unit(name: str) -> str:
        return "points" if is_percent(name) else "AUROC" if "roc_auc" in name else name

    alike = [name for name in content["figures"] if unit(name) == unit(figure)]
    cells = [method["figures"][name] for method in content["methods"].values() for name in alike]
    ends = [end for cell in cells for end in (cell["difference"], *(cell["difference_interval"] or [])) if end]
    return 1.04 * max(map(abs, ends), default=0.0) or 1.0


def is_significant(cell: Mapping[str, Any]) -> bool:
    """Whether a corrected p value is below 0.05."""
    return cell["p_holm"] is not None and cell["p_holm"] < 0.05


def difference_plot(content: Mapping[str, Any]) -> Figure:
    """Differences from the baseline with their intervals, a panel for each metric and a line for each method."""
    figures, baseline = content["figures"], content["baseline"]
    others = [method for method in content["methods"] if method != baseline]
    figure, all_axes = panels(len(figures), 5.6, 0.9 + 0.42 * len(others))
    names = ["\n".join(textwrap.wrap(shown_name(method, 60), 30)) for method in others]
    for number, (axes, name) in enumerate(zip(all_axes, figures, strict=True)):
        reach = figure_reach(content, name)
        axes.axvline(0, color=QUIET, lw=1.2)
        for place, method in enumerate(others):
            cell = content["methods"][method]["figures"][name]
            fill = BLUE if is_significant(cell) else "white"
            if bounds := cell["difference_interval"]:
                axes.plot(bounds, [place, place], color=BLUE, lw=1.8, solid_capstyle="round")
            axes.plot(cell["difference"], place, "o", ms=7, color=BLUE, mfc=fill, mew=1.6)
            text = figure_text(name, cell["difference"], bounds, "+")
            axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=INK)
        axes.set(xlim=(-reach, reach), ylim=(len(others) - 0.5, -0.5))
        axes.set_yticks(range(len(others)), names if number % 2 == 0 else [""] * len(others))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axis_labels(axes, "difference, points" if is_percent(name) else "difference")
        styled_title(axes, figure_name(name))
    about = f"{content['corpus']}, {content['part']}, {content['patients']} patients"
    title = (
        f"Difference from {shown_name(baseline, 80)}\n{shown_name(about, 80)}; 95 % intervals, paired by patients\n"
        "filled dot: p (Holm) < 0.05; right of the line: higher than the baseline"
    )
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


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
        plots: dict[str, Figure | None] = {"methods": _method_dots(rows, figures, content["methods"][split]["figures"])}
        for axis in dict.fromkeys(axis for places in study["methods"].values() for axis in places):
            plots[axis.replace(".", "_")] = _axis_lines(axis, rows, study["methods"], figures)
        made |= {f"{split}-{name}.png": figure_png(plot) for name, plot in plots.items() if plot is not None}
    return made


def _values(runs: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    return [run["values"][figure] for run in runs if run["values"].get(figure) is not None]


def _method_dots(rows: _Rows, figures: Sequence[str], compared: Mapping[str, Any]) -> Figure:
    """A dot for each run; a mark for all runs of a method (folds pooled), on its 95 % interval."""
    figure, all_axes = panels(len(figures), 4.7, 0.9 + 0.42 * len(rows))
    for axes, name in zip(all_axes, figures, strict=True):
        for place, (method, runs) in enumerate(rows.items()):
            values = _values(runs, name)
            axes.plot(values, [place] * len(values), "o", ms=5, color=BLUE, alpha=0.55, mew=0)
            cell = compared.get(method, {}).get(name, {})
            if cell.get("interval"):
                axes.plot(cell["interval"], [place, place], color=INK, lw=1)
            if values:
                mean = cell.get("mean", statistics.mean(values))
                axes.plot([mean, mean], [place - 0.22, place + 0.22], color=INK, lw=2)
            _method_name(axes, place, method)
        axes.set(ylim=(len(rows) - 0.5, -0.85), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        styled_title(axes, _title(name))
        axes.set_xlabel("dots: runs; mark: all runs, with 95 % interval", fontsize=8, color=INK)
    return figure


def _method_name(axes: Any, place: float, name: str) -> None:
    """The name of a method above its line in a panel."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    text = axes.text(0.0, place - 0.26, shown_name(name, 60), transform=axes.get_yaxis_transform(), va="bottom")
    text.set(fontsize=8.5, color=INK, bbox=box, zorder=4)


def _axis_lines(
    axis: str, rows: _Rows, places: Mapping[str, Mapping[str, str]], figures: Sequence[str]
) -> Figure | None:
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
