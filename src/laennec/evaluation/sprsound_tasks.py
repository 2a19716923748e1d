"""SPRSound's four tasks, scored as the challenge does, and the answer files it takes.

Decisions: a question that the model was trained on is answered by that head, at the leaning that validation chose,
and where its recipe asks for it mixed with the answers to the rest of the recording, which the challenge gives whole. A
model of crackle and wheeze alone answers events by its two bits (the commonest event of each kind stands for it), and
recordings not at all: their annotation must not be read to answer them. Both conventions of Poor Quality are scored:
never answered (the published comparisons), and answered where it is likeliest. Events are numbered from 0 in the order
of the annotation file, as `<recording>_<i>.wav`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laennec.corpora.base import column_of
from laennec.corpora.load import corpus_class
from laennec.corpora.sprsound import SprSound
from laennec.errors import InputError
from laennec.evaluation.logit_adjustment import ADVENTITIOUS, answer_with
from laennec.evaluation.smoothing import smooth_logits
from laennec.evaluation.sprsound import POOR_QUALITY, SPRSOUND_TASKS, sprsound_task, sprsound_total
from laennec.files import atomic_folder, atomic_write
from laennec.training.auxiliary_tasks import level_tables, task_logits
from laennec.training.recipe import Recipe
from laennec.training.split_data import load_splits
from laennec.training.tables import logit_thresholds

_OF_BITS = {
    "1-2": {(0, 0): "Normal", (1, 0): "Fine Crackle", (0, 1): "Wheeze", (1, 1): "Wheeze+Crackle"},
    "2-2": {(0, 0): "Normal", (1, 0): "DAS", (0, 1): "CAS", (1, 1): "CAS & DAS"},
}
_MIXED = "smoothing"  # how strongly a recording's mean was mixed in
_WAYS = {"1-1": "two", "1-2": "all", "2-1": "two", "2-2": "all"}


def official_tasks(
    model: Any, extractor: Any, recipe: Recipe, split: str, predictions: pd.DataFrame, embeddings: Any, table: Any
) -> dict[str, pd.DataFrame]:
    """A model's answers to the tasks that it can answer.

    Args:
        model: The model.
        extractor: Its front end.
        recipe: Says where the corpus lies, and at which level it is scored.
        split: The part.
        predictions: Its predictions table.
        embeddings: Of the same rows (rows, dim).
        table: Their cycle table.

    Returns:
        {"1-1": table with name, truth and answer, ...}; recordings also "with Poor Quality", {} for another corpus.
    """
    if not issubclass(corpus_class(recipe.corpus.name), SprSound):
        return {}
    found: dict[str, pd.DataFrame] = {}
    whole, asked = _asked(recipe)
    head = _head_for(model, asked[1], "record" if whole else None)
    if head:
        logits = task_logits(model, extractor, head, table, recipe, None if whole else embeddings)
        found |= _answers(model, head, asked, logits, table)
    elif model.config.is_multi_label and set(model.config.label_names) == {"crackle", "wheeze"}:
        found |= tasks_by_flags(recipe, predictions, logit_thresholds(model) or {}, table)
    elif set(model.config.label_names) <= {*SPRSOUND_TASKS[asked[1]]}:
        found |= _of_the_head_itself(model, asked, predictions, table)
    record = None if whole else _head_for(model, "2-2", "record")
    if record:
        rows = _recordings(recipe, split, table)
        if rows is not None and len(rows):
            logits = task_logits(model, extractor, record, rows, recipe)
            found |= _answers(model, record, ("2-1", "2-2"), logits, rows)
    return found


def _asked(recipe: Recipe) -> tuple[bool, tuple[str, str]]:
    """Whether recordings are scored, and the tasks that ask about what is scored."""
    whole = (recipe.corpus.level or "event") == "record"
    return whole, ("2-1", "2-2") if whole else ("1-1", "1-2")


def _recordings(recipe: Recipe, split: str, table: Any) -> Any:
    """The recordings of a part; those of the cycles' patients where the part was drawn."""
    asked = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"level": "record"})})
    if split in ("train", "validation"):
        _, held_out = level_tables(asked, "record", set(table["patient_id"]))
        return held_out
    parts = load_splits(asked)
    return parts.get(split)


def _head_for(model: Any, task: str, level: str | None) -> str | None:
    """The further question whose classes are those of a task."""
    for name, settings in model.config.tasks.items():
        if settings.get("level") == level and set(settings["labels"]) == set(SPRSOUND_TASKS[task]):
            return str(name)
    return None


def _names(table: Any, task: str) -> list[str]:
    if task.startswith("2"):
        return [f"{recording}.wav" for recording in column_of(table, "recording_id")]
    rows = zip(column_of(table, "recording_id"), column_of(table, "cycle_index"), strict=True)
    return [f"{recording}_{index}.wav" for recording, index in rows]


def _table(task: str, table: Any, answers: Any) -> pd.DataFrame:
    """Names, truth and answers of a task; truth of a two-way task is two-way."""
    truth = [events[0] if events else None for events in column_of(table, "events")]
    if _WAYS[task] == "two":
        truth = [name if name in (None, "Normal", POOR_QUALITY) else ADVENTITIOUS for name in truth]
    return pd.DataFrame({"name": _names(table, task), "truth": truth, "answer": list(answers)})


