"""A user's own recordings, described by one CSV or by label files beside them.

Decisions: a CSV with start_s and end_s holds the cycles; one without them holds facts about recordings whose cycles are
in label files beside them (ICBHI text, Audacity labels or Raven selections), or else the labels of whole recordings. A
CSV without a column of recordings has one row a patient. Names other than crackle and wheeze make a label set
(`laennec.corpora.labels`), whose spans may overlap. With `unlabelled` a cycle may lack its label, and a recording
without annotation is one row without flags. A recording without a patient id counts as its own patient, and a note says
so. Every error names its CSV line.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unicodedata import normalize

from laennec.audio.cycles import AnnotationError, Span, parse_label, parse_times, read_labelled_spans
from laennec.corpora.base import Corpus, CorpusOptions
from laennec.corpora.folder.annotation_table import AnnotationTable, Row, read_table
from laennec.corpora.folder.files import find_sounds, find_tables, label_files, table_path
from laennec.corpora.labels import FLAGS, UNKNOWN, LabelSet, Names, is_plain, label_set, names_of
from laennec.corpora.recordings import AnnotatedRecording, Event, named
from laennec.corpora.splits import COMMON_PROTOCOLS
from laennec.errors import InputError, one_line

_TEXT_FACTS = ("patient_id", "device", "chest_location", "acquisition_mode", "diagnosis")
_UNKNOWN = ("", "none", *UNKNOWN)
# line, span (None: all of the recording) and label (None: unknown)
_Written = tuple[int, Span | None, str | None]
# finds patient a00 in a00_left; the default pattern where a table has one row a patient
_FIRST_PART = "([^ /_-]+)[^/]*$"
_SEX = {"f": "F", "female": "F", "m": "M", "male": "M"}


@dataclass
class FolderOptions(CorpusOptions):
    """Options of `Folder`."""

    annotations: str | Path | None = None  # the CSV with the cycles; None: the only one in the folder
    unlabelled: bool = False  # whether cycles may lack a label, and a recording without annotation is one row
    # the column of the CSV or of Raven tables that holds the labels, if it is not called label
    label_column: str | None = None
    labels: list[str] | None = None  # all labels, in the order of the model's outputs; None: those that occur
    patient_column: str | None = None  # the column of the CSV that holds the patients, if it is not called patient_id
    # regular expression that finds the patient in the name of a recording: its group, or all of it
    patient_pattern: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.tables_dir is not None:
            raise InputError("folder has no patient tables (tables_dir, --tables-dir); use corpus.options.annotations")
        try:
            re.compile(self.patient_pattern or "")
        except re.error as error:
            raise InputError(f"patient_pattern {self.patient_pattern!r}: {error}; correct it") from error


class Folder(Corpus):
    """A folder of recordings with a CSV or label files.

    Example: `Folder("my_recordings", annotations="cycles.csv").table()`. The CSV has the columns recording (or file),
    start_s, end_s, and label or one column of 0 and 1 for each label; patient_id, device, chest_location, sex,
    age_years, bmi and diagnosis are optional. Without start_s and end_s, a row is a recording. See `Corpus` for the
    arguments.
    """

    name = "folder"
    title = "Auscultation recordings"
    licence = "none is stated: these are recordings of whoever exported them"
    redistribution = "make it public only if every person recorded agreed to that and nothing in it names them"
    protocols = tuple(name for name in COMMON_PROTOCOLS if not name.startswith("published-"))
    levels = ("event", "recording")
    sources: ClassVar[dict[str, str]] = {
        "diagnosis": "give the CSV of the folder a column diagnosis (beside a column recording, or beside a column "
        "patient_id and without times, for one row a patient)"
    }
    options_class = FolderOptions
    options: FolderOptions
    _labels: LabelSet | None = None

    def find_recordings(self, folder: Path) -> list[AnnotatedRecording]:
        """Find the recordings and what is written about them."""
        options, sounds = self.options, find_sounds(folder)
        inside = {folder / path.relative_to(folder).parts[0] for path in sounds.values()}
        inner = find_tables(*inside) if len(inside) == 1 and not find_tables(folder) else []
        inner = [path for path in inner if options.annotations is None or path.name == str(options.annotations)]
        if len(inner) == 1 and (options.annotations or not any(label_files(sound) for sound in sounds.values())):
            self.root = folder = inner[0].parent  # archives often hold one folder with everything
            sounds = find_sounds(folder)
        path = table_path(folder, options.annotations)
        own = {name: getattr(options, name) for name in ("patient_column", "label_column", "labels", "unlabelled")}
        self._table = table = read_table(path, **own) if path else None
        self.tables += [path] if path else []
        self.rule = ", ".join(f"{name} {value}" for name, value in own.items() if value not in (None, False))
        self._patients, self._given = self._patients_by_name(sounds), dict[str, str | None]()
        self._rows = self._rows_by_recording(table, sounds) if table else {}
        beside = {} if table and table.timed else self._label_files(sounds)
        both = bool(beside and table and table.labels and not table.unknown_labels)
        if both and options.level is None:
            remedy = "set corpus.level (--level): recording for the CSV, event for label files; or name the "
            remedy += "labels of the CSV in corpus.options.labels"
            self.problems.append(f"{path}: has labels, and so has {next(iter(beside.values()))}; {remedy}")
        labels_recordings = bool(table and table.labels) and (both or not beside) and options.level != "event"
        self._from_csv = table is not None and (table.timed or labels_recordings)
        if labels_recordings and table is not None and not table.timed:
            self.level = "recording"
        annotations = dict.fromkeys(sorted(self._rows), path) if self._from_csv else beside
        found = self._recordings(annotations, sounds, whole=self.level == "recording")
        self._find_labels(found)
        if options.unlabelled:
            known = {recording.recording_id for recording in found}
            found += self._recordings({name: sounds[name] for name in sorted(set(sounds) - known)}, sounds, whole=True)
        self._compare_patients()
        self._note(found, sounds)
        return found

    def _rows_by_recording(self, table: AnnotationTable, sounds: Mapping[str, Path]) -> dict[str, list[Row]]:
        """The rows of each recording; the recording may be written with or without folder and extension."""
        missing: list[str] = []
        if table.by_patient:
            of_patient: dict[str, list[Row]] = {}
            for line, row in table.rows:
                of_patient.setdefault(row["patient_id"], []).append((line, row))
            for patient in sorted(set(of_patient) - set(self._patients.values())):
                reason = f"no recording has patient {patient!r} in its name"
                missing.append(str(AnnotationError(table.path, of_patient[patient][0][0], reason)))
            self.leave_out(missing, "correct it, set corpus.options.patient_pattern")
            return {name: of_patient[patient] for name, patient in self._patients.items() if patient in of_patient}
        by_any_name: dict[str, set[str]] = {}
        for name, path in sounds.items():
            for alias in (name, path.relative_to(self.root).as_posix(), path.name, path.stem, str(path)):
                by_any_name.setdefault(_alias(normalize("NFC", alias)), set()).add(name)
        found: dict[str, list[Row]] = {}
        for line, row in table.rows:
            written = row["recording"].removeprefix("./")
            # a full name takes precedence over bare names of files in other folders
            names = {written} if written in sounds else by_any_name.get(_alias(written), set())
            if len(names) == 1:
                found.setdefault(next(iter(names)), []).append((line, row))
            elif names:
                reason = f"recording {row['recording']!r} could be {named(sorted(names))}; correct the name"
                self.problems.append(str(AnnotationError(table.path, line, reason)))
            else:
                reason = f"recording {row['recording']!r} is not in the folder"
                missing.append(str(AnnotationError(table.path, line, reason)))
        self.leave_out(missing, "correct the name")
        return found

    def _label_files(self, sounds: Mapping[str, Path]) -> dict[str, Path | None]:
        """The label file beside each recording that has one."""
        beside: dict[str, Path | None] = {}
        for name, sound in sounds.items():
            found = label_files(sound)
            if len(found) > 1:
                self.problems.append(f"{sound}: two annotations ({found[0].name}, {found[1].name}); remove one")
            beside |= {name: found[0]} if found else {}
        return beside

    def _patients_by_name(self, sounds: Mapping[str, Path]) -> dict[str, str]:
        """The patient of each recording, found in the name of its file, or by a pattern with "/" in its path."""
        pattern = self.options.patient_pattern or (_FIRST_PART if self._table and self._table.by_patient else None)
        if pattern is None:
            return {}
        names = {name: name if "/" in pattern else name.rpartition("/")[2] for name in sounds}
        found = {name: re.search(pattern, normalize("NFC", text)) for name, text in names.items()}
        if lost := [name for name, match in found.items() if match is None or not (match[match.re.groups and 1])]:
            remedy = "correct corpus.options.patient_pattern (with / in it, it is applied to the path below the folder)"
            names_of = named(names[name] for name in lost)
            self.problems.append(f"{self.root}: {pattern!r} finds no patient in the name {names_of}; {remedy}")
        if any("/" in name for name in sounds) and "/" not in pattern:
            patients = named(sorted({match[match.re.groups and 1] for match in found.values() if match}))
            note = (
                f"{self.root}: patients by the names of files, without their folders: {patients}; to find them in the "
            )
            self.notes.append(f"{note}path below the folder, write / in corpus.options.patient_pattern")
        return {name: match[match.re.groups and 1] for name, match in found.items() if match}

    def _compare_patients(self) -> None:
        """A problem for each recording without patient_id whose patient, by its name, has another id in the CSV."""
        both = [(name, self._patients[name], given) for name, given in self._given.items() if name in self._patients]
        others = {patient: (name, given) for name, patient, given in both if given not in (None, patient)}
        for name, patient, given in both:
            if given is None and patient in others:
                same = f"{others[patient][0]}, whose name has the same patient {patient!r}"
                self.problems.append(
                    f"{self.root}: {name} has no patient_id, but {same}, has {others[patient][1]!r}; fill it in"
                )

    def _find_labels(self, found: Sequence[AnnotatedRecording]) -> None:
        """Collect the labels of the corpus; problems of an annotation are raised when its recording is read."""
        texts, rows = [], list[Names | None]()
        for recording in found:
            try:
                written = list(self._texts(recording))
                texts += [text for *_, text in written]
                rows += [names for _, names in self._spans(recording, written)]
            except AnnotationError:
                continue
        columns = self._table.flags if self._table and self._from_csv else []
        wanted = self.options.labels
        plain = set(columns) in (set(), set(FLAGS)) and set(wanted or FLAGS) == set(FLAGS)
        if plain and all(is_plain(text) for text in set(texts) if text is not None):
            return
        try:
            self._labels = label_set(rows, columns, wanted)
            self.extra_columns = self._labels.columns
        except InputError as error:
            self.problems.append(f"{self._table.path if self._table and self._from_csv else self.root}: {error}")

    def exported_name(self, path: Path) -> str:
        """The table of cycles goes into the top folder, where it is found as the only CSV."""
        return f"{path.stem}.csv" if path in self.tables else super().exported_name(path)

    def _recordings(
        self, annotations: Mapping[str, Path | None], sounds: Mapping[str, Path], whole: bool = False
    ) -> list[AnnotatedRecording]:
        """Recordings with the file of their annotation and, if there is a CSV, their facts in it."""
        found = []
        for name, annotation in annotations.items():
            try:
                facts = _facts(self._table.path, self._rows.get(name, [])) if self._table else {}
            except AnnotationError as error:
                self.problems.append(str(error))
                continue
            self._given[name] = facts.pop("patient_id", None)
            patient = self._given[name] or self._patients.get(name)
            facts |= {"whole": whole, "patient_stated": patient is not None}
            found.append(AnnotatedRecording(name, patient or name, sounds[name], annotation, **facts))
        return found

    def _note(self, found: list[AnnotatedRecording], sounds: Mapping[str, Path]) -> None:
        """Note which columns are labels, what is left out and which recordings have no patient."""
        guessed = self._table.flags if self._table and self._from_csv and self.options.labels is None else []
        if set(guessed) - set(FLAGS):
            remedy = "if one of them is no label, name the labels in corpus.options.labels"
            self.notes.append(f"{self.root}: columns taken as labels: {', '.join(guessed)}; {remedy}")
        left_out = sorted(set(sounds) - {recording.recording_id for recording in found})
        if left_out:
            self.notes.append(
                f"{self.root}: recordings without annotation are left out ({len(left_out)}): {named(left_out)}"
            )
        if not found and not self.problems:
            self.problems.append(
                f"{self.root}: nothing is annotated; add a CSV (recording,start_s,end_s,label, or for whole recordings "
                "recording,label) or label files, or set corpus.options.unlabelled: true to pre-train on it"
            )
        unnamed = [recording for recording in found if not recording.patient_stated]
        if unnamed:
            self.notes.append(
                f"{self.root}: {len(unnamed)} of {len(found)} recordings have no patient_id and count as a patient "
                "each; if a person was recorded twice, splits by patient may separate both recordings; "
                "add the column, or set corpus.options.patient_column or corpus.options.patient_pattern"
            )

    def read_events(self, recording: AnnotatedRecording, duration_s: float | None) -> list[Event]:
        """Read the cycles of a recording from the CSV or its label file, or take it as a whole."""
        if recording.annotation_path is None or recording.annotation_path == recording.audio_path:
            assert duration_s is not None  # every recording here has its audio
            return [Event(0.0, duration_s)]
        if self._labels is None and not recording.whole:
            return _once(recording, self._plain_events(recording, duration_s))
        whole = (0.0, duration_s or 0.0)
        spans = self._spans(recording, self._texts(recording, duration_s))
        return [self._event(*(span or whole), names) for span, names in spans]

    def _plain_events(self, recording: AnnotatedRecording, duration_s: float | None) -> Iterator[tuple[int, Event]]:
        """Line and event of every cycle that is labelled with crackle and wheeze alone."""
        if self._from_csv:
            assert self._table is not None
            yield from _csv_events(
                self._table.path, self._rows[recording.recording_id], self.options.unlabelled, duration_s
            )
            return
        assert recording.annotation_path is not None
        for line, span, text in read_labelled_spans(recording.annotation_path, duration_s):
            yield line, Event(*span, *parse_label(recording.annotation_path, line, text))

    def _event(self, start_s: float, end_s: float, names: Names | None) -> Event:
        known = FLAGS if self._labels is None else self._labels.names
        own = None if self._labels is None or names is None else self._labels.spelled(names)
        crackle, wheeze = (None if names is None or flag not in known else int(flag in names) for flag in FLAGS)
        return Event(start_s, end_s, crackle, wheeze, own)

    def _spans(
        self, recording: AnnotatedRecording, written: Iterable[_Written]
    ) -> list[tuple[Span | None, Names | None]]:
        """The labels of each span, or of the recording as a whole; labels of one span are merged."""
        found: dict[Span | None, dict[str, None] | None] = {}
        first: dict[Span | None, tuple[int, Names]] = {}
        flags = self._table is not None and self._from_csv and "label" not in self._table.columns
        named_by: dict[str | None, Names | None] = {None: None}  # a cache: there are many rows and few labels
        for line, span, text in written:
            if text is not None and text not in named_by:
                named_by[text] = names_of(recording.annotation_path, line, text)
            names = named_by[text]
            place = None if recording.whole else span
            if names is not None:
                before, others = first.setdefault(span, (line, names))
                # normal excludes other labels, and so does a row of 0 and 1
                adds = names and others and not flags
                if set(names) != set(others) and not adds:
                    raise _contradiction(recording, line, before)
                found[place] = (found.get(place) or {}) | dict.fromkeys(names)
            found.setdefault(place, None)
        spans = sorted(found.items(), key=lambda item: item[0] or (0.0, 0.0))
        return [(span, None if names is None else tuple(names)) for span, names in spans]

    def _texts(self, recording: AnnotatedRecording, duration_s: float | None = None) -> Iterator[_Written]:
        """Line, span and label of everything that is written about a recording."""
        if not self._from_csv:
            assert recording.annotation_path is not None
            yield from read_labelled_spans(recording.annotation_path, duration_s, self.options.label_column)
            return
        table = self._table
        assert table is not None
        for line, row in self._rows[recording.recording_id]:
            span = None
            if table.timed:
                span = parse_times(table.path, line, row["start_s"], row["end_s"], duration_s, comma=True)
            yield line, span, table.text(line, row, self.options.unlabelled)

    def rows(self, recording: AnnotatedRecording) -> list[dict[str, Any]]:
        """The rows of one recording, with the columns of its own labels."""
        rows = super().rows(recording)
        return [row | self._labels.values(row["events"]) for row in rows] if self._labels else rows

    def _wrong_times(self, recording: AnnotatedRecording, duration_s: float | None) -> list[AnnotationError]:
        """A problem for each row of the CSV whose times do not fit the recording."""
        table, problems = self._table, list[AnnotationError]()
        if table is None or not (self._from_csv and table.timed):
            return problems
        for line, row in self._rows[recording.recording_id]:
            try:
                parse_times(table.path, line, row["start_s"], row["end_s"], duration_s, comma=True)
            except AnnotationError as error:
                problems.append(error)
        return problems

    def check_events(self, recording: AnnotatedRecording, duration_s: float | None) -> Sequence[InputError]:
        """The problems of the recording's annotation (of a label file the first), or its overlapping cycles."""
        if recording.whole and duration_s is None:
            return []
        try:
            events = self.read_events(recording, duration_s)
        except AnnotationError as error:
            return self._wrong_times(recording, duration_s) or [error]
        problems, furthest = [], 0.0
        for event in events if self._labels is None else ():  # spans of a user's own labels may overlap
            if event.start_s < furthest:
                reason = (
                    f"cycle at {event.start_s:g} s of {recording.recording_id} starts before {furthest:g} s, where "
                    "another ends; correct one of the two times"
                )
                problems.append(AnnotationError(str(recording.annotation_path), None, reason))
            furthest = max(furthest, event.end_s)
        return problems


