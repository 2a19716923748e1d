"""The four tasks of the SPRSound challenges: official scores of a model, and submission files.

Decisions: a task is predicted by the task head trained on its classes, with the logit adjustment and the smoothing that
were fitted on validation. A model of crackle and wheeze alone predicts the tasks of the scored level: each combination
of its labels stands for a class (of events the most frequent one). Recordings whose truth is Poor Quality enter neither
SE nor SP, and predicting it elsewhere is an error, as in the official scoring; two conventions are scored: never
predicted (as in published comparisons), and predicted where it is most probable. Events are numbered from 0 in the
order of the annotation file, as `<recording>_<i>.wav`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laennec.corpora.base import column_of
from laennec.corpora.load import corpus_class
from laennec.corpora.sprsound import SprSound
from laennec.errors import InputError
from laennec.evaluation.calibration.logit_adjustment import ADVENTITIOUS, adjusted_classes
from laennec.evaluation.calibration.operating_point import decision_settings
from laennec.evaluation.calibration.smoothing import smooth_logits
from laennec.evaluation.metrics import POOR_QUALITY, POOR_QUALITY_CONVENTION, confusion_matrix, none_if_nan
from laennec.evaluation.predictions import class_scores, read_predictions
from laennec.evaluation.summary import figure_text
from laennec.files import atomic_folder, atomic_write, json_text
from laennec.training.auxiliary_tasks import level_tables, task_logits
from laennec.training.data.split_data import load_splits
from laennec.training.recipe import Recipe

SPRSOUND_TASKS: dict[str, tuple[str, ...]] = {
    "1-1": ("Normal", ADVENTITIOUS),
    "1-2": ("Normal", "Rhonchi", "Wheeze", "Stridor", "Coarse Crackle", "Fine Crackle", "Wheeze+Crackle"),
    "2-1": ("Normal", ADVENTITIOUS, POOR_QUALITY),
    "2-2": ("Normal", "CAS", "DAS", "CAS & DAS", POOR_QUALITY),
}
_WEIGHTS = {"1-1": 0.2, "1-2": 0.3, "2-1": 0.2, "2-2": 0.3}
_WAYS = {"1-1": "two", "1-2": "all", "2-1": "two", "2-2": "all"}
_OF_BITS = {
    "1-2": {(0, 0): "Normal", (1, 0): "Fine Crackle", (0, 1): "Wheeze", (1, 1): "Wheeze+Crackle"},
    "2-2": {(0, 0): "Normal", (1, 0): "DAS", (0, 1): "CAS", (1, 1): "CAS & DAS"},
}
_SMOOTHING = "smoothing"


def sprsound_task(task: str, truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float | int | str | None]:
    """Score one SPRSound task.

    In the two-class tasks (1-1, 2-1) the finer names of 1-2 and 2-2 count as Adventitious.

    Args:
        task: "1-1" and "1-2" score events, "2-1" and "2-2" recordings.
        truth: Class names (items,).
        predicted: Class names (items,).

    Returns:
        SE, SP, AS, HS, Score, balanced_accuracy (mean recall over all classes that occur, Poor Quality included) in
        percent, n and, for the recording tasks, poor_quality_recall, n_poor_quality and the convention in words.
        Undefined figures are None.
    """
    if task not in SPRSOUND_TASKS:
        raise ValueError(f"no SPRSound task {task!r}; the tasks are {', '.join(SPRSOUND_TASKS)}")
    if len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true classes but {len(predicted)} predicted ones")
    names = SPRSOUND_TASKS[task]
    everything = confusion_matrix(_class_ids(task, truth), _class_ids(task, predicted), len(names))
    scores = class_scores(everything, names)
    result: dict[str, float | int | str | None] = {
        name: none_if_nan(scores[f"sprsound.{name}"]) for name in ("SE", "SP", "AS", "HS", "Score")
    }
    result |= {"balanced_accuracy": none_if_nan(scores["uar"]), "n": len(truth)}
    if POOR_QUALITY in names:
        poor = everything[names.index(POOR_QUALITY)]
        result["poor_quality_recall"] = none_if_nan(100 * poor[-1] / poor.sum()) if poor.sum() else None
        result["n_poor_quality"] = int(poor.sum())
        result["convention"] = POOR_QUALITY_CONVENTION
    return result


def _class_ids(task: str, labels: Sequence[str]) -> list[int]:
    """Positions of the labels in the task's class list; a two-class task takes finer names as Adventitious."""
    names = SPRSOUND_TASKS[task]
    position = {name: index for index, name in enumerate(names)}
    if ADVENTITIOUS in position:
        finer = SPRSOUND_TASKS["1-2" if task == "1-1" else "2-2"]
        position |= {name: position[ADVENTITIOUS] for name in finer if name not in position}
    if unknown := sorted({str(label) for label in labels} - set(position)):
        raise InputError(
            f"SPRSound task {task} has no class {', '.join(map(repr, unknown))}; it has {', '.join(names)}"
        )
    return [position[str(label)] for label in labels]


