"""Recordings that are the same sound under two names, whatever file holds it.

Decisions: two ways of listening, because copies differ in two ways. Stretches of samples that are the same to the
bit are found by hashes of short windows, chosen by their content alone, so that another container, another header or a
cut leaves most of them as they were. A copy in another depth or rate keeps no bit; it keeps the course of its loudness,
which finds candidates, and what these two really are is decided by correlating them. What was heard of a file
is kept under the file's hash, so that a corpus is listened to once. The same sound in two parts whose patients were
promised to be others refuses the split where the cycles are the same too; a cut, or a sound under other annotations,
cannot be told from a mix-up of files: it is said aloud and stamped on every number.
"""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.ndimage import minimum_filter1d
from scipy.spatial import cKDTree

from laennec.audio.recording import DecodeError, Waveform, mono, read_frames, read_recording
from laennec.corpora.base import column_of
from laennec.corpora.files import named
from laennec.corpora.protocols import PROTOCOLS, part_rank
from laennec.errors import InputError
from laennec.files import atomic_write, cache_root

_VERSION = 1
_WINDOW = 64  # samples of a stretch
_REACH = 512  # a stretch is chosen if no hash within so many samples is smaller
_MOVES = 16  # of the samples of a stretch so many at least differ from the one before: silence is everybody's
_BLOCKS = 64  # of the course of loudness
_NEAR = 0.02  # distance of two courses (of length 1) whose sounds are compared
_NEAREST = 8  # so many of them at most
_ALIKE, _COMPARED_HZ = 0.99, 4000
_SHARE = 0.1  # of the fewer stretches of two sounds that have to be the same
_KEPT = 8  # stretches that stand for a sound where not all can be kept


@dataclass(frozen=True)
class Heard:
    """What is kept of a sound.

    Attributes:
        stretches: uint64, sorted hashes of stretches of its samples.
        course: float64 (64,), loudness of as many equal pieces, of length 1; zeros where nothing is heard.
    """

    stretches: npt.NDArray[np.uint64]
    course: npt.NDArray[np.float64]


def hear(waveform: Waveform) -> Heard:
    """Stretches and course of a sound, float32 (samples,) at its own rate."""
    return Heard(_stretches(waveform), _course(waveform))


def _stretches(waveform: Waveform) -> npt.NDArray[np.uint64]:
    steps = np.diff(np.round(waveform.astype(np.float64) * 2**31).astype(np.int64))
    if len(steps) < _WINDOW:
        return np.empty(0, np.uint64)
    sums = steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    factor, length = 0xBF58476D1CE4E5B9, 1
    while length < _WINDOW:  # the hash of two neighbours is that of what they span
        sums = sums[:-length] * np.uint64(factor) + sums[length:]
        factor, length = factor * factor % 2**64, 2 * length
    sums ^= sums >> np.uint64(31)
    sums *= np.uint64(0x94D049BB133111EB)
    sums ^= sums >> np.uint64(29)
    moves = np.cumsum(np.concatenate([[0], steps != 0]))
    sums[moves[_WINDOW:] - moves[:-_WINDOW] < _MOVES] = np.uint64(2**64 - 1)
    least = minimum_filter1d(sums, 2 * _REACH + 1, mode="nearest")
    return np.unique(sums[(sums == least) & (sums != np.uint64(2**64 - 1))])


def _course(waveform: Waveform) -> npt.NDArray[np.float64]:
    if len(waveform) < _BLOCKS:
        return np.zeros(_BLOCKS)
    moving = waveform.astype(np.float64) - float(np.mean(waveform, dtype=np.float64))
    power = np.array([float(np.mean(np.square(piece))) for piece in np.array_split(moving, _BLOCKS)])
    total = float(power.sum())
    return np.sqrt(power / total) if total > 0 else np.zeros(_BLOCKS)


def heard_of(files: Mapping[Path, str], cache_dir: str | Path | None = None) -> dict[Path, Heard]:
    """What is heard in files; those that cannot be used are left out.

    Args:
        files: Each with the SHA-256 of its content.
        cache_dir: Root of the caches; see `laennec.corpora.files.cache_root`.
    """
    root, found = cache_root(cache_dir) / "heard", {}
    by_hash: dict[str, Heard] = {}
    for path, sha256 in files.items():
        if sha256 not in by_hash:
            store = root / sha256[:2] / f"{sha256}.{_VERSION}.safetensors"
            heard = _stored(store)
            if heard is None:
                try:
                    waveform = mono(read_frames(path)[0])
                except (DecodeError, InputError):
                    continue
                if not np.isfinite(waveform).all():
                    continue
                heard = hear(waveform)
                with atomic_write(store, "wb", sync=False) as file:
                    file.write(save({"stretches": heard.stretches, "course": heard.course}))  # type: ignore[arg-type]
            by_hash[sha256] = heard
        found[path] = by_hash[sha256]
    return found


