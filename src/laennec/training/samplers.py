"""Samplers: which cycles are in a batch together.

Decisions: samplers yield (row, epoch), because draws of the data set are keyed by the epoch. The order is a pure
function of (seed, epoch) and the same on every rank (accelerate gives rank r every world-size-th batch of it), so a run
resumes by skipping batches. Samplers that build batches yield whole batches only and complete the last one themselves,
because accelerate would complete it with other rows, without pairs. Where the number of batches is no multiple of the
processes, accelerate completes the last round with the first batches; where every cycle comes once, the processes share
the short last round (`SharedLastBatch`).

A user's own sampler is a torch `Sampler` of rows or (row, epoch) pairs with `__len__`. In a recipe it is made as
`MySampler(table, batch_size, seed, **arguments)`: `table` is the cycle table of the labelled training cycles, in the
order of the rows. Optional: `set_epoch(epoch)`, called before each epoch, and `rows_per_batch`, the batch size that the
order is made for (then it replaces train.batch_size).
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from laennec.audio.augmentation import counter_generator
from laennec.errors import InputError
from laennec.losses import TupletContrastiveLoss
from laennec.training.data.batches import CycleDataset, EmbeddingDataset
from laennec.training.data.targets import Codes, as_codes, group_codes
from laennec.training.devices import process_count_of_launch
from laennec.training.objectives.loss_specs import LossSpec

Rows = npt.NDArray[np.int64]
Labels = Sequence[Any] | npt.NDArray[Any]


class CounterSampler(Sampler[tuple[int, int]]):
    """A sampler whose order depends on (seed, epoch) alone.

    Attributes:
        epoch: Epoch of the next iteration.
        rows_per_batch: Batch size (per device) that the order is made for; None for any.
        shares_last_batch: Whether several processes may divide the last round of batches.
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
        """Set the epoch of the next iteration; Trainer and accelerate call this."""
        self.epoch = int(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (row, epoch)."""
        epoch = self.epoch
        for row in self.order(epoch).tolist():
            yield row, epoch


class EpochSampler(CounterSampler):
    """Every cycle once an epoch.

    Guarantee: a permutation of all cycles. The last batch is short where the number of cycles is no multiple of the
    batch size; several processes share it.
    """

    shares_last_batch = True

    def __init__(self, rows: int, seed: int = 0) -> None:
        super().__init__(seed)
        if rows < 1:
            raise ValueError("there is no cycle to sample")
        self.rows = int(rows)

    def order(self, epoch: int) -> Rows:
        """A permutation of all rows."""
        return counter_generator(self.seed, epoch, 0, "order").permutation(self.rows)

    def __len__(self) -> int:
        return self.rows


class LengthBucketSampler(CounterSampler):
    """Every cycle once an epoch, in batches of similar length, which have little padding.

    Guarantee: a permutation of all cycles. A random order is cut into pools of some batches; each pool is sorted by
    length and cut into batches, and all batches come in random order, so batches differ from epoch to epoch. A short
    last batch stays last. Several processes divide one larger batch by length, with `rows_per_batch` rows for each, so
    that all of them have about as much padding.

    Args:
        lengths: Length of each cycle, (cycles,), in any unit.
        rows_per_batch: Batch size (per device).
        seed: Seed of the run.
        batches_per_pool: More of them give less padding and less random batches.
        processes: Number of processes.
    """

    rows_per_batch: int
    shares_last_batch = True

    def __init__(
        self, lengths: Labels, rows_per_batch: int, seed: int = 0, batches_per_pool: int = 32, processes: int = 1
    ) -> None:
        super().__init__(seed)
        self.lengths = np.asarray(lengths)
        if not len(self.lengths):
            raise ValueError("there is no cycle to sample")
        self.rows_per_batch, self.batches_per_pool = int(rows_per_batch), int(batches_per_pool)
        self.processes = int(processes)

    def order(self, epoch: int) -> Rows:
        """A permutation of all rows, batch by batch."""
        size = self.rows_per_batch * self.processes
        generator = counter_generator(self.seed, epoch, 0, "order")
        rows = generator.permutation(len(self.lengths))
        whole = len(rows) // size * size
        batches: list[Rows] = []
        for start in range(0, whole, size * self.batches_per_pool):
            pool = self._by_length(rows[start : min(start + size * self.batches_per_pool, whole)])
            batches += [self._dealt(batch) for batch in pool.reshape(-1, size)]
        left = rows[whole:]
        if self.processes > 1:
            left = self._dealt(self._by_length(left))
        if not batches:
            return left
        return np.concatenate([*(batches[i] for i in generator.permutation(len(batches))), left])

    def _by_length(self, rows: Rows) -> Rows:
        return rows[np.argsort(self.lengths[rows], kind="stable")]

    def _dealt(self, rows: Rows) -> Rows:
        """Rows in order of length, distributed to the processes: those of the first, those of the second, ..."""
        return np.concatenate([rows[::-1][process :: self.processes][::-1] for process in range(self.processes)])

    def __len__(self) -> int:
        return len(self.lengths)


class AnchorPositiveSampler(CounterSampler):
    """M random anchors, then one random other cycle of the same class for each: the batch of Song et al.

    Guarantee: a batch has 2M rows, anchors first, row i + M being another cycle of row i's class. Every cycle is an
    anchor once an epoch; the anchors of the last batch are completed with the first ones of the epoch. A cycle that is
    alone in its class is its own positive. Several processes divide one larger batch, with M anchors for each.

    Args:
        labels: Class of each cycle, (cycles,).
        anchors: M, anchors in a batch; set the batch size to 2M.
        seed: Seed of the run.
        processes: Number of processes.

    Reference: Song, Han and Song, ICASSP 2021, section 2.3.
    """

    def __init__(self, labels: Labels, anchors: int, seed: int = 0, processes: int = 1) -> None:
        super().__init__(seed)
        self.labels = as_codes(labels)
        if anchors < 1:
            raise ValueError(f"a batch needs at least one anchor, not {anchors}")
        self.anchors, self.processes = int(anchors), int(processes)
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
        generator = counter_generator(self.seed, epoch, 0, "positive pairs")
        label = self.labels[anchors]
        size = self._size[label]
        # 1 .. size - 1 places further on in the class, so never the anchor itself unless it is alone
        step = 1 + (generator.random(len(anchors)) * (size - 1)).astype(np.int64)
        positives = self._members[self._first[label] + (self._place[anchors] + step) % size]
        shape = (batches, self.anchors)
        return np.concatenate([anchors.reshape(shape), positives.reshape(shape)], axis=1).ravel()

    def __len__(self) -> int:
        whole = self.anchors * self.processes
        return math.ceil(len(self.labels) / whole) * 2 * whole


class ClassesTimesSamplesSampler(CounterSampler):
    """Batches of P classes (or patients, or devices) with K cycles each.

    Guarantee: P classes and K cycles of each in every batch; a cycle is twice in a batch only where its class has fewer
    than K. Classes take turns in random order, so each is drawn equally often (once more or less). Cycles of a class
    are dealt from a shuffled pack that is shuffled again when it runs out, so an epoch repeats cycles of rare classes
    and does not reach all of the common ones. `laennec.training.coverage` counts them.

    Args:
        codes: Number of the class, patient or device of each cycle, (cycles,); a cycle below 0 is left out.
        classes_per_batch: P, no more than there are; 0 for all of them.
        samples_per_class: K, at least 2 for a positive pair.
        seed: Seed of the run.
    """

    rows_per_batch: int

    def __init__(self, codes: Codes, classes_per_batch: int, samples_per_class: int, seed: int = 0) -> None:
        super().__init__(seed)
        codes = np.asarray(codes)
        self._packs = [np.flatnonzero(codes == code) for code in np.unique(codes[codes >= 0])]
        self._rows = sum(map(len, self._packs))
        self.classes_per_batch = int(classes_per_batch) or len(self._packs)
        self.samples_per_class = int(samples_per_class)
        if not 1 <= self.classes_per_batch <= len(self._packs) or samples_per_class < 1:
            raise ValueError(
                f"a batch of {classes_per_batch} groups x {samples_per_class} cycles cannot be drawn from "
                f"{len(self._packs)} groups; lower the first, raise the second to at least 1"
            )
        self.rows_per_batch = self.classes_per_batch * self.samples_per_class

    def order(self, epoch: int) -> Rows:
        """Batches of P * K rows, class by class within a batch."""
        generator = counter_generator(self.seed, epoch, 0, "order")
        groups = Dealer(np.arange(len(self._packs)), generator)
        packs = [Dealer(pack, generator) for pack in self._packs]
        turns = [groups.deal(self.classes_per_batch) for _ in range(len(self) // self.rows_per_batch)]
        return np.concatenate([packs[group].deal(self.samples_per_class) for turn in turns for group in turn])

    def __len__(self) -> int:
        return math.ceil(self._rows / self.rows_per_batch) * self.rows_per_batch


class MetadataMatchedSampler(CounterSampler):
    """Batches equal in some columns (age band, sex, both, chest location): hard negatives.

    Guarantee: each batch comes from one group, and no cycle of another group is in it. A group has batches in
    proportion to its cycles (their number divided by the batch size, rounded up), and batches of all groups are
    shuffled together. Within a group, patients take turns: a patient is twice in a batch only if its group has fewer
    patients than the batch has rows, and a cycle only if its patient has more turns in the batch than cycles. Age or
    sex cannot tell the cycles of such a batch apart.

    Args:
        codes: Number of the group of each cycle, (cycles,); a cycle below 0 is left out.
        rows_per_batch: Batch size.
        patient_ids: Patient of each cycle; None: cycles take turns.
        seed: Seed of the run.

    Reference: Soni et al., Contrastive Learning of Heart and Lung Sounds for Label-Efficient Diagnosis, Patterns 2022.
    """

    rows_per_batch: int

    def __init__(
        self, codes: Codes, rows_per_batch: int, patient_ids: Sequence[Any] | None = None, seed: int = 0
    ) -> None:
        super().__init__(seed)
        if rows_per_batch < 1:
            raise ValueError(f"a batch needs at least one cycle, not {rows_per_batch}")
        self.rows_per_batch = int(rows_per_batch)
        rows = np.arange(len(codes))
        owners = rows if patient_ids is None else group_codes([patient_ids], "own_group")
        # group -> patient -> rows
        self._packs = [
            [rows[(codes == group) & (owners == owner)] for owner in np.unique(owners[codes == group])]
            for group in range(int(codes.max()) + 1)
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
            owners, first, turns_each = np.unique(
                turns.deal(self.rows_per_batch), return_index=True, return_counts=True
            )
            by_turn = np.argsort(first)
            batches.append(np.concatenate([dealers[owners[i]].deal(int(turns_each[i])) for i in by_turn]))
        return batches

    def __len__(self) -> int:
        return sum(self._batches) * self.rows_per_batch


class BalancedSampler(CounterSampler):
    """Groups that are drawn equally often whatever their size, such as corpora, and devices within each of them.

    Guarantee: an epoch has as many rows as cycles. Each value of the first column has the same share of them (once more
    or less), each value of the second the same share within it. A cycle repeats only where its group has fewer cycles.

    Args:
        columns: Numbers of the groups of each cycle, each (cycles,), the outermost first; a cycle below 0 is left out.
        seed: Seed of the run.
    """

    shares_last_batch = True

    def __init__(self, columns: Sequence[Codes], seed: int = 0) -> None:
        super().__init__(seed)
        self._packs, shares = [np.flatnonzero(np.all([codes >= 0 for codes in columns], axis=0))], [1.0]
        rows = len(self._packs[0])
        for codes in columns:
            split = [[pack[codes[pack] == code] for code in np.unique(codes[pack])] for pack in self._packs]
            shares = [share / len(parts) for share, parts in zip(shares, split, strict=True) for _ in parts]
            self._packs = [pack for parts in split for pack in parts]
        self._counts: list[int] = np.diff(np.round(np.cumsum([0.0, *shares]) * rows)).astype(np.int64).tolist()

    def order(self, epoch: int) -> Rows:
        """The rows of all groups, shuffled."""
        generator = counter_generator(self.seed, epoch, 0, "order")
        dealt = [Dealer(pack, generator).deal(n) for pack, n in zip(self._packs, self._counts, strict=True)]
        return generator.permutation(np.concatenate(dealt))

    def __len__(self) -> int:
        return sum(self._counts)


class Dealer:
    """Deals a shuffled pack repeatedly; one deal repeats an entry only where the pack is smaller than the deal."""

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


class RowsWithEpoch(Sampler[tuple[int, int]]):
    """Adds the epoch, which keys the draws, to each row of a sampler; (row, epoch) pairs stay as they are."""

    def __init__(self, sampler: Any, rows: int) -> None:
        self.sampler, self.rows, self.epoch = sampler, rows, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = int(epoch)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (row, epoch)."""
        epoch = self.epoch
        for row in self.sampler:
            pair = row if isinstance(row, tuple) else (int(row), epoch)
            if not 0 <= pair[0] < self.rows:
                name = type(self.sampler).__name__
                raise InputError(f"sampler {name} yields row {pair[0]}; its rows must be 0 to {self.rows - 1}")
            yield pair

    def __len__(self) -> int:
        return len(self.sampler)


def make_sampler(given: Any, data: Any, specs: Sequence[LossSpec], batch_size: int, seed: int) -> Any:
    """The sampler of the training data: (row, epoch) pairs; None leaves the order to transformers."""
    if data is None or (given is None and not isinstance(data, CycleDataset | EmbeddingDataset)):
        return None
    if given is None and isinstance(data, CycleDataset) and any(spec.is_a(TupletContrastiveLoss) for spec in specs):
        anchors = max(1, batch_size // 2)
        given = AnchorPositiveSampler(data.targets.class_ids, anchors, seed, process_count_of_launch())
    elif given is None:
        given = EpochSampler(len(data), seed=seed)
    elif not isinstance(given, Sampler) and callable(given):
        try:
            given = given(data)
        except TypeError as error:
            name = getattr(given, "__name__", given)
            raise InputError(f"sampler {name} cannot be made of the data alone ({error}); pass an object") from error
    rows = getattr(given, "rows_per_batch", None)
    if rows is not None and rows != batch_size:
        raise InputError(
            f"{type(given).__name__} makes batches of {rows} rows; set per_device_train_batch_size to {rows}"
        )
    return given if isinstance(given, CounterSampler) else RowsWithEpoch(given, len(data))
