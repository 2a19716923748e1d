"""A batch that does not fit into memory, and a smaller setting that does.

Decisions: what is recommended was tried: the longest cycles of the very batch, at half of it, a quarter and so on,
forward and backward, until they fit with half as many more. The setting that rules the batch is named as it is called
in the recipe, and accumulation only where the recipe may accumulate. Under several processes nothing is tried, for the
others wait.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laennec import memory

_MARGIN = 1.5  # a batch so much larger must fit: memory is not used the same way in every process


@dataclass
class BatchRule:
    """Which setting makes a batch as large as it is.

    Attributes:
        key: The setting's name in the recipe.
        value: What it is.
        rows: Cycles of a full batch, on one process.
        accumulation: How many batches make a step; 0 where the recipe may not accumulate.
    """

    key: str = "train.batch_size"
    value: int = 1
    rows: int = 1
    accumulation: int = 0


def what_to_do(trainer: Any, inputs: dict[str, Any], rule: BatchRule, failed: str, learns: bool = True) -> str:
    """One line about a batch that did not fit, once nothing holds its tensors any more.

    Args:
        trainer: A `LaennecTrainer`.
        inputs: The batch as its collator made it.
        rule: What makes it as large as it is.
        failed: What the failed allocation said.
        learns: Whether it was for a step of training.
    """
    memory.release()
    rows, extractor = len(inputs["labels"]), trainer.feature_extractor
    of, crop = "", ""
    if "lengths" in inputs and extractor is not None:
        frames = extractor.frames(int(inputs["lengths"].max()))
        of = f", the longest {frames / extractor.frames_per_second:.3g} s ({frames} frames)"
        crop = shorter_cycles(extractor, frames)
    fits = _largest_that_fits(trainer, inputs, rows, learns)
    remedies = [_smaller_batch(rule, rows, fits), crop, _recomputing(trainer) if learns else ""]
    what = f"step {trainer.state.global_step + 1}" if learns else "validation"
    advice = ", or ".join(remedy for remedy in remedies if remedy) or "use a machine with more memory"
    return f"{what}: not enough memory for a batch of {rows} cycles{of}{memory.asked_for(failed)}; set {advice}"


def shorter_cycles(extractor: Any, frames: int) -> str:
    """The setting that makes the longest cycle, of so many frames, half as long."""
    shorter = max(extractor.window_ms / 1000, frames / extractor.frames_per_second / 2)
    if extractor.length == "natural":
        return f"features.length: crop with features.duration_s: {shorter:.2g}"
    return f"features.duration_s: {shorter:.2g}"


def _smaller_batch(rule: BatchRule, rows: int, fits: int | None) -> str:
    """The batch setting at which the rows fit, or half of it where nothing could be tried; "" where one row is much."""
    value = rule.value * (rows // 2 if fits is None else fits) // max(rule.rows, 1)
    if value < 1:
        return ""
    text = f"{rule.key}: {value}"
    if rule.accumulation and rule.value % value == 0:
        text += f" with train.gradient_accumulation_steps: {rule.value // value * rule.accumulation}"
    return text + (" (tried, and it fits)" if fits else "")


def _recomputing(trainer: Any) -> str:
    model = trainer.accelerator.unwrap_model(trainer.model)
    can = getattr(model.encoder, "supports_gradient_checkpointing", False) and any(
        parameter.requires_grad for parameter in model.encoder.parameters()
    )
    return "train.gradient_checkpointing: true" if can and not model.is_gradient_checkpointing else ""


def _largest_that_fits(trainer: Any, inputs: dict[str, Any], rows: int, learns: bool) -> int | None:
    """Rows of the batch that fit, 0 where not even one does; None where it cannot be tried."""
    if trainer.args.world_size > 1 or "waveforms" not in inputs:
        return None
    size = rows // 2
    while size:
        said = _tried(trainer, inputs, min(1.0, _MARGIN * size / rows), learns)
        if said is None:
            return size
        if not said:
            return None
        memory.release()
        size //= 2
    return 0


def _tried(trainer: Any, inputs: dict[str, Any], share: float, learns: bool) -> str | None:
    """None where a share of the batch fits, "" where trying failed for another reason, else what it said."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        with trainer.compute_loss_context_manager(), contextlib.nullcontext() if learns else torch.no_grad():
            values, mask = _features(trainer, inputs, share)
            logits: Tensor = model(input_values=values, attention_mask=mask).logits
            if learns:
                logits.float().sum().backward()
    except Exception as error:
        return str(error) if memory.ran_out(error) else ""
    finally:
        model.zero_grad(set_to_none=True)
    return None


def _features(trainer: Any, inputs: dict[str, Any], share: float) -> tuple[Tensor, Tensor]:
    """Features of the longest cycles of a batch, views and neighbours counted."""
    lengths: Tensor = inputs["lengths"]
    take = lengths.argsort(descending=True)[: max(1, round(len(lengths) * share))]
    waveforms = inputs["waveforms"][take].to(trainer.args.device)
    with torch.no_grad():
        values, mask = trainer.feature_extractor.features(waveforms, lengths[take].to(trainer.args.device))
    return values, mask
