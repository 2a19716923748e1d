"""The pictures of a report.

Decisions: every picture says in its title what was measured on how much; what a picture needs beyond the evaluation
(answers, lengths) is optional, and without it the picture is left out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from laennec.evaluation.calibration import sigmoid
from laennec.evaluation.decision import decision_picture
from laennec.evaluation.learning_curves import learning_curves
from laennec.evaluation.length import length_picture
from laennec.evaluation.metrics import confusion_matrix
from laennec.evaluation.picture_style import (
    BLUE,
    DEPTH,
    INK,
    LEGEND,
    QUIET,
    figure_png,
    house_figure,
    house_title,
    label_colour,
    shown_name,
)
from laennec.evaluation.predictions import Answers, read_predictions
from laennec.evaluation.summary import figure_name, figure_text, is_percent
from laennec.files import atomic_write

MOST_LABELS = 12  # of pictures with a curve or a number for each
_DOT: dict[str, Any] = {"ms": 8, "marker": "o", "mec": "white", "mew": 1.2, "ls": "none", "zorder": 5}


def save_picture(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    return _save(figure_png(figure), path)


def _save(content: bytes, path: str | Path) -> Path:
    with atomic_write(path, "wb") as file:
        file.write(content)
    return Path(path)


def write_pictures(
    folder: str | Path,
    evaluation: dict[str, Any],
    predictions: Any = None,
    *,
    run: dict[str, Any] | None = None,
    geometry: dict[str, Any] | None = None,
) -> dict[str, Path]:
    """Write every picture that the evaluation has the numbers for.

    Args:
        folder: Where the PNG files go.
        evaluation: What `evaluate_predictions` returned.
        predictions: The predictions table it was computed on; without it there are no curves.
        run: The run record, for the training curves.
        geometry: What `class_distances` returned.

    Returns:
        Paths by the names of `make_pictures`.
    """
    answers = None if predictions is None else evaluated_answers(predictions, evaluation)
    made = make_pictures(evaluation, answers, run=run, geometry=geometry)
    return {name: _save(content, Path(folder) / f"{name}.png") for name, content in made.items()}


def make_pictures(
    evaluation: dict[str, Any],
    answers: Answers | None = None,
    *,
    run: dict[str, Any] | None = None,
    geometry: dict[str, Any] | None = None,
    lengths: dict[str, Any] | None = None,
    curves: dict[str, Any] | None = None,
) -> dict[str, bytes]:
    """Every picture that the evaluation has the numbers for, as PNG.

    Args:
        evaluation: What `evaluate_predictions` returned.
        answers: The answers it was computed on; without them there are no curves.
        run: The run record, for the training curves.
        geometry: What `class_distances` returned.
        lengths: What `length_groups` returned.
        curves: What `decision_curves` returned.

    Returns:
        Those that there are of "confusion", "roc", "precision_recall", "reliability", "subgroups", "geometry",
        "training", "validation_percent", "validation_shares" and "loss_terms", and for the first, second ... label
        "label_confusion_1", "decision_1" and "length_1" ...
    """
    figures: dict[str, Figure] = {}
    many = len(evaluation.get("label_names", ())) > MOST_LABELS  # curves of 50 classes would show nothing
    if evaluation.get("confusion"):
        figures["confusion"] = confusion_picture(evaluation["confusion"]["matrix"], evaluation["confusion"]["classes"])
    if answers is not None and not many:
        for k in range(len(answers.label_names)):
            figures[f"label_confusion_{k + 1}"] = label_confusion_picture(answers, k)
        values, intervals = evaluation.get("values", {}), evaluation.get("intervals", {})
        figures["roc"] = roc_picture(answers, values, intervals)
        figures["precision_recall"] = precision_recall_picture(answers, values, intervals)
    if curves and not many:
        in_use = thresholds_in_use(evaluation)
        for k, (name, curve) in enumerate(curves.items()):
            figures[f"decision_{k + 1}"] = decision_picture(name, curve, k, in_use.get(name))
    if lengths is not None and not many:
        floor = length_floor(evaluation)
        for k, (name, value) in enumerate(lengths["overall"]["values"].items()):
            if value is None:  # one class only
                continue
            figures[f"length_{k + 1}"] = length_picture(lengths, name, k, floor.get(name))
    if evaluation.get("calibration"):
        figures["reliability"] = reliability_picture(_answered(evaluation["calibration"], many))
    if evaluation.get("subgroups"):
        figures["subgroups"] = subgroup_picture(evaluation)
    if geometry and not many:
        figures["geometry"] = geometry_picture(geometry)
    if run and run.get("history"):
        figures |= learning_curves(run["history"], run.get("best_epoch"))
    return {name: figure_png(figure) for name, figure in figures.items()}


def evaluated_answers(predictions: Any, evaluation: dict[str, Any]) -> Answers:
    """The answers of a predictions table, decided and calibrated as the evaluation says.

    Raises:
        InputError: See `read_predictions`.
    """
    return read_predictions(
        predictions,
        problem_type=evaluation["problem_type"],
        label_names=evaluation["output_names"],
        thresholds=evaluation["thresholds"],
        temperatures=evaluation.get("temperatures"),
        intercepts=evaluation.get("intercepts"),
    )


def thresholds_in_use(evaluation: dict[str, Any]) -> dict[str, float]:
    """The calibrated probability above which each label is called; none where an argmax decides."""
    temperatures, intercepts = evaluation.get("temperatures") or {}, evaluation.get("intercepts") or {}
    logits = evaluation.get("thresholds") or {}
    return {
        name: float(sigmoid(t / temperatures.get(name, 1.0) + intercepts.get(name, 0.0))) for name, t in logits.items()
    }


def length_floor(evaluation: dict[str, Any]) -> dict[str, float | None]:
    """AUROC of the event length alone, by label."""
    rows = [row for row in evaluation.get("floors") or [] if row["name"] == "event length"]
    return {label: row["values"].get(f"{label}.roc_auc") for row in rows for label in evaluation["label_names"]}


def _answered(calibration: dict[str, Any], many: bool) -> dict[str, Any]:
    """The calibration of the answered class alone, where there are many classes."""
    if not many:
        return calibration
    return {kind: {k: v for k, v in values.items() if k == "answered class"} for kind, values in calibration.items()}


def confusion_picture(matrix: Any, classes: Sequence[str], title: str | None = None) -> Figure:
    """A confusion (classes, classes): rows are the truth; colour and percent are shares of the row, counts below."""
    counts = np.asarray(matrix)
    size = 1.8 + (0.75 if len(classes) <= MOST_LABELS else 0.15) * len(classes)
    figure, (axes,) = house_figure(0.92 * size + 0.4, 0.92 * size, 1)
    _draw_confusion(axes, counts, classes)
    house_title(axes, title or f"What was heard, by what was there ({counts.sum():,} items)")
    return figure


def label_confusion_picture(answers: Answers, k: int) -> Figure:
    """The 2 x 2 confusion of one label."""
    name = answers.label_names[k]
    figure, (axes,) = house_figure(3.5, 2.5, 1)
    _draw_confusion(axes, confusion_matrix(answers.truth[:, k], answers.decided[:, k], 2), [f"no {name}", name])
    rule = "by the likeliest class" if answers.thresholds is None else f"logit > {answers.thresholds[k]:.2f}"
    house_title(axes, f"{name.capitalize()}, {rule}")
    return figure


def roc_picture(answers: Answers, values: dict[str, Any], intervals: dict[str, Any]) -> Figure:
    """ROC curves of every label, AUROC and interval in the legend, the decision in use as a dot."""
    figure, (axes,) = house_figure(4.7, 5.0, 1)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=(0, (4, 3)), label="chance")
    for k, name, truth, decided in _two_sided(answers):
        positives, negatives = int(truth.sum()), int((1 - truth).sum())
        found, false = _operating_points(answers.logits[:, k], truth)
        text = f"{shown_name(name)}: AUROC {_legend_text(f'{name}.roc_auc', values, intervals)}"
        axes.plot(
            np.r_[0, false / negatives], np.r_[0, found / positives], color=label_colour(name, k), lw=2, label=text
        )
        hits, called = int((truth * decided).sum()), int(decided.sum())
        axes.plot((called - hits) / negatives, hits / positives, color=label_colour(name, k), **_DOT)
    _unit_axes(
        axes, "share of cycles without it that are called (1 - specificity)", "share with it that are called (recall)"
    )
    house_title(axes, f"ROC ({len(answers.table):,} cycles; dot: decision in use)")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure


def precision_recall_picture(answers: Answers, values: dict[str, Any], intervals: dict[str, Any]) -> Figure:
    """Precision-recall curves of every label, AP and interval in the legend, the decision in use as a dot."""
    figure, (axes,) = house_figure(4.7, 5.0, 1)
    for k, name, truth, decided in _two_sided(answers):
        positives = int(truth.sum())
        found, false = _operating_points(answers.logits[:, k], truth)
        text = f"{shown_name(name)}: AP {_legend_text(f'{name}.average_precision', values, intervals)}"
        recall, precision = found / positives, found / (found + false)
        axes.plot(np.r_[0, recall], np.r_[precision[0], precision], color=label_colour(name, k), lw=2, label=text)
        axes.axhline(positives / len(truth), color=label_colour(name, k), lw=1, ls=(0, (4, 3)))
        if decided.any():
            hits = int((truth * decided).sum())
            axes.plot(hits / positives, hits / int(decided.sum()), color=label_colour(name, k), **_DOT)
    _unit_axes(axes, "share of cycles with it that are called (recall)", "share of calls that are right (precision)")
    house_title(axes, "Precision and recall (dashed: calling everything)")
    if axes.lines:
        figure.legend(loc="outside lower center", **LEGEND)
    return figure


def _two_sided(answers: Answers) -> Iterator[tuple[int, str, Any, Any]]:
    """Position, name, truth and decision of the labels that have both classes, the only ones with curves."""
    for k, name in enumerate(answers.label_names):
        if 0 < answers.truth[:, k].sum() < len(answers.truth):
            yield k, name, answers.truth[:, k], answers.decided[:, k]


def reliability_picture(calibration: dict[str, Any]) -> Figure:
    """Observed frequency against predicted probability; a dot's area grows with the cycles in its bin."""
    curves = calibration["bins"]
    figure, (axes,) = house_figure(4.7, 5.0, 1)
    axes.plot([0, 1], [0, 1], color=QUIET, lw=1, ls=(0, (4, 3)), label="perfectly calibrated")
    for k, (name, bins) in enumerate(curves.items()):
        used = [entry for entry in bins if entry["count"]]
        total = max(sum(entry["count"] for entry in used), 1)
        x, y = [entry["mean_probability"] for entry in used], [entry["observed"] for entry in used]
        ece = figure_text("ece", calibration["ece"].get(name))
        axes.plot(x, y, color=label_colour(name, k), lw=1.6, alpha=0.85, label=f"{shown_name(name)}: ECE {ece}")
        axes.scatter(
            x, y, s=[18 + 500 * entry["count"] / total for entry in used], color=label_colour(name, k), alpha=0.55, lw=0
        )
    _unit_axes(axes, "predicted probability", "observed frequency")
    house_title(axes, "Reliability in 15 bins (dot area: cycles in the bin)")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure


