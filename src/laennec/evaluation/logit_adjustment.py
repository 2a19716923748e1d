"""The answers of a classifier that leans away from its normal class.

Decisions: the likeliest class is the right answer where every error counts alike; scores that weigh normal and
abnormal recall alike (SPRSound's, ICBHI's) want the abnormal classes answered more often. One number does it: the
normal class' logit is lowered by a leaning, fitted on validation. The two-way question of the same classes (normal or
not) has a leaning of its own. Poor Quality is never answered unless it is asked for, because the official score counts
it only when it is wrong.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from laennec.evaluation.metrics import (
    FloatArray,
    auroc,
    exact_sensitivity,
    none_if_nan,
    specificity,
    sprsound_score,
)
from laennec.evaluation.metrics import confusion_matrix as confusion
from laennec.evaluation.smoothing import STRENGTHS, smooth_logits
from laennec.evaluation.sprsound import POOR_QUALITY

WAYS = ("two", "all")
ADVENTITIOUS = "Adventitious"
_GRID = np.linspace(-6.0, 6.0, 121)


def answer_with(
    labels: Sequence[str], logits: FloatArray, leaning: float, way: str, poor_quality: bool = False
) -> NDArray[np.str_]:
    """Class names (rows,) of a classifier's logits.

    Args:
        labels: Class names, the normal one first.
        logits: (rows, labels).
        leaning: What the normal class' logit is lowered by.
        way: "two" for the normal class' name or "Adventitious", "all" for every class.
        poor_quality: Whether Poor Quality may be answered.
    """
    shown, kept = _without_poor_quality(labels, np.asarray(logits, dtype=np.float64), poor_quality)
    log_shares = kept - np.logaddexp.reduce(kept, axis=1, keepdims=True)
    names = np.array(shown)
    if way == "two":
        abnormal = [k for k, name in enumerate(shown) if k and name != POOR_QUALITY]
        two = np.logaddexp.reduce(log_shares[:, abnormal], axis=1)
        said = np.where(two > log_shares[:, 0] - leaning, ADVENTITIOUS, shown[0])
        if poor_quality and POOR_QUALITY in shown:
            poor = log_shares[:, shown.index(POOR_QUALITY)]
            said = np.where(poor > np.maximum(two, log_shares[:, 0] - leaning), POOR_QUALITY, said)
        return said.astype(str)
    log_shares = log_shares.copy()
    log_shares[:, 0] -= leaning
    return names[log_shares.argmax(1)].astype(str)


def _without_poor_quality(
    labels: Sequence[str], logits: FloatArray, poor_quality: bool
) -> tuple[list[str], FloatArray]:
    shown = [name for name in labels if poor_quality or name != POOR_QUALITY]
    return shown, logits[:, [list(labels).index(name) for name in shown]]


def fit_leaning(labels: Sequence[str], codes: NDArray[np.int64], logits: FloatArray) -> dict[str, float]:
    """The leaning with the best SPRSound Score on validation, for either way of answering.

    Args:
        labels: Class names, the normal one first.
        codes: True classes (rows,).
        logits: (rows, labels).

    Returns:
        {"two": leaning, "all": leaning}; the middle of the best ones where several are equally good.
    """
    kept = np.array([labels[code] != POOR_QUALITY for code in codes], dtype=bool)
    truth, shown = codes[kept], logits[kept]
    best = {}
    for way in WAYS:
        names = [labels[0], ADVENTITIOUS] if way == "two" else [name for name in labels if name != POOR_QUALITY]
        true = np.minimum(truth, 1) if way == "two" else truth
        scores = []
        for leaning in _GRID:
            said = answer_with(labels, shown, float(leaning), way)
            counts = confusion(true, np.array([names.index(name) for name in said]), len(names))
            score = none_if_nan(sprsound_score(float(exact_sensitivity(counts)), float(specificity(counts)))["Score"])
            scores.append(-1.0 if score is None else score)
        equal = np.flatnonzero(np.isclose(scores, max(scores)))
        best[way] = float(np.round(_GRID[equal[len(equal) // 2]], 4)) if max(scores) >= 0 else 0.0
    return best


def fit_smoothing(codes: NDArray[np.int64], logits: FloatArray, recordings: Sequence[str]) -> float:
    """How strongly a recording's mean is mixed into its rows: where normal and abnormal ones are ranked best apart.

    Args:
        codes: True classes (rows,), 0 the normal one.
        logits: (rows, labels).
        recordings: Recording of each row (rows,).

    Returns:
        One of `STRENGTHS`, the first of equals; 0 where all rows are normal or none is.
    """
    abnormal = (codes > 0).astype(int)
    if abnormal.min(initial=1) == abnormal.max(initial=0):
        return 0.0
    areas = []
    for strength in STRENGTHS:
        mixed = smooth_logits(logits, list(recordings), strength)
        areas.append(float(auroc(abnormal, np.logaddexp.reduce(mixed[:, 1:], axis=1) - mixed[:, 0])))
    return STRENGTHS[int(np.argmax(np.round(areas, 9)))]
