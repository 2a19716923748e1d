"""The ICBHI 2017 Respiratory Sound Database, and any folder laid out like it.

Decisions: location, mode and device come from the file name, never from a patient table (one published table gives a
patient a single location, wrong for 698 of 920 recordings). The split is looked up by recording name; the one published
name without audio is replaced. Tables are found by their published names only; two that differ on one level are an
error, because picking one silently would change results. An incomplete folder is reported before it is scored.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from laennec.audio.cycles import AnnotationError, Cycle, Span, check_annotation, numbered_lines, read_annotation
from laennec.corpora.base import Corpus
from laennec.corpora.recordings import AnnotatedRecording, Event, corpus_path, is_recording, named, only_folder
from laennec.corpora.splits import COMMON_PROTOCOLS
from laennec.errors import InputError

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
_UNKNOWN = ("", "NA", "NaN", "nan")


class Icbhi2017(Corpus):
    """The ICBHI 2017 Respiratory Sound Database, from its folder or its zip archive.

    Example: `Icbhi2017("ICBHI_final_database").table()`. See `Corpus` for the arguments.
    """

    name = "icbhi2017"
    title = "ICBHI 2017 Respiratory Sound Database"
    homepage = "https://bhichallenge.med.auth.gr/ICBHI_2017_Challenge"
    licence = "freely available for research; cite its paper"
    redistribution = "nothing in its terms grants redistribution: ask the authors before you make it public"
    citation = """@article{rocha2019open,
  title = {An open access database for the evaluation of respiratory sound classification algorithms},
  author = {Rocha, Bruno M. and Filos, Dimitris and Mendes, Lu{\\'i}s and others},
  journal = {Physiological Measurement},
  volume = {40},
  number = {3},
  pages = {035001},
  year = {2019},
  doi = {10.1088/1361-6579/ab03ea}
}"""
    origin = (
        "126 patients of all ages, healthy and with chronic or acute respiratory diseases, recorded by two research "
        "teams in Portugal and Greece with four devices at seven places of the chest."
    )
    reference_standard = (
        "Respiratory health professionals listened to the recordings and marked the respiratory cycles with crackles "
        "and wheezes; no other test confirms the labels."
    )
    limitations: ClassVar[tuple[str, ...]] = (
        "Device, chest location and disease are confounded, so part of a score can come from the device: LittC2SE "
        "occurs in train only, Litt3200 mostly in test, and recordings at 4 kHz have nothing above 2 kHz.",
        "The official split has patients 156 and 218 in both train and test.",
        'Recordings of mode "mc" of one patient were made at the same time at several chest locations.',
    )
    protocols = ("official", "official-strict", *(p for p in COMMON_PROTOCOLS if not p.startswith("published-")))
    default_protocol = "official"
    levels = ("event", "recording")
    patient_ids_are_global = True
    sources: ClassVar[dict[str, str]] = {
        "diagnosis": f"get {TABLE_NAMES['diagnosis'][0]} (or make a CSV of patient and diagnosis, "
        f"{TABLE_NAMES['diagnosis'][1]}) from {homepage}, and put it into or beside the folder of the recordings, or "
        "name its folder (corpus.tables_dir)"
    }
    # the stethoscopes that file names can have; None: any
    devices: ClassVar[tuple[str, ...] | None] = ("AKGC417L", "LittC2SE", "Litt3200", "Meditron")

    def find_recordings(self, folder: Path) -> Iterator[AnnotatedRecording]:
        """Find the recordings, their annotations and their patients."""
        self._folder = folder
        self.root = only_folder(
            folder, _holds_recordings, "ICBHI 2017 recordings (101_1b1_Al_sc_Meditron.wav and .txt)"
        )
        sounds, annotations = self._files()
        self._pair(sounds, annotations)
        patients = self._patients()
        for name, annotation in sorted(annotations.items()):
            match = _NAME.fullmatch(name)
            assert match is not None  # only such names are collected
            if name in sounds or not sounds:
                yield AnnotatedRecording(
                    recording_id=name,
                    patient_id=match["patient"],
                    audio_path=sounds.get(name),
                    annotation_path=annotation,
                    chest_location=match["location"],
                    acquisition_mode=match["mode"],
                    device=match["device"],
                    whole=self.level == "recording",
                    **patients.get(match["patient"], {}),
                )

    def _files(self) -> tuple[dict[str, Path], dict[str, Path]]:
        sounds: dict[str, Path] = {}
        annotations: dict[str, Path] = {}
        for path in sorted(self.root.iterdir()):
            match = _NAME.fullmatch(path.stem)
            known = match is not None and (self.devices is None or match["device"] in self.devices)
            if known and path.suffix.lower() == ".txt" and not path.name.startswith("."):
                annotations[path.stem] = path
            if not is_recording(path):
                continue
            if not known:
                names = "patient_index_location_mode_device"
                self.problems.append(f"{path}: not a name of this corpus ({names}); rename or remove it")
            elif path.stem in sounds:
                beside = sounds[path.stem].name
                self.problems.append(f"{path}: a second recording of this name beside {beside}; remove one")
            else:
                sounds[path.stem] = path
        return sounds, annotations

    def _pair(self, sounds: dict[str, Path], annotations: dict[str, Path]) -> None:
        """List files without their counterpart as problems, or with `allow_missing` as left out."""
        if not sounds:
            self.note_no_audio()
            return
        lone = [f"annotation without audio: {annotations[name]}" for name in sorted(set(annotations) - set(sounds))]
        lone += [f"audio without annotation: {sounds[name]}" for name in sorted(set(sounds) - set(annotations))]
        self.leave_out(lone, "add the other file")

    def _patients(self) -> dict[str, dict[str, Any]]:
        patients: dict[str, dict[str, Any]] = {}
        for kind in ("demographics", "diagnosis"):
            path = self.find_table(kind)
            if path is None:
                self.notes.append(
                    f"{self.root}: no {kind} table ({TABLE_NAMES[kind][0]}) found; these columns are null"
                )
                continue
            self.tables.append(path)
            for patient, facts in _READERS[kind](path).items():
                patients.setdefault(patient, {}).update(facts if kind == "demographics" else {"diagnosis": facts})
        return patients

    def read_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[Event]:
        """Read the cycles of a recording, or of a whole recording the union of their labels."""
        assert recording.annotation_path is not None  # every recording here has one
        found: dict[Span, Cycle] = {}  # a repeated line counts once
        for cycle in read_annotation(recording.annotation_path, duration_s):
            if found.setdefault((cycle.start_s, cycle.end_s), cycle) != cycle:
                times = f"{cycle.start_s:g} to {cycle.end_s:g} s"
                reason = f"the cycle at {times} has two labels; correct one of the lines or delete it"
                raise AnnotationError(recording.annotation_path, None, reason)
        cycles = list(found.values())
        if recording.whole:
            flags = (max(cycle.crackle for cycle in cycles), max(cycle.wheeze for cycle in cycles))
            return [Event(0.0, duration_s or 0.0, *flags)]
        return [Event(cycle.start_s, cycle.end_s, cycle.crackle, cycle.wheeze) for cycle in cycles]

    def check_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[AnnotationError]:
        """Every problem of a recording's annotation, overlapping cycles included."""
        assert recording.annotation_path is not None  # every recording here has one
        return check_annotation(recording.annotation_path, duration_s)

    def find_table(self, kind: TableKind) -> Path | None:
        """Find one of the database's tables by its published names.

        Looked for in `tables_dir`, the data folder, its parent, and the folders in that parent; the first level that
        has one is used.
        """
        for level in self._levels():
            found = [path for folder in level for name in TABLE_NAMES[kind] if (path := folder / name).is_file()]
            contents = [_READERS[kind](path) for path in found]
            if any(content != contents[0] for content in contents):
                raise InputError(
                    f"two {kind} tables disagree: {named(map(str, found))}; remove one, or name the folder of one "
                    "(tables_dir, or --tables-dir)"
                )
            if found:
                return found[0]
        return None

    def _levels(self) -> Iterator[list[Path]]:
        """Folders with tables, nearest first; those of one level must agree."""
        if self.options.tables_dir is not None:
            given = Path(self.options.tables_dir).expanduser().absolute()  # all paths of a corpus are absolute
            if not given.is_dir():
                raise InputError(f"{given}: no such folder; check tables_dir (--tables-dir)")
            yield [given]
        for place in dict.fromkeys((self.root, self._folder, corpus_path(self.data_dir))):
            yield [place]
            yield [place.parent]
            with contextlib.suppress(OSError):
                yield sorted(path for path in place.parent.iterdir() if path.is_dir())

    def further_files(self) -> list[Path]:
        """The published split and folds."""
        return [path for kind in ("split", "folds") if (path := self.find_table(kind)) is not None]

    def published_split(self, protocol: str) -> dict[str, Any]:
        """The published split or folds, where the protocol needs them."""
        published: dict[str, Any] = {}
        if protocol in ("official", "official-strict"):
            path = self.find_table("split")
            if path is None:
                names = " or ".join(TABLE_NAMES["split"])
                remedy = "put it beside the folder or name its folder (tables_dir, or --tables-dir)"
                raise InputError(f"{self.root}: protocol {protocol} needs {names}; {remedy}")
            published["official_split"] = read_official_split(path)
        if protocol == "patient-5fold":
            if (path := self.find_table("folds")) is not None:
                published["folds"] = read_folds(path)
            elif self.name == "icbhi2017":
                warnings.warn(
                    f"{self.root}: no {TABLE_NAMES['folds'][0]} beside it: folds are drawn by the split seed and are "
                    "not the published ones",
                    stacklevel=2,
                )
        return published

    def missing_recordings(self) -> tuple[int, int, str]:
        """How many of the 920 recordings are missing, and the first few names if the published split is there."""
        path = self.find_table("split")
        if path is None:
            return max(0, OFFICIAL_RECORDINGS - len(self.recordings)), OFFICIAL_RECORDINGS, ""
        missing = sorted(set(read_official_split(path)) - {recording.recording_id for recording in self.recordings})
        return len(missing), OFFICIAL_RECORDINGS, f" ({named(missing)})" if missing else ""

    def check_complete(self) -> None:
        """List which of the 920 recordings are missing, and recordings that are not among them."""
        path = self.find_table("split")
        if path is None:
            self.notes.append(f"{self.root}: no published split table found, so missing recordings cannot be named")
            return
        split = read_official_split(path)
        present = {recording.recording_id for recording in self.recordings}
        missing, extra = sorted(set(split) - present), sorted(present - set(split))
        if missing:
            line = f"{self.root}: {len(missing)} of {len(split)} recordings missing: {named(missing, 20)}"
            (self.notes if self.options.allow_missing else self.problems).append(line)
        if extra:
            self.problems.append(f"{self.root}: not in the published split: {named(extra, 20)}; remove or rename them")


def read_official_split(path: str | Path) -> dict[str, str]:
    """Read the published split, recording name and train or test on a line: recording_id -> "train" or "test".

    The published name without audio is replaced by that of its recording (`SPLIT_ALIAS`).
    """
    split: dict[str, str] = {}
    for line, (name, word) in _rows(path, 2):
        side = word.lower()
        if side not in ("train", "test"):
            raise AnnotationError(path, line, f"{side!r} is neither train nor test; correct it")
        recording = SPLIT_ALIAS.get(name, name)
        if split.setdefault(recording, side) != side:
            raise AnnotationError(path, line, f"{recording} is in train and in test; correct one of the lines")
    return split


def read_folds(path: str | Path) -> dict[str, int]:
    """Read the published patient folds: patient and fold number, one a line."""
    folds: dict[str, int] = {}
    for line, (patient, fold) in _rows(path, 2):
        if not fold.isdecimal():
            raise AnnotationError(path, line, f"{fold!r} is no fold number; correct it")
        if folds.setdefault(patient, int(fold)) != int(fold):
            raise AnnotationError(path, line, f"patient {patient} has two folds; correct one of the lines")
    return folds


def read_diagnoses(path: str | Path) -> dict[str, str | None]:
    """Read patient and diagnosis, one a line; NA is None."""
    people: dict[str, str | None] = {}
    for line, (patient, word) in _rows(path, 2):
        _store(people, path, line, patient, None if word in _UNKNOWN else word)
    return people


def read_demographics(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read patient, age, sex, adult BMI, child weight (kg) and child height (cm), one patient a line.

    Returns:
        patient_id -> age_years, sex ("F", "M") and bmi, a child's computed as weight / height^2; NA is None.
    """
    people: dict[str, dict[str, Any]] = {}
    for line, (patient, age, sex, bmi, weight, height) in _rows(path, 6):
        numbers = (age, bmi, weight, height)
        if not all(word in _UNKNOWN or re.fullmatch(r"[0-9]{1,4}(\.[0-9]{0,9})?", word) for word in numbers):
            raise AnnotationError(path, line, "age, BMI, weight and height must be numbers or NA; correct it")
        years, adult, kg, cm = (None if word in _UNKNOWN else float(word) for word in numbers)
        if sex not in ("F", "M", *_UNKNOWN):
            raise AnnotationError(path, line, f"sex {sex!r} is none of F, M, NA; correct it")
        child = kg / (cm / 100) ** 2 if kg and cm else None
        facts = {"age_years": years, "sex": None if sex in _UNKNOWN else sex, "bmi": adult or child}
        _store(people, path, line, patient, facts)
    return people


def _store(people: dict[str, Any], path: str | Path, line: int, patient: str, facts: Any) -> None:
    """Store the facts of a patient; refuse a line that contradicts an earlier one."""
    if people.setdefault(patient, facts) != facts:
        raise AnnotationError(path, line, f"patient {patient} differs from an earlier line; correct one of them")


_READERS: dict[str, Callable[[str | Path], Any]] = {
    "split": read_official_split,
    "diagnosis": read_diagnoses,
    "demographics": read_demographics,
    "folds": read_folds,
}


def _rows(path: str | Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    empty = True
    for number, line in numbered_lines(path):
        fields = re.split(r"[,;\s]+", line.strip())
        if len(fields) != columns or '"' in line:
            found = "it has quotes" if len(fields) == columns else f"{len(fields)} values instead of {columns}"
            raise AnnotationError(path, number, f"{found}; use decimal points and no quotes")
        empty = False
        yield number, fields
    if empty:
        raise AnnotationError(path, None, "the table is empty; download it again")


def _holds_recordings(folder: Path) -> bool:
    try:
        return any(_NAME.fullmatch(path.stem) for path in folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); check permissions") from error
