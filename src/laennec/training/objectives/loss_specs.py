"""Which auxiliary losses a training has, and what each takes as input.

Decisions: the facts of a loss (`labels`, `views`, `on`) are attributes of its class and hold unless a recipe
overrides them, so a user's own `nn.Module` needs no registration. A loss may appear twice under different names (SupCon
by class and by device). Terms are logged with their weights, so the objective is the plain sum of what is logged. The
losses over clusters take clean and mixed cycles as separate terms, as in the published total.
"""

import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laennec.errors import InputError, did_you_mean
from laennec.extension import load_object
from laennec.losses import (
    AUXILIARY_LOSSES,
    ClusterSimilarityLoss,
    DeepClusteringLoss,
    DeviceAdversarialLoss,
    Loss,
    PatchMixContrastiveLoss,
    TupletContrastiveLoss,
    WeightSchedule,
)
from laennec.training.data.batches import CycleDataset
from laennec.training.data.targets import LABEL_COLUMNS, MISSING, Codes, GroupTable

CLASS, CYCLE = "class", "cycle"  # labels that need no column
INPUTS = ("embedding", "projection", "clusters")
# losses that take the frame groups of each cycle, not pairs of cycles
CLUSTER_LOSSES = (DeepClusteringLoss, ClusterSimilarityLoss)
# keys of a recipe's entry that are no arguments of the loss
_OWN = ("labels", "missing", "views", "on", "projection_dim")
_log = logging.getLogger(__name__)


class CleanAndMixed(nn.Module):
    """One loss over clean cycles and, where a batch has them, mixed ones: `<term>_clean` and `<term>_mixed`."""

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
        terms: dict[str, Tensor] = {}
        self.pairs = {}
        copies = {"": clean} if mixed is None else {"_clean": clean, "_mixed": mixed}
        for suffix, inputs in copies.items():
            terms |= {f"{name}{suffix}": value for name, value in self.loss(*inputs).items()}
            self.pairs |= {f"{name}{suffix}": count for name, count in self.loss.pairs.items()}
        return terms

    def extra_repr(self) -> str:
        """Variant and settings of the loss."""
        return f"{type(self.loss).__name__}: {self.loss.extra_repr()}"


@dataclass(frozen=True)
class LossSpec:
    """An auxiliary loss of a training."""

    name: str  # its name in the log
    loss: nn.Module  # `forward(embeddings, labels)` -> scalar or `{term: scalar}`
    schedule: WeightSchedule = field(default_factory=lambda: WeightSchedule(1.0))  # its weight
    # which cycles belong together: "class", "cycle" (the views of one cycle), or a column of the cycle table; several
    # are joined by +, also with class, crackle and wheeze
    labels: str = CLASS
    missing: str = "drop"  # what happens to cycles whose column is unknown: "drop" | "own_group"
    views: int = 1  # how many augmented views of each cycle it takes
    # "embedding" | "projection" (of the model, shared) | "clusters" (one vector of a cycle's frame groups), or the
    # output of a layer that `AuxiliaryHeads` makes for this loss
    on: str = "embedding"
    projection_dim: int = 0  # width of a projection of its own; 0 for none
    project_mixed: bool = False  # whether only mixed cycles are projected, to the width of the clean ones
    negatives: int = 16  # negatives of each anchor of the tuplet loss
    # groups in the batch, such as patients: negatives come from other groups than the anchor's; "" for all other cycles
    negative_groups: str = ""
    where: str = ""  # the setting, for errors

    @property
    def inner(self) -> nn.Module:
        """The loss without its wrapper `CleanAndMixed`."""
        return self.loss.loss if isinstance(self.loss, CleanAndMixed) else self.loss

    def is_a(self, *kinds: type[nn.Module]) -> bool:
        """Whether the loss is of one of these classes."""
        return isinstance(self.inner, kinds)

    @property
    def soft_labels(self) -> bool:
        """Whether it takes the label rows of mixed cycles."""
        return bool(getattr(self.inner, "soft_labels", Loss.soft_labels))

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
        """Name of its groups in a batch; None for the labels `class` and `cycle`."""
        return None if self.labels in (CLASS, CYCLE) else f"{self.labels} {self.missing}"

    def groups_by_label(self, names: Sequence[str] = ()) -> bool:
        """Whether class, crackle, wheeze or one of the labels `names` is among the columns of its groups."""
        columns = {n.strip() for n in self.labels.split("+")}
        return self.group_key is not None and bool(columns & {*LABEL_COLUMNS, *names})


