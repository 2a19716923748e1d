"""Operating points: thresholds and calibration, fitted on validation patients.

Decisions: a table of a test split is refused. Thresholds are in raw logits, half-way between two scores, so that
rounding changes no decision; of equally good ones the one nearest to 0 is taken. A label with fewer than 10 positives
or negatives is left uncalibrated, one with one class only has no threshold either; a note says so.

The score of a label for a recording is the highest logit of its windows. Recordings have their own operating point,
because a label is more frequent there than in windows. Windows and recordings are calibrated by slope and intercept
wherever events are calibrated: their share of positives differs from training, and the highest of many logits is too
high by a shift.

The ICBHI Score counts an abnormal cycle as right only if both labels are. Its best thresholds are low, because normal
cycles are many, and two low thresholds often give a second label that is wrong. Rule icbhi_likeliest therefore predicts
the less likely label of a cycle only if its probability exceeds 0.5 too; recordings, which often have both, are exempt.

A model that smooths mixes the logits of annotated cycles with the mean of their recording, and its operating point is
fitted on smoothed validation predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike

from laennec.errors import InputError
from laennec.evaluation.calibration import refuse_test_split
from laennec.evaluation.calibration.probabilities import (
    brier_score,
    calibrated_logits,
    expected_calibration_error,
    fit_platt_on_validation,
    fit_temperature_on_validation,
    pass_second,
    sigmoid,
    softmax,
)
from laennec.evaluation.calibration.smoothing import choose_smoothing, smooth_predictions
from laennec.evaluation.metrics import PREDICTED_CLASS, FloatArray, f1_of, four_class, none_if_nan
from laennec.model_settings import NEUTRAL

Calibration: TypeAlias = Literal["none", "temperature", "platt"]
ThresholdRule: TypeAlias = Literal["youden", "f1", "icbhi", "icbhi_likeliest", "sensitivity"]
ICBHI_RULES = ("icbhi", "icbhi_likeliest")  # for crackle and wheeze alone
_GRID = 400
SECOND = 0.5  # probability that the less likely label must exceed under rule icbhi_likeliest
MIN_EXAMPLES = 10  # positives, and negatives, that a calibration needs


@dataclass(frozen=True)
class FittingRule:
    """How an operating point is fitted."""

    calibration: str  # a `Calibration`
    threshold_rule: str | None  # a `ThresholdRule`; None: probability 0.5
    sensitivity: float = 0.9  # of rule "sensitivity"
    smoothing: str | float = 0.0  # weight of the recording's mean; "auto": the one that ranks validation best

    def __post_init__(self) -> None:
        if not isinstance(self.sensitivity, int | float) or not 0 < self.sensitivity <= 1:
            raise InputError(f"sensitivity is {self.sensitivity!r}; it must lie above 0, and be 1 at most")


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
        names: Label names; "icbhi" and "icbhi_likeliest" need exactly crackle and wheeze.
        rule: "youden" maximises sensitivity + specificity; "sensitivity" is the highest threshold with the wanted
            sensitivity; "f1" maximises F1; "icbhi" chooses both thresholds together for the highest ICBHI Score;
            "icbhi_likeliest" does so where the less likely label of a cycle has to pass logit 0 too (logits must be
            calibrated).
        sensitivity: The sensitivity of rule "sensitivity".

    Returns:
        {name: threshold}; a cycle has the label where logit > threshold. 0.0 for a label with one class only.
    """
    values, labels = np.asarray(logits, dtype=float), np.asarray(truth, dtype=np.int64)
    if values.ndim != 2 or values.shape != labels.shape or values.shape[1] != len(names):
        raise ValueError(f"logits {values.shape} and labels {labels.shape} must both be (cycles, {len(names)})")
    if rule not in get_args(ThresholdRule):
        raise ValueError(f"no threshold rule {rule!r}; the rules are {', '.join(get_args(ThresholdRule))}")
    if rule in ICBHI_RULES and set(names) != {"crackle", "wheeze"}:
        raise ValueError(f"rule {rule} needs the labels crackle and wheeze, not {list(names)}")
    if rule in ICBHI_RULES:
        may_be = pass_second(sigmoid(values), np.full(2, SECOND if rule == "icbhi_likeliest" else 0.0))
        return _icbhi_thresholds(values, labels, may_be, list(names))
    return {name: _one_threshold(values[:, k], labels[:, k], rule, sensitivity) for k, name in enumerate(names)}


