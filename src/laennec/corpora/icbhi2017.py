"""The ICBHI 2017 Respiratory Sound Database, and any folder laid out like it.

Decisions: location, mode and device come from the file name, never from a patient table (one published table gives a
patient a single location, wrong for 698 of 920 recordings). The split is looked up by recording name, with the one
published name that has no audio translated. Tables are found by their published names only; two different ones on a
level are an error, because picking one silently changes a result. A folder that is incomplete is named as such before
it is scored.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from laennec.audio.cycles import AnnotationError, check_annotation, read_annotation
from laennec.corpora.base import Corpus, CorpusConfig, CycleTableBuilder, Event, RecordingEntry
from laennec.corpora.files import corpus_path, is_recording, named, unpack
from laennec.errors import InputError
from laennec.untrusted import read_text

NAME = "icbhi2017"
OFFICIAL_RECORDINGS = 920
SPLIT_ALIAS = {"226_1b1_Pl_sc_Meditron": "226_1b1_Pl_sc_LittC2SE"}
TABLE_NAMES = {
    "split": ("ICBHI_challenge_train_test.txt", "official_split.txt"),
    "diagnosis": ("ICBHI_Challenge_diagnosis.txt", "patient_diagnosis.csv"),
    "demographics": ("ICBHI_Challenge_demographic_information.txt", "demographic_info.txt"),
    "folds": ("patient_list_foldwise.txt",),
}
TableKind = Literal["split", "diagnosis", "demographics", "folds"]

_NAME = re.compile(
    r"(?P<patient>[0-9]+)_[0-9A-Za-z]+_(?P<location>Tc|Al|Ar|Pl|Pr|Ll|Lr)_(?P<mode>sc|mc)_(?P<device>[0-9A-Za-z]+)"
)
_DEVICES = ("AKGC417L", "LittC2SE", "Litt3200", "Meditron")
_UNKNOWN = ("", "NA", "NaN", "nan")


class Icbhi2017(CycleTableBuilder):
    """The cycle table of the ICBHI 2017 database, from its folder or its zip archive.

    Example: `Icbhi2017(data_dir="ICBHI_final_database").table()`. See `CycleTableBuilder` for the arguments.
    """

    NAME = NAME
    DEVICES: tuple[str, ...] | None = _DEVICES

    @classmethod
    def scan(cls, data_dir: str | Path, cache_dir: str | Path | None, config: CorpusConfig) -> Corpus:
        """Find the recordings, their annotations and their patients."""
        origin = corpus_path(data_dir)
        root = origin if origin.is_dir() else unpack(origin, cache_dir)
        folder = _recordings_folder(root)
        sounds, annotations, problems = _files(folder, cls.DEVICES)
        notes = _pair(folder, sounds, annotations, problems, config.allow_missing)
        places = [folder, root, origin]
        patients, tables, table_notes = _patients(places, config.tables_dir)
        entries = [
            _entry(name, sounds.get(name), annotations[name], patients)
            for name in sorted(annotations)
            if name in sounds or not sounds
        ]
        return Corpus(
            cls.NAME, folder, tuple(entries), _read_events, _check_events, tuple(tables), tuple(problems),
            (*notes, *table_notes),
        )  # fmt: skip


class Synthetic(Icbhi2017):
    """A synthetic corpus in the layout of ICBHI 2017; nothing in it is a patient's voice."""

    NAME = "synthetic"
    DEVICES = None


def find_table(kind: TableKind, data_dir: str | Path, tables_dir: str | Path | None = None) -> Path | None:
    """Find one of the database's tables by its published names.

    Looked for in `tables_dir`, the data folder, its parent, and the folders in that parent; the first level that has
    one counts.

    Args:
        kind: "split", "diagnosis", "demographics" or "folds".
        data_dir: The folder or archive with the recordings.
        tables_dir: A folder to look in first.

    Returns:
        The file, or None.

    Raises:
        InputError: A level holds two tables of different content, or `tables_dir` is no folder.
    """
    data = Path(data_dir).expanduser().absolute()
    for level in _levels(data, tables_dir):
        found = [path for folder in level for name in TABLE_NAMES[kind] if (path := folder / name).is_file()]
        contents = [_READERS[kind](path) for path in found]
        if any(content != contents[0] for content in contents):
            raise InputError(
                f"two {kind} tables disagree: {named(map(str, found))}; remove one, or name a --tables-dir"
            )
        if found:
            return found[0]
    return None


