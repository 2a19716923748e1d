"""The phases of a recipe: which part of the model learns from which terms, in which order.

Decisions: each phase is a LaennecTrainer with its own rates, sampler and checkpoints; a finished phase is never run
again after an interruption. Song's alternation is by epoch: an even epoch trains the encoder by the auxiliary loss
alone, an odd one the head by the task loss on the frozen encoder, so that no gradient crosses. The last phase chooses
its epoch on validation.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from tqdm import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from laennec.corpora.base import column_of
from laennec.encoders.masks import MaskedBatchNorm2d
from laennec.errors import InputError
from laennec.extension import load_object
from laennec.files import atomic_write
from laennec.training.arguments import LaennecTrainingArguments
from laennec.training.checkpoints import SaveAndStop, stop_requests
from laennec.training.coverage import coverage_line, pair_lines
from laennec.training.data import CycleDataset
from laennec.training.devices import (
    compiled_layers,
    device_settings,
    encodes_one_by_one,
    full_length_afterwards,
    has_gpu,
    recompute_activations,
    training_device,
)
from laennec.training.loss_specs import LossSpec, check_views, groups_of_data, loss_specs
from laennec.training.mixing import Mixer
from laennec.training.objective import Stage, contrasts_mixtures, task_weights
from laennec.training.recipe import Recipe, SamplerSettings
from laennec.training.record import read_record, write_record
from laennec.training.samplers import (
    AnchorPositiveSampler,
    ClassesTimesSamplesSampler,
    DeviceBalancedSampler,
    EpochSampler,
    LengthBucketSampler,
    MetadataMatchedSampler,
    PatientBalancedSampler,
)
from laennec.training.step_errors import BatchSetting
from laennec.training.tables import SELECTION_METRICS, ValidationMetrics
from laennec.training.targets import GroupTable, Targets, refuse_one_class
from laennec.training.trainer import LaennecTrainer

_log = logging.getLogger(__name__)


@dataclass
class Phase:
    """One Trainer run of a schedule."""

    name: str
    epochs: int
    learning_rate: float
    head_learning_rate: float | None = None
    stages: Callable[[int], Stage] | None = None
    sampler: str = "shuffle"
    selects: bool = True


@dataclass
class Result:
    """What the phases left behind."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: float | None = None
    best_metric: float | None = None
    losses: dict[str, str] = field(default_factory=dict)


def phases_of(recipe: Recipe) -> list[Phase]:
    """The phases of a recipe's schedule."""
    s, t = recipe.schedule, recipe.train
    if s.name == "joint":
        return [Phase("train", t.epochs, t.learning_rate, sampler=recipe.sampler.name)]
    phases = []
    if s.name == "alternating":
        if s.pretrain_epochs:
            task_only = Stage(auxiliary=False)
            phases.append(Phase("pretrain", s.pretrain_epochs, s.pretrain_learning_rate, stages=lambda _: task_only))
        # a round is an epoch of the encoder and an epoch of the head
        turns = (Stage(head=False), Stage(encoder=False))
        alternate = Phase(
            "alternate",
            2 * t.epochs,
            t.learning_rate,
            s.head_learning_rate,
            lambda e: turns[e % 2],
            recipe.sampler.name,
        )
        return [*phases, alternate]
    apart = Stage(head=False)
    represent = Phase(
        "represent", s.pretrain_epochs, s.pretrain_learning_rate, None, lambda _: apart, recipe.sampler.name, False
    )
    alone = Stage(encoder=False)
    return [represent, Phase("head", t.epochs, t.learning_rate, stages=lambda _: alone)]


