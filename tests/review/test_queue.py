"""The order of review: each rule against its definition, the cap, ties, and input that does not fit."""

import numpy as np
import pytest

from laennec.errors import InputError
from laennec.review import RULES
from laennec.review.queue import queue_order

DRAW = np.random.default_rng(3)
P = DRAW.uniform(size=(60, 2))
MEMBERS = np.clip(P + DRAW.normal(0, 0.1, (3, 60, 2)), 0.01, 0.99)
EMBEDDINGS = DRAW.normal(size=(60, 8))
INPUTS = {"members": MEMBERS, "embeddings": EMBEDDINGS}


def entropy(p):
    return -sum(x * np.log(x) + (1 - x) * np.log(1 - x) for x in p)


def farthest_first(embeddings):
    unit = [e / np.linalg.norm(e) for e in embeddings]
    order = [max(range(len(unit)), key=lambda i: unit[i] @ np.mean(unit, 0))]
    while len(order) < len(unit):
        left = set(range(len(unit))) - set(order)
        order.append(max(left, key=lambda i: min(1 - unit[i] @ unit[j] for j in order)))
    return order


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_orders_as_it_is_defined(rule):
    rows = range(60)
    naive = {
        "uncertain": sorted(rows, key=lambda i: -entropy(P[i])),
        "confident": sorted(rows, key=lambda i: -max(P[i])),
        "disagreement": sorted(
            rows, key=lambda i: np.mean([entropy(m[i]) for m in MEMBERS]) - entropy(MEMBERS.mean(0)[i])
        ),
        "diverse": farthest_first(EMBEDDINGS),
        "random": list(np.random.default_rng(5).permutation(60)),
    }
    assert queue_order(P, rule, seed=5, **INPUTS).tolist() == naive[rule]


@pytest.mark.parametrize("rule", RULES)
def test_the_cap_keeps_the_first_spans_of_each_patient(rule):
    patients = [f"p{i % 7}" for i in range(60)]
    order = queue_order(P, rule, patients=patients, at_most_per_patient=3, **INPUTS)
    assert sorted(patients[i] for i in order) == sorted([f"p{i}" for i in range(7)] * 3)
    if rule != "diverse":  # whose later spans depend on the earlier ones
        free = queue_order(P, rule, **INPUTS).tolist()
        earlier = {row: [patients[j] for j in free[:place]].count(patients[row]) for place, row in enumerate(free)}
        assert order.tolist() == [row for row in free if earlier[row] < 3]
    assert len(queue_order(P[:0], rule, members=MEMBERS[:, :0], embeddings=EMBEDDINGS[:0])) == 0


def test_ties_are_broken_by_the_seed():
    orders = {tuple(queue_order(np.full((9, 1), 0.5), "uncertain", seed=seed)) for seed in range(4)}
    assert len(orders) == 4 and all(sorted(order) == list(range(9)) for order in orders)


@pytest.mark.parametrize(
    ("rule", "more", "said"),
    [
        ("best", {}, "choose from uncertain"),
        ("diverse", {}, "needs embeddings"),
        ("disagreement", {"members": P}, "have shape"),
        ("random", {"at_most_per_patient": 2}, "the patient of each span"),
        ("random", {"at_most_per_patient": 0, "patients": [1] * 60}, "give 1 or more"),
    ],
)
def test_input_that_does_not_fit_is_one_line(rule, more, said):
    with pytest.raises(InputError, match=said):
        queue_order(P, rule, **more)
