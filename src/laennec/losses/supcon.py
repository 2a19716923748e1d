"""Supervised contrastive loss and NT-Xent.

Decisions: every row of every view is an anchor, and one without a positive adds 0 to a mean over all of them;
positives come from sums by class and the normaliser block by block (once in each pass), so that the pair matrix is
never in memory; the factor temperature / base_temperature exists in `NTXentLoss` alone, because it multiplies the
published loss of one system by seven.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.pairs import (
    absent,
    check_embeddings,
    class_indices,
    full_precision,
    normalise,
    refuse_second_derivative,
    upper_blocks,
)


class _LogSumExpOthers(torch.autograd.Function):
    """For each row i: log sum over j != i of exp(z_i . z_j / temperature); 0 for a row that is alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float) -> Tensor:
        """Rows (batch, dim) -> (batch,)."""
        total = z.new_full((len(z),), -torch.inf)
        with full_precision(z):
            for block in upper_blocks(z):
                logits = block.similarity.div_(temperature).masked_fill_(~block.above, -torch.inf)
                rows, columns = slice(block.start, block.stop), slice(block.start, None)
                total[rows] = torch.logaddexp(total[rows], logits.logsumexp(dim=1))
                total[columns] = torch.logaddexp(total[columns], logits.logsumexp(dim=0))
        if len(z) == 1:
            total.zero_()
        ctx.save_for_backward(z, total)
        ctx.temperature = temperature
        return total

    @staticmethod
    def backward(ctx: Any, by_total: Tensor) -> tuple[Tensor, None]:
        """Both softmax weights of a pair, that of i among j's others and that of j among i's, from one block."""
        refuse_second_derivative()
        z, total = ctx.saved_tensors
        gradient = torch.zeros_like(z)
        with full_precision(z):
            for block in upper_blocks(z):
                logits = block.similarity.div_(ctx.temperature).masked_fill_(~block.above, -torch.inf)
                rows, columns = slice(block.start, block.stop), slice(block.start, None)
                by_logit = (logits - total[rows, None]).exp_().mul_(by_total[rows, None])
                by_logit += logits.sub_(total[columns]).exp_().mul_(by_total[columns])
                gradient[rows].addmm_(by_logit, z[columns])
                gradient[columns].addmm_(by_logit.T, z[rows])
        return gradient / ctx.temperature, None


