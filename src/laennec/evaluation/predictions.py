"""The predictions table, read once and scored.

Decisions: a two-label answer becomes one of four classes by its two bits, a single-label answer is the argmax;
from a four-class model the crackle and wheeze scores are the log-odds of the added probabilities, so that both kinds
of model have the same per-label figures. Rows whose truth is unknown are left out and counted. Thresholds are in
logits and apply before any temperature, which never changes a ranking; calibration is that of the probabilities after
it. Only the four classes of ICBHI get an ICBHI
Score; other class lists get the scores that are theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from laennec.errors import InputError
from laennec.evaluation import metrics
from laennec.evaluation.bootstrap import Statistic
from laennec.evaluation.calibration import (
    brier_score,
    calibrated_logits,
    expected_calibration_error,
    reliability_bins,
    sigmoid,
    softmax,
)
from laennec.evaluation.metrics import CLASSES, FloatArray, IntArray, RankedLabel, Thresholds
from laennec.evaluation.own_metrics import Metric, OwnMetrics, bind_metrics
from laennec.evaluation.sprsound import POOR_QUALITY, POOR_QUALITY_CONVENTION

ProblemType: TypeAlias = Literal["multi_label", "single_label"]
HEART_SOUNDS = ("normal", "abnormal")  # their (Sp + Se) / 2 is the any-abnormal Score; SPRSound has nothing to say
_TINY = 1e-12


@dataclass(frozen=True)
class Answers:
    """A predictions table as arrays: what was true, what was said, how surely.

    Attributes:
        table: The scored rows (cycles), a DataFrame.
        unlabelled: Rows left out because their truth is unknown.
        class_names: Normal first; empty where two or more labels do not make classes.
        true: Class ids (cycles,), or empty.
        predicted: Class ids (cycles,), or empty.
        label_names: Names of the binary labels.
        truth: 0/1 (cycles, labels).
        logits: Scores that rank each label (cycles, labels).
        decided: 0/1 (cycles, labels).
        probabilities: Of each label, after temperatures (cycles, labels).
        thresholds: In logits (labels,); None where an argmax decides.
        confidence: Probability of the answered class (cycles,); None for two-label answers.
        own: The user's own metrics; None for none.
    """

    table: Any
    unlabelled: int
    class_names: tuple[str, ...]
    true: IntArray
    predicted: IntArray
    label_names: tuple[str, ...]
    truth: IntArray
    logits: FloatArray
    decided: IntArray
    probabilities: FloatArray
    thresholds: FloatArray | None
    confidence: FloatArray | None
    own: OwnMetrics | None = None

    def part(self, rows: Any) -> "Answers":
        """The same for some of the rows, given as a mask (cycles,)."""
        named = {name: getattr(self, name)[rows] for name in ("truth", "logits", "decided", "probabilities")}
        if self.class_names:
            named |= {"true": self.true[rows], "predicted": self.predicted[rows]}
        if self.confidence is not None:
            named["confidence"] = self.confidence[rows]
        if self.own is not None:
            named["own"] = self.own.subset(rows)
        return replace(self, table=self.table.loc[rows].reset_index(drop=True), **named)

    @property
    def confusion(self) -> IntArray | None:
        """Counts (classes, classes), or None where there are no classes."""
        if not self.class_names:
            return None
        return metrics.confusion_matrix(self.true, self.predicted, len(self.class_names))


def read_predictions(
    predictions: Any,
    *,
    problem_type: ProblemType,
    label_names: Sequence[str],
    thresholds: Thresholds = None,
    temperatures: Mapping[str, float] | None = None,
    intercepts: Mapping[str, float] | None = None,
    metrics: Sequence[Metric | str] = (),
) -> Answers:
    """Read a predictions table into arrays.

    Args:
        predictions: DataFrame with `logit_<name>` for each label name and the truth: one 0/1 column per label
            (multi_label), or
            `label` with class names (single_label; for the four classes, `crackle` and `wheeze` serve too).
        problem_type: "multi_label" or "single_label".
        label_names: Names of the outputs.
        thresholds: In logits, for multi_label only; None is 0 (probability 0.5).
        temperatures: Divisor of each output's logit, by name, for probabilities; 1 where absent.
        intercepts: What is added to it then, by name; 0 where absent.
        metrics: Own metrics (functions or dotted names), evaluated with the built-in ones; see `own_metrics.Metric`.

    Raises:
        InputError: A missing column, a logit that is not finite, a label that is no class, or no labelled row at all.
        ValueError: An unknown problem type.
    """
    names = [str(name) for name in label_names]
    if problem_type not in ("multi_label", "single_label"):
        raise ValueError(f"problem_type must be multi_label or single_label, not {problem_type!r}")
    missing = [f"logit_{name}" for name in names if f"logit_{name}" not in predictions.columns]
    if missing:
        raise InputError(
            f"predictions table: no column {', '.join(missing)}; evaluate with the label names it was written with"
        )
    truth_columns = _truth_columns(predictions, problem_type, names)
    known = predictions[truth_columns].notna().all(axis=1).to_numpy()
    if not known.any():
        raise InputError(
            f"predictions table: no row of {len(predictions)} has its {' and '.join(truth_columns)}; nothing to score"
        )
    table = predictions.loc[known].reset_index(drop=True)
    logits = np.column_stack([_numbers(table, f"logit_{name}") for name in names])
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise InputError(
            f"predictions table: {bad} of {len(table)} rows have a logit that is not a number; predict again"
        )
    calibrated = calibrated_logits(logits, names, temperatures, intercepts)
    unlabelled = int((~known).sum())
    if problem_type == "multi_label":
        answers = _read_labels(table, unlabelled, names, logits, thresholds, sigmoid(calibrated))
    else:
        answers = _read_classes(table, unlabelled, names, calibrated)
    if not metrics:
        return answers
    return replace(answers, own=bind_metrics(metrics, metric_table(answers), list(point_values(answers))))


def metric_table(answers: Answers) -> Any:
    """The scored rows with the columns that own metrics read; see `own_metrics.Metric`."""
    columns: dict[str, Any] = {}
    for k, name in enumerate(answers.label_names):
        columns[f"true_{name}"] = answers.truth[:, k]
        columns[f"probability_{name}"] = answers.probabilities[:, k]
        columns[f"predicted_{name}"] = answers.decided[:, k]
    if answers.class_names:
        names = np.array(answers.class_names)
        columns |= {"true_class": names[answers.true], "predicted_class": names[answers.predicted]}
    return answers.table.assign(**columns)


def _numbers(table: Any, column: str) -> FloatArray:
    """A column as numbers (rows,), NaN where there is none."""
    try:
        return np.asarray(table[column].to_numpy(dtype=float, na_value=np.nan))
    except (TypeError, ValueError, OverflowError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"predictions table: column {column} holds other than numbers ({said}); correct it") from error


def _flags(table: Any, names: list[str]) -> IntArray:
    """Columns of yes and no as 0 and 1 (rows, names)."""
    truth = np.column_stack([_numbers(table, name) for name in names])
    if not np.isin(truth, (0, 1)).all():
        raise InputError(f"predictions table: the truth in {', '.join(names)} must be 0 or 1")
    return truth.astype(np.int64)


def _truth_columns(predictions: Any, problem_type: ProblemType, names: list[str]) -> list[str]:
    """The columns that hold the truth."""
    wanted = names if problem_type == "multi_label" else ["label"]
    if problem_type == "single_label" and "label" not in predictions.columns and set(names) == set(CLASSES):
        wanted = ["crackle", "wheeze"]
    missing = [name for name in wanted if name not in predictions.columns]
    if missing:
        raise InputError(
            f"predictions table: no truth column {', '.join(missing)}; write the table with the corpus's labels"
        )
    return wanted


def _read_labels(
    table: Any,
    unlabelled: int,
    names: list[str],
    logits: FloatArray,
    thresholds: Thresholds,
    probabilities: FloatArray,
) -> Answers:
    """Two or more yes/no labels; crackle and wheeze make the four classes."""
    truth = _flags(table, names)
    row = metrics.threshold_row(thresholds, names)
    decided = (logits > row).astype(np.int64)
    classes: tuple[str, ...] = ()
    true = predicted = np.zeros(0, dtype=np.int64)
    if set(names) == {"crackle", "wheeze"}:
        classes, c, w = CLASSES, names.index("crackle"), names.index("wheeze")
        true = metrics.four_class(truth[:, c], truth[:, w])
        predicted = metrics.four_class(decided[:, c], decided[:, w])
    return Answers(
        table, unlabelled, classes, true, predicted, tuple(names), truth, logits, decided, probabilities, row, None
    )


def _read_classes(table: Any, unlabelled: int, names: list[str], logits: FloatArray) -> Answers:
    """One of several classes: normal first, then the order given."""
    normal = next((name for name in names if name.lower() == "normal"), None)
    classes = [*([normal] if normal else []), *(name for name in names if name != normal)]
    if set(names) == set(CLASSES):
        classes = list(CLASSES)
    probabilities = softmax(logits)[:, [names.index(name) for name in classes]]
    true = _true_classes(table, classes)
    predicted = probabilities.argmax(1)
    one_hot, answered = np.eye(len(classes), dtype=np.int64)[true], np.eye(len(classes), dtype=np.int64)[predicted]
    if classes == list(CLASSES):
        labels, mixing = ["crackle", "wheeze"], np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    elif len(classes) == 2:
        labels, mixing = classes[1:], np.array([[0], [1]])
    else:
        labels, mixing = classes, np.eye(len(classes), dtype=np.int64)
    share = np.clip(probabilities @ mixing, 0, 1)
    log_odds = np.log(share + _TINY) - np.log(np.clip(probabilities @ (1 - mixing), 0, 1) + _TINY)
    return Answers(
        table=table,
        unlabelled=unlabelled,
        class_names=tuple(classes),
        true=true,
        predicted=predicted.astype(np.int64),
        label_names=tuple(labels),
        truth=one_hot @ mixing,
        logits=log_odds,
        decided=answered @ mixing,
        probabilities=share,
        thresholds=None,
        confidence=probabilities.max(1),
    )


def _true_classes(table: Any, classes: list[str]) -> IntArray:
    """Class ids of the truth (cycles,)."""
    if "label" not in table.columns:
        return metrics.four_class(*_flags(table, ["crackle", "wheeze"]).T)
    unknown = sorted(set(table["label"].astype(str)) - set(classes))
    if unknown:
        raise InputError(f"predictions table: label {', '.join(map(repr, unknown))} is none of {', '.join(classes)}")
    return np.array([classes.index(str(label)) for label in table["label"]], dtype=np.int64)


def class_scores(confusion: Any, class_names: Sequence[str]) -> dict[str, FloatArray]:
    """Every score that these classes have, for confusions (..., n, n): {"icbhi.Score": (...), ...} in percent.

    Poor Quality recordings follow the SPRSound convention; a class list without a normal class has accuracy and UAR
    only.
    """
    counts = np.asarray(confusion, dtype=float)
    values = {"accuracy": metrics.accuracy(counts), "uar": metrics.uar(counts)}
    if not class_names or class_names[0].lower() != "normal":
        return values
    scored = counts
    if POOR_QUALITY in class_names:
        scored = counts.copy()
        scored[..., list(class_names).index(POOR_QUALITY), :] = 0
    sp, se, found = (
        metrics.specificity(scored),
        metrics.exact_sensitivity(scored),
        metrics.any_abnormal_sensitivity(scored),
    )
    if tuple(class_names) == CLASSES:
        values |= {"icbhi.Sp": sp, "icbhi.Se": se, "icbhi.Score": (sp + se) / 2}
    if POOR_QUALITY not in class_names:
        values |= {"any_abnormal.Sp": sp, "any_abnormal.Se": found, "any_abnormal.Score": (sp + found) / 2}
    if tuple(name.lower() for name in class_names) == HEART_SOUNDS:
        return values
    mean, harmonic = (se + sp) / 2, metrics.harmonic(se, sp)
    return values | {
        "sprsound.SE": se,
        "sprsound.SP": sp,
        "sprsound.AS": mean,
        "sprsound.HS": harmonic,
        "sprsound.Score": (mean + harmonic) / 2,
    }


def answer_statistics(answers: Answers) -> Statistic:
    """Every named figure of these answers as a function of row weights, for the point estimate and the bootstrap alike.

    Returns:
        Weights (draws, cycles) -> {"icbhi.Score", ..., "<label>.roc_auc", "<label>.f1", ..., "f1_macro", ...:
        (draws,)}.
    """
    n = len(answers.class_names)
    pairs = np.eye(n * n)[answers.true * n + answers.predicted] if n else np.zeros((0, 0))
    hits = answers.truth * answers.decided
    ranked = [RankedLabel(answers.logits[:, k], answers.truth[:, k]) for k in range(len(answers.label_names))]

    def statistics(weights: FloatArray) -> dict[str, FloatArray]:
        values = class_scores((weights @ pairs).reshape(-1, n, n), answers.class_names) if n else {}
        found, called, actual = weights @ hits, weights @ answers.decided, weights @ answers.truth  # (draws, labels)
        f1 = metrics.f1_of(found, called, actual)
        precision, recall = metrics.ratio_or_zero(found, called), metrics.ratio_or_zero(found, actual)
        area = np.stack([label.auroc(weights) for label in ranked], 1)
        average_precision = np.stack([label.average_precision(weights) for label in ranked], 1)
        by_name = {
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "roc_auc": area,
            "average_precision": average_precision,
        }
        for k, label in enumerate(answers.label_names):
            values |= {f"{label}.{name}": figures[:, k] for name, figures in by_name.items()}
        values |= {f"{name}_macro": by_name[name].mean(1) for name in ("f1", "roc_auc", "average_precision")}
        values["f1_micro"] = metrics.f1_of(found.sum(1), called.sum(1), actual.sum(1))
        return values | (answers.own.statistic(weights) if answers.own is not None else {})

    return statistics


def point_values(answers: Answers) -> dict[str, float | None]:
    """The figures of `answer_statistics` with every cycle counted once."""
    ones = np.ones((1, len(answers.table)))
    return {name: metrics.none_if_nan(values[0]) for name, values in answer_statistics(answers)(ones).items()}


def predictions_metrics(
    predictions: Any, *, problem_type: ProblemType, label_names: Sequence[str], thresholds: Thresholds = None
) -> dict[str, Any]:
    """Score a predictions table: every named score, the confusion, per-label figures and calibration.

    Args:
        predictions: The predictions table; see `read_predictions`.
        problem_type: "multi_label" or "single_label".
        label_names: Names of the outputs.
        thresholds: In logits, chosen on validation; None is 0 (probability 0.5).

    Returns:
        A JSON-ready dictionary: problem_type, output_names, label_names, thresholds, counts, definitions, values
        (flat, in percent
        for scores of
        confusions and shares of 1 for the rest), scores (nested), confusion, labels (the layout of
        `multilabel_metrics`),
        calibration {ece, brier, bins}, notes. What is undefined is None.

    Raises:
        InputError: See `read_predictions`.
    """
    answers = read_predictions(predictions, problem_type=problem_type, label_names=label_names, thresholds=thresholds)
    return describe(answers, problem_type, label_names)


def describe(answers: Answers, problem_type: ProblemType, output_names: Sequence[str]) -> dict[str, Any]:
    """The dictionary of `predictions_metrics` for answers already read."""
    values = point_values(answers)
    labels = metrics.multilabel_metrics(answers.logits, answers.truth, answers.label_names, predicted=answers.decided)
    notes = list(labels.pop("notes"))
    if answers.unlabelled:
        notes.append(f"{answers.unlabelled} rows have no known truth and are left out")
    if POOR_QUALITY in answers.class_names:
        notes.append(POOR_QUALITY_CONVENTION)
    scores: dict[str, Any] = {}
    for name, value in values.items():
        family, _, figure = name.partition(".")
        if family in ("icbhi", "any_abnormal", "sprsound"):
            scores.setdefault(family, {})[figure] = value
        elif name in ("accuracy", "uar"):
            scores[name] = value
    confusion = answers.confusion
    if confusion is not None:
        scores["macro_one_vs_rest"] = {
            k: metrics.none_if_nan(v) for k, v in metrics.macro_one_vs_rest(confusion).items()
        }
    row = answers.thresholds
    return {
        "problem_type": problem_type,
        "output_names": list(output_names),
        "label_names": list(answers.label_names),
        "class_names": list(answers.class_names),
        "thresholds": None if row is None else dict(zip(answers.label_names, row.tolist(), strict=True)),
        "counts": _counts(answers),
        "definitions": definitions(values),
        "headline": headline(values),
        "values": values,
        "scores": scores,
        "confusion": None
        if confusion is None
        else {"classes": list(answers.class_names), "matrix": confusion.tolist()},
        "labels": labels,
        "calibration": calibration_of(answers),
        "notes": notes,
    }


def headline(values: dict[str, float | None]) -> str:
    """The name of the figure that stands for the whole evaluation of these classes."""
    return next(
        name
        for name in ("icbhi.Score", "sprsound.Score", "any_abnormal.Score", "accuracy", "roc_auc_macro")
        if name in values
    )


def definitions(values: dict[str, float | None]) -> dict[str, str]:
    """The definition of each score that was computed, to be printed beside it."""
    texts = {
        "icbhi": metrics.ICBHI_SCORE_DEFINITION,
        "any_abnormal": metrics.ANY_ABNORMAL_DEFINITION,
        "sprsound": metrics.SPRSOUND_SCORE_DEFINITION,
    }
    return {family: text for family, text in texts.items() if f"{family}.Score" in values}


def _counts(answers: Answers) -> dict[str, Any]:
    """How much the figures rest on."""
    table = answers.table
    count: dict[str, Any] = {"cycles": len(table), "unlabelled": answers.unlabelled}
    for name in ("patient", "recording"):
        column = f"{name}_id"
        count[f"{name}s"] = int(table[column].nunique()) if column in table.columns else None
    by_class: Any = np.bincount(answers.true, minlength=len(answers.class_names)) if answers.class_names else []
    count["classes"] = {name: int(n) for name, n in zip(answers.class_names, by_class, strict=True)}
    count["labels"] = {name: int(n) for name, n in zip(answers.label_names, answers.truth.sum(0), strict=True)}
    return count


def calibration_of(answers: Answers) -> dict[str, Any]:
    """Calibration error, Brier score and reliability bins of each label, and of the answered class if there is one."""
    curves = {name: (answers.probabilities[:, k], answers.truth[:, k]) for k, name in enumerate(answers.label_names)}
    if answers.confidence is not None:
        curves["answered class"] = (answers.confidence, (answers.true == answers.predicted).astype(np.int64))
    return {
        "ece": {name: metrics.none_if_nan(expected_calibration_error(p, y)) for name, (p, y) in curves.items()},
        "brier": {name: metrics.none_if_nan(brier_score(p, y)) for name, (p, y) in curves.items()},
        "bins": {name: reliability_bins(p, y) for name, (p, y) in curves.items()},
    }
