"""Turn the data given to a LaennecTrainer into data sets that it can use.

Decisions: one function takes a cycle table, any table of audio and labels, and the data sets of this package.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from laennec.audio.augmentation import WaveformAugmentation
from laennec.audio.cycles import cut
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import ButterworthFilter, read_header, read_recording, refuse_integers, resample
from laennec.corpora.base import column_of
from laennec.corpora.load import provenance
from laennec.corpora.splits import fingerprint
from laennec.corpora.waveforms import CycleWaveforms
from laennec.errors import InputError
from laennec.training.data.batches import CycleDataset, EmbeddingDataset, collate_cycles
from laennec.training.data.targets import targets_of
from laennec.training.recipe import TargetSettings

_ROWS = 32  # rows of a stream that are read at a time
_SAME_LENGTH_S = 0.002  # a cut and a resampling round to whole samples


def as_training_data(
    data: Any,
    config: Any,
    extractor: LaennecFeatureExtractor | None,
    augmentation: Any = None,
    seed: int = 0,
    training: bool = False,
) -> Any:
    """Turn a table of `datasets`, or a dict of them, into data sets for the collators; return other data unchanged."""
    if isinstance(data, dict) and not training:
        return {name: as_training_data(d, config, extractor, augmentation, seed, training) for name, d in data.items()}
    if isinstance(data, dict | pd.DataFrame):
        raise InputError(
            f"a {type(data).__name__} is no data set; pass one of its splits, or datasets.Dataset.from_pandas(table)"
        )
    if not isinstance(data, datasets.Dataset | datasets.IterableDataset):
        return data
    if training and isinstance(data, datasets.Dataset) and not len(data):
        raise InputError("train_dataset has no rows; give the recordings to train on")
    if augmentation is not None and not isinstance(augmentation, WaveformAugmentation):
        augmentation = WaveformAugmentation(transforms=(augmentation,))
    if extractor is None:
        raise InputError("a table of recordings needs processing_class, the LaennecFeatureExtractor of the model")
    problem = "multi_label" if config.is_multi_label else "single_label"
    reading = (extractor, config.label_names, problem, augmentation, seed)
    if isinstance(data, datasets.IterableDataset):
        return StreamedCycles(data, reading, training)
    return dataset_from_table(data, *reading)


class StreamedCycles(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The rows of a streamed table, decoded as they arrive, 32 at a time.

    Attributes:
        views: Number of independent draws of each cycle in a training item.
    """

    def __init__(self, table: datasets.IterableDataset, reading: tuple[Any, ...], training: bool) -> None:
        names = table.column_names or []
        if "audio" not in names:
            raise InputError(f"the streamed table has no column audio; it has {', '.join(names) or 'no named columns'}")
        decodes = isinstance(table.features["audio"], datasets.Audio)
        self._rows = table.cast_column("audio", datasets.Audio(decode=False)) if decodes else table
        self._reading, self._training = reading, training
        self.views, self.epoch, self.augmentation = 1, 0, reading[3]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of random draws and of a shuffled stream; transformers calls it."""
        self.epoch = epoch
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows, features = iter(enumerate(self._rows)), self._rows.features or {}
        classes = {name: kind for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
        while block := [{"cycle_id": f"row {number}"} | row for number, row in islice(rows, _ROWS)]:
            table = datasets.Dataset.from_list(block)
            if classes:  # lists of plain numbers do not tell their names
                table = datasets.Dataset.from_list(block, datasets.Features({**table.features, **classes}))
            part = dataset_from_table(table, *self._reading)
            part.views = self.views
            for row in range(len(part)):
                yield part[(row, self.epoch) if self._training else row]


def set_front_end(config: Any, extractor: Any) -> None:
    """Let a model's config name the feature extractor of its training; refuse another one than it was trained with."""
    if not isinstance(extractor, LaennecFeatureExtractor):
        return
    if config.features_fingerprint not in (None, extractor.fingerprint()):
        raise InputError(
            "processing_class has other settings than the one that the model was trained with; take "
            "laennec.LaennecFeatureExtractor.from_pretrained(MODEL)"
        )
    config.sampling_rate, config.features_fingerprint = extractor.sampling_rate, extractor.fingerprint()


