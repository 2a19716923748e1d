"""Process many recordings and keep the results in a folder.

Decisions: a recording that cannot be read is listed in laennec.failed.csv and the others are finished. An interrupted
batch resumes where it stopped and ends with the same files as an uninterrupted one, whatever the number of processes.
An output folder belongs to one model and one set of settings, and may hold other files, such as the recordings: results
have "laennec" in their names, and do not replace files of another origin or files that a user has changed. One process
writes the tables over all recordings, once, at the end; workers (`--jobs`) only compute, and ranks of a launch write
the files of the recordings they have claimed.
"""

import contextlib
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unicodedata import normalize

from laennec.audio.recording import AUDIO_SUFFIXES
from laennec.errors import InputError
from laennec.files import (
    atomic_write,
    explain_write_errors,
    is_result,
    json_text,
    lock_or_refuse,
    remove_temporary_files,
)
from laennec.inference.batch.jobs import Ranks, Task, Worker, outcomes, reason_of
from laennec.inference.batch.journal import (
    JOURNAL,
    Journal,
    Results,
    RewrittenError,
    content_of,
    open_journal,
    status_of,
)
from laennec.inference.outputs import write_failures
from laennec.untrusted import parse_json, read_bytes

ANNOTATION_SUFFIXES = (".txt", ".json", ".labels.txt", ".selections.txt", ".Table.1.selections.txt")
FAILED = "laennec.failed.csv"
_DIGESTS = ".laennec.tables.json"  # of the files over all recordings, as they were written
CHANGED = "was changed after it was written; move it away, or choose another --out, or pass --overwrite to replace it"
_LONGEST_NAME = 200  # bytes; file systems allow 255, suffixes and temporary names included
_POLL_S = 0.2  # interval of waiting for other ranks
_ATTEMPTS = 5  # of a batch whose journal another machine writes to

Progress = Callable[[float, int], None]


@dataclass
class BatchResult:
    """The outcome of one call."""

    files: list[Path] = field(default_factory=list)  # the files of this call's recordings, and the tables
    predicted: list[str] = field(default_factory=list)  # the recordings that have results now
    failed: list[tuple[str, str]] = field(default_factory=list)  # the other recordings, each with its reason
    resumed: int = 0  # how many of `predicted` an earlier call had already finished


def find_recordings(inputs: str | Path | Sequence[str | Path]) -> list[Path]:
    """List the given files and the audio files in the given folders, each once.

    Raises:
        InputError: There is none, or a folder cannot be read.
    """
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    found: dict[str, Path] = {}
    for item in map(Path, given):
        for path in sorted(sounds_below(item)) if os.path.isdir(item) else [item]:
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise InputError(
            f"no recordings in {', '.join(map(str, given))}; give audio files or a folder that contains some"
        )
    return list(found.values())


