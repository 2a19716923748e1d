"""The base class of all corpora, and the cycle table: one row per respiratory cycle.

Decisions: a corpus states its facts (licence, citation, protocols) as class attributes, once; cards, checks and
messages read them there. The table holds no audio, only the path and the content hash of each recording. Unknown values
are null. The name of a cached table is a hash of its source files, their paths and TABLE_VERSION; raise TABLE_VERSION
when a rule of this package changes. The corpus fingerprint covers recordings and annotations alone: it does not change
if the folder is moved or a table of patients is added.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import pandas as pd
import pyarrow as pa

from laennec.audio.cycles import LABELS
from laennec.audio.recording import read_header
from laennec.cache import cache_root, hash_files, new_entry, whole_bytes
from laennec.corpora.recordings import (
    AnnotatedRecording,
    Event,
    UnusableRecordingsError,
    corpus_path,
    named,
    named_in_bytes,
    spelled_alike,
    unpack,
)
from laennec.corpora.splits import COMMON_PROTOCOLS
from laennec.errors import InputError
from laennec.files import digest, wait_for_lock

TABLE_VERSION = "1.0.2"
ABNORMAL = "abnormal"
_RECORDINGS_PER_BATCH = 64
_LOCK_TIMEOUT_S = 3600.0

CYCLE_FEATURES = datasets.Features(
    {
        "cycle_id": datasets.Value("string"),
        "recording_id": datasets.Value("string"),
        "patient_id": datasets.Value("string"),
        "cycle_index": datasets.Value("int32"),
        "start_s": datasets.Value("float64"),
        "end_s": datasets.Value("float64"),
        "crackle": datasets.Value("int8"),
        "wheeze": datasets.Value("int8"),
        "label": datasets.ClassLabel(names=list(LABELS)),
        "events": datasets.List(datasets.Value("string")),
        "chest_location": datasets.Value("string"),
        "acquisition_mode": datasets.Value("string"),
        "device": datasets.Value("string"),
        "age_years": datasets.Value("float64"),
        "sex": datasets.Value("string"),
        "bmi": datasets.Value("float64"),
        "diagnosis": datasets.Value("string"),
        "source_sampling_rate": datasets.Value("int32"),
        "recording_path": datasets.Value("string"),
        "audio_sha256": datasets.Value("string"),
        "part": datasets.Value("string"),
    }
)
# columns that are attributes of a recording
_KNOWN = (
    *("recording_id", "patient_id", "chest_location", "acquisition_mode", "device", "age_years", "sex", "bmi"),
    "diagnosis",
)
# fields of an AnnotatedRecording and what they are converted to
_KINDS: dict[str, type[Any]] = {
    **dict.fromkeys(("recording_id", "patient_id", "chest_location", "acquisition_mode", "device", "sex"), str),
    **dict.fromkeys(("diagnosis", "split"), str),
    **dict.fromkeys(("age_years", "bmi"), float),
    **dict.fromkeys(("audio_path", "annotation_path"), Path),
}


@dataclass
class CorpusOptions:
    """What the user can set when a corpus is loaded; a corpus with more options subclasses it."""

    # folder of the patient and split tables, if they are not beside the recordings
    tables_dir: str | Path | None = None
    level: str | None = None  # what a row is, one of `Corpus.levels`; None: the first of them
    # leave out recordings without annotation and annotations without recording, instead of refusing the folder
    allow_missing: bool = False


@dataclass(frozen=True)
class Manifest:
    """The hashes of a corpus."""

    sha256: dict[Path, str] = field(repr=False)  # hash of every file by path
    corpus_fingerprint: str  # SHA-256 over names and content of recordings and annotations; results quote it
    table_fingerprint: str  # SHA-256 over everything the cycle table is made of, paths included; names its cache file


class Corpus(ABC):
    """A corpus of recordings with annotated cycles. Subclass it to bring your own.

    A subclass states the facts below as class attributes and implements `find_recordings`. It can then be given to
    `laennec.load_corpus` and, as `package.module:Name`, to a recipe's `corpus.name`.

    Example:
        class Ward(Corpus):
            name = "ward"
            licence = "CC BY 4.0"

            def find_recordings(self, folder):
                events = (Event(0.0, 2.1, crackle=1, wheeze=0), Event(2.1, 4.0, crackle=0, wheeze=0))
                yield AnnotatedRecording("r1", "patient 1", folder / "r1.wav", events=events)

        cycles = laennec.load_corpus(Ward, "recordings", protocol="patient-60-20-20")

    Args:
        data_dir: Folder or zip archive with the recordings.
        cache_dir: Root of the caches; see `laennec.cache.cache_root`.
        **options: The attributes of `options_class`.

    Attributes:
        name: Short name that recipes, records and cards use.
        title: Name for readers.
        homepage: Address where the data can be obtained.
        licence: Licence or terms of use, one line.
        redistribution: What the terms say about passing the data on, one line.
        citation: BibTeX.
        origin: Who was recorded where, with what; one or two sentences.
        reference_standard: Who made the labels, and how.
        limitations: What users of its data and scores should know.
        protocols: Names of the protocols it can be split by.
        default_protocol: The protocol that is used if none is given.
        levels: What a row can be; the first is the default.
        label_columns: The columns that hold the labels.
        class_column: The column with one class a row; splits are stratified by it.
        sources: For columns that come from a separate table, where to get it and where to put it.
        patient_ids_are_global: Whether a patient id means the same person in every copy of the corpus.
        can_be_exported: Whether `laennec prepare --export` applies.
        options_class: What the user can set.
        extra_columns: Columns that only this corpus has.
        root: The folder with the recordings.
        recordings: The recordings, in the order of the table.
        problems: What makes the corpus unusable; `find_recordings` appends to it.
        notes: Remarks that do not make the corpus unusable; likewise.
        tables: Further files that were read, such as patient tables; likewise.
        rule: What the rows depend on besides the files, such as the length of windows.

    Raises:
        InputError: There is no such folder, or the options are wrong.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    licence: ClassVar[str] = "none is stated"
    redistribution: ClassVar[str] = "no licence that grants redistribution is stated: ask the owners before you publish"
    citation: ClassVar[str] = ""
    origin: ClassVar[str] = ""
    reference_standard: ClassVar[str] = ""
    limitations: ClassVar[tuple[str, ...]] = ()
    protocols: ClassVar[tuple[str, ...]] = COMMON_PROTOCOLS
    default_protocol: ClassVar[str] = "patient-60-20-20"
    levels: ClassVar[tuple[str, ...]] = ("event",)
    label_columns: ClassVar[tuple[str, ...]] = ("crackle", "wheeze")
    class_column: ClassVar[str] = "label"
    sources: ClassVar[Mapping[str, str]] = {}
    patient_ids_are_global: ClassVar[bool] = False
    can_be_exported: ClassVar[bool] = True
    options_class: ClassVar[type[CorpusOptions]] = CorpusOptions
    extra_columns: Mapping[str, Any] = {}

    def __init__(self, data_dir: str | Path, cache_dir: str | Path | None = None, **options: Any) -> None:
        self.data_dir, self.cache_dir = data_dir, cache_dir
        self.options: Any = self.options_class(**options)
        self.level = self.options.level or self.levels[0]
        if self.level not in self.levels:
            raise InputError(f"{self.name} has no level {self.level!r}; valid: {', '.join(self.levels)}")
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.tables: list[Path] = []
        self.rule = ""
        self.root = self.open_folder(data_dir)
        self.recordings = tuple(self._found())
        self.problems += named_in_bytes(self.recordings)
        # users cannot correct the tables of a data set of the Hub
        (self.problems if self.can_be_exported else self.notes).extend(spelled_alike(self.root, self.recordings))
        self._checked = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the facts of a subclass when it is defined."""
        super().__init_subclass__(**kwargs)
        if not isinstance(getattr(cls, "name", None), str):
            raise TypeError(f"{cls.__name__} has no class attribute `name`; give it a short name")

    @abstractmethod
    def find_recordings(self, folder: Path) -> Iterable[AnnotatedRecording]:
        """Find the recordings, their annotations and their patients in a folder, an absolute path.

        Problems that can be listed together go to `self.problems` rather than being raised.
        """

    def _found(self) -> Iterator[AnnotatedRecording]:
        """What `find_recordings` yields, with its ids as texts, its files as paths and NaN as None."""
        where = f"{self.name}: {type(self).__name__}.find_recordings"
        try:
            found = list(self.find_recordings(self.root))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError) or type(self).__module__.startswith("laennec."):
                raise
            raise InputError(f"{where}: {type(error).__name__}: {error}; correct it") from error
        ids: set[str] = set()
        for one in found:
            events = one.events if isinstance(one, AnnotatedRecording) else None
            if not isinstance(events, Sequence) or not all(isinstance(event, Event) for event in events):
                raise InputError(f"{where} yields {one!r:.80}; yield AnnotatedRecording with a tuple of Event")
            given: dict[str, Any] = {n: None if pd.isna(value := getattr(one, n)) is True else value for n in _KINDS}
            if given["recording_id"] is None or str(given["recording_id"]) in ids:
                raise InputError(
                    f"{where} yields recording_id {given['recording_id']!r} for {one.audio_path}, which is unknown or "
                    "that of another recording; give each recording its own"
                )
            ids.add(str(given["recording_id"]))
            for name in ("age_years", "bmi"):
                if not isinstance(given[name], Real | None):
                    raise InputError(f"{where}: {name} of {one.recording_id} is {given[name]!r}; give a number or None")
            for event in events:
                if isinstance(event.names, str):
                    raise InputError(
                        f"{where}: {one.recording_id} has an event with names {event.names!r}; give a tuple of names"
                    )
            known = {name: kind(given[name]) for name, kind in _KINDS.items() if given[name] is not None}
            yield replace(one, **given | known, events=tuple(map(_without_bool, events)))

    def read_events(self, recording: AnnotatedRecording, duration_s: float | None) -> Sequence[Event]:
        """Read the events of a recording (by default its `events`), or raise the first problem of its annotation.

        `duration_s` is the length of its audio; None without audio.
        """
        for event in recording.events:
            times = (event.start_s, event.end_s)
            if not all(isinstance(time, Real) for time in times) or not 0 <= times[0] < times[1]:
                raise InputError(
                    f"{self.name}: {recording.recording_id} has an event from {event.start_s!r} to {event.end_s!r} s; "
                    "give numbers, 0 <= start_s < end_s"
                )
            if not {event.crackle, event.wheeze} <= {0, 1, None}:
                raise InputError(
                    f"{self.name}: {recording.recording_id} has an event with crackle {event.crackle!r} and wheeze "
                    f"{event.wheeze!r}; give 0, 1, or None where unknown"
                )
            if duration_s is not None and event.end_s > duration_s + 0.001:
                raise InputError(
                    f"{recording.audio_path}: an event ends at {event.end_s:.3f} s but the audio lasts "
                    f"{duration_s:.3f} s; correct the annotation"
                )
        return recording.events

    def check_events(self, recording: AnnotatedRecording, duration_s: float | None) -> Sequence[InputError]:
        """Every problem of a recording's annotation; `duration_s` is None if the audio cannot be decoded."""
        if recording.whole and duration_s is None:
            return []
        try:
            self.read_events(recording, duration_s)
        except InputError as error:
            return [error]
        return []

    def leave_out(self, items: Sequence[str], remedy: str) -> None:
        """List recordings without annotation (or vice versa) as problems, or with `allow_missing` in a note."""
        if not self.options.allow_missing:
            way_out = "or pass allow_missing=True (--allow-missing) to leave it out"
            self.problems += [f"{item}; {remedy}, {way_out}" for item in items]
        elif items:
            self.notes.append(f"{self.root}: left out, {named(items)}")

    def note_no_audio(self) -> None:
        """Note that there is no audio, which is a problem where rows are whole recordings."""
        if self.level != self.levels[0]:
            lengths = "needs the length of each recording; add the recordings"
            self.problems.append(f"{self.root}: no audio, and level {self.level} {lengths}")
        self.notes.append(
            f"{self.root}: annotations without any audio; the table can be counted and split, but not decoded"
        )

    def published_split(self, protocol: str) -> dict[str, Any]:
        """Arguments of `split_table` for a published split (official_split, folds); an InputError if it is missing."""
        return {}

    def missing_recordings(self) -> tuple[int, int, str]:
        """How many recordings of the published database are missing, of how many, and which; (0, 0, "") if complete."""
        return 0, 0, ""

    def check_complete(self) -> None:  # noqa: B027 (few corpora have a published list to compare with)
        """Add missing and extra recordings to `problems` or `notes`."""

    def further_files(self) -> list[Path]:
        """Files of the corpus that an export needs although its table is not made from them."""
        return []

    def exported_name(self, path: Path) -> str:
        """The path of a file in an export: relative to `root`, or its bare name if it lies outside."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.name

    @classmethod
    def locate(
        cls, data_dir: str | Path | None, cache_dir: str | Path | None, options: dict[str, Any]
    ) -> tuple[str | Path, dict[str, Any]]:
        """Path of the data and the remaining options; without a folder, an error states where to get the data."""
        if data_dir is None:
            source = f"get {cls.title} from {cls.homepage} (licence: {cls.licence}), then " if cls.homepage else ""
            raise InputError(
                f"{cls.name}: no data_dir given; {source}name the folder or archive with the recordings (data_dir, or "
                "--data-dir)"
            )
        return data_dir, options

    def open_folder(self, data_dir: str | Path) -> Path:
        """The folder of the data as an absolute path; a zip archive is unpacked into the cache."""
        path = corpus_path(data_dir)
        return path if path.is_dir() else unpack(path, self.cache_dir)

    def check_usable(self) -> Self:
        """Show the notes as warnings; raise the first problem, with the number of the others."""
        if not self._checked:
            for note in self.notes:
                warnings.warn(note, stacklevel=3)
            self._checked = True
        if self.problems:
            more = len(self.problems) - 1
            further = f" ({more} more; `laennec prepare {self.name} --check` lists them)" if more else ""
            raise InputError(self.problems[0] + further)
        return self

    @property
    def features(self) -> datasets.Features:
        """The columns of the cycle table."""
        return datasets.Features({**CYCLE_FEATURES, **self.extra_columns})

    @cached_property
    def manifest(self) -> Manifest:
        """The hashes of every file; those of unchanged files come from the cache."""
        files = [p for r in self.recordings for p in (r.audio_path, r.annotation_path) if p is not None]
        sha256 = hash_files([*files, *self.tables], self.cache_dir)
        names = []
        for recording in self.recordings:
            annotation = recording.annotation_path
            said = digest([repr(event) for event in recording.events]) if annotation is None else sha256[annotation]
            names.append([recording.recording_id, recording.audio_path and sha256[recording.audio_path], said])
        everything = [
            TABLE_VERSION,
            self.name,
            self.level,
            self.rule,
            repr(self.recordings),
            repr(sorted(self.extra_columns.items())),
            [[str(path), sha256[path]] for path in sorted(sha256)],
        ]
        return Manifest(sha256, digest(sorted(names)), digest(everything))

    def rows(self, recording: AnnotatedRecording) -> list[dict[str, Any]]:
        """The rows of one recording; an InputError if its header or its annotation cannot be used."""
        rate, duration_s, sha256 = None, None, None
        if recording.audio_path is not None:
            rate, frames = read_header(recording.audio_path)
            duration_s = frames / rate
            sha256 = self.manifest.sha256[recording.audio_path]
        known = {name: getattr(recording, name) for name in _KNOWN} | {
            "source_sampling_rate": rate,
            "recording_path": None if recording.audio_path is None else str(recording.audio_path),
            "audio_sha256": sha256,
            "part": recording.split,
            **dict(recording.extra),
        }
        return [
            {
                "cycle_id": f"{recording.recording_id}#{'record' if recording.whole else f'{index:02d}'}",
                "cycle_index": index,
                "start_s": event.start_s,
                "end_s": event.end_s,
                "crackle": event.crackle,
                "wheeze": event.wheeze,
                "label": None if event.label is None else LABELS.index(event.label),
                "events": None if event.names is None else list(event.names),
                **known,
            }
            for index, event in enumerate(self.read_events(recording, duration_s))
        ]

    def table(self) -> datasets.Dataset:
        """The cycle table, from the cache or made anew; an `UnusableRecordingsError` names all unusable recordings."""
        self.check_usable()
        path = cache_root(self.cache_dir) / "tables" / self.name / f"{self.manifest.table_fingerprint}.arrow"
        if (table := _read_arrow(path)) is not None:
            return table
        with wait_for_lock(path, _LOCK_TIMEOUT_S):
            if (table := _read_arrow(path)) is None:  # no other process has made it meanwhile
                self._write_arrow(path)
                table = datasets.Dataset.from_file(str(path))
        return table

    def _write_arrow(self, path: Path) -> None:
        """Write the table as an Arrow stream, a few recordings at a time."""
        problems: list[str] = []
        parts: list[pa.Table] = []
        with new_entry(path) as file, pa.ipc.new_stream(file, self.features.arrow_schema) as stream:
            for first in range(0, len(self.recordings), _RECORDINGS_PER_BATCH):
                rows = []
                for recording in self.recordings[first : first + _RECORDINGS_PER_BATCH]:
                    try:
                        rows += self.rows(recording)
                    except InputError as error:
                        problems.append(str(error))
                parts.append(to_arrow(rows, self.features))
                stream.write_table(parts[-1])
            if problems:
                usable = pa.concat_tables(parts)  # these rows can still be decoded
                usable = datasets.Dataset(usable.filter(usable["recording_path"].is_valid()))
                raise UnusableRecordingsError(problems, len(self.recordings), usable)


def _without_bool(event: Event) -> Event:
    """The event with flags that fit a column of integers."""
    crackle, wheeze = (int(flag) if isinstance(flag, bool) else flag for flag in (event.crackle, event.wheeze))
    return replace(event, crackle=crackle, wheeze=wheeze)


def column_of(table: Any, name: str) -> list[Any]:
    """The values of a column; None where unknown: null, NaN, or -1 among class numbers, as on the Hub.

    Iterating over a `datasets` column would read it row by row, which is slow. `abnormal` is derived where the classes
    include normal: 0 for normal rows, 1 for the others.
    """
    if name == ABNORMAL and name not in table.column_names:
        normal = class_names(table, "label").index("normal")
        return [None if value is None else int(value != normal) for value in column_of(table, "label")]
    values = list(table[name][:])
    feature = (getattr(table, "features", None) or {}).get(name)
    if isinstance(feature, datasets.ClassLabel):
        return [None if value == -1 else value for value in values]
    if str(getattr(feature, "dtype", "")).startswith("float"):
        return [None if value != value else value for value in values]
    return values


def class_names(table: Any, column: str) -> list[str]:
    """Class names of a column that holds class numbers; empty for other columns."""
    features = getattr(table, "features", None) or {}
    own = getattr(features.get(column), "names", None)
    if column == ABNORMAL and own is None and "normal" in class_names(table, "label"):
        return ["normal", ABNORMAL]
    return list(own or [])


def to_arrow(rows: list[dict[str, Any]], features: datasets.Features = CYCLE_FEATURES) -> pa.Table:
    """Rows as an Arrow table of exactly these features; ClassLabels are integers already."""
    return pa.Table.from_pylist(rows, schema=features.arrow_schema)


def _read_arrow(path: Path) -> datasets.Dataset | None:
    """A cached table, or None where there is no complete one."""
    return datasets.Dataset.from_file(str(path)) if whole_bytes(path) is not None else None
