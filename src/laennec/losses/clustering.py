"""Stage 5, losses: deep clustering of the frame groups of a cycle (CycleGuardian).

Decided here: the target is normalised over the groups of one cycle, not over the batch, and is trained through (not a
constant), both as the authors do; the default is the mean over cycles and groups, because the authors' sum grows with
the batch and so ties the weight to its size.
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
        self.centers = nn.Parameter(nn.init.xavier_normal_(torch.empty(clusters, dim)))
        self.alpha = float(alpha)
        self.reduction = reduction
        self.detach_target = detach_target
        self.pairs: dict[str, int] = {}

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
    def target(q: Tensor) -> Tensor:
        """Sharpened assignment p of the same shape, from q (batch, groups, clusters)."""
        tiny = torch.finfo(q.dtype).tiny
        sharp = q.square() / q.sum(dim=1, keepdim=True).clamp_min(tiny)
        return sharp / sharp.sum(dim=-1, keepdim=True).clamp_min(tiny)

    def forward(self, groups: Tensor) -> dict[str, Tensor]:
        """Return `{"clustering": scalar}`; `pairs` counts the groups.

        Args:
            groups: embeddings (batch, groups, dim).

        Raises:
            ValueError: if the shape does not fit.
        """
        check_embeddings(groups, dims=3)
        count = groups.shape[0] * groups.shape[1]
        self.pairs = {"clustering": count}
        if not count:
            return {"clustering": absent(groups) + absent(self.centers)}
        with full_precision(groups):
            q = self.soft_assignment(groups)
            p = self.target(q.detach() if self.detach_target else q)
            divergence = (p * (p.clamp_min(1e-30).log() - (q + 1e-10).log())).sum()
        return {"clustering": divergence / (count if self.reduction == "mean" else 1)}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}, clusters={self.centers.shape[0]}, alpha={self.alpha}"


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
        self.matrix = nn.Parameter(torch.eye(dim))
        self.pairs: dict[str, int] = {}

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
