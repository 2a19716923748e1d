"""Padded batches of waveforms, and their log-mel filter banks, in torch.

Decisions: integers are refused, because a factor of 2^15 that is missing or applied twice gives plausible features;
more than one channel is refused too. One set of settings (`FrontEnd`) and one code path serve every published front
end; the ONNX graph (`GraphFrontEnd`) runs the same functions without a branch on a value. Mel filters are computed in
float32 as Kaldi does, because the lowest ones hold a single FFT bin whose weight is the difference of nearly equal
numbers. A cycle's features depend on its own samples only: sums run in float64 where the device supports it, because
float32 rounding would depend on the padding.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from laennec.audio.presets import FrontEnd
from laennec.errors import InputError

# frames computed at once: 512 frames x 512 samples x 4 bytes = 1 MB, which stays in a core's cache
_CHUNK_FRAMES_CPU = 512
_CHUNK_FRAMES_DEVICE = 65536
_VARIANCE_FLOOR = 1e-7  # what transformers adds to a variance before the square root


class TooShortError(InputError):
    """A waveform that is shorter than one frame: its `index` in the batch and its number of `samples`."""

    def __init__(self, index: int, samples: int, sampling_rate: int, needed: int) -> None:
        self.index, self.samples = index, samples
        super().__init__(
            f"waveform {index}: {samples} samples ({1000 * samples / sampling_rate:.1f} ms at {sampling_rate} Hz) are "
            f"too few, one frame takes {needed} ({1000 * needed / sampling_rate:.1f} ms); leave it out, or use "
            "length='repeat' or 'zero' with duration_s"
        )


def padded_batch(waveforms: Any, lengths: Sequence[int] | Tensor | None) -> tuple[Tensor, list[int]]:
    """Waveforms as (batch, samples) float32, zeros beyond their lengths, and the lengths.

    Args:
        waveforms: One waveform (samples,), a list of them, or a padded (batch, samples); floating point.
        lengths: (batch,), true numbers of samples of a padded batch; None where no row is padded.
    """
    if isinstance(waveforms, list | tuple) and waveforms and np.ndim(waveforms[0]) == 0:
        waveforms = np.asarray(waveforms, dtype=np.float64)
    if isinstance(waveforms, list | tuple):
        rows = [_as_tensor(w, f"waveform {i}") for i, w in enumerate(waveforms)]
        for i, row in enumerate(rows):
            if row.ndim != 1:
                raise InputError(f"waveform {i} has shape {tuple(row.shape)}; give one channel of shape (samples,)")
        if not rows:
            raise InputError("there is no waveform in the batch; give at least one")
        if lengths is not None:
            raise TypeError(
                "lengths needs a padded (batch, samples) array; the waveforms of a list have their own lengths"
            )
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), [len(r) for r in rows]
    batch = _as_tensor(waveforms, "the batch")
    if batch.ndim == 1:
        batch = batch[None, :]
    if batch.ndim != 2 or not len(batch):
        raise InputError(
            f"the batch has shape {tuple(batch.shape)}; give (samples,) or (batch, samples), one channel each"
        )
    if lengths is None:
        return batch, [batch.shape[1]] * len(batch)
    counts = [int(n) for n in lengths]
    if len(counts) != len(batch) or any(not 0 <= n <= batch.shape[1] for n in counts):
        raise InputError(
            f"lengths {counts[:8]} do not fit waveforms of shape {tuple(batch.shape)}; "
            f"give one of 0 to {batch.shape[1]} each"
        )
    beyond = torch.arange(batch.shape[1])[None, :] >= torch.tensor(counts)[:, None]
    return batch.masked_fill(beyond.to(batch.device), 0.0), counts


def _as_tensor(value: Any, name: str) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value, copy=None, ndmin=1))
    if not tensor.is_floating_point():
        raise InputError(
            f"{name} holds {str(tensor.dtype).removeprefix('torch.')}; give floats in [-1, 1] (16-bit values / 32768)"
        )
    return tensor.detach().float()


def mel_filters(front: FrontEnd, dtype: torch.dtype = torch.float32) -> Tensor:
    """Triangular mel filters, shape (fft_samples // 2 + 1, num_mel_bins), computed in `dtype`, on the CPU.

    Kaldi leaves the Nyquist bin out. A filter narrower than the spacing of FFT bins can be empty; its energy is then
    always the floor.
    """
    if front.mel_scale != "kaldi":
        bins, area = front.fft_samples // 2 + 1, "slaney" if front.mel_scale == "slaney" else None
        edges = (front.low_hz, front.high_hz, front.sampling_rate)
        filters = mel_filter_bank(bins, front.num_mel_bins, *edges, norm=area, mel_scale=front.mel_scale)
        return torch.from_numpy(filters).to(dtype)
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (front.low_hz, front.high_hz))
    step = (high - low) / (front.num_mel_bins + 1)
    index = torch.arange(front.num_mel_bins, dtype=dtype)[:, None]
    left = low + index * step
    centre, right = low + (index + 1.0) * step, low + (index + 2.0) * step
    hz = (front.sampling_rate / front.fft_samples) * torch.arange(front.fft_samples // 2, dtype=dtype)
    mel = 1127.0 * (1.0 + hz / 700.0).log()[None, :]  # (1, bins)
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0.0)
    return torch.nn.functional.pad(triangles, (0, 1)).T.contiguous()


def window_function(front: FrontEnd, dtype: torch.dtype = torch.float32) -> Tensor:
    """The window, shape (window_samples,), on the CPU."""
    window = torch.hann_window(front.window_samples, periodic=front.window == "hann_periodic", dtype=dtype)
    return window.pow(0.85) if front.window == "povey" else window


@lru_cache(maxsize=16)
def constants(front: FrontEnd, device: torch.device) -> tuple[Tensor, Tensor]:
    """Window (window_samples,) and mel filters (bins, mels) in the precision of the front end, on a device."""
    dtype = torch.float64 if front.wide and device.type != "mps" else torch.float32
    return window_function(front, dtype).to(device), mel_filters(front, dtype).to(device)


@torch.no_grad()
def log_mel(waveforms: Tensor, lengths: Tensor, front: FrontEnd) -> tuple[Tensor, Tensor]:
    """Normalised log-mel frames of a padded batch (batch, samples) float32 with its lengths (batch,) int64.

    Returns:
        Features (batch, frames, mels) float32, 0 beyond a cycle's last frame, and the frames of each (batch,), 0 of a
        cycle shorter than one window.
    """
    batch, samples = waveforms.shape
    device = waveforms.device
    window, filters = constants(front, device)
    total = int(front.windows_of(torch.tensor(samples)))
    out = torch.zeros(batch, total, front.num_mel_bins, device=device)
    chunk = _CHUNK_FRAMES_CPU if device.type == "cpu" else _CHUNK_FRAMES_DEVICE
    rows = max(1, chunk // max(1, total))
    with torch.autocast(device_type=device.type, enabled=False):
        for row in range(0, batch if total else 0, rows):
            part = slice(row, row + rows)
            signal = prepared_signal(waveforms[part], lengths[part], front)
            for start in range(0, total, chunk):
                stop = min(start + chunk, total)
                first, last = start * front.hop_samples, (stop - 1) * front.hop_samples + front.window_samples
                framed = signal[:, first:last].unfold(1, front.window_samples, front.hop_samples)
                out[part, start:stop] = log_mel_of_frames(framed, window, filters, front)
    return finished(out, front.windows_of(lengths), front)


def prepared_signal(waveforms: Tensor, lengths: Tensor, front: FrontEnd) -> Tensor:
    """Centre, scale, pre-emphasise and reflect: (batch, samples) -> (batch, samples + 2 reflect_samples)."""
    beyond = ~own(lengths, waveforms.shape[1])
    signal = waveforms.float().masked_fill(beyond, 0.0)
    if front.subtract_mean:
        mean = (signal.sum(1, dtype=_wide(signal)) / lengths.clamp_min(1)).float()
        signal = (signal - mean[:, None]).masked_fill(beyond, 0.0)
    if front.waveform_scale != 1.0:
        signal = signal * front.waveform_scale
    if front.lost_samples:
        signal = torch.sub(signal[:, 1:], signal[:, :-1], alpha=front.pre_emphasis)
        lengths = (lengths - 1).clamp_min(0)
    return _reflected(signal, lengths, front.reflect_samples) if front.reflect_samples else signal


def _reflected(signal: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Reflect `width` samples at the start and at each row's own end, without repeating the end samples."""
    padded = torch.cat([signal[:, 1 : width + 1].flip(1), torch.nn.functional.pad(signal, (0, width))], 1)
    step = torch.arange(width, device=signal.device)[None, :]
    source = (lengths[:, None] - 2 - step).clamp_min(0)
    return padded.scatter(1, lengths[:, None] + width + step, signal.gather(1, source))


def frame_mean(framed: Tensor) -> Tensor:
    """The mean of each frame, summed in a fixed order: (..., window) -> (..., 1).

    In quiet bands of loud 16-bit audio the last bit of the mean changes the features, and it depends on the order of
    summation. This order (32 running sums, the first eight of them over the remainder) is that of torch on x86, which
    computed the published Kaldi features; written out, it is the same in every ONNX runtime.
    """
    width = framed.shape[-1]
    if framed.dtype != torch.float32 or width < 32:  # in float64 the order has no visible effect
        return framed.mean(-1, keepdim=True)
    whole, eights = width // 32 * 32, width // 8 * 8
    running = reduce(torch.add, framed[..., :whole].unflatten(-1, (whole // 32, 4, 8)).unbind(-3))
    first, *others = running.unbind(-2)
    left = [framed[..., start : start + 8] for start in range(whole, eights, 8)]
    single = framed[..., eights:].split(1, -1) if eights < width else ()
    return reduce(torch.add, [*single, *reduce(torch.add, [first, *left, *others]).split(1, -1)]) / width


def log_mel_of_frames(
    framed: Tensor, window: Tensor, filters: Tensor, front: FrontEnd, power_of: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Window, power spectrum, filters, log and fixed normalisation: (..., window) -> (..., mels) float32.

    Operations are not fused: in quiet bands of loud 16-bit audio the values are mostly float32 rounding, and fused
    operations would give other features than those that the encoders were trained on.
    """
    framed = framed.to(window.dtype)
    if front.remove_frame_mean:
        framed = framed - frame_mean(framed)
    if front.pre_emphasis and front.pre_emphasis_on == "frame":
        previous = torch.cat([framed[..., :1], framed[..., :-1]], -1)
        framed = framed - front.pre_emphasis * previous
    framed = framed * window
    if power_of is None:
        real, imaginary = torch.view_as_real(torch.fft.rfft(framed, n=front.fft_samples)).unbind(-1)
        power = real.square().addcmul(imaginary, imaginary)  # (..., bins)
    else:
        power = power_of(framed)
    energy = power @ filters
    floored = energy.clamp_min(front.log_floor) if front.log_floor_rule == "max" else energy + front.log_floor
    return (floored.log().float() - front.mean) * (0.5 / front.std)


def finished(values: Tensor, counts: Tensor, front: FrontEnd) -> tuple[Tensor, Tensor]:
    """Apply what needs all frames of a cycle: dynamic range, normalisation by bins, stacking, zero padding.

    Takes (batch, frames, mels) and the frames of each cycle (batch,); returns (batch, stacks, mels * stack_frames) and
    the number of whole stacks of each.
    """
    if front.dynamic_range and values.shape[1]:
        inside = own(counts, values.shape[1])[:, :, None]
        loudest = values.masked_fill(~inside, -torch.inf).amax((1, 2), keepdim=True)  # (batch, 1, 1)
        values = torch.maximum(values, loudest - front.dynamic_range * 0.5 / front.std)
    if front.normalise == "bins":
        values = _standardised_bins(values, counts)
    if front.stack_frames > 1:
        whole = values.shape[1] // front.stack_frames
        values = values[:, : whole * front.stack_frames].reshape(values.shape[0], whole, front.feature_size)
        counts = torch.div(counts, front.stack_frames, rounding_mode="floor")
    return values.masked_fill(~own(counts, values.shape[1])[:, :, None], 0.0), counts


def _standardised_bins(values: Tensor, counts: Tensor) -> Tensor:
    """Mean 0 and variance 1 (n - 1) of each mel bin over a cycle's own frames: (batch, frames, mels)."""
    wide = values.to(_wide(values))
    inside = own(counts, values.shape[1])[:, :, None].to(wide.dtype)
    number = counts.to(wide.dtype)[:, None, None]
    mean = (wide * inside).sum(1, keepdim=True) / number.clamp_min(1)  # (batch, 1, mels)
    variance = ((wide - mean).square() * inside).sum(1, keepdim=True) / (number - 1).clamp_min(1)
    return ((wide - mean) * (variance + _VARIANCE_FLOOR).rsqrt()).float()


@torch.no_grad()
def waveform_frames(waveforms: Tensor, lengths: Tensor, front: FrontEnd) -> tuple[Tensor, Tensor]:
    """Waveforms (batch, samples) as frames of one sample (batch, samples, 1), and how many each has (batch,).

    With `normalise="cycle"` each has mean 0 and variance 1, as wav2vec 2.0 and related encoders expect.
    """
    counts = front.windows_of(lengths)
    inside = own(counts, waveforms.shape[1])
    values = waveforms.float().masked_fill(~inside, 0.0)
    if front.normalise == "cycle":
        wide = values.to(_wide(values))
        number = counts.clamp_min(1)[:, None]
        centred = (wide - wide.sum(1, keepdim=True) / number).masked_fill(~inside, 0.0)
        variance = centred.square().sum(1, keepdim=True) / number
        values = (centred * (variance + _VARIANCE_FLOOR).rsqrt()).float()
    return values[:, :, None], counts


def own(counts: Tensor, total: int) -> Tensor:
    """Mask of each cycle's own samples or frames: (batch,) numbers -> (batch, total) bool."""
    return torch.arange(total, device=counts.device)[None, :] < counts[:, None]


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64


class GraphFrontEnd(nn.Module):
    """A feature extractor for one sound that can be exported, for ONNX and other runtimes without Python."""

    window: Tensor
    filters: Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.extractor, self.front = extractor, extractor.front
        if not self.front.is_waveform:
            self.power = MatrixPower(self.front)
            window, filters = constants(self.front, torch.device("cpu"))
            self.register_buffer("window", window)
            self.register_buffer("filters", self.power.reordered(filters))

    def forward(self, waveform: Tensor) -> Tensor:
        """(1, samples) -> input_values (1, frames, mels), without padding."""
        front, extractor = self.front, self.extractor
        if extractor.length in ("crop", "zero_frames"):
            waveform = extractor.cropped(waveform)
        elif extractor.length == "repeat" and not extractor.fade_s:
            waveform = extractor.repeated(waveform)
        elif extractor.length != "natural":
            waveform, _ = extractor.fit(waveform, _whole(waveform))
        if front.is_waveform:
            return waveform_frames(waveform, _whole(waveform), front)[0]
        signal = prepared_signal(waveform, _whole(waveform), front)
        if front.drop_last_frame:
            signal = signal[:, : signal.shape[1] - front.hop_samples]
        values = log_mel_of_frames(_framed(signal, front), self.window, self.filters, front, self.power)
        values, counts = finished(values, _whole(values), front)
        if extractor.length == "zero_frames":
            values, _ = extractor.with_zero_frames(values, counts)
        return values


def _whole(values: Tensor) -> Tensor:
    """The length of a batch without padding, (batch,)."""
    return torch.full((values.shape[0],), values.shape[1])


def _framed(signal: Tensor, front: FrontEnd) -> Tensor:
    """Overlapping frames without a gather: (batch, samples) -> (batch, frames, window_samples)."""
    hop, window = front.hop_samples, front.window_samples
    frames = (signal.shape[1] - window) // hop + 1
    pieces = -(-window // hop)
    rows = torch.nn.functional.pad(signal, (0, pieces * hop))[:, : (frames + pieces - 1) * hop].unflatten(1, (-1, hop))
    beside = [rows[:, piece : piece + frames, : window - piece * hop] for piece in range(pieces)]
    return torch.cat(beside, 2)


class MatrixPower(nn.Module):
    """The power spectrum of frames by two products with constant matrices (Cooley and Tukey's factors).

    With N = rows x columns, n = columns n1 + n2 and k = k1 + rows k2, the transform is

        X[k] = sum over n2 of exp(-2 pi i n2 k / N) * (sum over n1 of x[n] exp(-2 pi i n1 k1 / rows)).

    onnxruntime multiplies matrices at the speed of the processor; its own DFT is many times slower, and in float32 less
    exact where N is not a power of two.
    """

    first: Tensor
    of_real: Tensor
    of_imaginary: Tensor

    def __init__(self, front: FrontEnd) -> None:
        super().__init__()
        n = front.fft_samples
        self.columns = next(size for size in range(math.isqrt(n), 0, -1) if n % size == 0)
        self.rows = n // self.columns
        self.bins = self.columns // 2 + 1  # of k2: more than half of the spectrum
        self.used = -(-front.window_samples // self.columns)  # the rows after them are zeros
        self.missing = self.used * self.columns - front.window_samples
        dtype = torch.float64 if front.wide else torch.float32
        n1, k1 = torch.arange(self.used, dtype=torch.float64), torch.arange(self.rows, dtype=torch.float64)
        n2, k2 = torch.arange(self.columns, dtype=torch.float64), torch.arange(self.bins, dtype=torch.float64)
        inner = _turned(k1[:, None] * n1 / self.rows)  # (k1, n1)
        self.register_buffer("first", torch.cat([inner.real, inner.imag]).to(dtype))
        outer = _turned((k1[:, None, None] + self.rows * k2) * n2[:, None] / n)  # (k1, n2, k2)
        self.register_buffer("of_real", torch.cat([outer.real, outer.imag], 2).to(dtype))
        self.register_buffer("of_imaginary", torch.cat([-outer.imag, outer.real], 2).to(dtype))

    def forward(self, framed: Tensor) -> Tensor:
        """(batch, frames, window_samples) -> power (batch, frames, rows x bins); bin k at (k % rows, k // rows)."""
        batch, frames = framed.shape[:2]
        parts = torch.nn.functional.pad(framed, (0, self.missing)).reshape(-1, self.used, self.columns)
        inner = self.first @ parts.transpose(0, 1).reshape(self.used, -1)
        inner = inner.reshape(2, self.rows, batch * frames, self.columns)
        outer = inner[0] @ self.of_real + inner[1] @ self.of_imaginary  # (rows, batch * frames, 2 bins)
        real, imaginary = outer.split(self.bins, 2)
        power = real * real + imaginary * imaginary
        return power.transpose(0, 1).reshape(batch, frames, self.rows * self.bins)

    def reordered(self, filters: Tensor) -> Tensor:
        """Mel filters (fft_samples // 2 + 1, mels) in the order of these bins; 0 for those of the other half."""
        k = (torch.arange(self.rows)[:, None] + self.rows * torch.arange(self.bins)).flatten()
        inside = k < len(filters)
        return torch.where(inside[:, None], filters[k.clamp_max(len(filters) - 1)], 0.0)


def _turned(turns: Tensor) -> Tensor:
    """exp(-2 pi i turns); whole turns are removed first."""
    return torch.polar(torch.ones_like(turns), -2 * math.pi * (turns % 1))
