"""Spans of sound out of label tracks and selection tables, whatever their labels say.

Decisions: for somebody who wants breaths answered, the words of Audacity's labels and the columns of Raven's tables
are beside the point, so only the times are read, and two labels over one span are one span. Raven lists a selection
once for each of its views. A table over several recordings is refused, because its times are those of the sequence.
"""

import re
from os import PathLike

from laennec.audio.cycles import AnnotationError, numbered_lines, parse_times, read_annotation

RAVEN_BEGIN, RAVEN_END = "Begin Time (s)", "End Time (s)"
_RAVEN_FILE = "begin file"

Span = tuple[float, float]


def read_spans(path: str | PathLike[str], duration_s: float | None = None) -> list[Span]:
    """Read the spans of an annotation in text: ICBHI's four columns, an Audacity label track or a Raven table.

    Args:
        path: The text file; its lines tell which kind it is.
        duration_s: Length of the audio; with it, spans that end beyond it are refused.

    Returns:
        (start_s, end_s) in the order of the file.

    Raises:
        AnnotationError: The first problem of the file.
    """
    lines = [text for _, text in numbered_lines(path, stripped=False) if not text.startswith("\\")]
    first = lines[0] if lines else ""
    if RAVEN_BEGIN.lower() in first.lower() or first.lower().startswith("selection\t"):
        return read_raven_spans(path, duration_s)
    # start, end and a word (or none), where an ICBHI line has four numbers
    if re.fullmatch(r"\S+\t\S+\t\s*|\s*\S+\s+\S+\s+[^\d\s].*", first) or _is_numbered(lines):
        return read_audacity_spans(path, duration_s)
    return [(cycle.start_s, cycle.end_s) for cycle in read_annotation(path, duration_s)]


def _is_numbered(lines: list[str]) -> bool:
    """Whether every line is start, end and a number, and not all are a 0 or 1, as of ICBHI lines that lack a column."""
    labels = [re.fullmatch(r"[^\t]+\t[^\t]+\t\s*(\d+)\s*", line) for line in lines]
    return all(labels) and not {label[1] for label in labels if label} <= {"0", "1"}


def read_audacity_spans(path: str | PathLike[str], duration_s: float | None = None) -> list[Span]:
    r"""Read the spans of an Audacity label track: start, end and a label, separated by tabs.

    Lines that begin with a backslash (the frequency range of the label above) are passed over.

    Raises:
        AnnotationError: The first problem of the file; a label at a point, which has no length, is one.
    """
    spans: dict[Span, None] = {}
    for line, text in numbered_lines(path, stripped=False):
        if text.startswith("\\"):
            continue
        fields = text.split("\t") if "\t" in text else text.split(None, 2)
        if len(fields) < 3:
            reason = f"{len(fields)} columns, not 3 (start, end, label); export the label track again"
            raise AnnotationError(path, line, reason)
        spans[parse_times(path, line, fields[0], fields[1], duration_s, comma=True)] = None
    if not spans:
        raise AnnotationError(path, None, "no labels in this file; annotate it or leave the recording out")
    return list(spans)


def read_raven_spans(path: str | PathLike[str], duration_s: float | None = None) -> list[Span]:
    """Read the spans of a Raven selection table: a header with Begin Time (s) and End Time (s), tabs between columns.

    Raises:
        AnnotationError: The first problem of the file; selections of several recordings are one.
    """
    spans: dict[Span, None] = {}
    files: set[str] = set()
    header: list[str] = []
    begin = end = 0
    for line, text in numbered_lines(path, stripped=False):
        fields = [field.strip() for field in text.split("\t")]
        if not header:
            header = [field.lower() for field in fields]
            for name in (RAVEN_BEGIN, RAVEN_END):
                if name.lower() not in header:
                    reason = f"no column {name!r} in the header; export the selection table with it, tabs in between"
                    raise AnnotationError(path, line, reason)
            begin, end = header.index(RAVEN_BEGIN.lower()), header.index(RAVEN_END.lower())
            continue
        if len(fields) <= max(begin, end):
            reason = f"{len(fields)} columns, too few for the header's {len(header)}; export the selection table again"
            raise AnnotationError(path, line, reason)
        spans[parse_times(path, line, fields[begin], fields[end], duration_s, comma=True)] = None
        files.update(name for key, name in zip(header, fields, strict=False) if key == _RAVEN_FILE and name)
    if len(files) > 1:
        raise AnnotationError(path, None, f"selections of {len(files)} recordings; export a table for each of them")
    if not spans:
        raise AnnotationError(path, None, "no selections in this file; annotate it or leave the recording out")
    return list(spans)