def _stored(store: Path) -> Heard | None:
    try:
        tensors = load_file(store)
        return Heard(tensors["stretches"], tensors["course"])
    except (SafetensorError, OSError, KeyError):
        return None


def same_sounds(files: Mapping[Path, str], cache_dir: str | Path | None = None) -> list[tuple[Path, ...]]:
    """Groups of files that hold the same sound, or a part of it.

    Args:
        files: Each with the SHA-256 of its content.
        cache_dir: Root of the caches.

    Returns:
        Groups of two and more, sorted; a file without a double is in none.
    """
    heard = heard_of(files, cache_dir)
    paths = sorted(files)
    place = {path: number for number, path in enumerate(paths)}
    group = list(range(len(paths)))

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    def join(one: int, other: int) -> None:
        first, second = sorted((root(one), root(other)))
        group[second] = first

    first_of: dict[str, int] = {}
    for path in paths:
        join(place[path], first_of.setdefault(files[path], place[path]))
    # of equal files one listens for all
    single = [path for path in paths if path in heard and first_of[files[path]] == place[path]]
    for one, other in [*_by_stretches(single, heard), *_by_course(single, heard)]:
        join(place[one], place[other])
    groups: dict[int, list[Path]] = {}
    for path in paths:
        groups.setdefault(root(place[path]), []).append(path)
    return sorted(tuple(members) for members in groups.values() if len(members) > 1)


def _by_stretches(paths: Sequence[Path], heard: Mapping[Path, Heard]) -> Iterable[tuple[Path, Path]]:
    """Pairs that share enough stretches of samples."""
    sizes = [len(heard[path].stretches) for path in paths]
    if not sum(sizes):
        return
    stretches = np.concatenate([heard[path].stretches for path in paths])
    owners = np.repeat(np.arange(len(paths), dtype=np.int32), sizes)
    order = np.argsort(stretches, kind="stable")  # of one stretch the owners stay in order
    stretches, owners = stretches[order], owners[order]
    # neighbours are enough: what three hold is shared by the first and the second, and by the second and the third
    equal = np.flatnonzero(stretches[1:] == stretches[:-1])
    pairs = owners[equal].astype(np.int64) * len(paths) + owners[equal + 1]
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        one, other = divmod(int(pair), len(paths))
        fewer = min(sizes[one], sizes[other])
        if count >= min(3, fewer) and count >= _SHARE * fewer:
            yield paths[one], paths[other]


def _by_course(paths: Sequence[Path], heard: Mapping[Path, Heard]) -> Iterable[tuple[Path, Path]]:
    """Pairs whose loudness goes the same way, and whose sounds are then found to be one."""
    audible = [path for path in paths if heard[path].course.any()]
    if len(audible) < 2:
        return
    courses = np.stack([heard[path].course for path in audible])
    tree = cKDTree(courses)

    @functools.lru_cache(maxsize=2)  # a corpus is larger than memory
    def waveform(path: Path) -> Waveform | None:
        try:
            return read_recording(path, _COMPARED_HZ).waveform
        except InputError:
            return None

    # steady noise is near to all other steady noise, but nearest to its copy
    _, near = tree.query(courses, k=min(_NEAREST + 1, len(audible)), distance_upper_bound=_NEAR)
    pairs = {(min(one, int(other)), max(one, int(other))) for one, row in enumerate(near) for other in row}
    for one, other in sorted(pair for pair in pairs if pair[0] < pair[1] < len(audible)):
        left, right = waveform(audible[one]), waveform(audible[other])
        if left is not None and right is not None and _alike(left, right):
            yield audible[one], audible[other]


def _alike(one: Waveform, other: Waveform) -> bool:
    """Whether two sounds of one rate are the same but for rounding."""
    if abs(len(one) - len(other)) > 2:
        return False
    size = min(len(one), len(other))
    left, right = (w[:size].astype(np.float64) - float(np.mean(w[:size], dtype=np.float64)) for w in (one, other))
    powers = float(np.sum(left * left)), float(np.sum(right * right))
    if min(powers) <= 0 or min(powers) < _ALIKE**2 * max(powers):
        return False
    return float(np.sum(left * right)) > _ALIKE * float(np.sqrt(powers[0] * powers[1]))


# ---------------------------------------------------------------- in the parts of a corpus


def files_of(tables: Iterable[Any]) -> dict[Path, str]:
    """The recordings of cycle tables with their hashes; those without a file or a hash are left out."""
    found: dict[Path, str] = {}
    for table in tables:
        for path, sha256 in zip(column_of(table, "recording_path"), column_of(table, "audio_sha256"), strict=True):
            if path and sha256:
                found[Path(path)] = sha256
    return found


