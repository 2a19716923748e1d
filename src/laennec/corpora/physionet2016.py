"""PhysioNet/CinC Challenge 2016, heart sounds labelled normal or abnormal as whole recordings.

Decisions: a row is a recording, or a window of one. Crackle and wheeze are unknown; the label is the column
`heart_sound`. The public release has no patient ids, so the patient is null and splits keep recordings or databases
apart, not patients. The folder `validation` holds copies of training recordings: it is left out unless asked for, and
its recordings then have ids of their own, so that the leak check finds them. The label is that of REFERENCE.csv; a
table of signal quality adds the quality alone, and its labels are compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from laennec.audio.cycles import AnnotationError, sliding_windows
from laennec.audio.recording import read_header
from laennec.cache import hash_files
from laennec.corpora.base import Corpus, CorpusOptions
from laennec.corpora.recordings import AnnotatedRecording, Event, is_recording, named, only_folder, read_csv
from laennec.errors import InputError
from laennec.untrusted import read_bytes

CLASSES = ("normal", "abnormal")
DATABASES = ("a", "b", "c", "d", "e", "f")
VALIDATION = "validation"
_LABELS: dict[str, int | None] = {"-1": 0, "1": 1, "0": None}
_QUALITY_TABLES = ("REFERENCE-SQI.csv", "REFERENCE_withSQI.csv")

Reference = dict[str, tuple[int | None, int | None]]


@dataclass
class PhysioNet2016Options(CorpusOptions):
    """Options of `PhysioNet2016`."""

    window_s: float = 5.0  # length of a window in seconds; a shorter recording is one row
    # from the start of one window to that of the next, in seconds; None: windows side by side
    hop_s: float | None = None
    quality: str = "all"  # "all", or "good": leave out recordings whose signal quality is published as poor
    validation_folder: bool = False  # whether the folder `validation` is part of the table

    def __post_init__(self) -> None:
        """Check the values."""
        if self.quality not in ("all", "good"):
            raise InputError(f"quality {self.quality!r} is neither all nor good; choose one")
        for name, value in (("window_s", self.window_s), ("hop_s", self.hop_s)):
            if value is not None and not (isinstance(value, int | float) and 0 < value < float("inf")):
                raise InputError(f"{name} is {value!r}; give a length in seconds above 0")
        if self.hop_s is not None and self.hop_s > self.window_s:
            remedy = "the audio between two windows would be lost; give at most window_s"
            raise InputError(f"hop_s {self.hop_s:g} is longer than window_s {self.window_s:g}: {remedy}")


class PhysioNet2016(Corpus):
    """PhysioNet/CinC 2016, one row a recording, or with level="window" one row a window.

    Example: `PhysioNet2016("challenge-2016", level="window", window_s=3.0).table()`. Its own columns: heart_sound
    (normal, abnormal, or null where unsure), signal_quality (1 good, 0 poor, null unknown), database (a to f) and fold
    (its number). See `Corpus` for the arguments.

    Reference: Liu et al., Physiol. Meas. 37 2181 (2016).
    """

    name = "physionet2016"
    title = "PhysioNet/CinC Challenge 2016 heart sounds"
    homepage = "https://physionet.org/content/challenge-2016/"
    licence = "Open Data Commons Attribution License (ODC-By); cite the paper and PhysioNet"
    redistribution = "keep the licence and the attribution that the database's page on PhysioNet asks for"
    citation = """@article{liu2016open,
  title = {An open access database for the evaluation of heart sound algorithms},
  author = {Liu, Chengyu and Springer, David and Li, Qiao and others},
  journal = {Physiological Measurement},
  volume = {37},
  number = {12},
  pages = {2181--2213},
  year = {2016}
}"""
    origin = (
        "Heart sounds that several research groups recorded in clinics and at home, from healthy people and from "
        "patients with heart disease."
    )
    reference_standard = "The clinical diagnosis of the person makes a recording normal or abnormal."
    limitations = (
        "Patients are not published, so one person may be in several splits.",
        "Heart sounds, not lung sounds.",
    )
    protocols = ("database-out", "validation-folder", "random-80-20", "recording-80-20")
    default_protocol = "database-out"
    levels = ("recording", "window")
    label_columns = ("heart_sound",)
    class_column = "heart_sound"
    options_class = PhysioNet2016Options
    options: PhysioNet2016Options
    extra_columns: Mapping[str, Any] = {
        "heart_sound": datasets.ClassLabel(names=list(CLASSES)),
        "signal_quality": datasets.Value("int8"),
        "database": datasets.Value("string"),
        "fold": datasets.Value("int32"),
    }

    def find_recordings(self, folder: Path) -> list[AnnotatedRecording]:
        """Find the databases, their recordings and their references."""
        self.root = root = only_folder(folder, _has_database, "folders training-a to training-f")
        options = self.options
        self._hop_s = options.hop_s or options.window_s
        if self.level == "window":
            self.rule = f"window {options.window_s:g} {self._hop_s:g}"
        if absent := [letter for letter in DATABASES if not (root / f"training-{letter}").is_dir()]:
            self.notes.append(f"{root}: no folder training-{', training-'.join(absent)}")
        found: list[AnnotatedRecording] = []
        for letter in DATABASES:
            if letter not in absent:
                found += self._database(root / f"training-{letter}", letter)
        if (root / VALIDATION).is_dir():
            held_out = list(self._database(root / VALIDATION, None))
            self._note_copies(found, held_out)
            found += held_out if options.validation_folder else []
        return found

    def further_files(self) -> list[Path]:
        """There are none; an export of a part of the recordings is refused."""
        if self.options.quality == "good":
            raise InputError(f"{self.name}: an export holds all recordings; set quality when you load it, not here")
        return []

    def _database(self, folder: Path, letter: str | None) -> Iterator[AnnotatedRecording]:
        """The recordings of one folder; in the folder validation (letter None) names begin with the letter."""
        reference = folder / "REFERENCE.csv"
        if not reference.is_file():
            self.problems.append(f"{folder}: no REFERENCE.csv; download the folder again")
            return
        try:
            classes = read_reference(reference)
            quality_table = _quality_table(self.root, folder)
            quality = read_reference(quality_table) if quality_table else dict(classes)
        except AnnotationError as error:
            self.problems.append(str(error))
            return
        self.tables += [quality_table] if quality_table else []
        self._check_quality(folder, letter, classes, quality, quality_table)
        sounds = {path.stem: path for path in sorted(folder.iterdir()) if is_recording(path)}
        self._check_names(folder, classes, sounds)
        for name in sorted(set(classes) & set(sounds)):
            good = quality.get(name, (None, None))[1]
            if self.options.quality == "good" and good == 0:
                continue
            database = letter or name[:1]
            number = DATABASES.index(database) if database in DATABASES else None
            extra = {"heart_sound": classes[name][0], "signal_quality": good, "database": database, "fold": number}
            yield AnnotatedRecording(
                recording_id=name if letter else f"{VALIDATION}/{name}",
                patient_id=None,
                audio_path=sounds[name],
                annotation_path=reference,
                whole=self.level == "recording",
                split=f"training-{letter}" if letter else VALIDATION,
                extra=tuple(extra.items()),
            )

    def _check_quality(
        self, folder: Path, letter: str | None, classes: Reference, quality: Reference, table: Path | None
    ) -> None:
        """Refuse quality "good" where none is published, and note labels that differ from REFERENCE.csv."""
        wanted = self.options.quality == "good" and (letter is not None or self.options.validation_folder)
        if wanted and all(row[1] is None for row in quality.values()):
            names = " or ".join(_QUALITY_TABLES)
            self.problems.append(f"{folder}: no signal quality ({names}); add it, or set quality: all")
        other = [name for name in classes if name in quality and quality[name][0] != classes[name][0]]
        if other:
            self.notes.append(f"{table}: another label than in REFERENCE.csv, which is used, for {named(other)}")

    def _check_names(self, folder: Path, classes: Reference, sounds: dict[str, Path]) -> None:
        """Compare RECORDS, REFERENCE.csv and the recordings."""
        records = folder / "RECORDS"
        listed = set(read_bytes(records).decode("utf-8", "replace").split()) if records.is_file() else set(classes)
        lone = [
            f"{folder}: no recording {name} although {'RECORDS' if name in listed else 'REFERENCE.csv'} has it"
            for name in sorted((set(classes) | listed) - set(sounds))
        ]
        without_line = sorted(set(sounds) - set(classes))
        lone += [f"{folder}: {sounds[name].name} has no line in REFERENCE.csv" for name in without_line]
        self.leave_out(lone, "add it")

    def _note_copies(self, found: list[AnnotatedRecording], held_out: list[AnnotatedRecording]) -> None:
        """Note how many recordings of the folder validation are copies of training recordings."""
        paths = [recording.audio_path for recording in (*found, *held_out) if recording.audio_path is not None]
        hashes = hash_files(paths, self.cache_dir)
        known = {hashes[recording.audio_path] for recording in found if recording.audio_path is not None}
        copies = sum(r.audio_path is not None and hashes[r.audio_path] in known for r in held_out)
        place = "kept as validation/NAME" if self.options.validation_folder else "left out"
        self.notes.append(
            f"{self.root / VALIDATION}: {len(held_out)} recordings, {copies} of them copies of training recordings by "
            f"content; {place} (validation_folder)"
        )

    def read_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[Event]:
        """The recording as a whole, or its windows; the class is the name of the event."""
        if duration_s is None:
            assert recording.audio_path is not None  # every recording here has one
            rate, frames = read_header(recording.audio_path)
            duration_s = frames / rate
        number = dict(recording.extra)["heart_sound"]
        names = None if number is None else (CLASSES[number],)
        spans = [(0.0, duration_s)]
        if not recording.whole:
            spans = list(sliding_windows(duration_s, self.options.window_s, self._hop_s))
        return [Event(start_s, end_s, names=names) for start_s, end_s in spans]


def read_reference(path: str | Path) -> Reference:
    """Read a REFERENCE table: `a0001,1`, where 1 is abnormal and -1 normal, or `a0001,1,0` with the signal quality.

    Returns:
        Recording -> (class: 0 normal, 1 abnormal, None unsure; quality: 1 good, 0 poor, None where there is none).
    """
    found: Reference = {}
    for line, words in read_csv(path, header=False):
        if len(words) not in (2, 3) or words[1] not in _LABELS or words[2:] not in ([], ["0"], ["1"]):
            text = ",".join(words)[:80]
            raise AnnotationError(path, line, f"{text!r} is not name,1|-1 or name,1|-1,0|1; correct it")
        if words[0] in found:
            raise AnnotationError(path, line, f"recording {words[0]!r} is in the table twice; remove one line")
        found[words[0]] = (_LABELS[words[1]], int(words[2]) if words[2:] else None)
    return found


def _has_database(folder: Path) -> bool:
    return any((folder / f"training-{letter}").is_dir() for letter in DATABASES)


def _quality_table(root: Path, folder: Path) -> Path | None:
    """The table with signal quality, beside the recordings or among the updated annotations."""
    places = (folder, root / "annotations" / "updated" / folder.name)
    return next((p / name for p in places for name in _QUALITY_TABLES if (p / name).is_file()), None)
