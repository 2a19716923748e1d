"""The pre-training set: which cycles pre-training uses, and the note of them saved with the encoder.

Decisions: a patient of any test split is left out, although a protocol may put the patient into train as well, and so
is a recording whose sound is in a test split under another name; no setting changes that. Patients of validation are
left out unless the recipe asks for that split, because they choose the epoch of the training. Labels are never read:
unlabelled cycles are used, and recordings without annotation are cut into windows. The encoder keeps the list of its
patients, so that a training on another split is refused if its test split has one of them. A cycle of unknown patient
is left out if its recording or its sound is held out; a warning says so.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from laennec.audio.augmentation import SpecAugment, WaveformAugmentation, counter_generator
from laennec.audio.cycles import sliding_windows
from laennec.corpora.base import column_of, to_arrow
from laennec.corpora.copies import describe_audio, find_described
from laennec.corpora.load import find_corpus, provenance
from laennec.corpora.recordings import named
from laennec.errors import InputError, in_known_form
from laennec.training.data.batches import CycleDataset, view_seed
from laennec.training.data.targets import Codes, Targets
from laennec.training.pretraining.pairs import PositivePairs
from laennec.training.recipe import PretrainSettings
from laennec.training.record import read_record

_log = logging.getLogger(__name__)
PRETRAINING = "pretraining.json"  # in the folder of a pre-trained encoder
_NOT_TEST = ("train", "validation", "all")
_WHOLE = "#record"  # end of the id of a row that is a whole recording
VIEWS = 2
Waveform = NDArray[np.float32]


def patients_of(table: Any) -> set[str]:
    """The patients of a cycle table that are known."""
    return {str(patient) for patient in column_of(table, "patient_id") if patient is not None}


def pretraining_set(
    splits: Mapping[str, Any], settings: PretrainSettings, one_name: Mapping[str, str] | None = None
) -> tuple[Any, dict[str, int], int]:
    """Choose the rows of a split corpus that pre-training may use; `one_name` maps equal sounds to one hash.

    Returns:
        Their cycle table, what was left out (reason -> number), and how many rows are windows of recordings without
        annotation.
    """
    wanted = ["all"] if set(splits) == {"all"} else [name for name in settings.splits if name in splits]
    held_out = [name for name in splits if name not in wanted]
    patients = set().union(*(patients_of(splits[name]) for name in held_out))
    recordings = {recording for name in held_out for recording in splits[name]["recording_id"]}
    alike = one_name or {}
    sounds = {alike.get(sound, sound) for name in held_out for sound in splits[name]["audio_sha256"]} - {None}
    chosen = [splits[name] for name in wanted if len(splits[name])]
    if not chosen:
        raise InputError(f"pretrain.splits: no cycles in {' and '.join(settings.splits)}; choose another split")
    table = chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)
    rows = table.select_columns(["patient_id", "recording_id", "audio_sha256"]).to_pandas()
    unknown, held_out_patient = rows["patient_id"].isna(), rows["patient_id"].isin(patients)
    held_out_recording = unknown & rows["recording_id"].isin(recordings)
    named_out = held_out_patient | held_out_recording
    copies = rows["audio_sha256"].map(lambda sound: alike.get(sound, sound)).isin(sounds) & ~named_out
    kept = np.flatnonzero(~(named_out | copies))
    if not len(kept):
        known = len(patients_of(table))
        by, count = ("patient", known) if known else ("recording", len(set(table["recording_id"])))
        raise InputError(
            f"pre-training: all {count} {by}s of {' and '.join(wanted)} are in {' or '.join(held_out)} too, which are "
            f"held out; choose a corpus.protocol that splits by {by}"
        )
    if held_out and unknown.any():
        _log.warning(
            "%d of %d cycles have no patient: they are kept apart from %s by recording and by sound, and a person may "
            "be in both",
            unknown.sum(),
            len(rows),
            " and ".join(held_out),
        )
    left_out = {
        "cycles of patients who are in test or validation": int(held_out_patient.sum()),
        "patients who are in test or validation": len(patients & patients_of(table)),
        "cycles of unknown patients whose recording is in test or validation": int(held_out_recording.sum()),
        "cycles whose sound is in test or validation": int(copies.sum()),
    }
    table, windows = _cut_whole_recordings(table.select(kept), settings.window_s, settings.hop_s)
    return table, left_out, windows


def _cut_whole_recordings(table: Any, window_s: float, hop_s: float) -> tuple[Any, int]:
    """Cut rows of whole recordings into rows of windows, and keep other rows; also the number of windows."""
    if not any(name.endswith(_WHOLE) for name in column_of(table, "cycle_id")):
        return table, 0
    rows: list[dict[str, Any]] = []
    windows = 0
    for row in table.with_format("arrow")[:].to_pylist():
        if not row["cycle_id"].endswith(_WHOLE):
            rows.append(row)
            continue
        spans = sliding_windows(row["end_s"] - row["start_s"], window_s, hop_s)
        stem = row["cycle_id"].removesuffix(_WHOLE)
        for index, (start_s, end_s) in enumerate(spans):
            times = {"start_s": row["start_s"] + start_s, "end_s": row["start_s"] + end_s}
            rows.append({**row, **times, "cycle_id": f"{stem}#window{index:03d}", "cycle_index": index})
        windows += len(spans)
    return datasets.Dataset(to_arrow(rows, table.features), info=table.info.copy()), windows


def pretraining_note(splits: Any, table: Any) -> dict[str, Any]:
    """The note of an encoder that is trained on a table of split data: corpus, split, patients and sounds."""
    source = provenance(splits)
    keys = ("corpus", "corpus_fingerprint", "protocol", "fold", "seed", "split_fingerprint")
    found = {key: source.get(key) for key in keys}
    return found | {"patients": sorted(patients_of(table)), "sounds": describe_audio([table])}


class _Note(BaseModel):
    """The fields of a note that are needed to find held-out patients in it."""

    corpus: str | None
    corpus_fingerprint: str | None
    patients: list[str]
    sounds: dict[str, list[Annotated[str, Field(pattern="^[0-9a-f]+$")]]] = Field(default={})


def check_note(note: Any, path: str | Path) -> dict[str, Any]:
    """Return a note unchanged, or raise an InputError with its file if its fields are wrong."""
    with in_known_form(path, "restore it, or train the run again"):
        _Note.model_validate(note)
    return dict(note)


def seen_patients(note: Mapping[str, Any], splits: Mapping[str, Any]) -> set[str]:
    """The patients of a note, under the ids of these splits; none if they are of another corpus."""
    source: dict[str, Any] = provenance(splits)  # type: ignore[arg-type]
    # of several corpora, the one of the note; ids of patients begin with its name
    before = f"{note.get('corpus')}:" if "corpora" in source else ""
    source = source.get("corpora", {}).get(note.get("corpus")) or source
    corpus = find_corpus(str(source.get("corpus")))
    same = source.get("corpus_fingerprint") == note.get("corpus_fingerprint") or (
        corpus is not None and corpus.patient_ids_are_global and source.get("corpus") == note.get("corpus")
    )
    return {f"{before}{patient}" for patient in note["patients"]} if same else set()


def refuse_seen_patients(weights: str | Path | None, splits: Mapping[str, Any]) -> dict[str, Any] | None:
    """Refuse an encoder that was pre-trained on patients, or on sounds, of a test split."""
    if weights is None or not (path := Path(weights) / PRETRAINING).is_file():
        return None
    note = check_note(read_record(path), path)
    told = {key: value for key, value in note.items() if key not in ("patients", "sounds")}
    seen = seen_patients(note, splits)
    for name in splits:
        both = sorted(seen & patients_of(splits[name])) if name not in _NOT_TEST else []
        if both:
            raise InputError(
                f"{weights}: was pre-trained on patients of {name} ({named(both)}; protocol {note.get('protocol')}, "
                f"split {str(note.get('split_fingerprint'))[:12]}); run laennec pretrain on the split of this recipe"
            )
    for name in splits if "sounds" in note else ():
        if name not in _NOT_TEST and (doubles := find_described(note["sounds"], splits[name])):
            raise InputError(
                f"{weights}: was pre-trained on sounds of {name} ({named(doubles)}); run laennec pretrain without them"
            )
    return told


def waveform_views(settings: PretrainSettings) -> WaveformAugmentation | None:
    """The draws on waveforms of the family `raw`; None where it is not among the views."""
    if "raw" not in settings.views:
        return None
    return WaveformAugmentation(
        gain=settings.gain, pitch=settings.pitch, shift=settings.shift, stretch=settings.stretch
    )


def mask_views(settings: PretrainSettings) -> SpecAugment | None:
    """The masks of the families `spec`, `time` and `frequency`; None where none is among the views."""
    in_time, in_frequency = ({"spec", name} & set(settings.views) for name in ("time", "frequency"))
    if not (in_time or in_frequency):
        return None
    masks = settings.masks
    return dataclasses.replace(
        masks, time_masks=masks.time_masks if in_time else 0, freq_masks=masks.freq_masks if in_frequency else 0
    )


def crop(waveform: Waveform, samples: int, where: float) -> Waveform:
    """A crop of a cycle, all of a shorter one; `where` in [0, 1): from the start to the last place that fits."""
    start = int(where * (max(len(waveform) - samples, 0) + 1))
    return waveform[start : start + samples]


class PairDataset(CycleDataset):
    """Pairs of views: `dataset[(row, epoch)]` is a view of a cycle and one of its pair (or of itself)."""

    def __init__(
        self,
        waveforms: Any,
        cycle_ids: Sequence[str],
        sampling_rate: int,
        seed: int,
        settings: PretrainSettings,
        least_samples: int = 1,
        positives: PositivePairs | None = None,
    ) -> None:
        nothing: Codes = np.zeros(len(cycle_ids), dtype=np.int64)
        targets = Targets([], nothing, nothing, np.arange(len(cycle_ids)))
        super().__init__(waveforms, targets, cycle_ids, sampling_rate, seed, waveform_views(settings))
        self.settings = settings
        self.least_samples = least_samples
        self.positives = positives
        self.views = VIEWS

    def paired_row(self, row: int, epoch: int) -> int | None:
        """The row that a cycle is paired with in an epoch, if any."""
        return None if self.positives is None else self.positives.draw(row, self.seed, epoch, int(self.numbers[row]))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        row, epoch = key if isinstance(key, tuple) else (key, 0)
        second = self.paired_row(row, epoch)
        own = self.waveforms[row]
        pair = (own, own if second is None else self.waveforms[second])
        return self._item(row, epoch, [self._view(sound, row, epoch, view) for view, sound in enumerate(pair)])

    def _view(self, waveform: Waveform, row: int, epoch: int, view: int) -> Waveform:
        number = int(self.numbers[row])
        places = counter_generator(view_seed(self.seed, view), epoch, number, "crops").random(2)
        if "split" in self.settings.views:
            samples = max(round(self.settings.crop_fraction * len(waveform)), self.least_samples)
            waveform = crop(waveform, samples, places[0])
        if self.settings.max_duration_s is not None:
            samples = max(round(self.settings.max_duration_s * self.sampling_rate), self.least_samples)
            waveform = crop(waveform, samples, places[1])
        return self._augmented(waveform, row, number, epoch, view)
