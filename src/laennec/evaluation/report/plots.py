"""Plots of one evaluation.

Decisions: figures use matplotlib's object interface, so no global figure or backend is touched; colours are those of
Okabe and Ito, which colour-blind readers can tell apart, and each label keeps its colour in every plot. PNG files
have no time stamp, so equal numbers give equal files. Every plot says in its title what was measured; where there
are more labels than a plot can show, the plots of single labels are left out.
"""

import io
import struct
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine

from laennec.audio.spectrogram import RANGE_DB, Spectrogram
from laennec.evaluation.calibration.probabilities import calibration_name
from laennec.evaluation.metrics import PREDICTED_CLASS, confusion_matrix
from laennec.evaluation.predictions import Predictions
from laennec.evaluation.summary import figure_text, length_alone, row_noun, thresholds_in_use
from laennec.files import atomic_write
from laennec.rendering import data_uri

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, QUIET, HAIR = "#1f2933", "#66727f", "#d9dfe5"
OTHER_COLOURS = (GREEN, PURPLE, ORANGE, SKY, BLUE, VERMILION)
DASHED: Any = (0, (4, 3))
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": True, "framealpha": 0.9, "edgecolor": HAIR}
MOST_LABELS = 12  # largest number of labels in a plot with a curve or a number for each
_LABEL_COLOURS = {"crackle": BLUE, "wheeze": VERMILION}
_DEPTH = LinearSegmentedColormap.from_list("depth", ["#f7fafc", "#9cc5e0", "#0072B2", "#003f63"])
_DPI = 160
_UNSIGNED: dict[str, Any] = {"Software": None}  # no version of matplotlib in a file
_PIXELS_PER_INCH = 100  # on a page, so that letters are equally large in all plots
_DOT: dict[str, Any] = {"ms": 8, "marker": "o", "mec": "white", "mew": 1.2, "ls": "none", "zorder": 5}


def figure_png(figure: Figure) -> bytes:
    """A figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # savefig would draw twice, once for the layout alone
    imsave(buffer, canvas.buffer_rgba(), format="png", dpi=_DPI, metadata=_UNSIGNED)
    return buffer.getvalue()


def spectrogram_png(spectrogram: Spectrogram) -> bytes:
    """A spectrogram as PNG bytes, one pixel a bin and column, low frequencies at the bottom."""
    buffer, level = io.BytesIO(), spectrogram.level_db()
    imsave(buffer, level, format="png", cmap="magma", vmin=-RANGE_DB, vmax=0, origin="lower", metadata=_UNSIGNED)
    return buffer.getvalue()


def save_picture(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    with atomic_write(path, "wb") as file:
        file.write(figure_png(figure))
    return Path(path)


def embedded_picture(png: bytes, alt: str) -> dict[str, Any]:
    """A PNG for a page: {"uri", "width", "height", "alt"}."""
    width, height = (round(side * _PIXELS_PER_INCH / _DPI) for side in struct.unpack(">II", png[16:24]))
    return {"uri": data_uri("image/png", png), "width": width, "height": height, "alt": alt}


def styled_figure(width: float, height: float, columns: int, lines: int = 1) -> tuple[Figure, list[Any]]:
    """A figure of a size in inches with panels in `columns` and `lines`, in the style of all plots."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    axes = list(figure.subplots(lines, columns, squeeze=False).ravel())
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(QUIET)
        one.tick_params(colors=QUIET, labelsize=9, labelcolor=INK)
        one.grid(color=HAIR, lw=0.6)
        one.set_axisbelow(True)
    return figure, axes


