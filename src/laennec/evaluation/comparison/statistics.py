"""Statistics of methods that are compared over seeds and patients.

Decisions: a method is a set of runs with different seeds; the folds of one seed are one run. Intervals and p values
include the variance over patients (by leaving one out) and over training seeds (by the spread of the runs); differences
are paired by patients, not by seeds. A p value is that of a t test, but never below the smallest one of an exact sign
test over the effective patients, and is corrected by Holm over all methods compared with the baseline in one metric.
Where fewer than three effective patients have the finding, there is neither interval nor p value, because one or two
patients would decide. The smallest possible p value and the difference detectable with 80 % power are printed too,
because "not significant" does not mean that two methods are equal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr

from laennec.evaluation.intervals import (
    interval,
    largest_value,
    left_out_values,
    standard_error,
    t_quantile,
)
from laennec.evaluation.metrics import FloatArray
from laennec.evaluation.predictions import Predictions, effective_by_metric, statistics_of


@dataclass(frozen=True)
class RunFigures:
    """The metrics of one run."""

    values: Mapping[str, FloatArray]  # {metric: (1 + patients,)}: over all patients, then without each
    cycles: frozenset[str]  # ids of the scored cycles; runs are compared only over the same cycles
    effective: Mapping[str, float] = field(default_factory=dict)  # {metric: effective number of patients behind it}


def pool_folds(folds: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds as those of one run: every patient held out once.

    Labels are ranked by calibrated log-odds, because raw logits of heads trained separately have no common scale.
    Decisions stay those of each fold.
    """
    first = folds[0]
    if len(folds) == 1:
        return first
    table = pd.concat([fold.table for fold in folds], ignore_index=True)
    if table["cycle_id"].duplicated().any():
        raise ValueError("a cycle was scored in two folds")
    if any((fold.label_names, fold.class_names) != (first.label_names, first.class_names) for fold in folds):
        raise ValueError("folds have different labels")
    names = ("truth", "decided", "probabilities", *(("true", "predicted") if first.class_names else ()))
    arrays: dict[str, Any] = {name: np.concatenate([getattr(fold, name) for fold in folds]) for name in names}
    certain = np.clip(arrays["probabilities"], 1e-12, 1 - 1e-12)
    if first.confidence is not None:
        arrays["confidence"] = np.concatenate([np.asarray(fold.confidence) for fold in folds])
    unlabelled = sum(fold.unlabelled for fold in folds)
    logits = np.log(certain / (1 - certain))
    return replace(first, table=table, unlabelled=unlabelled, logits=logits, thresholds=None, **arrays)


def run_figures(
    predictions: Predictions, figures: Sequence[str], own: Mapping[str, Sequence[float | None]] | None = None
) -> RunFigures:
    """The metrics of one run; own metrics are the stored `left_out_values` of its evaluation."""
    values = left_out_values(predictions.table, statistics_of(predictions))
    values |= {name: np.array(stored, dtype=float) for name, stored in (own or {}).items()}
    kept = [name for name in figures if name in values]
    cycles = frozenset(map(str, predictions.table["cycle_id"]))
    return RunFigures({name: values[name] for name in kept}, cycles, effective_by_metric(predictions, kept))


def compare_methods(
    methods: Mapping[str, Sequence[RunFigures]], baseline: str | Mapping[str, str] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, standard deviation and interval of each method, and its difference from the baseline.

    Args:
        methods: The runs of each method, one per training seed.
        baseline: The method that the others are compared with, or {method: its baseline}; None for no comparison.

    Returns:
        {method: {metric: {mean, sd (None for one run), interval, effective (number of patients behind it), difference,
        difference_interval, p, freedom (degrees of freedom of the t test), p_holm, smallest_p (the smallest p_holm that
        is possible), detectable (the difference found with a power of 80 %, at 5 % after Holm's correction)}}}; the
        last seven are None where nothing is compared.
    """
    baselines = dict.fromkeys(methods, baseline) if isinstance(baseline, str) else dict(baseline or {})
    if len({run.cycles for runs in methods.values() for run in runs}) > 1:
        raise ValueError("the runs were not scored on the same cycles")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for method, runs in methods.items():
        found[method] = {}
        for figure in runs[0].values:
            values, seeds = _over_runs(runs, figure)
            effective, top = runs[0].effective[figure], largest_value(figure, np.append(values, seeds))
            bounds = interval(values, effective, top, [seeds])
            found[method][figure] = {
                "mean": float(seeds.mean()),
                "sd": float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
                "interval": bounds,
                "effective": effective,
                **dict.fromkeys(
                    ("difference", "difference_interval", "p", "freedom", "p_holm", "smallest_p", "detectable")
                ),
            }
    errors: dict[str, dict[str, tuple[float, float]]] = {}  # metric -> method -> standard error, degrees of freedom
    for method, other in baselines.items():
        for figure in found[method] if method != other else ():
            if figure in found[other]:
                (mine, of_mine), (theirs, of_theirs) = (_over_runs(methods[one], figure) for one in (method, other))
                cell, differences, both = found[method][figure], mine - theirs, [of_mine, of_theirs]
                cell["difference"], effective = float(differences[0]), cell["effective"]
                bounds = interval(differences, effective, None, both)
                if bounds is not None:  # without an interval there is no p value either
                    error, freedom = standard_error(differences, effective, both)
                    errors.setdefault(figure, {})[method] = error, freedom
                    p = max(_two_sided(cell["difference"], error, freedom), _smallest_p(effective))
                    cell |= {"difference_interval": bounds, "p": p, "freedom": freedom}
    for figure, of_methods in errors.items():
        count = len(of_methods)
        for method, corrected in holm({name: found[name][figure]["p"] for name in of_methods}).items():
            error, freedom = of_methods[method]
            deviations = t_quantile(freedom, 1 - 0.025 / count) + t_quantile(freedom, 0.8)
            found[method][figure] |= {
                "p_holm": corrected,
                "smallest_p": min(1.0, count * _smallest_p(found[method][figure]["effective"])),
                "detectable": deviations * error,
            }
    return found


def _over_runs(runs: Sequence[RunFigures], figure: str) -> tuple[FloatArray, FloatArray]:
    """A metric's mean over runs, over all patients and without each (1 + patients,), and its value in each run."""
    values = np.stack([run.values[figure] for run in runs])
    return values.mean(0), values[:, 0]


def _two_sided(difference: float, error: float, freedom: float) -> float:
    """The p value of a t test."""
    if not error:
        return 0.0 if difference else 1.0
    return float(2 * stdtr(freedom, -abs(difference) / error))


def _smallest_p(effective: float) -> float:
    """The p value of an exact sign test in which all of these patients favour one method."""
    return min(1.0, 2.0 ** (1 - effective))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values corrected for multiple comparisons.

    Reference: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return corrected


def power_text(cells: Sequence[Mapping[str, Any]], shown: Callable[[float], str]) -> str:
    """Detectable difference and smallest p value of a metric (cells of `compare_methods`), as text; "" if unknown."""
    found = [cell for cell in cells if cell.get("detectable") is not None]
    if not found:
        return ""
    least, most = (shown(bound(cell["detectable"] for cell in found)) for bound in (min, max))
    smallest = max(cell["smallest_p"] for cell in found)
    several = least if least == most else f"{least} to {most}"
    return f"smallest difference detectable with 80 % power: {several}; smallest possible p: {p_text(smallest)}"


def p_text(p: float | None) -> str:
    """A p value as text."""
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
