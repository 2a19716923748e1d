"""Cycles of a batch mixed with one another, and the labels that result.

Decisions: what is drawn (share, partners, places) is apart from its application and comes from a generator the
caller seeds by counter, so a resumed run mixes alike; nothing is changed in place; the share returned is the one that
was realised, 1 - masked / places, not the one drawn. Two cycles heard together are labelled by one rule everywhere:
normal adds nothing, which holds for a label called normal among several too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laennec.audio.cycles import flags_of, label_of


@dataclass(frozen=True)
class PatchMixDraw:
    """What Patch-Mix or Group-Mix does to one batch.

    Attributes:
        lam: realised share of each row's own cycle.
        index: (batch,) int64, the partner of each row.
        mask: (tokens,) bool, the places taken from the partner; one mask for the whole batch.
    """

    lam: float
    index: Tensor
    mask: Tensor


def draw_patch_mix(
    batch: int,
    tokens: int,
    beta: float,
    generator: np.random.Generator,
    *,
    grid: tuple[int, int] | None = None,
) -> PatchMixDraw:
    """Draw a share from Beta(beta, beta), one permutation and one mask for the batch.

    Args:
        batch: number of cycles.
        tokens: places that may be exchanged: patches, or groups of frames (Group-Mix).
        beta: of the distribution; 0 mixes nothing (lam 1).
        generator: for example `counter_generator(seed, epoch, batch_number, "mixing")`.
        grid: (frequency, time) of the patches, frequency first in memory; given, whole time columns are exchanged.

    Returns:
        The draw: int(places * (1 - drawn share)) places are masked, and lam is 1 - masked / places.

    Raises:
        ValueError: if beta is negative or the grid does not hold the tokens.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, not {beta}")
    if grid is not None and grid[0] * grid[1] != tokens:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches does not hold {tokens} tokens")
    places = tokens if grid is None else grid[1]
    share = generator.beta(beta, beta) if beta > 0 else 1.0
    index = torch.from_numpy(generator.permutation(batch))
    masked = int(places * (1 - share))
    mask = torch.zeros(places, dtype=torch.bool)
    mask[torch.from_numpy(generator.permutation(places)[:masked])] = True
    lam = 1 - masked / places if places else 1.0
    return PatchMixDraw(lam, index, mask if grid is None else mask.repeat(grid[0]))


def patch_mix(tokens: Tensor, draw: PatchMixDraw) -> Tensor:
    """Exchange tokens between cycles, before position embeddings and class tokens are added (as Bae et al. do).

    Args:
        tokens: (batch, tokens, dim): patch embeddings, or groups of frames (Group-Mix), of cycles of one length.
        draw: from `draw_patch_mix`.

    Returns:
        (batch, tokens, dim), a new tensor: the partner's token where the mask is set, the own one elsewhere.

    Raises:
        ValueError: if the draw is for another shape.
    """
    if tokens.shape[:2] != (len(draw.index), len(draw.mask)):
        raise ValueError(
            f"tokens {tuple(tokens.shape)} do not fit a draw for {len(draw.index)} cycles of {len(draw.mask)} tokens"
        )
    mask = draw.mask.to(tokens.device)
    return torch.where(mask[None, :, None], tokens[draw.index.to(tokens.device)], tokens)


def mixup_lambda(generator: np.random.Generator, beta: float = 10.0) -> float:
    """Share of the own cycle for mixup, from Beta(beta, beta); 1 where beta is 0.

    The ADD authors use beta 10, so most mixtures are close to half and half.
    """
    return float(generator.beta(beta, beta)) if beta > 0 else 1.0


def mix(values: Tensor, lam: float | Tensor, index: Tensor) -> Tensor:
    """Mixup of waveforms, features or label rows: lam * own + (1 - lam) * partner's.

    Args:
        values: (batch, ...), floating.
        lam: one share, or one for each row (batch,).
        index: (batch,) int64, the partner of each row.

    Returns:
        (batch, ...).
    """
    share = torch.as_tensor(lam, dtype=values.dtype, device=values.device)
    if share.ndim:
        share = share.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * values[index.to(values.device)]


def soft_labels(labels: Tensor, lam: float | Tensor, index: Tensor, classes: int) -> Tensor:
    """Label rows of a mixed batch.

    Args:
        labels: integers (batch,) before mixing.
        lam: one share of the own label, or one for each row.
        index: (batch,), the partner of each row.
        classes: how many.

    Returns:
        float32 (batch, classes), rows that sum to 1.
    """
    return mix(torch.nn.functional.one_hot(labels.long(), classes).float(), lam, index)


def lungmix_label(first: str, second: str) -> str:
    """Label of two cycles heard at once (Lungmix): normal adds nothing, two different abnormal ones give both.

    Args:
        first: normal, crackle, wheeze or both.
        second: likewise.

    Returns:
        One of the four.
    """
    (crackle, wheeze), (other_crackle, other_wheeze) = flags_of(first), flags_of(second)
    return label_of(crackle | other_crackle, wheeze | other_wheeze)


class LabelUnion:
    """Labels of two cycles heard together, for whole batches: the Lungmix rule, and what joined cycles are called.

    Several labels each (rows of 0 and 1): what either holds; one called normal stays only where nothing else is set.
    One class each (numbers): the class itself where both have it, the other one beside normal, else `lungmix_label`.

    Args:
        names: of the labels, in the order of the logits; "normal" may be written in any case.
        multi_label: whether labels are rows.

    Raises:
        ValueError: if two classes heard together have no class of their own among the names.
    """

    def __init__(self, names: Sequence[str], multi_label: bool) -> None:
        plain = [name.lower() for name in names]
        self.normal = plain.index("normal") if "normal" in plain else None
        self.table: Tensor | None = None
        if not multi_label:
            numbers = range(len(plain))
            self.table = torch.tensor([[_class_of_both(plain, a, b, names) for b in numbers] for a in numbers])

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Label of each pair: rows (batch, labels), or class numbers (batch,), as they came in."""
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
    """Number of the class of two cycles heard together, from their classes' numbers and names (plain: lower case)."""
    if first == second or plain[second] == "normal":
        return first
    if plain[first] == "normal":
        return second
    if "both" in plain and {plain[first], plain[second]} <= {"crackle", "wheeze", "both"}:
        return plain.index(lungmix_label(plain[first], plain[second]))
    raise ValueError(f"{names[first]} and {names[second]} heard together are no class of {', '.join(names)}")
