"""Angular distance distribution (ADD) loss.

Decisions: pairs are ordered, as in the authors' masks. The standard deviation of fewer than two distinct pairs is 0
with zero gradient, because it is undefined. The variant is always printed with the loss, because different losses have
this name. Soft labels with a distance below 1e-3 count as identical; a label row of zeros is a class of its own.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from laennec.losses import blocks
from laennec.losses.base import (
    Loss,
    absent,
    check_embeddings,
    class_indices,
    full_precision,
    label_rows,
    mean,
    normalise,
    ordered_pairs,
    std,
    widened,
)

VARIANTS = ("paper", "soft", "released", "legacy")
IDENTICAL_LABEL_DISTANCE = 1e-3


class AngularDistanceDistributionLoss(Loss):
    """Pull the angular distances within a class towards 0 and between classes towards 1, and narrow both distributions.

    Formula: with d = 1 - cosine, over ordered pairs of equal label (P+) and of different label (P-),
    `l1 mean(d^2 | P+) + l2 std(d^2 | P+) + l3 mean((1-d)^2 | P-) + l4 std((1-d)^2 | P-)`.
    Soft labels (eq. 7-8): `l1 mean_{i != j} (d_label - d)^2 + l2 std(d^2 | identical labels)`.

    Batch: at least two cycles of some class and two classes; any shuffled batch of 16 or more
    (`laennec.training.samplers.EpochSampler`), or `ClassesTimesSamplesSampler`, which guarantees it.

    Returns: `add_mu_pos`, `add_sigma_pos`, `add_mu_neg`, `add_sigma_neg`; soft labels `add_mu`, `add_sigma_pos`;
    "released" `add_mu`. Weights applied; `pairs` counts the ordered pairs of each.

    Prefer: `SupConLoss` for two augmented views of a cycle, `OrthogonalProjectionLoss` where the spread of the
    distances does not matter.

    Args:
        weights: Always in the order (mu_pos, sigma_pos, mu_neg, sigma_neg); soft labels use the first two, "released"
            the first.
        variant: "paper" (equations 1-5, and 7-8 for label rows), "soft" (equations 7-8 for any labels), "released"
            (the authors' registered class: `l1 mean((d_label - d)^2)` over all batch * batch entries) or "legacy"
            (their older class: `l1 mean(d | P+)^2 + l2 std(d | P+) + l3 (1 - mean(d | P-))^2 + l4 std(d | P-)`). On one
            batch they differ by a factor of six, so always report the variant.

    Raises:
        ValueError: if the variant is unknown or there are not four finite weights.

    Reference: Almudévar et al., Angular Distance Distribution Loss for Audio Classification, 2024.
    """

    soft_labels: ClassVar[bool] = True
    citation: ClassVar[str] = """@article{almudevar2024add,
  title={Angular Distance Distribution Loss for Audio Classification},
  author={Almud{\\'e}var, Antonio and Serizel, Romain and Ortega, Alfonso},
  journal={arXiv preprint arXiv:2411.00153},
  year={2024}
}"""

    def __init__(
        self, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0), variant: str = "paper"
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown ADD variant {variant!r}; choose one of {', '.join(VARIANTS)}")
        if len(weights) != 4 or not all(math.isfinite(weight) for weight in weights):
            raise ValueError(f"ADD needs four weights (mu_pos, sigma_pos, mu_neg, sigma_neg), not {tuple(weights)}")
        self.weights = tuple(float(weight) for weight in weights)
        self.variant = variant

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the variant.

        Args:
            embeddings: (batch, dim); "released" and "legacy" also take (batch, tokens, dim) and average over tokens.
                Normalised here. Above 1024 rows, "paper" with integer labels never holds the pair matrix in memory.
            labels: Integers (batch,), or soft or one-hot rows (batch, classes).

        Returns:
            Named scalars as in the class docstring.

        Raises:
            ValueError: if the shapes do not fit, an integer label is negative, or a soft label is negative, not finite
                or empty.
        """
        if self.variant in ("released", "legacy") and embeddings.ndim == 3:
            embeddings = widened(embeddings).mean(dim=1)  # (batch, tokens, dim) -> (batch, dim)
        check_embeddings(embeddings, labels)
        hard = labels.ndim == 1 or (labels.shape[1] == 1 and not labels.is_floating_point())
        labels = class_indices(labels) if hard else labels
        l1, l2, l3, l4 = self.weights
        with full_precision(embeddings):
            z = normalise(embeddings)
            if hard and self.variant == "paper":
                of_pairs = paper_terms if len(z) <= blocks.LARGEST_MATRIX else blocks.add_terms
                (mu_pos, sigma_pos, mu_neg, sigma_neg), counts = of_pairs(z, labels)
                terms = {
                    "add_mu_pos": l1 * mu_pos,
                    "add_sigma_pos": l2 * sigma_pos,
                    "add_mu_neg": l3 * mu_neg,
                    "add_sigma_neg": l4 * sigma_neg,
                }
                self.pairs = dict(zip(terms, counts, strict=True))
                return terms
            d = 1 - z @ z.T  # (batch, batch)
            dy = self._label_distances(labels, z.dtype)
            others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
            identical = dy < IDENTICAL_LABEL_DISTANCE
            if self.variant == "released":  # the diagonal counts too
                self.pairs = {"add_mu": d.numel()}
                return {"add_mu": l1 * mean((dy - d).square().flatten())}
            if self.variant == "legacy":  # distances are not squared before the mean
                positive, negative = d[others & identical], d[~identical]  # (pairs,)
                counts = [len(positive)] * 2 + [len(negative)] * 2
                terms = {
                    "add_mu_pos": l1 * mean(positive).square(),
                    "add_sigma_pos": l2 * std(positive),
                    "add_mu_neg": l3 * ((1 - mean(negative)).square() if len(negative) else absent(z)),  # 0, not 1
                    "add_sigma_neg": l4 * std(negative),
                }
            else:  # equations 7-8
                gaps, positive = (dy - d)[others].square(), d[others & identical].square()  # (pairs,)
                counts = [len(gaps), len(positive)]
                terms = {"add_mu": l1 * mean(gaps), "add_sigma_pos": l2 * std(positive)}
            self.pairs = dict(zip(terms, counts, strict=True))
            return terms

    def _label_distances(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """One minus the cosine of the labels, (batch, batch)."""
        if labels.ndim == 1:
            return (labels[:, None] != labels[None, :]).to(dtype)
        rows = label_rows(labels, dtype)
        if self.variant != "released":  # cycles without a class form one: append a coordinate for it
            rows = torch.cat([rows, (rows == 0).all(dim=1, keepdim=True).to(dtype)], dim=1)
        rows = normalise(rows)
        return 1 - rows @ rows.T


def paper_terms(z: Tensor, labels: Tensor) -> tuple[list[Tensor], list[int]]:
    """Equations 1-5: the four terms and their pair counts, of rows of length 1 (batch, dim) and classes (batch,)."""
    d = 1 - z @ z.T  # (batch, batch)
    same, different = ordered_pairs(labels)
    positive, negative = d[same].square(), (1 - d[different]).square()  # (pairs,)
    return [mean(positive), std(positive), mean(negative), std(negative)], [len(positive)] * 2 + [len(negative)] * 2