def make_arguments(
    recipe: Recipe, phase: Phase, folder: Path, batch_size: int, class_weights: list[float] | None = None
) -> LaennecTrainingArguments:
    """The arguments of one phase.

    Args:
        recipe: All settings.
        phase: The phase.
        folder: Of its checkpoints.
        batch_size: Rows of a batch on one process.
        class_weights: Of the task loss, one number a label.
    """
    t = recipe.train
    metric = SELECTION_METRICS[t.selection_metric]
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": _evaluated_at_once(recipe),
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "num_train_epochs": phase.epochs,
        "max_steps": t.max_steps,
        "learning_rate": phase.learning_rate,
        "head_learning_rate": phase.head_learning_rate,
        # Adam is AdamW without decay
        "adam_beta1": t.betas[0],
        "adam_beta2": t.betas[1],
        "weight_decay": 0.0 if t.optimizer == "adam" else t.weight_decay,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(t.lr_scheduler_type, t.lr_scheduler_type),
        "warmup_steps": t.warmup_ratio,
        "max_grad_norm": t.max_grad_norm,
        "epoch_cosine": t.epoch_cosine,
        "moving_average": t.moving_average,
        "sam_rho": t.sam_rho,
        "sam_adaptive": t.sam_adaptive,
        "task_loss": recipe.loss.task,
        "task_weight": recipe.loss.task_weight,
        "task_views": recipe.loss.task_views,
        "focal_gamma": recipe.loss.focal_gamma,
        "class_weights": class_weights,
        "seed": recipe.seed,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": phase.selects,
        "metric_for_best_model": f"eval_{metric}",
        "greater_is_better": metric != "loss",
        "report_to": "none",
        "label_names": ["labels"],
        "ddp_find_unused_parameters": phase.stages is not None,
        "bf16": t.bf16,
        "disable_tqdm": True,
        **device_settings(t.workers, has_gpu()),
    }
    return LaennecTrainingArguments(**{**values, **t.arguments})


def _evaluated_at_once(recipe: Recipe) -> int:
    """Rows of an evaluation batch: on a CPU one cycle; embeddings lie ready, and the Trainer takes them apart."""
    alone = encodes_one_by_one(training_device()) and not recipe.encoder.frozen
    return 1 if alone else recipe.train.evaluation_batch_size


@dataclass
class Plan:
    """The phases of a recipe on a corpus that they fit, and the arguments of every Trainer.

    Attributes:
        phases: Each phase with its sampler and the rows of a batch.
        specs: The auxiliary losses.
        class_weights: Of the task loss.
        settings: Passed to every Trainer.
    """

    phases: list[tuple[Phase, Any, int]]
    specs: list[LossSpec]
    class_weights: list[float] | None
    settings: dict[str, Any]


def plan_phases(
    recipe: Recipe,
    model: Any,
    extractor: Any,
    targets: Targets,
    table: Any,
    datasets: tuple[Any, Any],
    validation_table: Any,
) -> Plan:
    """Check that recipe and corpus fit together, before anything is written.

    Args:
        recipe: All settings.
        model: The model.
        extractor: Its front end.
        targets: Labels of the training part.
        table: Cycle table of the training part.
        datasets: Training and validation datasets.
        validation_table: Predictions table of the validation part without logits.

    Raises:
        InputError: The corpus does not fit the recipe's losses and samplers.
    """
    refuse_one_class(targets)
    multi_label, names = recipe.target.problem_type == "multi_label", targets.names
    specs = loss_specs(recipe.loss.auxiliary, recipe.sampler.negatives, recipe.folders)
    mix, spec_augment = recipe.augment.mix, recipe.augment.spec
    codes = groups_of_data(datasets[0], specs, recipe.metadata.age_edges_years)
    lengths = None
    if isinstance(datasets[0], CycleDataset):
        check_views(specs, mix is not None, bool(datasets[0].augmentation or spec_augment))
        lengths = datasets[0].waveforms.lengths
    phases = [
        (phase, *sampler_of_recipe(phase.sampler, recipe, targets, table, lengths)) for phase in phases_of(recipe)
    ]
    held_out, validation_table = by_length(datasets[1], validation_table)
    metrics = ValidationMetrics(validation_table, recipe.target.problem_type, names)
    metrics.refuse_undefined(recipe.train.selection_metric)
    _check_pairs(phases, specs, targets, codes)
    if recipe.train.gradient_checkpointing:
        recompute_activations(model)
    weights = task_weights(targets.labels, len(names), multi_label, recipe.loss.class_weights)
    settings = {
        "processing_class": extractor,
        "losses": {spec.name: spec for spec in specs},
        "spec_augment": spec_augment,
        "mixer": Mixer(mix, recipe.seed, len(names), contrasts_mixtures(specs), names, multi_label) if mix else None,
        "train_dataset": datasets[0],
        "eval_dataset": held_out,
        "compute_metrics": metrics,
    }
    return Plan(phases, specs, None if weights is None else weights.tolist(), settings)


