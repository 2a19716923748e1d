"""The answers of reviewers, in a folder that is a valid `folder` corpus at any moment.

Decisions: the journal (laennec.answers.jsonl) is the record. An answer is a line with a checksum, appended and synced
under a lock; a damaged line is reported and left out. An undo is a line too, and no line is ever removed.
annotations.csv and the label tracks are written from the journal after every line; if a kill prevents this, the next
start writes them again. The folder holds the answered recordings as hard links, or as copies where links cannot be
made. A span is a row of annotations.csv if more than half of its answers have the same labels; other spans are left
out, because a corpus has one label for a span. A table that a user edited is kept under another name before it is
replaced.
"""

import contextlib
import filecmp
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from laennec.errors import InputError, one_line
from laennec.files import (
    appending,
    atomic_write,
    checked_line,
    explain_write_errors,
    journal_line,
    refuse_other_files,
    wait_for_lock,
)
from laennec.inference.outputs import csv_lines
from laennec.terminal import complain
from laennec.untrusted import open_regular, parse_json

JOURNAL, TABLE, RECORDINGS, TRACKS = "laennec.answers.jsonl", "annotations.csv", "recordings", "labels"
_COLUMNS = ("recording", "start_s", "end_s", "label", "patient_id", "reviewer", "answered_at", "model", "rule")
_PATIENCE_S = 60.0
_REVIEWER = re.compile(r"\w[\w .@'-]{0,59}")
Span = tuple[str, float, float]


