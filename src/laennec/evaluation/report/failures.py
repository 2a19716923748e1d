"""The worst errors of a model.

Decisions: an error is a label that is missed or falsely predicted at the operating point of the scores; it is worse the
further its calibrated probability is from the truth. Each label has its own lists, because the errors of one would hide
those of another; many labels share one list. A list holds at most one cycle of a recording: ten neighbours in one
mislabelled recording show one problem.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from laennec.evaluation.predictions import Predictions

PER_KIND = 3
PER_GROUP = 6
MOST_LABELS = 4  # labels with a list of misses and a list of false alarms each
METADATA = (
    "cycle_id", "recording_id", "patient_id", "device", "chest_location", "sex", "age_years", "start_s", "end_s",
)  # fmt: skip


def named_errors(predictions: Predictions, per_kind: int = PER_KIND) -> list[dict[str, Any]]:
    """The most confident wrong predictions: false alarms and misses of each label, or wrong classes.

    The probability is that of the label, or of the predicted class; "answer" is the prediction.
    """
    if "cycle_id" not in predictions.table.columns:
        return []
    # false alarms before misses, as in stored files
    kinds: list[Any] = sorted(_label_errors(predictions), key=lambda errors: errors[:2])
    if predictions.confidence is not None:
        kinds = [(None, "wrong class", predictions.true != predictions.predicted, predictions.confidence)]
    return [
        {
            "kind": kind,
            "label": None if k is None else predictions.label_names[k],
            "cycle_id": str(predictions.table["cycle_id"].iloc[row]),
            "truth": true_text(predictions, row),
            "answer": predicted_text(predictions, row),
            "probability": float(p[row]),
        }
        for k, kind, wrong, p in kinds
        for row in _worst(predictions, wrong, p if kind == "missed" else -p, per_kind)
    ]


def _label_errors(predictions: Predictions) -> Iterator[tuple[int, str, Any, Any]]:
    """Label, kind, wrong rows (cycles,) and probabilities (cycles,) of the misses and false alarms of each label."""
    for k in range(len(predictions.label_names)):
        truth, decided, p = (getattr(predictions, name)[:, k] for name in ("truth", "decided", "probabilities"))
        yield k, "missed", (truth == 1) & (decided == 0), p
        yield k, "false alarm", (truth == 0) & (decided == 1), p


def worst_errors(predictions: Predictions, per_group: int = PER_GROUP) -> list[dict[str, Any]]:
    """The worst misses and false alarms of each label, or of all labels in one list where there are many.

    A list has title, label, kind, its total number of errors, and rows, worst first; empty ones are left out.
    """
    names = predictions.label_names
    if len(names) > MOST_LABELS:
        gap = np.abs(predictions.probabilities - predictions.truth) * (predictions.decided != predictions.truth)
        rows = _worst(predictions, gap.any(1), -gap.max(1), per_group)
        cycles = [_cycle(predictions, row, int(gap[row].argmax())) for row in rows]
        errors = int(gap.any(1).sum())
        groups = [{"title": "wrong prediction", "label": None, "kind": "wrong", "errors": errors, "rows": cycles}]
    else:
        titles = {"missed": "{} missed", "false alarm": "{} predicted where there is none"}
        groups = [
            {
                "title": titles[kind].format(names[k]),
                "label": names[k],
                "kind": kind,
                "errors": int(wrong.sum()),
                "rows": [
                    _cycle(predictions, row, k)
                    for row in _worst(predictions, wrong, p if kind == "missed" else -p, per_group)
                ],
            }
            for k, kind, wrong, p in _label_errors(predictions)
        ]
    return [group for group in groups if group["rows"]]


def _worst(predictions: Predictions, wrong: Any, order: Any, most: int) -> list[int]:
    """Wrong rows in ascending order, at most one of a recording; ties by cycle id."""
    table = predictions.table
    ids = table["cycle_id"].astype(str).tolist() if "cycle_id" in table.columns else [""] * len(table)
    recordings = table["recording_id"].tolist() if "recording_id" in table.columns else range(len(table))
    kept: dict[Any, int] = {}
    for row in sorted(np.flatnonzero(wrong).tolist(), key=lambda row: (float(order[row]), ids[row])):
        if len(kept) == most:
            break
        kept.setdefault(recordings[row], row)
    return list(kept.values())


def _cycle(predictions: Predictions, row: int, k: int) -> dict[str, Any]:
    """One cycle with truth, prediction, the probability of label k, and its metadata."""
    table = predictions.table
    cells = table.iloc[row][[name for name in METADATA if name in table.columns]]
    return {
        "row": row,
        "truth": true_text(predictions, row),
        "answer": predicted_text(predictions, row),
        "label": predictions.label_names[k],
        "probability": float(predictions.probabilities[row, k]),
        **cells.astype(object).where(cells.notna(), None).to_dict(),
    }


def true_text(predictions: Predictions, row: int) -> str:
    """The true class of a row by name, or its true labels."""
    return _text(predictions, predictions.true, predictions.truth, row)


def predicted_text(predictions: Predictions, row: int) -> str:
    """The predicted class of a row by name, or its predicted labels."""
    return _text(predictions, predictions.predicted, predictions.decided, row)


def _text(predictions: Predictions, classes: Any, flags: Any, row: int) -> str:
    if predictions.class_names:
        return predictions.class_names[int(classes[row])]
    present = [name for name, flag in zip(predictions.label_names, flags[row], strict=True) if flag]
    return " + ".join(present) or "none"