def sounds_below(folder: Path) -> Iterator[Path]:
    """The audio files in a folder and the folders below it, then those in linked folders."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: this folder cannot be read ({error.strerror}); check its permissions")

    seen, waiting = set(), [str(folder)]
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0), onerror=refuse):
            if (real := os.path.realpath(place)) in seen:  # a link to a folder that was searched
                folders.clear()
                continue
            seen.add(real)
            waiting += filter(os.path.islink, (os.path.join(place, name) for name in sorted(folders)))
            for path in (Path(place, name) for name in names if not name.startswith(".")):
                if path.suffix.lower() in AUDIO_SUFFIXES:
                    yield path


class Batch(ABC):
    """The recordings of one call and their files."""

    suffixes: ClassVar[dict[str, str]]
    """Formats with one file per recording."""
    tables: ClassVar[tuple[str, ...]]
    """Files over all recordings, except the list of failures."""

    def __init__(
        self, out: Path, recordings: Sequence[Path], formats: Sequence[str], annotation: str | Path | None
    ) -> None:
        refuse_shared_annotation(annotation, recordings)
        self.out, self.recordings, self.formats = out, recordings, tuple(dict.fromkeys(formats))
        self.annotation = annotation
        self.names = output_names(recordings)
        self.results = Results(out, set(self.names.values()), self.suffixes.values(), (*self.tables, FAILED, _DIGESTS))
        self.kept: set[Path] = set()  # files of a finished recording that another format is added to
        self.overwrite = False

    def others(self, path: Path) -> list[str | None]:
        """Digests of what the results of a recording depend on besides the recording and the settings."""
        return [digest_of(annotation_of(path, self.annotation))]

    def task(self, path: Path) -> Any:
        """What a worker needs besides the path; errors as for `others`."""
        return annotation_of(path, self.annotation)

    @abstractmethod
    def worker(self) -> Worker:
        """A function, which can be pickled, that returns the journal entry of a recording and what else is written."""

    @abstractmethod
    def write(self, path: Path, entry: dict[str, Any], more: Any) -> None:
        """Write the files of a recording."""

    @abstractmethod
    def restore(self, path: Path, missing: Sequence[Path], timeline: dict[str, Any]) -> dict[str, Any] | None:
        """Write missing files of a finished recording again for its present path; None if it must be computed again."""

    @abstractmethod
    def write_tables(self, journal: Journal, recordings: Sequence[Path]) -> list[Path]:
        """Write the tables over all finished recordings."""

    def run(
        self, identity: dict[str, Any], *, overwrite: bool, progress: Progress | None, jobs: int = 1
    ) -> "BatchResult":
        """Compute what is not in the journal, then write the tables."""
        self.overwrite = overwrite
        try:
            with explain_write_errors(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.out}: this folder cannot be created ({error.strerror}); choose another --out"
            ) from error
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(RewrittenError):
                return self._run(identity, progress, jobs)
        return self._run(identity, progress, jobs)

    def _run(self, identity: dict[str, Any], progress: Progress | None, jobs: int) -> "BatchResult":
        """One attempt of `run`."""
        ranks = Ranks(self.out)
        with contextlib.ExitStack() as stack:
            if not ranks.rank:
                stack.enter_context(lock_or_refuse(self.out / JOURNAL))
            stack.callback(ranks.close)
            with open_journal(self.results, identity, self.overwrite, ranks.rank) as journal:
                if ranks.size == 1:  # temporary files that a killed process left
                    own = [*self.results.files(self.results.names), *self.results.tables]
                    remove_temporary_files(self.out, own)
                if not ranks.rank:
                    self._refuse_changed_tables()
                    self.begin()
                result = BatchResult()
                done, failed = self._compute(journal, ranks, progress or (lambda done, total: None), jobs, result)
            ranks.close()
            if not ranks.rank:
                self._finish(journal, done, failed, result)
        return result

    def begin(self) -> None:  # noqa: B027
        """Write files that are known before anything is computed, unless they exist."""

    def _compute(
        self, journal: Journal, ranks: Ranks, progress: Progress, jobs: int, result: "BatchResult"
    ) -> tuple[set[Path], dict[Path, str]]:
        """Work on recordings until none is left; returns the finished ones, and the reasons of failed ones."""
        done = {path for path in self.recordings if self._is_finished(path, journal)}
        result.resumed = len(done)
        failed: dict[Path, str] = {}
        begun: dict[Path, dict[str, Any]] = {}
        total = len(self.recordings)
        first = ranks.rank * total // ranks.size

        def tasks() -> Iterator[Task]:
            for path in (*self.recordings[first:], *self.recordings[:first]):
                if path in done or path in failed or not ranks.claim(self.names[path]):
                    continue
                if ranks.size > 1:
                    journal.refresh()
                    if self._is_finished(path, journal):
                        done.add(path)
                        ranks.release(self.names[path])
                        continue
                try:
                    if file := self._changed(path, journal):
                        raise InputError(f"{file}: {CHANGED}")
                    task = self.task(path)
                    with contextlib.suppress(OSError, ValueError):  # the worker reports why it cannot be read
                        begun[path] = {"status": status_of(path), "others": self.others(path)}
                except InputError as error:
                    failed[path] = reason_of(path, error)
                    continue
                yield path, task

        def report(part: float) -> None:
            progress(len(done) + len(failed) + min(part, 0.99), total)

        progress(len(done), total)
        while True:
            left = total - len(done) - len(failed)
            with contextlib.closing(outcomes(self.worker(), tasks(), min(jobs, max(left, 1)), report)) as results:
                for path, outcome in results:
                    content = None if isinstance(outcome, str) else _same_content(path, begun.get(path))
                    if isinstance(outcome, str):
                        failed[path] = outcome
                    elif content is None:
                        failed[path] = f"{path}: changed while it was read; run the same command again"
                    else:
                        files = self._replacing(path, journal)
                        self.write(path, *outcome)
                        self._finished(path, journal, files, content=content, **begun[path], timeline=outcome[0])
                        done.add(path)
                        ranks.release(self.names[path])
                    progress(len(done) + len(failed), total)
            if ranks.rank or len(done) + len(failed) == total:
                return done, failed
            time.sleep(_POLL_S)

    def _finish(self, journal: Journal, done: set[Path], failed: dict[Path, str], result: "BatchResult") -> None:
        """Write one journal in the order of the recordings, the tables, and the list of failures."""
        finished = [path for path in self.recordings if path in done]
        names = [self.names[path] for path in finished]
        journal.read_again(names)
        journal.join(names)
        for path in self.recordings:
            if path in done:
                result.predicted.append(str(path))
                result.files += self.files(path)
            else:
                result.failed.append((str(path), failed[path]))
        known = self._table_digests()
        (self.out / _DIGESTS).unlink(missing_ok=True)  # a kill from here on leaves no digests
        if finished:
            result.files += self.write_tables(journal, finished)
        if result.failed:
            result.files.append(write_failures(self.out / FAILED, result.failed))
        else:
            (self.out / FAILED).unlink(missing_ok=True)
        made = [path for name in (*self.tables, FAILED) if (path := self.out / name).exists()]
        digests = known | {path.name: content_of(path) for path in made}
        with atomic_write(self.out / _DIGESTS) as file:
            file.write(json_text(digests, sort_keys=True))  # type: ignore[call-overload]

    def _is_finished(self, path: Path, journal: Journal) -> bool:
        """Whether a recording is finished, after its missing files are restored."""
        name = self.names[path]
        entry = journal.entries.get(name)
        try:
            if entry is None or not entry.is_of(path, others := self.others(path)):
                return False
        except (OSError, ValueError):
            return False
        moved = entry.recording != str(path)
        missing = [file for file in self.files(path) if moved or not file.exists()]
        if self.overwrite and any(_differs(self.out / file, digest) for file, digest in entry.files.items()):
            return False
        if not missing and not moved:
            return True
        if moved and self._changed(path, journal):
            return False
        timeline = journal.read(name)
        files = self._replacing(path, journal) if moved else entry.files
        restored = self.restore(path, missing, timeline)
        if restored is not None and (moved or not files.keys() >= {file.name for file in missing}):
            said = {"status": status_of(path), "others": others, "timeline": restored}
            self._finished(path, journal, files, content=entry.content, **said)
        return restored is not None

    def _changed(self, path: Path, journal: Journal) -> Path | None:
        """A file that would be replaced, but that somebody has changed since it was written."""
        entry = journal.entries.get(self.names[path])
        files = {} if entry is None or self.overwrite else entry.files
        found = ((self.out / name, digest) for name, digest in files.items())
        return next((file for file, digest in found if file not in self.kept and _differs(file, digest)), None)

    def _table_digests(self) -> dict[str, str]:
        """Name -> digest of the files over all recordings, as far as they are known."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            return dict(parse_json(read_bytes(self.out / _DIGESTS)))
        return {}

    def _refuse_changed_tables(self) -> None:
        for name, digest in {} if self.overwrite else self._table_digests().items():
            if name in (*self.tables, FAILED) and _differs(self.out / name, digest):
                raise InputError(f"{self.out / name}: {CHANGED}")

    def _replacing(self, path: Path, journal: Journal) -> dict[str, str]:
        """Record that a recording's files are replaced, and remove those of other formats; returns the kept ones."""
        entry, files = journal.entries.get(self.names[path]), self.files(path)
        if entry is None or not self.kept.isdisjoint(files):
            return entry.files if entry else {}
        journal.write(replaced=self.names[path])
        for name in entry.files.keys() - {file.name for file in files}:
            (self.out / name).unlink(missing_ok=True)
        return {}

    def _finished(self, path: Path, journal: Journal, files: dict[str, str], **said: Any) -> None:
        """Record in the journal that a recording is finished; `files` were written earlier."""
        new = {file.name: content_of(file) for file in self.files(path) if file.name not in files}
        journal.write(name=self.names[path], files={**files, **new}, **said)

    def may_write(self, path: Path) -> bool:
        """Whether a file has the name of a result of this batch."""
        return path.absolute().parent == self.out.absolute() and is_result(path)

    def files(self, path: Path) -> list[Path]:
        """The files of a recording."""
        return [self.out / f"{self.names[path]}{self.suffixes[f]}" for f in self.formats if f in self.suffixes]


