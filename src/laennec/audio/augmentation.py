"""Augmentation of cycles and of their features.

Decisions: every draw is a pure function of (seed, epoch, cycle index), through a counter-based generator with a
stream of its own for each part, so that switching one part on leaves the others' draws alone and a resumed run equals
an uninterrupted one at any number of workers. Parameters are drawn in one place and applied in another. Nothing here
sees the test part: whoever calls it decides when.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laennec.audio.counters import uniforms, uniforms_32, words
from laennec.audio.stretch import Waveform, shift_pitch, stretch_time

# one stream of random numbers for each use; the numbers are part of every published result and must not change
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
    "partners": 10,
    "mixing": 11,
    "negatives": 12,
    "crops": 21,
}


def counter_generator(seed: int, epoch: int, index: int, stream: str) -> np.random.Generator:
    """A generator that depends on its arguments alone.

    Args:
        seed: of the run.
        epoch: counted from 0.
        index: of the cycle (or batch) the draw is for.
        stream: what is drawn, one of `STREAMS`.

    Returns:
        A Philox generator; equal arguments give equal draws, others independent ones.
    """
    # as arrays: of a list that holds 2^63 or more numpy makes float64, and seeds that differ would draw alike
    key = np.array([seed % 2**64, STREAMS[stream]], np.uint64)
    # the lowest counter word stays free: it is the one that drawing advances
    counter = np.array([0, epoch, index, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True)
class _Part:
    """A part of the augmentation that happens to a share of the cycles."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"{type(self).__name__}: probability must lie in [0, 1], not {self.probability}")

    def _check_order(self, low: str, high: str) -> None:
        if not getattr(self, low) <= getattr(self, high):
            raise ValueError(f"{type(self).__name__}: {low} {getattr(self, low)} exceeds {high} {getattr(self, high)}")


@dataclass(frozen=True)
class WhiteNoise(_Part):
    """Gaussian white noise at a signal-to-noise ratio drawn uniformly in decibels."""

    min_snr_db: float = 10.0
    max_snr_db: float = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_order("min_snr_db", "max_snr_db")

    @property
    def range(self) -> tuple[float, float]:
        """Bounds of the draw."""
        return self.min_snr_db, self.max_snr_db


@dataclass(frozen=True)
class TimeShift(_Part):
    """Circular shift by up to a fraction of the cycle, either way."""

    max_shift_fraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_shift_fraction <= 1:
            raise ValueError(f"TimeShift: max_shift_fraction must lie in [0, 1], not {self.max_shift_fraction}")

    @property
    def range(self) -> tuple[float, float]:
        """Bounds of the draw."""
        return -self.max_shift_fraction, self.max_shift_fraction


@dataclass(frozen=True)
class TimeStretch(_Part):
    """Faster (rate above 1) or slower without a change of pitch; no slower than half speed."""

    min_rate: float = 0.9
    max_rate: float = 1.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_order("min_rate", "max_rate")
        if self.min_rate < 0.5:
            raise ValueError(f"TimeStretch: min_rate must be at least 0.5, not {self.min_rate}")

    @property
    def range(self) -> tuple[float, float]:
        """Bounds of the draw."""
        return self.min_rate, self.max_rate


@dataclass(frozen=True)
class PitchShift(_Part):
    """Higher or lower by up to some semitones without a change of duration."""

    max_semitones: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.max_semitones <= 12:
            raise ValueError(f"PitchShift: max_semitones must lie in [0, 12], not {self.max_semitones}")

    @property
    def range(self) -> tuple[float, float]:
        """Bounds of the draw."""
        return -self.max_semitones, self.max_semitones


@dataclass(frozen=True)
class Gain(_Part):
    """Louder or softer, uniformly in decibels."""

    min_gain_db: float = -6.0
    max_gain_db: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_order("min_gain_db", "max_gain_db")

    @property
    def range(self) -> tuple[float, float]:
        """Bounds of the draw."""
        return self.min_gain_db, self.max_gain_db


@dataclass(frozen=True)
class WaveformDraw:
    """What was drawn for one cycle; None where a part leaves it alone."""

    seed: int
    epoch: int
    cycle_index: int
    snr_db: float | None = None
    shift_fraction: float | None = None
    rate: float | None = None
    semitones: float | None = None
    gain_db: float | None = None


