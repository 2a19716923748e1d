"""Embeddings of a frozen encoder, computed once and cached.

Decisions: the key of an embedding is its content (audio bytes, span, filter and rate, features, encoder weights,
pooling, context cycles and, for augmented copies, the draw), so the cache never returns a wrong embedding and never
needs to be emptied. Shards hold some hundred cycles and are written atomically, so an interrupted run continues. On a
CPU an embedding does not depend on the content of the cache: cycles are embedded one by one (see
`laennec.training.devices`) or, where the encoder declares that this changes no bit (`batched_frames`), with others that
are padded to as many frames; a GPU gets batches of similar length. The cycles of a shard depend on the set of cycles
alone. Processes that embed at the same time, ranks of a launch or not, take the next free shard, longest cycles first,
and read the shards of the others: every batch is one that a single process would make, so embeddings are equal to the
bit, and nothing waits for a process that died. A batch that does not fit into memory is halved; a single cycle that
does not fit is an error.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor
from torch.nn import functional as F

from laennec import memory
from laennec.audio.context import InContext
from laennec.audio.features import LaennecFeatureExtractor
from laennec.cache import cache_root, read_entry, write_entry
from laennec.corpora.base import column_of
from laennec.encoders import encoder_identity
from laennec.errors import InputError
from laennec.files import remove_stale_lock, try_lock
from laennec.modeling import LaennecForAudioClassification
from laennec.progress import track
from laennec.training.data.batches import CycleDataset, Neighbours
from laennec.training.devices import encodes_one_by_one
from laennec.training.recipe import Recipe

_VERSION = 4
_MOST_CYCLES, _LEAST_CYCLES = 512, 16  # of a shard
_SHARDS = 16  # at least, if there are enough cycles, so that several processes share the work
_PATIENCE_S = 600.0  # wait for another process's shard, before it is embedded here too
_log = logging.getLogger(__name__)


def length_batches(
    lengths: Sequence[int], max_cycles: int = 16, max_samples: int = 1_000_000, shapes: Sequence[Hashable] | None = None
) -> Iterator[list[int]]:
    """Batches of rows of similar length, longest first; in a batch the shortest has at least 85 % of the longest.

    Args:
        lengths: Samples of each row.
        max_cycles: Most rows of a batch.
        max_samples: Most samples of a batch, padding included (one row may exceed it).
        shapes: Rows share a batch only where these are equal; None for no such rule.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda r: (-lengths[r], r)):
        longest = lengths[batch[0]] if batch else 0
        if batch and (
            len(batch) >= max_cycles
            or (len(batch) + 1) * longest > max_samples
            or lengths[row] < 0.85 * longest
            or (shapes is not None and shapes[row] != shapes[batch[0]])
        ):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def embed_waveforms(
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    waveforms: Sequence[NDArray[np.float32] | InContext],
) -> NDArray[np.float32]:
    """Compute embeddings (features, encoder, pooling) of waveforms of any lengths.

    Args:
        model: The model (its head is not used).
        extractor: The model's front end.
        waveforms: float32 (samples,) each, at the extractor's rate; `InContext` with concatenated context.

    Returns:
        float32 (waveforms, dim), in the given order. On a CPU an embedding depends on its waveform alone.
    """
    was_training = model.training
    if was_training:
        model.eval()
    result = np.empty((len(waveforms), model.embedding_dim), np.float32)
    embed = _one_by_one if encodes_one_by_one(next(model.parameters()).device) else _in_batches
    lengths = [sum(map(len, w.pieces)) if isinstance(w, InContext) else len(w) for w in waveforms]
    for rows, values in embed(model, extractor, waveforms, lengths):
        result[rows] = values
    if was_training:
        model.train()
    return result


_Made = Iterator[tuple[list[int], NDArray[np.float32]]]


