"""Supervised contrastive loss and NT-Xent.

Decisions: every view of every cycle is an anchor, and an anchor without a positive adds 0 to the mean over all of them.
The factor temperature / base_temperature exists in `NTXentLoss` alone, because it multiplies the published loss of one
system by seven.
"""

from typing import ClassVar

import torch
from torch import Tensor

from laennec.losses.base import Loss, absent, check_embeddings, check_positive, class_indices, full_precision, normalise
from laennec.losses.blocks import by_row_blocks


def _contrast(
    views: Tensor,
    temperature: float,
    labels: Tensor | None,
    mask: Tensor | None = None,
    anchor_views: int | None = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, int]:
    """The loss and the number of ordered positive pairs.

    Args:
        views: (batch, views, dim).
        temperature: Divides the similarities.
        labels: (batch,); None where the views of one cycle alone are positives.
        mask: (batch, batch), weights of positives, instead of labels.
        anchor_views: How many of the views are anchors; None for all.
        groups: (batch,), negatives come from other groups only; -1 is in no group. None: from all other cycles.
    """
    batch, count, _ = views.shape
    anchors = batch * (count if anchor_views is None else min(anchor_views, count))
    if not anchors:
        return absent(views), 0
    z = normalise(views).transpose(0, 1).flatten(0, 1)  # (batch, views, dim) -> (rows, dim), first views first
    cycle = torch.arange(batch, device=z.device).repeat(count)  # of each row
    label = cycle if labels is None else labels[cycle]
    group = None if groups is None else groups.to(z.device)[cycle]

    def of_anchors(rows: slice) -> Tensor:
        """Loss of each anchor and number of its positives, (rows, 2)."""
        positive = (label[rows, None] == label).to(z) if mask is None else mask.to(z)[cycle[rows]][:, cycle]
        itself = torch.zeros_like(positive, dtype=torch.bool)
        itself.diagonal(rows.start).fill_(True)
        positive = positive.masked_fill(itself, 0.0)
        left_out = itself
        if group is not None:
            left_out = itself | ((group[rows, None] == group) & (group >= 0) & (positive == 0))
        count = positive.sum(dim=1)  # |P(i)|
        # -1/|P(i)| sum_p (s_ip/t - log sum_a e^(s_ia/t)), 0 without a positive
        s = z[rows] @ z.T / temperature
        log_sum = s.masked_fill(left_out, -torch.inf).logsumexp(dim=1)
        each = log_sum - torch.linalg.vecdot(positive, s) / torch.where(count > 0, count, 1.0)
        each = each.masked_fill(count == 0, 0.0)
        return torch.stack([each, (positive > 0).sum(dim=1).to(z)], dim=1)

    if len(z) == 1:
        return absent(views), 0
    each, positives = by_row_blocks(of_anchors, anchors, len(z)).unbind(dim=1)
    return each.mean(), int(positives.long().sum())


