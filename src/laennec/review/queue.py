"""The order in which people review spans.

Decisions: a rule orders all spans; the cap leaves out the spans of a patient after its first ones, so one patient
cannot fill the queue. Ties are broken at random by the seed, not by the order of files. The probabilities are the
calibrated ones, and labels are taken as independent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from laennec.errors import InputError
from laennec.review import RULES


def queue_order(
    probabilities: ArrayLike,
    rule: str,
    *,
    members: ArrayLike | None = None,
    embeddings: ArrayLike | None = None,
    patients: Sequence[Any] | None = None,
    at_most_per_patient: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Order spans for review.

    - uncertain: the largest entropy first, the sum of -p log p - (1 - p) log(1 - p) over labels.
    - confident: the largest probability of any label first.
    - disagreement: the largest mutual information of label and member first: the entropy of the members' mean minus
      the mean of the members' entropies (BALD, Houlsby et al. 2011, arXiv:1112.5745).
    - diverse: first the span nearest to the mean embedding, then always the span whose nearest earlier span is the
      farthest, in cosine distance (farthest-first, Gonzalez 1985; k-center in Sener & Savarese 2018, arXiv:1708.00489).
    - random: a permutation.

    Args:
        probabilities: Of the model, (n, labels).
        rule: One of `RULES`.
        members: Probabilities of each member of an ensemble, (members, n, labels); for disagreement.
        embeddings: (n, dim); for diverse, which takes n x dim operations for each span that it returns.
        patients: The patient of each span, (n,); for the cap.
        at_most_per_patient: How many spans of a patient are kept; None for all.
        seed: For random, and for ties.

    Returns:
        Rows in the order of review: (n,), or fewer with a cap.

    Raises:
        InputError: The rule is unknown or lacks its input, or shapes do not fit.
    """
    p = np.asarray(probabilities, float)
    shuffled = np.random.default_rng(seed).permutation(len(p))
    if rule not in RULES:
        raise InputError(f"rule {rule!r} is unknown; choose from {', '.join(RULES)}")
    if at_most_per_patient is not None and (patients is None or at_most_per_patient < 1):
        raise InputError(f"at most {at_most_per_patient} spans a patient: give 1 or more, and the patient of each span")
    capped = list(patients) if patients is not None and at_most_per_patient is not None else list(range(len(p)))
    most = at_most_per_patient or 1
    if rule == "diverse":
        return _farthest_first(_given(embeddings, "embeddings", len(p), 0), shuffled, capped, most)
    if rule == "random":
        return _capped(shuffled, capped, most)
    if rule == "confident":
        score = p.max(1)
    elif rule == "uncertain":
        score = _entropy(p)
    else:
        each = _given(members, "the probabilities of members of an ensemble", len(p), 1)
        score = _entropy(each.mean(0)) - _entropy(each).mean(0)
    return _capped(shuffled[np.argsort(-score[shuffled], kind="stable")], capped, most)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """In nats, (..., labels) -> (...)."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(-1))


def _capped(order: NDArray[np.int64], patients: Sequence[Any], most: int) -> NDArray[np.int64]:
    """The first `most` rows of each patient."""
    of_rows = pd.Series([str(patients[row]) for row in order])
    return order[of_rows.groupby(of_rows).cumcount().to_numpy() < most]


def _farthest_first(
    embeddings: NDArray[np.float64], shuffled: NDArray[np.int64], patients: Sequence[Any], most: int
) -> NDArray[np.int64]:
    unit = embeddings[shuffled].astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    groups = np.unique([str(patients[row]) for row in shuffled], return_inverse=True)[1]
    left, order = np.full(len(unit), most), list[int]()
    nearest = unit @ unit.mean(0) if len(unit) else np.zeros(0)  # the first pick is the span most similar to the mean
    while (left > 0).any():
        row = int(np.argmax(np.where(left > 0, nearest, -np.inf)))
        distance = 1 - unit @ unit[row]
        nearest = np.minimum(nearest, distance) if order else distance
        order.append(row)
        left[groups == groups[row]] -= 1
        left[row] = 0
    return np.asarray(shuffled[order], np.int64)


def _given(values: ArrayLike | None, what: str, rows: int, axis: int) -> NDArray[np.float64]:
    """An input that a rule needs."""
    if values is None:
        raise InputError(f"this rule needs {what}; give them, or choose another rule")
    array = np.asarray(values)
    if array.ndim != 2 + axis or array.shape[axis] != rows:
        raise InputError(f"{what} have shape {array.shape}, which does not fit {rows} spans")
    return array
