"""Concatenated context: a cycle with the cycles before and after it in the same recording.

Decisions: context cycles are those before and after by time; at the edges of a recording there are fewer, and nothing
replaces them. Each cycle goes through the front end by itself (length rule, edges and draws are its own) and the FRAMES
are concatenated in time order: no frame spans two cycles, which need not be adjacent in the sound (SPRSound annotates
with gaps), and the rule "repeat 2 s" gives 2 s of each. The encoder takes the cycle alone and the concatenated context
as two inputs, and the head takes both embeddings side by side, which works with any encoder and any pooling. With the
concatenated input alone, pooling does not tell the labelled cycle from the others, and the score fell by more than
context raised it; pooling over the labelled cycle's own tokens of the concatenated input gained nothing (SPRSound
validation patients, frozen mobilenet).

The context of a sliding window is the stretches of its own length right before and after it, not the windows that
overlap it: cycles do not overlap either. A stretch that the edge of the recording cuts counts from half a window on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laennec.audio.cycles import Waveform, cut
from laennec.errors import InputError

Span = tuple[float, float]


@dataclass(frozen=True)
class InContext:
    """A cycle and its context, as a feature extractor with `context_cycles` takes it.

    Attributes:
        own: The cycle to classify, shape (samples,).
        before: The cycles before it, in time order; fewer than `context_cycles` or none at the start.
        after: The cycles after it, likewise.
    """

    own: Any
    before: Sequence[Any] = ()
    after: Sequence[Any] = ()

    @property
    def pieces(self) -> list[Any]:
        """All cycles in time order."""
        return [*self.before, self.own, *self.after]


def neighbours_of(spans: Sequence[Span], context_cycles: int) -> list[tuple[list[int], list[int]]]:
    """For each span (in any order), the indices of the cycles before and of those after it, both in time order."""
    order = sorted(range(len(spans)), key=lambda place: (*spans[place], place))
    found: list[tuple[list[int], list[int]]] = [([], [])] * len(spans)
    for rank, place in enumerate(order):
        first = max(rank - context_cycles, 0)
        found[place] = (order[first:rank], order[rank + 1 : rank + 1 + context_cycles])
    return found


def neighbour_rows(
    recordings: Sequence[str], spans: Sequence[Span], context_cycles: int
) -> list[tuple[list[int], list[int]]]:
    """`neighbours_of` for the rows of a table of many recordings; never across recordings."""
    rows_of: dict[str, list[int]] = {}
    for row, recording in enumerate(recordings):
        rows_of.setdefault(recording, []).append(row)
    found: list[tuple[list[int], list[int]]] = [([], [])] * len(spans)
    for rows in rows_of.values():
        inside = neighbours_of([spans[row] for row in rows], context_cycles)
        for row, (before, after) in zip(rows, inside, strict=True):
            found[row] = ([rows[place] for place in before], [rows[place] for place in after])
    return found


def cycles_in_context(
    waveform: Waveform, sampling_rate: int, spans: Sequence[Span], context_cycles: int
) -> list[InContext]:
    """Cut the annotated cycles of a recording, each with its context.

    Args:
        waveform: The whole recording, shape (samples,).
        sampling_rate: In Hz.
        spans: (start_s, end_s) of all its cycles, in any order.
        context_cycles: The extractor's.

    Returns:
        One item for each span, in the order of the spans.
    """
    pieces = [cut(waveform, sampling_rate, *span) for span in spans]
    return [
        InContext(pieces[own], [pieces[i] for i in before], [pieces[i] for i in after])
        for own, (before, after) in enumerate(neighbours_of(spans, context_cycles))
    ]


def beside_window(span: Span, duration_s: float, context_cycles: int) -> tuple[list[Span], list[Span]]:
    """The stretches of a window's own length right before and right after it, in time order.

    `duration_s` is infinity where the end of the recording is not known yet and lies beyond.
    """
    start_s, end_s = span
    length_s = end_s - start_s
    sides: list[list[Span]] = []
    for steps in (range(-context_cycles, 0), range(1, context_cycles + 1)):
        beside = [(start_s + step * length_s, end_s + step * length_s) for step in steps]
        inside = [(max(first, 0.0), min(last, duration_s)) for first, last in beside]
        # a thousandth for the rounding of times
        sides.append([span for span in inside if span[1] - span[0] >= 0.499 * length_s])
    return sides[0], sides[1]


def unfold(items: Sequence[Any], context_cycles: int) -> tuple[list[Any], Tensor]:
    """Turn a list of waveforms and `InContext`s into one list of waveforms and the rows of each item's context.

    Args:
        items: Waveforms and `InContext`s.
        context_cycles: The extractor's.

    Returns:
        The items' own waveforms followed by all context cycles, and int64 (items, pieces): rows of that list in
        time order, -1 where there is none.

    Raises:
        InputError: An item has more context cycles on a side than `context_cycles`.
    """
    wrapped = [item if isinstance(item, InContext) else InContext(item) for item in items]
    sounds = [item.own for item in wrapped]
    joined = []
    for row, item in enumerate(wrapped):
        if max(len(item.before), len(item.after)) > context_cycles:
            raise InputError(
                f"waveform {row} has {len(item.before)} cycles before and {len(item.after)} after it, but these "
                f"features take at most {context_cycles} on either side (context_cycles); leave out those further away"
            )
        first = len(sounds)
        sounds += [*item.before, *item.after]
        joined.append([*range(first, first + len(item.before)), row, *range(first + len(item.before), len(sounds))])
    return sounds, joined_rows(joined)


def joined_rows(joined: Sequence[Sequence[int]]) -> Tensor:
    """Lists of rows as int64 (items, most pieces), -1 behind the shorter ones."""
    most = max(map(len, joined), default=1)
    return torch.tensor([[*rows, *[-1] * (most - len(rows))] for rows in joined], dtype=torch.int64)


def with_context(values: Tensor, mask: Tensor, joined: Tensor) -> dict[str, Tensor]:
    """Concatenate the features of cycles and their context along time.

    Args:
        values: (cycles, frames, mels), the items' own cycles first.
        mask: (cycles, frames), 1 on true frames, which come first.
        joined: int64 (items, pieces), rows of `values` in time order, -1 where there is none.

    Returns:
        input_values and attention_mask of the items' own cycles, (items, frames, mels) and (items, frames), and
        context_values and context_mask of the concatenated ones, each cut to the longest.
    """
    joined = joined.to(values.device)
    items = len(joined)
    counts = mask.sum(1)
    own = int(counts[:items].max()) if items else 0
    ends = torch.where(joined >= 0, counts[joined.clamp_min(0)], 0).cumsum(1)  # (items, pieces)
    total = int(ends[:, -1].max()) if items else 0
    step = torch.arange(total, device=values.device).expand(items, total).contiguous()
    # (items, total): which piece a concatenated frame comes from, and which frame of it
    piece = torch.searchsorted(ends, step, right=True).clamp_max(joined.shape[1] - 1)
    started = torch.nn.functional.pad(ends, (1, 0)).gather(1, piece)
    real = step < ends[:, -1:]
    row, frame = joined.gather(1, piece).clamp_min(0), (step - started).clamp(0, values.shape[1] - 1)
    return {
        "input_values": values[:items, :own],
        "attention_mask": mask[:items, :own],
        "context_values": values[row, frame] * real[:, :, None],
        "context_mask": real.to(mask.dtype),
    }
