"""The cycle table, one row per respiratory cycle, and the builder every corpus shares.

Decisions: no audio in the table, only its place and its content address. Unknown is null. A `datasets` cache does
not look at the data it was made from, so a builder's hash is that of every file that went in, of where they lie and of
TABLE_VERSION; change a rule of this folder and raise TABLE_VERSION. What a score depends on is the recordings and their
annotations, so the corpus fingerprint is made of these alone: moving the folder or adding a table leaves it as it is.
"""

import contextlib
import hashlib
import json
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from laennec.audio.cycles import LABELS, label_of
from laennec.audio.recording import read_header
from laennec.corpora.files import hash_files
from laennec.errors import InputError
from laennec.files import cache_root, explain_write_errors, wait_for_lock, writing_error

TABLE_VERSION = "1.0.0"
_RECORDINGS_PER_BATCH = 64

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


@dataclass(frozen=True)
class Event:
    """An annotated stretch of a recording.

    Attributes:
        start_s: In seconds.
        end_s: In seconds.
        crackle: 0, 1, or None where it cannot be told.
        wheeze: Likewise.
        names: The corpus' own words for it, where it has any.
    """

    start_s: float
    end_s: float
    crackle: int | None
    wheeze: int | None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class RecordingEntry:
    """A recording of a corpus and what is known of it; None is unknown.

    Attributes:
        recording_id: Its name, unique in the corpus.
        patient_id: Whose it is, or None where nobody says.
        audio_path: The sound, or None in a folder of annotations alone.
        annotation_path: The file its events are in.
        whole: Whether the recording as a whole is one row, not each of its events.
        part: The part of the published split, where the corpus is laid out by parts.
        own: (column, value) of the columns that this corpus alone has.
    """

    recording_id: str
    patient_id: str | None
    audio_path: Path | None
    annotation_path: Path
    chest_location: str | None = None
    acquisition_mode: str | None = None
    device: str | None = None
    age_years: float | None = None
    sex: str | None = None
    bmi: float | None = None
    diagnosis: str | None = None
    whole: bool = False
    part: str | None = None
    own: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Corpus:
    """What was found on disk, before any sound is decoded.

    Attributes:
        name: The corpus.
        root: The folder with the recordings.
        entries: The recordings, in the order of the table.
        read_events: (entry, duration in seconds or None) -> its events; raises the first problem.
        check_events: Likewise -> every problem.
        tables: Further files that were read: patients, splits.
        problems: What keeps the corpus from being loaded.
        notes: What a user should know although it loads.
        own_columns: Features of the columns that this corpus alone has.
        class_column: The column with its classes: the four of lung sounds, or one of its own.
        rule: What the rows hang on besides the files: the length of windows and the like.
    """

    name: str
    root: Path
    entries: tuple[RecordingEntry, ...]
    read_events: Callable[[RecordingEntry, float | None], list[Event]]
    check_events: Callable[[RecordingEntry, float | None], Sequence[InputError]]
    tables: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    own_columns: datasets.Features = field(default_factory=datasets.Features)
    class_column: str = "label"
    rule: str = ""

    @property
    def features(self) -> datasets.Features:
        """The columns of the cycle table."""
        return datasets.Features({**CYCLE_FEATURES, **self.own_columns})


@dataclass(frozen=True)
class Manifest:
    """The hashes of a corpus.

    Attributes:
        sha256: Hash of every file by path.
        corpus_fingerprint: SHA-256 over names and content of recordings and annotations; what results are quoted with.
        table_fingerprint: SHA-256 over everything the cycle table is made of, paths included; the key of its cache.
    """

    sha256: dict[Path, str] = field(repr=False)
    corpus_fingerprint: str
    table_fingerprint: str


