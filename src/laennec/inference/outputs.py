"""Write the predictions for a recording as files that common programs open.

Decisions: every format is made from the same timeline, the one in the journal, so formats cannot disagree. Label tracks
(Audacity) and selection tables (Raven) contain one line for each stretch in which a label is present: windows that
overlap or touch become one stretch with their highest probability, and cycles are kept apart. A single-label model gets
no stretches for "normal". Each file is read back and compared after it is written.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from laennec.audio.cycles import RAVEN_BEGIN, RAVEN_END
from laennec.errors import InputError, one_line
from laennec.files import atomic_write, json_text

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("json", "csv", "parquet", "audacity", "raven", "picture")
DEFAULT_FORMATS = ("json", "csv")
# formats with one file per recording; `laennec.files.is_result` recognises the names of all results
SUFFIXES = {
    "json": ".laennec.json",
    "audacity": ".laennec.labels.txt",
    "raven": ".laennec.selections.txt",
    "picture": ".laennec.png",
}
_ROW_GROUP = 8192
_RAVEN_HEADER = (
    "Selection", "View", "Channel", RAVEN_BEGIN, RAVEN_END, "Low Freq (Hz)", "High Freq (Hz)", "Begin Path", "Label",
    "Probability",
)  # fmt: skip

Timeline = dict[str, Any]


@dataclass(frozen=True)
class Stretch:
    """An interval of time in which a label is present, with its highest probability there."""

    label: str
    start_s: float
    end_s: float
    probability: float


def stretches(timeline: Timeline) -> list[Stretch]:
    """The stretches in which labels are present, in time order; overlapping or touching windows are joined."""
    join = timeline["spans"].get("from") == "windows"
    single_label = timeline["decision"].get("thresholds") is None
    found: list[Stretch] = []
    for label in timeline["labels"]:
        if single_label and label.lower() == "normal":
            continue
        last: Stretch | None = None
        for row in timeline["timeline"]:
            if not row[label]:
                continue
            now = Stretch(label, row["start_s"], row["end_s"], row[f"{label}_probability"])
            if join and last is not None and now.start_s <= last.end_s:
                now = Stretch(label, last.start_s, max(last.end_s, now.end_s), max(last.probability, now.probability))
                found.pop()
            found.append(now)
            last = now
    return sorted(found, key=lambda stretch: (stretch.start_s, stretch.end_s, stretch.label))


def as_lines(timeline: Timeline) -> list[str]:
    """The predictions for one recording as lines for a terminal; a label that is present is marked with *."""
    labels = timeline["labels"]
    widths = {name: max(9, len(one_line(name))) for name in labels}
    head = f"{timeline['recording']} ({timeline['duration_s']:.1f} s)"
    lines = [head, "  ".join([f"{'from - to (s)':>17}", *(f"{one_line(name):>9}" for name in labels)])]
    for row in timeline["timeline"]:
        found = (f"{row[f'{n}_probability']:.2f}{'*' if row[n] else ' '}".rjust(widths[n]) for n in labels)
        lines.append("  ".join([f"{row['start_s']:7.2f} - {row['end_s']:7.2f}", *found]))
    present = [f"{n} in {sum(row[n] for row in timeline['timeline'])}" for n in labels]
    overall = [f"{n} {one['probability']:.2f}{'*' * one['present']}" for n, one in timeline["overall"].items()]
    lines.append(f"whole recording: {', '.join(overall)}")
    second = " (and above a second one where another label is likelier)" * ("second_thresholds" in timeline["decision"])
    return [*lines, f"* above its threshold{second}: {', '.join(present)} of {len(timeline['timeline'])} spans"]


def write_json(path: Path, timeline: Timeline) -> Path:
    """Write the predictions for one recording as JSON."""
    return _write(path, [json_text(timeline, indent=1, ensure_ascii=False)])


def write_audacity(path: Path, timeline: Timeline) -> Path:
    """Write the stretches as an Audacity label track: start, end, and the label with its probability."""
    rows = ((f"{s.start_s:.3f}", f"{s.end_s:.3f}", f"{s.label} {s.probability:.2f}") for s in stretches(timeline))
    return _write(path, map(_tabbed, rows))


def write_raven(path: Path, timeline: Timeline) -> Path:
    """Write the stretches as a Raven selection table."""
    top_hz = timeline["source_sampling_rate"] / 2
    rows = (
        (
            number, "Spectrogram 1", 1, f"{s.start_s:.3f}", f"{s.end_s:.3f}", "0.0", f"{top_hz:.1f}",
            timeline["recording"], s.label, f"{s.probability:.4f}",
        )
        for number, s in enumerate(stretches(timeline), 1)
    )  # fmt: skip
    return _write(path, map(_tabbed, (_RAVEN_HEADER, *rows)))


def _tabbed(row: Iterable[object]) -> str:
    """A row of a table without quotes; names and labels are untrusted, and cannot end their cell or line."""
    return "\t".join(one_line(str(value)) for value in row) + "\n"


def write_csv(path: Path, timelines: Iterable[Timeline]) -> Path:
    """Write the spans of many recordings as one table with one row per span; timelines are consumed one by one."""
    return _write_table(
        path, ({"recording": timeline["recording"], **row} for timeline in timelines for row in timeline["timeline"])
    )


def write_parquet(path: Path, timelines: Iterable[Timeline], provenance: dict[str, Any]) -> Path:
    """Write the rows of `write_csv` as Parquet.

    Args:
        path: The file.
        timelines: Of many recordings; consumed one by one.
        provenance: Model and settings, for the schema's metadata, as JSON under the name "laennec".
    """
    return write_row_groups(path, (prediction_table(timeline, provenance) for timeline in timelines))


def prediction_table(timeline: Timeline, provenance: dict[str, Any]) -> "pa.Table":
    """The rows of a recording, see `write_parquet`."""
    import pyarrow as pa

    kinds = {"recording": pa.string()} | dict.fromkeys(timeline["labels"], pa.int8())
    name = os.fsencode(timeline["recording"]).decode(errors="replace")  # Parquet takes only UTF-8
    rows = [{"recording": name, **row} for row in timeline["timeline"]]
    fields = [pa.field(name, kinds.get(name, pa.float64())) for name in rows[0]]
    return pa.Table.from_pylist(rows, pa.schema(fields, with_provenance(provenance)))


def with_provenance(provenance: dict[str, Any]) -> dict[str, str]:
    """Metadata of a Parquet schema with their checksum, because Parquet's own checksums cover pages only."""
    text = json_text(provenance, ensure_ascii=False)
    return {"laennec": text, "laennec_xxh3": xxhash.xxh3_64_hexdigest(text.encode())}


