"""Embed the spans of many recordings and keep the embeddings in a folder.

Decisions: spans are those of prediction (windows, an annotation, breaths) or the cycles of a corpus. A row of a table
is a span. The embeddings of a recording are in a file of its own; the journal has a checksum of its rows, so that
nothing is stored twice. `laennec.embeddings.parquet` is made from these files.
"""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from laennec import __version__
from laennec.audio.cycles import Span
from laennec.errors import InputError
from laennec.files import atomic_write, read_parquet
from laennec.inference.batch.jobs import Report, Worker, outcomes
from laennec.inference.batch.journal import Journal
from laennec.inference.batch.recordings import (
    Batch,
    BatchResult,
    Progress,
    annotation_of,
    check_formats,
    find_recordings,
    refuse_shared_annotation,
)
from laennec.inference.outputs import with_provenance, write_row_groups
from laennec.inference.predictor import Predictor
from laennec.processes import check_jobs
from laennec.untrusted import read_bytes

EMBEDDINGS = "laennec.embeddings.parquet"
EMBEDDING_FORMATS = ("parquet", "npz")
KNOWN = ("recording_id", "patient_id", "cycle_id", "split")
Embeddings = NDArray[np.float32]
Rows = tuple[tuple[Any, ...], ...]
"""The cycles of a recording: start_s, end_s, then the columns of `KNOWN`."""


@dataclass(frozen=True)
class Embedded:
    """The embeddings of one recording."""

    spans: list[Span]  # (start_s, end_s) of each
    values: Embeddings  # (spans, dim)


