"""Logit adjustment of a task's classes, fitted on validation patients.

Decisions: the adjustment lowers the logit of the normal class, because scores that weigh normal and abnormal recall
alike (SPRSound, ICBHI) need more abnormal predictions than the most probable class gives; the two-class decision has
its own adjustment. Poor Quality is predicted only on request, because the official score counts it only as an error.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from laennec.evaluation.metrics import (
    POOR_QUALITY,
    FloatArray,
    confusion_matrix,
    exact_sensitivity,
    none_if_nan,
    specificity,
    sprsound_score,
)

ADVENTITIOUS = "Adventitious"
WAYS = ("two", "all")  # normal or not; every class
_ADJUSTMENTS = np.linspace(-6.0, 6.0, 121)


def adjusted_classes(
    labels: Sequence[str], logits: FloatArray, adjustment: float, way: str, poor_quality: bool = False
) -> NDArray[np.str_]:
    """Predicted class names (rows,) of logits (rows, labels), after lowering that of the first (normal) class.

    Way "two" predicts the normal class or "Adventitious", "all" any label; Poor Quality only with `poor_quality`.
    """
    shown = [name for name in labels if poor_quality or name != POOR_QUALITY]
    kept = np.asarray(logits, dtype=np.float64)[:, [list(labels).index(name) for name in shown]]
    log_shares = kept - np.logaddexp.reduce(kept, axis=1, keepdims=True)
    log_shares[:, 0] -= adjustment
    if way == "all":
        return np.array(shown)[log_shares.argmax(1)].astype(str)
    abnormal = [k for k, name in enumerate(shown) if k and name != POOR_QUALITY]
    two = np.logaddexp.reduce(log_shares[:, abnormal], axis=1)
    classes = np.where(two > log_shares[:, 0], ADVENTITIOUS, shown[0])
    if POOR_QUALITY in shown:
        poor = log_shares[:, shown.index(POOR_QUALITY)]
        classes = np.where(poor > np.maximum(two, log_shares[:, 0]), POOR_QUALITY, classes)
    return classes.astype(str)


def fit_adjustments(labels: Sequence[str], codes: NDArray[np.int64], logits: FloatArray) -> dict[str, float]:
    """The logit adjustment with the best SPRSound Score for each way; the middle one of several equally good ones."""
    kept = np.array([labels[code] != POOR_QUALITY for code in codes], dtype=bool)
    truth, shown = codes[kept], logits[kept]
    best = {}
    for way in WAYS:
        names = [labels[0], ADVENTITIOUS] if way == "two" else [name for name in labels if name != POOR_QUALITY]
        true = np.minimum(truth, 1) if way == "two" else truth
        scores = []
        for adjustment in _ADJUSTMENTS:
            predicted = adjusted_classes(labels, shown, float(adjustment), way)
            counts = confusion_matrix(true, np.array([names.index(name) for name in predicted]), len(names))
            score = none_if_nan(sprsound_score(float(exact_sensitivity(counts)), float(specificity(counts)))["Score"])
            scores.append(-1.0 if score is None else score)
        equal = np.flatnonzero(np.isclose(scores, max(scores)))
        best[way] = float(np.round(_ADJUSTMENTS[equal[len(equal) // 2]], 4)) if max(scores) >= 0 else 0.0
    return best
