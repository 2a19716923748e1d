"""Read recordings in blocks, so that memory does not grow with their length.

Decisions: `read_recording` concatenates the same blocks, so the samples are identical. Some errors (cut short, silent,
too short) are only known at the end of the file; results computed before are then invalid. Windows and cycles are cut
as the blocks arrive; memory holds at most the longest of them and its context.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from laennec.audio.context import InContext, beside_window, neighbours_of
from laennec.audio.cycles import Span, Waveform, prediction_windows
from laennec.audio.recording import UNKNOWN_FRAMES, AudioSource, ButterworthFilter, blocks_of, name_of, opened

_ROUNDING_S = 1e-6  # times are sums of floats; a window this close to the end is cut at the end


@dataclass(eq=False)
class RecordingStream:
    """A recording that is decoded in blocks; made by `open_recording`, and read once."""

    sound: Any  # an `opened` file
    path: str
    sampling_rate: int  # of the blocks, in Hz
    filter: ButterworthFilter | None
    allow_silent: bool
    listener: "Callable[[RecordingStream, Waveform], None] | None"
    samples: int = 0  # number of samples that `blocks` has returned so far
    _decoded: int = 0

    def __post_init__(self) -> None:
        self.source_sampling_rate, self._declared = int(self.sound.samplerate), int(self.sound.frames)

    @property
    def duration_s(self) -> float:
        """Length in seconds of all blocks so far; of the whole recording once it has ended."""
        return self.samples / self.sampling_rate

    @property
    def fraction(self) -> float:
        """Share of the recording that has been decoded, 0 to 1; 0 where its header states no length."""
        return min(self._decoded / self._declared, 1.0) if 0 < self._declared < UNKNOWN_FRAMES else 0.0

    def blocks(self) -> Iterator[Waveform]:
        """The mono sound in blocks of some seconds, float32, shape (samples,)."""
        passing = blocks_of(self.sound, self.path, self.sampling_rate, self.filter, self.allow_silent)
        for self._decoded, block in passing:
            self.samples += len(block)
            if self.listener:
                self.listener(self, block)
            yield block


@contextmanager
def open_recording(
    path: AudioSource,
    sampling_rate: int | None = None,
    *,
    filter: ButterworthFilter | None = None,
    allow_silent: bool = False,
    listener: Callable[[RecordingStream, Waveform], None] | None = None,
) -> Iterator[RecordingStream]:
    """Open a recording to be read in blocks; arguments as for `laennec.audio.recording.read_recording`.

    `listener` is called with the stream and each block before it is returned.
    """
    if sampling_rate is not None and sampling_rate < 1:
        raise ValueError(f"sampling_rate={sampling_rate}: must be positive")
    with opened(path) as sound:
        yield RecordingStream(
            sound, name_of(path), sampling_rate or int(sound.samplerate), filter, allow_silent, listener
        )


class _Buffer:
    """The most recent part of a recording, from which spans are cut."""

    def __init__(self, sampling_rate: int) -> None:
        self.rate = sampling_rate
        self.first = self.end = 0  # samples of the recording at which the blocks begin and end
        self.blocks: deque[Waveform] = deque()  # not one array: a span may be as long as the recording

    @property
    def end_s(self) -> float:
        return self.end / self.rate

    def add(self, block: Waveform, needed_from_s: float) -> None:
        """Append a block and drop those that end before a time."""
        needed = int(min(needed_from_s, self.end_s) * self.rate)
        while self.blocks and self.first + len(self.blocks[0]) <= needed:
            self.first += len(self.blocks.popleft())
        self.blocks.append(block)
        self.end += len(block)

    def cut(self, span: Span) -> Waveform:
        """A copy of the samples that `laennec.audio.cycles.cut` takes out of the whole recording."""
        first = max(int(span[0] * self.rate), 0)
        last = max(int(span[1] * self.rate), first)
        assert first >= min(self.first, self.end), "a span was dropped before it was cut"
        pieces, at = [self.blocks[0][:0]], self.first
        for block in self.blocks:
            if at < last and first < at + len(block):
                pieces.append(block[max(first - at, 0) : last - at])
            at += len(block)
        return np.concatenate(pieces)


def passing_windows(
    stream: RecordingStream, window_s: float, hop_s: float, context_cycles: int = 0
) -> Iterator[tuple[Span, InContext]]:
    """The windows of a recording as it is decoded, with their context."""
    buffer = _Buffer(stream.sampling_rate)
    reach_s = context_cycles * window_s
    done = 0
    for block in stream.blocks():
        # keep what the last window would need if the recording ended here
        buffer.add(block, min(done * hop_s, buffer.end_s - window_s) - reach_s - _ROUNDING_S)
        # half a hop more, because a window may be left out if the recording ended sooner
        while done * hop_s + window_s + max(reach_s, hop_s / 2) + _ROUNDING_S <= buffer.end_s:
            span = (done * hop_s, done * hop_s + window_s)
            yield span, _window(buffer, span, math.inf, context_cycles)
            done += 1
    for span in prediction_windows(stream.duration_s, window_s, hop_s)[done:]:
        yield span, _window(buffer, span, stream.duration_s, context_cycles)


def _window(buffer: _Buffer, span: Span, duration_s: float, context_cycles: int) -> InContext:
    before, after = beside_window(span, duration_s, context_cycles)
    return InContext(
        buffer.cut(span), [buffer.cut(beside) for beside in before], [buffer.cut(beside) for beside in after]
    )


def passing_cycles(
    stream: RecordingStream,
    spans: Sequence[Span],
    context_cycles: int = 0,
    at_end: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, InContext]]:
    """The annotated cycles of a recording as it is decoded: the index of each span and its sound, in time order.

    Args:
        stream: The recording.
        spans: (start_s, end_s) of all its cycles, in any order.
        context_cycles: The extractor's.
        at_end: Called with the length in seconds before cycles at the end of the recording are cut.
    """
    order = sorted(range(len(spans)), key=lambda place: (*spans[place], place))
    neighbours = neighbours_of(spans, context_cycles)
    buffer = _Buffer(stream.sampling_rate)
    pieces: dict[int, Waveform] = {}
    cut_so_far = given = 0

    def ready(ended: bool) -> Iterator[tuple[int, InContext]]:
        nonlocal cut_so_far, given
        while cut_so_far < len(order) and (ended or spans[order[cut_so_far]][1] + _ROUNDING_S <= buffer.end_s):
            pieces[order[cut_so_far]] = buffer.cut(spans[order[cut_so_far]])
            cut_so_far += 1
            while given < len(order) and min(given + context_cycles, len(order) - 1) < cut_so_far:
                place = order[given]
                before, after = neighbours[place]
                yield place, InContext(pieces[place], [pieces[i] for i in before], [pieces[i] for i in after])
                given += 1
                if given > context_cycles:
                    pieces.pop(order[given - context_cycles - 1], None)

    for block in stream.blocks():
        buffer.add(block, spans[order[cut_so_far]][0] - _ROUNDING_S if cut_so_far < len(order) else math.inf)
        yield from ready(False)
    if at_end is not None:
        at_end(stream.duration_s)
    yield from ready(True)
