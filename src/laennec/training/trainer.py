"""transformers' Trainer for lung sounds: waveforms in, several named losses, checkpoints that are whole.

Decisions: `compute_loss` sums the named terms of the objective and never uses the model's own loss. In evaluation only
the task loss counts, because auxiliary losses depend on which cycles share a batch. `model_accepts_loss_kwargs` is
False: otherwise gradient accumulation multiplies a mean loss by the number of batches. Training stops at a loss,
gradient or weight that is not a finite number and names the step and the cycles, because all later weights would be
useless.
"""

import contextlib
import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME

from laennec.ensemble import forget_weights
from laennec.errors import InputError
from laennec.evaluation.calibration.operating_point import FittingRule
from laennec.files import explain_write_errors
from laennec.losses import DeviceAdversarialLoss, WeightSchedule
from laennec.losses.combine import refuse_repeated
from laennec.memory import ran_out
from laennec.training import step_errors
from laennec.training.arguments import (
    LaennecTrainingArguments,
    MovingAverageCallback,
    changed,
    epoch_cosine_schedule,
    make_optimizer,
    resolved_arguments,
    sharpness_aware,
)
from laennec.training.checkpoints import (
    SUMS,
    SealCheckpoints,
    check_loaded,
    checkpoint_to_resume,
    damage,
    remove_unsealed,
    write_weights,
)
from laennec.training.data.mixing import BatchFeatures
from laennec.training.data.targets import span_of
from laennec.training.data.training_data import (
    as_training_data,
    check_order,
    collator_of,
    draws_of,
    labels_of,
    set_front_end,
    split_name,
)
from laennec.training.devices import compile_layers, encodes_one_by_one, shared_loader, uncompiled
from laennec.training.objectives.auxiliary_layers import AuxiliaryHeads, attached, enter_stage
from laennec.training.objectives.gradients import check_balance, head_inputs, weigh
from laennec.training.objectives.loss_specs import LossSpec, check_draws, check_facts, groups_of_data, specs_of
from laennec.training.objectives.objective import Objective, Stage, TaskLoss, TermSums
from laennec.training.recipe.settings import MetadataSettings
from laennec.training.record import read_record, write_record
from laennec.training.samplers import make_sampler
from laennec.training.tables import default_metrics, fit_on_outputs


