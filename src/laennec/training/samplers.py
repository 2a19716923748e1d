"""Which cycles meet in a batch.

Decisions: samplers yield (row, epoch), so that the data set can draw by counter; the order is a pure function of
(seed, epoch) and the same on every rank (accelerate hands rank r every world-size-th batch of it), so a run resumes
by skipping batches; samplers that build batches give whole batches only, the last one completed by starting over,
because a short last batch would be filled by others' rows and lose its pairs. They are plain samplers for a
DataLoader (or Trainer) whose batch size is `rows_per_batch`. Where their number is no multiple of the processes,
accelerate completes the last round with the first batches; where every cycle comes once, the short last round is
shared out instead (`SharedLastBatch`), so that it is the one of a single process.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import BatchSampler, Sampler

from laennec.audio.augmentation import counter_generator

Rows = npt.NDArray[np.int64]


class CounterSampler(Sampler[tuple[int, int]]):
    """What the samplers here share: an order that depends on (seed, epoch) alone.

    Args:
        seed: of the run.

    Attributes:
        epoch: the epoch the next iteration is for.
        rows_per_batch: batch size (per device) the order is made for; None where any will do.
        shares_last_batch: whether the last round of batches may be cut anew for several processes.
    """

    rows_per_batch: int | None = None
    shares_last_batch = False

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self.epoch = 0

    @abstractmethod
    def order(self, epoch: int) -> Rows:
        """The rows of one epoch, in order, (len(self),)."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows in an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is for; Trainer and accelerate call this."""
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (row, epoch)."""
        epoch = self.epoch
        for row in self.order(epoch).tolist():
            yield row, epoch


class EpochSampler(CounterSampler):
    """Every cycle once an epoch.

    Guarantee: a permutation of all cycles. The last batch of the DataLoader is short where the number of cycles is no
    multiple of the batch size (set `drop_last` to leave it out); on several processes they share it.

    Args:
        rows: number of cycles.
        seed: of the run.
        shuffle: False gives the order of the table.

    Raises:
        ValueError: if there is no cycle.
    """

    shares_last_batch = True

    def __init__(self, rows: int, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__(seed)
        if rows < 1:
            raise ValueError("there is no cycle to sample")
        self.rows = int(rows)
        self.shuffle = shuffle

    def order(self, epoch: int) -> Rows:
        """A permutation of all rows."""
        if not self.shuffle:
            return np.arange(self.rows)
        return counter_generator(self.seed, epoch, 0, "order").permutation(self.rows)

    def __len__(self) -> int:
        """The number of cycles."""
        return self.rows


class LengthBucketSampler(CounterSampler):
    """Every cycle once an epoch, in batches of like length: what is computed is sound, not padding.

    Guarantee: a permutation of all cycles. A random order is cut into pools of some batches; each pool is sorted by
    length and cut into batches, and all batches come in random order. Who meets whom thus changes from epoch to epoch.
    A short last batch stays last. Several processes share each batch of one process with so many more rows, dealt out
    by length, so that all of them compute about as much padding and none waits for another.

    Args:
        lengths: of each cycle, (cycles,), in any unit.
        rows_per_batch: batch size (per device).
        seed: of the run.
        batches_per_pool: more of them leave less padding and less chance to who meets whom.
        processes: how many there are.

    Raises:
        ValueError: if there is no cycle, or nothing in a batch.
    """

    rows_per_batch: int
    shares_last_batch = True

    def __init__(
        self,
        lengths: Sequence[int] | npt.NDArray[Any],
        rows_per_batch: int,
        seed: int = 0,
        batches_per_pool: int = 32,
        processes: int = 1,
    ) -> None:
        super().__init__(seed)
        self.lengths = np.asarray(lengths)
        if self.lengths.ndim != 1 or not len(self.lengths):
            raise ValueError("there is no cycle to sample")
        if rows_per_batch < 1 or batches_per_pool < 1 or processes < 1:
            raise ValueError(
                f"batches of {rows_per_batch} in pools of {batches_per_pool} for {processes} processes: give at least "
                "1 of each"
            )
        self.rows_per_batch = int(rows_per_batch)
        self.batches_per_pool = int(batches_per_pool)
        self.processes = int(processes)

    def order(self, epoch: int) -> Rows:
        """A permutation of all rows, batch by batch."""
        size = self.rows_per_batch * self.processes
        generator = counter_generator(self.seed, epoch, 0, "order")
        rows = generator.permutation(len(self.lengths))
        whole = len(rows) // size * size
        batches = []
        for start in range(0, whole, size * self.batches_per_pool):
            pool = rows[start : min(start + size * self.batches_per_pool, whole)]
            batches.append(pool[np.argsort(self.lengths[pool], kind="stable")].reshape(-1, size))
        left = rows[whole:]
        if self.processes > 1:
            left = self._dealt(left[np.argsort(self.lengths[left], kind="stable")])
        if not batches:
            return left
        stacked = np.concatenate([[self._dealt(batch) for batch in pool] for pool in batches])
        return np.concatenate([stacked[generator.permutation(len(stacked))].ravel(), left])

    def _dealt(self, rows: Rows) -> Rows:
        """Rows in order of length, dealt out to the processes: those of the first, those of the second, ..."""
        return np.concatenate([rows[::-1][process :: self.processes][::-1] for process in range(self.processes)])

    def __len__(self) -> int:
        """The number of cycles."""
        return len(self.lengths)


class AnchorPositiveSampler(CounterSampler):
    """M random anchors, then one random other cycle of the same class for each: the batch of Song et al.

    Guarantee: a batch has 2M rows, anchors first, row i + M being another cycle of row i's class. Every cycle is an
    anchor once an epoch; the anchors of the last batch are completed with the first ones of the epoch. A cycle that is
    alone in its class is its own positive.

    Args:
        labels: class of each cycle, (cycles,).
        anchors: M, anchors in a batch; set the batch size to 2M.
        seed: of the run.

    Raises:
        ValueError: if there is no cycle, or no anchor in a batch.

    Reference: Song, Han and Song, ICASSP 2021, section 2.3.
    """

    def __init__(self, labels: Sequence[Any] | npt.NDArray[Any], anchors: int, seed: int = 0) -> None:
        super().__init__(seed)
        self.labels = _as_codes(labels)
        if anchors < 1:
            raise ValueError(f"a batch needs at least one anchor, not {anchors}")
        self.anchors = int(anchors)
        self.rows_per_batch = 2 * self.anchors
        self._members = np.argsort(self.labels, kind="stable")  # rows, class by class
        self._size = np.bincount(self.labels)  # of each class
        self._first = np.cumsum(self._size) - self._size
        self._place = np.empty_like(self._members)  # of each row within its class
        self._place[self._members] = np.arange(len(self.labels)) - self._first[self.labels[self._members]]

    def order(self, epoch: int) -> Rows:
        """Batches of M anchors and their M positives, one after the other."""
        batches = len(self) // (2 * self.anchors)
        anchors = counter_generator(self.seed, epoch, 0, "order").permutation(len(self.labels))
        anchors = np.resize(anchors, batches * self.anchors)
        generator = counter_generator(self.seed, epoch, 0, "partners")
        label = self.labels[anchors]
        size = self._size[label]
        # 1 .. size - 1 places further on in the class, so never the anchor itself unless it is alone
        step = 1 + (generator.random(len(anchors)) * (size - 1)).astype(np.int64)
        positives = self._members[self._first[label] + (self._place[anchors] + step) % size]
        shape = (batches, self.anchors)
        return np.concatenate([anchors.reshape(shape), positives.reshape(shape)], axis=1).ravel()

    def __len__(self) -> int:
        """Rows in an epoch: a multiple of 2M."""
        return math.ceil(len(self.labels) / self.anchors) * 2 * self.anchors


class ClassesTimesSamplesSampler(CounterSampler):
    """Batches of P classes with K cycles each.

    Guarantee: P classes and K cycles of each in every batch; a cycle is twice in a batch only where its class has fewer
    than K. Classes take turns (a random order, then another), so each is drawn equally often (once more or less);
    within a class, cycles are dealt from a shuffled pack that is taken up again when it runs out, so an epoch repeats
    cycles of rare classes and leaves some of the common ones to the next. `coverage` says how many.

    Args:
        labels: class of each cycle, (cycles,), or any other group.
        classes_per_batch: P, no more than there are.
        samples_per_class: K, at least 2 for a positive pair.
        seed: of the run.

    Raises:
        ValueError: if a batch asks for more classes than there are, or for nothing.
    """

    def __init__(
        self,
        labels: Sequence[Any] | npt.NDArray[Any],
        classes_per_batch: int,
        samples_per_class: int,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.labels = _as_codes(labels)
        self._rows = len(self.labels)
        self._packs = [np.flatnonzero(self.labels == code) for code in range(int(self.labels.max()) + 1)]
        if not 1 <= classes_per_batch <= len(self._packs) or samples_per_class < 1:
            raise ValueError(
                f"a batch of {classes_per_batch} groups x {samples_per_class} cycles cannot be drawn from "
                f"{len(self._packs)} groups; lower the first, raise the second to at least 1"
            )
        self.classes_per_batch = int(classes_per_batch)
        self.samples_per_class = int(samples_per_class)
        self.rows_per_batch = self.classes_per_batch * self.samples_per_class

    def order(self, epoch: int) -> Rows:
        """Batches of P * K rows, class by class within a batch."""
        generator = counter_generator(self.seed, epoch, 0, "order")
        groups = Dealer(np.arange(len(self._packs)), generator)
        packs = [Dealer(pack, generator) for pack in self._packs]
        per_batch = self.classes_per_batch * self.samples_per_class
        return np.concatenate(
            [
                packs[group].deal(self.samples_per_class)
                for _ in range(len(self) // per_batch)
                for group in groups.deal(self.classes_per_batch)
            ]
        )

    def __len__(self) -> int:
        """Rows in an epoch: the number of cycles, rounded up to whole batches."""
        per_batch = self.classes_per_batch * self.samples_per_class
        return math.ceil(self._rows / per_batch) * per_batch


class PatientBalancedSampler(ClassesTimesSamplesSampler):
    """Batches of P patients with K cycles each, every patient drawn equally often.

    Guarantee: P patients and K cycles of each in every batch; a cycle is twice in a batch only where its patient has
    fewer than K. This is what `PatientAlignmentLoss` needs (centroids of at least two patients); it also keeps patients
    with many recordings from ruling the training.

    Args:
        patient_ids: patient of each cycle, (cycles,), of any type.
        patients_per_batch: P, no more than there are.
        cycles_per_patient: K.
        seed: of the run.

    Raises:
        ValueError: if a batch asks for more patients than there are, or for nothing.
    """

    def __init__(
        self,
        patient_ids: Sequence[Any] | npt.NDArray[Any],
        patients_per_batch: int,
        cycles_per_patient: int,
        seed: int = 0,
    ) -> None:
        super().__init__(patient_ids, patients_per_batch, cycles_per_patient, seed)


class SharedLastBatch(BatchSampler):
    """Batches of an order for several processes, the short last round in parts of nearly equal size.

    Guarantee: as many batches for each process, and round by round the rows that one process with the whole batch would
    have; where fewer rows are left than there are processes, the round is completed by starting over.

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


