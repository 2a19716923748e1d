"""Auxiliary tasks: additional classifications of cycles or recordings, each with its own head.

Decisions: an auxiliary task classifies the same cycles (SPRSound's seven events) or whole recordings (its five record
classes). Its head is linear, on the shared embedding, trained with the encoder by cross entropy and stored with the
model. A recording is cut into windows as long as a cycle, and its embedding is the mean of the windows' embeddings.
Windows of some recordings of TRAINING patients are appended to each batch, so that cycles and windows share batch
statistics (longer windows, or separate batches, lowered the score of the cycles on SPRSound's validation patients). The
draw of windows depends on seed and batch alone, so a resumed run is equal bit for bit. The logit adjustment of each
task is fitted on validation patients, as thresholds are. The main labels alone choose the epoch.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import recursively_apply, send_to_device
from numpy.typing import NDArray
from torch import Tensor, nn

from laennec.audio.cycles import sliding_windows
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.mixing import mix
from laennec.corpora.base import column_of, to_arrow
from laennec.corpora.load import corpus_class
from laennec.encoders.masks import process_count
from laennec.errors import InputError
from laennec.evaluation.calibration.logit_adjustment import adjusted_classes, fit_adjustments
from laennec.evaluation.calibration.smoothing import fit_class_smoothing, smooth_logits
from laennec.evaluation.metrics import POOR_QUALITY
from laennec.training.data.batches import CycleDataset, collate_cycles
from laennec.training.data.mixing import BatchFeatures
from laennec.training.data.split_data import SplitData, load_splits, make_split
from laennec.training.data.targets import targets_of
from laennec.training.devices import gather_with_gradient
from laennec.training.embeddings import embed_cycles, embedding_cache, padded
from laennec.training.objectives.objective import step_key
from laennec.training.recipe import Recipe, TargetSettings, TaskSettings
from laennec.training.tables import head_logits

GROUP = "task "  # prefix of a task's name among the groups of a batch


class Task(TaskSettings):
    """An auxiliary task of a recipe, and its name."""

    name: str


def tasks_of(recipe: Recipe) -> list[Task]:
    """The auxiliary tasks of a recipe, with the length of their windows."""
    tasks = [_task(name, settings, recipe) for name, settings in recipe.tasks.items()]
    mix = recipe.augment.mix
    if any(task.level for task in tasks) and mix is not None and mix.domain == "tokens":
        raise InputError("tasks about recordings need augment.mix.domain: features")
    if tasks and (recipe.encoder.frozen or recipe.features.context_cycles):
        other = "encoder.trainable: frozen" if recipe.encoder.frozen else "features.context_cycles"
        raise InputError(f"tasks are trained together with the encoder; they cannot be combined with {other}")
    return tasks


def _task(name: str, settings: TaskSettings, recipe: Recipe) -> Task:
    where, window_s = f"tasks.{name}", settings.window_s
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise InputError(f"{where}: {name!r} cannot name a task; use letters, digits and underscores")
    if POOR_QUALITY in settings.labels and settings.labels[-1] != POOR_QUALITY:
        raise InputError(f"{where}: {POOR_QUALITY} must be the last of its labels")
    if settings.level is not None:
        levels = corpus_class(recipe.corpus.name, "corpus.name").levels
        if len(levels) < 2 or settings.level not in levels:
            raise InputError(f"{where}.level is {settings.level!r}; {recipe.corpus.name} has {', '.join(levels)}")
        window_s = window_s or recipe.features.duration_s
        if window_s is None:
            raise InputError(f"{where}: give window_s, because cycles keep their own length")
    return Task(name=name, **settings.model_dump() | {"window_s": window_s})


def config_of(tasks: list[Task]) -> dict[str, Any]:
    """The auxiliary tasks as a model's configuration stores them."""
    return {task.name: {"labels": task.labels, "level": task.level, "window_s": task.window_s} for task in tasks}


def _target(task: Task) -> TargetSettings:
    return TargetSettings(problem_type="single_label", column=task.column, names=task.labels)


def codes_of(task: Task, table: Any) -> NDArray[np.int64]:
    """Class of each row of a cycle table, -1 where it is unknown."""
    targets = targets_of(table, _target(task), task.labels)
    codes = np.full(len(table), -1, dtype=np.int64)
    codes[targets.kept] = targets.class_ids
    return codes


def level_tables(recipe: Recipe, level: str, validation_patients: set[str]) -> tuple[Any, Any]:
    """Recordings for training and validation, split by the validation patients of the cycles.

    By itself, each level of a corpus draws its own validation patients; one task would then be validated on patients
    that another task was trained on.
    """
    asked = recipe.model_copy(update={"corpus": recipe.corpus.model_copy(update={"level": level})})
    splits = load_splits(asked)
    table = datasets.concatenate_datasets([splits["train"], splits["validation"]])
    held_out = np.array([patient in validation_patients for patient in column_of(table, "patient_id")])
    return table.select(np.flatnonzero(~held_out)), table.select(np.flatnonzero(held_out))


