"""Writing a corpus as a Parquet data set that `datasets.load_dataset` reads.

Decisions: three configurations. `cycles` (the default) has a row a cycle with its own audio, in the splits of the
chosen protocol, and every other protocol as a column. laennec filters and resamples whole recordings before it cuts
them, so `recordings` holds the file of each recording and `annotations` every file that says something about them; from
these two `load_corpus` restores the folder of the corpus. A split without cycles is left out, because `load_dataset`
cannot read one. The files contain no local paths and no times.
"""

import contextlib
import hashlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from pydantic_core import to_jsonable_python

from laennec.audio.recording import DecodeError, Waveform, read_frames
from laennec.cache import sha256_of
from laennec.corpora.base import Corpus, column_of
from laennec.corpora.hub.exported import CARD, CONFIGS, FORMAT, MANIFEST, safe_name
from laennec.corpora.load import corpus_class, open_corpus, portable_options, protocol_of, provenance, split_corpus
from laennec.corpora.recordings import UnusableRecordingsError
from laennec.corpora.splits import PROTOCOLS, WITH_FOLDS
from laennec.errors import InputError
from laennec.files import atomic_folder, json_text, refuse_other_files, scratch_folder, wait_for_lock
from laennec.rendering import render_template
from laennec.untrusted import leads_outside, read_bytes

SHARD_BYTES = 500_000_000
_GROUP_BYTES = 32_000_000
_GROUP_ROWS = 1_000
_WHOLE = "corpus"  # the only split of an unsplit table; `datasets` reserves the name "all"
_MIXED_RATES_HZ = 16_000  # declared rate of an audio column whose files have several rates
_FLAC_SUBTYPES = {"PCM_S8": "PCM_S8", "PCM_U8": "PCM_S8", "PCM_16": "PCM_16", "PCM_24": "PCM_24"}
_CYCLE_COLUMNS = ("cycle_id", "start_s", "end_s", "crackle", "wheeze", "events")


@dataclass(frozen=True)
class Exported:
    """A finished export."""

    folder: Path  # where it is
    splits: datasets.DatasetDict  # the corpus as it was split, as `load_corpus` returns it
    manifest: Mapping[str, Any]  # what its manifest says

    @property
    def bytes(self) -> int:
        """The size of its Parquet files."""
        return sum(int(said["bytes"]) for said in self.manifest["files"].values())


