"""Files and folders of the cache, verified before they are used.

Decisions: an entry ends with a checksum of its name, folder and content. A process compares it at its first read, which
detects flipped bits, blocks lost in a power cut and an entry stored under another name. A damaged entry is reported,
removed and made again. A cached folder has a list of its files with their SHA-256.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from laennec.errors import InputError
from laennec.files import (
    atomic_write,
    explain_write_errors,
    json_text,
    remove_stale_lock,
    scratch_folder,
    sync_file,
    wait_for_lock,
)
from laennec.untrusted import MOST_BYTES, open_regular, read_json

_END = b"laennec1"
_TRAILER_BYTES = 16 + len(_END)
_LISTING = "files.json"
_SETTLED_S = 2.0
_verified: dict[Path, tuple[int, ...]] = {}
_log = logging.getLogger(__name__)


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of all caches: the argument, else $LAENNEC_CACHE, else ~/.cache/laennec."""
    return Path(cache_dir or os.environ.get("LAENNEC_CACHE") or Path.home() / ".cache" / "laennec").expanduser()


def _place(path: Path) -> bytes:
    """The last folder and the name of an entry, for its checksum: entries of two models can have the same name."""
    return os.fsencode("/".join(path.parts[-2:]))


class _ChecksumWriter(io.RawIOBase):
    """Writes to a file and updates a checksum of what is written."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self.checksum = file, xxhash.xxh3_128(_place(path))

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.checksum.update(content)
        return self._file.write(content)


@contextlib.contextmanager
def new_entry(path: Path) -> Iterator[IO[bytes]]:
    """Open a cache file for an atomic write; its checksum is appended."""
    with atomic_write(path, "wb", sync=False) as file:
        writer = _ChecksumWriter(file, path)
        yield writer  # type: ignore[misc]
        file.write(writer.checksum.digest() + _END)


def write_entry(path: Path, *parts: bytes | memoryview) -> None:
    """Write a cache file; errors as for `new_entry`."""
    with new_entry(path) as file:
        for part in parts:
            file.write(part)


def whole_bytes(path: Path) -> int | None:
    """Size in bytes of the content of a cache file, or None if there is no intact one; a damaged one is removed."""
    try:
        status = os.stat(path)
        state = status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size
        size = status.st_size - _TRAILER_BYTES
        if _verified.get(path) == state:
            return size
        with open_regular(path) as file:
            checksum = xxhash.xxh3_128(_place(path))
            left = size
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                checksum.update(block)
                left -= len(block)
            if file.read() == checksum.digest() + _END:
                _verified[path] = state
                return size
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s: cannot be read from the cache (%s); making it again", path, error.strerror)
        shutil.rmtree(path, ignore_errors=True)  # if it is a folder
        return None
    _log.warning("%s: damaged, or written by another release; making it again", path)
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def read_entry(path: Path) -> bytes | None:
    """The content of a cache file, or None if there is no intact one."""
    if whole_bytes(path) is None:
        return None
    try:
        return path.read_bytes()[:-_TRAILER_BYTES]
    except OSError:  # another process has removed it
        return None


def cached_folder(target: Path, make: Callable[[Path], None], cache_dir: str | Path | None = None) -> Path:
    """A folder of the cache (`content` below `target`), made once, and again if its files have changed."""
    if _is_whole_folder(target, cache_dir):
        remove_stale_lock(target)
        return target / "content"
    with wait_for_lock(target):
        if not _is_whole_folder(target, cache_dir):  # another process may have made it meanwhile
            with explain_write_errors(target), scratch_folder(target) as made:
                content = made / "content"
                content.mkdir()
                make(content)
                files = {path.relative_to(content).as_posix(): path for path in content.rglob("*") if path.is_file()}
                for path in files.values():
                    sync_file(path)  # `hash_files` compares times only, so the content must be on disk first
                hashes = {name: sha256_of(path) for name, path in files.items()}
                (made / _LISTING).write_text(json_text({"of": target.name, "files": hashes}), encoding="utf-8")
                made.chmod(content.stat().st_mode)
                if target.exists() and not _is_whole_folder(target, cache_dir):
                    _log.warning("%s: damaged, or written by another release; making it again", target)
                    shutil.rmtree(target)
                try:
                    made.rename(target)
                except OSError:
                    if not _is_whole_folder(target, cache_dir):  # another machine may have made it meanwhile
                        raise
    return target / "content"


def _is_whole_folder(target: Path, cache_dir: str | Path | None) -> bool:
    content = target / "content"
    try:
        listing = read_json(target / _LISTING, MOST_BYTES)
        listed = dict(listing["files"])
        hashes = hash_files([content / name for name in listed], cache_dir)
        return listing["of"] == target.name and all(hashes[content / name] == listed[name] for name in listed)
    except (OSError, ValueError, TypeError, KeyError):  # InputError, a ValueError: a file is missing
        return False


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file; an InputError if it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error


def hash_files(paths: Iterable[Path], cache_dir: str | Path | None = None) -> dict[Path, str]:
    """SHA-256 of many files, reading only those that have changed since the last time.

    A file is recognised by its absolute path, size, device, inode and times; programs cannot set the time of its last
    change (ctime). A file that changed in the last two seconds is read again the next time, because it could change
    again within the resolution of the clock.
    """
    wanted = dict.fromkeys(paths)
    if not wanted:
        return {}
    common = os.path.commonpath([path.absolute().parent for path in wanted])
    store = cache_root(cache_dir) / "hashes" / f"{hashlib.sha256(os.fsencode(common)).hexdigest()[:24]}.json"
    known: dict[str, list[int | str]] = json.loads(read_entry(store) or "{}")
    now = time.time()
    hashes, fresh = {}, False
    for path in wanted:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error
        state = [status.st_size, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        *before, sha256 = known.get(key := str(path.absolute()), [""])
        if before == state:
            hashes[path] = str(sha256)
            continue
        hashes[path] = sha256_of(path)
        if now - max(status.st_mtime, status.st_ctime) > _SETTLED_S:
            known[key] = [*state, hashes[path]]
            fresh = True
    if fresh:
        with contextlib.suppress(InputError):  # the store only saves time
            write_entry(store, json_text(known).encode())
    return hashes
