"""The journal of a batch: which recordings are finished, so that an interrupted batch can resume.

Decisions: a finished recording is one line with its whole timeline, appended and synced after its files are written;
the tables over all recordings are made from these lines. A kill costs at most the current recording. Each line begins
with a checksum of the rest; the recordings of lines after a damaged one are computed again. A line is valid only for a
recording and an annotation of the same content, and a journal only for the same model and settings. A recording's
content is compared only where its path, inode or time of change differ. Before anything is written, a line claims the
names of the files; existing files of other names are the user's. Failures are not recorded, so they are tried again. A
line has the digest of each written file, to find files that a user corrected; before the files of a finished recording
are replaced, a line invalidates its entry. Each rank of a launch writes a journal of its own, so that no file has two
writers; the first rank joins them at the end, with the lines in the order of the recordings. Machines that do not see
each other's locks share one journal and can lose each other's lines: it is read again before it is joined, and missing
recordings are computed again.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.files import LINE_BEGIN, appending, atomic_write, checked_line, journal_line
from laennec.terminal import complain
from laennec.untrusted import open_regular, parse_json

JOURNAL = "laennec.journal.jsonl"
_OF_RANKS = "laennec.journal.*.jsonl"
_PATIENCE_S = 600.0
_VERSION = 4


def status_of(recording: str | Path) -> list[Any]:
    """A file's absolute path, inode, time of its last change in ns and size; if they are the same, so is the file.

    Raises:
        OSError: The file cannot be accessed.
    """
    status = os.stat(recording)
    return [os.path.abspath(recording), status.st_ino, status.st_ctime_ns, status.st_size]


def content_of(recording: str | Path) -> str:
    """blake2b of a file, 16 bytes in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with open_regular(recording) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class RewrittenError(InputError):
    """A journal does not hold what this process wrote to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: another machine writes to this folder; wait until it has ended, and run the same command again"
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished recording.

    Attributes:
        place: Journal, and first byte and length of its line there.
        recording: Its path as it was given.
        status: See `status_of`.
        content: See `content_of`.
        others: What else its results were made from: digests of the annotation, or of the rows of a corpus.
        files: Name -> digest (`content_of`) of each file that was written.
    """

    place: tuple[Path, int, int]
    recording: str
    status: list[Any]
    content: str
    others: list[str | None]
    files: dict[str, str]

    def is_of(self, recording: Path, others: Sequence[str | None]) -> bool:
        """Whether the entry is valid for this recording in its present state.

        Raises:
            OSError: The recording cannot be read.
        """
        now = status_of(recording)
        if self.others != list(others) or now[-1] != self.status[-1]:
            return False
        return now == self.status or content_of(recording) == self.content


