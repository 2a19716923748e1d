"""SPRSound, paediatric recordings with events annotated in JSON.

Decisions: the part of the published split is the folder a recording lies in, and stays in the table as `part`.
Events keep their own names in `events`; the four-class view is crackle for fine and coarse crackles, wheeze for wheeze,
rhonchi and stridor, both for the combined event. A Poor Quality recording is a row of the record level with unknown
flags, not a normal one. Events may overlap.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from laennec.audio.cycles import AnnotationError, check_times
from laennec.corpora.base import Corpus, CorpusConfig, CycleTableBuilder, Event, RecordingEntry
from laennec.corpora.files import corpus_path, is_recording, named, unpack
from laennec.errors import InputError
from laennec.untrusted import MOST_BYTES, read_json

NAME = "sprsound"
DEVICE = "Yunting Model II"
EVENT_FLAGS: dict[str, tuple[int, int]] = {
    "Normal": (0, 0),
    "Fine Crackle": (1, 0),
    "Coarse Crackle": (1, 0),
    "Wheeze": (0, 1),
    "Rhonchi": (0, 1),
    "Stridor": (0, 1),
    "Wheeze+Crackle": (1, 1),
}
RECORD_FLAGS: dict[str, tuple[int | None, int | None]] = {
    "Normal": (0, 0),
    "DAS": (1, 0),
    "CAS": (0, 1),
    "CAS & DAS": (1, 1),
    "Poor Quality": (None, None),
}
# part -> (folder of the sounds, folder of the annotations), as this corpus has been laid out
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (("train/wav", "train/json"), ("train2022_wav", "train2022_json"), ("train_wav", "train_json")),
    "test_intra": (("test_intra/wav", "test_intra/json"), ("test2022_wav", "test2022_json/intra_test_json")),
    "test_inter": (("test_inter/wav", "test_inter/json"), ("test2022_wav", "test2022_json/inter_test_json")),
}
_NAME = re.compile(r"(?P<patient>[^_]+)_(?P<age>[0-9.]+)_(?P<sex>[01])_(?P<location>p[0-9]+)_[0-9]+")
LEVELS = ("event", "record")


class SprSound(CycleTableBuilder):
    """The table of SPRSound, one row an event, or with level="record" one row a recording.

    Example: `SprSound(data_dir="SPRSound", level="record").table()`. See `CycleTableBuilder` for the arguments.
    """

    NAME = NAME

    @classmethod
    def scan(cls, data_dir: str | Path, cache_dir: str | Path | None, config: CorpusConfig) -> Corpus:
        """Find the recordings of every part and their annotations."""
        if config.level not in LEVELS:
            raise InputError(f"level {config.level!r} is neither event nor record; choose one")
        origin = corpus_path(data_dir)
        root = _root(origin if origin.is_dir() else unpack(origin, cache_dir))
        problems: list[str] = []
        notes: list[str] = []
        entries: dict[str, RecordingEntry] = {}
        annotated_folders: dict[Path, set[str]] = {}
        for part, (sounds, annotations) in _parts(root).items():
            by_name = _sounds(sounds, problems)
            names = annotated_folders.setdefault(sounds, set())
            for path in sorted(annotations.glob("*.json")):
                names.add(path.stem)
                entry = _entry(path, by_name, part, config.level)
                if isinstance(entry, str):
                    problems.append(entry)
                elif entry.recording_id in entries:
                    problems.append(f"{path}: this recording is in {entries[path.stem].part} too; remove one of them")
                else:
                    entries[path.stem] = entry
        _check_pairs(entries, annotated_folders, config, problems, notes, root)
        return Corpus(
            NAME, root, tuple(entries.values()), _read_events, _check_events, (), tuple(problems), tuple(notes)
        )


def read_events(path: str | Path, duration_s: float | None = None) -> list[Event]:
    """Read the events of an SPRSound annotation.

    Args:
        path: The JSON file.
        duration_s: Length of the audio; with it, events that end beyond it are refused.

    Returns:
        The events in the order of the file, times in seconds; none for a Poor Quality recording.

    Raises:
        AnnotationError: The first problem, with the number of the event.
    """
    events = []
    for item in _events(path, duration_s):
        if isinstance(item, AnnotationError):
            raise item
        events.append(item)
    return events


def read_record_label(path: str | Path) -> str:
    """Read what an SPRSound annotation says of the recording as a whole.

    Raises:
        AnnotationError: Not JSON, or none of the names in RECORD_FLAGS.
    """
    label = _load(path).get("record_annotation")
    if not isinstance(label, str) or label not in RECORD_FLAGS:
        raise AnnotationError(path, "record_annotation", f"{label!r} is none of {', '.join(RECORD_FLAGS)}; correct it")
    return label


def _load(path: str | Path) -> dict[str, Any]:
    try:
        content = read_json(path, MOST_BYTES)
    except OSError as error:
        raise AnnotationError(path, None, f"cannot be read ({error.strerror}); check path and permissions") from error
    except json.JSONDecodeError as error:
        raise AnnotationError(path, error.lineno, f"not JSON ({error.msg}); download the file again") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(path, None, "not JSON in UTF-8; download the file again") from error
    if not isinstance(content, dict):
        raise AnnotationError(
            path, None, "not an object with record_annotation and event_annotation; download it again"
        )
    return content


def _events(path: str | Path, duration_s: float | None) -> Iterable[Event | AnnotationError]:
    """Every event, or what is wrong with it."""
    listed = _load(path).get("event_annotation")
    if not isinstance(listed, list):
        yield AnnotationError(path, "event_annotation", "is missing or no list; download the file again")
        return
    for number, item in enumerate(listed, start=1):
        try:
            yield _event(path, f"event {number}", item, duration_s)
        except AnnotationError as error:
            yield error


def _event(path: str | Path, place: str, item: Any, duration_s: float | None) -> Event:
    if not isinstance(item, dict) or not {"start", "end", "type"} <= item.keys():
        raise AnnotationError(path, place, "has not the keys start, end and type; correct it")
    kind = item["type"]
    if not isinstance(kind, str) or kind not in EVENT_FLAGS:
        raise AnnotationError(path, place, f"type {kind!r} is none of {', '.join(EVENT_FLAGS)}; correct it")
    try:
        start_s, end_s = (float(value) / 1000 for value in (item["start"], item["end"]))
    except (TypeError, ValueError, OverflowError) as error:
        text = f"{item['start']!r} and {item['end']!r}"[:80]
        raise AnnotationError(path, place, f"{text} must be times in milliseconds; correct them") from error
    check_times(path, place, start_s, end_s, duration_s)
    return Event(start_s, end_s, *EVENT_FLAGS[kind], names=(kind,))


def _read_events(entry: RecordingEntry, duration_s: float | None) -> list[Event]:
    if not entry.whole:
        return read_events(entry.annotation_path, duration_s)
    label = read_record_label(entry.annotation_path)
    assert duration_s is not None  # the scan refuses the record level without audio
    return [Event(0.0, duration_s, *RECORD_FLAGS[label], names=(label,))]


def _check_events(entry: RecordingEntry, duration_s: float | None) -> list[AnnotationError]:
    problems = []
    try:
        read_record_label(entry.annotation_path)
        problems += [item for item in _events(entry.annotation_path, duration_s) if isinstance(item, AnnotationError)]
    except AnnotationError as error:
        problems.append(error)
    return problems


def _parts(root: Path) -> dict[str, tuple[Path, Path]]:
    found = {}
    for part, layouts in _LAYOUTS.items():
        folders = [(root / sounds, root / notes) for sounds, notes in layouts if (root / notes).is_dir()]
        if len(folders) > 1:
            raise InputError(f"{root}: {part} is there twice ({folders[0][1]}, {folders[1][1]}); remove one")
        if folders:
            found[part] = folders[0]
    return found


def _root(root: Path) -> Path:
    """The folder itself, or the only one in it with a part of the corpus."""
    if _parts(root):
        return root
    found = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and _parts(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{root}: several folders hold the corpus ({named(p.name for p in found)}); name one of them")
    raise InputError(
        f"{root}: no SPRSound folders (train/wav and train/json, or train2022_wav ...) here; check --data-dir"
    )


def _sounds(folder: Path, problems: list[str]) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not is_recording(path):
            continue
        if path.stem in by_name:
            problem = f"{path}: a second recording of this name beside {by_name[path.stem].name}; remove one"
            if problem not in problems:  # intra and inter share a folder in the published layout
                problems.append(problem)
        by_name.setdefault(path.stem, path)
    return by_name


def _entry(path: Path, sounds: dict[str, Path], part: str, level: str) -> RecordingEntry | str:
    match = _NAME.fullmatch(path.stem)
    try:
        age = float(match["age"]) if match else None
    except ValueError:
        match = None
    if match is None:
        return f"{path}: not an SPRSound name (patient_age_sex_location_number); rename or remove it"
    return RecordingEntry(
        recording_id=path.stem,
        patient_id=match["patient"],
        audio_path=sounds.get(path.stem),
        annotation_path=path,
        chest_location=match["location"],
        device=DEVICE,
        age_years=age,
        sex={"0": "M", "1": "F"}[match["sex"]],
        whole=level == "record",
        part=part,
    )


def _check_pairs(
    entries: dict[str, RecordingEntry],
    annotated: dict[Path, set[str]],
    config: CorpusConfig,
    problems: list[str],
    notes: list[str],
    root: Path,
) -> None:
    """Refuse what does not pair, or with allow_missing leave it out; annotations alone will do for events."""
    if not any(entry.audio_path for entry in entries.values()):
        if config.level == "record":
            problems.append(f"{root}: no audio, and the record level needs each recording's length; add the recordings")
        notes.append(f"{root}: annotations without any audio; the table can be counted and split, but not heard")
        return
    silent = [name for name, entry in entries.items() if entry.audio_path is None]
    lone = [f"annotation without audio: {entries[name].annotation_path}" for name in silent]
    for folder, names in annotated.items():
        extra = (
            [path for path in sorted(folder.iterdir()) if is_recording(path) and path.stem not in names]
            if folder.is_dir()
            else []
        )
        lone += [f"audio without annotation: {path}" for path in extra]
    if config.allow_missing:
        for name in silent:
            del entries[name]
        notes += [f"{root}: left out, {named(lone)}"] if lone else []
    else:
        problems += [
            f"{text}; add the other file, or pass allow_missing=True (--allow-missing) to leave it out" for text in lone
        ]
