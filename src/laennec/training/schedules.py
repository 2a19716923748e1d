"""The phases of a recipe: which part of the model learns from which terms, in which order.

Decisions: each phase is a LaennecTrainer with its own rates, sampler and checkpoints; a finished phase is never run
again after an interruption. Song's alternation is by epoch: an even epoch trains the encoder by the auxiliary loss
alone, an odd one the head by the task loss on the frozen encoder, so that neither loss changes the other part. The last
phase chooses its epoch on validation, among those that end with a trained head: an epoch of the encoder alone is not
evaluated. The console shows one line per epoch; a terminal also shows a progress bar with the time left.
"""

import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from laennec.corpora.base import column_of
from laennec.encoders.masks import MaskedBatchNorm2d
from laennec.errors import InputError
from laennec.evaluation.own_metrics import load_metrics
from laennec.extension import load_object
from laennec.head import HeadModel
from laennec.progress import Progress
from laennec.terminal import say
from laennec.training.arguments import LaennecTrainingArguments, further_arguments
from laennec.training.checkpoints import train_or_resume, write_weights
from laennec.training.coverage import coverage_lines
from laennec.training.data.batches import CycleDataset, EmbeddingDataset
from laennec.training.data.mixing import Mixer
from laennec.training.data.targets import GroupTable, Targets, as_codes, refuse_one_class
from laennec.training.data.training_data import draws_of
from laennec.training.devices import (
    device_settings,
    encodes_one_by_one,
    has_gpu,
    is_main_process,
    process_count_of_launch,
    recompute_activations,
    training_device,
    unsharded,
)
from laennec.training.objectives.gradients import check_balance
from laennec.training.objectives.loss_specs import LossSpec, check_draws, contrasts_mixtures, groups_of_data, loss_specs
from laennec.training.objectives.objective import Stage, task_weights
from laennec.training.recipe import Recipe
from laennec.training.record import read_record, write_record
from laennec.training.samplers import (
    AnchorPositiveSampler,
    BalancedSampler,
    ClassesTimesSamplesSampler,
    EpochSampler,
    LengthBucketSampler,
    MetadataMatchedSampler,
)
from laennec.training.step_errors import BatchSetting
from laennec.training.tables import SELECTION_METRICS, ValidationMetrics
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
    callbacks: list[TrainerCallback] = field(default_factory=list)


@dataclass
class Result:
    """The trained model, the log and best epoch of its phases, and the description of each loss."""

    model: Any
    losses: dict[str, str]
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: float | None = None
    best_metric: float | None = None

    def add(self, phase: Phase, state: dict[str, Any]) -> None:
        """Keep a phase's log, and its best epoch where the phase chooses one."""
        self.history += [{"phase": phase.name, **entry} for entry in state["log_history"]]
        if phase.selects:
            best = state["best_global_step"]
            epochs = [e["epoch"] for e in state["log_history"] if best and e.get("step") == best and "epoch" in e]
            self.best_metric, self.best_epoch = state["best_metric"], float(epochs[0]) if epochs else None


def check_schedule(recipe: Recipe) -> None:
    """Refuse to train an encoder by auxiliary losses alone where there are none."""
    s = recipe.schedule
    if not recipe.loss.auxiliary and (s.name == "alternating" or (s.name == "two_stage" and s.pretrain_epochs)):
        raise InputError(f"schedule.name: {s.name} trains the encoder with loss.auxiliary, which is empty; set one")


def phases_of(recipe: Recipe) -> list[Phase]:
    """The phases of a recipe's schedule."""
    s, t, sampler = recipe.schedule, recipe.train, recipe.sampler.name
    if s.name == "joint":
        return [Phase("train", t.epochs, t.learning_rate, sampler=sampler)]
    first = (s.pretrain_epochs, s.pretrain_learning_rate)
    if s.name == "two_stage":
        encoder_only, head_only = Stage(head=False), Stage(encoder=False)
        represent = Phase("represent", *first, None, lambda _: encoder_only, sampler, False)
        return [represent, Phase("head", t.epochs, t.learning_rate, stages=lambda _: head_only)]
    task_only = Stage(auxiliary=False)
    # a round is an epoch of the encoder and an epoch of the head
    turns = (Stage(head=False), Stage(encoder=False))
    rates = (t.learning_rate, s.head_learning_rate)
    alternate = Phase("alternate", 2 * t.epochs, *rates, lambda epoch: turns[epoch % 2], sampler)
    return [*([Phase("pretrain", *first, stages=lambda _: task_only)] if s.pretrain_epochs else []), alternate]


