"""A cycle's answer mixed with that of its whole recording.

Decisions: one rule with one number, `logit + strength * (mean logit of the recording - logit)`: soundscape work in
bioacoustics mixes a window's score with that of its file in this way, and crackles and wheezes come back from breath to
breath. The mean is of log-odds, so it is the recording's geometric mean odds, and for a softmax a constant added to a
row changes nothing. The mean can be of the nearest few cycles instead (`neighbours` on either side, fewer at the edges
of a recording), which needs a width besides a strength: for recordings of minutes and hours, where the chest and the
place change, and where no answer should wait for the end. Strength 0 is no smoothing to the bit, a lone cycle is its
own mean, and the mean is an exactly rounded sum, so neither the order of rows nor other recordings can change an
answer. The mean of a recording needs the whole of it: it is not for streaming. The strength is chosen on validation by
the mean AUROC of the labels, which no threshold can disturb; thresholds and temperatures are fitted again on what
smoothing leaves.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laennec.errors import InputError
from laennec.evaluation.bootstrap import LEVEL, bootstrap_values, interval, patient_codes
from laennec.evaluation.metrics import FloatArray, Thresholds
from laennec.evaluation.predictions import ProblemType, answer_statistics, point_values, read_predictions
from laennec.evaluation.summary import figure_name, figure_text, is_percent

RULE = "recording-mean"
NEIGHBOUR_RULE = "neighbour-mean"
STRENGTHS = tuple(round(0.05 * step, 2) for step in range(21))
_SHOWN = ("icbhi.Score", "icbhi.Sp", "icbhi.Se", "sprsound.Score", "accuracy", "uar", "roc_auc_macro", "f1_macro")


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
        recordings: Recording of each cycle (cycles,); None or nan stands for a cycle of no known recording, which
            stays as it is.
        strength: 0 leaves everything as it is, 1 gives every cycle the mean.
        neighbours: The mean is over the cycle and so many on either side of it in time; 0 for the whole recording.
        starts_s: When each cycle begins (cycles,), for neighbours; None where rows are in time order.

    Returns:
        float64 (cycles, labels), in the given order.

    Raises:
        ValueError: A strength outside [0, 1], a negative number of neighbours, or as many recordings (or starts) as
            cycles is not so.
    """
    values = np.array(logits, dtype=float)
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it must lie between 0 (none) and 1 (the recording's mean)")
    if values.ndim != 2 or len(values) != len(recordings):
        raise ValueError(f"logits {values.shape} must be (cycles, labels) for {len(recordings)} cycles")
    if neighbours < 0 or (starts_s is not None and len(starts_s) != len(values)):
        raise ValueError(f"neighbours is {neighbours}; it must be 0 or more, with a start for each of {len(values)}")
    if not strength:
        return values
    rows_of: dict[Any, list[int]] = {}
    for row, recording in enumerate(recordings):
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


def smooth_predictions(predictions: Any, label_names: Sequence[str], strength: float, neighbours: int = 0) -> Any:
    """A predictions table whose logits are mixed with the mean over their recording, or over their neighbours.

    Args:
        predictions: DataFrame with `recording_id` and `logit_<name>` for each label name, and `start_s` for neighbours.
        label_names: Names of the outputs.
        strength: See `smooth_logits`.
        neighbours: See `smooth_logits`.

    Returns:
        A new table: same rows, order and types, other logits.

    Raises:
        InputError: A column is missing.
        ValueError: A strength outside [0, 1].
    """
    columns = [f"logit_{name}" for name in label_names]
    needed = ("recording_id", *(["start_s"] if neighbours else []), *columns)
    if missing := [name for name in needed if name not in predictions.columns]:
        raise InputError(f"predictions table: no column {', '.join(missing)}, which smoothing needs; predict again")
    known = predictions["recording_id"].notna()
    recordings = [r if k else None for r, k in zip(predictions["recording_id"], known, strict=True)]
    starts_s = predictions["start_s"].to_numpy(dtype=float) if neighbours else None
    smoothed = smooth_logits(predictions[columns].to_numpy(dtype=float), recordings, strength, neighbours, starts_s)
    if not strength:
        return predictions.copy()
    return predictions.assign(
        **{name: smoothed[:, k].astype(predictions[name].dtype) for k, name in enumerate(columns)}
    )


def choose_smoothing(
    validation: Any,
    *,
    problem_type: ProblemType,
    label_names: Sequence[str],
    strengths: Sequence[float] = STRENGTHS,
    neighbours: int = 0,
) -> dict[str, Any]:
    """The strength at which validation predictions rank best.

    Args:
        validation: The predictions table of validation patients.
        problem_type: "multi_label" or "single_label".
        label_names: Names of the outputs.
        strengths: What is tried; of equals the first wins.
        neighbours: See `smooth_logits`.

    Returns:
        {"strength", "figure", "value", "without", "tried": [[strength, value]], "chosen_on": {"split", "cycles",
        "patients", "recordings"}}; values are the mean AUROC of the labels that have both answers, None (and strength
        0) where no label has.

    Raises:
        InputError: The table is a test table, or lacks a column.
    """
    splits = sorted({str(split) for split in validation["split"]}) if "split" in validation.columns else []
    if any("test" in split.lower() for split in splits):
        raise InputError(
            f"predictions of split {', '.join(splits)}: choose the strength of smoothing on validation, never on test"
        )

    def ranking(strength: float) -> float | None:
        table = smooth_predictions(validation, label_names, strength, neighbours)
        answers = read_predictions(table, problem_type=problem_type, label_names=label_names)
        values = point_values(answers)
        areas = [v for name, v in values.items() if name.endswith(".roc_auc") and v is not None]
        return float(np.mean(areas)) if areas else None

    tried = [(float(strength), ranking(strength)) for strength in strengths]
    defined = [(value, -place) for place, (_, value) in enumerate(tried) if value is not None]
    best = tried[-max(defined)[1]] if defined else (0.0, None)
    return {
        "strength": best[0],
        "figure": "roc_auc_macro",
        "value": best[1],
        "without": ranking(0.0),
        "tried": [list(pair) for pair in tried],
        "chosen_on": {
            "split": ", ".join(splits) or None,
            "cycles": len(validation),
            "patients": int(validation["patient_id"].nunique()) if "patient_id" in validation.columns else None,
            "recordings": int(validation["recording_id"].nunique()),
        },
    }


def compare_smoothing(
    predictions: Any,
    strength: float,
    *,
    problem_type: ProblemType,
    label_names: Sequence[str],
    thresholds: tuple[Thresholds, Thresholds] = (None, None),
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """A predictions table scored without and with smoothing, and their difference over the same draws of patients.

    Args:
        predictions: The predictions table, not smoothed.
        strength: See `smooth_logits`.
        problem_type: "multi_label" or "single_label".
        label_names: Names of the outputs.
        thresholds: In logits, those without and those with smoothing; None is 0.
        n_draws: Bootstrap draws of patients.
        seed: Seed of the draws.

    Returns:
        {"rule", "strength", "level", "n_draws", "seed", "recordings", "lone_cycles", "figures": {name: {"without",
        "with", "difference": {"value", "interval"}}}}, where the difference is with minus without.
    """
    tables = (predictions, smooth_predictions(predictions, label_names, strength))
    answers = [
        read_predictions(table, problem_type=problem_type, label_names=label_names, thresholds=bound)
        for table, bound in zip(tables, thresholds, strict=True)
    ]
    points = [point_values(one) for one in answers]
    _, n_patients = patient_codes(answers[0].table)
    # equal seeds over equal patients: draw by draw the same patients on both sides
    drawn = [bootstrap_values(one.table, answer_statistics(one), n_draws, seed) for one in answers]
    none_drawn = np.zeros(0)
    figures: dict[str, Any] = {}
    for name, before in points[0].items():
        after = points[1][name]
        values = [side.get(name, none_drawn) for side in drawn]
        sides = [interval(side, n_patients) for side in values]
        gain = interval(values[1] - values[0], n_patients)
        figures[name] = {
            "without": {"value": before, "interval": None if sides[0] is None else list(sides[0])},
            "with": {"value": after, "interval": None if sides[1] is None else list(sides[1])},
            "difference": {
                "value": None if before is None or after is None else after - before,
                "interval": None if gain is None else list(gain),
            },
        }
    sizes = answers[0].table["recording_id"].value_counts()
    return {
        "rule": RULE,
        "strength": strength,
        "level": LEVEL,
        "n_draws": n_draws,
        "seed": seed,
        "recordings": len(sizes),
        "lone_cycles": int((sizes == 1).sum()),
        "figures": figures,
    }


def format_smoothing(section: Mapping[str, Any]) -> str:
    """Without, with and difference side by side, as plain text.

    Args:
        section: What `compare_smoothing` returned, with "chosen" (of `choose_smoothing`) where the strength was chosen.
    """
    strength, chosen = section["strength"], section.get("chosen")
    how = f"{strength:g}, given by hand"
    if chosen:
        on = chosen["chosen_on"]
        how = f"{strength:g}, chosen on {on['split'] or 'validation'}"
        how += f" ({on['cycles']} cycles of {on['patients']} patients)"
        if chosen["value"] is not None and chosen["without"] is not None:
            how += f" by mean AUROC: {chosen['without']:.4f} -> {chosen['value']:.4f}"
    lines = [
        f"smoothing over recordings ({section['rule']}), strength {how}",
        f"{section['recordings']} recordings, {section['lone_cycles']} of one cycle, which smoothing leaves as it is; "
        f"{section.get('operating_points', 'the same thresholds on both sides')}",
    ]
    if not strength:
        return "\n".join([*lines, "strength 0: nothing is smoothed"])
    lines.append(f"  {'':<26}{'without':<24}{'with':<24}with - without, over the same draws of patients")
    for name in shown_figures(section):
        row = section["figures"][name]
        before, after = (figure_text(name, row[s]["value"], row[s]["interval"]) for s in ("without", "with"))
        lines.append(f"  {figure_name(name):<26}{before:<24}{after:<24}{signed(name, row['difference'])}")
    return "\n".join(lines)


def shown_figures(section: Mapping[str, Any]) -> list[str]:
    """The figures of a comparison that a reader is shown; the dictionary has all."""
    return [name for name in section["figures"] if name in _SHOWN or name.endswith((".roc_auc", ".f1"))]


def signed(figure: str, gain: Mapping[str, Any]) -> str:
    """A difference and its interval with their signs."""
    if gain["value"] is None:
        return "undefined"
    digits = 1 if is_percent(figure) else 3
    text = f"{gain['value']:+.{digits}f}"
    if gain["interval"] is None:
        return text
    low, high = gain["interval"]
    return f"{text} [{low:+.{digits}f}, {high:+.{digits}f}]"
