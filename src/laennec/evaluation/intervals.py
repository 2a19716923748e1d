"""Intervals of metrics over patients: leaving one out, and draws of patients for paired comparisons.

Decisions: patients are the unit, because cycles of one patient resemble each other and intervals over cycles are
several times too narrow. A statistic is a function of row weights (weightings, cycles), so point estimate, jackknife
and draws run the same code. A metric's interval: the spread of its logit without each patient in turn gives the
standard error, and Student's t the width, with the effective number of patients that have the finding less one as
degrees of freedom; percentiles of a bootstrap are too narrow (`tests/soak/interval_coverage.py`). Metrics that are no
shares are not transformed. Fewer than five patients have no interval.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from laennec.evaluation.metrics import FloatArray, IntArray, is_percent
from laennec.progress import track

Statistic: TypeAlias = Callable[[FloatArray], Mapping[str, FloatArray]]
"""From row weights (weightings, cycles) to named values (weightings,)."""
Interval: TypeAlias = list[float] | None

LEVEL = 0.95
METHOD = "jackknife"
MIN_PATIENTS = 5
FEW_PATIENTS = 20
FEW_EFFECTIVE = 5.0  # effective patients below which a finding gets a caution
LEAST_EFFECTIVE = 3.0  # and below which methods are not compared on it: less than two degrees of freedom
_MIN_DEFINED = 0.9  # share of draws in which a statistic must be defined to get an interval
_CHUNK = 64
_LEAST_SHARE = 1e-4  # shares are at least so far from 0 and 1 on the logit scale


def patient_codes(predictions: Any) -> tuple[IntArray, int]:
    """Number the patients of a predictions table, or of patient ids (cycles,): codes (cycles,) in 0..n-1, and n.

    A row without a patient is clustered by its recording.
    """
    if not hasattr(predictions, "columns"):
        keys = [f"p:{patient}" for patient in predictions]
    else:
        import pandas as pd  # half a second, which predicting does without

        recordings = predictions.get("recording_id", range(len(predictions)))
        patients = predictions.get("patient_id", [None] * len(predictions))
        known = ~pd.isna(np.asarray(patients, dtype=object))
        rows = zip(patients, recordings, known, strict=True)
        keys = [f"p:{patient}" if of_patient else f"r:{recording}" for patient, recording, of_patient in rows]
    names, codes = np.unique(np.asarray(keys, dtype=str), return_inverse=True)
    return codes.astype(np.int64), len(names)


def draw_patients(n_patients: int, n_draws: int, seed: int) -> IntArray:
    """The patients of every draw (n_draws, n_patients), with replacement; a function of its arguments alone."""
    return np.random.default_rng(seed).integers(0, max(n_patients, 1), size=(n_draws, n_patients))


def bootstrap_values(
    predictions: Any, statistic: Statistic, n_draws: int = 1000, seed: int = 0
) -> dict[str, FloatArray]:
    """Values of a statistic in every draw of patients: {name: (n_draws,)}, nan where undefined.

    Equal seeds over equal patients give equal draws, so differences are paired.
    """
    codes, n_patients = patient_codes(predictions)
    draws = draw_patients(n_patients, n_draws, seed)
    chunks: dict[str, list[FloatArray]] = {}
    for first in track(range(0, n_draws, _CHUNK), "bootstrap"):
        times = np.array([np.bincount(draw, minlength=n_patients) for draw in draws[first : first + _CHUNK]])
        # (draws, patients) -> (draws, cycles)
        _append(chunks, statistic(times[:, codes].astype(float)))
    return {name: np.concatenate(values) for name, values in chunks.items()}


def _append(chunks: dict[str, list[FloatArray]], found: Mapping[str, FloatArray]) -> None:
    for name, values in found.items():
        chunks.setdefault(name, []).append(np.asarray(values, dtype=float))


def interval(values: FloatArray, n_patients: int) -> Interval:
    """95 % percentile interval [low, high] of bootstrap values (draws,); None where it would have no meaning."""
    defined = values[np.isfinite(values)]
    if n_patients < MIN_PATIENTS or defined.size < max(_MIN_DEFINED * values.size, 1):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def interval_note(n_patients: int) -> str | None:
    """A caution about intervals over few patients; None for enough patients."""
    if n_patients < MIN_PATIENTS:
        patients = "1 patient" if n_patients == 1 else f"{n_patients} patients"
        return f"{patients}: too few for an interval (at least {MIN_PATIENTS} are needed)"
    if n_patients < FEW_PATIENTS:
        return f"only {n_patients} patients: the intervals are rough"
    return None


def effective_patients(codes: IntArray, flags: Any) -> float:
    """How many patients with equally many flagged rows would say as much: (sum of counts)² / sum of squared counts."""
    counts = np.bincount(codes, np.asarray(flags, dtype=float)) if len(codes) else np.zeros(1)
    return float(counts.sum() ** 2 / (counts**2).sum()) if counts.any() else 0.0


def number_behind(effective: Mapping[str, float], name: str) -> float | None:
    """The effective number of patients behind a metric, by its name or by the label before its last dot."""
    return effective.get(name, effective.get(name.rpartition(".")[0]))


def patient_intervals(
    predictions: Any, statistic: Statistic, effective: Mapping[str, float] | None = None, *, shares: bool = True
) -> dict[str, Interval]:
    """95 % intervals of metrics by leaving out one patient at a time.

    Args:
        predictions: DataFrame with `patient_id` (rows without one are clustered by `recording_id`), or patient ids
            (rows,).
        statistic: From row weights (weightings, rows) to {metric: (weightings,)}, in the row order of `predictions`.
        effective: Effective number of patients behind a metric, by its name or by the label before its last dot; that
            of all rows where there is none.
        shares: Whether values from 0 to 1 are taken for shares; not for differences.

    Returns:
        {metric: [low, high]}; None for fewer than five patients, or where the metric is undefined without one of them.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11; Cameron and Miller, A
        Practitioner's Guide to Cluster-Robust Inference (2015), section VI (few and unequal clusters).
    """
    codes, n_patients = patient_codes(predictions)
    found: dict[str, list[FloatArray]] = {}
    left_out = np.arange(-1, n_patients)  # -1: none
    for first in range(0, len(left_out), _CHUNK):
        weights = (codes[None, :] != left_out[first : first + _CHUNK, None]).astype(float)
        _append(found, statistic(weights))
    everyone = effective_patients(codes, np.ones(len(codes)))
    bounds = {}
    for name, chunks in found.items():
        behind = number_behind(effective or {}, name)
        values = np.concatenate(chunks)
        top = _top(name, values) if shares else None
        enough = n_patients >= MIN_PATIENTS
        bounds[name] = _bounds(values, everyone if behind is None else behind, top) if enough else None
    return bounds


def _top(name: str, values: FloatArray) -> float | None:
    """The largest value of a metric whose smallest is 0; None where that is unknown."""
    if is_percent(name):
        return 100.0
    return 1.0 if ((values >= 0) & (values <= 1)).all() else None


def _bounds(values: FloatArray, effective: float, top: float | None) -> Interval:
    """The interval of a metric (all patients, then without each); `effective` patients are behind it."""
    from scipy.special import stdtrit

    if not np.isfinite(values).all():
        return None
    tail = (1 - LEVEL) / 2
    if top and not np.ptp(values) and values[0] in (0, top):  # no spread at an end: as of so many right or wrong ones
        least = tail ** (1 / max(effective, 1))
        return [float(top * least), top] if values[0] else [0.0, float(top * (1 - least))]
    if top:
        shares = np.clip(values / top, _LEAST_SHARE, 1 - _LEAST_SHARE)
        values = np.log(shares / (1 - shares))
    whole, others = values[0], values[1:]
    error = np.sqrt((len(others) - 1) * others.var())
    width = stdtrit(max(effective - 1, 1), 1 - tail) * error
    ends = np.array([whole - width, whole + width])
    low, high = top / (1 + np.exp(-ends)) if top else ends
    return [float(low), float(high)]


def effective_note(effective: Mapping[str, float]) -> str | None:
    """A caution about findings of few patients; None where there are enough."""
    few = [f"{name} ({number:.1f})" for name, number in effective.items() if number < FEW_EFFECTIVE]
    if not few:
        return None
    return (
        f"fewer than {FEW_EFFECTIVE:g} effective patients with {', '.join(few)}: a claim about it needs more patients"
    )
