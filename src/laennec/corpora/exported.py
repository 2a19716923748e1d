"""An exported corpus, of a folder or of the Hub, made into the corpus' own folder again.

Decisions: an export stands for the folder it was made of. Its recordings and annotations are unpacked into the
cache byte for byte, each held against its SHA-256, and the corpus' own builder reads them there: so tables, waveforms,
fingerprints, published splits and every option are the same by construction, and nothing an export claims of itself
has to be believed. Names in an export are another's words: one that would leave the folder refuses all of it.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laennec.audio.lossless import Packed, unpack
from laennec.audio.recording import DecodeError
from laennec.corpora.files import AUDIO_SUFFIXES, hash_files, require_room
from laennec.errors import InputError, hub_reason
from laennec.files import atomic_folder, cache_root, wait_for_lock, writing_error
from laennec.untrusted import MOST_BYTES, read_json

MARK = "laennec_corpus.json"
FORMAT = 1
CARD = "README.md"
ADDRESS = "hf://datasets/"
CONFIGS = ("cycles", "recordings", "annotations")
_SHARD = re.compile(rf"(?:{'|'.join(CONFIGS)})/[\w.-]+\.parquet")
_RESTORED = ("recordings/", "annotations/")
_COLUMNS = {
    "recordings": {
        "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "source_path": pa.string(),
        "source_sha256": pa.string(),
        "source_bytes": pa.int64(),
        "source_head": pa.binary(),
        "source_tail": pa.binary(),
    },
    "annotations": {"source_path": pa.string(), "source_sha256": pa.string(), "content": pa.binary()},
}
SUFFIXES = (*AUDIO_SUFFIXES, ".txt", ".csv", ".json")
_LISTING = "files.json"
_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class Mark:
    """What an export says of itself.

    Attributes:
        corpus: The corpus it was made of.
        files: Name of every Parquet file -> its SHA-256.
        facts: Everything it says: fingerprints, level, protocol, counts.
    """

    corpus: str
    files: Mapping[str, str]
    facts: Mapping[str, Any]


def is_address(data_dir: str | Path) -> bool:
    """Whether this is a data set of the Hub by its address, hf://datasets/OWNER/NAME."""
    return isinstance(data_dir, str) and data_dir.startswith("hf://")


def original_folder(name: str, data_dir: str | Path, cache_dir: str | Path | None = None) -> str | Path:
    """The folder of a corpus: what is given, or what an export that is given was made of.

    Args:
        name: The corpus.
        data_dir: Its folder, an archive, an export's folder or its address on the Hub.
        cache_dir: Root of the caches; see `laennec.corpora.files.cache_root`.

    Raises:
        InputError: It is an export, and of another corpus, damaged, changed, or not to be had.
    """
    if is_address(data_dir):
        folder = _fetched(str(data_dir))
    else:
        folder = Path(data_dir).expanduser().absolute()
        if not (folder / MARK).is_file():
            return data_dir
    mark = read_mark(folder)
    if mark.corpus != name:
        raise InputError(f"{data_dir}: an export of corpus {mark.corpus}, not of {name}; load it under its own name")
    return _restored(folder, mark, cache_dir)


def read_mark(folder: Path) -> Mark:
    """What an export says of itself.

    Raises:
        InputError: It says nothing that can be read.
    """
    path = folder / MARK
    try:
        facts = read_json(path)
        version, corpus = facts["format"], facts["corpus"]
        files = {str(name): str(said["sha256"]) for name, said in facts["files"].items()}
        if not (isinstance(version, int) and isinstance(corpus, str)):
            raise ValueError("wrong types")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as the mark of an export; download or export it again") from error
    if version != FORMAT:
        raise InputError(f"{path}: format {version}, and this laennec reads format {FORMAT}; install the one it needs")
    if wrong := [name for name in files if not _SHARD.fullmatch(name) or ".." in name]:
        raise InputError(f"{path}: {wrong[0]!r} is no file of an export; do not use it")
    return Mark(corpus, files, facts)


def check_export(folder: Path, cache_dir: str | Path | None = None) -> Mark:
    """Hold a whole export against its mark: every file there, as it was written, and no other.

    Raises:
        InputError: The first difference.
    """
    mark = read_mark(folder)
    _check_hashes(folder, mark, list(mark.files), cache_dir)
    known = {*mark.files, MARK, CARD}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or name in known):
            what = "a link" if path.is_symlink() else "no file of this export"
            raise InputError(f"{path}: {what}; remove it, or export into another folder")
    if not (folder / CARD).is_file():
        raise InputError(f"{folder / CARD}: missing, and a data set needs its card; export again")
    return mark


def safe_name(name: str) -> bool:
    """Whether a relative path means one file below a folder, whatever the system, and can be shown on a line."""
    parts, elsewhere = name.split("/"), PureWindowsPath(name)
    inside = not {"", ".", ".."} & set(parts) and not elsewhere.drive and not elsewhere.root and "\\" not in name
    return inside and name.isprintable() and parts[-1].lower().endswith(SUFFIXES)


def _check_hashes(folder: Path, mark: Mark, names: list[str], cache_dir: str | Path | None) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: missing from the export; download or export it again")
    hashes = hash_files([folder / name for name in names], cache_dir)
    for name in names:
        if hashes[folder / name] != mark.files[name]:
            raise InputError(f"{folder / name}: not the file that was exported (another SHA-256); download it again")


