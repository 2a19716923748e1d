"""Whose cycles pre-training may see.

Decisions: a patient of any test part is left out, although a protocol may put the patient into train as well, and
so is a recording whose sound is in a test part under another name; no setting changes that. Patients of validation are
left out unless the recipe asks for that part, because they choose the epoch afterwards. Labels are never read: a cycle
without any is as good as others, and a recording that nobody annotated is cut into windows. The encoder carries the
list of its patients, so that a later training on another split refuses to be tested on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from laennec.audio.cycles import sliding_windows
from laennec.corpora import provenance
from laennec.corpora.base import column_of, to_arrow
from laennec.corpora.duplicates import heard_before, sounds_note
from laennec.corpora.files import named
from laennec.corpora.load import find_corpus
from laennec.errors import InputError
from laennec.training.recipe import PretrainSettings
from laennec.training.record import read_record

PRETRAINING = "pretraining.json"  # in the folder of a pre-trained encoder
_NOT_TEST = ("train", "validation", "all")
_WHOLE = "#record"  # how the id of a row ends that is a whole recording


@dataclass
class Cohort:
    """The cycles of pre-training.

    Attributes:
        table: Cycle table of the rows that take part.
        left_out: What was left out, and why, in numbers.
        windows: How many rows are windows of recordings that were not annotated.
    """

    table: Any
    left_out: dict[str, int]
    windows: int

    @property
    def patients(self) -> list[str]:
        """Their patients, sorted."""
        return sorted({str(patient) for patient in column_of(self.table, "patient_id")})


def cohort_of(
    parts: Mapping[str, Any], settings: PretrainSettings, one_name: Mapping[str, str] | None = None
) -> Cohort:
    """Choose the rows of a split corpus that pre-training may see.

    Args:
        parts: The corpus as `load_corpus` splits it; one part "all" (protocol none) is all for pre-training.
        settings: Which parts, and how recordings without annotation are cut.
        one_name: For hashes of files that hold the same sound one of them, as `one_name_each` gives it.

    Raises:
        InputError: Nothing is left.
    """
    wanted = ["all"] if set(parts) == {"all"} else [name for name in settings.splits if name in parts]
    held_out = [name for name in parts if name not in wanted]
    patients = {patient for name in held_out for patient in parts[name]["patient_id"]}
    alike = one_name or {}
    sounds = {alike.get(sound, sound) for name in held_out for sound in parts[name]["audio_sha256"]} - {None}
    chosen = [parts[name] for name in wanted if len(parts[name])]
    if not chosen:
        raise InputError(f"pretrain.splits: no cycles in {' and '.join(settings.splits)}; choose another split")
    table = chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)
    heard = [alike.get(sound, sound) for sound in column_of(table, "audio_sha256")]
    columns = list(zip(column_of(table, "patient_id"), heard, strict=True))
    seen_there = [patient in patients for patient, _ in columns]
    copies = [sound in sounds and not there for (_, sound), there in zip(columns, seen_there, strict=True)]
    kept = [row for row, out in enumerate(zip(seen_there, copies, strict=True)) if not any(out)]
    if not kept:
        raise InputError(
            f"pre-training: all {len(set(table['patient_id']))} patients of {' and '.join(wanted)} are in "
            f"{' or '.join(held_out)} too, and those are never seen; choose a corpus.protocol that splits by patient"
        )
    pairs = zip(columns, seen_there, strict=True)
    left_out = {
        "cycles of patients who are in test or validation": sum(seen_there),
        "patients who are in test or validation": len({p for (p, _), there in pairs if there}),
        "cycles whose sound is in test or validation": sum(copies),
    }
    table, windows = _cut_whole_recordings(table.select(kept), settings.window_s, settings.hop_s)
    return Cohort(table, left_out, windows)


def _cut_whole_recordings(table: Any, window_s: float, hop_s: float) -> tuple[Any, int]:
    """Rows of whole recordings as rows of their windows, the other rows as they are; and the number of windows."""
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
    return datasets.Dataset(to_arrow(rows), info=table.info.copy()), windows


def pretraining_note(parts: Any, patients: Sequence[str], table: Any = None) -> dict[str, Any]:
    """What a pre-trained encoder carries with it: on which corpus and split, which patients and which sounds."""
    source = provenance(parts)
    keys = ("corpus", "corpus_fingerprint", "protocol", "fold", "seed", "split_fingerprint")
    sounds = {} if table is None else {"sounds": sounds_note([table])}
    return {key: source.get(key) for key in keys} | {"patients": list(patients)} | sounds


def refuse_seen_patients(weights: str | Path | None, parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Refuse an encoder that was pre-trained on patients, or on sounds, of a test part.

    Args:
        weights: The recipe's encoder.weights.
        parts: The corpus as it is split now.

    Returns:
        What the encoder says of its pre-training, the patients left out; None where it says nothing.

    Raises:
        InputError: A test part holds patients of the pre-training, or a sound of it under whatever name.
    """
    if weights is None or not (path := Path(weights) / PRETRAINING).is_file():
        return None
    note = read_record(path)
    source = provenance(parts)  # type: ignore[arg-type]
    corpus = find_corpus(str(source.get("corpus")))
    same = source.get("corpus_fingerprint") == note.get("corpus_fingerprint") or (
        corpus is not None and corpus.patient_ids_are_global and source.get("corpus") == note.get("corpus")
    )
    told = {key: value for key, value in note.items() if key not in ("patients", "sounds")}
    seen = set(map(str, note.get("patients") or [])) if same else set()
    for name in parts:
        both = sorted(seen & set(map(str, parts[name]["patient_id"]))) if name not in _NOT_TEST else []
        if both:
            more = f" and {len(both) - 3} more" if len(both) > 3 else ""
            raise InputError(
                f"{weights}: was pre-trained on patients of {name} ({', '.join(both[:3])}{more}; protocol "
                f"{note.get('protocol')}, split {str(note.get('split_fingerprint'))[:12]}); run laennec pretrain on "
                "the split of this recipe"
            )
    for name in parts if isinstance(note.get("sounds"), dict) else ():
        if name not in _NOT_TEST and (doubles := heard_before(note["sounds"], parts[name])):
            raise InputError(
                f"{weights}: was pre-trained on sounds of {name} ({named(doubles)}); run laennec pretrain without them"
            )
    return told