def make_arguments(
    recipe: Recipe, phase: Phase, folder: Path, batch_size: int, class_weights: list[float] | None = None
) -> LaennecTrainingArguments:
    """The arguments of one phase."""
    t, loss = recipe.train, recipe.loss
    metric = SELECTION_METRICS[t.selection_metric]
    # a CPU evaluates cycles one by one; embeddings, which exist already, are evaluated in batches
    one_by_one = encodes_one_by_one(training_device()) and not recipe.encoder.frozen
    values: dict[str, Any] = {
        **common_arguments(recipe, t, folder),
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": 1 if one_by_one else 4096 if recipe.encoder.frozen else t.evaluation_batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "num_train_epochs": phase.epochs,
        "learning_rate": phase.learning_rate,
        "head_learning_rate": phase.head_learning_rate,
        "adam_beta1": t.betas[0],
        "adam_beta2": t.betas[1],
        "epoch_cosine": t.epoch_cosine,
        "moving_average": t.moving_average,
        "sam_rho": t.sam_rho,
        "sam_adaptive": t.sam_adaptive,
        "compile_layers": t.compile,
        "task_loss": loss.task,
        "task_weight": loss.task_weight,
        "task_views": loss.task_views,
        "focal_gamma": loss.focal_gamma,
        "class_weights": class_weights,
        "log_gradients": loss.log_gradients,
        "balance": loss.balance,
        "eval_strategy": "epoch",
        "load_best_model_at_end": phase.selects,
        "metric_for_best_model": f"eval_{metric}",
        "greater_is_better": metric != "loss",
        "ddp_find_unused_parameters": phase.stages is not None,
    }
    try:
        arguments = LaennecTrainingArguments(**{**values, **further_arguments(t.arguments, values)})
        for tracker in get_reporting_integration_callbacks(arguments.report_to):
            tracker()
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, InputError) or not t.arguments:
            raise
        raise InputError(f"train.arguments: {' '.join(str(error).split())}") from error
    return arguments


def common_arguments(recipe: Recipe, settings: Any, folder: Path) -> dict[str, Any]:
    """The arguments that training and pre-training share, by their section `train` or `pretrain`."""
    s = settings
    return {
        "output_dir": str(folder),
        "max_steps": s.max_steps,
        "weight_decay": 0.0 if s.optimizer == "adam" else s.weight_decay,  # Adam is AdamW without decay
        "adam_l2": s.optimizer == "adam_l2",
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(s.lr_scheduler_type, s.lr_scheduler_type),
        "warmup_steps": s.warmup_ratio,
        "max_grad_norm": s.max_grad_norm,
        "seed": recipe.seed,
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 2,
        "report_to": "none",
        "label_names": ["labels"],
        "bf16": recipe.train.bf16,
        "disable_tqdm": True,
        **device_settings(recipe.train.workers, has_gpu()),
    }