def one_name_each(parts: Mapping[str, Any], cache_dir: str | Path | None = None) -> dict[str, str]:
    """For each hash of a file whose sound is in others too the same one of their hashes."""
    files = files_of(parts.values())
    groups = same_sounds(files, cache_dir)
    return {files[path]: files[group[0]] for group in groups for path in group}


def check_sounds(parts: datasets.DatasetDict, cache_dir: str | Path | None = None) -> list[str]:
    """Look for sounds under two names in a split corpus, and have its record say what was found.

    Args:
        parts: What `load_corpus` returned; what is shared between parts goes into its provenance.
        cache_dir: Root of the caches.

    Returns:
        One line for each sound under several names.

    Raises:
        InputError: Two parts share a recording with all its cycles, and the protocol promises that no patient is in
            both.
    """
    files = files_of(parts.values())
    lines, between, broken = [], [], []
    spans = _spans(parts)
    facts = _facts(parts)
    protocol = PROTOCOLS.get(str(facts.get("protocol")))
    for group in same_sounds(files, cache_dir):
        members = sorted({member for path in group for member in spans[str(path)]}, key=lambda m: part_rank(m[0]))
        owners = [f"{path} ({part})" for part, path, _ in members]
        line = f"the same sound under {len(members)} names: {', '.join(owners)}"
        lines.append(line)
        for (part, path, own), (other_part, other_path, others) in itertools.combinations(members, 2):
            if part == other_part or protocol is None:
                continue
            if protocol.promise(part, other_part) == "patient":
                between.append(f"{Path(path).stem} of {part} = {Path(other_path).stem} of {other_part}")
                if own == others:
                    broken.append(line)
    if broken and protocol is not None:
        raise InputError(
            f"protocol {protocol.name!r} promises that no patient is shared, but {broken[0]}; "
            "drop one of them, or correct the patient ids"
        )
    if lines:
        _write_down(parts, facts, lines, between)
    return lines


def _spans(parts: Mapping[str, Any]) -> dict[str, list[tuple[str, str, tuple[Any, ...]]]]:
    """For each recording the parts it is in, and there the times of its cycles."""
    found: dict[tuple[str, str], list[Any]] = {}
    for name, table in parts.items():
        columns = (table["recording_path"], column_of(table, "start_s"), column_of(table, "end_s"))
        for path, start, end in zip(*columns, strict=True):
            found.setdefault((path, name), []).append((start, end))
    by_path: dict[str, list[tuple[str, str, tuple[Any, ...]]]] = {}
    for (path, name), times in found.items():
        by_path.setdefault(path, []).append((name, path, tuple(sorted(times))))
    return by_path


def _facts(parts: datasets.DatasetDict) -> dict[str, Any]:
    for table in parts.values():
        try:
            return dict(json.loads(table.info.description)["laennec"])
        except (ValueError, KeyError, TypeError):
            continue
    return {}


def _write_down(parts: datasets.DatasetDict, facts: dict[str, Any], lines: list[str], between: list[str]) -> None:
    """Put what was found into the provenance of every part, and a broken promise into the stamp of every number."""
    facts = {**facts, "same_sounds": lines}
    if between:
        stamp = f"the same sound is in two parts whose patients should differ: {named(between)}"
        facts["stamp"] = "; ".join(s for s in (facts.get("stamp"), stamp) if s)
    for table in parts.values():
        table.info.description = json.dumps({"laennec": facts}, ensure_ascii=False)


# ---------------------------------------------------------------- of an encoder that was trained before


def sounds_note(tables: Iterable[Any], cache_dir: str | Path | None = None) -> dict[str, list[str]]:
    """What an encoder carries with it of the sounds it has heard: hashes of files and of some of their stretches."""
    files = files_of(tables)
    stretches = {
        f"{stretch:016x}"
        for heard in heard_of(files, cache_dir).values()
        for stretch in heard.stretches[:_KEPT].tolist()
    }
    return {"files": sorted(set(files.values())), "stretches": sorted(stretches)}


def heard_before(note: Mapping[str, Any], table: Any, cache_dir: str | Path | None = None) -> list[str]:
    """The recordings of a cycle table whose sound is in a `sounds_note`."""
    hashes = set(note.get("files") or [])
    known = {int(stretch, 16) for stretch in note.get("stretches") or []}
    files = files_of([table])
    found = {path for path, sha256 in files.items() if sha256 in hashes}
    for path, heard in heard_of(files, cache_dir).items() if known else ():
        own = heard.stretches.tolist()
        if own and sum(stretch in known for stretch in own) >= min(3, len(own)):
            found.add(path)
    return sorted(str(path) for path in found)
