"""Recordings and results at fsspec addresses: local paths, or places in an object store (s3://, gs://, hf://)."""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from laennec.audio.recording import AUDIO_SUFFIXES
from laennec.errors import InputError
from laennec.files import atomic_write

# properties that change with a file's content, as named by local disks, S3, Google, Azure and the Hub
_STATE = ("ino", "created", "mtime", "etag", "ETag", "LastModified", "last_modified", "updated", "blob_id", "size")


def said(error: Exception) -> str:
    """Type and message of an error of another library, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def fetched(recording: str) -> Iterator[Path]:
    """A recording as a local file; one at an address is downloaded for this block."""
    if "://" not in recording:
        yield Path(recording)
        return
    files, place = url_to_fs(recording)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / place.rsplit("/", 1)[-1]
        files.get_file(place, str(path))
        yield path


def find_uris(inputs: Sequence[str]) -> dict[str, str]:
    """List the given files and the audio files in the given folders; paths, or addresses of fsspec.

    Returns:
        Each address once, with its state (see `_state`); "" where the file system reports none.
    """
    found: dict[str, str] = {}
    for item in inputs:
        files, place = files_of(item)
        if not files.isdir(place):
            found[item] = ""
            with contextlib.suppress(Exception):  # a worker reports why it cannot be read
                found[item] = _state(files.info(place))
            continue
        for name, said in sorted(files.find(place, detail=True).items()):
            shown = name if "://" not in item else files.unstrip_protocol(name)
            if Path(name).suffix.lower() in AUDIO_SUFFIXES and not Path(name).name.startswith("."):
                found[shown] = _state(said)
    if not found:
        raise InputError(f"no recordings in {', '.join(inputs)}; give audio files or a folder that contains some")
    return found


def _state(said: Mapping[str, Any]) -> str:
    """The properties of a file that change with its content, as JSON."""
    return json.dumps({name: str(said[name]) for name in _STATE if name in said})


def files_of(address: str) -> tuple[Any, str]:
    """The file system and the path of an address."""
    try:
        files, place = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(f"{address}: cannot be reached ({said(error)}); check the address") from error
    return files, place


def put(address: str, content: bytes) -> None:
    """Write a whole file, at a path or an address."""
    files, place = files_of(address)
    if isinstance(files, LocalFileSystem):
        with atomic_write(place, "wb") as file:
            file.write(content)
    else:
        files.pipe_file(place, content)