def manifest_of(corpus: Corpus, cache_dir: str | Path | None = None) -> Manifest:
    """Hash every file of a corpus.

    Args:
        corpus: What was found on disk.
        cache_dir: Root of the caches; the hashes are remembered there.
    """
    files = [path for entry in corpus.entries for path in (entry.audio_path, entry.annotation_path) if path is not None]
    sha256 = hash_files([*files, *corpus.tables], cache_dir)
    names = [
        [entry.recording_id, entry.audio_path and sha256[entry.audio_path], sha256[entry.annotation_path]]
        for entry in corpus.entries
    ]
    everything = [
        TABLE_VERSION,
        corpus.name,
        repr(corpus.entries),
        [[str(path), sha256[path]] for path in sorted(sha256)],
    ]
    if corpus.own_columns or corpus.rule:
        everything.append([repr(sorted(corpus.own_columns.items())), corpus.rule])
    return Manifest(sha256, _digest(sorted(names)), _digest(everything))


def corpus_fingerprint(corpus: Corpus, cache_dir: str | Path | None = None) -> str:
    """SHA-256 over the names and content of a corpus' recordings and annotations."""
    return manifest_of(corpus, cache_dir).corpus_fingerprint


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def cycle_rows(corpus: Corpus, entry: RecordingEntry, audio_sha256: str | None) -> list[dict[str, Any]]:
    """The rows of one recording.

    Raises:
        InputError: Its header or its annotation cannot be used.
    """
    rate, duration_s = None, None
    if entry.audio_path is not None:
        rate, frames = read_header(entry.audio_path)
        duration_s = frames / rate
    return [
        {
            "cycle_id": f"{entry.recording_id}#{'record' if entry.whole else f'{index:02d}'}",
            "recording_id": entry.recording_id,
            "patient_id": entry.patient_id,
            "cycle_index": index,
            "start_s": event.start_s,
            "end_s": event.end_s,
            "crackle": event.crackle,
            "wheeze": event.wheeze,
            "label": _label(event),
            "events": None if event.names is None else list(event.names),
            "chest_location": entry.chest_location,
            "acquisition_mode": entry.acquisition_mode,
            "device": entry.device,
            "age_years": entry.age_years,
            "sex": entry.sex,
            "bmi": entry.bmi,
            "diagnosis": entry.diagnosis,
            "source_sampling_rate": rate,
            "recording_path": None if entry.audio_path is None else str(entry.audio_path),
            "audio_sha256": audio_sha256,
            "part": entry.part,
            **dict(entry.own),
        }
        for index, event in enumerate(corpus.read_events(entry, duration_s))
    ]


def _label(event: Event) -> int | None:
    if event.crackle is None or event.wheeze is None:
        return None
    return LABELS.index(label_of(event.crackle, event.wheeze))


class UnusableRecordingsError(InputError):
    """Recordings of a corpus whose header, annotation or sound cannot be used; names all of them.

    Attributes:
        problems: One line each, naming the file.
        usable: The cycle table of the other recordings, or None where it does not matter.
    """

    def __init__(self, problems: Sequence[str], recordings: int, usable: datasets.Dataset | None = None) -> None:
        self.problems = list(problems)
        self.recordings = recordings
        self.usable = usable
        many = f"{len(self.problems)} of {recordings} recordings cannot be used: "
        super().__init__((many if len(self.problems) > 1 else "") + "; ".join(self.problems))


def column_of(table: Any, name: str) -> list[Any]:
    """The values of a column. A datasets column that is iterated is read row by row, at some 30 us a row."""
    return list(table[name][:])


def to_arrow(rows: list[dict[str, Any]], features: datasets.Features = CYCLE_FEATURES) -> pa.Table:
    """Rows as an Arrow table of exactly these features; ClassLabels are integers already."""
    return pa.Table.from_pylist(rows, schema=features.arrow_schema)


@contextlib.contextmanager
def _bar_on_terminals_only() -> Iterator[None]:
    """Keep the bar of `datasets` out of files and pipes, where errors should stand alone."""
    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@dataclass
class CorpusConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """What a builder takes besides the folder.

    Attributes:
        tables_dir: Folder of the patient and split tables, where they are not beside the recordings.
        level: SPRSound: "event" or "record".
        annotations: Folder corpora: the CSV with the cycles.
        allow_missing: Leave out recordings without annotation and the reverse, instead of refusing the folder.
        unlabelled: Folder corpora: cycles may lack a label, and a recording that nobody annotated is one row.
    """

    tables_dir: str | None = None
    level: str = "event"
    annotations: str | None = None
    allow_missing: bool = False
    unlabelled: bool = False


