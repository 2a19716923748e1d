"""Masks that keep padding out of an encoder, and layers that use them.

Decisions: masks follow lengths. A convolution of stride s turns a true length n into ceil(n / s), the length its output
has when the cycle is encoded alone, so a batch gives what single cycles give.
"""

import warnings

import torch
from torch import Tensor, nn


class TimeMask:
    """True lengths of a batch along time; None inside where all cycles fill the batch.

    Args:
        lengths: (batch,) true lengths, or None where nothing is padded.
    """

    def __init__(self, lengths: Tensor | None) -> None:
        self.lengths = lengths

    @classmethod
    def of(cls, attention_mask: Tensor | None) -> "TimeMask":
        """From an attention mask (batch, frames); on a CPU a mask of ones costs nothing afterwards."""
        if attention_mask is None:
            return cls(None)
        lengths = attention_mask.to(torch.int64).sum(1)
        # reading the values is free on a CPU, waits for the device anywhere else, and cannot be part of a graph
        in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if lengths.device.type == "cpu" and not in_graph and int(lengths.min()) == attention_mask.shape[1]:
            return cls(None)
        return cls(lengths)

    def halved(self) -> "TimeMask":
        """After a stride of 2: ceil(n / 2) positions."""
        return TimeMask(None if self.lengths is None else (self.lengths + 1) // 2)

    def keep(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
        """1 on real positions of x (..., time), 0 beyond, shape (batch, 1, 1, time); None where all are real."""
        return None if self.lengths is None else self.tokens(x).to(dtype or x.dtype)[:, None, None, :]

    def zero_beyond(self, x: Tensor) -> Tensor:
        """(batch, channels, frequency, time) with zeros beyond each cycle's end."""
        keep = self.keep(x)
        return x if keep is None else x * keep

    def mean(self, x: Tensor) -> Tensor:
        """Mean over frequency and real time: (batch, channels, frequency, time) -> (batch, channels)."""
        keep = self.keep(x, torch.float32)
        if self.lengths is None or keep is None:
            return x.mean((2, 3))
        # (batch, channels, frequency, time) -> (batch, channels, time) -> (batch, channels)
        total = (x.float().mean(2) * keep[:, 0]).sum(2)
        return (total / self.lengths.clamp_min(1)[:, None]).to(x.dtype)

    def tokens(self, x: Tensor) -> Tensor:
        """(batch, time) bool for x (batch, ..., time), True on real positions."""
        if self.lengths is None:
            return torch.ones(x.shape[0], x.shape[-1], dtype=torch.bool, device=x.device)
        return torch.arange(x.shape[-1], device=x.device)[None, :] < self.lengths[:, None]


def zero_beyond(values: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, time, values) with zeros beyond each cycle's end."""
    if lengths is None:
        return values
    inside = torch.arange(values.shape[1], device=values.device)[None, :] < lengths[:, None]
    return values.masked_fill(~inside[:, :, None], 0.0)


def processes() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _sum_of_all(values: Tensor) -> Tensor:
    """The sum over processes, with gradients back to each."""
    import torch.distributed.nn.functional as distributed

    with warnings.catch_warnings():
        # deprecated in favour of an interface that is still experimental
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        summed: Tensor = distributed.all_reduce(values)
    return summed


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose training statistics come from real frames only: padding does not move them.

    Attributes:
        synchronised: Whether they come from the cycles of all processes that train together.
    """

    synchronised = False

    def forward(self, x: Tensor, mask: TimeMask | None = None) -> Tensor:  # type: ignore[override]
        """(batch, channels, frequency, time) -> the same shape; values beyond a cycle's end are not meaningful."""
        together = self.synchronised and self.training and processes() > 1
        keep = mask.keep(x, torch.float32) if mask is not None and self.training else None
        if keep is None and together:
            keep = x.new_ones(len(x), 1, 1, x.shape[3], dtype=torch.float32)
        if keep is None:
            out: Tensor = super().forward(x)
            return out
        total = _sum_of_all if together else lambda values: values
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        wide = x.float()
        count = total(keep.sum() * x.shape[2])
        mean = total((wide * keep).sum((0, 2, 3))) / count
        variance = total(((wide - mean[:, None, None]).square() * keep).sum((0, 2, 3))) / count
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp_min(1))
            # through .data: where an encoder runs twice in a step, autograd would otherwise count this as a change of
            # a tensor that the other run's backward needs
            self.running_mean.data.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.data.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight.float() * (variance + self.eps).rsqrt()
        shift = self.bias.float() - mean * scale
        return (wide * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
