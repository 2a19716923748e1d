"""From rows of a cycle table to padded batches.

Decisions: a batch carries waveforms, not features, because the feature extractor runs on the device of the model, for
the whole batch at once. Every random draw is keyed by (seed, epoch, cycle), and a cycle by a hash of its id, so draws
do not depend on the split. A second view of a cycle has its own key; the first view has the key of a single view. Rows
without a label (SPRSound's Poor Quality records) are left out of training and counted; they remain context of other
cycles. Concatenation keeps the metadata of the first cycle and combines the labels (`LabelUnion`). A context cycle has
the same draws as when it is a training cycle itself.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from laennec.audio.augmentation import WaveformAugmentation, counter_generator, cycle_to_concatenate
from laennec.audio.context import InContext, neighbour_rows
from laennec.audio.context_features import padded_rows
from laennec.audio.mixing import LabelUnion
from laennec.corpora.base import column_of
from laennec.errors import InputError
from laennec.training.data.targets import Codes, Targets

# batch entries that random draws read on the CPU
HOST_KEYS = ("epochs", "cycle_numbers", "neighbour_epochs", "neighbour_numbers", "lengths")


def cycle_numbers(cycle_ids: Sequence[str]) -> NDArray[np.int64]:
    """A number for each cycle that depends on its id alone: the counter of its random draws."""
    digests = (hashlib.sha256(c.encode()).digest()[:8] for c in cycle_ids)
    return np.array([int.from_bytes(d, "little") >> 1 for d in digests], dtype=np.int64)


class Neighbours:
    """The cycles before and after each labelled cycle of a split.

    Args:
        table: The whole split, cycles without a label included.
        waveforms: Waveforms of its rows.
        kept: Rows that carry a label, in the order of the dataset.
        context_cycles: Number of cycles on either side.
        everywhere: Rows before and after each row of the table; None for the cycles next to it in time.

    Attributes:
        rows: For each labelled cycle the rows of the table before and after it, in time order.
        numbers: Counter of each row's draws.
    """

    def __init__(
        self,
        table: Any,
        waveforms: Any,
        kept: NDArray[np.int64],
        context_cycles: int,
        everywhere: Sequence[tuple[list[int], list[int]]] | None = None,
    ) -> None:
        spans = list(zip(column_of(table, "start_s"), column_of(table, "end_s"), strict=True))
        if everywhere is None:
            everywhere = neighbour_rows(column_of(table, "recording_id"), spans, context_cycles)
        self.rows = [everywhere[int(row)] for row in kept]
        self.waveforms = waveforms
        self.numbers = cycle_numbers(table["cycle_id"])
        ids = column_of(table, "cycle_id")
        self._named = [(start, end, name) for (start, end), name in zip(spans, ids, strict=True)]

    def named(self, row: int) -> list[list[tuple[float, float, str]]]:
        """Times and ids of a labelled cycle's neighbours, before and after; its embedding depends on them."""
        return [[self._named[other] for other in side] for side in self.rows[row]]


def refuse_lost_neighbours(splits: Any, protocol: str | None, context_cycles: int) -> None:
    """Refuse context where a protocol splits recordings, and where no training cycle has a neighbour."""
    if not context_cycles:
        return
    seen: dict[str, str] = {}
    for name, table in splits.items():
        for recording in set(table["recording_id"]):
            if seen.setdefault(recording, name) != name:
                raise InputError(
                    f"features.context_cycles is {context_cycles}, but protocol {protocol} puts cycles of one "
                    f"recording ({recording}) into {seen[recording]} and {name}, so they are not neighbours; "
                    "choose a protocol that keeps recordings whole"
                )
    if "train" in splits and len(set(splits["train"]["recording_id"])) == len(splits["train"]):
        raise InputError(
            f"features.context_cycles is {context_cycles}, but no training recording has a second cycle; leave it out"
        )


def view_seed(seed: int, view: int) -> int:
    """The seed of a view's draws; that of the first view is the run's own."""
    return (seed + view * 0x9E3779B97F4A7C15) % 2**64


@dataclass
class Concatenation:
    """Training cycles concatenated with a second cycle, their labels OR-ed."""

    probability: float  # how often a cycle is concatenated
    candidates: NDArray[np.int64]  # rows that may be the second cycle
    union: LabelUnion | None = None  # label of two concatenated cycles; None ORs rows of flags