def export_corpus(
    corpus: str | type[Corpus],
    data_dir: str | Path | None,
    out: str | Path,
    *,
    protocol: str | None = None,
    fold: int = 0,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    sampling_rate: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Exported:
    """Write a corpus as a Parquet data set with a card; after a failure the folder is as it was before.

    Args:
        corpus: As for `load_corpus`, like all arguments that are not listed here.
        data_dir: Where it is.
        out: The folder to write; an export there is replaced, other content is refused.
        protocol: Gives the splits; "none": one split called "corpus".
        fold: Its test fold.
        validation_fraction: Of the chosen protocol and of the columns of all others.
        seed: Likewise.
        cache_dir: Root of the caches.
        sampling_rate: The rate in Hz that the audio columns declare, to which `datasets` resamples when it decodes; the
            files keep their own. None: the rate of the corpus if it has one, else 16000.
        shard_bytes: Size at which a Parquet file ends and the next one begins.
        progress: Called with (audio files written, audio files in all).
        **options: Of the corpus.

    Returns:
        Its `folder`, its `splits` as `load_corpus` returns them, and its `manifest`.

    Raises:
        InputError: The corpus or the folder cannot be used, or the disk is full.
    """
    kind = corpus_class(corpus)
    if not kind.can_be_exported:
        raise InputError(f"{kind.name}: it is a data set of the Hub already; export another corpus")
    out = Path(out).expanduser().absolute()
    _refuse_target(out)
    chosen = protocol_of(kind, protocol)
    opened = open_corpus(kind, data_dir, cache_dir, **options).check_usable()
    sources = source_files(opened)
    _check_readable_again(opened, sources)
    if len(table := opened.table()) == 0:
        raise InputError(f"{opened.root}: nothing is annotated, so there is no row to export; annotate it")
    rules: dict[str, Any] = {"validation_fraction": validation_fraction, "seed": seed}
    splits = split_corpus(opened, chosen, fold=fold, **rules)
    columns, protocols = _split_columns(opened, table, rules)
    recorded = {k: v for k, v in vars(opened.options).items() if k in portable_options(kind) and v is not None}
    rates = set(table["source_sampling_rate"])
    rate = sampling_rate or (rates.pop() if len(rates) == 1 else _MIXED_RATES_HZ)
    writer = _Writer(opened, table, columns, datasets.Audio(rate), shard_bytes, progress)
    with wait_for_lock(out), atomic_folder(out) as folder:
        _refuse_target(out)  # again, under the lock: another process may have written it
        writer.write(folder, splits, sources)
        manifest = {
            "format": FORMAT,
            **provenance(splits),
            **rules,
            "options": to_jsonable_python(recorded, fallback=str),
            "recordings": len(opened.recordings),
            "cycles": {_split_name(name): len(rows) for name, rows in splits.items()},
            "protocols": protocols,
            "files": writer.files,
        }
        (folder / MANIFEST).write_text(json_text(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / CARD).write_text(_card(opened, manifest, splits, rate), encoding="utf-8")
    return Exported(out, splits, manifest)


def source_files(corpus: Corpus) -> dict[str, Path]:
    """Every file that a corpus was read from: relative path in its folder -> the file."""
    if any(recording.audio_path is None for recording in corpus.recordings):
        raise InputError(f"{corpus.root}: annotations without any audio; an export needs the recordings")
    paths = [path for r in corpus.recordings for path in (r.audio_path, r.annotation_path) if path]
    found: dict[str, Path] = {}
    for path in dict.fromkeys([*paths, *corpus.tables, *corpus.further_files()]):
        inside = path.is_relative_to(corpus.root)
        name = corpus.exported_name(path)
        if inside and leads_outside(path, corpus.root):
            raise InputError(
                f"{path}: is a link to a file elsewhere ({path.resolve()}), which is not published; put the file "
                "itself there"
            )
        if not safe_name(name):
            raise InputError(f"{str(path)!r}: not a valid file name on other systems; rename it")
        if found.setdefault(name, path) != path:
            raise InputError(f"{path}: would be called {name} like {found[name]}; rename one of them")
    return found


def _check_readable_again(corpus: Corpus, sources: Mapping[str, Path]) -> None:
    """Check that a restored export has the same recordings, by reading links laid out like it.

    A CSV that names recordings by absolute paths fails here, before anything is written.
    """
    remedy = "have its tables name recordings by their place in the folder"
    where = f"{corpus.root}: cannot be read again from an export"
    place = hashlib.sha256(str(corpus.root).encode()).hexdigest()[:16]
    with scratch_folder(Path(tempfile.gettempdir()) / f"laennec-{place}") as scratch:
        folder = scratch / "content"
        for name, path in sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
        options = {k: v for k, v in vars(corpus.options).items() if k not in ("tables_dir", "annotations")}
        try:
            again = type(corpus)(folder, scratch / "cache", **options)
        except InputError as error:
            raise InputError(f"{where}: {str(error).replace(f'{folder}/', '')}; {remedy}") from error
        if again.problems:
            raise InputError(f"{where}: {again.problems[0].replace(f'{folder}/', '')}; {remedy}")
        if [r.recording_id for r in again.recordings] != [r.recording_id for r in corpus.recordings]:
            raise InputError(f"{where}: {len(again.recordings)} of its {len(corpus.recordings)} are found; {remedy}")


def _refuse_target(out: Path) -> None:
    """Refuse a target that exists and is neither an empty folder nor an export."""
    if out.is_symlink():
        raise InputError(f"{out}: is a link; name the folder itself (--export)")
    ours = (MANIFEST, CARD, *CONFIGS) if (out / MANIFEST).is_file() else ()
    refuse_other_files(out, ours, "choose an empty folder (--export)")


def _split_name(name: str) -> str:
    return _WHOLE if name == "all" else name


def _split_columns(
    corpus: Corpus, table: datasets.Dataset, rules: Mapping[str, Any]
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """For every protocol that the data support: its column over the table's rows, and its manifest entry."""
    columns: dict[str, list[Any]] = {}
    said: dict[str, Any] = {}
    cycles = column_of(table, "cycle_id")
    for protocol in corpus.protocols:
        with_folds = protocol in WITH_FOLDS
        folds: dict[int, datasets.DatasetDict] = {}
        with contextlib.suppress(InputError), warnings.catch_warnings(action="ignore"):  # the chosen one has warned
            folds = dict(_folds(corpus, table, protocol, rules))
        if not folds:
            continue
        name = f"{'fold' if with_folds else 'split'}_{protocol.replace('-', '_')}"
        value_of = {
            cycle: fold if with_folds else split
            for fold, splits in folds.items()
            for split, rows in splits.items()
            if split == "test" or not with_folds
            for cycle in column_of(rows, "cycle_id")
        }
        columns[name] = [value_of.get(cycle) for cycle in cycles]
        origins = {fold: provenance(splits) for fold, splits in folds.items()}
        share = rules["validation_fraction"]
        asked = {fold: origin for fold, origin in origins.items() if origin["validation_fraction"] == share}
        first = next(iter((asked or origins).values()))
        said[protocol] = {
            "column": name,
            # null for a fold that does not exist, or that is too small for a validation split
            "split_fingerprints": [asked.get(k, {}).get("split_fingerprint") for k in range(max(folds) + 1)],
            **{key: first[key] for key in ("stamp", "leaks", "validation", "published_folds")},
        }
    return columns, said


def _folds(
    corpus: Corpus, table: datasets.Dataset, protocol: str, rules: Mapping[str, Any]
) -> Iterator[tuple[int, datasets.DatasetDict]]:
    """Number and split of each fold of a protocol, or of its only split; without those that the data do not support.

    The test split of a fold does not depend on validation: a fold too small for it is split without.
    """
    for fold in _fold_numbers(corpus, table, protocol):
        for share in (rules["validation_fraction"], 0.0)[: 1 + (protocol in WITH_FOLDS)]:
            try:
                splits = split_corpus(corpus, protocol, fold=fold, **{**rules, "validation_fraction": share})
            except InputError:
                continue
            yield fold, splits
            break


def _fold_numbers(corpus: Corpus, table: datasets.Dataset, protocol: str) -> Iterable[int]:
    if protocol not in WITH_FOLDS:
        return [0]
    if protocol == "device-out":
        return range(len(set(column_of(table, "device"))))
    if protocol == "patient-5fold":
        published = corpus.published_split(protocol).get("folds")
        return sorted(set(published.values())) if published else range(5)
    return sorted(set(column_of(table, "fold")) - {None}) if "fold" in table.column_names else []


@dataclass
class _Writer:
    """Writes the configurations of an export; `files` says what was written."""

    corpus: Corpus
    table: datasets.Dataset
    columns: Mapping[str, list[Any]]
    audio: datasets.Audio
    shard_bytes: int
    progress: Callable[[int, int], None] | None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: int = 0

    def write(self, folder: Path, splits: datasets.DatasetDict, sources: Mapping[str, Path]) -> None:
        """Write all configurations."""
        self.row_of = {cycle: row for row, cycle in enumerate(column_of(self.table, "cycle_id"))}
        own = {name: kind for name, kind in self.corpus.features.items() if name != "recording_path"}
        protocols = {n: datasets.Value("int32" if n.startswith("fold_") else "string") for n in self.columns}
        features = {"cycle_id": own.pop("cycle_id"), "audio": self.audio, **own, **protocols}
        for name, rows in splits.items():
            if len(rows):
                self._write_split(folder, "cycles", _split_name(name), features, self._cycles(rows))
        dropped = ("cycle_index", "start_s", "end_s", "crackle", "wheeze", "label", "events", "audio_sha256")
        features = {name: kind for name, kind in features.items() if name not in (*dropped, "cycle_id")}
        cycles = datasets.List({name: self.corpus.features[name] for name in _CYCLE_COLUMNS})
        features |= {"source_path": datasets.Value("string"), "cycles": cycles}
        self._write_split(folder, "recordings", _WHOLE, features, self._recordings(sources))
        sounds = {recording.audio_path for recording in self.corpus.recordings}
        others = {name: path for name, path in sorted(sources.items()) if path not in sounds}
        if others:
            features = {"source_path": datasets.Value("string"), "content": datasets.Value("binary")}
            rows = ({"source_path": name, "content": self._content(path)} for name, path in others.items())
            self._write_split(folder, "annotations", _WHOLE, features, rows)

    def _cycles(self, split: datasets.Dataset) -> Iterator[dict[str, Any]]:
        """The rows of one split with their audio; a recording is decoded at its first cycle."""
        problems: list[str] = []
        decoded: tuple[str, tuple[Waveform, int, str] | None] = ("", None)
        for row in split:
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
                content, suffix = encode_lossless(piece, rate, subtype)
                number = self.row_of[row["cycle_id"]]
                protocols = {name: values[number] for name, values in self.columns.items()}
                yield {**row, "audio": {"bytes": content, "path": f"{row['cycle_id']}{suffix}"}, **protocols}
            self._advance()
        if problems:
            raise UnusableRecordingsError(problems, len(self.corpus.recordings))

    def _frames(self, path: Path, problems: list[str]) -> tuple[Waveform, int, str] | None:
        try:
            return read_frames(self._content(path))
        except DecodeError as error:
            problems.append(f"{path}: {error.reason}")
            return None

    def _recordings(self, sources: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        """A row for each recording: its file, what is known of it, and its cycles."""
        cycles: dict[str, list[dict[str, Any]]] = {}
        for row in self.table:
            cycles.setdefault(row["recording_id"], []).append(row)
        names = {path: name for name, path in sources.items()}
        for recording in self.corpus.recordings:
            assert recording.audio_path is not None  # checked with the source files
            rows = cycles.get(recording.recording_id, [])
            known = rows[0] if rows else {"recording_id": recording.recording_id, "patient_id": recording.patient_id}
            name = names[recording.audio_path]
            protocols = {name: self._common(values, rows) for name, values in self.columns.items()}
            annotated = [{name: row[name] for name in _CYCLE_COLUMNS} for row in rows]
            audio = {"bytes": self._content(recording.audio_path), "path": Path(name).name}
            yield {**known, "audio": audio, **protocols, "source_path": name, "cycles": annotated}
            self._advance()

    def _common(self, values: list[Any], rows: list[dict[str, Any]]) -> Any:
        """The split that all cycles of a recording are in, or None."""
        found = {values[self.row_of[row["cycle_id"]]] for row in rows}
        return found.pop() if len(found) == 1 else None

    def _content(self, path: Path) -> bytes:
        """The bytes of a file of the corpus; refused if it has changed since the table was made."""
        try:
            content = read_bytes(path, None)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error
        known = self.corpus.manifest.sha256.get(path)
        if known is not None and hashlib.sha256(content).hexdigest() != known:
            raise InputError(f"{path}: has changed while it was exported; export again")
        return content

    def _advance(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, len(self.corpus.recordings) + len(self.table))

    def _write_split(
        self, folder: Path, config: str, split: str, features: Mapping[str, Any], rows: Iterable[dict[str, Any]]
    ) -> None:
        """Write rows as Parquet files, in row groups of a size that fits into memory."""
        schema = datasets.Features(dict(features)).arrow_schema
        (folder / config).mkdir(parents=True, exist_ok=True)
        left = iter(rows)
        row, number = next(left, None), 0
        while row is not None or number == 0:
            path = folder / config / f"{split}-{number:05d}.parquet"
            count = 0
            with path.open("wb") as file, pq.ParquetWriter(file, schema) as writer:
                while row is not None and (count == 0 or file.tell() < self.shard_bytes):
                    group: list[dict[str, Any]] = []
                    size = 0
                    while row is not None and size < min(_GROUP_BYTES, self.shard_bytes) and len(group) < _GROUP_ROWS:
                        group.append(row)
                        size += len(row.get("content") or row["audio"]["bytes"])
                        row = next(left, None)
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
                    count += len(group)
            said = {"sha256": sha256_of(path), "bytes": path.stat().st_size, "rows": count}
            self.files[path.relative_to(folder).as_posix()] = said
            number += 1


def encode_lossless(frames: Waveform, sampling_rate: int, subtype: str) -> tuple[bytes, str]:
    """An audio file with the same samples, and its suffix: FLAC for integers of up to 24 bit, else float WAV.

    Args:
        frames: float32 (samples, channels), as `read_frames` gives them.
        sampling_rate: In Hz.
        subtype: The sample format they were decoded from, as libsndfile names it.
    """
    file = io.BytesIO()
    if subtype in _FLAC_SUBTYPES:
        # float32 holds 24 bit exactly, and libsndfile keeps the upper bits of int32
        samples = (frames * np.float32(2.0**31)).astype(np.int32)
        try:
            soundfile.write(file, samples, sampling_rate, format="FLAC", subtype=_FLAC_SUBTYPES[subtype])
            return file.getvalue(), ".flac"
        except soundfile.LibsndfileError:  # FLAC has no such rate or number of channels
            file = io.BytesIO()
    soundfile.write(file, frames, sampling_rate, format="WAV", subtype="FLOAT")
    return file.getvalue(), ".wav"


def _card(corpus: Corpus, manifest: Mapping[str, Any], splits: datasets.DatasetDict, rate: int) -> str:
    from huggingface_hub import DatasetCardData

    written: dict[str, list[str]] = {}
    for name in manifest["files"]:
        config, split = name.split("/")
        written.setdefault(config, []).append(split.rsplit("-", 1)[0])
    configs = [
        {
            "config_name": config,
            "data_files": [{"split": s, "path": f"{config}/{s}-*.parquet"} for s in dict.fromkeys(written[config])],
            **({"default": True} if config == "cycles" else {}),
        }
        for config in CONFIGS
        if config in written
    ]
    lungs = ["lung-sounds", "respiratory-sounds"] if corpus.class_column == "label" else []
    head = DatasetCardData(
        license="other",
        license_name=f"terms-of-{corpus.name}",
        pretty_name=corpus.title or corpus.name,
        task_categories=["audio-classification"],
        tags=[*lungs, "auscultation", "medical", "laennec"],
        configs=configs,
    )
    table = datasets.concatenate_datasets(list(splits.values()))
    return render_template(
        "dataset_card.md",
        head=head.to_yaml(),
        corpus=corpus,
        manifest=manifest,
        counts={_split_name(name): _counts(rows, corpus) for name, rows in splits.items()},
        whole=_counts(table, corpus),
        devices=sorted(set(table["device"]) - {None}),
        classes=corpus.features[corpus.class_column].names,
        configs=list(written),
        descriptions={name: PROTOCOLS[name].description for name in manifest["protocols"]},
        rates=sorted(set(table["source_sampling_rate"])),
        rate=rate,
    )


def _counts(table: datasets.Dataset, corpus: Corpus) -> dict[str, Any]:
    values = table[corpus.class_column][:]
    counts = {name: values.count(code) for code, name in enumerate(corpus.features[corpus.class_column].names)}
    patients = set(table["patient_id"]) - {None}
    return {
        "cycles": len(table),
        "classes": counts | ({"unknown": values.count(None)} if None in values else {}),
        "patients": len(patients) or ("unknown" if len(table) else 0),
        "recordings": len(set(table["recording_id"])),
    }
