"""Coverage of a sampler: the share of the cycles in an epoch, and the positive pairs of its batches.

Decisions: the order of the first epoch is counted without reading sound. A loss that has no pair in any batch stops the
training, because its term would stay 0 unnoticed; a loss that lacks pairs in some batches is reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from laennec.errors import InputError
from laennec.training.data.targets import Codes, as_codes
from laennec.training.objectives.loss_specs import CLASS, LossSpec
from laennec.training.samplers import CounterSampler

_SAMPLER_FOR = {
    CLASS: "sampler.name: classes_times_samples",
    "patient": "sampler.name: patient_balanced",
    "device": "sampler.name: device_balanced",
}


@dataclass(frozen=True)
class Coverage:
    """What an epoch of a sampler holds."""

    rows: int  # rows in the epoch
    batches: int  # batches in the epoch
    share_seen: float  # share of the cycles that occur in it
    positive_pairs_min: int  # fewest ordered pairs of different cycles of one class in a batch
    positive_pairs_mean: float  # the same, averaged over batches
    batches_without_positives: int  # batches without a positive pair
    batches_without_negatives: int  # batches of a single class


def coverage(
    sampler: Any,
    epoch: int = 0,
    *,
    labels: Sequence[Any] | npt.NDArray[Any] | None = None,
    rows_per_batch: int | None = None,
) -> Coverage:
    """Count the cycles of an epoch and the positive pairs of its batches.

    Args:
        sampler: A sampler; those of `laennec.training.samplers` keep their own epoch.
        epoch: Counted from 0; an own sampler is counted in the epoch that it is at.
        labels: Class of each cycle, integers below 0 where it is unknown (such a cycle has no pairs); None for the
            sampler's own.
        rows_per_batch: Batch size; None for the sampler's own.
    """
    known = labels if labels is not None else getattr(sampler, "labels", None)
    size = rows_per_batch or getattr(sampler, "rows_per_batch", None)
    if known is None or size is None:
        raise ValueError(f"{type(sampler).__name__} has no labels or batch size; pass labels= and rows_per_batch=")
    codes, values = as_codes(known), np.asarray(known)
    unknown = values < 0 if values.dtype.kind == "i" else np.zeros(len(codes), bool)
    if isinstance(sampler, CounterSampler):
        order = sampler.order(epoch)
    else:
        order = np.array([row[0] if isinstance(row, tuple) else int(row) for row in sampler], dtype=np.int64)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    known_rows = [batch[~unknown[batch]] for batch in batches]
    # ordered pairs of places that hold cycles of one class, less those that hold the same cycle
    same = [[np.unique_counts(held).counts for held in (codes[rows], rows)] for rows in known_rows]
    pairs = [int(np.square(of_class).sum() - np.square(of_cycle).sum()) for of_class, of_cycle in same]
    return Coverage(
        rows=len(order),
        batches=len(pairs),
        share_seen=len(np.unique(order)) / len(codes),
        positive_pairs_min=min(pairs),
        positive_pairs_mean=float(np.mean(pairs)),
        batches_without_positives=pairs.count(0),
        batches_without_negatives=sum(len(np.unique(codes[batch])) < 2 for batch in known_rows),
    )


def coverage_lines(
    name: str, sampler: Any, rows_per_batch: int, class_ids: Codes, specs: Sequence[LossSpec], groups: dict[str, Codes]
) -> list[str]:
    """The share of the training split in the first epoch, and the pairs in its batches for each loss over pairs."""
    seen = coverage(sampler, labels=class_ids, rows_per_batch=rows_per_batch)
    share = f"{100 * seen.share_seen:.1f} % of {len(class_ids)} cycles"
    batches = f"{seen.batches} batch{'es' * (seen.batches != 1)}"
    lines = [f"sampler {name}: an epoch is {batches} of {rows_per_batch} and covers {share}"]
    # an own sampler's order is not known in advance
    for spec in specs if isinstance(sampler, CounterSampler) else ():
        if not spec.takes_pairs:
            continue
        labels = class_ids if spec.group_key is None else groups[spec.group_key]
        seen = coverage(sampler, labels=labels, rows_per_batch=rows_per_batch)
        if seen.batches_without_positives == seen.batches and spec.views == 1:
            _refuse(spec, f"two cycles of one {spec.labels}")
        if seen.batches_without_negatives == seen.batches:
            _refuse(spec, f"cycles of two groups by {spec.labels}")
        lacking = seen.batches_without_positives
        without = f", {lacking} batches without any" if lacking and spec.views == 1 else ""
        lines.append(
            f"{spec.name}: by {spec.labels}, {seen.positive_pairs_mean:.0f} positive pairs in a batch of "
            f"{rows_per_batch} (fewest {seen.positive_pairs_min}{without}); an epoch of {seen.batches} batches covers "
            f"{100 * seen.share_seen:.1f} % of the cycles"
        )
    return lines


def _refuse(spec: LossSpec, lacking: str) -> None:
    rare = [sampler for name, sampler in _SAMPLER_FOR.items() if name in spec.labels]
    right = rare[-1] if rare else "sampler.name: shuffle with a larger train.batch_size"
    raise InputError(f"{spec.where}: no batch of the first epoch holds {lacking}; set {right}")
