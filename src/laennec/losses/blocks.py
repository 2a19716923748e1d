"""Pair losses of large batches, without the pair matrix in memory.

Decisions: up to 1024 rows the plain equations run on the full matrix. Above that the same sums are taken over blocks of
rows, and each block is computed again in the backward pass (`torch.utils.checkpoint`), so that a batch of 4096 needs
some megabytes instead of a gigabyte. Tests check that both ways have equal values and gradients.
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
        """Count, mean and sum of squared deviations of each row's positive and negative pairs i < j, (rows, 2, 3)."""
        same = labels[rows, None] == labels[None, rows.start :]
        later = torch.ones_like(same).triu(1)
        values = (z[rows] @ z[rows.start :].T - same.to(z.dtype)).square()  # (1 - s)^2 for equal labels, else s^2
        return torch.stack([_moments(values, same & later), _moments(values, ~same & later)], dim=1)

    terms: list[Tensor] = []
    counts: list[int] = []
    for count, means, squares in by_row_blocks(of_rows, len(z), len(z)).permute(1, 2, 0):
        total = int(count.long().sum())
        mean = (count * means).sum() / max(1, total)
        between = (count * (means - mean).square()).sum()  # deviations of the rows' means from the mean of all
        # the matrix is symmetric: two ordered pairs for each i < j
        terms += [mean, deviation(2 * (squares.sum() + between), mean, 2 * total)]
        counts += [2 * total, 2 * total]
    return terms, counts


def _moments(values: Tensor, chosen: Tensor) -> Tensor:
    """Count, mean and sum of squared deviations of the chosen values of each row: (rows, columns) -> (rows, 3)."""
    weight = chosen.to(values.dtype)
    count = weight.sum(dim=1)
    mean = torch.linalg.vecdot(values, weight) / count.clamp_min(1)
    apart = (values - mean[:, None]) * weight
    return torch.stack([count, mean, torch.linalg.vecdot(apart, apart)], dim=1)
