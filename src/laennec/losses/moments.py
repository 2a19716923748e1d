"""Stage 5, losses: mean and spread of a quantity over pairs of a batch, without the pair matrix in memory.

Decided here: similarities are computed block by block over the upper triangle, and again in the backward pass, so that a
batch of 4096 needs some megabytes instead of a gigabyte; counts and spreads are those of ordered pairs; a spread of
fewer than two distinct pairs, or of values that differ by rounding alone, is 0 with zero gradient.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from laennec.losses.pairs import full_precision

IDENTICAL_LABEL_DISTANCE = 1e-3
BLOCK_ENTRIES = {"cpu": 2**19}  # fits a core's cache; other devices want fewer, larger blocks
DEVICE_BLOCK_ENTRIES = 2**25


class Quantity(NamedTuple):
    """A function of a pair's similarity s and label similarity t, and its derivative by s."""

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


Group = tuple[str, Quantity]  # which pairs ("same" label, "different" label, "all"), and what is measured on them


class _Block(NamedTuple):
    """Rows start..stop of the pair matrix against all columns from start on."""

    start: int
    stop: int
    similarity: Tensor  # (stop - start, batch - start)
    label_similarity: Tensor  # same shape
    chosen: dict[str, Tensor]  # same shape, bool: the pairs of each kind above the diagonal


def _blocks(z: Tensor, labels: Tensor) -> Iterator[_Block]:
    """Walk the upper triangle of the pair matrix; the lower one is its mirror."""
    batch = len(z)
    rows = max(1, BLOCK_ENTRIES.get(z.device.type, DEVICE_BLOCK_ENTRIES) // max(1, batch))
    for start in range(0, max(1, batch), rows):  # an empty batch is one empty block
        stop = min(start + rows, batch)
        similarity = z[start:stop] @ z[start:].T
        if labels.ndim == 1:
            label_similarity = same = labels[start:stop, None] == labels[None, start:]
        else:
            label_similarity = labels[start:stop] @ labels[start:].T
            same = 1 - label_similarity < IDENTICAL_LABEL_DISTANCE
        above = torch.ones_like(similarity, dtype=torch.bool).triu_(1)
        yield _Block(
            start, stop, similarity, label_similarity, {"same": same & above, "different": above & ~same, "all": above}
        )


def _moments(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and sum of squared deviations of the chosen values."""
    count = chosen.sum()
    weight = chosen.to(values.dtype)
    mean = (values * weight).sum() / count.clamp_min(1)
    return count, mean, (values - mean).square_().mul_(weight).sum()


class PairMoments(torch.autograd.Function):
    """Mean and unbiased standard deviation, over ordered pairs, of each group's quantity."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, labels: Tensor, groups: tuple[Group, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (batch, dim) and labels -> means, deviations and ordered pair counts, each (groups,)."""
        parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in groups]
        with full_precision(z):
            for block in _blocks(z, labels):
                for part, (kind, quantity) in zip(parts, groups, strict=True):
                    values = quantity.value(block.similarity, block.label_similarity)
                    part.append(_moments(values, block.chosen[kind]))
            merged = [_merge(part) for part in parts]
        count, mean, squares = (torch.stack(column) for column in zip(*merged, strict=True))
        # each unordered pair stands for two ordered ones
        deviation = (2 * squares / (2 * count - 1).clamp_min(1)).sqrt()
        rounding = 4 * torch.finfo(z.dtype).eps * mean.abs()
        deviation = torch.where(deviation > rounding, deviation, 0.0)
        ctx.save_for_backward(z, labels, count, mean, deviation)
        ctx.groups = groups
        ctx.mark_non_differentiable(count)
        return mean, deviation, 2 * count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_deviation: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """The derivative by a pair's similarity is its slope times a line in its value, so one more walk is enough."""
        z, labels, count, mean, deviation = ctx.saved_tensors
        pairs = count.clamp_min(1)
        spread = torch.where(deviation > 0, deviation, torch.inf)
        tilt = 2 * by_deviation / ((2 * pairs - 1) * spread)
        level = by_mean / pairs - tilt * mean
        gradient = torch.zeros_like(z)
        with full_precision(z):
            for block in _blocks(z, labels):
                by_similarity = torch.zeros_like(block.similarity)
                for index, (kind, quantity) in enumerate(ctx.groups):
                    arguments = block.similarity, block.label_similarity
                    by_value = quantity.value(*arguments).mul_(tilt[index]).add_(level[index])
                    by_similarity.addcmul_(by_value.mul_(quantity.slope(*arguments)), block.chosen[kind].to(z.dtype))
                gradient[block.start : block.stop].addmm_(by_similarity, z[block.start :])
                gradient[block.start :].addmm_(by_similarity.T, z[block.start : block.stop])
        return gradient, None, None


def _merge(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, means and squared deviations of disjoint parts -> those of their union."""
    counts, means, squares = (torch.stack(column) for column in zip(*parts, strict=True))
    count = counts.sum()
    mean = (counts * means).sum() / count.clamp_min(1)
    return count, mean, squares.sum() + (counts * (means - mean).square()).sum()


