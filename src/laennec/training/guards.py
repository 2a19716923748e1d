"""What a run's batches hold, looked at before the first step.

Decisions: the first epoch's order is walked through, rows only, no sound; a loss none of whose batches could hold a
pair stops the run, because its term would be 0 all the way and nobody would notice; a loss that lacks pairs in some
batches is said so.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from laennec.training.auxiliary import CLASS, CYCLE, Entry
from laennec.training.coverage import Coverage, coverage
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
    """Refuse a training part whose cycles are all labelled alike.

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
        f"all {len(targets.class_ids)} training cycles are labelled alike ({said}), so there is nothing to tell apart; "
        "choose another target.column or another corpus"
    )


def group_columns(entries: Sequence[Entry], groups: GroupTable) -> dict[str, Codes]:
    """The groups that the entries look at, by their name in a batch; says which cycles have none.

    Raises:
        ConfigError: A column does not exist, is unknown throughout, or has one value only.
    """
    found: dict[str, Codes] = {}
    for entry in entries:
        if entry.group_key is None:
            continue
        codes = groups.codes(entry.labels, entry.missing, f"{entry.where}.labels")
        if codes.max() < 1:
            raise ConfigError(
                f"{entry.where}.labels is {entry.labels!r}, which is the same for all training cycles: there is "
                "nothing to tell apart; choose another column"
            )
        if (codes < 0).any():
            _log.warning("%s: %s is %s; this loss leaves them out", entry.where, entry.labels, groups.whose(codes))
        found[entry.group_key] = codes
    return found


def check_views(entries: Sequence[Entry], mixes: bool, draws: bool) -> None:
    """Refuse two views that would be alike, or that would be mixed.

    Args:
        entries: All auxiliary losses.
        mixes: Whether cycles of a batch are mixed.
        draws: Whether anything is drawn on waveforms or features.

    Raises:
        ConfigError: An entry cannot have two views.
    """
    for entry in entries:
        if entry.views > 1 and mixes:
            raise ConfigError(f"{entry.where} looks at two views of a cycle, which augment.mix takes away; drop one")
        if entry.views > 1 and not draws:
            raise ConfigError(
                f"{entry.where} looks at two views of a cycle, and without augmentation they are the same; set "
                f"augment.* (noise, shift, gain, spec, ...) or {entry.where}.views: 1"
            )


def pair_lines(
    entries: Sequence[Entry], sampler: Any, rows_per_batch: int, class_ids: Codes, groups: dict[str, Codes]
) -> list[str]:
    """What the batches of the first epoch hold for each loss that looks at pairs, one line each.

    Args:
        entries: All auxiliary losses.
        sampler: Of the phase.
        rows_per_batch: Of all processes together.
        class_ids: Class of each cycle.
        groups: As `group_columns` gives them.

    Raises:
        ConfigError: No batch holds a pair that a loss needs: names the loss and the sampler to use.
    """
    if not isinstance(sampler, CounterSampler):
        return []
    lines = []
    for entry in entries:
        if entry.kind in ("device_adversarial", "patch_mix") or entry.labels == CYCLE:  # cluster losses too
            continue
        labels = class_ids if entry.group_key is None else groups[entry.group_key]
        seen = coverage(sampler, labels=labels, rows_per_batch=rows_per_batch)
        _refuse_without_pairs(entry, seen)
        lacking = seen.batches_without_positives
        without = f", {lacking} batches without any" if lacking and entry.views == 1 else ""
        lines.append(
            f"{entry.name}: by {entry.labels}, {seen.positive_pairs_mean:.0f} positive pairs in a batch of "
            f"{rows_per_batch} (fewest {seen.positive_pairs_min}{without}); an epoch of {seen.batches} batches sees "
            f"{100 * seen.share_seen:.1f} % of the cycles"
        )
    return lines


def coverage_line(name: str, sampler: Any, rows_per_batch: int, class_ids: Codes) -> str:
    """How much of the training part the first epoch sees, in one line.

    Args:
        name: The sampler's, in the recipe.
        sampler: It.
        rows_per_batch: Of all processes together.
        class_ids: Class of each cycle.
    """
    seen = coverage(sampler, labels=class_ids, rows_per_batch=rows_per_batch)
    share = f"{100 * seen.share_seen:.1f} % of {len(class_ids)} cycles"
    return f"sampler {name}: an epoch is {seen.batches} batches of {rows_per_batch} and sees {share}"


def _refuse_without_pairs(entry: Entry, seen: Coverage) -> None:
    if seen.batches_without_positives == seen.batches and entry.views == 1:
        lacking = "two cycles"
    elif seen.batches_without_negatives == seen.batches:
        lacking = "cycles of two groups"
    else:
        return
    right = _SAMPLER_FOR.get(entry.labels, "sampler.name: shuffle with a larger train.batch_size")
    what = f"of one {entry.labels}" if lacking == "two cycles" else f"by {entry.labels}"
    raise ConfigError(f"{entry.where}: no batch of the first epoch holds {lacking} {what}; set {right}")