def specs_of(
    losses: Mapping[str, nn.Module | LossSpec] | None, weights: Mapping[str, float | WeightSchedule] | None = None
) -> list[LossSpec]:
    """The losses that a caller passes in Python, with their facts and weights.

    Args:
        losses: Name -> module, or a spec where its facts are to differ from those of the class.
        weights: Name -> number or schedule; 1 where a name is missing.
    """
    losses, weights = losses or {}, weights or {}
    if not (hasattr(losses, "items") and hasattr(weights, "items")):
        raise InputError("losses and loss_weights have a name for each loss: losses={'mine': MyLoss()}")
    if unknown := sorted(set(weights) - set(losses)):
        raise InputError(f"loss_weights has {unknown[0]!r}; the losses are {', '.join(sorted(losses)) or 'none'}")
    specs = []
    for name, loss in losses.items():
        if isinstance(loss, LossSpec):
            specs.append(loss)
            continue
        weight = weights.get(name, 1.0)
        if not isinstance(weight, WeightSchedule):
            weight = WeightSchedule(finite_weight(weight, f"loss_weights[{name!r}]"))
        specs.append(_spec(name, loss, weight, f"losses[{name!r}]"))
    return _checked_together(specs)


def loss_specs(settings: Mapping[str, Any], negatives: int = 16, folders: Sequence[Path] = ()) -> list[LossSpec]:
    """The losses of a recipe's `loss.auxiliary`.

    Args:
        settings: Name -> {loss or class, weight, start, warm_up, labels, missing, views, on, projection_dim, and the
            loss's own arguments}.
        negatives: Negatives of each anchor of the tuplet loss.
        folders: Folders to import own losses from, `Recipe.folders`.
    """
    return _checked_together([_of_recipe(name, given, negatives, folders) for name, given in settings.items()])


def _of_recipe(name: str, given: Any, negatives: int, folders: Sequence[Path]) -> LossSpec:
    where = f"loss.auxiliary.{name}"
    if not isinstance(given, Mapping) and given is not None:
        raise InputError(f"{where} is a group of settings, not {given!r}")
    values = dict(given or {})
    if (dotted := values.pop("class", None)) is not None:
        kind: Any = load_object(dotted, f"{where}.class", folders)
    elif (known := values.pop("loss", name)) in AUXILIARY_LOSSES:
        kind = AUXILIARY_LOSSES[known]
    else:
        raise InputError(
            f"loss.auxiliary has {known!r}: there is no such loss; recipes can have {', '.join(AUXILIARY_LOSSES)}, or "
            "class: my_code:MyLoss"
        )
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise InputError(f"{where}.class: {dotted} is no subclass of torch.nn.Module")
    own: dict[str, Any] = {}
    if not issubclass(kind, CLUSTER_LOSSES):
        own = {"negatives": negatives} | {key: values.pop(key) for key in _OWN if key in values}
    if kind is PatchMixContrastiveLoss:
        own["project_mixed"] = values.pop("project_mixed", False)
    if isinstance(own.get("labels"), bool | int):
        own["labels"] = str(own["labels"])
    try:
        weight = finite_weight(values.pop("weight", 1.0), "weight")
        schedule = WeightSchedule(weight, values.pop("start", 0.0), values.pop("warm_up", 0.0))
        with torch.random.fork_rng(devices=[]):  # `AuxiliaryHeads` draws the weights of losses over clusters, by seed
            loss = kind(**values)
    except Exception as error:
        said = str(error).split("__init__() ")[-1]
        raise InputError(f"{where}: {said}{_nearest_setting(said, kind)}") from error
    return _spec(name, loss, schedule, where, **own)