def read_official_split(path: str | Path) -> dict[str, str]:
    """Read the published split: recording name and train or test, one a line.

    Args:
        path: ICBHI_challenge_train_test.txt or official_split.txt.

    Returns:
        recording_id -> "train" or "test"; the name without audio stands for the recording it means.

    Raises:
        AnnotationError: A line is neither, or two lines disagree.
    """
    split: dict[str, str] = {}
    for line, (name, part) in _rows(path, 2):
        part = part.lower()
        if part not in ("train", "test"):
            raise AnnotationError(path, line, f"{part!r} is neither train nor test; correct it")
        recording = SPLIT_ALIAS.get(name, name)
        if split.setdefault(recording, part) != part:
            raise AnnotationError(path, line, f"{recording} is in train and in test; correct one of the lines")
    return split


def read_folds(path: str | Path) -> dict[str, int]:
    """Read the published patient folds: patient and fold number, one a line.

    Raises:
        AnnotationError: A line is not, or a patient has two folds.
    """
    folds: dict[str, int] = {}
    for line, (patient, fold) in _rows(path, 2):
        if not fold.isdecimal():
            raise AnnotationError(path, line, f"{fold!r} is no fold number; correct it")
        if folds.setdefault(patient, int(fold)) != int(fold):
            raise AnnotationError(path, line, f"patient {patient} has two folds; correct one of the lines")
    return folds


def read_diagnoses(path: str | Path) -> dict[str, str | None]:
    """Read patient and diagnosis, one a line; NA is None."""
    return {patient: None if word in _UNKNOWN else word for _, (patient, word) in _rows(path, 2)}


