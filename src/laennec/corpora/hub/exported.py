"""Reading an exported corpus, from a folder or from the Hub.

Decisions: an export holds the files of the corpus as they are. They are unpacked into the cache and the class of the
corpus reads them there, so that tables, waveforms, fingerprints, published splits and every option are those of the
original folder. File names in an export are untrusted: if one leads out of the folder, the whole export is refused.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laennec.cache import cache_root, cached_folder, hash_files
from laennec.corpora.recordings import FILE_SUFFIXES, refuse_large, require_room
from laennec.errors import InputError, hub_reason
from laennec.files import writing_error
from laennec.untrusted import read_json

MANIFEST = "laennec_corpus.json"
FORMAT = 2
CARD = "README.md"
ADDRESS = "hf://datasets/"
CONFIGS = ("cycles", "recordings", "annotations")
AUDIO_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
_SHARD = re.compile(rf"(?:{'|'.join(CONFIGS)})/[\w.-]+\.parquet")
# configuration -> the columns from which the files of the corpus are restored
_COLUMNS = {
    "recordings": {"source_path": pa.string(), "audio": AUDIO_TYPE},
    "annotations": {"source_path": pa.string(), "content": pa.binary()},
}


def original_folder(
    name: str, data_dir: str | Path, cache_dir: str | Path | None = None
) -> tuple[str | Path, dict[str, Any]]:
    """The folder of a corpus, and the options it was exported with.

    It is the given folder, or the one restored from an export (a folder or hf:// address).
    """
    if isinstance(data_dir, str) and data_dir.startswith("hf://"):
        folder = _downloaded(data_dir)
    else:
        folder = Path(data_dir).expanduser().absolute()
        if not (folder / MANIFEST).is_file():
            return data_dir, {}
    manifest = read_manifest(folder)
    if manifest["corpus"] != name:
        raise InputError(f"{data_dir}: an export of corpus {manifest['corpus']}, not of {name}; load it as that corpus")
    return _restored(folder, manifest["files"], cache_dir), manifest["options"]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an export: corpus, fingerprints, protocol, counts, and the hash of every Parquet file."""
    path = folder / MANIFEST
    try:
        manifest = dict(read_json(path))
        version, corpus = manifest["format"], manifest["corpus"]
        manifest["options"] = dict(manifest.get("options", {}))
        hashes = [said["sha256"] for said in manifest["files"].values()]
        if not (isinstance(version, int) and all(isinstance(text, str) for text in (corpus, *hashes))):
            raise ValueError("wrong types")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as the manifest of an export; download or export it again") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version}, and this laennec reads format {FORMAT}; export the corpus again")
    if wrong := [name for name in manifest["files"] if not _SHARD.fullmatch(name) or ".." in name]:
        raise InputError(f"{path}: {wrong[0]!r} is no file of an export; do not use it")
    return manifest


def safe_name(name: str) -> bool:
    """Whether a relative path means one file below a folder on every system, and can be shown on one line."""
    parts, windows = name.split("/"), PureWindowsPath(name)
    inside = not {"", ".", ".."} & set(parts) and not windows.drive and not windows.root and "\\" not in name
    return inside and name.isprintable() and parts[-1].lower().endswith(FILE_SUFFIXES)


def _check_hashes(folder: Path, files: Mapping[str, Mapping[str, Any]], cache_dir: str | Path | None) -> None:
    for name in files:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing from the export; download or export it again")
    hashes = hash_files([folder / name for name in files], cache_dir)
    for name, said in files.items():
        if hashes[folder / name] != said["sha256"]:
            raise InputError(f"{folder / name}: not the file that was exported (another SHA-256); download it again")


def _restored(folder: Path, files: Mapping[str, Mapping[str, Any]], cache_dir: str | Path | None) -> Path:
    """The folder of the corpus in the cache, unpacked if it is not there."""
    needed = {name: files[name] for name in sorted(files) if name.split("/")[0] in _COLUMNS}
    if not any(name.startswith("recordings/") for name in needed):
        raise InputError(f"{folder}: the export holds no recordings; export it again")
    _check_hashes(folder, needed, cache_dir)
    made_of = json.dumps([FORMAT, [[name, said["sha256"]] for name, said in needed.items()]])
    target = cache_root(cache_dir) / "exported" / hashlib.sha256(made_of.encode()).hexdigest()[:24]
    return cached_folder(target, partial(_unpack, folder, list(needed)), cache_dir)


def _unpack(folder: Path, names: list[str], target: Path) -> None:
    """Write the files of the corpus into the folder `target`."""
    packed = sum((folder / name).stat().st_size for name in names)
    unpacked = 0
    require_room(folder, target, packed)
    for name in names:
        refuse_large_table(folder, folder / name, packed)
    written: set[str] = set()
    for name in names:
        for row in _rows(folder / name, name.split("/")[0]):
            path = row["source_path"]
            if not isinstance(path, str) or not safe_name(path):
                raise InputError(
                    f"{folder / name}: {path!r} would leave the folder or is no file name; do not use this export"
                )
            if path in written:
                raise InputError(f"{folder / name}: two files are called {path!r}; do not use this export")
            content = row["content"] if "content" in row else (row["audio"] or {}).get("bytes")
            if content is None:
                raise InputError(f"{folder / name}: {path!r} has no content; download or export it again")
            unpacked += len(content)
            refuse_large(folder, packed, unpacked)
            written.add(path)
            place = target / path
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("xb") as file:
                    file.write(content)
            except (FileExistsError, NotADirectoryError) as error:
                raise InputError(f"{folder / name}: {path!r} is a file and a folder; do not use it") from error


def _rows(path: Path, config: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, one at a time."""
    with _readable(path), pq.ParquetFile(path) as shard:
        schema = shard.schema_arrow
        for name, kind in _COLUMNS[config].items():
            if name not in schema.names:
                raise InputError(f"{path}: no column {name}; download or export it again")
            if schema.field(name).type != kind:
                raise InputError(f"{path}: column {name} is {schema.field(name).type}; export it again")
        for batch in shard.iter_batches(1, columns=list(_COLUMNS[config])):
            yield from batch.to_pylist()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InputError(f"{path}: cannot be read as Parquet ({reason}); download it again") from error


def refuse_large_table(place: Path, path: Path, packed: int) -> None:
    """Refuse a Parquet file that is unreadable, or declares more than sound and text of its size can hold."""
    with _readable(path), pq.ParquetFile(path) as table:
        groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
        refuse_large(place, packed, sum(group.total_byte_size for group in groups))


def _downloaded(address: str) -> Path:
    """The folder of the Hub's cache with the recordings and annotations of a data set, downloaded if need be."""
    found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", address)
    if found is None:
        raise InputError(f"{address}: not an address of a data set; write {ADDRESS}OWNER/NAME or ...NAME@REVISION")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [MANIFEST, *(f"{config}/*" for config in _COLUMNS)]
    try:
        folder = snapshot_download(found[1], repo_type="dataset", revision=found[2], allow_patterns=patterns)
    except HFValidationError as error:
        raise InputError(f"{address}: not a valid name of a data set; check the address") from error
    except Exception as error:  # which errors are raised depends on the transport
        reason = hub_reason(error)
        if mended := InputError(f"{address}: {reason}") if reason else writing_error(address, error):
            raise mended from error
        raise
    if not (Path(folder) / MANIFEST).is_file():
        remedy = "made by `laennec prepare --export`; read any other data set as corpus hub"
        raise InputError(f"{address}: holds no {MANIFEST}, so it is no corpus {remedy}")
    return Path(folder)
