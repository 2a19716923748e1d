"""The terms of one step's objective, by name.

Decisions: every term carries its weight already and keeps its name into the log, so that the objective is the
plain sum of what is logged. Class weights come from the training part alone. Every term sees the rows of all processes
(a gather that carries gradients), because the pairs of a contrastive loss are its data and a weighted mean is not the
mean of weighted means: so 2 processes of half the batch give the loss and gradient of one, the short last batch
included (encoders with batch statistics take those of their own half unless train.sync_batch_norm is set). A loss
over pairs is refused under gradient accumulation, which would show it the pairs of each small batch only. Where a
batch holds two views, or clean and mixed copies, the first half of the rows is the first view (clean).
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laennec.losses import FocalLoss
from laennec.losses.tuplet import draw_negatives
from laennec.training.auxiliary import CLASS, CYCLE, Entry, loss_specs, weighted_sum
from laennec.training.clusters import CLUSTER_LOSSES
from laennec.training.recipe import ConfigError, LossSettings


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


def soft_cross_entropy(logits: Tensor, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy against label rows; with weights, divided by their sum over the rows.

    For one-hot rows it is the weighted mean of `torch.nn.functional.cross_entropy`, for rows of a batch mixed by one
    permutation and share `lam` it is `lam CE(own) + (1 - lam) CE(partner)`.

    Args:
        logits: (batch, classes).
        rows: (batch, classes), not negative, each of sum 1.
        weight: (classes,), or None.
    """
    rows = rows.to(logits.dtype)
    weighted = rows if weight is None else rows * weight
    return -(weighted * logits.log_softmax(1)).sum() / weighted.sum().clamp_min(torch.finfo(logits.dtype).tiny)


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
        self.task_views = settings.task_views
        self.entries = loss_specs(settings.auxiliary)
        self.auxiliary = weighted_sum(self.entries)
        make = positive_weights if multi_label else (lambda y, s: class_weights(y, n_labels, s))
        self.register_buffer("weights", make(labels, settings.class_weights))
        self.focal = _focal(settings, multi_label, self.weights)

    @property
    def views(self) -> int:
        """How many draws of each cycle a batch must hold."""
        return max([entry.views for entry in self.entries], default=1)

    @property
    def contrasts_mixtures(self) -> bool:
        """Whether clean and mixed cycles are both encoded."""
        return any(entry.kind == "patch_mix" for entry in self.entries)

    def task_terms(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The task loss: logits (batch, labels) against hard or soft labels."""
        logits = logits.float()
        if self.task == "bce":
            value = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), pos_weight=self.weights)
        elif self.focal is not None:
            value = self.focal(logits, labels)
        elif labels.is_floating_point():
            value = soft_cross_entropy(logits, labels, self.weights)
        else:
            value = nn.functional.cross_entropy(logits, labels, weight=self.weights)
        return {self.task: self.task_weight * value}

    def forward(self, outputs: Any, batch: Mapping[str, Any], stage: Stage, progress: float) -> dict[str, Tensor]:
        """All terms of a training step.

        Args:
            outputs: What the model returned (logits, embeddings, projections), (views * batch, ...).
            batch: labels, class_ids, cycle_numbers, epochs and group_ids of the step, (batch, ...); where cycles were
                mixed, `mixture` (a `Mixture`).
            stage: What this epoch trains.
            progress: Share of training done, 0 to 1, which weights may follow.

        Returns:
            Name of each term to its weighted value; the objective is their sum.

        Raises:
            ConfigError: A loss wants projections and the model has none.
        """
        terms = self._task(outputs.logits, batch) if stage.head else {}
        if self.auxiliary is None or not (stage.auxiliary and stage.encoder):
            return terms
        inputs = {entry.name: self._inputs(entry, outputs, batch) for entry in self.entries}
        self.auxiliary.set_progress(min(max(progress, 0.0), 1.0))
        return terms | self.auxiliary(inputs)

    def _task(self, logits: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The task loss over the first view, or over all rows."""
        labels, mixture = batch["labels"], batch.get("mixture")
        rows = len(labels)
        if mixture is not None and len(logits) == rows:
            labels = mixture.labels
        elif self.task_views == "all" and len(logits) > rows:
            if mixture is not None:
                labels = torch.cat([mixture.clean_labels, mixture.labels])
            else:
                labels = torch.cat([labels] * (len(logits) // rows))
        return self.task_terms(gather_with_gradient(logits[: len(labels)]), gather_with_gradient(labels))

    def _inputs(self, entry: Entry, outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """What one auxiliary loss is called with."""
        rows = len(batch["labels"])
        if entry.kind in CLUSTER_LOSSES:
            return self._groups(entry, outputs.auxiliary[entry.name], batch)
        vectors = self._vectors(entry, outputs)
        if entry.kind == "tuplet":
            return self._tuplets(vectors[:rows], batch)
        if entry.kind == "patch_mix":
            mixture, clean_rows = batch["mixture"], vectors[:rows]
            if entry.project_mixed:
                clean_rows = outputs.auxiliary[f"{entry.name} clean"][:rows]
            clean, mixed = (gather_with_gradient(v) for v in (clean_rows, vectors[rows:]))
            lam = torch.as_tensor(mixture.lam, dtype=torch.float32, device=vectors.device)
            lam = gather_with_gradient(lam.expand(rows).contiguous())
            index = gather_with_gradient(mixture.index.to(vectors.device) + first_row(clean_rows))
            return mixed, clean, lam, index, gather_with_gradient(batch["class_ids"])
        # (views * batch, dim) -> (batch, views, dim), or (batch, dim) of the first view
        seen = torch.stack(vectors.split(rows)[: entry.views], dim=1) if entry.views > 1 else vectors[:rows]
        vectors = gather_with_gradient(seen)
        if entry.labels == CYCLE:
            return (vectors,)
        if entry.labels == CLASS:
            soft = entry.kind == "add" and "mixture" in batch and not self.contrasts_mixtures
            return vectors, gather_with_gradient(none_of_them(batch["mixture"].labels) if soft else batch["class_ids"])
        ids = gather_with_gradient(batch["group_ids"][entry.group_key])
        known = ids >= 0
        return vectors[known], ids[known]

    def _groups(self, entry: Entry, seen: tuple[Tensor, ...], batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Groups of frames of clean cycles, and of mixed ones where both were encoded: what a cluster loss is given."""
        rows = len(batch["labels"])
        both = "mixture" in batch and self.contrasts_mixtures
        copies = []
        for part in list(zip(*(tensor.split(rows) for tensor in seen), strict=True))[: 2 if both else 1]:
            if entry.kind == "cluster_similarity":
                copies.append([gather_with_gradient(part[0]).transpose(0, 1)])  # the loss wants clusters first
            else:
                copies.append([_gather_groups(tensor) for tensor in part])
        return tuple(copies)

    def _vectors(self, entry: Entry, outputs: Any) -> Tensor:
        own = getattr(outputs, "auxiliary", None)
        if own is not None and entry.name in own:
            vectors: Tensor = own[entry.name]
            return vectors
        chosen: Tensor | None = outputs.projections if entry.on == "projection" else outputs.embeddings
        if chosen is None:
            raise ConfigError(f"{entry.where}.on is projection, but head.projection_dim is 0")
        return chosen

    def _tuplets(self, vectors: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Song's batch: the first half anchors, the second half their positives, negatives from both."""
        if len(vectors) % 2:
            raise ConfigError(
                "the tuplet loss needs batches of anchors and positives: set sampler.name: anchor_positive"
            )

        def halves(rows: Tensor) -> Tensor:
            """Of all processes: all anchors, then all positives."""
            return torch.cat([gather_with_gradient(half) for half in rows.chunk(2)])

        vectors = vectors if ranks() == 1 else halves(vectors)
        ids, epochs, numbers = (halves(batch[k]).cpu() for k in ("class_ids", "epochs", "cycle_numbers"))
        anchors, positives = vectors.chunk(2)
        generator = torch.Generator().manual_seed(step_key(self.seed, epochs, numbers) >> 1)
        index, mask = draw_negatives(ids[: len(anchors)], ids, self.negatives, generator)
        return anchors, positives, vectors[index.to(vectors.device)], mask.to(vectors.device)


def _focal(
    settings: LossSettings, multi_label: bool, weights: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The focal loss over classes, or over the yes and no of each label."""
    if settings.task != "focal":
        return None
    if not multi_label:
        over_classes = FocalLoss(settings.focal_gamma, None if weights is None else weights.tolist())
        return lambda logits, labels: over_classes(logits, labels)["focal"]
    each = FocalLoss(settings.focal_gamma, reduction="none")

    def over_labels(logits: Tensor, labels: Tensor) -> Tensor:
        flags = (labels.flatten() > 0.5).long()
        answers = torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(0, 1)  # (batch * labels, no or yes)
        values = each(answers, flags)["focal"].view_as(logits)
        if weights is not None:
            values = values * torch.where(labels > 0.5, weights.to(values), torch.ones_like(values))
        return values.mean()

    return over_labels


def none_of_them(rows: Tensor) -> Tensor:
    """Label rows with one more class, that of the cycles that have none: (batch, labels) -> (batch, labels + 1)."""
    return torch.cat([rows, (rows == 0).all(dim=1, keepdim=True).to(rows)], dim=1)


def step_key(seed: int, epochs: Tensor, cycle_numbers: Tensor) -> int:
    """64 bits that depend on the seed and on which cycles a step holds, in which epoch."""
    counter = np.concatenate([[seed], epochs.cpu().numpy(), cycle_numbers.cpu().numpy()])
    return int.from_bytes(hashlib.sha256(counter.astype(np.int64).tobytes()).digest()[:8], "little")


def ranks() -> int:
    """How many processes train together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


def _rows_by_rank(rows: Tensor) -> list[int]:
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(ranks())]
    torch.distributed.all_gather(counts, torch.full_like(counts[0], len(rows)))
    return [int(count) for count in counts]


def first_row(rows: Tensor) -> int:
    """Place of this process's first row among those of all processes."""
    return 0 if ranks() == 1 else sum(_rows_by_rank(rows)[: torch.distributed.get_rank()])


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all processes, in order of rank, however many each has; gradients flow back to where a row came from."""
    if ranks() == 1:
        return rows
    import torch.distributed.nn.functional as distributed

    counts = _rows_by_rank(rows)
    longest = max(counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])]).contiguous()
    if rows.is_floating_point():
        with warnings.catch_warnings():
            # deprecated in favour of an interface that is still experimental
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            parts = list(distributed.all_gather(padded))
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _gather_groups(values: Tensor) -> Tensor:
    """(batch, groups, ...) of all processes, filled with zeros to the most groups that any has; masks as numbers."""
    values = values.to(torch.uint8) if values.dtype == torch.bool else values
    if ranks() == 1:
        return values
    missing = max(_rows_by_rank(values.transpose(0, 1))) - values.shape[1]
    filled = torch.cat([values, values.new_zeros(values.shape[0], missing, *values.shape[2:])], dim=1)
    return gather_with_gradient(filled)
