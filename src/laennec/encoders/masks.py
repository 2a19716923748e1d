"""Masks that keep padding out of an encoder, and layers that use them.

Decisions: masks follow lengths. A convolution of stride s turns a true length n into ceil(n / s), the length its output
has when the cycle is encoded alone, so a batch gives the same results as single cycles.
"""

from typing import Any

import torch
from torch import Tensor, nn


def in_graph() -> bool:
    """Whether torch traces or compiles, so that code must not read values of tensors or keep results."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-any-return]


def within(lengths: Tensor, width: int) -> Tensor:
    """(batch, width) bool, True on each row's first positions."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


class TimeMask:
    """True lengths of the cycles of a batch along time, for tensors of one width.

    Args:
        lengths: (batch,) true lengths, or None where nothing is padded.
    """

    def __init__(self, lengths: Tensor | None) -> None:
        self.lengths = lengths
        self._tokens: Tensor | None = None
        self._first: int | None = None

    @classmethod
    def of(cls, attention_mask: Tensor | None) -> "TimeMask":
        """From an attention mask (batch, frames); on a CPU a mask of ones becomes lengths of None."""
        if attention_mask is None:
            return cls(None)
        lengths = attention_mask.to(torch.int64).sum(1)
        # reading the values is free on a CPU, waits for the device anywhere else, and cannot be part of a graph
        if lengths.device.type == "cpu" and not in_graph() and int(lengths.min()) == attention_mask.shape[1]:
            return cls(None)
        return cls(lengths)

    def halved(self) -> "TimeMask":
        """After a stride of 2: ceil(n / 2) positions."""
        return TimeMask(None if self.lengths is None else (self.lengths + 1) // 2)

    def number(self, x: Tensor) -> Tensor:
        """How many positions of x (batch, ..., time) are real, () int64."""
        return torch.tensor(len(x) * x.shape[-1], device=x.device) if self.lengths is None else self.lengths.sum()

    def zero_beyond(self, x: Tensor) -> Tensor:
        """(batch, channels, frequency, time) with zeros beyond each cycle's end; in place without gradients."""
        if self.lengths is None:
            return x
        if torch.is_grad_enabled() or in_graph():
            return x * self.tokens(x).to(x.dtype)[:, None, None, :]
        self.fill_beyond(x, 0.0)
        return x

    def fill_beyond(self, x: Tensor, value: Tensor | float) -> None:
        """Overwrite what lies beyond each cycle's end, by a number or by one for each channel (channels,)."""
        if self.lengths is None:
            return
        last, beyond = self._beyond(x)
        if isinstance(value, Tensor):
            last.copy_(torch.where(beyond, value[:, None, None], last))
        else:
            last.masked_fill_(beyond, value)

    def sum_beyond(self, x: Tensor) -> Tensor:
        """Sum of each channel over what lies beyond the cycles' ends: (channels,)."""
        if self.lengths is None:
            return x.new_zeros(x.shape[1])
        last, beyond = self._beyond(x)
        return (last * beyond).sum((0, 2, 3))

    def _beyond(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last frames of x, from the shortest cycle's end, and which of them lie beyond their cycle's end."""
        if self._first is None:
            # elsewhere than on a CPU the host would wait for the device
            self._first = int(self.lengths.min()) if self.lengths is not None and x.device.type == "cpu" else 0
        return x[..., self._first :], ~self.tokens(x)[:, None, None, self._first :]

    def mean(self, x: Tensor) -> Tensor:
        """Mean over frequency and real time: (batch, channels, frequency, time) -> (batch, channels)."""
        # (batch, channels, frequency, time) -> (batch, channels, time) -> (batch, channels)
        steps = x.float().mean(2)
        if self.lengths is None:
            return (steps.sum(2) / steps.shape[2]).to(x.dtype)
        keep = self.tokens(x)[:, None].to(steps.dtype)
        return ((steps * keep).sum(2) / self.lengths.clamp_min(1)[:, None]).to(x.dtype)

    def tokens(self, x: Tensor) -> Tensor:
        """(batch, time) bool for x (batch, ..., time), True on real positions."""
        if self.lengths is None:
            return torch.ones(x.shape[0], x.shape[-1], dtype=torch.bool, device=x.device)
        if self._tokens is None:
            self._tokens = within(self.lengths, x.shape[-1])
        return self._tokens


def token_mean(states: Tensor, token_mask: Tensor, special: int = 0) -> Tensor:
    """Mean over the tokens of real sound, without special ones at the start: (batch, tokens, dim) -> (batch, dim)."""
    weight = token_mask[:, special:].to(states.dtype).unsqueeze(-1)
    return (states[:, special:] * weight).sum(1) / weight.sum(1).clamp_min(1)


def zero_beyond(values: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, time, values) with zeros beyond each cycle's end."""
    if lengths is None:
        return values
    return values.masked_fill(~within(lengths, values.shape[1])[:, :, None], 0.0)


def process_count() -> int:
    """How many processes train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _MaskedBatchNorm(torch.autograd.Function):
    """Batch normalisation by the statistics of real frames, with its own gradient: autograd takes 5 x as long.

    Frames beyond a cycle's end are overwritten with the mean of the real ones: then torch's own kernels, which take no
    mask, compute the sums of the real ones.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mask: TimeMask, eps: float, synchronise: bool
    ) -> tuple[Tensor, ...]:
        """(batch, channels, frequency, time) -> the same shape; mean and variance (channels,); their number ()."""
        x, rows = x.detach(), x.numel() // x.shape[1]
        mask.fill_beyond(x, 0.0)
        count = mask.number(x) * x.shape[2]
        total = torch.cat([x.sum((0, 2, 3)), count.to(x.dtype)[None]])
        total = _sum_of_all(total, synchronise)
        mean = total[:-1] / total[-1]
        mask.fill_beyond(x, mean)
        ours, spread = torch.batch_norm_update_stats(x, None, None, 0.0)
        variance = _sum_of_all(rows * (spread + (ours - mean).square()), synchronise) / total[-1]
        out = nn.functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        mask.fill_beyond(out, 0.0)
        ctx.save_for_backward(x, weight, mean, variance, total[-1])
        ctx.mask, ctx.eps, ctx.synchronise = mask, eps, synchronise
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, total[-1]

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of x, weight and bias."""
        x, weight, mean, variance, count = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        # beyond a cycle's end x is the mean, which adds nothing to the gradient of the weight
        of_bias = of_bias - ctx.mask.sum_beyond(grad)
        sums = _sum_of_all(torch.stack([of_weight, of_bias]), ctx.synchronise) / count
        scale = weight * inverse
        slope = -scale * inverse * sums[0]
        offset = -scale * sums[1] - slope * mean
        of_x = torch.addcmul(offset[:, None, None], x, slope[:, None, None]).addcmul_(grad, scale[:, None, None])
        ctx.mask.fill_beyond(of_x, 0.0)
        return of_x, of_weight, of_bias, None, None, None


def _sum_of_all(values: Tensor, synchronise: bool) -> Tensor:
    """The sum over processes that train together."""
    if synchronise:
        torch.distributed.all_reduce(values)
    return values


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose training statistics come from real frames only, so padding does not affect them.

    Attributes:
        synchronised: Whether they come from the cycles of all processes that train together.
    """

    synchronised = False

    def forward(self, x: Tensor, mask: TimeMask | None = None) -> Tensor:  # type: ignore[override]
        """(batch, channels, frequency, time) -> the same shape.

        In training, values beyond a cycle's end become 0, and `x` is overwritten there; otherwise they are undefined.
        """
        synchronise = self.synchronised and self.training and process_count() > 1
        if not self.training or not (synchronise or (mask is not None and mask.lengths is not None)):
            out: Tensor = super().forward(x)
            return out
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        wide = x if x.dtype == torch.float64 else x.float()
        settings = (mask or TimeMask(None), self.eps, synchronise)
        out, mean, variance, count = _MaskedBatchNorm.apply(  # type: ignore[no-untyped-call]
            wide, self.weight.to(wide.dtype), self.bias.to(wide.dtype), *settings
        )
        with torch.no_grad():
            unbiased = variance * (count / (count - 1).clamp_min(1))
            # through .data: where an encoder runs twice in a step, autograd would otherwise count this as a change of
            # a tensor that the other run's backward needs
            self.running_mean.data.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.data.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out.to(x.dtype)
