"""Pair losses of large batches, without the pair matrix in memory.

Decisions: up to 1024 rows the plain equations run on the full matrix. Above that the same sums are taken over blocks of
rows, and each block is computed again in the backward pass (`torch.utils.checkpoint`), so that a batch of 4096 needs
some megabytes instead of a gigabyte. Tests hold both ways equal, in value and gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from laennec.losses.base import deviation

LARGEST_MATRIX = 1024  # rows


def by_row_blocks(function: Callable[[slice], Tensor], rows: int, columns: int) -> Tensor:
    """Compute a function of the rows of a (rows, columns) matrix, block by block where it is large.

    Args:
        function: Takes a slice of rows and returns (rows in the slice, ...). It reads the tensors that it
            differentiates from its closure.
        rows: How many there are.
        columns: How many there are.

    Returns:
        The function of all rows, (rows, ...).
    """
    if rows * columns <= LARGEST_MATRIX**2:
        return function(slice(0, rows))
    size = max(1, LARGEST_MATRIX**2 // columns)
    slices = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    parts = [checkpoint(function, part, use_reentrant=False, preserve_rng_state=False) for part in slices]
    return torch.cat(parts)


def add_terms(z: Tensor, labels: Tensor) -> tuple[list[Tensor], list[int]]:
    """The four unweighted terms of `AngularDistanceDistributionLoss(variant="paper")`, and their pair counts.

    Args:
        z: Embeddings of length 1, (batch, dim).
        labels: Integers (batch,).
    """

    def of_rows(rows: slice) -> Tensor:
        """Count, mean and sum of squared deviations of each row's positive and negative pairs, (rows, 2, 3)."""
        s = z[rows] @ z.T
        different = labels[rows, None] != labels[None, :]
        positive = ~different
        positive.diagonal(rows.start).fill_(False)
        return torch.stack([_moments((1 - s).square(), positive), _moments(s.square(), different)], dim=1)

    terms: list[Tensor] = []
    counts: list[int] = []
    for count, means, squares in by_row_blocks(of_rows, len(z), len(z)).permute(1, 2, 0):
        total = int(count.long().sum())
        mean = (count * means).sum() / max(1, total)
        between = (count * (means - mean).square()).sum()  # deviations of the rows' means from the mean of all
        terms += [mean, deviation(squares.sum() + between, mean, total)]
        counts += [total, total]
    return terms, counts


def _moments(values: Tensor, chosen: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of the chosen values of each row: (rows, columns) -> (rows, 3)."""
    weight = chosen.to(values.dtype)
    count = weight.sum(dim=1)
    mean = (values * weight).sum(dim=1) / count.clamp_min(1)
    return torch.stack([count, mean, ((values - mean[:, None]).square() * weight).sum(dim=1)], dim=1)
