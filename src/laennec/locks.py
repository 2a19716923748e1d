"""What several processes share, made by one of them at a time.

Decisions: the lock is the system's, on an open file, so it ends with its owner however that ends, and there is no
age, host or process number to judge it by. Whoever waits for another one waits as long as that one gets on, and not for
ever; a folder of results is not waited for at all, because its owner may work for days.
"""

import contextlib
import errno
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from laennec.aside import is_ours
from laennec.errors import InputError
from laennec.writing import NO_LINK, explain_write_errors

try:
    import fcntl
except ImportError:  # no such locks on Windows: two first times at once do the work twice there
    fcntl = None  # type: ignore[assignment]

_POLL_S, _PATIENCE_S = 0.2, 600.0
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def try_lock(path: str | Path) -> Iterator[bool]:
    """As `wait_for_lock`, without waiting: whether the block may make `path`, because nobody else is making it.

    Args:
        path: The file or folder that is made with `atomic_write` or `atomic_folder`.

    Raises:
        InputError: Its folder cannot be written to.
    """
    with _owned(Path(path), wait=None) as ours:
        yield ours


@contextlib.contextmanager
def wait_for_lock(path: str | Path, patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Let one process (and one thread) at a time make `path`; the others wait here until it is done or has died.

    Look again whether `path` is there once the block has begun: whoever was waited for may have made it. What an owner
    that was killed left half made is removed. Blocks of one path must not be nested.

    Args:
        path: The file or folder that is made with `atomic_write` or `atomic_folder`.
        patience_s: How long to wait for an owner that does not get on (nothing of what it makes is written), in
            seconds.

    Raises:
        InputError: Its folder cannot be written to, or its owner hangs.
    """
    with _owned(Path(path), patience_s):
        yield


@contextlib.contextmanager
def lock_or_refuse(path: str | Path) -> Iterator[None]:
    """Refuse to make what another process is making in a folder; a process that died makes nothing more.

    Args:
        path: The file that stands for the folder's content: a run's record, a batch's journal.

    Raises:
        InputError: Another process is at it, or the folder cannot be written to.
    """
    with _owned(Path(path), wait=None) as ours:
        if not ours:
            raise InputError(
                f"{Path(path).parent}: another process is writing to this folder; wait until it has ended, or choose "
                "another folder"
            )
        yield


def lock_of(path: str | Path) -> Path:
    """The file that is locked while `path` is made; what a killed process leaves of it means nothing."""
    path = Path(path)
    return path.with_name(f".{path.name}.lock")


def tidy(path: str | Path) -> None:
    """Take away the lock of an owner that was killed after it had made `path`."""
    lock = lock_of(path)
    if fcntl and lock.exists():
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR | NO_LINK)
            if is_ours(handle, lock):
                lock.unlink()
            os.close(handle)


@contextlib.contextmanager
def _owned(path: Path, wait: float | None) -> Iterator[bool]:
    """Own the making of `path` within the block; False where another one does and is not waited for."""
    lock = lock_of(path)
    handle, taken = None, False
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _locked(lock, wait)
    except _TakenError:
        taken = True
    if handle is None:
        yield not taken
        return
    try:
        _remove_temporary_files(path)
        yield True
    finally:
        lock.unlink(missing_ok=True)  # while it is ours: who comes next makes a new one
        os.close(handle)


class _TakenError(Exception):
    """Another process has the lock."""


def _locked(lock: Path, wait: float | None) -> int | None:
    """An open file of this name that is locked for us; None where the system knows no such locks.

    Raises:
        _TakenError: Another process has it, and is not to be waited for.
    """
    if fcntl is None:
        return None
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
        try:
            known = _wait_for(handle, lock, wait)
            with contextlib.suppress(FileNotFoundError):
                if known and os.path.samestat(os.fstat(handle), lock.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the owner that was waited for took the file away; another one may lie there by now
        if not known:
            return None


def _wait_for(handle: int, lock: Path, wait: float | None) -> bool:
    """Wait for the lock as long as its owner gets on, or not at all; False where the file system has none.

    Raises:
        _TakenError: Another process has it, and is not to be waited for.
        InputError: Nothing that its owner makes was written for so many seconds.
    """
    path = lock.with_name(lock.name[1:-5])
    seen, since = None, time.monotonic()
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if wait is None:
                raise _TakenError(str(lock)) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return False
            raise
        if seen is None:
            _log.warning("%s: another process is making it; waiting", path)
        if (state := _temporary_state(path)) != seen:
            seen, since = state, time.monotonic()
        if time.monotonic() - since > wait:
            raise InputError(
                f"{path}: another process has been making it and has not got on for {wait:.0f} s; end that process, or "
                "choose another cache (LAENNEC_CACHE) or folder"
            )
        time.sleep(_POLL_S)


def _temporary_state(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of everything that is being made of `path`: changes as long as somebody gets on."""
    found = []
    for part in _temporary_files(path):
        for file in (part, *part.rglob("*")) if part.is_dir() else (part,):
            with contextlib.suppress(OSError):
                status = file.lstat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
    return sorted(found)


def _temporary_files(path: Path) -> list[Path]:
    ours = re.compile(rf"\.{re.escape(path.name)}(\.[a-z0-9_]{{8}})?\.part")
    return [left for left in path.parent.iterdir() if ours.fullmatch(left.name)]


def _remove_temporary_files(path: Path) -> None:
    """Remove the temporary files of `path`; whoever holds its lock is the only one to make any."""
    for left in _temporary_files(path):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
