"""Duplicated audio under several names: audio fingerprints, and the groups of files with equal ones.

Decisions: copies that are not identical files are found in two ways. Hashes of short windows of samples, chosen by
content alone, find copies with bit-equal samples, in another container or cut. Copies of another bit depth or rate
share no samples: similar loudness envelopes give candidates, and their correlation decides. Fingerprints are cached
under the hash of the file, so that a corpus is decoded once. Worker processes import this module, so slow imports are
inside the functions that need them.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from laennec.audio.recording import DecodeError, Waveform, read_recording
from laennec.audio.streaming import open_recording
from laennec.cache import cache_root, read_entry, whole_bytes, write_entry
from laennec.errors import InputError
from laennec.processes import in_processes

_VERSION = 2  # of the cached fingerprints
_WINDOW = 64  # samples of a hashed window
_REACH = 512  # a window is chosen if no hash within so many samples is smaller
_CHANGES = 16  # fewest samples of a window that differ from the one before; excludes silence
_BLOCKS = 64  # of the loudness envelope
_HELD = 4_000_000  # recordings of more samples are decoded a second time for their envelope
_NEAR = 0.02  # largest distance of two envelopes (of norm 1) whose audio is compared
_NEAREST = 8  # most recordings that one is compared with
_CORRELATION, _COMPARED_HZ = 0.99, 4000
_SHARE = 0.1  # share of equal windows, of the smaller number of windows of two recordings
_KEPT = 8  # windows that represent a recording in a pre-training record


@dataclass(frozen=True)
class AudioFingerprint:
    """Values that are equal, or close, for two recordings with the same audio."""

    windows: npt.NDArray[np.uint64]  # uint64, sorted hashes of windows of samples
    envelope: npt.NDArray[np.float64]  # float64 (64,), loudness of as many equal pieces, of norm 1; zeros for silence


def _windows(blocks: Iterable[Waveform]) -> npt.NDArray[np.uint64]:
    """Hashes of chosen windows of a recording that comes in blocks, sorted."""
    from scipy.ndimage import minimum_filter1d

    held, first, chosen = np.empty(0, np.float32), 0, [np.empty(0, np.uint64)]
    for block in itertools.chain(blocks, [None]):  # None: the end, where the last windows are chosen
        held = held if block is None else np.concatenate([held, block])
        sums = _hashes(held)
        decided = len(sums) if block is None else max(first, len(sums) - _REACH)
        if decided > first:
            least = minimum_filter1d(sums, 2 * _REACH + 1, mode="nearest")
            chosen.append(sums[first:decided][(sums == least)[first:decided]])
        kept_from = max(decided - _REACH, 0)
        held, first = held[kept_from:], decided - kept_from
    windows = np.unique(np.concatenate(chosen))
    return windows[windows != np.uint64(2**64 - 1)]


def _hashes(waveform: Waveform) -> npt.NDArray[np.uint64]:
    """The hash of each window of a waveform; the largest number where too few samples change."""
    steps = np.diff(np.round(waveform.astype(np.float64) * 2**31).astype(np.int64))
    if len(steps) < _WINDOW:
        return np.empty(0, np.uint64)
    sums = steps.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    factor, length = 0xBF58476D1CE4E5B9, 1
    while length < _WINDOW:  # two adjacent hashes combine to that of the whole span
        sums = sums[:-length] * np.uint64(factor) + sums[length:]
        factor, length = factor * factor % 2**64, 2 * length
    sums ^= sums >> np.uint64(31)
    sums *= np.uint64(0x94D049BB133111EB)
    sums ^= sums >> np.uint64(29)
    changes = np.cumsum(np.concatenate([[0], steps != 0]))
    sums[changes[_WINDOW:] - changes[:-_WINDOW] < _CHANGES] = np.uint64(2**64 - 1)
    return sums


def _envelope(blocks: Iterable[Waveform], samples: int, mean: float) -> npt.NDArray[np.float64]:
    """Loudness of the equal pieces of a recording of so many samples that comes in blocks."""
    if samples < _BLOCKS:
        return np.zeros(_BLOCKS)
    ends = np.cumsum([samples // _BLOCKS + (piece < samples % _BLOCKS) for piece in range(_BLOCKS)])  # np.array_split
    energy, at = np.zeros(_BLOCKS), 0
    for block in blocks:
        squares = np.square(block.astype(np.float64) - mean)
        cuts = np.clip(ends[:-1] - at, 0, len(block))
        energy += [float(piece.sum()) for piece in np.split(squares, cuts)]
        at += len(block)
    power = energy / np.diff(ends, prepend=0)
    total = float(power.sum())
    return np.sqrt(power / total) if total > 0 else np.zeros(_BLOCKS)


def fingerprint_files(
    files: Mapping[Path, str], cache_dir: str | Path | None = None, jobs: int = 1
) -> dict[Path, AudioFingerprint]:
    """Fingerprints of audio files, given with their SHA-256; those that cannot be decoded are left out."""
    root = cache_root(cache_dir) / "audio_fingerprints"
    stores = {sha256: root / sha256[:2] / f"{sha256}.{_VERSION}.safetensors" for sha256 in files.values()}
    by_hash: dict[str, AudioFingerprint | None] = {}
    if jobs > 1:
        missing = [(path, stores[sha256]) for path, sha256 in files.items() if whole_bytes(stores[sha256]) is None]
        with closing(in_processes(_fingerprint_of, missing, min(jobs, len(missing)))) as made:
            by_hash = {files[path]: found for (path, _), found in made if isinstance(found, AudioFingerprint)}
    for path, sha256 in files.items():
        if sha256 not in by_hash:
            by_hash[sha256] = _fingerprint_of((path, stores[sha256]))
    return {path: found for path, sha256 in files.items() if (found := by_hash[sha256]) is not None}


def _fingerprint_of(item: tuple[Path, Path]) -> AudioFingerprint | None:
    """The fingerprint of a file, from its cache file (the second of the pair) or made anew."""
    path, store = item
    if content := read_entry(store):
        tensors = load(content)
        return AudioFingerprint(tensors["windows"], tensors["envelope"])
    total, held = 0.0, list[Waveform]()

    def summed() -> Iterator[Waveform]:
        nonlocal total
        for block in stream.blocks():
            total += float(np.sum(block, dtype=np.float64))
            if stream.samples <= _HELD:
                held.append(block)
            yield block

    try:
        with open_recording(path, allow_silent=True) as stream:
            windows = _windows(summed())
        samples, mean = stream.samples, total / stream.samples  # which the pieces of the envelope depend on
        if samples <= _HELD:
            envelope = _envelope(held, samples, mean)
        else:
            with open_recording(path, allow_silent=True) as stream:
                envelope = _envelope(stream.blocks(), samples, mean)
    except DecodeError:
        return None
    write_entry(store, save({"windows": windows, "envelope": envelope}))
    return AudioFingerprint(windows, envelope)


def find_duplicates(
    files: Mapping[Path, str], cache_dir: str | Path | None = None, jobs: int = 1
) -> list[tuple[Path, ...]]:
    """Groups of files, given with their SHA-256, that hold the same audio or a part of it; sorted, of two and more."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    prints = fingerprint_files(files, cache_dir, jobs)
    paths = sorted(files)
    first_of: dict[str, Path] = {}
    pairs = [(path, first_of.setdefault(files[path], path)) for path in paths]
    single = [path for path in paths if path in prints and first_of[files[path]] == path]  # one of equal files
    pairs += [*_by_windows(single, prints), *_by_envelope(single, prints)]
    number = {path: row for row, path in enumerate(paths)}
    rows, columns = ([number[pair[side]] for pair in pairs] for side in (0, 1))
    links = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(paths), len(paths)))
    groups: dict[int, list[Path]] = {}
    for path, group in zip(paths, connected_components(links, directed=False)[1].tolist(), strict=True):
        groups.setdefault(group, []).append(path)
    return sorted(tuple(members) for members in groups.values() if len(members) > 1)


