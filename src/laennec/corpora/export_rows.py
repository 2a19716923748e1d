"""The rows of an exported corpus: cycles with their own sound, recordings, annotation files.

Decisions: a cycle is cut at the recording's own rate, every channel, where `laennec.audio.cycles.cut` would cut it. A
recording is the file itself or FLAC with what else stood in the file; in a corpus of which some recordings cannot be
decoded all of these are named before it is given up. Every file is held against the hash that the table was made of.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from laennec.audio.lossless import encode, pack
from laennec.audio.recording import DecodeError, read_frames, read_header
from laennec.corpora.base import Corpus, column_of
from laennec.corpora.recordings import UnusableRecordingsError
from laennec.corpora.shards import Shards
from laennec.errors import InputError
from laennec.untrusted import read_bytes

WHOLE = "corpus"  # the split of what is not split; `datasets` keeps the word "all" for itself
_MIXED_RATES_HZ = 16_000  # what encoders of sound want; of an audio column whose files have several rates
_FACTS = ("patient_id", "chest_location", "acquisition_mode", "device", "age_years", "sex", "bmi", "diagnosis", "part")
_TOLD = ("cycle_id", "start_s", "end_s", "crackle", "wheeze", "events")
_Frames = tuple[np.ndarray[Any, np.dtype[np.float32]], int, str]


def split_name(part: str) -> str:
    """The name of a part's split."""
    return WHOLE if part == "all" else part


