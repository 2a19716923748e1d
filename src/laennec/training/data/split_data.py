"""The splits of a recipe's corpus, ready for training.

Decisions: a cycle that cannot be used is an error before anything is trained. Recordings are decoded into the cache
once, and all that cannot be read are named in one error.
"""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.audio.augmentation import WAVEFORM_PARTS, WaveformAugmentation
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import ButterworthFilter
from laennec.corpora.base import column_of
from laennec.corpora.load import check_duplicates, corpus_class, load_corpus, provenance
from laennec.corpora.recordings import UnusableRecordingsError
from laennec.corpora.several import concatenate_corpora
from laennec.corpora.waveforms import CycleWaveforms, decode_all
from laennec.errors import InputError
from laennec.progress import Progress, track
from laennec.training.data.batches import Concatenation, CycleDataset, Neighbours, cycle_numbers
from laennec.training.data.mixing import label_union
from laennec.training.data.targets import Targets, targets_of
from laennec.training.data.training_data import refuse_short_cycles
from laennec.training.embeddings import cycle_keys
from laennec.training.recipe import AugmentSettings, FeatureSettings, Recipe

_log = logging.getLogger(__name__)
# a process reads its corpus again for auxiliary tasks and for each trial of a search; each warning is logged once
_said: set[str] = set()


@dataclass
class SplitData:
    """One split of the corpus."""

    name: str  # "train", "validation", "test_intra" and the like
    table: Any  # its cycle table, labelled rows only
    targets: Targets  # their labels
    dataset: CycleDataset  # their waveforms
    waveform_settings: str  # rate and filter of the waveforms, for content keys

    def keys(self, draw: str = "") -> list[bytes]:
        """Content keys of the cycles."""
        return cycle_keys(self.table, self.waveform_settings, draw, self.dataset.neighbours)


def make_extractor(settings: FeatureSettings) -> LaennecFeatureExtractor:
    """The feature extractor of a recipe."""
    filter_ = make_filter(settings)
    try:
        return LaennecFeatureExtractor(
            settings.preset,
            length=settings.length,
            duration_s=settings.duration_s,
            fade_s=settings.fade_s,
            keep="center" if settings.keep == "random" else settings.keep,
            recording_filter=None if filter_ is None else dataclasses.asdict(filter_),
            context_cycles=settings.context_cycles,
            **({"mean": settings.mean, "std": settings.std} if isinstance(settings.mean, float) else {}),
        )
    except ValueError as error:
        raise InputError(f"features: {error}") from error


def make_filter(settings: FeatureSettings) -> ButterworthFilter | None:
    """The recording filter of a recipe."""
    cutoff: Any = settings.filter_cutoff_hz
    if settings.filter_kind is None:
        if cutoff is not None:
            raise InputError("features.filter_cutoff_hz is set, but features.filter_kind is not; set both")
        return None
    if cutoff is None:
        raise InputError("features.filter_kind is set, but features.filter_cutoff_hz is not")
    try:
        cutoff = tuple(cutoff) if isinstance(cutoff, list) else cutoff
        return ButterworthFilter(settings.filter_kind, cutoff, settings.filter_order)  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"features: {error}") from error


def with_train_statistics(recipe: Recipe, waveforms: Any) -> Recipe:
    """The recipe with the mean and std of the training features in place of features.mean: train."""
    if recipe.features.mean != "train":
        return recipe
    plain = make_extractor(recipe.features.model_copy(update={"mean": 0.0, "std": 0.5, "context_cycles": 0}))
    if plain.front.is_waveform or plain.front.normalise != "fixed":
        raise InputError(
            f"features.mean is train, but preset {recipe.features.preset} normalises each cycle by itself; leave it out"
        )
    count, total, squares = 0, 0.0, 0.0
    for row in track(range(len(waveforms)), "mean and std of the features"):
        features = plain(waveforms[row], plain.sampling_rate)
        real = features["input_values"][features["attention_mask"].bool()].double()
        count, total, squares = count + real.numel(), total + float(real.sum()), squares + float(real.square().sum())
    mean = total / count
    std = math.sqrt(max(squares / count - mean**2, 0.0))
    if not std:
        raise InputError("features.mean is train, but all training features are equal; check the recordings")
    return recipe.model_copy(update={"features": recipe.features.model_copy(update={"mean": mean, "std": std})})


