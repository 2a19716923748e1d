"""Calibration of probabilities, and decision curves.

Decisions: a calibrated logit is logit / temperature + intercept, which never changes the order of the logits. Both are
fitted with a prior towards 1 and 0, because without it a few dozen rows may be fitted best by a temperature that makes
every probability 0.5. Penalties of the summed cross entropy: (log temperature)^2 / (2 * 0.5^2), (slope - 1)^2 / 2 and
intercept^2 / (2 * 2^2); their effect vanishes for many positives. Calibration error is that of the probability of the
label being present, in 15 equal-width bins. In a decision curve a cycle is acted on where its probability is at least
the threshold t; a false positive costs t / (1 - t) true positives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laennec.evaluation.intervals import patient_codes, patient_intervals, rarer_patients
from laennec.evaluation.metrics import PREDICTED_CLASS, FloatArray, none_if_nan

_LOG_TEMPERATURE = (np.log(0.05), np.log(20.0))
_LOG_TEMPERATURE_SD, _SLOPE_SD, _INTERCEPT_SD = 0.5, 1.0, 2.0
MOST_ECE = 0.1  # calibration error above which a caution is given
THRESHOLDS = tuple(round(0.01 * k, 2) for k in range(1, 100))


def sigmoid(logits: ArrayLike) -> FloatArray:
    """1 / (1 + exp(-logit)) without overflow, any shape."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, dtype=float))))


def softmax(logits: ArrayLike) -> FloatArray:
    """Class probabilities (cycles, classes) of logits (cycles, classes)."""
    values = np.asarray(logits, dtype=float)
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def calibrated_logits(
    logits: ArrayLike,
    names: Sequence[str],
    temperatures: Mapping[str, float] | None = None,
    intercepts: Mapping[str, float] | None = None,
) -> FloatArray:
    """Calibrated logits (cycles, outputs): logit / temperature + intercept, by name; 1 and 0 where absent."""
    divisors = np.array([float((temperatures or {}).get(name, 1.0)) for name in names])
    offsets = np.array([float((intercepts or {}).get(name, 0.0)) for name in names])
    return np.asarray(np.asarray(logits, dtype=float) / divisors + offsets)


def pass_second(probabilities: ArrayLike, second_thresholds: ArrayLike) -> NDArray[np.bool_]:
    """Where a label is the likeliest of its row, passes its second threshold, or has none: (rows, labels) bool.

    Args:
        probabilities: (rows, labels), or their logits.
        second_thresholds: (labels,); 0 for none.
    """
    values, second = np.asarray(probabilities), np.asarray(second_thresholds)
    return (values >= values.max(axis=1, keepdims=True, initial=-np.inf)) | (values > second) | (second == 0)


def smoothing_text(strength: float | None, neighbours: int = 0) -> str:
    """How a model smooths, in words; "" where it does not."""
    over = f"of up to {neighbours} spans on either side" if neighbours else "of the recording"
    return f"logits mixed with the mean {over}, weight {strength:g}" if strength else ""


def thresholds_text(thresholds: Mapping[str, float], second_thresholds: Mapping[str, float] | None) -> str:
    """The probabilities above which labels are present, in words."""
    text, second = (
        ", ".join(f"{name} above {p:.3f}" for name, p in (values or {}).items())
        for values in (thresholds, second_thresholds)
    )
    return f"{text}; where another label is likelier: {second}" if second else text


def reliability_bins(
    probabilities: ArrayLike, truth: ArrayLike, n_bins: int = 15
) -> list[dict[str, float | int | None]]:
    """Mean probability and observed frequency in equal-width bins of the probability.

    Bin k holds (k / n_bins, (k + 1) / n_bins]; the first also holds 0.

    Args:
        probabilities: (cycles,) in 0..1.
        truth: 0/1 (cycles,): whether the label is present (or the predicted class right).
        n_bins: Number of bins.

    Returns:
        n_bins entries {"low", "high", "count", "mean_probability", "observed"}; the last two are None in an empty bin.
    """
    p, y = _checked(probabilities, truth)
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


