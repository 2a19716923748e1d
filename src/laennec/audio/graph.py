"""The front end as one graph, for programs that run a model without Python.

Decisions: the numbers are those of `LaennecFeatureExtractor.features`, whose own code looks at lengths to save work
and fills buffers in place, which no graph can. Nothing here looks at a value: a batch of any size and length takes the
same way. What comes before the Fourier transform is rounded step by step as there: of a recording made at a low rate
the upper bands of 16-bit values (BEATs) hold that rounding and nothing else. The transform itself is in float64: that
of onnxruntime in float32 is off by more than the quiet bands of a real recording hold, wherever its length is no power
of two. A test compares both on real recordings.
"""

import torch
from torch import Tensor, nn

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.filterbanks import FrontEnd, frame_mean, mel_filters, window_function
from laennec.audio.normalising import own, raise_quiet, stack, standardise_bins, waveform_frames


class GraphFrontEnd(nn.Module):
    """A feature extractor without branches on values.

    Args:
        extractor: Whose settings it takes.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, extractor: LaennecFeatureExtractor) -> None:
        super().__init__()
        self.extractor, self.front = extractor, extractor.front
        dtype = torch.float64 if self.front._wide else torch.float32
        if not self.front.is_waveform:
            self.register_buffer("window", window_function(self.front, dtype))
            self.register_buffer("filters", mel_filters(self.front, dtype))

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) -> input_values (batch, frames, mels) and attention_mask (batch, frames)."""
        front = self.front
        waveforms, lengths = self.extractor._fit(waveforms, lengths)
        if front.is_waveform:
            values, counts = waveform_frames(waveforms, lengths, front.min_samples, front.normalise == "cycle")
            return values, own(counts, values.shape[1]).long()
        counts = front._windows_of(lengths)
        values = self._log_mel(_signal(waveforms, lengths, front))
        if front.dynamic_range:
            values = raise_quiet(values, counts, front.dynamic_range * 0.5 / front.std)
        if front.normalise == "bins":
            values = standardise_bins(values, counts)
        if front.stack_frames > 1:
            values, counts = stack(values, counts, front.stack_frames)
        values = values.masked_fill(~own(counts, values.shape[1])[:, :, None], 0.0)
        if self.extractor.length == "zero_frames":
            values, counts = self.extractor._with_zero_frames(values, counts)
        return values, own(counts, values.shape[1]).long()

    def _log_mel(self, signal: Tensor) -> Tensor:
        """Every step of `filterbanks.log_mel` for a whole batch: (batch, samples) -> (batch, frames, mels)."""
        front = self.front
        if front.drop_last_frame:
            signal = signal[:, : signal.shape[1] - front.hop_samples]
        framed = signal.to(self.window.dtype).unfold(1, front.window_samples, front.hop_samples)
        if front.remove_frame_mean:
            framed = framed - frame_mean(framed)
        if front.pre_emphasis and front.pre_emphasis_on == "frame":
            framed = framed - front.pre_emphasis * torch.cat([framed[..., :1], framed[..., :-1]], -1)
        spectrum = torch.view_as_real(torch.fft.rfft((framed * self.window).double(), n=front.fft_samples))
        energy = spectrum.square().sum(-1).to(self.filters.dtype) @ self.filters
        floored = energy.clamp_min(front.log_floor) if front.log_floor_rule == "max" else energy + front.log_floor
        return (floored.log().float() - front.mean) * (0.5 / front.std)


def _signal(waveforms: Tensor, lengths: Tensor, front: FrontEnd) -> Tensor:
    """Zeros beyond the ends, centred, scaled, pre-emphasised and mirrored, as `filterbanks._padded_signal`."""
    beyond = torch.arange(waveforms.shape[1], device=waveforms.device)[None, :] >= lengths[:, None]
    signal = waveforms.masked_fill(beyond, 0.0)
    if front.subtract_mean:
        mean = (signal.double().sum(1) / lengths.clamp_min(1)).float()
        signal = (signal - mean[:, None]).masked_fill(beyond, 0.0)
    if front.waveform_scale != 1.0:
        signal = signal * front.waveform_scale
    if front._lost_samples:
        signal = signal[:, 1:] - front.pre_emphasis * signal[:, :-1]
        lengths = (lengths - 1).clamp_min(0)
    return _mirrored(signal, lengths, front.reflect_samples) if front.reflect_samples else signal


def _mirrored(signal: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Mirror `width` samples at the start and at each row's own end: (batch, n) -> (batch, n + 2 width)."""
    samples = signal.shape[1]
    place = torch.arange(samples + 2 * width, device=signal.device)[None, :] - width
    last = (lengths - 1)[:, None]
    source = torch.where(place > last, 2 * last - place, place.abs())
    inside = (place < lengths[:, None] + width) & (source >= 0)
    return signal.gather(1, source.clamp(0, samples - 1)).masked_fill(~inside, 0.0)
