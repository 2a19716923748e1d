"""Layers that only auxiliary losses need; they are part of the model during training.

Decisions: the optimiser, checkpoints and DDP need these layers and the weights of trainable losses, so they are a
module of the model during training. They are removed when training ends: a saved model holds none of them.

Frame groups of a cycle form clusters for CycleGuardian's losses. A group is a token of the encoder (with
encoder.group_frames, a group of frames encoded by itself). Each group belongs to its most likely cluster, as published;
the gradient passes through the soft assignment, so that similarity and contrast move the centers too (in the published
code only the divergence does). The vector of a cluster is the mean of its groups, zero where it has none; the published
code trains a weight for each position in the cycle, which fixes the length. The head classifies from the encoder's
embedding; the published network classifies from the clusters. The decoder of its auto-encoder enters no published term
and is left out. The projections of the contrast are trained; the published code does not pass them to the optimiser.

Reference: Chu et al., CycleGuardian, 2025, and its public code.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from laennec.head import LaennecOutput
from laennec.losses import ClusterSimilarityLoss, DeepClusteringLoss, GradientReversal
from laennec.training.objectives.loss_specs import LossSpec

_CLUSTER_WIDTH = 128  # as published


class AuxiliaryHeads(nn.Module):
    """Layers that belong to single losses, on the embedding or on the encoder's tokens.

    They are projections, classifiers behind a gradient reversal, clusters of frame groups, and losses with a state.

    Args:
        specs: All auxiliary losses.
        dim: Width of the embedding.
        groups: Number of groups of each adversarial loss's column, by the loss's name.
        seed: Seed of the random weights.
        task_loss: The author's own task loss, which may have weights too.
    """

    def __init__(
        self,
        specs: Sequence[LossSpec],
        dim: int,
        groups: Mapping[str, int],
        seed: int,
        task_loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.reversal = GradientReversal()
        self.active = True
        self.cluster_inputs = {s.name: s.on for s in specs if s.takes_frame_groups}
        self.unprojected = {s.name for s in specs if s.project_mixed}
        self.on_clusters = [s.name for s in specs if s.on == "clusters"]
        self._tokens: tuple[Tensor, Tensor] | None = None
        centers: Any = next((s.inner for s in specs if s.is_a(DeepClusteringLoss)), None)
        similarity: Any = next((s.inner for s in specs if s.is_a(ClusterSimilarityLoss)), None)
        width = _CLUSTER_WIDTH if similarity is None else len(similarity.matrix)  # of a cluster's vector
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = {s.name: width if s.on == "clusters" else dim for s in specs}
            projected = {s.name: widths[s.name] if s.project_mixed else s.projection_dim for s in specs}
            projected = {name: width for name, width in projected.items() if width}
            self.projections = nn.ModuleDict(
                {
                    name: nn.Sequential(nn.Linear(widths[name], widths[name]), nn.ReLU(), nn.Linear(widths[name], out))
                    for name, out in projected.items()
                }
            )
            widths |= projected
            self.adversaries = nn.ModuleDict({name: nn.Linear(widths[name], count) for name, count in groups.items()})
            losses = {s.name: s.loss for s in specs} | ({} if task_loss is None else {"task": task_loss})
            self.losses = nn.ModuleDict({name: loss for name, loss in losses.items() if loss.state_dict()})
            for loss in self.losses.modules():
                if isinstance(loss, DeepClusteringLoss | ClusterSimilarityLoss):
                    loss.reset_parameters()
            self.clusters: GroupClusters | None = None
            if centers is not None:
                needed = set(self.cluster_inputs.values()) | ({"joint"} if self.on_clusters else set())
                clusters, narrow = centers.centers.shape
                self.clusters = GroupClusters(clusters, narrow, dim, width, needed)
        self._centers = (centers,)  # in a tuple, so that its weights are registered only once

    def keep_tokens(self, encoder: Any, _: Any, output: Any) -> None:
        """Forward hook of the encoder: keep the tokens of the cycles themselves, without special ones.

        With context, a later call of the same step encodes the neighbours; their tokens are not kept.
        """
        if self.training and self.active and self._tokens is None:
            special = int(getattr(encoder, "num_special_tokens", 0))
            self._tokens = output.last_hidden_state[:, special:], output.token_mask[:, special:]

    def forward(self, embeddings: Tensor) -> dict[str, Any]:
        """The input of each loss by name: embeddings (batch, dim) -> (batch, width), or a cluster loss's inputs."""
        embeddings = embeddings.to(next((weight.dtype for weight in self.parameters()), embeddings.dtype))
        seen: dict[str, Any] = {}
        base: dict[str, Tensor] = {name: embeddings for name, _ in self.projections.named_children()}
        if self.clusters is not None:
            assert self._tokens is not None, "the encoder has not run"
            tokens, self._tokens = self._tokens, None
            view = self.clusters(*tokens, *self._centers)
            bottleneck, vectors = (view.bottleneck, view.mask), (view.vectors,)
            seen |= {n: bottleneck if which == "bottleneck" else vectors for n, which in self.cluster_inputs.items()}
            if view.joint is not None:
                seen |= dict.fromkeys(self.on_clusters, view.joint)
                base |= dict.fromkeys(self.on_clusters, view.joint)
        if len(self.losses):  # they run outside of this call, so DDP must see their weights in its output
            seen["weights of losses"] = [weight.view_as(weight) for weight in self.losses.parameters()]
        for name, projection in self.projections.items():
            seen[name] = projection(base[name])
            if name in self.unprojected:
                seen[f"{name} clean"] = base[name]
        for name, adversary in self.adversaries.items():
            seen[name] = adversary(self.reversal(seen.get(name, embeddings)))
        return seen


