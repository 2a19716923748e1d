"""Stage 8, training: the terms of one step's objective, by name.

Decided here: every term carries its weight already and keeps its name into the log, so that the objective is the
plain sum of what is logged. Class weights come from the training part alone. Auxiliary losses see the embeddings of
all processes (a gather that carries gradients), because the pairs of a contrastive loss are its data.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laennec.losses import AUXILIARY_LOSSES, FocalLoss, WeightedSum, WeightSchedule
from laennec.losses.tuplet import draw_negatives
from laennec.training.config import ConfigError, LossSettings

# the losses whose inputs are embeddings and classes of one batch
RECIPE_LOSSES = ("add", "tuplet", "supcon", "opl")


@dataclass(frozen=True)
class Stage:
    """What an epoch trains: which part of the model, from which terms."""

    encoder: bool = True
    head: bool = True
    auxiliary: bool = True


def class_weights(labels: NDArray[Any], n_classes: int, setting: str | list[float] | None) -> Tensor | None:
    """Weights by class: "balanced" is inverse frequency, normalised to sum 1 (as in the literature's weighted CE).

    Args:
        labels: int (cycles,) class numbers of the training part.
        n_classes: How many classes there are.
        setting: None, "balanced" or one number a class.

    Raises:
        ConfigError: The number of weights is not that of the classes, or a word is unknown.
    """
    weights = _weights_or_none(setting, n_classes)
    if weights is not None or setting is None:
        return weights
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    return torch.tensor(inverse / inverse.sum(), dtype=torch.float32)


def positive_weights(flags: NDArray[Any], setting: str | list[float] | None) -> Tensor | None:
    """Weights of the positives of each label in BCE: "balanced" is negatives / positives.

    Args:
        flags: (cycles, labels) of 0/1 of the training part.
        setting: None, "balanced" or one number a label.

    Raises:
        ConfigError: As in `class_weights`.
    """
    weights = _weights_or_none(setting, flags.shape[1])
    if weights is not None or setting is None:
        return weights
    positives = flags.sum(0)
    return torch.tensor((len(flags) - positives) / np.maximum(positives, 1), dtype=torch.float32)


def _weights_or_none(setting: str | list[float] | None, n: int) -> Tensor | None:
    if setting is None or setting == "balanced":
        return None
    if isinstance(setting, str):
        raise ConfigError(f"loss.class_weights is {setting!r}; it can be balanced, a list of {n} numbers, or left out")
    if len(setting) != n:
        raise ConfigError(f"loss.class_weights has {len(setting)} numbers; there are {n} labels")
    return torch.tensor(setting, dtype=torch.float32)


def _auxiliary(settings: Mapping[str, Mapping[str, Any] | None]) -> tuple[WeightedSum | None, dict[str, str]]:
    """The auxiliary losses as one weighted sum, and which vectors each looks at."""
    losses: dict[str, nn.Module] = {}
    weights: dict[str, WeightSchedule] = {}
    looks_at: dict[str, str] = {}
    for name, given in settings.items():
        values = dict(given or {})
        if name not in RECIPE_LOSSES:
            why = (
                "a recipe cannot give it its inputs, use it from Python"
                if name in AUXILIARY_LOSSES
                else "there is no such loss"
            )
            raise ConfigError(f"loss.auxiliary has {name!r}: {why}; recipes can have {', '.join(RECIPE_LOSSES)}")
        looks_at[name] = values.pop("on", "embedding")
        if looks_at[name] not in ("embedding", "projection"):
            raise ConfigError(f"loss.auxiliary.{name}.on is {looks_at[name]!r}; it can be embedding or projection")
        try:
            weights[name] = WeightSchedule(
                float(values.pop("weight", 1.0)), values.pop("start", 0.0), values.pop("warm_up", 0.0)
            )
            losses[name] = AUXILIARY_LOSSES[name](**values)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"loss.auxiliary.{name}: {str(error).split('__init__() ')[-1]}") from error
    return (WeightedSum(losses, weights) if losses else None), looks_at


class Objective(nn.Module):
    """Task loss plus weighted auxiliary losses.

    Args:
        settings: The recipe's loss section.
        multi_label: Whether the head decides each label by itself.
        labels: Labels of the training part, for class weights.
        n_labels: Number of logits.
        negatives: Negatives for each anchor of the tuplet loss.
        seed: Of the draw of negatives.

    Raises:
        ConfigError: An auxiliary loss or one of its arguments is unknown.
    """

    weights: Tensor | None

    def __init__(
        self,
        settings: LossSettings,
        multi_label: bool,
        labels: NDArray[Any],
        n_labels: int,
        negatives: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.multi_label = multi_label
        self.task = settings.task
        self.task_weight = settings.task_weight
        self.negatives = negatives
        self.seed = seed
        self.auxiliary, self.looks_at = _auxiliary(settings.auxiliary)
        make = positive_weights if multi_label else (lambda y, s: class_weights(y, n_labels, s))
        self.register_buffer("weights", make(labels, settings.class_weights))
        alpha = None if self.weights is None else self.weights.tolist()
        self.focal = FocalLoss(gamma=settings.focal_gamma, alpha=alpha) if settings.task == "focal" else None

    def task_terms(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The task loss: logits (batch, labels) against hard or soft labels."""
        logits = logits.float()
        if self.task == "bce":
            value = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=self.weights)
        elif self.focal is not None:
            value = self.focal(logits, labels)["focal"]
        else:
            value = nn.functional.cross_entropy(logits, labels, weight=self.weights)
        return {self.task: self.task_weight * value}

    def forward(self, outputs: Any, batch: Mapping[str, Tensor], stage: Stage, progress: float) -> dict[str, Tensor]:
        """All terms of a training step.

        Args:
            outputs: What the model returned (logits, embeddings, projections).
            batch: labels, class_ids, cycle_numbers and epochs of the step.
            stage: What this epoch trains.
            progress: Share of training done, 0 to 1, which weights may follow.

        Returns:
            Name of each term to its weighted value; the objective is their sum.

        Raises:
            ConfigError: A loss wants projections and the model has none.
        """
        terms = self.task_terms(outputs.logits, batch["labels"]) if stage.head else {}
        if self.auxiliary is None or not (stage.auxiliary and stage.encoder):
            return terms
        inputs: dict[str, tuple[Any, ...]] = {}
        for name, place in self.looks_at.items():
            vectors = outputs.projections if place == "projection" else outputs.embeddings
            if vectors is None:
                raise ConfigError(f"loss.auxiliary.{name}.on is projection, but head.projection_dim is 0")
            if name == "tuplet":
                inputs[name] = self._tuplets(vectors, batch)
            else:
                inputs[name] = (gather_with_gradient(vectors), gather_with_gradient(batch["class_ids"]))
        self.auxiliary.set_progress(min(max(progress, 0.0), 1.0))
        return terms | self.auxiliary(inputs)

    def _tuplets(self, vectors: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Song's batch: the first half anchors, the second half their positives, negatives from both."""
        if len(vectors) % 2:
            raise ConfigError(
                "the tuplet loss needs batches of anchors and positives: set sampler.name: anchor_positive"
            )
        anchors, positives = vectors.chunk(2)
        ids = batch["class_ids"].cpu()
        counter = np.concatenate([[self.seed], batch["epochs"].cpu().numpy(), batch["cycle_numbers"].cpu().numpy()])
        digest = hashlib.sha256(counter.astype(np.int64).tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        index, mask = draw_negatives(ids[: len(anchors)], ids, self.negatives, generator)
        return anchors, positives, vectors[index.to(vectors.device)], mask.to(vectors.device)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all processes, in order of rank; gradients flow back to the process they came from."""
    if (
        not (torch.distributed.is_available() and torch.distributed.is_initialized())
        or torch.distributed.get_world_size() == 1
    ):
        return rows
    import torch.distributed.nn.functional as distributed

    if rows.is_floating_point():
        return torch.cat(distributed.all_gather(rows))
    parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
