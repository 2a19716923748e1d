"""Mixing of the cycles of a batch, and the labels of the mixtures.

Decisions: drawing (share, permutation, positions) is separate from application and uses a generator that the caller
seeds by counter, so a resumed run makes the same mixtures. Nothing is changed in place. The returned share is the
realised one, 1 - masked / positions, not the drawn one. One rule gives the label of two cycles added together: normal
adds nothing, in rows of several labels too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laennec.audio.cycles import flags_of, label_of


@dataclass(frozen=True)
class PatchMixDraw:
    """Drawn parameters of Patch-Mix or Group-Mix for one batch."""

    lam: float  # realised share of each row's own cycle
    index: Tensor  # (batch,) int64, the row that each row is mixed with
    mask: Tensor  # (tokens,) bool, the positions taken from that row; one mask for the whole batch


def draw_patch_mix(
    batch: int, tokens: int, beta: float, generator: np.random.Generator, *, grid: tuple[int, int] | None = None
) -> PatchMixDraw:
    """Draw a share from Beta(beta, beta), one permutation and one mask for the batch.

    Args:
        batch: Number of cycles.
        tokens: Positions that may be exchanged: patches, or groups of frames (Group-Mix).
        beta: Of the distribution; 0 mixes nothing (lam 1).
        generator: For example `counter_generator(seed, epoch, batch_number, "mixing")`.
        grid: (frequency, time) of the patches, frequency first in memory; with it, whole time columns are exchanged.

    Returns:
        The draw: int(positions * (1 - drawn share)) positions are masked, and lam is 1 - masked / positions.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, not {beta}")
    if grid is not None and grid[0] * grid[1] != tokens:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches does not hold {tokens} tokens")
    positions = tokens if grid is None else grid[1]
    share = generator.beta(beta, beta) if beta > 0 else 1.0
    index = torch.from_numpy(generator.permutation(batch))
    masked = int(positions * (1 - share))
    mask = torch.zeros(positions, dtype=torch.bool)
    mask[torch.from_numpy(generator.permutation(positions)[:masked])] = True
    lam = 1 - masked / positions if positions else 1.0
    return PatchMixDraw(lam, index, mask if grid is None else mask.repeat(grid[0]))


def mixup_lambda(generator: np.random.Generator, beta: float = 10.0) -> float:
    """Share of the own cycle for mixup, from Beta(beta, beta); 1 where beta is 0.

    The ADD authors use beta 10, so most mixtures are close to half and half.
    """
    return float(generator.beta(beta, beta)) if beta > 0 else 1.0


def mix(values: Tensor, lam: float | Tensor, index: Tensor) -> Tensor:
    """Mixup of waveforms, features or label rows (batch, ...): lam * own + (1 - lam) * other.

    `lam` is one share, or one for each row (batch,); `index` (batch,) is the row that each row is mixed with.
    """
    share = torch.as_tensor(lam, dtype=values.dtype, device=values.device)
    if share.ndim:
        share = share.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * values[index.to(values.device)]


def lungmix_label(first: str, second: str) -> str:
    """Label of two cycles added together (Lungmix): normal adds nothing, two different abnormal ones give both."""
    (crackle, wheeze), (other_crackle, other_wheeze) = flags_of(first), flags_of(second)
    return label_of(crackle | other_crackle, wheeze | other_wheeze)


class LabelUnion:
    """Labels of two cycles that are added together or concatenated, for whole batches (the Lungmix rule).

    Rows of several labels (0 and 1): their union; a label called normal stays only where no other is set. Class
    numbers: the common class, or the other class where one is normal, else that of `lungmix_label`.

    Args:
        names: Of the labels, in the order of the logits; "normal" may be written in any case.
        multi_label: Whether labels are rows.
    """

    def __init__(self, names: Sequence[str], multi_label: bool) -> None:
        plain = [name.lower() for name in names]
        self.normal = plain.index("normal") if "normal" in plain else None
        self.table: Tensor | None = None
        if not multi_label:
            numbers = range(len(plain))
            self.table = torch.tensor([[_class_of_both(plain, a, b, names) for b in numbers] for a in numbers])

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Label of each pair: rows (batch, labels), or class numbers (batch,), like the input."""
        if self.table is not None:
            return self.table.to(first.device)[first.long(), second.long()]
        either = torch.maximum(first, second)
        if self.normal is None:
            return either
        others = either.clone()
        others[..., self.normal] = 0
        either[..., self.normal] *= (others.amax(-1) == 0).to(either.dtype)
        return either


def _class_of_both(plain: Sequence[str], first: int, second: int, names: Sequence[str]) -> int:
    """Number of the union of two classes, from their numbers and names (plain: lower case)."""
    if first == second or plain[second] == "normal":
        return first
    if plain[first] == "normal":
        return second
    if "both" in plain and {plain[first], plain[second]} <= {"crackle", "wheeze", "both"}:
        return plain.index(lungmix_label(plain[first], plain[second]))
    raise ValueError(f"{names[first]} and {names[second]} have no combined class among {', '.join(names)}")