def subgroup_picture(evaluation: dict[str, Any]) -> Figure:
    """The headline score of every subgroup with its interval, beside the score of all."""
    name = evaluation["headline"]
    rows: list[tuple[str, Any]] = []
    for grouping, lines in evaluation["subgroups"].items():
        rows += [
            (grouping.replace("_", " "), None),
            *((shown_name(str(line["value"])), line) for line in lines),
            ("", None),
        ]
    figure, (axes,) = house_figure(7.2, 1.1 + 0.24 * len(rows), 1)
    overall = evaluation["values"].get(name)
    if overall is not None:
        axes.axvline(overall, color=BLUE, lw=1.2, ls=(0, (4, 3)))
        bounds = (evaluation.get("intervals") or {}).get(name)
        if bounds:
            axes.axvspan(bounds[0], bounds[1], color=BLUE, alpha=0.10, lw=0)
    top = 100 if is_percent(name) else 1
    for place, (text, line) in enumerate(rows):
        axes.text(-0.02, place, text, transform=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9,
                  color=INK, fontweight="bold" if line is None else "normal")  # fmt: skip
        if line is None:
            continue
        value, bounds = line["values"].get(name), line["intervals"].get(name)
        if bounds:
            axes.plot(bounds, [place, place], color=INK, lw=1.6, solid_capstyle="round")
        if value is not None:
            face = INK if bounds else "white"
            axes.plot(value, place, marker="o", ms=6, color=INK, mfc=face, ls="none")
        note = f"{line['cycles']:,} cycles, {line['patients']} patient{'' if line['patients'] == 1 else 's'}"
        axes.text(1.02, place, note, transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=QUIET)
    axes.set(xlim=(0, top), ylim=(len(rows) - 1.4, -0.7), yticks=[], xlabel=figure_name(name))
    axes.spines["left"].set_visible(False)
    house_title(axes, f"{figure_name(name)} by subgroup (open dot: no interval; dashed: all)")
    return figure


