"""What acting on the probabilities is worth, at every price of a false alarm.

Decisions: a cycle is acted on where its probability is at least the threshold, so that threshold 0 acts on all and
equals "treat all"; the threshold is also the price, t / (1 - t) missed cycles for a false alarm. Net benefit is per
cycle scored, in true calls. Probabilities are those after the temperatures; bands are over patients. The curve says
nothing where the share of the label in use is another one than in the scored part.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laennec.evaluation.bootstrap import bootstrap_values, interval, patient_codes
from laennec.evaluation.metrics import FloatArray, none_if_nan
from laennec.evaluation.predictions import Answers

THRESHOLDS = tuple(round(0.01 * k, 2) for k in range(1, 100))


def decision_curve(probabilities: ArrayLike, truth: ArrayLike, thresholds: ArrayLike | None = None) -> dict[str, Any]:
    """Net benefit of acting on a label's probabilities, beside acting on every cycle and on none.

    At threshold t: net benefit = TP / n - FP / n * t / (1 - t), with TP and FP the cycles with and without the label
    among those of probability >= t. Treating all has prevalence - (1 - prevalence) * t / (1 - t), treating none 0.

    Args:
        probabilities: (cycles,) in 0..1, calibrated.
        truth: 0/1 (cycles,).
        thresholds: (thresholds,) in 0 <= t < 1; None is 0.01, 0.02, ... 0.99.

    Returns:
        JSON-ready {"thresholds", "model", "treat_all", "treat_none": lists (thresholds,), "prevalence", "cycles"};
        None for every number that no cycle defines.

    Raises:
        ValueError: Shapes that do not match, a truth that is not 0 or 1, or values out of range.

    Reference: Vickers and Elkin, Decision curve analysis, Medical Decision Making 26 (2006).
    """
    p, y, t = _checked(probabilities, truth, thresholds)
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


def decision_curves(answers: Answers, n_draws: int = 1000, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The decision curve of every label that has both classes, with its band.

    Args:
        answers: What `read_predictions` gives.
        n_draws: Bootstrap draws of patients; 0 for no bands.
        seed: Seed of the draws.

    Returns:
        {label: what `decision_curve` gives, and "intervals" (thresholds,) of [low, high] or None}.
    """
    _, n_patients = patient_codes(answers.table)
    found = {}
    for k, name in enumerate(answers.label_names):
        p, y = answers.probabilities[:, k], answers.truth[:, k]
        if not 0 < y.sum() < y.size:
            continue
        curve = decision_curve(p, y)
        bounds: list[list[float] | None] = [None] * len(curve["thresholds"])
        if n_draws:
            benefit = _net_benefit(*_checked(p, y, None))

            def statistic(weights: FloatArray, benefit: Any = benefit) -> dict[str, FloatArray]:
                return {str(place): values for place, values in enumerate(benefit(weights).T)}

            drawn = bootstrap_values(answers.table, statistic, n_draws, seed)
            pairs = [interval(drawn[str(place)], n_patients) for place in range(len(bounds))]
            bounds = [None if pair is None else list(pair) for pair in pairs]
        found[name] = curve | {"intervals": bounds}
    return found


def _checked(
    probabilities: ArrayLike, truth: ArrayLike, thresholds: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Probabilities, truth and thresholds as flat arrays."""
    p, y = np.asarray(probabilities, dtype=float).ravel(), np.asarray(truth, dtype=float).ravel()
    t = np.asarray(THRESHOLDS if thresholds is None else thresholds, dtype=float).ravel()
    if p.shape != y.shape:
        raise ValueError(f"{p.size} probabilities but {y.size} labels")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("the truth must be 0 or 1")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must lie in 0..1; apply a sigmoid or softmax first")
    if not ((t >= 0) & (t < 1)).all():
        raise ValueError("thresholds must lie in 0 <= t < 1: at 1 a false alarm would cost infinitely much")
    return p, y, t


def _net_benefit(p: FloatArray, y: FloatArray, t: FloatArray) -> Any:
    """From row weights (draws, cycles) to net benefits (draws, thresholds)."""
    called = (p[:, None] >= t[None, :]).astype(float)
    worth = called * np.where(y[:, None] == 1, 1.0, -t[None, :] / (1 - t[None, :]))

    def benefit(weights: FloatArray) -> FloatArray:
        total = weights.sum(1, keepdims=True)
        return np.asarray(np.where(total > 0, (weights @ worth) / np.where(total > 0, total, 1), np.nan))

    return benefit


def decision_picture(name: str, curve: Mapping[str, Any], k: int = 0, in_use: float | None = None) -> Any:
    """Net benefit of one label over the threshold probability.

    Args:
        name: The label.
        curve: Its entry of what `decision_curves` returned.
        k: Its position among the labels, for its colour.
        in_use: The threshold probability that the model decides by.

    Returns:
        A matplotlib Figure.
    """
    from laennec.evaluation.picture_style import INK, LEGEND, QUIET, house_figure, house_title, label_colour

    figure, (axes,) = house_figure(4.7, 4.4, 1)
    t, colour = curve["thresholds"], label_colour(name, k)
    known = [(x, *pair) for x, pair in zip(t, curve.get("intervals") or [], strict=False) if pair]
    top = max(max(curve["model"]), curve["prevalence"])
    if known:
        x, low, high = zip(*known, strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.16, lw=0)
        top = max(top, *high)
    axes.plot(t, curve["treat_all"], color=QUIET, lw=1.3, ls=(0, (4, 3)), label="act on every cycle")
    axes.axhline(0, color=INK, lw=1.1, label="act on none")
    axes.plot(t, curve["model"], color=colour, lw=2, label="act by the model")
    if in_use is not None:
        axes.axvline(in_use, color=colour, lw=1.1, ls=(0, (1, 2)), label=f"threshold in use, {in_use:.2f}")
    axes.set(xlim=(0, 1), ylim=(-0.25 * top, 1.06 * top))
    axes.set_xlabel("threshold probability", color=INK, fontsize=9)
    axes.set_ylabel("net benefit, true calls per cycle", color=INK, fontsize=9)
    house_title(axes, f"Acting on {name} (in {100 * curve['prevalence']:.0f} % of {curve['cycles']:,} cycles)")
    figure.legend(loc="outside lower center", ncols=2, **LEGEND)
    return figure