def _candidates(scores: FloatArray, most: int | None = None) -> FloatArray:
    """Thresholds that separate scores: below all, half-way between neighbours, above all; at most `most`."""
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
    """The threshold of one label by a rule for single labels."""
    positives, total = int(truth.sum()), len(truth)
    if positives in (0, total):
        return 0.0
    places = _candidates(scores)
    ordered = np.argsort(scores, kind="stable")
    below = np.searchsorted(scores[ordered], places, side="right")  # cycles predicted without the label
    missed = np.r_[0, np.cumsum(truth[ordered])][below]
    found, called = positives - missed, total - below
    if rule == "youden":
        return _nearest_to_zero(places, found / positives - (called - found) / (total - positives))
    if rule == "f1":
        return _nearest_to_zero(places, f1_of(found, called, positives))
    return float(places[np.flatnonzero(found / positives >= sensitivity - 1e-12).max()])


def _icbhi_thresholds(logits: FloatArray, truth: Any, may_be: Any, names: list[str]) -> dict[str, float]:
    """Choose both thresholds together: score every pair, with labels predicted only where `may_be` is true."""
    scores = [logits[:, names.index(name)] for name in ("crackle", "wheeze")]
    flags = [truth[:, names.index(name)] for name in ("crackle", "wheeze")]
    both_classes = [0 < flag.sum() < len(flag) for flag in flags]
    places = [_candidates(s, _GRID) if fits else np.zeros(1) for s, fits in zip(scores, both_classes, strict=True)]
    true = four_class(*flags)
    n_normal, n_abnormal = int((true == 0).sum()), int((true > 0).sum())
    if not n_normal or not n_abnormal:
        return dict.fromkeys(names, 0.0)
    allowed = [may_be[:, names.index(name)] for name in ("crackle", "wheeze")]
    # (thresholds, cycles)
    called = [(s[None, :] > p[:, None]) & may for p, s, may in zip(places, scores, allowed, strict=True)]
    score = np.zeros((len(places[0]), len(places[1])))
    for k in range(4):  # cycles of class k whose two labels are both predicted right
        crackle, wheeze = (
            (flags[:, true == k] == present).astype(float)
            for flags, present in zip(called, (k & 1, k >> 1), strict=True)
        )
        score += crackle @ wheeze.T / (n_abnormal if k else n_normal)
    distance = np.abs(places[0])[:, None] + np.abs(places[1])[None, :]
    best = np.where(score >= score.max() - 1e-9, distance, np.inf)
    row, column = np.unravel_index(int(best.argmin()), best.shape)
    chosen = {"crackle": float(places[0][row]), "wheeze": float(places[1][column])}
    return {name: chosen[name] for name in names}


