"""How well `breath_cycles` finds annotated breath cycles, in comparison with fixed windows.

Decisions: the parameters were chosen on every other patient (by number). The patients in between give the result and
come first; the others are shown for comparison. The first and the last annotated cycle of a recording are left out,
because the edges of the recording reveal them (and some recordings of the subset consist of their cycles with digital
silence around them). The alternative does not use the sound: fixed windows with the median cycle length of the patients
on whom parameters were chosen.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.row import Row, Setting, needs
from laennec.audio.cycles import Span, read_annotation
from laennec.audio.recording import read_header
from laennec.audio.segmentation import breath_cycles

_OVERLAP = 0.5


def breathing(setting: Setting) -> list[Row]:
    """Boundaries and cycles found in the real ICBHI subset."""
    folder = needs(setting, "icbhi2017_subset")
    paths = sorted(folder.glob("*.flac"))
    annotated = {path: _annotated(path) for path in paths}
    patients = sorted({path.name.split("_")[0] for path in paths})
    chosen_on = [path for path in paths if path.name.split("_")[0] in patients[::2]]
    between = [path for path in paths if path not in set(chosen_on)]
    median_s = float(np.median([end - start for path in chosen_on for start, end in annotated[path]]))
    rows = []
    for some, who in (
        (between, "patients that no parameter was chosen on"),
        (chosen_on, "patients the parameters were chosen on"),
    ):
        truth = [annotated[path] for path in some]
        sides = [_scores(truth, [breath_cycles(path) for path in some])]
        sides.append(_scores(truth, [_clock(path, median_s) for path in some]))
        count = len({path.name.split("_")[0] for path in some})
        note = f"{count} {who}, {len(some)} recordings; against windows of {median_s:.2f} s, the median cycle"
        for (name, unit, bound), ours, other in zip(_FIGURES, *sides, strict=True):
            rows.append(Row(name, ours, other, unit, ours / other, bound, note))
    return rows


_FIGURES = (
    ("breath boundary, median distance to the nearest found", "s", "< 0.5"),
    ("the same, 90th percentile", "s", "< 1"),
    (f"annotated cycles that were found (overlap >= {_OVERLAP})", "%", "> 1"),
    (f"found cycles that are annotated (overlap >= {_OVERLAP})", "%", "> 1"),
)


def _annotated(path: Path) -> list[Span]:
    return sorted((cycle.start_s, cycle.end_s) for cycle in read_annotation(path.with_suffix(".txt")))


def _clock(path: Path, length_s: float) -> list[Span]:
    """Consecutive windows of one length from the start of a recording."""
    rate, frames = read_header(path)
    edges = [*np.arange(0, frames / rate, length_s).tolist(), frames / rate]
    return list(pairwise(edges))


def _scores(truth: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]]) -> tuple[float, float, float, float]:
    """Median and 90th percentile of boundary distances in s; recall and precision of cycles in percent."""
    distances: list[float] = []
    hits = annotated = right = claimed = 0
    for cycles, spans in zip(truth, found, strict=True):
        distances += boundary_distances(cycles, spans)
        inner = cycles[1:-1]
        first_s, last_s = cycles[0][1], cycles[-1][0]
        there = [span for span in spans if first_s <= (span[0] + span[1]) / 2 <= last_s]
        hits += sum(any(overlap(cycle, span) >= _OVERLAP for span in there) for cycle in inner)
        right += sum(any(overlap(cycle, span) >= _OVERLAP for cycle in inner) for span in there)
        annotated += len(inner)
        claimed += len(there)
    median, high = np.percentile(distances, [50, 90]).tolist()
    return median, high, 100 * hits / annotated, 100 * right / claimed


def boundary_distances(cycles: Sequence[Span], spans: Sequence[Span]) -> list[float]:
    """Distance of each boundary between annotated cycles to the nearest start of a found cycle, in seconds.

    Args:
        cycles: Annotated cycles in time order.
        spans: Found cycles.
    """
    starts = np.array([start for start, _ in spans])
    return [float(np.abs(starts - start).min()) for start, _ in cycles[1:]]


def overlap(one: Span, other: Span) -> float:
    """Intersection over union of two time spans."""
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (one[1] - one[0] + other[1] - other[0] - shared)
