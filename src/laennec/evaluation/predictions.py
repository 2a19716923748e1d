"""A predictions table as arrays, and its scores.

Decisions: two labels (crackle, wheeze) map to one of four classes by their two bits; a single-label prediction is the
argmax. The crackle and wheeze scores of a four-class model are the log-odds of the added probabilities, so both kinds
of model have the same per-label metrics. Rows with unknown truth are left out and counted. Thresholds are in raw
logits, before the temperature (which never changes a ranking); calibration is measured after it. Only the four ICBHI
classes have an ICBHI Score.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from laennec.errors import InputError
from laennec.evaluation import metrics as scores
from laennec.evaluation.calibration.probabilities import (
    brier_score,
    calibrated_logits,
    expected_calibration_error,
    pass_second,
    reliability_bins,
    sigmoid,
    softmax,
)
from laennec.evaluation.intervals import Statistic, effective_patients, number_behind, patient_codes, rarer_patients
from laennec.evaluation.metrics import (
    CLASSES,
    POOR_QUALITY,
    POOR_QUALITY_CONVENTION,
    PREDICTED_CLASS,
    FloatArray,
    IntArray,
    RankedLabel,
    Thresholds,
    none_if_nan,
)
from laennec.evaluation.own_metrics import Metric, OwnMetrics, bind_metrics
from laennec.files import read_parquet

ProblemType: TypeAlias = Literal["multi_label", "single_label"]
HEART_SOUNDS = ("normal", "abnormal")  # their (Sp + Se) / 2 is the any-abnormal Score; no SPRSound Score
_TINY = 1e-12
_DEFINITIONS = {
    "icbhi": scores.ICBHI_SCORE_DEFINITION,
    "any_abnormal": scores.ANY_ABNORMAL_DEFINITION,
    "sprsound": scores.SPRSOUND_SCORE_DEFINITION,
}
_HEADLINES = ("icbhi.Score", "sprsound.Score", "any_abnormal.Score", "accuracy", "roc_auc_macro")


@dataclass(frozen=True)
class Predictions:
    """A predictions table as arrays: truth, predictions and probabilities."""

    table: Any  # the scored rows (cycles), a DataFrame
    unlabelled: int  # number of rows left out because their truth is unknown
    class_names: tuple[str, ...]  # normal first; empty where the labels do not form classes
    true: IntArray  # class ids (cycles,), or empty
    predicted: IntArray  # class ids (cycles,), or empty
    label_names: tuple[str, ...]  # names of the binary labels
    truth: IntArray  # 0/1 (cycles, labels)
    logits: FloatArray  # scores that rank each label (cycles, labels)
    decided: IntArray  # predicted 0/1 (cycles, labels)
    probabilities: FloatArray  # of each label, calibrated (cycles, labels)
    thresholds: FloatArray | None  # in logits (labels,); None where an argmax decides
    confidence: FloatArray | None  # probability of the predicted class (cycles,); None for multi-label predictions
    own: OwnMetrics | None = None  # the user's own metrics; None for none

    def subset(self, rows: Any) -> "Predictions":
        """The same for some of the rows, given as a mask (cycles,)."""
        arrays = {name: getattr(self, name)[rows] for name in ("truth", "logits", "decided", "probabilities")}
        if self.class_names:
            arrays |= {"true": self.true[rows], "predicted": self.predicted[rows]}
        if self.confidence is not None:
            arrays["confidence"] = self.confidence[rows]
        if self.own is not None:
            arrays["own"] = self.own.subset(rows)
        return replace(self, table=self.table.loc[rows].reset_index(drop=True), **arrays)

    @property
    def confusion(self) -> IntArray | None:
        """Counts (classes, classes), or None where there are no classes."""
        if not self.class_names:
            return None
        return scores.confusion_matrix(self.true, self.predicted, len(self.class_names))


def read_predictions(
    table: Any,
    *,
    problem_type: ProblemType,
    label_names: Sequence[str],
    thresholds: Thresholds = None,
    temperatures: Mapping[str, float] | None = None,
    intercepts: Mapping[str, float] | None = None,
    second_thresholds: Mapping[str, float] | None = None,
    metrics: Sequence[Metric | str] = (),
) -> Predictions:
    """Read a predictions table into arrays.

    Args:
        table: DataFrame with `logit_<name>` for each label name and the truth: one 0/1 column per label (multi_label),
            or `label` with class names (single_label; the four classes may have `crackle` and `wheeze` instead).
            Columns `decided_<name>` of 0 and 1 for each label (multi_label) take the place of thresholds.
        problem_type: "multi_label" or "single_label".
        label_names: Names of the outputs.
        thresholds: In logits, for multi_label only; None is 0 (probability 0.5).
        temperatures: Divisor of each output's logit, by name, for probabilities; 1 where absent.
        intercepts: Added to the divided logit, by name; 0 where absent.
        second_thresholds: Calibrated probabilities, by name, that a label must also exceed if another label of the row
            is more probable; for multi_label only.
        metrics: Own metrics, evaluated with the built-in ones; see `own_metrics.Metric`.
    """
    names = [str(name) for name in label_names]
    if problem_type not in ("multi_label", "single_label"):
        raise ValueError(f"problem_type must be multi_label or single_label, not {problem_type!r}")
    if missing := [f"logit_{name}" for name in names if f"logit_{name}" not in table.columns]:
        raise InputError(
            f"predictions table: no column {', '.join(missing)}; evaluate with the label names it was written with"
        )
    truth_columns = _truth_columns(table, problem_type, names)
    known = table[truth_columns].notna().all(axis=1).to_numpy()
    if not known.any():
        raise InputError(
            f"predictions table: no row of {len(table)} has a value in {' and '.join(truth_columns)}; nothing to score"
        )
    rows = table.loc[known].reset_index(drop=True)
    logits = np.column_stack([_numbers(rows, f"logit_{name}") for name in names])
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        raise InputError(
            f"predictions table: {bad} of {len(rows)} rows have a logit that is not a number; predict again"
        )
    calibrated = calibrated_logits(logits, names, temperatures, intercepts)
    unlabelled = int((~known).sum())
    if problem_type == "multi_label":
        second = np.array([(second_thresholds or {}).get(name, 0.0) for name in names])
        predictions = _read_labels(rows, unlabelled, names, logits, thresholds, sigmoid(calibrated), second)
    else:
        predictions = _read_classes(rows, unlabelled, names, calibrated)
    if not metrics:
        return predictions
    own = bind_metrics(metrics, predictions, list(point_values(predictions)))
    return replace(predictions, own=own)


def stored_predictions(path: Path, remedy: str) -> Any:
    """The table of predictions that a run stores."""
    try:
        return read_parquet(path).to_pandas()
    except Exception as error:  # pyarrow raises many kinds of errors for damaged files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: no readable predictions table ({reason}); {remedy}") from error


def read_evaluated(table: Any, evaluation: Mapping[str, Any]) -> Predictions:
    """A predictions table with the thresholds and the calibration that an evaluation used."""
    return read_predictions(
        table,
        problem_type=evaluation["problem_type"],
        label_names=evaluation["output_names"],
        thresholds=evaluation["thresholds"],
        temperatures=evaluation.get("temperatures"),
        intercepts=evaluation.get("intercepts"),
        second_thresholds=evaluation.get("second_thresholds"),
    )


def _numbers(table: Any, column: str) -> FloatArray:
    try:
        return np.asarray(table[column].to_numpy(dtype=float, na_value=np.nan))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"predictions table: column {column} has values that are not numbers; correct it") from error


def _flags(table: Any, names: list[str]) -> IntArray:
    truth = np.column_stack([_numbers(table, name) for name in names])
    if not np.isin(truth, (0, 1)).all():
        raise InputError(f"predictions table: {', '.join(names)} must be 0 or 1")
    return truth.astype(np.int64)


def _truth_columns(table: Any, problem_type: ProblemType, names: list[str]) -> list[str]:
    wanted = names if problem_type == "multi_label" else ["label"]
    if problem_type == "single_label" and "label" not in table.columns and set(names) == set(CLASSES):
        wanted = ["crackle", "wheeze"]
    if missing := [name for name in wanted if name not in table.columns]:
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
    second: FloatArray,
) -> Predictions:
    """Binary labels; crackle and wheeze form the four classes."""
    truth = _flags(table, names)
    row = scores.threshold_row(thresholds, names)
    given = [f"decided_{name}" for name in names]
    present = ((logits > row) & pass_second(probabilities, second)).astype(np.int64)
    decided = _flags(table, given) if set(given) <= set(table.columns) else present
    classes: tuple[str, ...] = ()
    true = predicted = np.zeros(0, dtype=np.int64)
    if set(names) == {"crackle", "wheeze"}:
        classes, c, w = CLASSES, names.index("crackle"), names.index("wheeze")
        true = scores.four_class(truth[:, c], truth[:, w])
        predicted = scores.four_class(decided[:, c], decided[:, w])
    return Predictions(
        table, unlabelled, classes, true, predicted, tuple(names), truth, logits, decided, probabilities, row, None
    )


def _read_classes(table: Any, unlabelled: int, names: list[str], logits: FloatArray) -> Predictions:
    """Single-label predictions: the class normal first, the others in the order given."""
    normal = next((name for name in names if name.lower() == "normal"), None)
    classes = [*([normal] if normal else []), *(name for name in names if name != normal)]
    if set(names) == set(CLASSES):
        classes = list(CLASSES)
    probabilities = softmax(logits)[:, [names.index(name) for name in classes]]
    true = _true_classes(table, classes)
    predicted = probabilities.argmax(1)
    one_hot = np.eye(len(classes), dtype=np.int64)
    if classes == list(CLASSES):
        labels, mixing = ["crackle", "wheeze"], np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    elif len(classes) == 2:
        labels, mixing = classes[1:], np.array([[0], [1]])
    else:
        labels, mixing = classes, one_hot
    share = np.clip(probabilities @ mixing, 0, 1)
    log_odds = np.log(share + _TINY) - np.log(np.clip(probabilities @ (1 - mixing), 0, 1) + _TINY)
    return Predictions(
        table=table,
        unlabelled=unlabelled,
        class_names=tuple(classes),
        true=true,
        predicted=predicted.astype(np.int64),
        label_names=tuple(labels),
        truth=one_hot[true] @ mixing,
        logits=log_odds,
        decided=one_hot[predicted] @ mixing,
        probabilities=share,
        thresholds=None,
        confidence=probabilities.max(1),
    )


def _true_classes(table: Any, classes: list[str]) -> IntArray:
    """Class ids of the truth (cycles,)."""
    if "label" not in table.columns:
        return scores.four_class(*_flags(table, ["crackle", "wheeze"]).T)
    if unknown := sorted(set(table["label"].astype(str)) - set(classes)):
        raise InputError(f"predictions table: label {', '.join(map(repr, unknown))} is none of {', '.join(classes)}")
    return np.array([classes.index(str(label)) for label in table["label"]], dtype=np.int64)


def class_scores(confusion: Any, class_names: Sequence[str]) -> dict[str, FloatArray]:
    """Every score of these classes, for confusions (..., n, n): {"icbhi.Score": (...), ...} in percent.

    Poor Quality recordings follow the SPRSound convention; classes without a normal one have accuracy and UAR only.
    """
    counts = np.asarray(confusion, dtype=float)
    values = {"accuracy": scores.accuracy(counts), "uar": scores.uar(counts)}
    if not class_names or class_names[0].lower() != "normal":
        return values
    scored = counts
    if POOR_QUALITY in class_names:
        scored = counts.copy()
        scored[..., list(class_names).index(POOR_QUALITY), :] = 0
    sp, se = scores.specificity(scored), scores.exact_sensitivity(scored)
    found = scores.any_abnormal_sensitivity(scored)
    if tuple(class_names) == CLASSES:
        values |= {"icbhi.Sp": sp, "icbhi.Se": se, "icbhi.Score": (sp + se) / 2}
    if POOR_QUALITY not in class_names:
        values |= {"any_abnormal.Sp": sp, "any_abnormal.Se": found, "any_abnormal.Score": (sp + found) / 2}
    if tuple(name.lower() for name in class_names) == HEART_SOUNDS:
        return values
    mean, harmonic = (se + sp) / 2, scores.harmonic(se, sp)
    official = {"SE": se, "SP": sp, "AS": mean, "HS": harmonic, "Score": (mean + harmonic) / 2}
    return values | {f"sprsound.{name}": value for name, value in official.items()}


def statistics_of(predictions: Predictions) -> Statistic:
    """Every metric of these predictions, own ones too, as a function of row weights (weightings, cycles)."""
    n = len(predictions.class_names)
    pairs = np.eye(n * n)[predictions.true * n + predictions.predicted] if n else np.zeros((0, 0))
    hits = predictions.truth * predictions.decided
    ranked = [
        RankedLabel(predictions.logits[:, k], predictions.truth[:, k]) for k in range(len(predictions.label_names))
    ]

    def statistics(weights: FloatArray) -> dict[str, FloatArray]:
        values = class_scores((weights @ pairs).reshape(-1, n, n), predictions.class_names) if n else {}
        # (weightings, cycles) @ (cycles, labels) -> (weightings, labels)
        found, called, actual = weights @ hits, weights @ predictions.decided, weights @ predictions.truth
        by_name = {
            "f1": scores.f1_of(found, called, actual),
            "precision": scores.ratio_or_zero(found, called),
            "recall": scores.ratio_or_zero(found, actual),
            "roc_auc": np.stack([label.auroc(weights) for label in ranked], 1),
            "average_precision": np.stack([label.average_precision(weights) for label in ranked], 1),
        }
        for k, label in enumerate(predictions.label_names):
            values |= {f"{label}.{name}": figures[:, k] for name, figures in by_name.items()}
        values |= {f"{name}_macro": by_name[name].mean(1) for name in ("f1", "roc_auc", "average_precision")}
        values["f1_micro"] = scores.f1_of(found.sum(1), called.sum(1), actual.sum(1))
        return values | (predictions.own.statistic(weights) if predictions.own is not None else {})

    return statistics


def effective_numbers(predictions: Predictions) -> dict[str, float]:
    """Effective number of patients behind each label, macro average and family of scores.

    It is that of positives or negatives, the smaller one; of normal rows for specificity, abnormal for sensitivity.
    """
    codes, _ = patient_codes(predictions.table)
    found = {name: rarer_patients(codes, predictions.truth[:, k]) for k, name in enumerate(predictions.label_names)}
    if found:
        found |= dict.fromkeys(("f1_macro", "roc_auc_macro", "average_precision_macro"), min(found.values()))
        found["f1_micro"] = effective_patients(codes, predictions.truth.any(1))
    if predictions.class_names and predictions.class_names[0].lower() == "normal":
        poor = np.array(predictions.class_names)[predictions.true] == POOR_QUALITY
        normal = effective_patients(codes, predictions.true == 0)
        abnormal = effective_patients(codes, (predictions.true > 0) & ~poor)
        found |= dict.fromkeys(("icbhi.Sp", "any_abnormal.Sp", "sprsound.SP"), normal)
        found |= dict.fromkeys(("icbhi.Se", "any_abnormal.Se", "sprsound.SE"), abnormal)
        found |= dict.fromkeys(("icbhi", "any_abnormal", "sprsound", "accuracy", "uar"), min(normal, abnormal))
    return found


def effective_by_metric(predictions: Predictions, metrics: Iterable[str]) -> dict[str, float]:
    """Effective number of patients behind each metric: see `effective_numbers`; that of all rows for others."""
    behind, codes = effective_numbers(predictions), patient_codes(predictions.table)[0]
    everyone = effective_patients(codes, np.ones(len(codes)))
    return {name: everyone if (n := number_behind(behind, name)) is None else n for name in metrics}


def point_values(predictions: Predictions) -> dict[str, float | None]:
    """The metrics of `statistics_of` with every cycle counted once; None where undefined."""
    ones = np.ones((1, len(predictions.table)))
    return {name: none_if_nan(values[0]) for name, values in statistics_of(predictions)(ones).items()}


def predictions_metrics(
    table: Any, *, problem_type: ProblemType, label_names: Sequence[str], thresholds: Thresholds = None
) -> dict[str, Any]:
    """Score a predictions table: every named score, the confusion, per-label metrics and calibration."""
    predictions = read_predictions(table, problem_type=problem_type, label_names=label_names, thresholds=thresholds)
    return describe(predictions, problem_type, label_names)


def describe(predictions: Predictions, problem_type: ProblemType, output_names: Sequence[str]) -> dict[str, Any]:
    """Scores, counts and calibration of predictions, JSON-ready; what is undefined is None.

    "values" are flat, in percent for scores of confusions and shares of 1 for the rest; "scores" are nested by family,
    and "labels" have the layout of `multilabel_metrics`.
    """
    values = point_values(predictions)
    names = predictions.label_names
    labels = scores.multilabel_metrics(predictions.logits, predictions.truth, names, predicted=predictions.decided)
    notes = list(labels.pop("notes"))
    if predictions.unlabelled:
        notes.append(f"{predictions.unlabelled} rows have no known truth and are left out")
    if POOR_QUALITY in predictions.class_names:
        notes.append(POOR_QUALITY_CONVENTION)
    confusion, row = predictions.confusion, predictions.thresholds
    matrix = None if confusion is None else {"classes": list(predictions.class_names), "matrix": confusion.tolist()}
    return {
        "problem_type": problem_type,
        "output_names": list(output_names),
        "label_names": list(names),
        "class_names": list(predictions.class_names),
        "thresholds": None if row is None else dict(zip(names, row.tolist(), strict=True)),
        "counts": _counts(predictions),
        "definitions": {family: text for family, text in _DEFINITIONS.items() if f"{family}.Score" in values},
        "headline": headline(values),
        "values": values,
        "scores": _nested_scores(values, confusion),
        "confusion": matrix,
        "labels": labels,
        "calibration": calibration_of(predictions),
        "notes": notes,
    }


def headline(values: Mapping[str, float | None]) -> str:
    """The name of the main score."""
    return next(name for name in _HEADLINES if name in values)


def _nested_scores(values: Mapping[str, float | None], confusion: IntArray | None) -> dict[str, Any]:
    """Scores of the classes by family: {"icbhi": {"Score", ...}, ..., "accuracy", "uar", "macro_one_vs_rest"}."""
    nested: dict[str, Any] = {name: values[name] for name in ("accuracy", "uar") if name in values}
    for name, value in values.items():
        family, _, figure = name.partition(".")
        if family in _DEFINITIONS:
            nested.setdefault(family, {})[figure] = value
    if confusion is not None:
        nested["macro_one_vs_rest"] = {k: none_if_nan(v) for k, v in scores.macro_one_vs_rest(confusion).items()}
    return nested


def _counts(predictions: Predictions) -> dict[str, Any]:
    table, classes, labels = predictions.table, predictions.class_names, predictions.label_names
    by_class: Any = np.bincount(predictions.true, minlength=len(classes)) if classes else []
    return {
        "cycles": len(table),
        "unlabelled": predictions.unlabelled,
        **{
            f"{name}s": int(table[f"{name}_id"].nunique()) if f"{name}_id" in table.columns else None
            for name in ("patient", "recording")
        },
        "classes": {name: int(n) for name, n in zip(classes, by_class, strict=True)},
        "labels": {name: int(n) for name, n in zip(labels, predictions.truth.sum(0), strict=True)},
    }


def calibration_of(predictions: Predictions) -> dict[str, Any]:
    """Calibration error, Brier score and reliability bins of each label, and of the predicted class if there is one."""
    curves = {
        name: (predictions.probabilities[:, k], predictions.truth[:, k])
        for k, name in enumerate(predictions.label_names)
    }
    if predictions.confidence is not None:
        curves[PREDICTED_CLASS] = (predictions.confidence, predictions.true == predictions.predicted)
    return {
        "ece": {name: none_if_nan(expected_calibration_error(p, y)) for name, (p, y) in curves.items()},
        "brier": {name: none_if_nan(brier_score(p, y)) for name, (p, y) in curves.items()},
        "bins": {name: reliability_bins(p, y) for name, (p, y) in curves.items()},
    }