def fit_on_validation(
    table: Any,
    label_names: Sequence[str],
    *,
    rule: ThresholdRule | None = "youden",
    sensitivity: float = 0.9,
    calibration: Calibration = "temperature",
) -> dict[str, Any]:
    """Fit the calibration and threshold of every label on a validation predictions table.

    Args:
        table: DataFrame with `logit_<name>` and 0/1 `<name>` columns; its `split`, where present, must not be test.
        label_names: Names of the binary labels.
        rule: As for `fit_thresholds_on_validation`; None decides at the calibrated probability 0.5.
        sensitivity: That of rule "sensitivity".
        calibration: "temperature" divides a label's logits, "platt" divides and shifts them, "none" leaves them.

    Returns:
        {"calibration", "thresholds" in logits, "temperatures", "intercepts", "threshold_probabilities" (calibrated),
        "second_thresholds" (calibrated, with rule "icbhi_likeliest"), "rule", "sensitivity", "ece_before", "ece_after",
        "brier_before", "brier_after", "notes": one line for each label that was left unfitted, "fitted_on": {"split",
        "cycles", "patients"}}; fitted numbers and errors by label.
    """
    names = list(label_names)
    if calibration not in get_args(Calibration):
        raise ValueError(f"no calibration {calibration!r}; it can be {', '.join(get_args(Calibration))}")
    table, fitted_on = _validation_rows(table, names)
    logits = np.column_stack([table[f"logit_{name}"].to_numpy(dtype=float) for name in names])
    truth = np.column_stack([table[name].to_numpy(dtype=float) for name in names]).astype(np.int64)
    any_abnormal, any_normal = bool(truth.any()), not truth.any(axis=1).all()
    fits = [_fit_label(name, logits[:, k], truth[:, k], calibration) for k, name in enumerate(names)]
    temperatures = {name: fit[0] for name, fit in zip(names, fits, strict=True)}
    intercepts = {name: fit[1] for name, fit in zip(names, fits, strict=True)}
    if rule is None:
        thresholds = {name: -intercepts[name] * temperatures[name] for name in names}
    elif rule == "icbhi_likeliest" and any_normal and any_abnormal:
        calibrated = calibrated_logits(logits, names, temperatures, intercepts)
        fitted = fit_thresholds_on_validation(calibrated, truth, names, rule)
        thresholds = {name: (at - intercepts[name]) * temperatures[name] for name, at in fitted.items()}
    else:
        thresholds = fit_thresholds_on_validation(logits, truth, names, rule, sensitivity=sensitivity)
    notes = [fit[2] for fit in fits if fit[2]]
    if rule in ICBHI_RULES and not (any_normal and any_abnormal):
        kind = "abnormal" if any_normal else "normal"
        notes.append(f"rule {rule}: validation has no {kind} cycle, so the score is undefined: thresholds at logit 0")
    raw, scaled = sigmoid(logits), sigmoid(calibrated_logits(logits, names, temperatures, intercepts))
    at = calibrated_logits([thresholds[name] for name in names], names, temperatures, intercepts)
    return {
        "calibration": calibration,
        "thresholds": thresholds,
        "temperatures": temperatures,
        "intercepts": intercepts,
        "threshold_probabilities": {name: float(p) for name, p in zip(names, sigmoid(at), strict=True)},
        "second_thresholds": dict.fromkeys(names, SECOND) if rule == "icbhi_likeliest" else {},
        "rule": rule,
        "sensitivity": sensitivity if rule == "sensitivity" else None,
        **_errors({name: (raw[:, k], scaled[:, k], truth[:, k]) for k, name in enumerate(names)}),
        "notes": notes,
        "fitted_on": fitted_on,
    }


def fit_classes_on_validation(
    table: Any, class_names: Sequence[str], *, calibration: Calibration = "temperature"
) -> dict[str, Any]:
    """Fit the temperature of a single-label model; the most probable class stays the prediction.

    Returns:
        As `fit_on_validation`; every class has the same temperature, there is no threshold, and the errors are of the
        predicted class (ECE) and of all classes (Brier).
    """
    names = list(class_names)
    if calibration not in ("none", "temperature"):
        raise ValueError(f"calibration {calibration!r} is for binary labels; classes take temperature or none")
    table, fitted_on = _validation_rows(table, ["label"])
    table = table.loc[table["label"].isin(names).to_numpy()]
    logits = np.column_stack([table[f"logit_{name}"].to_numpy(dtype=float) for name in names])
    truth = np.array([names.index(str(label)) for label in table["label"]], dtype=np.int64)
    few = calibration != "none" and bool(np.sort(np.bincount(truth))[:-1].sum() < MIN_EXAMPLES)
    temperature = fit_temperature_on_validation(logits, truth) if calibration == "temperature" and not few else 1.0
    raw, scaled, one_hot = softmax(logits), softmax(logits / temperature), np.eye(len(names))[truth]
    right = (logits.argmax(1) == truth).astype(np.int64)
    errors = _errors({PREDICTED_CLASS: (raw.max(1), scaled.max(1), right)})
    for side, p in (("before", raw), ("after", scaled)):
        errors[f"brier_{side}"] = {"all classes": none_if_nan(brier_score(p, one_hot))}
    return {
        "calibration": calibration,
        "thresholds": None,
        "temperatures": dict.fromkeys(names, temperature),
        "intercepts": dict.fromkeys(names, 0.0),
        "threshold_probabilities": {},
        "second_thresholds": {},
        "rule": None,
        "sensitivity": None,
        **errors,
        "notes": [f"validation has fewer than {MIN_EXAMPLES} rows outside its largest class: left uncalibrated"] * few,
        "fitted_on": fitted_on,
    }


