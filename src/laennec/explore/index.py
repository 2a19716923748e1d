"""Search for the spans whose embeddings are most similar to that of a query.

Decisions: similarity is the cosine, and the search is exact: one matrix product of the query with all normalised
embeddings. For 100,000 spans of 384 numbers that takes 25 ms on one core, so an approximate index would add a
dependency and miss neighbours without a benefit. A query is embedded by the model and the layer that made the index;
any other model is refused, because embeddings of two models are not comparable.
"""

import difflib
import io
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

import laennec
from laennec.audio.cycles import LABELS, Span, counting_spans
from laennec.audio.recording import read_header, wave_file
from laennec.corpora.base import class_names
from laennec.errors import InputError
from laennec.files import read_parquet
from laennec.inference.backends import load_for_prediction
from laennec.inference.decisions import probabilities_of
from laennec.inference.embed import EMBEDDINGS, KNOWN, Embedder
from laennec.inference.outputs import with_provenance
from laennec.inference.predictor import Predictor
from laennec.untrusted import parse_json, read_bytes

FILTERS = {"patient": "patient_id", "device": "device", "location": "chest_location", "label": "label"}
_SPAN = ["recording", "start_s", "end_s"]
_KINDS = dict.fromkeys(("recording", *KNOWN), pa.string()) | dict.fromkeys(_SPAN[1:], pa.float64())
_OF_RECORDINGS = ("patient_id", "device", "chest_location")
_LONGEST = 2.0  # largest length of a query, as a multiple of the longest span of the index
Vectors = NDArray[np.float32]


