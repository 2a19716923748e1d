"""Smoothing of a cycle's logits over its recording.

Decisions: the rule is `logit + strength * (mean logit of the recording - logit)`; bioacoustics mixes a window's score
with that of its file in the same way. The mean is of log-odds, so it is the recording's geometric mean odds, and for a
softmax a constant added to a row changes nothing. For long recordings the mean can be over the nearest cycles
(`neighbours` on either side, fewer at the edges). Strength 0 changes no bit, and the mean is an exactly rounded sum, so
neither the order of rows nor other recordings change a result. The strength is chosen on validation by the mean AUROC
of the labels, which does not depend on thresholds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laennec.errors import InputError
from laennec.evaluation.metrics import FloatArray

RULE = "recording-mean"
NEIGHBOUR_RULE = "neighbour-mean"


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
    """Mix each cycle's logits with the mean over its recording, or over the cycles around it.

    Args:
        logits: (cycles, labels), before temperatures.
        recordings: Recording of each cycle (cycles,); None or nan (unknown) leaves a cycle as it is.
        strength: 0 changes nothing, 1 gives every cycle the mean.
        neighbours: The mean is over the cycle and this many on either side of it in time; 0 for the whole recording.
        starts_s: Start of each cycle (cycles,), for neighbours; None where rows are in time order.

    Returns:
        float64 (cycles, labels), in the given order.
    """
    values = np.array(logits, dtype=float)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it must lie between 0 (none) and 1 (the recording's mean)")
    if values.ndim != 2 or len(values) != len(recordings):
        raise ValueError(f"logits {values.shape} must be (cycles, labels) for {len(recordings)} cycles")
    if neighbours < 0 or (starts_s is not None and len(starts_s) != len(values)):
        raise ValueError(f"neighbours is {neighbours}; it must be 0 or more, with a start for each of {len(values)}")
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
