"""The journal of a batch: which recordings are finished, so that an interrupted batch can resume.

Decisions: a finished recording is one line with its whole timeline, appended and synced after the recording's own files
are written; the tables over all recordings are made from these lines. So a kill at any moment costs at most the current
recording. A line is valid only for the same recording (path, size, modification time) and annotation (content), and a
journal only for the same model and settings. Failures are not recorded; they are tried again.
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
    """Identify a recording and its annotation as they are now; None where either cannot be read."""
    try:
        status = os.stat(recording)
        digest = None if annotation is None else hashlib.sha256(read_bytes(annotation)).hexdigest()
    except (OSError, ValueError):
        return None
    return json.dumps([str(recording), status.st_size, status.st_mtime_ns, digest])


class Journal:
    """The finished recordings of one output folder; created by `open_journal`.

    Attributes:
        identity: Model and settings; None for a new journal.
        size: Bytes of whole lines.
        owners: Name of the output files -> key of their recording.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: dict[str, Any] | None = None
        self.size = 0
        self.owners: dict[str, str] = {}
        self.append: Callable[[bytes], None] | None = None
        self._places: dict[str, tuple[int, int]] = {}
        # the first truncated or damaged line ends the journal
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError), open_regular(path) as file:
            for line in file:
                self._load(line)

    def _load(self, line: bytes) -> None:
        """Take in one line."""
        entry = parse_json(line)
        if not line.endswith(b"\n"):
            raise ValueError("truncated")
        if self.identity is None:
            if entry["journal"] != _VERSION:
                raise ValueError("another version")
            self.identity = dict(entry["identity"])
        else:
            key, name, _ = str(entry["key"]), str(entry["name"]), dict(entry["timeline"])
            self._places[key], self.owners[name] = (self.size, len(line)), key
        self.size += len(line)

    def write(self, **entry: Any) -> None:
        """Append a line: the identity first, then key, name and timeline of each finished recording.

        Raises:
            InputError: The disk is full or not writable.
        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        assert self.append is not None, "a journal is written inside open_journal"
        self.append(line)
        self._load(line)

    def __contains__(self, key: str | None) -> bool:
        return key in self._places

    def read(self, key: str) -> dict[str, Any]:
        """The timeline of a finished recording."""
        start, length = self._places[key]
        with open_regular(self.path) as file:
            file.seek(start)
            timeline: dict[str, Any] = json.loads(file.read(length))["timeline"]
        return timeline


@contextlib.contextmanager
def open_journal(
    folder: Path, identity: dict[str, Any], overwrite: bool, forget: Callable[[Journal], None]
) -> Iterator[Journal]:
    """Open the journal of an output folder, or create it.

    Args:
        folder: The output folder.
        identity: Model and settings, as plain values.
        overwrite: Replace a journal of another model or other settings.
        forget: Called with such a journal before it is replaced.

    Raises:
        InputError: The journal belongs to another model or other settings and `overwrite` is False, or it cannot be
            written.
    """
    identity = json.loads(json.dumps(identity))
    journal = Journal(folder / JOURNAL)
    if journal.identity is not None and journal.identity != identity:
        if journal.owners and not overwrite:  # an empty journal can always be replaced
            what = _first_difference(journal.identity, identity)
            raise InputError(
                f"{folder}: contains predictions with another model or other settings ({what}); choose another "
                "--out, or pass --overwrite to replace them"
            )
        forget(journal)
        journal.path.unlink()
        journal = Journal(journal.path)
    with appending(journal.path, journal.size) as journal.append:
        if journal.identity is None:
            journal.write(journal=_VERSION, identity=identity)
        yield journal


def _first_difference(before: Any, now: Any, name: str = "") -> str:
    """Describe the first difference between two identities."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(k for k in before if k not in now)]:
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key), f"{name} {key}".strip())
    shown = [json.dumps(value, ensure_ascii=False) for value in (before, now)]
    short = [text if len(text) <= 40 else f"{text[:37]}..." for text in shown]
    return f"{name} was {short[0]}, now {short[1]}"
