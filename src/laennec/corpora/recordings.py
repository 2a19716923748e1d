"""Recordings of a corpus, their annotated events and their files: hashes, tables, archives.

Decisions: a file is identified by its SHA-256, so a fingerprint covers content. An archive is unpacked once, under its
own hash, and refused if a member leads out of the folder, or if it holds more than an archive of recordings can. Of
several processes one unpacks and the others wait.
"""

import csv
import re
import shutil
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from laennec.audio.cycles import AnnotationError, label_of, numbered_lines, refuse_doubled
from laennec.audio.recording import AUDIO_SUFFIXES
from laennec.cache import cache_root, cached_folder, hash_files
from laennec.errors import InputError
from laennec.files import find_data, writing_error

if TYPE_CHECKING:  # slow to import
    import datasets

FILE_SUFFIXES = (*AUDIO_SUFFIXES, ".txt", ".csv", ".json")  # of what an archive or an export may unpack to
# an archive may unpack to so many times its own size, or to one GiB, and to so many files
_MOST_GROWTH, _LEAST_LIMIT, _MOST_MEMBERS = 20, 1 << 30, 100_000


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
        patient_stated: Whether somebody stated the patient; if not, the name of the recording stands for it. None: if
            the two differ.
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
    # not in the rows, so not in the fingerprint of the table
    patient_stated: bool | None = field(default=None, repr=False)


class UnusableRecordingsError(InputError):
    """Recordings that cannot be used: `problems`, one line each, and the table of the `usable` ones if it matters."""

    def __init__(self, problems: Sequence[str], recordings: int, usable: "datasets.Dataset | None" = None) -> None:
        self.problems = list(problems)
        self.recordings = recordings
        self.usable = usable
        many = f"{len(self.problems)} of {recordings} recordings cannot be used: "
        super().__init__((many if len(self.problems) > 1 else "") + "; ".join(self.problems))


def corpus_path(data_dir: str | Path) -> Path:
    """The folder or archive of a corpus as an absolute path; an InputError if there is nothing of that name."""
    path = Path(find_data(str(data_dir))).expanduser().absolute()
    if not path.exists():
        raise InputError(f"{path}: no such folder or archive; check data_dir (--data-dir)")
    return path


def only_folder(root: Path, holds: Callable[[Path], bool], what: str) -> Path:
    """The folder itself if it holds a corpus, else the only folder in it that does."""
    if holds(root):
        return root
    found = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name[:1] != "." and holds(path)]
    if len(found) > 1:
        raise InputError(f"{root}: several folders hold the corpus ({named(p.name for p in found)}); name one of them")
    if not found:
        raise InputError(f"{root}: no {what} here; check data_dir (--data-dir)")
    return found[0]


def is_recording(path: Path) -> bool:
    """Whether a file name is one of a recording; hidden files of other systems (._x.wav) are not."""
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")


