"""Batches whose metadata is equal, or balanced.

Decisions: a cycle whose metadata is unknown is left out (`missing="drop"`) or shares a group with the other unknown
ones ("own_group"), never guessed; every batch is whole; the number of batches depends on the table alone, so that an
epoch has the same length every time.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from laennec.audio.augmentation import counter_generator
from laennec.training.metadata_groups import group_codes
from laennec.training.samplers import ClassesTimesSamplesSampler, CounterSampler, Dealer, Rows


class MetadataMatchedSampler(CounterSampler):
    """Batches equal in some columns (age band, sex, both, chest location): what tells them apart is something else.

    Guarantee: each batch comes from one group, and no cycle of another group is in it. A group has batches in
    proportion to its cycles (their number divided by the batch size, rounded up), and batches of all groups are
    shuffled together. Within a group, patients take turns and each gives its cycles by turns: no patient is twice in a
    batch unless its group has fewer patients than the batch has rows, and no cycle is unless the group has fewer
    cycles, or the patient is drawn again before its cycles run out.

    Contrast inside such a batch cannot be won by recognising age or sex (hard negatives of Soni et al.).

    Args:
        columns: Each (cycles,), None where unknown; a group is a combination of values.
        rows_per_batch: Batch size.
        patient_ids: Patient of each cycle; None lets cycles take turns by themselves.
        missing: "drop" | "own_group", for cycles with an unknown column.
        seed: of the run.

    Raises:
        ValueError: if there is no column, no known cycle, or nothing in a batch.

    Reference: Soni et al., Contrastive Learning of Heart and Lung Sounds for Label-Efficient Diagnosis, Patterns 2022.
    """

    rows_per_batch: int

    def __init__(
        self,
        columns: Sequence[Sequence[Any]],
        rows_per_batch: int,
        patient_ids: Sequence[Any] | None = None,
        missing: str = "drop",
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if rows_per_batch < 1:
            raise ValueError(f"a batch needs at least one cycle, not {rows_per_batch}")
        self.rows_per_batch = int(rows_per_batch)
        self.labels = group_codes(columns, missing)
        if (self.labels < 0).all():
            raise ValueError("no cycle has all of the columns; choose others, or missing: own_group")
        rows = np.arange(len(self.labels))
        givers = rows if patient_ids is None else group_codes([list(patient_ids)], "own_group")
        # group -> patient -> rows
        self._packs = [
            [rows[(self.labels == group) & (givers == giver)] for giver in np.unique(givers[self.labels == group])]
            for group in range(int(self.labels.max()) + 1)
        ]
        self._batches = [math.ceil(sum(map(len, packs)) / self.rows_per_batch) for packs in self._packs]

    def order(self, epoch: int) -> Rows:
        """Batches of one group each."""
        generator = counter_generator(self.seed, epoch, 0, "order")
        batches = [
            batch
            for packs, count in zip(self._packs, self._batches, strict=True)
            for batch in self._of_group(packs, count, generator)
        ]
        return np.concatenate([batches[i] for i in generator.permutation(len(batches))])

    def _of_group(self, packs: list[Rows], count: int, generator: np.random.Generator) -> list[Rows]:
        turns = Dealer(np.arange(len(packs)), generator)
        dealers = [Dealer(pack, generator) for pack in packs]
        batches = []
        for _ in range(count):
            # all turns of a patient in one deal, which repeats no cycle that the patient has others of
            givers, first, turns_each = np.unique(
                turns.deal(self.rows_per_batch), return_index=True, return_counts=True
            )
            by_turn = np.argsort(first)
            batches.append(np.concatenate([dealers[givers[i]].deal(int(turns_each[i])) for i in by_turn]))
        return batches

    def __len__(self) -> int:
        """Rows in an epoch."""
        return sum(self._batches) * self.rows_per_batch


class DeviceBalancedSampler(ClassesTimesSamplesSampler):
    """Batches of D devices with K cycles each, every device drawn equally often whatever its share.

    Guarantee: D devices and K cycles of each in every batch; a cycle is twice in a batch only where its device has
    fewer than K. This is what stethoscope-guided SupCon and the gradient-reversal head need.

    Args:
        devices: Device of each cycle, None where unknown.
        devices_per_batch: D, no more than there are; 0 for all of them.
        cycles_per_device: K.
        missing: "drop" | "own_group", for cycles whose device is unknown.
        seed: of the run.

    Raises:
        ValueError: if no device is known, a batch asks for more than there are, or for nothing.
    """

    def __init__(
        self,
        devices: Sequence[Any],
        devices_per_batch: int,
        cycles_per_device: int,
        missing: str = "drop",
        seed: int = 0,
    ) -> None:
        codes = group_codes([list(devices)], missing)
        self._known = np.flatnonzero(codes >= 0)
        if not len(self._known):
            raise ValueError("no cycle has a device; choose another sampler, or missing: own_group")
        count = devices_per_batch or len(np.unique(codes[self._known]))
        super().__init__(codes[self._known], count, cycles_per_device, seed)
        self.labels = codes

    def order(self, epoch: int) -> Rows:
        """Batches of D * K rows, device by device within a batch."""
        return self._known[super().order(epoch)]