def read_demographics(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read patient, age, sex, adult BMI, child weight (kg) and child height (cm), one patient a line.

    Returns:
        patient_id -> age_years, sex ("F", "M") and bmi, a child's computed as weight / height^2; NA is None.

    Raises:
        AnnotationError: A value is no number, or sex is neither F nor M.
    """
    people = {}
    for line, (patient, age, sex, bmi, weight, height) in _rows(path, 6):
        try:
            years, adult, kg, cm = (None if v in _UNKNOWN else float(v) for v in (age, bmi, weight, height))
        except ValueError as error:
            raise AnnotationError(
                path, line, "age, BMI, weight and height must be numbers or NA; correct it"
            ) from error
        if sex not in ("F", "M", *_UNKNOWN):
            raise AnnotationError(path, line, f"sex {sex!r} is none of F, M, NA; correct it")
        child = kg / (cm / 100) ** 2 if kg and cm else None
        people[patient] = {"age_years": years, "sex": None if sex in _UNKNOWN else sex, "bmi": adult or child}
    return people


def missing_recordings(present: Collection[str], official: Mapping[str, str] | None) -> tuple[int, str]:
    """How many of the 920 recordings are not there, and which.

    Args:
        present: The names that are there.
        official: The published split, which knows all names, or None where it was not found.

    Returns:
        The number, and the first few names in brackets, or nothing where they are not known.
    """
    if official is None:
        return max(0, OFFICIAL_RECORDINGS - len(present)), ""
    missing = sorted(set(official) - set(present))
    return len(missing), f" ({named(missing)})" if missing else ""


_READERS: dict[str, Callable[[str | Path], Any]] = {
    "split": read_official_split,
    "diagnosis": read_diagnoses,
    "demographics": read_demographics,
    "folds": read_folds,
}


def _rows(path: str | Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise AnnotationError(path, None, f"cannot be read ({error}); check the file") from error
    empty = True
    for number, line in enumerate(text.splitlines(), start=1):
        fields = re.split(r"[,;\s]+", line.strip())
        if fields == [""]:
            continue
        if len(fields) != columns:
            raise AnnotationError(path, number, f"{len(fields)} columns, not {columns}; correct the line")
        empty = False
        yield number, fields
    if empty:
        raise AnnotationError(path, None, "the table is empty; download it again")


def _levels(data: Path, tables_dir: str | Path | None) -> Iterator[list[Path]]:
    if tables_dir is not None:
        given = Path(tables_dir).expanduser().absolute()  # all paths of a corpus are
        if not given.is_dir():
            raise InputError(f"{given}: no such folder; check --tables-dir")
        yield [given]
    yield [data]
    yield [data.parent]
    yield _subfolders(data.parent)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _recordings_folder(root: Path) -> Path:
    """The folder itself, or the only one in it that holds recordings or annotations of this layout."""

    def holds(folder: Path) -> bool:
        try:
            return any(_NAME.fullmatch(path.stem) for path in folder.iterdir())
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({error.strerror}); check permissions") from error

    if holds(root):
        return root
    found = [folder for folder in _subfolders(root) if not folder.name.startswith(".") and holds(folder)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{root}: several folders hold recordings ({named(p.name for p in found)}); name one of them")
    raise InputError(f"{root}: no ICBHI 2017 recordings (101_1b1_Al_sc_Meditron.wav and .txt) here; check --data-dir")


def _files(folder: Path, devices: tuple[str, ...] | None) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    sounds: dict[str, Path] = {}
    annotations: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        sound, text = is_recording(path), path.suffix.lower() == ".txt" and not path.name.startswith(".")
        match = _NAME.fullmatch(path.stem)
        known = match is not None and (devices is None or match["device"] in devices)
        if sound and not known:
            problems.append(
                f"{path}: not a name of this corpus (patient_index_location_mode_device); rename or remove it"
            )
        elif sound and path.stem in sounds:
            problems.append(f"{path}: a second recording of this name beside {sounds[path.stem].name}; remove one")
        elif sound:
            sounds[path.stem] = path
        elif text and known:
            annotations[path.stem] = path
    return sounds, annotations, problems


def _pair(
    folder: Path, sounds: dict[str, Path], annotations: dict[str, Path], problems: list[str], allow_missing: bool
) -> list[str]:
    """Add what does not pair to the problems, or with `allow_missing` to the notes that are returned."""
    if not sounds:
        return [f"{folder}: annotations without any audio; the table can be counted and split, but not heard"]
    lone = [f"annotation without audio: {path}" for name, path in sorted(annotations.items()) if name not in sounds]
    lone += [f"audio without annotation: {path}" for name, path in sorted(sounds.items()) if name not in annotations]
    if allow_missing:
        return [f"{folder}: left out, {named(lone)}"] if lone else []
    problems += [
        f"{text}; add the other file, or pass allow_missing=True (--allow-missing) to leave it out" for text in lone
    ]
    return []


def _patients(places: list[Path], tables_dir: str | None) -> tuple[dict[str, dict[str, Any]], list[Path], list[str]]:
    """What is known of each patient, the tables it comes from, and which tables were not found."""
    patients: dict[str, dict[str, Any]] = {}
    tables, notes = [], []
    for kind in ("demographics", "diagnosis"):
        path = find_in(places, kind, tables_dir)
        if path is None:
            notes.append(f"{places[0]}: no {kind} table ({TABLE_NAMES[kind][0]}) found; these columns are null")
            continue
        tables.append(path)
        for patient, facts in _READERS[kind](path).items():
            patients.setdefault(patient, {}).update(facts if kind == "demographics" else {"diagnosis": facts})
    return patients, tables, notes


def find_in(places: list[Path], kind: TableKind, tables_dir: str | Path | None) -> Path | None:
    """The first table that `find_table` finds from any of several places."""
    for place in dict.fromkeys(places):
        if (path := find_table(kind, place, tables_dir)) is not None:
            return path
    return None


def _entry(
    name: str, sound: Path | None, annotation: Path, patients: Mapping[str, Mapping[str, Any]]
) -> RecordingEntry:
    match = _NAME.fullmatch(name)
    assert match is not None  # only such names are collected
    return RecordingEntry(
        recording_id=name,
        patient_id=match["patient"],
        audio_path=sound,
        annotation_path=annotation,
        chest_location=match["location"],
        acquisition_mode=match["mode"],
        device=match["device"],
        **patients.get(match["patient"], {}),
    )


def _read_events(entry: RecordingEntry, duration_s: float | None) -> list[Event]:
    cycles = read_annotation(entry.annotation_path, duration_s)
    return [Event(cycle.start_s, cycle.end_s, cycle.crackle, cycle.wheeze) for cycle in cycles]


def _check_events(entry: RecordingEntry, duration_s: float | None) -> list[AnnotationError]:
    return check_annotation(entry.annotation_path, duration_s)
