"""Finding recordings with the same sound under two names, whatever file holds it.

Decisions: two methods, because copies differ in two ways. Hashes of short windows of samples, chosen by content alone,
find copies whose samples are equal to the bit, in another container or cut. A copy of another depth or rate has no
equal sample: its loudness envelope finds candidates, and their correlation decides. Fingerprints are cached under the
hash of the file, so that a corpus is decoded once. The same audio in two splits that promise disjoint patients is
refused if the cycles are the same too. A cut, or audio under other annotations, may be a mix-up of files: it is
reported and stamped on every number.
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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from laennec.audio.recording import DecodeError, Waveform, mono, read_frames, read_recording
from laennec.corpora.base import column_of
from laennec.corpora.protocols import PROTOCOLS, part_rank
from laennec.corpora.sources import named
from laennec.errors import InputError
from laennec.files import atomic_write, cache_root

_VERSION = 1
_WINDOW = 64  # samples of a hashed window
_REACH = 512  # a window is chosen if no hash within so many samples is smaller
_CHANGES = 16  # at least so many samples of a window differ from the one before: silence is no evidence
_BLOCKS = 64  # of the loudness envelope
_NEAR = 0.02  # distance of two envelopes (of norm 1) whose audio is compared
_NEAREST = 8  # so many of them at most
_CORRELATION, _COMPARED_HZ = 0.99, 4000
_SHARE = 0.1  # of the smaller number of windows of two recordings that has to be the same
_KEPT = 8  # windows that represent a recording in a pre-training record


@dataclass(frozen=True)
class AudioFingerprint:
    """What two recordings with the same audio have in common.

    Attributes:
        windows: uint64, sorted hashes of windows of samples.
        envelope: float64 (64,), loudness of as many equal pieces, of norm 1; zeros for silence.
    """

    windows: npt.NDArray[np.uint64]
    envelope: npt.NDArray[np.float64]


def fingerprint_audio(waveform: Waveform) -> AudioFingerprint:
    """The fingerprint of a waveform, float32 (samples,) at its own rate."""
    return AudioFingerprint(_windows(waveform), _envelope(waveform))


def _windows(waveform: Waveform) -> npt.NDArray[np.uint64]:
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
    changes = np.cumsum(np.concatenate([[0], steps != 0]))
    sums[changes[_WINDOW:] - changes[:-_WINDOW] < _CHANGES] = np.uint64(2**64 - 1)
    least = minimum_filter1d(sums, 2 * _REACH + 1, mode="nearest")
    return np.unique(sums[(sums == least) & (sums != np.uint64(2**64 - 1))])


def _envelope(waveform: Waveform) -> npt.NDArray[np.float64]:
    if len(waveform) < _BLOCKS:
        return np.zeros(_BLOCKS)
    centred = waveform.astype(np.float64) - float(np.mean(waveform, dtype=np.float64))
    power = np.array([float(np.mean(np.square(piece))) for piece in np.array_split(centred, _BLOCKS)])
    total = float(power.sum())
    return np.sqrt(power / total) if total > 0 else np.zeros(_BLOCKS)


def fingerprint_files(files: Mapping[Path, str], cache_dir: str | Path | None = None) -> dict[Path, AudioFingerprint]:
    """Fingerprints of audio files; those that cannot be decoded are left out.

    Args:
        files: Each with the SHA-256 of its content.
        cache_dir: Root of the caches; see `laennec.files.cache_root`.
    """
    root = cache_root(cache_dir) / "audio_fingerprints"
    by_hash: dict[str, AudioFingerprint | None] = {}
    for path, sha256 in files.items():
        if sha256 not in by_hash:
            by_hash[sha256] = _fingerprint_of(path, root / sha256[:2] / f"{sha256}.{_VERSION}.safetensors")
    return {path: found for path, sha256 in files.items() if (found := by_hash[sha256]) is not None}


def _fingerprint_of(path: Path, store: Path) -> AudioFingerprint | None:
    """The fingerprint of a file, from its cache file or made anew."""
    try:
        tensors = load_file(store)
        return AudioFingerprint(tensors["windows"], tensors["envelope"])
    except (SafetensorError, OSError, KeyError):
        pass
    try:
        waveform = mono(read_frames(path)[0])
    except (DecodeError, InputError):
        return None
    if not np.isfinite(waveform).all():
        return None
    found = fingerprint_audio(waveform)
    with atomic_write(store, "wb", sync=False) as file:
        file.write(save({"windows": found.windows, "envelope": found.envelope}))
    return found


def find_duplicates(files: Mapping[Path, str], cache_dir: str | Path | None = None) -> list[tuple[Path, ...]]:
    """Groups of files that hold the same audio, or a part of it.

    Args:
        files: Each with the SHA-256 of its content.
        cache_dir: Root of the caches.

    Returns:
        Groups of two and more, sorted; a file without a duplicate is in none.
    """
    prints = fingerprint_files(files, cache_dir)
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
    # neighbours are enough: what three share is shared by the first and the second, and by the second and the third
    equal = np.flatnonzero(windows[1:] == windows[:-1])
    pairs = owners[equal].astype(np.int64) * len(paths) + owners[equal + 1]
    for pair, count in zip(*np.unique(pairs, return_counts=True), strict=True):
        one, other = divmod(int(pair), len(paths))
        fewer = min(sizes[one], sizes[other])
        if count >= min(3, fewer) and count >= _SHARE * fewer:
            yield paths[one], paths[other]


def _by_envelope(paths: Sequence[Path], prints: Mapping[Path, AudioFingerprint]) -> Iterable[tuple[Path, Path]]:
    """Pairs with nearly the same loudness envelope whose audio correlates."""
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
        for path, sha256 in zip(column_of(table, "recording_path"), column_of(table, "audio_sha256"), strict=True):
            if path and sha256:
                found[Path(path)] = sha256
    return found


def canonical_hashes(splits: Mapping[str, Any], cache_dir: str | Path | None = None) -> dict[str, str]:
    """Of each file with duplicates, hash -> the hash that stands for all of them."""
    files = files_of(splits.values())
    return {files[path]: files[group[0]] for group in find_duplicates(files, cache_dir) for path in group}


def check_duplicates(splits: datasets.DatasetDict, cache_dir: str | Path | None = None) -> list[str]:
    """Look for audio under two names in a split corpus, and write what is found into its provenance.

    Args:
        splits: What `load_corpus` returned.
        cache_dir: Root of the caches.

    Returns:
        One line for each recording under several names.

    Raises:
        InputError: Two splits share a recording with all its cycles, and the protocol promises disjoint patients.
    """
    lines, between = [], []
    spans = _spans(splits)
    facts = _facts(splits)
    protocol = PROTOCOLS.get(str(facts.get("protocol")))
    for group in find_duplicates(files_of(splits.values()), cache_dir):
        members = sorted({member for path in group for member in spans[str(path)]}, key=lambda m: part_rank(m[0]))
        owners = [f"{path} ({split})" for split, path, _ in members]
        line = f"the same sound under {len(members)} names: {', '.join(owners)}"
        lines.append(line)
        for (split, path, own), (other_split, other_path, others) in itertools.combinations(members, 2):
            if split == other_split or protocol is None or protocol.promise(split, other_split) != "patient":
                continue
            if own == others:
                raise InputError(
                    f"protocol {protocol.name!r} promises that no patient is shared, but {line}; "
                    "drop one of them, or correct the patient ids"
                )
            between.append(f"{Path(path).stem} of {split} = {Path(other_path).stem} of {other_split}")
    if lines:
        facts = {**facts, "same_sounds": lines}
        if between:
            stamp = f"the same sound is in two parts whose patients should differ: {named(between)}"
            facts["stamp"] = "; ".join(s for s in (facts.get("stamp"), stamp) if s)
        for table in splits.values():
            table.info.description = json.dumps({"laennec": facts}, ensure_ascii=False)
    return lines


def _spans(splits: Mapping[str, Any]) -> dict[str, list[tuple[str, str, tuple[Any, ...]]]]:
    """For each recording the splits it is in, and the times of its cycles there."""
    found: dict[tuple[str, str], list[Any]] = {}
    for name, table in splits.items():
        columns = (table["recording_path"], column_of(table, "start_s"), column_of(table, "end_s"))
        for path, start, end in zip(*columns, strict=True):
            found.setdefault((path, name), []).append((start, end))
    by_path: dict[str, list[tuple[str, str, tuple[Any, ...]]]] = {}
    for (path, name), times in found.items():
        by_path.setdefault(path, []).append((name, path, tuple(sorted(times))))
    return by_path


def _facts(splits: datasets.DatasetDict) -> dict[str, Any]:
    for table in splits.values():
        try:
            return dict(json.loads(table.info.description)["laennec"])
        except (ValueError, KeyError, TypeError):
            continue
    return {}


def describe_audio(tables: Iterable[Any], cache_dir: str | Path | None = None) -> dict[str, list[str]]:
    """What a pre-trained encoder records of its audio: hashes of the files and of some windows of each."""
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
