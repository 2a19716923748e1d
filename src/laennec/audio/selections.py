"""Spans of sound from label tracks and selection tables, whatever their labels are.

Decisions: only the times are read, and two labels on one span are one span, because Raven lists a selection once for
each of its views. A table over several recordings is refused, because its times are those of the sequence.
"""

import re
from os import PathLike

from laennec.audio.cycles import AnnotationError, Span, audacity_lines, numbered_lines, parse_times, read_annotation

RAVEN_BEGIN, RAVEN_END = "Begin Time (s)", "End Time (s)"


def read_spans(path: str | PathLike[str], duration_s: float | None = None) -> list[Span]:
    """Read the spans of an annotation: ICBHI's four columns, an Audacity label track or a Raven selection table.

    Args:
        path: The text file; its lines decide which kind it is.
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
    # every line is start, end and a number, and not all are 0 or 1, as of ICBHI lines that lack a column
    labels = [re.fullmatch(r"[^\t]+\t[^\t]+\t\s*(\d+)\s*", line) for line in lines]
    numbered = all(labels) and not {label[1] for label in labels if label} <= {"0", "1"}
    # start, end and a word (or none), where an ICBHI line has four numbers
    if numbered or re.fullmatch(r"\S+\t\S+\t\s*|\s*\S+\s+\S+\s+[^\d\s].*", first):
        return list(dict.fromkeys(span for _, span, _ in audacity_lines(path, duration_s)))
    return [(cycle.start_s, cycle.end_s) for cycle in read_annotation(path, duration_s)]


def read_raven_spans(path: str | PathLike[str], duration_s: float | None = None) -> list[Span]:
    """Read the spans of a Raven selection table: a header with Begin Time (s) and End Time (s), tabs between columns.

    Raises:
        AnnotationError: The first problem of the file; selections of several recordings are one.
    """
    rows = [(line, [f.strip() for f in text.split("\t")]) for line, text in numbered_lines(path, stripped=False)]
    header = [field.lower() for field in rows[0][1]] if rows else []
    for name in (RAVEN_BEGIN, RAVEN_END):
        if name.lower() not in header:
            reason = f"no column {name!r} in the header; export the selection table with it, tabs in between"
            raise AnnotationError(path, rows[0][0] if rows else None, reason)
    begin, end = header.index(RAVEN_BEGIN.lower()), header.index(RAVEN_END.lower())
    spans: dict[Span, None] = {}
    files: set[str] = set()
    for line, fields in rows[1:]:
        if len(fields) <= max(begin, end):
            reason = f"{len(fields)} columns, too few for the header's {len(header)}; export the selection table again"
            raise AnnotationError(path, line, reason)
        spans[parse_times(path, line, fields[begin], fields[end], duration_s, comma=True)] = None
        files.update(name for key, name in zip(header, fields, strict=False) if key == "begin file" and name)
    if len(files) > 1:
        raise AnnotationError(path, None, f"selections of {len(files)} recordings; export a table for each of them")
    if not spans:
        raise AnnotationError(path, None, "no selections in this file; annotate it or leave the recording out")
    return list(spans)