class EmbeddingIndex:
    """Embedded spans of recordings, to be searched.

    Attributes:
        rows: A row for each span: recording, start_s, end_s, recording_id, patient_id, cycle_id, split; after `join`
            also device, chest_location and label. Unknown values are None.
        embeddings: float32 (spans, dim), as the model made them.
        provenance: What the embeddings depend on: model, layer, spans.
        embedder: The model, for queries.
    """

    def __init__(self, rows: pd.DataFrame, embeddings: Vectors, provenance: dict[str, Any], embedder: Embedder) -> None:
        self.rows, self.embeddings, self.provenance, self.embedder = rows, embeddings, provenance, embedder

    @classmethod
    def open(
        cls, path: str | Path, model: str | Path = laennec.DEFAULT_MODEL, *, base: str | None = None, **settings: Any
    ) -> "EmbeddingIndex":
        """Open what `laennec embed` wrote.

        Args:
            path: Its output folder, or a Parquet file of it.
            model: The model that made it: folder of a run or an exported model, or a Hub id; the model in the package
                where none is given.
            base: Path of the base encoder of a head-only model.
            **settings: backend, as for `laennec.Predictor`.

        Raises:
            InputError: The file is missing, damaged or no table of embeddings, or was made by another model.
        """
        rows, embeddings, provenance = read_embeddings(path)
        layer = provenance.get("layer")
        backend = settings.get("backend", "auto" if layer is None else "torch")
        predictor = Predictor(*load_for_prediction(model, base, backend), backend=backend)
        if predictor.fingerprint() != provenance.get("model"):
            name = "the model in the package" if model == laennec.DEFAULT_MODEL else model
            raise InputError(
                f"{path}: made by another model ({str(provenance.get('model'))[:12]}) than {name} "
                f"({predictor.fingerprint()[:12]}); give the model that made it (--model), or embed again"
            )
        return cls(rows, embeddings, provenance, Embedder(predictor, layer))

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, corpus: Any) -> "EmbeddingIndex":
        """Add patient, device, chest location and label from the cycle tables of a corpus.

        Cycles are matched by id; windows by the path of their recording, and they have the labels of the annotated
        cycles that count for them (`laennec.audio.cycles.counting_spans`).

        Args:
            corpus: The splits that `laennec.load_corpus` returns.

        Raises:
            InputError: The corpus holds none of the spans.
        """
        table = pd.concat([_metadata(split) for split in corpus.values()], ignore_index=True)
        table["recording_path"] = table["recording_path"].map(os.path.abspath, na_action="ignore")
        windows = self.rows["cycle_id"].isna().all()
        column, key = ("recording_path", self._paths) if windows else ("cycle_id", self.rows["cycle_id"])
        known = table.drop_duplicates(column).set_index(column)
        if not key.isin(known.index).any():
            raise InputError(f"none of the {len(self)} spans is in this corpus; name the corpus that was embedded")
        for name in (*_OF_RECORDINGS, "label"):
            self.rows[name] = key.map(known[name]).astype(object).where(key.isin(known.index), None)
        if windows:
            self.rows["label"] = pd.Series(_labels_of_windows(self.rows, key, table), self.rows.index, dtype=object)
        return self

    def search(
        self,
        query: str | Path | ArrayLike,
        top: int = 20,
        *,
        sampling_rate: int | None = None,
        span: Span | None = None,
        other_patients: bool = False,
        **filters: Any,
    ) -> pd.DataFrame:
        """The most similar spans.

        Args:
            query: A recording, or a waveform (samples,) in [-1, 1].
            top: Number of spans.
            sampling_rate: Of a waveform, in Hz.
            span: (start_s, end_s) of the query within the recording; all of it where it is left out.
            other_patients: Leave out spans of the query's own patient; the query must be a recording of the index whose
                patient is known.
            **filters: patient, device, location, label: a value or a list of values.

        Returns:
            `top` rows of the index or fewer, the most similar first, with the column similarity (cosine).

        Raises:
            InputError: The query cannot be read or is too long, or no span matches the filters.
        """
        if top < 1:
            raise InputError(f"top {top}: it must be 1 or more")
        kept = self._kept(filters)
        if other_patients:
            kept &= ~self._of_the_patient_of(query)
        vector = self.embed(query, sampling_rate, span)
        rows = np.flatnonzero(kept)
        cosine = self._unit @ (vector / max(float(np.linalg.norm(vector)), 1e-12))
        best = rows[np.argsort(-cosine[rows], kind="stable")[:top]]
        found = self.rows.iloc[best].copy()
        found.insert(0, "similarity", cosine[best])
        return found

    def embed(self, query: Any, sampling_rate: int | None = None, span: Span | None = None) -> Vectors:
        """The embedding (dim,) of a query, see `search`."""
        source: Any = query if isinstance(query, str | Path) else wave_file(query, sampling_rate)
        rate, frames = read_header(source)
        duration_s, longest_s = frames / rate, float((self.rows["end_s"] - self.rows["start_s"]).max())
        name = "the waveform" if isinstance(source, bytes) else str(source)
        start_s, end_s = span or (0.0, duration_s)
        if not 0 <= start_s < end_s <= duration_s + 1e-3:
            raise InputError(
                f"{name}: span {start_s:g} to {end_s:g} s is not within its {duration_s:.3g} s; correct the span"
            )
        if end_s - start_s > _LONGEST * longest_s:
            raise InputError(
                f"{name}: {end_s - start_s:.3g} s, but the spans of the index last at most {longest_s:.3g} s; name the "
                "part to search for (--span START END)"
            )
        vector: Vectors = self.embedder(source, spans=[(start_s, min(end_s, duration_s))]).values[0]
        return vector

    def probabilities(self) -> NDArray[np.float32] | None:
        """Calibrated probabilities (spans, labels); None for an inner layer, or where the model runs in onnxruntime."""
        predictor = self.embedder.predictor
        if self.embedder.layer is not None or predictor.backend.name != "torch":
            return None
        from laennec.training.tables import head_logits

        spans = "windows" if self.provenance.get("spans", {}).get("from") == "windows" else "events"
        fitted_on = predictor.decision_for(spans == "events")["fitted_on"]
        return probabilities_of(predictor.model.config, head_logits(predictor.model.head, self.embeddings), fitted_on)

    @property
    def label_names(self) -> list[str]:
        """Labels of the model."""
        return list(self.embedder.predictor.model.config.label_names)

    @cached_property
    def _unit(self) -> Vectors:
        return self.embeddings / np.maximum(np.linalg.norm(self.embeddings, axis=1, keepdims=True), 1e-12)

    @cached_property
    def _paths(self) -> pd.Series:
        return self.rows["recording"].map(os.path.abspath)

    def _kept(self, filters: Mapping[str, Any]) -> NDArray[np.bool_]:
        kept = np.ones(len(self), dtype=bool)
        for name, given in filters.items():
            if name not in FILTERS:
                raise InputError(f"filter {name!r}: it can be {', '.join(FILTERS)}")
            wanted = [str(value) for value in ([given] if isinstance(given, str | int) else given)]
            column = self.rows.get(FILTERS[name])
            if column is None or column.isna().all():
                raise InputError(
                    f"{name}: unknown for every span; name the corpus that was embedded (--corpus, --data-dir)"
                )
            known = set(column.dropna().astype(str))
            if absent := [value for value in wanted if value not in known]:
                near = difflib.get_close_matches(absent[0], known, n=1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known)[:8])}"
                raise InputError(f"{name} {absent[0]!r}: no span has it; {meant}")
            kept &= column.astype(str).isin(wanted).to_numpy()
        if not kept.any():
            raise InputError(f"no span has {' and '.join(filters)} together; leave one of these filters out")
        return kept

    def _of_the_patient_of(self, query: Any) -> NDArray[np.bool_]:
        own = self._paths == os.path.abspath(query) if isinstance(query, str | Path) else pd.Series(False)
        if not own.any():
            raise InputError("other patients: the query is no recording of the index, so its patient is unknown")
        patient = self.rows.loc[own, "patient_id"].iloc[0]
        if pd.isna(patient):
            raise InputError(
                "other patients: the patient of the query is unknown; name the corpus that was embedded (--corpus, "
                "--data-dir)"
            )
        return (self.rows["patient_id"] == patient).to_numpy()


