"""Decode audio files of any kind to one checked mono waveform.

Decisions: one decoder (soundfile) and one resampler (soxr HQ), because others give other samples. Every problem of a
file raises `DecodeError` and no other exception. A file is decoded, resampled and filtered in blocks, so memory depends
on the waveform that is asked for, not on the header or the rate of the file. A constant waveform is refused unless
asked for. A filter is designed at, and applied at, the final rate.
"""

import io
import itertools
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from laennec.audio.containers import SoundBytes, read_declared
from laennec.errors import InputError, one_line
from laennec.model_settings import FilterSettings, checked

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".rf64", ".caf")

Waveform = npt.NDArray[np.float32]
AudioSource = str | os.PathLike[str] | bytes | BinaryIO

MIN_SAMPLING_RATE_HZ = 1_000
MAX_SAMPLING_RATE_HZ = 192_000
_BLOCK_SAMPLES = 1 << 22  # 16 MiB of float32: the most that is allocated by a size in a header
_BLOCK_S = 10.0
LARGEST_SAMPLE = 100.0  # a waveform above it holds integers; a high gain can exceed 1, but not this much
_PLAYBACK_HZ = 16_000  # browsers differ in the lowest rate that they play
_SPECTRUM_FRAME, _ENERGY_SHARE, _SILENCE_DB = 2048, 0.99, -120.0
UNKNOWN_FRAMES = 1 << 62  # libsndfile returns more than this for a FLAC stream that does not state its length


class DecodeError(InputError):
    """A recording (`path`) that cannot be used, and what is wrong and what to do (`reason`)."""

    def __init__(self, path: str, reason: str = "") -> None:
        super().__init__(*filter(None, (path, reason)))
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        # torch makes the error of a process that reads batches anew, with its whole text as the path
        return one_line(f"{self.path}: {self.reason}") if self.reason else super().__str__()


@dataclass(frozen=True)
class Recording:
    """A decoded recording.

    Attributes:
        waveform: Mono sound, float32, shape (samples,).
        sampling_rate: Of `waveform`, in Hz.
        source_sampling_rate: Of the file, in Hz.
        path: Where it came from.
    """

    waveform: Waveform
    sampling_rate: int
    source_sampling_rate: int
    path: str

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.waveform) / self.sampling_rate


@dataclass(frozen=True)
class ButterworthFilter:
    """A causal Butterworth filter that is designed at the rate it is applied at."""

    kind: Literal["lowpass", "highpass", "bandpass"]
    cutoff_hz: float | tuple[float, float]  # the -3 dB frequency in Hz; for a band-pass the pair (low, high)
    order: int = 4  # order of the prototype, at most 32; a band-pass has twice as many poles

    def __post_init__(self) -> None:
        found = checked(FilterSettings, vars(self), "correct the filter")
        object.__setattr__(self, "cutoff_hz", found.cutoff_hz)  # a list from YAML becomes hashable

    def apply(self, waveform: Waveform, sampling_rate: int) -> Waveform:
        """Filter a waveform, float32 (samples,), starting from a zero state.

        A low-pass at or above half the sampling rate returns the input; a band-pass whose upper edge lies there becomes
        a high-pass at its lower edge; a lower edge there raises a ValueError.
        """
        return self.stream(sampling_rate)(waveform)

    def stream(self, sampling_rate: int) -> Callable[[Waveform], Waveform]:
        """The filter for a waveform in consecutive blocks, whose outputs together equal `apply` on the whole."""
        from scipy.signal import butter, sosfilt

        edges: tuple[float, ...] = self.cutoff_hz if isinstance(self.cutoff_hz, tuple) else (self.cutoff_hz,)
        nyquist_hz = sampling_rate / 2
        kind = self.kind
        if kind == "lowpass" and edges[0] >= nyquist_hz:
            return lambda block: block
        if edges[0] >= nyquist_hz:
            raise ValueError(
                f"a {kind} at {edges[0]:g} Hz leaves nothing of a waveform at {sampling_rate} Hz; lower the cutoff"
            )
        if kind == "bandpass" and edges[1] >= nyquist_hz:
            kind, edges = "highpass", edges[:1]
        sections = butter(self.order, edges if len(edges) == 2 else edges[0], kind, fs=sampling_rate, output="sos")
        state = np.zeros((len(sections), 2))

        def filter_block(block: Waveform) -> Waveform:
            nonlocal state
            filtered, state = sosfilt(sections, block, zi=state)
            return np.asarray(filtered, dtype=np.float32)

        return filter_block


