"""A map of the embedding.

Decisions: rows are normalised, so that neighbours on the map are neighbours by angle, as in `geometry`. The map is
t-SNE with a fixed seed on at most so many cycles; where there are more, classes are drawn in proportion, but of a rare
one no fewer than a handful. It shows neighbourhoods; distances between heaps mean nothing, which is why the numbers
stand beside it. Colours are the eight commonest values of a column; the others share a grey.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laennec.evaluation.metrics import FloatArray, IntArray

MOST_POINTS = 1200
MOST_COLOURS = 8
_LEAST_OF_A_CLASS = 30
_LEAST_POINTS = 10
WIDTH, HEIGHT, MARGIN = 1000, 640, 24


def embedding_map(
    embeddings: ArrayLike, classes: Sequence[Any], *, most: int = MOST_POINTS, seed: int = 0
) -> tuple[IntArray, FloatArray] | None:
    """Place cycles on a plane by t-SNE over their normalised embeddings.

    Args:
        embeddings: (cycles, dim); a zero row has no direction and is left out.
        classes: Class of each cycle, by which the draw is stratified.
        most: Most points.
        seed: Of the draw and of t-SNE.

    Returns:
        Rows of `embeddings` that are shown (points,), and their places (points, 2) in 0..1; None for too few cycles.

    Raises:
        ValueError: Shapes that do not match, or embeddings that are not finite.

    Reference: van der Maaten and Hinton, Visualizing data using t-SNE, JMLR 9 (2008).
    """
    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != 2 or len(classes) != len(values):
        raise ValueError(f"embeddings {values.shape} must be (cycles, dim) and classes ({len(classes)},) as many")
    if not np.isfinite(values).all():
        raise ValueError("embeddings hold a value that is not finite")
    norms = np.linalg.norm(values, axis=1)
    rows = np.flatnonzero(norms > 0)
    rows = rows[_draw([str(classes[row]) for row in rows.tolist()], most, seed)]
    if len(rows) < _LEAST_POINTS:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    # no more threads than one: sums in another order would make another map
    unit = values[rows] / norms[rows, None]
    init = "pca" if unit.shape[1] >= 2 else "random"
    placed = TSNE(perplexity=perplexity, init=init, random_state=seed, n_jobs=1).fit_transform(unit)
    low, high = placed.min(0), placed.max(0)
    return rows, np.asarray((placed - low) / np.where(high > low, high - low, 1.0), dtype=float)


def _draw(classes: list[str], most: int, seed: int) -> IntArray:
    """At most `most` positions, by class in proportion and of each class at least a handful, in their order."""
    if len(classes) <= most:
        return np.arange(len(classes))
    generator = np.random.default_rng(seed)
    given = np.array(classes, dtype=object)
    counts = Counter(classes)
    least = {name: min(n, _LEAST_OF_A_CLASS, max(1, most // len(counts))) for name, n in counts.items()}
    free = most - sum(least.values())
    spare = {name: n - least[name] for name, n in counts.items()}
    total = max(sum(spare.values()), 1)
    chosen = []
    for name in sorted(counts):
        members = np.flatnonzero(given == name)
        take = min(len(members), least[name] + int(free * spare[name] / total))
        chosen.append(generator.choice(members, size=take, replace=False))
    return np.sort(np.concatenate(chosen))


def colours_of(values: Sequence[Any]) -> tuple[list[int | None], list[tuple[str, int, int | None]]]:
    """A colour number for each value, and the legend.

    Returns:
        Number 0..7 of each value (None: one of the others, or unknown), and (name, points, number) for the commonest
        values, then for the rest together.
    """
    known = Counter(str(value) for value in values if not _missing(value))
    common = sorted(known, key=lambda name: (-known[name], name))[:MOST_COLOURS]
    number = {name: k for k, name in enumerate(common)}
    numbers = [None if _missing(value) else number.get(str(value)) for value in values]
    legend: list[tuple[str, int, int | None]] = [(name, known[name], k) for name, k in number.items()]
    others, unknown = len(known) - len(common), sum(map(_missing, values))
    if others:
        legend.append((f"{others} others", sum(known.values()) - sum(known[name] for name in common), None))
    if unknown:
        legend.append(("unknown", unknown, None))
    return numbers, legend


def _missing(value: Any) -> bool:
    """Whether a cell of a table is empty."""
    return value is None or value != value