def load_splits(recipe: Recipe, jobs: int = 1) -> Any:
    """The recipe's corpus as a DatasetDict of cycle tables.

    A warning names recordings with equal sound; `jobs` processes look for them.
    """
    c = recipe.corpus
    each = []
    for one in c.each:
        try:
            # where it is not set, that of an export counts
            options: dict[str, Any] = {"allow_missing": True} if one.allow_missing else {}
            splits = load_corpus(
                one.name,
                one.data_dir,
                protocol=one.protocol,
                fold=one.fold,
                validation_fraction=one.validation_fraction,
                validation_fold=one.validation_fold,
                seed=one.split_seed,
                tables_dir=one.tables_dir,
                level=one.level,
                **options,
                **one.options,
            )
        except InputError as error:
            if c.corpora and not str(error).startswith(one.name):
                error.args = (f"{one.name}: {error}",)
            raise
        each.append(splits)
    splits = concatenate_corpora(each) if c.corpora else each[0]
    column, tables = recipe.target.column or "label", list(splits.values())
    known = column not in tables[0].column_names or any(set(column_of(table, column)) - {None} for table in tables)
    if (remedy := corpus_class(c.name).sources.get(column)) and not known:
        raise InputError(f"target.column is {column}, which is unknown for all rows of {c.name}; {remedy}")
    for line in check_duplicates(splits, jobs=jobs):
        if line not in _said:
            _log.warning("%s", line)
            _said.add(line)
    return splits


def load_decoded(recipe: Recipe, sampling_rate: int) -> Any:
    """The recipe's corpus with training and validation decoded into the cache."""
    filter_ = make_filter(recipe.features)
    if any(one.validation_fold == "all" for one in recipe.corpus.each):
        raise InputError("corpus.validation_fold is all, which leaves no patients to choose an epoch on; give one fold")
    try:
        splits = load_splits(recipe)
    except UnusableRecordingsError as error:
        if error.usable is not None:
            decode_all([error.usable], sampling_rate, filter_, error.problems, Progress("decoding"))
        raise
    if absent := [name for name in ("train", "validation") if name not in splits or not len(splits[name])]:
        protocol = provenance(splits).get("protocol")
        raise InputError(
            f"{recipe.corpus.name}: no cycles in split {absent[0]} under protocol {protocol}; "
            "choose another corpus.protocol, or give a corpus of more patients"
        )
    decode_all([splits["train"], splits["validation"]], sampling_rate, filter_, progress=Progress("decoding"))
    return splits


def make_split(
    name: str,
    table: Any,
    recipe: Recipe,
    extractor: LaennecFeatureExtractor,
    names: list[str] | None,
    train: bool,
    rows: NDArray[np.int64] | None = None,
) -> SplitData:
    """Labels and waveforms of one split; recordings that are not in the cache are decoded into it."""
    whole = table
    targets = targets_of(table, recipe.target, names)
    if len(targets.kept) < len(table) and rows is None:
        _log.warning(
            "%s: %d of %d cycles carry no label and are left out", name, len(table) - len(targets.kept), len(table)
        )
    if rows is not None:
        targets = targets.take(rows)
    if len(targets.kept) < len(table) or rows is not None:
        table = table.select(targets.kept)
    filter_ = make_filter(recipe.features)
    waveforms = CycleWaveforms(table, extractor.sampling_rate, filter=filter_)
    refuse_short_cycles(table, waveforms, extractor)
    augmentation, concatenation = make_draws(recipe.augment, targets, recipe.folders) if train else (None, None)
    neighbours = None
    if k := extractor.context_cycles:
        sounds = waveforms if whole is table else CycleWaveforms(whole, extractor.sampling_rate, filter=filter_)
        neighbours = Neighbours(whole, sounds, targets.kept, k)
    dataset = CycleDataset(
        waveforms,
        targets,
        table["cycle_id"],
        extractor.sampling_rate,
        recipe.seed,
        augmentation,
        concatenation,
        neighbours,
        round((extractor.duration_s or 0) * extractor.sampling_rate)
        if train and recipe.features.keep == "random"
        else 0,
    )
    return SplitData(name, table, targets, dataset, f"{extractor.sampling_rate} {filter_!r}")


