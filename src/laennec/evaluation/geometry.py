"""Geometry of the embedding: distances between classes, and a map.

Decisions: distance is d = 1 - cos, over pairs of different cycles; spread is the population's standard deviation. Both
are computed from moments of each class, so 7,000 cycles do not need 49 million distances. A pair of classes without two
different cycles has no distance: nan, not 0. The map is t-SNE of normalised embeddings with a fixed seed, over a
limited number of cycles, drawn by class; distances between its clusters have no meaning.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laennec.evaluation.metrics import FloatArray, IntArray, none_if_nan

MOST_POINTS = 1200
_LEAST_OF_A_CLASS = 30
_LEAST_POINTS = 10


def class_distances(
    embeddings: ArrayLike, labels: ArrayLike, class_names: Sequence[str] | None = None
) -> dict[str, list[str] | list[list[float | None]] | list[list[int]]]:
    """Mean and coefficient of variation of the angular distance between every pair of classes (ADD, Fig. 5).

    Args:
        embeddings: (cycles, dim); rows are normalised here, and a zero row is left out.
        labels: Class id (cycles,), indexing `class_names`, or class names (cycles,).
        class_names: Order of the classes; by default the sorted labels that occur.

    Returns:
        {"classes": names, "mean": (n, n), "cv": (n, n) = standard deviation / mean, "pairs": (n, n) unordered pairs},
        where the diagonal is over pairs within one class. None where there is no pair, or where the mean distance is 0.
    """
    rows = np.asarray(embeddings, dtype=float)
    given = np.asarray(labels)
    if rows.ndim != 2 or given.shape != (len(rows),):
        raise ValueError(f"embeddings {rows.shape} must be (cycles, dim) and labels {given.shape} (cycles,)")
    if not np.isfinite(rows).all():
        raise ValueError("embeddings hold a value that is not finite")
    names, ids = _class_ids(given, class_names)
    norms = np.linalg.norm(rows, axis=1)
    kept = norms > 0
    unit, ids = rows[kept] / norms[kept, None], ids[kept]
    members = [unit[ids == k] for k in range(len(names))]
    sizes = np.array([len(group) for group in members])
    own = np.diag(sizes)  # a row's cosine with itself is 1
    sums = np.array([group.sum(0) for group in members])
    moments = np.array([(group.T @ group).ravel() for group in members])  # (classes, dim * dim)
    count = np.outer(sizes, sizes) - own  # ordered pairs of different cycles
    divisor = np.where(count > 0, count, np.nan)
    cosine, square = (sums @ sums.T - own) / divisor, (moments @ moments.T - own) / divisor
    mean = np.maximum(1 - cosine, 0.0)
    spread = np.sqrt(np.maximum(square - cosine**2, 0.0))
    cv = spread / np.where(mean > 1e-6, mean, np.nan)  # below it is rounding noise
    pairs = np.where(np.eye(len(names), dtype=bool), count // 2, count)
    return {"classes": names, "mean": _rows(mean), "cv": _rows(cv), "pairs": pairs.tolist()}


def four_properties(geometry: Mapping[str, Any]) -> dict[str, dict[str, float | int | None]]:
    """The four properties of ADD over all pairs: mean and evenness of d within classes and between them.

    Clustering and separation are the mean of d over pairs of the same and of different classes, equidistance its
    coefficient of variation. Both follow exactly from the stored moments of the pairs of classes.

    Returns:
        {"intra", "inter": {"mean", "sd", "variance", "cv", "pairs" (unordered)}}; None where there is no pair, and
        for a cv where the mean is 0.

    Reference: Almudevar et al., Angular Distance Distribution Loss for Audio Classification (2024), sections 3.2
        and 4.
    """
    mean, cv = (np.array(geometry[key], dtype=float) for key in ("mean", "cv"))  # null is nan
    pairs = np.array(geometry["pairs"], dtype=float)
    upper = np.triu(np.ones_like(pairs, dtype=bool), 1)
    found: dict[str, dict[str, float | int | None]] = {}
    for kind, cells in (("intra", np.eye(len(pairs), dtype=bool)), ("inter", upper)):
        used = cells & (pairs > 0)
        n = float(pairs[used].sum())
        if not n:
            found[kind] = {"mean": None, "sd": None, "variance": None, "cv": None, "pairs": 0}
            continue
        spread = np.nan_to_num(cv[used]) * mean[used]
        centre = float((pairs[used] * mean[used]).sum() / n)
        variance = max(float((pairs[used] * (spread**2 + mean[used] ** 2)).sum() / n) - centre**2, 0.0)
        sd = float(np.sqrt(variance))
        ratio = sd / centre if centre > 1e-12 else None
        found[kind] = {"mean": centre, "sd": sd, "variance": variance, "cv": ratio, "pairs": int(n)}
    return found


def _class_ids(given: Any, class_names: Sequence[str] | None) -> tuple[list[str], Any]:
    """Class names in order, and the position of each label among them."""
    names = [str(label) for label in np.unique(given)] if class_names is None else list(class_names)
    if class_names is not None and np.issubdtype(given.dtype, np.integer):
        if given.size and (given.min() < 0 or given.max() >= len(names)):
            raise ValueError(f"class ids must lie in 0..{len(names) - 1}")
        return names, given
    if unknown := sorted({str(label) for label in given} - set(names)):
        raise ValueError(f"labels {unknown} are not among the classes {names}")
    return names, np.array([names.index(str(label)) for label in given], dtype=int)


def _rows(values: FloatArray) -> list[list[float | None]]:
    """Nested lists for JSON, with null for nan."""
    return [[none_if_nan(value) for value in row] for row in values]


def embedding_map(
    embeddings: ArrayLike, classes: Sequence[Any], *, most: int = MOST_POINTS, seed: int = 0
) -> tuple[IntArray, FloatArray] | None:
    """Positions of cycles in the plane, by t-SNE of their normalised embeddings; zero rows are left out.

    Returns:
        Rows of `embeddings` on the map (points,), drawn by class, and their positions (points, 2) in 0..1; None for too
        few cycles.

    Reference: van der Maaten and Hinton, Visualizing data using t-SNE, JMLR 9 (2008).
    """
    values = np.asarray(embeddings, dtype=np.float64)
    norms = np.linalg.norm(values, axis=1)
    rows = np.flatnonzero(norms > 0)
    rows = rows[_draw([str(classes[row]) for row in rows.tolist()], most, seed)]
    if len(rows) < _LEAST_POINTS:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    # one thread: sums in another order would give another map
    unit = values[rows] / norms[rows, None]
    init = "pca" if unit.shape[1] >= 2 else "random"
    placed = TSNE(perplexity=perplexity, init=init, random_state=seed, n_jobs=1).fit_transform(unit)
    low, high = placed.min(0), placed.max(0)
    return rows, np.asarray((placed - low) / np.where(high > low, high - low, 1.0), dtype=float)


def _draw(classes: list[str], most: int, seed: int) -> IntArray:
    """Draw at most `most` positions, in order: classes in proportion, with at least a few positions of each."""
    if len(classes) <= most:
        return np.arange(len(classes))
    generator, given, counts = np.random.default_rng(seed), np.array(classes, dtype=object), Counter(classes)
    least = {name: min(n, _LEAST_OF_A_CLASS, max(1, most // len(counts))) for name, n in counts.items()}
    free, spare = most - sum(least.values()), len(classes) - sum(least.values())
    chosen = []
    for name in sorted(counts):
        take = min(counts[name], least[name] + int(free * (counts[name] - least[name]) / max(spare, 1)))
        chosen.append(generator.choice(np.flatnonzero(given == name), size=take, replace=False))
    return np.sort(np.concatenate(chosen))