def _validation_rows(table: Any, columns: list[str]) -> tuple[Any, dict[str, Any]]:
    splits = refuse_test_split(table, "fit thresholds and temperatures")
    table = table.loc[table[columns].notna().all(axis=1).to_numpy()]
    if not len(table):
        raise InputError(f"validation predictions: no row has a value in {' and '.join(columns)}; nothing to fit on")
    patients = int(table["patient_id"].nunique()) if "patient_id" in table.columns else None
    return table, {"split": splits, "cycles": len(table), "patients": patients}


def _fit_label(name: str, logits: FloatArray, truth: Any, calibration: Calibration) -> tuple[float, float, str]:
    """Temperature and intercept of one label, and a note where it was left unfitted."""
    if int(truth.sum()) in (0, len(truth)):
        found = "all rows have the label" if len(truth) and truth[0] else "no row has the label"
        return 1.0, 0.0, f"{name}: in validation {found}, so nothing was fitted: temperature 1, threshold at logit 0"
    if calibration == "none":
        return 1.0, 0.0, ""
    positives = int(truth.sum())
    if min(positives, len(truth) - positives) < MIN_EXAMPLES:
        counted = f"{positives} of {len(truth)} validation rows have the label"
        least = f"calibration needs {MIN_EXAMPLES} with and {MIN_EXAMPLES} without it"
        return 1.0, 0.0, f"{name}: {counted}, and {least}; left uncalibrated"
    if calibration == "temperature":
        return fit_temperature_on_validation(logits, truth), 0.0, ""
    slope, intercept = fit_platt_on_validation(logits, truth)
    if slope <= 1e-6:
        return 1.0, 0.0, f"{name}: its logits on validation do not increase with the label; left uncalibrated"
    return 1 / slope, intercept, ""


def _errors(curves: Mapping[str, tuple[Any, Any, Any]]) -> dict[str, Any]:
    """ECE and Brier score before and after, of {name: (probability before, after, truth)}."""
    figures = {"ece": expected_calibration_error, "brier": brier_score}
    return {
        f"{figure}_{side}": {name: none_if_nan(of(curve[at], curve[2])) for name, curve in curves.items()}
        for figure, of in figures.items()
        for at, side in enumerate(("before", "after"))
    }


def fit_operating_point(table: Any, names: Sequence[str], multi_label: bool, rule: Any) -> dict[str, Any]:
    """`fit_on_validation` or `fit_classes_on_validation` by a `FittingRule`, or by the head settings of a recipe.

    Returns:
        What these return; "smoothing", the weight, where the rule smooths, and "smoothing_rule", if that is "auto".
    """
    calibration, wanted = rule.calibration, rule.threshold_rule
    smoothed: dict[str, Any] = {"smoothing": rule.smoothing} if rule.smoothing else {}
    if rule.smoothing == "auto":
        kind: Any = "multi_label" if multi_label else "single_label"
        chosen = choose_smoothing(table, problem_type=kind, label_names=names)["strength"]
        smoothed = {"smoothing": chosen, "smoothing_rule": "auto"}
    if smoothed:
        table = smooth_predictions(table, names, smoothed["smoothing"])
    if multi_label:
        fitted = fit_on_validation(table, names, rule=wanted, sensitivity=rule.sensitivity, calibration=calibration)
    else:
        fitted = fit_classes_on_validation(table, names, calibration=calibration)
        if wanted is not None:
            fitted["notes"].append(f"threshold rule {wanted}: not used, the most probable class is predicted")
    return fitted | smoothed


def set_operating_point(config: Any, fitted: Mapping[str, Any] | None) -> None:
    """Store a fitted operating point in a model's configuration; None removes it."""
    for name, value in operating_point_of(fitted).items():
        setattr(config, name, value)


