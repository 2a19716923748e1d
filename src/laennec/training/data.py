"""From rows of a cycle table to padded batches.

Decisions: a batch carries waveforms, not features, so that the one front end runs on the device of the model, for
the whole batch at once. Every draw is keyed by (seed, epoch, cycle), the cycle by a hash of its id, so that it does
not change when the split does; a second view of a cycle has a key of its own, and the first is the one a single view
would be. Rows without a label (SPRSound's Poor Quality records) are left out of training and counted; they still are
neighbours of others. A cycle joined with a partner keeps its own metadata, and is labelled by what either
holds: OR-ed flags, or the class of both. A neighbour's draws are those it has as a cycle of its own, so a cycle sounds
the same in one epoch wherever it is heard.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from laennec.audio.augmentation import (
    WaveformAugmentation,
    concatenate,
    concatenation_partner,
)
from laennec.audio.context import InContext, joined_rows
from laennec.audio.mixing import LabelUnion
from laennec.corpora.base import column_of
from laennec.training.metadata_groups import Codes, metadata_of
from laennec.training.neighbours import Neighbours, cycle_numbers
from laennec.training.recipe import ConfigError, TargetSettings

# what the host has to know of a batch whose tensors lie on a device
HOST_KEYS = ("epochs", "cycle_numbers", "neighbour_epochs", "neighbour_numbers", "lengths")
FOUR_CLASSES = ("normal", "crackle", "wheeze", "both")
TWO_LABELS = ("crackle", "wheeze")


@dataclass
class Targets:
    """What the cycles of one part should be answered with.

    Attributes:
        names: The labels in the order of the logits.
        labels: float32 (cycles, labels) for multi_label, int64 (cycles,) for single_label.
        class_ids: int64 (cycles,), one number for each distinct answer; auxiliary losses and samplers use them.
        kept: int64 rows of the table these belong to (rows without a label are left out).
        metadata: Columns of the table that groups can be made of, for the kept rows.
    """

    names: list[str]
    labels: NDArray[Any]
    class_ids: NDArray[np.int64]
    kept: NDArray[np.int64]
    metadata: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, rows: NDArray[np.int64]) -> "Targets":
        """Those of some of the cycles, in the given order."""
        metadata = {name: [values[row] for row in rows.tolist()] for name, values in self.metadata.items()}
        return replace(
            self, labels=self.labels[rows], class_ids=self.class_ids[rows], kept=self.kept[rows], metadata=metadata
        )


def targets_of(table: Any, settings: TargetSettings, names: Sequence[str] | None = None) -> Targets:
    """Read the answers out of a cycle table.

    Args:
        table: A cycle table (datasets.Dataset).
        settings: Which problem, column and names.
        names: The label names of training, for any other part.

    Raises:
        ConfigError: The column does not exist, or a label occurs that training did not have.
    """
    names = list(names or settings.names)
    column = settings.column
    if column is not None and column not in table.column_names:
        raise ConfigError(f"target.column is {column!r}; the cycle table has {', '.join(table.column_names)}")
    if settings.problem_type == "multi_label":
        targets = _multi_label(table, column, names)
    else:
        targets = _single_label(table, column or "label", names)
    if len(table) and not len(targets.kept):
        own = [name for name in table.column_names if name != "label" and class_names(table, name)]
        hint = f"this corpus answers {', '.join(own)}" if own else "choose another column"
        asked = column or ("label" if settings.problem_type == "single_label" else ", ".join(targets.names))
        raise ConfigError(f"no cycle has an answer in {asked}; {hint} (target.column)")
    return replace(targets, metadata=metadata_of(table, targets.kept))


def class_names(table: Any, column: str) -> list[str]:
    """Names of the classes of a column that holds class numbers; none of any other column."""
    features = getattr(table, "features", None) or {}
    return list(getattr(features.get(column), "names", None) or [])


def _multi_label(table: Any, column: str | None, names: list[str]) -> Targets:
    if column == "events":
        events = [set(e or ()) for e in column_of(table, "events")]
        names = names or sorted(set().union(*events))
        kept = np.array([i for i, e in enumerate(events) if e], dtype=np.int64)
        flags = np.array([[name in events[i] for name in names] for i in kept], dtype=np.float32).reshape(
            -1, len(names)
        )
    else:
        names = names or list(TWO_LABELS)
        absent = [n for n in names if n not in table.column_names]
        if absent:
            raise ConfigError(
                f"target.names has {absent[0]!r}, which is no column of the cycle table; "
                "set target.column: events for event names"
            )
        columns = [column_of(table, name) for name in names]
        kept = np.array([i for i in range(len(table)) if all(c[i] is not None for c in columns)], dtype=np.int64)
        flags = np.array([[c[i] for c in columns] for i in kept], dtype=np.float32).reshape(-1, len(names))
    class_ids = (flags.astype(np.int64) << np.arange(len(names))).sum(1)
    return Targets(names, flags, class_ids, kept)


def _single_label(table: Any, column: str, names: list[str]) -> Targets:
    values = column_of(table, column)
    if column == "label":
        values = [None if v is None else FOUR_CLASSES[v] for v in values]
        names = names or list(FOUR_CLASSES)
    elif column == "events":
        values = [v[0] if v else None for v in values]
    elif classes := class_names(table, column):
        values = [None if v is None else classes[v] for v in values]
        names = names or classes
    names = names or sorted({str(v) for v in values if v is not None})
    number = {name: i for i, name in enumerate(names)}
    kept = np.array([i for i, v in enumerate(values) if v is not None], dtype=np.int64)
    unknown = sorted({str(values[i]) for i in kept} - set(names))
    if unknown:
        raise ConfigError(
            f"the answer {unknown[0]!r} of column {column!r} is none of {', '.join(names)}; "
            "name all of them in target.names"
        )
    labels = np.array([number[str(values[i])] for i in kept], dtype=np.int64)
    return Targets(names, labels, labels, kept)


def view_seed(seed: int, view: int) -> int:
    """The seed of a view's draws; that of the first view is the run's own."""
    return (seed + view * 0x9E3779B97F4A7C15) % 2**64


@dataclass
class Concatenation:
    """Training cycles joined with a partner, their labels OR-ed.

    Attributes:
        probability: How often a cycle gets a partner.
        candidates: Rows that may be partners.
        union: Label of two cycles heard together; None ORs rows of flags.
    """

    probability: float
    candidates: NDArray[np.int64]
    union: LabelUnion | None = None


class CycleDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Cycles with their labels; `dataset[(row, epoch)]` draws augmentation, `dataset[row]` does not.

    Args:
        waveforms: Sequence of float32 (samples,) by row.
        targets: Labels by row.
        cycle_ids: Cycle ids by row.
        sampling_rate: Of the waveforms, in Hz.
        seed: Of all draws.
        augmentation: Draws on the waveform; None for none.
        concatenation: Joining with a partner; None for none.
        neighbours: The cycles around each, for features that join context; None for none.

    Attributes:
        views: How many independent draws of each cycle a training item holds.
        groups: int64 (cycles,) by name: what losses need besides the class.
    """

    def __init__(
        self,
        waveforms: Any,
        targets: Targets,
        cycle_ids: Sequence[str],
        sampling_rate: int,
        seed: int,
        augmentation: WaveformAugmentation | None = None,
        concatenation: Concatenation | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        if concatenation is not None and neighbours is not None:
            raise ValueError("a cycle joined with a partner of another recording has no neighbours")
        self.waveforms = waveforms
        self.targets = targets
        self.cycle_ids = cycle_ids
        self.numbers = cycle_numbers(cycle_ids)
        self.sampling_rate = sampling_rate
        self.seed = seed
        self.augmentation = augmentation
        self.concatenation = concatenation
        self.neighbours = neighbours
        self.views = 1
        self.groups: Mapping[str, Codes] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def partner_of(self, row: int, epoch: int) -> int | None:
        """The row that a cycle is joined with in an epoch, if any: a function of (seed, epoch, cycle).

        Rows that carry the cycle's own id (the row itself, or the same cycle once more) are never chosen.
        """
        c = self.concatenation
        if c is None:
            return None
        number = int(self.numbers[row])
        others = c.candidates[self.numbers[c.candidates] != number]
        return concatenation_partner(self.seed, epoch, number, others, c.probability)

    def label_at(self, row: int, epoch: int) -> Any:
        """A cycle's label in an epoch: OR-ed with its partner's."""
        partner = self.partner_of(row, epoch)
        label = self.targets.labels[row]
        if partner is None or self.concatenation is None:
            return label
        union = self.concatenation.union or LabelUnion(self.targets.names, np.ndim(label) > 0)
        pair = torch.from_numpy(np.stack([label, self.targets.labels[partner]]))
        return union(pair[:1], pair[1:])[0].numpy().astype(self.targets.labels.dtype)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        row, epoch = key if isinstance(key, tuple) else (key, None)
        waveform = self.waveforms[row]
        label = self.targets.labels[row]
        class_id = self.targets.class_ids[row]
        number = int(self.numbers[row])
        views = [waveform]
        if epoch is not None:
            partner = self.partner_of(row, epoch)
            if partner is not None:
                waveform = concatenate(waveform, self.waveforms[partner])
                label = self.label_at(row, epoch)
                class_id = (label.astype(np.int64) << np.arange(len(label))).sum() if np.ndim(label) else label
            views = [self._augmented(waveform, number, epoch, view) for view in range(self.views)]
        item = {
            "waveform": views[0],
            "other_views": views[1:],
            "label": label,
            "class_id": class_id,
            "groups": {name: int(codes[row]) for name, codes in self.groups.items()},
            "cycle_number": number,
            "epoch": -1 if epoch is None else epoch,
        }
        return item if self.neighbours is None else item | self._around(self.neighbours, row, epoch)

    def _around(self, neighbours: Neighbours, row: int, epoch: int | None) -> dict[str, Any]:
        """The neighbours of a cycle, in every view, and their numbers."""
        before, after = neighbours.rows[row]
        others = [*before, *after]
        numbers = [int(neighbours.numbers[other]) for other in others]
        plain = [neighbours.waveforms[other] for other in others]
        views = [plain]
        if epoch is not None:
            views = [
                [self._augmented(sound, number, epoch, view) for sound, number in zip(plain, numbers, strict=True)]
                for view in range(self.views)
            ]
        return {"around": views, "around_numbers": numbers, "before": len(before)}

    def sound(self, key: int | tuple[int, int]) -> Any:
        """What the front end is given of a row: its waveform, with its neighbours where context is joined."""
        item = self[key]
        if self.neighbours is None:
            return item["waveform"]
        (around, *_), before = item["around"], item["before"]
        return InContext(item["waveform"], around[:before], around[before:])

    def samples(self, row: int) -> int:
        """Samples that a row's embedding is made of, without reading its audio."""
        own = int(self.waveforms.lengths[row])
        if self.neighbours is None:
            return own
        before, after = self.neighbours.rows[row]
        return own + sum(int(self.neighbours.waveforms.lengths[other]) for other in (*before, *after))

    def _augmented(self, waveform: NDArray[np.float32], number: int, epoch: int, view: int) -> NDArray[np.float32]:
        if not self.augmentation:
            return waveform
        return self.augmentation(
            waveform, self.sampling_rate, seed=view_seed(self.seed, view), epoch=epoch, cycle_index=number
        )


class EmbeddingDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Embeddings of a frozen encoder; `dataset[(row, epoch)]` takes the augmented copy of that epoch.

    Args:
        embeddings: float32 (copies, cycles, dim).
        labels: (copies, cycles, labels) or (copies, cycles): concatenation changes labels too.
        cycle_ids: Cycle ids, for errors that name who is in a batch; none leaves them without names.
    """

    def __init__(self, embeddings: NDArray[np.float32], labels: NDArray[Any], cycle_ids: Sequence[str] = ()) -> None:
        self.cycle_ids = list(cycle_ids)
        self.numbers = np.arange(len(self.cycle_ids))
        self.embeddings = torch.from_numpy(embeddings)
        self.labels = torch.from_numpy(labels)

    def __len__(self) -> int:
        return self.embeddings.shape[1]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        row, epoch = key if isinstance(key, tuple) else (key, 0)
        copy = epoch % len(self.embeddings)
        item = {"embeddings": self.embeddings[copy, row], "labels": self.labels[copy, row]}
        return item | {"cycle_numbers": torch.tensor(row)} if self.cycle_ids else item


def collate_cycles(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pad waveforms to the longest.

    Args:
        items: Of a `CycleDataset`.

    Returns:
        waveforms (views * batch, samples), all first views before all second ones, and their lengths (views * batch,);
        labels, class_ids, cycle_numbers, epochs (batch, ...) and, where the data set has groups, group_ids (a dict of
        (batch,)), once for each cycle. Where it has neighbours, their waveforms follow, in each view those of all
        cycles; joined (views * batch, pieces) says which rows belong together in time order, -1 for none;
        neighbour_numbers and neighbour_epochs (neighbours,) are those of one view. `on_host` holds, as arrays that stay
        where they are, what draws are functions of: epochs, cycle_numbers, those of neighbours, and lengths.
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
    # a tensor would follow the batch to its device, and reading it there makes the host wait; copies, because a
    # worker's memory moves on its way out, and an array that shared it would arrive with whatever lies there then
    batch["on_host"] = {name: batch[name].numpy().copy() for name in HOST_KEYS if name in batch}
    return batch


def _collate_neighbours(items: Sequence[dict[str, Any]], sounds: list[Any]) -> dict[str, torch.Tensor]:
    """Append the neighbours of all views to the waveforms, and say which rows belong together."""
    joined = []
    for view in range(len(items[0]["around"])):
        for place, item in enumerate(items):
            first, before = len(sounds), item["before"]
            sounds += item["around"][view]
            joined.append(
                [*range(first, first + before), view * len(items) + place, *range(first + before, len(sounds))]
            )
    numbers = [number for item in items for number in item["around_numbers"]]
    epochs = [item["epoch"] for item in items for _ in item["around_numbers"]]
    return {
        "joined": joined_rows(joined),
        "neighbour_numbers": torch.tensor(numbers, dtype=torch.int64),
        "neighbour_epochs": torch.tensor(epochs, dtype=torch.int64),
    }


def collate_embeddings(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack embeddings (batch, dim), labels and, where the data set has names, the numbers of its cycles."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