def draws_of(data: Any, spec_augment: Any) -> tuple[bool, bool]:
    """Whether draws of a cycle differ (assumed of data sets of other types), and whether cycles are concatenated."""
    if type(data) not in (CycleDataset, StreamedCycles):
        return True, False
    return bool(data.augmentation or spec_augment), getattr(data, "concatenation", None) is not None


def check_order(data: Any, sampler: Any, strategy: str) -> None:
    """Refuse a sampler, or the TrainingArguments' `train_sampling_strategy`, that has no effect on the data."""
    streamed = isinstance(data, torch.utils.data.IterableDataset)
    if sampler is not None and streamed:
        raise InputError("sampler has no effect on a streamed table; shuffle the stream, or load the table as a whole")
    if strategy != "random" and (sampler is not None or isinstance(data, CycleDataset | EmbeddingDataset) or streamed):
        raise InputError(
            f"train_sampling_strategy is {strategy!r}, which has no effect; leave it out, and pass a sampler"
        )


def split_name(data: Any) -> str | None:
    """Name of the `load_corpus` split that a table holds, or else its size in words; None if it is no table."""
    if not isinstance(data, datasets.Dataset):
        return None
    known = (provenance(data).get("part_fingerprints") or {}).items() if "cycle_id" in data.column_names else ()
    ids = column_of(data, "cycle_id") if known else []
    other = f"a data set of {len(data)} rows"
    return next((str(name) for name, told in known if fingerprint({name: ids}) == told), other)


def collator_of(data: Any) -> Any:
    """The function that makes batches of what a data set yields; embeddings come as whole batches."""
    first = next(iter(data.values())) if isinstance(data, dict) else data
    while isinstance(first, torch.utils.data.Subset):
        first = first.dataset
    return dict if isinstance(first, EmbeddingDataset) else collate_cycles


def labels_of(data: Any) -> Any:
    """The labels of a training set, for class weights; None if they are unknown."""
    if isinstance(data, EmbeddingDataset):
        return data.labels[0].numpy()
    return data.targets.labels if isinstance(data, CycleDataset) else None


def dataset_from_table(
    table: Any,
    feature_extractor: LaennecFeatureExtractor,
    labels: Sequence[str],
    problem_type: str = "multi_label",
    augmentation: Any = None,
    seed: int = 0,
) -> CycleDataset:
    """Make a data set of any table of recordings with labels, without a recipe.

    Args:
        table: A cycle table, or a `datasets.Dataset` with an `audio` column or a `recording_path` column, and labels.
            `start_s` and `end_s` cut rows out of their recordings; a row without them is a whole recording.
        feature_extractor: Source of the sampling rate, the recording filter and the shortest cycle.
        labels: Names in the order of the logits. "multi_label": columns of 0 and 1; "single_label": values of `label`.
        problem_type: "multi_label" or "single_label".
        augmentation: A `WaveformAugmentation`, or any function with its arguments; None for none.
        seed: Seed of all random draws.
    """
    settings = TargetSettings.model_validate({"problem_type": problem_type, "names": list(labels)})
    targets = targets_of(table, settings, list(labels))
    table = table.select(targets.kept)
    names, rate = table.column_names, feature_extractor.sampling_rate
    chosen = feature_extractor.recording_filter
    filter_ = None if chosen is None else ButterworthFilter(**chosen)
    if "cycle_id" not in names:
        table = table.add_column("cycle_id", [f"row {row}" for row in targets.kept.tolist()])
    waveforms: Any
    if "recording_path" in names:
        waveforms = CycleWaveforms(_with_times(table), rate, filter=filter_)
    elif "audio" in names:
        waveforms = AudioColumn(table, rate, filter_)
    else:
        raise InputError(f"the table has no column audio and no recording_path; it has {', '.join(names)}")
    refuse_short_cycles(table, waveforms, feature_extractor)
    return CycleDataset(waveforms, targets, table["cycle_id"], rate, seed, augmentation)


