"""Batches of equal or balanced metadata, on random tables with holes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laennec.training.coverage import coverage
from laennec.training.samplers import DeviceBalancedSampler, MetadataMatchedSampler

ROWS = st.lists(st.tuples(st.sampled_from("FMX"), st.sampled_from(["y", "o", None]), st.integers(0, 9)), min_size=1)


def batches(sampler, epoch=0):
    return sampler.order(epoch).reshape(-1, sampler.rows_per_batch)


@settings(max_examples=80, deadline=None)
@given(rows=ROWS, size=st.integers(1, 9), missing=st.sampled_from(["drop", "own_group"]), seed=st.integers(0, 2**40))
def test_a_batch_is_equal_in_its_columns_and_holds_a_patient_once(rows, size, missing, seed):
    sex, age, patients = zip(*rows, strict=True)
    known = [row for row, a in enumerate(age) if a is not None or missing == "own_group"]
    assume(known)
    sampler = MetadataMatchedSampler([sex, age], size, patients, missing, seed)
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
    sampler = DeviceBalancedSampler(devices, count, each, missing, seed=1)
    assert len(sampler.order(2)) == len(sampler)
    for batch in batches(sampler, 2):
        found = [devices[row] for row in batch]
        assert set(found) <= kinds and len(set(found)) == (count or len(kinds))
        assert all(found.count(device) == each for device in set(found))


def test_without_patients_every_cycle_is_seen_before_any_returns():
    sex = ["F"] * 10 + ["M"] * 6
    order = MetadataMatchedSampler([sex], 5).order(4)
    assert sorted(order[order < 10]) == list(range(10))
    assert coverage(MetadataMatchedSampler([sex], 5)).share_seen == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: MetadataMatchedSampler([list("aabbcc") * 4], 4, list(range(12)) * 2, seed=seed),
        lambda seed: DeviceBalancedSampler(list("aabbcc") * 4, 2, 3, seed=seed),
    ],
)
def test_the_order_depends_on_seed_and_epoch_alone(make):
    sampler = make(7)
    assert np.array_equal(sampler.order(2), make(7).order(2))
    assert not np.array_equal(sampler.order(2), sampler.order(1))
    assert not np.array_equal(sampler.order(2), make(8).order(2))
    sampler.set_epoch(2)
    assert list(sampler) == [(row, 2) for row in sampler.order(2)]


def test_misuse_is_named():
    with pytest.raises(ValueError, match="no cycle has all of the columns"):
        MetadataMatchedSampler([[None, None]], 2)
    with pytest.raises(ValueError, match="at least one cycle"):
        MetadataMatchedSampler([["a"]], 0)
    with pytest.raises(ValueError, match="no cycle has a device"):
        DeviceBalancedSampler([None], 1, 2)
    with pytest.raises(ValueError, match="cannot be drawn from 1 groups"):
        DeviceBalancedSampler(["a", "a"], 2, 2)
