"""Every stage: files that are either whole or absent.

Decided here: nothing is written in place. A file is written beside its final name, synced and renamed; a folder
likewise. A full disk, a read-only folder or an interruption leaves the old content (or nothing) and no temporary file
behind.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from laennec.errors import InputError

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission to write there; choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.EISDIR: "there is a folder of this name; choose another name",
}


def writing_error(path: Path, error: OSError) -> Exception:
    """The one-line error for a failed write, or the error itself where a user cannot mend it."""
    remedy = _REMEDIES.get(error.errno or 0)
    return InputError(f"{path}: cannot write: {remedy}") if remedy else error


@contextlib.contextmanager
def write_aside(path: str | Path, mode: str = "w", sync: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file that becomes `path` when the block ends without an error.

    Args:
        path: The final name; its folder is made if needed.
        mode: "w" for UTF-8 text, "wb" for bytes.
        sync: Whether the content is forced to disk before the renaming; caches that verify what they read can do without.

    Raises:
        InputError: The disk is full, read-only or not writable; `path` is as it was before.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise writing_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends without an error, replacing what was there.

    Args:
        path: The final name; its parent is made if needed.

    Raises:
        InputError: The disk is full, read-only or not writable; `path` is as it was before.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        os.chmod(temporary, 0o777 & ~_umask())
        old = temporary.with_suffix(".old")
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        temporary = None
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise writing_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The process's file mode mask, which temporary files ignore and final files must not."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
