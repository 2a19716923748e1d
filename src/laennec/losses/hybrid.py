"""Supervised contrast beside the task, and by metadata.

Decisions: these are sums of losses that exist by themselves, under the names their papers gave them; a recipe
writes the same sums as entries of `loss.auxiliary`. Metadata that is unknown is a number below 0 and leaves its cycle
out of that term alone.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.pairs import class_indices, full_precision, widened
from laennec.losses.supcon import SupConLoss

_HYBRID_CITATION = """@article{moummad2022supervised,
  title={Supervised Contrastive Learning for Respiratory Sound Classification},
  author={Moummad, Ilyass and Farrugia, Nicolas},
  journal={arXiv preprint arXiv:2210.16192},
  year={2022}
}"""
_METADATA_CITATION = """@inproceedings{moummad2023pretraining,
  title={Pretraining Respiratory Sound Representations using Metadata and Contrastive Learning},
  author={Moummad, Ilyass and Farrugia, Nicolas},
  booktitle={IEEE Workshop on Applications of Signal Processing to Audio and Acoustics (WASPAA)},
  year={2023}
}"""


class HybridLoss(nn.Module):
    """Draw cycles of a class together and classify them, in one step.

    Formula: `alpha SupCon(views) + (1 - alpha) CE(logits)`, the cross entropy weighted by class and taken over all
    views alike.

    Batch: two augmented views of each cycle, and the logits of both; any shuffled batch of 16 or more.

    Returns: `supcon` and `ce`, weights applied; `pairs` counts ordered positive pairs, and rows.

    Prefer: `SupConLoss` and a head trained afterwards (two stages) where the embedding shall serve several tasks; in a
    recipe write `loss.task_weight`, `loss.task_views: all` and an entry `supcon`.

    Args:
        alpha: share of the contrast, in [0, 1].
        temperature: divides the similarities.
        class_weights: one number a class, or None; the literature's are inverse frequencies of sum 1.

    Raises:
        ValueError: if alpha lies outside [0, 1], the temperature is not positive or a weight is negative.

    Reference: Moummad and Farrugia, Supervised Contrastive Learning for Respiratory Sound Classification, 2022.
    """

    citation: ClassVar[str] = _HYBRID_CITATION
    variant = "supcon + ce"

    def __init__(
        self, alpha: float = 0.5, temperature: float = 0.06, class_weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is a share and must lie in [0, 1], not {alpha}")
        if class_weights is not None and not all(weight >= 0 for weight in class_weights):
            raise ValueError(f"class_weights must hold no negative weight, not {tuple(class_weights)}")
        self.alpha = float(alpha)
        self.class_weights = None if class_weights is None else tuple(float(weight) for weight in class_weights)
        self.contrast = SupConLoss(temperature)
        self.pairs: dict[str, int] = {}

    def forward(self, views: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `{"supcon", "ce"}`.

        Args:
            views: (batch, views, dim). Normalised here.
            logits: (batch, views, classes).
            labels: integers (batch,) or one-hot rows.

        Raises:
            ValueError: if shapes, classes or the number of class weights do not fit.
        """
        if logits.ndim != 3 or views.ndim != 3 or logits.shape[:2] != views.shape[:2]:
            raise ValueError(
                f"views {tuple(views.shape)} and logits {tuple(logits.shape)} must share (batch, views, ...)"
            )
        classes = logits.shape[2]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise ValueError(f"class_weights has {len(self.class_weights)} numbers, the logits have {classes} classes")
        index = class_indices(labels, classes).long()
        contrast = self.contrast(views, index)["supcon"]
        with full_precision(logits):
            log_p = widened(logits).log_softmax(dim=2)  # (batch, views, classes)
            weight = log_p.new_tensor(self.class_weights or [1.0] * classes)[index][:, None]  # (batch, 1)
            each = -log_p.gather(2, index[:, None, None].expand(*logits.shape[:2], 1)).squeeze(2)
            total = weight.sum().clamp_min(torch.finfo(each.dtype).tiny) * max(1, logits.shape[1])
            task = (each * weight).sum() / total
        self.pairs = {"supcon": self.contrast.pairs["supcon"], "ce": logits.shape[0] * logits.shape[1]}
        return {"supcon": self.alpha * contrast, "ce": (1 - self.alpha) * task}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, alpha={self.alpha}, class_weights={self.class_weights}"


class MetadataSupConLoss(nn.Module):
    """Draw cycles of a class together and, on another projection, cycles of one metadata group (M-SCL).

    Formula: `SupCon(class) + weight SupCon(metadata group)`, each over its own projection of the same views.

    Batch: two augmented views of each cycle; groups of several cycles, such as age band and sex
    (`ClassesTimesSamplesSampler` on the group where groups are rare).

    Returns: `supcon` and `metadata`, weights applied; `pairs` counts the ordered positive pairs of each.

    Prefer: `SupConLoss` alone where metadata is missing for most cycles; `StethoscopeGuidedLoss` for the recording
    device. In a recipe write two entries of `loss: supcon`, the second with `labels: age_band+sex` and a
    `projection_dim` of its own.

    Args:
        weight: of the metadata term, not negative.
        temperature: divides the similarities.

    Raises:
        ValueError: if the weight is negative or the temperature not positive.

    Reference: Moummad and Farrugia, Pretraining Respiratory Sound Representations using Metadata and Contrastive
    Learning, WASPAA 2023.
    """

    citation: ClassVar[str] = _METADATA_CITATION
    variant = "class + metadata"

    def __init__(self, weight: float = 1.0, temperature: float = 0.06) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must not be negative, not {weight}")
        self.weight = float(weight)
        self.contrast = SupConLoss(temperature)
        self.pairs: dict[str, int] = {}

    def forward(self, views: Tensor, labels: Tensor, group_views: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        """Return `{"supcon", "metadata"}`.

        Args:
            views: (batch, views, dim), the projection for classes. Normalised here.
            labels: integers (batch,) or one-hot rows.
            group_views: (batch, views, other dim), the projection for groups. Normalised here.
            group_ids: integers (batch,); below 0 where the metadata is unknown, which leaves the cycle out of that
                term.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if len(group_views) != len(views) or group_ids.shape != (len(views),):
            raise ValueError(
                f"{len(views)} cycles need as many rows of group_views and group_ids (batch,), not "
                f"{len(group_views)} and {tuple(group_ids.shape)}"
            )
        by_class = self.contrast(views, labels)["supcon"]
        positives = self.contrast.pairs["supcon"]
        known = group_ids >= 0
        by_group = self.contrast(group_views[known], group_ids[known])["supcon"]
        self.pairs = {"supcon": positives, "metadata": self.contrast.pairs["supcon"]}
        return {"supcon": by_class, "metadata": self.weight * by_group}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, weight={self.weight}"