def resample(waveform: Waveform, from_hz: int, to_hz: int) -> Waveform:
    """Change the sampling rate of float32 (samples,) with soxr HQ; the same rate returns the input itself."""
    if from_hz == to_hz:
        return waveform
    return np.asarray(soxr.resample(waveform, from_hz, to_hz, quality="HQ"), dtype=np.float32)


def playable(waveform: Waveform, rate: int) -> bytes:
    """Sound, float32 (samples,), as a FLAC file that browsers play, at a common loudness."""
    sound = resample(waveform, rate, _PLAYBACK_HZ)
    loudness = float(np.quantile(np.abs(sound), 0.999)) or 1.0
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound * 0.7 / loudness, -1, 1), _PLAYBACK_HZ, "PCM_16", format="FLAC")
    return file.getvalue()


def read_recording(
    path: AudioSource,
    sampling_rate: int | None = None,
    *,
    filter: ButterworthFilter | None = None,
    allow_silent: bool = False,
) -> Recording:
    """Decode a recording (WAV, FLAC, Ogg, MP3, AIFF, ...) to mono, check it, resample it, filter it.

    Args:
        path: A file name, the bytes of a file, or a binary file object. The extension does not matter.
        sampling_rate: Wanted rate in Hz; None keeps the recording's own.
        filter: Applied after resampling, at the final rate.
        allow_silent: Accept a recording whose samples are all equal.

    Returns:
        The mean of all channels as float32 in the file's full scale of -1 to 1.

    Raises:
        DecodeError: No such file, not a regular file, empty, not audio, damaged, cut short (what cannot be detected:
            see `laennec.audio.containers`), no samples, NaN or infinite samples, silent, or a rate outside 1 kHz to
            192 kHz.
    """
    if sampling_rate is not None and sampling_rate < 1:
        raise ValueError(f"sampling_rate={sampling_rate}: must be positive")
    name = name_of(path)
    with opened(path) as sound:
        rate = sampling_rate or int(sound.samplerate)
        waveform = _concatenated((block for _, block in blocks_of(sound, name, rate, filter, allow_silent)), name)
        return Recording(waveform, rate, int(sound.samplerate), name)


def blocks_of(
    sound: Any, name: str, rate: int, filter: ButterworthFilter | None = None, allow_silent: bool = False
) -> Iterator[tuple[int, Waveform]]:
    """Decode, check, resample and filter an `opened` file in blocks.

    Yields:
        The number of frames decoded so far, and mono sound, float32 (samples,), of at least one sample.
    """
    source_rate, decoded, given = int(sound.samplerate), 0, 0
    filter_block = filter.stream(rate) if filter else None
    resampler = None
    if rate != source_rate:
        resampler = soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")
    lowest, highest = math.inf, -math.inf
    for block in itertools.chain(decoded_blocks(sound, name), [np.zeros(0, np.float32)]):
        last = not len(block)
        if last and lowest == highest and not allow_silent:
            what = "the mean of its channels" if sound.channels > 1 else "every sample"
            raise DecodeError(name, f"silent: {what} is {lowest:g}; leave it out, or record it again")
        if not last:
            low, high = _checked_range(block, name, decoded)
            lowest, highest = min(lowest, low), max(highest, high)
            decoded += len(block)
        block = np.ascontiguousarray(block)
        block = resampler.resample_chunk(block, last=last) if resampler else block
        if len(block):
            given += len(block)
            yield decoded, filter_block(block) if filter_block else block
    if not given:
        raise too_few(name, decoded, source_rate, rate)


def read_header(path: AudioSource) -> tuple[int, int]:
    """Sampling rate in Hz and number of frames; a FLAC stream that does not state the number is decoded."""
    name = name_of(path)
    with opened(path) as sound:
        frames = int(sound.frames)
        if frames >= UNKNOWN_FRAMES:
            frames = sum(map(len, decoded_blocks(sound, name)))
        if frames < 1:
            raise DecodeError(name, "it has no samples; record it again or leave it out")
        return int(sound.samplerate), frames


def read_frames(path: AudioSource) -> tuple[Waveform, int, str]:
    """Decode a recording without any change: float32 (samples, channels), rate in Hz, libsndfile's sample format."""
    name = name_of(path)
    with opened(path) as sound:
        frames = _concatenated(decoded_blocks(sound, name, np.copy), name)
        return frames, int(sound.samplerate), str(sound.subtype)


