"""SPRSound, paediatric recordings with events annotated in JSON.

Decisions: the published split of a recording is the folder that it lies in, and stays in the table as `part`.
Events keep their own names in `events`; the four-class view is crackle for fine and coarse crackles, wheeze for wheeze,
rhonchi and stridor, both for the combined event. A Poor Quality recording is a row of the record level with unknown
flags, not a normal one. Events may overlap.
"""

import json
import re
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

from laennec.audio.cycles import AnnotationError, Span, check_times
from laennec.corpora.base import Corpus
from laennec.corpora.recordings import AnnotatedRecording, Event, is_recording, only_folder
from laennec.corpora.splits import COMMON_PROTOCOLS
from laennec.errors import InputError
from laennec.files import is_result
from laennec.untrusted import MOST_BYTES, read_json

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
# split -> (folder of the sounds, folder of the annotations), as this corpus has been laid out
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (("train/wav", "train/json"), ("train2022_wav", "train2022_json"), ("train_wav", "train_json")),
    "test_intra": (("test_intra/wav", "test_intra/json"), ("test2022_wav", "test2022_json/intra_test_json")),
    "test_inter": (("test_inter/wav", "test_inter/json"), ("test2022_wav", "test2022_json/inter_test_json")),
}
_name = attrgetter("name")  # sort key for files of one folder, ten times faster than paths
_NAME = re.compile(r"(?P<patient>[^_]+)_(?P<age>[0-9]+\.?[0-9]*|\.[0-9]+)_(?P<sex>[01])_(?P<location>p[0-9]+)_[0-9]+")


class SprSound(Corpus):
    """SPRSound, one row an event, or with level="record" one row a recording.

    Example: `SprSound("SPRSound", level="record").table()`. See `Corpus` for the arguments.
    """

    name = "sprsound"
    title = "SPRSound, SJTU Paediatric Respiratory Sound Database"
    homepage = "https://github.com/SJTU-YONGFU-RESEARCH-GRP/SPRSound"
    licence = "open to research by its authors, who ask to be cited (see the terms in its repository)"
    redistribution = "no licence that grants redistribution is known: ask the authors before you make it public"
    citation = """@article{zhang2022sprsound,
  title = {SPRSound: Open-Source SJTU Paediatric Respiratory Sound Database},
  author = {Zhang, Qing and Zhang, Jing and Yuan, Jiajun and others},
  journal = {IEEE Transactions on Biomedical Circuits and Systems},
  volume = {16},
  number = {5},
  pages = {867--881},
  year = {2022},
  doi = {10.1109/TBCAS.2022.3204910}
}"""
    origin = (
        "Children from 1 month to 18 years, recorded at the paediatric respiratory department of one hospital "
        "(Shanghai Children's Medical Center) with one model of electronic stethoscope (Yunting Model II, 8 kHz) at "
        "four places of the back and sides."
    )
    reference_standard = (
        "Experienced paediatric physicians listened to the recordings and marked the events; no other test confirms "
        "the labels. Fine and coarse crackles count as crackle; wheeze, rhonchi and stridor as wheeze."
    )
    limitations = (
        "Children of one hospital and one stethoscope: nothing is known of adults, other devices or other places.",
        "Nearly all patients of test_intra are in train or validation too: its scores do not estimate those of new "
        "patients.",
        "Events may overlap. Poor Quality recordings have no events.",
    )
    protocols = ("sprsound-official", *(p for p in COMMON_PROTOCOLS if not p.startswith(("published-", "device-"))))
    default_protocol = "sprsound-official"
    levels = ("event", "record")
    patient_ids_are_global = True

    def find_recordings(self, folder: Path) -> Iterable[AnnotatedRecording]:
        """Find the recordings of every published split and their annotations."""
        layout = "SPRSound folders (train/wav and train/json, or train2022_wav ...)"
        self.root = only_folder(folder, lambda path: bool(_split_folders(path)), layout)
        found: dict[str, AnnotatedRecording] = {}
        annotated: dict[Path, set[str]] = {}  # of each folder of sounds
        for split, (sounds, annotations) in _split_folders(self.root).items():
            by_name = self._sounds(sounds)
            names = annotated.setdefault(sounds, set())
            for path in sorted(annotations.glob("*.json"), key=_name):
                if is_result(path):
                    continue
                names.add(path.stem)
                recording = _recording(path, by_name, split, self.level)
                if isinstance(recording, str):
                    self.problems.append(recording)
                elif path.stem in found:
                    self.problems.append(f"{path}: this recording is in {found[path.stem].split} too; remove one")
                else:
                    found[path.stem] = recording
        self._pair(found, annotated)
        return found.values()

    def _sounds(self, folder: Path) -> dict[str, Path]:
        by_name: dict[str, Path] = {}
        for path in sorted(folder.iterdir(), key=_name) if folder.is_dir() else ():
            if not is_recording(path):
                continue
            if path.stem in by_name:
                problem = f"{path}: a second recording of this name beside {by_name[path.stem].name}; remove one"
                if problem not in self.problems:  # intra and inter share a folder in the published layout
                    self.problems.append(problem)
            by_name.setdefault(path.stem, path)
        return by_name

    def _pair(self, found: dict[str, AnnotatedRecording], annotated: dict[Path, set[str]]) -> None:
        """List (or leave out) files without their counterpart; level event works with annotations alone."""
        if not any(recording.audio_path for recording in found.values()):
            self.note_no_audio()
            return
        silent = [name for name, recording in found.items() if recording.audio_path is None]
        lone = [f"annotation without audio: {found[name].annotation_path}" for name in silent]
        for folder, names in annotated.items():
            sounds = sorted(folder.iterdir(), key=_name) if folder.is_dir() else []
            extra = [path for path in sounds if is_recording(path) and path.stem not in names]
            lone += [f"audio without annotation: {path}" for path in extra]
        self.leave_out(lone, "add the other file")
        if self.options.allow_missing:
            for name in silent:
                del found[name]

    def read_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[Event]:
        """Read the events of a recording, or its label as a whole."""
        assert recording.annotation_path is not None  # every recording here has one
        if not recording.whole:
            return read_events(recording.annotation_path, duration_s)
        label = read_record_label(recording.annotation_path)
        assert duration_s is not None  # level record needs audio
        return [Event(0.0, duration_s, *RECORD_FLAGS[label], names=(label,))]

    def check_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[AnnotationError]:
        """Every problem of a recording's annotation, at both levels."""
        path = recording.annotation_path
        assert path is not None  # every recording here has one
        problems: list[AnnotationError] = []
        try:
            read_record_label(path)
            read_events(path, duration_s, problems)
        except AnnotationError as error:
            return [error]
        return problems