class AuxiliaryTasks:
    """The losses of a model's auxiliary tasks."""

    def __init__(
        self,
        recipe: Recipe,
        tasks: list[Task],
        dataset: CycleDataset,
        table: Any,
        extractor: LaennecFeatureExtractor,
        validation_patients: set[str],
    ) -> None:
        self.tasks = tasks
        self.seed = recipe.seed
        self.batch_features = BatchFeatures(extractor, recipe.seed, recipe.augment.spec)
        self.recordings: dict[str, CycleDataset] = {}
        self._appended: list[tuple[Task, Tensor]] = []
        groups = dict(dataset.groups)
        for task in tasks:
            if task.level is None:
                groups[f"{GROUP}{task.name}"] = codes_of(task, table)
                continue
            if process_count() > 1:
                raise InputError(f"tasks.{task.name}: tasks about recordings are trained in one process")
            rows, _ = level_tables(recipe, task.level, validation_patients)
            plain = recipe.augment.model_copy(update={"concatenate_probability": 0.0})
            of_task = recipe.model_copy(update={"augment": plain, "target": _target(task)})
            self.recordings[task.name] = make_split("recordings", rows, of_task, extractor, None, True).dataset
        dataset.groups = groups

    def append_recordings(self, inputs: dict[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
        """Append windows of recordings to a training batch."""
        self._appended = []
        parts = [(inputs["input_values"], inputs["attention_mask"])]
        for task in self.tasks:
            if task.level is not None:
                windows, mask, ids = self._drawn(task, batch, parts[0][0].device)
                parts.append((windows.to(parts[0][0]), mask.to(parts[0][1])))
                self._appended.append((task, ids))
        if len(parts) == 1:
            return inputs
        features, masks = zip(*parts, strict=True)
        return inputs | {"input_values": padded(features), "attention_mask": padded(masks)}

    def terms(self, model: Any, outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
        """The model's output without appended rows, and the weighted cross entropy of each task."""
        found = {}
        appended = sum(len(ids) * task.windows for task, ids in self._appended)
        rows = len(outputs.embeddings) - appended
        place = rows
        for task, ids in self._appended:
            count = len(ids) * task.windows
            windows = outputs.embeddings[place : place + count].unflatten(0, (len(ids), task.windows))
            place += count
            targets = nn.functional.one_hot(ids.to(windows.device), len(task.labels)).to(windows)
            found[task.name] = self._loss(model, task, windows.mean(1), targets)
        self._appended = []
        own = first_rows(outputs, rows) if appended else outputs
        for task in self.tasks:
            if task.level is None:
                ids = batch["group_ids"][f"{GROUP}{task.name}"]
                vectors = own.embeddings[: len(ids)]
                targets = nn.functional.one_hot(ids.clamp_min(0), len(task.labels)).to(vectors)
                targets = targets * (ids >= 0).to(targets)[:, None]
                if (mixture := batch.get("mixture")) is not None:
                    targets = mix(targets, mixture.lam, mixture.index)
                found[task.name] = self._loss(model, task, gather_with_gradient(vectors), gather_with_gradient(targets))
        return own, found

    @staticmethod
    def _loss(model: Any, task: Task, vectors: Tensor, targets: Tensor) -> Tensor:
        logits = model.tasks[task.name](vectors).float()
        total = -(targets.to(logits) * logits.log_softmax(1)).sum()
        return task.weight * total / targets.sum().clamp_min(1e-6)

    def _drawn(self, task: Task, batch: Mapping[str, Any], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Features (recordings * windows, frames, mels) and mask of a step's windows, and the recordings' classes."""
        dataset = self.recordings[task.name]
        key = step_key(self.seed, batch["epochs"], batch["cycle_numbers"])
        generator = np.random.Generator(np.random.Philox(key=np.array([key, 0], dtype=np.uint64)))
        rows = generator.integers(0, len(dataset), task.batch_size)
        epoch = int(key % 2**31)
        length = round(float(task.window_s or 0) * dataset.sampling_rate)
        items, ids = [], []
        for row in rows:
            item = dataset[(int(row), epoch)]
            sound = item["waveform"]
            ids.append(int(item["class_id"]))
            for window in range(task.windows):
                start = int(generator.integers(0, max(1, len(sound) - length + 1)))
                number = (item["cycle_number"] + window) % 2**62
                items.append({**item, "waveform": sound[start : start + length], "cycle_number": number})
        made, _ = self.batch_features(send_to_device(collate_cycles(items), device), training=True)
        return made["input_values"], made["attention_mask"], torch.tensor(ids)


def first_rows(outputs: Any, rows: int) -> Any:
    """A model's output for the first rows of its batch."""
    made = copy.copy(outputs)
    for name in ("logits", "embeddings", "projections", "auxiliary"):
        if (value := getattr(outputs, name, None)) is not None:
            setattr(made, name, recursively_apply(lambda tensor: tensor[:rows] if tensor.dim() else tensor, value))
    return made


def task_logits(model: Any, extractor: Any, name: str, table: Any, recipe: Recipe, embeddings: Any = None) -> Any:
    """Logits of one of a model's auxiliary tasks: float32 (rows, labels); embeddings are computed if not given."""
    if embeddings is None:
        embeddings = task_embeddings(model, extractor, name, table, recipe)
    return head_logits(model.tasks[name], embeddings)


def task_embeddings(model: Any, extractor: Any, name: str, table: Any, recipe: Recipe) -> NDArray[np.float32]:
    """Embeddings (rows, dim) of the rows of a task; that of a recording is the mean over its windows."""
    window_s = model.config.tasks[name].get("window_s")
    owners, cut = np.arange(len(table)), table
    if window_s is not None:
        owners, cut = windows_of(table, float(window_s))
    # every row has a recording_id, so that all rows are kept
    asked = recipe.model_copy(update={"target": TargetSettings(problem_type="single_label", column="recording_id")})
    data: SplitData = make_split("recordings", cut, asked, extractor, None, False)
    embeddings = embed_cycles(data.dataset, data.keys(), embedding_cache(recipe, model, extractor))
    return np.stack([embeddings[owners == row].mean(0) for row in range(len(table))])


def windows_of(table: Any, window_s: float) -> tuple[NDArray[np.int64], Any]:
    """Recordings cut into windows that overlap by half: the row of each window, and their table."""
    owners, rows = [], []
    for row, values in enumerate(table.with_format("arrow")[:].to_pylist()):
        spans = sliding_windows(values["end_s"] - values["start_s"], window_s, window_s / 2)
        for number, (start_s, end_s) in enumerate(spans):
            times = {"start_s": values["start_s"] + start_s, "end_s": values["start_s"] + end_s}
            rows.append({**values, **times, "cycle_id": f"{values['cycle_id']}#{number:03d}", "cycle_index": number})
            owners.append(row)
    return np.array(owners), datasets.Dataset(to_arrow(rows, table.features), info=table.info.copy())


@dataclass
class TaskPredictions:
    """Predictions for a task on validation."""

    codes: NDArray[np.int64]  # true classes (rows,), -1 where unknown
    logits: NDArray[np.float64]  # (rows, classes)
    recordings: list[Any]  # recording_id of each row


def predict_tasks(
    model: Any, extractor: Any, recipe: Recipe, tasks: list[Task], validation: SplitData
) -> dict[str, TaskPredictions]:
    """A model's predictions for each task on the validation patients."""
    predicted = {}
    for task in tasks:
        table = validation.table
        if task.level is not None:
            _, table = level_tables(recipe, task.level, set(validation.table["patient_id"]))
        logits = task_logits(model, extractor, task.name, table, recipe)
        predicted[task.name] = TaskPredictions(codes_of(task, table), logits, column_of(table, "recording_id"))
    return predicted


def fit_logit_adjustment(
    config: Any, tasks: list[Task], predicted: Mapping[str, TaskPredictions]
) -> dict[str, dict[str, Any]]:
    """Fit the logit adjustment (and smoothing) of each task on validation, and store it in a model's config.

    Returns:
        {name: {"logit_adjustment": {...}, "rows": number of rows, "answers": {rule: {class: predictions}}}} for the
        run's record; also "smoothing" if the task smooths.
    """
    record = {}
    for task in tasks:
        codes, logits, recordings = (getattr(predicted[task.name], name) for name in ("codes", "logits", "recordings"))
        fitted: dict[str, Any] = {}
        if task.smooth:
            known = np.flatnonzero(codes >= 0)
            fitted["smoothing"] = fit_class_smoothing(codes[known], logits[known], [recordings[row] for row in known])
            logits = smooth_logits(logits, recordings, fitted["smoothing"])
        adjustments = fit_adjustments(task.labels, codes[codes >= 0], logits[codes >= 0])
        fitted["logit_adjustment"] = adjustments
        config.tasks[task.name] |= fitted
        classes = {way: adjusted_classes(task.labels, logits, number, way) for way, number in adjustments.items()}
        record[task.name] = {**fitted, "rows": int((codes >= 0).sum()), "answers": {
            way: dict(zip(*np.unique(chosen, return_counts=True), strict=True)) for way, chosen in classes.items()
        }}  # fmt: skip
    return record