@dataclass
class Plan:
    """The phases of a recipe, checked against its corpus, and the arguments of every Trainer."""

    phases: list[tuple[Phase, Any, int]]  # each phase with its sampler and the rows of a batch
    specs: list[LossSpec]  # the auxiliary losses
    class_weights: list[float] | None  # of the task loss
    settings: dict[str, Any]  # passed to every Trainer


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

    `datasets` are those of training and validation; `validation_table` is the validation split without logits.
    """
    refuse_one_class(targets)
    where = "evaluation.metrics"
    load_metrics([load_object(name, where, recipe.folders) for name in recipe.evaluation.metrics], where)
    multi_label, names = targets.labels.ndim == 2, targets.names
    specs = loss_specs(recipe.loss.auxiliary, recipe.sampler.negatives, recipe.folders)
    check_balance(recipe.loss.balance, specs, recipe.loss.task_weight)
    mix, spec_augment = recipe.augment.mix, recipe.augment.spec
    codes = groups_of_data(datasets[0], specs, recipe.metadata.age_edges_years)
    lengths = None
    if isinstance(datasets[0], CycleDataset):
        draws = draws_of(datasets[0], spec_augment)
        check_draws(specs, mix is not None, *draws, [*names, recipe.target.column or ""])
        lengths = datasets[0].waveforms.lengths
    phases = [
        (phase, *sampler_of_recipe(phase.sampler, recipe, targets, table, lengths)) for phase in phases_of(recipe)
    ]
    held_out, validation_table = by_length(datasets[1], validation_table)
    metrics = ValidationMetrics(validation_table, "multi_label" if multi_label else "single_label", names)
    metrics.refuse_undefined(recipe.train.selection_metric)
    for phase, sampler, batch_size in phases:
        make_arguments(recipe, phase, Path(), batch_size)  # refuses wrong train.arguments
        phase.callbacks = _callbacks(recipe, phase)
        stages = [Stage()] if phase.stages is None else [phase.stages(0), phase.stages(1)]
        compared = specs if any(stage.encoder and stage.auxiliary for stage in stages) else []
        rows = batch_size * process_count_of_launch()
        for line in coverage_lines(phase.sampler, sampler, rows, targets.class_ids, compared, codes):
            if is_main_process():
                say(f"{phase.name}: {line}")
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


def run_phases(recipe: Recipe, model: Any, plan: Plan, out: Path, watch: Any = None) -> Result:
    """Train a model phase by phase; the result holds it with the weights of the best epoch.

    It is trained in place unless its weights are sharded over processes. `watch` is a callback for every phase.
    """
    for module in model.modules():
        if isinstance(module, MaskedBatchNorm2d):
            module.synchronised = recipe.train.sync_batch_norm
    result = Result(model, loss_descriptions(plan.specs))
    metric = SELECTION_METRICS[recipe.train.selection_metric]
    for phase, sampler, batch_size in plan.phases:
        folder = out / "checkpoints" / phase.name
        finished, kept = folder / "finished.safetensors", folder / "finished.json"
        if finished.exists():
            result.model.load_state_dict(load_file(finished), strict=False)
            result.add(phase, read_record(kept))
            continue
        trainer = LaennecTrainer(
            HeadModel(result.model) if isinstance(plan.settings["train_dataset"], EmbeddingDataset) else result.model,
            make_arguments(recipe, phase, folder, batch_size, plan.class_weights),
            sampler=sampler,
            stages=phase.stages,
            batch_setting=batch_setting(recipe, phase.sampler, batch_size),
            callbacks=phase.callbacks,
            **plan.settings,
        )
        evaluated = phase.stages if phase.stages is not None and phase.selects else lambda _: Stage()
        for callback in filter(None, (EpochLines(phase.name, metric, evaluated), watch)):
            trainer.add_callback(callback)
        with unsharded(result.model) as whole:
            train_or_resume(trainer, recipe.train.save_steps)
        result.model = whole
        result.model.encoder_frozen_in_stage = False
        state = {name: getattr(trainer.state, name) for name in ("log_history", "best_metric", "best_global_step")}
        if len(plan.phases) > 1 and trainer.is_world_process_zero():  # an interrupted run continues from here
            write_record(kept, state)
            write_weights(finished, whole.state_dict())
        result.add(phase, state)
    return result


def by_length(dataset: Any, table: Any) -> tuple[Any, Any]:
    """Cycles and their truth table from the longest to the shortest, so that batches need little padding."""
    if not isinstance(dataset, CycleDataset):
        return dataset, table
    order = np.argsort(-np.asarray(dataset.waveforms.lengths), kind="stable")
    return torch.utils.data.Subset(dataset, order.tolist()), table.iloc[order].reset_index(drop=True)


def sampler_of_recipe(name: str, recipe: Recipe, targets: Targets, table: Any, lengths: Any = None) -> tuple[Any, int]:
    """A sampler by name, and how many rows a batch of it has (on one process)."""
    size, seed, s = recipe.train.batch_size, recipe.seed, recipe.sampler
    where = f"sampler.name is {name}"
    try:
        if s.class_ is not None and name == s.name:
            where = f"sampler.class: {s.class_}(table, batch_size, seed, ...)"
            kind = load_object(s.class_, "sampler.class", recipe.folders)
            sampler = kind(table, size, seed, **s.arguments)
            if not hasattr(sampler, "__len__") or not hasattr(sampler, "__iter__"):
                raise InputError(f"sampler.class: {s.class_} needs __iter__ and __len__, as torch samplers have")
        elif name == "length_bucketed":
            sampler = LengthBucketSampler(lengths, size, seed, processes=process_count_of_launch())
        else:
            sampler = _built_in(name, recipe, targets, column_of(table, "patient_id"))
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error
    return sampler, int(getattr(sampler, "rows_per_batch", None) or size)


def _built_in(name: str, recipe: Recipe, targets: Targets, patients: list[str]) -> Any:
    size, seed, s = recipe.train.batch_size, recipe.seed, recipe.sampler
    if name == "anchor_positive":
        return AnchorPositiveSampler(targets.class_ids, size, seed, process_count_of_launch())
    if name == "patient_balanced":
        return ClassesTimesSamplesSampler(as_codes(patients), s.patients, s.samples, seed)
    if name == "classes_times_samples":
        return ClassesTimesSamplesSampler(targets.class_ids, s.classes, s.samples, seed)
    if name not in ("metadata_matched", "device_balanced", "balanced"):
        return EpochSampler(len(targets.class_ids), seed=seed)
    groups = GroupTable(len(targets.class_ids), targets.metadata, recipe.metadata.age_edges_years)
    names = ["device"] if name == "device_balanced" else s.columns
    where = "sampler.name: device_balanced" if name == "device_balanced" else "sampler.columns"
    codes = groups.codes(names, s.missing, where)
    if (codes < 0).any():
        kept = "sampler.missing: own_group keeps them, as one group"
        _log.warning("sampler: %s %s; they are left out (%s)", ", ".join(names), groups.describe_ungrouped(codes), kept)
    if name == "metadata_matched":
        return MetadataMatchedSampler(codes, size, patients, seed)
    if name == "balanced":
        return BalancedSampler([groups.codes([column], s.missing, where) for column in names], seed)
    return ClassesTimesSamplesSampler(codes, s.devices, s.samples, seed)


def _callbacks(recipe: Recipe, phase: Phase) -> list[TrainerCallback]:
    """Early stopping where the recipe sets it, the epochs to evaluate, and the recipe's own callbacks."""
    own: list[TrainerCallback] = []
    for n, one in enumerate(recipe.train.callbacks):
        own.append(one.make(f"train.callbacks[{n}]", recipe.folders))
        if not isinstance(own[-1], TrainerCallback):
            raise InputError(f"train.callbacks[{n}]: {one.class_} must be a subclass of transformers.TrainerCallback")
    if recipe.train.patience and phase.selects:
        own.append(EarlyStoppingCallback(recipe.train.patience))
    if phase.stages is not None and phase.selects:
        own.append(EvaluateTrainedHeads(phase.stages))
    return own