def _differs(file: Path, digest: str) -> bool:
    """Whether a file exists and has another content than it was written with."""
    try:
        return content_of(file) != digest
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # such as a folder of its name
        return True


def _same_content(path: Path, begun: dict[str, Any] | None) -> str | None:
    """The digest of a recording; None if it has changed since work on it began."""
    with contextlib.suppress(OSError):
        content = content_of(path)
        if begun is not None and status_of(path) == begun["status"]:
            return content
    return None


def annotation_of(recording: Path, annotation: str | Path | None) -> Path | None:
    """Find the annotation of a recording: the file itself, or the file with the recording's name in a folder."""
    if annotation is None:
        return None
    place = Path(annotation)
    if not place.is_dir():
        return place
    found = [p for suffix in ANNOTATION_SUFFIXES if (p := place / f"{recording.stem}{suffix}").exists()]
    if len(found) > 1:
        names = " and ".join(p.name for p in found[:2])
        raise InputError(f"{recording}: two annotations in {place} ({names}); remove one, or give the file itself")
    return found[0] if found else place / f"{recording.stem}{ANNOTATION_SUFFIXES[0]}"


def refuse_shared_annotation(annotation: str | Path | None, recordings: Sequence[Path]) -> None:
    """Refuse an annotation that is not there, and one file for several recordings."""
    if annotation is None or len(recordings) < 2:
        return
    if not Path(annotation).exists():
        raise InputError(f"{annotation}: no such file or folder; check the path of the annotations (--annotation)")
    if not Path(annotation).is_dir():
        raise InputError(f"{annotation}: one annotation for {len(recordings)} recordings; give a folder of annotations")
    of: dict[str, Path] = {}
    for recording in recordings:
        first = of.setdefault(recording.stem, recording)
        if first.resolve() != recording.resolve() and (file := annotation_of(recording, annotation)) and file.exists():
            raise InputError(f"{file}: is for {first} and {recording}; predict one of them at a time")


