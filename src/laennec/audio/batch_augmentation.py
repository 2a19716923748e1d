"""The draws of `WaveformAugmentation` for a whole batch, on the device that holds it.

Decisions: which cycle gets what is drawn exactly as one by one, and applied by the same rules, in the same order;
stretched pieces are moved together, step by step, and the Gaussian noise and the resampler of the pitch shift are the
device's own. So a run on a GPU draws the same parameters as one on a CPU, and hears other noise. On a CPU cycles are
augmented one by one, as ever. Lengths stay on the host too, so that no shape waits for the device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laennec.audio.augmentation import STREAMS, WaveformAugmentation
from laennec.audio.counters import normals, uniforms, words
from laennec.audio.stretch import HALF_PIECE_S

_TAPS = 16  # of the resampler, on either side, at its full bandwidth
Column = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
_Change = Callable[[Tensor, Counts, Column], tuple[Tensor, Counts]]


@dataclass(frozen=True)
class Keys:
    """What the draws of each row are functions of, (rows,) each, on the host.

    Attributes:
        seeds: The run's seed, or a view's.
        epochs: Counted from 0.
        indices: Numbers of the cycles.
    """

    seeds: npt.NDArray[np.uint64]
    epochs: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]


def draw(augmentation: WaveformAugmentation, keys: Keys) -> dict[str, Column]:
    """The parameters of each row by part, (rows,); NaN where a part leaves a cycle alone."""
    drawn = {}
    for part in fields(augmentation):
        settings = getattr(augmentation, part.name)
        if settings is None:
            continue
        values = np.full(len(keys.seeds), np.nan)
        for seed in np.unique(keys.seeds):  # one a view
            rows = keys.seeds == seed
            chance, where = uniforms(words(int(seed), STREAMS[part.name], keys.epochs[rows], keys.indices[rows], 2)).T
            low, high = settings.range
            values[rows] = np.where(chance < settings.probability, low + (high - low) * where, np.nan)
        drawn[part.name] = values
    return drawn


@torch.no_grad()
def augment_batch(
    augmentation: WaveformAugmentation, waveforms: Tensor, lengths: Counts, sampling_rate: int, keys: Keys
) -> tuple[Tensor, Tensor]:
    """Augment a padded batch.

    Args:
        augmentation: The parts.
        waveforms: float32 (rows, samples), zeros beyond each row's length, on any device.
        lengths: int64 (rows,), on the host.
        sampling_rate: In Hz.
        keys: Of the draws.

    Returns:
        float32 (rows, samples') with zeros beyond the new lengths, and these, int64 (rows,), on the waveforms' device.
    """
    drawn = draw(augmentation, keys)
    if (rates := drawn.get("stretch")) is not None:
        waveforms, lengths = _in_rows(waveforms, lengths, rates, lambda w, n, r: stretch_rows(w, n, r, sampling_rate))
    if (semitones := drawn.get("pitch")) is not None:
        waveforms, lengths = _in_rows(
            waveforms, lengths, semitones, lambda w, n, s: (shift_pitch_rows(w, n, s, sampling_rate), n)
        )
    counts = _on(waveforms.device, lengths)
    if (fractions := drawn.get("shift")) is not None:
        waveforms = _shifted(waveforms, lengths, fractions)
    if (ratios := drawn.get("noise")) is not None and (rows := np.flatnonzero(~np.isnan(ratios))).size:
        waveforms = _noisy(waveforms, counts, ratios, rows, keys)
    if (gains := drawn.get("gain")) is not None:
        factors = np.where(np.isnan(gains), 1.0, 10 ** (gains / 20)).astype(np.float32)
        waveforms = waveforms * _on(waveforms.device, factors)[:, None]
    return waveforms, counts


def _on(device: torch.device, values: npt.NDArray[Any]) -> Tensor:
    """A small array on a device, without waiting for it."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _in_rows(waveforms: Tensor, lengths: Counts, values: Column, change: _Change) -> tuple[Tensor, Counts]:
    """Change the rows that have a value, and fit the batch to the longest of all."""
    chosen = np.flatnonzero(~np.isnan(values))
    if not chosen.size:
        return waveforms, lengths
    rows = _on(waveforms.device, chosen)
    changed, counts = change(waveforms[rows], lengths[chosen], values[chosen])
    lengths = lengths.copy()
    lengths[chosen] = counts
    longest = int(lengths.max(initial=1))
    return _fitted(waveforms, longest).index_copy(0, rows, _fitted(changed, longest)), lengths


def _fitted(waveforms: Tensor, samples: int) -> Tensor:
    """(rows, samples), zeros behind."""
    return torch.nn.functional.pad(waveforms[:, :samples], (0, max(0, samples - waveforms.shape[1])))


def _beyond(lengths: Tensor, samples: int) -> Tensor:
    return torch.arange(samples, device=lengths.device)[None, :] >= lengths[:, None]


def _shifted(waveforms: Tensor, lengths: Counts, fractions: Column) -> Tensor:
    """Each row rolled within its own length."""
    device, samples = waveforms.device, waveforms.shape[1]
    places = _on(device, np.round(np.nan_to_num(fractions) * lengths).astype(np.int64))[:, None]
    counts = _on(device, lengths)
    source = torch.remainder(torch.arange(samples, device=device)[None, :] - places, counts.clamp_min(1)[:, None])
    return waveforms.gather(1, source).masked_fill(_beyond(counts, samples), 0.0)


def _noisy(waveforms: Tensor, counts: Tensor, ratios: Column, rows: Counts, keys: Keys) -> Tensor:
    """White noise relative to each row's own power."""
    device, samples = waveforms.device, waveforms.shape[1]
    index = _on(device, rows)
    chosen, own = waveforms[index], counts[index]
    power = chosen.square().sum(1, dtype=torch.float64) / own.clamp_min(1)
    scale = _on(device, 10 ** (-ratios[rows] / 20)) * power.sqrt()
    noise = normals(keys.seeds[rows], keys.epochs[rows], keys.indices[rows], samples, device)
    noise = (noise * scale.float()[:, None]).masked_fill(_beyond(own, samples), 0.0)
    return waveforms.index_copy(0, index, chosen + noise)


def stretch_rows(waveforms: Tensor, lengths: Counts, rates: Column, sampling_rate: int) -> tuple[Tensor, Counts]:
    """`laennec.audio.stretch.stretch_time` of many rows, a piece of all of them at a time.

    Args:
        waveforms: float32 (rows, samples), zeros beyond each row's length.
        lengths: int64 (rows,), on the host.
        rates: (rows,), above 1 is faster and shorter.
        sampling_rate: In Hz.

    Returns:
        float32 (rows, samples') and the new lengths, round(length / rate).
    """
    device = waveforms.device
    counts = np.maximum(np.round(lengths / rates).astype(np.int64), np.minimum(1, lengths))
    hop = max(4, round(HALF_PIECE_S * sampling_rate))
    reach = hop // 2
    fade = _on(device, np.hanning(2 * hop + 1)[:-1].astype(np.float32))
    longest = int(counts.max(initial=1))
    pieces = longest // hop + 2
    margin = 3 * hop + reach
    padded = torch.nn.functional.pad(waveforms, (margin, margin + hop))
    energy = torch.nn.functional.pad(padded.double().square().cumsum(1), (1, 0))
    out = waveforms.new_zeros(len(waveforms), (pieces + 1) * hop)
    span = torch.arange(2 * hop, device=device)[None, :]
    near = torch.arange(2 * hop + 2 * reach, device=device)[None, :]
    transform = 1 << (2 * hop + 2 * reach - 1).bit_length()
    # where each piece would come from without a search: (pieces, rows)
    steps = np.round(np.arange(pieces)[:, None] * hop * rates[None, :]).astype(np.int64)
    places = _on(device, margin - hop + np.minimum(steps, lengths[None, :] + hop))
    start = places[0]
    for piece, place in enumerate(places):
        if piece:
            # in float64, or the rounding of the transform would be loudest where a cycle has ended
            wanted = torch.fft.rfft(padded.gather(1, (start + hop)[:, None] + span).double(), transform)
            around = torch.fft.rfft(padded.gather(1, (place - reach)[:, None] + near).double(), transform)
            product = torch.fft.irfft(around * wanted.conj(), transform)[:, : 2 * reach + 1]
            first = (place - reach)[:, None] + near[:, : 2 * reach + 1]
            power = energy.gather(1, first + 2 * hop) - energy.gather(1, first)
            product = product.masked_fill(power <= 1e-20, 0.0)
            likeness, best = (product / power.clamp_min(1e-20).sqrt()).max(1)
            start = place + torch.where(likeness > 0, best - reach, 0)
        out[:, piece * hop : (piece + 2) * hop] += padded.gather(1, start[:, None] + span) * fade
    stretched = out[:, hop : hop + longest].masked_fill(_beyond(_on(device, counts), longest), 0.0)
    return _levelled(stretched, energy[:, -1], lengths, counts), counts


def _levelled(stretched: Tensor, energy: Tensor, lengths: Counts, counts: Counts) -> Tensor:
    """The level of before, up to 3 dB."""
    before, after = (_on(stretched.device, np.maximum(n, 1)) for n in (lengths, counts))
    power = stretched.double().square().sum(1) / after
    factor = (energy / before / power.clamp_min(1e-300)).sqrt().clamp(0.5**0.5, 2**0.5)
    return stretched * torch.where(power > 0, factor, 1.0).float()[:, None]


def shift_pitch_rows(waveforms: Tensor, lengths: Counts, semitones: Column, sampling_rate: int) -> Tensor:
    """`laennec.audio.stretch.shift_pitch` of many rows: (rows, samples) of the same lengths."""
    factors = 2 ** (semitones / 12)
    stretched, counts = stretch_rows(waveforms, lengths, 1 / factors, sampling_rate)
    samples = waveforms.shape[1]
    shifted = _resampled(stretched, counts, factors, samples)
    return shifted.masked_fill(_beyond(_on(waveforms.device, lengths), samples), 0.0)


def _resampled(waveforms: Tensor, lengths: Counts, factors: Column, samples: int) -> Tensor:
    """Each row read at every `factor`-th sample through a windowed sinc: (rows, samples)."""
    device = waveforms.device
    factor, counts = _on(device, factors)[:, None], _on(device, lengths)[:, None]
    cutoff = (0.97 / factor.clamp_min(1.0)).float()  # what is above the new Nyquist frequency would be mirrored
    width = math.ceil(_TAPS * max(1.0, float(factors.max())))
    place = torch.arange(samples, device=device)[None, :] * factor
    whole = place.floor()
    share, whole = (place - whole).float(), whole.long()
    out = waveforms.new_zeros(len(waveforms), samples)
    for tap in range(-width + 1, width + 1):
        source = whole + tap
        inside = (source >= 0) & (source < counts)
        distance = tap - share
        weight = cutoff * torch.sinc(distance * cutoff) * (0.5 + 0.5 * torch.cos(math.pi * distance / (width + 1)))
        out += waveforms.gather(1, source.clamp(0, waveforms.shape[1] - 1)) * weight * inside
    return out