@dataclass(frozen=True)
class WaveformAugmentation:
    """White noise, time shift, time stretch, pitch shift and gain, each optional (None: never).

    For example `WaveformAugmentation(noise=WhiteNoise(0.5, 10, 30), shift=TimeShift(1.0))`. Applied in the order
    stretch, pitch, shift, noise, gain.
    """

    noise: WhiteNoise | None = None
    shift: TimeShift | None = None
    stretch: TimeStretch | None = None
    pitch: PitchShift | None = None
    gain: Gain | None = None

    def __call__(self, waveform: Waveform, sampling_rate: int, *, seed: int, epoch: int, cycle_index: int) -> Waveform:
        """Draw for this cycle and epoch, and apply.

        Args:
            waveform: float32 (samples,).
            sampling_rate: in Hz.
            seed: of the run.
            epoch: counted from 0.
            cycle_index: row of the cycle in its table.

        Returns:
            float32 (samples',), finite for finite input, at most twice as long; the input itself is never changed.

        Raises:
            ValueError: if the waveform is not one-dimensional.
        """
        return self.apply(waveform, sampling_rate, self.draw(seed=seed, epoch=epoch, cycle_index=cycle_index))

    def draw(self, *, seed: int, epoch: int, cycle_index: int) -> WaveformDraw:
        """The parameters for one cycle in one epoch."""
        drawn: dict[str, float | None] = {}
        for part in fields(self):
            settings = getattr(self, part.name)
            generator = counter_generator(seed, epoch, cycle_index, part.name)
            chance, where = generator.random(2)
            if settings is not None and chance < settings.probability:
                low, high = settings.range
                drawn[_DRAWN_AS[part.name]] = float(low + (high - low) * where)
        return WaveformDraw(seed, epoch, cycle_index, **drawn)

    def describe(self, *, seed: int, epoch: int, cycle_index: int) -> dict[str, float | None]:
        """The same as plain numbers, for a log."""
        return asdict(self.draw(seed=seed, epoch=epoch, cycle_index=cycle_index))

    @staticmethod
    def apply(waveform: Waveform, sampling_rate: int, drawn: WaveformDraw) -> Waveform:
        """Apply drawn parameters; see `__call__`."""
        changed = np.array(waveform, dtype=np.float32)
        if changed.ndim != 1:
            raise ValueError(f"a cycle is one-dimensional (samples,), not {changed.shape}; mix channels down first")
        if drawn.rate is not None:
            changed = stretch_time(changed, sampling_rate, drawn.rate)
        if drawn.semitones is not None:
            changed = shift_pitch(changed, sampling_rate, drawn.semitones)
        if drawn.shift_fraction is not None:
            changed = np.roll(changed, round(drawn.shift_fraction * len(changed)))
        if drawn.snr_db is not None:
            generator = counter_generator(drawn.seed, drawn.epoch, drawn.cycle_index, "noise samples")
            changed = _add_noise(changed, drawn.snr_db, generator)
        if drawn.gain_db is not None:
            changed = changed * np.float32(10 ** (drawn.gain_db / 20))
        return changed


_DRAWN_AS = {"noise": "snr_db", "shift": "shift_fraction", "stretch": "rate", "pitch": "semitones", "gain": "gain_db"}


def _add_noise(waveform: Waveform, snr_db: float, generator: np.random.Generator) -> Waveform:
    """Noise relative to the cycle's own power: a silent cycle stays silent."""
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    noise = generator.standard_normal(len(waveform), dtype=np.float32)
    return waveform + noise * np.float32(np.sqrt(power) * 10 ** (-snr_db / 20))