class _Stream(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file read forwards: soundfile's seek after every read costs time and fails on FLAC of unstated length."""

    def seekable(self) -> bool:
        return False


def name_of(path: AudioSource) -> str:
    """The name of a recording in errors."""
    if isinstance(path, bytes | bytearray | memoryview):
        return "<bytes>"
    if isinstance(path, str | os.PathLike):
        return os.fspath(path)
    if not hasattr(path, "read"):
        raise TypeError(f"a recording is a path, bytes or a binary file, not {type(path).__name__}")
    name = getattr(path, "name", None)
    return name if isinstance(name, str) else "<file>"


@contextmanager
def opened(path: AudioSource) -> Iterator[soundfile.SoundFile]:
    """Open a sound file with a checked header, to be read forwards; every failure is a DecodeError."""
    name = name_of(path)
    with _byte_stream(path, name) as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            raise DecodeError(name, "the file is empty (0 bytes); copy or download it again")
        try:
            declared = read_declared(file, size)
        except OSError as error:
            raise _unreadable(name, error) from error
        if declared.missing:
            raise DecodeError(
                name, f"cut short: bytes are missing at the {declared.missing}; copy or download it again"
            )
        file.seek(0)
        source = SoundBytes(file, declared.open_length_at)
        with _sound_file(source, name) as sound:
            if not MIN_SAMPLING_RATE_HZ <= sound.samplerate <= MAX_SAMPLING_RATE_HZ:
                allowed = f"{MIN_SAMPLING_RATE_HZ} to {MAX_SAMPLING_RATE_HZ} Hz"
                reason = f"its header says {sound.samplerate} Hz, outside {allowed}; correct the header or resample it"
                raise DecodeError(name, reason)
            try:
                yield sound
            finally:
                if source.failed is not None:  # in a callback of libsndfile, where an exception would be lost
                    raise _unreadable(name, source.failed)


def _unreadable(name: str, error: OSError) -> DecodeError:
    return DecodeError(name, f"cannot be read ({error.strerror}); check the disk or copy it again")


@contextmanager
def _byte_stream(path: AudioSource, name: str) -> Iterator[BinaryIO]:
    if isinstance(path, bytes | bytearray | memoryview):
        yield io.BytesIO(path)
        return
    if not isinstance(path, str | os.PathLike):
        try:
            content = path.read()
        except (OSError, EOFError) as error:
            raise DecodeError(name, f"cannot be read ({_short(error)}); check where it comes from") from error
        if not isinstance(content, bytes):
            raise TypeError("a recording's file object must be opened in binary mode")
        yield io.BytesIO(content)
        return
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError(name, "is a folder, not a recording; name a file in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            raise DecodeError(name, "is not a regular file; copy the sound into a file first")
        file = Path(path).open("rb")  # noqa: SIM115 (closed below; only the opening is checked here)
    except (OSError, ValueError) as error:
        if isinstance(error, DecodeError):
            raise
        if isinstance(error, FileNotFoundError):
            what = "a link to a file that does not exist" if os.path.islink(path) else "no such file; check the path"
            raise DecodeError(name, what) from error
        raise DecodeError(name, f"cannot be opened ({_short(error)}); check path and permissions") from error
    with file:
        yield file


def _sound_file(file: SoundBytes, name: str) -> soundfile.SoundFile:
    try:
        return _Stream(file)
    except Exception as error:  # libsndfile and its binding raise many types for a file that is not audio
        reason = "not audio that can be decoded, or a damaged header; export it as WAV or FLAC"
        raise DecodeError(name, reason) from error


def _mono(block: Waveform) -> Waveform:
    """The mean of all channels: (samples, channels) -> (samples,)."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)


def _concatenated(blocks: Iterable[Waveform], name: str) -> Waveform:
    """All samples of a recording in one array."""
    try:
        held = list(blocks)
        return held[0] if len(held) == 1 else np.concatenate(held)
    except MemoryError as error:
        raise DecodeError(name, "too long for this machine's memory; cut it into shorter files") from error


def decoded_blocks(sound: Any, name: str, of_block: Callable[[Waveform], Waveform] = _mono) -> Iterator[Waveform]:
    """Decode an `opened` file in blocks; at its end the number of frames is compared with the header."""
    declared = int(sound.frames)
    seconds = int(_BLOCK_S * sound.samplerate)
    block_frames = max(1, min(seconds, _BLOCK_SAMPLES // max(1, sound.channels), declared))
    frames = 0
    while True:
        try:
            block = sound.read(block_frames, dtype="float32", always_2d=True)
        except MemoryError:
            raise
        except Exception as error:  # as above: every failure of the decoder is due to the file
            raise DecodeError(name, f"damaged or cut short ({_short(error)}); copy or download it again") from error
        if not len(block):
            break
        frames += len(block)
        yield of_block(block)
    if frames == 0:
        raise DecodeError(name, "it has no samples; record it again or leave it out")
    lossy_estimate = sound.format == "MP3"  # without a length table libsndfile guesses from the bit rate
    if frames < declared < UNKNOWN_FRAMES and not lossy_estimate:
        raise DecodeError(name, f"cut short: {frames} of {declared} frames can be decoded; copy or download it again")


def _checked_range(waveform: Waveform, name: str, first: int) -> tuple[float, float]:
    """Lowest and highest sample of a block (samples,), which begins at sample `first` of its recording."""
    lowest, highest = float(waveform.min()), float(waveform.max())  # both return NaN if there is one
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        bad = first + int(np.flatnonzero(~np.isfinite(waveform))[0])
        raise DecodeError(name, f"sample {bad} is NaN or infinite; export it again as 16 or 24 bit")
    if max(-lowest, highest) > LARGEST_SAMPLE:
        most = max(-lowest, highest)
        raise DecodeError(
            name, f"a sample is {most:.4g}, but float samples lie in [-1, 1]; export it again as 16 or 24 bit"
        )
    return lowest, highest


def refuse_integers(samples: Waveform) -> None:
    """Refuse samples (samples,) far outside of [-1, 1]: they are 16-bit integers stored as floats."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > LARGEST_SAMPLE:
        raise InputError(f"the waveform reaches {peak:.4g}; give floats in [-1, 1]: divide 16-bit values by 32768")


def wave_file(waveform: npt.ArrayLike, sampling_rate: Any) -> bytes:
    """A waveform as the bytes of a WAV file of float32, so that it is read as any recording is."""
    samples = np.asarray(waveform)
    rate = sampling_rate.item() if hasattr(sampling_rate, "item") else sampling_rate  # of a tensor
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise InputError(
            f"the waveform has shape {samples.shape} and type {samples.dtype}; give floats in [-1, 1], one channel of "
            "shape (samples,), or one path"
        )
    if not isinstance(rate, int | float) or not 1 <= rate <= MAX_SAMPLING_RATE_HZ or rate % 1:
        raise InputError(
            f"sampling_rate is {rate!r}: a waveform needs its rate in Hz, a whole number up to {MAX_SAMPLING_RATE_HZ}"
        )
    refuse_integers(samples)
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), int(rate), format="WAV", subtype="FLOAT")
    return file.getvalue()