def _checked(views: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Views as (batch, views, dim), one view each where they come as (batch, dim); labels as classes."""
    views = views[:, None] if views.ndim == 2 else views
    check_embeddings(views, labels, dims=3)
    return views, None if labels is None else class_indices(labels)


class SupConLoss(Loss):
    """Pull all views of all cycles of a class together and push them away from every other cycle.

    Formula: `-1/|P(i)| sum_{p in P(i)} log( e^{s_ip/t} / sum_{a != i} e^{s_ia/t} )`, mean over the batch * views
    anchors i, where P(i) are the other rows of i's label; without labels, the other views of the same cycle (NT-Xent).

    Batch: two augmented views of each cycle, or one of each in a batch of `ClassesTimesSamplesSampler`; a larger batch
    has more negatives.
    The label may be any column: class, patient, age band (metadata SupCon), device (stethoscope-guided contrast, with
    `detach_other_views=True`).

    Returns: `supcon`; `pairs` counts the ordered positive pairs.

    Prefer: `AngularDistanceDistributionLoss` where classes should also be equally far apart, `TupletContrastiveLoss`
    for small batches.

    Args:
        temperature: Divides the similarities.
        detach_other_views: True lets gradients through the first view only, as stethoscope-guided training does.

    Raises:
        ValueError: if the temperature is not positive.

    Reference: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020; for lung sounds Moummad and Farrugia, 2023;
    by stethoscope Kim et al., ICASSP 2024.
    """

    views: ClassVar[int] = 2
    citation: ClassVar[str] = """@inproceedings{khosla2020supervised,
  title={Supervised Contrastive Learning},
  author={Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and Tian, Yonglong and Isola, Phillip and
    Maschinot, Aaron and Liu, Ce and Krishnan, Dilip},
  booktitle={Advances in Neural Information Processing Systems (NeurIPS)},
  year={2020}
}"""

    def __init__(self, temperature: float = 0.06, detach_other_views: bool = False) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = float(temperature)
        self.detach_other_views = detach_other_views
        self.variant = "gradient through the first view only" if detach_other_views else "gradient through all views"

    def forward(self, views: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return `{"supcon": scalar}`; `pairs` counts the ordered positive pairs.

        Args:
            views: (batch, views, dim), or (batch, dim) for one view. Normalised here.
            labels: Integers (batch,) or one-hot rows; None for NT-Xent.

        Raises:
            ValueError: if the shapes do not fit, or a label is negative.
        """
        views, labels = _checked(views, labels)
        if self.detach_other_views:
            views = torch.cat([views[:, :1], views[:, 1:].detach()], dim=1)
        with full_precision(views):
            value, pairs = _contrast(views, self.temperature, labels)
        self.pairs = {"supcon": pairs}
        return {"supcon": value}


class NTXentLoss(Loss):
    """Pull the views of one cycle (or of cycles that share metadata) together, scaled as in Soni et al.

    Formula: `temperature / base_temperature * SupCon`; with the defaults the factor is 1, with a temperature of 0.5 it
    is 7.

    Batch: two views of each cycle, shuffled (`EpochSampler`), or from patients of equal age or sex
    (`MetadataMatchedSampler`, hard negatives).

    Returns: `ntxent`; `pairs` counts the ordered positive pairs.

    Prefer: `SupConLoss` unless a published learning rate goes with the factor.

    Args:
        temperature: Divides the similarities.
        base_temperature: Divides the loss, see above.
        contrast_mode: "all" views are anchors, or "one" (the first).

    Raises:
        ValueError: if a temperature is not positive or the mode unknown.

    Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020; with
    metadata Soni et al., Contrastive Learning of Heart and Lung Sounds for Label-Efficient Diagnosis, Patterns 2022.
    """

    labels: ClassVar[str] = "cycle"
    views: ClassVar[int] = 2
    citation: ClassVar[str] = """@inproceedings{chen2020simclr,
  title={A Simple Framework for Contrastive Learning of Visual Representations},
  author={Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},
  booktitle={International Conference on Machine Learning (ICML)},
  year={2020}
}"""

    def __init__(self, temperature: float = 0.07, base_temperature: float = 0.07, contrast_mode: str = "all") -> None:
        super().__init__()
        check_positive(temperature=temperature, base_temperature=base_temperature)
        if contrast_mode not in ("all", "one"):
            raise ValueError(f"contrast_mode must be 'all' or 'one', not {contrast_mode!r}")
        self.temperature = float(temperature)
        self.base_temperature = float(base_temperature)
        self.contrast_mode = contrast_mode
        self.variant = f"anchors: {contrast_mode}"

    def forward(
        self, views: Tensor, labels: Tensor | None = None, mask: Tensor | None = None, groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return `{"ntxent": scalar}`; `pairs` counts the ordered positive pairs.

        Args:
            views: (batch, views, dim). Normalised here, which leaves normalised ones unchanged.
            labels: Integers (batch,) whose equality makes positives; None for the views of one cycle.
            mask: (batch, batch), 1 (or any weight above 0) where two cycles are positives of one another (instead of
                labels); the diagonal says whether the views of one cycle are.
            groups: Integers (batch,), such as patients: negatives come from other groups only. -1 is unknown: such
                a cycle is a negative of all. None: all cycles that are not positives are negatives.

        Raises:
            ValueError: if the shapes do not fit, a label or a weight is negative, or labels and mask are both given.
        """
        if labels is not None and mask is not None:
            raise ValueError("positives come from labels or from a mask, not from both")
        views, labels = _checked(views, labels)
        if mask is not None and mask.shape != (len(views), len(views)):
            raise ValueError(f"mask must be {(len(views), len(views))}, not {tuple(mask.shape)}")
        if groups is not None and groups.shape != (len(views),):
            raise ValueError(f"groups must be {(len(views),)}, not {tuple(groups.shape)}")
        if mask is not None and not bool((mask >= 0).all()):
            raise ValueError("mask must hold 0, 1 or weights above 0; a value in it is negative or NaN")
        with full_precision(views):
            anchor_views = 1 if self.contrast_mode == "one" else None
            value, pairs = _contrast(views, self.temperature, labels, mask, anchor_views, groups)
        self.pairs = {"ntxent": pairs}
        return {"ntxent": self.temperature / self.base_temperature * value}
