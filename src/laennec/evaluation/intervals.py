"""Intervals of metrics and of their differences over patients, by leaving one patient out at a time.

Decisions: patients are the unit, because cycles of one patient resemble each other and intervals over cycles are
several times too narrow. A statistic is a function of row weights (weightings, cycles), so point estimate and jackknife
run the same code. The standard error is the spread of the metric's logit when each patient is left out in turn. The
width follows from Student's t; its degrees of freedom are the effective number of patients with the finding, minus one.
Differences, and metrics that are not shares, are not transformed; their degrees of freedom are also limited by the
effective number of patients that cause the spread. Percentile bootstrap intervals are too narrow
(`tests/soak/interval_coverage.py`). There is no interval for fewer than five patients, nor for fewer than three
effective ones, because two degrees of freedom are needed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from laennec.evaluation.metrics import FloatArray, IntArray, is_percent

Statistic: TypeAlias = Callable[[FloatArray], Mapping[str, FloatArray]]
"""From row weights (weightings, cycles) to named values (weightings,)."""
Interval: TypeAlias = list[float] | None

LEVEL = 0.95
METHOD = "jackknife"
MIN_PATIENTS = 5
FEW_PATIENTS = 20  # with fewer, a note calls intervals rough
FEW_PAIRED = 40  # the same for intervals of differences
FEW_EFFECTIVE = 5.0  # with fewer effective patients, a finding gets a caution
LEAST_EFFECTIVE = 3.0  # with fewer effective patients, there is neither interval nor p value
_CHUNK = 64
_LEAST_SHARE = 1e-4  # shares are clipped to this distance from 0 and 1 before the logit


def patient_codes(predictions: Any) -> tuple[IntArray, int]:
    """Number the patients of a predictions table, or of patient ids (cycles,): codes (cycles,) in 0..n-1, and n.

    A row without a patient is clustered by its recording.
    """
    if not hasattr(predictions, "columns"):
        keys = [f"p:{patient}" for patient in predictions]
    else:
        import pandas as pd  # imported here: it takes half a second, and prediction does not need it

        recordings = predictions.get("recording_id", range(len(predictions)))
        patients = predictions.get("patient_id", [None] * len(predictions))
        known = ~pd.isna(np.asarray(patients, dtype=object))
        rows = zip(patients, recordings, known, strict=True)
        keys = [f"p:{patient}" if of_patient else f"r:{recording}" for patient, recording, of_patient in rows]
    names, codes = np.unique(np.asarray(keys, dtype=str), return_inverse=True)
    return codes.astype(np.int64), len(names)


def left_out_values(predictions: Any, statistic: Statistic) -> dict[str, FloatArray]:
    """Values of a statistic over all patients, then without each in turn: {name: (1 + patients,)}, nan if undefined.

    With fewer than five patients, only the value over all patients is computed.

    Args:
        predictions: DataFrame with `patient_id` (rows without one are clustered by `recording_id`), or patient ids
            (rows,).
        statistic: From row weights (weightings, rows) to {name: (weightings,)}, in the row order of `predictions`.
    """
    codes, n_patients = patient_codes(predictions)
    found: dict[str, list[FloatArray]] = {}
    left_out = np.arange(-1, n_patients if n_patients >= MIN_PATIENTS else 0)  # -1: none
    for first in range(0, len(left_out), _CHUNK):
        weights = (codes[None, :] != left_out[first : first + _CHUNK, None]).astype(float)
        for name, values in statistic(weights).items():
            found.setdefault(name, []).append(np.asarray(values, dtype=float))
    return {name: np.concatenate(values) for name, values in found.items()}


def interval_note(n_patients: int, differences: bool = False) -> str | None:
    """A caution about intervals over few patients, also those of differences; None for enough patients."""
    if n_patients < MIN_PATIENTS:
        patients = "1 patient" if n_patients == 1 else f"{n_patients} patients"
        return f"{patients}: too few for an interval (at least {MIN_PATIENTS} are needed)"
    if n_patients < FEW_PATIENTS:
        return f"only {n_patients} patients: the intervals are rough"
    if differences and n_patients < FEW_PAIRED:
        return f"only {n_patients} patients: the intervals of differences are rough"
    return None


def effective_patients(codes: IntArray, flags: Any) -> float:
    """Kish's effective number of patients with flagged rows: (sum of counts)² / sum of squared counts."""
    counts = np.bincount(codes, np.asarray(flags, dtype=float)) if len(codes) else np.zeros(1)
    return float(counts.sum() ** 2 / (counts**2).sum()) if counts.any() else 0.0


def effective_by_label(codes: IntArray, truth: IntArray, names: Sequence[str]) -> dict[str, float]:
    """The effective number of patients with each label; truth (rows, labels) of 0 and 1."""
    return {name: effective_patients(codes, truth[:, k]) for k, name in enumerate(names)}


def effective_text(numbers: Mapping[str, float] | None) -> str:
    """Effective numbers of patients, as text; empty where there are none, as in earlier records."""
    return ", ".join(f"{name} {number:.1f}" for name, number in (numbers or {}).items())


def patients_text(counted: Mapping[str, Any]) -> str:
    """The patients of some scored rows and, but for earlier records, how many of them are effective for each label."""
    effective = effective_text(counted.get("effective_patients"))
    return f"{counted['patients']} patients" + (f" (effective: {effective})" if effective else "")


def rarer_patients(codes: IntArray, flags: Any) -> float:
    """The effective number of patients of the flagged or of the other rows, whichever is smaller."""
    return min(effective_patients(codes, flags), effective_patients(codes, 1 - np.asarray(flags, dtype=float)))


