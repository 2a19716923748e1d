"""The files of a corpus: their hashes, and archives that are unpacked into the cache.

Decisions: a file is identified by its SHA-256, which is cached under (path, size, modification time), so that opening a
corpus again reads no file. A file changed within the last two seconds is not cached, because it could change again
within the resolution of the clock. An archive is unpacked once, under its own hash, and refused if a member leaves the
folder; of several processes that want it at once one unpacks and the others wait.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from laennec.errors import InputError
from laennec.files import atomic_folder, atomic_write, cache_root, remove_stale_lock, wait_for_lock
from laennec.untrusted import MOST_BYTES, open_regular, read_json

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
_UNPACKED_SUFFIXES = (*AUDIO_SUFFIXES, ".txt", ".csv", ".json")
_SETTLED_S = 2.0


def corpus_path(data_dir: str | Path) -> Path:
    """The folder or archive of a corpus as an absolute path.

    Raises:
        InputError: There is nothing of that name.
    """
    path = Path(data_dir).expanduser().absolute()
    if not path.exists():
        raise InputError(f"{path}: no such folder or archive; check --data-dir")
    return path


def only_folder(root: Path, holds: Callable[[Path], bool], what: str) -> Path:
    """The folder itself if it holds a corpus, else the only folder in it that does.

    Args:
        root: Where to look.
        holds: Whether a folder holds the corpus.
        what: What is looked for, for the error.

    Raises:
        InputError: No folder holds it, or several do.
    """
    if holds(root):
        return root
    found = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[:1] != "." and holds(path)]
    if len(found) > 1:
        raise InputError(f"{root}: several folders hold the corpus ({named(p.name for p in found)}); name one of them")
    if not found:
        raise InputError(f"{root}: no {what} here; check --data-dir")
    return found[0]


def is_recording(path: Path) -> bool:
    """Whether a file name is one of a recording; the leftovers of other systems (._x.wav) are not."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def named(items: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(items)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error


def hash_files(paths: Iterable[Path], cache_dir: str | Path | None = None) -> dict[Path, str]:
    """SHA-256 of many files, reading only those that have changed since the last time.

    Args:
        paths: The files.
        cache_dir: Root of the caches; see `cache_root`.

    Raises:
        InputError: One of them cannot be read.
    """
    wanted = sorted(set(paths))
    if not wanted:
        return {}
    common = os.path.commonpath([path.parent for path in wanted])
    store = cache_root(cache_dir) / "hashes" / f"{hashlib.sha256(common.encode()).hexdigest()[:24]}.json"
    known = _read_store(store)
    now = time.time()
    hashes, fresh = {}, False
    for path in wanted:
        try:
            status = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error
        key, entry = str(path), known.get(str(path))
        if entry is not None and entry[:2] == [status.st_size, status.st_mtime_ns]:
            hashes[path] = str(entry[2])
            continue
        hashes[path] = sha256_of(path)
        if now - status.st_mtime > _SETTLED_S:
            known[key] = [status.st_size, status.st_mtime_ns, hashes[path]]
            fresh = True
    if fresh:
        with contextlib.suppress(InputError), atomic_write(store, "wb", sync=False) as file:  # only a saving of time
            file.write(json.dumps(known).encode())  # type: ignore[call-overload,arg-type]
    return hashes


def _read_store(store: Path) -> dict[str, list[int | str]]:
    try:
        known = read_json(store, MOST_BYTES)
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 3}


def unpack(archive: Path, cache_dir: str | Path | None = None) -> Path:
    """Unpack the recordings, annotations and tables of a zip archive into the cache, once.

    Args:
        archive: The zip file.
        cache_dir: Root of the caches; see `cache_root`.

    Returns:
        The folder with the content.

    Raises:
        InputError: Not a zip file, damaged, encrypted, a member that leaves the folder, two members of one name, or not
            enough room.
    """
    digest = hash_files([archive], cache_dir)[archive]
    target = cache_root(cache_dir) / "unpacked" / digest[:24]
    content = target / "content"  # one level down, so that a search beside it sees no other archive
    if content.is_dir():
        remove_stale_lock(target)
        return content
    with wait_for_lock(target):
        if not content.is_dir():  # another process may have unpacked it meanwhile
            _unpack_into(archive, target)
    return content


def _unpack_into(archive: Path, target: Path) -> None:
    """Make `target` with the folder `content` in it."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _safe_members(archive, opened)
            require_room(archive, target, sum(info.file_size for info in members.values()))
            with atomic_folder(target) as folder:
                for name, info in members.items():
                    path = folder / "content" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(info) as source, path.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
    ) as error:  # RuntimeError: encrypted, or unknown method
        raise InputError(
            f"{archive}: cannot be unpacked ({error}); download it again, or unpack it yourself"
        ) from error


def _safe_members(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The wanted members by their relative path; a name that leads outside refuses the whole archive."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        name = info.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        link = stat.S_ISLNK(info.external_attr >> 16)
        if name.startswith("/") or ".." in parts or (parts and ":" in parts[0]) or "\0" in name or link:
            raise InputError(f"{archive}: member {info.filename!r} would leave the folder; do not use this archive")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if info.is_dir() or hidden or PurePosixPath(name).suffix.lower() not in _UNPACKED_SUFFIXES:
            continue
        if "/".join(parts) in members:
            raise InputError(f"{archive}: two members are called {name!r}; unpack it yourself and keep the right one")
        members["/".join(parts)] = info
    if not members:
        raise InputError(f"{archive}: holds no recordings or annotations; check that it is the right archive")
    return members


def require_room(archive: Path, target: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        archive: What is to be unpacked, for the message.
        target: Where to; it need not exist.
        needed: In bytes.

    Raises:
        InputError: There is less.
    """
    place = target
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(f"{archive}: needs {needed >> 20} MiB in {place}, which has {free >> 20}; free some space")