def sprsound_total(scores: Mapping[str, float]) -> float:
    """The challenge's total, 0.2 S11 + 0.3 S12 + 0.2 S21 + 0.3 S22, of the four tasks' Scores.

    Args:
        scores: Score by task name ("1-1", "1-2", "2-1", "2-2"), all four.
    """
    if missing := [task for task in _WEIGHTS if task not in scores]:
        raise ValueError(f"the SPRSound total needs all four tasks; missing {', '.join(missing)}")
    return sum(weight * scores[task] for task, weight in _WEIGHTS.items())


def official_tasks(
    model: Any, extractor: Any, recipe: Recipe, split: str, predictions: pd.DataFrame, embeddings: Any, table: Any
) -> dict[str, pd.DataFrame]:
    """A model's predictions for the tasks whose classes it has; {} for another corpus.

    Returns:
        {"1-1": table with name, truth and answer (the prediction), ...}; recordings also "with Poor Quality".
    """
    if not issubclass(corpus_class(recipe.corpus.name), SprSound):
        return {}
    found: dict[str, pd.DataFrame] = {}
    whole, tasks = _tasks_of_level(recipe)
    labels = list(model.config.label_names)
    head = _head_for(model, tasks[1], "record" if whole else None)
    if head:
        logits = task_logits(model, extractor, head, table, recipe, None if whole else embeddings)
        found |= _task_predictions(model, head, tasks, logits, table)
    elif model.config.is_multi_label and set(labels) == {"crackle", "wheeze"}:
        found |= tasks_by_flags(recipe, predictions, decision_settings(model.config), table)
    elif set(labels) <= {*SPRSOUND_TASKS[tasks[1]]}:  # the labels are the task's classes
        order = sorted(labels, key=lambda name: name != "Normal")
        logits = np.column_stack([predictions[f"logit_{name}"] for name in order])
        found |= {
            task: _task_table(task, table, adjusted_classes(order, logits, 0.0, _WAYS[task], True)) for task in tasks
        }
    record = None if whole else _head_for(model, "2-2", "record")
    if record:
        rows = _recordings(recipe, split, table)
        if rows is not None and len(rows):
            logits = task_logits(model, extractor, record, rows, recipe)
            found |= _task_predictions(model, record, ("2-1", "2-2"), logits, rows)
    return found


def _tasks_of_level(recipe: Recipe) -> tuple[bool, tuple[str, str]]:
    """Whether whole recordings are scored, and the two tasks of that level."""
    whole = (recipe.corpus.level or "event") == "record"
    return whole, ("2-1", "2-2") if whole else ("1-1", "1-2")


def _recordings(recipe: Recipe, split: str, table: Any) -> Any:
    of_records = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"level": "record"})})
    if split in ("train", "validation"):
        _, held_out = level_tables(of_records, "record", set(table["patient_id"]))
        return held_out
    return load_splits(of_records).get(split)


def _head_for(model: Any, task: str, level: str | None) -> str | None:
    """The task head whose classes are those of a task."""
    for name, settings in model.config.tasks.items():
        if settings.get("level") == level and set(settings["labels"]) == set(SPRSOUND_TASKS[task]):
            return str(name)
    return None


def _task_table(task: str, table: Any, predicted: Any) -> pd.DataFrame:
    """Names, truth and predictions of a task; the truth of a two-class task has two classes."""
    recordings = column_of(table, "recording_id")
    if task.startswith("2"):
        names = [f"{recording}.wav" for recording in recordings]
    else:
        names = [f"{r}_{index}.wav" for r, index in zip(recordings, column_of(table, "cycle_index"), strict=True)]
    truth = [events[0] if events else None for events in column_of(table, "events")]
    if _WAYS[task] == "two":
        truth = [name if name in (None, "Normal", POOR_QUALITY) else ADVENTITIOUS for name in truth]
    return pd.DataFrame({"name": names, "truth": truth, "answer": list(predicted)})