def geometry_picture(geometry: dict[str, Any]) -> Figure:
    """Mean and coefficient of variation of the angular distance between classes."""
    names = [shown_name(name, 24) for name in geometry["classes"]]
    figure, panels = house_figure(2.2 + 1.75 * len(names), 1.5 + 0.85 * len(names), 2)
    for axes, key, title in zip(panels, ("mean", "cv"), ("mean of 1 - cos", "spread: st. dev. / mean"), strict=True):
        values = np.array([[np.nan if value is None else value for value in row] for row in geometry[key]], dtype=float)
        _heat(axes, values, names, names, [["–" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values])
        house_title(axes, f"Distance between classes, {title}")
    return figure


def _unit_axes(axes: Any, x: str, y: str) -> None:
    """Both axes from 0 to 1, square."""
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), xlabel=x, ylabel=y, aspect="equal")
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)


def _heat(
    axes: Any,
    shade: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    texts: Sequence[Sequence[str]],
    top: float | None = None,
) -> None:
    """A labelled heat map from 0 to `top` (the largest value); the text turns white where the cell is dark."""
    finite = shade[np.isfinite(shade)]
    top = top or (max(float(finite.max()), 1e-9) if finite.size else 1.0)
    axes.imshow(np.nan_to_num(shade), cmap=DEPTH, vmin=0, vmax=top, aspect="equal")
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            dark = np.nan_to_num(shade)[i, j] > 0.45 * top
            axes.text(
                j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else INK, linespacing=1.25
            )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _draw_confusion(axes: Any, counts: Any, classes: Sequence[str]) -> None:
    """A confusion with shares of the row and counts in the cells."""
    classes = [shown_name(name, 24) for name in classes]
    total = counts.sum(1, keepdims=True)
    shares = 100 * counts / np.where(total == 0, 1, total)
    if len(classes) > MOST_LABELS:
        _heat(axes, shares, classes, classes, [], top=100.0)
        axes.tick_params(labelsize=6, axis="both")
        axes.tick_params(rotation=90, axis="x")
        return
    texts = [[f"{shares[i, j]:.0f} %\n{counts[i, j]:,}" for j in range(len(classes))] for i in range(len(classes))]
    _heat(axes, shares, classes, classes, texts, top=100.0)
    axes.set_xlabel("predicted", color=INK, fontsize=9)
    axes.set_ylabel("truth", color=INK, fontsize=9)


def _operating_points(scores: Any, truth: Any) -> tuple[Any, Any]:
    """Cumulated true and false calls at every distinct score, highest first."""
    order = np.argsort(-scores, kind="stable")
    last = np.r_[np.flatnonzero(np.diff(scores[order])), len(scores) - 1]
    return np.cumsum(truth[order])[last], np.cumsum(1 - truth[order])[last]


def _legend_text(figure: str, values: dict[str, Any], intervals: dict[str, Any]) -> str:
    """A value and its interval for a legend."""
    return figure_text(figure, values.get(figure), intervals.get(figure))
