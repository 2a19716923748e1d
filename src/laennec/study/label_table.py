"""The label-efficiency table and its plot.

Decisions: the value of a mode and fraction is the mean over its draws of labels. Its interval draws patients and
averages over the draws of labels within each: it shows the effect of other patients, the standard deviation that of
other labels. All draws of labels and all fractions use the same draws of patients. A metric that is undefined in one
draw of labels is undefined in their mean. In the plot a line is the mean, its band the interval, and every draw of
labels a dot.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from laennec.errors import InputError
from laennec.evaluation.bootstrap import bootstrap_values, interval, patient_codes
from laennec.evaluation.metrics import none_if_nan
from laennec.evaluation.plots import (
    BLUE,
    DASHED,
    INK,
    LEGEND,
    QUIET,
    VERMILION,
    axis_labels,
    styled_figure,
    styled_title,
)
from laennec.evaluation.predictions import ProblemType, headline, point_values, read_predictions, statistics_of
from laennec.evaluation.summary import figure_name, is_percent

MODE_NAMES = {"linear": "linear (encoder frozen)", "finetune": "fine-tuned"}
_STYLES = {"linear": (BLUE, "o"), "finetune": (VERMILION, "s")}
_MOST_PANELS = 6
_CHANCE = {"roc_auc": 0.5, "roc_auc_macro": 0.5, "icbhi.Score": 50.0}


def label_table(
    cells: Sequence[Mapping[str, Any]],
    *,
    problem_type: ProblemType,
    label_names: Sequence[str],
    n_draws: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Mean, standard deviation and interval of every shown metric, for each mode and fraction.

    Args:
        cells: One mapping for each mode, fraction and draw of labels: "mode", "fraction", "draw", "cycles", "patients"
            (of the labels), "predictions" (the predictions table of the scored split) and "thresholds" (in logits, or
            None).
        problem_type: "multi_label" or "single_label".
        label_names: Names of the outputs.
        n_draws: Bootstrap draws of patients.
        seed: Seed of the draws.

    Returns:
        Tidy rows {"mode", "fraction", "cycles", "patients", "draws", "figure", "mean", "sd", "low", "high", "values"},
        by mode and ascending fraction; the metrics are the mean AUROC of the labels, each label's, and the headline
        score; "sd" is None for one draw, "values" are those of the draws of labels in order.

    Raises:
        InputError: The cells were not scored on the same cycles.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: (_mode_rank(cell["mode"]), cell["fraction"], cell["draw"])):
        groups.setdefault((cell["mode"], cell["fraction"]), []).append(cell)
    _refuse_other_cycles(cells)
    rows: list[dict[str, Any]] = []
    for (mode, fraction), members in groups.items():
        points, drawn, n_patients = [], [], 0
        for cell in members:
            predictions = read_predictions(
                cell["predictions"], problem_type=problem_type, label_names=label_names, thresholds=cell["thresholds"]
            )
            points.append(point_values(predictions))
            drawn.append(bootstrap_values(predictions.table, statistics_of(predictions), n_draws, seed))
            _, n_patients = patient_codes(predictions.table)
        about = {
            "mode": mode,
            "fraction": fraction,
            "cycles": round(float(np.mean([cell["cycles"] for cell in members]))),
            "patients": round(float(np.mean([cell["patients"] for cell in members]))),
            "draws": len(members),
        }
        for figure in shown_figures(points[0]):
            values = np.array([np.nan if p[figure] is None else p[figure] for p in points], dtype=float)
            means = np.mean([side.get(figure, np.zeros(0)) for side in drawn], axis=0)
            low, high = interval(means, n_patients) or (None, None)
            row = {
                "figure": figure,
                "mean": none_if_nan(values.mean()),
                "sd": none_if_nan(values.std(ddof=1)) if len(values) > 1 else None,
                "low": low,
                "high": high,
                "values": [none_if_nan(value) for value in values],
            }
            rows.append(about | row)
    return rows


def shown_figures(values: Mapping[str, float | None]) -> list[str]:
    """The metrics of a label-efficiency table among those of an evaluation."""
    labels = [name for name in values if name.endswith(".roc_auc")]
    score = headline(values)
    return [*(["roc_auc_macro"] if len(labels) != 1 else []), *labels, *([score] if score not in labels else [])]


def format_label_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as plain text, a line for each mode and fraction.

    Args:
        rows: What `label_table` returned.
    """
    figures = list(dict.fromkeys(row["figure"] for row in rows))
    cells = {(row["mode"], row["fraction"], row["figure"]): row for row in rows}
    lines = [["mode", "labels", "cycles", "patients", "draws", *map(figure_name, figures)]]
    for mode, fraction in dict.fromkeys((row["mode"], row["fraction"]) for row in rows):
        first = next(cells[mode, fraction, figure] for figure in figures if (mode, fraction, figure) in cells)
        texts = [_cell_text(cells.get((mode, fraction, figure))) for figure in figures]
        counts = [f"{first[name]:,}" for name in ("cycles", "patients", "draws")]
        lines.append([mode, percent(fraction), *counts, *texts])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def percent(fraction: float) -> str:
    """A fraction as percent: "1 %", "0.5 %"."""
    return f"{100 * fraction:.6g} %"


