"""Recordings and results at addresses of fsspec: paths of this machine, or places in an object store (s3://, gs://, hf://)."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from laennec.audio.recording import AUDIO_SUFFIXES
from laennec.errors import InputError
from laennec.files import atomic_write


def said(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextmanager
def fetched(recording: str) -> Iterator[Path]:
    """A recording as a file of this machine; one from elsewhere is there for this block alone."""
    if "://" not in recording:
        yield Path(recording)
        return
    files, place = url_to_fs(recording)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / place.rsplit("/", 1)[-1]
        files.get_file(place, str(path))
        yield path


def find_uris(inputs: Sequence[str]) -> list[str]:
    """List the given files and the audio files in the given folders, each once; paths, or addresses of fsspec.

    Raises:
        InputError: There is no recording, or no client for this kind of address is installed.
    """
    found: dict[str, None] = {}
    for item in inputs:
        files, place = files_of(item)
        if not files.isdir(place):
            found[item] = None
            continue
        for name in sorted(files.find(place)):
            shown = name if "://" not in item else files.unstrip_protocol(name)
            if Path(name).suffix.lower() in AUDIO_SUFFIXES and not Path(name).name.startswith("."):
                found[shown] = None
    if not found:
        raise InputError(f"no recordings in {', '.join(inputs)}; give audio files or a folder that contains some")
    return list(found)


def files_of(address: str) -> tuple[Any, str]:
    """The file system and the path of an address.

    Raises:
        InputError: There is no client for it.
    """
    try:
        files, place = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(f"{address}: cannot be reached ({said(error)})") from error
    return files, place


def put(address: str, content: bytes) -> None:
    """Write a whole file, at a path or an address."""
    files, place = files_of(address)
    if isinstance(files, LocalFileSystem):
        with atomic_write(place, "wb") as file:
            file.write(content)
    else:
        files.pipe_file(place, content)
