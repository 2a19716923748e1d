"""Methods against one another, over seeds and patients.

Decisions: a method is its runs with several seeds. A draw takes patients with replacement, the same ones for every
method, and seeds with replacement, each method its own: the interval of a mean holds both what other patients and what
another start of training would change. Three seeds say little about seeds; that is why the spread stands beside it.
The folds of a seed are one run, in which every patient is held out once.
Differences are paired by patients. The p values are those of the draws, corrected by Holm over all methods that are
compared with the baseline in one figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from laennec.evaluation.bootstrap import bootstrap_values, interval, patient_codes
from laennec.evaluation.metrics import FloatArray
from laennec.evaluation.predictions import Answers, answer_statistics


@dataclass(frozen=True)
class Drawn:
    """One run's figures, as they are and in every draw of patients.

    Attributes:
        values: {figure: value}.
        draws: {figure: (draws,)}.
        cycles: What was scored; runs are compared only over the same cycles.
        n_patients: Patients drawn from.
    """

    values: dict[str, float]
    draws: dict[str, FloatArray]
    cycles: frozenset[str]
    n_patients: int


def pool_folds(parts: Sequence[Answers]) -> Answers:
    """The answers of several folds as those of one run: every patient held out once.

    What ranks a label is its calibrated log-odds, because raw logits of heads that were trained apart have no common
    scale. What was decided stays what each fold decided.

    Raises:
        ValueError: A cycle is in two folds, or they answer other labels.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    table = pd.concat([part.table for part in parts], ignore_index=True)
    if table["cycle_id"].duplicated().any():
        raise ValueError("a cycle was scored in two folds")
    if any((part.label_names, part.class_names) != (first.label_names, first.class_names) for part in parts):
        raise ValueError("folds answer other labels")
    names = ("truth", "decided", "probabilities", *(("true", "predicted") if first.class_names else ()))
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    certain = np.clip(arrays["probabilities"], 1e-12, 1 - 1e-12)
    if first.confidence is not None:
        arrays["confidence"] = np.concatenate([np.asarray(part.confidence) for part in parts])
    unlabelled = sum(part.unlabelled for part in parts)
    return replace(
        first, table=table, unlabelled=unlabelled, logits=np.log(certain / (1 - certain)), thresholds=None, **arrays
    )


def draw_figures(answers: Answers, figures: Sequence[str], n_draws: int = 1000, seed: int = 0) -> Drawn:
    """Draw patients for one run.

    Args:
        answers: What the run said; its table has `cycle_id`.
        figures: Names of the figures that are kept, where the run has them.
        n_draws: Draws of patients.
        seed: Of the draws; equal seeds over equal patients give equal draws.
    """
    statistics = answer_statistics(answers)
    once = statistics(np.ones((1, len(answers.table))))
    drawn = bootstrap_values(answers.table, statistics, n_draws, seed)
    kept = [name for name in figures if name in once]
    cycles = frozenset(map(str, answers.table["cycle_id"]))
    values = {name: float(once[name][0]) for name in kept}
    return Drawn(values, {name: drawn[name] for name in kept}, cycles, patient_codes(answers.table)[1])


def compare_methods(
    methods: Mapping[str, Sequence[Drawn]], baseline: str | Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, spread and interval of each method, and its difference from the baseline.

    Args:
        methods: The runs of each method, one a training seed.
        baseline: The method that the others are compared with, or the one that each of some methods is compared with;
            None compares none.
        seed: Of the draws of training seeds.

    Returns:
        {method: {figure: {mean, sd (None for one run), interval, difference, difference_interval, p, p_holm}}}; the
        last four are None for the baseline itself and where nothing is compared, intervals and p values also where
        there are too few patients for them.

    Raises:
        ValueError: Runs over different cycles, or a baseline that is not among the methods.
    """
    against = dict.fromkeys(methods, baseline) if isinstance(baseline, str) else dict(baseline or {})
    for name in against.values():
        if name not in methods:
            raise ValueError(f"the baseline {name} is not among the methods {', '.join(methods)}")
    everything = {run.cycles for runs in methods.values() for run in runs}
    if len(everything) > 1:
        raise ValueError("the runs were not scored on the same cycles")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    drawn: dict[str, dict[str, FloatArray]] = {}
    for number, (method, runs) in enumerate(methods.items()):
        found[method], drawn[method] = {}, {}
        for figure in runs[0].values:
            values = np.array([run.values[figure] for run in runs])
            draws = _seed_means(np.stack([run.draws[figure] for run in runs]), [seed, number])
            drawn[method][figure] = draws
            found[method][figure] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "interval": _pair(draws, runs[0].n_patients),
                **dict.fromkeys(("difference", "difference_interval", "p", "p_holm")),
            }
    pairs = [(method, other) for method, other in against.items() if method in methods and method != other]
    _compare(found, drawn, pairs, next(iter(methods.values()))[0].n_patients)
    return found


def _seed_means(draws: FloatArray, key: list[int]) -> FloatArray:
    """Means over runs drawn with replacement: (runs, draws) -> (draws,)."""
    runs, n_draws = draws.shape
    chosen = np.random.default_rng(key).integers(0, runs, size=(runs, n_draws))
    means: FloatArray = np.take_along_axis(draws, chosen, axis=0).mean(axis=0)
    return means


def _compare(
    found: dict[str, dict[str, dict[str, Any]]],
    drawn: dict[str, dict[str, FloatArray]],
    pairs: Sequence[tuple[str, str]],
    n_patients: int,
) -> None:
    """Fill in the differences of pairs (method, its baseline), and what so many comparisons leave of their p values."""
    for figure in dict.fromkeys(figure for _, baseline in pairs for figure in found[baseline]):
        both = [(method, other) for method, other in pairs if figure in found[method] and figure in found[other]]
        for method, baseline in both:
            cell = found[method][figure]
            differences = drawn[method][figure] - drawn[baseline][figure]
            cell["difference"] = cell["mean"] - found[baseline][figure]["mean"]
            cell["difference_interval"] = _pair(differences, n_patients)
            # where there is no interval, the draws tell nothing, and a p value of theirs neither
            cell["p"] = None if cell["difference_interval"] is None else _two_sided(differences)
        known = {method: found[method][figure]["p"] for method, _ in both if found[method][figure]["p"] is not None}
        for method, corrected in holm(known).items():
            found[method][figure]["p_holm"] = corrected


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values corrected for how many there are.

    Reference: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    corrected, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return corrected


def p_text(p: float | None) -> str:
    """A p value for readers."""
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _two_sided(differences: FloatArray) -> float:
    """Twice the share of draws on the rarer side of no difference; never below what so many draws can tell."""
    defined = differences[np.isfinite(differences)]
    below, above = (defined <= 0).sum(), (defined >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(defined) + 1)))


def _pair(draws: FloatArray, n_patients: int) -> list[float] | None:
    bounds = interval(draws, n_patients)
    return None if bounds is None else list(bounds)