def _checked(probabilities: ArrayLike, truth: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Probabilities and truth as flat arrays of one length."""
    p, y = np.asarray(probabilities, dtype=float).ravel(), np.asarray(truth, dtype=float).ravel()
    if p.shape != y.shape:
        raise ValueError(f"{p.size} probabilities but {y.size} labels")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must lie in 0..1; apply a sigmoid or softmax first")
    return p, y


def expected_calibration_error(probabilities: ArrayLike, truth: ArrayLike, n_bins: int = 15) -> float:
    """ECE = sum over bins of (cycles in the bin / all cycles) * |mean probability - observed frequency|.

    For a binary label the probability is that of the label being present (not of the decision being right), so both
    ends of the scale count.

    Args:
        probabilities: (cycles,) in 0..1.
        truth: 0/1 (cycles,).
        n_bins: Equal-width bins, as in `reliability_bins`.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    used: list[Any] = [entry for entry in reliability_bins(probabilities, truth, n_bins) if entry["count"]]
    gaps = (entry["count"] * abs(entry["mean_probability"] - entry["observed"]) for entry in used)
    return float(sum(gaps) / sum(entry["count"] for entry in used)) if used else float("nan")


def brier_score(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean squared difference of probability and truth, (cycles,) or (cycles, classes) summed over a cycle's classes.

    Reference: Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    p, y = np.asarray(probabilities, dtype=float), np.asarray(truth, dtype=float)
    if p.shape != y.shape:
        raise ValueError(f"probabilities {p.shape} but truth {y.shape}")
    squares = (p - y) ** 2
    return float((squares if p.ndim == 1 else squares.sum(1)).mean()) if len(p) else float("nan")


def calibration_name(name: str) -> str:
    """The printed name of an entry of the calibration."""
    return "predicted class" if name == PREDICTED_CLASS else name


def calibration_caution(name: str, ece: float | None) -> str | None:
    """A caution where the expected calibration error of a label is above 0.1; None for none."""
    if ece is None or ece <= MOST_ECE:
        return None
    away = f"probabilities differ from observed frequencies by {ece:.3f} on average (ECE above {MOST_ECE:g})"
    return f"{calibration_name(name)}: {away}"


def fit_temperature_on_validation(logits: ArrayLike, truth: ArrayLike) -> float:
    """The temperature T in 0.05..20 that minimises the cross entropy of logits / T, with the prior of this module.

    Args:
        logits: (cycles,) of one binary label, or (cycles, classes) of a single-label model.
        truth: 0/1 (cycles,), or class ids (cycles,).

    Returns:
        T; 1.0 where only one class occurs, because nothing can be fitted.
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
        prior = 0.5 * (log_temperature / _LOG_TEMPERATURE_SD) ** 2
        return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(scaled)), labels]).sum() + prior)

    best = minimize_scalar(cross_entropy, bounds=_LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(best.x))


def fit_platt_on_validation(logits: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid of logits (cycles,), with the prior of this module; (1, 0) for one class.

    Targets are Platt's (N+ + 1) / (N+ + 2) and 1 / (N- + 2), not 1 and 0: they keep the slope finite where the logits
    separate the classes. A slope that is not positive means that the logits do not rise with the label.

    Reference: Platt, Probabilistic Outputs for Support Vector Machines, 1999; Lin, Lin and Weng, A Note on Platt's
        Probabilistic Outputs, Machine Learning 2007.
    """
    from scipy.optimize import minimize

    values, labels = np.asarray(logits, dtype=float), np.asarray(truth, dtype=np.int64)
    if values.ndim != 1 or values.shape != labels.shape or not np.isfinite(values).all():
        raise ValueError(f"logits {values.shape} must be finite and as many as the labels {labels.shape}")
    positives, total = int(labels.sum()), len(labels)
    if positives in (0, total):
        return 1.0, 0.0
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (total - positives + 2))
    middle, spread = float(values.mean()), float(values.std()) or 1.0
    design = np.column_stack([(values - middle) / spread, np.ones(total)])

    # the prior in terms of the weights: slope and intercept are linear in them
    linear = np.array([[1 / spread, 0.0], [-middle / spread, 1.0]])
    precision = linear.T @ np.diag([_SLOPE_SD**-2.0, _INTERCEPT_SD**-2.0]) @ linear
    none = np.array([spread, middle])  # slope 1, intercept 0

    def cost(weights: FloatArray) -> tuple[float, FloatArray]:
        z, away = design @ weights, weights - none
        value = (np.logaddexp(0, z) - target * z).sum() + 0.5 * away @ precision @ away
        return float(value), design.T @ (sigmoid(z) - target) + precision @ away

    def curvature(weights: FloatArray) -> FloatArray:
        p = sigmoid(design @ weights)
        return np.asarray(design.T @ (design * (p * (1 - p))[:, None]) + precision)

    start = [0.0, np.log((positives + 1) / (total - positives + 1))]
    best = minimize(cost, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-8}).x
    slope = float(best[0]) / spread
    return slope, float(best[1]) - slope * middle


