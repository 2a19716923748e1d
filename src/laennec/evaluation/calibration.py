"""Stage 7, metrics: probabilities that mean what they say, and thresholds with a named reason.

Decided here: temperatures and thresholds are fitted on validation patients only; the fitting functions say so in
their names and refuse a table whose split is test. Thresholds are in raw logits and lie half-way between two
neighbouring scores; among equally good ones the one nearest to 0 is taken. Calibration error is over the probability
of the label being present, 15 equal-width bins.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from laennec.errors import InputError
from laennec.evaluation.metrics import FloatArray, exact_sensitivity, f1_of, four_class, none_if_nan, specificity

ThresholdRule: TypeAlias = Literal["youden", "sensitivity", "f1", "icbhi"]

_LOG_TEMPERATURE = (np.log(0.05), np.log(20.0))
_GRID = 400


def sigmoid(logits: ArrayLike) -> FloatArray:
    """1 / (1 + exp(-logit)) without overflow, any shape."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=float))))


def softmax(logits: ArrayLike) -> FloatArray:
    """Class probabilities (cycles, classes) of logits (cycles, classes)."""
    values = np.asarray(logits, dtype=float)
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def reliability_bins(
    probabilities: ArrayLike, truth: ArrayLike, n_bins: int = 15
) -> list[dict[str, float | int | None]]:
    """Mean probability and observed frequency in equal-width bins of the probability.

    Bin k holds (k / n_bins, (k + 1) / n_bins]; the first holds 0 too.

    Args:
        probabilities: (cycles,) in 0..1.
        truth: 0/1 (cycles,): whether the label is there (or the answer right).
        n_bins: Number of bins.

    Returns:
        n_bins entries {"low", "high", "count", "mean_probability", "observed"}; the last two are None in an empty bin.
    """
    p, y = np.asarray(probabilities, dtype=float).ravel(), np.asarray(truth, dtype=float).ravel()
    if p.shape != y.shape:
        raise ValueError(f"{p.size} probabilities but {y.size} labels")
    if p.size and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError("probabilities must lie in 0..1; apply a sigmoid or softmax first")
    edges = np.linspace(0, 1, n_bins + 1)
    index = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, n_bins - 1)
    count = np.bincount(index, minlength=n_bins)
    total_p, total_y = np.bincount(index, p, n_bins), np.bincount(index, y, n_bins)
    return [
        {
            "low": float(edges[k]),
            "high": float(edges[k + 1]),
            "count": int(count[k]),
            "mean_probability": float(total_p[k] / count[k]) if count[k] else None,
            "observed": float(total_y[k] / count[k]) if count[k] else None,
        }
        for k in range(n_bins)
    ]