class EvaluateTrainedHeads(TrainerCallback):
    """Skips the evaluation of epochs that train the encoder alone, which the head does not fit yet."""

    def __init__(self, stages: Callable[[int], Stage]) -> None:
        self.stages = stages

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cancel the evaluation that transformers has planned."""
        if not self.stages(_epoch_of(state)).head:
            control.should_evaluate = False


def _epoch_of(state: Any) -> int:
    """Number, from 0, of the epoch that was trained last, in full or in part."""
    return max(0, math.ceil(float(state.epoch or 0) - 1e-6) - 1)


def batch_setting(recipe: Recipe, sampler: str, rows: int) -> BatchSetting:
    """The setting that determines the batch size of a sampler, which is `rows`."""
    evaluation = "train.evaluation_batch_size"
    if sampler in ("classes_times_samples", "patient_balanced", "device_balanced"):
        return BatchSetting("sampler.samples", recipe.sampler.samples, rows, evaluation_key=evaluation)
    t = recipe.train
    allowed = not recipe.loss.auxiliary and t.sam_rho is None and sampler in ("shuffle", "length_bucketed", "balanced")
    accumulation = t.gradient_accumulation_steps if allowed else 0
    return BatchSetting("train.batch_size", t.batch_size, rows, accumulation, evaluation)


def loss_descriptions(specs: list[LossSpec]) -> dict[str, str]:
    """Class and settings of each auxiliary loss, for the run record."""
    return {spec.name: f"{type(spec.loss).__name__}({spec.loss.extra_repr()})" for spec in specs}


def _figure(name: str | None, value: float) -> str:
    """A validation figure with its unit: Scores are in percent, the others are shares of 1."""
    if name == "icbhi.Score":
        return f"ICBHI Score {value:.1f} %"
    return f"{'mean AUROC' if name == 'roc_auc_macro' else name} {value:.4g}"


@dataclass(eq=False)
class EpochLines(TrainerCallback):
    """Prints one line for each epoch, and a bar of steps on a terminal."""

    phase: str
    metric: str | None = None  # that chooses the epoch; None for a training without validation
    stages: Callable[[int], Stage] = lambda _: Stage()  # only an epoch that trains the head is evaluated

    def __post_init__(self) -> None:
        self.progress, self.losses = Progress(self.phase), ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the step."""
        self.progress(state.global_step, state.max_steps)

    on_train_begin = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the losses; print once the epoch's last figures are there."""
        logs = logs or {}
        if "loss" in logs:
            terms = ", ".join(f"{k.removeprefix('term_')} {v:.4f}" for k, v in logs.items() if k.startswith("term_"))
            self.losses = f"loss {logs['loss']:.4f}" + (f" ({terms})" if terms else "")
        evaluated = self.metric is not None and self.stages(_epoch_of(state)).head
        if ("eval_loss" if evaluated else "loss") not in logs or not state.is_world_process_zero:
            return
        each = [name.removeprefix("eval_") for name in logs if name.endswith(f"_{self.metric}")]  # of several corpora
        shown = dict.fromkeys(("loss", self.metric, *each, "icbhi.Score", "roc_auc_macro"))
        figures = ", ".join(_figure(k, logs[f"eval_{k}"]) for k in shown if f"eval_{k}" in logs)
        epoch = f"{logs.get('epoch', state.epoch or 0):g}/{args.num_train_epochs:g}"
        line = f"{self.phase} epoch {epoch}: {self.losses}" + (f"; validation {figures}" if figures else "")
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.progress.close()
