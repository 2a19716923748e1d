"""PhysioNet/CinC Challenge 2016, heart sounds called normal or abnormal as whole recordings.

Decisions: a row is a recording, or a window of one. Crackle and wheeze are unknown, and the answer is the column
`heart_sound`. The public release does not say who was recorded how often, so the patient is null and a split keeps
recordings or databases apart, never people. The folder `validation` holds copies of training recordings: it is left out
unless asked for, and then under names of its own, so that the leak check can find them. REFERENCE.csv decides the
label; a table with signal quality adds the quality alone, and is held against it.
"""

import csv
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets

from laennec.audio.cycles import AnnotationError, sliding_windows
from laennec.audio.recording import read_header
from laennec.corpora.base import Corpus, CorpusConfig, CycleTableBuilder, Event, RecordingEntry
from laennec.corpora.files import corpus_path, hash_files, is_recording, named, unpack
from laennec.errors import InputError
from laennec.untrusted import read_bytes, read_text

NAME = "physionet2016"
LEVELS = ("recording", "window")
CLASSES = ("normal", "abnormal")
DATABASES = ("a", "b", "c", "d", "e", "f")
VALIDATION = "validation"
_LABELS: dict[str, int | None] = {"-1": 0, "1": 1, "0": None}
_QUALITY_TABLES = ("REFERENCE-SQI.csv", "REFERENCE_withSQI.csv")
_OWN_COLUMNS = {
    "heart_sound": datasets.ClassLabel(names=list(CLASSES)),
    "signal_quality": datasets.Value("int8"),
    "database": datasets.Value("string"),
    "fold": datasets.Value("int32"),
}


@dataclass
class PhysioNet2016Config(CorpusConfig):
    """Settings of `PhysioNet2016`.

    Attributes:
        level: "recording", or "window": rows of `window_s` seconds.
        window_s: Length of a window in seconds; a shorter recording is one row.
        hop_s: From the start of one window to that of the next, in seconds; None: windows side by side.
        quality: "all", or "good": leave out recordings whose signal quality is published as poor.
        validation_folder: Whether the folder `validation` is part of the table.
    """

    level: str = "recording"
    window_s: float = 5.0
    hop_s: float | None = None
    quality: str = "all"
    validation_folder: bool = False


class PhysioNet2016(CycleTableBuilder):
    """The table of PhysioNet/CinC 2016, one row a recording, or with level="window" one row a window.

    Example: `PhysioNet2016(data_dir="challenge-2016", level="window", window_s=3.0).table()`. Columns of its own:
    heart_sound (normal, abnormal, or null where unsure), signal_quality (1 good, 0 poor, null unknown), database (a to
    f) and fold (its number). See `CycleTableBuilder` for the arguments.

    Reference: Liu et al., Physiol. Meas. 37 2181 (2016).
    """

    NAME = NAME
    BUILDER_CONFIG_CLASS = PhysioNet2016Config

    @classmethod
    def scan(cls, data_dir: str | Path, cache_dir: str | Path | None, config: CorpusConfig) -> Corpus:
        """Find the databases, their recordings and their references."""
        assert isinstance(config, PhysioNet2016Config)
        _check_settings(config)
        origin = corpus_path(data_dir)
        root = _root(origin if origin.is_dir() else unpack(origin, cache_dir))
        folders = {
            letter: root / f"training-{letter}" for letter in DATABASES if (root / f"training-{letter}").is_dir()
        }
        problems: list[str] = []
        notes: list[str] = []
        tables: list[Path] = []
        entries: list[RecordingEntry] = []
        if absent := [letter for letter in DATABASES if letter not in folders]:
            notes.append(f"{root}: no folder training-{', training-'.join(absent)}")
        for letter, folder in folders.items():
            entries += _database(root, folder, letter, config, tables, problems, notes)
        if (root / VALIDATION).is_dir():
            held_out = _database(root, root / VALIDATION, None, config, tables, problems, notes)
            notes.append(_copies(root, entries, held_out, config, cache_dir))
            entries += held_out if config.validation_folder else []
        window_s, hop_s = config.window_s, config.hop_s or config.window_s
        read = partial(_read_events, {entry.recording_id: _class_of(entry) for entry in entries}, window_s, hop_s)
        return Corpus(
            NAME, root, tuple(entries), read, _no_check, tuple(tables), tuple(problems),
            tuple(notes), datasets.Features(_OWN_COLUMNS), "heart_sound",
            "" if config.level == "recording" else f"window {window_s:g} {hop_s:g}",
        )  # fmt: skip


