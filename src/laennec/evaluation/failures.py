"""The worst errors of a model, to look at and to listen to.

Decisions: an error is a label that is missed or falsely predicted, at the operating point of the scores; it is the
worse the further its calibrated probability lies from the truth. Each label has lists of its own, because the errors
of one would hide those of another; many labels share one list. A list holds at most one cycle of a recording: ten
neighbours of one mislabelled recording show one problem. No sound is kept, only cycle ids.
"""

from typing import Any

import numpy as np

from laennec.evaluation.predictions import Predictions

PER_KIND = 3
PER_GROUP = 6
MOST_LABELS = 4  # labels with a list of misses and a list of false alarms each
_SHOWN = ("cycle_id", "recording_id", "patient_id", "device", "chest_location", "sex", "age_years", "start_s", "end_s")


def named_errors(predictions: Predictions, per_kind: int = PER_KIND) -> list[dict[str, Any]]:
    """The most confident wrong predictions: false alarms and misses of each label, or wrong classes.

    Args:
        predictions: What `read_predictions` returned; without `cycle_id` in its table there is nothing to name.
        per_kind: Largest number of each kind.

    Returns:
        [{"kind": "false alarm" | "missed" | "wrong class", "label", "cycle_id", "truth", "answer", "probability"}]:
        truth and answer (the prediction) are class names (label names where there are no classes), the probability is
        that of the label, or of the predicted class.
    """
    if "cycle_id" not in predictions.table.columns:
        return []
    if predictions.confidence is not None:
        wrong = predictions.true != predictions.predicted
        rows = _worst(predictions, wrong, -predictions.confidence, per_kind)
        return [_named(predictions, row, "wrong class", None, float(predictions.confidence[row])) for row in rows]
    found = []
    for k, label in enumerate(predictions.label_names):
        truth, decided, p = (getattr(predictions, name)[:, k] for name in ("truth", "decided", "probabilities"))
        for kind, wrong, order in (
            ("false alarm", (truth == 0) & (decided == 1), -p),
            ("missed", (truth == 1) & (decided == 0), p),
        ):
            rows = _worst(predictions, wrong, order, per_kind)
            found += [_named(predictions, row, kind, label, float(p[row])) for row in rows]
    return found


def worst_errors(predictions: Predictions, per_group: int = PER_GROUP) -> list[dict[str, Any]]:
    """The worst misses and false alarms of each label, or of all labels together where there are many.

    Args:
        predictions: What `read_predictions` returned.
        per_group: Largest number of cycles in a list.

    Returns:
        Lists that are not empty: {"title", "label", "kind": "missed" | "false alarm" | "wrong", "errors" (their total
        number), "rows"}; a row has "row" (of the table), "truth", "answer", "label", "probability" (of that label),
        and the cycle's "cycle_id", "recording_id", "start_s" ..., None where unknown. Worst first.
    """
    if len(predictions.label_names) > MOST_LABELS:
        gap = np.abs(predictions.probabilities - predictions.truth) * (predictions.decided != predictions.truth)
        label = gap.argmax(1)  # the wrong label that is furthest off
        groups = [_group(predictions, None, "wrong", gap.any(1), label, -gap.max(1), per_group)]
    else:
        groups = []
        for k, name in enumerate(predictions.label_names):
            truth, decided, p = (getattr(predictions, field)[:, k] for field in ("truth", "decided", "probabilities"))
            label = np.full(len(truth), k)
            groups.append(_group(predictions, name, "missed", (truth == 1) & (decided == 0), label, p, per_group))
            groups.append(_group(predictions, name, "false alarm", (truth == 0) & (decided == 1), label, -p, per_group))
    return [group for group in groups if group["rows"]]


def _group(
    predictions: Predictions, name: str | None, kind: str, wrong: Any, label: Any, order: Any, per_group: int
) -> dict[str, Any]:
    """One list: the wrong rows in ascending `order`, each with the probability of its `label` (cycles,)."""
    titles = {"missed": f"{name} missed", "false alarm": f"{name} predicted where there is none"}
    return {
        "title": titles.get(kind, "wrong prediction"),
        "label": name,
        "kind": kind,
        "errors": int(np.count_nonzero(wrong)),
        "rows": [_error(predictions, row, int(label[row])) for row in _worst(predictions, wrong, order, per_group)],
    }


def _worst(predictions: Predictions, wrong: Any, order: Any, most: int) -> list[int]:
    """Wrong rows in ascending order, at most one of a recording; equals by cycle id."""
    table = predictions.table
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


def _named(predictions: Predictions, row: int, kind: str, label: str | None, probability: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "label": label,
        "cycle_id": str(predictions.table["cycle_id"].iloc[row]),
        "truth": true_text(predictions, row),
        "answer": predicted_text(predictions, row),
        "probability": probability,
    }


def _error(predictions: Predictions, row: int, k: int) -> dict[str, Any]:
    """One cycle with truth, prediction and the probability of label k, and its metadata."""
    table = predictions.table
    return {
        "row": row,
        "truth": true_text(predictions, row),
        "answer": predicted_text(predictions, row),
        "label": predictions.label_names[k],
        "probability": float(predictions.probabilities[row, k]),
        **{name: _cell(table, name, row) for name in _SHOWN if name in table.columns},
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


def _cell(table: Any, name: str, row: int) -> Any:
    """A cell of a table as a plain value, every kind of missing as None."""
    if bool(table[name].isna().iloc[row]):
        return None
    value = table[name].iloc[row]
    return value.item() if hasattr(value, "item") else value