def write_row_groups(path: Path, tables: "Iterable[pa.Table]") -> Path:
    """Write tables of one schema, at least one, as one Parquet file, in row groups of some thousand rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    waiting: list[pa.Table] = []
    with atomic_write(path, "wb") as file, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in tables:
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(file, table.schema, write_page_checksum=True))
            waiting.append(table)
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if writer is not None and waiting:
            writer.write_table(pa.concat_tables(waiting))
    return path


def write_recordings(path: Path, timelines: Iterable[Timeline]) -> Path:
    """Write one row per recording: length, number of spans, and the overall result of each label."""

    def rows() -> Iterator[dict[str, Any]]:
        for timeline in timelines:
            row = {key: timeline[key] for key in ("recording", "duration_s")} | {"spans": len(timeline["timeline"])}
            for label, overall in timeline["overall"].items():
                row |= {label: overall["present"]}
                row |= {f"{label}_{name}": overall[name] for name in ("probability", "highest", "share")}
            yield row

    return _write_table(path, rows())


def write_failures(path: Path, failures: Iterable[tuple[str, str]]) -> Path:
    """Write the recordings that could not be predicted, each with its reason."""
    return _write(path, [failures_text(failures)])


def failures_text(failures: Iterable[tuple[str, str]]) -> str:
    """The lines of laennec.failed.csv."""
    return csv_lines([["recording", "reason"], *map(list, failures)])


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
WRITERS = {"json": write_json, "audacity": write_audacity, "raven": write_raven}


def _write_table(path: Path, rows: Iterable[dict[str, Any]]) -> Path:

    def lines() -> Iterator[str]:
        for number, row in enumerate(rows):
            yield csv_lines([list(row)] if number == 0 else []) + csv_lines([list(row.values())])

    return _write(path, lines())


def csv_lines(rows: Iterable[list[Any]]) -> str:
    """Rows as the text of a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A cell without control characters or a formula: file names and labels are untrusted."""
    if not isinstance(value, str):
        return value
    return f"'{one_line(value)}" if value.startswith(_FORMULA) else one_line(value)


def _write(path: Path, texts: Iterable[str]) -> Path:
    """Write texts one after another, then compare the file on disk with them."""
    wanted = hashlib.sha256()
    with atomic_write(path, "wb") as file:
        for text in texts:
            content = text.encode(errors="backslashreplace")  # file names may have no valid encoding
            wanted.update(content)
            file.write(content)  # type: ignore[call-overload]
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != wanted.digest():
            raise InputError(f"{path}: the file reads back differently than it was written; check the disk")
    return path
