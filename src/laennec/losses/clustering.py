"""Deep clustering of the frame groups of a cycle (CycleGuardian).

Decisions: the target is normalised over the groups of one cycle, not over the batch, and carries a gradient, both as in
the authors' code. The default is the mean over cycles and groups, because the authors' sum grows with the batch and so
ties the weight to its size. Masked groups (beyond a cycle's end) do not count.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.base import Loss, absent, check_embeddings, full_precision, widened

_CITATION = """@article{chu2025cycleguardian,
  title={CycleGuardian: A Framework for Automatic Respiratory Sound Classification Based on Improved Deep Clustering and
    Contrastive Learning},
  author={Chu, Yun and Wang, Qiuhao and Zhou, Enze and Fu, Ling and Liu, Qian and Zheng, Gang},
  journal={arXiv preprint arXiv:2502.00734},
  year={2025}
}"""


class DeepClusteringLoss(Loss):
    """Sharpen the soft assignment of frame groups to clusters.

    Formula: q_gk proportional to `(1 + |z_g - c_k|^2 / alpha)^(-(alpha + 1) / 2)`; target p_gk proportional to
    `q_gk^2 / sum_g q_gk` over the cycle's own groups, both normalised over clusters; `KL(p || q)`.

    Batch: embeddings of groups of frames of each cycle (the bottleneck of an auto-encoder), any order of cycles.

    Returns: `clustering`; `pairs` counts the groups.

    Prefer: a loss with labels, and this one in addition to it: alone it separates clusters of any cause.

    Args:
        clusters: Number of clusters; the default sizes are the published ones.
        dim: Of the group embeddings.
        alpha: Degrees of freedom of the Student t.
        reduction: "mean" over cycles and groups, or "sum" (the authors').

    Raises:
        ValueError: if a number is not positive or the reduction unknown.

    Reference: Chu et al., CycleGuardian, 2025; Xie et al., Unsupervised Deep Embedding for Clustering Analysis, ICML
    2016.
    """

    citation: ClassVar[str] = _CITATION
    labels: ClassVar[str] = "cycle"
    across_cycles: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = True
    on: ClassVar[str] = "bottleneck"

    def __init__(self, clusters: int = 4, dim: int = 128, *, alpha: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        if min(clusters, dim, alpha) <= 0:
            raise ValueError(f"clusters {clusters}, dim {dim} and alpha {alpha} must be positive")
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
        self.centers = nn.Parameter(torch.empty(clusters, dim))
        self.reset_parameters()
        self.alpha = float(alpha)
        self.reduction = reduction
        self.variant = reduction

    def reset_parameters(self) -> None:
        """Draw new centers."""
        nn.init.xavier_normal_(self.centers)

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
            groups: Embeddings (batch, groups, dim).
            mask: (batch, groups) bool, True on groups of real frames; None where all are.

        Raises:
            ValueError: if the shapes do not fit.
        """
        check_embeddings(groups, dims=3)
        if mask is not None and mask.shape != groups.shape[:2]:
            raise ValueError(f"a mask of {tuple(mask.shape)} does not fit groups {tuple(groups.shape)}")
        mask = torch.ones_like(groups[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        groups, count = groups.masked_fill(~mask[..., None], 0.0), int(mask.sum())
        self.pairs = {"clustering": count}
        if not count:
            return {"clustering": absent(groups) + absent(self.centers)}
        with full_precision(groups):
            q = self.soft_assignment(groups)
            p = self.target(q, mask)
            each = (p * (p.clamp_min(1e-30).log() - (q + 1e-10).log())).sum(dim=-1)
            divergence = (each * mask).sum()
        return {"clustering": divergence / (count if self.reduction == "mean" else 1)}


class ClusterSimilarityLoss(Loss):
    """Make the clusters of a cycle dissimilar.

    Formula: sum over unordered pairs of clusters of the batch mean of `|x . (y M)| / (|x M| |y M| + 1e-10)`, M a
    learnable matrix, initially the identity.

    Batch: one vector for each cluster of each cycle (`DeepClusteringLoss` makes the clusters), any order of cycles.

    Returns: `cluster_similarity`; `pairs` counts pairs of clusters times cycles.

    Prefer: `OrthogonalProjectionLoss` to separate classes instead of clusters.

    Args:
        dim: Of the vectors.

    Reference: Chu et al., CycleGuardian, 2025.
    """

    citation: ClassVar[str] = _CITATION
    labels: ClassVar[str] = "cycle"
    across_cycles: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = True
    on: ClassVar[str] = "vectors"

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(dim, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the matrix to the identity."""
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
            projected = x @ self.matrix.to(x.dtype)  # (clusters, batch, dim)
            length = projected.norm(dim=-1)
            product = (x[first] * projected[second]).sum(dim=-1).abs()  # (pairs, batch)
            similarity = product / (length[first] * length[second] + 1e-10)
            return {"cluster_similarity": similarity.mean(dim=1).sum()}
