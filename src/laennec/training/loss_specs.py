"""Which auxiliary losses a training has, and what each takes as input.

Decisions: the facts of a loss (`labels`, `views`, `on`, `sampler`) are attributes of its class and hold unless a recipe
says otherwise, so a user's own `nn.Module` needs no registration. A loss may appear twice under different names (SupCon
by class and by device). A term keeps its weight and its name, so the objective is the plain sum of what is logged.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laennec.errors import InputError
from laennec.extension import load_object
from laennec.losses import (
    AUXILIARY_LOSSES,
    ClusterSimilarityLoss,
    DeepClusteringLoss,
    DeviceAdversarialLoss,
    Loss,
    PatchMixContrastiveLoss,
    TupletContrastiveLoss,
    WeightedSum,
    WeightSchedule,
)
from laennec.training.data import CycleDataset
from laennec.training.targets import MISSING, Codes, GroupTable

CLASS, CYCLE = "class", "cycle"  # labels that need no column
INPUTS = ("embedding", "projection", "clusters")
# losses that take the frame groups of each cycle, not pairs of cycles
CLUSTER_LOSSES = (DeepClusteringLoss, ClusterSimilarityLoss)
_OWN = ("labels", "missing", "views", "on", "projection_dim")
CLUSTERS, WIDTH = 4, 128  # the published numbers
_log = logging.getLogger(__name__)


def fact(loss: nn.Module, name: str) -> Any:
    """A fact of a loss: its attribute `labels`, `views`, `on` or `sampler`, or the default of `Loss`."""
    return getattr(loss, name, getattr(Loss, name))


@dataclass(frozen=True)
class LossSpec:
    """An auxiliary loss of a training.

    Attributes:
        name: Its name in the log.
        loss: `forward(embeddings, labels)` -> scalar or `{term: scalar}`.
        schedule: Its weight.
        labels: Which cycles belong together: "class", "cycle" (the views of one cycle), or a column of the cycle
            table; several columns are joined by +.
        missing: What happens to cycles whose column is unknown: "drop" | "own_group".
        views: How many augmented views of each cycle it takes.
        on: "embedding" | "projection" (of the model, shared) | "clusters" (one vector of a cycle's frame groups), or
            the output of a layer that `AuxiliaryHeads` makes for this loss.
        projection_dim: Width of a projection of its own; 0 for none.
        project_mixed: Whether only mixed cycles are projected, to the width of the clean ones.
        negatives: Negatives of each anchor of the tuplet loss.
        where: The setting, for errors.
    """

    name: str
    loss: nn.Module
    schedule: WeightSchedule = field(default_factory=lambda: WeightSchedule(1.0))
    labels: str = CLASS
    missing: str = "drop"
    views: int = 1
    on: str = "embedding"
    projection_dim: int = 0
    project_mixed: bool = False
    negatives: int = 16
    where: str = ""

    def is_a(self, *kinds: type[nn.Module]) -> bool:
        """Whether the loss is of one of these classes."""
        inner = self.loss.loss if isinstance(self.loss, CleanAndMixed) else self.loss
        return isinstance(inner, kinds)

    @property
    def takes_frame_groups(self) -> bool:
        """Whether the loss takes the frame groups of each cycle."""
        return self.is_a(*CLUSTER_LOSSES)

    @property
    def takes_pairs(self) -> bool:
        """Whether the loss compares the cycles of a batch by a label."""
        return self.labels != CYCLE and not self.is_a(DeviceAdversarialLoss, PatchMixContrastiveLoss, *CLUSTER_LOSSES)

    @property
    def group_key(self) -> str | None:
        """Name of its groups in a batch; None where class or cycle say what belongs together."""
        return None if self.labels in (CLASS, CYCLE) else f"{self.labels} {self.missing}"


def specs_of(
    losses: Mapping[str, nn.Module | LossSpec] | None, weights: Mapping[str, float | WeightSchedule] | None = None
) -> list[LossSpec]:
    """The losses that a caller passes in Python, with their facts and weights.

    Args:
        losses: Name -> module, or a spec where its facts are to differ from those of the class.
        weights: Name -> number or schedule; 1 where a name is missing.

    Raises:
        InputError: A weight names no loss, or a loss states a fact that cannot be followed.
    """
    losses, weights = losses or {}, weights or {}
    if unknown := sorted(set(weights) - set(losses)):
        raise InputError(f"loss_weights has {unknown[0]!r}; the losses are {', '.join(sorted(losses)) or 'none'}")
    specs = []
    for name, loss in losses.items():
        if isinstance(loss, LossSpec):
            specs.append(loss)
            continue
        where = f"losses[{name!r}]"
        _check_name(name, where)
        if isinstance(loss, CLUSTER_LOSSES):
            specs.append(_over_clusters(name, loss, _schedule(weights.get(name, 1.0)), where))
            continue
        facts = {key: fact(loss, key) for key in ("labels", "views", "on")}
        _check(where, loss, {"missing": "drop", "projection_dim": 0, **facts})
        specs.append(LossSpec(name, loss, _schedule(weights.get(name, 1.0)), where=where, **facts))
    return _together(specs)


def loss_specs(settings: Mapping[str, Any], negatives: int = 16, folders: Sequence[Path] = ()) -> list[LossSpec]:
    """The losses of a recipe's `loss.auxiliary`.

    Args:
        settings: Name -> {loss or class, weight, start, warm_up, labels, missing, views, on, projection_dim, and the
            loss's own arguments}.
        negatives: Negatives of each anchor of the tuplet loss.
        folders: Folders to import own losses from, `Recipe.folders`.

    Raises:
        InputError: A loss, a key or a value is unknown, or they contradict one another.
    """
    return _together([_of_recipe(name, given, negatives, folders) for name, given in settings.items()])


def weighted_sum(specs: Sequence[LossSpec]) -> WeightedSum | None:
    """The losses as one sum of named terms; None where there is none."""
    if not specs:
        return None
    return WeightedSum({s.name: s.loss for s in specs}, {s.name: s.schedule for s in specs})


def _together(specs: list[LossSpec]) -> list[LossSpec]:
    """Refuse losses over clusters without the loss that makes them, or two that make them."""
    clustering = [s for s in specs if s.is_a(DeepClusteringLoss)]
    for spec in specs:
        if not clustering and (spec.takes_frame_groups or spec.on == "clusters"):
            raise InputError(f"{spec.where} needs the clusters that loss.auxiliary.clustering makes; add that loss")
    for kind in (DeepClusteringLoss, ClusterSimilarityLoss):
        if len(same := [s for s in specs if s.is_a(kind)]) > 1:
            raise InputError(f"{same[1].where}: a training has one {kind.__name__}; drop it")
    return specs


def _of_recipe(name: str, given: Any, negatives: int, folders: Sequence[Path]) -> LossSpec:
    where = f"loss.auxiliary.{name}"
    if not isinstance(given, Mapping) and given is not None:
        raise InputError(f"{where} is a group of settings, not {given!r}")
    _check_name(name, where)
    # YAML 1.1 reads a bare `on` as true
    values = {"on" if key is True else key: value for key, value in (given or {}).items()}
    kind = _kind(name, values, where, folders)
    cluster = issubclass(kind, CLUSTER_LOSSES)
    own: dict[str, Any] = {} if cluster else {key: values.pop(key) for key in _OWN if key in values}
    if kind is PatchMixContrastiveLoss:
        own["project_mixed"] = values.pop("project_mixed", False)
    if isinstance(own.get("labels"), bool | int):
        own["labels"] = str(own["labels"])
    try:
        schedule = WeightSchedule(
            _weight(values.pop("weight", 1.0)), values.pop("start", 0.0), values.pop("warm_up", 0.0)
        )
        if cluster:
            sizes = {DeepClusteringLoss: {"clusters": CLUSTERS, "dim": WIDTH}, ClusterSimilarityLoss: {"dim": WIDTH}}
            with torch.random.fork_rng(devices=[]):  # its weights are drawn again, by seed, in `AuxiliaryHeads`
                return _over_clusters(name, kind(**(sizes.get(kind, {}) | values)), schedule, where)
        loss = kind(**values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: {str(error).split('__init__() ')[-1]}") from error
    facts: dict[str, Any] = {key: fact(loss, key) for key in ("labels", "views", "on")}
    facts |= {"missing": "drop", "projection_dim": 0, **own}
    _check(where, loss, facts)
    return LossSpec(name, loss, schedule, negatives=negatives, where=where, **facts)


def _over_clusters(name: str, loss: nn.Module, schedule: WeightSchedule, where: str) -> LossSpec:
    """A loss over the frame groups of each cycle, and of its mixed copy."""
    return LossSpec(name, CleanAndMixed(loss), schedule, CYCLE, on=fact(loss, "on"), where=where)


def _kind(name: str, values: dict[str, Any], where: str, folders: Sequence[Path]) -> type[nn.Module]:
    """The class of a recipe's loss: `class: module:Name`, `loss: name`, or the entry's own name."""
    if (dotted := values.pop("class", None)) is not None:
        kind: type[nn.Module] = load_object(dotted, f"{where}.class", folders)
        return kind
    known = values.pop("loss", name)
    if known not in AUXILIARY_LOSSES:
        raise InputError(
            f"loss.auxiliary has {known!r}: there is no such loss; recipes can have {', '.join(AUXILIARY_LOSSES)}, or "
            "class: my_code:MyLoss"
        )
    return AUXILIARY_LOSSES[known]


def _check_name(name: str, where: str) -> None:
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise InputError(f"{where}: {name!r} cannot name a loss; use letters, digits and underscores")


def _schedule(weight: float | WeightSchedule) -> WeightSchedule:
    return weight if isinstance(weight, WeightSchedule) else WeightSchedule(_weight(weight))


def _weight(value: Any) -> float:
    weight = float(value)
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"weight is {weight:g}; it must be finite and 0 or more (training would raise a loss with a negative "
            "weight without end)"
        )
    return weight


def _check(where: str, loss: nn.Module, own: Mapping[str, Any]) -> None:
    """Refuse facts that the loss cannot follow."""
    name, most = type(loss).__name__, fact(loss, "views")
    if own["on"] not in (*INPUTS, fact(loss, "on")):
        raise InputError(f"{where}.on is {own['on']!r}; it can be embedding or projection, or clusters")
    if own["missing"] not in MISSING:
        raise InputError(f"{where}.missing is {own['missing']!r}; it can be {' or '.join(MISSING)}")
    dim, views = own["projection_dim"], own["views"]
    if not isinstance(mixed := own.get("project_mixed", False), bool):
        raise InputError(f"{where}.project_mixed is {mixed!r}; it is true or false")
    if mixed and dim:
        raise InputError(f"{where}: project_mixed projects to the width of the clean cycles; leave out projection_dim")
    if not isinstance(dim, int) or dim < 0:
        raise InputError(f"{where}.projection_dim is {dim!r}; it is a width, 0 for none")
    if dim and own["on"] == "projection":
        raise InputError(f"{where}: projection_dim gives it a projection of its own; leave out on: projection")
    if views not in (1, most):
        raise InputError(f"{where}.views is {views!r}; {name} takes {'1 or 2' if most == 2 else most}")
    if isinstance(loss, TupletContrastiveLoss | PatchMixContrastiveLoss) and own["labels"] != CLASS:
        raise InputError(f"{where}.labels is {own['labels']!r}; {name} takes only class")
    if own["labels"] == CYCLE and most < 2:
        raise InputError(f"{where}.labels is cycle, but {name} does not take two views of a cycle")
    if own["labels"] == CYCLE and views < 2:
        raise InputError(f"{where}: one view of a cycle has no positive pair; set views: 2")
    if isinstance(loss, DeviceAdversarialLoss) and own["labels"] == CLASS:
        raise InputError(f"{where}.labels is class, which the embedding should keep; name a column such as device")
    if getattr(loss, "detach_other_views", False) and views < 2:
        raise InputError(f"{where}: detach_other_views needs views: 2")


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


def group_columns(specs: Sequence[LossSpec], groups: GroupTable) -> dict[str, Codes]:
    """The groups that the losses take, by their name in a batch; a warning names the cycles without a group.

    Raises:
        InputError: A column does not exist, is unknown for all cycles, or has one value only.
    """
    found: dict[str, Codes] = {}
    for spec in specs:
        if spec.group_key is None:
            continue
        codes = groups.codes(spec.labels, spec.missing, f"{spec.where}.labels")
        if codes.max() < 1:
            raise InputError(
                f"{spec.where}.labels is {spec.labels!r}, which is the same for all training cycles: there is "
                "nothing to tell apart; choose another column"
            )
        if (codes < 0).any():
            _log.warning("%s: %s is %s; this loss leaves them out", spec.where, spec.labels, groups.whose(codes))
        found[spec.group_key] = codes
    return found


def groups_of_data(data: Any, specs: Sequence[LossSpec], age_edges_years: Sequence[float] = ()) -> dict[str, Codes]:
    """Have a training set's items carry the views and groups that the losses take; returns the groups.

    Args:
        data: The training data; groups that it has already are kept.
        specs: The auxiliary losses.
        age_edges_years: Edges of the age bands.

    Raises:
        InputError: As in `group_columns`.
    """
    if not isinstance(data, CycleDataset):
        return {}
    lacking = [spec for spec in specs if spec.group_key is not None and spec.group_key not in data.groups]
    table = GroupTable(len(data.targets.class_ids), data.targets.metadata, age_edges_years)
    data.groups = {**data.groups, **group_columns(lacking, table)}
    data.views = max([spec.views for spec in specs], default=1)
    return dict(data.groups)


def check_views(specs: Sequence[LossSpec], mixes: bool, draws: bool) -> None:
    """Refuse two views that would be equal, or that would be mixed.

    Args:
        specs: All auxiliary losses.
        mixes: Whether cycles of a batch are mixed.
        draws: Whether anything is drawn on waveforms or features.

    Raises:
        InputError: A loss cannot have two views.
    """
    for spec in specs:
        if spec.views > 1 and mixes:
            raise InputError(f"{spec.where} takes two views of a cycle, and augment.mix mixes them; drop one")
        if spec.views > 1 and not draws:
            raise InputError(
                f"{spec.where} takes two views of a cycle, and without augmentation they are equal; set "
                f"augment.* (noise, shift, gain, spec, ...) or {spec.where}.views: 1"
            )
