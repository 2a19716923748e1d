"""Thresholds with a named reason.

Decisions: they are in raw logits and lie half-way between two neighbouring scores, so that rounding flips nothing;
among equally good ones the one nearest to 0 is taken. A label with one class only keeps 0.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from laennec.evaluation.metrics import FloatArray, exact_sensitivity, f1_of, four_class, specificity

ThresholdRule: TypeAlias = Literal["youden", "sensitivity", "f1", "icbhi"]

_GRID = 400


def fit_thresholds_on_validation(
    logits: ArrayLike,
    truth: ArrayLike,
    names: Sequence[str],
    rule: ThresholdRule = "youden",
    *,
    sensitivity: float = 0.9,
) -> dict[str, float]:
    """Thresholds in logits, one for each label, by a named rule.

    Args:
        logits: (cycles, labels) of validation patients.
        truth: 0/1 (cycles, labels).
        names: Label names; "icbhi" wants exactly crackle and wheeze.
        rule: "youden" maximises sensitivity + specificity; "sensitivity" is the highest threshold that still finds
            the wanted share;
            "f1" maximises F1; "icbhi" chooses both thresholds together so that the ICBHI Score is highest.
        sensitivity: The share that rule "sensitivity" must find.

    Returns:
        {name: threshold}; a cycle has the label where logit > threshold. 0.0 for a label with one class only.

    Raises:
        ValueError: An unknown rule, shapes that do not match, or "icbhi" for other labels.
    """
    values, labels = np.asarray(logits, dtype=float), np.asarray(truth, dtype=np.int64)
    if values.ndim != 2 or values.shape != labels.shape or values.shape[1] != len(names):
        raise ValueError(f"logits {values.shape} and labels {labels.shape} must both be (cycles, {len(names)})")
    if rule not in get_args(ThresholdRule):
        raise ValueError(f"no threshold rule {rule!r}; the rules are {', '.join(get_args(ThresholdRule))}")
    if rule == "icbhi":
        return _icbhi_thresholds(values, labels, list(names))
    return {name: _one_threshold(values[:, k], labels[:, k], rule, sensitivity) for k, name in enumerate(names)}


def _candidates(scores: FloatArray, most: int | None = None) -> FloatArray:
    """Thresholds that tell scores apart: below all, half-way between neighbours, above all; at most `most`."""
    unique = np.unique(scores)
    places = np.r_[unique[0] - 1, (unique[1:] + unique[:-1]) / 2, unique[-1] + 1]
    if most is not None and len(places) > most:
        places = places[np.unique(np.linspace(0, len(places) - 1, most).round().astype(int))]
    return places


def _nearest_to_zero(places: FloatArray, values: FloatArray) -> float:
    """Among the places where `values` is highest (to rounding), the one nearest to 0."""
    best = places[values >= values.max() - 1e-12]
    return float(best[np.argmin(np.abs(best))])


def _one_threshold(scores: FloatArray, truth: Any, rule: ThresholdRule, sensitivity: float) -> float:
    """The threshold of one label by a rule that looks at that label alone."""
    positives, total = int(truth.sum()), len(truth)
    if positives in (0, total):
        return 0.0
    places = _candidates(scores)
    ordered = np.argsort(scores, kind="stable")
    below = np.searchsorted(scores[ordered], places, side="right")  # cycles that are not called
    missed = np.r_[0, np.cumsum(truth[ordered])][below]
    found, called = positives - missed, total - below
    if rule == "youden":
        return _nearest_to_zero(places, found / positives - (called - found) / (total - positives))
    if rule == "f1":
        return _nearest_to_zero(places, f1_of(found, called, positives))
    return float(places[np.flatnonzero(found / positives >= sensitivity - 1e-12).max()])


def _icbhi_thresholds(logits: FloatArray, truth: Any, names: list[str]) -> dict[str, float]:
    """Both thresholds at once: every pair of candidates is scored exactly from cumulated two-dimensional counts."""
    if set(names) != {"crackle", "wheeze"}:
        raise ValueError(f"rule icbhi needs the labels crackle and wheeze, not {names}")
    c, w = names.index("crackle"), names.index("wheeze")
    several = [0 < truth[:, k].sum() < len(truth) for k in (c, w)]
    places = [
        _candidates(logits[:, k], _GRID) if fits else np.zeros(1) for k, fits in zip((c, w), several, strict=True)
    ]
    # Bin b of a score: the number of thresholds below it, so it is called at threshold t exactly where t < b.
    bins = [np.searchsorted(p, logits[:, k], side="left") for p, k in zip(places, (c, w), strict=True)]
    true = four_class(truth[:, c], truth[:, w])
    shape = (len(places[0]) + 1, len(places[1]) + 1)
    confusion = np.zeros((len(places[0]), len(places[1]), 4, 4))
    for k in range(4):
        cells = np.zeros(shape)
        np.add.at(cells, (bins[0][true == k], bins[1][true == k]), 1)
        low = cells.cumsum(0).cumsum(1)[:-1, :-1]  # neither called
        not_crackle = cells.cumsum(0)[:-1].sum(1)[:, None]
        not_wheeze = cells.cumsum(1)[:, :-1].sum(0)[None, :]
        confusion[:, :, k, 0] = low
        confusion[:, :, k, 1] = not_wheeze - low
        confusion[:, :, k, 2] = not_crackle - low
        confusion[:, :, k, 3] = cells.sum() - not_crackle - not_wheeze + low
    score = specificity(confusion) + exact_sensitivity(confusion)
    if not np.isfinite(score).all():
        return dict.fromkeys(names, 0.0)
    distance = np.abs(places[0])[:, None] + np.abs(places[1])[None, :]
    best = np.where(score >= score.max() - 1e-9, distance, np.inf)
    row, column = np.unravel_index(int(best.argmin()), best.shape)
    chosen = {"crackle": float(places[0][row]), "wheeze": float(places[1][column])}
    return {name: chosen[name] for name in names}
