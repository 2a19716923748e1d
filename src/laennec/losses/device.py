"""What the stethoscope leaves in an embedding, drawn together or taken out.

Decisions: in the guided loss the other view is a constant, because the gradient is part of its definition; the
strength of the reversal follows training progress alone, so that a resumed run needs no extra state; an unknown device
is a number below 0 and leaves its cycle out.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.pairs import check_embeddings, class_indices, full_precision, widened
from laennec.losses.supcon import SupConLoss


def reversal_strength(progress: float) -> float:
    """Strength 2 / (1 + e^(-10 p)) - 1 at progress p in [0, 1]: 0 at first, close to 1 from the middle on."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -strength."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        """Return the values."""
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Turn the gradient round."""
        return -ctx.strength * gradient, None


class GradientReversal(nn.Module):
    """Pass embeddings on and turn their gradient round, between encoder and device head.

    The head learns to tell devices, the encoder to leave no trace of them.

    Formula: the identity; its gradient is multiplied by `-(2 / (1 + e^(-10 p)) - 1)` at training progress p.

    Batch: several devices (`DeviceBalancedSampler`).

    Returns: the embeddings, unchanged; it has no terms. `DeviceAdversarialLoss` is the head and its loss.

    Prefer: `StethoscopeGuidedLoss` to draw each device's cycles together instead.

    Reference: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016.
    """

    citation: ClassVar[str] = """@article{ganin2016domain,
  title={Domain-Adversarial Training of Neural Networks},
  author={Ganin, Yaroslav and Ustinova, Evgeniya and Ajakan, Hana and Germain, Pascal and Larochelle, Hugo and
    Laviolette, Fran{\\c{c}}ois and Marchand, Mario and Lempitsky, Victor},
  journal={Journal of Machine Learning Research},
  year={2016}
}"""

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0

    def set_progress(self, progress: float) -> None:
        """Say how far training is, in [0, 1].

        Raises:
            ValueError: if the progress lies outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], not {progress}")
        self.progress = float(progress)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings, (batch, dim), unchanged."""
        reversed_: Tensor = _Reverse.apply(embeddings, reversal_strength(self.progress))
        return reversed_

    def extra_repr(self) -> str:
        """Say how strong it is now."""
        return f"strength={reversal_strength(self.progress):.3f}"


class DeviceAdversarialLoss(nn.Module):
    """Train a linear head to tell the device, and the encoder to leave it nothing to tell by.

    Formula: cross entropy of `head(reversal(embedding))` against the device, mean over the cycles whose device is
    known; the reversal's strength follows `set_progress`.

    Batch: several devices (`DeviceBalancedSampler`), else a constant answer is right.

    Returns: `device_adversarial`; `pairs` counts the cycles whose device is known.

    Prefer: `StethoscopeGuidedLoss` where a device has few classes: what tells its cycles apart may be the disease, and
    this loss takes that out with it. In a recipe the entry `device_adversarial` is this loss.

    Args:
        dim: of the embeddings.
        devices: how many there are.

    Raises:
        ValueError: if a number is not positive.

    Reference: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016; for stethoscopes Kim et al.,
    ICASSP 2024.
    """

    citation: ClassVar[str] = GradientReversal.citation
    variant = "gradient reversal"

    def __init__(self, dim: int, devices: int) -> None:
        super().__init__()
        if min(dim, devices) < 1:
            raise ValueError(f"dim {dim} and devices {devices} must be positive")
        self.reversal = GradientReversal()
        self.head = nn.Linear(dim, devices)
        self.pairs: dict[str, int] = {}

    def set_progress(self, progress: float) -> None:
        """Say how far training is, in [0, 1].

        Raises:
            ValueError: if the progress lies outside [0, 1].
        """
        self.reversal.set_progress(progress)

    def forward(self, embeddings: Tensor, device_ids: Tensor) -> dict[str, Tensor]:
        """Return `{"device_adversarial": scalar}`.

        Args:
            embeddings: (batch, dim).
            device_ids: integers (batch,); below 0 where the device is unknown.

        Raises:
            ValueError: if the shapes do not fit, or there are more devices than the head has answers.
        """
        check_embeddings(embeddings, device_ids)
        known = device_ids >= 0
        ids = class_indices(device_ids[known], self.head.out_features).long()
        with full_precision(embeddings):
            rows = widened(self.reversal(embeddings[known]))
            logits = nn.functional.linear(rows, self.head.weight.to(rows), self.head.bias.to(rows))
            total = nn.functional.cross_entropy(logits, ids, reduction="sum")
        self.pairs = {"device_adversarial": len(ids)}
        return {"device_adversarial": total / max(1, len(ids))}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}"


class StethoscopeGuidedLoss(nn.Module):
    """Draw the first views of a device's cycles towards the second ones, which stay where they are.

    Formula: `SupCon(views, device)` with every view but the first detached.

    Batch: two augmented views of each cycle, several devices with several cycles each (`DeviceBalancedSampler`).

    Returns: `stethoscope`; `pairs` counts the ordered positive pairs.

    Prefer: `DeviceAdversarialLoss` to take the device out of the embedding. In a recipe this is an entry
    `{loss: supcon, labels: device, detach_other_views: true}`.

    Args:
        temperature: divides the similarities.

    Raises:
        ValueError: if the temperature is not positive.

    Reference: Kim et al., Stethoscope-guided Supervised Contrastive Learning, ICASSP 2024.
    """

    citation: ClassVar[str] = """@inproceedings{kim2024stethoscope,
  title={Stethoscope-guided Supervised Contrastive Learning for Cross-domain Adaptation on Respiratory Sound
    Classification},
  author={Kim, June-Woo and Bae, Sangmin and Cho, Won-Yang and Lee, Byungjo and Jung, Ho-Young},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2024}
}"""
    variant = "first view only"

    def __init__(self, temperature: float = 0.06) -> None:
        super().__init__()
        self.contrast = SupConLoss(temperature, detach_other_views=True)
        self.pairs: dict[str, int] = {}

    def forward(self, views: Tensor, device_ids: Tensor) -> dict[str, Tensor]:
        """Return `{"stethoscope": scalar}`.

        Args:
            views: (batch, views, dim). Normalised here.
            device_ids: integers (batch,); below 0 where the device is unknown, which leaves the cycle out.

        Raises:
            ValueError: if the shapes do not fit.
        """
        check_embeddings(views, device_ids, dims=3)
        known = device_ids >= 0
        value = self.contrast(views[known], device_ids[known])["supcon"]
        self.pairs = {"stethoscope": self.contrast.pairs["supcon"]}
        return {"stethoscope": value}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}"