def panels(n: int, width: float, height: float, columns: int = 2) -> tuple[Figure, list[Any]]:
    """A figure with n panels of a size in inches, at most `columns` beside one another."""
    columns = min(columns, n)
    lines = -(-n // columns)
    figure, axes = styled_figure(width * columns, height * lines, columns, lines)
    for one in axes[n:]:
        one.set_visible(False)
    return figure, axes[:n]


def styled_title(axes: Any, text: str) -> None:
    """A left-aligned title, on several lines where a panel is narrow."""
    width_in = axes.figure.get_figwidth() / axes.get_subplotspec().get_gridspec().ncols
    lines = textwrap.fill(text.replace("$", r"\$"), int(10 * width_in))  # a letter is about 0.08 inches wide
    axes.set_title(lines, loc="left", fontsize=10, color=INK, fontweight="bold", pad=9)


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
    predictions: Predictions,
    lengths: Mapping[str, Any] | None,
    curves: Mapping[str, Any],
) -> dict[str, Figure]:
    """Every plot that the evaluation has the numbers for, by name; those of single labels end in _1, _2 ..."""
    figures: dict[str, Figure] = {}
    many = len(evaluation["label_names"]) > MOST_LABELS  # curves of 50 classes would be unreadable
    if confusion := evaluation.get("confusion"):
        figures["confusion"] = confusion_plot(confusion["matrix"], confusion["classes"])
    if not many:
        in_use = thresholds_in_use(evaluation)
        for k, name in enumerate(predictions.label_names):
            figures[f"label_confusion_{k + 1}"] = label_confusion_plot(predictions, k, in_use.get(name))
        figures["roc"] = roc_plot(predictions, evaluation)
        figures["precision_recall"] = precision_recall_plot(predictions, evaluation)
        for k, (name, curve) in enumerate(curves.items()):
            figures[f"decision_{k + 1}"] = decision_plot(name, curve, k, in_use.get(name))
        alone = length_alone(evaluation)
        for k, (name, value) in enumerate(lengths["overall"]["values"].items() if lengths else ()):
            if value is not None:  # both classes occur
                figures[f"length_{k + 1}"] = length_plot(lengths or {}, name, k, alone.get(name))
    figures["reliability"] = reliability_plot(evaluation["calibration"], many)
    return figures


def confusion_plot(matrix: Any, classes: Sequence[str]) -> Figure:
    """A confusion (classes, classes): rows are the truth; colour and percent are shares of the row, counts below."""
    counts = np.asarray(matrix)
    size = 1.8 + (0.75 if len(classes) <= MOST_LABELS else 0.15) * len(classes)
    figure, (axes,) = styled_figure(0.92 * size + 0.4, 0.92 * size, 1)
    _draw_confusion(axes, counts, classes)
    styled_title(axes, f"Confusion matrix ({counts.sum():,} items)")
    return figure


def label_confusion_plot(predictions: Predictions, k: int, threshold: float | None) -> Figure:
    """The 2 x 2 confusion of label number k, predicted above a calibrated probability."""
    name = predictions.label_names[k]
    figure, (axes,) = styled_figure(3.5, 2.5, 1)
    _draw_confusion(axes, confusion_matrix(predictions.truth[:, k], predictions.decided[:, k], 2), [f"no {name}", name])
    rule = "most probable class" if threshold is None else f"above {threshold:.2f}"
    styled_title(axes, f"{name.capitalize()}, {rule}")
    return figure


def _draw_confusion(axes: Any, counts: Any, classes: Sequence[str]) -> None:
    """A heat map of a confusion, with numbers in the cells where there is room."""
    total = counts.sum(1, keepdims=True)
    shares = 100 * counts / np.where(total == 0, 1, total)
    axes.imshow(shares, cmap=_DEPTH, vmin=0, vmax=100, aspect="equal")
    names, few = [shown_name(name, 24) for name in classes], len(classes) <= MOST_LABELS
    for i, j in np.ndindex(shares.shape if few else (0, 0)):
        colour = "white" if shares[i, j] > 45 else INK
        text = f"{shares[i, j]:.0f} %\n{counts[i, j]:,}"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour, linespacing=1.25)
    axes.set_xticks(range(len(names)), names, rotation=0 if few else 90)
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9 if few else 6)
    if few:
        axis_labels(axes, "predicted", "truth")


def _labels_with_both_classes(predictions: Predictions) -> Iterator[tuple[str, Any, Any, Any, str]]:
    """Name, truth, decision, scores and colour of the labels that have both classes; only they have curves."""
    for k, name in enumerate(predictions.label_names):
        truth = predictions.truth[:, k]
        if 0 < truth.sum() < len(truth):
            yield name, truth, predictions.decided[:, k], predictions.logits[:, k], label_colour(name, k)


def _unit_axes(axes: Any, x: str, y: str) -> None:
    """Both axes from 0 to 1, square."""
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect="equal")
    axis_labels(axes, x, y)


def _legend_text(evaluation: Mapping[str, Any], label: str, kind: str, title: str) -> str:
    name = f"{label}.{kind}"
    value = figure_text(name, evaluation["values"].get(name), evaluation["intervals"].get(name))
    return f"{shown_name(label)}: {title} {value}"


