"""Annotation text to respiratory cycles or spans, and cycles to pieces of waveform.

Decisions: a cycle is cut by int(start * rate) to int(end * rate), clamped, the rule of every published system. Times
have three decimals, so one millisecond past the end of the audio is rounding and more is an error. Overlapping cycles
are allowed; only the check reports them. `read_spans` returns a span with two labels once. A Raven table over several
recordings is refused, because its times count from the start of the first recording.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laennec.errors import InputError, one_line
from laennec.files import atomic_write
from laennec.untrusted import read_text

LABELS = ("normal", "crackle", "wheeze", "both")
END_TOLERANCE_S = 0.001
_WINDOW_S = 3.0
_MOST_OVERLAP = 100  # most windows that may cover one sample

Waveform = npt.NDArray[np.float32]
Span = tuple[float, float]
RAVEN_BEGIN, RAVEN_END = "Begin Time (s)", "End Time (s)"
_RAVEN_LABELS = ("annotation", "label")

_COMMA = re.compile(r"(?<=\d),(?=\d+\s*$)")
_LABEL_WORDS = {
    "normal": (0, 0),
    "crackle": (1, 0),
    "crackles": (1, 0),
    "wheeze": (0, 1),
    "wheezes": (0, 1),
    "both": (1, 1),
}


class AnnotationError(InputError):
    """An annotation that cannot be used.

    Attributes:
        path: The annotation file.
        line: Its line number from 1, or the name of the place ("event 3"), or None where the whole file is meant.
        reason: What is wrong and what to do.
    """

    def __init__(self, path: str | PathLike[str], line: int | str | None, reason: str) -> None:
        super().__init__(str(path), line, reason)
        self.path = str(path)
        self.line = line
        # a reason can quote a value of any length
        self.reason = reason if len(reason) < 1000 else f"{reason[:400]} ... {reason[-400:]}"

    def __str__(self) -> str:
        place = "" if self.line is None else f", line {self.line}" if isinstance(self.line, int) else f", {self.line}"
        return one_line(f"{self.path}{place}: {self.reason}")


def label_of(crackle: int, wheeze: int) -> str:
    """The class of two flags: "normal", "crackle", "wheeze" or "both"."""
    if crackle not in (0, 1) or wheeze not in (0, 1):
        raise ValueError(f"crackle={crackle}, wheeze={wheeze}: flags are 0 or 1")
    return LABELS[int(crackle) + 2 * int(wheeze)]


def flags_of(label: str) -> tuple[int, int]:
    """The flags (crackle, wheeze) of a class name."""
    if label not in LABELS:
        raise ValueError(f"label {label!r} is none of {', '.join(LABELS)}")
    return _LABEL_WORDS[label]


@dataclass(frozen=True)
class Cycle:
    """One annotated respiratory cycle: its times in seconds, and 1 where it contains crackles or wheezes."""

    start_s: float
    end_s: float
    crackle: int
    wheeze: int

    @property
    def label(self) -> str:
        """The class of its two flags."""
        return label_of(self.crackle, self.wheeze)


def read_annotation(path: str | PathLike[str], duration_s: float | None = None) -> list[Cycle]:
    """Read an ICBHI annotation: lines of start, end, crackle, wheeze, separated by tabs or blanks.

    Args:
        path: The text file.
        duration_s: Length of the audio; with it, cycles that end beyond it are refused.

    Returns:
        The cycles in the order of the file.

    Raises:
        AnnotationError: The first problem of the file; overlapping cycles are allowed.
    """
    return [cycle for _, cycle in _icbhi_lines(path, duration_s)]


def _icbhi_lines(
    path: str | PathLike[str], duration_s: float | None, problems: list[AnnotationError] | None = None
) -> list[tuple[int, Cycle]]:
    """Number and cycle of every line; errors are appended to `problems`, or without it the first is raised."""
    lines, cycles = list(numbered_lines(path)), []
    if not lines:
        raise AnnotationError(path, None, "the annotation is empty; annotate the recording or leave it out")
    for line, text in lines:
        try:
            cycles.append((line, _parse_line(path, line, text, duration_s)))
        except AnnotationError as error:
            if problems is None:
                raise
            problems.append(error)
    return cycles


def check_annotation(path: str | PathLike[str], duration_s: float | None = None) -> list[AnnotationError]:
    """Every problem of an ICBHI annotation, overlaps included, by line; arguments as for `read_annotation`."""
    problems: list[AnnotationError] = []
    try:
        cycles = _icbhi_lines(path, duration_s, problems)
    except AnnotationError as error:
        return [error]
    furthest: tuple[int, Cycle] | None = None
    for line, cycle in sorted(cycles, key=lambda numbered: (numbered[1].start_s, numbered[0])):
        if furthest is not None and cycle.start_s < furthest[1].end_s:
            before = f"before the cycle of line {furthest[0]} ends at {furthest[1].end_s:g} s; correct one of them"
            problems.append(AnnotationError(path, line, f"starts at {cycle.start_s:g} s, {before}"))
        if furthest is None or cycle.end_s > furthest[1].end_s:
            furthest = (line, cycle)
    return sorted(problems, key=lambda problem: problem.line if isinstance(problem.line, int) else 0)


def write_annotation(path: str | PathLike[str], cycles: Iterable[Cycle]) -> None:
    """Write cycles as an ICBHI annotation: tab-separated, times with three decimals."""
    with atomic_write(Path(path)) as file:
        for cycle in cycles:
            file.write(f"{cycle.start_s:.3f}\t{cycle.end_s:.3f}\t{cycle.crackle}\t{cycle.wheeze}\n")  # type: ignore[call-overload]


def _audacity_lines(path: str | PathLike[str], duration_s: float | None) -> list[tuple[int, Span, str]]:
    """Line number, span and label of an Audacity label track."""
    found = []
    for line, text in numbered_lines(path):
        if text.startswith("\\"):  # the frequency range of the label above
            continue
        fields = text.split("\t") if "\t" in text else text.split(None, 2)
        if len(fields) < 3:
            reason = f"{len(fields)} columns, not 3 (start, end, label); export the label track again"
            raise AnnotationError(path, line, reason)
        span = parse_times(path, line, fields[0], fields[1], duration_s, comma=True)
        found.append((line, span, fields[2].strip()))
    return found


def read_labels(path: str | PathLike[str], duration_s: float | None = None) -> list[Cycle]:
    """Read an annotation of any kind as cycles; arguments as for `read_labelled_spans`.

    Labels are normal, crackle(s), wheeze(s), both, or crackle and wheeze joined by "+", "," or "&".
    """
    return [Cycle(*span, *parse_label(path, line, text)) for line, span, text in read_labelled_spans(path, duration_s)]


def read_spans(path: str | PathLike[str], duration_s: float | None = None) -> list[Span]:
    """Read the spans of an annotation of any kind; arguments as for `read_labelled_spans`."""
    return list(dict.fromkeys(span for _, span, _ in read_labelled_spans(path, duration_s, labelled=False)))


def read_labelled_spans(
    path: str | PathLike[str], duration_s: float | None = None, column: str | None = None, labelled: bool = True
) -> list[tuple[int, Span, str]]:
    """Read the line number, span and label of everything in an annotation.

    Args:
        path: ICBHI's four columns, an Audacity label track or a Raven selection table; its content decides.
        duration_s: Length of the audio; with it, spans that end beyond it are refused.
        column: The column of a Raven table that holds the labels; None: Annotation or Label.
        labelled: Whether labels are needed; if not, a table may lack their column, and a track's labels may be numbers.
    """
    lines = [text for _, text in numbered_lines(path) if not text.startswith("\\")]
    first = lines[0] if lines else ""
    if RAVEN_BEGIN.lower() in first.lower() or first.lower().startswith("selection\t"):
        rows = _raven_rows(path, duration_s)
        return [(line, span, row[_label_column(path, row, column)] if labelled else "") for line, span, row in rows]
    # a track of numbered spans; where all numbers are 0 or 1, the lines are ICBHI's with a column missing
    numbers = [re.fullmatch(r"[^\t]+\t[^\t]+\t\s*(\d+)\s*", line) for line in lines]
    numbered = not labelled and all(numbers) and not {number[1] for number in numbers if number} <= {"0", "1"}
    # a label track has start, end and a word (empty if separated by tabs), an ICBHI line four numbers
    if numbered or re.fullmatch(r"\s*\S+\s+\S+\s+[^\d\s].*|[^\t]+\t[^\t]+\t(?!\s*[\d.]+\s*$)[^\t]*", first):
        return _audacity_lines(path, duration_s)
    return [(line, (cycle.start_s, cycle.end_s), cycle.label) for line, cycle in _icbhi_lines(path, duration_s)]


def _label_column(path: str | PathLike[str], row: dict[str, str], column: str | None) -> str:
    """The column of a Raven table that holds the labels."""
    name = next((word for word in ([column.lower()] if column else _RAVEN_LABELS) if word in row), None)
    if name is None:
        wanted = f"no column {column!r}" if column else f"no column {' or '.join(_RAVEN_LABELS)}"
        raise AnnotationError(
            path, 1, f"{wanted} with the labels; name it with corpus.options.label_column: {', '.join(row)}"
        )
    return name


def _raven_rows(path: str | PathLike[str], duration_s: float | None) -> list[tuple[int, Span, dict[str, str]]]:
    """Line, span and values of a Raven table: a header with Begin Time (s) and End Time (s), tabs between columns."""
    lines = [(line, [f.strip() for f in text.split("\t")]) for line, text in numbered_lines(path)]
    header = [field.lower() for field in lines[0][1]] if lines else []
    refuse_doubled(path, header)
    begin, end = RAVEN_BEGIN.lower(), RAVEN_END.lower()
    for name in (RAVEN_BEGIN, RAVEN_END):
        if name.lower() not in header:
            reason = f"no column {name!r} in the header; export the selection table with it, tabs in between"
            raise AnnotationError(path, lines[0][0] if lines else None, reason)
    rows: list[tuple[int, Span, dict[str, str]]] = []
    for line, fields in lines[1:]:
        if len(fields) <= max(header.index(begin), header.index(end)):
            reason = f"{len(fields)} columns, too few for the header's {len(header)}; export the selection table again"
            raise AnnotationError(path, line, reason)
        row = dict.fromkeys(header, "") | dict(zip(header, fields, strict=False))
        rows.append((line, parse_times(path, line, row[begin], row[end], duration_s, comma=True), row))
    files = {row["begin file"] for _, _, row in rows if row.get("begin file")}
    if len(files) > 1:
        raise AnnotationError(path, None, f"selections of {len(files)} recordings; export a table for each of them")
    if not rows:
        raise AnnotationError(path, None, "no selections in this file; annotate it or leave the recording out")
    return rows


def refuse_doubled(path: str | PathLike[str], header: Sequence[str]) -> None:
    """Refuse a header that names a column twice, in whatever case; path is for the AnnotationError."""
    names = sorted(name.casefold() for name in header if name)
    if twice := [name for place, name in enumerate(names[1:]) if name == names[place]]:
        raise AnnotationError(path, 1, f"the header must name each column once; {twice[0]!r} is there twice")


def parse_label(path: str | PathLike[str], line: int | str | None, text: str) -> tuple[int, int]:
    """The flags (crackle, wheeze) of a label such as "crackles + wheeze"; path and line are for the error."""
    words = [word for word in re.split(r"[\s+,&/]+", text.strip().lower()) if word and word != "and"]
    flags = [_LABEL_WORDS.get(word) for word in words]
    if not flags or None in flags or (len(flags) > 1 and (0, 0) in flags):
        raise AnnotationError(
            path, line, f"label {text.strip()!r} is none of {', '.join(LABELS)}, crackle+wheeze; correct it"
        )
    return max(f[0] for f in flags if f), max(f[1] for f in flags if f)


def check_times(
    path: str | PathLike[str], line: int | str | None, start_s: float, end_s: float, duration_s: float | None = None
) -> None:
    """Refuse times that do not form a span of the audio; path and line are for the AnnotationError."""
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        raise AnnotationError(path, line, f"times {start_s} and {end_s} must be finite numbers; correct them")
    if start_s < 0:
        raise AnnotationError(path, line, f"starts at {start_s:g} s, before the recording begins; correct the time")
    if end_s <= start_s:
        raise AnnotationError(path, line, f"ends at {end_s:g} s but starts at {start_s:g} s; correct the times")
    if duration_s is not None and end_s > duration_s + END_TOLERANCE_S + 1e-9:
        raise AnnotationError(
            path, line, f"ends at {end_s:g} s but the audio lasts {duration_s:.3f} s; correct the annotation"
        )


def cut(waveform: Waveform, sampling_rate: int, start_s: float, end_s: float) -> Waveform:
    """Samples int(start * rate) to int(end * rate) of a waveform, both clamped to it; a view, possibly empty."""
    first = min(max(int(start_s * sampling_rate), 0), len(waveform))
    last = min(max(int(end_s * sampling_rate), first), len(waveform))
    return waveform[first:last]


def sliding_windows(duration_s: float, window_s: float, hop_s: float) -> list[tuple[float, float]]:
    """Cover a recording by windows (start_s, end_s) of equal length.

    They start at multiples of the hop, which is at most a window, as long as the window fits; if they stop short of the
    end, one more whole window ends with the recording. A recording shorter than a window is one window.
    """
    if not (math.isfinite(duration_s) and window_s > 0 and 0 < hop_s <= window_s and duration_s >= 0):
        raise ValueError(
            f"duration {duration_s} s, window {window_s} s, hop {hop_s} s: need 0 < hop <= window and a finite duration"
        )
    if duration_s == 0:
        return []
    if duration_s <= window_s:
        return [(0.0, duration_s)]
    whole = int((duration_s - window_s) / hop_s + 1e-9) + 1
    windows = [(index * hop_s, min(index * hop_s + window_s, duration_s)) for index in range(whole)]
    if duration_s - windows[-1][1] > 1e-9:
        windows.append((duration_s - window_s, duration_s))
    return windows


def window_lengths(extractor: Any, window_s: float | None = None, hop_s: float | None = None) -> tuple[float, float]:
    """Length and hop of the windows of a model, in seconds; None: 3 s (or its input if shorter), and half of it."""
    window_s = min(_WINDOW_S, input_length_s(extractor)) if window_s is None else window_s
    hop_s = window_s / 2 if hop_s is None else hop_s
    if not 0 < window_s < float("inf"):
        raise InputError(f"window_s (--window-s) is {window_s:g}; it must be greater than 0 and finite")
    if not (0 < hop_s <= window_s and window_s <= _MOST_OVERLAP * hop_s):
        raise InputError(
            f"windows of {window_s:g} s every {hop_s:g} s: hop_s (--hop-s) must be at most window_s (--window-s), and "
            f"at least 1/{_MOST_OVERLAP} of it"
        )
    return float(window_s), float(hop_s)


def input_length_s(extractor: Any) -> float:
    """The longest sound that the model takes, in seconds; only with length "natural" it is not limited."""
    return float("inf") if extractor.length == "natural" else float(extractor.duration_s or 0)


def prediction_windows(duration_s: float, window_s: float, hop_s: float) -> list[tuple[float, float]]:
    """The windows for prediction: those of `sliding_windows`, without one that the last nearly repeats.

    If the last window begins less than half a hop after the second-last, the second-last is left out, provided that the
    others still cover the recording.
    """
    windows = sliding_windows(duration_s, window_s, hop_s)
    if len(windows) > 2 and windows[-1][0] - windows[-2][0] < hop_s / 2 and windows[-1][0] <= windows[-3][1]:
        del windows[-2]
    return windows


def counting_spans(spans: Iterable[dict[str, Any]], start_s: float, end_s: float) -> list[dict[str, Any]]:
    """The annotated spans (with start_s and end_s) that count for a window, the one with the largest overlap first.

    They overlap with it by at least half of the shorter of the two.
    """
    found = []
    for span in spans:
        overlap = min(span["end_s"], end_s) - max(span["start_s"], start_s)
        # half, with a tolerance for rounded times
        if overlap >= 0.5 * min(span["end_s"] - span["start_s"], end_s - start_s) - 1e-6:
            found.append((overlap, span))
    return [span for _, span in sorted(found, key=lambda item: -item[0])]


def numbered_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of an annotation or a table that are not blank, each with its number from 1."""
    remedy = "save it as plain text or CSV in UTF-8"
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        raise AnnotationError(path, None, f"is not UTF-8 text (it has another encoding); {remedy}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AnnotationError(path, None, f"cannot be read ({reason}); check path and permissions") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if "\0" in line:  # after a disk failure, or UTF-16 without a byte order mark
            raise AnnotationError(path, number, f"holds a NUL character, so it is not plain text; {remedy}")
        if line.strip():
            yield number, line


def _parse_line(path: str | PathLike[str], line: int, text: str, duration_s: float | None) -> Cycle:
    fields = text.split()
    if len(fields) != 4:
        raise AnnotationError(path, line, f"{len(fields)} columns, not 4 (start, end, crackle, wheeze); correct it")
    start_s, end_s = parse_times(path, line, fields[0], fields[1], duration_s)
    if fields[2] not in ("0", "1") or fields[3] not in ("0", "1"):
        raise AnnotationError(path, line, f"flags {fields[2]!r} and {fields[3]!r} must be 0 or 1; correct the line")
    return Cycle(start_s, end_s, int(fields[2]), int(fields[3]))


def parse_times(
    path: str | PathLike[str], line: int, start: str, end: str, duration_s: float | None, comma: bool = False
) -> tuple[float, float]:
    """Two checked times in seconds; path and line are for the error, `comma` allows a decimal comma as well."""
    try:
        plain = [text.replace("_", "?") for text in (start, end)]  # Python's float accepts 1_000
        start_s, end_s = (float(_COMMA.sub(".", text) if comma else text) for text in plain)
    except ValueError as error:
        raise AnnotationError(
            path, line, f"{start!r} and {end!r} must be times in seconds; correct the line"
        ) from error
    check_times(path, line, start_s, end_s, duration_s)
    return start_s, end_s