class Dealer:
    """Deals a shuffled pack over and over; one deal repeats an entry only where the pack is smaller than the deal."""

    def __init__(self, pack: Rows, generator: np.random.Generator) -> None:
        self._pack, self._generator = pack, generator
        self._left = generator.permutation(pack)

    def deal(self, count: int) -> Rows:
        """The next entries, (count,)."""
        dealt, self._left = self._left[:count], self._left[count:]
        while len(dealt) < count:
            fresh = self._generator.permutation(self._pack)
            again = np.isin(fresh, dealt)
            fresh = np.concatenate([fresh[~again], fresh[again]])
            take = count - len(dealt)
            dealt, self._left = np.concatenate([dealt, fresh[:take]]), fresh[take:]
        return dealt


@dataclass(frozen=True)
class Coverage:
    """What an epoch of a sampler holds.

    Attributes:
        rows: rows in the epoch.
        batches: batches in the epoch.
        share_seen: share of the cycles that occur in it.
        positive_pairs_min: fewest ordered pairs of different cycles of one class in a batch.
        positive_pairs_mean: the same, averaged over batches.
        batches_without_positives: batches in which a contrastive term has nothing to pull together.
        batches_without_negatives: batches that hold one class alone.
    """

    rows: int
    batches: int
    share_seen: float
    positive_pairs_min: int
    positive_pairs_mean: float
    batches_without_positives: int
    batches_without_negatives: int


