"""The auxiliary losses of a recipe, and the layers that only they need.

Decisions: an entry may have any name, so that one loss can be there twice (SupCon by class and by device); which
loss it is stands in `loss`, which column says what belongs together in `labels`. Layers of single entries (their own
projection, the head that guesses the device, the clusters of frame groups) and the weights of losses that learn live
inside the model while it trains, so that optimiser, checkpoints and processes know them, and are taken off when
training ends: what is shared needs none of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from laennec.losses import (
    AUXILIARY_LOSSES,
    ClusterSimilarityLoss,
    DeepClusteringLoss,
    GradientReversal,
    WeightedSum,
    WeightSchedule,
)
from laennec.modeling import LaennecOutput
from laennec.training.clusters import CLUSTER_LOSSES, CLUSTERS, WIDTH, CleanAndMixed, GroupClusters, inputs_of
from laennec.training.metadata_groups import MISSING
from laennec.training.recipe import ConfigError

CYCLE, CLASS = "cycle", "class"
# what says which cycles belong together, unless the recipe says otherwise
_LABELS = {
    "add": CLASS,
    "tuplet": CLASS,
    "supcon": CLASS,
    "ntxent": CYCLE,
    "opl": CLASS,
    "patient": "patient",
    "patch_mix": CLASS,
    "device_adversarial": "device",
}
RECIPE_LOSSES = (*_LABELS, *CLUSTER_LOSSES)
_VIEWS = {"supcon": 2, "ntxent": 2}  # one view elsewhere
_LOOKS_AT = {"clustering": "bottleneck", "cluster_similarity": "vectors", "reconstruction": "decoded"}
_OF_CLASS_ONLY = ("tuplet", "patch_mix")


class GroupCrossEntropy(nn.Module):
    """Cross entropy of a group's logits; the gradient is turned round before the head, see `AuxiliaryHeads`."""

    variant = "gradient reversal"

    def __init__(self) -> None:
        super().__init__()
        self.pairs: dict[str, int] = {}

    def forward(self, logits: Tensor, group_ids: Tensor) -> dict[str, Tensor]:
        """Return `{"device_adversarial": scalar}`: logits (batch, groups) against group_ids (batch,)."""
        self.pairs = {"device_adversarial": len(logits)}
        total = nn.functional.cross_entropy(logits.float(), group_ids, reduction="sum")
        return {"device_adversarial": total / max(1, len(logits))}

    def extra_repr(self) -> str:
        """Say what ran."""
        return f"variant={self.variant!r}"


@dataclass(frozen=True)
class Entry:
    """One entry of loss.auxiliary.

    Attributes:
        name: Its name in the recipe and in the log.
        kind: Which loss it is.
        labels: Column that says what belongs together: "class", "cycle" (the views of one cycle), or a column of
            `laennec.training.metadata_groups.COLUMNS`, several joined by +.
        missing: What happens to cycles whose column is unknown: "drop" | "own_group".
        views: How many draws of each cycle it looks at.
        on: "embedding" | "projection" (the model's, shared) | "clusters" (the vector that joins a cycle's clusters).
        projection_dim: Width of a projection of its own; 0 for none.
        loss: The loss itself.
        schedule: Its weight.
        project_mixed: Whether mixed cycles alone are projected, to the width of what they are contrasted with.
    """

    name: str
    kind: str
    labels: str
    missing: str
    views: int
    on: str
    projection_dim: int
    loss: nn.Module
    schedule: WeightSchedule
    project_mixed: bool = False

    @property
    def where(self) -> str:
        """The entry as a setting."""
        return f"loss.auxiliary.{self.name}"

    @property
    def group_key(self) -> str | None:
        """Name of its groups in a batch; None where class or cycle say what belongs together."""
        return None if self.labels in (CLASS, CYCLE) else f"{self.labels} {self.missing}"