def expected_calibration_error(probabilities: ArrayLike, truth: ArrayLike, n_bins: int = 15) -> float:
    """ECE = sum over bins of (cycles in the bin / all cycles) * |mean probability - observed frequency|.

    For a yes/no label the probability is that of the label being there (not of the answer being right), so both ends
    of the scale count.

    Args:
        probabilities: (cycles,) in 0..1.
        truth: 0/1 (cycles,).
        n_bins: Equal-width bins, as in `reliability_bins`.

    Returns:
        A share of 1; nan without cycles.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    bins = reliability_bins(probabilities, truth, n_bins)
    total = sum(int(entry["count"] or 0) for entry in bins)
    gaps = (
        int(entry["count"] or 0) * abs(float(entry["mean_probability"] or 0.0) - float(entry["observed"] or 0.0))
        for entry in bins
    )
    return sum(gaps) / total if total else float("nan")


def fit_temperature_on_validation(logits: ArrayLike, truth: ArrayLike) -> float:
    """The temperature T in 0.05..20 that minimises the cross entropy of logits / T.

    Args:
        logits: (cycles,) of one yes/no label, or (cycles, classes) of a single-label model.
        truth: 0/1 (cycles,), or class ids (cycles,).

    Returns:
        T; 1.0 where only one class occurs, because nothing can be fitted.

    Raises:
        ValueError: Logits that are not finite or do not match the truth.
    """
    from scipy.optimize import minimize_scalar

    values, labels = np.asarray(logits, dtype=float), np.asarray(truth, dtype=np.int64)
    if len(values) != len(labels) or not np.isfinite(values).all():
        raise ValueError(f"logits {values.shape} must be finite and as many as the labels {labels.shape}")
    if len(np.unique(labels)) < 2:
        return 1.0
    sides = np.column_stack([np.zeros(len(values)), values]) if values.ndim == 1 else values

    def cross_entropy(log_temperature: float) -> float:
        scaled = sides / np.exp(log_temperature)
        peak = scaled.max(1)
        normaliser = peak + np.log(np.exp(scaled - peak[:, None]).sum(1))
        return float((normaliser - scaled[np.arange(len(scaled)), labels]).mean())

    best = minimize_scalar(cross_entropy, bounds=_LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(best.x))


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


def fit_on_validation(
    predictions: Any, label_names: Sequence[str], *, rule: ThresholdRule = "youden", sensitivity: float = 0.9
) -> dict[str, Any]:
    """Fit the temperature and threshold of every label on a validation predictions table.

    Args:
        predictions: DataFrame with `logit_<name>` and 0/1 `<name>` columns; its `split`, where present, must not be
            test.
        label_names: Names of the yes/no labels.
        rule: See `fit_thresholds_on_validation`.
        sensitivity: See `fit_thresholds_on_validation`.

    Returns:
        {"thresholds" in logits, "temperatures", "threshold_probabilities" (calibrated), "rule", "sensitivity",
        "ece_before",
        "ece_after", "fitted_on": {"split", "cycles", "patients"}}; each of the first three and the ECEs by label name.

    Raises:
        InputError: The table is a test table, or has no labelled row.
    """
    names = list(label_names)
    splits = sorted({str(split) for split in predictions["split"]}) if "split" in predictions.columns else []
    if any("test" in split.lower() for split in splits):
        raise InputError(
            f"predictions of split {', '.join(splits)}: fit thresholds and temperatures on validation, never on test"
        )
    table = predictions.loc[predictions[names].notna().all(axis=1).to_numpy()]
    if not len(table):
        raise InputError(f"validation predictions: no row has its {' and '.join(names)}; nothing to fit on")
    logits = np.column_stack([table[f"logit_{name}"].to_numpy(dtype=float) for name in names])
    truth = np.column_stack([table[name].to_numpy(dtype=float) for name in names]).astype(np.int64)
    thresholds = fit_thresholds_on_validation(logits, truth, names, rule, sensitivity=sensitivity)
    temperatures = {name: fit_temperature_on_validation(logits[:, k], truth[:, k]) for k, name in enumerate(names)}
    scaled = {name: sigmoid(logits[:, k] / temperatures[name]) for k, name in enumerate(names)}
    raw = {name: sigmoid(logits[:, k]) for k, name in enumerate(names)}
    return {
        "thresholds": thresholds,
        "temperatures": temperatures,
        "threshold_probabilities": {name: float(sigmoid(thresholds[name] / temperatures[name])) for name in names},
        "rule": rule,
        "sensitivity": sensitivity if rule == "sensitivity" else None,
        "ece_before": {n: none_if_nan(expected_calibration_error(raw[n], truth[:, k])) for k, n in enumerate(names)},
        "ece_after": {n: none_if_nan(expected_calibration_error(scaled[n], truth[:, k])) for k, n in enumerate(names)},
        "fitted_on": {
            "split": ", ".join(splits) or None,
            "cycles": len(table),
            "patients": int(table["patient_id"].nunique()) if "patient_id" in table.columns else None,
        },
    }


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
    places = [_candidates(logits[:, k], _GRID) for k in (c, w)]
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
