"""Frame groups of a cycle in clusters, the layers that CycleGuardian's losses need (training only).

Decisions: a group is a token of the encoder (with encoder.group_frames, a group of frames encoded by itself). Each
group belongs to its most likely cluster, as published; the gradient passes through the soft assignment, so that
similarity and contrast move the centers too (in the published code only the divergence does). The vector of a cluster
is the mean of its groups; the published code trains a weight for each position in the cycle, which fixes the length. A
cluster without groups has the vector zero, as published. The head classifies from the encoder's embedding, because
these layers are removed when training ends; the published network classifies from the clusters. The decoder of its
auto-encoder enters no published term and is left out. The projections of the contrast are trained; the published code
does not pass them to the optimiser. Clean and mixed cycles are separate terms, as in the published total.

Reference: Chu et al., CycleGuardian, 2025, and its public code.
"""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from torch import Tensor, nn

from laennec.losses import DeepClusteringLoss

CLUSTERS, WIDTH = 4, 128  # the published numbers


class CleanAndMixed(nn.Module):
    """One loss over clean cycles and, where a batch has them, mixed ones: `<term>_clean` and `<term>_mixed`.

    Args:
        loss: Returns named terms.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss: Any = loss
        self.pairs: dict[str, int] = {}

    @property
    def citation(self) -> str:
        """BibTeX of the loss."""
        return str(self.loss.citation)

    def forward(self, clean: Sequence[Tensor], mixed: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
        """The terms of both copies; without mixed cycles the terms keep the names of the loss."""
        if mixed is None:
            terms: dict[str, Tensor] = self.loss(*clean)
            self.pairs = dict(self.loss.pairs)
            return terms
        terms, self.pairs = {}, {}
        for suffix, inputs in (("clean", clean), ("mixed", mixed)):
            terms |= {f"{name}_{suffix}": value for name, value in self.loss(*inputs).items()}
            self.pairs |= {f"{name}_{suffix}": count for name, count in self.loss.pairs.items()}
        return terms

    def extra_repr(self) -> str:
        """Variant and settings of the loss."""
        return f"{type(self.loss).__name__}: {self.loss.extra_repr()}"


class ClusterView(NamedTuple):
    """The inputs of the cluster losses and contrasts.

    Attributes:
        groups: (batch, groups, dim), the encoder's tokens.
        mask: (batch, groups) bool, True on groups of real frames.
        bottleneck: (batch, groups, narrow), of the auto-encoder.
        vectors: (batch, clusters, width), one for each cluster of each cycle.
        joint: (batch, width), one for each cycle.

    The last two are None where no loss takes them.
    """

    groups: Tensor
    mask: Tensor
    bottleneck: Tensor
    vectors: Tensor | None
    joint: Tensor | None


class GroupClusters(nn.Module):
    """Auto-encoder, soft assignment to clusters, one vector for each cluster and one for the cycle.

    Args:
        clusters: How many.
        narrow: Width of the auto-encoder's bottleneck.
        dim: Width of the encoder's tokens.
        width: Width of the vectors.
        needed: Which of "vectors" and "joint" the losses take: there is no unused layer, because DDP waits for the
            gradient of each.
    """

    def __init__(self, clusters: int, narrow: int, dim: int, width: int, needed: Set[str]) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Linear(dim, narrow), nn.ReLU())
        self.describe: nn.Module | None = None
        self.join: nn.Module | None = None
        self.finish = nn.Sequential(nn.GELU(), nn.LayerNorm(width)) if "joint" in needed else None
        if needed & {"vectors", "joint"}:
            self.describe = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.LayerNorm(width))
        if "joint" in needed:
            self.join = nn.Linear(clusters, 1)

    def forward(self, groups: Tensor, mask: Tensor, loss: DeepClusteringLoss) -> ClusterView:
        """Tokens (batch, groups, dim), which of them are real (batch, groups), and the loss that holds the centers."""
        groups = groups.to(loss.centers.dtype)
        bottleneck = self.reduce(groups)
        if self.describe is None:
            return ClusterView(groups, mask, bottleneck, None, None)
        soft = loss.soft_assignment(bottleneck)  # (batch, groups, clusters)
        hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        member = (hard + soft - soft.detach()) * mask[..., None]  # hard in value, soft in gradient
        members = (hard * mask[..., None]).sum(1).clamp_min(1)[..., None]  # (batch, clusters, 1)
        # (batch, clusters, groups) x (batch, groups, dim) -> (batch, clusters, dim) -> (batch, clusters, width)
        vectors = self.describe(member.transpose(1, 2) @ groups / members)
        joint = None
        if self.join is not None and self.finish is not None:
            joint = self.finish(self.join(vectors.transpose(1, 2)).squeeze(2))
        return ClusterView(groups, mask, bottleneck, vectors, joint)


def cluster_inputs(which: str, view: ClusterView) -> tuple[Tensor, ...]:
    """What one cluster loss is called with, batch first; `which` is "bottleneck" or "vectors"."""
    if which == "bottleneck":
        return view.bottleneck, view.mask
    assert view.vectors is not None
    return (view.vectors,)
