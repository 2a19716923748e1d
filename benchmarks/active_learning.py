"""How many labels does each rule of review need? A simulated study on SPRSound's train patients.

    python -m benchmarks.active_learning --data-dir data/sprsound --weights weights/mn04_as_mAP_432.pt

A linear head on frozen mn04 embeddings is trained on a pool of patients and scored on the other patients. Review starts
from a few random events and continues in sessions: the head predicts the pool, a rule chooses the events of the
session, the labels of the corpus are the answers, and the head is trained anew. Test splits are not read. The result is
docs/results/active_learning.json.
"""

import argparse
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.sprsound import LABELS, embedded_train_split
from laennec.evaluation.calibration.probabilities import sigmoid
from laennec.evaluation.metrics import auroc
from laennec.review import RULES
from laennec.review.queue import queue_order
from laennec.training.record import hardware, versions, write_record

SEEDS = range(5)
DRAWS = 5  # of the first events and of random orders, in each seed
FIRST, MEMBERS, HELD_OUT, SHARE = 20, 5, 0.3, 0.95
LIMITS = (None, 2)  # most events of a patient in a session
RESULT = Path(__file__).resolve().parents[1] / "docs/results/active_learning.json"
Array = np.ndarray[Any, Any]


def probabilities(values: Array, truth: Array, labelled: Array) -> Array:
    """Probabilities (events, labels) of heads trained on the labelled rows; 0.5 where these have only one class."""
    columns = []
    for label in range(truth.shape[1]):
        if len(set(truth[labelled, label])) < 2:
            columns.append(np.full(len(values), 0.5))
            continue
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        columns.append(sigmoid(head.fit(values[labelled], truth[labelled, label]).decision_function(values)))
    return np.column_stack(columns)


def score(predicted: Array, truth: Array, rows: Array) -> float:
    """Mean AUROC of the labels on some rows."""
    return float(np.mean([auroc(truth[rows, label], predicted[rows, label]) for label in range(truth.shape[1])]))


def next_events(
    rule: str, limit: int | None, predicted: Array, members: Array | None, data: "Pool", left: Array
) -> Array:
    """The unlabelled events in the order in which the next session takes them."""
    patients = list(data.patients[left])
    if rule == "diverse":  # this order needs no model and is made once; the limit applies to each session
        order = data.diverse[np.isin(data.diverse, left)]
        if limit is not None:
            order = order[pd.Series(data.patients[order]).groupby(data.patients[order]).cumcount().to_numpy() < limit]
        return order
    given = None if members is None else members[:, left]
    seed = data.draw * len(data.values) + len(left)
    return left[
        queue_order(predicted[left], rule, members=given, patients=patients, at_most_per_patient=limit, seed=seed)
    ]


class Pool:
    """The pool of patients and the held-out patients of one seed, and one draw of the first events."""

    def __init__(self, values: Array, truth: Array, patients: Array, seed: int, draw: int) -> None:
        split = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed)
        self.rows, self.held_out = next(split.split(values, groups=patients))
        self.values, self.truth, self.patients, self.seed, self.draw = values, truth, patients, seed, draw
        nothing = np.zeros((len(self.rows), 1))
        self.diverse = self.rows[queue_order(nothing, "diverse", embeddings=values[self.rows], seed=draw)]
        self.first = self.rows[np.random.default_rng([seed, draw, 1]).permutation(len(self.rows))[:FIRST]]
        self.full = score(probabilities(values, truth, self.rows), truth, self.held_out)

    def members(self, labelled: Array) -> Array:
        """Probabilities (members, events, labels) of heads on bootstrap samples of the labelled events."""
        draw = np.random.default_rng([self.seed, self.draw, len(labelled)])
        samples = [draw.choice(labelled, len(labelled)) for _ in range(MEMBERS)]
        return np.stack([probabilities(self.values, self.truth, sample) for sample in samples])


def review(data: Pool, rule: str, limit: int | None) -> Iterator[tuple[int, float]]:
    """Number of labels and held-out score after each session."""
    labelled = data.first
    while True:
        predicted = probabilities(data.values, data.truth, labelled)
        yield len(labelled), score(predicted, data.truth, data.held_out)
        left = np.setdiff1d(data.rows, labelled)
        if not len(left):
            return
        members = data.members(labelled) if rule == "disagreement" else None
        size = 10 if len(labelled) < 300 else 50 if len(labelled) < 1000 else 500
        labelled = np.concatenate([labelled, next_events(rule, limit, predicted, members, data, left)[:size]])


def needed(curve: list[tuple[int, float]], target: float) -> int | None:
    """The first number of labels at which two sessions in a row reach a score; None if no two do."""
    reached = [value >= target for _, value in curve]
    return next((curve[k][0] for k in range(len(curve) - 1) if reached[k] and reached[k + 1]), None)


def targets_of(full: float) -> dict[str, float]:
    """Target scores: a share of the full score, and of its distance from chance."""
    return {"score": SHARE * full, "above chance": 0.5 + SHARE * (full - 0.5)}


def count(pools: list[list[Pool]], rule: str, limit: int | None) -> dict[str, list[float]]:
    """Labels needed for each target, a mean over draws for each seed; the size of the pool if the target is missed."""
    found: dict[str, list[float]] = {}
    for draws in pools:
        numbers = []
        for data in draws:
            curve, targets = [], targets_of(data.full)
            for point in review(data, rule, limit):
                curve.append(point)
                if needed(curve, max(targets.values())) is not None:
                    break
            numbers.append({name: needed(curve, target) or len(data.rows) for name, target in targets.items()})
        for name in numbers[0]:
            found.setdefault(name, []).append(float(np.mean([number[name] for number in numbers])))
    print(rule, limit, found, flush=True)
    return found


def mean_interval(values: list[float]) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval by Student's t."""
    width = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    centre = float(np.mean(values))
    return {"mean": centre, "interval": [centre - float(width), centre + float(width)]}


def main() -> None:
    """Run all seeds and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    values, rows = embedded_train_split(options.data_dir, options.weights)
    truth, patients = rows[[*LABELS]].to_numpy(int), rows["patient_id"].to_numpy(str)
    pools = [[Pool(values, truth, patients, seed, draw) for draw in range(DRAWS)] for seed in SEEDS]
    counts = {(rule, limit): count(pools, rule, limit) for rule in RULES for limit in LIMITS}
    random = counts["random", None]
    results = []
    for (rule, limit), found in counts.items():
        labels = {name: mean_interval(n) for name, n in found.items()}
        ratios = {k: mean_interval([a / b for a, b in zip(found[k], random[k], strict=True)]) for k in found}
        results.append({"rule": rule, "limit": limit, "labels": labels, "of_random": ratios, "by_seed": found})
    facts = {"events": len(rows), "patients": len(set(patients)), "seeds": len(SEEDS), "draws": DRAWS, "first": FIRST}
    facts |= {"share": SHARE, "members": MEMBERS, "pool": [len(draws[0].rows) for draws in pools]}
    facts |= {"full": mean_interval([draws[0].full for draws in pools])}
    facts |= {"date": datetime.date.today().isoformat(), "versions": versions(), "hardware": hardware()}
    write_record(options.out, facts | {"results": results})


if __name__ == "__main__":
    main()
