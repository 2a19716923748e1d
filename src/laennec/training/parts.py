"""The parts of a recipe's corpus, ready for use.

Decisions: front end, recording filter and draws are what the recipe says, and a cycle that cannot be used stops
before anything is trained; recordings are decoded into the cache once, and all that cannot be read are named together.
"""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.audio.augmentation import WAVEFORM_PARTS, WaveformAugmentation
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import ButterworthFilter
from laennec.corpora import CycleWaveforms, UnusableRecordingsError, check_sounds, decode_all, load_corpus
from laennec.errors import InputError
from laennec.training.data import (
    Concatenation,
    CycleDataset,
    Targets,
    targets_of,
)
from laennec.training.embeddings import cycle_keys
from laennec.training.mixing import label_union
from laennec.training.neighbours import Neighbours
from laennec.training.recipe import AugmentSettings, ConfigError, FeatureSettings, Recipe

_log = logging.getLogger(__name__)
# a process reads its corpus again for questions about recordings and for each trial of a search; once is enough said
_said: set[str] = set()


@dataclass
class Part:
    """One part of the corpus, ready for use."""

    name: str
    table: Any
    targets: Targets
    dataset: CycleDataset
    waveform_settings: str

    def keys(self, draw: str = "") -> list[bytes]:
        """Content keys of the cycles."""
        return cycle_keys(self.table, self.waveform_settings, draw, self.dataset.neighbours)


def make_extractor(settings: FeatureSettings) -> LaennecFeatureExtractor:
    """The front end of a recipe."""
    filter_ = make_filter(settings)
    try:
        return LaennecFeatureExtractor(
            settings.preset,
            length=settings.length,
            duration_s=settings.duration_s,
            fade_s=settings.fade_s,
            recording_filter=None if filter_ is None else dataclasses.asdict(filter_),
            context_cycles=settings.context_cycles,
        )
    except ValueError as error:
        raise ConfigError(f"features: {error}") from error


def make_filter(settings: FeatureSettings) -> ButterworthFilter | None:
    """The recording filter of a recipe."""
    if settings.filter_kind is None:
        return None
    cutoff: Any = settings.filter_cutoff_hz
    if cutoff is None:
        raise ConfigError("features.filter_kind is set, but features.filter_cutoff_hz is not")
    try:
        cutoff = tuple(cutoff) if isinstance(cutoff, list) else cutoff
        return ButterworthFilter(settings.filter_kind, cutoff, settings.filter_order)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"features: {error}") from error


def load_parts(recipe: Recipe) -> Any:
    """The recipe's corpus as a DatasetDict of cycle tables; sounds that are there under two names are said.

    Raises:
        InputError: The corpus cannot be used, or its split shares what it promised not to.
    """
    c = recipe.corpus
    parts = load_corpus(
        c.name,
        c.data_dir,
        protocol=c.protocol,
        fold=c.fold,
        validation_fraction=c.validation_fraction,
        seed=c.split_seed,
        tables_dir=c.tables_dir,
        allow_missing=c.allow_missing,
        level=c.level,
        **c.options,
    )
    for line in check_sounds(parts):
        if line not in _said:
            _log.warning("%s", line)
            _said.add(line)
    return parts


def load_decoded(recipe: Recipe, sampling_rate: int) -> Any:
    """The recipe's corpus with training and validation decoded into the cache.

    Raises:
        UnusableRecordingsError: Some recordings cannot be used, whatever the reason: names all of them. The others are
            in the cache.
    """
    filter_ = make_filter(recipe.features)
    try:
        parts = load_parts(recipe)
    except UnusableRecordingsError as error:
        if error.usable is not None:
            decode_all([error.usable], sampling_rate, filter_, error.problems)
        raise
    if absent := [name for name in ("train", "validation") if name not in parts or not len(parts[name])]:
        raise InputError(
            f"{recipe.corpus.name}: no cycles in part {absent[0]} under protocol {recipe.corpus.protocol}; "
            "choose another corpus.protocol, or give a corpus of more patients"
        )
    decode_all([parts["train"], parts["validation"]], sampling_rate, filter_)
    return parts


def make_part(
    name: str,
    table: Any,
    recipe: Recipe,
    extractor: LaennecFeatureExtractor,
    names: list[str] | None,
    train: bool,
    rows: NDArray[np.int64] | None = None,
) -> Part:
    """Labels and waveforms of one part; audio is decoded into the cache where it is not there yet.

    Args:
        name: The part's name.
        table: Its cycle table.
        recipe: Target, features and draws.
        extractor: The front end.
        names: The label names of training, for any other part; None reads them off the table.
        train: Whether cycles are augmented.
        rows: Of the cycles that carry a label, those to take, in this order; one may come several times. None: all.
    """
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
    waveforms.prepare()
    refuse_short_cycles(table, waveforms, extractor)
    augmentation, concatenation = make_draws(recipe.augment, targets) if train else (None, None)
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
    )
    return Part(name, table, targets, dataset, f"{extractor.sampling_rate} {filter_!r}")


def refuse_short_cycles(table: Any, waveforms: CycleWaveforms, extractor: LaennecFeatureExtractor) -> None:
    """Refuse cycles that do not fill one frame: an encoder would answer them with padding alone."""
    frames = {int(n): extractor.frames(int(n)) for n in np.unique(waveforms.lengths)}
    rows = [row for row, samples in enumerate(waveforms.lengths) if frames[int(samples)] < 1]
    if not rows:
        return
    columns = ("recording_path", "start_s", "end_s")
    said = ["{}: cycle at {:g} to {:g} s".format(*(table[row][c] for c in columns)) for row in rows]
    raise InputError(
        f"{'; '.join(said)}: shorter than one frame ({extractor.window_ms:g} ms); correct the annotation, delete the "
        "line, or set features.length to repeat or zero with features.duration_s"
    )


def make_draws(settings: AugmentSettings, targets: Targets) -> tuple[WaveformAugmentation | None, Concatenation | None]:
    """The recipe's draws on waveforms; None where every probability is 0."""
    parts = {k: getattr(settings, k) for k in WAVEFORM_PARTS}
    augmentation = WaveformAugmentation(**parts) if any(parts.values()) else None
    if not settings.concatenate_probability:
        return augmentation, None
    multi_label = targets.labels.ndim == 2
    union = label_union(targets.names, multi_label, "augment.concatenate_probability")
    rows = np.arange(len(targets.labels))
    if settings.concatenate_label is not None:
        if settings.concatenate_label not in targets.names:
            raise ConfigError(
                f"augment.concatenate_label is {settings.concatenate_label!r}; "
                f"the labels are {', '.join(targets.names)}"
            )
        number = targets.names.index(settings.concatenate_label)
        rows = rows[targets.labels[:, number] > 0 if multi_label else targets.labels == number]
    return augmentation, Concatenation(settings.concatenate_probability, rows, union)