def roc_plot(predictions: Predictions, evaluation: Mapping[str, Any]) -> Figure:
    """ROC curves of every label, with AUROC and interval; a dot marks the operating point in use."""
    from sklearn.metrics import roc_curve

    figure, (axes,) = styled_figure(4.7, 5.0, 1)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=DASHED, label="chance")
    for name, truth, decided, scores, colour in _labels_with_both_classes(predictions):
        x, y, _ = roc_curve(truth, scores)
        axes.plot(x, y, color=colour, lw=2, label=_legend_text(evaluation, name, "roc_auc", "AUROC"))
        axes.plot(decided[truth == 0].mean(), decided[truth == 1].mean(), color=colour, **_DOT)
    _unit_axes(axes, "false positive rate (1 - specificity)", "true positive rate (recall)")
    styled_title(axes, f"ROC ({len(predictions.table):,} {row_noun(evaluation)}s; dot: threshold in use)")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure


def precision_recall_plot(predictions: Predictions, evaluation: Mapping[str, Any]) -> Figure:
    """Precision-recall curves of every label, with AP and interval; a dot marks the operating point in use."""
    from sklearn.metrics import precision_recall_curve

    figure, (axes,) = styled_figure(4.7, 5.0, 1)
    for name, truth, decided, scores, colour in _labels_with_both_classes(predictions):
        precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
        text = _legend_text(evaluation, name, "average_precision", "AP")
        axes.plot(recall[:-1], precision[:-1], color=colour, lw=2, label=text)  # the last point is a convention
        axes.axhline(truth.mean(), color=colour, lw=1, ls=DASHED)
        if decided.any():
            axes.plot(decided[truth == 1].mean(), truth[decided == 1].mean(), color=colour, **_DOT)
    _unit_axes(axes, "recall", "precision")
    styled_title(axes, "Precision and recall (dashed: all predicted positive)")
    if axes.lines:
        figure.legend(loc="outside lower center", **LEGEND)
    return figure


def reliability_plot(calibration: Mapping[str, Any], classes_only: bool = False) -> Figure:
    """Observed frequency against predicted probability; a dot's area grows with the cycles in its bin."""
    figure, (axes,) = styled_figure(4.7, 5.0, 1)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=DASHED, label="perfectly calibrated")
    for k, (name, bins) in enumerate(calibration["bins"].items()):
        if classes_only and name != PREDICTED_CLASS:
            continue
        used, colour = [entry for entry in bins if entry["count"]], label_colour(name, k)
        total = max(sum(entry["count"] for entry in used), 1)
        x, y = [entry["mean_probability"] for entry in used], [entry["observed"] for entry in used]
        ece = figure_text("ece", calibration["ece"].get(name))
        axes.plot(x, y, color=colour, lw=1.6, alpha=0.85, label=f"{shown_name(calibration_name(name))}: ECE {ece}")
        areas = [18 + 500 * entry["count"] / total for entry in used]
        axes.scatter(x, y, s=areas, color=colour, alpha=0.55, lw=0)
    _unit_axes(axes, "predicted probability", "observed frequency")
    styled_title(axes, "Reliability in 15 bins (dot area: number in the bin)")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure


def decision_plot(name: str, curve: Mapping[str, Any], k: int = 0, in_use: float | None = None) -> Figure:
    """Net benefit of one label over the threshold probability."""
    figure, (axes,) = styled_figure(4.7, 4.4, 1)
    t, colour = curve["thresholds"], label_colour(name, k)
    known = [(x, *pair) for x, pair in zip(t, curve.get("intervals") or [], strict=False) if pair]
    top = max(max(curve["model"]), curve["prevalence"])
    if known:
        x, low, high = zip(*known, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.16, lw=0)
        top = max(top, *high)
    axes.plot(t, curve["treat_all"], color=QUIET, lw=1.3, ls=DASHED, label="act on all")
    axes.axhline(0, color=INK, lw=1.1, label="act on none")
    axes.plot(t, curve["model"], color=colour, lw=2, label="act by the model")
    if in_use is not None:
        axes.axvline(in_use, color=colour, lw=1.1, ls=(0, (1, 2)), label=f"threshold in use, {in_use:.2f}")
    axes.set(xlim=(0, 1), ylim=(-0.25 * top, 1.06 * top))
    axis_labels(axes, "threshold probability", "net benefit, share of all")
    styled_title(axes, f"Decision curve, {name} ({100 * curve['prevalence']:.0f} % of {curve['cycles']:,})")
    figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    return figure


def length_plot(lengths: Mapping[str, Any], name: str, k: int = 0, alone: float | None = None) -> Figure:
    """AUROC of one label by length group with intervals, beside all cycles and the event-length baseline."""
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
        (lengths["overall"]["values"][name], (0, (5, 2)), "all", colour),
        (lengths["within"]["values"][name], "-", "within similar lengths", colour),
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
    axis_labels(axes, f"length in s (grey: number with {shown_name(name)})", "AUROC")
    styled_title(axes, f"{name.capitalize()} among similar lengths")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure
