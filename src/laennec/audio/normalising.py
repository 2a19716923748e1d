"""What is done to a whole cycle's values once its frames are there.

Decisions: statistics and maxima are those of a cycle's own frames, whatever it is batched with. Sums run in
float64 where the device has it, or their rounding would depend on the padding. Values beyond a cycle's end are left
undefined; who calls sets them to 0.
"""

import torch
from torch import Tensor

# what transformers adds to a variance before the square root
_VARIANCE_FLOOR = 1e-7


def own(counts: Tensor, total: int) -> Tensor:
    """(batch,) numbers of frames -> (batch, total) bool, True on each cycle's own."""
    return torch.arange(total, device=counts.device)[None, :] < counts[:, None]


def raise_quiet(values: Tensor, counts: Tensor, width: float) -> Tensor:
    """Raise what lies more than `width` below a cycle's largest value to that bound: Whisper's dynamic range.

    Args:
        values: (batch, frames, mels), in logarithmic units.
        counts: (batch,), frames of each cycle.
        width: In the units of `values`.
    """
    inside = own(counts, values.shape[1])[:, :, None]
    loudest = values.masked_fill(~inside, -torch.inf).amax((1, 2), keepdim=True)  # (batch, 1, 1)
    return torch.maximum(values, loudest - width)


def standardise_bins(values: Tensor, counts: Tensor) -> Tensor:
    """Mean 0 and variance 1 of each mel bin over a cycle's own frames (n - 1 in the variance).

    Args:
        values: (batch, frames, mels).
        counts: (batch,).
    """
    wide = values.to(_wide(values))
    inside = own(counts, values.shape[1])[:, :, None].to(wide.dtype)
    number = counts.to(wide.dtype)[:, None, None]
    mean = (wide * inside).sum(1, keepdim=True) / number.clamp_min(1)  # (batch, 1, mels)
    variance = ((wide - mean).square() * inside).sum(1, keepdim=True) / (number - 1).clamp_min(1)
    return ((wide - mean) * (variance + _VARIANCE_FLOOR).rsqrt()).float()


def stack(values: Tensor, counts: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Put `frames` neighbours side by side; what does not fill a last stack is dropped.

    Args:
        values: (batch, frames, mels).
        counts: (batch,).
        frames: How many make one.

    Returns:
        (batch, frames // n, n * mels) and the counts of whole stacks.
    """
    whole = values.shape[1] // frames
    stacked = values[:, : whole * frames].reshape(values.shape[0], whole, frames * values.shape[2])
    return stacked, torch.div(counts, frames, rounding_mode="floor")


@torch.no_grad()
def waveform_frames(waveforms: Tensor, lengths: Tensor, shortest: int, standardise: bool) -> tuple[Tensor, Tensor]:
    """Waveforms as frames of one sample, for encoders that hear sound itself.

    Args:
        waveforms: (batch, samples); what lies beyond a cycle's length is never read.
        lengths: (batch,).
        shortest: A cycle of fewer samples has no frame.
        standardise: Whether each cycle gets mean 0 and variance 1, as wav2vec 2.0 and its relatives expect.

    Returns:
        (batch, samples, 1) float32, 0 beyond a cycle's end, and the number of frames of each cycle (batch,).
    """
    counts = torch.where(lengths < shortest, 0, lengths)
    inside = own(counts, waveforms.shape[1])
    values = waveforms.float().masked_fill(~inside, 0.0)
    if standardise:
        wide = values.to(_wide(values))
        number = counts.clamp_min(1)[:, None]
        centred = (wide - wide.sum(1, keepdim=True) / number).masked_fill(~inside, 0.0)
        variance = centred.square().sum(1, keepdim=True) / number
        values = (centred * (variance + _VARIANCE_FLOOR).rsqrt()).float()
    return values[:, :, None], counts


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64
