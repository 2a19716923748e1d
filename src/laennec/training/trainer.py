"""Transformers' Trainer, taught about waveforms, named loss terms and stages.

Decisions: features are computed where the model is, once a batch; beside a GPU the draws on waveforms too. What
draws are functions of stays on the host, which waits for the device only to look at the loss. The model's loss is never
used: `compute_loss` sums named terms. In evaluation only the task loss counts, because auxiliary losses depend on who
meets whom in a batch. `model_accepts_loss_kwargs` is False: otherwise gradient accumulation multiplies a mean loss by
the number of micro-batches. A loss that is not a number stops the training and names the step and the cycles, because
every later weight would be lost.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from laennec.audio.augmentation import SpecAugment
from laennec.audio.context import with_context
from laennec.audio.features import LaennecFeatureExtractor
from laennec.errors import InputError
from laennec.memory import ran_out
from laennec.modeling import LaennecForAudioClassification
from laennec.training.auxiliary_tasks import AuxiliaryTasks
from laennec.training.batch_size import BatchRule, what_to_do
from laennec.training.data import view_seed
from laennec.training.data_loading import encodes_one_by_one
from laennec.training.mixing import Mixer
from laennec.training.objective import Objective, Stage
from laennec.training.optimization_rules import SharpnessAware, epoch_cosine_schedule
from laennec.training.resumable import ResumableTrainer
from laennec.training.sharding import SharedLastBatch

_ADVICE = "lower train.learning_rate, or check these recordings"
_MOST_OVERFLOWS = 40  # in a row: a scale of 2^16, halved as often, makes nothing overflow that was finite
_CONTEXT = ("class_ids", "cycle_numbers", "epochs", "group_ids", "neighbour_numbers", "neighbour_epochs")


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch: after a resume in mid-epoch accelerate forgets to, under several processes."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(int(state.epoch or 0))


class LaennecTrainer(ResumableTrainer):
    """A Trainer for `LaennecForAudioClassification`.

    Args:
        model: The model.
        args: transformers' TrainingArguments.
        objective: Names and weighs the terms of the loss.
        feature_extractor: The front end; None where batches hold embeddings.
        spec_augment: Draws on the features of training cycles; None for none.
        sampler: Yields (row, epoch) pairs; None for transformers' own order.
        stages: What each epoch trains; None trains everything always.
        head_learning_rate: Where head and projection learn at another rate than the encoder.
        seed: Of the draws.
        mixer: Mixes the cycles of training batches; None for none.
        epoch_cosine: Whether the rate falls once an epoch, as in some published systems.
        sharpness: How far sharpness-aware minimisation climbs before each step, and whether adaptively; None for
            ordinary steps.
        batch_rule: Which setting makes batches as large as they are; errors name it.
        auxiliary_tasks: The losses of the model's further questions; None for none.
        **kwargs: Handed to transformers' Trainer.
    """

    def __init__(
        self,
        model: LaennecForAudioClassification,
        args: Any,
        *,
        objective: Objective,
        feature_extractor: LaennecFeatureExtractor | None = None,
        spec_augment: SpecAugment | None = None,
        sampler: Any = None,
        stages: Callable[[int], Stage] | None = None,
        head_learning_rate: float | None = None,
        seed: int = 0,
        mixer: Mixer | None = None,
        epoch_cosine: bool = False,
        sharpness: tuple[float, bool] | None = None,
        batch_rule: BatchRule | None = None,
        auxiliary_tasks: AuxiliaryTasks | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.objective = objective.to(self.args.device)
        self.feature_extractor = feature_extractor
        self.auxiliary_tasks = auxiliary_tasks
        self.spec_augment = spec_augment
        self.sampler = sampler
        self.stages = stages
        self.head_learning_rate = head_learning_rate
        self.draw_seed = seed
        self.mixer = mixer
        self.epoch_cosine = epoch_cosine
        if sharpness is not None and self.args.gradient_accumulation_steps > 1:
            raise ValueError("sharpness-aware steps need the gradient of the whole batch: no gradient accumulation")
        self.sharpness = sharpness
        size = self.args.per_device_train_batch_size
        self.batch_rule = batch_rule or BatchRule(value=size, rows=size)
        self.add_callback(_SetEpoch(sampler))
        self._term_sums: dict[str, Tensor] = {}
        self._pair_sums: dict[str, int] = {}
        self._term_steps = 0
        self._overflows = 0
        self._context: dict[str, Any] = {}
        self._host: dict[str, Any] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler if self.sampler is not None else super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> Any:
        """The batches of this process; where several share an epoch's rows, they share its short last batch too."""
        loader = super().get_train_dataloader()
        if self.args.world_size > 1 and getattr(self.sampler, "shares_last_batch", False):
            shard: Any = loader.batch_sampler
            shard.batch_sampler = SharedLastBatch(self.sampler, shard.batch_size, self.args.world_size)
            shard.even_batches = False
        return loader

    def create_optimizer(self, model: Any = None) -> Any:
        """Give encoder and head their own learning rates; norms and biases no weight decay."""
        made: Any = self.optimizer
        if made is not None:
            return made
        model = model or self.model
        decayed = set(self.get_decay_parameter_names(model))
        rates = {True: self.args.learning_rate, False: self.head_learning_rate or self.args.learning_rate}
        groups = []
        for in_encoder, rate in rates.items():
            for decays in (True, False):
                chosen = [
                    p
                    for n, p in model.named_parameters()
                    if p.requires_grad and n.startswith("encoder.") == in_encoder and (n in decayed) == decays
                ]
                if chosen:
                    groups.append(
                        {"params": chosen, "lr": rate, "weight_decay": self.args.weight_decay if decays else 0.0}
                    )
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
        settings = {k: v for k, v in settings.items() if k not in ("params", "lr", "weight_decay")}
        self.optimizer: Any = kind(groups, lr=self.args.learning_rate, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of the arguments, or the cosine that moves once an epoch."""
        made: Any = self.lr_scheduler
        if self.epoch_cosine and made is None:
            epochs = max(1, round(self.args.num_train_epochs))
            steps = -(-len(self.get_train_dataloader()) // self.args.gradient_accumulation_steps)
            self.lr_scheduler: Any = epoch_cosine_schedule(optimizer or self.optimizer, epochs, steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward; two where the step is sharpness-aware, of which the first is logged.

        Raises:
            InputError: The batch does not fit into memory.
        """
        try:
            return self._step(model, dict(inputs), num_items_in_batch)
        except Exception as error:
            if not ran_out(error):
                raise
            failed = str(error)
        # out here nothing holds the tensors of the step any more
        self._context = {}
        model.zero_grad(set_to_none=True)
        raise InputError(what_to_do(self, inputs, self.batch_rule, failed))

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers does, but for its loss: a mean over batches hangs on their size, and on rows that fill up."""
        self._refuse_lost_model()
        output = super().evaluation_loop(*args, **kwargs)
        if output.label_ids is not None and output.predictions is not None:
            answers = output.predictions
            logits = torch.from_numpy(answers[0] if isinstance(answers, tuple) else answers).to(self.args.device)
            terms = self.objective.task_terms(logits, torch.from_numpy(output.label_ids).to(self.args.device))
            key = next(name for name in output.metrics if name.endswith("_loss"))
            output.metrics[key] = float(torch.stack(list(terms.values())).sum())
        return output

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers does.

        Raises:
            InputError: The batch does not fit into memory.
        """
        try:
            return super().prediction_step(model, dict(inputs), *args, **kwargs)
        except Exception as error:
            if not ran_out(error):
                raise
            failed = str(error)
        size = self.args.per_device_eval_batch_size
        rule = BatchRule("train.evaluation_batch_size", size, size)
        raise InputError(what_to_do(self, inputs, rule, failed, learns=False))

    def _step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.sharpness is not None:
            rho, adaptive = self.sharpness
            sharp = SharpnessAware((p for p in model.parameters() if p.requires_grad), rho, adaptive)
            logged = dict(self._term_sums), dict(self._pair_sums), self._term_steps
            sharp.climb()
            super().training_step(model, inputs, num_items_in_batch)
            sharp.descend()
            self._term_sums, self._pair_sums, self._term_steps = logged
        return loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device and turn waveforms into features there, mixed and masked where asked for."""
        inputs = super()._prepare_inputs(inputs)
        self._context = {k: inputs.pop(k) for k in _CONTEXT if k in inputs}
        self._host = inputs.pop("on_host", {})
        if "waveforms" not in inputs:
            return inputs
        assert self.feature_extractor is not None
        draws = self.model.training and bool((self._host["epochs"] >= 0).all())
        mixer = self.mixer if draws else None
        with torch.no_grad():
            waveforms, lengths, labels = inputs.pop("waveforms"), inputs.pop("lengths"), inputs["labels"]
            joined = inputs.pop("joined", None)
            if mixer is not None and mixer.on_waveforms:
                waveforms, lengths, mixture = mixer.waveforms(waveforms, lengths, labels, self._mixed_by())
                self._context["mixture"] = mixture
            features, mask = self.feature_extractor.features(waveforms, lengths)
            if self.spec_augment is not None and draws:
                features = self._masked(self.spec_augment, features, mask)
            if mixer is not None and not mixer.on_waveforms:
                features, mask, inputs = self._mixed(mixer, features, mask, inputs)
            made: dict[str, Any]
            if joined is not None:
                made = {**with_context(features, mask, joined)}
            else:
                made = {"input_values": features, "attention_mask": mask}
            if not self.model.training and encodes_one_by_one(self.args.device):  # as where embeddings are made
                made = {k: None if k.endswith("mask") and v is not None and v.all() else v for k, v in made.items()}
        if self.auxiliary_tasks is not None and draws:
            made = self.auxiliary_tasks.join(made, self._context)
        return {**inputs, **made}

    def _mixed(self, mixer: Mixer, features: Tensor, mask: Tensor, inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Features and mask after mixing, and the inputs with what the encoder itself is to mix."""
        if mixer.on_tokens:
            encoder = self.accelerator.unwrap_model(self.model).encoder
            features, mask, token_mix, mixture = mixer.tokens(
                features, mask, inputs["labels"], self._mixed_by(), encoder
            )
            inputs = {**inputs, "token_mix": token_mix}
        else:
            features, mask, mixture = mixer.features(features, mask, inputs["labels"], self._mixed_by())
        self._context["mixture"] = mixture
        return features, mask, inputs

    def _mixed_by(self) -> dict[str, Any]:
        """What a mixture is a function of, as tensors that no device has to be waited for."""
        return self._context | {name: torch.from_numpy(self._host[name]) for name in ("epochs", "cycle_numbers")}

    def _drawn_for(self, rows: int) -> list[tuple[int, Any, Any]]:
        """View, epochs and cycle numbers of the parts of a batch: cycles of all views, then neighbours of all views."""
        host = self._host
        around = len(host.get("neighbour_epochs", ()))
        views = rows // (len(host["epochs"]) + around)
        drawn = [(view, host["epochs"], host["cycle_numbers"]) for view in range(views)]
        if around:
            drawn += [(view, host["neighbour_epochs"], host["neighbour_numbers"]) for view in range(views)]
        return drawn

    def _masked(self, spec_augment: SpecAugment, features: Tensor, mask: Tensor) -> Tensor:
        """SpecAugment of each view by itself: (views * batch, frames, mels), and their neighbours behind."""
        drawn = self._drawn_for(len(features))
        sizes = [len(epochs) for _, epochs, _ in drawn]
        parts = zip(drawn, features.split(sizes), mask.split(sizes), strict=True)
        masked = [
            spec_augment(part, shown, seed=view_seed(self.draw_seed, view), epochs=epochs, cycle_indices=numbers)
            for (view, epochs, numbers), part, shown in parts
        ]
        return masked[0] if len(masked) == 1 else torch.cat(masked)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum of the objective's terms; in evaluation the task loss alone.

        Raises:
            InputError: The sum is not a finite number.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        inner = self.accelerator.unwrap_model(model)
        if not model.training:
            outputs = model(**inputs)
            terms = self.objective.task_terms(outputs.logits, labels)
            loss = torch.stack(list(terms.values())).sum()
            return (loss, outputs) if return_outputs else loss
        epoch = int(self._host["epochs"][0]) if "epochs" in self._host else int(self.state.epoch or 0)
        stage = self.stages(epoch) if self.stages else Stage()
        progress = self.state.global_step / max(self.state.max_steps, 1)
        if inner.encoder_frozen_in_stage == stage.encoder:
            inner.encoder_frozen_in_stage = not stage.encoder
            inner.train()  # the first batch of an epoch already runs in that epoch's mode
        if (heads := getattr(inner, "auxiliary_heads", None)) is not None:
            heads.active = stage.encoder and stage.auxiliary
            heads.reversal.set_progress(min(progress, 1.0))
        outputs = model(**inputs)
        further: dict[str, Tensor] = {}
        if self.auxiliary_tasks is not None:
            outputs, further = self.auxiliary_tasks.terms(inner, outputs, self._context)
        terms = self.objective(outputs, {"labels": labels, **self._context}, stage, progress)
        terms |= further if stage.head else {}
        loss = torch.stack(list(terms.values())).sum()
        if not bool(torch.isfinite(loss)):
            raise InputError(self._what_is_not_finite(outputs, terms))
        for name, value in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + value.detach().float()
        auxiliary = self.objective.auxiliary
        if auxiliary is not None and set(auxiliary.pairs) <= set(terms):  # what it counted in this very step
            for name, count in auxiliary.pairs.items():
                self._pair_sums[name] = self._pair_sums.get(name, 0) + count
        self._term_steps += 1
        return (loss, outputs) if return_outputs else loss

    def _what_is_not_finite(self, outputs: Any, terms: dict[str, Tensor]) -> str:
        """Names the step, and the cycles whose embeddings are at fault, or else the terms and the batch."""
        wrong = ", ".join(name for name, value in terms.items() if not bool(torch.isfinite(value)))
        rows = (~torch.isfinite(outputs.embeddings).all(dim=1)).nonzero().flatten().cpu()
        names = self._cycles(rows) if len(rows) else ""
        if names:
            return f"step {self.state.global_step + 1}: the embedding of {names} is not finite ({wrong}); {_ADVICE}"
        batch = f" (batch: {names})" if (names := self._cycles()) else ""
        return f"step {self.state.global_step + 1}: {wrong or 'the loss'} is not a finite number{batch}; {_ADVICE}"

    def _cycles(self, rows: Tensor | None = None) -> str:
        """The first names of the cycles in the batch, or of those in some rows of it; "" where it has none."""
        numbers = self._context.get("cycle_numbers")
        dataset: Any = self.train_dataset
        if numbers is None or not hasattr(dataset, "cycle_ids"):
            return ""
        numbers = numbers.cpu()
        meant = set((numbers if rows is None else numbers[rows % len(numbers)]).tolist())
        names = [name for name, number in zip(dataset.cycle_ids, dataset.numbers, strict=True) if int(number) in meant]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm, before the weights move by it.

        Raises:
            InputError: It is not a finite number; in float16, that many times in a row that no scale can be the reason.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        wrong = norm is not None and not math.isfinite(float(norm))
        scaler = getattr(self.accelerator, "scaler", None)  # of float16: it leaves the step out and scales less
        self._overflows = self._overflows + 1 if wrong else 0
        if wrong and not (scaler is not None and scaler.is_enabled() and self._overflows <= _MOST_OVERFLOWS):
            batch = f" (batch: {names})" if (names := self._cycles()) else ""
            raise InputError(
                f"step {self.state.global_step + 1}: the gradient is not a finite number{batch}; {_ADVICE}"
            )
        return norm

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """As `ResumableTrainer` does, unless there is nothing left worth going on from."""
        self._refuse_lost_model()
        super()._save_checkpoint(model, trial)

    def _refuse_lost_model(self) -> None:
        """Stop where an update made numbers that are none, before they are evaluated or saved.

        Raises:
            InputError: A weight or a running statistic is not a finite number.
        """
        model = self.accelerator.unwrap_model(self.model)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            own = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a shard's own part
            if own.is_floating_point() and not bool(torch.isfinite(own).all()):
                batch = f" (batch: {names})" if (names := self._cycles()) else ""
                raise InputError(
                    f"step {self.state.global_step}: {name} holds values that are not finite{batch}; it is not saved, "
                    f"the checkpoint before it is kept; {_ADVICE}"
                )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last log, and of how many pairs, groups or rows it had in a step."""
        if "loss" in logs and self._term_steps:
            logs.update({f"term_{name}": float(value) / self._term_steps for name, value in self._term_sums.items()})
            # transformers forgets the steps before an interruption; terms are those of all processes on each of them
            logs["loss"] = sum(float(value) for value in self._term_sums.values()) / self._term_steps
            logs.update({f"count_{name}": count / self._term_steps for name, count in self._pair_sums.items()})
            self._term_sums, self._pair_sums, self._term_steps = {}, {}, 0
        super().log(logs, start_time)

    def _sums(self) -> dict[str, Any]:
        """What was added up since the last log, so that an epoch that is gone on with logs the same means."""
        terms = {name: float(value) for name, value in self._term_sums.items()}
        return {"terms": terms, "counts": dict(self._pair_sums), "steps": self._term_steps}

    def _restore_sums(self, sums: dict[str, Any]) -> None:
        self._term_sums = {name: torch.tensor(value, device=self.args.device) for name, value in sums["terms"].items()}
        self._pair_sums, self._term_steps = dict(sums["counts"]), int(sums["steps"])
