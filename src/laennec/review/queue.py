"""The order in which spans are reviewed.

Decisions: an order is a function of its arguments alone, so a session can be resumed and a study repeated. Ties keep
the order of the rows. A limit for each patient leaves out that patient's further rows. "diverse" is farthest-first
traversal of the normalised embeddings for the first thousand rows, whose cost grows with rows times picks; the rest are
in random order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laennec.errors import InputError

RULES = ("uncertain", "confident", "disagreement", "diverse", "random")
_MOST_DIVERSE = 1000
Order = NDArray[np.int64]


def queue_order(
    probabilities: ArrayLike,
    rule: str,
    *,
    members: ArrayLike | None = None,
    embeddings: ArrayLike | None = None,
    patients: Sequence[Any] | None = None,
    at_most_per_patient: int | None = None,
    seed: int = 0,
) -> Order:
    """Rows in the order of review.

    Args:
        probabilities: Predicted probabilities (n, labels).
        rule: "uncertain" (the label nearest to 0.5), "confident" (the highest probability of any label),
            "disagreement" (standard deviation over members, the largest of any label), "diverse" (far from all earlier
            ones in embedding space), or "random".
        members: Probabilities of the members of an ensemble (m, n, labels), for "disagreement".
        embeddings: (n, d), for "diverse".
        patients: Patient of each row (n,); rows without one are not limited.
        at_most_per_patient: Largest number of rows of a patient; None for no limit.
        seed: Of "random" and of the first row of "diverse".

    Returns:
        Row indices, (n,) or fewer with a limit.

    Raises:
        InputError: Unknown rule, or one without what it needs.

    Reference: Sener and Savarese, Active learning for convolutional neural networks: a core-set approach (2018), for
        "diverse"; Lewis and Gale, A sequential algorithm for training text classifiers (1994), for "uncertain".
    """
    p = np.asarray(probabilities, dtype=float)
    given: dict[str, Any] = {"disagreement": members, "diverse": embeddings}
    if rule not in RULES:
        raise InputError(f"rule {rule!r}: it can be {', '.join(RULES)}")
    if rule in given and given[rule] is None:
        needs = "the probabilities of at least two models" if rule == "disagreement" else "embeddings"
        raise InputError(f"rule {rule}: needs {needs}; give them, or choose another rule")
    rules: dict[str, Callable[[], NDArray[Any]]] = {
        "uncertain": lambda: np.argsort(np.abs(p - 0.5).min(1), kind="stable"),
        "confident": lambda: np.argsort(-p.max(1), kind="stable"),
        "disagreement": lambda: np.argsort(-np.asarray(members, float).std(0).max(1), kind="stable"),
        "diverse": lambda: farthest_first(np.asarray(embeddings, np.float32), seed),
        "random": lambda: np.random.default_rng(seed).permutation(len(p)),
    }
    return limited(rules[rule](), patients, at_most_per_patient)


def limited(order: NDArray[Any], patients: Sequence[Any] | None, at_most: int | None) -> Order:
    """An order without the rows of a patient beyond the first `at_most`."""
    if patients is None or at_most is None:
        return order.astype(np.int64)
    if at_most < 1:
        raise InputError(f"at most {at_most} a patient: it must be 1 or more")
    counts: dict[Any, int] = {}
    kept = []
    for row in order.tolist():
        patient = patients[row]
        counts[patient] = counts.get(patient, 0) + 1
        if patient is None or counts[patient] <= at_most:
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def farthest_first(embeddings: NDArray[np.float32], seed: int, most: int = _MOST_DIVERSE) -> Order:
    """Rows of (n, d): each of the first `most` is the farthest from all before it; the rest are in random order."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    draw = np.random.default_rng(seed).permutation(len(unit))
    nearest = np.full(len(unit), -np.inf)  # cosine to the nearest row that was taken
    taken: list[int] = []
    for _ in range(min(most, len(unit))):
        row = int(np.argmin(nearest)) if taken else int(draw[0])
        taken.append(row)
        nearest = np.maximum(nearest, unit @ unit[row])
        nearest[row] = np.inf
    return np.concatenate([np.array(taken, np.int64), draw[~np.isin(draw, taken)]])
