"""Training with a fraction of the labels.

Decisions: a draw takes cycles, not patients: one percent of the patients is one or two people, who seldom have every
class, while one percent of the cycles has all classes. The table states the number of patients, because cycles of many
patients make a small fraction look better. Each class gives its share, at least one cycle. The order within a class is
a hash of (split seed, draw, cycle), so a smaller fraction of a draw is a subset of a larger one, and runs of other
seeds and encoders use the same cycles. A small fraction repeats its cycles within an epoch, each repeat with its own
augmentation, so that every cell has as many updates as the full set; otherwise the curve would show missing steps, not
missing labels.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.corpora.base import column_of
from laennec.errors import InputError
from laennec.training.neighbours import cycle_numbers
from laennec.training.recipe import Recipe
from laennec.training.split_data import SplitData, make_split
from laennec.training.targets import Targets


def labelled_rows(
    class_ids: NDArray[np.int64], cycle_ids: Sequence[str], fraction: float, seed: int, draw: int
) -> NDArray[np.int64]:
    """The rows of one draw of a fraction of the labels.

    Args:
        class_ids: Class of each cycle (cycles,).
        cycle_ids: Its id.
        fraction: Above 0, at most 1.
        seed: Of the order.
        draw: Number of the draw, from 0.

    Returns:
        Ascending rows: the share of each class, rounded, and at least one.

    Raises:
        InputError: The fraction holds fewer cycles than there are classes.
    """
    keys = [hashlib.sha256(f"labels {seed} {draw} {cycle_id}".encode()).digest() for cycle_id in cycle_ids]
    classes = np.unique(class_ids)
    wanted = math.floor(fraction * len(class_ids) + 0.5)
    if wanted < len(classes):
        least = math.ceil(1e4 * len(classes) / max(len(class_ids), 1)) / 1e4
        raise InputError(
            f"label fraction {fraction:g} of {len(class_ids)} training cycles is {wanted}, too few for the "
            f"{len(classes)} classes that occur, so some label would have no example; give at least {least:g} "
            "(corpus.label_fraction)"
        )
    chosen: list[int] = []
    for number in classes:
        rows = sorted(np.flatnonzero(class_ids == number).tolist(), key=lambda row: keys[row])
        chosen += rows[: max(1, math.floor(fraction * len(rows) + 0.5))]
    return np.array(sorted(chosen), dtype=np.int64)


def refuse_missing_labels(targets: Targets) -> None:
    """Refuse a training split in which all cycles, or none, have a yes/no label: no fraction can teach it.

    Raises:
        InputError: Names the label.
    """
    if targets.labels.ndim != 2:
        return
    positives = targets.labels.sum(0)
    for name, count in zip(targets.names, positives, strict=True):
        if count in (0, len(targets.labels)):
            side = "no cycle with" if count == 0 else "no cycle without"
            raise InputError(
                f"the {len(targets.labels)} training cycles have {side} {name}, so no fraction of them teaches it; "
                "choose other target.names or another corpus"
            )


def labelled_split(recipe: Recipe, table: Any, extractor: Any, full: SplitData, rows: NDArray[np.int64]) -> SplitData:
    """Some of the labelled training cycles as a split, repeated until an epoch is about as long as a full one.

    Args:
        recipe: Of the cell.
        table: The cycle table of the whole training split.
        extractor: The feature extractor.
        full: The whole training split.
        rows: Its cycles that keep their labels.
    """
    repeats = max(1, round(len(full.table) / len(rows)))
    part = make_split("train", table, recipe, extractor, full.targets.names, True, np.tile(rows, repeats))
    # each repeat has a number of its own, and so its own draws of augmentation
    ids = enumerate(column_of(part.table, "cycle_id"))
    again = [name if k < len(rows) else f"{name} repeat {k // len(rows)}" for k, name in ids]
    part.dataset.numbers = cycle_numbers(again)
    return part
