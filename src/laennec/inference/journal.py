"""Which recordings of a batch are answered already, so that it goes on where it stopped.

Decisions: an answered recording is one line that holds its whole timeline, added to a file and forced to disk once
the recording's own files are written; the tables of all recordings are made from the lines at the end. So a kill at any
moment costs the recording in work at most, and nothing is written twice. A line counts for the same recording (path,
size, time of change) and annotation (content) only, and a journal for the same model and settings only: what is said to
be one batch was answered by one rule. Failures are not kept; they are tried again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.files import appending
from laennec.untrusted import open_regular, parse_json, read_bytes

JOURNAL = "journal.jsonl"
_VERSION = 1


def key_of(recording: str | Path, annotation: str | Path | None) -> str | None:
    """What an answer belongs to: the recording and the annotation as they are now; None where either cannot be read."""
    try:
        status = os.stat(recording)
        digest = None if annotation is None else hashlib.sha256(read_bytes(annotation)).hexdigest()
    except (OSError, ValueError):
        return None
    return json.dumps([str(recording), status.st_size, status.st_mtime_ns, digest])


class Journal:
    """The answers of one output folder; made by `open_journal`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: dict[str, Any] | None = None
        self.size = 0  # bytes of whole lines
        self.owners: dict[str, str] = {}  # name of the output files -> key of the recording they are of
        self._places: dict[str, tuple[int, int]] = {}
        self._add: Callable[[bytes], None] | None = None
        with contextlib.suppress(FileNotFoundError), open_regular(path) as file:
            for line in file:
                if not self._learn(line):
                    break

    def _learn(self, line: bytes) -> bool:
        """Take in a line; False for one that is torn or damaged, after which nothing counts."""
        try:
            entry = parse_json(line) if line.endswith(b"\n") else None
        except ValueError:
            return False
        if not isinstance(entry, dict):
            return False
        if self.identity is None:
            if entry.get("journal") != _VERSION or not isinstance(entry.get("identity"), dict):
                return False
            self.identity = entry["identity"]
        elif (
            isinstance(entry.get("key"), str)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("timeline"), dict)
        ):
            self._place(entry["key"], entry["name"], len(line))
            return True
        else:
            return False
        self.size += len(line)
        return True

    def _place(self, key: str, name: str, length: int) -> None:
        self._places[key] = (self.size, length)
        self.owners[name] = key
        self.size += length

    def __contains__(self, key: str | None) -> bool:
        return key in self._places

    def read(self, key: str) -> dict[str, Any]:
        """The timeline of an answered recording."""
        start, length = self._places[key]
        with open_regular(self.path) as file:
            file.seek(start)
            timeline: dict[str, Any] = json.loads(file.read(length))["timeline"]
        return timeline

    def add(self, key: str, name: str, timeline: dict[str, Any]) -> None:
        """Take down that a recording is answered and its files are written.

        Raises:
            InputError: The disk is full or not writable.
        """
        self._place(key, name, self._write({"key": key, "name": name, "timeline": timeline}))

    def begin(self, identity: dict[str, Any], add: Callable[[bytes], None]) -> None:
        """Be ready for answers: write the first line where there is none.

        Args:
            identity: What model and settings they are by.
            add: What writes a line.
        """
        self._add = add
        if self.identity is None:
            self.size += self._write({"journal": _VERSION, "identity": identity})
            self.identity = identity

    def _write(self, entry: dict[str, Any]) -> int:
        """Add a line; its length."""
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        assert self._add is not None, "a journal is written inside open_journal"
        self._add(line)
        return len(line)


@contextlib.contextmanager
def open_journal(
    folder: Path, identity: dict[str, Any], overwrite: bool, forget: Callable[[Journal], None]
) -> Iterator[Journal]:
    """Open the journal of an output folder to go on with it, or begin one.

    Args:
        folder: The output folder.
        identity: What model and settings the answers are by, as plain values.
        overwrite: Begin anew where the journal is by another model or other settings.
        forget: Called with such a journal before it is given up.

    Raises:
        InputError: It is by another model or other settings, and `overwrite` is False; or it cannot be written.
    """
    identity = json.loads(json.dumps(identity))
    journal = Journal(folder / JOURNAL)
    if journal.identity is not None and journal.identity != identity:
        if journal.owners and not overwrite:  # where nothing was answered there is nothing to lose
            what = _first_difference(journal.identity, identity)
            raise InputError(
                f"{folder}: holds the answers of another run ({what}); choose another --out, or --overwrite to replace "
                "them"
            )
        forget(journal)
        journal.path.unlink()
        journal = Journal(journal.path)
    with appending(journal.path, journal.size) as add:
        journal.begin(identity, add)
        yield journal


def _first_difference(before: Any, now: Any, name: str = "") -> str:
    """Where two identities differ first, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in before if k not in now)]:
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key), f"{name} {key}".strip())
    shown = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    short = [text if len(text) <= 40 else f"{text[:37]}..." for text in shown]
    return f"{name} was {short[0]}, now {short[1]}"
