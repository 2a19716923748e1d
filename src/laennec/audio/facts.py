"""Level and bandwidth of a sound, for the shortcut baselines.

Decisions: level and bandwidth depend on the stethoscope and its settings, and a model could use them instead of the
content of the sound. Both are simple: the root mean square, and the frequency below which 99 % of the energy lies.
"""

import numpy as np
from numpy.typing import NDArray

_FRAME = 2048
_SHARE = 0.99
_SILENCE_DB = -120.0


def level_db(samples: NDArray[np.float32]) -> float:
    """Root mean square in dB of full scale; silence is -120.

    Args:
        samples: A cycle (samples,), full scale 1.
    """
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return max(10 * float(np.log10(power)), _SILENCE_DB) if power > 0 else _SILENCE_DB


def bandwidth_hz(samples: NDArray[np.float32], sampling_rate: int) -> float:
    """Frequency below which 99 % of the energy lies, in steps of a 2,048th of the rate; 0 of silence.

    Args:
        samples: A cycle (samples,).
        sampling_rate: In Hz.
    """
    frames = max(1, -(-len(samples) // _FRAME))
    padded = np.zeros(frames * _FRAME, dtype=np.float32)
    padded[: len(samples)] = samples
    window = np.hanning(_FRAME).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(padded.reshape(frames, _FRAME) * window)) ** 2
    energy = np.cumsum(spectrum.sum(0, dtype=np.float64))
    if energy[-1] <= 0:
        return 0.0
    return float(np.searchsorted(energy, _SHARE * energy[-1]) * sampling_rate / _FRAME)