def loss_specs(settings: Mapping[str, Any]) -> list[Entry]:
    """Read the recipe's loss.auxiliary.

    Raises:
        ConfigError: A loss, a key or a value is unknown, or they contradict one another.
    """
    entries = [_entry(name, given) for name, given in settings.items()]
    clustering = [e for e in entries if e.kind == "clustering"]
    for entry in entries:
        if not clustering and (entry.kind in CLUSTER_LOSSES or entry.on == "clusters"):
            raise ConfigError(f"{entry.where} needs the clusters that loss.auxiliary.clustering makes; add that entry")
    for kind in ("clustering", "cluster_similarity"):
        if len(same := [e for e in entries if e.kind == kind]) > 1:
            raise ConfigError(f"{same[1].where}: a recipe has one {kind} loss; drop it")
    return entries


def _entry(name: str, given: Any) -> Entry:
    where = f"loss.auxiliary.{name}"
    if not isinstance(given, Mapping) and given is not None:
        raise ConfigError(f"{where} is a group of settings, not {given!r}")
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"{where}: {name!r} cannot name a loss; use letters, digits and underscores")
    # YAML 1.1 reads a bare `on` as true
    values = {"on" if key is True else key: value for key, value in (given or {}).items()}
    kind = values.pop("loss", name)
    if kind not in RECIPE_LOSSES:
        raise ConfigError(
            f"loss.auxiliary has {kind!r}: there is no such loss; recipes can have {', '.join(RECIPE_LOSSES)}"
        )
    if kind in CLUSTER_LOSSES:
        return _cluster_entry(name, kind, values)
    own = {
        "labels": str(values.pop("labels", _LABELS[kind])),
        "missing": values.pop("missing", "drop"),
        "views": values.pop("views", _VIEWS.get(kind, 1)),
        "on": values.pop("on", "embedding"),
        "projection_dim": values.pop("projection_dim", 0),
    }
    if kind == "patch_mix":
        own["project_mixed"] = values.pop("project_mixed", False)
    _check(where, kind, own)
    try:
        schedule = _schedule(values)
        loss = GroupCrossEntropy(**values) if kind == "device_adversarial" else AUXILIARY_LOSSES[kind](**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {str(error).split('__init__() ')[-1]}") from error
    if getattr(loss, "detach_other_views", False) and own["views"] < 2:
        raise ConfigError(f"{where}: detach_other_views needs views: 2")
    return Entry(name=name, kind=kind, loss=loss, schedule=schedule, **own)


def _cluster_entry(name: str, kind: str, values: dict[str, Any]) -> Entry:
    """An entry that looks at the groups of each cycle: nothing says what belongs together."""
    sizes = {"clustering": {"clusters": CLUSTERS, "dim": WIDTH}, "cluster_similarity": {"dim": WIDTH}}.get(kind, {})
    try:
        schedule = _schedule(values)
        with torch.random.fork_rng(devices=[]):  # its weights are drawn again, by seed, in `AuxiliaryHeads`
            loss = CleanAndMixed(AUXILIARY_LOSSES[kind](**(sizes | values)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"loss.auxiliary.{name}: {str(error).split('__init__() ')[-1]}") from error
    return Entry(name, kind, CYCLE, "drop", 1, "embedding", 0, loss, schedule)


def _schedule(values: dict[str, Any]) -> WeightSchedule:
    """The weight of an entry, taken out of its values."""
    weight = float(values.pop("weight", 1.0))
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"weight is {weight:g}; it must be finite and 0 or more (below 0 training drives the loss up, without end)"
        )
    return WeightSchedule(weight, values.pop("start", 0.0), values.pop("warm_up", 0.0))


def _check(where: str, kind: str, own: Mapping[str, Any]) -> None:
    """Refuse keys of an entry that its loss cannot follow."""
    if own["on"] not in ("embedding", "projection", "clusters"):
        raise ConfigError(f"{where}.on is {own['on']!r}; it can be embedding or projection, or clusters")
    if own["missing"] not in MISSING:
        raise ConfigError(f"{where}.missing is {own['missing']!r}; it can be {' or '.join(MISSING)}")
    dim, views = own["projection_dim"], own["views"]
    if not isinstance(mixed := own.get("project_mixed", False), bool):
        raise ConfigError(f"{where}.project_mixed is {mixed!r}; it is true or false")
    if mixed and dim:
        raise ConfigError(f"{where}: project_mixed projects to the width of the clean cycles; leave out projection_dim")
    if not isinstance(dim, int) or dim < 0:
        raise ConfigError(f"{where}.projection_dim is {dim!r}; it is a width, 0 for none")
    if dim and own["on"] == "projection":
        raise ConfigError(f"{where}: projection_dim gives it a projection of its own; leave out on: projection")
    if views not in (1, 2) or (views == 2 and kind not in _VIEWS):
        most = "1 or 2" if kind in _VIEWS else "1 (only supcon and ntxent look at two)"
        raise ConfigError(f"{where}.views is {views!r}; it can be {most}")
    if kind in _OF_CLASS_ONLY and own["labels"] != CLASS:
        raise ConfigError(f"{where}.labels is {own['labels']!r}; {kind} knows only class")
    if own["labels"] == CYCLE and kind not in _VIEWS:
        raise ConfigError(f"{where}.labels is cycle; only supcon and ntxent draw the views of one cycle together")
    if own["labels"] == CYCLE and views < 2:
        raise ConfigError(f"{where}: one view of a cycle has no other to be drawn to; set views: 2")
    if kind == "device_adversarial" and own["labels"] == CLASS:
        raise ConfigError(f"{where}.labels is class, which the embedding should keep; name a column such as device")


def weighted_sum(entries: Sequence[Entry]) -> WeightedSum | None:
    """The losses of some entries as one sum with names; None where there is none."""
    if not entries:
        return None
    return WeightedSum({e.name: e.loss for e in entries}, {e.name: e.schedule for e in entries})


class AuxiliaryHeads(nn.Module):
    """Layers that single entries put on the embedding, or on the encoder's tokens.

    Own projections, heads behind a gradient reversal, the clusters of frame groups, and losses that learn.

    Args:
        entries: All of the recipe.
        dim: Of the embedding.
        groups: How many groups the column of each device_adversarial entry has, by the entry's name.
        seed: Of their random weights.
    """

    def __init__(self, entries: Sequence[Entry], dim: int, groups: Mapping[str, int], seed: int) -> None:
        super().__init__()
        self.reversal = GradientReversal()
        self.active = True
        self.kinds = {e.name: e.kind for e in entries if e.kind in CLUSTER_LOSSES}
        self.unprojected = {e.name for e in entries if e.project_mixed}
        self.on_clusters = [e.name for e in entries if e.on == "clusters"]
        self._tokens: tuple[Tensor, Tensor] | None = None
        centers, width = _centers_of(entries), _cluster_width(entries)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = {e.name: width if e.on == "clusters" else dim for e in entries}
            projected = {e.name: widths[e.name] if e.project_mixed else e.projection_dim for e in entries}
            projected = {name: width for name, width in projected.items() if width}
            self.projections = nn.ModuleDict({n: _projection(widths[n], width) for n, width in projected.items()})
            widths |= projected
            self.guesses = nn.ModuleDict({name: nn.Linear(widths[name], count) for name, count in groups.items()})
            self.losses = nn.ModuleDict({e.name: e.loss for e in entries if any(True for _ in e.loss.parameters())})
            for loss in self.losses.modules():
                if isinstance(loss, DeepClusteringLoss | ClusterSimilarityLoss):
                    loss.reset_parameters()
            self.clusters: GroupClusters | None = None
            if centers is not None:
                looked_at = {_LOOKS_AT[kind] for kind in self.kinds.values()} | (
                    {"joint"} if self.on_clusters else set()
                )
                clusters, narrow = centers.centers.shape
                self.clusters = GroupClusters(clusters, narrow, dim, width, looked_at)
        self._centers = (centers,)  # in a tuple: its weights are registered once, with the losses

    def __len__(self) -> int:
        return len(self.projections) + len(self.guesses) + len(self.losses)

    def look_at(self, encoder: Any, _: Any, output: Any) -> None:
        """Keep a cycle's own tokens, without special ones; a forward hook of the encoder.

        Where the encoder looks at neighbours too, it does so in a later call of the same step.
        """
        if self.training and self.active and self._tokens is None:
            special = int(getattr(encoder, "num_special_tokens", 0))
            self._tokens = output.last_hidden_state[:, special:], output.token_mask[:, special:]

    def forward(self, embeddings: Tensor) -> dict[str, Any]:
        """What each entry looks at, by name: embeddings (batch, dim) -> (batch, width); groups for cluster losses."""
        embeddings = embeddings.to(next(self.parameters()).dtype)
        seen: dict[str, Any] = {}
        base: dict[str, Tensor] = {name: embeddings for name, _ in self.projections.named_children()}
        if self.clusters is not None:
            assert self._tokens is not None, "the encoder has not run"
            tokens, self._tokens = self._tokens, None
            view = self.clusters(*tokens, *self._centers)
            seen |= {name: inputs_of(kind, view) for name, kind in self.kinds.items()}
            if view.joint is not None:
                seen |= dict.fromkeys(self.on_clusters, view.joint)
                base |= dict.fromkeys(self.on_clusters, view.joint)
            # losses run outside of this call: processes have to see here that their weights are in use
            seen["weights of losses"] = [weight.view_as(weight) for weight in self.losses.parameters()]
        for name, projection in self.projections.items():
            seen[name] = projection(base[name])
            if name in self.unprojected:
                seen[f"{name} clean"] = base[name]
        for name, guess in self.guesses.items():
            seen[name] = guess(self.reversal(seen.get(name, embeddings)))
        return seen


def _projection(dim: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, width))


