"""Samplers on random label and metadata tables, under DataLoader and accelerate."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, SequentialSampler, SubsetRandomSampler

from laennec.errors import InputError
from laennec.training.coverage import coverage_lines, pairs_of_batches
from laennec.training.data.targets import group_codes
from laennec.training.samplers import (
    AnchorPositiveSampler,
    BalancedSampler,
    ClassesTimesSamplesSampler,
    EpochSampler,
    LengthBucketSampler,
    MetadataMatchedSampler,
    make_sampler,
)

ROWS = st.lists(st.tuples(st.sampled_from("FMX"), st.sampled_from(["y", "o", None]), st.integers(0, 9)), min_size=1)
LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def batches(sampler, epoch=0):
    return sampler.order(epoch).reshape(-1, sampler.rows_per_batch)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=80),
    size=st.integers(1, 12),
    pool=st.integers(1, 6),
    seed=st.integers(0, 2**40),
)
def test_every_cycle_once_in_batches_of_neighbours_in_length(lengths, size, pool, seed):
    sampler = LengthBucketSampler(lengths, size, seed, pool)
    order = sampler.order(2)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(lengths)
    assert np.array_equal(order, LengthBucketSampler(lengths, size, seed, pool).order(2))
    whole = len(lengths) // size
    drawn = [np.array(lengths)[order[i * size : (i + 1) * size]] for i in range(whole)]
    assert all((np.diff(batch) >= 0).all() for batch in drawn)
    if whole <= pool:  # one pool: the ranges of lengths of the batches do not overlap
        spans = sorted((batch[0], batch[-1]) for batch in drawn)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_epochs_of_length_buckets_differ_in_order_and_batches():
    lengths = np.random.default_rng(0).integers(1, 1000, 640)
    sampler = LengthBucketSampler(lengths, 16, seed=3)
    company = [{frozenset(batch) for batch in batches(sampler, epoch).tolist()} for epoch in range(3)]
    assert len(company[0] & company[1]) == len(company[1] & company[2]) == 0
    assert not np.array_equal(batches(sampler, 0)[:, 0], np.sort(batches(sampler, 0)[:, 0]))
    with pytest.raises(ValueError, match="no cycle"):
        LengthBucketSampler([], 16)


def test_real_cycles_by_length_leave_little_padding(shared_data):
    spans = np.concatenate(
        [np.loadtxt(p, ndmin=2) for p in sorted((shared_data / "icbhi2017_annotations").glob("*.txt"))]
    )
    lengths = np.round(100 * (spans[:, 1] - spans[:, 0]))  # frames of the database's 6,898 cycles
    assert len(lengths) == 6898

    def padding(sampler):
        order = sampler.order(0)
        parts = [lengths[order[i : i + 32]] for i in range(0, len(order), 32)]
        return 1 - sum(p.sum() for p in parts) / sum(p.max() * len(p) for p in parts)

    shuffled, bucketed = padding(EpochSampler(len(lengths))), padding(LengthBucketSampler(lengths, 32))
    assert shuffled > 0.4 and bucketed < 0.1, (shuffled, bucketed)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, anchors=st.integers(1, 12), seed=st.integers(0, 2**40), as_array=st.booleans())
def test_anchors_first_then_one_other_cycle_of_the_same_class_each(labels, anchors, seed, as_array):
    sampler = AnchorPositiveSampler(np.array(labels) if as_array else labels, anchors, seed)
    labels = np.array(labels)
    size = np.bincount(labels)
    order = sampler.order(3)
    assert len(order) == len(sampler) == len(list(sampler))
    assert len(sampler) % (2 * anchors) == 0
    first, second = batches(sampler, 3)[:, :anchors].ravel(), batches(sampler, 3)[:, anchors:].ravel()
    assert np.array_equal(labels[first], labels[second])
    assert ((first == second) == (size[labels[first]] == 1)).all()
    # every cycle is an anchor once; the last batch is filled up from the beginning
    assert sorted(first[: len(labels)]) == list(range(len(labels)))
    assert np.array_equal(first, np.resize(first[: len(labels)], len(first)))


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, anchors=st.integers(1, 6), processes=st.integers(1, 4), seed=st.integers(0, 2**40))
def test_processes_share_every_batch_of_anchors_the_last_one_too(labels, anchors, processes, seed):
    whole = batches(AnchorPositiveSampler(labels, anchors * processes, seed), 2)
    shared = batches(AnchorPositiveSampler(labels, anchors, seed, processes), 2)
    assert len(shared) == len(whole) * processes
    for batch, rows in enumerate(whole):
        own = shared[batch * processes : (batch + 1) * processes]  # the batches that the processes take at once
        assert np.array_equal(np.concatenate([own[:, :anchors].ravel(), own[:, anchors:].ravel()]), rows)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, data=st.data(), per_class=st.integers(1, 8), seed=st.integers(0, 2**40))
def test_classes_times_samples(labels, data, per_class, seed):
    classes = data.draw(st.integers(1, len(set(labels))))
    sampler = ClassesTimesSamplesSampler(labels, classes, per_class, seed)
    labels = np.array(labels)
    assert len(sampler.order(0)) == len(sampler) >= len(labels)
    drawn = np.zeros(labels.max() + 1, dtype=int)
    for batch in batches(sampler, 0):
        found, counts = np.unique(labels[batch], return_counts=True)
        assert len(found) == classes
        assert (counts == per_class).all()
        for label in found:
            rows = batch[labels[batch] == label]
            assert len(set(rows)) == min(per_class, (labels == label).sum())
        drawn[found] += 1
    present = drawn[np.unique(labels)]
    assert present.max() - present.min() <= 1


def test_every_positive_is_drawn_about_equally_often():
    sampler = AnchorPositiveSampler([0, 0, 0, 0, 1], 5)
    counts = np.zeros((5, 5), dtype=int)
    for epoch in range(600):
        anchors, positives = batches(sampler, epoch)[0].reshape(2, 5)
        counts[anchors, positives] += 1
    assert counts[4, 4] == 600
    expected = 200 * (1 - np.eye(4))
    assert np.abs(counts[:4, :4] - expected).max() < 60
    assert np.diag(counts)[:4].tolist() == [0] * 4


def test_a_common_class_is_drawn_completely_before_it_repeats():
    sampler = ClassesTimesSamplesSampler([0] * 30 + [1] * 2, 2, 4, seed=0)
    rows = sampler.order(0)
    common = rows[rows < 30]
    assert len(set(common)) == len(common) == 16


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: EpochSampler(23, seed),
        lambda seed: AnchorPositiveSampler(np.arange(23) % 3, 4, seed),
        lambda seed: ClassesTimesSamplesSampler(np.arange(23) % 3, 2, 3, seed),
        lambda seed: MetadataMatchedSampler(np.arange(24) % 6 // 2, 4, list(range(12)) * 2, seed),
        lambda seed: BalancedSampler([np.arange(24) % 6 // 2], seed),
    ],
)
def test_order_depends_on_seed_and_epoch_alone(make):
    sampler, again = make(7), make(7)
    np.random.seed(0)
    torch.manual_seed(0)
    for epoch in (2, 0, 1):
        again.order(epoch)
    assert np.array_equal(sampler.order(2), again.order(2))
    assert not np.array_equal(sampler.order(2), sampler.order(1))
    assert not np.array_equal(sampler.order(2), make(8).order(2))
    sampler.set_epoch(2)
    assert list(sampler) == [(row, 2) for row in sampler.order(2)]
    assert list(sampler) == list(sampler)
    assert len(sampler) == len(list(sampler))
    assert all(type(row) is int for row, _ in sampler)


class Rows(Dataset):
    def __len__(self):
        return 23

    def __getitem__(self, item):
        return torch.tensor(item)


def test_a_loader_skipped_forward_gives_the_same_rest_at_any_number_of_workers():
    def loader(workers):
        sampler = AnchorPositiveSampler(np.arange(23) % 3, 4, 1)
        return prepare_data_loader(
            DataLoader(Rows(), batch_size=8, sampler=sampler, num_workers=workers), num_processes=1, put_on_device=False
        )

    whole = loader(0)
    whole.set_epoch(3)
    everything = [batch.tolist() for batch in whole]
    assert [len(batch) for batch in everything] == [8] * 6
    assert {epoch for batch in everything for _, epoch in batch} == {3}
    rest = skip_first_batches(loader(2), 2)
    rest.set_epoch(3)
    assert [batch.tolist() for batch in rest] == everything[2:]


def test_pairs_are_those_that_a_double_loop_counts():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 3])
    sampler = AnchorPositiveSampler(labels, 3, 5)
    pairs = []
    for batch in batches(sampler, 1):
        places = [(i, j) for i in range(6) for j in range(6) if batch[i] != batch[j]]
        pairs.append(sum(labels[batch[i]] == labels[batch[j]] for i, j in places))
    assert pairs_of_batches(sampler.order(1), labels, 6)[0] == pairs
    assert pairs_of_batches(EpochSampler(10, 0).order(0), labels, 1) == ([0] * 10, 10)


def test_batches_of_one_class_are_counted_and_the_unknown_have_no_pairs():
    labels = np.array([0, 0, 1, 1, -1, -1])
    assert pairs_of_batches(np.arange(6), labels, 2) == ([2, 2, 0], 3)
    assert pairs_of_batches(EpochSampler(6).order(0), labels, 6) == ([4], 0)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, size=st.integers(1, 9), missing=st.sampled_from(["drop", "own_group"]), seed=st.integers(0, 2**40))
def test_a_batch_is_equal_in_its_columns_and_holds_a_patient_once(rows, size, missing, seed):
    sex, age, patients = zip(*rows, strict=True)
    known = [row for row, a in enumerate(age) if a is not None or missing == "own_group"]
    assume(known)
    sampler = MetadataMatchedSampler(group_codes([sex, age], missing), size, patients, seed)
    assert len(sampler) == len(sampler.order(0)) == len(list(sampler)) and len(sampler) % size == 0
    assert len(sampler) >= len(known)
    members = {}
    for row in known:
        members.setdefault((sex[row], age[row]), set()).add(patients[row])
    for batch in batches(sampler, 3):
        assert set(batch) <= set(known)
        group = {(sex[row], age[row]) for row in batch}
        assert len(group) == 1
        assert len({patients[row] for row in batch}) == min(size, len(members[group.pop()]))


@settings(max_examples=60, deadline=None)
@given(
    devices=st.lists(st.sampled_from(["Meditron", "LittC2SE", "AKGC417L", None]), min_size=1, max_size=50),
    data=st.data(), each=st.integers(1, 6), missing=st.sampled_from(["drop", "own_group"]),
)  # fmt: skip
def test_every_batch_holds_as_many_cycles_of_each_device(devices, data, each, missing):
    kinds = set(devices) if missing == "own_group" else set(devices) - {None}
    assume(kinds)
    count = data.draw(st.integers(0, len(kinds)))
    sampler = ClassesTimesSamplesSampler(group_codes([devices], missing), count, each, seed=1)
    assert len(sampler.order(2)) == len(sampler)
    for batch in batches(sampler, 2):
        found = [devices[row] for row in batch]
        assert set(found) <= kinds and len(set(found)) == (count or len(kinds))
        assert all(found.count(device) == each for device in set(found))


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", "z", None])), min_size=1, max_size=60),
    missing=st.sampled_from(["drop", "own_group"]), epoch=st.integers(0, 5),
)  # fmt: skip
def test_an_epoch_holds_as_many_cycles_of_each_corpus_and_of_each_device_in_it(table, missing, epoch):
    kept = [row for row, (_, device) in enumerate(table) if device is not None or missing == "own_group"]
    assume(kept)
    corpora, devices = zip(*table, strict=True)
    columns = [group_codes([column], missing) for column in (corpora, devices)]
    order = BalancedSampler(columns, seed=1).order(epoch).tolist()
    assert len(order) == len(kept) and set(order) <= set(kept)
    for corpus in {corpora[row] for row in kept}:
        own = [row for row in kept if corpora[row] == corpus]
        share = len(kept) / len({corpora[row] for row in kept})
        assert abs(sum(corpora[row] == corpus for row in order) - share) <= 1
        for device in {devices[row] for row in own}:
            members = [row for row in own if devices[row] == device]
            drawn = [order.count(row) for row in members]
            assert abs(sum(drawn) - share / len({devices[row] for row in own})) <= 1
            assert max(drawn) - min(drawn) <= 1, "no cycle of a group is drawn again before all of it are"


def test_without_patients_every_cycle_is_seen_before_any_returns():
    order = MetadataMatchedSampler(np.repeat([0, 1], [10, 6]), 5).order(4)
    assert sorted(order[order < 10]) == list(range(10))
    assert set(order) == set(range(16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EpochSampler(0), "no cycle"),
        (lambda: AnchorPositiveSampler([0, 1], 0), "at least one anchor"),
        (lambda: AnchorPositiveSampler([], 2), "non-empty column"),
        (lambda: ClassesTimesSamplesSampler([0, 1, 1], 3, 2), "cannot be drawn from 2 groups"),
        (lambda: ClassesTimesSamplesSampler([-1, -1], 0, 2), "cannot be drawn from 0 groups"),
        (lambda: MetadataMatchedSampler(np.zeros(1, int), 0), "at least one cycle"),
    ],
)
def test_misuse_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class PlainRows:
    """A user's sampler with its own batch size that yields row numbers."""

    rows_per_batch = 2

    def __len__(self):
        return 4

    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize("own", [PlainRows(), SequentialSampler(range(4))])
def test_an_own_sampler_of_plain_rows_gets_the_epoch_beside_each_row(own):
    made = make_sampler(own, [0] * 4, [], 2, 0)
    made.set_epoch(3)
    assert list(made) == [(row, 3) for row in range(4)] and len(made) == 4


@pytest.mark.parametrize("rows", [[0, 4], [-1], [(4, 0)]])
def test_an_own_sampler_of_rows_that_are_not_there_is_one_line(rows):
    with pytest.raises(InputError, match=r"sampler SubsetRandomSampler yields row (4|-1); its rows must be 0 to 3"):
        list(make_sampler(SubsetRandomSampler(rows), [0] * 4, [], 2, 0))
    with pytest.raises(InputError, match="sampler SubsetRandomSampler yields row"):
        coverage_lines("shuffle", SubsetRandomSampler(rows), 2, np.zeros(4), [], {})


def test_an_own_sampler_without_rows_is_named():
    with pytest.raises(InputError, match="sampler SubsetRandomSampler: its first epoch has no cycles"):
        coverage_lines("shuffle", SubsetRandomSampler([]), 2, np.zeros(4), [], {})