class Embedder:
    """Embeds the spans of a recording.

    Args:
        predictor: The model and the choice of spans.
        layer: A layer of the encoder, from 1 or from -1 backwards; None for the embedding that the head takes.
    """

    def __init__(self, predictor: Predictor, layer: int | None = None) -> None:
        self.predictor, self.layer = predictor, layer
        self._embed: Callable[[Sequence[Any]], Embeddings] = predictor.backend.embed
        if layer is not None:
            if predictor.backend.name == "onnx":
                raise InputError(f"layer {layer}: an ONNX file has no layers to take out; choose backend torch")
            from laennec.training.embeddings import embed_waveforms

            extractor = predictor.extractor
            self._embed = partial(embed_waveforms, _at_layer(predictor.model, layer, extractor.feature_size), extractor)

    def __call__(
        self, path: Path, annotation: Path | None = None, spans: list[Span] | None = None, report: Report | None = None
    ) -> Embedded:
        """Embed one recording: the given spans, those of an annotation, or those of the predictor."""
        listener = None if report is None else lambda stream, _: report(stream.fraction)
        _, places, found, values = self.predictor.run(self._embed, path, annotation, listener, spans)
        order = np.argsort(places, kind="stable")
        return Embedded([found[row] for row in order], values[order])

    def __reduce__(self) -> Any:
        return type(self), (self.predictor, self.layer)

    def provenance(self, spans: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that embeddings depend on, except the recordings, as plain values."""
        predictor = self.predictor
        front_end = getattr(predictor.extractor, "fingerprint", None)  # None: in an ONNX file it is part of the model
        return {
            "laennec": __version__,
            "model": predictor.fingerprint(),
            "extractor": front_end and front_end(),
            "layer": self.layer,
            "backend": predictor.backend.name,
            "spans": dict(spans),
        }


def _at_layer(model: Any, layer: int, mels: int) -> Any:
    """A model whose embedding is the mean over the tokens of a layer, counted from 1, or from -1 at the end."""
    from laennec.configuration import LaennecConfig
    from laennec.encoders import at_layers
    from laennec.encoders.adapters import layers_path
    from laennec.modeling import LaennecForAudioClassification

    if layers_path(model.encoder) is None:
        raise InputError(f"layer {layer}: this encoder has no stack of layers; leave layer out")
    try:
        encoder = at_layers(model.encoder, [layer], mels=mels)
    except InputError as error:
        raise InputError(f"{error}; or leave layer out") from error
    config = LaennecConfig(encoder_config=encoder.config, concatenated_context=model.config.concatenated_context)
    return LaennecForAudioClassification(config, encoder).to(model.device).eval()


def embed(
    embedder: Embedder,
    inputs: Sequence[str | Path] | Mapping[Path, Rows],
    out: str | Path,
    *,
    formats: Sequence[str] = ("parquet",),
    annotation: str | Path | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    jobs: int = 1,
) -> BatchResult:
    """Embed recordings and write the results; resume where an earlier call with the same settings stopped.

    The ranks of a launch (`accelerate launch`, RANK and WORLD_SIZE) share the recordings and the folder.

    Args:
        embedder: The model and the choice of spans.
        inputs: Audio files and folders, or the cycles of a corpus by recording (`cycles_of`).
        out: Folder for a file of each recording (`<recording>.laennec.parquet`, `.laennec.npz`),
            `laennec.embeddings.parquet` with all rows, `laennec.failed.csv` and the journal.
        formats: Any of "parquet", "npz", for the files of each recording.
        annotation: As for `laennec.predict`.
        progress: Called with (recordings done, including the fraction of the current one; total of recordings).
        overwrite: As for `laennec.inference.batch.run.predict`.
        jobs: Number of processes; results do not depend on it.
    """
    check_formats(formats, EMBEDDING_FORMATS)
    rows = inputs if isinstance(inputs, Mapping) else {}
    recordings = list(rows) if isinstance(inputs, Mapping) else find_recordings(inputs)
    batch = _EmbeddingsOf(Path(out), recordings, formats, annotation)
    batch.embedder, batch.rows = embedder, rows
    places = {"from": "corpus"} if rows else embedder.predictor.identity(annotation is not None)["spans"]
    batch.provenance = embedder.provenance(places)
    return batch.run(batch.provenance, overwrite=overwrite, progress=progress, jobs=check_jobs(jobs))


class _EmbeddingsOf(Batch):
    """The recordings of one call of `embed` and their files."""

    suffixes: ClassVar[dict[str, str]] = {"parquet": ".laennec.parquet", "npz": ".laennec.npz"}
    tables = (EMBEDDINGS,)
    embedder: Embedder
    rows: Mapping[Path, Rows]
    provenance: dict[str, Any]

    def others(self, path: Path) -> list[str | None]:
        if not self.rows:
            return super().others(path)
        return [hashlib.sha256(json.dumps(self.rows[path]).encode()).hexdigest()]

    def task(self, path: Path) -> tuple[Path | None, Rows | None]:
        return (None, self.rows[path]) if self.rows else (super().task(path), None)

    def worker(self) -> Worker:
        return partial(_embedded, self.embedder)

    def write(self, path: Path, entry: dict[str, Any], more: Embedded) -> None:
        table = embedding_table(path, more, self.rows.get(path), self.provenance)
        entry["rows_xxh3"] = _digest(table)
        for file in self.files(path):
            with atomic_write(file, "wb") as opened:
                if file.suffix == ".npz":
                    opened.write(_npz(table))  # type: ignore[call-overload]
                else:
                    pq.write_table(table, opened)

    def restore(self, path: Path, missing: Sequence[Path], timeline: dict[str, Any]) -> None:
        return None

    def write_tables(self, journal: Journal, recordings: Sequence[Path]) -> list[Path]:
        def tables() -> Iterator[pa.Table]:
            for path in recordings:
                digest = journal.read(self.names[path]).get("rows_xxh3")
                yield _read_table(self.files(path)[0], self.provenance, digest)

        return [write_row_groups(self.out / EMBEDDINGS, tables())]


def _embedded(
    embedder: Embedder, path: Path, task: tuple[Path | None, Rows | None], report: Report
) -> tuple[dict[str, Any], Embedded]:
    """The journal entry of a recording, and its embeddings."""
    annotation, rows = task
    spans = None if rows is None else [(row[0], row[1]) for row in rows]
    result = embedder(path, annotation, spans, report)
    return {"recording": str(path), "spans": len(result.spans)}, result


def cycles_of(splits: Mapping[str, Any]) -> dict[Path, Rows]:
    """The cycles of a corpus by recording."""
    found: dict[Path, list[tuple[Any, ...]]] = {}
    for split, table in splits.items():
        names = ("start_s", "end_s", *KNOWN[:3])
        columns = table.select_columns(["recording_path", *names]).with_format("arrow")[:].to_pydict()
        for path, *row in zip(*(columns[name] for name in ("recording_path", *names)), strict=True):
            if path is None:
                raise InputError(f"{row[4]}: has no audio; load the corpus with its recordings")
            found.setdefault(Path(path), []).append((*row, split))
    return {path: tuple(rows) for path, rows in found.items()}


def embedding_table(path: Path, embedded: Embedded, rows: Rows | None, provenance: dict[str, Any]) -> pa.Table:
    """One row for each span."""
    values = np.ascontiguousarray(embedded.values, np.float32)
    known = zip(*(row[2:] for row in rows), strict=True) if rows else [[None] * len(values)] * len(KNOWN)
    columns = {"recording": pa.array([os.fsencode(path).decode(errors="replace")] * len(values), pa.string())}
    columns |= {name: pa.array(column, pa.string()) for name, column in zip(KNOWN, known, strict=True)}
    for name, column in zip(("start_s", "end_s"), zip(*embedded.spans, strict=True), strict=True):
        columns[name] = pa.array(column, pa.float64())
    kind = pa.list_(pa.field("element", pa.float32()), values.shape[1])  # as Parquet calls it when it is read back
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)
    schema = pa.schema([(name, column.type) for name, column in columns.items()], with_provenance(provenance))
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _digest(table: pa.Table) -> str:
    """xxh3 of the rows of a table, independent of the file format."""
    others = [str(table.schema.remove_metadata()), table.drop_columns(["embedding"]).to_pydict()]
    return xxhash.xxh3_128_hexdigest(repr(others).encode() + _matrix(table).tobytes())


def _npz(table: pa.Table) -> bytes:
    """The columns of a table as a NumPy archive; null is an empty string."""
    columns = {
        name: np.array([value or "" for value in table[name].to_pylist()], str) for name in ("recording", *KNOWN)
    }
    columns |= {name: table[name].to_numpy() for name in ("start_s", "end_s")}
    columns["embedding"] = _matrix(table)
    columns["provenance"] = np.array(table.schema.metadata[b"laennec"].decode())
    file = io.BytesIO()
    np.savez(file, **columns)  # type: ignore[arg-type]
    return file.getvalue()


def _matrix(table: pa.Table) -> Embeddings:
    """The embeddings of a table, float32 (rows, dim)."""
    column = table["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(table), -1)


def _read_table(file: Path, provenance: dict[str, Any], rows_xxh3: str | None) -> pa.Table:
    """Read the table of one recording; raises if its rows are not those that were written."""
    try:
        content = io.BytesIO(read_bytes(file, None))
        if file.suffix == ".parquet":
            table = read_parquet(content).replace_schema_metadata(with_provenance(provenance))
        else:
            with np.load(content, allow_pickle=False) as archive:
                spans = list(zip(archive["start_s"].tolist(), archive["end_s"].tolist(), strict=True))
                rows = [[None if text == "" else text for text in archive[name].tolist()] for name in KNOWN]
                known = tuple((None, None, *row) for row in zip(*rows, strict=True))
                path = Path(str(archive["recording"][0]))
                table = embedding_table(path, Embedded(spans, archive["embedding"]), known, provenance)
        same = _digest(table) == rows_xxh3
    except Exception as error:  # NumPy, zipfile and Arrow have an exception for each kind of damage
        raise InputError(f"{file}: damaged ({' '.join(str(error).split())[:80]}); remove it and run again") from error
    if not same:
        raise InputError(f"{file}: damaged, or of another recording; remove it and run again")
    return table


def encode(
    model: Any,
    paths: str | Path | Sequence[str | Path],
    *,
    annotation: str | Path | None = None,
    jobs: int = 1,
    backend: str = "auto",
    layer: int | None = None,
    extractor: Any = None,
    **spans: Any,
) -> pd.DataFrame:
    """Embed recordings; see `laennec.LaennecForAudioClassification.encode`."""
    if extractor is None and hasattr(model, "encoder"):
        from laennec.hub.push import front_end_of

        extractor = front_end_of(str(model.name_or_path or ""))
    embedder = Embedder(Predictor(model, extractor, backend=backend, **spans), layer)
    recordings = find_recordings([paths] if isinstance(paths, str | Path) else paths)
    refuse_shared_annotation(annotation, recordings)
    tasks = [(path, (annotation_of(path, annotation), None)) for path in recordings]
    found = dict(outcomes(partial(_embedded, embedder), tasks, check_jobs(jobs)))
    results = [(path, found[path][1]) for path in recordings if not isinstance(found[path], str)]
    failed = [found[path] for path in recordings if isinstance(found[path], str)]
    if not results:
        raise InputError(failed[0])
    for reason in failed:
        warnings.warn(reason, stacklevel=3)
    index = [(str(path), *span) for path, one in results for span in one.spans]
    frame = pd.DataFrame(
        np.concatenate([one.values for _, one in results]),
        pd.MultiIndex.from_tuples(index, names=["recording", "start_s", "end_s"]),
    )
    frame.attrs["provenance"] = embedder.provenance(embedder.predictor.identity(annotation is not None)["spans"])
    return frame