def _one_by_one(model: Any, extractor: Any, waveforms: Sequence[Any], lengths: list[int]) -> _Made:
    """Embed each cycle as if it were alone, on one thread, so that its bits depend on nothing else."""

    def embed(rows: list[int]) -> NDArray[np.float32] | str:
        return _embed_batch(model, extractor, [waveforms[row] for row in rows], step or 1)

    step = batched_frames(model)
    shapes: Sequence[Hashable] = range(len(waveforms))
    if step:
        shapes = [_widths(waveform, extractor, step) for waveform in waveforms]
    threads = torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(min(threads, 16), initializer=torch.set_num_threads, initargs=(1,))
        stack.callback(pool.shutdown, cancel_futures=True)
        run: Callable[..., Iterator[NDArray[np.float32] | str]] = map if threads == 1 else pool.map
        batches = length_batches(lengths, max_samples=1_000_000 // threads, shapes=shapes)
        while some := list(islice(batches, min(threads, 16))):  # bounds the memory
            for rows, values in zip(some, run(embed, some), strict=True):
                if not isinstance(values, str):
                    yield rows, values
                    continue
                for row in rows:  # alone it may fit
                    memory.release()
                    values = embed([row])
                    if isinstance(values, str):
                        raise InputError(_too_long(lengths[row], extractor, values))
                    yield [row], values


def batched_frames(model: Any) -> int:
    """The encoder's `batched_frames`; a user's own encoder may have none."""
    return int(getattr(getattr(model, "encoder", None), "batched_frames", 0))


def _widths(waveform: Any, extractor: LaennecFeatureExtractor, step: int) -> Hashable:
    """Padded length, in steps, of a cycle alone and of a cycle with its context."""
    pieces = waveform.pieces if isinstance(waveform, InContext) else [waveform]
    own = waveform.own if isinstance(waveform, InContext) else waveform
    frames = (extractor.frames(len(own)), sum(extractor.frames(len(piece)) for piece in pieces))
    return tuple(-(-count // step) for count in frames)


def _in_batches(model: Any, extractor: Any, waveforms: Sequence[Any], lengths: list[int]) -> _Made:
    """Embed batches of similar length, for a GPU; if one does not fit into memory, the batch size is halved."""
    most = 256
    # a GPU needs larger batches than a CPU
    for batch in length_batches(lengths, *((most, 16_000_000) if next(model.parameters()).is_cuda else ())):
        left = batch
        while left:
            rows = left[:most]
            values = _embed_batch(model, extractor, [waveforms[row] for row in rows])
            if not isinstance(values, str):
                yield rows, values
                left = left[len(rows) :]
                continue
            if len(rows) == 1:
                raise InputError(_too_long(lengths[rows[0]], extractor, values))
            memory.release()
            most = (len(rows) + 1) // 2
            _log.warning("not enough memory for %d cycles at once; going on with %d", len(rows), most)


def _embed_batch(model: Any, extractor: Any, items: list[Any], step: int = 0) -> NDArray[np.float32] | str:
    """(items, dim), or the error message where they do not fit into memory together."""
    parameter = next(model.parameters())
    settings = {"sampling_rate": extractor.sampling_rate, "device": parameter.device, "filtered": True}
    try:
        with torch.inference_mode():
            made = [extractor(part, **settings) for part in ([[item] for item in items] if step else [items])]
            batch = {name: padded([part[name] for part in made], step or 1) for name in made[0]}
            inputs: list[Any] = []
            for kind in ("input_values", "context_values") if "context_values" in batch else ("input_values",):
                mask = batch["attention_mask" if kind == "input_values" else "context_mask"]
                # a mask of ones is left out
                inputs += [batch[kind].to(parameter.dtype), None if bool(mask.all()) else mask]
            values: NDArray[np.float32] = model.embed(*inputs).float().cpu().numpy()
    except Exception as error:
        if not memory.ran_out(error):
            raise
        return str(error)
    return values


def padded(parts: Sequence[Tensor], step: int = 1) -> Tensor:
    """Join parts (rows, frames, ...) to one batch, padded with zeros to the next multiple of `step` frames."""
    width = -(-max(part.shape[1] for part in parts) // step) * step
    return torch.cat([F.pad(part, (0, 0) * (part.ndim - 2) + (0, width - part.shape[1])) for part in parts])


def _too_long(samples: int, extractor: LaennecFeatureExtractor, failed: str) -> str:
    frames = extractor.frames(samples)
    seconds = frames / extractor.frames_per_second
    return (
        f"not enough memory for a single cycle of {seconds:.3g} s ({frames} frames)"
        f"{memory.asked_for(failed)}; set {memory.shorter_cycles(extractor, frames)} in the recipe, predict shorter "
        "windows (window_s, or --window-s), or use a machine with more memory"
    )


class EmbeddingCache:
    """Embeddings by content key, in a folder for each pair of feature extractor and encoder.

    Attributes:
        embed: Waveforms (cycles of (samples,)) -> float32 (cycles, dim).
        dim: Width of an embedding.
    """

    def __init__(
        self,
        folder: Path,
        model: LaennecForAudioClassification,
        extractor: LaennecFeatureExtractor,
        backend: str = "torch",
    ) -> None:
        self.embed: Callable[[Sequence[Any]], NDArray[np.float32]] = partial(embed_waveforms, model, extractor)
        self.dim = model.embedding_dim
        kind = next(model.parameters()).device.type  # rounding differs between devices, and between backends
        if backend == "onnx":
            from laennec.inference.backends import encoder_session

            self.embed, kind = encoder_session(model, extractor).embed, backend
        identity = [_VERSION, kind, extractor.fingerprint(), encoder_identity(model.encoder), model.config.pooling]
        self.folder = folder / "embeddings" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        self._rows: dict[bytes, NDArray[np.float32]] = {}
        self._seen: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read shards that any process has written since the last call."""
        for shard in sorted(self.folder.glob("*.safetensors")):
            # a shard is named by its content and written at once, so it is read once
            if shard.name in self._seen or (content := read_entry(shard)) is None:
                continue
            self._seen.add(shard.name)
            tensors = load(content)
            # an embedding that is already here is equal
            for key, value in zip(tensors["keys"], tensors["embeddings"], strict=True):
                self._rows.setdefault(key.tobytes(), value)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> NDArray[np.float32]:
        return self._rows[key]

    def place(self, keys: Sequence[bytes]) -> Path:
        """The file of the shard that holds these keys."""
        return self.folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.safetensors"

    def add(self, keys: Sequence[bytes], embeddings: NDArray[np.float32], keep: bool = True) -> None:
        """Store embeddings (cycles, dim) under their keys, also on disk if `keep`."""
        if not np.isfinite(embeddings).all():
            raise InputError("the encoder's embedding of a cycle is not a number; check its weights and features")
        if keep:
            table = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
            write_entry(self.place(keys), save({"keys": table, "embeddings": np.ascontiguousarray(embeddings)}))
        self._rows.update(zip(keys, embeddings, strict=True))


def embedding_cache(
    recipe: Recipe, model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor
) -> EmbeddingCache:
    """The cache of embeddings, made by the backend of the recipe's frozen encoder."""
    backend = recipe.encoder.backend if recipe.encoder.frozen else "torch"
    return EmbeddingCache(cache_root(), model, extractor, backend)


def cycle_keys(table: Any, waveform_settings: str, draw: str = "", neighbours: Neighbours | None = None) -> list[bytes]:
    """The content key of each cycle: audio bytes, span, rate and filter, and the draw of an augmented copy.

    With context, the spans of the context cycles too (and their ids, for a draw), so that a cycle with context, even an
    empty one, never has the key of a cycle without.
    """
    columns = (column_of(table, name) for name in ("audio_sha256", "start_s", "end_s", "cycle_id"))
    keys = []
    for row, (sha, start, end, cycle_id) in enumerate(zip(*columns, strict=True)):
        made_of = [sha, repr(start), repr(end), waveform_settings, draw and [draw, cycle_id]]
        if neighbours is not None:
            sides = neighbours.named(row)
            made_of.append([[[repr(s), repr(e), draw and name] for s, e, name in side] for side in sides])
        keys.append(hashlib.sha256(json.dumps(made_of).encode()).digest())
    return keys


def shards_of(samples: Sequence[int], rows: Sequence[int]) -> list[list[int]]:
    """Rows in shards of similar length, the longest first: at most 512 cycles, and 16 shards if there are enough."""
    most = sum(samples[row] for row in rows) / _SHARDS
    shards: list[list[int]] = []
    held = 0
    for row in sorted(rows, key=lambda r: (-samples[r], r)):
        full = shards and (len(shards[-1]) >= _MOST_CYCLES or (held >= most and len(shards[-1]) >= _LEAST_CYCLES))
        if not shards or full:
            shards.append([])
            held = 0
        shards[-1].append(row)
        held += samples[row]
    return shards


def embed_cycles(
    dataset: CycleDataset, keys: Sequence[bytes], cache: EmbeddingCache, epoch: int | None = None
) -> NDArray[np.float32]:
    """Embeddings of a dataset's cycles; processes share the work for those that are not cached.

    Returns:
        float32 (cycles, dim).
    """
    if not len(dataset):
        return np.empty((0, cache.dim), np.float32)
    first: dict[bytes, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)

    def make(shard: list[int], keep: bool = True) -> None:
        cache.refresh()  # another process may have made some of them
        if missing := [row for row in shard if keys[row] not in cache]:
            waveforms = [dataset.sound(row if epoch is None else (row, epoch)) for row in missing]
            made = dict(zip(missing, cache.embed(waveforms), strict=True))
            values = np.stack([made[row] if row in made else cache[keys[row]] for row in shard])
            cache.add([keys[row] for row in shard], values, keep)

    shards = shards_of([dataset.samples(row) for row in range(len(dataset))], list(first.values()))
    _make_shards(shards, keys, cache, make)
    return np.stack([cache[key] for key in keys])


def _make_shards(
    shards: list[list[int]], keys: Sequence[bytes], cache: EmbeddingCache, make: Callable[..., None]
) -> None:
    """Embed missing shards; those that another process is embedding come last."""
    waiting, slowest = [], 0.0
    for shard in track(shards, "embedding"):
        place = cache.place([keys[row] for row in shard])
        if all(keys[row] in cache for row in shard):
            remove_stale_lock(place)
            continue
        start = time.monotonic()
        with try_lock(place) as ours:
            if ours:
                make(shard)
                slowest = max(slowest, time.monotonic() - start)
        if not ours:
            waiting.append((shard, place))
    for shard, place in waiting:
        patience = max(_PATIENCE_S, 10 * slowest)
        with try_lock(place, patience) as ours:  # once the other process finished or died
            if not ours:
                _log.warning("another process has held a shard for %.0f s; embedding its cycles here too", patience)
            make(shard, keep=ours)