class RowWriter:
    """Writes the configurations of an export.

    Args:
        builder: The opened corpus.
        table: Its cycle table.
        parts: The table split by the chosen protocol.
        columns: Name -> values over the table's rows: the other protocols.
        sampling_rate: The declared rate in Hz; None: the corpus' own, or 16000 where it has several.
        shard_bytes: A Parquet file ends once it is as large as this.
        progress: Called with (sounds written, sounds in all).

    Attributes:
        files: After `write`: every Parquet file with its hash, size and rows.
        infos: After `write`: what each configuration is.
    """

    def __init__(
        self,
        builder: Corpus,
        table: datasets.Dataset,
        parts: datasets.DatasetDict,
        columns: Mapping[str, list[Any]],
        sampling_rate: int | None,
        shard_bytes: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.builder, self.corpus, self.parts, self.columns = builder, builder, parts, columns
        self.table, self.shard_bytes = table, shard_bytes
        rates = set(table["source_sampling_rate"])
        self.audio = datasets.Audio(sampling_rate or (rates.pop() if len(rates) == 1 else _MIXED_RATES_HZ))
        self.row_of = {cycle: row for row, cycle in enumerate(column_of(table, "cycle_id"))}
        self.progress, self.done, self.total = progress, 0, len(self.corpus.recordings) + len(table)
        self.files: dict[str, dict[str, Any]] = {}
        self.infos: dict[str, datasets.DatasetInfo] = {}

    def write(self, folder: Path, sources: Mapping[str, Path]) -> None:
        """Write all into a folder.

        Args:
            folder: Being written.
            sources: Relative path of every file of the corpus -> the file.

        Raises:
            InputError: A recording cannot be used or has changed.
        """
        names = {path: name for name, path in sources.items()}
        cycles = {split_name(part): self._cycles(table) for part, table in self.parts.items() if len(table)}
        self._config(folder, "cycles", self._cycle_features(), cycles)
        self._config(folder, "recordings", self._recording_features(), {WHOLE: self._recordings(names)})
        sounds = {entry.audio_path for entry in self.corpus.recordings}
        said = {name: path for name, path in sources.items() if path not in sounds}
        if said:
            features = {"source_path": "string", "source_sha256": "string", "content": "binary"}
            rows = _annotations(said)
            self._config(folder, "annotations", {n: datasets.Value(t) for n, t in features.items()}, {WHOLE: rows})

    def _config(
        self, folder: Path, config: str, features: Mapping[str, Any], splits: Mapping[str, Iterator[dict[str, Any]]]
    ) -> None:
        typed = datasets.Features(dict(features))
        counts = {}
        for split, rows in splits.items():
            with Shards(folder / config, split, typed, self.shard_bytes) as shards:
                for row in rows:
                    shards.add(row)
            for path, rows_in_it in shards.files.items():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                said = {"sha256": digest, "bytes": path.stat().st_size, "rows": rows_in_it}
                self.files[path.relative_to(folder).as_posix()] = said
            counts[split] = datasets.SplitInfo(split, num_bytes=shards.arrow_bytes, num_examples=shards.rows)
        size = sum(said["bytes"] for name, said in self.files.items() if name.startswith(f"{config}/"))
        self.infos[config] = datasets.DatasetInfo(
            features=typed,
            splits=datasets.SplitDict(counts),
            download_size=size,
            dataset_size=sum(info.num_bytes for info in counts.values()),
            config_name=config,
        )

    def _split_features(self) -> dict[str, Any]:
        kinds = {name: "int32" if name.startswith("fold_") else "string" for name in self.columns}
        return {name: datasets.Value(kind) for name, kind in kinds.items()}

    def _cycle_features(self) -> dict[str, Any]:
        own = {name: kind for name, kind in self.corpus.features.items() if name != "recording_path"}
        return {"cycle_id": own.pop("cycle_id"), "audio": self.audio, **own, **self._split_features()}

    def _cycles(self, part: datasets.Dataset) -> Iterator[dict[str, Any]]:
        """The rows of one split, each with its own sound; a recording is decoded when its first cycle comes."""
        problems: list[str] = []
        decoded: tuple[str, _Frames | None] = ("", None)
        for row in part:
            path = row.pop("recording_path")
            if decoded[0] != path:
                decoded = (path, self._frames(Path(path), problems))
            if decoded[1] is not None:
                frames, rate, subtype = decoded[1]
                first = min(max(int(row["start_s"] * rate), 0), len(frames))  # as laennec.audio.cycles.cut
                piece = frames[first : max(first, int(row["end_s"] * rate))]
                if len(piece) == 0:
                    problems.append(f"{path}: cycle {row['cycle_id']} is empty; correct its annotation")
                    continue
                content, suffix = encode(piece, rate, subtype)
                splits = {name: values[self.row_of[row["cycle_id"]]] for name, values in self.columns.items()}
                yield {**row, "audio": {"bytes": content, "path": f"{row['cycle_id']}{suffix}"}, **splits}
            self._advance()
        if problems:
            raise UnusableRecordingsError(problems, len(self.corpus.recordings))

    def _frames(self, path: Path, problems: list[str]) -> _Frames | None:
        try:
            return read_frames(self._content(path))
        except DecodeError as error:
            problems.append(f"{path}: {error.reason}")
            return None

    def _recording_features(self) -> dict[str, Any]:
        own = self.corpus.features
        return {
            "recording_id": own["recording_id"],
            "audio": self.audio,
            **{name: own[name] for name in _FACTS},
            **self.corpus.extra_columns,
            "source_sampling_rate": own["source_sampling_rate"],
            "cycles": datasets.List({name: own[name] for name in _TOLD}),
            **self._split_features(),
            "source_path": datasets.Value("string"),
            "source_sha256": datasets.Value("string"),
            "source_bytes": datasets.Value("int64"),
            "source_head": datasets.Value("binary"),
            "source_tail": datasets.Value("binary"),
        }

    def _recordings(self, names: Mapping[Path, str]) -> Iterator[dict[str, Any]]:
        """A row for each recording, those without any cycle too."""
        cycles: dict[str, list[dict[str, Any]]] = {}
        for row in self.table.select_columns([n for n in self.table.column_names if n != "recording_path"]):
            cycles.setdefault(row["recording_id"], []).append(row)
        for entry in self.corpus.recordings:
            path = entry.audio_path
            assert path is not None  # refused before
            content = self._content(path)
            packed = pack(content)
            rows = cycles.get(entry.recording_id, [])
            suffix = path.suffix if packed.head is None else ".flac"
            own = {name: value for name, value in entry.extra if name in self.corpus.extra_columns}
            yield {
                "recording_id": entry.recording_id,
                "audio": {"bytes": packed.audio, "path": f"{entry.recording_id}{suffix}"},
                **{name: getattr(entry, "split" if name == "part" else name) for name in _FACTS},
                **own,
                "source_sampling_rate": rows[0]["source_sampling_rate"] if rows else read_header(content)[0],
                "cycles": [{name: row[name] for name in _TOLD} for row in rows],
                **{name: self._common(values, rows) for name, values in self.columns.items()},
                "source_path": names[path],
                "source_sha256": self.builder.manifest.sha256[path],
                "source_bytes": len(content),
                "source_head": packed.head,
                "source_tail": packed.tail,
            }
            self._advance()

    def _common(self, values: list[Any], rows: list[dict[str, Any]]) -> Any:
        """The part that all cycles of a recording are in, or None."""
        found = {values[self.row_of[row["cycle_id"]]] for row in rows}
        return found.pop() if len(found) == 1 else None

    def _content(self, path: Path) -> bytes:
        """A recording's file, which must be what the table was made of."""
        content = _read(path)
        if hashlib.sha256(content).hexdigest() != self.builder.manifest.sha256[path]:
            raise InputError(f"{path}: has changed while it was exported; export again")
        return content

    def _advance(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)


def _annotations(sources: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    """A row for each file that says something about the recordings."""
    for name, path in sorted(sources.items()):
        content = _read(path)
        yield {"source_path": name, "source_sha256": hashlib.sha256(content).hexdigest(), "content": content}


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, None)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error
