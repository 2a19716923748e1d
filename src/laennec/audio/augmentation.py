"""Augmentation of cycles (waveforms) and of their features (SpecAugment).

Decisions: each draw depends only on (seed, epoch, cycle index), and each augmentation has its own random stream. So
switching one on does not change the draws of the others, and a resumed run equals an uninterrupted one for any number
of workers. Waveforms are augmented on the CPU, even with a GPU. Time stretching overlaps pieces of the cycle (WSOLA). A
phase vocoder smears crackles over its window and lowers breath noise by about 3 dB; a classifier could detect stretched
cycles by either.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor

from laennec.errors import InputError
from laennec.memory import ran_out

Waveform = npt.NDArray[np.float32]
Ints = Sequence[int] | Tensor
Transform = Callable[[Waveform, int, np.random.Generator], Waveform]

# one stream of random numbers for each use; published results depend on these numbers, so they must not change
STREAMS = {
    "noise": 1,
    "shift": 2,
    "stretch": 3,
    "pitch": 4,
    "gain": 5,
    "noise samples": 6,
    "spectrum": 7,
    "concatenation": 8,
    "order": 9,
    "positive pairs": 10,
    "mixing": 11,
    "negatives": 12,
    "crops": 21,
    "transforms": 22,
    "response": 23,
    "crop": 24,
}
WAVEFORM_PARTS = ("stretch", "pitch", "shift", "response", "noise", "gain", "crop")  # in the order of application
_SAMPLES = {"response": 1, "crop": 2}  # generator number in the stream "noise samples"; 0 for noise
_LOWEST_HZ, _OCTAVES = 31.25, 10  # of a frequency response, which ends at 16 kHz
_HALF_PIECE_S = 0.02  # of WSOLA: a piece spans four periods of the lowest wheezes (100 Hz)


def counter_generator(seed: int, epoch: int, index: int, stream: str, number: int = 0) -> np.random.Generator:
    """Make a generator that depends on its arguments alone.

    Args:
        seed: Of the run.
        epoch: Counted from 0.
        index: Of the cycle (or batch) that the draw is for.
        stream: What is drawn, one of `STREAMS`.
        number: Distinguishes several generators of one stream.
    """
    # uint64 arrays: numpy turns a list with 2^63 or more into float64, where different seeds can be equal
    key = np.array([seed % 2**64, STREAMS[stream]], np.uint64)
    # the lowest counter word stays 0: drawing advances it
    counter = np.array([0, epoch, index, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True)
class _Part:
    """An augmentation of a random share of cycles, by a value drawn uniformly between two bounds."""

    probability: float = 0.5
    _limits: ClassVar[tuple[float, float]] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        low, high = self._bounds
        least, most = self._limits
        if not (0 <= self.probability <= 1 and least <= low <= high <= most):
            raise ValueError(
                f"{self}: probability must lie in [0, 1], and the bounds {low} and {high} must rise within "
                f"[{least}, {most}]"
            )

    @property
    def _bounds(self) -> tuple[float, float]:
        """The bounds of the drawn value: (minimum, maximum), or (-maximum, maximum) for a single field."""
        _, *own = (getattr(self, field.name) for field in fields(self))
        return (own[0], own[1]) if len(own) == 2 else (-own[0], own[0])

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        """Apply the drawn value to a waveform (samples,); `samples` generates any further random numbers."""
        raise NotImplementedError


@dataclass(frozen=True)
class WhiteNoise(_Part):
    """Add Gaussian white noise at a signal-to-noise ratio in decibels. A silent cycle stays silent."""

    min_snr_db: float = 10.0
    max_snr_db: float = 40.0

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        noise = samples.standard_normal(len(waveform), dtype=np.float32)
        return waveform + noise * np.float32(np.sqrt(_power(waveform)) * 10 ** (-value / 20))


@dataclass(frozen=True)
class TimeShift(_Part):
    """Shift a cycle circularly by up to a fraction of its length, either way."""

    max_shift_fraction: float = 0.5
    _limits = (-1.0, 1.0)

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        return np.roll(waveform, round(value * len(waveform)))


@dataclass(frozen=True)
class TimeStretch(_Part):
    """Make a cycle faster (rate above 1) or slower without a change of pitch; at least half speed."""

    min_rate: float = 0.9
    max_rate: float = 1.1
    _limits = (0.5, math.inf)

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        return stretch_time(waveform, sampling_rate, value)


@dataclass(frozen=True)
class PitchShift(_Part):
    """Make a cycle higher or lower by up to some semitones without a change of duration."""

    max_semitones: float = 2.0
    _limits = (-12.0, 12.0)

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        return shift_pitch(waveform, sampling_rate, value)


@dataclass(frozen=True)
class Gain(_Part):
    """Make a cycle louder or softer, uniformly in decibels."""

    min_gain_db: float = -6.0
    max_gain_db: float = 6.0

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        return waveform * np.float32(10 ** (value / 20))


@dataclass(frozen=True)
class FrequencyResponse(_Part):
    """Filter a cycle by a random smooth frequency response, as if another stethoscope had recorded it.

    First a largest change is drawn, up to `max_change_db` decibels, then the gain of each octave from 31.25 Hz to 16
    kHz within it. Between octaves the gain is linear in decibels over log frequency. Phases do not change.
    """

    max_change_db: float = 12.0
    _limits = (0.0, 60.0)

    @property
    def _bounds(self) -> tuple[float, float]:
        return 0.0, self.max_change_db

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        if not len(waveform):
            return waveform
        hertz = np.fft.rfftfreq(len(waveform), 1 / sampling_rate)
        octave = np.log2(np.maximum(hertz, _LOWEST_HZ) / _LOWEST_HZ)
        gain_db = np.interp(octave, np.arange(_OCTAVES), samples.uniform(-value, value, _OCTAVES))
        filtered = np.fft.irfft(np.fft.rfft(waveform) * 10 ** (gain_db / 20), len(waveform))
        return filtered.astype(np.float32)


@dataclass(frozen=True)
class RandomCrop(_Part):
    """Keep a random part of a cycle, from `min_duration_s` to all of it, uniformly; a shorter cycle stays whole.

    The length of a cycle is then less informative about its label.
    """

    min_duration_s: float = 0.4
    _limits = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 < self.min_duration_s < math.inf:
            raise ValueError(f"{self}: min_duration_s must be above 0")
        super().__post_init__()

    @property
    def _bounds(self) -> tuple[float, float]:
        return 0.0, 1.0  # share of the duration above min_duration_s that is kept

    def _apply(self, waveform: Waveform, sampling_rate: int, value: float, samples: np.random.Generator) -> Waveform:
        least = min(round(self.min_duration_s * sampling_rate), len(waveform))
        size = least + round(value * (len(waveform) - least))
        start = int(samples.integers(len(waveform) - size + 1))
        return waveform[start : start + size]


@dataclass(frozen=True)
class WaveformAugmentation:
    """White noise, time shift and stretch, pitch shift, gain, frequency response, crop and transforms of your own.

    Each is optional, for example `WaveformAugmentation(noise=WhiteNoise(0.5, 10, 30), shift=TimeShift(1.0))`. Applied
    in the order stretch, pitch, shift, response, noise, gain, crop, transforms.

    Args:
        noise: White noise; None for never, like the six below.
        shift: Circular shift.
        stretch: Time stretch.
        pitch: Pitch shift.
        gain: Gain.
        response: Random frequency response, like the differences between stethoscopes.
        crop: Random crop.
        transforms: Callables `(waveform, sampling_rate, generator) -> waveform` on float32 (samples,). All of their
            randomness must come from the generator, which depends on (seed, epoch, cycle) and their position alone.
    """

    noise: WhiteNoise | None = None
    shift: TimeShift | None = None
    stretch: TimeStretch | None = None
    pitch: PitchShift | None = None
    gain: Gain | None = None
    response: FrequencyResponse | None = None
    crop: RandomCrop | None = None
    transforms: tuple[Transform, ...] = ()

    def __call__(self, waveform: Waveform, sampling_rate: int, *, seed: int, epoch: int, cycle_index: int) -> Waveform:
        """Augment a cycle in an epoch: float32 (samples,) -> a new array (samples',).

        The built-in augmentations keep values finite and at most double the length. The waveform, and what a transform
        returns, must have one dimension.
        """
        changed = np.array(waveform, dtype=np.float32)
        if changed.ndim != 1:
            raise ValueError(f"a cycle is one-dimensional (samples,), not {changed.shape}; mix channels down first")
        for name, value in self.draw(seed=seed, epoch=epoch, cycle_index=cycle_index).items():
            samples = counter_generator(seed, epoch, cycle_index, "noise samples", _SAMPLES.get(name, 0))
            changed = getattr(self, name)._apply(changed, sampling_rate, value, samples)
        for number, transform in enumerate(self.transforms):
            generator = counter_generator(seed, epoch, cycle_index, "transforms", number)
            name = getattr(transform, "__name__", type(transform).__name__)
            try:
                changed = np.asarray(transform(changed, sampling_rate, generator), dtype=np.float32)
            except Exception as error:
                if isinstance(error, InputError) or ran_out(error):
                    raise
                said = " ".join(f"{type(error).__name__}: {error}".split())
                raise InputError(f"the transform {name}: {said}; correct its __call__") from error
            if changed.ndim != 1:
                raise InputError(f"the transform {name} must return one dimension (samples,), not {changed.shape}")
        return changed

    def draw(self, *, seed: int, epoch: int, cycle_index: int) -> dict[str, float]:
        """The augmentations drawn for one cycle in one epoch: name -> value, in the order of application."""
        drawn = {}
        for name in WAVEFORM_PARTS:
            part: _Part | None = getattr(self, name)
            if part is not None:
                chance, place = counter_generator(seed, epoch, cycle_index, name).random(2)
                low, high = part._bounds
                if chance < part.probability:
                    drawn[name] = float(low + (high - low) * place)
        return drawn


def _power(waveform: Waveform) -> float:
    return float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0


def stretch_time(waveform: Waveform, sampling_rate: int, rate: float) -> Waveform:
    """Change a cycle's speed (a rate above 1 is faster) and keep its pitch, by overlapping pieces of it (WSOLA).

    Each 40 ms piece is taken near its place in the cycle, shifted by up to 10 ms to where it best continues the piece
    before it. float32 (samples,) -> (round(samples / rate),), at least one sample unless the cycle is empty.
    """
    samples = max(round(len(waveform) / rate), min(1, len(waveform)))
    if rate == 1 or not waveform.any():
        return np.resize(waveform, samples).astype(np.float32)
    hop = max(4, round(_HALF_PIECE_S * sampling_rate))
    reach = hop // 2
    fade = np.hanning(2 * hop + 1)[:-1].astype(np.float32)  # two windows one hop apart add up to 1
    pieces = samples // hop + 2
    margin = 3 * hop + reach
    padded = np.pad(waveform, (margin, margin + hop))
    energy = np.concatenate([[0.0], np.cumsum(np.square(padded, dtype=np.float64))])
    stretched = np.zeros((pieces + 1) * hop, dtype=np.float32)
    start = 0
    for piece in range(pieces):
        place = margin - hop + min(round(piece * hop * rate), len(waveform) + hop)
        if piece:
            wanted = padded[start + hop : start + 3 * hop]
            start = place + _best_shift(padded, energy, place, wanted, reach)
        else:
            start = place
        stretched[piece * hop : (piece + 2) * hop] += padded[start : start + 2 * hop] * fade
    stretched = stretched[hop : hop + samples]
    power = _power(stretched)
    if power == 0:
        return stretched
    # cross-fading two different pieces of noise loses up to 3 dB, and loudness must not reveal a stretched cycle. The
    # gain is limited to 3 dB, or skipping a loud click would amplify the background
    return stretched * np.float32(np.clip(np.sqrt(energy[-1] / len(waveform) / power), 0.5**0.5, 2**0.5))


def _best_shift(padded: Waveform, energy: npt.NDArray[np.float64], place: int, wanted: Waveform, reach: int) -> int:
    """The shift within the reach at which the cycle is most similar (cosine) to the wanted sound; 0 in silence."""
    size = len(wanted)
    starts = slice(place - reach, place + reach + 1)
    ends = slice(starts.start + size, starts.stop + size)
    product = np.correlate(padded[starts.start : starts.stop + size - 1], wanted, mode="valid")
    similarity = product / np.sqrt(np.maximum(energy[ends] - energy[starts], 1e-20))
    best = int(np.argmax(similarity))
    return best - reach if similarity[best] > 0 else 0


def shift_pitch(waveform: Waveform, sampling_rate: int, semitones: float) -> Waveform:
    """Change the pitch of float32 (samples,) by semitones and keep its length: stretch it, then resample it back."""
    factor = 2 ** (semitones / 12)
    if factor == 1 or not waveform.any():
        return waveform.copy()
    stretched = stretch_time(waveform, sampling_rate, 1 / factor)
    shifted = soxr.resample(stretched, factor * sampling_rate, sampling_rate, quality="HQ")
    # the resampler may be off by a sample
    return np.pad(shifted, (0, max(0, len(waveform) - len(shifted))))[: len(waveform)].astype(np.float32)


@dataclass(frozen=True)
class SpecAugment:
    """Mask bands of mel bins and spans of time in a batch of features.

    Widths are drawn uniformly from 0 to the maximum, starts uniformly over what is left. Masks lie within the true
    frames of each cycle, and depend on (seed, epoch, cycle index) alone, never on the rest of the batch.

    Args:
        max_freq_width: Of a frequency mask, in mel bins.
        max_time_width: Of a time mask, in frames.
        freq_masks: Number of frequency masks.
        time_masks: Number of time masks.
        probability: Share of cycles that are masked.

    Reference: Park et al., SpecAugment, Interspeech 2019.
    """

    max_freq_width: int = 24
    max_time_width: int = 48
    freq_masks: int = 2
    time_masks: int = 2
    probability: float = 1.0

    def __post_init__(self) -> None:
        counts = (self.max_freq_width, self.max_time_width, self.freq_masks, self.time_masks)
        if min(counts) < 0 or not 0 <= self.probability <= 1:
            raise ValueError(f"SpecAugment: widths and counts must not be negative, probability within [0, 1]: {self}")

    def __call__(
        self, features: Tensor, attention_mask: Tensor | None, *, seed: int, epochs: Ints, cycle_indices: Ints
    ) -> Tensor:
        """Mask a batch; masked entries become 0, the mean of normalised features.

        Args:
            features: (batch, frames, mels).
            attention_mask: (batch, frames), 1 on true frames; None where all are.
            seed: Of the run.
            epochs: (batch,) integers, the epoch that each row is drawn in.
            cycle_indices: (batch,) integers.

        Returns:
            (batch, frames, mels), a new tensor of the same dtype on the same device.
        """
        batch, frames, mels = features.shape
        drawn = torch.from_numpy(self._draw(batch, seed, epochs, cycle_indices))
        drawn = drawn.to(features.device)  # (batch, masks, 2)
        true = torch.ones(batch, frames, device=features.device) if attention_mask is None else attention_mask
        true = true.to(torch.int64)
        position = true.cumsum(dim=1) - 1  # counts true frames only, wherever the padding lies
        bins = torch.arange(mels, device=features.device).expand(batch, mels)
        bands = _covered(drawn[:, : self.freq_masks], bins, bins.new_full((batch,), mels), self.max_freq_width)
        spans = _covered(drawn[:, self.freq_masks :], position, true.sum(dim=1), self.max_time_width)
        hidden = (bands[:, None, :] | spans[:, :, None]) & true.bool()[:, :, None]
        return features.masked_fill(hidden, 0.0)

    def _draw(self, batch: int, seed: int, epochs: Ints, indices: Ints) -> npt.NDArray[np.float32]:
        """Numbers in [0, 1) for width and start of each mask, (batch, masks, 2); -1 where a cycle is not masked."""
        if not len(epochs) == len(indices) == batch:
            raise ValueError(
                f"{batch} rows need as many epochs and cycle indices, not {len(epochs)} and {len(indices)}"
            )
        drawn = np.full((batch, self.freq_masks + self.time_masks, 2), -1.0, np.float32)
        for row, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
            generator = counter_generator(seed, int(epoch), int(index), "spectrum")
            if generator.random() < self.probability:
                generator.random(dtype=np.float32, out=drawn[row])
        return drawn


def _covered(drawn: Tensor, position: Tensor, length: Tensor, max_width: int) -> Tensor:
    """Which positions (batch, n) the masks drawn (batch, masks, 2) cover in rows of the given lengths (batch,)."""
    longest = length.clamp_max(max_width)[:, None]  # (batch, 1)
    width = torch.minimum((drawn[..., 0] * (longest + 1)).floor(), longest)  # float32 may round up to the bound
    room = length[:, None] - width
    start = torch.minimum((drawn[..., 1] * (room + 1)).floor(), room)
    width = torch.where(drawn[..., 0] < 0, 0, width)
    after = position[:, None, :] >= start[..., None]
    return (after & (position[:, None, :] < (start + width)[..., None])).any(dim=1)


def cycle_to_concatenate(
    seed: int, epoch: int, cycle_index: int, candidates: npt.NDArray[np.integer[Any]], probability: float
) -> int | None:
    """Choose the cycle to append to this one out of the candidates, or None; for the training split only."""
    chance, place = counter_generator(seed, epoch, cycle_index, "concatenation").random(2)
    others = candidates[candidates != cycle_index]
    if chance >= probability or not len(others):
        return None
    return int(others[int(place * len(others))])
