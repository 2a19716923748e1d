"""What every loss over pairs of embeddings shares.

Decisions: moments and similarities are taken in float32 or wider, also inside a bf16 autocast region; a vector of
length zero has no direction, so it normalises to zero with zero gradient (dividing by a tiny epsilon instead would
multiply its gradient by 1e12).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST_NORM = 1e-12
BLOCK_ENTRIES = {"cpu": 2**19}  # fits a core's cache; other devices want fewer, larger blocks
DEVICE_BLOCK_ENTRIES = 2**25


def widened(values: Tensor) -> Tensor:
    """Floating values in float32, or float64 where they already are."""
    return values if values.dtype == torch.float64 else values.float()


def full_precision(values: Tensor) -> torch.autocast:
    """A region in which autocast does not narrow the arithmetic on this tensor's device."""
    return torch.autocast(values.device.type, enabled=False)


def refuse_second_derivative() -> None:
    """Stop a backward pass that shall itself be differentiated: pairs walked in blocks keep no graph of it.

    (`once_differentiable` notices it only where the incoming gradient has a graph, and gives a wrong one otherwise.)

    Raises:
        RuntimeError: if this runs under `create_graph=True`.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("this loss has no second derivative: leave out create_graph, or use another loss here")


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


def class_indices(labels: Tensor, classes: int | None = None) -> Tensor:
    """Labels as one class per row, numbered from 0.

    Args:
        labels: integers of any width or bools, (batch,) or one column (batch, 1); or one-hot rows (batch, classes).
        classes: how many there are; None for any number.

    Returns:
        Integers or bools (batch,).

    Raises:
        ValueError: if a row does not name exactly one class, or names one below 0 or beyond the last.
    """
    whole = not (labels.is_floating_point() or labels.is_complex())
    if whole and labels.ndim == 2 and labels.shape[1] == 1 and classes != 1:
        labels = labels[:, 0]
    if whole and labels.ndim == 1:
        _check_range(labels, classes)
        return labels
    shape = f"{labels.dtype} {tuple(labels.shape)}"
    if labels.ndim != 2 or classes not in (None, labels.shape[1]):
        raise ValueError(f"this loss needs integer labels (batch,) or one-hot rows (batch, classes), not {shape}")
    if bool(((labels != 0) & (labels != 1)).any() | (labels.sum(dim=1) != 1).any()):
        raise ValueError("this loss needs one class for each cycle: integers or one-hot rows, no soft labels")
    return labels.int().argmax(dim=1)


def _check_range(labels: Tensor, classes: int | None) -> None:
    """Refuse classes below 0 (which often means unknown) or beyond the last."""
    wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        last = "" if classes is None else f" .. {classes - 1}"
        raise ValueError(
            f"label {int(labels[row])} of row {row} lies outside 0{last or ' and up'}; leave out cycles whose label is "
            "unknown"
        )


def label_rows(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Label rows (batch, classes), checked: flags of 0 and 1, or soft labels.

    A row of flags may be all 0 (neither crackle nor wheeze); a soft one may not, because nothing was shared out.

    Raises:
        ValueError: if a label is negative, not finite, or a soft row is empty: names the row.
    """
    rows = labels.to(dtype)
    if not rows.shape[1]:
        raise ValueError(f"label rows (batch, classes) need at least one class, not {tuple(rows.shape)}")
    flags = bool(((rows == 0) | (rows == 1)).all())
    wrong = (
        {}
        if flags
        else {
            "is not finite": ~torch.isfinite(rows).all(dim=1),
            "is negative": (rows < 0).any(dim=1),
            "is empty (every class is 0; give it a class of its own, or leave the cycle out)": (rows == 0).all(dim=1),
        }
    )
    for what, where in wrong.items():
        if bool(where.any()):
            row = int(where.nonzero()[0])
            raise ValueError(f"soft label row {row} {what}: {rows[row].tolist()}")
    return rows


def absent(embeddings: Tensor) -> Tensor:
    """The value of a term without any pair: exactly 0, with zero gradient, whatever the embeddings hold."""
    return widened(embeddings.flatten()[:0]).sum()


class Block(NamedTuple):
    """Rows start..stop of the similarity matrix against all columns from start on."""

    start: int
    stop: int
    similarity: Tensor  # (stop - start, batch - start)
    above: Tensor  # same shape, bool: above the diagonal, so each unordered pair is in one block once


def upper_blocks(z: Tensor) -> Iterator[Block]:
    """Walk the upper triangle of the similarity matrix of rows z (batch, dim); the lower one is its mirror."""
    batch = len(z)
    rows = max(1, BLOCK_ENTRIES.get(z.device.type, DEVICE_BLOCK_ENTRIES) // max(1, batch))
    for start in range(0, max(1, batch), rows):  # an empty batch is one empty block
        stop = min(start + rows, batch)
        similarity = z[start:stop] @ z[start:].T
        yield Block(start, stop, similarity, torch.ones_like(similarity, dtype=torch.bool).triu_(1))
