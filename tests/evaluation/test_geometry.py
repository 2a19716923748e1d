"""Distances between classes and the map of the embedding."""

import numpy as np
import pytest

from laennec.evaluation.geometry import class_distances, embedding_map, four_properties
from laennec.evaluation.report.details import colours_of


def naive(embeddings, labels, classes):
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    mean, cv = (np.full((classes, classes), np.nan) for _ in range(2))
    for a in range(classes):
        for b in range(classes):
            pairs = [
                1 - unit[i] @ unit[j]
                for i in np.flatnonzero(labels == a)
                for j in np.flatnonzero(labels == b)
                if i != j
            ]
            if pairs:
                mean[a, b], cv[a, b] = np.mean(pairs), np.std(pairs) / np.mean(pairs)
    return mean, cv


def test_moments_equal_all_pairs():
    rng = np.random.default_rng(0)
    embeddings, labels = rng.normal(size=(50, 6)), rng.integers(0, 4, 50)
    got = class_distances(embeddings, labels, ["normal", "crackle", "wheeze", "both"])
    mean, cv = naive(embeddings, labels, 4)
    assert np.array(got["mean"]) == pytest.approx(mean)
    assert np.array(got["cv"]) == pytest.approx(cv)
    n = int((labels == 1).sum())
    assert got["pairs"][1][1] == n * (n - 1) // 2 and got["pairs"][0][1] == got["pairs"][1][0]


def test_without_pairs_there_is_no_distance():
    got = class_distances([[1.0, 0], [0, 1], [0, 0]], [0, 1, 1], ["a", "b", "c"])
    assert got["mean"][0][0] is None and got["mean"][1][1] is None and got["mean"][2][0] is None
    assert got["mean"][0][1] == pytest.approx(1.0) and got["pairs"][1][1] == 0
    same = class_distances([[1.0, 0], [2, 0]], [0, 0], ["a"])
    assert same["mean"] == [[pytest.approx(0.0, abs=1e-12)]] and same["cv"] == [[None]]


BAD = [([[1.0]], [0, 1], None), ([[np.nan]], [0], None), ([[1.0]], [3], ["a"]), ([[1.0]], ["z"], ["a"])]


@pytest.mark.parametrize(("embeddings", "labels", "names"), BAD)
def test_misuse_is_refused(embeddings, labels, names):
    with pytest.raises(ValueError):
        class_distances(embeddings, labels, names)


def test_the_four_properties_equal_loops_over_all_pairs():
    rng = np.random.default_rng(1)
    embeddings, labels = rng.normal(size=(40, 5)) + 0.5, rng.integers(0, 3, 40)
    found = four_properties(class_distances(embeddings, labels, ["a", "b", "c"]))
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for kind, same in (("intra", True), ("inter", False)):
        d = [1 - unit[i] @ unit[j] for i in range(40) for j in range(i) if (labels[i] == labels[j]) == same]
        assert found[kind]["pairs"] == len(d)
        assert found[kind]["mean"] == pytest.approx(np.mean(d))
        assert found[kind]["sd"] == pytest.approx(np.std(d)) and found[kind]["variance"] == pytest.approx(np.var(d))
        assert found[kind]["cv"] == pytest.approx(np.std(d) / np.mean(d))


def test_properties_without_pairs_are_none():
    found = four_properties(class_distances([[1.0, 0], [0, 1.0]], ["a", "b"]))
    assert found["intra"] == {"mean": None, "sd": None, "variance": None, "cv": None, "pairs": 0}
    assert found["inter"]["mean"] == pytest.approx(1.0) and found["inter"]["cv"] == pytest.approx(0.0)
    assert four_properties(class_distances([[1.0, 0], [1.0, 0]], ["a", "a"]))["intra"]["cv"] is None


def heaps(n=40, seed=0):
    """Three heaps of directions, with lengths that must not matter."""
    random = np.random.default_rng(seed)
    centres = np.eye(12)[:3]
    rows = np.concatenate([c + 0.05 * random.normal(size=(n, 12)) for c in centres])
    return rows * random.uniform(0.1, 10, size=(len(rows), 1)), np.repeat(["a", "b", "c"], n)


def test_heaps_stay_heaps_and_the_same_seed_draws_the_same_map():
    embeddings, classes = heaps()
    rows, places = embedding_map(embeddings, classes)
    again = embedding_map(embeddings, classes)
    np.testing.assert_array_equal(places, again[1])
    assert rows.tolist() == list(range(120)) and places.shape == (120, 2)
    assert places.min() == 0 and places.max() == 1
    # the nearest neighbour on the map is of the same heap
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 9 * np.eye(120)
    assert (classes[distance.argmin(1)] == classes).mean() > 0.98
    # the angle counts, not the length
    scaled = embedding_map(embeddings * 2, classes)
    np.testing.assert_allclose(places, scaled[1], atol=1e-6)


def test_a_draw_keeps_the_order_and_the_rare_class():
    embeddings, _ = heaps(n=100)
    classes = np.array(["common"] * 290 + ["rare"] * 10)
    rows, places = embedding_map(embeddings, classes, most=60, seed=1)
    assert len(rows) <= 60 and len(rows) == len(places) and (np.diff(rows) > 0).all()
    assert (classes[rows] == "rare").sum() == 10
    assert embedding_map(embeddings, classes, most=60, seed=2)[0].tolist() != rows.tolist()


def test_rows_without_a_direction_are_left_out_and_too_few_have_no_map():
    embeddings, classes = heaps(n=10)
    embeddings[3] = 0
    rows, _ = embedding_map(embeddings, classes)
    assert 3 not in rows and len(rows) == 29
    assert embedding_map(embeddings[:8], classes[:8]) is None
    assert embedding_map(np.zeros((20, 3)), ["x"] * 20) is None


def test_the_most_frequent_have_colours_and_the_others_share_one_name():
    values = [f"p{k}" for k in range(10) for _ in range(10 - k)] + [None, float("nan")]
    numbers, legend = colours_of(values)
    assert numbers[0] == 0 and numbers[-1] is None and numbers[-3] is None
    assert legend[0] == ("p0", 10, 0) and len([entry for entry in legend if entry[2] is not None]) == 8
    assert legend[-2:] == [("2 others", 3, None), ("unknown", 2, None)]