def too_few(name: str, samples: int, source_rate: int, rate: int) -> DecodeError:
    """The error of a recording without any sample after resampling."""
    return DecodeError(name, f"{samples} samples at {source_rate} Hz are too few for {rate} Hz; leave it out")


def _short(error: BaseException) -> str:
    """The library's own message on one line."""
    text = str(getattr(error, "error_string", "") or error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")


def level_db(samples: Waveform) -> float:
    """Root mean square of samples (samples,) in dB of full scale 1; silence is -120."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return max(10 * float(np.log10(power)), _SILENCE_DB) if power > 0 else _SILENCE_DB


def bandwidth_hz(samples: Waveform, sampling_rate: int) -> float:
    """Frequency below which 99 % of the energy lies, in steps of a 2,048th of the rate; 0 of silence."""
    from scipy.fft import rfft  # three times as fast as numpy's in float32

    frames = max(1, -(-len(samples) // _SPECTRUM_FRAME))
    padded = np.zeros(frames * _SPECTRUM_FRAME, dtype=np.float32)
    padded[: len(samples)] = samples
    window = np.hanning(_SPECTRUM_FRAME).astype(np.float32)
    spectrum = rfft(padded.reshape(frames, _SPECTRUM_FRAME) * window)
    energy = np.cumsum((spectrum.real**2 + spectrum.imag**2).sum(0, dtype=np.float64))
    if energy[-1] <= 0:
        return 0.0
    return float(np.searchsorted(energy, _ENERGY_SHARE * energy[-1]) * sampling_rate / _SPECTRUM_FRAME)
