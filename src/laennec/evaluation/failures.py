"""The worst errors by name, so that somebody can listen to them.

Decisions: worst is by the calibrated probability, how surely the wrong was said; of a recording only the worst cycle
is named, because the neighbours of a bad cycle are as bad for the same reason. No sound is kept, only cycle ids.
"""

from typing import Any

from laennec.evaluation.predictions import Answers
from laennec.evaluation.worst import said, surest

PER_KIND = 3


def named_errors(answers: Answers, per_kind: int = PER_KIND) -> list[dict[str, Any]]:
    """The surest wrong answers: of each label the false alarms and the misses, or the wrong classes.

    Args:
        answers: What `read_predictions` gives; its table must hold `cycle_id`, or there is nothing to name.
        per_kind: How many of each kind at most.

    Returns:
        [{"kind": "false alarm" | "missed" | "wrong class", "label", "cycle_id", "truth", "answer", "probability"}]:
        truth and answer are class names (label names where there are no classes), the probability is that of the
        label, or of the answered class.
    """
    if "cycle_id" not in answers.table.columns:
        return []
    found = []
    if answers.confidence is not None:
        wrong = answers.true != answers.predicted
        for row in surest(answers, wrong, -answers.confidence, per_kind):
            found.append(_row(answers, row, "wrong class", None, float(answers.confidence[row])))
        return found
    for k, label in enumerate(answers.label_names):
        truth, decided, p = answers.truth[:, k], answers.decided[:, k], answers.probabilities[:, k]
        for kind, wrong, order in (
            ("false alarm", (truth == 0) & (decided == 1), -p),
            ("missed", (truth == 1) & (decided == 0), p),
        ):
            for row in surest(answers, wrong, order, per_kind):
                found.append(_row(answers, row, kind, label, float(p[row])))
    return found


def _row(answers: Answers, row: int, kind: str, label: str | None, probability: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "label": label,
        "cycle_id": str(answers.table["cycle_id"].iloc[row]),
        "truth": said(answers, row, answers.true, answers.truth),
        "answer": said(answers, row, answers.predicted, answers.decided),
        "probability": probability,
    }
