"""Log-mel filter banks of many cycles at once, in torch.

Decisions: one set of settings (`FrontEnd`) describes every published front end we serve, Kaldi's and the STFT
ones, so there is one code path. Mel filters follow Kaldi (1127 ln(1 + f/700), triangles in mel, no area
normalisation) unless a front end names others, and are computed in float32 as Kaldi does, because the lowest filters
hold a single FFT bin whose weight is the difference of nearly equal numbers. A cycle's features depend on its own
samples only: its mean and the mirror at its end use its own length, whatever it is batched with. Work goes in chunks
that fit the cache: on a CPU big batches are slower, not faster.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from laennec.audio.normalising import own, raise_quiet, stack, standardise_bins

# frames worked on at once: 512 frames x 512 samples x 4 bytes = 1 MB, which stays in a core's cache
_CHUNK_FRAMES_CPU = 512
_CHUNK_FRAMES_DEVICE = 65536


@dataclass(frozen=True)
class FrontEnd:
    """Settings that turn a waveform into log-mel frames.

    Attributes:
        sampling_rate: Rate of the waveform in Hz.
        num_mel_bins: Number of mel filters.
        window: "hann" or "povey" (hann to the power .85), both symmetric, or "hann_periodic".
        window_samples: Length of a frame.
        hop_samples: Step between frames.
        fft_samples: FFT length; frames are filled with zeros up to it.
        reflect_samples: Samples mirrored at either end; 0 keeps whole frames only (Kaldi's snip_edges), half a window
            centres frames on hops.
        pre_emphasis: c in x[t] - c x[t-1]; 0 for none.
        pre_emphasis_on: "frame" (the first sample's predecessor is itself, as Kaldi) or "signal" (the first sample is
            dropped, as EfficientAT).
        remove_frame_mean: Whether each frame's mean is subtracted.
        subtract_mean: Whether the waveform's mean is subtracted.
        waveform_scale: Factor on the waveform; 2^15 turns [-1, 1] into 16-bit values.
        low_hz: Lower end of the first filter.
        high_hz: Upper end of the last filter.
        log_floor: Smallest mel energy, or what is added to it.
        log_floor_rule: "max" (log of the larger of both) or "add".
        mean: Mean that is subtracted from the log-mel values.
        std: Half of what they are divided by, as AST counts: (x - mean) / (2 std).
        kind: "log_mel", or "waveform" for encoders that hear sound itself: a frame is one sample.
        mel_scale: "kaldi", or triangles in Hz: "slaney" (with area normalisation) or "htk" (without).
        dynamic_range: How far below a cycle's loudest value quieter ones are raised to, in natural log units; 0 for
            as far as they lie.
        drop_last_frame: Whether the last frame is left out.
        normalise: "fixed" (by mean and std alone), "bins" (then each mel bin of a cycle to mean 0 and variance 1) or
            "cycle" (a waveform to mean 0 and variance 1).
        stack_frames: How many neighbouring frames make one.
    """

    sampling_rate: int = 16000
    num_mel_bins: int = 128
    window: str = "hann"
    window_samples: int = 400
    hop_samples: int = 160
    fft_samples: int = 512
    reflect_samples: int = 0
    pre_emphasis: float = 0.97
    pre_emphasis_on: str = "frame"
    remove_frame_mean: bool = True
    subtract_mean: bool = False
    waveform_scale: float = 1.0
    low_hz: float = 20.0
    high_hz: float = 8000.0
    log_floor: float = 1.1920928955078125e-07
    log_floor_rule: str = "max"
    mean: float = 0.0
    std: float = 0.5
    kind: str = "log_mel"
    mel_scale: str = "kaldi"
    dynamic_range: float = 0.0
    drop_last_frame: bool = False
    normalise: str = "fixed"
    stack_frames: int = 1

    def __post_init__(self) -> None:
        """Refuse settings that have no meaning."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it can be {', '.join(allowed)}")
        if not 0 <= self.low_hz < self.high_hz <= self.sampling_rate / 2:
            raise ValueError(
                f"filters from {self.low_hz} to {self.high_hz} Hz do not fit {self.sampling_rate} Hz audio; "
                f"need 0 <= low_hz < high_hz <= {self.sampling_rate / 2:g}"
            )
        if not self.hop_samples > 0 or not 1 < self.window_samples <= self.fft_samples:
            raise ValueError(
                f"window {self.window_samples}, hop {self.hop_samples}, FFT {self.fft_samples} samples; "
                "need hop > 0 and 1 < window <= FFT"
            )
        if self.std <= 0 or not math.isfinite(self.mean) or not math.isfinite(self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite, and std positive")
        if not 0 <= self.reflect_samples <= self.window_samples // 2:
            raise ValueError(f"reflect_samples is {self.reflect_samples}; it can be 0 to half a window")
        if self.dynamic_range < 0 or self.stack_frames < 1:
            raise ValueError(f"dynamic_range {self.dynamic_range} must not be negative, stack_frames at least 1")
        if self.normalise == ("bins" if self.is_waveform else "cycle") or (self.is_waveform and self.num_mel_bins != 1):
            raise ValueError('normalise "bins" is for log-mel frames, "cycle" for waveforms, which have one "mel bin"')

    @property
    def is_waveform(self) -> bool:
        """Whether frames are the samples themselves."""
        return self.kind == "waveform"

    @property
    def feature_size(self) -> int:
        """Values of a frame."""
        return self.num_mel_bins * self.stack_frames

    @property
    def min_samples(self) -> int:
        """The fewest samples that give a frame: one window, or as many windows as are stacked."""
        return self.window_samples + (self.stack_frames - 1) * self.hop_samples

    @property
    def _lost_samples(self) -> int:
        return int(bool(self.pre_emphasis) and self.pre_emphasis_on == "signal")

    @property
    def _wide(self) -> bool:
        """Whether float32 rounding would be all that is seen of bands without sound, where the original has float64.

        Bins brought to variance 1 show whatever is in them; CLAP's decibels reach as far down as rounding does.
        """
        return self.normalise == "bins" or (self.log_floor < 1e-9 and not self.dynamic_range)

    def windows(self, samples: int) -> int:
        """Number of frames of a waveform before any are stacked; 0 where it is too short."""
        return int(self._windows_of(torch.tensor(samples)))

    def frames(self, samples: int) -> int:
        """Number of frames of a waveform; 0 where it is shorter than `min_samples`."""
        return int(self.frames_of(torch.tensor(samples)))

    def frames_of(self, lengths: Tensor) -> Tensor:
        """`frames` for a tensor of lengths, shape (batch,)."""
        return torch.div(self._windows_of(lengths), self.stack_frames, rounding_mode="floor")

    def _windows_of(self, lengths: Tensor) -> Tensor:
        if self.is_waveform:
            return torch.where(lengths < self.min_samples, 0, lengths)
        padded = lengths - self._lost_samples + 2 * self.reflect_samples
        count = torch.div(padded - self.window_samples, self.hop_samples, rounding_mode="floor")
        return torch.where(lengths < self.min_samples, 0, count + (0 if self.drop_last_frame else 1))


_CHOICES = {
    "window": ("hann", "povey", "hann_periodic"),
    "pre_emphasis_on": ("frame", "signal"),
    "log_floor_rule": ("max", "add"),
    "kind": ("log_mel", "waveform"),
    "mel_scale": ("kaldi", "slaney", "htk"),
    "normalise": ("fixed", "bins", "cycle"),
}


def mel_filters(front: FrontEnd, dtype: torch.dtype = torch.float32) -> Tensor:
    """Triangular mel filters, shape (fft_samples // 2 + 1, num_mel_bins), computed in `dtype`, on the CPU.

    To Kaldi's the Nyquist bin does not belong. A filter narrower than the distance of two FFT bins can be empty: its
    energy is always the floor.
    """
    if front.mel_scale != "kaldi":
        return _filters_in_hz(front).to(dtype)
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (front.low_hz, front.high_hz))
    step = (high - low) / (front.num_mel_bins + 1)
    index = torch.arange(front.num_mel_bins, dtype=dtype)[:, None]
    left = low + index * step
    centre, right = low + (index + 1.0) * step, low + (index + 2.0) * step
    hz = (front.sampling_rate / front.fft_samples) * torch.arange(front.fft_samples // 2, dtype=dtype)
    mel = 1127.0 * (1.0 + hz / 700.0).log()[None, :]  # (1, bins)
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0.0)
    return torch.nn.functional.pad(triangles, (0, 1)).T.contiguous()


