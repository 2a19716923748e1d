"""Probabilities that mean what they say, and thresholds with a named reason.

Decisions: what calibrates and the thresholds are fitted on validation patients only; the fitting functions say so in
their names and refuse a table whose split is test. A calibration is a divisor (temperature) and, for Platt, an
intercept of each logit: the probability is that of logit / temperature + intercept, so the temperature alone is the
intercept 0. It never turns the order of the logits round. A label with one class only is left as it is, and that is
said. Calibration error is over the probability of the label being present, 15 equal-width bins.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from laennec.errors import InputError
from laennec.evaluation.metrics import FloatArray, none_if_nan
from laennec.evaluation.thresholds import ThresholdRule, fit_thresholds_on_validation

__all__ = [
    "Calibration",
    "brier_score",
    "calibrated_logits",
    "expected_calibration_error",
    "fit_classes_on_validation",
    "fit_on_validation",
    "fit_platt_on_validation",
    "fit_temperature_on_validation",
    "fit_thresholds_on_validation",
    "reliability_bins",
    "sigmoid",
    "softmax",
]

Calibration: TypeAlias = Literal["none", "temperature", "platt"]

_LOG_TEMPERATURE = (np.log(0.05), np.log(20.0))


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


def brier_score(probabilities: ArrayLike, truth: ArrayLike) -> float:
    """Mean squared difference of probability and truth.

    Args:
        probabilities: (cycles,) of one yes/no label, or (cycles, classes).
        truth: 0/1 of the same shape; the squares of a cycle's classes are added up.

    Returns:
        0 for certain right answers; nan without cycles.

    Reference: Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    p, y = np.asarray(probabilities, dtype=float), np.asarray(truth, dtype=float)
    if p.shape != y.shape:
        raise ValueError(f"probabilities {p.shape} but truth {y.shape}")
    squares = (p - y) ** 2
    return float((squares if p.ndim == 1 else squares.sum(1)).mean()) if len(p) else float("nan")


def calibrated_logits(
    logits: ArrayLike,
    names: Sequence[str],
    temperatures: Mapping[str, float] | None = None,
    intercepts: Mapping[str, float] | None = None,
) -> FloatArray:
    """Logits (cycles, outputs) as calibrated: logit / temperature + intercept, by name; 1 and 0 where absent."""
    divisors = np.array([float((temperatures or {}).get(name, 1.0)) for name in names])
    offsets = np.array([float((intercepts or {}).get(name, 0.0)) for name in names])
    return np.asarray(np.asarray(logits, dtype=float) / divisors + offsets)


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


