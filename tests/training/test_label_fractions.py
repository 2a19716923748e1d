"""Training with a fraction of the labels: which cycles are drawn."""

import numpy as np
import pytest

from laennec.errors import InputError
from laennec.training.data.split_data import labelled_rows, refuse_missing_labels
from laennec.training.data.targets import Targets

OFFICIAL_TRAIN = (2063, 1215, 501, 363)  # of ICBHI 2017: normal, crackle, wheeze, both
FRACTIONS = (0.01, 0.1, 0.5, 1.0)


@pytest.fixture(scope="module")
def official():
    classes = np.repeat(np.arange(4), OFFICIAL_TRAIN)
    np.random.default_rng(0).shuffle(classes)
    return classes, [f"cycle {k}" for k in range(len(classes))]


def test_each_class_gives_its_share(official):
    classes, ids = official
    counts = {f: np.bincount(classes[labelled_rows(classes, ids, f, 0, 0)], minlength=4).tolist() for f in FRACTIONS}
    assert counts == {
        0.01: [21, 12, 5, 4],
        0.1: [206, 122, 50, 36],
        0.5: [1032, 608, 251, 182],
        1.0: list(OFFICIAL_TRAIN),
    }


def test_a_smaller_fraction_lies_within_a_larger_one(official):
    classes, ids = official
    for draw in range(3):
        sets = [set(labelled_rows(classes, ids, f, 0, draw).tolist()) for f in FRACTIONS]
        assert sets[0] < sets[1] < sets[2] < sets[3]


def test_a_draw_depends_on_ids_and_not_on_the_order_of_rows(official):
    classes, ids = official
    order = np.random.default_rng(1).permutation(len(ids))
    there = {ids[r] for r in labelled_rows(classes, ids, 0.05, 0, 2)}
    shuffled = [ids[k] for k in order]
    assert {shuffled[r] for r in labelled_rows(classes[order], shuffled, 0.05, 0, 2)} == there
    rows = labelled_rows(classes, ids, 0.05, 0, 2)
    assert (np.diff(rows) > 0).all() and rows.dtype == np.int64


def test_a_rare_class_keeps_one_cycle():
    classes = np.array([0] * 96 + [1] * 2 + [2] * 2)
    rows = labelled_rows(classes, [str(k) for k in range(100)], 0.03, 0, 0)
    assert np.bincount(classes[rows]).tolist() == [3, 1, 1]


def test_a_fraction_without_room_for_every_class_names_the_least(official):
    classes, ids = official
    with pytest.raises(InputError, match=r"0\.0005 of 4142 training cycles is 2, too few for the 4 classes") as said:
        labelled_rows(classes, ids, 0.0005, 0, 0)
    least = float(str(said.value).split("at least ")[1].split()[0])
    assert len(np.unique(classes[labelled_rows(classes, ids, least, 0, 0)])) == 4


def test_a_label_that_never_or_always_occurs_is_refused():
    flags = np.array([[0, 1], [1, 1]], np.float32)
    with pytest.raises(InputError, match="no cycle without wheeze"):
        refuse_missing_labels(Targets(["crackle", "wheeze"], flags, np.arange(2), np.arange(2)))
    with pytest.raises(InputError, match="no cycle with wheeze"):
        refuse_missing_labels(Targets(["crackle", "wheeze"], flags * [1, 0], np.arange(2), np.arange(2)))
    refuse_missing_labels(Targets(["a", "b"], np.array([0, 0]), np.array([0, 0]), np.arange(2)))