def read_reference(path: str | Path) -> dict[str, tuple[int | None, int | None]]:
    """Read a REFERENCE table: `a0001,1`, where 1 is abnormal and -1 normal, or `a0001,1,0` with the signal quality.

    Returns:
        Recording -> (class: 0 normal, 1 abnormal, None unsure; quality: 1 good, 0 poor, None where there is none).

    Raises:
        AnnotationError: The first line that is none of these.
    """
    found: dict[str, tuple[int | None, int | None]] = {}
    try:
        with io.StringIO(read_text(path), newline="") as file:
            for line, values in enumerate(csv.reader(file), start=1):
                words = [value.strip() for value in values]
                if not any(words):
                    continue
                if len(words) not in (2, 3) or words[1] not in _LABELS or words[2:] not in ([], ["0"], ["1"]):
                    text = ",".join(words)[:80]
                    raise AnnotationError(path, line, f"{text!r} is not name,1|-1 or name,1|-1,0|1; correct it")
                if words[0] in found:
                    raise AnnotationError(path, line, f"recording {words[0]!r} is in the table twice; remove one line")
                found[words[0]] = (_LABELS[words[1]], int(words[2]) if words[2:] else None)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(path, None, f"cannot be read as a table ({error}); download it again") from error
    return found


def _check_settings(config: PhysioNet2016Config) -> None:
    if config.level not in LEVELS:
        raise InputError(f"level {config.level!r} is neither recording nor window; choose one")
    if config.quality not in ("all", "good"):
        raise InputError(f"quality {config.quality!r} is neither all nor good; choose one")
    for name, value in (("window_s", config.window_s), ("hop_s", config.hop_s)):
        if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise InputError(f"{name} is {value!r}; give a length in seconds above 0")
    if config.hop_s is not None and config.hop_s > config.window_s:
        remedy = "sound between two windows would go unheard; give at most window_s"
        raise InputError(f"hop_s {config.hop_s:g} is longer than window_s {config.window_s:g}: {remedy}")


def _root(root: Path) -> Path:
    """The folder with the databases: this one, or the only one in it that has some."""
    found = [folder for folder in (root, *sorted(root.iterdir())) if folder.is_dir() and _has_database(folder)]
    if found[:1] == [root]:
        return root
    if len(found) > 1:
        raise InputError(f"{root}: several folders hold the corpus ({named(p.name for p in found)}); name one of them")
    if not found:
        raise InputError(f"{root}: no folders training-a to training-f here; check --data-dir")
    return found[0]


def _has_database(folder: Path) -> bool:
    return any((folder / f"training-{letter}").is_dir() for letter in DATABASES)


def _database(
    root: Path,
    folder: Path,
    letter: str | None,
    config: PhysioNet2016Config,
    tables: list[Path],
    problems: list[str],
    notes: list[str],
) -> list[RecordingEntry]:
    """The recordings of one folder; in the folder validation (letter None) the name says the database."""
    reference = folder / "REFERENCE.csv"
    if not reference.is_file():
        problems.append(f"{folder}: no REFERENCE.csv; download the folder again")
        return []
    try:
        classes = read_reference(reference)
        quality_table = _quality_table(root, folder)
        quality = read_reference(quality_table) if quality_table else dict(classes)
    except AnnotationError as error:
        problems.append(str(error))
        return []
    tables += [quality_table] if quality_table else []
    wanted = config.quality == "good" and (letter is not None or config.validation_folder)
    if wanted and all(row[1] is None for row in quality.values()):
        problems.append(f"{folder}: no signal quality ({' or '.join(_QUALITY_TABLES)}); add it, or ask for quality all")
    sounds = {path.stem: path for path in sorted(folder.iterdir()) if is_recording(path)}
    _check_names(folder, classes, sounds, config, problems, notes)
    other = [name for name in classes if name in quality and quality[name][0] != classes[name][0]]
    if other:
        notes.append(f"{quality_table}: another label than REFERENCE.csv, which counts, for {named(other)}")
    entries = []
    for name in sorted(set(classes) & set(sounds)):
        good = quality.get(name, (None, None))[1]
        if config.quality == "good" and good == 0:
            continue
        database = letter or name[:1]
        number = DATABASES.index(database) if database in DATABASES else None
        own = (("heart_sound", classes[name][0]), ("signal_quality", good), ("database", database), ("fold", number))
        entries.append(
            RecordingEntry(
                recording_id=name if letter else f"{VALIDATION}/{name}",
                patient_id=None,
                audio_path=sounds[name],
                annotation_path=reference,
                whole=config.level == "recording",
                part=f"training-{letter}" if letter else VALIDATION,
                own=own,
            )
        )
    return entries