def _positives(z: Tensor, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of the positives of each view, and how many there are.

    z (batch, views, dim) -> sums (batch, views, dim) and counts (batch,), each row itself left out.
    """
    batch, views, _ = z.shape
    cycles = z.sum(dim=1)  # (batch, dim)
    if mask is not None:
        weight = mask.to(z)
        own = weight.diagonal()
        return (weight @ cycles)[:, None] - own[:, None, None] * z, views * weight.sum(dim=1) - own
    if labels is None:
        return cycles[:, None] - z, torch.full((batch,), views - 1, dtype=z.dtype, device=z.device)
    codes = torch.unique(labels, return_inverse=True)[1]
    sums = torch.zeros_like(cycles).index_add(0, codes, cycles)
    counts = torch.bincount(codes, minlength=batch).to(z) * views
    return sums[codes][:, None] - z, counts[codes] - 1


def _contrast(
    views: Tensor, temperature: float, labels: Tensor | None, mask: Tensor | None, anchors: int | None = None
) -> tuple[Tensor, int]:
    """Mean over anchors (all views, or the first few) of -mean over positives of log softmax, and the pair count."""
    z = normalise(views)  # (batch, views, dim)
    if not z.shape[0] * z.shape[1]:
        return absent(views), 0
    total = _LogSumExpOthers.apply(z.flatten(0, 1), temperature).unflatten(0, z.shape[:2])
    sums, counts = _positives(z, labels, mask)
    counts = counts[:, None].expand(z.shape[:2])
    similarity = (z * sums).sum(dim=2) / torch.where(counts > 0, counts, 1.0)
    each = torch.where(counts > 0, total - similarity / temperature, 0.0)[:, :anchors]
    return each.mean(), int(counts[:, :anchors].long().sum())


def _checked(views: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Views (batch, views, dim), one view each where they come as (batch, dim); labels as classes."""
    views = views[:, None] if views.ndim == 2 else views
    check_embeddings(views, labels, dims=3)
    return views, None if labels is None else class_indices(labels)


def _check_mask(mask: Tensor, batch: int) -> None:
    if mask.shape != (batch, batch):
        raise ValueError(f"mask must be {(batch, batch)}, not {tuple(mask.shape)}")
    if not bool((mask >= 0).all()):
        raise ValueError("mask must hold 0, 1 or weights above 0; a value in it is negative or NaN")


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be positive, not {number}")


class SupConLoss(nn.Module):
    """Draw all views of all cycles of a class together, apart from every other cycle.

    Formula: `-1/|P(i)| sum_{p in P(i)} log( e^{s_ip/t} / sum_{a != i} e^{s_ia/t} )`, mean over the batch * views
    anchors i, where P(i) are the other rows of i's label; without labels, the other views of the same cycle (NT-Xent).

    Batch: two augmented views of each cycle, or one of `ClassesTimesSamplesSampler`; a larger batch means more
    negatives. The label may be any column: class, patient, device (`StethoscopeGuidedLoss`), age band
    (`MetadataSupConLoss`).

    Returns: `supcon`; `pairs` counts the ordered positive pairs.

    Prefer: `AngularDistanceDistributionLoss` where classes shall also be equally far apart, `TupletContrastiveLoss`
    for small batches. There is no second derivative: a gradient penalty needs another loss.

    Args:
        temperature: divides the similarities.
        detach_other_views: True lets gradients through the first view only, as stethoscope-guided training does.

    Raises:
        ValueError: if the temperature is not positive.

    Reference: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020; for lung sounds Moummad and Farrugia, 2023.
    """

    citation: ClassVar[str] = """@inproceedings{khosla2020supervised,
  title={Supervised Contrastive Learning},
  author={Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and Tian, Yonglong and Isola, Phillip and
    Maschinot, Aaron and Liu, Ce and Krishnan, Dilip},
  booktitle={Advances in Neural Information Processing Systems (NeurIPS)},
  year={2020}
}"""

    def __init__(self, temperature: float = 0.06, detach_other_views: bool = False) -> None:
        super().__init__()
        _positive(temperature=temperature)
        self.temperature = float(temperature)
        self.detach_other_views = detach_other_views
        self.pairs: dict[str, int] = {}

    @property
    def variant(self) -> str:
        """Which gradient this is."""
        return "first view only" if self.detach_other_views else "all views"

    def forward(self, views: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return `{"supcon": scalar}`; `pairs` counts the ordered positive pairs.

        Args:
            views: (batch, views, dim), or (batch, dim) for one view. Normalised here.
            labels: integers (batch,) or one-hot rows; None for NT-Xent.

        Raises:
            ValueError: if the shapes do not fit, or a label is negative.
        """
        views, labels = _checked(views, labels)
        if self.detach_other_views:
            views = torch.cat([views[:, :1], views[:, 1:].detach()], dim=1)
        with full_precision(views):
            value, pairs = _contrast(views, self.temperature, labels, None)
        self.pairs = {"supcon": pairs}
        return {"supcon": value}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, temperature={self.temperature}"


class NTXentLoss(nn.Module):
    """Tell the views of one cycle (or of cycles that share metadata) from all others, scaled as in Soni et al.

    Formula: `temperature / base_temperature * SupCon`; with the defaults the factor is 1, with a temperature of 0.5 it
    is 7.

    Batch: two views of each cycle, shuffled (`EpochSampler`), or equal in what shall not help to tell them apart
    (`MetadataMatchedSampler`).

    Returns: `ntxent`; `pairs` counts the ordered positive pairs.

    Prefer: `SupConLoss` unless a published learning rate goes with the factor.

    Args:
        temperature: divides the similarities.
        base_temperature: see above.
        contrast_mode: "all" views are anchors, or "one" (the first).

    Raises:
        ValueError: if a temperature is not positive or the mode unknown.

    Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020; with
    metadata Soni et al., Contrastive Learning of Heart and Lung Sounds for Label-Efficient Diagnosis, Patterns 2022.
    """

    citation: ClassVar[str] = """@inproceedings{chen2020simclr,
  title={A Simple Framework for Contrastive Learning of Visual Representations},
  author={Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle={International Conference on Machine Learning (ICML)},
  year={2020}
}"""

    def __init__(self, temperature: float = 0.07, base_temperature: float = 0.07, contrast_mode: str = "all") -> None:
        super().__init__()
        _positive(temperature=temperature, base_temperature=base_temperature)
        if contrast_mode not in ("all", "one"):
            raise ValueError(f"contrast_mode must be 'all' or 'one', not {contrast_mode!r}")
        self.temperature = float(temperature)
        self.base_temperature = float(base_temperature)
        self.contrast_mode = contrast_mode
        self.pairs: dict[str, int] = {}

    @property
    def variant(self) -> str:
        """Which rows are anchors."""
        return f"anchors: {self.contrast_mode}"

    def forward(self, views: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `{"ntxent": scalar}`; `pairs` counts the ordered positive pairs.

        Args:
            views: (batch, views, dim). Normalised here, which leaves normalised ones unchanged.
            labels: integers (batch,) whose equality makes positives; None for the views of one cycle.
            mask: (batch, batch), 1 (or any weight above 0) where two cycles are positives of one another (instead of
                labels); the diagonal says whether the views of one cycle are.

        Raises:
            ValueError: if the shapes do not fit, a label or a weight is negative, or labels and mask are both given.
        """
        if labels is not None and mask is not None:
            raise ValueError("positives come from labels or from a mask, not from both")
        views, labels = _checked(views, labels)
        if mask is not None:
            _check_mask(mask, len(views))
        with full_precision(views):
            anchors = 1 if self.contrast_mode == "one" else None
            value, pairs = _contrast(views, self.temperature, labels, mask, anchors)
        self.pairs = {"ntxent": pairs}
        return {"ntxent": self.temperature / self.base_temperature * value}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, temperature={self.temperature}, base_temperature={self.base_temperature}"