def _answers(model: Any, head: str, asked: tuple[str, ...], logits: Any, table: Any) -> dict[str, pd.DataFrame]:
    """What a head of its own answers; with Poor Quality too where it has that class."""
    settings = model.config.tasks[head]
    labels, leanings = settings["labels"], settings.get("logit_adjustment") or {}
    strength = float(settings.get("smoothing") or 0.0)
    logits = smooth_logits(logits, column_of(table, "recording_id"), strength)
    found = {}
    for task in asked:
        way = _WAYS[task]
        leaning = float(leanings.get(way, 0.0))
        found[task] = _table(task, table, answer_with(labels, logits, leaning, way))
        if POOR_QUALITY in labels:
            answers = answer_with(labels, logits, leaning, way, poor_quality=True)
            found[f"{task} with {POOR_QUALITY}"] = _table(task, table, answers)
    for answered in found.values():
        answered.attrs[_MIXED] = strength
    return found


def tasks_by_flags(
    recipe: Recipe, predictions: pd.DataFrame, thresholds: dict[str, float], table: Any
) -> dict[str, pd.DataFrame]:
    """What crackle and wheeze alone answer.

    Args:
        recipe: Says which corpus it is, and at which level it is scored.
        predictions: Predictions table with the logits of both.
        thresholds: Logits above which they are answered; 0 for those that it lacks.
        table: Cycle table of the same rows.

    Returns:
        As `official_tasks`, of events or of recordings; {} for another corpus.
    """
    if not issubclass(corpus_class(recipe.corpus.name), SprSound):
        return {}
    two, all_ = _asked(recipe)[1]
    bits = [
        (predictions[f"logit_{name}"] > thresholds.get(name, 0.0)).astype(int).tolist()
        for name in ("crackle", "wheeze")
    ]
    named = [_OF_BITS[all_][pair] for pair in zip(*bits, strict=True)]
    either = ["Normal" if name == "Normal" else ADVENTITIOUS for name in named]
    return {two: _table(two, table, either), all_: _table(all_, table, named)}


def _of_the_head_itself(
    model: Any, asked: tuple[str, ...], predictions: pd.DataFrame, table: Any
) -> dict[str, pd.DataFrame]:
    """What a model answers whose labels are the task's classes."""
    labels = list(model.config.label_names)
    order = sorted(labels, key=lambda name: name != "Normal")
    logits = np.column_stack([predictions[f"logit_{name}"] for name in order])
    return {task: _table(task, table, answer_with(order, logits, 0.0, _WAYS[task], True)) for task in asked}


def official_scores(answers: dict[str, pd.DataFrame]) -> dict[str, Any] | None:
    """The official figures of every task that was answered, and the total where all four were.

    Args:
        answers: What `official_tasks` returned.
    """
    scores: dict[str, Any] = {}
    for task, table in answers.items():
        known = table[table["truth"].notna()]
        if len(known):
            scores[task] = sprsound_task(task.split(" ")[0], list(known["truth"]), list(known["answer"]))
            if strength := table.attrs.get(_MIXED):
                scores[task][_MIXED] = strength
    plain = {task: scores[task]["Score"] for task in _WAYS if task in scores}
    if len(plain) == len(_WAYS) and None not in plain.values():
        scores["total"] = sprsound_total(plain)
    return scores or None


def official_lines(scores: dict[str, Any] | None) -> list[str]:
    """The figures as lines of text."""
    if not scores:
        return []
    lines = ["", "SPRSound's tasks (official Score; Poor Quality never answered unless it says so)"]
    for task, score in scores.items():
        if task == "total":
            lines.append(f"  {'total':<34}{score:.1f}")
            continue
        text = f"{_text(score['Score'])}   SE {_text(score['SE'])}  SP {_text(score['SP'])}"
        text += f"  balanced accuracy {_text(score['balanced_accuracy'])}"
        if score.get("poor_quality_recall") is not None:
            text += f"  Poor Quality recall {_text(score['poor_quality_recall'])} of {score['n_poor_quality']}"
        text += f"  (mixed with the recording by {score[_MIXED]:g})" if score.get(_MIXED) else ""
        lines.append(f"  {'task ' + task:<34}{text}")
    return lines


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1f}"


def write_submission(answers: dict[str, pd.DataFrame], folder: str | Path) -> Path:
    """Write the challenge's answer files, task1_1.json to task2_2.json: {wav name: answer}.

    Args:
        answers: What `official_tasks` returned.
        folder: Where to.

    Raises:
        InputError: The model answers none of the tasks, or the folder cannot be written.
    """
    if not answers:
        raise InputError(
            "this model answers none of SPRSound's tasks on this corpus; --submission needs --corpus sprsound"
        )
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        for task in _WAYS:
            if task in answers:
                table = answers[task]
                content = dict(zip(table["name"], map(str, table["answer"]), strict=True))
                with atomic_write(temporary / f"task{task.replace('-', '_')}.json") as file:
                    json.dump(content, file, indent=1, ensure_ascii=False)
    return folder
