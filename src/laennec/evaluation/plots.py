"""Plots of one evaluation.

Decisions: figures use matplotlib's object interface, so no global figure or backend is touched; colours are those of
Okabe and Ito, which colour-blind readers can tell apart, and each label keeps its colour in every plot. PNG files
have no time stamp, so equal numbers give equal files. Every plot says in its title what was measured; what a plot
needs beyond the evaluation (predictions, length groups) is optional, and without it the plot is left out.
"""

import base64
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from laennec.evaluation.calibration import sigmoid
from laennec.evaluation.metrics import confusion_matrix
from laennec.evaluation.predictions import Predictions
from laennec.evaluation.summary import figure_name, figure_text, is_percent
from laennec.files import atomic_write

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, QUIET, HAIR = "#1f2933", "#66727f", "#d9dfe5"
OTHER_COLOURS = (GREEN, PURPLE, ORANGE, SKY, BLUE, VERMILION)
DASHED: Any = (0, (4, 3))
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": True, "framealpha": 0.9, "edgecolor": HAIR}
MOST_LABELS = 12  # of plots with a curve or a number for each
_LABEL_COLOURS = {"crackle": BLUE, "wheeze": VERMILION}
_DEPTH = LinearSegmentedColormap.from_list("depth", ["#f7fafc", "#9cc5e0", "#0072B2", "#003f63"])
_DPI = 160
_PIXELS_PER_INCH = 100  # on a page, so that letters are equally large in all plots
_DOT: dict[str, Any] = {"ms": 8, "marker": "o", "mec": "white", "mew": 1.2, "ls": "none", "zorder": 5}


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # tight, because the layout does not always leave room for the titles of square panels
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return buffer.getvalue()