def operating_point_of(fitted: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """What config.json holds of an operating point: its numbers, and how they were fitted."""
    fitted = fitted or {}
    how = {name: fitted[name] for name in ("calibration", "rule", "sensitivity", "fitted_on") if name in fitted}
    how |= {name: fitted[name] for name in ("smoothing", "notes") if fitted.get(name)}
    places = {name: name for name in NEUTRAL} | {"thresholds": "threshold_probabilities"}
    numbers = {place: {k: float(v) for k, v in fitted.get(name, {}).items()} for place, name in places.items()}
    return {**numbers, "operating_point": how}


def own_operating_point(config: Any) -> dict[str, Any] | None:
    """The operating point in a model's configuration."""
    numbers = {name: getattr(config, name) for name in NEUTRAL if name != "thresholds"}
    found = {**config.operating_point, **numbers, "threshold_probabilities": config.thresholds}
    return {name: values for name, values in found.items() if values} or None


def decision_settings(config: Any, spans: str = "events") -> dict[str, Any]:
    """How the predictions table of a model is read: settings of `read_predictions` and `evaluate_predictions`."""
    of_events = {"temperatures": config.temperatures, "intercepts": config.intercepts}
    point = config.operating_points.get(spans, of_events)
    return {
        "problem_type": "multi_label" if config.is_multi_label else "single_label",
        "label_names": config.label_names,
        "thresholds": logit_thresholds(config, spans),
        "temperatures": point.get("temperatures", {}),
        "intercepts": point.get("intercepts", {}),
        "second_thresholds": config.labels_with_second(spans),
    }


def logit_thresholds(config: Any, spans: str = "events") -> dict[str, float] | None:
    """The thresholds of a model's configuration in raw logits; None for a single-label model."""
    if not config.is_multi_label:
        return None
    names = ("thresholds", "temperatures", "intercepts")
    probabilities, temperatures, intercepts = (config.per_label(name, spans) for name in names)
    thresholds = {}
    for name, p in probabilities.items():
        p = min(max(p, 1e-12), 1 - 1e-12)
        thresholds[name] = (float(np.log(p / (1 - p))) - intercepts[name]) * temperatures[name]
    return thresholds


def highest_logits(table: Any, label_names: Sequence[str]) -> Any:
    """One row per recording: its span, any annotated label, the highest logit, the first window's other columns."""
    labels = [name for name in label_names if name in table.columns]
    highest = dict.fromkeys((*labels, *(f"logit_{name}" for name in label_names), "end_s"), "max")
    first = {name: "first" for name in table.columns if name not in highest and name != "recording_id"}
    return table.groupby("recording_id", sort=False).agg(first | highest).reset_index()


def fit_windows(
    table: Any, label_names: Sequence[str], multi_label: bool, rule: Any, window_s: float, hop_s: float
) -> dict[str, dict[str, Any]]:
    """{"windows": operating point, "recordings": operating point}, fitted on validation windows of these lengths."""
    platt = rule.calibration != "none" and multi_label
    how = FittingRule("platt" if platt else rule.calibration, rule.threshold_rule, rule.sensitivity)
    cut = {"window_s": window_s, "hop_s": hop_s}
    found = {"windows": fit_operating_point(table, label_names, multi_label, how) | cut}
    if multi_label:
        if rule.threshold_rule == "icbhi_likeliest":  # crackles and wheezes of a recording may be in different windows
            how = replace(how, threshold_rule="icbhi")
        found["recordings"] = fit_operating_point(highest_logits(table, label_names), label_names, True, how) | cut
    return found


def window_points_of(points: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """What config.json holds under `operating_points`."""
    stored = {}
    for name, fitted in (points or {}).items():
        numbers = operating_point_of(fitted)
        stored[name] = {**numbers, **numbers.pop("operating_point"), **{k: fitted[k] for k in ("window_s", "hop_s")}}
    return stored


def window_note(config: Any, window_s: float, hop_s: float) -> str | None:
    """A note if a model's thresholds were fitted on other spans than windows of these lengths; None otherwise."""
    point = config.operating_points.get("windows")
    if point is None:
        if not (config.thresholds or config.temperatures):
            return None
        what = "thresholds and calibration were fitted on annotated events, not on windows"
        return f"{what}; to fit them on windows: laennec calibrate RUN --spans windows"
    if (point["window_s"], point["hop_s"]) != (window_s, hop_s):
        was = f"windows of {point['window_s']:g} s every {point['hop_s']:g} s"
        return f"thresholds and calibration were fitted on {was}, not of {window_s:g} s every {hop_s:g} s"
    return None


def fitting_notes(config: Any, spans: str) -> list[str]:
    """What was left unfitted for "events", "windows" or "recordings", one line for each label."""
    point = config.operating_point if spans == "events" else config.operating_points.get(spans, {})
    if config.span == "recording":
        spans = "recordings"
    return [f"{spans}: {note}" for note in point.get("notes") or []]
