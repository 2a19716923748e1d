"""Anybody's recordings, described by one CSV or by label files beside them.

Decisions: a CSV with start_s and end_s holds the cycles; one without them holds facts about recordings whose cycles
are in label files beside them (ICBHI text or Audacity labels, told apart by content). With `unlabelled` a cycle may
lack its label, and a recording that nobody annotated is one row without flags: for self-supervision. A recording
without a patient id counts as its own patient, and that is said, because a split by such patients may put one voice on
both sides. Every error names its CSV line.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from laennec.audio.cycles import AnnotationError, check_times, parse_label, read_labels
from laennec.corpora.base import Corpus, CorpusConfig, CycleTableBuilder, Event, RecordingEntry
from laennec.corpora.files import corpus_path, is_recording, named, unpack
from laennec.errors import InputError
from laennec.untrusted import read_text

NAME = "folder"
COLUMNS: dict[str, tuple[str, ...]] = {
    "recording": ("recording", "file", "filename", "recording_id"),
    "start_s": ("start_s", "start"),
    "end_s": ("end_s", "end"),
    "crackle": ("crackle", "crackles"),
    "wheeze": ("wheeze", "wheezes"),
    "label": ("label",),
    "patient_id": ("patient_id", "patient"),
    "device": ("device",),
    "chest_location": ("chest_location", "location"),
    "acquisition_mode": ("acquisition_mode",),
    "sex": ("sex",),
    "age_years": ("age_years", "age"),
    "bmi": ("bmi",),
    "diagnosis": ("diagnosis",),
}
_TEXT_FACTS = ("patient_id", "device", "chest_location", "acquisition_mode", "diagnosis")
_UNKNOWN = ("", "na", "n/a", "nan", "null", "none", "unknown")
_SEX = {"f": "F", "female": "F", "m": "M", "male": "M"}

Row = tuple[int, dict[str, str]]
EventReader = Callable[[RecordingEntry, float | None], list[Event]]


class Folder(CycleTableBuilder):
    """The cycle table of a folder of recordings with a CSV or label files.

    Example: `Folder(data_dir="my_recordings", annotations="cycles.csv").table()`. The CSV has the columns recording (or
    file), start_s, end_s, and crackle and wheeze (0 or 1) or label; patient_id, device, chest_location, sex, age_years,
    bmi and diagnosis are optional. See `CycleTableBuilder` for the arguments.
    """

    NAME = NAME

    @classmethod
    def scan(cls, data_dir: str | Path, cache_dir: str | Path | None, config: CorpusConfig) -> Corpus:
        """Find the recordings and what is written about them."""
        origin = corpus_path(data_dir)
        root = origin if origin.is_dir() else unpack(origin, cache_dir)
        sounds = _sounds(root)
        table = _csv_path(root, config.annotations)
        rows = _read_csv(table, config.unlabelled) if table else []
        problems: list[str] = []
        by_recording = _rows_by_recording(table, rows, root, sounds, problems) if table else {}
        if table and any("start_s" in row for _, row in rows):
            entries = _csv_entries(table, by_recording, sounds, problems)
            cycles = {name: found for name, found in by_recording.items() if name in {e.recording_id for e in entries}}
            read: EventReader = partial(_read_csv_events, table, cycles, config.unlabelled)
        else:
            entries = _label_file_entries(table, by_recording, sounds, problems)
            read = _read_label_file
        if config.unlabelled:
            annotated = {entry.recording_id for entry in entries}
            entries += _whole_entries(table, by_recording, sounds, annotated, problems)
            read = partial(_read_whole, read)
        left_out = sorted(set(sounds) - {entry.recording_id for entry in entries})
        notes = [f"{root}: {len(left_out)} recordings have no annotation and are left out: {named(left_out)}"]
        notes = notes if left_out else []
        if not entries and not problems:
            problems.append(
                f"{root}: nothing is annotated; add a CSV (recording,start_s,end_s,label) or label files, or set "
                "corpus.options.unlabelled: true to pre-train on it"
            )
        unnamed = [e for e in entries if e.patient_id == e.recording_id]
        if unnamed:
            who = f"{len(unnamed)} of {len(entries)} recordings have no patient_id and count as a patient each"
            notes.append(f"{root}: {who}; if a person was recorded twice, splits by patient are not what they say")
        return Corpus(
            NAME, root, tuple(entries), read, partial(_check, read), (table,) if table else (), tuple(problems),
            tuple(notes)
        )  # fmt: skip


def _sounds(root: Path) -> dict[str, Path]:
    """Recordings below the folder by their path without extension."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if not is_recording(path) or any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"{path}: a second recording of this name beside {found[name].name}; remove or rename one")
        found[name] = path
    if not found:
        raise InputError(f"{root}: no recordings (WAV, FLAC, Ogg, MP3, AIFF) in this folder; check --data-dir")
    return found


