"""Deep clustering of the frame groups of a cycle (CycleGuardian).

Decisions: the target is normalised over the groups of one cycle, not over the batch, and is trained through (not a
constant), both as the authors do; the default is the mean over cycles and groups, because the authors' sum grows with
the batch and so ties the weight to its size. Groups beyond a cycle's end (a mask says which) count nowhere.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.pairs import absent, check_embeddings, full_precision, widened

_CITATION = """@article{chu2025cycleguardian,
  title={CycleGuardian: A Framework for Automatic Respiratory Sound Classification Based on Improved Deep Clustering and
    Contrastive Learning},
  author={Chu, Yun and Wang, Qiuhao and Zhou, Enze and Fu, Ling and Liu, Qian and Zheng, Gang},
  journal={arXiv preprint arXiv:2502.00734},
  year={2025}
}"""


class DeepClusteringLoss(nn.Module):
    """Sharpen the soft assignment of frame groups to clusters.

    Formula: q_gk proportional to `(1 + |z_g - c_k|^2 / alpha)^(-(alpha + 1) / 2)`; target p_gk proportional to
    `q_gk^2 / sum_g q_gk` over the cycle's own groups, both normalised over clusters; `KL(p || q)`.

    Batch: embeddings of groups of frames of each cycle (the bottleneck of an auto-encoder), any order of cycles.

    Returns: `clustering`; `pairs` counts the groups.

    Prefer: a loss that sees labels, and this beside it: it draws apart what is there, whatever that is.

    Args:
        clusters: how many.
        dim: of the group embeddings.
        alpha: degrees of freedom of the Student t.
        reduction: "mean" over cycles and groups, or "sum" (the authors').
        detach_target: True treats p as a constant (as in DEC).

    Raises:
        ValueError: if a number is not positive or the reduction unknown.

    Reference: Chu et al., CycleGuardian, 2025; Xie et al., Unsupervised Deep Embedding for Clustering Analysis, ICML
    2016.
    """

    citation: ClassVar[str] = _CITATION

    def __init__(
        self, clusters: int, dim: int, *, alpha: float = 1.0, reduction: str = "mean", detach_target: bool = False
    ) -> None:
        super().__init__()
        if min(clusters, dim, alpha) <= 0:
            raise ValueError(f"clusters {clusters}, dim {dim} and alpha {alpha} must be positive")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
        self.centers = nn.Parameter(torch.empty(clusters, dim))
        self.reset_parameters()
        self.alpha = float(alpha)
        self.reduction = reduction
        self.detach_target = detach_target
        self.pairs: dict[str, int] = {}

    def reset_parameters(self) -> None:
        """Draw the centers anew."""
        nn.init.xavier_normal_(self.centers)

    @property
    def variant(self) -> str:
        """Which sum and which gradient."""
        return f"{self.reduction}, target {'constant' if self.detach_target else 'trained'}"

    def soft_assignment(self, groups: Tensor) -> Tensor:
        """Probability of each cluster: groups (batch, groups, dim) -> q (batch, groups, clusters)."""
        with full_precision(groups):
            x, centers = widened(groups), self.centers.to(widened(groups).dtype)
            distance = (x[..., None, :] - centers).square().sum(dim=-1)
            return torch.softmax(-(self.alpha + 1) / 2 * torch.log1p(distance / self.alpha), dim=-1)

    @staticmethod
    def target(q: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sharpened assignment p of the same shape, from q (batch, groups, clusters); mask as in `forward`."""
        tiny = torch.finfo(q.dtype).tiny
        frequency = (q if mask is None else q * mask[..., None]).sum(dim=1, keepdim=True)
        sharp = q.square() / frequency.clamp_min(tiny)
        return sharp / sharp.sum(dim=-1, keepdim=True).clamp_min(tiny)

    def forward(self, groups: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `{"clustering": scalar}`; `pairs` counts the groups.

        Args:
            groups: embeddings (batch, groups, dim).
            mask: (batch, groups) bool, True on groups of real frames; None where all are.

        Raises:
            ValueError: if the shapes do not fit.
        """
        groups, mask, count = _real(groups, mask)
        self.pairs = {"clustering": count}
        if not count:
            return {"clustering": absent(groups) + absent(self.centers)}
        with full_precision(groups):
            q = self.soft_assignment(groups)
            p = self.target(q.detach() if self.detach_target else q, mask)
            each = (p * (p.clamp_min(1e-30).log() - (q + 1e-10).log())).sum(dim=-1)
            divergence = (each if mask is None else each * mask).sum()
        return {"clustering": divergence / (count if self.reduction == "mean" else 1)}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, clusters={self.centers.shape[0]}, alpha={self.alpha}"


def _real(groups: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    """Groups with zeros for those that are not real, and how many are."""
    check_embeddings(groups, dims=3)
    if mask is None:
        return groups, None, groups.shape[0] * groups.shape[1]
    if mask.shape != groups.shape[:2]:
        raise ValueError(f"a mask of {tuple(mask.shape)} does not fit groups {tuple(groups.shape)}")
    mask = mask.bool()
    return groups.masked_fill(~mask[..., None], 0.0), mask, int(mask.sum())


class ReconstructionLoss(nn.Module):
    """Keep an auto-encoder's bottleneck able to give the groups of frames back.

    Formula: mean of `(decoded - groups)^2` over real groups and dimensions; the groups are constants, because the
    encoder would otherwise make them easy to give back by making them alike.

    Batch: the groups of each cycle and what the auto-encoder made of them, any order of cycles.

    Returns: `reconstruction`; `pairs` counts the groups.

    Prefer: to leave it out, as CycleGuardian's published total does; add it where the bottleneck loses what tells
    cycles apart.

    Reference: Xie et al., Unsupervised Deep Embedding for Clustering Analysis, ICML 2016.
    """

    citation: ClassVar[str] = _CITATION
    variant = "mean squared, groups constant"

    def __init__(self) -> None:
        super().__init__()
        self.pairs: dict[str, int] = {}

    def forward(self, decoded: Tensor, groups: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return `{"reconstruction": scalar}`; `pairs` counts the groups.

        Args:
            decoded: (batch, groups, dim).
            groups: (batch, groups, dim).
            mask: (batch, groups) bool, True on groups of real frames; None where all are.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if decoded.shape != groups.shape:
            raise ValueError(f"decoded {tuple(decoded.shape)} and groups {tuple(groups.shape)} must match")
        decoded, mask, count = _real(decoded, mask)
        self.pairs = {"reconstruction": count}
        if not count or not decoded.shape[-1]:
            return {"reconstruction": absent(decoded)}
        with full_precision(decoded):
            target = _real(groups.detach(), mask)[0]
            squares = (widened(decoded) - widened(target)).square().sum()
            return {"reconstruction": squares / (count * decoded.shape[-1])}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}"


class ClusterSimilarityLoss(nn.Module):
    """Make the clusters of a cycle unlike one another.

    Formula: sum over unordered pairs of clusters of the batch mean of `|x . (y M)| / (|x M| |y M| + 1e-10)`, M a
    learnable matrix that begins as the identity.

    Batch: one vector for each cluster of each cycle (`DeepClusteringLoss` makes the clusters), any order of cycles.

    Returns: `cluster_similarity`; `pairs` counts pairs of clusters times cycles.

    Prefer: `OrthogonalProjectionLoss` to set classes, not clusters, apart.

    Args:
        dim: of the vectors.

    Reference: Chu et al., CycleGuardian, 2025.
    """

    citation: ClassVar[str] = _CITATION
    variant = "cycleguardian"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(dim, dim))
        self.reset_parameters()
        self.pairs: dict[str, int] = {}

    def reset_parameters(self) -> None:
        """Begin with the identity again."""
        nn.init.eye_(self.matrix)

    def forward(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return `{"cluster_similarity": scalar}`; `pairs` counts pairs of clusters times cycles.

        Args:
            vectors: (clusters, batch, dim), clusters first as in the authors' code.

        Raises:
            ValueError: if the shape does not fit.
        """
        check_embeddings(vectors, dims=3)
        clusters, batch, _ = vectors.shape
        first, second = torch.triu_indices(clusters, clusters, 1, device=vectors.device)
        self.pairs = {"cluster_similarity": batch * len(first)}
        if not batch * len(first):
            return {"cluster_similarity": absent(vectors) + absent(self.matrix)}
        with full_precision(vectors):
            x = widened(vectors)
            turned = x @ self.matrix.to(x.dtype)  # (clusters, batch, dim)
            length = turned.norm(dim=-1)
            product = (x[first] * turned[second]).sum(dim=-1).abs()  # (pairs, batch)
            likeness = product / (length[first] * length[second] + 1e-10)
            return {"cluster_similarity": likeness.mean(dim=1).sum()}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, dim={self.matrix.shape[0]}"