def fit_platt_on_validation(logits: ArrayLike, truth: ArrayLike) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid, by Newton's method.

    Targets are Platt's (N+ + 1) / (N+ + 2) and 1 / (N- + 2), not 1 and 0: they keep the slope finite where the logits
    separate the classes.

    Args:
        logits: (cycles,) of one yes/no label.
        truth: 0/1 (cycles,).

    Returns:
        (slope, intercept): the probability is sigmoid(slope * logit + intercept). (1, 0) where only one class occurs;
        a slope that is not positive means that the logits do not rise with the label.

    Raises:
        ValueError: Logits that are not finite or do not match the truth.

    Reference: Platt, Probabilistic Outputs for Support Vector Machines, 1999; Lin, Lin and Weng, A Note on Platt's
    Probabilistic Outputs, Machine Learning 2007.
    """
    values, labels = np.asarray(logits, dtype=float), np.asarray(truth, dtype=np.int64)
    if values.ndim != 1 or values.shape != labels.shape or not np.isfinite(values).all():
        raise ValueError(f"logits {values.shape} must be finite and as many as the labels {labels.shape}")
    positives, total = int(labels.sum()), len(labels)
    if positives in (0, total):
        return 1.0, 0.0
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (total - positives + 2))
    # in units of the logits' spread, so that one step size serves every scale
    middle, spread = float(values.mean()), float(values.std()) or 1.0
    design = np.column_stack([(values - middle) / spread, np.ones(total)])

    def cost(weights: FloatArray) -> float:
        z = design @ weights
        return float((np.logaddexp(0, z) - target * z).sum())

    weights = np.array([0.0, np.log((positives + 1) / (total - positives + 1))])
    for _ in range(100):
        p = sigmoid(design @ weights)
        gradient = design.T @ (p - target)
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 1e-12 * np.eye(2)
        step, size, before = np.linalg.solve(hessian, gradient), 1.0, cost(weights)
        while cost(weights - size * step) > before - 1e-4 * size * float(gradient @ step) and size > 1e-10:
            size /= 2
        weights = weights - size * step
        if float(np.abs(size * step).max()) < 1e-10:
            break
    slope = float(weights[0]) / spread
    return slope, float(weights[1]) - slope * middle


def fit_on_validation(
    predictions: Any,
    label_names: Sequence[str],
    *,
    rule: ThresholdRule | None = "youden",
    sensitivity: float = 0.9,
    calibration: Calibration = "temperature",
) -> dict[str, Any]:
    """Fit the calibration and threshold of every label on a validation predictions table.

    Args:
        predictions: DataFrame with `logit_<name>` and 0/1 `<name>` columns; its `split`, where present, must not be
            test.
        label_names: Names of the yes/no labels.
        rule: See `fit_thresholds_on_validation`; None decides at the calibrated probability 0.5.
        sensitivity: See `fit_thresholds_on_validation`.
        calibration: "temperature" divides a label's logits, "platt" divides and shifts them, "none" leaves them.

    Returns:
        {"calibration", "thresholds" in logits, "temperatures", "intercepts", "threshold_probabilities" (calibrated),
        "rule", "sensitivity", "ece_before", "ece_after", "brier_before", "brier_after", "notes": one line for each
        label that was left as it is, "fitted_on": {"split", "cycles", "patients"}}; the fitted numbers and the errors
        by label name.

    Raises:
        InputError: The table is a test table, or has no labelled row.
        ValueError: An unknown rule or calibration.
    """
    names = list(label_names)
    if calibration not in get_args(Calibration):
        raise ValueError(f"no calibration {calibration!r}; it can be {', '.join(get_args(Calibration))}")
    table, fitted_on = _validation_rows(predictions, names)
    logits = np.column_stack([table[f"logit_{name}"].to_numpy(dtype=float) for name in names])
    truth = np.column_stack([table[name].to_numpy(dtype=float) for name in names]).astype(np.int64)
    fits = [_fit_label(name, logits[:, k], truth[:, k], calibration) for k, name in enumerate(names)]
    temperatures = {name: fit[0] for name, fit in zip(names, fits, strict=True)}
    intercepts = {name: fit[1] for name, fit in zip(names, fits, strict=True)}
    if rule is None:
        thresholds = {name: -intercepts[name] * temperatures[name] for name in names}
    else:
        thresholds = fit_thresholds_on_validation(logits, truth, names, rule, sensitivity=sensitivity)
    notes = [fit[2] for fit in fits if fit[2]]
    abnormal = truth.any(axis=1)
    if rule == "icbhi" and abnormal.all() != (~abnormal).all():
        kind = "normal" if abnormal.all() else "abnormal"
        notes.append(f"rule icbhi: validation has no {kind} cycle, so there is no score: thresholds at logit 0")
    raw, scaled = sigmoid(logits), sigmoid(calibrated_logits(logits, names, temperatures, intercepts))
    at = calibrated_logits([thresholds[name] for name in names], names, temperatures, intercepts)
    return {
        "calibration": calibration,
        "thresholds": thresholds,
        "temperatures": temperatures,
        "intercepts": intercepts,
        "threshold_probabilities": {name: float(p) for name, p in zip(names, sigmoid(at), strict=True)},
        "rule": rule,
        "sensitivity": sensitivity if rule == "sensitivity" else None,
        **_errors({name: (raw[:, k], scaled[:, k], truth[:, k]) for k, name in enumerate(names)}),
        "notes": notes,
        "fitted_on": fitted_on,
    }


def fit_classes_on_validation(
    predictions: Any, class_names: Sequence[str], *, calibration: Calibration = "temperature"
) -> dict[str, Any]:
    """Fit the one temperature of a model that answers exactly one class; the likeliest class stays the answer.

    Args:
        predictions: DataFrame with `logit_<name>` for each class and `label` with class names; its `split`, where
            present, must not be test.
        class_names: Names of the classes.
        calibration: "temperature" or "none".

    Returns:
        As `fit_on_validation`; every class has the same temperature, there is no threshold, and the errors are of the
        answered class (ECE) and of all classes (Brier).

    Raises:
        InputError: The table is a test table, or has no labelled row.
        ValueError: Another calibration: a shift of each class would change the answers.
    """
    names = list(class_names)
    if calibration not in ("none", "temperature"):
        raise ValueError(f"calibration {calibration!r} is for yes/no labels; classes take temperature or none")
    table, fitted_on = _validation_rows(predictions, ["label"])
    table = table.loc[table["label"].isin(names).to_numpy()]
    logits = np.column_stack([table[f"logit_{name}"].to_numpy(dtype=float) for name in names])
    truth = np.array([names.index(str(label)) for label in table["label"]], dtype=np.int64)
    several = len(np.unique(truth)) > 1
    temperature = fit_temperature_on_validation(logits, truth) if calibration == "temperature" else 1.0
    alone = "validation has cycles of one class only: left at temperature 1"
    raw, scaled, one_hot = softmax(logits), softmax(logits / temperature), np.eye(len(names))[truth]
    right = (logits.argmax(1) == truth).astype(np.int64)
    errors = _errors({"answered class": (raw.max(1), scaled.max(1), right)})
    for side, p in (("before", raw), ("after", scaled)):
        errors[f"brier_{side}"] = {"all classes": none_if_nan(brier_score(p, one_hot))}
    return {
        "calibration": calibration,
        "thresholds": None,
        "temperatures": dict.fromkeys(names, temperature),
        "intercepts": dict.fromkeys(names, 0.0),
        "threshold_probabilities": {},
        "rule": None,
        "sensitivity": None,
        **errors,
        "notes": [] if several or calibration == "none" else [alone],
        "fitted_on": fitted_on,
    }


def _validation_rows(predictions: Any, columns: list[str]) -> tuple[Any, dict[str, Any]]:
    """The rows whose truth is known, and what they are; a test part is refused."""
    splits = sorted({str(split) for split in predictions["split"]}) if "split" in predictions.columns else []
    if any("test" in split.lower() for split in splits):
        raise InputError(
            f"predictions of split {', '.join(splits)}: fit thresholds and temperatures on validation, never on test"
        )
    table = predictions.loc[predictions[columns].notna().all(axis=1).to_numpy()]
    if not len(table):
        raise InputError(f"validation predictions: no row has its {' and '.join(columns)}; nothing to fit on")
    patients = int(table["patient_id"].nunique()) if "patient_id" in table.columns else None
    return table, {"split": ", ".join(splits) or None, "cycles": len(table), "patients": patients}


def _fit_label(name: str, logits: FloatArray, truth: Any, calibration: Calibration) -> tuple[float, float, str]:
    """Temperature and intercept of one label, and why it was left as it is, where it was."""
    if int(truth.sum()) in (0, len(truth)):
        found = "every cycle has it" if len(truth) and truth[0] else "no cycle has it"
        return 1.0, 0.0, f"{name}: in validation {found}, so nothing was fitted: temperature 1, threshold at logit 0"
    if calibration == "temperature":
        return fit_temperature_on_validation(logits, truth), 0.0, ""
    if calibration == "none":
        return 1.0, 0.0, ""
    slope, intercept = fit_platt_on_validation(logits, truth)
    if slope <= 1e-6:
        return 1.0, 0.0, f"{name}: its logits do not rise with the label on validation, so they were left uncalibrated"
    return 1 / slope, intercept, ""


def _errors(curves: Mapping[str, tuple[Any, Any, Any]]) -> dict[str, Any]:
    """ECE and Brier score before and after, of {name: (probability before, after, truth)}."""
    figures = {"ece": expected_calibration_error, "brier": brier_score}
    return {
        f"{figure}_{side}": {name: none_if_nan(of(curve[at], curve[2])) for name, curve in curves.items()}
        for figure, of in figures.items()
        for at, side in enumerate(("before", "after"))
    }