def _filters_in_hz(front: FrontEnd) -> Tensor:
    """Triangles whose sides are straight over Hz: Slaney's (as librosa), divided by half their width, or HTK's."""
    to_mel, to_hz = (_slaney_mel, _slaney_hz) if front.mel_scale == "slaney" else (_htk_mel, _htk_hz)
    low, high = (float(to_mel(np.array([hz]))[0]) for hz in (front.low_hz, front.high_hz))
    corners = to_hz(np.linspace(low, high, front.num_mel_bins + 2))
    bins = np.arange(front.fft_samples // 2 + 1)[:, None] * (front.sampling_rate / front.fft_samples)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    triangles = np.maximum(0.0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    if front.mel_scale == "slaney":
        triangles = triangles * (2.0 / (right - left))
    return torch.from_numpy(triangles)


def _htk_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 2595.0 * np.log10(1.0 + hz / 700.0)


def _htk_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


def _slaney_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """15 mel a kHz up to 1 kHz, then 27 mel for every factor of 6.4."""
    return np.where(hz < 1000.0, 0.015 * hz, 15.0 + 27.0 * np.log(np.maximum(hz, 1e-9) / 1000.0) / np.log(6.4))


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel / 0.015, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


def window_function(front: FrontEnd, dtype: torch.dtype = torch.float32) -> Tensor:
    """The window, shape (window_samples,), on the CPU."""
    window = torch.hann_window(front.window_samples, periodic=front.window == "hann_periodic", dtype=dtype)
    return window.pow(0.85) if front.window == "povey" else window


@lru_cache(maxsize=16)
def _constants(front: FrontEnd, device: torch.device) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if front._wide and device.type != "mps" else torch.float32
    return window_function(front, dtype).to(device), mel_filters(front, dtype).to(device)


@torch.no_grad()
def log_mel(waveforms: Tensor, lengths: Tensor, front: FrontEnd) -> tuple[Tensor, Tensor]:
    """Normalised log-mel frames of a padded batch.

    Args:
        waveforms: (batch, samples), float32, on any device; what lies beyond a cycle's length is never read.
        lengths: (batch,), int64, the true number of samples of each, on the same device.
        front: The settings.

    Returns:
        Features (batch, frames, mels), float32, 0 beyond a cycle's last frame; and the number of frames of each cycle
        (batch,). A cycle shorter than one window has 0 frames.
    """
    batch, samples = waveforms.shape
    device = waveforms.device
    counts = front._windows_of(lengths)
    total = front.windows(samples)
    out = torch.zeros(batch, total, front.num_mel_bins, device=device)
    on_cpu = device.type == "cpu"
    chunk = _CHUNK_FRAMES_CPU if on_cpu else _CHUNK_FRAMES_DEVICE
    rows = max(1, chunk // max(1, total))
    with torch.autocast(device_type=device.type, enabled=False):
        for row in range(0, batch, rows):
            part = slice(row, row + rows)
            # on a CPU the longest cycle of the chunk is known without waiting for a device
            longest = int(lengths[part].max()) if on_cpu else samples
            signal = _padded_signal(waveforms[part, :longest], lengths[part], front)
            frames = front.windows(longest)
            for start in range(0, frames, chunk):
                stop = min(start + chunk, frames)
                first, last = start * front.hop_samples, (stop - 1) * front.hop_samples + front.window_samples
                framed = signal[:, first:last].unfold(1, front.window_samples, front.hop_samples)
                _log_mel_of_frames(framed, front, out[part, start:stop])
    if front.dynamic_range and total:
        out = raise_quiet(out, counts, front.dynamic_range * 0.5 / front.std)
    if front.normalise == "bins":
        out = standardise_bins(out, counts)
    if front.stack_frames > 1:
        out, counts = stack(out, counts, front.stack_frames)
    total = out.shape[1]
    if total and not (on_cpu and int(counts.min()) == total):
        out.masked_fill_(~own(counts, total)[:, :, None], 0.0)
    return out, counts


def _padded_signal(waveforms: Tensor, lengths: Tensor, front: FrontEnd) -> Tensor:
    """Scale, centre, pre-emphasise and mirror: (rows, samples) -> (rows, samples + 2 reflect_samples)."""
    samples = waveforms.shape[1]
    signal = waveforms.float()
    beyond = None
    if signal.device.type != "cpu" or int(lengths.min()) < samples:
        beyond = torch.arange(samples, device=signal.device)[None, :] >= lengths[:, None]
        signal = signal.masked_fill(beyond, 0.0)
    if front.subtract_mean:
        # in float64, or the rounding of the mean, and with it of every sample, would depend on the padding
        wide = torch.float32 if signal.device.type == "mps" else torch.float64
        signal = signal - (signal.sum(1, dtype=wide) / lengths.clamp_min(1)).float()[:, None]
        if beyond is not None:
            signal.masked_fill_(beyond, 0.0)
    if front.waveform_scale != 1.0:
        signal = signal * front.waveform_scale
    if front._lost_samples:
        signal = torch.sub(signal[:, 1:], signal[:, :-1], alpha=front.pre_emphasis)
        lengths = (lengths - 1).clamp_min(0)
    if front.reflect_samples and signal.shape[1] > front.reflect_samples:
        signal = _mirror(signal, lengths, front.reflect_samples)
    return signal


def _mirror(signal: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Mirror `width` samples at the start and at each row's own end, without repeating the end samples."""
    rows, samples = signal.shape
    out = signal.new_zeros(rows, samples + 2 * width)
    out[:, width : width + samples] = signal
    out[:, :width] = signal[:, 1 : width + 1].flip(1)
    step = torch.arange(width, device=signal.device)[None, :]
    source = (lengths[:, None] - 2 - step).clamp_min(0)
    return out.scatter_(1, lengths[:, None] + width + step, signal.gather(1, source))


def frame_mean(framed: Tensor) -> Tensor:
    """The mean of each frame, added up in an order of its own: (..., window) -> (..., 1).

    In quiet bands of loud 16-bit audio the last bit of a mean shows: a library that adds in another order gives other
    features there. The order (32 running sums, the first eight of them over what remains) is that of torch on x86,
    which published Kaldi features were computed with; a graph follows it in every program that runs it.
    """
    width = framed.shape[-1]
    if framed.dtype != torch.float32 or width < 32:  # float64 leaves nothing to show
        return framed.mean(-1, keepdim=True)
    whole, eights = width // 32 * 32, width // 8 * 8
    running = reduce(torch.add, framed[..., :whole].unflatten(-1, (whole // 32, 4, 8)).unbind(-3))
    first, *others = running.unbind(-2)
    left = [framed[..., start : start + 8] for start in range(whole, eights, 8)]
    single = framed[..., eights:].split(1, -1) if eights < width else ()
    return reduce(torch.add, [*single, *reduce(torch.add, [first, *left, *others]).split(1, -1)]) / width


def _log_mel_of_frames(framed: Tensor, front: FrontEnd, out: Tensor) -> None:
    """Window, power spectrum, filters, log, normalisation: (rows, frames, window) -> `out` (rows, frames, mels)."""
    window, filters = _constants(front, framed.device)
    width = front.window_samples
    framed = framed.to(window.dtype)
    if front.remove_frame_mean:
        framed = framed - frame_mean(framed)
    buffer = framed.new_zeros(*framed.shape[:2], front.fft_samples)
    if front.pre_emphasis and front.pre_emphasis_on == "frame":
        # product and difference are rounded one after the other: in quiet bands of loud 16-bit audio float32 rounding
        # is all there is, and a fused operation gives other features than the ones the encoders were trained on
        torch.mul(framed[..., :-1], -front.pre_emphasis, out=buffer[..., 1:width])
        torch.mul(framed[..., 0], -front.pre_emphasis, out=buffer[..., 0])
        buffer[..., :width].add_(framed).mul_(window)
    else:
        torch.mul(framed, window, out=buffer[..., :width])
    real, imaginary = torch.view_as_real(torch.fft.rfft(buffer)).unbind(-1)
    power = real.square().addcmul_(imaginary, imaginary)  # (rows, frames, bins)
    energy = power @ filters
    if front.log_floor_rule == "max":
        energy.clamp_min_(front.log_floor)
    else:
        energy += front.log_floor
    torch.sub(energy.log_().to(out.dtype), front.mean, out=out).mul_(0.5 / front.std)
