"""Coverage of a sampler: the share of the cycles in an epoch, and the positive pairs of its batches.

Decisions: pairs are counted from the order of the first epoch, without reading audio. A loss without a pair in any
batch is an error, because its term would stay 0 unnoticed; a loss that lacks pairs in some batches is reported.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from laennec.errors import InputError
from laennec.training.data.targets import Codes
from laennec.training.objectives.loss_specs import CLASS, LossSpec
from laennec.training.samplers import CounterSampler, RowsWithEpoch

_SAMPLER_FOR = {
    CLASS: "sampler.name: classes_times_samples",
    "patient": "sampler.name: patient_balanced",
    "device": "sampler.name: device_balanced",
}


def pairs_of_batches(order: Codes, codes: Codes, rows_per_batch: int) -> tuple[list[int], int]:
    """The positive pairs in each batch, and the number of batches with cycles of only one group.

    Args:
        order: Rows of an epoch.
        codes: Group of each cycle; negative where it is unknown, and then the cycle has no pairs.
        rows_per_batch: Batch size.
    """
    pairs, of_one_group = [], 0
    for start in range(0, len(order), rows_per_batch):
        rows = order[start : start + rows_per_batch]
        rows = rows[codes[rows] >= 0]
        in_group, in_cycle = np.unique_counts(codes[rows]).counts, np.unique_counts(rows).counts
        # ordered pairs of rows of one group, without the pairs of a cycle with itself
        pairs.append(int(np.square(in_group).sum() - np.square(in_cycle).sum()))
        of_one_group += len(in_group) < 2
    return pairs, of_one_group


def coverage_lines(
    name: str, sampler: Any, rows_per_batch: int, class_ids: Codes, specs: Sequence[LossSpec], groups: dict[str, Codes]
) -> list[str]:
    """The share of the training split in the first epoch, and the pairs in its batches for each loss over pairs."""
    known_before = isinstance(sampler, CounterSampler)  # a user's own sampler may yield another order in training
    name = name if known_before else type(sampler).__name__
    rows = sampler.order(0) if known_before else [row for row, _ in RowsWithEpoch(sampler, len(class_ids))]
    order = np.asarray(rows, dtype=np.int64)
    if not len(order):
        raise InputError(f"sampler {name}: its first epoch has no cycles")
    count = math.ceil(len(order) / rows_per_batch)
    share = f"{100 * len(np.unique(order)) / len(class_ids):.1f} % of"
    batches = f"{count} batch{'es' * (count != 1)}"
    lines = [f"sampler {name}: an epoch is {batches} of {rows_per_batch} and covers {share} {len(class_ids)} cycles"]
    for spec in specs if known_before else ():
        if not spec.takes_pairs:
            continue
        codes = class_ids if spec.group_key is None else groups[spec.group_key]
        pairs, of_one_group = pairs_of_batches(order, codes, rows_per_batch)
        lacking = pairs.count(0)
        if lacking == count and spec.views == 1:
            _refuse(spec, f"two cycles of one {spec.labels}")
        if of_one_group == count:
            _refuse(spec, f"cycles of two groups by {spec.labels}")
        without = f", {lacking} batches without any" if lacking and spec.views == 1 else ""
        lines.append(
            f"{spec.name}: by {spec.labels}, {np.mean(pairs):.0f} positive pairs in a batch of {rows_per_batch} "
            f"(fewest {min(pairs)}{without}); an epoch of {count} batches covers {share} the cycles"
        )
    return lines


def _refuse(spec: LossSpec, lacking: str) -> None:
    rare = [sampler for name, sampler in _SAMPLER_FOR.items() if name in spec.labels]
    right = rare[-1] if rare else "sampler.name: shuffle with a larger train.batch_size"
    raise InputError(f"{spec.where}: no batch of the first epoch holds {lacking}; set {right}")
