"""Orthogonal projection loss (OPL).

Decisions: the default takes the absolute value of each negative similarity, as the ADD authors' code does, while the
original takes it of their mean ("abs_mean"). Without a positive pair the first term is the constant `ratio` and carries
no gradient, as its formula (and the authors' code) says. A cycle with soft labels counts as its most probable class.
"""

from typing import ClassVar

from torch import Tensor

from laennec.losses.base import (
    Loss,
    check_embeddings,
    class_indices,
    full_precision,
    is_flags,
    label_rows,
    normalise,
    ordered_pairs,
)

VARIANTS = ("abs_each", "abs_mean")


class OrthogonalProjectionLoss(Loss):
    """Make embeddings of a class parallel and those of different classes orthogonal.

    Formula: `ratio * [ (1 - sum s+ / (n+ + 1e-6)) + gamma * sum |s-| / (n- + 1e-6) ]` over ordered pairs; "abs_mean"
    has `|sum s-|` instead.

    Batch: several cycles of several classes (`ClassesTimesSamplesSampler`, or any shuffled batch of 16 or more).

    Returns: `opl_pos` and `opl_neg`, weights applied; `pairs` counts the ordered pairs of each.

    Prefer: `AngularDistanceDistributionLoss` where the spread of distances matters too, and for soft labels.

    Args:
        gamma: Weight of the negative pairs.
        ratio: Weight of the whole.
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

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `{"opl_pos", "opl_neg"}`, scalars; `pairs` counts the ordered pairs of each.

        Args:
            embeddings: (batch, dim). Normalised here.
            labels: Integers (batch,), or one-hot or soft rows (batch, classes).

        Raises:
            ValueError: if the shapes do not fit, a label is negative, or a row of flags names no class or several.
        """
        check_embeddings(embeddings, labels)
        if labels.ndim == 2 and labels.is_floating_point() and not is_flags(labels):
            labels = label_rows(labels, labels.dtype).argmax(dim=1)
        with full_precision(embeddings):
            z = normalise(embeddings)
            s = z @ z.T  # (batch, batch)
            same, different = ordered_pairs(class_indices(labels))
            positive, negative = s[same], s[different]  # (pairs,)
            opposed = negative.abs().sum() if self.variant == "abs_each" else negative.sum().abs()
            self.pairs = {"opl_pos": len(positive), "opl_neg": len(negative)}
            return {
                "opl_pos": self.ratio * (1 - positive.sum() / (len(positive) + 1e-6)),
                "opl_neg": self.ratio * self.gamma * opposed / (len(negative) + 1e-6),
            }
