"""One line about a batch that does not fit into memory.

Decisions: the line names the setting that makes the batch as large as it is, at half its value, and what else would
help. Nothing is tried: `auto_find_batch_size` of transformers' TrainingArguments searches for a batch that fits.
"""

from dataclasses import dataclass
from typing import Any

from laennec import memory


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
