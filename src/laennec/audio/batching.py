"""Waveforms in any usual form to one padded batch.

Decisions: integers are refused, because a lost or doubled factor of 2^15 gives features that look fine; so is more than
one channel, because the decoder averages channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laennec.errors import InputError


class TooShortError(InputError):
    """A waveform that is shorter than one frame.

    Attributes:
        index: Its index in the batch.
        samples: Its number of samples.
    """

    def __init__(self, index: int, samples: int, sampling_rate: int, needed: int) -> None:
        self.index, self.samples = index, samples
        super().__init__(
            f"waveform {index}: {samples} samples ({1000 * samples / sampling_rate:.1f} ms at {sampling_rate} Hz) are "
            f"too few, one frame takes {needed} ({1000 * needed / sampling_rate:.1f} ms); leave it out, or use "
            "length='repeat' or 'zero' with duration_s"
        )


def padded_batch(waveforms: Any, lengths: Sequence[int] | Tensor | None) -> tuple[Tensor, list[int]]:
    """Pad waveforms to one batch.

    Args:
        waveforms: One waveform (samples,), a list of them, or a padded (batch, samples); arrays, tensors or lists of
            floats.
        lengths: (batch,), true numbers of samples of a padded batch; None where no row is padded.

    Returns:
        (batch, samples) float32, zeros beyond the lengths, and the lengths.

    Raises:
        InputError: No waveform, more than one channel, integers, or lengths that do not fit.
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