def _quality_table(root: Path, folder: Path) -> Path | None:
    """The table with signal quality, beside the recordings or among the updated annotations."""
    places = (folder, root / "annotations" / "updated" / folder.name)
    return next((p / name for p in places for name in _QUALITY_TABLES if (p / name).is_file()), None)


def _check_names(
    folder: Path,
    classes: dict[str, tuple[int | None, int | None]],
    sounds: dict[str, Path],
    config: PhysioNet2016Config,
    problems: list[str],
    notes: list[str],
) -> None:
    """Hold RECORDS, REFERENCE.csv and the recordings against one another."""
    records = folder / "RECORDS"
    listed = set(read_bytes(records).decode("utf-8", "replace").split()) if records.is_file() else set(classes)
    lone = [f"no recording {name} although {'RECORDS' if name in listed else 'REFERENCE.csv'} has it"
            for name in sorted((set(classes) | listed) - set(sounds))]  # fmt: skip
    lone += [f"{sounds[name].name} has no line in REFERENCE.csv" for name in sorted(set(sounds) - set(classes))]
    if not lone:
        return
    if config.allow_missing:
        notes.append(f"{folder}: left out: {named(lone)}")
    else:
        remedy = "add it, or pass allow_missing=True (--allow-missing) to leave it out"
        problems += [f"{folder}: {text}; {remedy}" for text in lone]


def _copies(
    root: Path,
    entries: list[RecordingEntry],
    held_out: list[RecordingEntry],
    config: PhysioNet2016Config,
    cache_dir: str | Path | None,
) -> str:
    """What the folder validation is, by content."""
    paths = [entry.audio_path for entry in (*entries, *held_out) if entry.audio_path is not None]
    hashes = hash_files(paths, cache_dir)
    known = {hashes[entry.audio_path] for entry in entries if entry.audio_path is not None}
    copies = sum(entry.audio_path is not None and hashes[entry.audio_path] in known for entry in held_out)
    place = "kept as validation/NAME" if config.validation_folder else "left out"
    return (
        f"{root / VALIDATION}: {len(held_out)} recordings, {copies} of them copies of training recordings by content; "
        f"{place} (validation_folder)"
    )


def _class_of(entry: RecordingEntry) -> str | None:
    number = dict(entry.own)["heart_sound"]
    return None if number is None else CLASSES[number]


def _read_events(
    classes: dict[str, str | None], window_s: float, hop_s: float, entry: RecordingEntry, duration_s: float | None
) -> list[Event]:
    """The recording as a whole, or its windows; the class stands for an event's name."""
    if duration_s is None:
        assert entry.audio_path is not None  # every entry has its sound
        rate, frames = read_header(entry.audio_path)
        duration_s = frames / rate
    name = classes[entry.recording_id]
    spans = [(0.0, duration_s)] if entry.whole else sliding_windows(duration_s, window_s, hop_s)
    return [Event(start_s, end_s, None, None, None if name is None else (name,)) for start_s, end_s in spans]


def _no_check(entry: RecordingEntry, duration_s: float | None) -> tuple[InputError, ...]:
    """There are no times that could be wrong."""
    return ()
