"""A cycle made faster, slower, higher or lower.

Decisions: pieces of the cycle are moved, not rebuilt (WSOLA): a phase vocoder would smear each crackle over its
window and lower the level of breath noise by some 3 dB, and either tells a classifier which cycles were stretched.
"""

import numpy as np
import numpy.typing as npt
import soxr

Waveform = npt.NDArray[np.float32]

HALF_PIECE_S = 0.02  # a piece spans four periods of the lowest wheezes (100 Hz)


def stretch_time(waveform: Waveform, sampling_rate: int, rate: float) -> Waveform:
    """Change a cycle's speed and keep its pitch, by overlapping pieces of the cycle itself (WSOLA).

    Each 40 ms piece is taken near its place in the cycle, shifted by up to 10 ms to where it continues the piece before
    it best. Crackles keep their shape, which a phase vocoder would smear over its window; the level is kept too.

    Args:
        waveform: float32 (samples,).
        sampling_rate: in Hz.
        rate: above 1 is faster and shorter.

    Returns:
        float32 (round(samples / rate),), at least one sample of a cycle that has any.
    """
    samples = max(round(len(waveform) / rate), min(1, len(waveform)))
    if rate == 1 or not waveform.any():
        return np.resize(waveform, samples).astype(np.float32)
    hop = max(4, round(HALF_PIECE_S * sampling_rate))
    reach = hop // 2
    fade = np.hanning(2 * hop + 1)[:-1].astype(np.float32)  # two of them, a hop apart, add up to 1
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
    power = float(np.mean(np.square(stretched, dtype=np.float64))) if samples else 0.0
    if power == 0:
        return stretched
    # crossing two unlike pieces of noise loses up to 3 dB, and loudness must not tell what was stretched; no more than
    # that is made up for, or the background would rise to the level of a click that was skipped
    return stretched * np.float32(np.clip(np.sqrt(energy[-1] / len(waveform) / power), 0.5**0.5, 2**0.5))


def _best_shift(padded: Waveform, energy: npt.NDArray[np.float64], place: int, wanted: Waveform, reach: int) -> int:
    """The shift within the reach at which the cycle is most like the wanted continuation (cosine); 0 in silence."""
    size = len(wanted)
    starts = slice(place - reach, place + reach + 1)
    ends = slice(starts.start + size, starts.stop + size)
    product = np.correlate(padded[starts.start : starts.stop + size - 1], wanted, mode="valid")
    norm = np.sqrt(np.maximum(energy[ends] - energy[starts], 1e-20))
    likeness = product / norm
    best = int(np.argmax(likeness))
    return best - reach if likeness[best] > 0 else 0


def shift_pitch(waveform: Waveform, sampling_rate: int, semitones: float) -> Waveform:
    """Change a cycle's pitch and keep its length: stretch it, then resample it back.

    Args:
        waveform: float32 (samples,).
        sampling_rate: in Hz.
        semitones: above 0 is higher.

    Returns:
        float32 (samples,).
    """
    factor = 2 ** (semitones / 12)
    if factor == 1 or not waveform.any():
        return waveform.copy()
    stretched = stretch_time(waveform, sampling_rate, 1 / factor)
    shifted = soxr.resample(stretched, factor * sampling_rate, sampling_rate, quality="HQ")
    # the resampler may be off by a sample
    return np.pad(shifted, (0, max(0, len(waveform) - len(shifted))))[: len(waveform)].astype(np.float32)
