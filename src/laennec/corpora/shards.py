"""Rows with sounds, written as Parquet files of a bearable size.

Decisions: a row group ends at 32 MB and a file at its limit, so that memory does not grow with the corpus and a
reader can stream; files get their final names (`train-00000-of-00002.parquet`, as on the Hub) once it is known how many
there are.
"""

from pathlib import Path
from types import TracebackType
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

_GROUP_BYTES = 32_000_000
_GROUP_ROWS = 1_000


class Shards:
    """The Parquet files of one split, in a folder that is being written.

    Args:
        folder: Made if needed.
        split: The split's name.
        features: The columns; they are written into each file, so that its types are read back.
        most_bytes: A file ends once it is as large as this.

    Attributes:
        files: After the block: every file and its number of rows.
        rows: How many rows there are.
        arrow_bytes: Their size in memory.
    """

    def __init__(self, folder: Path, split: str, features: datasets.Features, most_bytes: int) -> None:
        self.folder, self.split, self.most_bytes = folder, split, most_bytes
        self.schema = features.arrow_schema
        self.files: dict[Path, int] = {}
        self.rows = self.arrow_bytes = 0
        self._waiting: list[dict[str, Any]] = []
        self._waiting_bytes = 0
        self._counts: list[int] = []
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def __enter__(self) -> "Shards":
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Take a row."""
        self._waiting.append(row)
        self._waiting_bytes += _size(row)
        if self._waiting_bytes >= min(_GROUP_BYTES, self.most_bytes) or len(self._waiting) >= _GROUP_ROWS:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and (self._waiting or not self._counts):
                self._flush()
        finally:
            self._end(kind is not None)
        if kind is None:
            self._name_all()

    def _flush(self) -> None:
        """Write the waiting rows as a row group."""
        if self._writer is None:
            self._file = self._path(len(self._counts)).open("wb")
            self._writer = pq.ParquetWriter(self._file, self.schema)
            self._counts.append(0)
        table = pa.Table.from_pylist(self._waiting, schema=self.schema)
        self._writer.write_table(table)
        self.rows += len(table)
        self.arrow_bytes += table.nbytes
        self._counts[-1] += len(table)
        self._waiting, self._waiting_bytes = [], 0
        assert self._file is not None
        if self._file.tell() >= self.most_bytes:
            self._end()

    def _end(self, failed: bool = False) -> None:
        """Close the file; of a failed one the end cannot be written either, and need not be."""
        try:
            if self._writer is not None:
                self._writer.close()
        except (OSError, pa.ArrowException):
            if not failed:
                raise
        finally:
            if self._file is not None:
                self._file.close()
            self._writer = self._file = None

    def _name_all(self) -> None:
        for number, count in enumerate(self._counts):
            path = self.folder / f"{self.split}-{number:05d}-of-{len(self._counts):05d}.parquet"
            self._path(number).rename(path)
            self.files[path] = count

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.part"


def _size(row: dict[str, Any]) -> int:
    """About how many bytes a row is: that of its sounds and files."""
    total = 0
    for value in row.values():
        if isinstance(value, dict):
            total += _size(value)
        elif isinstance(value, bytes):
            total += len(value)
    return total