class LaennecTrainer(Trainer):
    """A Trainer for `LaennecForAudioClassification`.

    It takes what `transformers.Trainer` takes, with the same meaning, and the arguments below. For example::

        trainer = LaennecTrainer(
            model, args, train_dataset=corpus["train"], eval_dataset=corpus["validation"], processing_class=extractor,
            losses={"add": AngularDistanceDistributionLoss()}, loss_weights={"add": 0.5},
        )

    Args:
        model: A `LaennecForAudioClassification`; None with `model_init`.
        args: `LaennecTrainingArguments`, or transformers' TrainingArguments.
        train_dataset: A cycle table (a split of `laennec.load_corpus`), any `datasets.Dataset` with a column of audio
            and a column of labels, streamed ones too (with `max_steps` in `args`), or a `CycleDataset` or
            `EmbeddingDataset`.
        eval_dataset: Likewise, or a dict of them.
        processing_class: The model's `LaennecFeatureExtractor`.
        losses: Auxiliary losses by name: modules with `forward(embeddings, labels)` -> scalar or `{term: scalar}`.
            Class attributes say what they take: `labels` ("class", "cycle" or a column of the table), `views`, `on`
            ("embedding" or "projection").
        loss_weights: Weight of each loss: a number or a `WeightSchedule`; 1 where a name is missing.
        task_loss: The loss of the logits, a module with `forward(logits, labels)` -> scalar; None for that of `args`.
        sampler: A torch Sampler of rows, or a function of the training data set that makes one; None for every cycle
            once an epoch.
        augmentation: A `WaveformAugmentation`, or a callable (waveform, sampling_rate, generator) -> waveform.
        spec_augment: Masks of the features of training cycles.
        mixer: Mixes the cycles of training batches.
        stages: What each epoch trains, as a function of the epoch; None trains everything always.
        auxiliary_tasks: The losses of the model's auxiliary tasks.
        batch_setting: The setting that out-of-memory errors name.
        **kwargs: Passed to transformers' Trainer: callbacks, optimizers, model_init, compute_metrics (None for the
            metrics of evaluation, with the ICBHI Score of crackle and wheeze), ...

    Raises:
        InputError: Data, labels, losses or settings do not fit together.
    """

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        losses: Mapping[str, nn.Module | LossSpec] | None = None,
        loss_weights: Mapping[str, float | WeightSchedule] | None = None,
        task_loss: nn.Module | None = None,
        sampler: Sampler[Any] | Callable[[Any], Sampler[Any]] | None = None,
        augmentation: Any = None,
        spec_augment: Any = None,
        mixer: Any = None,
        stages: Callable[[int], Stage] | None = None,
        auxiliary_tasks: Any = None,
        batch_setting: step_errors.BatchSetting | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        args = resolved_arguments(args or LaennecTrainingArguments("trainer_output"))
        data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        super().__init__(model=model, args=args, processing_class=processing_class, **data, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.specs = specs_of(losses, loss_weights)
        self.draw_seed = args.seed if args.data_seed is None else args.data_seed
        config: Any = self.model.config
        check_balance(args.balance, self.specs, args.task_weight, config.frozen_encoder)
        check_facts(self.specs, config.projection_dim, args.gradient_accumulation_steps)
        set_front_end(config, processing_class)
        if isinstance(train_dataset, datasets.Dataset):
            config.span = span_of(train_dataset)
        self.has_default_metrics = kwargs.get("compute_metrics") is None and not args.batch_eval_metrics
        if self.has_default_metrics:
            self.compute_metrics = default_metrics(config)
        self.task_loss, self.stages, self.auxiliary_tasks = task_loss, stages, auxiliary_tasks
        self.train_dataset = train = self._prepared(train_dataset, augmentation, training=True)
        self.eval_dataset, self._selection_set = self._prepared(eval_dataset), split_name(eval_dataset)
        check_order(train, sampler, args.train_sampling_strategy)
        check_draws(self.specs, mixer is not None, *draws_of(train, spec_augment), config.label_names)
        self.group_codes = groups_of_data(train, self.specs, MetadataSettings().age_edges_years)
        self.sampler = make_sampler(sampler, train, self.specs, args.train_batch_size, self.draw_seed)
        self.data_collator = data_collator or collator_of(train if train is not None else self.eval_dataset)
        self.batch_features = BatchFeatures(processing_class, self.draw_seed, spec_augment, mixer)
        rows = args.per_device_train_batch_size
        self.batch_setting = batch_setting or step_errors.BatchSetting("per_device_train_batch_size", rows, rows)
        self.training_objective = self._make_objective()
        self._untrained = copy.deepcopy(self.training_objective.state_dict())
        self._sealing = SealCheckpoints()
        for callback in (step_errors.StepCallback(self), self._sealing, MovingAverageCallback()):
            self.add_callback(callback)
        self._attached, self._sums = contextlib.ExitStack(), TermSums()
        self._context: dict[str, Any] = {}
        self._eval_loaders: dict[Any, tuple[Any, Any]] = {}  # with their data, so that its id is not reused
        self._core = lru_cache(1)(self.accelerator.unwrap_model)  # it looks for packages on each call

    def _prepared(self, data: Any, augmentation: Any = None, training: bool = False) -> Any:
        """A data set, or a dict of them, whose items the collator takes; tables are read for the model's labels."""
        return as_training_data(data, self.model.config, self.processing_class, augmentation, self.draw_seed, training)

    def _make_objective(self) -> Objective:
        """Task loss and auxiliary losses, from the current arguments (a search changes them)."""
        config, args = self.model.config, self.args
        labels, kind = labels_of(self.train_dataset), self.task_loss or args.task_loss
        settings = (args.class_weights, args.focal_gamma, args.task_weight, args.task_views)
        task = TaskLoss(kind, config.is_multi_label, labels, config.num_labels, *settings)
        return Objective(task, self.specs, self.draw_seed).to(self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # private: transformers has no argument for a sampler of the training data
        return self.sampler if self.sampler is not None else super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> Any:
        """The batches of this process; processes that share an epoch's rows also share its short last batch."""
        self.training_objective = self._make_objective()
        if self.args.world_size == 1 or not getattr(self.sampler, "shares_last_batch", False):
            return super().get_train_dataloader()
        return shared_loader(self.train_dataset, self.sampler, self.data_collator, self.args, self.accelerator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The batches of all rows of a data set for evaluation; a table is read first."""
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        key = (data if isinstance(data, str) else id(data), self.args.eval_batch_size)
        if key not in self._eval_loaders:  # accelerate keeps every loader that is made
            with changed(self.args, dataloader_drop_last=False):
                self._eval_loaders[key] = super().get_eval_dataloader(self._prepared(data)), data
        return self._eval_loaders[key][0]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Likewise for prediction."""
        with changed(self.args, dataloader_drop_last=False):
            return super().get_test_dataloader(self._prepared(test_dataset))

    def create_optimizer(self, model: Any = None) -> Any:
        """Give encoder and head their own learning rates; norms and biases have no weight decay."""
        if self.optimizer is None:
            model = model or self.model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            self.optimizer: Any = make_optimizer(model, self.args, decayed, kind, settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of the arguments, or the cosine that moves once an epoch."""
        given: Any = self.lr_scheduler
        super().create_scheduler(num_training_steps, optimizer)
        if self.args.epoch_cosine and given is None:
            epochs = max(1, round(self.args.num_train_epochs))
            steps = -(-len(self.get_train_dataloader()) // self.args.gradient_accumulation_steps)
            self.lr_scheduler: Any = epoch_cosine_schedule(optimizer or self.optimizer, epochs, steps)
        return self.lr_scheduler

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> Any:
        """Train, as transformers' Trainer does.

        Args:
            resume_from_checkpoint: A checkpoint's folder; True for the newest whole one in the output folder, or a new
                training if there is none. A resumed training equals an uninterrupted one bit for bit.
            trial: Trial of a hyperparameter search.
            ignore_keys_for_eval: As in transformers.

        Raises:
            InputError: The checkpoint is damaged or was written by another number of processes; a number is not
                finite; the disk or the memory is too small.
        """
        folder = Path(str(self.args.output_dir))
        checkpoint = checkpoint_to_resume(self.args, resume_from_checkpoint)
        self._sums = TermSums() if checkpoint is None else TermSums.from_dict(read_record(checkpoint / SUMS))
        if self.args.compile_layers:
            compile_layers(self.model)
        try:
            if self.model_init is None:
                self._attach(self.model)
            with explain_write_errors(folder):
                return super().train(None if checkpoint is None else str(checkpoint), trial, ignore_keys_for_eval)
        except Exception:
            if self.args.should_save:
                remove_unsealed(folder)
            raise
        finally:
            self._attached.close()

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in transformers, by evaluation loss if no metrics are given; `seed` does not change draws of cycles."""
        by_loss = (lambda metrics: metrics["eval_loss"]) if self.has_default_metrics else None
        return super().hyperparameter_search(hp_space, compute_objective or by_loss, *args, **kwargs)

    def call_model_init(self, trial: Any = None) -> Any:
        """A new model by `model_init`, while it trains with untrained losses and their layers."""
        model = super().call_model_init(trial)
        if getattr(self, "is_in_train", False):
            self.training_objective.load_state_dict(self._untrained, strict=False)  # class weights may have changed
            self._attach(model)
        return model

    def _attach(self, model: Any) -> None:
        """Put the layers that only auxiliary losses need into the model; its config names the selection set."""
        forget_weights(model, self._selection_set)
        self._attached.close()
        adversarial = [spec for spec in self.specs if spec.is_a(DeviceAdversarialLoss)]
        groups = {spec.name: int(self.group_codes[str(spec.group_key)].max()) + 1 for spec in adversarial}
        heads = AuxiliaryHeads(self.specs, model.embedding_dim, groups, self.draw_seed, self.task_loss)
        self._attached.enter_context(attached(model, heads))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; two if the step is sharpness-aware, of which the first is logged.

        Raises:
            InputError: The batch does not fit into memory.
        """
        try:
            return self._step(model, inputs, num_items_in_batch)
        except Exception as error:
            if not ran_out(error) or self.args.auto_find_batch_size:  # transformers tries a smaller batch
                raise
            failed = str(error)
        # only after the `except` block does no frame hold the tensors of the step
        self._context = {}
        model.zero_grad(set_to_none=True)
        raise InputError(
            step_errors.memory_advice(self, inputs, self.batch_setting, failed, f"step {self.state.global_step + 1}")
        )

    def _step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        inputs, self._context = self.batch_features(inputs, True, self._core(self.model))
        if self.auxiliary_tasks is not None:
            inputs = self.auxiliary_tasks.append_recordings(inputs, self._context)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if (rho := self.args.sam_rho) is not None:
            learnt = (p for p in model.parameters() if p.requires_grad)
            logged = copy.deepcopy(self._sums)
            with sharpness_aware(learnt, rho, self.args.sam_adaptive):
                super().training_step(model, inputs, num_items_in_batch)
            self._sums = logged
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the objective's terms; in evaluation the task loss alone.

        Raises:
            InputError: The sum is not a finite number.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if not model.training:
            outputs = model(**inputs)
            loss = torch.stack(list(self.training_objective.task(outputs.logits, labels).values())).sum()
            return (loss, outputs) if return_outputs else loss
        inner = self._core(model)
        host = self._context["host"]
        epoch = int(host["epochs"][0]) if "epochs" in host else int(self.state.epoch or 0)
        stage = Stage() if self.stages is None else self.stages(epoch)
        progress = self.state.global_step / max(self.state.max_steps, 1)
        enter_stage(inner, stage, progress)
        # not in `inputs`: transformers would unpack this named tuple when it moves inputs to the device
        mix = {"token_mix": self._context["token_mix"]} if "token_mix" in self._context else {}
        balance = self.args.balance
        measures = stage == Stage() and (balance is not None or self.args.log_gradients)
        with head_inputs(inner, measures) as embeddings:
            outputs = model(**inputs, **mix)
        further: dict[str, Tensor] = {}
        if self.auxiliary_tasks is not None:
            outputs, further = self.auxiliary_tasks.terms(inner, outputs, self._context)
        terms = self.training_objective(outputs, {"labels": labels, **self._context}, stage, progress)
        terms, measured = weigh(terms, embeddings, self.training_objective, balance, self._sums.running)
        refuse_repeated(terms, further)
        terms |= further if stage.head else {}
        loss = torch.stack(list(terms.values())).sum()
        step_errors.check_loss(loss, terms, outputs.embeddings, self.state.global_step + 1, self.batch_cycles)
        self._sums.add(terms, self.training_objective.auxiliary, measured)
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with the loss over all cycles: a mean over batches depends on the batch size."""
        step_errors.check_weights(self.accelerator.unwrap_model(self.model), self.state.global_step, self.batch_cycles)
        with uncompiled(self.args.compile_layers):
            output = super().evaluation_loop(*args, **kwargs)
        given = output.label_ids is not None and output.predictions is not None
        if given and self.preprocess_logits_for_metrics is None:
            first = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
            logits = torch.from_numpy(first).to(self.args.device)
            terms = self.training_objective.task(logits, torch.from_numpy(output.label_ids).to(self.args.device))
            key = next(name for name in output.metrics if name.endswith("_loss"))
            output.metrics[key] = float(torch.stack(list(terms.values())).sum())
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; a batch that does not fit into memory gives a one-line error."""
        try:
            made, _ = self.batch_features(inputs, False)
            if encodes_one_by_one(self.args.device):  # as in `embed_waveforms`: a mask of ones is left out
                made = {k: None if k.endswith("mask") and v is not None and v.all() else v for k, v in made.items()}
            return super().prediction_step(model, made, *args, **kwargs)
        except Exception as error:
            if not ran_out(error):
                raise
            failed = str(error)
        size = self.args.per_device_eval_batch_size
        setting = step_errors.BatchSetting(self.batch_setting.evaluation_key, size, size)
        raise InputError(step_errors.memory_advice(self, inputs, setting, failed, "evaluation"))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last log, and of its pairs, groups or rows in a step."""
        if "loss" in logs and self._sums.steps:
            logs.update(self._sums.means())
            self._sums = TermSums(self._sums.running)
        super().log(logs, start_time)

    def fit_thresholds(
        self, dataset: Any = None, *, calibration: str = "temperature", rule: str | None = "youden", **settings: Any
    ) -> dict[str, Any]:
        """Fit calibration and thresholds on validation data; the model's config keeps them, and prediction uses them.

        Args:
            dataset: Validation data; None for `eval_dataset`.
            calibration: "temperature", "platt" or "none".
            rule: "youden", "f1", "icbhi" or "icbhi_likeliest" (crackle and wheeze), "sensitivity", or None for 0.5.
            **settings: `sensitivity`, the target of that rule (0.9).
        """
        config: Any = self.accelerator.unwrap_model(self.model).config
        data = self.eval_dataset if dataset is None else dataset
        if data is None or isinstance(data, dict):
            raise InputError("fit_thresholds needs one data set of validation recordings; pass it as dataset")
        return fit_on_outputs(config, self.predict(data), FittingRule(calibration, rule, **settings))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save model and feature extractor so that `from_pretrained`, pipelines and `laennec predict` load them.

        A checkpoint gets the weights only, without those of a frozen encoder.
        """
        folder, model = Path(output_dir or str(self.args.output_dir)), self.accelerator.unwrap_model(self.model)
        if _internal_call:
            step_errors.check_weights(model, self.state.global_step, self.batch_cycles)
            if not (out := Path(str(self.args.output_dir))).is_dir():
                raise InputError(
                    f"{out}: is gone: it was moved, or its disk was lost; put it back and run the same command again"
                )
        state = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else model.state_dict()
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if not _internal_call:
            model.save_pretrained(folder, state_dict={k: v for k, v in state.items() if "auxiliary_heads." not in k})
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            return
        self._sealing.checkpoint = folder
        write_weights(folder / SAFE_WEIGHTS_NAME, {k: v for k, v in state.items() if not model.is_frozen(k)})
        write_record(folder / SUMS, self._sums.to_dict())

    def _load_best_model(self) -> None:
        # private: transformers loads a damaged checkpoint without a check, and has no hook before it
        best = Path(str(self.state.best_model_checkpoint))
        if wrong := damage(best):
            raise InputError(f"{best}: the best checkpoint is damaged ({wrong}); run the same command again")
        super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # private: transformers continues with a warning when a checkpoint does not fill the model
        model: Any = self.accelerator.unwrap_model(self.model)
        check_loaded(load_result, model, str(self.args.output_dir))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Upload the files of the model, and nothing else of the output folder; returns the address.

        The arguments are those of transformers; a new repository is private unless `private` or `args.hub_private_repo`
        is False. `blocking` has no effect.
        """
        if not self.is_world_process_zero():
            return None
        args = self.args
        repository = args.hub_model_id or Path(str(args.output_dir)).name
        closed = [choice for choice in (private, args.hub_private_repo, True) if choice is not None]
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.push_to_hub(
            repository, extractor=self.processing_class, commit_message=commit_message, private=closed[0],
            token=token or args.hub_token, revision=revision or args.hub_revision, **kwargs,
        )  # fmt: skip

    def batch_cycles(self, rows: Tensor | None = None) -> str:
        """Names of the cycles of the training batch, or of some of its rows, for errors."""
        return step_errors.cycle_names(self.train_dataset, self._context.get("cycle_numbers"), rows)