def _alias(name: str) -> str:
    """A name for comparison with tables: control characters as escapes, backslashes (of Windows) as slashes."""
    return one_line(name).replace("\\", "/")


def _facts(table: Path, rows: list[Row]) -> dict[str, Any]:
    """The facts that the rows of one recording state; two rows must not disagree."""
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
    if not re.fullmatch(r"[0-9]{1,4}([.,][0-9]*)?|[.,][0-9]+", text):
        raise AnnotationError(table, line, f"{name} {text!r} is not a number; correct it or leave it empty")
    return float(text.replace(",", "."))


def _once(recording: AnnotatedRecording, found: Iterable[tuple[int, Event]]) -> list[Event]:
    """The events of a recording in the order of time, each once; repetitions must have the same label."""
    first: dict[Span, tuple[int, Event]] = {}
    for line, event in found:
        before, other = first.setdefault((event.start_s, event.end_s), (line, event))
        if other != event:
            raise _contradiction(recording, line, before)
    return [event for _, (_, event) in sorted(first.items())]


def _contradiction(recording: AnnotatedRecording, line: int, before: int) -> AnnotationError:
    reason = f"{recording.recording_id} has another label than in line {before} for the same time"
    return AnnotationError(str(recording.annotation_path), line, f"{reason}; correct one of them or delete it")


def _csv_events(table: Path, rows: list[Row], unlabelled: bool, duration_s: float | None) -> list[tuple[int, Event]]:
    events = []
    for line, row in rows:
        start_s, end_s = parse_times(table, line, row["start_s"], row["end_s"], duration_s, comma=True)
        bare = unlabelled and not any(row.get(name) for name in ("label", "crackle", "wheeze"))
        events.append((line, Event(start_s, end_s, *((None, None) if bare else _flags(table, line, row)))))
    return events


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