def number_behind(effective: Mapping[str, float], name: str) -> float | None:
    """The effective number of patients behind a metric, by its name or by the label before its last dot."""
    return effective.get(name, effective.get(name.rpartition(".")[0]))


def patient_intervals(
    predictions: Any, statistic: Statistic, effective: Mapping[str, float] | None = None, *, shares: bool = True
) -> dict[str, Interval]:
    """95 % intervals of the metrics of a statistic; see `left_out_values` and `intervals_of`."""
    return intervals_of(predictions, left_out_values(predictions, statistic), effective, shares=shares)


def intervals_of(
    predictions: Any,
    values: Mapping[str, FloatArray],
    effective: Mapping[str, float] | None = None,
    *,
    shares: bool = True,
) -> dict[str, Interval]:
    """95 % intervals of metrics by leaving out one patient at a time.

    Args:
        predictions: As for `left_out_values`.
        values: What that returned: {metric: (1 + patients,)}.
        effective: Effective number of patients behind a metric, by its name or by the label before its last dot; that
            of all rows for other metrics.
        shares: Whether values from 0 to 1 are treated as shares (logit scale); False for differences.

    Returns:
        {metric: [low, high]}; None for fewer than five patients or three effective ones, or where the metric is
        undefined without one of them.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11; Cameron and Miller, A
        Practitioner's Guide to Cluster-Robust Inference (2015), section VI (few and unequal clusters).
    """
    codes, _ = patient_codes(predictions)
    everyone = effective_patients(codes, np.ones(len(codes)))
    bounds = {}
    for name, of_metric in values.items():
        behind = number_behind(effective or {}, name)
        top = largest_value(name, of_metric) if shares else None
        bounds[name] = interval(of_metric, everyone if behind is None else behind, top)
    return bounds


def largest_value(name: str, values: FloatArray) -> float | None:
    """The largest value of a metric whose smallest is 0; None where that is unknown."""
    if is_percent(name):
        return 100.0
    return 1.0 if ((values >= 0) & (values <= 1)).all() else None


def interval(
    values: FloatArray, effective: float, top: float | None = None, runs: Sequence[FloatArray] = ()
) -> Interval:
    """95 % interval of a metric or a difference; None for too few patients (`intervals_of`) or where it is undefined.

    Args:
        values: Over all patients, then without each: (1 + patients,); a mean where there are several runs.
        effective: Effective number of patients behind it.
        top: The largest possible value of a metric whose smallest is 0; None for others and for differences.
        runs: Of each method, the values of its runs with different training seeds: (runs,). The interval covers other
            seeds too.
    """
    if len(values) <= MIN_PATIENTS or effective < LEAST_EFFECTIVE or not np.isfinite(values).all():
        return None
    tail = (1 - LEVEL) / 2
    if top and not np.ptp(values) and values[0] in (0, top):  # no spread: exact binomial bound
        least = tail ** (1 / max(effective, 1))
        return [float(top * least), top] if values[0] else [0.0, float(top * (1 - least))]
    if top:
        values, *runs = (_logits(one / top) for one in (values, *runs))
    error, freedom = standard_error(values, effective, runs, share=bool(top))
    ends = values[0] + np.array([-1, 1]) * t_quantile(freedom, 1 - tail) * error
    low, high = top / (1 + np.exp(-ends)) if top else ends
    return [float(low), float(high)]


def standard_error(
    values: FloatArray, effective: float, runs: Sequence[FloatArray] = (), *, share: bool = False
) -> tuple[float, float]:
    """Standard error over patients and training seeds, and its degrees of freedom; arguments as for `interval`.

    Reference: Satterthwaite, An approximate distribution of estimates of variance components (1946).
    """
    others = values[1:]
    squares, freedom = (others - others.mean()) ** 2, max(effective - 1, 1.0)
    if not share and squares.any():
        freedom = min(freedom, max(squares.sum() ** 2 / (squares**2).sum() - 1, 2.0))
    variances = [((len(others) - 1) * others.var(), freedom)]
    variances += [
        (of_method.var(ddof=1) / len(of_method), len(of_method) - 1) for of_method in runs if len(of_method) > 1
    ]
    total = sum(variance for variance, _ in variances)
    if not total:
        return 0.0, variances[0][1]
    return float(np.sqrt(total)), float(total**2 / sum(variance**2 / freedom for variance, freedom in variances))


def t_quantile(freedom: float, share: float) -> float:
    """The quantile of Student's t."""
    from scipy.special import stdtrit  # imported here: it takes 0.1 s, and prediction does not need it

    return float(stdtrit(freedom, share))


def _logits(shares: FloatArray) -> FloatArray:
    certain = np.clip(shares, _LEAST_SHARE, 1 - _LEAST_SHARE)
    return np.asarray(np.log(certain / (1 - certain)))


def effective_note(effective: Mapping[str, float]) -> str | None:
    """A caution about findings of few patients; None where there are enough."""
    few = [f"{name} ({number:.1f})" for name, number in effective.items() if number < FEW_EFFECTIVE]
    if not few:
        return None
    none = [name for name, number in effective.items() if number < LEAST_EFFECTIVE]
    text = f"too few patients for a claim about {', '.join(few)}: fewer than {FEW_EFFECTIVE:g} effective ones"
    return text + (f"; no interval for {', '.join(none)} (fewer than {LEAST_EFFECTIVE:g})" if none else "")
