"""What is being made beside its final name, and who is making it.

Decisions: the temporary name follows from the final one, and its owner holds the system's lock on it, which ends
with the owner however that ends. So whoever makes the same again takes the place of what a kill left, without a search
for it and without a guess at its age; where a living process is at it, the name is another one. A folder takes another
one's place in a single step where the system has one; where it has not, the next who makes it mends what a kill between
two steps left.
"""

import contextlib
import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on Windows: what a kill leaves there stays
    fcntl = None  # type: ignore[assignment]

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_PATIENCE = 500  # hundredths of a second


def new_file(path: Path) -> tuple[int, int | None, Path]:
    """An empty file beside `path` that nobody else writes to.

    Returns:
        The open file, what keeps its name ours until it is closed (None where the system knows no such locks), its
        name.
    """
    place = path.with_name(f".{path.name}.part")
    while fcntl:
        try:
            handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:  # a link, a folder, or somebody else's
            break
        if is_ours(handle, place):
            status = os.fstat(handle)
            if status.st_size == 0 and status.st_nlink == 1:
                return handle, os.dup(handle), place
            place.unlink()  # left by a killed process
        elif place.exists():
            os.close(handle)
            break  # a living one is at it
        os.close(handle)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    return handle, None, Path(name)


def new_folder(path: Path) -> tuple[int | None, Path]:
    """Likewise an empty folder: what keeps its name ours, and the name."""
    place = path.with_name(f".{path.name}.part")
    while fcntl:
        try:
            with contextlib.suppress(FileExistsError):
                place.mkdir(0o700)
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise
            continue  # whose it was took it away
        except OSError:
            break
        if is_ours(handle, place):
            if not any(place.iterdir()):
                return handle, place
            shutil.rmtree(place)
        elif place.exists():
            os.close(handle)
            break
        os.close(handle)
    return None, Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))


def is_ours(handle: int, place: Path) -> bool:
    """Whether what was opened is locked for us and is still what lies there."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), place.lstat())
    except OSError:
        return False


def exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system knows no such step."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(exchange(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def swap(new: Path, path: Path) -> None:
    """Put a folder in another's place, in one step where the system can; where that fails the other one stays.

    Only one process at a time may do so for a place.
    """
    restore(path)
    if path.is_dir() and not path.is_symlink():
        # what comes out lies where the next one would begin: until it is gone that name is ours
        with _owned(path):
            if exchanged(new, path):
                shutil.rmtree(new, ignore_errors=True)
                return
    old = old_of(path)
    if os.path.lexists(path):
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if os.path.lexists(old):
            os.replace(old, path)
        raise
    if old.is_symlink():  # a link goes, what it leads to stays
        old.unlink()
    elif old.is_dir():
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; who has just put it there lets go of it soon."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) if fcntl else None
    try:
        for _ in range(_PATIENCE):
            if handle is None or is_ours(handle, folder):
                break
            time.sleep(0.01)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def old_of(path: Path) -> Path:
    """Where a folder lies while another one takes its place, on systems that cannot exchange the two."""
    return path.with_name(f".{path.name}.old")


def restore(path: Path) -> None:
    """Put back the folder that a kill between two steps of a swap left beside its place; or take away what was left."""
    old = old_of(path)
    if old.is_symlink():
        old.unlink()
    elif old.is_dir() and not os.path.lexists(path):
        os.replace(old, path)
    elif old.is_dir():
        shutil.rmtree(old)
