"""Orthogonal projection loss.

Decisions: the default takes the absolute value of each negative similarity, as the ADD authors' code does, while
the original takes it of their mean ("abs_mean"); without a positive pair the first term is the constant `ratio` and
carries no gradient, as its formula (and the authors' code) says.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.moments import PairMoments, Quantity
from laennec.losses.pairs import check_embeddings, class_indices, full_precision, normalise

VARIANTS = ("abs_each", "abs_mean")
_SIMILARITY = Quantity(lambda s, t: s.clone(), lambda s, t: torch.ones_like(s))
_ABSOLUTE = Quantity(lambda s, t: s.abs(), lambda s, t: s.sign())


class OrthogonalProjectionLoss(nn.Module):
    """Make embeddings of a class parallel and those of different classes orthogonal.

    Formula: `ratio * [ (1 - sum s+ / (n+ + 1e-6)) + gamma * sum |s-| / (n- + 1e-6) ]` over ordered pairs; "abs_mean"
    has `|sum s-|` instead.

    Batch: several cycles of several classes (`ClassesTimesSamplesSampler`, or any shuffled batch of 16 or more).

    Returns: `opl_pos` and `opl_neg`, weights applied; `pairs` counts the ordered pairs of each.

    Prefer: `AngularDistanceDistributionLoss` where the spread of distances matters too, and for soft labels. There is
    no second derivative: a gradient penalty needs another loss.

    Args:
        gamma: weight of the negative pairs.
        ratio: weight of the whole.
        variant: "abs_each" or "abs_mean".

    Raises:
        ValueError: if the variant is unknown.

    Reference: Ranasinghe et al., Orthogonal Projection Loss, ICCV 2021.
    """

    citation: ClassVar[str] = """@inproceedings{ranasinghe2021orthogonal,
  title={Orthogonal Projection Loss},
  author={Ranasinghe, Kanchana and Naseer, Muzammal and Hayat, Munawar and Khan, Salman and Khan, Fahad Shahbaz},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2021}
}"""

    def __init__(self, gamma: float = 2.0, ratio: float = 0.1, variant: str = "abs_each") -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown OPL variant {variant!r}; choose one of {', '.join(VARIANTS)}")
        self.gamma = float(gamma)
        self.ratio = float(ratio)
        self.variant = variant
        self.pairs: dict[str, int] = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `{"opl_pos", "opl_neg"}`, scalars; `pairs` counts the ordered pairs of each.

        Args:
            embeddings: (batch, dim). Normalised here.
            labels: integers (batch,) or one-hot rows (batch, classes).

        Raises:
            ValueError: if the shapes do not fit, or a label is negative.
        """
        check_embeddings(embeddings, labels)
        each = self.variant == "abs_each"
        with full_precision(embeddings):
            groups = ("same", _SIMILARITY), ("different", _ABSOLUTE if each else _SIMILARITY)
            mean, _, counts = PairMoments.apply(normalise(embeddings), class_indices(labels), groups)
            ordered = counts.to(mean.dtype)  # integers plus 1e-6 would be float32, whatever the embeddings are
            positive, negative = (mean * (ordered / (ordered + 1e-6))).unbind()
        self.pairs = dict(zip(("opl_pos", "opl_neg"), counts.tolist(), strict=True))
        return {
            "opl_pos": self.ratio * (1 - positive),
            "opl_neg": self.ratio * self.gamma * negative.abs(),
        }

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, gamma={self.gamma}, ratio={self.ratio}"
