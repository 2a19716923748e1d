"""Checks of data, losses and sampler before the first step.

Decisions: the order of the first epoch is checked without reading sound. A loss that has no pair in any batch stops the
training, because its term would stay 0 unnoticed; a loss that lacks pairs in some batches is reported.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from laennec.training.coverage import Coverage, coverage
from laennec.training.data import CycleDataset
from laennec.training.loss_specs import CLASS, LossSpec
from laennec.training.metadata_groups import Codes, GroupTable
from laennec.training.recipe import ConfigError
from laennec.training.samplers import CounterSampler
from laennec.training.targets import Targets

_SAMPLER_FOR = {
    CLASS: "sampler.name: classes_times_samples",
    "patient": "sampler.name: patient_balanced",
    "device": "sampler.name: device_balanced",
}
_log = logging.getLogger(__name__)


def refuse_one_class(targets: Targets) -> None:
    """Refuse a training part whose cycles all have the same label.

    Raises:
        ConfigError: They are.
    """
    if len(np.unique(targets.class_ids)) > 1:
        return
    label = targets.labels[0]
    said = (
        ", ".join(f"{name} {value:g}" for name, value in zip(targets.names, label, strict=True))
        if targets.labels.ndim == 2
        else targets.names[int(label)]
    )
    raise ConfigError(
        f"all {len(targets.class_ids)} training cycles have the same label ({said}), so there is nothing to learn; "
        "choose another target.column or another corpus"
    )


def group_columns(specs: Sequence[LossSpec], groups: GroupTable) -> dict[str, Codes]:
    """The groups that the losses take, by their name in a batch; a warning names the cycles without a group.

    Raises:
        ConfigError: A column does not exist, is unknown for all cycles, or has one value only.
    """
    found: dict[str, Codes] = {}
    for spec in specs:
        if spec.group_key is None:
            continue
        codes = groups.codes(spec.labels, spec.missing, f"{spec.where}.labels")
        if codes.max() < 1:
            raise ConfigError(
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
        ConfigError: A loss cannot have two views.
    """
    for spec in specs:
        if spec.views > 1 and mixes:
            raise ConfigError(f"{spec.where} takes two views of a cycle, and augment.mix mixes them; drop one")
        if spec.views > 1 and not draws:
            raise ConfigError(
                f"{spec.where} takes two views of a cycle, and without augmentation they are equal; set "
                f"augment.* (noise, shift, gain, spec, ...) or {spec.where}.views: 1"
            )


def pair_lines(
    specs: Sequence[LossSpec], sampler: Any, rows_per_batch: int, class_ids: Codes, groups: dict[str, Codes]
) -> list[str]:
    """How many pairs the batches of the first epoch hold for each loss over pairs, one line each.

    Args:
        specs: All auxiliary losses.
        sampler: The sampler.
        rows_per_batch: Rows of a batch of all processes together.
        class_ids: Class of each cycle.
        groups: As `group_columns` gives them.

    Raises:
        ConfigError: No batch holds a pair that a loss needs: names the loss and a sampler.
    """
    if not isinstance(sampler, CounterSampler):
        return []
    lines = []
    for spec in specs:
        if not spec.takes_pairs:
            continue
        labels = class_ids if spec.group_key is None else groups[spec.group_key]
        seen = coverage(sampler, labels=labels, rows_per_batch=rows_per_batch)
        _refuse_without_pairs(spec, seen)
        lacking = seen.batches_without_positives
        without = f", {lacking} batches without any" if lacking and spec.views == 1 else ""
        lines.append(
            f"{spec.name}: by {spec.labels}, {seen.positive_pairs_mean:.0f} positive pairs in a batch of "
            f"{rows_per_batch} (fewest {seen.positive_pairs_min}{without}); an epoch of {seen.batches} batches sees "
            f"{100 * seen.share_seen:.1f} % of the cycles"
        )
    return lines


def coverage_line(name: str, sampler: Any, rows_per_batch: int, class_ids: Codes) -> str:
    """Share of the training part in the first epoch, in one line.

    Args:
        name: The sampler's name in the recipe.
        sampler: The sampler.
        rows_per_batch: Rows of a batch of all processes together.
        class_ids: Class of each cycle.
    """
    seen = coverage(sampler, labels=class_ids, rows_per_batch=rows_per_batch)
    share = f"{100 * seen.share_seen:.1f} % of {len(class_ids)} cycles"
    return f"sampler {name}: an epoch is {seen.batches} batches of {rows_per_batch} and sees {share}"


def _refuse_without_pairs(spec: LossSpec, seen: Coverage) -> None:
    if seen.batches_without_positives == seen.batches and spec.views == 1:
        lacking = "two cycles"
    elif seen.batches_without_negatives == seen.batches:
        lacking = "cycles of two groups"
    else:
        return
    right = _SAMPLER_FOR.get(spec.labels, "sampler.name: shuffle with a larger train.batch_size")
    what = f"of one {spec.labels}" if lacking == "two cycles" else f"by {spec.labels}"
    raise ConfigError(f"{spec.where}: no batch of the first epoch holds {lacking} {what}; set {right}")
