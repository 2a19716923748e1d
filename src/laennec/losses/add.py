"""Angular distance distribution (ADD) loss.

Decisions: pairs are ordered, as in the authors' masks. The standard deviation of fewer than two distinct pairs is 0
with zero gradient, because it is undefined. The variant is named wherever the loss is printed, since unequal losses go
by this name. Soft labels are "identical" below a label distance of 1e-3; a label row of zeros is a class of its own.
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
        with full_precision(embeddings):
            z = normalise(embeddings)
            if labels.ndim == 1 or (labels.shape[1] == 1 and not labels.is_floating_point()):
                labels = class_indices(labels)
                if self.variant == "paper":
                    return self._paper(z, labels)
            dy = 1 - self._label_similarity(labels, z.dtype)
            return self._legacy(z, dy) if self.variant == "legacy" else self._soft(z, dy)

    def _paper(self, z: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Equations 1-5."""
        if len(z) > blocks.LARGEST_MATRIX:
            return self._weighted(*blocks.add_terms(z, labels))
        d = 1 - z @ z.T  # (batch, batch)
        same, different = ordered_pairs(labels)
        positive, negative = d[same].square(), (1 - d[different]).square()  # (pairs,)
        terms = [mean(positive), std(positive), mean(negative), std(negative)]
        return self._weighted(terms, [len(positive), len(positive), len(negative), len(negative)])

    def _legacy(self, z: Tensor, dy: Tensor) -> dict[str, Tensor]:
        """The authors' older class: distances are not squared before the mean."""
        d = 1 - z @ z.T  # (batch, batch)
        same = dy < IDENTICAL_LABEL_DISTANCE
        positive, negative = d[same.clone().fill_diagonal_(False)], d[~same]  # (pairs,)
        mu_neg = (1 - mean(negative)).square() if len(negative) else absent(z)  # not (1 - 0)^2
        terms = [mean(positive).square(), std(positive), mu_neg, std(negative)]
        return self._weighted(terms, [len(positive), len(positive), len(negative), len(negative)])

    def _weighted(self, terms: list[Tensor], counts: list[int]) -> dict[str, Tensor]:
        names = ("add_mu_pos", "add_sigma_pos", "add_mu_neg", "add_sigma_neg")
        self.pairs = dict(zip(names, counts, strict=True))
        return {name: weight * term for name, weight, term in zip(names, self.weights, terms, strict=True)}

    def _soft(self, z: Tensor, dy: Tensor) -> dict[str, Tensor]:
        """Equations 7-8, or "released", which also counts the diagonal and has no deviation."""
        dz = 1 - z @ z.T  # (batch, batch)
        if self.variant == "released":
            self.pairs = {"add_mu": dz.numel()}
            return {"add_mu": self.weights[0] * mean((dy - dz).square().flatten())}
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        gaps = (dy - dz)[others].square()  # (pairs,)
        identical = dz[others & (dy < IDENTICAL_LABEL_DISTANCE)].square()  # (pairs,)
        self.pairs = {"add_mu": len(gaps), "add_sigma_pos": len(identical)}
        return {"add_mu": self.weights[0] * mean(gaps), "add_sigma_pos": self.weights[1] * std(identical)}

    def _label_similarity(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Cosine similarity of the labels, (batch, batch)."""
        if labels.ndim == 1:
            return (labels[:, None] == labels[None, :]).to(dtype)
        rows = label_rows(labels, dtype)
        if self.variant != "released":  # cycles of no class form a class: give them a coordinate of their own
            rows = torch.cat([rows, (rows == 0).all(dim=1, keepdim=True).to(dtype)], dim=1)
        rows = normalise(rows)
        return rows @ rows.T
