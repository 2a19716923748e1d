"""The waveforms of a cycle table, each recording decoded once.

Decisions: a recording is resampled and filtered as a whole and cut while it is decoded, so filters do not start at the
edge of a cycle, and recordings can have any length. The cycles of a recording are cached in one file, raw float32 and
then their lengths, named by the hash of everything that made them: the audio, the spans, the rate, the filter and
WAVEFORM_VERSION (raise it when a rule changes). No file stays open and no audio in memory between reads.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from laennec.audio.cycles import Span, Waveform
from laennec.audio.recording import ButterworthFilter, DecodeError
from laennec.audio.streaming import open_recording, passing_cycles
from laennec.cache import cache_root, hash_files, new_entry, whole_bytes
from laennec.corpora.recordings import UnusableRecordingsError
from laennec.errors import InputError
from laennec.files import digest, try_lock, wait_for_lock
from laennec.processes import DIED, Died, in_processes
from laennec.untrusted import open_regular

if TYPE_CHECKING:  # worker processes import this module, and these take a second
    import datasets
    import pyarrow as pa

WAVEFORM_VERSION = 3
_COLUMNS = ("cycle_id", "recording_path", "audio_sha256", "start_s", "end_s")
_PLACE = ("recording_path", "start_s", "end_s")  # identifies a cycle in tables of several corpora too, unlike its id


@dataclass(frozen=True)
class _Shard:
    """The cached cycles of one recording."""

    recording_path: str
    audio_sha256: str
    spans: tuple[Span, ...]
    path: Path


class CycleWaveforms(Sequence[Waveform]):
    """The cycles of a table as waveforms, cached on disk: `waveforms[i]` belongs to row i.

    Args:
        table: A cycle table, or any rows of one in any order.
        sampling_rate: Rate of the waveforms in Hz.
        filter: Applied to whole recordings at that rate.
        cache_dir: Root of the caches; see `laennec.cache.cache_root`.

    Raises:
        InputError: The table has rows without audio.
    """

    def __init__(
        self,
        table: "datasets.Dataset",
        sampling_rate: int,
        filter: ButterworthFilter | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if sampling_rate < 1:
            raise ValueError(f"sampling_rate={sampling_rate}: must be positive")
        self.sampling_rate = sampling_rate
        self.filter = filter
        self._folder = cache_root(cache_dir) / "waveforms"
        rows = table.select_columns(list(_COLUMNS)).with_format("arrow")[:]
        if silent := rows["recording_path"].null_count:
            first = rows["cycle_id"].filter(rows["recording_path"].is_null())[0].as_py()
            raise InputError(f"{silent} cycles have no audio ({first} ...); load the corpus with its recordings")
        self._shards, self._places = self._arrange(rows, cache_dir)

    def _arrange(self, rows: "pa.Table", cache_dir: str | Path | None) -> tuple[list[_Shard], npt.NDArray[np.int32]]:
        """One shard for each recording, and for each row its (shard, span)."""
        paths, hashes, starts, ends = (rows[name].to_pylist() for name in _COLUMNS[1:])
        unknown = hash_files({Path(path) for path, sha256 in zip(paths, hashes, strict=True) if not sha256}, cache_dir)
        rows_of: dict[tuple[str, str], list[int]] = {}
        for row, (path, sha256) in enumerate(zip(paths, hashes, strict=True)):
            rows_of.setdefault((path, sha256 or unknown[Path(path)]), []).append(row)
        shards, places = [], np.empty((len(paths), 2), np.int32)
        for number, ((path, sha256), chosen) in enumerate(rows_of.items()):
            spans = tuple(sorted({(starts[row], ends[row]) for row in chosen}))  # whatever the order of the rows
            shards.append(_Shard(path, sha256, spans, self._shard_path(sha256, spans)))
            place_of = {span: place for place, span in enumerate(spans)}
            places[chosen] = [(number, place_of[starts[row], ends[row]]) for row in chosen]
        return shards, places

    def _shard_path(self, audio_sha256: str, spans: tuple[Span, ...]) -> Path:
        filter_key = None if self.filter is None else [self.filter.kind, self.filter.cutoff_hz, self.filter.order]
        name = digest([WAVEFORM_VERSION, audio_sha256, spans, self.sampling_rate, filter_key])
        return self._folder / name[:2] / f"{name}.f32"

    @cached_property
    def key(self) -> str:
        """SHA-256 of the sources of all rows' waveforms, in order: the cache key for what is computed from them."""
        return digest([[self._shards[shard].path.stem, int(span)] for shard, span in self._places])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Waveform:  # type: ignore[override]
        """The waveform of row `index`, float32, shape (samples,); decodes its recording if it is not cached."""
        shard, span = (int(number) for number in self._places[index])
        chosen = self._shards[shard]
        waveform = _read_cycle(chosen, span)
        if waveform is None:
            _make(chosen, self.sampling_rate, self.filter)
            waveform = _read_cycle(chosen, span)
        if waveform is None:
            raise InputError(f"{chosen.path}: the cache cannot be read back; check the disk, or choose another cache")
        return waveform

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Samples of each row, shape (rows,); read from the cache, which is filled first where it has gaps."""
        by_shard = [_read_lengths(shard) for shard in self._shards]
        if any(lengths is None for lengths in by_shard):
            self.prepare()
            by_shard = [_read_lengths(shard) for shard in self._shards]
        return np.array([by_shard[shard][span] for shard, span in self._places], dtype=np.int64)  # type: ignore[index]

    def prepare(self, progress: Callable[[int, int], None] | None = None, jobs: int = 1) -> None:
        """Decode every recording whose cycles are not cached, in `jobs` processes; other runs may share the work.

        `progress` is called with (done, to do) after each. An `UnusableRecordingsError` names all that cannot be used;
        the others are cached.
        """
        if problems := _prepare(self._shards, self.sampling_rate, self.filter, progress, jobs):
            raise UnusableRecordingsError(problems, len(self._shards))


def _prepare(
    shards: Sequence[_Shard],
    sampling_rate: int,
    filter: ButterworthFilter | None,
    progress: Callable[[int, int], None] | None,
    jobs: int,
) -> list[str]:
    """Make the shards that are missing; returns what is wrong with recordings."""
    missing = [shard for shard in shards if _read_lengths(shard) is None]
    problems: dict[str, None] = {}
    for done, problem in enumerate(_made(missing, sampling_rate, filter, jobs), start=1):
        if problem is not None:
            problems[problem] = None
        if progress is not None:
            progress(done, len(missing))
    return list(problems)


def _made(
    missing: list[_Shard], sampling_rate: int, filter: ButterworthFilter | None, jobs: int
) -> Iterator[str | None]:
    """Make shards; yields for each what is wrong with its recording, or None."""
    if min(jobs, len(missing)) > 1:
        work = partial(_problem, sampling_rate=sampling_rate, filter=filter)
        with closing(in_processes(work, missing, min(jobs, len(missing)))) as results:
            for shard, problem in results:
                yield f"{shard.recording_path}: {DIED}" if isinstance(problem, Died) else problem
        return
    waiting = []
    for shard in missing:
        with try_lock(shard.path) as ours:
            if ours:
                yield _problem(shard, sampling_rate, filter)
        if not ours:
            waiting.append(shard)
    for shard in waiting:
        with wait_for_lock(shard.path):
            yield _problem(shard, sampling_rate, filter)


def _problem(shard: _Shard, sampling_rate: int, filter: ButterworthFilter | None) -> str | None:
    """What is wrong with a recording; None once its cycles are cached."""
    try:
        if _read_lengths(shard) is None:
            _make(shard, sampling_rate, filter)
    except DecodeError as error:
        return str(error)
    return None


def _make(shard: _Shard, sampling_rate: int, filter: ButterworthFilter | None) -> None:
    """Decode a recording and cache its cycles."""
    _check_unchanged(shard)
    lengths = []
    with new_entry(shard.path) as file:
        try:
            with open_recording(shard.recording_path, sampling_rate, filter=filter) as stream:
                for place, found in passing_cycles(stream, shard.spans):
                    if len(found.own) == 0:
                        start_s, end_s = shard.spans[place]
                        reason = f"the cycle at {start_s:g} to {end_s:g} s is empty at {sampling_rate} Hz"
                        raise DecodeError(
                            shard.recording_path, f"{reason}; correct its annotation or use a higher rate"
                        )
                    file.write(found.own.astype("<f4", copy=False).data)
                    lengths.append(len(found.own))
        except MemoryError as error:
            reason = "a cycle is too long for this machine's memory; cut it into shorter ones"
            raise DecodeError(shard.recording_path, reason) from error
        file.write(np.array(lengths, "<u8").tobytes())


def with_audio(
    table: "datasets.Dataset", sampling_rate: int, filter: ButterworthFilter | None = None
) -> "datasets.Dataset":
    """The table with a column `audio` that is decoded when a row is read, by soundfile: torchcodec is not needed.

    `audio` is {"array": float32 (samples,), "sampling_rate": Hz}, the cycle alone; the filter is applied to whole
    recordings at that rate.
    """
    waveforms = CycleWaveforms(table, sampling_rate, filter)
    ids = table["cycle_id"][:]
    key = ("cycle_id",) if len(set(ids)) == len(ids) else _PLACE
    places = table.select_columns(list(key)).with_format(None)[:]
    rows = {place: row for row, place in enumerate(zip(*places.values(), strict=True))}

    def decoded(batch: dict[str, Any]) -> dict[str, Any]:
        sounds = [waveforms[rows[place]] for place in zip(*(batch[name] for name in key), strict=True)]
        return batch | {"audio": [{"array": sound, "sampling_rate": sampling_rate} for sound in sounds]}

    return table.with_transform(decoded)


def decode_all(
    tables: "Sequence[datasets.Dataset]",
    sampling_rate: int,
    filter: ButterworthFilter | None = None,
    problems: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    jobs: int = 1,
) -> None:
    """Decode several cycle tables into the cache; unusable recordings are raised after all others are cached."""
    by_path = {shard.path: shard for table in tables for shard in CycleWaveforms(table, sampling_rate, filter)._shards}
    shards = list(by_path.values())
    found = [*problems, *_prepare(shards, sampling_rate, filter, progress, jobs)]
    if found:
        recordings = {shard.recording_path for shard in shards}
        raise UnusableRecordingsError(list(dict.fromkeys(found)), len(problems) + len(recordings))


def _check_unchanged(shard: _Shard) -> None:
    """Check that a recording has not changed since the table was made."""
    try:
        with open_regular(shard.recording_path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except OSError as error:
        reason = f"cannot be read ({error.strerror}); load the corpus again from where it is now"
        raise DecodeError(shard.recording_path, reason) from error
    if found != shard.audio_sha256:
        raise DecodeError(shard.recording_path, "has changed since the table was made; load the corpus again")


def _read_lengths(shard: _Shard) -> npt.NDArray[np.int64] | None:
    """Samples of each span of a shard, or None where there is no whole shard."""
    if (size := whole_bytes(shard.path)) is None:
        return None
    count = len(shard.spans)
    try:
        return np.fromfile(shard.path, dtype="<u8", count=count, offset=size - 8 * count).astype(np.int64)
    except OSError:  # another process has removed it
        return None


def _read_cycle(shard: _Shard, span: int) -> Waveform | None:
    """One cycle of a shard, or None where there is no whole shard."""
    if (lengths := _read_lengths(shard)) is None:
        return None
    offset = 4 * int(lengths[:span].sum())
    try:
        return np.fromfile(shard.path, "<f4", int(lengths[span]), offset=offset).astype(np.float32, copy=False)
    except OSError:
        return None