@dataclass(frozen=True)
class Answer:
    """The answer of a reviewer to a span."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # of a line that is read
    recording: str  # path below the folder of recordings
    start_s: float
    end_s: float
    labels: tuple[str, ...] | None  # () for normal, None for skipped
    reviewer: str
    model: str  # fingerprint
    rule: str  # of the queue
    probabilities: dict[str, float]  # of the model, by label
    patient_id: str | None = None
    answered_at: str = ""  # UTC, ISO 8601

    @property
    def span(self) -> Span:
        """Recording, start and end."""
        return self.recording, self.start_s, self.end_s

    @property
    def text(self) -> str:
        """The labels as a cell of annotations.csv."""
        if self.labels is None:
            return "skipped"
        return "both" if set(self.labels) == {"crackle", "wheeze"} else "+".join(self.labels) or "normal"


_ANSWER = TypeAdapter(Answer)


class Answers:
    """The answers in a folder; several processes and threads may use it at the same time.

    Args:
        folder: A new or empty folder, or one of an earlier review.

    Raises:
        InputError: The folder holds other files or cannot be written to, or its journal cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.journal = self.folder / JOURNAL
        self._entries: list[Answer | int | None] = []  # by line: an answer, the line that is undone, or neither
        self._size = 0
        self._made: dict[Path, bytes] = {}  # what this process wrote last
        self._thread = threading.RLock()
        if not self.journal.exists():
            refuse_other_files(self.folder, [JOURNAL], "give --out a new folder, or one of an earlier review")
        with self._locked():
            if self._entries:
                self._make_tables({answer.recording for _, answer in self._lines()})
            else:
                self._write({"review": 1})

    def add(self, answer: Answer, sound: Path) -> Answer:
        """Store an answer; it is on disk when this returns."""
        kept = replace(answer, answered_at=_now())
        check_reviewer(kept.reviewer)
        if kept.labels is not None:
            self._keep_recording(sound, self.folder / RECORDINGS / kept.recording)
        with self._locked():
            self._write(asdict(kept), kept.recording)
        return kept

    def undo(self, reviewer: str) -> Answer | None:
        """Take back the reviewer's last answer; returns it, or None where there is none."""
        with self._locked():
            own = [(line, answer) for line, answer in self._lines() if answer.reviewer == reviewer]
            if not own:
                return None
            self._write({"undo": own[-1][0], "reviewer": reviewer, "answered_at": _now()}, own[-1][1].recording)
            return own[-1][1]

    def refresh(self) -> None:
        """Read what others have added."""
        if not self.journal.exists() and not self._entries:
            return
        with self._thread, open_regular(self.journal) as file:
            if os.fstat(file.fileno()).st_size < self._size:
                raise InputError(f"{self.journal}: shorter than before; restore it from a backup and start again")
            file.seek(self._size)
            for line in file:
                if not line.endswith(b"\n"):  # cut off by a kill; the next line replaces it
                    break
                self._size += len(line)
                self._entries.append(self._read(line))

    def active(self) -> list[Answer]:
        """The last answer of each reviewer to each span, without those taken back."""
        with self._thread:
            self.refresh()
            return list({(answer.reviewer, answer.span): answer for _, answer in self._lines()}.values())

    def by_span(self) -> dict[Span, list[Answer]]:
        """The active answers to each span, without skips."""
        return _by_span(self.active())

    def agreed(self) -> list[Answer]:
        """The rows of annotations.csv; each names all reviewers who gave this answer."""
        return _agreed(self.by_span())

    def _lines(self, until: int | None = None) -> Iterator[tuple[int, Answer]]:
        """The answers that are not taken back, with their lines."""
        entries = self._entries[:until]
        undone = {entry for entry in entries if isinstance(entry, int)}
        return ((n, e) for n, e in enumerate(entries) if isinstance(e, Answer) and n not in undone)

    def _read(self, line: bytes) -> Answer | int | None:
        try:
            said = parse_json(checked_line(line))
            del said["xxh3"]
            if "undo" in said or "review" in said:
                return int(said["undo"]) if "undo" in said else None
            answer = _ANSWER.validate_python(said)
            check_reviewer(answer.reviewer)
            path = Path(answer.recording)
            elsewhere = path.is_absolute() or ".." in path.parts or "\0" in answer.recording
            if elsewhere or not 0 <= answer.start_s < answer.end_s:
                raise ValueError("no span of a recording of this review")
            return answer
        except (ValueError, TypeError, KeyError):  # of pydantic too
            complain(f"{self.journal}, line {len(self._entries) + 1}: damaged and left out; restore it from a backup")
            return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread, wait_for_lock(self.journal, _PATIENCE_S):
            self.refresh()
            yield

    def _write(self, entry: Mapping[str, Any], *recordings: str) -> None:
        """Append a line; annotations.csv and the label tracks of these recordings follow."""
        with appending(self.journal, self._size) as add:
            add(journal_line(**entry))
        self.refresh()
        self._make_tables(recordings)

    def _keep_recording(self, sound: Path, place: Path) -> None:
        if not place.exists():
            with explain_write_errors(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another file system, or another reviewer was first
                os.link(sound.resolve(), place)
        if not place.exists():
            with atomic_write(place, "wb") as file, open_regular(sound) as content:
                shutil.copyfileobj(content, file)
        elif not os.path.samefile(sound, place) and not filecmp.cmp(sound, place, shallow=False):
            raise InputError(f"{place}: another recording of this name was reviewed before; choose another --out")

    def _make_tables(self, names: Collection[str]) -> None:
        """Write annotations.csv, and the label tracks of these recordings."""
        earlier: list[dict[Path, bytes]] = []
        for path, text in self._texts(len(self._entries), names).items():
            before = path.read_bytes() if path.exists() else b""
            if before == text:
                continue
            if before not in (b"", self._made.get(path)):
                # files as of one or two lines ago are outdated (by another process or a kill), not edited
                earlier = earlier or [self._texts(len(self._entries) - k, names) for k in (1, 2)]
                if before not in [texts[path] for texts in earlier]:
                    edited = path.with_name(f"laennec.edited.{_now().replace(':', '')}.{path.name}")
                    os.replace(path, edited)
                    complain(f"{path}: was edited; the edited file is now {edited.name}, and this file has the answers")
            with atomic_write(path, "wb") as file:
                file.write(text)
            self._made[path] = text

    def _texts(self, lines: int, names: Collection[str]) -> dict[Path, bytes]:
        """The contents of annotations.csv and of these recordings' label tracks, from the first `lines` lines."""
        rows = _agreed(_by_span(answer for _, answer in self._lines(lines)))
        tracks = {f"{TRACKS}/{Path(name).with_suffix('.txt')}": "" for name in names}
        for row in (row for row in rows if row.recording in names):
            line = f"{row.start_s:.3f}\t{row.end_s:.3f}\t{one_line(row.text)}\n"
            tracks[f"{TRACKS}/{Path(row.recording).with_suffix('.txt')}"] += line  # a label track of Audacity
        texts = {TABLE: _table(rows)} | tracks
        return {self.folder / name: text.encode(errors="backslashreplace") for name, text in texts.items()}


def check_reviewer(name: str) -> str:
    """Return the name of a reviewer without blanks around it; raises if it is not valid."""
    if not _REVIEWER.fullmatch(name.strip()):
        raise InputError(f"reviewer {name[:80]!r}: give 1 to 60 letters, digits, blanks or . @ ' -, a letter first")
    return name.strip()


def _agreed(by_span: Mapping[Span, list[Answer]]) -> list[Answer]:
    """One answer for each span on which most reviewers agree, by recording and time."""
    rows = []
    for _, given in sorted(by_span.items()):
        votes = Counter(frozenset(answer.labels or ()) for answer in given)
        labels, most = votes.most_common(1)[0]
        if 2 * most > len(given):
            same = [answer for answer in given if frozenset(answer.labels or ()) == labels]
            rows.append(replace(same[-1], reviewer=", ".join(sorted(answer.reviewer for answer in same))))
    return rows


def _by_span(answers: Iterable[Answer]) -> dict[Span, list[Answer]]:
    found: dict[Span, dict[str, Answer]] = {}
    for answer in answers:
        found.setdefault(answer.span, {})[answer.reviewer] = answer
    kept = {span: [a for a in given.values() if a.labels is not None] for span, given in found.items()}
    return {span: given for span, given in kept.items() if given}


def _table(rows: list[Answer]) -> str:
    """The text of annotations.csv."""
    labels = list(dict.fromkeys(label for row in rows for label in row.probabilities))
    lines: list[list[Any]] = [[*_COLUMNS, *(f"{label}_probability" for label in labels)]]
    for row in rows:
        values = vars(row) | {"recording": f"{RECORDINGS}/{row.recording}", "label": row.text}
        lines.append([values[name] for name in _COLUMNS] + [row.probabilities.get(name) for name in labels])
    return csv_lines(lines)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
