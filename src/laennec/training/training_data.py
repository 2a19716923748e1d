"""The data that a LaennecTrainer is given, as data sets and samplers that it can use.

Decisions: a cycle table, any table of audio and labels, and the data sets of this package go through the same door. A
sampler that yields plain rows gets the epoch beside each row, because every draw is a function of (seed, epoch, cycle).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import torch
from torch.utils.data import Sampler

from laennec.audio.features import LaennecFeatureExtractor
from laennec.errors import InputError
from laennec.losses import TupletContrastiveLoss
from laennec.training.data import (
    CycleDataset,
    EmbeddingDataset,
    collate_cycles,
    collate_embeddings,
    dataset_from_table,
)
from laennec.training.loss_specs import LossSpec
from laennec.training.samplers import AnchorPositiveSampler, EpochSampler


def as_training_data(
    data: Any, config: Any, extractor: LaennecFeatureExtractor | None, augmentation: Any = None, seed: int = 0
) -> Any:
    """A data set whose items the collators take; anything but a `datasets.Dataset` is returned as it is.

    Args:
        data: A cycle table, a table of audio and labels, a data set of this package, or None.
        config: The model's configuration, for its labels.
        extractor: The model's front end.
        augmentation: Draws on waveforms, for a table.
        seed: Of the draws.

    Raises:
        InputError: A table without a front end, without audio, or without the model's labels.
    """
    if not isinstance(data, datasets.Dataset):
        return data
    if extractor is None:
        raise InputError("a table of recordings needs processing_class, the LaennecFeatureExtractor of the model")
    problem = "multi_label" if config.is_multi_label else "single_label"
    return dataset_from_table(data, extractor, config.label_names, problem, augmentation, seed)


def collator_of(data: Any) -> Any:
    """The function that makes batches of a data set's items."""
    first = next(iter(data.values())) if isinstance(data, dict) else data
    while isinstance(first, torch.utils.data.Subset):
        first = first.dataset
    return collate_embeddings if isinstance(first, EmbeddingDataset) else collate_cycles


def labels_of(data: Any) -> Any:
    """The labels of a training set, for class weights; None where it does not tell them."""
    if isinstance(data, EmbeddingDataset):
        return data.labels[0].numpy()
    return data.targets.labels if isinstance(data, CycleDataset) else None


class RowsWithEpoch(Sampler[tuple[int, int]]):
    """Puts the epoch beside each row of a sampler that yields plain rows.

    Args:
        sampler: Yields rows.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is for."""
        self.epoch = int(epoch)
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (row, epoch)."""
        epoch = self.epoch
        for row in self.sampler:
            yield row if isinstance(row, tuple) else (int(row), epoch)

    def __len__(self) -> int:
        """Rows in an epoch."""
        return len(self.sampler)


def make_sampler(given: Any, data: Any, specs: Sequence[LossSpec], batch_size: int, seed: int) -> Any:
    """The sampler of the training data: (row, epoch) pairs; None leaves the order to transformers.

    Args:
        given: A sampler, a function of the data set that makes one, or None.
        data: The training data.
        specs: The auxiliary losses; the tuplet loss needs batches of anchors and positives.
        batch_size: Rows of a batch.
        seed: Of the order.

    Raises:
        InputError: The sampler makes batches of another size.
    """
    if data is None:
        return None
    if given is None:
        if any(spec.is_a(TupletContrastiveLoss) for spec in specs) and isinstance(data, CycleDataset):
            given = AnchorPositiveSampler(data.targets.class_ids, max(1, batch_size // 2), seed=seed)
        elif isinstance(data, CycleDataset | EmbeddingDataset):
            return EpochSampler(len(data), seed=seed)
        else:
            return None
    elif not isinstance(given, Sampler) and callable(given):
        given = given(data)
    rows = getattr(given, "rows_per_batch", None)
    if rows is not None and rows != batch_size:
        raise InputError(
            f"{type(given).__name__} makes batches of {rows} rows; set per_device_train_batch_size to {rows}"
        )
    return given if hasattr(given, "rows_per_batch") else RowsWithEpoch(given)