def _cluster_width(entries: Sequence[Entry]) -> int:
    """Width of a cluster's vector: that of the matrix which compares them, where there is one."""
    for entry in entries:
        if entry.kind == "cluster_similarity" and isinstance(entry.loss, CleanAndMixed):
            return len(entry.loss.loss.matrix)
    return WIDTH


def _centers_of(entries: Sequence[Entry]) -> DeepClusteringLoss | None:
    """The loss that holds the centers of the recipe's clusters."""
    for entry in entries:
        if entry.kind == "clustering" and isinstance(entry.loss, CleanAndMixed):
            assert isinstance(entry.loss.loss, DeepClusteringLoss)
            return entry.loss.loss
    return None


class Attached:
    """Auxiliary heads inside a model while it trains: `with Attached(model, heads): ...`.

    The model's output gains `auxiliary` in training, computed within its own call, where processes look for it.

    Args:
        model: Gains and loses the module `auxiliary_heads`.
        heads: The layers; nothing happens where there are none.
    """

    def __init__(self, model: nn.Module, heads: AuxiliaryHeads) -> None:
        self.model = model
        self.heads = heads
        self._hooks: list[Any] = []

    def __enter__(self) -> AuxiliaryHeads:
        if len(self.heads):
            model: Any = self.model
            model.add_module("auxiliary_heads", self.heads.to(next(model.parameters()).device))
            self._hooks.append(model.register_forward_hook(_add_outputs))
            if self.heads.clusters is not None:
                self._hooks.append(model.encoder.register_forward_hook(self.heads.look_at))
        return self.heads

    def __exit__(self, *_: Any) -> None:
        if len(self.heads):
            while self._hooks:
                self._hooks.pop().remove()
            del self.model.auxiliary_heads


@dataclass
class TrainingOutput(LaennecOutput):
    """What a model with auxiliary heads returns in training.

    Attributes:
        auxiliary: What each entry looks at, by name: (batch, width), or the inputs of a cluster loss.
    """

    auxiliary: dict[str, Any] | None = None


def _add_outputs(model: Any, _: Any, outputs: Any) -> Any:
    if not (model.training and model.auxiliary_heads.active and isinstance(outputs, LaennecOutput)):
        return outputs
    return TrainingOutput(**outputs, auxiliary=model.auxiliary_heads(outputs.embeddings))
