"""Angular distance distribution (ADD).

Decisions: the variant is named wherever the loss is printed, since three unequal losses go by this name; weights are
in the order of the paper in all of them; soft labels are "identical" below a label distance of 1e-3; a label row of
zeros is a class of its own. Which pairs count, and what an absent one does, is decided in `moments.py`.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.moments import Group, PairMoments, Quantity
from laennec.losses.pairs import check_embeddings, class_indices, full_precision, label_rows, normalise, widened

VARIANTS = ("paper", "soft", "released", "legacy")
_SQUARED_DISTANCE = Quantity(lambda s, t: (1 - s).square_(), lambda s, t: (s - 1).mul_(2))
_SQUARED_SIMILARITY = Quantity(lambda s, t: s.square(), lambda s, t: 2 * s)
_DISTANCE = Quantity(lambda s, t: 1 - s, lambda s, t: torch.full_like(s, -1.0))
_LABEL_GAP = Quantity(lambda s, t: (s - t.to(s.dtype)).square_(), lambda s, t: (s - t.to(s.dtype)).mul_(2))

_HARD: tuple[Group, ...] = (("same", _SQUARED_DISTANCE), ("different", _SQUARED_SIMILARITY))
_LEGACY: tuple[Group, ...] = (("same", _DISTANCE), ("different", _DISTANCE))
_SOFT: tuple[Group, ...] = (("all", _LABEL_GAP), ("same", _SQUARED_DISTANCE))
_RELEASED: tuple[Group, ...] = (("all", _LABEL_GAP),)


class AngularDistanceDistributionLoss(nn.Module):
    """Pull the angular distances within a class towards 0 and between classes towards 1, and make both narrow.

    Formula: with d = 1 - cosine, over ordered pairs of equal label (P+) and of different label (P-),
    `l1 mean(d^2 | P+) + l2 std(d^2 | P+) + l3 mean((1-d)^2 | P-) + l4 std((1-d)^2 | P-)`.
    Soft labels (eq. 7-8): `l1 mean_{i != j} (d_label - d)^2 + l2 std(d^2 | identical labels)`; a row of flags that are
    all 0 (a cycle with neither crackle nor wheeze) counts as a class of its own.

    Batch: at least two cycles of some class and two classes; any shuffled batch of 16 or more does
    (`laennec.training.samplers.EpochSampler`), and `ClassesTimesSamplesSampler` makes sure of it.

    Returns: `add_mu_pos`, `add_sigma_pos`, `add_mu_neg`, `add_sigma_neg`; soft labels `add_mu`, `add_sigma_pos`;
    "released" `add_mu`. Weights applied; `pairs` counts the ordered pairs of each.

    Prefer: `SupConLoss` for two augmented views of a cycle, `OrthogonalProjectionLoss` where equal spreads are not
    wanted. There is no second derivative: a gradient penalty needs another loss.

    Args:
        weights: always in the order (mu_pos, sigma_pos, mu_neg, sigma_neg); soft labels and "released" use the first
            ones.
        variant: "paper" (equations 1-5, and 7-8 for label rows), "soft" (equations 7-8 for any labels), "released"
            (the authors' registered class: `l1 mean((d_label - d)^2)`
            over all batch * batch entries, embeddings (batch, tokens, dim) averaged over tokens first) or "legacy"
            (their older class: `l1 mean(d | P+)^2 + l2 std(d | P+) + l3 (1 - mean(d | P-))^2 + l4 std(d | P-)`). The
            three differ by a factor of six on one input, so always say which one ran.

    Raises:
        ValueError: if the variant is unknown or there are not four finite weights.

    Reference: Almudévar et al., Angular Distance Distribution Loss for Audio Classification, 2024.
    """

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
        self.pairs: dict[str, int] = {}

    def forward(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the chosen variant.

        Args:
            embeddings: (batch, dim); "released" also takes (batch, tokens, dim). Normalised here.
            labels: integers (batch,), or soft or one-hot rows (batch, classes).

        Returns:
            Hard labels: `add_mu_pos`, `add_sigma_pos`, `add_mu_neg`, `add_sigma_neg`. Soft labels: `add_mu`,
            `add_sigma_pos`. "released": `add_mu`. Scalars, weights applied; `pairs` counts the ordered pairs of each.

        Raises:
            ValueError: if the shapes do not fit, an integer label is negative, or a soft label is negative, not finite
                or empty.
        """
        if self.variant == "released" and embeddings.ndim == 3:
            embeddings = widened(embeddings).mean(dim=1)  # (batch, tokens, dim) -> (batch, dim)
        check_embeddings(embeddings, labels)
        with full_precision(embeddings):
            z = normalise(embeddings)
            targets = self._targets(labels, z.dtype)
            if self.variant == "released":
                return self._released(z, targets)
            if self.variant == "soft" or (self.variant == "paper" and targets.ndim == 2):
                return self._soft(z, targets)
            return self._hard(z, targets)

    def _targets(self, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """Integer labels as they are; label rows at length 1."""
        if labels.ndim != 2:
            return class_indices(labels)  # refuses anything but integers here
        if labels.shape[1] == 1 and not labels.is_floating_point():
            return class_indices(labels)
        rows = label_rows(labels, dtype)
        if self.variant != "released":
            # rows without any class form a class: give them a coordinate of their own
            rows = torch.cat([rows, (rows == 0).all(dim=1, keepdim=True).to(dtype)], dim=1)
        return normalise(rows)

    def _hard(self, z: Tensor, targets: Tensor) -> dict[str, Tensor]:
        legacy = self.variant == "legacy"
        mean, deviation, counts = PairMoments.apply(z, targets, _LEGACY if legacy else _HARD)
        positive, negative = counts.tolist()
        self.pairs = {
            "add_mu_pos": positive,
            "add_sigma_pos": positive,
            "add_mu_neg": negative,
            "add_sigma_neg": negative,
        }
        mu_pos, mu_neg = mean.unbind()
        if legacy:
            # without a negative pair the term is absent, and (1 - 0)^2 would be a constant 1
            mu_pos, mu_neg = mu_pos.square(), (1 - mu_neg).square() if negative else mu_neg
        terms = (mu_pos, deviation[0], mu_neg, deviation[1])
        return {name: weight * term for name, weight, term in zip(self.pairs, self.weights, terms, strict=True)}

    def _soft(self, z: Tensor, targets: Tensor) -> dict[str, Tensor]:
        mean, deviation, counts = PairMoments.apply(z, targets, _SOFT)
        every, identical = counts.tolist()
        self.pairs = {"add_mu": every, "add_sigma_pos": identical}
        return {"add_mu": self.weights[0] * mean[0], "add_sigma_pos": self.weights[1] * deviation[1]}

    def _released(self, z: Tensor, targets: Tensor) -> dict[str, Tensor]:
        mean, _, counts = PairMoments.apply(z, targets, _RELEASED)
        batch = len(z)
        self.pairs = {"add_mu": batch * batch}
        own = z.detach().square().sum(dim=1)
        own_label = targets.square().sum(dim=1) if targets.ndim == 2 else torch.ones_like(own)
        # the diagonal is 0 unless an embedding or a label row is all zeros; it never carries a gradient
        total = mean[0] * counts[0] + (own - own_label).square().sum()
        return {"add_mu": self.weights[0] * total / max(1, batch * batch)}

    def extra_repr(self) -> str:
        """Say which of these losses this is."""
        return f"variant={self.variant!r}, weights (mu_pos, sigma_pos, mu_neg, sigma_neg)={self.weights}"
