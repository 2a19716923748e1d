"""Settings of a training beyond those of transformers.

Decisions: a plain `transformers.TrainingArguments` works too and means the defaults below. The Hub strategy is "end",
because the other ones upload the output folder, which may hold caches and audio.
"""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from laennec.errors import InputError


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


def check_arguments(args: TrainingArguments) -> None:
    """Refuse arguments that `LaennecTrainer` cannot follow, and settle those that transformers leaves open.

    Raises:
        InputError: Sharpness-aware steps with gradient accumulation, or a Hub strategy that uploads the output folder.
    """
    if argument(args, "sam_rho") is not None and args.gradient_accumulation_steps > 1:
        raise InputError("sam_rho needs the gradient of the whole batch; set gradient_accumulation_steps to 1")
    if args.push_to_hub and args.hub_strategy != "end":
        raise InputError(
            f"hub_strategy is {args.hub_strategy}, which uploads the output folder with all it holds; set it to end"
        )
    if args.push_to_hub and args.hub_private_repo is None:
        args.hub_private_repo = True
    args.remove_unused_columns = False  # a batch holds waveforms, and the model takes features
    if args.save_total_limit == 1:
        args.save_total_limit = 2  # a whole checkpoint must exist while another is written