def _nearest_setting(said: str, kind: type[nn.Module]) -> str:
    """A hint with the setting of a loss that is nearest to an unknown one."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", said)
    named = [
        n for n, p in inspect.signature(kind).parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    known = [*_OWN, "weight", "start", "warm_up", *named]
    return did_you_mean(unknown[1], known, cutoff=0) if unknown else ""


def finite_weight(value: Any, where: str) -> float:
    """A weight as a number; refuse what is no finite number of at least 0."""
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise InputError(
            f"{where} is {value!r}; it must be finite and 0 or more (with a negative weight, training "
            "would increase the loss without bound)"
        )
    return weight


def _spec(name: str, loss: nn.Module, schedule: WeightSchedule, where: str, **own: Any) -> LossSpec:
    """The spec of a loss: the facts of its class, replaced by `own`; losses over clusters ignore `own`."""
    if not (isinstance(name, str) and name.isidentifier()) or hasattr(nn.ModuleDict(), name):
        raise InputError(f"{where}: {name!r} cannot name a loss; use letters, digits and underscores")
    if not isinstance(loss, nn.Module) or not hasattr(loss, "_modules"):
        raise InputError(
            f"{where} is a {type(loss).__name__}; give an object of a subclass of torch.nn.Module, whose __init__ "
            "begins with super().__init__()"
        )
    facts: dict[str, Any] = {key: getattr(loss, key, getattr(Loss, key)) for key in ("labels", "views", "on")}
    if isinstance(loss, CLUSTER_LOSSES):
        return LossSpec(name, CleanAndMixed(loss), schedule, CYCLE, on=facts["on"], where=where)
    spec = LossSpec(name, loss, schedule, where=where, **(facts | own))
    _check(spec, facts["views"], (*INPUTS, facts["on"]))
    return spec


def _check(spec: LossSpec, most_views: int, inputs: Sequence[str]) -> None:
    """Refuse facts that the loss does not support."""
    where, name, dim = spec.where, type(spec.loss).__name__, spec.projection_dim
    if not isinstance(spec.labels, str) or type(spec.views) is not int or spec.views < 1:
        raise InputError(
            f"{where}: labels is {spec.labels!r} and views is {spec.views!r}; labels is a word, views a whole number"
        )
    if spec.on not in inputs:
        raise InputError(f"{where}.on is {spec.on!r}; it can be embedding or projection, or clusters")
    if spec.missing not in MISSING:
        raise InputError(f"{where}.missing is {spec.missing!r}; it can be {' or '.join(MISSING)}")
    if not isinstance(spec.project_mixed, bool):
        raise InputError(f"{where}.project_mixed is {spec.project_mixed!r}; it is true or false")
    if spec.project_mixed and dim:
        raise InputError(f"{where}: project_mixed projects to the width of the clean cycles; leave out projection_dim")
    if not isinstance(dim, int) or dim < 0:
        raise InputError(f"{where}.projection_dim is {dim!r}; it is a width, 0 for none")
    if dim and spec.on == "projection":
        raise InputError(f"{where}: projection_dim gives it a projection of its own; leave out on: projection")
    if spec.views not in (1, most_views):
        raise InputError(f"{where}.views is {spec.views!r}; {name} takes {'1 or 2' if most_views == 2 else most_views}")
    if spec.is_a(TupletContrastiveLoss, PatchMixContrastiveLoss) and spec.labels != CLASS:
        raise InputError(f"{where}.labels is {spec.labels!r}; {name} takes only class")
    if spec.labels == CYCLE and most_views < 2:
        raise InputError(f"{where}.labels is cycle, but {name} does not take two views of a cycle")
    if spec.labels == CYCLE and spec.views < 2:
        raise InputError(f"{where}: one view of a cycle has no positive pair; set views: 2")
    if spec.is_a(DeviceAdversarialLoss) and (spec.labels == CLASS or spec.groups_by_label()):
        raise InputError(
            f"{where}.labels is {spec.labels}, which the embedding should keep; name a column such as device"
        )
    if getattr(spec.loss, "detach_other_views", False) and spec.views < 2:
        raise InputError(f"{where}: detach_other_views needs views: 2")


def check_facts(specs: Sequence[LossSpec], projection_dim: int, accumulated: int) -> None:
    """Refuse losses of a projection that the model does not have, and of cycles of several accumulated batches."""
    for spec in specs:
        if spec.on == "projection" and not projection_dim:
            raise InputError(
                f"{spec.where}.on is projection, but the model has no projection; set its projection_dim, in a recipe "
                "head.projection_dim"
            )
        if accumulated > 1 and getattr(spec.inner, "across_cycles", Loss.across_cycles):
            raise InputError(
                f"{spec.where} looks at pairs of a batch, and with gradient_accumulation_steps it would use the pairs "
                "of each small batch only; use larger batches or more processes (a loss of your own that compares no "
                "cycles has the attribute across_cycles = False)"
            )


def _checked_together(specs: list[LossSpec]) -> list[LossSpec]:
    """Refuse losses over clusters without the loss that makes the clusters, or two of one kind."""
    clustering = [s for s in specs if s.is_a(DeepClusteringLoss)]
    for spec in specs:
        if not clustering and (spec.takes_frame_groups or spec.on == "clusters"):
            raise InputError(f"{spec.where} needs the clusters that loss.auxiliary.clustering makes; add that loss")
    for kind in CLUSTER_LOSSES:
        if len(same := [s for s in specs if s.is_a(kind)]) > 1:
            raise InputError(f"{same[1].where}: a training can have one {kind.__name__} only; remove it")
    return specs


def groups_of_data(data: Any, specs: Sequence[LossSpec], age_edges_years: Sequence[float] = ()) -> dict[str, Codes]:
    """Set the views and groups of a training set's items for its losses; return the groups by name.

    A warning names the cycles without a group.
    """
    if isinstance(data, torch.utils.data.IterableDataset):
        if named := [spec for spec in specs if spec.group_key is not None]:
            raise InputError(
                f"{named[0].where}.labels is {named[0].labels!r}, which a streamed table does not have; "
                "load the table as a whole"
            )
        data.views = max([spec.views for spec in specs], default=1)  # type: ignore[attr-defined]
    if not isinstance(data, CycleDataset):
        return {}
    table = GroupTable(len(data.targets.class_ids), data.targets.metadata, age_edges_years)
    groups = dict(data.groups)
    for spec in specs:
        if spec.group_key is None or spec.group_key in groups:
            continue
        codes = table.codes(spec.labels, spec.missing, f"{spec.where}.labels")
        if codes.max() < 1:
            raise InputError(
                f"{spec.where}.labels is {spec.labels!r}, which is the same for all training cycles: the "
                "loss has nothing to separate; choose another column"
            )
        if (codes < 0).any():
            absent = table.describe_ungrouped(codes)
            _log.warning("%s: %s is %s; this loss leaves them out", spec.where, spec.labels, absent)
        groups[spec.group_key] = codes
    data.groups, data.views = groups, max([spec.views for spec in specs], default=1)
    return groups


def contrasts_mixtures(specs: Sequence[LossSpec]) -> bool:
    """Whether a loss takes clean and mixed cycles, so that both are encoded."""
    return any(spec.is_a(PatchMixContrastiveLoss) for spec in specs)


def check_draws(
    specs: Sequence[LossSpec], mixes: bool, draws: bool, concatenates: bool = False, names: Sequence[str] = ()
) -> None:
    """Refuse two views that would be equal or mixed, and groups by a label (also `names`) that augmentation changes."""
    for spec in specs:
        if mixes and not spec.soft_labels and not contrasts_mixtures(specs):
            raise InputError(
                f"{spec.where} needs one class or group for each cycle, and augment.mix gives soft labels; drop one "
                "(the auxiliary loss add takes them, and an own loss with soft_labels = True)"
            )
        if (mixes or concatenates) and spec.groups_by_label(names):
            name = "augment.mix" if mixes else "augment.concatenate_probability"
            raise InputError(
                f"{spec.where}.labels is {spec.labels}, which groups by the label of a cycle, and {name} changes it; "
                "drop one"
            )
        if spec.views > 1 and mixes:
            raise InputError(f"{spec.where} takes two views of a cycle, and augment.mix mixes them; drop one")
        if spec.views > 1 and not draws:
            raise InputError(
                f"{spec.where} takes two views of a cycle, and without augmentation they are equal; set augment.* "
                f"(noise, shift, gain, spec, ...), in Python augmentation or spec_augment, or views: 1"
            )
