"""The terms of one training step's objective, by name.

Decisions: the objective is the plain sum of the logged terms. Class weights come from the training split alone. Every
term takes the rows of all processes, because a weighted mean is not the mean of weighted means: 2 processes of half the
batch give the loss and gradient of one, also in a short last batch (encoders with batch statistics use those of their
own half unless train.sync_batch_norm is set). A loss over pairs is refused under gradient accumulation, because it
would use the pairs of each small batch only. Where a batch holds two views, or clean and mixed copies, the first half
of the rows is the first view (clean).
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laennec.encoders.masks import process_count
from laennec.errors import InputError, did_you_mean
from laennec.losses import (
    ClusterSimilarityLoss,
    FocalLoss,
    PatchMixContrastiveLoss,
    TupletContrastiveLoss,
    WeightedSum,
)
from laennec.losses.combine import refuse_repeated, terms_of
from laennec.losses.tuplet import draw_negatives
from laennec.training.devices import first_row, gather_groups, gather_with_gradient
from laennec.training.objectives.loss_specs import CLASS, CYCLE, LossSpec, contrasts_mixtures, finite_weight

TASK_LOSSES = ("bce", "ce", "focal")


@dataclass(frozen=True)
class Stage:
    """What an epoch trains: which part of the model, with which terms."""

    encoder: bool = True
    head: bool = True
    auxiliary: bool = True


def task_weights(
    labels: NDArray[Any] | None, n_labels: int, multi_label: bool, setting: str | list[float] | None
) -> Tensor | None:
    """Weights of the labels in the task loss, (labels,) float32.

    "balanced" is inverse frequency normalised to sum 1 (as in the literature's weighted cross entropy) for classes, and
    negatives / positives for yes/no labels.

    Args:
        labels: Of the training split: class numbers (cycles,), or 0/1 (cycles, labels); None if it has none.
        n_labels: How many labels there are.
        multi_label: Whether each label is a yes/no decision of its own.
        setting: None, "balanced" or one number per label.
    """
    if setting is None:
        return None
    if not isinstance(setting, str):
        if len(setting) != n_labels:
            raise InputError(f"loss.class_weights has {len(setting)} numbers; there are {n_labels} labels")
        if not all(0 <= weight < math.inf for weight in setting) or not any(setting):
            raise InputError(f"loss.class_weights is {setting}; give finite numbers of at least 0, not all of them 0")
        return torch.tensor(setting, dtype=torch.float32)
    if setting != "balanced" or labels is None:
        raise InputError(
            f"loss.class_weights is {setting!r}; it can be balanced (with training labels), a list of {n_labels} "
            "numbers, or left out"
        )
    if multi_label:
        positives = labels.sum(0)
        return torch.tensor((len(labels) - positives) / np.maximum(positives, 1), dtype=torch.float32)
    counts = np.bincount(labels, minlength=n_labels).astype(np.float64)
    inverse = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    return torch.tensor(inverse / inverse.sum(), dtype=torch.float32)


def soft_cross_entropy(logits: Tensor, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross entropy against label rows; with weights, divided by their sum over the rows.

    For one-hot rows it is the weighted mean of `torch.nn.functional.cross_entropy`, for rows of a batch mixed by one
    permutation and share `lam` it is `lam CE(own) + (1 - lam) CE(other)`.

    Args:
        logits: (batch, classes).
        rows: (batch, classes), not negative, each of sum 1.
        weight: (classes,), or None.
    """
    rows = rows.to(logits.dtype)
    weighted = rows if weight is None else rows * weight
    return -(weighted * logits.log_softmax(1)).sum() / weighted.sum().clamp_min(torch.finfo(logits.dtype).tiny)


class TaskLoss(nn.Module):
    """The loss of the head's logits.

    Args:
        kind: "bce" (each label, or class, by itself), "ce" (single-label) or "focal" (either); or a module
            `forward(logits, labels)` -> scalar.
        multi_label: Whether each label is a yes/no decision of its own.
        labels: Labels of the training split, (cycles,) or (cycles, labels), for "balanced" weights; None without it.
        n_labels: Number of logits.
        class_weights: None, "balanced" or one number per label.
        focal_gamma: Exponent of the focal loss.
        weight: Factor of the loss in the objective.
        views: "first" or "all": which views (or clean and mixed copies) it takes.
    """

    weights: Tensor | None

    def __init__(
        self,
        kind: str | nn.Module | None,
        multi_label: bool,
        labels: NDArray[Any] | None,
        n_labels: int,
        class_weights: str | list[float] | None = None,
        focal_gamma: float = 2.0,
        weight: float = 1.0,
        views: str = "first",
    ) -> None:
        super().__init__()
        kind = kind or ("bce" if multi_label else "ce")
        if not isinstance(kind, nn.Module) and kind not in TASK_LOSSES:
            hint = did_you_mean(str(kind), TASK_LOSSES)
            raise InputError(f"task_loss is {kind!r}; it can be {', '.join(TASK_LOSSES)}, or a torch module{hint}")
        if views not in ("first", "all"):
            raise InputError(f"task_views is {views!r}; it can be first or all")
        if kind == "ce" and multi_label:
            raise InputError("task_loss is 'ce', but a multi_label head needs bce or focal")
        self.name = kind if isinstance(kind, str) else "task"
        self.own = kind if isinstance(kind, nn.Module) else None
        self.each = kind == "bce"
        self.multi_label, self.weight, self.views = multi_label, finite_weight(weight, "task_weight"), views
        self.register_buffer("weights", task_weights(labels, n_labels, multi_label, class_weights))
        self.focal: FocalLoss | None = None
        if kind == "focal":  # over classes, or over the yes and no of each label
            alpha = None if multi_label or self.weights is None else self.weights.tolist()
            self.focal = FocalLoss(focal_gamma, alpha, reduction="none" if multi_label else "mean")

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted loss of logits (batch, labels) against hard or soft labels, by its name."""
        logits = logits.float()
        if self.own is not None:
            value: Tensor = torch.stack(list(terms_of("task_loss", self.own, (logits, labels)).values())).sum()
        elif self.focal is not None:
            value = self._focal(self.focal, logits, labels)
        elif self.each:
            rows = labels if labels.ndim > 1 else nn.functional.one_hot(labels, logits.shape[1])
            weight, positive = (None, self.weights) if self.multi_label else (self.weights, None)
            value = nn.functional.binary_cross_entropy_with_logits(logits, rows.float(), weight, pos_weight=positive)
        elif labels.is_floating_point():
            value = soft_cross_entropy(logits, labels, self.weights)
        elif self.weights is None:
            value = nn.functional.cross_entropy(logits, labels)
        else:  # torch's mean is NaN where all weights are 0
            total = nn.functional.cross_entropy(logits, labels, self.weights, reduction="sum")
            value = total / self.weights[labels[labels >= 0].long()].sum().clamp_min(torch.finfo(total.dtype).tiny)
        return {self.name: self.weight * value}

    def _focal(self, focal: FocalLoss, logits: Tensor, labels: Tensor) -> Tensor:
        """The focal loss over classes, or over the yes and no of each label."""
        if not self.multi_label:
            return focal(logits, labels)["focal"]
        flags = (labels.flatten() > 0.5).long()
        pairs = torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(0, 1)  # (batch * labels, no or yes)
        values = focal(pairs, flags)["focal"].view_as(logits)
        if self.weights is not None:
            values = values * torch.where(labels > 0.5, self.weights.to(values), torch.ones_like(values))
        return values.mean()


class Objective(nn.Module):
    """Task loss plus weighted auxiliary losses."""

    def __init__(self, task: TaskLoss, specs: Sequence[LossSpec] = (), seed: int = 0) -> None:
        super().__init__()
        refuse_repeated([task.name], [spec.name for spec in specs])
        self.task = task
        self.specs = list(specs)
        self.auxiliary: WeightedSum | None = None
        if specs:
            self.auxiliary = WeightedSum({s.name: s.loss for s in specs}, {s.name: s.schedule for s in specs})
        self.contrasts_mixtures = contrasts_mixtures(specs)
        self.seed = seed

    def forward(self, outputs: Any, batch: Mapping[str, Any], stage: Stage, progress: float) -> dict[str, Tensor]:
        """All terms of a training step.

        Args:
            outputs: The model's outputs (logits, embeddings, projections), (views * batch, ...).
            batch: labels, class_ids, cycle_numbers, epochs and group_ids of the step, (batch, ...); where cycles were
                mixed, `mixture` (a `Mixture`).
            stage: What this epoch trains.
            progress: Share of training done, 0 to 1, which weights may follow.
        """
        terms = self._task(outputs.logits, batch) if stage.head else {}
        if self.auxiliary is None or not (stage.auxiliary and stage.encoder):
            return terms
        inputs = {spec.name: self._inputs(spec, outputs, batch) for spec in self.specs}
        self.auxiliary.set_progress(min(max(progress, 0.0), 1.0))
        return terms | self.auxiliary(inputs)

    def _task(self, logits: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The task loss over the first view, or over all rows."""
        labels, mixture = batch["labels"], batch.get("mixture")
        rows = len(labels)
        if mixture is not None and len(logits) == rows:
            labels = mixture.labels
        elif self.task.views == "all" and len(logits) > rows:
            if mixture is not None:
                labels = torch.cat([mixture.clean_labels, mixture.labels])
            else:
                labels = torch.cat([labels] * (len(logits) // rows))
        terms: dict[str, Tensor] = self.task(gather_with_gradient(logits[: len(labels)]), gather_with_gradient(labels))
        return terms

    def _inputs(self, spec: LossSpec, outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of one auxiliary loss."""
        rows = len(batch["labels"])
        # the output of the layer that only this loss has, the shared projection, or the embeddings
        vectors: Any = (getattr(outputs, "auxiliary", None) or {}).get(spec.name)
        if spec.takes_frame_groups:
            return self._groups(spec, vectors, batch)
        if vectors is None:
            vectors = outputs.projections if spec.on == "projection" else outputs.embeddings
        if spec.is_a(TupletContrastiveLoss):
            return self._tuplets(spec, vectors[:rows], batch)
        if spec.is_a(PatchMixContrastiveLoss):
            return _mixtures(spec, vectors, outputs, batch)
        # (views * batch, dim) -> (batch, views, dim), or (batch, dim) of the first view
        seen = torch.stack(vectors.split(rows)[: spec.views], dim=1) if spec.views > 1 else vectors[:rows]
        vectors = gather_with_gradient(seen)
        if spec.negative_groups:
            return vectors, None, None, gather_with_gradient(batch["group_ids"][spec.negative_groups])
        if spec.labels == CYCLE:
            return vectors, torch.arange(len(vectors), device=vectors.device)
        if spec.labels == CLASS:
            soft = spec.soft_labels and "mixture" in batch and not self.contrasts_mixtures
            labels = with_none_class(batch["mixture"].labels) if soft else batch["class_ids"]
            return vectors, gather_with_gradient(labels)
        ids = gather_with_gradient(batch["group_ids"][spec.group_key])
        known = ids >= 0
        return vectors[known], ids[known]

    def _groups(self, spec: LossSpec, seen: tuple[Tensor, ...], batch: Mapping[str, Any]) -> tuple[Any, ...]:
        """Frame groups of clean cycles, and of mixed ones where both were encoded."""
        rows = len(batch["labels"])
        both = "mixture" in batch and self.contrasts_mixtures
        copies = []
        for part in list(zip(*(tensor.split(rows) for tensor in seen), strict=True))[: 2 if both else 1]:
            if spec.is_a(ClusterSimilarityLoss):
                copies.append([gather_with_gradient(part[0]).transpose(0, 1)])  # this loss takes clusters first
            else:
                copies.append([gather_groups(tensor) for tensor in part])
        return tuple(copies)

    def _tuplets(self, spec: LossSpec, vectors: Tensor, batch: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Song's batch: the first half anchors, the second half their positives, negatives from both."""
        if len(vectors) % 2:
            raise InputError(
                "the tuplet loss needs batches of anchors and positives: set sampler.name: anchor_positive"
            )

        def halves(rows: Tensor) -> Tensor:
            """Rows of all processes: all anchors, then all positives."""
            return torch.cat([gather_with_gradient(half) for half in rows.chunk(2)])

        vectors = vectors if process_count() == 1 else halves(vectors)
        ids, epochs, numbers = (halves(batch[k]).cpu() for k in ("class_ids", "epochs", "cycle_numbers"))
        anchors, positives = vectors.chunk(2)
        generator = torch.Generator().manual_seed(step_key(self.seed, epochs, numbers) >> 1)
        index, mask = draw_negatives(ids[: len(anchors)], ids, spec.negatives, generator)
        return anchors, positives, vectors[index.to(vectors.device)], mask.to(vectors.device)


class TermSums:
    """Sums of the terms, of their pairs and of what was measured over the steps since the last log."""

    def __init__(self, running: Mapping[str, Sequence[float]] | None = None) -> None:
        self.terms: dict[str, Tensor | float] = {}
        self.pairs: dict[str, int] = {}
        self.measured: dict[str, tuple[float, int]] = {}  # sum, and the steps that it was measured in
        self.running = {name: (total, steps) for name, (total, steps) in (running or {}).items()}
        self.steps = 0

    def add(
        self, terms: Mapping[str, Tensor], auxiliary: WeightedSum | None, measured: Mapping[str, float] | None = None
    ) -> None:
        """Add the terms of a step, the pairs that its auxiliary losses had, and what was measured in it."""
        for name, number in (measured or {}).items():
            total, steps = self.measured.get(name, (0.0, 0))
            self.measured[name] = total + number, steps + 1
        for name, value in terms.items():
            self.terms[name] = value.detach().float() + self.terms.get(name, 0.0)
        if auxiliary is not None and set(auxiliary.pairs) <= set(terms):  # counted in this very step
            for name, count in auxiliary.pairs.items():
                self.pairs[name] = self.pairs.get(name, 0) + count
        self.steps += 1

    def means(self) -> dict[str, float]:
        """The mean loss, `term_<name>` and `count_<name>` of a step, and what was measured in some of them."""
        logs = {f"term_{name}": float(value) / self.steps for name, value in self.terms.items()}
        # transformers' own loss lacks the steps before a resume; the terms here are those of all processes
        logs["loss"] = sum(float(value) for value in self.terms.values()) / self.steps
        logs |= {f"count_{name}": count / self.steps for name, count in self.pairs.items()}
        return logs | {name: total / steps for name, (total, steps) in self.measured.items()}

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        terms = {name: float(value) for name, value in self.terms.items()}
        gradients = {"measured": self.measured, "running": self.running}
        return {"terms": terms, "counts": dict(self.pairs), "steps": self.steps, **gradients}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TermSums":
        """Continue the sums of a checkpoint, so that a resumed epoch logs the same means."""
        sums = cls(values.get("running"))
        sums.measured = {name: (total, steps) for name, (total, steps) in values.get("measured", {}).items()}
        # in float32 as before the interruption
        sums.terms = {name: torch.tensor(value) for name, value in values["terms"].items()}
        sums.pairs, sums.steps = dict(values["counts"]), int(values["steps"])
        return sums


def _mixtures(spec: LossSpec, vectors: Tensor, outputs: Any, batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """Mixed and clean rows, the shares and second cycles of the mixtures, and the classes of the clean rows."""
    mixture, rows = batch["mixture"], len(batch["labels"])
    clean_rows = outputs.auxiliary[f"{spec.name} clean"][:rows] if spec.project_mixed else vectors[:rows]
    clean, mixed = (gather_with_gradient(v) for v in (clean_rows, vectors[rows:]))
    lam = torch.as_tensor(mixture.lam, dtype=torch.float32, device=vectors.device)
    lam = gather_with_gradient(lam.expand(rows).contiguous())
    index = gather_with_gradient(mixture.index.to(vectors.device) + first_row(clean_rows))
    return mixed, clean, lam, index, gather_with_gradient(batch["class_ids"])


def with_none_class(rows: Tensor) -> Tensor:
    """Label rows with one more class, for cycles without any label: (batch, labels) -> (batch, labels + 1)."""
    return torch.cat([rows, (rows == 0).all(dim=1, keepdim=True).to(rows)], dim=1)


def step_key(seed: int, epochs: Tensor, cycle_numbers: Tensor) -> int:
    """64 bits that depend on the seed and on which cycles a step holds, in which epoch."""
    counter = np.concatenate([[seed], epochs.cpu().numpy(), cycle_numbers.cpu().numpy()])
    return int.from_bytes(hashlib.sha256(counter.astype(np.int64).tobytes()).digest()[:8], "little")