def make_draws(
    settings: AugmentSettings, targets: Targets, folders: Sequence[Path] = ()
) -> tuple[WaveformAugmentation | None, Concatenation | None]:
    """The recipe's augmentation of waveforms and concatenation; None for what it does not have."""
    parts = {name: getattr(settings, name) for name in WAVEFORM_PARTS}
    own = tuple(one.make(f"augment.custom[{k}]", folders) for k, one in enumerate(settings.custom))
    augmentation = WaveformAugmentation(**parts, transforms=own) if any(parts.values()) or own else None
    if not settings.concatenate_probability:
        return augmentation, None
    multi_label = targets.labels.ndim == 2
    union = label_union(targets.names, multi_label, "augment.concatenate_probability")
    rows = np.arange(len(targets.labels))
    if settings.concatenate_label is not None:
        if settings.concatenate_label not in targets.names:
            raise InputError(
                f"augment.concatenate_label is {settings.concatenate_label!r}; "
                f"the labels are {', '.join(targets.names)}"
            )
        number = targets.names.index(settings.concatenate_label)
        rows = rows[targets.labels[:, number] > 0 if multi_label else targets.labels == number]
    return augmentation, Concatenation(settings.concatenate_probability, rows, union)


def labelled_split(recipe: Recipe, table: Any, extractor: LaennecFeatureExtractor) -> SplitData:
    """The training split, reduced to a fraction of its labelled cycles if the recipe sets one.

    The chosen cycles are repeated, so that an epoch is about as long as with all labels.
    """
    full = make_split("train", table, recipe, extractor, None, True)
    c = recipe.corpus
    if c.label_fraction == 1:
        return full
    refuse_missing_labels(full.targets)
    ids = column_of(full.table, "cycle_id")
    rows = labelled_rows(full.targets.class_ids, ids, c.label_fraction, c.split_seed, c.label_draw)
    repeats = max(1, round(len(full.table) / len(rows)))
    data = make_split("train", table, recipe, extractor, full.targets.names, True, np.tile(rows, repeats))
    # each repeat has its own number, and so its own draws of augmentation
    names = enumerate(column_of(data.table, "cycle_id"))
    again = [name if k < len(rows) else f"{name} repeat {k // len(rows)}" for k, name in names]
    data.dataset.numbers = cycle_numbers(again)
    return data


def refuse_missing_labels(targets: Targets) -> None:
    """Refuse a training split in which all cycles, or none, have a yes/no label: it cannot be learned."""
    counts = targets.labels.sum(0) if targets.labels.ndim == 2 else ()
    for name, count in zip(targets.names, counts, strict=False):
        if count in (0, len(targets.labels)):
            side = "no cycle with" if count == 0 else "no cycle without"
            raise InputError(
                f"the {len(targets.labels)} training cycles have {side} {name}, so it cannot be learned; "
                "choose other target.names or another corpus"
            )


def labelled_rows(
    class_ids: NDArray[np.int64], cycle_ids: Sequence[str], fraction: float, seed: int, draw: int
) -> NDArray[np.int64]:
    """The rows of one draw of a fraction of the labels.

    A draw takes cycles, not patients: one percent of the patients is one or two people, who seldom have every class.
    Each class gives its share, rounded, and at least one cycle. The order within a class is a hash of (seed, draw,
    cycle), so a smaller fraction of a draw is a subset of a larger one, and runs of other seeds and encoders use the
    same cycles.
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
