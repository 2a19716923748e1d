"""The four tasks of the SPRSound challenges.

Decisions: recordings whose truth is Poor Quality enter neither SE nor SP, while answering Poor Quality on any
other recording is an error, as in the official scoring. A system therefore gains by never answering Poor Quality, so
its recall and the balanced accuracy over all classes are returned beside the score, with the convention in words.
Results on known patients (intra) and unseen ones (inter) are two calls, never one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from laennec.errors import InputError
from laennec.evaluation.metrics import (
    confusion_matrix,
    exact_sensitivity,
    none_if_nan,
    specificity,
    sprsound_score,
    uar,
)

POOR_QUALITY = "Poor Quality"
SPRSOUND_TASKS: dict[str, tuple[str, ...]] = {
    "1-1": ("Normal", "Adventitious"),
    "1-2": ("Normal", "Rhonchi", "Wheeze", "Stridor", "Coarse Crackle", "Fine Crackle", "Wheeze+Crackle"),
    "2-1": ("Normal", "Adventitious", POOR_QUALITY),
    "2-2": ("Normal", "CAS", "DAS", "CAS & DAS", POOR_QUALITY),
}
POOR_QUALITY_CONVENTION = (
    "recordings whose truth is Poor Quality enter neither SE nor SP; answering it on another recording is an error; "
    "a system that never answers Poor Quality gains by it, so read its recall and the balanced accuracy too"
)
_TASK_WEIGHTS = {"1-1": 0.2, "1-2": 0.3, "2-1": 0.2, "2-2": 0.3}


def sprsound_task(task: str, truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float | int | str | None]:
    """Score one SPRSound task.

    In the two-way tasks (1-1, 2-1) the finer names of 1-2 and 2-2 are accepted and count as Adventitious.

    Args:
        task: "1-1" and "1-2" score events, "2-1" and "2-2" recordings.
        truth: Class names (items,).
        predicted: Class names (items,).

    Returns:
        SE, SP, AS, HS, Score, balanced_accuracy (mean recall over all classes that occur, Poor Quality included) in
        percent, n and,
        for the recording tasks, poor_quality_recall, n_poor_quality and the convention in words. Undefined figures
        are None.

    Raises:
        InputError: A class name that the task does not have.
        ValueError: An unknown task, or lists of different lengths.
    """
    if task not in SPRSOUND_TASKS:
        raise ValueError(f"no SPRSound task {task!r}; the tasks are {', '.join(SPRSOUND_TASKS)}")
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true classes but {len(predicted)} predicted ones")
    names = SPRSOUND_TASKS[task]
    true_ids, predicted_ids = _class_ids(task, truth), _class_ids(task, predicted)
    everything = confusion_matrix(true_ids, predicted_ids, len(names))
    scored = everything.copy()
    has_poor = POOR_QUALITY in names
    if has_poor:
        scored[names.index(POOR_QUALITY)] = 0
    se, sp = float(exact_sensitivity(scored)), float(specificity(scored))
    scores = sprsound_score(se, sp)
    result: dict[str, float | int | str | None] = {"SE": none_if_nan(se), "SP": none_if_nan(sp)}
    result |= {name: none_if_nan(value) for name, value in scores.items()}
    result |= {"balanced_accuracy": none_if_nan(uar(everything)), "n": len(truth)}
    if has_poor:
        poor = everything[names.index(POOR_QUALITY)]
        result["poor_quality_recall"] = none_if_nan(100 * poor[-1] / poor.sum()) if poor.sum() else None
        result["n_poor_quality"] = int(poor.sum())
        result["convention"] = POOR_QUALITY_CONVENTION
    return result


def sprsound_total(scores: Mapping[str, float]) -> float:
    """The challenge's total, 0.2 S11 + 0.3 S12 + 0.2 S21 + 0.3 S22, of the four tasks' Scores.

    Args:
        scores: Score by task name ("1-1", "1-2", "2-1", "2-2"), all four.

    Raises:
        ValueError: A task is missing; a total over fewer tasks is not the challenge's total.
    """
    missing = [task for task in _TASK_WEIGHTS if task not in scores]
    if missing:
        raise ValueError(f"the SPRSound total needs all four tasks; missing {', '.join(missing)}")
    return sum(weight * scores[task] for task, weight in _TASK_WEIGHTS.items())


def _class_ids(task: str, labels: Sequence[str]) -> list[int]:
    """Positions of the labels in the task's class list; a two-way task takes finer names as Adventitious."""
    names = SPRSOUND_TASKS[task]
    position = {name: index for index, name in enumerate(names)}
    if "Adventitious" in position:
        finer = SPRSOUND_TASKS["1-2" if task == "1-1" else "2-2"]
        position |= {name: position["Adventitious"] for name in finer if name not in position}
    unknown = sorted({str(label) for label in np.unique(np.asarray(labels, dtype=str)) if str(label) not in position})
    if unknown:
        known = ", ".join(names)
        raise InputError(f"SPRSound task {task} has no class {', '.join(map(repr, unknown))}; it has {known}")
    return [position[str(label)] for label in labels]
