"""Atomic writes of files and folders, and locks for one writer at a time.

Decisions: nothing is written in place. A file or a folder is written under a temporary name, synced and renamed, so a
full disk or a kill leaves the old content or nothing. A writer locks its temporary file; the next writer on that
machine removes what a killed one left. A lock ends with its process, so it needs no age or process number. A symbolic
link is replaced, never written through.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import xxhash
from filelock import FileLock, Timeout

from laennec.errors import InputError, chain_of

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows: temporary files of a killed writer stay until their final name is locked
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_OTHER_FOLDER = "choose another folder"
_REMEDIES = {
    errno.ENOSPC: f"the disk is full; free some space or {_OTHER_FOLDER}",
    errno.EDQUOT: f"the disk quota is used up; free some space or {_OTHER_FOLDER}",
    errno.EFBIG: f"the file grows larger than is allowed there; raise the limit or {_OTHER_FOLDER}",
    errno.EROFS: f"the file system is read-only; {_OTHER_FOLDER}",
    errno.EACCES: f"no permission to write there; {_OTHER_FOLDER}",
    errno.EEXIST: f"a part of this path is a file, not a folder; {_OTHER_FOLDER}",
    errno.ENOTDIR: f"a part of this path is a file, not a folder; {_OTHER_FOLDER}",
    errno.EISDIR: "there is a folder of this name; choose another name",
    errno.ENAMETOOLONG: "the name is too long for this system; shorten it",
    errno.ELOOP: f"it is a link to another file; remove the link or {_OTHER_FOLDER}",
}
# messages of safetensors, torch and numpy in place of the system's error
_LIBRARY_MESSAGES = {
    "no space left on device": errno.ENOSPC,
    "os error 28": errno.ENOSPC,
    "pytorchstreamwriter failed": errno.ENOSPC,
    "inline_container.cc": errno.ENOSPC,
    "iostream error": errno.ENOSPC,
    " requested and ": errno.ENOSPC,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
}
_CONTROLS = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")  # json escapes the others
# part of temporary names, so that no machine removes those of another, whose locks it may not see on a network disk
_MACHINE = f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"
LINE_BEGIN, _DIGITS = b'{"xxh3": "', 16  # of a line of a journal
_log = logging.getLogger(__name__)


def is_result(path: Path) -> bool:
    """Whether a file is named like a result of predict or embed; corpora do not take it for a table or annotation."""
    return path.name.startswith("laennec.") or ".laennec." in path.name


def read_parquet(file: Any, columns: list[str] | None = None) -> "pa.Table":
    """Columns of a Parquet file, or all; raises an error of pyarrow if its pages or its row count are damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
        table = parquet.read(columns)
        stated = parquet.metadata.num_rows
    if len(table) != stated:
        raise pa.ArrowInvalid(f"{len(table)} rows where the file states {stated}")
    return table


def json_text(value: Any, **settings: Any) -> str:
    """A value as JSON for a file, see `json.dumps`; an InputError for NaN and infinite numbers.

    Control characters and text direction marks are escaped, so that no name in it changes a terminal.
    """
    try:
        text = json.dumps(value, allow_nan=False, **settings)
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    except ValueError as error:
        raise InputError(f"not written as JSON ({error}); check the model and the data for such numbers") from error


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def writing_error(path: str | Path, error: BaseException) -> InputError | None:
    """The one-line error for a write that failed; None where a user cannot fix it."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in _REMEDIES:
        message = str(error).lower()
        number = next((known for words, known in _LIBRARY_MESSAGES.items() if words in message), None)
    return None if number is None else InputError(f"{path}: cannot write: {_REMEDIES[number]}")


def system_error(path: str | Path, error: BaseException) -> InputError | None:
    """The one-line error for what the system could not read or write; None for any other error."""
    if (failed := writing_error(path, error)) is not None:
        return failed
    cause = next((one for one in chain_of(error) if isinstance(one, OSError) and one.errno), None)
    if cause is None:
        return None
    where = next((str(name) for name in (cause.filename, cause.filename2) if name not in (None, -1)), str(path))
    said = cause.strerror or type(cause).__name__
    again = "run the same command again: finished work is kept"
    if cause.errno in (errno.EMFILE, errno.ENFILE):
        return InputError(f"{where}: too many open files; raise the limit (ulimit -n) and {again}")
    if cause.errno in (errno.ENOENT, errno.EBADF):
        return InputError(f"{where}: is gone ({said}): it was moved or its disk was lost; put it back and {again}")
    return InputError(f"{where}: the system reports: {said}; check the disk or network share and {again}")


@contextlib.contextmanager
def explain_write_errors(path: str | Path) -> Iterator[None]:
    """Turn a failed write in the block, also by a library, into one line about `path`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (explained := writing_error(path, error)) is None:
            raise
        raise explained from error


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    `mode` is "w" (UTF-8 text) or "wb". Without `sync` the content is not forced to disk before the renaming, for
    caches that verify what they read.
    """
    path = Path(path)
    with explain_write_errors(path), _temporary(path) as temporary:
        text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error, replacing what was there."""
    path = Path(path)
    with explain_write_errors(path):
        swap = path.with_name(f"{path.name}.swap")
        if os.path.lexists(_old_of(path)):
            with wait_for_lock(swap):
                _restore(path)
        with _temporary(path, folder=True) as temporary:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    os.chmod(file, 0o666 & ~_umask())  # safetensors makes files that only their owner can read
                    sync_file(file)
            os.chmod(temporary, 0o777 & ~_umask())
            with wait_for_lock(swap):
                _take_place(temporary, path)