def read_embeddings(path: str | Path) -> tuple[pd.DataFrame, Vectors, dict[str, Any]]:
    """Rows, embeddings (spans, dim) and provenance of a table of `laennec embed`."""
    file = Path(path) / EMBEDDINGS if Path(path).is_dir() else Path(path)
    parts = sorted(file.with_suffix("").glob("*.parquet"))  # of a Ray cluster
    if parts and file.is_file():
        raise InputError(
            f"{file}: the folder {file.stem} beside it has embeddings of a Ray cluster; remove the older of the two"
        )
    parts = parts or [file]
    if not parts[0].is_file():
        raise InputError(f"{file}: no such file; make it with laennec embed RECORDINGS --out {Path(path)}")
    try:
        contents = [io.BytesIO(read_bytes(part, None)) for part in parts]
        table = pa.concat_tables([read_parquet(one) for one in contents])
        provenance = parse_json((table.schema.metadata or {})[b"laennec"])
        checked = with_provenance(provenance)["laennec_xxh3"].encode() == table.schema.metadata[b"laennec_xxh3"]
        width = table.schema.field("embedding").type.list_size
        values = np.array(table["embedding"].combine_chunks().flatten(), np.float32).reshape(len(table), width)
        rows = table.drop_columns(["embedding"]).to_pandas()
        known = checked and isinstance(provenance, dict) and isinstance(provenance.get("layer"), int | None)
        typed = all(table.schema.field(name).type == kind for name, kind in _KINDS.items())
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException) as error:
        raise InputError(f"{file}: no table of embeddings of laennec embed, or damaged; embed again") from error
    whole = len(rows) and {*rows.columns} == {*_KINDS} and rows[_SPAN].notna().all(axis=None)
    if not known or not typed or not whole or not np.isfinite(values).all():
        raise InputError(f"{file}: no usable table of embeddings; embed the recordings again")
    return rows, values, provenance


def findings(label: Any) -> frozenset[str] | None:
    """The findings of a label: empty for "normal", two for "both"; None where it is unknown."""
    if pd.isna(label):
        return None
    named = {"normal": [], "both": ["crackle", "wheeze"]}
    return frozenset(named.get(label, str(label).split(" + ")))


def _labels_of_windows(rows: pd.DataFrame, paths: pd.Series, cycles: pd.DataFrame) -> list[str | None]:
    """The findings of all cycles that count for a window; None where no cycle with a label does."""
    of_recording = {path: part.to_dict("records") for path, part in cycles.groupby("recording_path")}
    labels = []
    for path, start_s, end_s in zip(paths, rows["start_s"], rows["end_s"], strict=True):
        counting = counting_spans(of_recording.get(path, []), start_s, end_s)
        known = [found for cycle in counting if (found := findings(cycle["label"])) is not None]
        both = {name for found in known for name in found}
        text = "both" if both == {"crackle", "wheeze"} else " + ".join(sorted(both)) or "normal"
        labels.append(text if known else None)
    return labels


def _metadata(table: Any) -> pd.DataFrame:
    """What an index takes from a split: the label by name, or the names of own labels joined by " + "."""
    names = class_names(table, "label")
    wanted = ["cycle_id", "recording_path", "start_s", "end_s", *_OF_RECORDINGS, "label", "events"]
    frame: pd.DataFrame = table.select_columns([n for n in wanted if n in table.column_names]).to_pandas()
    events = frame.pop("events") if "events" in frame else pd.Series([None] * len(frame))
    joined = [None if own is None else " + ".join(sorted({*own})) or "normal" for own in events]
    classes = [names[int(label)] if pd.notna(label) and names else None for label in frame["label"]]
    first, other = (classes, joined) if {*names} <= {*LABELS} else (joined, classes)  # own classes join several labels
    frame["label"] = [other[row] if label is None else label for row, label in enumerate(first)]
    return frame
