import numpy as np
import pytest

from laennec.evaluation.geometry import colours_of, embedding_map


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


def test_what_is_no_embedding_is_refused():
    with pytest.raises(ValueError, match="as many"):
        embedding_map(np.ones((3, 2)), ["a"])
    with pytest.raises(ValueError, match="not finite"):
        embedding_map(np.full((3, 2), np.nan), ["a"] * 3)


def test_the_commonest_have_colours_and_the_others_are_named_together():
    values = [f"p{k}" for k in range(10) for _ in range(10 - k)] + [None, float("nan")]
    numbers, legend = colours_of(values)
    assert numbers[0] == 0 and numbers[-1] is None and numbers[-3] is None
    assert legend[0] == ("p0", 10, 0) and len([entry for entry in legend if entry[2] is not None]) == 8
    assert legend[-2:] == [("2 others", 3, None), ("unknown", 2, None)]
