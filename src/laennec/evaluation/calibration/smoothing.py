"""Smoothing of a cycle's logits over its recording, the choice of its strength, and its effect on scores.

Decisions: the rule is `logit + strength * (mean logit of the recording - logit)`, as bioacoustics mixes a window's
score with that of its file; for long recordings the mean can be over the nearest cycles (`neighbours` on either side).
Strength 0 leaves every bit unchanged, and the mean uses an exactly rounded sum, so neither the order of rows nor other
recordings change a result. The strength is chosen on validation by the mean AUROC of the labels, which does not depend
on thresholds. Prediction uses this module too, so modules for scoring are imported inside functions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laennec.errors import InputError
from laennec.evaluation.calibration import refuse_test_split
from laennec.evaluation.intervals import LEVEL, intervals_of, left_out_values
from laennec.evaluation.metrics import FloatArray, auroc
from laennec.rendering import text_table

if TYPE_CHECKING:
    from laennec.evaluation.predictions import ProblemType

RULE = "recording-mean"
NEIGHBOUR_RULE = "neighbour-mean"
STRENGTHS = tuple(round(0.05 * step, 2) for step in range(21))
_SHOWN = ("icbhi.Score", "icbhi.Sp", "icbhi.Se", "sprsound.Score", "accuracy", "uar", "roc_auc_macro", "f1_macro")


@dataclass
class Smoothing:
    """A strength with its origin."""

    strength: float  # 0 to 1
    chosen: dict[str, Any] | None = None  # what `choose_smoothing` returned; None where the strength was given
    # what `fit_on_validation` returned for the smoothed validation predictions; None where the model's own thresholds
    # and temperatures are used
    fitted: dict[str, Any] | None = None


def parse_smoothing(text: str | float | None) -> str | float | None:
    """The value of `--smoothing`: "auto", a strength, or None for none."""
    if text in (None, "none", "auto"):
        return None if text == "none" else text
    try:
        strength = float(str(text))
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise InputError(f"smoothing {text}: it can be auto, none or a strength from 0 to 1")
    return strength


def smooth_logits(
    logits: ArrayLike,
    recordings: Sequence[Any],
    strength: float,
    neighbours: int = 0,
    starts_s: Sequence[float] | None = None,
) -> FloatArray:
    """Mix each cycle's logits (cycles, labels) with the mean over its recording, or over the cycles around it.

    Args:
        logits: Before temperatures.
        recordings: Recording of each cycle; None or nan (unknown) leaves a cycle as it is.
        strength: 0 changes nothing, 1 gives every cycle the mean.
        neighbours: The mean is over the cycle and this many on either side of it in time; 0 for the whole recording.
        starts_s: Start of each cycle, for neighbours; None where rows are in time order.
    """
    values = np.array(logits, dtype=float)
    rows_of: dict[Any, list[int]] = {}
    for row, recording in enumerate(recordings if strength else ()):
        if recording is not None and recording == recording:
            rows_of.setdefault(recording, []).append(row)
    for rows in rows_of.values():
        if starts_s is not None:
            rows.sort(key=lambda row: starts_s[row])
        own = values[rows]
        values[rows] = own + strength * (_means(own, neighbours or len(rows)) - own)
    return values


def _means(values: FloatArray, reach: int) -> FloatArray:
    """The mean of each row and those at most `reach` rows away, exactly summed: (cycles, labels) -> the same."""
    if reach >= len(values) - 1:
        mean = np.array([math.fsum(column) for column in values.T]) / len(values)
        return np.broadcast_to(mean, values.shape)
    around = [values[max(row - reach, 0) : row + reach + 1] for row in range(len(values))]
    return np.array([[math.fsum(column) / len(some) for column in some.T] for some in around])


def smooth_predictions(table: Any, label_names: Sequence[str], strength: float, neighbours: int = 0) -> Any:
    """A predictions table with smoothed logits."""
    columns = [f"logit_{name}" for name in label_names]
    needed = ("recording_id", *(["start_s"] if neighbours else []), *columns)
    if missing := [name for name in needed if name not in table.columns]:
        raise InputError(f"predictions table: no column {', '.join(missing)}, which smoothing needs; predict again")
    recordings = table["recording_id"].astype(object).where(table["recording_id"].notna(), None).tolist()
    starts_s = table["start_s"].to_numpy(dtype=float) if neighbours else None
    smoothed = smooth_logits(table[columns].to_numpy(dtype=float), recordings, strength, neighbours, starts_s)
    if not strength:
        return table.copy()
    return table.assign(**{name: smoothed[:, k].astype(table[name].dtype) for k, name in enumerate(columns)})


def choose_smoothing(
    validation: Any, *, problem_type: "ProblemType", label_names: Sequence[str], neighbours: int = 0
) -> dict[str, Any]:
    """The strength with the highest mean AUROC of the labels on validation; of equals the lowest, 0 if none is defined.

    Returns:
        {"strength", "figure", "value", "without", "tried": [[strength, value]], "chosen_on"}.
    """
    from laennec.evaluation.predictions import point_values, read_predictions

    splits = refuse_test_split(validation, "choose the strength of smoothing")

    def ranking(strength: float) -> float | None:
        table = smooth_predictions(validation, label_names, strength, neighbours)
        values = point_values(read_predictions(table, problem_type=problem_type, label_names=label_names))
        areas = [v for name, v in values.items() if name.endswith(".roc_auc") and v is not None]
        return float(np.mean(areas)) if areas else None

    tried = {strength: ranking(strength) for strength in STRENGTHS}
    best = max(tried, key=lambda strength: tried[strength] or 0.0)
    return {
        "strength": best,
        "figure": "roc_auc_macro",
        "value": tried[best],
        "without": tried[0.0],
        "tried": [list(pair) for pair in tried.items()],
        "chosen_on": {
            "split": splits,
            "cycles": len(validation),
            "patients": int(validation["patient_id"].nunique()) if "patient_id" in validation.columns else None,
            "recordings": int(validation["recording_id"].nunique()),
        },
    }


def fit_class_smoothing(codes: NDArray[np.int64], logits: FloatArray, recordings: Sequence[str]) -> float:
    """The strength of `STRENGTHS` that best ranks abnormal rows of a classifier above normal ones (code 0), or 0."""
    abnormal = (codes > 0).astype(int)
    if abnormal.min(initial=1) == abnormal.max(initial=0):
        return 0.0
    areas = []
    for strength in STRENGTHS:
        mixed = smooth_logits(logits, list(recordings), strength)
        areas.append(auroc(abnormal, np.logaddexp.reduce(mixed[:, 1:], axis=1) - mixed[:, 0]))
    return STRENGTHS[int(np.argmax(np.round(areas, 9)))]


def compare_smoothing(
    table: Any,
    strength: float,
    *,
    problem_type: "ProblemType",
    label_names: Sequence[str],
    decisions: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {}),
) -> dict[str, Any]:
    """A predictions table scored without and with smoothing, and the paired difference, with minus without.

    `decisions` are further settings of `read_predictions` for either side.
    """
    from laennec.evaluation.predictions import effective_by_metric, point_values, read_predictions, statistics_of

    sides = [
        read_predictions(one, problem_type=problem_type, label_names=label_names, **how)
        for one, how in zip((table, smooth_predictions(table, label_names, strength)), decisions, strict=True)
    ]
    before, after = (point_values(one) for one in sides)
    rows, effective = sides[0].table, effective_by_metric(sides[0], before)
    values = [left_out_values(rows, statistics_of(one)) for one in sides]
    bounds = [intervals_of(rows, one, effective) for one in values]
    gains = {name: values[1][name] - first for name, first in values[0].items()}
    bounds.append(intervals_of(rows, gains, effective, shares=False))
    figures: dict[str, Any] = {}
    for name in before:
        a, b = before[name], after[name]
        of_row = {"without": a, "with": b, "difference": None if a is None or b is None else b - a}
        figures[name] = {
            side: {"value": value, "interval": of_side.get(name)}
            for (side, value), of_side in zip(of_row.items(), bounds, strict=True)
        }
    sizes = sides[0].table["recording_id"].value_counts()
    return {
        "rule": RULE,
        "strength": strength,
        "level": LEVEL,
        "recordings": len(sizes),
        "lone_cycles": int((sizes == 1).sum()),
        "figures": figures,
        "effective": effective,
    }


def smoothing_rows(section: Mapping[str, Any]) -> list[list[str]]:
    """The main metrics of a comparison as text: name, without, with, difference and effective patients."""
    from laennec.evaluation.summary import figure_name, figure_text

    rows = []
    for name, row in section["figures"].items():
        if name in _SHOWN or name.endswith((".roc_auc", ".f1")):
            sides = [figure_text(name, row[side]["value"], row[side]["interval"]) for side in ("without", "with")]
            gain = row["difference"]
            behind = (section.get("effective") or {}).get(name)  # an earlier comparison has none
            difference = figure_text(name, gain["value"], gain["interval"], "+")
            rows.append([figure_name(name), *sides, difference, "" if behind is None else f"{behind:.1f}"])
    return rows


def format_smoothing(section: Mapping[str, Any]) -> str:
    """Scores without and with smoothing and their differences, as plain text."""
    strength, chosen = section["strength"], section.get("chosen")
    how = f"{strength:g}, as given"
    if chosen:
        on = chosen["chosen_on"]
        how = f"{strength:g}, chosen on {on['split'] or 'validation'}"
        how += f" ({on['cycles']} cycles of {on['patients']} patients)"
        if chosen["value"] is not None:
            how += f" by mean AUROC: {chosen['without']:.4f} -> {chosen['value']:.4f}"
    lines = [
        f"smoothing over recordings ({section['rule']}), strength {how}",
        f"{section['recordings']} recordings, {section['lone_cycles']} of them with a single cycle (unchanged); "
        f"{section.get('operating_points', 'the same thresholds on both sides')}",
    ]
    if not strength:
        return "\n".join([*lines, "strength 0: nothing is smoothed"])
    heads = ["", "without", "with", "with - without, paired by patients", "effective patients"]
    return "\n".join([*lines, text_table([heads, *smoothing_rows(section)])])