def run_phases(recipe: Recipe, model: Any, plan: Plan, out: Path, lines: bool = True, watch: Any = None) -> Result:
    """Train the model in place, phase by phase, and leave the best epoch's weights in it.

    Args:
        recipe: All settings.
        model: The model.
        plan: Made for this recipe and model.
        out: The run's folder; checkpoints go below it.
        lines: Whether each epoch prints a line.
        watch: A TrainerCallback that sees every phase; None for none.

    Returns:
        Log, best epoch and the description of each loss.
    """
    for module in model.modules():
        if isinstance(module, MaskedBatchNorm2d):
            module.synchronised = recipe.train.sync_batch_norm
    result, trainer = Result(losses=loss_descriptions(plan.specs)), None
    for phase, sampler, batch_size in plan.phases:
        folder = out / "checkpoints" / phase.name
        finished = folder / "finished.safetensors"
        if finished.exists():
            model.load_state_dict(load_file(finished), strict=False)
            _add_to(result, phase, _State(**read_record(folder / "finished.json")))
            continue
        trainer = LaennecTrainer(
            model,
            make_arguments(recipe, phase, folder, batch_size, plan.class_weights),
            sampler=sampler,
            stages=phase.stages,
            batch_setting=_batch_setting(recipe, phase.sampler, batch_size),
            callbacks=_callbacks(recipe, phase),
            **plan.settings,
        )
        trainer.remove_callback(PrinterCallback)
        if lines:
            trainer.add_callback(EpochLines(phase.name, SELECTION_METRICS[recipe.train.selection_metric]))
        if watch is not None:
            trainer.add_callback(watch)
        with full_length_afterwards(model), compiled_layers(model, recipe.train.compile):
            train_or_resume(trainer, recipe.train.save_steps)
        model.encoder_frozen_in_stage = False
        _add_to(result, phase, _finish(trainer, folder, keep=len(plan.phases) > 1))
    trainer_end(trainer)
    return result


def train_or_resume(trainer: LaennecTrainer, save_steps: int = 0) -> None:
    """Train, or continue from the last whole checkpoint; SIGTERM ends training with another one.

    Args:
        trainer: Of the phase.
        save_steps: Steps between checkpoints, in addition to the one of each epoch; 0 for no others.

    Raises:
        Terminated: By SIGTERM, once the checkpoint is written.
    """
    with stop_requests() as request:
        trainer.add_callback(SaveAndStop(request, save_steps or None))
        trainer.train(resume_from_checkpoint=True)


def by_length(dataset: Any, table: Any) -> tuple[Any, Any]:
    """Cycles and their truth table from the longest to the shortest, so that batches need little padding."""
    if not isinstance(dataset, CycleDataset):
        return dataset, table
    order = np.argsort(-np.asarray(dataset.waveforms.lengths), kind="stable")
    return torch.utils.data.Subset(dataset, order.tolist()), table.iloc[order].reset_index(drop=True)


def _callbacks(recipe: Recipe, phase: Phase) -> list[TrainerCallback]:
    """Early stopping where the recipe wants it, and the recipe's own callbacks."""
    own = [one.make(f"train.callbacks[{n}]", recipe.folders) for n, one in enumerate(recipe.train.callbacks)]
    if recipe.train.patience and phase.selects:
        own.append(EarlyStoppingCallback(recipe.train.patience))
    return own


