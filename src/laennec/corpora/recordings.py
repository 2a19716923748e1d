"""Recordings of a corpus, their annotated events and their files: hashes, tables, archives.

Decisions: a file is identified by its SHA-256, which is cached under (path, size, modification time), so that opening a
corpus again reads no file. A file changed within the last two seconds is not cached, because it could change again
within the resolution of the clock. An archive is unpacked once, under its own hash, and refused if a member leads out
of the folder; of several processes one unpacks and the others wait.
"""

import contextlib
import csv
import hashlib
import io
import os
import shutil
import stat
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from laennec.audio.cycles import AnnotationError, label_of
from laennec.errors import InputError
from laennec.files import (
    atomic_folder,
    atomic_write,
    cache_root,
    find_data,
    json_text,
    remove_stale_lock,
    wait_for_lock,
)
from laennec.untrusted import MOST_BYTES, open_regular, read_json, read_text

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
_UNPACKED_SUFFIXES = (*AUDIO_SUFFIXES, ".txt", ".csv", ".json")
_SETTLED_S = 2.0


@dataclass(frozen=True)
class Event:
    """An annotated stretch of a recording: a respiratory cycle, an event, or the recording as a whole.

    Attributes:
        start_s: In seconds.
        end_s: In seconds.
        crackle: 0, 1, or None where it is unknown.
        wheeze: Likewise.
        names: The corpus' own names of what is annotated, if any.
    """

    start_s: float
    end_s: float
    crackle: int | None = None
    wheeze: int | None = None
    names: tuple[str, ...] | None = None

    @property
    def label(self) -> str | None:
        """The class of the two flags, or None where they are unknown."""
        return None if self.crackle is None or self.wheeze is None else label_of(self.crackle, self.wheeze)


@dataclass(frozen=True)
class AnnotatedRecording:
    """A recording of a corpus and what is known of it; None is unknown.

    Attributes:
        recording_id: Its name, unique in the corpus.
        patient_id: The patient, or None if the corpus does not say.
        audio_path: The audio file, or None in a folder that holds annotations alone.
        annotation_path: The file its events are in, if `Corpus.read_events` reads them from one.
        events: Its cycles or events, if they are known already.
        chest_location: Where the stethoscope was.
        acquisition_mode: "sc" (one channel), "mc" (several channels at once).
        device: The stethoscope.
        age_years: Of the patient.
        sex: "F" or "M".
        bmi: Body mass index in kg/m^2.
        diagnosis: Of the patient.
        whole: Whether the recording as a whole is one row.
        split: The split it belongs to, if the corpus is published in splits; becomes the column `part`.
        extra: (column, value) of the columns that only this corpus has.
    """

    recording_id: str
    patient_id: str | None
    audio_path: Path | None
    annotation_path: Path | None = None
    events: tuple[Event, ...] = ()
    chest_location: str | None = None
    acquisition_mode: str | None = None
    device: str | None = None
    age_years: float | None = None
    sex: str | None = None
    bmi: float | None = None
    diagnosis: str | None = None
    whole: bool = False
    split: str | None = None
    extra: tuple[tuple[str, Any], ...] = ()


class UnusableRecordingsError(InputError):
    """Recordings of a corpus whose header, annotation or audio cannot be used; names all of them.

    Attributes:
        problems: One line each, naming the file.
        usable: The cycle table of the other recordings, or None where it does not matter.
    """

    def __init__(self, problems: Sequence[str], recordings: int, usable: datasets.Dataset | None = None) -> None:
        self.problems = list(problems)
        self.recordings = recordings
        self.usable = usable
        many = f"{len(self.problems)} of {recordings} recordings cannot be used: "
        super().__init__((many if len(self.problems) > 1 else "") + "; ".join(self.problems))


def corpus_path(data_dir: str | Path) -> Path:
    """The folder or archive of a corpus as an absolute path; an InputError if there is nothing of that name."""
    path = Path(find_data(str(data_dir))).expanduser().absolute()
    if not path.exists():
        raise InputError(f"{path}: no such folder or archive; check --data-dir")
    return path


def only_folder(root: Path, holds: Callable[[Path], bool], what: str) -> Path:
    """The folder itself if it holds a corpus, else the only folder in it that does.

    Raises:
        InputError: No folder holds `what`, or several do.
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


def read_csv(path: str | Path, delimiters: str = ",") -> list[tuple[int, list[str]]]:
    """The rows of a CSV that are not blank, stripped, each with its line number; the most frequent delimiter counts.

    Raises:
        AnnotationError: It cannot be read.
    """
    try:
        text = read_text(path)
        header = text.splitlines()[0] if text else ""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(delimiters, key=header.count))
        rows = [(reader.line_num, [value.strip() for value in values]) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = "it has another encoding" if isinstance(error, UnicodeDecodeError) else error
        remedy = "save it as CSV UTF-8"
        raise AnnotationError(path, None, f"cannot be read as a CSV in UTF-8 ({reason}); {remedy}") from error
    return [(line, values) for line, values in rows if any(values)]


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file; an InputError if it cannot be read."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from error


def hash_files(paths: Iterable[Path], cache_dir: str | Path | None = None) -> dict[Path, str]:
    """SHA-256 of many files, reading only those that have changed since the last time.

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
            file.write(json_text(known).encode())  # type: ignore[call-overload,arg-type]
    return hashes


def _read_store(store: Path) -> dict[str, list[int | str]]:
    """Path -> [size, modification time, SHA-256]; empty where the cache cannot be read."""
    try:
        known = read_json(store, MOST_BYTES)
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 3}


def unpack(archive: Path, cache_dir: str | Path | None = None) -> Path:
    """Unpack the recordings, annotations and tables of a zip archive into the cache, once; returns the folder.

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
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        remedy = "download it again, or unpack it yourself"
        raise InputError(f"{archive}: cannot be unpacked ({error}); {remedy}") from error


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
    """Refuse to unpack an archive where the disk has less room than `needed` bytes; `target` need not exist."""
    place = target
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(f"{archive}: needs {needed >> 20} MiB in {place}, which has {free >> 20}; free some space")
