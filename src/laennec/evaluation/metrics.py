"""Scores of confusion matrices and of rankings.

Decisions: a confusion matrix has the truth in rows, the prediction in columns and the normal class first; scores of
confusions are in percent, as the field prints them; "ICBHI Score" has one definition, printed with every number, and
other scores found under that name in the literature have another name here. What the data do not define (AUROC over
one class, sensitivity without abnormal cycles) is nan in arrays and None in dictionaries, never 0 or 50. Every
formula takes a stack of confusions or of row weights, so that intervals run the same code as the point estimate.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]
Thresholds: TypeAlias = float | Sequence[float] | Mapping[str, float] | None

CLASSES = ("normal", "crackle", "wheeze", "both")
ICBHI_SCORE_DEFINITION = (
    "ICBHI Score = (Sp + Se) / 2; Sp = normal cycles predicted normal / all normal cycles; "
    "Se = abnormal cycles predicted as their exact class (crackle, wheeze, both) / all abnormal cycles"
)
ANY_ABNORMAL_DEFINITION = (
    "any-abnormal Score = (Sp + Se) / 2, where an abnormal cycle counts as found whatever abnormal class is predicted; "
    "this is not an ICBHI Score"
)
SPRSOUND_SCORE_DEFINITION = (
    "SPRSound Score = (AS + HS) / 2; AS = (SE + SP) / 2, HS = 2 SE SP / (SE + SP); always Normal scores 25"
)
PREDICTED_CLASS = "answered class"  # in stored files, the key of the calibration of the predicted class
POOR_QUALITY = "Poor Quality"
POOR_QUALITY_CONVENTION = (
    "recordings whose truth is Poor Quality enter neither SE nor SP; predicting Poor Quality for another recording is "
    "an error; a system that never predicts it scores higher, so read its recall and the balanced accuracy too"
)


def four_class(crackle: ArrayLike, wheeze: ArrayLike) -> IntArray:
    """Map two labels to the four classes by their two bits: normal 0, crackle 1, wheeze 2, both 3.

    Args:
        crackle: 0/1 or bool, any shape.
        wheeze: 0/1 or bool, the same shape.
    """
    bits = [np.asarray(values) for values in (crackle, wheeze)]
    if bits[0].shape != bits[1].shape:
        raise ValueError(f"crackle has shape {bits[0].shape} but wheeze has {bits[1].shape}")
    if any(not np.isin(values, (0, 1)).all() for values in bits):
        raise ValueError("crackle and wheeze must be 0 or 1; apply a threshold first")
    return bits[0].astype(np.int64) + 2 * bits[1].astype(np.int64)


def confusion_matrix(true: ArrayLike, predicted: ArrayLike, n: int) -> IntArray:
    """Count (n, n) pairs of class ids: rows are the truth, columns the prediction.

    Args:
        true: Class ids (cycles,), each in 0..n-1.
        predicted: Class ids (cycles,).
        n: Number of classes.
    """
    rows, columns = np.asarray(true, dtype=np.int64).ravel(), np.asarray(predicted, dtype=np.int64).ravel()
    if rows.shape != columns.shape:
        raise ValueError(f"{rows.size} true classes but {columns.size} predicted ones")
    if rows.size and (min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) >= n):
        raise ValueError(f"class ids must lie in 0..{n - 1}")
    return np.bincount(rows * n + columns, minlength=n * n).reshape(n, n).astype(np.int64)


def share(part: ArrayLike, whole: ArrayLike) -> FloatArray:
    """Percent of `whole` that `part` is; nan where the whole is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(100.0 * np.asarray(part, dtype=float) / np.asarray(whole, dtype=float))


def specificity(confusion: ArrayLike) -> FloatArray:
    """Percent of normal cycles predicted normal, for confusions (..., n, n) -> (...)."""
    counts = np.asarray(confusion)
    return share(counts[..., 0, 0], counts[..., 0, :].sum(-1))