def _restored(folder: Path, mark: Mark, cache_dir: str | Path | None) -> Path:
    """The corpus' own folder in the cache, unpacked if it is not there."""
    names = sorted(name for name in mark.files if name.startswith(_RESTORED))
    if not any(name.startswith("recordings/") for name in names):
        raise InputError(f"{folder}: the export holds no recordings; export it again")
    _check_hashes(folder, mark, names, cache_dir)
    said = json.dumps([FORMAT, mark.corpus, [[name, mark.files[name]] for name in names]], separators=(",", ":"))
    target = cache_root(cache_dir) / "exported" / hashlib.sha256(said.encode()).hexdigest()[:24]
    content = target / "content"  # one level down, so that a search for tables beside it finds no other corpus
    if _whole(target, cache_dir):
        return content
    with wait_for_lock(target):
        if not _whole(target, cache_dir):  # another process may have unpacked it meanwhile
            _unpack_into(folder, names, target)
    return content


def _whole(target: Path, cache_dir: str | Path | None) -> bool:
    """Whether the cache holds the corpus' folder as it was unpacked."""
    try:
        listed = read_json(target / _LISTING, MOST_BYTES)
        hashes = hash_files([target / "content" / name for name in listed], cache_dir)
        return {path.relative_to(target / "content").as_posix(): sha for path, sha in hashes.items()} == dict(listed)
    except (OSError, ValueError, TypeError):  # an InputError is a ValueError: a file is gone
        return False


def _unpack_into(folder: Path, names: list[str], target: Path) -> None:
    """Make `target` with the folder `content` in it."""
    needed = 0
    for name in names:
        if name.startswith("recordings/"):
            sizes = [row["source_bytes"] for row in _rows(folder / name, "recordings", ["source_bytes"])]
            if not all(isinstance(size, int) and size > 0 for size in sizes):
                raise InputError(f"{folder / name}: a recording without its size; download or export it again")
            needed += sum(sizes)
    require_room(folder, target, needed)
    with atomic_folder(target) as aside:
        taken: dict[str, str] = {}
        for name in names:
            kind = name.split("/")[0]
            for row in _rows(folder / name, kind):
                path = _place(folder / name, row["source_path"], taken)
                content = _content(folder / name, kind, row)
                taken[path] = row["source_sha256"]
                written = aside / "content" / path
                try:
                    written.parent.mkdir(parents=True, exist_ok=True)
                    with written.open("xb") as file:
                        file.write(content)
                except (FileExistsError, NotADirectoryError) as error:
                    raise InputError(f"{folder / name}: {path!r} is a file and a folder; do not use it") from error
        (aside / _LISTING).write_text(json.dumps(taken), encoding="utf-8")


def _place(shard: Path, name: Any, taken: Mapping[str, str]) -> str:
    """The relative path of a restored file, if it is one, and no other has it."""
    if not isinstance(name, str) or not safe_name(name):
        raise InputError(f"{shard}: {name!r} would leave the folder or is no name of a file here; do not use it")
    if name in taken:
        raise InputError(f"{shard}: two files are called {name!r}; do not use this export")
    return name


def _content(shard: Path, kind: str, row: Mapping[str, Any]) -> bytes:
    """The bytes of the file that a row stands for, held against their hash."""
    name = row["source_path"]
    if kind == "annotations":
        content = row["content"]
    else:
        audio = (row["audio"] or {}).get("bytes")
        if audio is None:
            raise InputError(f"{shard}: no sound of {name!r}; download or export it again")
        try:
            content = unpack(Packed(audio, row["source_head"], row["source_tail"]), row["source_bytes"])
        except DecodeError as error:
            raise InputError(f"{shard}: {name!r} cannot be unpacked ({error.reason})") from error
    if content is None or hashlib.sha256(content).hexdigest() != row["source_sha256"]:
        raise InputError(f"{shard}: {name!r} is not the file that was exported (another SHA-256); do not use it")
    return bytes(content)


def _rows(path: Path, kind: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a shard, a few at a time."""
    wanted = _COLUMNS[kind]
    try:
        with pq.ParquetFile(path) as shard:
            schema = shard.schema_arrow
            if missing := [name for name in wanted if name not in schema.names]:
                raise InputError(f"{path}: no column {missing[0]}; download or export it again")
            if wrong := [name for name, kind in wanted.items() if schema.field(name).type != kind]:
                raise InputError(f"{path}: column {wrong[0]} is {schema.field(wrong[0]).type}; export it again")
            for batch in shard.iter_batches(_ROWS_AT_ONCE, columns=columns or list(wanted)):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as Parquet ({_first_line(error)}); download it again") from error


def _fetched(address: str) -> Path:
    """The folder of the Hub's cache with a data set's recordings and annotations, downloaded if need be."""
    found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", address)
    if found is None:
        raise InputError(f"{address}: not an address of a data set; write {ADDRESS}OWNER/NAME or ...NAME@REVISION")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [MARK, *(f"{folder}*" for folder in _RESTORED)]
    try:
        folder = snapshot_download(found[1], repo_type="dataset", revision=found[2], allow_patterns=patterns)
    except HFValidationError as error:
        raise InputError(f"{address}: no name that the Hub has; check the address") from error
    except Exception as error:  # what is raised hangs on the transport
        reason = hub_reason(error)
        if mended := InputError(f"{address}: {reason}") if reason else writing_error(address, error):
            raise mended from error
        raise
    if not (Path(folder) / MARK).is_file():
        remedy = "made by `laennec prepare --export`; read any other data set as corpus hub"
        raise InputError(f"{address}: holds no {MARK}, so it is no corpus {remedy}")
    return Path(folder)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200].rstrip(".")