def sync_file(path: Path) -> None:
    """Force the content of a file to disk."""
    with path.open("r+b") as file:  # Windows cannot sync a file that is open for reading only
        os.fsync(file.fileno())


def _take_place(new: Path, path: Path) -> None:
    """Rename a folder to `path`; a folder there is deleted, or restored if the renaming fails."""
    old = _old_of(path)
    _restore(path)
    if os.path.lexists(path):
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        _restore(path)
        raise
    _remove(old)


def _old_of(path: Path) -> Path:
    """The name of a folder while another one replaces it."""
    return path.with_name(f".{path.name}.old")


def _restore(path: Path) -> None:
    """Clean up after a kill between the two renames of `_take_place`."""
    old = _old_of(path)
    if os.path.lexists(old):
        if os.path.lexists(path) or old.is_symlink():
            _remove(old)
        else:
            os.replace(old, path)


@contextlib.contextmanager
def _temporary(path: Path, folder: bool = False) -> Iterator[Path]:
    """A new locked temporary file or folder beside `path`; removed after the block unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _temporary_names(path):
        if (handle := _locked(left, wait=False)) is not None:  # its writer was killed
            _remove(left)
            os.close(handle)
    names: dict[str, Any] = {"prefix": f".{path.name}.{_MACHINE}", "suffix": ".part", "dir": path.parent}
    while True:
        if folder:
            temporary = Path(tempfile.mkdtemp(**names))
        else:
            made, name = tempfile.mkstemp(**names)
            os.close(made)  # Windows renames no open file
            temporary = Path(name)
        handle = _locked(temporary, wait=True)
        if temporary.exists():
            break
        if handle is not None:  # another writer removed it before it was locked
            os.close(handle)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if handle is not None:
            os.close(handle)


def _locked(path: Path, wait: bool) -> int | None:
    """Lock a file or folder until the returned handle is closed; None if it is locked or there are no locks."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except OSError:
            os.close(handle)
    return None


def _temporary_names(path: Path) -> list[Path]:
    first, last = f".{path.name}.{_MACHINE}", ".part"
    size = len(first) + 8 + len(last)  # `tempfile` draws eight characters
    names = (name for name in os.listdir(path.parent) if name.startswith(first) and name.endswith(last))
    return [path.with_name(name) for name in names if len(name) == size]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_temporary_files(folder: str | Path, names: Collection[str]) -> None:
    """Remove temporary files of killed writers, by final name, in a folder that nobody else writes to."""
    for name in names:
        for left in _temporary_names(Path(folder) / name):
            _remove(left)


