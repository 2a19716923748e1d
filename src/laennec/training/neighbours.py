"""Concatenated context: the cycles before and after each labelled cycle of a split.

Decisions: neighbours are looked up in the whole split, before cycles without a label are left out, because context
needs no label. A protocol that splits recordings is refused: the neighbours in the recording would be in another split,
and the neighbours within the split are not those of prediction.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.audio.context import neighbour_rows
from laennec.corpora.base import column_of
from laennec.errors import InputError


def cycle_numbers(cycle_ids: Sequence[str]) -> NDArray[np.int64]:
    """A number for each cycle that depends on its id alone: the counter of its random draws."""
    digests = (hashlib.sha256(c.encode()).digest()[:8] for c in cycle_ids)
    return np.array([int.from_bytes(d, "little") >> 1 for d in digests], dtype=np.int64)


class Neighbours:
    """The cycles before and after each labelled cycle of a split.

    Args:
        table: The whole split, cycles without a label included.
        waveforms: Of its rows.
        kept: Rows that carry a label, in the order of the dataset.
        context_cycles: Number of cycles on either side.

    Attributes:
        rows: For each labelled cycle the rows of the table before and after it, in time order.
        numbers: Counter of each row's draws.
    """

    def __init__(self, table: Any, waveforms: Any, kept: NDArray[np.int64], context_cycles: int) -> None:
        spans = list(zip(column_of(table, "start_s"), column_of(table, "end_s"), strict=True))
        everywhere = neighbour_rows(column_of(table, "recording_id"), spans, context_cycles)
        self.rows = [everywhere[int(row)] for row in kept]
        self.waveforms = waveforms
        self.numbers = cycle_numbers(table["cycle_id"])
        ids = column_of(table, "cycle_id")
        self._named = [(start, end, name) for (start, end), name in zip(spans, ids, strict=True)]

    def named(self, row: int) -> list[list[tuple[float, float, str]]]:
        """Times and ids of a labelled cycle's neighbours, before and after; its embedding depends on them."""
        return [[self._named[other] for other in side] for side in self.rows[row]]


def refuse_lost_neighbours(parts: Any, protocol: str | None, context_cycles: int) -> None:
    """Refuse context where a protocol splits recordings, and where no training cycle has a neighbour.

    Raises:
        InputError: The neighbours of some cycles are in another split, or there are none.
    """
    if not context_cycles:
        return
    seen: dict[str, str] = {}
    for name, table in parts.items():
        for recording in set(table["recording_id"]):
            if seen.setdefault(recording, name) != name:
                raise InputError(
                    f"features.context_cycles is {context_cycles}, but protocol {protocol} puts cycles of one "
                    f"recording ({recording}) into {seen[recording]} and {name}, so they are not neighbours; "
                    "choose a protocol that keeps recordings whole"
                )
    if "train" in parts and len(set(parts["train"]["recording_id"])) == len(parts["train"]):
        raise InputError(
            f"features.context_cycles is {context_cycles}, but no training recording has a second cycle; leave it out"
        )