def save_picture(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    with atomic_write(path, "wb") as file:
        file.write(figure_png(figure))
    return Path(path)


def embedded_picture(png: bytes, alt: str) -> dict[str, Any]:
    """A PNG for a page: {"uri", "width", "height", "alt"}."""
    width, height = (round(side * _PIXELS_PER_INCH / _DPI) for side in struct.unpack(">II", png[16:24]))
    uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {"uri": uri, "width": width, "height": height, "alt": alt}


def styled_figure(width: float, height: float, columns: int, lines: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of a size in inches with panels in `columns` and `lines`, in the style of all plots."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    axes = list(np.atleast_1d(figure.subplots(lines, columns)).ravel())
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(QUIET)
        one.tick_params(colors=QUIET, labelsize=9, labelcolor=INK)
        one.grid(color=HAIR, lw=0.6)
        one.set_axisbelow(True)
    return figure, axes


def styled_title(axes: Any, text: str) -> None:
    """A left-aligned title."""
    axes.set_title(text.replace("$", r"\$"), loc="left", fontsize=10, color=INK, fontweight="bold", pad=9)


def axis_labels(axes: Any, x: str | None = None, y: str | None = None) -> None:
    """Titles of the axes."""
    if x is not None:
        axes.set_xlabel(x, color=INK, fontsize=9)
    if y is not None:
        axes.set_ylabel(y, color=INK, fontsize=9)


def shown_name(name: str, most: int = 32) -> str:
    """A name from the data, shortened and without special characters, as matplotlib can draw it."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$")


def label_colour(name: str, k: int) -> str:
    """A label's colour, the same in every plot."""
    return _LABEL_COLOURS.get(name.lower(), OTHER_COLOURS[k % len(OTHER_COLOURS)])


def evaluation_plots(
    evaluation: Mapping[str, Any],
    predictions: Predictions | None = None,
    *,
    geometry: Mapping[str, Any] | None = None,
    lengths: Mapping[str, Any] | None = None,
    curves: Mapping[str, Any] | None = None,
) -> dict[str, Figure]:
    """Every plot that the evaluation has the numbers for.

    Args:
        evaluation: What `evaluate_predictions` returned.
        predictions: The predictions it was computed on; without them there are no curves.
        geometry: What `class_distances` returned.
        lengths: What `length_groups` returned.
        curves: What `decision_curves` returned.

    Returns:
        Those available of "confusion", "roc", "precision_recall", "reliability", "subgroups" and "geometry", and for
        the first, second ... label "label_confusion_1", "decision_1" and "length_1" ...
    """
    figures: dict[str, Figure] = {}
    many = len(evaluation.get("label_names", ())) > MOST_LABELS  # curves of 50 classes would show nothing
    if evaluation.get("confusion"):
        figures["confusion"] = confusion_plot(evaluation["confusion"]["matrix"], evaluation["confusion"]["classes"])
    if predictions is not None and not many:
        for k in range(len(predictions.label_names)):
            figures[f"label_confusion_{k + 1}"] = label_confusion_plot(predictions, k)
        values, intervals = evaluation.get("values", {}), evaluation.get("intervals", {})
        figures["roc"] = roc_plot(predictions, values, intervals)
        figures["precision_recall"] = precision_recall_plot(predictions, values, intervals)
    if curves and not many:
        in_use = thresholds_in_use(evaluation)
        for k, (name, curve) in enumerate(curves.items()):
            figures[f"decision_{k + 1}"] = decision_plot(name, curve, k, in_use.get(name))
    if lengths is not None and not many:
        alone = length_alone(evaluation)
        for k, (name, value) in enumerate(lengths["overall"]["values"].items()):
            if value is not None:  # both classes occur
                figures[f"length_{k + 1}"] = length_plot(lengths, name, k, alone.get(name))
    if calibration := evaluation.get("calibration"):
        if many:
            kept = {kind: {k: v for k, v in of.items() if k == "answered class"} for kind, of in calibration.items()}
            calibration = kept
        figures["reliability"] = reliability_plot(calibration)
    if evaluation.get("subgroups"):
        figures["subgroups"] = subgroup_plot(evaluation)
    if geometry and not many:
        figures["geometry"] = geometry_plot(geometry)
    return figures


def thresholds_in_use(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The calibrated probability above which each label is predicted; {} where an argmax decides."""
    temperatures, intercepts = evaluation.get("temperatures") or {}, evaluation.get("intercepts") or {}
    logits = evaluation.get("thresholds") or {}
    return {
        name: float(sigmoid(t / temperatures.get(name, 1.0) + intercepts.get(name, 0.0))) for name, t in logits.items()
    }


def length_alone(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """AUROC of the event-length baseline, by label."""
    rows = [row for row in evaluation.get("floors") or [] if row["name"] == "event length"]
    return {label: row["values"].get(f"{label}.roc_auc") for row in rows for label in evaluation["label_names"]}


def confusion_plot(matrix: Any, classes: Sequence[str]) -> Figure:
    """A confusion (classes, classes): rows are the truth; colour and percent are shares of the row, counts below."""
    counts = np.asarray(matrix)
    size = 1.8 + (0.75 if len(classes) <= MOST_LABELS else 0.15) * len(classes)
    figure, (axes,) = styled_figure(0.92 * size + 0.4, 0.92 * size, 1)
    _draw_confusion(axes, counts, classes)
    styled_title(axes, f"Confusion matrix ({counts.sum():,} items)")
    return figure


def label_confusion_plot(predictions: Predictions, k: int) -> Figure:
    """The 2 x 2 confusion of one label."""
    name, thresholds = predictions.label_names[k], predictions.thresholds
    figure, (axes,) = styled_figure(3.5, 2.5, 1)
    counts = confusion_matrix(predictions.truth[:, k], predictions.decided[:, k], 2)
    _draw_confusion(axes, counts, [f"no {name}", name])
    rule = "by the likeliest class" if thresholds is None else f"logit > {thresholds[k]:.2f}"
    styled_title(axes, f"{name.capitalize()}, {rule}")
    return figure


def _draw_confusion(axes: Any, counts: Any, classes: Sequence[str]) -> None:
    """A confusion with shares of the row and counts in the cells."""
    classes = [shown_name(name, 24) for name in classes]
    total = counts.sum(1, keepdims=True)
    shares = 100 * counts / np.where(total == 0, 1, total)
    if len(classes) > MOST_LABELS:
        _heat(axes, shares, classes, [], top=100.0)
        axes.tick_params(labelsize=6, axis="both")
        axes.tick_params(rotation=90, axis="x")
        return
    texts = [[f"{shares[i, j]:.0f} %\n{counts[i, j]:,}" for j in range(len(classes))] for i in range(len(classes))]
    _heat(axes, shares, classes, texts, top=100.0)
    axis_labels(axes, "predicted", "truth")


def _heat(axes: Any, shade: Any, names: Sequence[str], texts: Sequence[Sequence[str]], top: float = 0.0) -> None:
    """A labelled square heat map from 0 to `top` (0: the largest value); the text is white where the cell is dark."""
    finite = shade[np.isfinite(shade)]
    top = top or (max(float(finite.max()), 1e-9) if finite.size else 1.0)
    axes.imshow(np.nan_to_num(shade), cmap=_DEPTH, vmin=0, vmax=top, aspect="equal")
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            colour = "white" if np.nan_to_num(shade)[i, j] > 0.45 * top else INK
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour, linespacing=1.25)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _two_sided(predictions: Predictions) -> Iterator[tuple[int, str, Any, Any]]:
    """Position, name, truth and decision of the labels that have both classes, the only ones with curves."""
    for k, name in enumerate(predictions.label_names):
        if 0 < predictions.truth[:, k].sum() < len(predictions.truth):
            yield k, name, predictions.truth[:, k], predictions.decided[:, k]


def _operating_points(scores: Any, truth: Any) -> tuple[Any, Any]:
    """Cumulated true and false positives at every distinct score, highest first."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    return np.cumsum(truth[order])[last], np.cumsum(1 - truth[order])[last]


def _unit_axes(axes: Any, x: str, y: str) -> None:
    """Both axes from 0 to 1, square."""
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axis_labels(axes, x, y)


def roc_plot(predictions: Predictions, values: Mapping[str, Any], intervals: Mapping[str, Any]) -> Figure:
    """ROC curves of every label, AUROC and interval in the legend, the decision in use as a dot."""
    figure, (axes,) = styled_figure(4.7, 5.0, 1)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=DASHED, label="chance")
    for k, name, truth, decided in _two_sided(predictions):
        positives, negatives, colour = int(truth.sum()), int((1 - truth).sum()), label_colour(name, k)
        found, false = _operating_points(predictions.logits[:, k], truth)
        area = f"{name}.roc_auc"
        text = f"{shown_name(name)}: AUROC {figure_text(area, values.get(area), intervals.get(area))}"
        axes.plot(np.r_[0, false / negatives], np.r_[0, found / positives], color=colour, lw=2, label=text)
        hits, called = int((truth * decided).sum()), int(decided.sum())
        axes.plot((called - hits) / negatives, hits / positives, color=colour, **_DOT)
    _unit_axes(axes, "false positive rate (1 - specificity)", "true positive rate (recall)")
    styled_title(axes, f"ROC ({len(predictions.table):,} cycles; dot: threshold in use)")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure


def precision_recall_plot(predictions: Predictions, values: Mapping[str, Any], intervals: Mapping[str, Any]) -> Figure:
    """Precision-recall curves of every label, AP and interval in the legend, the decision in use as a dot."""
    figure, (axes,) = styled_figure(4.7, 5.0, 1)
    for k, name, truth, decided in _two_sided(predictions):
        positives, colour = int(truth.sum()), label_colour(name, k)
        found, false = _operating_points(predictions.logits[:, k], truth)
        area = f"{name}.average_precision"
        text = f"{shown_name(name)}: AP {figure_text(area, values.get(area), intervals.get(area))}"
        recall, precision = found / positives, found / (found + false)
        axes.plot(np.r_[0, recall], np.r_[precision[0], precision], color=colour, lw=2, label=text)
        axes.axhline(positives / len(truth), color=colour, lw=1, ls=DASHED)
        if decided.any():
            hits = int((truth * decided).sum())
            axes.plot(hits / positives, hits / int(decided.sum()), color=colour, **_DOT)
    _unit_axes(axes, "recall", "precision")
    styled_title(axes, "Precision and recall (dashed: all cycles predicted positive)")
    if axes.lines:
        figure.legend(loc="outside lower center", **LEGEND)
    return figure


def reliability_plot(calibration: Mapping[str, Any]) -> Figure:
    """Observed frequency against predicted probability; a dot's area grows with the cycles in its bin."""
    figure, (axes,) = styled_figure(4.7, 5.0, 1)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=DASHED, label="perfectly calibrated")
    for k, (name, bins) in enumerate(calibration["bins"].items()):
        used, colour = [entry for entry in bins if entry["count"]], label_colour(name, k)
        total = max(sum(entry["count"] for entry in used), 1)
        x, y = [entry["mean_probability"] for entry in used], [entry["observed"] for entry in used]
        ece = figure_text("ece", calibration["ece"].get(name))
        axes.plot(x, y, color=colour, lw=1.6, alpha=0.85, label=f"{shown_name(name)}: ECE {ece}")
        areas = [18 + 500 * entry["count"] / total for entry in used]
        axes.scatter(x, y, s=areas, color=colour, alpha=0.55, lw=0)
    _unit_axes(axes, "predicted probability", "observed frequency")
    styled_title(axes, "Reliability in 15 bins (dot area: cycles in the bin)")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure


def decision_plot(name: str, curve: Mapping[str, Any], k: int = 0, in_use: float | None = None) -> Figure:
    """Net benefit of one label over the threshold probability.

    Args:
        name: The label.
        curve: Its entry of what `decision_curves` returned.
        k: Its position among the labels, for its colour.
        in_use: The threshold probability of the model.
    """
    figure, (axes,) = styled_figure(4.7, 4.4, 1)
    t, colour = curve["thresholds"], label_colour(name, k)
    known = [(x, *pair) for x, pair in zip(t, curve.get("intervals") or [], strict=False) if pair]
    top = max(max(curve["model"]), curve["prevalence"])
    if known:
        x, low, high = zip(*known, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.16, lw=0)
        top = max(top, *high)
    axes.plot(t, curve["treat_all"], color=QUIET, lw=1.3, ls=DASHED, label="act on every cycle")
    axes.axhline(0, color=INK, lw=1.1, label="act on none")
    axes.plot(t, curve["model"], color=colour, lw=2, label="act by the model")
    if in_use is not None:
        axes.axvline(in_use, color=colour, lw=1.1, ls=(0, (1, 2)), label=f"threshold in use, {in_use:.2f}")
    axes.set(xlim=(0, 1), ylim=(-0.25 * top, 1.06 * top))
    axis_labels(axes, "threshold probability", "net benefit, true positives per cycle")
    styled_title(axes, f"Decision curve, {name} ({100 * curve['prevalence']:.0f} % of {curve['cycles']:,} cycles)")
    figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    return figure


def length_plot(lengths: Mapping[str, Any], name: str, k: int = 0, alone: float | None = None) -> Figure:
    """AUROC of one label by length group with intervals, beside all cycles and the event-length baseline.

    Args:
        lengths: What `length_groups` returned.
        name: The label.
        k: Its position among the labels, for its colour.
        alone: AUROC of the event length alone.
    """
    figure, (axes,) = styled_figure(4.7, 4.6, 1)
    colour, groups = label_colour(name, k), lengths["groups"]
    seen = [0.5]
    for place, group in enumerate(groups):
        value, bounds = group["values"][name], group["intervals"][name]
        if bounds:
            axes.plot([place, place], bounds, color=colour, lw=1.6, solid_capstyle="round", alpha=0.8)
        if value is not None:
            axes.plot(place, value, "o", ms=6, color=colour, mfc=colour if bounds else "white")
        seen += [value or 0.5, *(bounds or [])]
        axes.text(place, 0.015, f"{group['positives'][name]}", ha="center", fontsize=8, color=QUIET,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    for value, style, text, shade in (
        (lengths["overall"]["values"][name], (0, (5, 2)), "all cycles", colour),
        (lengths["within"]["values"][name], "-", "within like lengths", colour),
        (alone, (0, (1, 2)), "event length alone", INK),
    ):
        if value is not None:
            seen.append(value)
            axes.axhline(value, color=shade, lw=1.3, ls=style, label=f"{text}: {value:.3f}", zorder=1)
    axes.axhline(0.5, color=QUIET, lw=0.9)
    spans = [f"{group['low_s']:.2g}–{group['high_s']:.2g}" for group in groups]
    axes.set_xticks(range(len(groups)), spans, rotation=45, ha="right")
    low = min(seen)
    axes.set(ylim=(low - 0.16 * (1.03 - low), 1.03), xlim=(-0.6, len(groups) - 0.4))  # room for the counts
    axes.set_yticks([tick for tick in np.arange(0, 1.01, 0.1) if tick >= low - 0.1])
    axis_labels(axes, f"cycle length in s (grey: number of cycles with {shown_name(name)})", "AUROC")
    styled_title(axes, f"{name.capitalize()} among cycles of like length")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure


def subgroup_plot(evaluation: Mapping[str, Any]) -> Figure:
    """The headline score of every subgroup with its interval, beside the score of all cycles."""
    name = evaluation["headline"]
    rows: list[tuple[str, Any]] = []
    for grouping, lines in evaluation["subgroups"].items():
        names = [(shown_name(str(line["value"])), line) for line in lines]
        rows += [(grouping.replace("_", " "), None), *names, ("", None)]
    figure, (axes,) = styled_figure(7.2, 1.1 + 0.24 * len(rows), 1)
    overall = evaluation["values"].get(name)
    if overall is not None:
        axes.axvline(overall, color=BLUE, lw=1.2, ls=DASHED)
        if bounds := (evaluation.get("intervals") or {}).get(name):
            axes.axvspan(bounds[0], bounds[1], color=BLUE, alpha=0.10, lw=0)
    for place, (text, line) in enumerate(rows):
        axes.text(-0.02, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9,
                  color=INK, fontweight="bold" if line is None else "normal")  # fmt: skip
        if line is None:
            continue
        value, bounds = line["values"].get(name), line["intervals"].get(name)
        if bounds:
            axes.plot(bounds, [place, place], color=INK, lw=1.6, solid_capstyle="round")
        if value is not None:
            axes.plot(value, place, marker="o", ms=6, color=INK, mfc=INK if bounds else "white", ls="none")
        note = f"{line['cycles']:,} cycles, {line['patients']} patient{'' if line['patients'] == 1 else 's'}"
        axes.text(1.02, place, note, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=QUIET)
    axes.set(xlim=(0, 100 if is_percent(name) else 1), ylim=(len(rows) - 1.4, -0.7), yticks=[])
    axes.set_xlabel(figure_name(name))
    axes.spines["left"].set_visible(False)
    styled_title(axes, f"{figure_name(name)} by subgroup (open dot: no interval; dashed: all cycles)")
    return figure


def geometry_plot(geometry: Mapping[str, Any]) -> Figure:
    """Mean and coefficient of variation of the angular distance between classes."""
    names = [shown_name(name, 24) for name in geometry["classes"]]
    figure, panels = styled_figure(2.2 + 1.75 * len(names), 1.5 + 0.85 * len(names), 2)
    for axes, key, title in zip(panels, ("mean", "cv"), ("mean of 1 - cos", "st. dev. / mean"), strict=True):
        values = np.array([[np.nan if value is None else value for value in row] for row in geometry[key]], dtype=float)
        _heat(axes, values, names, [["–" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values])
        styled_title(axes, f"Distance between classes, {title}")
    return figure