def coverage(
    sampler: CounterSampler,
    epoch: int = 0,
    *,
    labels: Sequence[Any] | npt.NDArray[Any] | None = None,
    rows_per_batch: int | None = None,
) -> Coverage:
    """Report how much of the corpus an epoch sees, and how many positive pairs its batches hold.

    Args:
        sampler: any of this module; its own epoch is left as it is.
        epoch: counted from 0.
        labels: class of each cycle, integers below 0 where it is unknown (such a cycle has no pairs); the sampler's
            own where it has them.
        rows_per_batch: batch size; the sampler's own where it has one.

    Returns:
        The report.

    Raises:
        ValueError: if labels or the batch size are known neither here nor to the sampler.
    """
    known = labels if labels is not None else getattr(sampler, "labels", None)
    size = rows_per_batch or sampler.rows_per_batch
    if known is None or size is None:
        raise ValueError(f"{type(sampler).__name__} knows no labels or batch size; pass labels= and rows_per_batch=")
    codes = _as_codes(known)
    values = np.asarray(known)
    unknown = values < 0 if values.dtype.kind == "i" else np.zeros(len(codes), bool)
    order = sampler.order(epoch)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    batches_known = [batch[~unknown[batch]] for batch in batches]
    pairs = [_positive_pairs(batch, codes) for batch in batches_known]
    return Coverage(
        rows=len(order),
        batches=len(pairs),
        share_seen=len(np.unique(order)) / len(codes),
        positive_pairs_min=min(pairs),
        positive_pairs_mean=float(np.mean(pairs)),
        batches_without_positives=pairs.count(0),
        batches_without_negatives=sum(len(np.unique(codes[batch])) < 2 for batch in batches_known),
    )


def _positive_pairs(rows: Rows, codes: Rows) -> int:
    """Ordered pairs of places that hold different cycles of one class."""
    same_class = int(np.square(np.unique_counts(codes[rows]).counts).sum())
    same_cycle = int(np.square(np.unique_counts(rows).counts).sum())
    return same_class - same_cycle


def _as_codes(labels: Sequence[Any] | npt.NDArray[Any]) -> Rows:
    """Labels of any type as 0 .. groups - 1."""
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"labels must be a non-empty column (cycles,), not of shape {values.shape}")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)