@dataclass(frozen=True)
class SpecAugment:
    """Mask bands of mel bins and stretches of time in a batch of features.

    Widths are drawn uniformly from 0 to the maximum, starts uniformly over what is left; masks lie within the true
    frames of each cycle, and depend on (seed, epoch, cycle index) alone, never on the rest of the batch.

    Args:
        max_freq_width: of a frequency mask, in mel bins.
        max_time_width: of a time mask, in frames.
        freq_masks: number of frequency masks.
        time_masks: number of time masks.
        probability: share of cycles that are masked at all.

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
        self, features: Tensor, attention_mask: Tensor | None, *, seed: int, epochs: Any, cycle_indices: Any
    ) -> Tensor:
        """Mask a batch; masked entries become 0, the mean of normalised features.

        Args:
            features: (batch, frames, mels).
            attention_mask: (batch, frames), 1 on true frames; None where all are.
            seed: of the run.
            epochs: (batch,) integers, the epoch each row was drawn in.
            cycle_indices: (batch,) integers.

        Returns:
            (batch, frames, mels), a new tensor of the same dtype on the same device.

        Raises:
            ValueError: if there is not one epoch and one index for each row.
        """
        batch, frames, mels = features.shape
        drawn = torch.from_numpy(self._draw(batch, seed, _integers(epochs), _integers(cycle_indices)))
        drawn = drawn.to(features.device)  # (batch, masks, 2)
        true = torch.ones(batch, frames, device=features.device) if attention_mask is None else attention_mask
        true = true.to(torch.int64)
        position = true.cumsum(dim=1) - 1  # counts true frames only, wherever the padding lies
        bins = torch.arange(mels, device=features.device).expand(batch, mels)
        bands = _covered(drawn[:, : self.freq_masks], bins, bins.new_full((batch,), mels), self.max_freq_width)
        spans = _covered(drawn[:, self.freq_masks :], position, true.sum(dim=1), self.max_time_width)
        hidden = (bands[:, None, :] | spans[:, :, None]) & true.bool()[:, :, None]
        return features.masked_fill(hidden, 0.0)

    def _draw(self, batch: int, seed: int, epochs: list[int], indices: list[int]) -> npt.NDArray[np.float32]:
        """Numbers in [0, 1) for width and start of each mask, (batch, masks, 2); -1 where a cycle is left alone."""
        if not len(epochs) == len(indices) == batch:
            raise ValueError(
                f"{batch} rows need as many epochs and cycle indices, not {len(epochs)} and {len(indices)}"
            )
        masks = self.freq_masks + self.time_masks
        # as a generator of each row would: whether, then width and start of each mask
        numbers = words(seed % 2**64, STREAMS["spectrum"], epochs, indices, 1 + masks)
        drawn = uniforms_32(numbers[:, 1:]).reshape(batch, masks, 2)
        drawn[uniforms(numbers[:, 0]) >= self.probability] = -1.0
        return drawn


def _integers(values: Any) -> list[int]:
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _covered(drawn: Tensor, position: Tensor, length: Tensor, max_width: int) -> Tensor:
    """Which positions (batch, n) the masks drawn (batch, masks, 2) cover in rows of the given lengths (batch,)."""
    longest = length.clamp_max(max_width)[:, None]  # (batch, 1)
    width = torch.minimum((drawn[..., 0] * (longest + 1)).floor(), longest)  # float32 may round up to the bound
    room = length[:, None] - width
    start = torch.minimum((drawn[..., 1] * (room + 1)).floor(), room)
    width = torch.where(drawn[..., 0] < 0, 0, width)
    after = position[:, None, :] >= start[..., None]
    return (after & (position[:, None, :] < (start + width)[..., None])).any(dim=1)


def concatenation_partner(
    seed: int, epoch: int, cycle_index: int, candidates: npt.NDArray[np.integer[Any]], probability: float
) -> int | None:
    """Choose the cycle to join to this one, for concatenation augmentation (training part only).

    Args:
        seed: of the run.
        epoch: counted from 0.
        cycle_index: the cycle at hand; never its own partner.
        candidates: rows that may be joined, all of the training part.
        probability: share of cycles that get a partner.

    Returns:
        A row out of the candidates, or None.
    """
    generator = counter_generator(seed, epoch, cycle_index, "concatenation")
    chance, where = generator.random(2)
    others = candidates[candidates != cycle_index]
    if chance >= probability or not len(others):
        return None
    return int(others[int(where * len(others))])


def concatenate(first: Waveform, second: Waveform) -> Waveform:
    """Join two cycles of one sampling rate, float32 (samples,) each."""
    return np.concatenate([first, second]).astype(np.float32)


def or_labels(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[Any]:
    """Labels of two joined cycles: what either holds. Bits or numbers in [0, 1], for example (crackle, wheeze)."""
    return np.maximum(first, second)
