"""Concatenated context: a cycle with the cycles before and after it in the same recording.

Decisions: at the edges of a recording there are fewer context cycles; missing ones are not replaced. Each cycle goes
through the front end by itself and the FRAMES are concatenated in time order: no frame spans two cycles, which need not
be adjacent (SPRSound annotates with gaps). The encoder takes the cycle and the concatenated context as two inputs, and
the head both embeddings side by side. With the concatenated input alone, pooling does not separate the labelled cycle
from the others and scores are lower; pooling over the cycle's own tokens did not help (SPRSound validation patients,
frozen mobilenet). The context of a sliding window is the windows of the same length directly before and after it; one
cut by the edge of the recording is used if half of it remains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from laennec.audio.cycles import Span, Waveform, cut


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
    """The spans of the same length directly before and directly after a window, in time order.

    `duration_s` is infinity while the end of the recording is unknown and lies beyond these spans.
    """
    start_s, end_s = span
    length_s = end_s - start_s
    sides: list[list[Span]] = []
    for steps in (range(-context_cycles, 0), range(1, context_cycles + 1)):
        beside = [(start_s + step * length_s, end_s + step * length_s) for step in steps]
        inside = [(max(first, 0.0), min(last, duration_s)) for first, last in beside]
        # half a window, with a tolerance for rounded times
        sides.append([span for span in inside if span[1] - span[0] >= 0.499 * length_s])
    return sides[0], sides[1]