def _by_windows(paths: Sequence[Path], prints: Mapping[Path, AudioFingerprint]) -> Iterable[tuple[Path, Path]]:
    """Pairs that share enough windows of samples."""
    sizes = [len(prints[path].windows) for path in paths]
    if not sum(sizes):
        return
    windows = np.concatenate([prints[path].windows for path in paths])
    owners = np.repeat(np.arange(len(paths), dtype=np.int32), sizes)
    order = np.argsort(windows, kind="stable")  # owners of one window stay in order
    windows, owners = windows[order], owners[order]
    # neighbours suffice: a window of three recordings links the first to the second and the second to the third
    equal = np.flatnonzero(windows[1:] == windows[:-1])
    pairs = owners[equal].astype(np.int64) * len(paths) + owners[equal + 1]
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        one, other = divmod(int(pair), len(paths))
        fewer = min(sizes[one], sizes[other])
        if count >= min(3, fewer) and count >= _SHARE * fewer:
            yield paths[one], paths[other]


def _by_envelope(paths: Sequence[Path], prints: Mapping[Path, AudioFingerprint]) -> Iterable[tuple[Path, Path]]:
    """Pairs with nearly the same loudness envelope whose audio correlates."""
    from scipy.spatial import cKDTree

    audible = [path for path in paths if prints[path].envelope.any()]
    if len(audible) < 2:
        return
    envelopes = np.stack([prints[path].envelope for path in audible])

    @functools.lru_cache(maxsize=2)  # a corpus is larger than memory
    def waveform(path: Path) -> Waveform | None:
        try:
            return read_recording(path, _COMPARED_HZ).waveform
        except InputError:
            return None

    # steady noise is near to all other steady noise, but nearest to its copy
    nearest = min(_NEAREST + 1, len(audible))
    _, near = cKDTree(envelopes).query(envelopes, k=nearest, distance_upper_bound=_NEAR)
    pairs = {(min(one, int(other)), max(one, int(other))) for one, row in enumerate(near) for other in row}
    for one, other in sorted(pair for pair in pairs if pair[0] < pair[1] < len(audible)):
        left, right = waveform(audible[one]), waveform(audible[other])
        if left is not None and right is not None and _is_same(left, right):
            yield audible[one], audible[other]


