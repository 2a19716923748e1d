"""Files that are either whole or absent.

Decisions: nothing is written in place. A file is written beside its final name, synced and renamed; a folder
likewise. A full disk, a read-only folder or an interruption leaves the old content (or nothing) and no temporary file
behind. A name that is a link to another file is never written through: the link is replaced, or refused.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

from laennec.aside import new_file, new_folder, old_of, restore, swap
from laennec.errors import InputError

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_HALF_MADE = re.compile(r"\.(.+?)(?:\.[a-z0-9_]{8})?\.part")
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EFBIG: "the file grows larger than is allowed there; raise the limit or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.EEXIST: "a part of this path is a file, not a folder; choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.EISDIR: "there is a folder of this name; choose another name",
    errno.ELOOP: "it is a link to another file, which is not written through; remove the link or choose another folder",
}
# what a disk or a network share says that is there no more
_LOST = {
    *(errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
    *(getattr(errno, name, errno.EIO) for name in ("EREMOTEIO", "ENOMEDIUM", "ESHUTDOWN")),
}
_GONE = (errno.ENOENT, errno.EBADF)
_HANDLES = (errno.EMFILE, errno.ENFILE)


# what libraries that write for us (safetensors, torch, numpy) say instead of handing the system's error on
_IN_OTHER_WORDS = {
    "no space left on device": errno.ENOSPC,
    "os error 28": errno.ENOSPC,
    "pytorchstreamwriter failed": errno.ENOSPC,
    "inline_container.cc": errno.ENOSPC,
    "iostream error": errno.ENOSPC,
    " requested and ": errno.ENOSPC,
    "file too large": errno.EFBIG,
    "read-only file system": errno.EROFS,
}


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of all caches: the argument, else $LAENNEC_CACHE, else ~/.cache/laennec."""
    return Path(cache_dir or os.environ.get("LAENNEC_CACHE") or Path.home() / ".cache" / "laennec").expanduser()


def writing_error(path: str | Path, error: BaseException) -> Exception | None:
    """The one-line error for a write that failed, in whatever words; None where a user cannot mend it."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in _REMEDIES:
        said = str(error).lower()
        number = next((n for words, n in _IN_OTHER_WORDS.items() if words in said), None)
    return None if number is None else InputError(f"{path}: cannot write: {_REMEDIES[number]}")


def system_error(path: str | Path, error: BaseException) -> Exception | None:
    """The one-line error for what the system could not read or write, in mid-work too; None for any other error."""
    if (mended := writing_error(path, error)) is not None:
        return mended
    chain: BaseException | None = error
    while chain is not None and not (isinstance(chain, OSError) and chain.errno):
        chain = chain.__cause__ or chain.__context__
    if not isinstance(chain, OSError):
        return None
    where = next((str(name) for name in (chain.filename, chain.filename2) if name not in (None, -1)), str(path))
    said = chain.strerror or type(chain).__name__
    again = "what is whole is kept: run the same command again"
    if chain.errno in _LOST:
        return InputError(f"{where}: the disk or network share does not answer ({said}); mend it, and {again}")
    if chain.errno in _GONE:
        return InputError(
            f"{where}: is gone ({said}): it was moved or removed meanwhile, or its disk or network share was lost; put "
            f"it back, and {again}"
        )
    if chain.errno in _HANDLES:
        return InputError(f"{where}: too many open files; raise the limit (ulimit -n), and {again}")
    if chain.errno in (errno.EPERM, errno.EINVAL, errno.ENAMETOOLONG, errno.EBUSY, errno.ETXTBSY):
        return InputError(f"{where}: the system refuses it ({said}); choose another file or folder")
    return None


@contextlib.contextmanager
def explain_write_errors(path: str | Path) -> Iterator[None]:
    """Have a failed write of a library be one line about `path`.

    Raises:
        InputError: The disk is full, read-only or not writable.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        mended = writing_error(path, error)
        if mended is None:
            raise
        raise mended from error


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    Args:
        path: The final name; its folder is made if needed.
        mode: "w" for UTF-8 text, "wb" for bytes.
        sync: Whether the content is forced to disk before the renaming; caches that verify what they read can do
            without.

    Raises:
        InputError: The disk is full, read-only or not writable; `path` is as it was before.
    """
    path = Path(path)
    temporary: Path | None = None
    lock: int | None = None
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, lock, temporary = new_file(path)
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            temporary = None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def appending(path: str | Path, size: int) -> Iterator[Callable[[bytes], None]]:
    """Add lines to the end of a journal, each forced to disk; the one file that is written in place.

    A kill can leave a part of the last line, which its reader must know for none (a line ends with a line end).

    Args:
        path: The file; its folder is made if needed.
        size: How many bytes of it are good; the rest is cut off before anything is added.

    Yields:
        What adds a line (with its end); where that fails the file is as it was before.

    Raises:
        InputError: The disk is full, read-only or not writable.
    """
    path = Path(path)
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666), "ab", buffering=0)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.ELOOP, "not a regular file", str(path))
    with file:
        with explain_write_errors(path):
            file.truncate(size)
        whole = size

        def add(line: bytes) -> None:
            nonlocal whole
            try:
                with explain_write_errors(path):
                    rest = memoryview(line)
                    while rest:
                        rest = rest[file.write(rest) or 0 :]
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


def remove_temporary_files(folder: str | Path, names: Collection[str]) -> None:
    """Remove what a kill left of files of these names in a folder that nobody else writes to."""
    for left in Path(folder).iterdir():
        match = _HALF_MADE.fullmatch(left.name)
        if match and match[1] in names:
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends without an error, replacing what was there.

    Args:
        path: The final name; its parent is made if needed.

    Raises:
        InputError: The disk is full, read-only or not writable; `path` is as it was before.
    """
    path = Path(path)
    temporary: Path | None = None
    lock: int | None = None
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            from laennec.locks import wait_for_lock  # which writes, too

            swapping = path.with_name(f"{path.name}.swap")
            if os.path.lexists(old_of(path)):
                with wait_for_lock(swapping):
                    restore(path)
            lock, temporary = new_folder(path)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    os.chmod(file, 0o666 & ~_umask())  # safetensors makes files only their owner can read
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            os.chmod(temporary, 0o777 & ~_umask())
            with wait_for_lock(swapping):
                swap(temporary, path)
            temporary = None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def scratch_folder(place: str | Path) -> Iterator[Path]:
    """Give a folder for this block alone, where a next one of this name finds what a kill left, and takes it away.

    Args:
        place: Names the folder; the folder itself lies beside it.

    Raises:
        InputError: The disk is full, read-only or not writable.
    """
    with explain_write_errors(place):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        lock, folder = new_folder(Path(place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def refuse_other_files(folder: str | Path, ours: Collection[str], remedy: str) -> None:
    """Refuse to replace a folder that holds anything but what we wrote.

    Args:
        folder: It may be absent or empty.
        ours: Names (patterns) of what we write.
        remedy: What to do instead.

    Raises:
        InputError: It holds something else, or is no folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder; {remedy}")
    # what a killed process left of a lock or of a file that was being written is nobody's
    ours = [*ours, *(f".{name}.{end}" for name in ours for end in ("lock", "swap.lock", "part", "????????.part"))]
    others = (
        (p.name for p in sorted(folder.iterdir()) if not any(p.match(name) for name in ours)) if folder.exists() else ()
    )
    if (other := next(iter(others), None)) is not None:
        raise InputError(f"{folder}: holds other files ({other}); {remedy}")


def _umask() -> int:
    """The process's file mode mask, which temporary files ignore and final files must not."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
