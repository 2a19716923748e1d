"""A timeline as files that the programs people have can open.

Decisions: every format is made of the one timeline that the journal keeps, so that they cannot disagree. Label
tracks and selection tables hold what is present, a label a line: windows overlap, so those that overlap or touch become
one line from the first's beginning to the last's end with the highest probability of them; an annotated or segmented
cycle is one breath and keeps a line of its own. For a model that answers one class, "normal" is nothing to mark. What
was written is read back and compared before it counts as done.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.audio.selections import RAVEN_BEGIN, RAVEN_END
from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.inference.spans import LABELS_SUFFIX, SELECTIONS_SUFFIX

FORMATS = ("json", "csv", "audacity", "raven", "picture")
DEFAULT_FORMATS = ("json", "csv")
# of the files that each recording has of its own
SUFFIXES = {"json": ".json", "audacity": LABELS_SUFFIX, "raven": SELECTIONS_SUFFIX, "picture": ".png"}
_RAVEN_HEADER = (
    "Selection", "View", "Channel", RAVEN_BEGIN, RAVEN_END, "Low Freq (Hz)", "High Freq (Hz)", "Begin Path", "Label",
    "Probability",
)  # fmt: skip

Timeline = dict[str, Any]


@dataclass(frozen=True)
class Mark:
    """A stretch in which a label is present, with the highest probability in it."""

    label: str
    start_s: float
    end_s: float
    probability: float


def marks(timeline: Timeline) -> list[Mark]:
    """What is present in a timeline, by time; windows that overlap or touch are joined."""
    joined = timeline["spans"].get("from") == "windows"
    found: list[Mark] = []
    for label in marked_labels(timeline):
        last: Mark | None = None
        for row in timeline["timeline"]:
            if not row[label]:
                continue
            mark = Mark(label, row["start_s"], row["end_s"], row[f"{label}_probability"])
            if joined and last is not None and mark.start_s <= last.end_s:
                mark = Mark(label, last.start_s, max(last.end_s, mark.end_s), max(last.probability, mark.probability))
                found.pop()
            found.append(mark)
            last = mark
    return sorted(found, key=lambda mark: (mark.start_s, mark.end_s, mark.label))


def marked_labels(timeline: Timeline) -> list[str]:
    """The labels whose presence is worth a mark."""
    exclusive = timeline["decision"].get("thresholds") is None
    return [label for label in timeline["labels"] if not (exclusive and label.lower() == "normal")]


def write_json(path: Path, timeline: Timeline) -> Path:
    """Write a timeline as JSON.

    Raises:
        InputError: It cannot be written, or reads back differently.
    """
    return _write(path, json.JSONEncoder(indent=1, ensure_ascii=False).iterencode(timeline))


def write_audacity(path: Path, timeline: Timeline) -> Path:
    """Write what is present as an Audacity label track: start, end, label with its probability; empty for nothing.

    Raises:
        InputError: It cannot be written, or reads back differently.
    """
    return _write(
        path,
        (f"{mark.start_s:.3f}\t{mark.end_s:.3f}\t{mark.label} {mark.probability:.2f}\n" for mark in marks(timeline)),
    )


def write_raven(path: Path, timeline: Timeline) -> Path:
    """Write what is present as a Raven selection table; the header alone for nothing.

    Raises:
        InputError: It cannot be written, or reads back differently.
    """
    where = " ".join(timeline["recording"].split())
    top_hz = timeline["source_sampling_rate"] / 2
    rows = (
        (
            number, "Spectrogram 1", 1, f"{mark.start_s:.3f}", f"{mark.end_s:.3f}", "0.0", f"{top_hz:.1f}", where,
            mark.label, f"{mark.probability:.4f}",
        )
        for number, mark in enumerate(marks(timeline), 1)
    )  # fmt: skip
    return _write(path, ("\t".join(map(str, row)) + "\n" for row in (_RAVEN_HEADER, *rows)))


def write_csv(path: Path, timelines: Iterable[Timeline]) -> Path:
    """Write the spans of many recordings as one table, a row a span; the timelines are taken one by one.

    Raises:
        InputError: It cannot be written, or reads back differently.
    """

    def lines() -> Iterator[str]:
        header: list[str] | None = None
        for timeline in timelines:
            rows = [{"recording": timeline["recording"], **row} for row in timeline["timeline"]]
            if header is None and rows:
                header = list(rows[0])
                yield _csv_lines([header])
            yield _csv_lines([list(row.values()) for row in rows])

    return _write(path, lines())


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> Path:
    """Write the recordings that could not be answered, with their reasons.

    Raises:
        InputError: It cannot be written, or reads back differently.
    """
    return _write(path, [_csv_lines([["recording", "reason"], *map(list, failures)])])


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
WRITERS = {"json": write_json, "audacity": write_audacity, "raven": write_raven}


def _csv_lines(rows: Iterable[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_no_formula(value) for value in row] for row in rows)
    return text.getvalue()


def _no_formula(value: Any) -> Any:
    """A cell that spreadsheets do not take for a formula to run: names of files and labels are others' words."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _write(path: Path, texts: Iterable[str]) -> Path:
    """Write texts one after another, and compare what lies on the disk then with them."""
    wanted = hashlib.sha256()
    with atomic_write(path, "wb") as file:
        for text in texts:
            content = text.encode(errors="backslashreplace")  # names of files may be in no encoding
            wanted.update(content)
            file.write(content)  # type: ignore[call-overload]
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != wanted.digest():
            raise InputError(f"{path}: what was written reads back differently; check the disk")
    return path