def _batch_setting(recipe: Recipe, sampler: str, rows: int) -> BatchSetting:
    """The setting that makes the batches of a sampler as large as they are, so many rows."""
    evaluation = "train.evaluation_batch_size"
    if sampler in ("classes_times_samples", "patient_balanced", "device_balanced"):
        return BatchSetting("sampler.samples", recipe.sampler.samples, rows, evaluation_key=evaluation)
    t = recipe.train
    alone = not recipe.loss.auxiliary and t.sam_rho is None and sampler in ("shuffle", "length_bucketed")
    return BatchSetting(
        "train.batch_size", t.batch_size, rows, t.gradient_accumulation_steps if alone else 0, evaluation
    )


def _check_pairs(plan: list[tuple[Phase, Any, int]], specs: list[LossSpec], targets: Targets, codes: Any) -> None:
    """Stop before training if batches cannot hold the pairs of a loss; print how many they hold otherwise."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    for phase, sampler, batch_size in plan:
        lines = [coverage_line(phase.sampler, sampler, batch_size * world, targets.class_ids)]
        stages = [Stage()] if phase.stages is None else [phase.stages(0), phase.stages(1)]
        if any(stage.encoder and stage.auxiliary for stage in stages):
            lines += pair_lines(specs, sampler, batch_size * world, targets.class_ids, codes)
        for line in lines:
            if os.environ.get("RANK", "0") == "0":
                print(f"{phase.name}: {line}", flush=True)


@dataclass
class _State:
    """The log and the best epoch of a finished phase, kept for a run that continues after it."""

    log_history: list[dict[str, Any]]
    best_metric: float | None
    best_global_step: int | None


def _add_to(result: Result, phase: Phase, state: _State) -> None:
    """Keep a phase's log, and its best epoch where the phase chooses one."""
    result.history += [{"phase": phase.name, **entry} for entry in state.log_history]
    if phase.selects:
        result.best_metric = state.best_metric
        result.best_epoch = _best_epoch(state)


def _finish(trainer: LaennecTrainer, folder: Path, keep: bool) -> _State:
    """Log and best epoch of a phase, kept beside its weights where another phase follows."""
    state = _State(trainer.state.log_history, trainer.state.best_metric, trainer.state.best_global_step)
    if keep and trainer.is_world_process_zero():
        write_record(folder / "finished.json", dataclasses.asdict(state))
        _remember(trainer.model, folder / "finished.safetensors")
    return state


def trainer_end(trainer: LaennecTrainer | None) -> None:
    """Wait for all processes; without it a launch of several processes can abort at exit."""
    if trainer is not None and trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()


def _remember(model: Any, path: Path) -> None:
    """Keep a finished phase's weights so that an interrupted run continues from there."""
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(save(state))


def _best_epoch(state: Any) -> float | None:
    """The epoch whose checkpoint was chosen."""
    if not state.best_global_step:
        return None
    epochs = [e["epoch"] for e in state.log_history if e.get("step") == state.best_global_step and "epoch" in e]
    return float(epochs[0]) if epochs else None


def loss_descriptions(specs: list[LossSpec]) -> dict[str, str]:
    """Class and settings of each auxiliary loss, for the run record."""
    return {spec.name: f"{type(spec.loss).__name__}({spec.loss.extra_repr()})" for spec in specs}


def sampler_of_recipe(name: str, recipe: Recipe, targets: Targets, table: Any, lengths: Any = None) -> tuple[Any, int]:
    """A sampler by name, and how many rows a batch of it has (on one process).

    Args:
        name: As in sampler.name.
        recipe: All settings.
        targets: Labels of the training part.
        table: Cycle table of the training part, labelled rows only.
        lengths: Length of each of its rows; length_bucketed needs them.

    Raises:
        InputError: The corpus cannot fill such batches, or a column that the sampler needs is unknown.
    """
    if recipe.sampler.class_ is not None and name == recipe.sampler.name:
        return own_sampler(recipe.sampler, table, recipe.train.batch_size, recipe.seed, recipe.folders)
    groups = GroupTable(len(targets.class_ids), targets.metadata, recipe.metadata.age_edges_years)
    try:
        if name == "length_bucketed":
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            size, seed = recipe.train.batch_size, recipe.seed
            sampler: Any = LengthBucketSampler(lengths, size, seed, processes=processes)
        else:
            sampler = _built_in(name, recipe, targets, column_of(table, "patient_id"), groups)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"sampler.name is {name}: {error}") from error
    return sampler, sampler.rows_per_batch or recipe.train.batch_size


