"""Focal loss.

Decisions: the factor (1 - p)^gamma is detached unless `detach_factor=False`, as in the ADD authors' code. A scalar
alpha weights the first of two classes by alpha and the second by 1 - alpha. Soft labels are refused, because the loss
is not defined for them.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from laennec.losses.base import Loss, class_indices, full_precision, widened


class FocalLoss(Loss):
    """Cross entropy that gives less weight to cycles whose class already has a high probability.

    Formula: `-alpha_t (1 - p_t)^gamma log p_t` with p_t the probability of the true class, mean over the batch.

    Batch: any.

    Returns: `focal`; `pairs` counts the cycles.

    Prefer: class-weighted cross entropy to correct for class frequencies alone; the focal loss emphasises hard cycles
    of every class, mislabelled ones included. Not for soft labels (mixup, Patch-Mix).

    Args:
        gamma: 0 gives cross entropy.
        alpha: Weight of each class, or one number a for two classes = (a, 1 - a).
        detach_factor: True treats (1 - p_t)^gamma as a constant in the gradient (as in the ADD authors' code), False
            is the published loss.
        reduction: "mean", or "none" for one value per cycle.

    Raises:
        ValueError: if gamma or a weight is negative, or the reduction unknown.

    Reference: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017.
    """

    citation: ClassVar[str] = """@inproceedings{lin2017focal,
  title={Focal Loss for Dense Object Detection},
  author={Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Doll{\\'a}r, Piotr},
  booktitle={IEEE International Conference on Computer Vision (ICCV)},
  year={2017}
}"""
    on: ClassVar[str] = "logits"

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        *,
        detach_factor: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if not gamma >= 0:
            raise ValueError(f"gamma must not be negative, not {gamma}")
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', not {reduction!r}")
        self.gamma = float(gamma)
        if isinstance(alpha, (int, float)):
            alpha = (alpha, 1 - alpha)
        if alpha is not None and not all(weight >= 0 for weight in alpha):
            raise ValueError(f"alpha must hold no negative weight, not {tuple(alpha)}")
        self.alpha = None if alpha is None else tuple(float(weight) for weight in alpha)
        self.detach_factor = detach_factor
        self.reduction = reduction
        self.variant = "detached" if detach_factor else "textbook"

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `{"focal": scalar}`, or (batch,) under `reduction="none"`; `pairs` counts the cycles.

        Args:
            logits: (batch, classes).
            labels: Integers (batch,) or one-hot rows (batch, classes).

        Raises:
            ValueError: if shapes, the number of classes or the labels do not fit.
        """
        if logits.ndim != 2 or len(labels) != len(logits):
            raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must share (batch, ...)")
        if self.alpha is not None and len(self.alpha) != logits.shape[1]:
            raise ValueError(f"alpha has weights for {len(self.alpha)} classes, the logits have {logits.shape[1]}")
        index = class_indices(labels, logits.shape[1]).long()  # refuses classes that the logits do not have
        with full_precision(logits):
            log_p = widened(logits).log_softmax(dim=1).gather(1, index[:, None]).squeeze(1)  # (batch,)
            # the lower limit keeps the derivative of x^gamma finite at x = 0 where gamma < 1
            miss = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).eps)
            factor = miss**self.gamma
            each = -(factor.detach() if self.detach_factor else factor) * log_p
            if self.alpha is not None:
                each = each * each.new_tensor(self.alpha)[index]
        self.pairs = {"focal": len(logits)}
        return {"focal": each if self.reduction == "none" else each.sum() / max(1, len(each))}