class CycleTableBuilder(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """A `datasets` builder whose one split, "cycles", is the cycle table of a corpus.

    Args:
        data_dir: The corpus on disk.
        cache_dir: Root of the caches; see `laennec.corpora.files.cache_root`.
        **options: The attributes of `CorpusConfig`.

    Raises:
        InputError: The corpus cannot be used as it is.
    """

    VERSION = datasets.Version(TABLE_VERSION)
    BUILDER_CONFIG_CLASS = CorpusConfig
    NAME = ""

    def __init__(self, data_dir: str | Path, cache_dir: str | Path | None = None, **options: Any) -> None:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        self.corpus = self.scan(data_dir, cache_dir, self.BUILDER_CONFIG_CLASS(**options))
        for note in self.corpus.notes:
            warnings.warn(note, stacklevel=2)
        if self.corpus.problems:
            first, more = self.corpus.problems[0], len(self.corpus.problems) - 1
            rest = f" ({more} more; `laennec prepare {self.NAME} --check` lists them)" if more else ""
            raise InputError(first + rest)
        self.manifest = manifest_of(self.corpus, cache_dir)
        tables = cache_root(cache_dir) / "tables"
        with explain_write_errors(tables):
            super().__init__(
                cache_dir=str(tables),
                dataset_name=self.NAME,
                data_dir=str(data_dir),
                hash=self.manifest.table_fingerprint,
                **options,
            )

    @classmethod
    @abstractmethod
    def scan(cls, data_dir: str | Path, cache_dir: str | Path | None, config: CorpusConfig) -> Corpus:
        """Find the recordings, their annotations and their patients."""

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Build the table or find it in the cache; a user's mistake stays an `InputError`."""
        # `datasets` has a lock of its own, on which it would wait for ever for a process that hangs
        place = Path(self.cache_dir)
        with explain_write_errors(place), wait_for_lock(place), _bar_on_terminals_only():
            try:
                super().download_and_prepare(*args, **kwargs)
            except datasets.exceptions.DatasetGenerationError as error:
                cause = error.__cause__
                if isinstance(cause, InputError):
                    raise cause from None
                if cause is not None and (mended := writing_error(self.cache_dir, cause)):
                    raise mended from error
                raise

    def table(self) -> datasets.Dataset:
        """The cycle table, built if need be."""
        self.download_and_prepare()
        return self.as_dataset(split="cycles")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=self.corpus.features)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        numbers = list(range(len(self.corpus.entries)))  # a list here is what workers may share out
        return [datasets.SplitGenerator(name="cycles", gen_kwargs={"numbers": numbers})]

    def _generate_tables(self, numbers: list[int]) -> Iterator[tuple[Any, pa.Table]]:
        problems: list[str] = []
        for first in range(0, len(numbers), _RECORDINGS_PER_BATCH):
            rows = []
            for number in numbers[first : first + _RECORDINGS_PER_BATCH]:
                entry = self.corpus.entries[number]
                sha256 = None if entry.audio_path is None else self.manifest.sha256[entry.audio_path]
                try:
                    rows += cycle_rows(self.corpus, entry, sha256)
                except InputError as error:
                    problems.append(str(error))
            yield str(first), to_arrow(rows, self.corpus.features)
        if problems:
            raise UnusableRecordingsError(problems, len(numbers), self._usable(numbers))

    def _usable(self, numbers: list[int]) -> datasets.Dataset:
        """The rows of the recordings that have no problem, so that they can be decoded nevertheless."""
        rows: list[dict[str, Any]] = []
        for number in numbers:
            entry = self.corpus.entries[number]
            if entry.audio_path is not None:
                with contextlib.suppress(InputError):
                    rows += cycle_rows(self.corpus, entry, self.manifest.sha256[entry.audio_path])
        return datasets.Dataset(to_arrow(rows, self.corpus.features))