def read_events(
    path: str | Path, duration_s: float | None = None, problems: list[AnnotationError] | None = None
) -> list[Event]:
    """Read the events of an SPRSound annotation, in the order of the file; none for a Poor Quality recording.

    Errors are appended to `problems`, or without it the first is raised.
    """
    listed, events, first = _load(path).get("event_annotation"), dict[Event, None](), dict[Span, Event]()
    if not isinstance(listed, list):
        raise AnnotationError(path, "event_annotation", "is missing or no list; download the file again")
    for number, item in enumerate(listed, start=1):
        try:
            event = _event(path, f"event {number}", item, duration_s)
            before = first.setdefault((event.start_s, event.end_s), event)
            if before != event and ("Normal",) in (before.names, event.names):
                reason = f"Normal and another type have the same times, {event.start_s:g} to {event.end_s:g} s"
                raise AnnotationError(path, f"event {number}", f"{reason}; correct one of the two events")
            events[event] = None  # a repeated event counts once
        except AnnotationError as error:
            if problems is None:
                raise
            problems.append(error)
    return list(events)


def read_record_label(path: str | Path) -> str:
    """Read the label of the whole recording from an SPRSound annotation."""
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
        raise AnnotationError(path, None, f"not JSON in UTF-8 ({error}); download the file again") from error
    if not isinstance(content, dict):
        raise AnnotationError(
            path, None, "not an object with record_annotation and event_annotation; download it again"
        )
    return content


def _event(path: str | Path, place: str, item: Any, duration_s: float | None) -> Event:
    if not isinstance(item, dict) or not {"start", "end", "type"} <= item.keys():
        raise AnnotationError(path, place, "lacks one of the keys start, end and type; correct it")
    kind = item["type"]
    if not isinstance(kind, str) or kind not in EVENT_FLAGS:
        raise AnnotationError(path, place, f"type {kind!r} is none of {', '.join(EVENT_FLAGS)}; correct it")
    try:
        if isinstance(item["start"], bool) or isinstance(item["end"], bool):
            raise TypeError
        if "_" in f"{item['start']}{item['end']}":  # Python's float accepts 1_000
            raise ValueError
        start_s, end_s = (float(value) / 1000 for value in (item["start"], item["end"]))
    except (TypeError, ValueError, OverflowError) as error:
        text = f"{item['start']!r} and {item['end']!r}"[:80]
        raise AnnotationError(path, place, f"{text} must be times in milliseconds; correct them") from error
    check_times(path, place, start_s, end_s, duration_s)
    return Event(start_s, end_s, *EVENT_FLAGS[kind], names=(kind,))


def _split_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    found = {}
    for split, layouts in _LAYOUTS.items():
        folders = [(root / sounds, root / notes) for sounds, notes in layouts if (root / notes).is_dir()]
        if len(folders) > 1:
            raise InputError(f"{root}: {split} is there twice ({folders[0][1]}, {folders[1][1]}); remove one")
        if folders:
            found[split] = folders[0]
    return found


def _recording(path: Path, sounds: dict[str, Path], split: str, level: str) -> AnnotatedRecording | str:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        return f"{path}: not an SPRSound name (patient_age_sex_location_number); rename or remove it"
    return AnnotatedRecording(
        recording_id=path.stem,
        patient_id=match["patient"],
        audio_path=sounds.get(path.stem),
        annotation_path=path,
        chest_location=match["location"],
        device=DEVICE,
        age_years=float(match["age"]),
        sex={"0": "M", "1": "F"}[match["sex"]],
        whole=level == "record",
        split=split,
    )
