"""How much of a ranking is only length.

Decisions: in some corpora abnormal events are cut longer or shorter than normal ones, and whoever measures length
alone ranks well there. So each label is also ranked among cycles of like length: groups of (nearly) equally many
cycles, cut at quantiles of length, equal lengths always in one group. "Within" is the share of pairs of one group
that are ranked rightly, each pair counted once; what the whole ranking has above it comes from length, or from what
goes with it. A label that lives in one group only has no figure in the others.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from laennec.evaluation.bootstrap import bootstrap_values, interval, patient_codes
from laennec.evaluation.metrics import FloatArray, RankedLabel, none_if_nan
from laennec.evaluation.predictions import Answers

GROUPS = 10


def length_groups(
    answers: Answers, n_groups: int = GROUPS, n_draws: int = 1000, seed: int = 0
) -> dict[str, Any] | None:
    """AUROC of every label within groups of like length.

    Args:
        answers: What `read_predictions` gives; its table has `start_s` and `end_s`.
        n_groups: Quantile groups; fewer where many cycles have the same length.
        n_draws: Bootstrap draws of patients; 0 for no intervals.
        seed: Seed of the draws.

    Returns:
        JSON-ready {"groups": [{"low_s", "high_s", "cycles", "patients", "positives": {label: n}, "values": {label:
        AUROC or None}, "intervals"}], "within": {"values", "intervals"}, "overall": {"values", "intervals"}}; None
        where lengths are not known or all the same.
    """
    length = _lengths(answers.table)
    if length is None:
        return None
    rows = np.isfinite(length)
    part, length = (answers, length) if rows.all() else (answers.part(rows), length[rows])
    cuts = np.unique(np.quantile(length, np.linspace(0, 1, n_groups + 1)[1:-1])) if length.size else length
    place = np.searchsorted(cuts, length, side="left")  # a length equal to a cut lies below it
    members = [np.flatnonzero(place == k) for k in range(len(cuts) + 1)]
    members = [group for group in members if group.size]
    if len(members) < 2:
        return None
    statistics = _statistics(part, members)
    once = {name: values[0] for name, values in statistics(np.ones((1, len(length)))).items()}
    drawn = bootstrap_values(part.table, statistics, n_draws, seed) if n_draws else {}
    codes, n_patients = patient_codes(part.table)

    def figures(kind: str, patients: int) -> dict[str, Any]:
        names = {label: f"{kind}.{label}" for label in part.label_names}
        bounds = {label: interval(drawn[name], patients) if drawn else None for label, name in names.items()}
        return {
            "values": {label: none_if_nan(once[name]) for label, name in names.items()},
            "intervals": {label: None if pair is None else list(pair) for label, pair in bounds.items()},
        }

    groups = [
        {
            "low_s": float(length[group].min()),
            "high_s": float(length[group].max()),
            "cycles": int(group.size),
            "patients": len(np.unique(codes[group])),
            "positives": {name: int(part.truth[group, k].sum()) for k, name in enumerate(part.label_names)},
            **figures(str(number), len(np.unique(codes[group]))),
        }
        for number, group in enumerate(members)
    ]
    return {"groups": groups, "within": figures("within", n_patients), "overall": figures("overall", n_patients)}


def _lengths(table: Any) -> Any:
    """Length of each cycle in seconds (cycles,), nan where unknown; None where the table has no times."""
    if not {"start_s", "end_s"} <= set(table.columns):
        return None
    return (table["end_s"] - table["start_s"]).to_numpy(dtype=float, na_value=np.nan)


def _statistics(answers: Answers, members: list[Any]) -> Any:
    """Named AUROCs as a function of row weights (draws, cycles)."""
    ranked = {
        name: (
            RankedLabel(answers.logits[:, k], answers.truth[:, k]),
            [RankedLabel(answers.logits[group, k], answers.truth[group, k]) for group in members],
        )
        for k, name in enumerate(answers.label_names)
    }

    def statistics(weights: FloatArray) -> dict[str, FloatArray]:
        values: dict[str, FloatArray] = {}
        for k, (name, (whole, parts)) in enumerate(ranked.items()):
            values[f"overall.{name}"] = whole.auroc(weights)
            right = pairs = np.zeros(len(weights))
            for number, (group, ranking) in enumerate(zip(members, parts, strict=True)):
                area = ranking.auroc(weights[:, group])
                positive = weights[:, group] @ answers.truth[group, k]
                count = positive * (weights[:, group].sum(1) - positive)
                values[f"{number}.{name}"] = area
                right, pairs = right + np.where(count > 0, area * count, 0.0), pairs + count
            values[f"within.{name}"] = np.where(pairs > 0, right / np.where(pairs > 0, pairs, 1), np.nan)
        return values

    return statistics


def length_picture(lengths: Mapping[str, Any], name: str, k: int = 0, floor: float | None = None) -> Any:
    """AUROC of one label by length group with intervals, beside the whole ranking and what length alone reaches.

    Args:
        lengths: What `length_groups` returned.
        name: The label.
        k: Its position among the labels, for its colour.
        floor: AUROC of the event length alone.

    Returns:
        A matplotlib Figure.
    """
    from laennec.evaluation.picture_style import INK, LEGEND, QUIET, house_figure, house_title, label_colour, shown_name

    figure, (axes,) = house_figure(4.7, 4.6, 1)
    colour, groups = label_colour(name, k), lengths["groups"]
    seen = [0.5]
    for place, group in enumerate(groups):
        value, bounds = group["values"][name], group["intervals"][name]
        if bounds:
            axes.plot([place, place], bounds, color=colour, lw=1.6, solid_capstyle="round", alpha=0.8)
        if value is not None:
            axes.plot(place, value, "o", ms=6, color=colour, mfc=colour if bounds else "white")
        seen += [value or 0.5, *(bounds or [])]
        axes.text(place, 0.015, f"{group['positives'][name]}", ha="center", fontsize=8, color=QUIET,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    for value, style, text, shade in (
        (lengths["overall"]["values"][name], (0, (5, 2)), "all cycles", colour),
        (lengths["within"]["values"][name], "-", "within like lengths", colour),
        (floor, (0, (1, 2)), "event length alone", INK),
    ):
        if value is not None:
            seen.append(value)
            axes.axhline(value, color=shade, lw=1.3, ls=style, label=f"{text}: {value:.3f}", zorder=1)
    axes.axhline(0.5, color=QUIET, lw=0.9)
    spans = [f"{group['low_s']:.2g}–{group['high_s']:.2g}" for group in groups]
    axes.set_xticks(range(len(groups)), spans, rotation=45, ha="right")
    low = min(seen)
    axes.set(ylim=(low - 0.16 * (1.03 - low), 1.03), xlim=(-0.6, len(groups) - 0.4))  # room for the counts
    axes.set_yticks([tick for tick in np.arange(0, 1.01, 0.1) if tick >= low - 0.1])
    axes.set_xlabel(f"length of the cycle in s (grey: how many have {shown_name(name)})", color=INK, fontsize=9)
    axes.set_ylabel("AUROC", color=INK, fontsize=9)
    house_title(axes, f"{name.capitalize()} among cycles of like length")
    figure.legend(loc="outside lower center", **LEGEND)
    return figure