def _built_in(name: str, recipe: Recipe, targets: Targets, patients: list[str], groups: GroupTable) -> Any:
    size, seed, s = recipe.train.batch_size, recipe.seed, recipe.sampler
    if name == "anchor_positive":
        return AnchorPositiveSampler(targets.class_ids, size, seed=seed)
    if name == "patient_balanced":
        return PatientBalancedSampler(patients, s.patients, s.samples, seed=seed)
    if name == "classes_times_samples":
        return ClassesTimesSamplesSampler(targets.class_ids, s.classes, s.samples, seed=seed)
    if name not in ("metadata_matched", "device_balanced"):
        return EpochSampler(len(targets.class_ids), seed=seed)
    names = s.columns if name == "metadata_matched" else ["device"]
    where = "sampler.columns" if name == "metadata_matched" else "sampler.name: device_balanced"
    codes = groups.codes(names, s.missing, where)
    if (codes < 0).any():
        kept = "sampler.missing: own_group keeps them, as one group"
        _log.warning("sampler: %s %s; they are left out (%s)", ", ".join(names), groups.whose(codes), kept)
    columns = [groups.column(column, where) for column in names]
    if name == "metadata_matched":
        return MetadataMatchedSampler(columns, size, patients, s.missing, seed)
    return DeviceBalancedSampler(columns[0], s.devices, s.samples, s.missing, seed)


def own_sampler(
    sampler: SamplerSettings, table: Any, batch_size: int, seed: int, folders: Sequence[Path] = ()
) -> tuple[Any, int]:
    """Make the sampler of `sampler.class`.

    Args:
        sampler: The recipe's section.
        table: Cycle table of the training rows.
        batch_size: train.batch_size.
        seed: Of the run.
        folders: Folders to import from, `Recipe.folders`.

    Returns:
        The sampler, and the rows of a batch on one process.

    Raises:
        InputError: It is no sampler.
    """
    name = str(sampler.class_)
    kind = load_object(name, "sampler.class", folders)
    try:
        made = kind(table, batch_size, seed, **sampler.arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"sampler.class: {name}(table, batch_size, seed, ...): {error}") from error
    if not hasattr(made, "__len__") or not hasattr(made, "__iter__"):
        raise InputError(f"sampler.class: {name} needs __iter__ and __len__, as torch samplers have")
    return made, int(getattr(made, "rows_per_batch", None) or batch_size)


class EpochLines(TrainerCallback):
    """Prints one line for each epoch, and a bar of steps on a terminal.

    Args:
        phase: Name of the phase.
        metric: The metric that chooses the epoch; None for a training without validation.
    """

    def __init__(self, phase: str, metric: str | None = None) -> None:
        self.phase = phase
        self.metric = metric
        self.bar: Any = None
        self.losses = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.phase, unit="step", file=sys.stderr
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the losses; print once the epoch's last figures are there."""
        logs = logs or {}
        if "loss" in logs:
            terms = ", ".join(f"{k.removeprefix('term_')} {v:.4f}" for k, v in logs.items() if k.startswith("term_"))
            self.losses = f"loss {logs['loss']:.4f}" + (f" ({terms})" if terms else "")
        if ("loss" if self.metric is None else "eval_loss") not in logs or not state.is_world_process_zero:
            return
        shown = dict.fromkeys(("loss", self.metric, "icbhi.Score", "roc_auc_macro"))
        figures = ", ".join(f"{k} {logs[f'eval_{k}']:.4g}" for k in shown if f"eval_{k}" in logs)
        epoch = f"{logs.get('epoch', state.epoch or 0):g}/{args.num_train_epochs:g}"
        self._print(f"{self.phase} epoch {epoch}: {self.losses}" + (f"; validation {figures}" if figures else ""))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def _print(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)