class ClusterView(NamedTuple):
    """The inputs of the cluster losses and contrasts."""

    mask: Tensor  # (batch, groups) bool, True on groups of real frames
    bottleneck: Tensor  # (batch, groups, narrow), of the auto-encoder
    # (batch, clusters, width), one for each cluster of each cycle; None where no loss takes them
    vectors: Tensor | None
    joint: Tensor | None  # (batch, width), one for each cycle; None where no loss takes it


class GroupClusters(nn.Module):
    """Auto-encoder, soft assignment to clusters, one vector for each cluster and one for the cycle."""

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
            return ClusterView(mask, bottleneck, None, None)
        soft = loss.soft_assignment(bottleneck)  # (batch, groups, clusters)
        hard = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        member = (hard + soft - soft.detach()) * mask[..., None]  # hard in value, soft in gradient
        members = (hard * mask[..., None]).sum(1).clamp_min(1)[..., None]  # (batch, clusters, 1)
        # (batch, clusters, groups) x (batch, groups, dim) -> (batch, clusters, dim) -> (batch, clusters, width)
        vectors = self.describe(member.transpose(1, 2) @ groups / members)
        joint = None
        if self.join is not None and self.finish is not None:
            joint = self.finish(self.join(vectors.transpose(1, 2)).squeeze(2))
        return ClusterView(mask, bottleneck, vectors, joint)


@dataclass
class TrainingOutput(LaennecOutput):
    """The output of a model with auxiliary heads in training."""

    # the input of each loss by its name: (batch, width), or the inputs of a cluster loss
    auxiliary: dict[str, Any] | None = None


@contextlib.contextmanager
def attached(model: Any, heads: AuxiliaryHeads) -> Iterator[None]:
    """Put auxiliary heads into a model within the block, as its module `auxiliary_heads`.

    The model's output gains `auxiliary` in training, computed within the model's own call, as DDP requires. Without any
    layer nothing happens.
    """
    if not (len(heads.projections) + len(heads.adversaries) + len(heads.losses)):
        yield
        return

    def add_outputs(model: Any, _: Any, outputs: Any) -> Any:
        if not (model.training and heads.active and isinstance(outputs, LaennecOutput)):
            return outputs
        return TrainingOutput(**outputs, auxiliary=model.auxiliary_heads(outputs.embeddings))

    model.add_module("auxiliary_heads", heads.to(next(model.parameters()).device))
    hooks = [model.register_forward_hook(add_outputs)]
    if heads.clusters is not None:
        hooks.append(model.encoder.register_forward_hook(heads.keep_tokens))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del model.auxiliary_heads


def enter_stage(model: Any, stage: Any, progress: float) -> None:
    """Freeze or unfreeze the encoder for a stage, and update the auxiliary heads."""
    if model.encoder_frozen_in_stage == stage.encoder:
        model.encoder_frozen_in_stage = not stage.encoder
        model.train()  # the first batch of an epoch already runs in that epoch's mode
    if (heads := getattr(model, "auxiliary_heads", None)) is not None:
        heads.active = stage.encoder and stage.auxiliary
        heads.reversal.set_progress(min(progress, 1.0))
