"""The front end as one graph, for ONNX and other programs that run a model without Python.

Decisions: nothing here depends on a value, so that a batch of any size and length takes the same path; the eager front
end runs the same functions chunk by chunk. The Fourier transform is computed in float64: that of onnxruntime in float32
is off by more than the quiet bands of a real recording hold, wherever its length is no power of two.
"""

import torch
from torch import Tensor, nn

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.filterbanks import constants, finished, log_mel_of_frames, own, prepared_signal, waveform_frames


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
        if not self.front.is_waveform:
            window, filters = constants(self.front, torch.device("cpu"))
            self.register_buffer("window", window)
            self.register_buffer("filters", filters)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, samples), (batch,) -> input_values (batch, frames, mels) and attention_mask (batch, frames)."""
        front = self.front
        waveforms, lengths = self.extractor.fit(waveforms, lengths)
        if front.is_waveform:
            values, counts = waveform_frames(waveforms, lengths, front)
        else:
            signal = prepared_signal(waveforms, lengths, front)
            if front.drop_last_frame:
                signal = signal[:, : signal.shape[1] - front.hop_samples]
            framed = signal.unfold(1, front.window_samples, front.hop_samples)
            values = log_mel_of_frames(framed, self.window, self.filters, front, torch.float64)
            values, counts = finished(values, front.windows_of(lengths), front)
        if self.extractor.length == "zero_frames":
            values, counts = self.extractor.with_zero_frames(values, counts)
        return values, own(counts, values.shape[1]).long()