def check_formats(formats: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an unknown format, and none at all."""
    unknown = [f for f in formats if f not in known]
    if unknown or not formats:
        problem = f"unknown format {unknown[0]!r}" if unknown else "no format"
        raise InputError(f"format: {problem}; choose from {', '.join(known)}")


def digest_of(annotation: Path | None) -> str | None:
    """sha256 of an annotation; None where there is none."""
    return None if annotation is None else hashlib.sha256(read_bytes(annotation)).hexdigest()


def output_names(recordings: Sequence[Path]) -> dict[Path, str]:
    """Output names: the stem; where stems are equal, the path below the common folder; otherwise with a number.

    Names that differ only in case or Unicode normalisation count as equal, because some file systems do not keep both.
    """
    stems = Counter(_folded(_shortened(p.stem)) for p in recordings)
    common = Path(os.path.commonpath([p.absolute().parent for p in recordings]))
    names: dict[Path, str] = {}
    taken: set[str] = set()
    # unique stems first, so that they keep their names
    for path in sorted(recordings, key=lambda p: stems[_folded(_shortened(p.stem))] > 1):
        stem = _shortened(path.stem)
        way = path.absolute().relative_to(common).parts
        name = wanted = stem if stems[_folded(stem)] == 1 else _shortened("_".join(way))
        number = 1
        while _folded(name) in taken:
            number += 1
            name = f"{wanted}_{number}"
        names[path] = name
        taken.add(_folded(name))
    return names


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()


def _shortened(name: str) -> str:
    """The end of a name that would be too long for a file system together with its suffix."""
    return os.fsdecode(os.fsencode(name)[-_LONGEST_NAME:]) if len(os.fsencode(name)) > _LONGEST_NAME else name
