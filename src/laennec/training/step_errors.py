"""One-line errors of a step that cannot continue: values that are not finite, or a batch too large for the memory.

Decisions: training stops within the step and names the step, the term or the weight, and the cycles of the batch,
because all later weights would be useless; the checkpoint before it is kept. The memory error names the setting that
determines the batch size, with half its value, and what else would help. No smaller batch is tried;
`auto_find_batch_size` of transformers' TrainingArguments does that.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from laennec import memory
from laennec.errors import InputError

_ADVICE = "lower train.learning_rate, or check these recordings"
# names the cycles of the batch, or of some of its rows
CycleNames = Callable[[Tensor | None], str]


def cycle_names(dataset: Any, numbers: Tensor | None, rows: Tensor | None = None) -> str:
    """The first names of the cycles in a batch, or in some rows of it; "" where they have none."""
    if numbers is None or not hasattr(dataset, "cycle_ids"):
        return ""
    numbers = numbers.cpu()
    wanted = set((numbers if rows is None else numbers[rows % len(numbers)]).tolist())
    pairs = zip(dataset.cycle_ids, dataset.numbers, strict=True)
    names = [name for name, number in pairs if int(number) in wanted]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_loss(loss: Tensor, terms: Mapping[str, Tensor], embeddings: Tensor, step: int, cycles: CycleNames) -> None:
    """Refuse a loss that is not finite."""
    if bool(torch.isfinite(loss)):
        return
    wrong = ", ".join(name for name, value in terms.items() if not bool(torch.isfinite(value)))
    rows = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().cpu()
    if len(rows) and (names := cycles(rows)):
        raise InputError(f"step {step}: the embedding of {names} is not finite ({wrong}); {_ADVICE}")
    raise InputError(f"step {step}: {wrong or 'the loss'} is not a finite number{_batch(cycles)}; {_ADVICE}")


def check_gradient(parameters: Iterable[nn.Parameter], step: int, cycles: CycleNames) -> None:
    """Refuse a gradient that is not finite, before the weights move by it."""
    norm: Any = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)):
        raise InputError(f"step {step}: the gradient is not a finite number{_batch(cycles)}; {_ADVICE}")


def check_weights(model: nn.Module, step: int, cycles: CycleNames) -> None:
    """Refuse weights that are not finite, before they are evaluated or saved."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # this process's part of a sharded weight
        if own.is_floating_point() and not bool(torch.isfinite(own).all()):
            raise InputError(
                f"step {step}: {name} holds values that are not finite{_batch(cycles)}; it is not saved, the "
                f"checkpoint before it is kept; {_ADVICE}"
            )


def _batch(cycles: CycleNames) -> str:
    return f" (batch: {names})" if (names := cycles(None)) else ""


@dataclass
class BatchSetting:
    """The setting that determines the batch size."""

    key: str  # its name
    value: int  # its value
    rows: int  # cycles of a full batch on one process
    accumulation: int = 0  # how many batches make a step; 0 if gradients may not be accumulated
    evaluation_key: str = "per_device_eval_batch_size"  # name of the setting of evaluation batches

    def halved(self, rows: int) -> str:
        """The setting that halves a batch of `rows` rows, as text; "" if the batch cannot be smaller."""
        value = self.value * (rows // 2) // max(self.rows, 1)
        if value < 1:
            return ""
        steps = self.value // value * self.accumulation
        return f"{self.key}: {value}" + (f" with train.gradient_accumulation_steps: {steps}" if steps else "")


def memory_advice(trainer: Any, inputs: dict[str, Any], setting: BatchSetting, failed: str, where: str) -> str:
    """The error for a batch that does not fit into memory; call it when no frame holds its tensors any more."""
    memory.release()
    rows, extractor = len(inputs["labels"]), trainer.batch_features.extractor
    longest, remedies = "", [setting.halved(rows)]
    if "lengths" in inputs and extractor is not None:
        frames = extractor.frames(int(inputs["lengths"].max()))
        longest = f", the longest {frames / extractor.frames_per_second:.3g} s ({frames} frames)"
        remedies.append(memory.shorter_cycles(extractor, frames))
    model = trainer.accelerator.unwrap_model(trainer.model)
    encoder = getattr(model, "encoder", None)
    possible = any(p.requires_grad for p in encoder.parameters()) if encoder is not None else False
    possible &= bool(getattr(encoder, "supports_gradient_checkpointing", False))
    if where != "evaluation" and possible and not model.is_gradient_checkpointing:
        remedies.append("train.gradient_checkpointing: true")
    advice = ", or ".join(remedy for remedy in remedies if remedy) or "use a machine with more memory"
    return f"{where}: not enough memory for a batch of {rows} cycles{longest}{memory.asked_for(failed)}; set {advice}"


class StepCallback(TrainerCallback):
    """Sets the epoch of the sampler of a `LaennecTrainer`, and checks each gradient."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch; with several processes accelerate does not after a resume in mid-epoch."""
        if hasattr(self.trainer.sampler, "set_epoch"):
            self.trainer.sampler.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradient; in float16 the scaler leaves out a step whose gradient is not finite."""
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        if scaler is None or not scaler.is_enabled():
            check_gradient(kwargs["model"].parameters(), state.global_step + 1, self.trainer.batch_cycles)
