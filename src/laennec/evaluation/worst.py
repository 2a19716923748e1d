"""The answers that were most surely wrong, to be looked at and listened to.

Decisions: an error is a label that was missed or called falsely, at the operating point that the scores use, and it
is the worse the further its calibrated probability lies from the truth. Labels have lists of their own, because the
errors of one would hide those of the other; with many classes there is one list. A list holds at most one cycle of a
recording: ten neighbours of one mislabelled recording teach nothing.
"""

from typing import Any

import numpy as np

from laennec.evaluation.predictions import Answers

PER_GROUP = 6
MOST_LABELS = 4  # with a list of misses and a list of false alarms each
_SHOWN = ("cycle_id", "recording_id", "patient_id", "device", "chest_location", "sex", "age_years", "start_s", "end_s")


def worst_errors(answers: Answers, per_group: int = PER_GROUP) -> list[dict[str, Any]]:
    """The worst misses and false alarms of each label, or of all classes together where there are many.

    Args:
        answers: What `read_predictions` gives.
        per_group: Most cycles of a list.

    Returns:
        Lists that are not empty: {"title", "label", "kind": "missed" | "false alarm" | "wrong", "errors" (how
        many there are in all), "rows"}; a row has "row" (of the answers' table), "truth", "answer", "label",
        "probability" (of that label), and the cycle's "cycle_id", "recording_id", "start_s" ..., None where
        unknown. Worst first.
    """
    groups = []
    if len(answers.label_names) > MOST_LABELS:
        gap = np.abs(answers.probabilities - answers.truth) * (answers.decided != answers.truth)
        worst = gap.argmax(1)  # the label that is furthest off, of those that are wrong
        p = answers.probabilities[np.arange(len(gap)), worst]
        groups = [_group(answers, None, "wrong", gap.any(1), p, per_group, order=-gap.max(1), labels=worst)]
        return [group for group in groups if group["rows"]]
    for k, name in enumerate(answers.label_names):
        there, called, p = answers.truth[:, k] == 1, answers.decided[:, k] == 1, answers.probabilities[:, k]
        groups.append(_group(answers, name, "missed", there & ~called, p, per_group))
        groups.append(_group(answers, name, "false alarm", ~there & called, p, per_group))
    return [group for group in groups if group["rows"]]


def _group(
    answers: Answers,
    label: str | None,
    kind: str,
    wrong: Any,
    probability: Any,
    per_group: int,
    order: Any = None,
    labels: Any = None,
) -> dict[str, Any]:
    """One list: the wrong rows by how low (misses) or high (false alarms) the probability is, or by a given order."""
    if order is None:
        order = probability * (-1 if kind == "false alarm" else 1)
    chosen = surest(answers, wrong, order, per_group)
    titles = {"missed": f"{label} missed", "false alarm": f"{label} called where there is none"}
    return {
        "title": titles.get(kind, "given another answer"),
        "label": label,
        "kind": kind,
        "errors": int(np.count_nonzero(wrong)),
        "rows": [
            _row(answers, row, float(probability[row]))
            | {"label": label if labels is None else answers.label_names[int(labels[row])]}
            for row in chosen
        ],
    }


def surest(answers: Answers, wrong: Any, order: Any, most: int) -> list[int]:
    """Rows of wrong answers in ascending order, at most one of a recording; equals by cycle id."""
    table = answers.table
    ids = table["cycle_id"].astype(str).tolist() if "cycle_id" in table.columns else None
    recordings = table["recording_id"].tolist() if "recording_id" in table.columns else ids
    rows: list[int] = np.flatnonzero(wrong).tolist()
    rows.sort(key=lambda row: (float(order[row]), "" if ids is None else ids[row]))
    kept: dict[Any, int] = {}
    for row in rows:
        if len(kept) == most:
            break
        kept.setdefault(row if recordings is None else recordings[row], row)
    return list(kept.values())


def _row(answers: Answers, row: int, probability: float) -> dict[str, Any]:
    """One cycle: what was there, what was said, where it comes from."""
    return {
        "row": row,
        "truth": said(answers, row, answers.true, answers.truth),
        "answer": said(answers, row, answers.predicted, answers.decided),
        "probability": probability,
        **{name: _cell(answers.table, name, row) for name in _SHOWN if name in answers.table.columns},
    }


def said(answers: Answers, row: int, classes: Any, flags: Any) -> str:
    """The class of a row by name, or the labels it has."""
    if answers.class_names:
        return answers.class_names[int(classes[row])]
    present = [name for name, flag in zip(answers.label_names, flags[row], strict=True) if flag]
    return " + ".join(present) or "none"


def _cell(table: Any, name: str, row: int) -> Any:
    """A cell of a table as a plain value, every kind of missing as None."""
    if bool(table[name].isna().iloc[row]):
        return None
    value = table[name].iloc[row]
    return value.item() if hasattr(value, "item") else value