@dataclass(eq=False)
class CycleDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Cycles with their labels; `dataset[(row, epoch)]` draws augmentation, `dataset[row]` does not."""

    waveforms: Any  # sequence of float32 (samples,) by row
    targets: Targets  # labels by row
    cycle_ids: Sequence[str]  # by row
    sampling_rate: int  # of the waveforms, in Hz
    seed: int  # of all draws
    augmentation: WaveformAugmentation | None = None  # draws on the waveform; None for none
    concatenation: Concatenation | None = None  # concatenation with a second cycle; None for none
    neighbours: Neighbours | None = None  # the cycles around each one, for concatenated context; None for none
    crop_samples: int = 0  # samples of the random crop of longer cycles in training; 0 for no crop
    views: int = field(default=1, init=False)  # number of independent draws of each cycle in a training item
    # int64 (cycles,) by name: labels of auxiliary losses besides the class
    groups: Mapping[str, Codes] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.concatenation is not None and self.neighbours is not None:
            raise ValueError("a cycle concatenated with one of another recording has no context")
        self.numbers = cycle_numbers(self.cycle_ids)

    def __len__(self) -> int:
        return len(self.numbers)

    def paired_row(self, row: int, epoch: int) -> int | None:
        """The row that a cycle is concatenated with in an epoch, if any: a function of (seed, epoch, cycle).

        Rows with the cycle's own id (the row itself, or a repeat of the cycle) are never chosen.
        """
        c = self.concatenation
        if c is None:
            return None
        number = int(self.numbers[row])
        others = c.candidates[self.numbers[c.candidates] != number]
        return cycle_to_concatenate(self.seed, epoch, number, others, c.probability)

    def label_at(self, row: int, epoch: int) -> Any:
        """A cycle's label in an epoch, combined with that of the cycle it is concatenated with."""
        second = self.paired_row(row, epoch)
        label = self.targets.labels[row]
        if second is None or self.concatenation is None:
            return label
        union = self.concatenation.union or LabelUnion(self.targets.names, np.ndim(label) > 0)
        pair = torch.from_numpy(np.stack([label, self.targets.labels[second]]))
        return union(pair[:1], pair[1:])[0].numpy().astype(self.targets.labels.dtype)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        row, epoch = key if isinstance(key, tuple) else (key, None)
        waveform = self.waveforms[row]
        label = self.targets.labels[row]
        class_id = self.targets.class_ids[row]
        number = int(self.numbers[row])
        views = [waveform]
        if epoch is not None:
            second = self.paired_row(row, epoch)
            if second is not None:
                waveform = np.concatenate([waveform, self.waveforms[second]])
                label = self.label_at(row, epoch)
                class_id = (label.astype(np.int64) << np.arange(len(label))).sum() if np.ndim(label) else label
            views = [self._augmented(waveform, row, number, epoch, view) for view in range(self.views)]
            if self.crop_samples:
                views = [self._cropped(sound, number, epoch, view) for view, sound in enumerate(views)]
        item = self._item(row, -1 if epoch is None else epoch, views) | {"label": label, "class_id": class_id}
        return item if self.neighbours is None else item | self._context(self.neighbours, row, epoch)

    def _item(self, row: int, epoch: int, views: list[Any]) -> dict[str, Any]:
        """A cycle with its own label, as `collate_cycles` takes it."""
        return {
            "waveform": views[0],
            "other_views": views[1:],
            "label": self.targets.labels[row],
            "class_id": self.targets.class_ids[row],
            "groups": {name: int(codes[row]) for name, codes in self.groups.items()},
            "cycle_number": int(self.numbers[row]),
            "epoch": epoch,
        }

    def _context(self, neighbours: Neighbours, row: int, epoch: int | None) -> dict[str, Any]:
        """The context cycles of a cycle, in every view, and their numbers."""
        before, after = neighbours.rows[row]
        others = [*before, *after]
        numbers = [int(neighbours.numbers[other]) for other in others]
        plain = [neighbours.waveforms[other] for other in others]
        views = [plain]
        if epoch is not None:
            views = [
                [self._augmented(sound, row, number, epoch, view) for sound, number in zip(plain, numbers, strict=True)]
                for view in range(self.views)
            ]
        return {"around": views, "around_numbers": numbers, "before": len(before)}

    def sound(self, key: int | tuple[int, int]) -> Any:
        """Input of the feature extractor for a row: its waveform, with its context cycles if there are any."""
        item = self[key]
        if self.neighbours is None:
            return item["waveform"]
        (around, *_), before = item["around"], item["before"]
        return InContext(item["waveform"], around[:before], around[before:])

    def samples(self, row: int) -> int:
        """Number of samples that a row's embedding depends on, without reading its audio."""
        own = int(self.waveforms.lengths[row])
        if self.neighbours is None:
            return own
        before, after = self.neighbours.rows[row]
        return own + sum(int(self.neighbours.waveforms.lengths[other]) for other in (*before, *after))

    def _cropped(self, waveform: NDArray[np.float32], number: int, epoch: int, view: int) -> NDArray[np.float32]:
        """A random crop of a cycle longer than `crop_samples`; shorter ones as they are."""
        spare = len(waveform) - self.crop_samples
        if spare <= 0:
            return waveform
        start = int(counter_generator(view_seed(self.seed, view), epoch, number, "crops").integers(spare + 1))
        return waveform[start : start + self.crop_samples]

    def _augmented(
        self, waveform: NDArray[np.float32], row: int, number: int, epoch: int, view: int
    ) -> NDArray[np.float32]:
        """A waveform of a row, its own or that of a context cycle, with the draws of its number."""
        if not self.augmentation:
            return waveform
        seed = view_seed(self.seed, view)
        try:
            return self.augmentation(waveform, self.sampling_rate, seed=seed, epoch=epoch, cycle_index=number)
        except InputError as error:
            raise InputError(f"{self.cycle_ids[row]}: {error}") from error


class EmbeddingDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Embeddings of a frozen encoder; `dataset[(row, epoch)]` takes the augmented copy of that epoch.

    Args:
        embeddings: float32 (copies, cycles, dim).
        labels: (copies, cycles, labels) or (copies, cycles): concatenation changes labels too.
        cycle_ids: Cycle ids, for errors that name the cycles of a batch.
    """

    def __init__(self, embeddings: NDArray[np.float32], labels: NDArray[Any], cycle_ids: Sequence[str] = ()) -> None:
        self.cycle_ids = list(cycle_ids)
        self.numbers = np.arange(len(self.cycle_ids))
        self.embeddings = torch.from_numpy(embeddings)
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return self.embeddings.shape[1]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        return {name: values[0] for name, values in self.__getitems__([key]).items()}

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> dict[str, torch.Tensor]:
        """A whole batch, as the DataLoader requests it: reading row by row takes longer than a training step."""
        pairs = np.array([key if isinstance(key, tuple) else (key, 0) for key in keys])
        rows = torch.from_numpy(pairs[:, 0])
        places = rows + len(self) * torch.from_numpy(pairs[:, 1] % len(self.embeddings))
        tables = {"embeddings": self.embeddings, "labels": self.labels}
        batch = {name: table.flatten(0, 1).index_select(0, places) for name, table in tables.items()}
        return batch | {"cycle_numbers": rows} if self.cycle_ids else batch


def collate_cycles(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pad waveforms to the longest.

    Returns:
        waveforms (views * batch, samples), all first views before all second ones, and their lengths (views * batch,);
        labels, class_ids, cycle_numbers, epochs (batch, ...) and, where the data set has groups, group_ids (a dict of
        (batch,)), once for each cycle. With context, the waveforms of the context cycles follow, in each view those of
        all cycles; context_rows (views * batch, pieces) holds the rows that belong together in time order, -1 for none;
        neighbour_numbers and neighbour_epochs (neighbours,) are those of one view. `on_host` holds the counters of all
        draws as arrays that stay on the host: epochs, cycle_numbers, those of neighbours, and lengths.
    """
    sounds = [item["waveform"] for item in items]
    for others in zip(*(item["other_views"] for item in items), strict=True):
        sounds += others
    context = _collate_neighbours(items, sounds) if "around" in items[0] else {}
    lengths = [len(sound) for sound in sounds]
    waveforms = torch.zeros(len(sounds), max(lengths))
    for row, sound in enumerate(sounds):
        waveforms[row, : lengths[row]] = torch.from_numpy(np.asarray(sound).copy())
    batch: dict[str, Any] = context | {
        "waveforms": waveforms,
        "lengths": torch.tensor(lengths),
        "labels": torch.from_numpy(np.stack([item["label"] for item in items])),
        "class_ids": torch.tensor([int(item["class_id"]) for item in items]),
        "cycle_numbers": torch.tensor([item["cycle_number"] for item in items]),
        "epochs": torch.tensor([item["epoch"] for item in items]),
    }
    if names := list(items[0]["groups"]):
        batch["group_ids"] = {name: torch.tensor([item["groups"][name] for item in items]) for name in names}
    # arrays, because a tensor would move to the GPU with the batch and reading it back makes the CPU wait; copies,
    # because a worker's tensors are in shared memory, which is reused once they are sent
    batch["on_host"] = {name: batch[name].numpy().copy() for name in HOST_KEYS if name in batch}
    return batch


def _collate_neighbours(items: Sequence[dict[str, Any]], sounds: list[Any]) -> dict[str, torch.Tensor]:
    """Append the context cycles of all views to the waveforms, and return the rows that belong together."""
    pieces_of = []
    for view in range(len(items[0]["around"])):
        for place, item in enumerate(items):
            first, before = len(sounds), item["before"]
            sounds += item["around"][view]
            pieces_of.append(
                [*range(first, first + before), view * len(items) + place, *range(first + before, len(sounds))]
            )
    numbers = [number for item in items for number in item["around_numbers"]]
    epochs = [item["epoch"] for item in items for _ in item["around_numbers"]]
    return {
        "context_rows": padded_rows(pieces_of),
        "neighbour_numbers": torch.tensor(numbers, dtype=torch.int64),
        "neighbour_epochs": torch.tensor(epochs, dtype=torch.int64),
    }
