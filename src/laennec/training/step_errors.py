"""Stop at the first loss, gradient or weight that is not a finite number.

Decisions: every later weight would be lost, so training stops within the step and names the step, the term or the
weight, and the cycles of the batch. The checkpoint before it is kept.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laennec import memory
from laennec.errors import InputError

_ADVICE = "lower train.learning_rate, or check these recordings"


class BatchCycles:
    """The names of the cycles of a training batch, for errors.

    Args:
        dataset: The training data; one without `cycle_ids` has no names.
        numbers: Number of each cycle of the batch, (batch,); None where they are unknown.
    """

    def __init__(self, dataset: Any, numbers: Tensor | None) -> None:
        self.dataset = dataset
        self.numbers = numbers

    def names(self, rows: Tensor | None = None) -> str:
        """The first names of the cycles in the batch, or in some rows of it; "" where they have none."""
        if self.numbers is None or not hasattr(self.dataset, "cycle_ids"):
            return ""
        numbers = self.numbers.cpu()
        meant = set((numbers if rows is None else numbers[rows % len(numbers)]).tolist())
        pairs = zip(self.dataset.cycle_ids, self.dataset.numbers, strict=True)
        names = [name for name, number in pairs if int(number) in meant]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    def __str__(self) -> str:
        return f" (batch: {names})" if (names := self.names()) else ""


def check_loss(loss: Tensor, terms: Mapping[str, Tensor], embeddings: Tensor, step: int, cycles: BatchCycles) -> None:
    """Refuse a loss that is not finite.

    Raises:
        InputError: It is not: names the cycles whose embeddings are not finite, or else the terms and the batch.
    """
    if bool(torch.isfinite(loss)):
        return
    wrong = ", ".join(name for name, value in terms.items() if not bool(torch.isfinite(value)))
    rows = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().cpu()
    if len(rows) and (names := cycles.names(rows)):
        raise InputError(f"step {step}: the embedding of {names} is not finite ({wrong}); {_ADVICE}")
    raise InputError(f"step {step}: {wrong or 'the loss'} is not a finite number{cycles}; {_ADVICE}")


def check_gradient(parameters: Iterable[nn.Parameter], step: int, cycles: BatchCycles) -> None:
    """Refuse a gradient that is not finite, before the weights move by it.

    Raises:
        InputError: It is not.
    """
    norm: Any = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not bool(torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)):
        raise InputError(f"step {step}: the gradient is not a finite number{cycles}; {_ADVICE}")


def check_weights(model: nn.Module, step: int, cycles: BatchCycles) -> None:
    """Refuse weights that are not finite, before they are evaluated or saved.

    Raises:
        InputError: A weight or a running statistic is not a finite number.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        own = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a shard's own part
        if own.is_floating_point() and not bool(torch.isfinite(own).all()):
            raise InputError(
                f"step {step}: {name} holds values that are not finite{cycles}; it is not saved, the checkpoint before "
                f"it is kept; {_ADVICE}"
            )


@dataclass
class BatchSetting:
    """The setting that makes a batch as large as it is.

    Attributes:
        key: Its name.
        value: Its value.
        rows: Cycles of a full batch on one process.
        accumulation: How many batches make a step; 0 if gradients may not be accumulated.
        evaluation_key: Name of the setting of evaluation batches.
    """

    key: str
    value: int
    rows: int
    accumulation: int = 0
    evaluation_key: str = "per_device_eval_batch_size"


def memory_advice(trainer: Any, inputs: dict[str, Any], setting: BatchSetting, failed: str, where: str) -> str:
    """The line, once nothing holds the tensors of the batch any more.

    Args:
        trainer: A `LaennecTrainer`.
        inputs: The batch as its collator made it.
        setting: What makes it as large as it is.
        failed: What the failed allocation said.
        where: The step, or "evaluation".
    """
    memory.release()
    rows, extractor = len(inputs["labels"]), trainer.batch_features.extractor
    longest, remedies = "", [_smaller_batch(setting, rows)]
    if "lengths" in inputs and extractor is not None:
        frames = extractor.frames(int(inputs["lengths"].max()))
        longest = f", the longest {frames / extractor.frames_per_second:.3g} s ({frames} frames)"
        remedies.append(shorter_cycles(extractor, frames))
    if where != "evaluation":
        remedies.append(_recomputing(trainer))
    advice = ", or ".join(remedy for remedy in remedies if remedy) or "use a machine with more memory"
    asked = memory.asked_for(failed)
    return f"{where}: not enough memory for a batch of {rows} cycles{longest}{asked}; set {advice}"


def shorter_cycles(extractor: Any, frames: int) -> str:
    """The setting that makes the longest cycle, of so many frames, half as long."""
    shorter = max(extractor.window_ms / 1000, frames / extractor.frames_per_second / 2)
    if extractor.length == "natural":
        return f"features.length: crop with features.duration_s: {shorter:.2g}"
    return f"features.duration_s: {shorter:.2g}"


def _smaller_batch(setting: BatchSetting, rows: int) -> str:
    """The setting at which a batch has half as many rows; "" where it cannot have fewer."""
    value = setting.value * (rows // 2) // max(setting.rows, 1)
    if value < 1:
        return ""
    accumulation = setting.value // value * setting.accumulation
    return f"{setting.key}: {value}" + (
        f" with train.gradient_accumulation_steps: {accumulation}" if accumulation else ""
    )


def _recomputing(trainer: Any) -> str:
    """The setting that keeps no activations, where the encoder can do without and has not been told to."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    learns = any(parameter.requires_grad for parameter in model.encoder.parameters())
    possible = learns and getattr(model.encoder, "supports_gradient_checkpointing", False)
    return "train.gradient_checkpointing: true" if possible and not model.is_gradient_checkpointing else ""
