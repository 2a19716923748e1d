"""Batches of one order shared among several processes."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch.utils.data import BatchSampler, Sampler


class SharedLastBatch(BatchSampler):
    """Batches of an order for several processes; the short last round is divided nearly equally.

    Guarantee: each process has the same number of batches, and a round has the rows of the batch of a single process;
    where fewer rows are left than there are processes, the round is completed by starting over.

    Args:
        sampler: gives the order.
        batch_size: of one process.
        processes: how many there are; batch i is for process i modulo their number.
    """

    def __init__(self, sampler: Sampler[Any], batch_size: int, processes: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.processes = processes

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield batches, one for each process in turn."""
        order = list(self.sampler)
        whole = self.batch_size * self.processes
        for start in range(0, len(order), whole):
            rows = order[start : start + whole]
            if len(rows) < self.processes:
                rows += [order[place % len(order)] for place in range(self.processes - len(rows))]
            size, larger = divmod(len(rows), self.processes)
            ends = [(process + 1) * size + min(process + 1, larger) for process in range(self.processes)]
            yield from (rows[first:last] for first, last in pairwise([0, *ends]))

    def __len__(self) -> int:
        """Batches of all processes."""
        rows: Any = self.sampler
        return math.ceil(len(rows) / (self.batch_size * self.processes)) * self.processes