def _task_predictions(
    model: Any, head: str, tasks: tuple[str, ...], logits: Any, table: Any
) -> dict[str, pd.DataFrame]:
    """The predictions of a task head; with Poor Quality too where it has that class."""
    settings = model.config.tasks[head]
    labels, adjustments = settings["labels"], settings.get("logit_adjustment") or {}
    strength = float(settings.get("smoothing") or 0.0)
    logits = smooth_logits(logits, column_of(table, "recording_id"), strength)
    found = {}
    for task in tasks:
        way = _WAYS[task]
        adjustment = float(adjustments.get(way, 0.0))
        found[task] = _task_table(task, table, adjusted_classes(labels, logits, adjustment, way))
        if POOR_QUALITY in labels:
            predicted = adjusted_classes(labels, logits, adjustment, way, poor_quality=True)
            found[f"{task} with {POOR_QUALITY}"] = _task_table(task, table, predicted)
    for one in found.values():
        one.attrs[_SMOOTHING] = strength
    return found


def tasks_by_flags(
    recipe: Recipe, predictions: pd.DataFrame, settings: Mapping[str, Any], table: Any
) -> dict[str, pd.DataFrame]:
    """Like `official_tasks`, for a model of crackle and wheeze alone.

    `settings` are those of `read_predictions`.
    """
    if not issubclass(corpus_class(recipe.corpus.name), SprSound):
        return {}
    two, every = _tasks_of_level(recipe)[1]
    known = predictions.assign(crackle=0, wheeze=0)  # rows without truth are predicted too
    decided = pd.DataFrame(read_predictions(known, **settings).decided, columns=settings["label_names"])
    named = [_OF_BITS[every][pair] for pair in zip(decided["crackle"], decided["wheeze"], strict=True)]
    either = ["Normal" if name == "Normal" else ADVENTITIOUS for name in named]
    return {two: _task_table(two, table, either), every: _task_table(every, table, named)}


def official_scores(tables: dict[str, pd.DataFrame]) -> dict[str, Any] | None:
    """The official scores of every predicted task, and the total where all four were predicted."""
    scores: dict[str, Any] = {}
    for task, table in tables.items():
        known = table[table["truth"].notna()]
        if len(known):
            scores[task] = sprsound_task(task.split(" ")[0], list(known["truth"]), list(known["answer"]))
            if strength := table.attrs.get(_SMOOTHING):
                scores[task][_SMOOTHING] = strength
    plain = {task: scores[task]["Score"] for task in _WAYS if task in scores}
    if len(plain) == len(_WAYS) and None not in plain.values():
        scores["total"] = sprsound_total(plain)
    return scores or None


def official_lines(scores: dict[str, Any] | None) -> list[str]:
    """The official scores as lines of text."""
    if not scores:
        return []
    lines = ["", "SPRSound tasks (official Score; Poor Quality never predicted unless the line says so)"]
    for task, score in scores.items():
        if task == "total":
            lines.append(f"  {'total':<34}{score:.1f}")
            continue
        figures = {"": "Score", "SE ": "SE", "SP ": "SP", "balanced accuracy ": "balanced_accuracy"}
        parts = [f"{title}{figure_text('sprsound.Score', score[name])}" for title, name in figures.items()]
        if score.get("poor_quality_recall") is not None:
            parts.append(f"Poor Quality recall {score['poor_quality_recall']:.1f} of {score['n_poor_quality']}")
        if strength := score.get(_SMOOTHING):
            parts.append(f"(smoothed over the recording, strength {strength:g})")
        lines.append(f"  {'task ' + task:<34}{'  '.join(parts)}")
    return lines


def write_submission(tables: dict[str, pd.DataFrame], folder: str | Path) -> Path:
    """Write the challenge's submission files, task1_1.json to task2_2.json: {wav name: class}."""
    if not tables:
        raise InputError(
            "this model has none of the SPRSound tasks on this corpus; --submission needs --corpus sprsound"
        )
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        for task in _WAYS:
            if task in tables:
                content = dict(zip(tables[task]["name"], map(str, tables[task]["answer"]), strict=True))
                with atomic_write(temporary / f"task{task.replace('-', '_')}.json") as file:
                    file.write(json_text(content, indent=1, ensure_ascii=False))
    return folder
