"""The features of cycles and of their context, concatenated along time; see `laennec.audio.context`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from laennec.audio.context import InContext
from laennec.errors import InputError


def unfold(items: Sequence[Any], context_cycles: int) -> tuple[list[Any], Tensor]:
    """One list of waveforms (the items' own cycles, then all context cycles), and the rows of each item's context.

    The rows are int64 (items, pieces) in time order, -1 where there is none.
    """
    wrapped = [item if isinstance(item, InContext) else InContext(item) for item in items]
    sounds = [item.own for item in wrapped]
    pieces = []
    for row, item in enumerate(wrapped):
        if max(len(item.before), len(item.after)) > context_cycles:
            raise InputError(
                f"waveform {row} has {len(item.before)} cycles before and {len(item.after)} after it, but these "
                f"features take at most {context_cycles} on either side (context_cycles); leave out those further away"
            )
        first = len(sounds)
        sounds += [*item.before, *item.after]
        pieces.append([*range(first, first + len(item.before)), row, *range(first + len(item.before), len(sounds))])
    return sounds, padded_rows(pieces)


def padded_rows(pieces: Sequence[Sequence[int]]) -> Tensor:
    """Lists of rows as one int64 tensor (items, longest list), padded with -1."""
    most = max(map(len, pieces), default=1)
    return torch.tensor([[*rows, *[-1] * (most - len(rows))] for rows in pieces], dtype=torch.int64)


def with_context(values: Tensor, mask: Tensor, pieces: Tensor) -> dict[str, Tensor]:
    """Concatenate the features of cycles and their context along time.

    Args:
        values: (cycles, frames, mels), the items' own cycles first.
        mask: (cycles, frames), 1 on true frames, which come first.
        pieces: int64 (items, pieces), rows of `values` in time order, -1 where there is none.

    Returns:
        input_values and attention_mask of the items' own cycles; context_values and context_mask of the concatenated.
    """
    pieces = pieces.to(values.device)
    items = len(pieces)
    counts = mask.sum(1)
    own = int(counts[:items].max()) if items else 0
    ends = torch.where(pieces >= 0, counts[pieces.clamp_min(0)], 0).cumsum(1)  # (items, pieces)
    total = int(ends[:, -1].max()) if items else 0
    step = torch.arange(total, device=values.device).expand(items, total).contiguous()
    # (items, total): which piece a concatenated frame comes from, and which frame of it
    piece = torch.searchsorted(ends, step, right=True).clamp_max(pieces.shape[1] - 1)
    started = torch.nn.functional.pad(ends, (1, 0)).gather(1, piece)
    real = step < ends[:, -1:]
    row, frame = pieces.gather(1, piece).clamp_min(0), (step - started).clamp(0, values.shape[1] - 1)
    return {
        "input_values": values[:items, :own],
        "attention_mask": mask[:items, :own],
        "context_values": values[row, frame] * real[:, :, None],
        "context_mask": real.to(mask.dtype),
    }