class Journal:
    """The finished recordings of one output folder; created by `open_journal`.

    Args:
        path: The file that this process appends to. Finished recordings of the other journals in its folder are found
            too.

    Attributes:
        identity: Model and settings; None for a new journal.
        size: Bytes of whole lines in the file of this process.
        claimed: Names that results in this folder have or may get.
        entries: Name of the output files -> their recording.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.append: Callable[[bytes], None] | None = None
        self._start()

    def _start(self) -> None:
        """Read the file of this process."""
        self.identity: dict[str, Any] | None = None
        self.claimed: set[str] = set()
        self.entries: dict[str, Entry] = {}
        self._doubled = False
        self._read: dict[Path, _Read] = {}
        self._take_in(self.path)

    @property
    def size(self) -> int:
        """Bytes of whole lines in the file of this process."""
        return self._read[self.path].size

    @property
    def others(self) -> list[Path]:
        """The journals of the other ranks; that of the first rank comes last, because it takes over the others."""
        folder, first = self.path.parent, self.path.with_name(JOURNAL)
        return [p for p in (*sorted(folder.glob(_OF_RANKS)), first) if p != self.path and p.exists()]

    def refresh(self) -> None:
        """Read what other ranks have written since."""
        for path in self.others:
            self._take_in(path)

    def _take_in(self, path: Path) -> None:
        """Read the new lines of a file, up to the first truncated or damaged one."""
        read = self._read.setdefault(path, _Read())
        with contextlib.suppress(FileNotFoundError), open_regular(path) as file:
            if (number := os.fstat(file.fileno()).st_ino) != read.inode:  # the file was replaced
                read.inode, read.size, read.valid = number, 0, False
            file.seek(read.size)
            for line in file:
                if not line.endswith(b"\n"):  # cut off by a kill, or being written
                    return
                try:
                    self._load(path, line)
                except (ValueError, KeyError, TypeError):
                    complain(f"{path}: damaged after {len(self.entries)} recordings; the others are predicted again")
                    return

    def _load(self, path: Path, line: bytes) -> None:
        """Apply one line."""
        said, read = parse_json(checked_line(line)), self._read[path]
        if not read.size:
            if said["journal"] != _VERSION:
                raise ValueError("another version")
            identity = dict(said["identity"])
            if path == self.path:
                self.identity = identity
            read.valid = identity == self.identity
        elif "names" in said:
            names = set(map(str, said["names"])) if read.valid else set()
            self._doubled |= read.valid and names <= self.claimed
            self.claimed |= names
        elif "replaced" in said:
            self._doubled = True
            self.entries.pop(str(said["replaced"]), None)
        else:
            place = (path, read.size, len(line))
            recording, content = str(said["timeline"]["recording"]), str(said["content"])
            path_then, inode, changed_ns, size = said["status"]
            status = [path_then, inode, changed_ns, size]
            entry = Entry(place, recording, status, content, list(said["others"]), dict(said["files"]))
            if read.valid:
                self._doubled |= said["name"] in self.entries
                self.entries[str(said["name"])] = entry
        read.size += len(line)

    def write(self, **said: Any) -> None:
        """Append a line: the identity first, then names, entries, or the name of an entry that is no longer valid.

        Raises:
            InputError: The disk is full or not writable.
        """
        line = journal_line(**said)
        assert self.append is not None, "a journal is written inside open_journal"
        self.append(line)
        self._load(self.path, line)

    def read(self, name: str) -> dict[str, Any]:
        """The timeline of a finished recording.

        Raises:
            RewrittenError: Its line is not where it was.
        """
        timeline: dict[str, Any] = self._line(name)[1]["timeline"]
        return timeline

    def _line(self, name: str) -> tuple[bytes, dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
            path, start, length = self.entries[name].place
            with open_regular(path) as file:
                file.seek(start)
                line = checked_line(file.read(length))
            if (said := parse_json(line))["name"] == name:
                return line, said
        raise RewrittenError(self.path)

    def read_again(self, names: Iterable[str]) -> None:
        """Read the files again; a machine that does not see the locks of this one may have written to them.

        Raises:
            RewrittenError: Not all of these recordings are in them, or not with this model and settings.
        """
        identity = self.identity
        self._start()
        self.refresh()
        if self.identity != identity or not self.entries.keys() >= set(names):
            raise RewrittenError(self.path)

    def join(self, names: Sequence[str]) -> None:
        """Join the journals of all ranks into one, with these recordings in this order.

        A journal that has this form already is not changed.
        """
        places, others = [self.entries[name].place for name in names], self.others
        if not others and not self._doubled and places == sorted(places):
            return
        chosen = set(names)
        order = [name for name in self.entries if name not in chosen] + list(names)
        with atomic_write(self.path, "wb") as file:
            file.write(journal_line(journal=_VERSION, identity=self.identity))  # type: ignore[call-overload]
            file.write(journal_line(names=sorted(self.claimed)))  # type: ignore[call-overload]
            for name in order:
                file.write(self._line(name)[0])  # type: ignore[call-overload]
        for path in others:
            path.unlink(missing_ok=True)
        self._start()


@dataclass
class _Read:
    """How far a file was read: which file, bytes of whole lines, and whether they belong to this model and settings."""

    inode: int = 0
    size: int = 0
    valid: bool = False


def _refuse_others(path: Path) -> None:
    """Refuse a file that has the name of a journal but is not one."""
    with contextlib.suppress(FileNotFoundError), open_regular(path) as file:
        begin = file.read(len(LINE_BEGIN)).rstrip(b"\0")
        if not LINE_BEGIN.startswith(begin):
            raise InputError(
                f"{path}: is not a journal of this version of laennec; move it away, or choose another --out, or pass "
                "--overwrite to replace it"
            )


@dataclass
class Results:
    """The files of a batch.

    Attributes:
        folder: The output folder.
        names: Of the files of each recording, without suffix.
        suffixes: That a name can have.
        tables: Names of the files over all recordings.
        claimed: Whether this process has claimed the files, even if another machine has replaced the journal since.
    """

    folder: Path
    names: Collection[str]
    suffixes: Collection[str]
    tables: Collection[str]
    claimed: bool = False

    def files(self, names: Iterable[str]) -> list[str]:
        """The files that recordings of these names can have."""
        return [f"{name}{suffix}" for name in names for suffix in self.suffixes]

    def forget(self, journal: Journal) -> None:
        """Remove all files that a journal claims, so that none of them stays among other results."""
        for file in (*self.files(journal.claimed), *(self.tables if journal.claimed else ())):
            (self.folder / file).unlink(missing_ok=True)

    def unclaimed(self, there: set[str], journal: Journal) -> str | None:
        """An existing file that would be replaced but that no journal claims; None if there is none."""
        journal.refresh()
        wanted = self.files(set(self.names) - journal.claimed) + ([] if journal.claimed else list(self.tables))
        return min(there & set(wanted), default=None)


@contextlib.contextmanager
def open_journal(results: Results, identity: dict[str, Any], overwrite: bool, rank: int = 0) -> Iterator[Journal]:
    """Open the journal of an output folder, or create it, and claim the files of a batch.

    Args:
        results: The files of the batch.
        identity: Model and settings, as plain values.
        overwrite: Replace a journal of another model or other settings, and files that no journal claims.
        rank: Of this process in its launch; the first one's journal is the folder's.

    Raises:
        InputError: The journal cannot be written; or, without `overwrite`, it is of another model or other settings,
            a file that would be replaced is not claimed, or a file with a journal's name is not one.
    """
    identity, folder = json.loads(json.dumps(identity)), results.folder
    own = folder / (_OF_RANKS.replace("*", str(rank)) if rank else JOURNAL)
    if not overwrite:
        for path in (folder / JOURNAL, *folder.glob(_OF_RANKS)):
            _refuse_others(path)
    journal = Journal(folder / JOURNAL)
    if journal.identity is not None and journal.identity != identity:
        if journal.entries and not overwrite:  # an empty journal can always be replaced
            what = first_difference(journal.identity, identity)
            raise InputError(
                f"{folder}: contains predictions with another model or other settings ({what}); choose another "
                "--out, or pass --overwrite to replace them"
            )
        if rank:
            _wait_for(journal.path, identity)
        else:
            results.forget(journal)
            journal.path.unlink()
    there = set(os.listdir(folder))  # listed before the journal is read, so that files of other processes are claimed
    journal = Journal(own)
    if rank and journal.identity not in (None, identity):
        own.unlink()
        journal = Journal(own)
    journal.identity = identity if journal.identity is None else journal.identity
    if (file := results.unclaimed(there, journal)) is not None and not overwrite and not results.claimed:
        raise InputError(
            f"{folder / file}: was not written by an earlier run with this --out; choose another --out, or pass "
            "--overwrite to replace it"
        )
    with appending(own, journal.size) as journal.append:
        if not journal.size:
            journal.write(journal=_VERSION, identity=identity)
        journal.refresh()
        if not journal.claimed.issuperset(results.names):
            journal.write(names=sorted({*journal.claimed, *results.names}))
        results.claimed = True
        yield journal


def _wait_for(path: Path, identity: dict[str, Any]) -> None:
    """Wait until the first rank has replaced the journal of another model or other settings."""
    until = time.monotonic() + _PATIENCE_S
    while Journal(path).identity != identity:
        if time.monotonic() > until:
            raise InputError(
                f"{path.parent}: the first process has not replaced the earlier results; run the same command again"
            )
        time.sleep(0.1)


def first_difference(before: Any, now: Any, name: str = "") -> str:
    """Describe the first difference between two identities."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in before if k not in now)]:
            if before.get(key) != now.get(key):
                return first_difference(before.get(key), now.get(key), f"{name} {key}".strip())
    shown = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    short = [text if len(text) <= 40 else f"{text[:37]}..." for text in shown]
    return f"{name} was {short[0]}, now {short[1]}"
