"""Sounds and spectrograms of single cycles, small enough for a page.

Decisions: a cycle is resampled to 8 kHz, raised to a common peak level (by a stated gain) and written as 16-bit WAV,
which every browser plays. Its picture is a log-mel spectrogram with fixed settings, not the model's features, so that
pictures of two models can be compared. Nothing is filtered, whatever the model's front end does.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import soundfile
import torch
from matplotlib.image import imsave
from numpy.typing import NDArray

from laennec.audio.filterbanks import log_mel
from laennec.audio.presets import FrontEnd
from laennec.corpora import CycleWaveforms
from laennec.evaluation.report_details import Sound

RATE_HZ = 8000
MOST_SECONDS = 12.0
MOST_BYTES = 9_000_000  # of sounds in a page, as they are embedded
_PEAK_DB = -3.0
_MOST_GAIN_DB = 60.0
_RANGE_DB = 65.0
_MOST_FRAMES = 700
_TICKS_HZ = (0, 250, 500, 1000, 2000, 4000)
_LUNGS_HZ = 2000.0  # pictures end here where nearly all of the sound lies below
_NEARLY_ALL = 0.995


def cycle_sounds(table: Any, rows: Mapping[int, int], with_audio: bool = True) -> dict[int, Sound]:
    """Sound and picture of some cycles.

    Args:
        table: A cycle table (datasets.Dataset) with recordings.
        rows: {name of the cycle (its row in the predictions): its row in the table}; where sounds exceed `MOST_BYTES`,
            the last ones have a picture only.
        with_audio: Whether sounds are embedded beside the pictures.

    Returns:
        {name: sound}.

    Raises:
        InputError: A recording is missing or cannot be read.
    """
    places = list(rows.values())
    waveforms = CycleWaveforms(table.select(places), RATE_HZ)
    waveforms.prepare()
    high_hz = picture_high_hz(waveforms)
    found, spent = {}, 0
    for name, waveform in zip(rows, waveforms, strict=True):
        shown = np.asarray(waveform[: round(MOST_SECONDS * RATE_HZ)], dtype=np.float32)
        gain_db = playing_gain_db(shown)
        audio = wav_uri(shown * 10 ** (gain_db / 20)) if with_audio else None
        spent += len(audio or "")
        found[name] = Sound(
            picture=mel_uri(shown, high_hz),
            seconds=len(shown) / RATE_HZ,
            whole=len(shown) == len(waveform),
            ticks=mel_ticks(high_hz),
            audio=audio if spent <= MOST_BYTES else None,
            gain_db=gain_db,
        )
    return found


def playing_gain_db(waveform: NDArray[np.float32]) -> float:
    """The gain in dB that raises the peak of a cycle to -3 dB; 0 for silence."""
    peak = float(np.abs(waveform).max()) if waveform.size else 0.0
    return 0.0 if peak <= 0 else min(_PEAK_DB - 20 * float(np.log10(peak)), _MOST_GAIN_DB)


def wav_uri(waveform: NDArray[np.float32]) -> str:
    """A waveform as a 16-bit WAV data URI."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), RATE_HZ, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def picture_high_hz(waveforms: Sequence[NDArray[np.float32]]) -> float:
    """The highest frequency of all pictures of a page: 2 kHz where nearly all energy lies below, else half the rate."""
    below, whole = 0.0, 0.0
    for waveform in waveforms:
        power = np.abs(np.fft.rfft(waveform)) ** 2
        total = float(power.sum())
        if total > 0:  # every cycle has the same weight, however loud
            below += float(power[: round(2 * _LUNGS_HZ / RATE_HZ * len(power))].sum()) / total
            whole += 1
    return _LUNGS_HZ if below >= _NEARLY_ALL * whole else RATE_HZ / 2


def _front(samples: int, high_hz: float) -> FrontEnd:
    """The front end of a picture: frames of 32 ms, with a hop that limits the width of the picture."""
    return FrontEnd(
        sampling_rate=RATE_HZ,
        num_mel_bins=64,
        window="hann_periodic",
        window_samples=256,
        hop_samples=max(40, samples // _MOST_FRAMES),
        fft_samples=1024,
        pre_emphasis=0.0,
        remove_frame_mean=False,
        low_hz=0.0,
        high_hz=high_hz,
        log_floor=1e-12,
    )


def mel_uri(waveform: NDArray[np.float32], high_hz: float) -> str:
    """The log-mel spectrogram of a waveform as a PNG data URI, low frequencies at the bottom, 65 dB of range."""
    front = _front(len(waveform), high_hz)
    # mirrored at the ends: a sudden silence would look like a click
    filled = np.pad(waveform, 128, mode="reflect" if len(waveform) > 128 else "constant")
    filled = np.pad(filled, (0, max(0, front.min_samples - len(filled))))
    values, _ = log_mel(torch.from_numpy(filled)[None], torch.tensor([len(filled)]), front)
    decibels = values[0].numpy().T * (10 / np.log(10))
    top = float(decibels.max())
    buffer, unsigned = io.BytesIO(), {"Software": cast(str, None)}  # no trace of versions in the file
    imsave(buffer, decibels, cmap="magma", vmin=top - _RANGE_DB, vmax=top, origin="lower", metadata=unsigned)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def mel_ticks(high_hz: float) -> Sequence[tuple[str, float]]:
    """Frequencies beside a picture: (text, percent of the height from below), on Kaldi's mel scale."""

    def mel(hz: float) -> float:
        return 1127.0 * float(np.log1p(hz / 700.0))

    shown = [hz for hz in _TICKS_HZ if hz <= high_hz]
    names = [f"{hz // 1000} kHz" if hz >= 1000 else f"{hz} Hz" for hz in shown]
    return [(text, round(100 * mel(hz) / mel(high_hz), 1)) for text, hz in zip(names, shown, strict=True)]