def decision_curve(probabilities: ArrayLike, truth: ArrayLike, thresholds: ArrayLike | None = None) -> dict[str, Any]:
    """Net benefit of acting on a label's probabilities, beside acting on every cycle and on none.

    At threshold t: net benefit = TP / n - FP / n * t / (1 - t), with TP and FP the cycles with and without the label
    among those of probability >= t. Acting on all has prevalence - (1 - prevalence) * t / (1 - t), acting on none 0.

    Args:
        probabilities: (cycles,) in 0..1, calibrated.
        truth: 0/1 (cycles,).
        thresholds: (thresholds,) in 0 <= t < 1; None is 0.01, 0.02, ... 0.99.

    Returns:
        JSON-ready {"thresholds", "model", "treat_all", "treat_none": lists (thresholds,), "prevalence", "cycles"};
        None for numbers that are undefined without cycles.

    Reference: Vickers and Elkin, Decision curve analysis, Medical Decision Making 26 (2006).
    """
    p, y = _checked(probabilities, truth)
    if not np.isin(y, (0, 1)).all():
        raise ValueError("the truth must be 0 or 1")
    t = np.asarray(THRESHOLDS if thresholds is None else thresholds, dtype=float).ravel()
    if not ((t >= 0) & (t < 1)).all():
        raise ValueError("thresholds must lie in 0 <= t < 1: at 1 the cost of a false alarm is infinite")
    benefit = _net_benefit(p, y, t)(np.ones((1, p.size)))[0]
    prevalence = float(y.mean()) if y.size else float("nan")
    everyone = prevalence - (1 - prevalence) * t / (1 - t)
    return {
        "thresholds": t.tolist(),
        "model": [none_if_nan(value) for value in benefit],
        "treat_all": [none_if_nan(value) for value in everyone],
        "treat_none": [0.0] * t.size,
        "prevalence": none_if_nan(prevalence),
        "cycles": int(y.size),
    }


def decision_curves(predictions: Any) -> dict[str, dict[str, Any]]:
    """`decision_curve` of every label that has both classes, and its "intervals": [low, high] or None by threshold."""
    curves, codes = {}, patient_codes(predictions.table)[0]
    for k, name in enumerate(predictions.label_names):
        p, y = predictions.probabilities[:, k], predictions.truth[:, k]
        if not 0 < y.sum() < y.size:
            continue
        benefit = _net_benefit(p, y, np.array(THRESHOLDS))

        def statistic(weights: FloatArray, benefit: Any = benefit) -> dict[str, FloatArray]:
            return {str(place): values for place, values in enumerate(benefit(weights).T)}

        behind = dict.fromkeys(map(str, range(len(THRESHOLDS))), rarer_patients(codes, y))
        bounds = patient_intervals(predictions.table, statistic, behind, shares=False)
        curves[name] = decision_curve(p, y) | {"intervals": list(bounds.values())}
    return curves


def _net_benefit(p: FloatArray, y: Any, t: FloatArray) -> Any:
    """From row weights (weightings, cycles) to net benefits (weightings, thresholds)."""
    called = (p[:, None] >= t[None, :]).astype(float)
    gain = called * np.where(y[:, None] == 1, 1.0, -t[None, :] / (1 - t[None, :]))

    def benefit(weights: FloatArray) -> FloatArray:
        total = weights.sum(1, keepdims=True)
        return np.asarray(np.where(total > 0, (weights @ gain) / np.where(total > 0, total, 1), np.nan))

    return benefit
