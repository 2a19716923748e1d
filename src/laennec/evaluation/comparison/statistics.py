"""Statistics of methods that are compared over seeds and patients.

Decisions: a method is a set of runs with different seeds; the folds of one seed are one run. A draw takes patients with
replacement, the same for every method, and seeds with replacement, separately for each method, so the interval of a
mean covers other patients and other initialisations; few seeds say little about others, so the standard deviation is
printed beside it. Differences are paired by patients; p values are those of the draws, corrected by Holm over all
methods compared with the baseline in one metric. Where fewer than three effective patients have the finding,
there is neither interval nor p value: a claim would rest on one or two of them. Beside p values stand the
smallest one that these draws can give, and the difference found in four of five studies: "not significant" is no
evidence that two methods are equal.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from laennec.evaluation.intervals import LEAST_EFFECTIVE, bootstrap_values, interval, number_behind, patient_codes
from laennec.evaluation.metrics import FloatArray
from laennec.evaluation.predictions import Predictions, effective_numbers, statistics_of


@dataclass(frozen=True)
class RunFigures:
    """The metrics of one run, as they are and in every draw of patients."""

    values: dict[str, float]  # {metric: value}
    draws: dict[str, FloatArray]  # {metric: (draws,)}
    cycles: frozenset[str]  # ids of the scored cycles; runs are compared only over the same cycles
    n_patients: int  # number of patients
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


def draw_figures(predictions: Predictions, figures: Sequence[str], n_draws: int = 1000, seed: int = 0) -> RunFigures:
    """Draw patients for one run."""
    statistics = statistics_of(predictions)
    once = statistics(np.ones((1, len(predictions.table))))
    drawn = bootstrap_values(predictions.table, statistics, n_draws, seed)
    kept = [name for name in figures if name in once]
    cycles = frozenset(map(str, predictions.table["cycle_id"]))
    values = {name: float(once[name][0]) for name in kept}
    behind = effective_numbers(predictions)
    effective = {name: number for name in kept if (number := number_behind(behind, name)) is not None}
    patients = patient_codes(predictions.table)[1]
    return RunFigures(values, {name: drawn[name] for name in kept}, cycles, patients, effective)


def compare_methods(
    methods: Mapping[str, Sequence[RunFigures]], baseline: str | Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, standard deviation and interval of each method, and its difference from the baseline.

    Args:
        methods: The runs of each method, one per training seed.
        baseline: The method that the others are compared with, or that of each method; None compares none.
        seed: Of the draws of training seeds.

    Returns:
        {method: {metric: {mean, sd (None for one run), interval, difference, difference_interval, p, p_holm,
        smallest_p (the smallest p_holm that these draws can give), detectable (the difference found with a power of
        80 %, at 5 % after Holm's correction)}}}; the last six are None where nothing is compared.
    """
    baselines = dict.fromkeys(methods, baseline) if isinstance(baseline, str) else dict(baseline or {})
    if len({run.cycles for runs in methods.values() for run in runs}) > 1:
        raise ValueError("the runs were not scored on the same cycles")
    n_patients = next(iter(methods.values()))[0].n_patients
    found: dict[str, dict[str, dict[str, Any]]] = {}
    drawn: dict[tuple[str, str], FloatArray] = {}
    for number, (method, runs) in enumerate(methods.items()):
        found[method] = {}
        for figure in runs[0].values:
            values = np.array([run.values[figure] for run in runs])
            draws = _seed_means(np.stack([run.draws[figure] for run in runs]), [seed, number])
            drawn[method, figure] = draws
            found[method][figure] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "interval": interval(draws, n_patients) if _enough(runs[0], figure) else None,
                **dict.fromkeys(("difference", "difference_interval", "p", "p_holm", "smallest_p", "detectable")),
            }
    p_values: dict[str, dict[str, float]] = {}
    errors: dict[tuple[str, str], float] = {}
    for method, other in baselines.items():
        for figure in found[method] if method != other else ():
            if figure in found[other]:
                cell, differences = found[method][figure], drawn[method, figure] - drawn[other, figure]
                cell["difference"] = cell["mean"] - found[other][figure]["mean"]
                enough = _enough(methods[method][0], figure)
                cell["difference_interval"] = interval(differences, n_patients) if enough else None
                if cell["difference_interval"] is not None:  # too few patients for it are too few for a p value
                    cell["p"] = p_values.setdefault(figure, {})[method] = _two_sided(differences)
                    errors[method, figure] = float(np.nanstd(differences))
    for figure, of_methods in p_values.items():
        count = len(of_methods)
        deviations = ndtri(1 - 0.025 / count) + ndtri(0.8)
        for method, corrected in holm(of_methods).items():
            defined = int(np.isfinite(drawn[method, figure]).sum())
            found[method][figure] |= {
                "p_holm": corrected,
                "smallest_p": min(1.0, 2 * count / (defined + 1)),
                "detectable": float(deviations * errors[method, figure]),
            }
    return found


def _enough(run: RunFigures, figure: str) -> bool:
    """Whether enough patients are behind a metric for an interval."""
    return run.effective.get(figure, LEAST_EFFECTIVE) >= LEAST_EFFECTIVE


def _seed_means(draws: FloatArray, key: list[int]) -> FloatArray:
    """Means over runs drawn with replacement: (runs, draws) -> (draws,)."""
    runs, n_draws = draws.shape
    chosen = np.random.default_rng(key).integers(0, runs, size=(runs, n_draws))
    means: FloatArray = np.take_along_axis(draws, chosen, axis=0).mean(axis=0)
    return means


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values corrected for their number.

    Reference: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return corrected


def power_text(cells: Sequence[Mapping[str, Any]], shown: Callable[[float], str]) -> str:
    """What the comparisons of a metric (cells of `compare_methods`) can find, as text; "" where that is unknown."""
    found = [cell for cell in cells if cell.get("detectable") is not None]
    if not found:
        return ""
    least, most = (shown(bound(cell["detectable"] for cell in found)) for bound in (min, max))
    smallest = max(cell["smallest_p"] for cell in found)
    several = least if least == most else f"{least} to {most}"
    return f"found with 80 % power: differences of {several}; smallest possible p: {p_text(smallest)}"


def p_text(p: float | None) -> str:
    """A p value for readers."""
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _two_sided(differences: FloatArray) -> float:
    """Twice the share of draws on the rarer side of zero, limited by the number of draws."""
    defined = differences[np.isfinite(differences)]
    below, above = (defined <= 0).sum(), (defined >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(defined) + 1)))
