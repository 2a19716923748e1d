"""Mean and spread of a quantity over pairs of a batch, without the pair matrix in memory.

Decisions: similarities are computed block by block over the upper triangle, and again in the backward pass, so
that a batch of 4096 needs some megabytes instead of a gigabyte; counts and spreads are those of ordered pairs; a
spread of fewer than two distinct pairs, or of values that differ by rounding alone, is 0 with zero gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laennec.losses.pairs import Block, full_precision, refuse_second_derivative, upper_blocks

IDENTICAL_LABEL_DISTANCE = 1e-3


class Quantity(NamedTuple):
    """A function of a pair's similarity s and label similarity t, and its derivative by s."""

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]


Group = tuple[str, Quantity]  # which pairs ("same" label, "different" label, "all"), and what is measured on them


def _chosen(block: Block, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Label similarity of a block, and its pairs of each kind (bool, above the diagonal)."""
    rows, columns = labels[block.start : block.stop], labels[block.start :]
    if labels.ndim == 1:
        label_similarity = same = rows[:, None] == columns[None, :]
    else:
        label_similarity = rows @ columns.T
        same = 1 - label_similarity < IDENTICAL_LABEL_DISTANCE
    return label_similarity, {"same": same & block.above, "different": block.above & ~same, "all": block.above}


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
            for block in upper_blocks(z):
                label_similarity, chosen = _chosen(block, labels)
                for part, (kind, quantity) in zip(parts, groups, strict=True):
                    part.append(_moments(quantity.value(block.similarity, label_similarity), chosen[kind]))
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
    def backward(ctx: Any, by_mean: Tensor, by_deviation: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """The derivative by a pair's similarity is its slope times a line in its value, so one more walk is enough."""
        refuse_second_derivative()
        z, labels, count, mean, deviation = ctx.saved_tensors
        pairs = count.clamp_min(1)
        spread = torch.where(deviation > 0, deviation, torch.inf)
        tilt = 2 * by_deviation / ((2 * pairs - 1) * spread)
        level = by_mean / pairs
        gradient = torch.zeros_like(z)
        with full_precision(z):
            for block in upper_blocks(z):
                label_similarity, chosen = _chosen(block, labels)
                by_similarity = torch.zeros_like(block.similarity)
                for index, (kind, quantity) in enumerate(ctx.groups):
                    arguments = block.similarity, label_similarity
                    by_value = quantity.value(*arguments).sub_(mean[index]).mul_(tilt[index]).add_(level[index])
                    by_similarity.addcmul_(by_value.mul_(quantity.slope(*arguments)), chosen[kind].to(z.dtype))
                gradient[block.start : block.stop].addmm_(by_similarity, z[block.start :])
                gradient[block.start :].addmm_(by_similarity.T, z[block.start : block.stop])
        return gradient, None, None


def _merge(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, means and squared deviations of disjoint parts -> those of their union."""
    counts, means, squares = (torch.stack(column) for column in zip(*parts, strict=True))
    count = counts.sum()
    mean = (counts * means).sum() / count.clamp_min(1)
    return count, mean, squares.sum() + (counts * (means - mean).square()).sum()
