"""Base class of the losses, and the checks and arithmetic that they share.

Decisions: similarities and moments are computed in float32 or wider, also inside a bf16 autocast region. A row of zeros
has no direction, so it normalises to zero with zero gradient (dividing by a small epsilon instead would multiply its
gradient by 1e12). A term without any pair is exactly 0 with zero gradient (`opl_pos` of OPL:
its weight).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

SHORTEST_NORM = 1e-12


class Loss(nn.Module):
    """Base of the losses of this package. A user's own loss may be any `nn.Module`; these are then the defaults.

    Attributes:
        labels: Which cycles belong together: "class", "cycle" (the views of one cycle), or a metadata column such as
            "patient" or "device".
        views: How many augmented views of each cycle the loss takes.
        on: What it takes as input: "embedding", "projection" (the model's, shared), "clusters" (one vector of a cycle's
            frame groups), or the output of a layer that only this loss needs.
        across_cycles: Whether a term compares cycles of a batch, so that it needs the whole batch at once.
        soft_labels: Whether its labels may be rows (batch, classes + 1), as mixed cycles have them; the last is for no
            label.
        sampler: Recommended class of `laennec.training.samplers`, for readers: nothing sets it; None for any batch.
        citation: BibTeX of the publication.
        variant: Which of several published forms this object computes.
        pairs: How many pairs (or cycles) each term of the last call had.
    """

    labels: ClassVar[str] = "class"
    views: ClassVar[int] = 1
    on: ClassVar[str] = "embedding"
    across_cycles: ClassVar[bool] = True
    soft_labels: ClassVar[bool] = False
    sampler: ClassVar[str | None] = None
    citation: ClassVar[str] = ""
    variant: str = "published"

    def __init__(self) -> None:
        super().__init__()
        self.pairs: dict[str, int] = {}

    def extra_repr(self) -> str:
        """Variant and settings."""
        hidden = {"training", "pairs", "variant"}
        settings = {k: v for k, v in vars(self).items() if k not in hidden and not k.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in {"variant": self.variant, **settings}.items())


def widened(values: Tensor) -> Tensor:
    """Floating values in float32, or float64 where they already are."""
    return values if values.dtype == torch.float64 else values.float()


def full_precision(values: Tensor) -> torch.autocast:
    """A context in which autocast does not lower the precision on the tensor's device."""
    return torch.autocast(values.device.type, enabled=False)


def normalise(embeddings: Tensor) -> Tensor:
    """Divide rows by their Euclidean length, in float32 or wider.

    Args:
        embeddings: (..., dim).

    Returns:
        (..., dim), rows of length 1; rows shorter than 1e-12 become zero and carry no gradient.
    """
    rows = widened(embeddings)
    # dividing by the largest entry first keeps the squares of very large or very small rows in range
    largest = rows.detach().abs().amax(dim=-1, keepdim=True) if rows.shape[-1] else rows.new_zeros(*rows.shape[:-1], 1)
    nonzero = ~(largest <= SHORTEST_NORM)  # written so that a row with NaN stays NaN
    rows = torch.where(nonzero, rows, 0.0) / torch.where(nonzero, largest, 1.0)
    length = (rows.square().sum(dim=-1, keepdim=True) + (~nonzero).to(rows.dtype)).sqrt()
    return rows / length