def named(items: Iterable[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(items)
    unnamed = len(names) - most
    return ", ".join(names[:most]) + (f" and {unnamed} more" if unnamed > 0 else "")


def read_csv(path: str | Path, delimiters: str = ",", header: bool = True) -> list[tuple[int, list[str]]]:
    """The rows of a CSV that are not blank, stripped, each with its line number.

    A row is one line, and quotes enclose whole values; otherwise an unclosed quote would include the rows below.
    """
    lines = list(numbered_lines(path))
    delimiter = max(delimiters, key=lines[0][1].count) if lines else ","
    value = rf'(?: *+"(?:[^"]|"")*+" *+|[^"{delimiter}]*+)'
    row = re.compile(f"{value}(?:{delimiter}{value})*+")
    rows: list[tuple[int, list[str]]] = []
    for line, text in lines:
        if row.fullmatch(text) is None:
            raise AnnotationError(path, line, 'a quote (") is not closed, or stands within a value; delete it')
        try:
            values = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise AnnotationError(path, line, f"cannot be read as a line of a CSV ({error}); correct it") from error
        if any(values := [value.strip() for value in values]):
            rows.append((line, values))
    for line, values in rows if header else ():
        if len(values) != len(rows[0][1]):
            raise AnnotationError(path, line, f"{len(values)} values under {len(rows[0][1])} columns; correct the line")
    if header and rows:
        refuse_doubled(path, rows[0][1])
    return rows


def spelled_alike(root: Path, recordings: Iterable[AnnotatedRecording]) -> list[str]:
    """A line for each group of patient ids that differ only in case, separators or the way a number is written.

    Such ids often mean one person, whom a split by patients would put into two splits.
    """
    groups: dict[str, set[str]] = {}
    known = (r for r in recordings if r.patient_id is not None)
    stated = {
        r.patient_id for r in known if r.patient_stated or (r.patient_stated is None and r.patient_id != r.recording_id)
    }
    for patient in stated:
        plain = unicodedata.normalize("NFKC", str(patient)).casefold().strip()
        plain = re.sub(r"[\s_-]+", " ", plain)
        plain = re.sub(r"(?<![0-9]) | (?![0-9])", "", plain)  # p 1 is p1, but 1 1 is not 11
        plain = re.sub(r"^[+]?([0-9]+)(\.0*)?(e[+]?0+)?$", r"\1", plain)
        groups.setdefault(re.sub(r"(?<![0-9])0+(?=[0-9])", "", plain), set()).add(str(patient))
    alike = sorted(" and ".join(map(repr, sorted(group))) for group in groups.values() if len(group) > 1)
    remedy = "write one name in one way, or give two people names that differ more"
    return [f"{root}: patients {group} may be one person; {remedy}" for group in alike]


def named_in_bytes(recordings: Iterable[AnnotatedRecording]) -> list[str]:
    """A line for each file whose name is not UTF-8 and therefore fits no table."""
    paths = dict.fromkeys(str(p) for r in recordings for p in (r.audio_path, r.annotation_path) if p is not None)
    strange = [path for path in paths if path != path.encode(errors="replace").decode()]
    return [f"{path}: its name is not in UTF-8; rename it" for path in strange]


def unpack(archive: Path, cache_dir: str | Path | None = None) -> Path:
    """Unpack the recordings, annotations and tables of a zip archive into the cache, once; returns the folder."""
    target = cache_root(cache_dir) / "unpacked" / hash_files([archive], cache_dir)[archive][:24]
    return cached_folder(target, partial(_unpack_into, archive), cache_dir)


def _unpack_into(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _safe_members(archive, opened)
            packed, written = archive.stat().st_size, 0
            declared = sum(info.file_size for info in members.values())
            refuse_large(archive, packed, declared)
            require_room(archive, folder, declared)
            for name, info in members.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, path.open("wb") as sink:
                    while chunk := source.read(1 << 20):
                        written += len(chunk)
                        refuse_large(archive, packed, written)
                        sink.write(chunk)
    except InputError:
        raise
    except Exception as error:  # zipfile raises many types for an archive that is damaged or encrypted
        remedy = "download it again, or unpack it yourself"
        damaged = InputError(f"{archive}: cannot be unpacked ({error}); {remedy}")
        raise writing_error(folder, error) or damaged from error


def refuse_large(archive: Path, packed: int, unpacked: int) -> None:
    """Refuse an archive or tables of `packed` bytes that hold more than sound and text of that size can."""
    most = max(_LEAST_LIMIT, _MOST_GROWTH * packed)
    if unpacked > most:
        raise InputError(
            f"{archive}: unpacks to more than {most >> 20} MiB, the limit for its size; if you trust it, unpack it "
            "yourself and name the folder"
        )


def _safe_members(archive: Path, opened: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The wanted members by their relative path; if a name leads outside, the archive is refused."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        name = info.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        link = stat.S_ISLNK(info.external_attr >> 16)
        if name.startswith("/") or ".." in parts or (parts and ":" in parts[0]) or "\0" in name or link:
            raise InputError(f"{archive}: member {info.filename!r} would leave the folder; do not use this archive")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if info.is_dir() or hidden or PurePosixPath(name).suffix.lower() not in FILE_SUFFIXES:
            continue
        if "/".join(parts) in members:
            raise InputError(f"{archive}: two members are called {name!r}; unpack it yourself and keep the right one")
        members["/".join(parts)] = info
        if len(members) > _MOST_MEMBERS:
            remedy = "if you trust it, unpack it yourself and name the folder"
            raise InputError(f"{archive}: holds more than {_MOST_MEMBERS} files; {remedy}")
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