def _is_same(one: Waveform, other: Waveform) -> bool:
    """Whether two waveforms of one rate are the same except for rounding."""
    if abs(len(one) - len(other)) > 2:
        return False
    size = min(len(one), len(other))
    left, right = (w[:size].astype(np.float64) - float(np.mean(w[:size], dtype=np.float64)) for w in (one, other))
    powers = float(np.sum(left * left)), float(np.sum(right * right))
    if min(powers) <= 0 or min(powers) < _CORRELATION**2 * max(powers):
        return False
    return float(np.sum(left * right)) > _CORRELATION * float(np.sqrt(powers[0] * powers[1]))


def files_of(tables: Iterable[Any]) -> dict[Path, str]:
    """The recordings of cycle tables with their hashes; those without a file or a hash are left out."""
    found: dict[Path, str] = {}
    for table in tables:
        pairs = zip(table["recording_path"][:], table["audio_sha256"][:], strict=True)
        found |= {Path(path): sha256 for path, sha256 in dict.fromkeys(pairs) if path and sha256}
    return found


def canonical_hashes(splits: Mapping[str, Any]) -> dict[str, str]:
    """For each file with duplicates: its hash -> the hash of the first file of its group."""
    files = files_of(splits.values())
    return {files[path]: files[group[0]] for group in find_duplicates(files) for path in group}


def describe_audio(tables: Iterable[Any], cache_dir: str | Path | None = None) -> dict[str, list[str]]:
    """What a pre-training record stores of its audio: hashes of the files and of some windows of each."""
    files = files_of(tables)
    windows = {
        f"{window:016x}"
        for found in fingerprint_files(files, cache_dir).values()
        for window in found.windows[:_KEPT].tolist()
    }
    return {"files": sorted(set(files.values())), "stretches": sorted(windows)}


def find_described(described: Mapping[str, Any], table: Any, cache_dir: str | Path | None = None) -> list[str]:
    """The recordings of a cycle table whose audio is in what `describe_audio` returned."""
    hashes = set(described.get("files") or [])
    known = {int(window, 16) for window in described.get("stretches") or []}
    files = files_of([table])
    found = {path for path, sha256 in files.items() if sha256 in hashes}
    for path, fingerprint in fingerprint_files(files, cache_dir).items() if known else ():
        own = fingerprint.windows.tolist()
        if own and sum(window in known for window in own) >= min(3, len(own)):
            found.add(path)
    return sorted(str(path) for path in found)