def _with_times(table: Any) -> Any:
    """Add the columns that locate a cycle, where they are missing; without times a row is a whole recording."""
    paths = column_of(table, "recording_path")
    missing: dict[str, list[Any]] = {"recording_id": paths, "audio_sha256": [None] * len(paths)}
    if "start_s" not in table.column_names:
        headers = {path: read_header(path) for path in set(paths)}  # (rate, frames)
        missing |= {"start_s": [0.0] * len(paths), "end_s": [headers[p][1] / headers[p][0] for p in paths]}
    for name, values in missing.items():
        if name not in table.column_names:
            kind = "float64" if name.endswith("_s") else "string"
            table = table.add_column(name, values, feature=datasets.Value(kind))
    return table


class AudioColumn(Sequence[NDArray[np.float32]]):
    """The `audio` column of a table as waveforms, decoded when a row is read."""

    def __init__(self, table: Any, sampling_rate: int, filter: ButterworthFilter | None = None) -> None:
        self.sampling_rate = sampling_rate
        self.filter = filter
        self._audio = table.select_columns(["audio"])
        kind = table.features["audio"]
        if not (isinstance(kind, dict) and {"array", "sampling_rate"} <= kind.keys()):  # arrays are read as they are
            self._audio = self._audio.cast_column("audio", datasets.Audio(decode=False))
        timed = {"start_s", "end_s"} <= set(table.column_names)
        self._spans = list(zip(table["start_s"], table["end_s"], strict=True)) if timed else None

    def __len__(self) -> int:
        return len(self._audio)

    def __getitem__(self, row: int) -> NDArray[np.float32]:  # type: ignore[override]
        audio = self._audio[row]["audio"]
        if "array" in audio:
            waveform = self._of_array(np.asarray(audio["array"], dtype=np.float32), audio["sampling_rate"], row)
        else:
            source = audio["bytes"] or audio["path"]
            waveform = read_recording(source, self.sampling_rate, filter=self.filter).waveform
        if self._spans is None:
            return waveform
        start_s, end_s = self._spans[row]
        # the audio of an exported cycle is the cycle; a recording that long could not hold it unless it starts at 0
        whole = abs(len(waveform) / self.sampling_rate - (end_s - start_s)) < _SAME_LENGTH_S
        return waveform if whole else cut(waveform, self.sampling_rate, start_s, end_s)

    def _of_array(self, samples: NDArray[np.float32], rate: int, row: int) -> NDArray[np.float32]:
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise InputError(f"row {row}: audio.array must hold finite samples of one channel; correct or remove it")
        refuse_integers(samples)
        waveform = resample(samples, int(rate), self.sampling_rate)
        return waveform if self.filter is None else self.filter.apply(waveform, self.sampling_rate)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Samples of each row (rows,); decodes every row once."""
        return np.array([len(waveform) for waveform in self], dtype=np.int64)


def refuse_short_cycles(table: Any, waveforms: Any, extractor: LaennecFeatureExtractor) -> None:
    """Refuse cycles that do not fill one frame: their features would be only padding.

    Their lengths are read from the cache, so recordings that are not in it are decoded.
    """
    frames = {int(n): extractor.frames(int(n)) for n in np.unique(waveforms.lengths)}
    rows = [row for row, samples in enumerate(waveforms.lengths) if frames[int(samples)] < 1]
    if not rows:
        return
    columns = [c for c in ("recording_path", "start_s", "end_s") if c in table.column_names]
    if len(columns) == 3:
        said = ["{}: cycle at {:g} to {:g} s".format(*(table[row][c] for c in columns)) for row in rows]
    else:
        said = [str(table[row]["cycle_id"]) for row in rows]
    raise InputError(
        f"{'; '.join(said)}: shorter than one frame ({extractor.window_ms:g} ms); correct the annotation, delete the "
        "line, or set features.length to repeat or zero with features.duration_s"
    )
