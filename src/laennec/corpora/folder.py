"""A user's own recordings, described by one CSV or by label files beside them.

Decisions: a CSV with start_s and end_s holds the cycles; one without them holds facts about recordings whose cycles are
in label files beside them (ICBHI text or Audacity labels, told apart by content). With `unlabelled` a cycle may lack
its label, and a recording without annotation is one row without flags, for self-supervision. A recording without a
patient id counts as its own patient, and a note says so, because a split by such patients may have one person on both
sides. Every error names its CSV line.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.audio.cycles import AnnotationError, check_times, parse_label, read_labels
from laennec.corpora.base import Corpus, CorpusOptions
from laennec.corpora.recordings import AnnotatedRecording, Event, is_recording, named, read_csv
from laennec.corpora.splits import COMMON_PROTOCOLS
from laennec.errors import InputError

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


@dataclass
class FolderOptions(CorpusOptions):
    """Options of `Folder`.

    Attributes:
        annotations: The CSV with the cycles; None: the only one in the folder.
        unlabelled: Whether cycles may lack a label, and a recording without annotation is one row.
    """

    annotations: str | Path | None = None
    unlabelled: bool = False


class Folder(Corpus):
    """A folder of recordings with a CSV or label files.

    Example: `Folder("my_recordings", annotations="cycles.csv").table()`. The CSV has the columns recording (or file),
    start_s, end_s, and crackle and wheeze (0 or 1) or label; patient_id, device, chest_location, sex, age_years, bmi
    and diagnosis are optional. See `Corpus` for the arguments.
    """

    name = "folder"
    title = "Auscultation recordings"
    licence = "none is stated: these are recordings of whoever exported them"
    redistribution = "make it public only if every person recorded agreed to that and nothing in it names them"
    protocols = tuple(name for name in COMMON_PROTOCOLS if not name.startswith("published-"))
    options_class = FolderOptions
    options: FolderOptions

    def find_recordings(self, folder: Path) -> list[AnnotatedRecording]:
        """Find the recordings and what is written about them."""
        sounds = _sounds(folder)
        self._table = table = _csv_path(folder, self.options.annotations)
        rows = _read_csv(table, self.options.unlabelled) if table else []
        self.tables += [table] if table else []
        self._rows = _rows_by_recording(table, rows, folder, sounds, self.problems) if table else {}
        self._from_csv = any("start_s" in row for _, row in rows)
        if self._from_csv:
            annotations = dict.fromkeys(sorted(self._rows), table)
        else:
            beside = {name: sound.with_suffix(".txt") for name, sound in sounds.items()}
            annotations = {name: path for name, path in beside.items() if path.is_file()}
        found = self._recordings(annotations, sounds)
        if self.options.unlabelled:
            known = {recording.recording_id for recording in found}
            found += self._recordings({name: sounds[name] for name in sorted(set(sounds) - known)}, sounds, whole=True)
        self._note(found, sounds)
        return found

    def exported_name(self, path: Path) -> str:
        """The table with the cycles goes on top as the only CSV, where it is found without being named."""
        return f"{path.stem}.csv" if path in self.tables else super().exported_name(path)

    def _recordings(
        self, annotations: Mapping[str, Path | None], sounds: Mapping[str, Path], whole: bool = False
    ) -> list[AnnotatedRecording]:
        """Recordings with the file of their annotation, and what the CSV, if any, says of them."""
        found = []
        for name, annotation in annotations.items():
            try:
                facts = _facts(self._table, self._rows.get(name, [])) if self._table else {}
            except AnnotationError as error:
                self.problems.append(str(error))
                continue
            patient = facts.pop("patient_id", name)
            found.append(AnnotatedRecording(name, patient, sounds[name], annotation, whole=whole, **facts))
        return found

    def _note(self, found: list[AnnotatedRecording], sounds: Mapping[str, Path]) -> None:
        """Note what is left out and which recordings have no patient."""
        left_out = sorted(set(sounds) - {recording.recording_id for recording in found})
        if left_out:
            self.notes.append(
                f"{self.root}: {len(left_out)} recordings have no annotation and are left out: {named(left_out)}"
            )
        if not found and not self.problems:
            self.problems.append(
                f"{self.root}: nothing is annotated; add a CSV (recording,start_s,end_s,label) or label files, or set "
                "corpus.options.unlabelled: true to pre-train on it"
            )
        unnamed = [recording for recording in found if recording.patient_id == recording.recording_id]
        if unnamed:
            self.notes.append(
                f"{self.root}: {len(unnamed)} of {len(found)} recordings have no patient_id and count as a patient "
                "each; if a person was recorded twice, splits by patient do not keep this person apart"
            )

    def read_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[Event]:
        """Read the cycles of a recording from the CSV or its label file, or take it as a whole."""
        if recording.whole:
            assert duration_s is not None  # every recording here has its audio
            return [Event(0.0, duration_s)]
        if self._from_csv:
            assert self._table is not None
            return _csv_events(self._table, self._rows[recording.recording_id], self.options.unlabelled, duration_s)
        assert recording.annotation_path is not None
        cycles = read_labels(recording.annotation_path, duration_s)
        return [Event(cycle.start_s, cycle.end_s, cycle.crackle, cycle.wheeze) for cycle in cycles]

    def check_events(self, recording: AnnotatedRecording, duration_s: float | None) -> Sequence[InputError]:
        """The first problem of the recording's annotation, then its overlapping cycles."""
        if recording.whole and duration_s is None:
            return []
        try:
            events = self.read_events(recording, duration_s)
        except AnnotationError as error:
            return [error]
        problems, furthest = [], 0.0
        for event in events:
            if event.start_s < furthest:
                reason = (
                    f"cycle at {event.start_s:g} s of {recording.recording_id} starts before {furthest:g} s, where "
                    "another ends; correct one of the two times"
                )
                problems.append(AnnotationError(str(recording.annotation_path), None, reason))
            furthest = max(furthest, event.end_s)
        return problems


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


def _csv_path(root: Path, given: str | Path | None) -> Path | None:
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
    """Numbered rows by the names of COLUMNS."""
    (_, header), *lines = read_csv(path, ",;\t") or [(1, [])]
    names = [_column(word) for word in header]
    known = [name for name in names if name]
    if "recording" not in known or len(known) != len(set(known)):
        raise AnnotationError(path, 1, "the header must name each column once and have recording or file; correct it")
    for line, values in lines:
        if len(values) != len(names):
            raise AnnotationError(path, line, f"{len(values)} values under {len(names)} columns; correct the line")
    if not lines:
        raise AnnotationError(path, None, "the table has no rows; annotate the recordings")
    if ("start_s" in known) != ("end_s" in known):
        raise AnnotationError(path, 1, "start_s and end_s go together; add the missing column")
    labelled = "label" in known or {"crackle", "wheeze"} <= set(known)
    if "start_s" in known and not labelled and not unlabelled:
        raise AnnotationError(path, 1, "cycles need a column label, or crackle and wheeze; add them")
    return [(line, {name: v for name, v in zip(names, values, strict=True) if name}) for line, values in lines]


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


def _csv_events(table: Path, rows: list[Row], unlabelled: bool, duration_s: float | None) -> list[Event]:
    events = []
    for line, row in rows:
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
