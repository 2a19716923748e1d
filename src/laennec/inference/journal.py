"""The journal of a batch: which recordings are finished, so that an interrupted batch can resume.

Decisions: a finished recording is one line with its whole timeline, appended and synced after the recording's own files
are written; the tables over all recordings are made from these lines. So a kill at any moment costs at most the current
recording. A line is valid only for the same recording (path, size, modification time) and annotation (content), and a
journal only for the same model and settings. Failures are not recorded; they are tried again. Each rank of a launch
writes a journal of its own beside the first one's, so that no file has two writers; whoever ends a batch joins them,
with the lines in the order of the recordings.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.files import appending, atomic_write
from laennec.untrusted import open_regular, parse_json, read_bytes

JOURNAL = "journal.jsonl"
_OF_RANKS = "journal.*.jsonl"
_PATIENCE_S = 600.0
_VERSION = 1


def key_of(recording: str | Path, annotation: str | Path | None) -> str | None:
    """Identify a recording and its annotation as they are now; None where either cannot be read."""
    try:
        status = os.stat(recording)
        digest = None if annotation is None else hashlib.sha256(read_bytes(annotation)).hexdigest()
    except (OSError, ValueError):
        return None
    return json.dumps([str(recording), status.st_size, status.st_mtime_ns, digest])


class Journal:
    """The finished recordings of one output folder; created by `open_journal`.

    Args:
        path: The file that this process appends to. Finished recordings of the other journals in its folder are found
            too.

    Attributes:
        identity: Model and settings; None for a new journal.
        size: Bytes of whole lines in the file of this process.
        owners: Name of the output files -> key of their recording.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.append: Callable[[bytes], None] | None = None
        self._start()

    def _start(self) -> None:
        """Read the file of this process."""
        self.identity: dict[str, Any] | None = None
        self.owners: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._read: dict[Path, _Read] = {}
        self._take_in(self.path)

    @property
    def size(self) -> int:
        """Bytes of whole lines in the file of this process."""
        return self._read[self.path].size

    @property
    def others(self) -> list[Path]:
        """The journals of the other ranks, that of the first one last: it takes over what the others have."""
        folder, first = self.path.parent, self.path.with_name(JOURNAL)
        return [p for p in (*sorted(folder.glob(_OF_RANKS)), first) if p != self.path and p.exists()]

    def refresh(self) -> None:
        """Take in what other ranks have written since."""
        for path in self.others:
            self._take_in(path)

    def _take_in(self, path: Path) -> None:
        """Take in the lines of a file that were not there before; the first truncated or damaged line ends it."""
        read = self._read.setdefault(path, _Read())
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError), open_regular(path) as file:
            if (number := os.fstat(file.fileno()).st_ino) != read.inode:  # it was written anew
                read.inode, read.size, read.valid = number, 0, False
            file.seek(read.size)
            for line in file:
                self._load(path, line)

    def _load(self, path: Path, line: bytes) -> None:
        """Take in one line."""
        entry, read = parse_json(line), self._read[path]
        if not line.endswith(b"\n"):
            raise ValueError("truncated")
        if not read.size:
            if entry["journal"] != _VERSION:
                raise ValueError("another version")
            identity = dict(entry["identity"])
            if path == self.path:
                self.identity = identity
            read.valid = identity == self.identity
        else:
            key, name, _ = str(entry["key"]), str(entry["name"]), dict(entry["timeline"])
            if read.valid:
                self._places[key], self.owners[name] = (path, read.size, len(line)), key
        read.size += len(line)

    def write(self, **entry: Any) -> None:
        """Append a line: the identity first, then key, name and timeline of each finished recording.

        Raises:
            InputError: The disk is full or not writable.
        """
        line = _line_of(**entry)
        assert self.append is not None, "a journal is written inside open_journal"
        self.append(line)
        self._load(self.path, line)

    def __contains__(self, key: str | None) -> bool:
        return key in self._places

    def read(self, key: str) -> dict[str, Any]:
        """The timeline of a finished recording."""
        timeline: dict[str, Any] = json.loads(self._line(key))["timeline"]
        return timeline

    def _line(self, key: str) -> bytes:
        path, start, length = self._places[key]
        with open_regular(path) as file:
            file.seek(start)
            return file.read(length)

    def join(self, keys: Sequence[str]) -> None:
        """Make one journal of those of all ranks, in which these recordings have this order.

        A journal that is so already stays as it is.
        """
        places, others = [self._places[key] for key in keys], self.others
        if not others and places == sorted(places):
            return
        chosen = set(keys)
        order = [key for key in self._places if key not in chosen] + list(keys)
        with atomic_write(self.path, "wb") as file:
            file.write(_line_of(journal=_VERSION, identity=self.identity))  # type: ignore[call-overload]
            for key in order:
                file.write(self._line(key))  # type: ignore[call-overload]
        for path in others:
            path.unlink(missing_ok=True)
        self._start()


@dataclass
class _Read:
    """How far a file was read: which file, bytes of whole lines, and whether they belong to this model and settings."""

    inode: int = 0
    size: int = 0
    valid: bool = False


def _line_of(**entry: Any) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


@contextlib.contextmanager
def open_journal(
    folder: Path, identity: dict[str, Any], overwrite: bool, forget: Callable[[Journal], None], rank: int = 0
) -> Iterator[Journal]:
    """Open the journal of an output folder, or create it.

    Args:
        folder: The output folder.
        identity: Model and settings, as plain values.
        overwrite: Replace a journal of another model or other settings.
        forget: Called with such a journal before it is replaced.
        rank: Of this process in its launch; the first one's journal is the folder's.

    Raises:
        InputError: The journal belongs to another model or other settings and `overwrite` is False, or it cannot be
            written.
    """
    identity = json.loads(json.dumps(identity))
    journal = Journal(folder / JOURNAL)
    if journal.identity is not None and journal.identity != identity:
        if journal.owners and not overwrite:  # an empty journal can always be replaced
            what = first_difference(journal.identity, identity)
            raise InputError(
                f"{folder}: contains predictions with another model or other settings ({what}); choose another "
                "--out, or pass --overwrite to replace them"
            )
        if rank:
            _wait_for(journal.path, identity)
        else:
            forget(journal)
            journal.path.unlink()
    own = folder / (_OF_RANKS.replace("*", str(rank)) if rank else JOURNAL)
    journal = Journal(own)
    if rank and journal.identity not in (None, identity):
        own.unlink()
        journal = Journal(own)
    with appending(own, journal.size) as journal.append:
        if journal.identity is None:
            journal.write(journal=_VERSION, identity=identity)
        journal.refresh()
        yield journal


def _wait_for(path: Path, identity: dict[str, Any]) -> None:
    """Wait until the first rank has replaced the journal of another model or other settings."""
    until = time.monotonic() + _PATIENCE_S
    while Journal(path).identity != identity:
        if time.monotonic() > until:
            raise InputError(
                f"{path.parent}: the first rank does not replace what is there; run the same command again"
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
