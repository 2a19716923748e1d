"""Settings of a training beyond those of transformers.

Decisions: a plain `transformers.TrainingArguments` works too and means the defaults below. The Hub strategy is "end",
because the other ones upload the output folder, which may hold caches and audio.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class LaennecTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments and these fields.

    Args:
        head_learning_rate: Learning rate of head and projection; None for that of the encoder.
        task_loss: "bce" | "ce" | "focal"; None for BCE (multi-label models) or cross entropy (single-label ones).
        task_weight: Factor of the task loss in the objective.
        task_views: "first" | "all": which augmented views (or clean and mixed copies) the task loss takes.
        class_weights: None, "balanced" (inverse frequency in the training part) or one number a label.
        focal_gamma: Exponent of the focal loss.
        epoch_cosine: Whether the learning rate falls once an epoch along a cosine, as in some published systems.
        moving_average: beta: after each step, weights <- beta * before + (1 - beta) * after; None for none.
        sam_rho: Radius of sharpness-aware minimisation, which runs every batch twice; None for ordinary steps.
        sam_adaptive: Whether that radius scales with each weight.
    """

    head_learning_rate: float | None = None
    task_loss: str | None = None
    task_weight: float = 1.0
    task_views: str = "first"
    class_weights: list[float] | str | None = None
    focal_gamma: float = 2.0
    epoch_cosine: bool = False
    moving_average: float | None = None
    sam_rho: float | None = None
    sam_adaptive: bool = False
    hub_strategy: str = field(default="end")


_DEFAULTS = {name: field.default for name, field in LaennecTrainingArguments.__dataclass_fields__.items()}


def argument(args: TrainingArguments, name: str) -> Any:
    """A setting of `LaennecTrainingArguments`, or its default where the arguments are transformers' own."""
    return getattr(args, name, _DEFAULTS[name])
