"""Operating points of windows and of whole recordings, fitted on validation windows.

Decisions: the score of a label for a recording is the highest logit of its windows. Whether a recording has a label
anywhere is another question than whether a window has it, so recordings have a calibration and thresholds of their own.
Both are calibrated by slope and intercept wherever events are calibrated at all: the head learned from other shares of
positive examples than windows have, and the highest of many logits is too high by a shift; no temperature removes that.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from laennec.evaluation.calibration.operating_point import FittingRule, fit_operating_point, operating_point_of


def highest_logits(table: Any, label_names: Sequence[str]) -> Any:
    """One row a recording: any annotated label, and the highest logit of its windows.

    Returns:
        A predictions table; `start_s` and `end_s` are those of the recording, other columns those of its first window.
    """
    labels = [name for name in label_names if name in table.columns]
    highest = dict.fromkeys((*labels, *(f"logit_{name}" for name in label_names), "end_s"), "max")
    first = {name: "first" for name in table.columns if name not in highest and name != "recording_id"}
    return table.groupby("recording_id", sort=False).agg(first | highest).reset_index()


def fit_windows(
    table: Any, label_names: Sequence[str], multi_label: bool, rule: Any, window_s: float, hop_s: float
) -> dict[str, dict[str, Any]]:
    """Fit the operating points of windows and of recordings on validation windows.

    Returns:
        {"windows": ..., "recordings": ...}, each as `fit_operating_point` returns it, with the lengths of the windows.
    """
    platt = rule.calibration != "none" and multi_label
    how = FittingRule("platt" if platt else rule.calibration, rule.threshold_rule, rule.sensitivity)
    tables = {"windows": table} | ({"recordings": highest_logits(table, label_names)} if multi_label else {})
    cut = {"window_s": window_s, "hop_s": hop_s}
    return {name: fit_operating_point(rows, label_names, multi_label, how) | cut for name, rows in tables.items()}


def window_points_of(points: Mapping[str, Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """What config.json holds under `operating_points`."""
    stored = {}
    for name, fitted in (points or {}).items():
        numbers = operating_point_of(fitted)
        stored[name] = {**numbers, **numbers.pop("operating_point"), **{k: fitted[k] for k in ("window_s", "hop_s")}}
    return stored


def window_note(config: Any, window_s: float, hop_s: float) -> str | None:
    """What is to be known about the thresholds of a model on windows of these lengths; None for nothing."""
    point = config.operating_points.get("windows")
    if point is None:
        if not (config.thresholds or config.temperatures):
            return None
        what = "thresholds and calibration were fitted on annotated events, not on windows"
        return f"{what}; to fit them on windows: laennec calibrate RUN --spans windows"
    if (point["window_s"], point["hop_s"]) != (window_s, hop_s):
        was = f"windows of {point['window_s']:g} s every {point['hop_s']:g} s"
        return f"thresholds and calibration were fitted on {was}, not of {window_s:g} s every {hop_s:g} s"
    return None


def fitting_notes(config: Any, spans: str) -> list[str]:
    """What was left unfitted for "events", "windows" or "recordings", one line for each label."""
    point = config.operating_point if spans == "events" else config.operating_points.get(spans, {})
    if config.span == "recording":
        spans = "recordings"
    return [f"{spans}: {note}" for note in point.get("notes") or []]