def exact_sensitivity(confusion: ArrayLike) -> FloatArray:
    """Percent of abnormal cycles predicted as their exact class, for confusions (..., n, n) -> (...)."""
    counts = np.asarray(confusion)[..., 1:, :]
    return share(np.trace(counts[..., 1:], axis1=-2, axis2=-1), counts.sum((-2, -1)))


def any_abnormal_sensitivity(confusion: ArrayLike) -> FloatArray:
    """Percent of abnormal cycles predicted as any abnormal class, for confusions (..., n, n) -> (...)."""
    counts = np.asarray(confusion)[..., 1:, :]
    return share(counts[..., 1:].sum((-2, -1)), counts.sum((-2, -1)))


def per_class_recall(confusion: ArrayLike) -> FloatArray:
    """Percent of each class predicted as that class, (..., n, n) -> (..., n); nan for a class that does not occur."""
    counts = np.asarray(confusion)
    return share(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))


def accuracy(confusion: ArrayLike) -> FloatArray:
    """Percent of all cycles predicted as their class, (..., n, n) -> (...)."""
    counts = np.asarray(confusion)
    return share(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def uar(confusion: ArrayLike) -> FloatArray:
    """Unweighted average recall in percent: the mean of `per_class_recall` over the classes that occur."""
    recalls = per_class_recall(confusion)
    present = ~np.isnan(recalls)
    return share(np.where(present, recalls, 0).sum(-1) / 100, present.sum(-1))


def icbhi_score(confusion: ArrayLike) -> dict[str, float]:
    """The ICBHI Score of a confusion (n, n) with the normal class first.

    Sp = N_n / N, Se = (C_c + W_w + B_b) / (C + W + B), Score = (Sp + Se) / 2.

    Args:
        confusion: Counts (n, n), rows are the truth.

    Returns:
        {"Sp", "Se", "Score"} in percent; nan where the truth has no normal or no abnormal cycle.

    Reference: Rocha et al., Physiol. Meas. 40 035001 (2019), and the scoring of the ICBHI 2017 challenge.
    """
    sp, se = float(specificity(confusion)), float(exact_sensitivity(confusion))
    return {"Sp": sp, "Se": se, "Score": (sp + se) / 2}


def any_abnormal_score(confusion: ArrayLike) -> dict[str, float]:
    """The "two-class" score: an abnormal cycle is found whatever abnormal class is predicted. Not an ICBHI Score.

    Returns:
        {"Sp", "Se", "Score"} in percent.
    """
    sp, se = float(specificity(confusion)), float(any_abnormal_sensitivity(confusion))
    return {"Sp": sp, "Se": se, "Score": (sp + se) / 2}


def macro_one_vs_rest(confusion: ArrayLike) -> dict[str, float]:
    """Mean over classes of one-vs-rest sensitivity and specificity. Not the ICBHI Score, though often printed as such.

    Returns:
        {"Se", "Sp", "Score"} in percent, averaged over the classes for which they are defined.
    """
    counts = np.asarray(confusion, dtype=float)
    others = counts.sum() - counts.sum(1)
    false_positives = counts.sum(0) - np.diag(counts)
    specificities = share(others - false_positives, others)
    defined = specificities[~np.isnan(specificities)]
    se, sp = float(uar(counts)), float(defined.mean()) if defined.size else math.nan
    return {"Se": se, "Sp": sp, "Score": (se + sp) / 2}


def harmonic(se: ArrayLike, sp: ArrayLike) -> FloatArray:
    """2 SE SP / (SE + SP), and 0 where both are 0."""
    first, second = np.asarray(se, dtype=float), np.asarray(sp, dtype=float)
    return 2 * ratio_or_zero(first * second, first + second)


def sprsound_score(se: float, sp: float) -> dict[str, float]:
    """The score of the SPRSound challenges, in the unit of its inputs.

    Returns:
        {"AS", "HS", "Score"}: arithmetic mean, harmonic mean, and the mean of the two.

    Reference: Zhang et al., SPRSound, IEEE TBioCAS 16(5), 2022, and the IEEE BioCAS challenges built on it.
    """
    arithmetic, harmonic_mean = (se + sp) / 2, float(harmonic(se, sp))
    return {"AS": arithmetic, "HS": harmonic_mean, "Score": (arithmetic + harmonic_mean) / 2}


def f1_of(hits: ArrayLike, called: ArrayLike, actual: ArrayLike) -> FloatArray:
    """F1 = 2 hits / (called + actual); 0 where the label neither occurs nor is predicted."""
    return 2 * ratio_or_zero(hits, np.asarray(called, dtype=float) + np.asarray(actual, dtype=float))


def ratio_or_zero(part: ArrayLike, whole: ArrayLike) -> FloatArray:
    """Part / whole with 0 for an empty whole, the convention of precision and recall in the field's tables."""
    divisor = np.asarray(whole, dtype=float)
    return np.asarray(np.asarray(part, dtype=float) / np.where(divisor == 0, 1.0, divisor))


class RankedLabel:
    """The ranking of one label by scores (cycles,), sorted once: AUROC and AP for any number of row weightings."""

    def __init__(self, scores: ArrayLike, truth: ArrayLike) -> None:
        values, labels = np.asarray(scores, dtype=float).ravel(), np.asarray(truth, dtype=float).ravel()
        if values.shape != labels.shape:
            raise ValueError(f"{values.size} scores but {labels.size} labels")
        self.order = np.argsort(values, kind="stable")
        self.positive = labels[self.order]
        ordered = values[self.order]
        # Equal scores share one rank, so rows are summed by group of ties: (weightings, rows) -> (weightings, groups).
        self.starts = np.flatnonzero(np.r_[values.size > 0, ordered[1:] != ordered[:-1]][: values.size])

    def _groups(self, weights: ArrayLike | None) -> tuple[FloatArray, FloatArray]:
        """Weight of positives and of negatives in each group of ties, lowest score first."""
        given = np.ones((1, self.order.size)) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
        rows = given[:, self.order]
        if not self.order.size:
            return rows, rows
        positive = rows * self.positive
        negative = rows - positive
        if self.starts.size == self.order.size:
            return positive, negative
        return np.add.reduceat(positive, self.starts, axis=1), np.add.reduceat(negative, self.starts, axis=1)

    def auroc(self, weights: ArrayLike | None = None) -> FloatArray:
        """Share of (positive, negative) pairs ranked correctly, ties counting half; nan for one class.

        Args:
            weights: (weightings, cycles), or None for every row once.

        Returns:
            (weightings,)
        """
        positive, negative = self._groups(weights)
        below = np.cumsum(negative, axis=1) - negative / 2
        return share((positive * below).sum(1), positive.sum(1) * negative.sum(1)) / 100

    def average_precision(self, weights: ArrayLike | None = None) -> FloatArray:
        """Sum of precision times recall step down the ranking; nan without positives.

        Args:
            weights: (weightings, cycles), or None for every row once.

        Returns:
            (weightings,)
        """
        positive, negative = self._groups(weights)
        found = np.cumsum(positive[:, ::-1], axis=1)[:, ::-1]
        called = found + np.cumsum(negative[:, ::-1], axis=1)[:, ::-1]
        return share((positive * ratio_or_zero(found, called)).sum(1), positive.sum(1)) / 100


def auroc(truth: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of scores (cycles,) for truth 0/1 (cycles,); nan where only one class occurs."""
    return float(RankedLabel(scores, truth).auroc()[0])


def average_precision(truth: ArrayLike, scores: ArrayLike) -> float:
    """Average precision (step-wise) of scores (cycles,) for truth 0/1 (cycles,); nan without positives."""
    return float(RankedLabel(scores, truth).average_precision()[0])


def threshold_row(thresholds: Thresholds, names: Sequence[str]) -> FloatArray:
    """Thresholds in logits (labels,): None is 0, a number is for all labels, a mapping is by name."""
    if isinstance(thresholds, Mapping):
        unknown = sorted(set(thresholds) - set(names))
        if unknown:
            raise ValueError(f"thresholds for {unknown}, but the labels are {list(names)}")
        return np.array([float(thresholds.get(name, 0.0)) for name in names])
    values = np.asarray(0.0 if thresholds is None else thresholds, dtype=float)
    if values.ndim and values.shape != (len(names),):
        raise ValueError(f"{values.size} thresholds for {len(names)} labels")
    return np.broadcast_to(values, (len(names),)).copy()


def multilabel_metrics(
    logits: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    thresholds: Thresholds = 0.0,
    predicted: ArrayLike | None = None,
) -> dict[str, Any]:
    """Per-label and aggregated F1, precision, recall, AUROC and AP.

    AUROC and AP rank the logits; F1, precision and recall are of `logit > threshold`, and 0 where there is nothing to
    count.

    Args:
        logits: (cycles, labels).
        labels: 0/1 (cycles, labels).
        names: Label names; they appear as "label_<name>".
        thresholds: In logits: one number, one for each label, or a mapping by name.
        predicted: 0/1 (cycles, labels) predictions made otherwise (by an argmax); replaces the thresholds.

    Returns:
        {"label_specific": {"label_<name>": {f1_score, precision, recall, roc_auc, average_precision}},
        "aggregated": {f1, precision, recall, auc, average_precision}_{macro, micro}, "notes": [str]}. A label with one
        class only has roc_auc None, and so have the macro means over it; the notes say so.
    """
    values, truth = np.asarray(logits, dtype=float), np.asarray(labels, dtype=np.int64)
    if values.ndim != 2 or values.shape != truth.shape or values.shape[1] != len(names):
        raise ValueError(f"logits {values.shape} and labels {truth.shape} must both be (cycles, {len(names)})")
    called = values > threshold_row(thresholds, names) if predicted is None else np.asarray(predicted).astype(bool)
    hits, n_called, n_true = (truth * called).sum(0), called.sum(0), truth.sum(0)
    precision, recall, f1 = ratio_or_zero(hits, n_called), ratio_or_zero(hits, n_true), f1_of(hits, n_called, n_true)
    everything = RankedLabel(values, truth)
    area, ap = (
        np.array([float(rank(truth[:, k], values[:, k])) for k in range(len(names))])
        for rank in (auroc, average_precision)
    )
    by_label = {"f1_score": f1, "precision": precision, "recall": recall, "roc_auc": area, "average_precision": ap}
    means = ("f1", "precision", "recall", "auc", "average_precision")
    specific = {
        f"label_{name}": {figure: none_if_nan(values[k]) for figure, values in by_label.items()}
        for k, name in enumerate(names)
    }
    aggregated = {
        **{f"{figure}_macro": none_if_nan(v.mean()) for figure, v in zip(means, by_label.values(), strict=True)},
        "f1_micro": float(f1_of(hits.sum(), n_called.sum(), n_true.sum())),
        "precision_micro": float(ratio_or_zero(hits.sum(), n_called.sum())),
        "recall_micro": float(ratio_or_zero(hits.sum(), n_true.sum())),
        "auc_micro": none_if_nan(everything.auroc()[0]),
        "average_precision_micro": none_if_nan(everything.average_precision()[0]),
    }
    notes = [
        f"{name}: no {'negative' if count else 'positive'} among {len(truth)}, so its AUROC is undefined (null), "
        "and so is the macro AUROC"
        for name, count in zip(names, n_true, strict=True)
        if count in (0, len(truth))
    ]
    return {"label_specific": specific, "aggregated": aggregated, "notes": notes}


def is_percent(figure: str) -> bool:
    """Whether a metric is in percent (scores of confusions) or a share of 1 (per-label metrics)."""
    return figure.split(".")[0] in ("icbhi", "any_abnormal", "sprsound", "accuracy", "uar")


def none_if_nan(value: Any) -> float | None:
    """A float for JSON; None (null) for a value that is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None