def ordered_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the ordered pairs i != j of equal and of different label: labels (batch,) -> two bool (batch, batch)."""
    same = labels[:, None] == labels[None, :]
    return same.clone().fill_diagonal_(False), ~same


def mean(values: Tensor) -> Tensor:
    """Mean of some values (pairs,); exactly 0 without any."""
    return values.sum() / max(1, len(values))


def std(values: Tensor) -> Tensor:
    """Unbiased standard deviation of one value for each ordered pair, (pairs,)."""
    return deviation((values - mean(values)).square().sum(), mean(values), len(values))


def deviation(squares: Tensor, mean: Tensor, count: int) -> Tensor:
    """Unbiased standard deviation from the sum of squared deviations over `count` ordered pairs.

    It is 0 with zero gradient for fewer than two distinct pairs (at most two ordered ones), where it is undefined, and
    for values that differ by rounding alone.
    """
    if count <= 2:
        return squares * 0
    variance = squares / (count - 1)
    constant = variance.sqrt() <= 4 * torch.finfo(variance.dtype).eps * mean.abs()
    return torch.where(constant, 0.0, variance.masked_fill(constant, 1.0).sqrt())


def absent(embeddings: Tensor) -> Tensor:
    """The value of a term without any pair: exactly 0, with zero gradient, whatever the embeddings hold."""
    return widened(embeddings.flatten()[:0]).sum()


def check_positive(**numbers: float) -> None:
    """Check settings that must be above 0.

    Raises:
        ValueError: if one is not; the message names it.
    """
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be positive, not {number}")


def check_embeddings(embeddings: Tensor, labels: Tensor | None = None, *, dims: int = 2) -> None:
    """Refuse shapes that would broadcast silently to a wrong result.

    Raises:
        ValueError: if the embeddings have another number of dimensions, or the labels another number of rows.
    """
    if embeddings.ndim != dims or not embeddings.is_floating_point():
        shape = "(batch, dim)" if dims == 2 else "(batch, views, dim)"
        raise ValueError(f"embeddings must be floating {shape}, not {embeddings.dtype} {tuple(embeddings.shape)}")
    if labels is not None and (labels.ndim == 0 or len(labels) != len(embeddings)):
        raise ValueError(f"{len(embeddings)} embeddings need as many labels, not labels of shape {tuple(labels.shape)}")


def class_indices(labels: Tensor, classes: int | None = None) -> Tensor:
    """One class for each row, numbered from 0.

    Args:
        labels: Integers of any width or bools, (batch,) or one column (batch, 1); or one-hot rows (batch, classes).
        classes: How many there are; None for any number.

    Returns:
        Integers or bools (batch,).

    Raises:
        ValueError: if a row does not name exactly one class, or names one below 0 or beyond the last.
    """
    whole = not labels.is_floating_point()
    if whole and labels.ndim == 2 and labels.shape[1] == 1 and classes != 1:
        labels = labels[:, 0]
    if whole and labels.ndim == 1:
        wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            allowed = "0 and up" if classes is None else f"0 .. {classes - 1}"
            raise ValueError(
                f"label {int(labels[row])} of row {row} lies outside {allowed}; leave out cycles whose label is unknown"
            )
        return labels
    if labels.ndim != 2 or classes not in (None, labels.shape[1]):
        shape = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"this loss needs integer labels (batch,) or one-hot rows (batch, classes), not {shape}")
    if not is_flags(labels) or bool((labels.sum(dim=1) != 1).any()):
        raise ValueError("this loss needs one class for each cycle: integers or one-hot rows, no soft labels")
    return labels.int().argmax(dim=1)


def is_flags(rows: Tensor) -> bool:
    """Whether label rows hold nothing but 0 and 1."""
    return bool(((rows == 0) | (rows == 1)).all())


def label_rows(labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Checked label rows (batch, classes): flags of 0 and 1, or soft labels.

    A row of flags may be all 0 (neither crackle nor wheeze); a soft row may not.

    Raises:
        ValueError: if a label is negative, not finite, or a soft row is empty; the message names the row.
    """
    rows = labels.to(dtype)
    if not rows.shape[1]:
        raise ValueError(f"label rows (batch, classes) need at least one class, not {tuple(rows.shape)}")
    if is_flags(rows):
        return rows
    for what, where in {
        "is not finite": ~torch.isfinite(rows).all(dim=1),
        "is negative": (rows < 0).any(dim=1),
        "is empty (every class is 0; give it a class of its own, or leave the cycle out)": (rows == 0).all(dim=1),
    }.items():
        if bool(where.any()):
            row = int(where.nonzero()[0])
            raise ValueError(f"soft label row {row} {what}: {rows[row].tolist()}")
    return rows
