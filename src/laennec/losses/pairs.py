"""Stage 5, losses: what every loss over pairs of embeddings shares.

Decided here: moments and similarities are taken in float32 or wider, also inside a bf16 autocast region; a vector of
length zero has no direction, so it normalises to zero with zero gradient (dividing by a tiny epsilon instead would
multiply its gradient by 1e12).
"""

import torch
from torch import Tensor

SHORTEST_NORM = 1e-12


def widened(values: Tensor) -> Tensor:
    """Floating values in float32, or float64 where they already are."""
    return values if values.dtype == torch.float64 else values.float()


def full_precision(values: Tensor) -> torch.autocast:
    """A region in which autocast does not narrow the arithmetic on this tensor's device."""
    return torch.autocast(values.device.type, enabled=False)


def normalise(embeddings: Tensor) -> Tensor:
    """Rows divided by their Euclidean length, in float32 or wider.

    Args:
        embeddings: (..., dim).

    Returns:
        (..., dim), rows of length 1; rows shorter than 1e-12 become zero and carry no gradient.
    """
    rows = widened(embeddings)
    # dividing by the largest entry first keeps the squares of very large or very small rows in range
    largest = rows.detach().abs().amax(dim=-1, keepdim=True) if rows.shape[-1] else rows.new_zeros(*rows.shape[:-1], 1)
    pointing = ~(largest <= SHORTEST_NORM)  # written so that NaN counts as pointing, and shows
    rows = torch.where(pointing, rows, 0.0) / torch.where(pointing, largest, 1.0)
    length = (rows.square().sum(dim=-1, keepdim=True) + (~pointing).to(rows.dtype)).sqrt()
    return rows / length


def check_embeddings(embeddings: Tensor, labels: Tensor | None = None, *, dims: int = 2) -> None:
    """Refuse shapes that would broadcast into a wrong number.

    Raises:
        ValueError: if the embeddings have another number of dimensions, or the labels another number of rows.
    """
    if embeddings.ndim != dims or not embeddings.is_floating_point():
        shape = "(batch, dim)" if dims == 2 else "(batch, views, dim)"
        raise ValueError(f"embeddings must be floating {shape}, not {embeddings.dtype} {tuple(embeddings.shape)}")
    if labels is not None and (labels.ndim == 0 or len(labels) != len(embeddings)):
        raise ValueError(f"{len(embeddings)} embeddings need as many labels, not labels of shape {tuple(labels.shape)}")


def class_indices(labels: Tensor) -> Tensor:
    """Labels checked to be one integer class per row.

    Raises:
        ValueError: if the labels are not a vector of integers.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(f"this loss needs integer labels (batch,), not {labels.dtype} {tuple(labels.shape)}")
    return labels