def _csv_path(root: Path, given: str | None) -> Path | None:
    if given is not None:
        for path in (Path(given).expanduser(), root / given):
            if path.is_file():
                return path.absolute()
        raise InputError(f"{given}: no such annotation table; give its path, or its name in {root}")
    tables = sorted(path for path in root.glob("*.csv") if not path.name.startswith("."))
    if len(tables) > 1:
        raise InputError(
            f"{root}: several CSV files ({named(p.name for p in tables)}); name the one with --annotations"
        )
    return tables[0] if tables else None


def _read_csv(path: Path, unlabelled: bool = False) -> list[Row]:
    """Numbered rows by the names of COLUMNS; the delimiter is the one the header uses most."""
    try:
        with io.StringIO(read_text(path), newline="") as file:
            header = file.readline()
            delimiter = max(",;\t", key=header.count)
            names = [_column(word) for word in next(csv.reader([header], delimiter=delimiter), [])]
            known = [name for name in names if name]
            if "recording" not in known or len(known) != len(set(known)):
                raise AnnotationError(
                    path, 1, "the header must name each column once and have recording or file; correct it"
                )
            reader = csv.reader(file, delimiter=delimiter)
            rows: list[Row] = []
            for values in reader:
                line = reader.line_num + 1
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(names):
                    raise AnnotationError(
                        path, line, f"{len(values)} values under {len(names)} columns; correct the line"
                    )
                rows.append((line, {name: v.strip() for name, v in zip(names, values, strict=True) if name}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(path, None, f"cannot be read as a CSV in UTF-8 ({error}); save it again") from error
    if not rows:
        raise AnnotationError(path, None, "the table has no rows; annotate the recordings")
    if ("start_s" in known) != ("end_s" in known):
        raise AnnotationError(path, 1, "start_s and end_s go together; add the missing column")
    labelled = "label" in known or {"crackle", "wheeze"} <= set(known)
    if "start_s" in known and not labelled and not unlabelled:
        raise AnnotationError(path, 1, "cycles need a column label, or crackle and wheeze; add them")
    return rows


def _column(word: str) -> str | None:
    clean = word.strip().lower().replace(" ", "_")
    return next((name for name, words in COLUMNS.items() if clean in words), None)


def _rows_by_recording(
    table: Path, rows: list[Row], root: Path, sounds: Mapping[str, Path], problems: list[str]
) -> dict[str, list[Row]]:
    """The rows of each recording; the recording may be written with or without folder and extension."""
    by_any_name: dict[str, set[str]] = {}
    for name, path in sounds.items():
        for alias in (name, path.relative_to(root).as_posix(), path.name, path.stem, str(path)):
            by_any_name.setdefault(alias, set()).add(name)
    found: dict[str, list[Row]] = {}
    for line, row in rows:
        written = row["recording"].removeprefix("./")
        # a full name wins over the bare names of files in other folders
        names = {written} if written in sounds else by_any_name.get(written.replace("\\", "/"), set())
        if len(names) == 1:
            found.setdefault(next(iter(names)), []).append((line, row))
        else:
            what = "is not in the folder" if not names else f"could be {named(sorted(names))}"
            problems.append(
                str(AnnotationError(table, line, f"recording {row['recording']!r} {what}; correct the name"))
            )
    return found


def _facts(table: Path, rows: list[Row]) -> dict[str, Any]:
    """What the rows of one recording say of it; two rows may not disagree."""
    facts: dict[str, Any] = {}
    for line, row in rows:
        for name in (*_TEXT_FACTS, "sex", "age_years", "bmi"):
            text = row.get(name, "")
            if text.lower() in _UNKNOWN:
                continue
            value: Any = text
            if name == "sex":
                value = _SEX.get(text.lower())
                if value is None:
                    raise AnnotationError(table, line, f"sex {text!r} is neither F nor M; correct it or leave it empty")
            elif name not in _TEXT_FACTS:
                value = _number(table, line, name, text)
            if facts.setdefault(name, value) != value:
                raise AnnotationError(
                    table, line, f"{name} {text!r} differs from an earlier line of this recording; correct it"
                )
    return facts


def _number(table: Path, line: int, name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text):
        raise AnnotationError(table, line, f"{name} {text!r} is not a number; correct it or leave it empty")
    return float(text)


def _entry(name: str, sound: Path, annotation: Path, facts: dict[str, Any]) -> RecordingEntry:
    return RecordingEntry(name, facts.pop("patient_id", name), sound, annotation, **facts)


def _csv_entries(
    table: Path, by_recording: Mapping[str, list[Row]], sounds: Mapping[str, Path], problems: list[str]
) -> list[RecordingEntry]:
    entries = []
    for name in sorted(by_recording):
        try:
            entries.append(_entry(name, sounds[name], table, _facts(table, by_recording[name])))
        except AnnotationError as error:
            problems.append(str(error))
    return entries


def _whole_entries(
    table: Path | None,
    by_recording: Mapping[str, list[Row]],
    sounds: Mapping[str, Path],
    annotated: set[str],
    problems: list[str],
) -> list[RecordingEntry]:
    """Recordings that nobody annotated, and what the CSV, if any, says of them."""
    entries = []
    for name in sorted(set(sounds) - annotated):
        try:
            facts = _facts(table, by_recording.get(name, [])) if table else {}
            entries.append(_entry(name, sounds[name], sounds[name], facts | {"whole": True}))
        except AnnotationError as error:
            problems.append(str(error))
    return entries


def _read_whole(read: EventReader, entry: RecordingEntry, duration_s: float | None) -> list[Event]:
    """The recording as one event without flags where nobody annotated it, else its events."""
    if not entry.whole:
        return read(entry, duration_s)
    assert duration_s is not None  # entries of this corpus have their sound
    return [Event(0.0, duration_s, None, None)]


def _read_csv_events(
    table: Path,
    rows: Mapping[str, list[Row]],
    unlabelled: bool,
    entry: RecordingEntry,
    duration_s: float | None,
) -> list[Event]:
    events = []
    for line, row in rows[entry.recording_id]:
        try:
            start_s, end_s = float(row["start_s"]), float(row["end_s"])
        except ValueError as error:
            text = f"{row['start_s']!r} and {row['end_s']!r} must be times in seconds; correct the line"
            raise AnnotationError(table, line, text) from error
        check_times(table, line, start_s, end_s, duration_s)
        bare = unlabelled and not any(row.get(name) for name in ("label", "crackle", "wheeze"))
        events.append(Event(start_s, end_s, *((None, None) if bare else _flags(table, line, row))))
    return sorted(events, key=lambda event: (event.start_s, event.end_s))


def _flags(table: Path, line: int, row: Mapping[str, str]) -> tuple[int, int]:
    """Crackle and wheeze of a row from its label, its flags, or both if they agree."""
    label, flags = row.get("label", ""), (row.get("crackle", ""), row.get("wheeze", ""))
    if not label and not all(flags):
        raise AnnotationError(table, line, "no label; give label, or crackle and wheeze, or delete the line")
    if any(flags) and not all(flag in ("0", "1") for flag in flags):
        raise AnnotationError(table, line, f"crackle {flags[0]!r} and wheeze {flags[1]!r} must be 0 or 1; correct them")
    from_flags = (int(flags[0]), int(flags[1])) if all(flags) else None
    from_label = parse_label(table, line, label) if label else None
    if from_flags and from_label and from_flags != from_label:
        raise AnnotationError(
            table, line, f"label {label!r} contradicts crackle {flags[0]}, wheeze {flags[1]}; correct one"
        )
    result = from_label or from_flags
    assert result is not None
    return result


def _label_file_entries(
    table: Path | None, by_recording: Mapping[str, list[Row]], sounds: Mapping[str, Path], problems: list[str]
) -> list[RecordingEntry]:
    """Recordings with a label file of their name beside them, and what the CSV, if any, says of them."""
    entries = []
    for name, sound in sounds.items():
        labels = sound.with_suffix(".txt")
        if not labels.is_file():
            continue
        try:
            facts = _facts(table, by_recording.get(name, [])) if table else {}
            entries.append(_entry(name, sound, labels, facts))
        except AnnotationError as error:
            problems.append(str(error))
    return entries


def _read_label_file(entry: RecordingEntry, duration_s: float | None) -> list[Event]:
    cycles = read_labels(entry.annotation_path, duration_s)
    return [Event(cycle.start_s, cycle.end_s, cycle.crackle, cycle.wheeze) for cycle in cycles]


def _check(read: EventReader, entry: RecordingEntry, duration_s: float | None) -> list[AnnotationError]:
    """The first problem of the recording's annotation, then its overlapping cycles."""
    try:
        events = read(entry, duration_s)
    except AnnotationError as error:
        return [error]
    problems, furthest = [], 0.0
    for event in events:
        if event.start_s < furthest:
            reason = (
                f"cycle at {event.start_s:g} s of {entry.recording_id} starts before {furthest:g} s, where another ends"
            )
            problems.append(AnnotationError(entry.annotation_path, None, f"{reason}; correct one of the two times"))
        furthest = max(furthest, event.end_s)
    return problems