@contextlib.contextmanager
def appending(path: str | Path, size: int) -> Iterator[Callable[[bytes], None]]:
    """Append lines to a journal, each synced to disk; journals are the only files written in place.

    A kill can leave a part of the last line; readers ignore a line without a line end. The first `size` bytes are
    valid; the rest is cut off before anything is appended.
    """
    path = Path(path)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError(errno.ELOOP, "not a regular file", str(path))
        file = path.open("ab", buffering=0)
    with file:
        with explain_write_errors(path):
            file.truncate(size)
        whole = size

        def add(line: bytes) -> None:
            nonlocal whole
            try:
                with explain_write_errors(path):
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, "written in part", str(path))
                    os.fsync(file.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    file.truncate(whole)
                raise
            whole += len(line)

        try:
            yield add
        finally:
            if not whole:  # not even its first line could be written
                path.unlink(missing_ok=True)


def journal_line(**said: Any) -> bytes:
    """A line of a journal: JSON that begins with a checksum of the rest."""
    text = json_text(said, separators=(",", ":"), ensure_ascii=True).encode()[1:] + b"\n"
    return LINE_BEGIN + xxhash.xxh3_64_hexdigest(text).encode() + b'",' + text


def checked_line(line: bytes) -> bytes:
    """Return a line of a journal if its checksum is right; a ValueError otherwise."""
    text = line[len(LINE_BEGIN) + _DIGITS + 2 :]
    if line != LINE_BEGIN + xxhash.xxh3_64_hexdigest(text).encode() + b'",' + text:
        raise ValueError("damaged")
    return line


@contextlib.contextmanager
def scratch_folder(place: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that is removed after this block, or after a kill by the next call for `place`."""
    with explain_write_errors(place), _temporary(Path(place), folder=True) as folder:
        yield folder


def refuse_other_files(folder: str | Path, ours: Collection[str], remedy: str) -> None:
    """Refuse to replace a folder that holds other files than `ours` and their temporary files."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder; {remedy}")
    ours = [*ours, *(f".{name}.{end}" for name in ours for end in ("lock", "swap.lock", "????????????.part"))]
    for found in sorted(folder.iterdir()) if folder.exists() else ():
        if not any(found.match(name) for name in ours):
            raise InputError(f"{folder}: holds other files ({found.name}); {remedy}")


@contextlib.contextmanager
def wait_for_lock(path: str | Path, patience_s: float = 6 * 3600) -> Iterator[None]:
    """Let one process (and one thread) at a time write `path`, which may exist after the wait; do not nest."""
    with try_lock(path, patience_s) as ours:
        if not ours:
            raise InputError(
                f"{path}: another process has been making it for {patience_s:.0f} s; end that process, or choose "
                "another cache (LAENNEC_CACHE) or folder"
            )
        yield


@contextlib.contextmanager
def lock_or_refuse(path: str | Path) -> Iterator[None]:
    """Lock `path` for this block, or raise where another process has the lock."""
    with try_lock(path) as ours:
        if not ours:
            raise InputError(
                f"{Path(path).parent}: another process is writing to this folder; wait until it has ended, or "
                f"{_OTHER_FOLDER}"
            )
        yield


@contextlib.contextmanager
def try_lock(path: str | Path, patience_s: float = 0) -> Iterator[bool]:
    """Lock `path` for this block; yields False where another process has the lock."""
    lock = FileLock(lock_of(path := Path(path)), mode=0o666, poll_interval=0.1)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=min(patience_s, 1))
            if not lock.is_locked and patience_s:
                _log.warning("%s: another process is making it; waiting", path)
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=patience_s)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield True  # this file system has no locks
            return
    if not lock.is_locked:
        yield False
        return
    try:
        for left in _temporary_names(path):
            _remove(left)
        yield True
    finally:
        with contextlib.suppress(OSError):
            lock_of(path).unlink()  # while it is locked; a waiting process makes a new one
        lock.release()


def lock_of(path: str | Path) -> Path:
    """The lock file of `path`; one that a killed process left has no effect."""
    return Path(path).with_name(f".{Path(path).name}.lock")


def remove_stale_lock(path: str | Path) -> None:
    """Remove the lock of a process that was killed after it had made `path`."""
    if lock_of(path).exists():
        with try_lock(path):
            pass


def _umask() -> int:
    """The process's file mode mask, which temporary files ignore and final files must not."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_data(path: str) -> str:
    """A path of data or weights; one that does not exist is looked up in the folder that LAENNEC_DATA names."""
    below = os.path.join(os.environ.get("LAENNEC_DATA", ""), path)
    return below if "LAENNEC_DATA" in os.environ and not os.path.exists(path) and os.path.exists(below) else path


def model_folder(source: str | Path) -> str | Path:
    """The folder of the model in a run; any other source, an exported folder or a Hub id, as it is."""
    place = Path(source)
    folder = place / "model" if (place / "model" / "config.json").exists() else source
    if place.is_dir() and not (Path(folder) / "config.json").exists():
        raise InputError(
            f"{source}: no model in this folder (no config.json); give a finished run, an exported folder or a Hub id"
        )
    return folder