def _cell_text(row: Mapping[str, Any] | None) -> str:
    """Mean ± standard deviation [interval]."""
    if row is None or row["mean"] is None:
        return "undefined"
    digits = 1 if is_percent(row["figure"]) else 3
    text = f"{row['mean']:.{digits}f}"
    text += "" if row["sd"] is None else f" ± {row['sd']:.{digits}f}"
    return text if row["low"] is None else f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _mode_rank(mode: str) -> int:
    return list(MODE_NAMES).index(mode) if mode in MODE_NAMES else len(MODE_NAMES)


def _refuse_other_cycles(cells: Sequence[Mapping[str, Any]]) -> None:
    """Refuse cells scored on different cycles, whose draws of patients would differ."""
    first: list[str] | None = None
    for cell in cells:
        ids = sorted(map(str, cell["predictions"]["cycle_id"]))
        first = first or ids
        if ids != first:
            name = f"{cell['mode']} {percent(cell['fraction'])} draw {cell['draw']}"
            raise InputError(f"{name}: was scored on other cycles than the rest of the table; use another --out")


def label_efficiency_picture(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Metrics against the fraction of labelled training cycles, on logarithmic axes side by side.

    Args:
        rows: What `label_table` returned.
        title: What was measured on which data.
    """
    every = list(dict.fromkeys(row["figure"] for row in rows))
    # of many labels the first ones are drawn; the headline is last in the table and stays
    figures = every if len(every) <= _MOST_PANELS else [*every[: _MOST_PANELS - 1], every[-1]]
    columns = min(len(figures), 2) if len(figures) <= 4 else 3
    lines = -(-len(figures) // columns)
    figure, panels = styled_figure(4.6 * columns + 0.2, 3.35 * lines + 0.75, columns, lines)
    for axes, name in zip(panels, figures, strict=False):
        _draw(axes, [row for row in rows if row["figure"] == name], name)
    # AUROCs share a scale
    areas = [axes for axes, name in zip(panels, figures, strict=False) if "roc_auc" in name]
    limits = [axes.get_ylim() for axes in areas]
    for axes in areas:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axes in panels[len(figures) :]:
        axes.set_visible(False)
    for axes in panels[max(len(figures) - columns, 0) : len(figures)]:
        axis_labels(axes, "labelled training cycles, share and number")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, **LEGEND)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=INK, fontweight="bold")
    return figure


def _draw(axes: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """One metric of every mode."""
    for mode in dict.fromkeys(row["mode"] for row in rows):
        colour, marker = _STYLES.get(mode, (INK, "D"))
        line = [row for row in rows if row["mode"] == mode and row["mean"] is not None]
        _band(axes, [row for row in line if row["low"] is not None], colour)
        x, y = [row["fraction"] for row in line], [row["mean"] for row in line]
        axes.plot(x, y, color=colour, lw=2, marker=marker, ms=6.5, mec="white", mew=1.1,
                  label=f"{MODE_NAMES.get(mode, mode)}: mean over draws of labels", zorder=4)  # fmt: skip
        dots = [(row["fraction"], v) for row in line if row["draws"] > 1 for v in row["values"] if v is not None]
        if dots:
            axes.plot(*zip(*dots, strict=True), color=colour, ls="none", marker=marker, ms=3.2, mec="none", alpha=0.55,
                      label="one draw", zorder=5)  # fmt: skip
    _chance(axes, rows, name)
    _fraction_axis(axes, rows)
    axis_labels(axes, y="percent" if is_percent(name) else "AUROC")
    styled_title(axes, figure_name(name))


def _band(axes: Any, bounded: Sequence[Mapping[str, Any]], colour: str) -> None:
    """The interval over patients; a bar for a single fraction."""
    x, low, high = ([row[key] for row in bounded] for key in ("fraction", "low", "high"))
    text = "95 % interval over patients"
    if len(bounded) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0, label=text, zorder=2)
    elif bounded:
        axes.plot([x[0], x[0]], [low[0], high[0]], color=colour, alpha=0.4, lw=5, solid_capstyle="butt", label=text)


def _chance(axes: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """A dashed line at the chance level, where the curves come near it."""
    level = _CHANCE.get(name, _CHANCE.get(name.rpartition(".")[2]))
    ends = [row[key] for row in rows for key in ("low", "mean", "high") if row[key] is not None]
    if level is not None and ends and min(ends) - level < 0.8 * (max(ends) - min(ends)):
        axes.axhline(level, color=QUIET, lw=1, ls=DASHED, label="chance", zorder=1)


def _fraction_axis(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
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
