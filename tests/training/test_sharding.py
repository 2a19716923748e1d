"""Every sampler's guarantee on degenerate tables, in one process and shared among several."""

import inspect

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from laennec.training import devices, samplers
from laennec.training.coverage import coverage_lines
from laennec.training.data.targets import group_codes
from laennec.training.devices import SharedLastBatch
from laennec.training.samplers import (
    AnchorPositiveSampler,
    ClassesTimesSamplesSampler,
    CounterSampler,
    EpochSampler,
    LengthBucketSampler,
    MetadataMatchedSampler,
)

ROW = st.tuples(
    st.integers(0, 4), st.integers(0, 6), st.sampled_from(["Meditron", "Litt3200", None]), st.sampled_from(["F", None])
)
TABLES = st.lists(ROW, min_size=1, max_size=40)
# a class with one member, a patient with one cycle, no metadata at all, fewer rows than any batch
HOSTILE = [(0, 0, None, None)] * 3 + [(1, 1, None, None)]


def columns_of(table):
    return [list(column) for column in zip(*table, strict=True)]


def make(name, table, size, seed):
    """A sampler on a table; None where no cycle has a group, which `GroupTable.codes` refuses."""
    labels, patients, devices, sex = columns_of(table)
    columns = [sex, devices] if name.startswith("metadata_matched") else [devices]
    codes = group_codes(columns, "own_group" if name.endswith("own group") else "drop")
    if (codes < 0).all() and name.startswith(("metadata_matched", "device_balanced")):
        return None
    return {
        "shuffle": lambda: EpochSampler(len(table), seed),
        "length": lambda: LengthBucketSampler(patients, size, seed, 2),
        "anchor_positive": lambda: AnchorPositiveSampler(labels, size, seed),
        "classes_times_samples": lambda: ClassesTimesSamplesSampler(labels, min(2, len(set(labels))), size, seed),
        "patient_balanced": lambda: ClassesTimesSamplesSampler(patients, min(3, len(set(patients))), size, seed),
        "metadata_matched": lambda: MetadataMatchedSampler(codes, size, patients, seed),
        "device_balanced": lambda: ClassesTimesSamplesSampler(codes, 0, size, seed),
    }[name.split(",")[0]]()


NAMES = [
    "shuffle", "length", "anchor_positive", "classes_times_samples", "patient_balanced", "metadata_matched",
    "metadata_matched, own group", "device_balanced", "device_balanced, own group",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(table=TABLES, size=st.integers(1, 7), seed=st.integers(0, 2**40), epoch=st.integers(0, 50))
@example(table=HOSTILE, size=7, seed=0, epoch=0)
@example(table=HOSTILE[-1:], size=3, seed=0, epoch=1)
def test_length_determinism_and_coverage_hold_on_any_table(name, table, size, seed, epoch):
    made = make(name, table, size, seed)
    assume(made is not None)
    made.set_epoch(epoch)
    rows = list(made)
    assert len(rows) == len(made) > 0 and all(e == epoch and 0 <= row < len(table) for row, e in rows)
    again = make(name, table, size, seed)
    again.order(epoch + 1)
    again.set_epoch(epoch)
    assert list(again) == rows
    whole = made.rows_per_batch or size
    if made.rows_per_batch and not made.shares_last_batch:
        assert len(rows) % made.rows_per_batch == 0
    (line,) = coverage_lines(name, made, whole, np.array(columns_of(table)[0]), [], {})
    count, share = -(-len(rows) // whole), 100 * len(set(made.order(0))) / len(table)
    batches = "1 batch" if count == 1 else f"{count} batches"
    assert line == f"sampler {name}: an epoch is {batches} of {whole} and covers {share:.1f} % of {len(table)} cycles"


def shards_of(made, size, processes):
    """The batches of each process, as accelerate distributes them."""
    batches = BatchSampler(made, size, drop_last=False)
    return [
        [[row for row, _ in batch] for batch in BatchSamplerShard(batches, processes, rank)]
        for rank in range(processes)
    ]


@pytest.mark.parametrize("name", NAMES[2:])
@settings(max_examples=20, deadline=None)
@given(table=TABLES, size=st.integers(1, 5), processes=st.sampled_from([2, 3]))
@example(table=HOSTILE, size=3, processes=3)
def test_whole_batches_are_distributed_in_turn_and_equally(name, table, size, processes):
    made = make(name, table, size, 5)
    assume(made is not None)
    alone = [batch.tolist() for batch in made.order(0).reshape(-1, made.rows_per_batch)]
    shards = shards_of(made, made.rows_per_batch, processes)
    assert len({len(shard) for shard in shards}) == 1
    dealt = [batch for turn in zip(*shards, strict=True) for batch in turn]
    assert dealt[: len(alone)] == alone
    # the last round is filled up with whole batches from the beginning
    missing = len(dealt) - len(alone)
    assert 0 <= missing < processes and all(batch in alone for batch in dealt[len(alone) :])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    size=st.integers(1, 9),
    processes=st.sampled_from([2, 3]),
    epoch=st.integers(0, 9),
    by_length=st.booleans(),
)
@example(rows=1, size=4, processes=3, epoch=0, by_length=False)
@example(rows=9, size=4, processes=2, epoch=0, by_length=True)
def test_a_short_last_batch_is_shared_and_equals_that_of_one_process(rows, size, processes, epoch, by_length):
    made = LengthBucketSampler(list(range(rows)), size, 3, 2) if by_length else EpochSampler(rows, 3)
    assert made.shares_last_batch
    made.set_epoch(epoch)
    shared = SharedLastBatch(made, size, processes)
    batches = list(shared)
    assert len(batches) == len(shared) and len(batches) % processes == 0
    shards = [list(BatchSamplerShard(shared, processes, rank, even_batches=False)) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1 and all(batch for shard in shards for batch in shard)
    alone = list(BatchSampler(made, size * processes, drop_last=False))
    together = [[row for batch in turn for row in batch] for turn in zip(*shards, strict=True)]
    assert together[:-1] == alone[:-1]
    assert together[-1][: len(alone[-1])] == alone[-1]
    # a row is repeated only if there are fewer rows than processes
    assert len(together[-1]) == max(len(alone[-1]), processes)
    sizes = [len(shard[-1]) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


LENGTHS = st.lists(st.integers(1, 10**6), min_size=1, max_size=120)


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, size=st.integers(1, 6), processes=st.sampled_from([1, 2, 3, 8]), epoch=st.integers(0, 5))
@example(lengths=[5], size=3, processes=8, epoch=0)
def test_length_buckets_balance_the_work_of_processes(lengths, size, processes, epoch):
    made = LengthBucketSampler(lengths, size, 3, 4, processes)
    made.set_epoch(epoch)
    shared = SharedLastBatch(made, size, processes)
    shards = [list(BatchSamplerShard(shared, processes, rank, even_batches=False)) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1  # equal numbers of batches
    seen = sorted(row for shard in shards for batch in shard for row, _ in batch)
    if len(lengths) >= processes:  # every cycle once, unless the last round has fewer cycles than processes
        left = len(lengths) % (size * processes)
        assert (left and left < processes) or seen == list(range(len(lengths)))
    assert set(seen) == set(range(len(lengths)))
    for turn in zip(*shards, strict=True):
        rows = [row for batch in turn for row, _ in batch]
        longest = sorted((lengths[row] for row in rows), reverse=True)
        if len(set(rows)) == len(rows) and len(rows) >= processes:
            # the longest cycles of the processes are the longest cycles of the round, which is the best balance
            assert (
                sorted((max(lengths[row] for row, _ in batch) for batch in turn), reverse=True) == longest[:processes]
            )
    # each round has the cycles of one batch of a single process with a batch size that many times larger
    alone = LengthBucketSampler(lengths, size * processes, 3, 4)
    alone.set_epoch(epoch)
    for turn, batch in zip(zip(*shards, strict=True), BatchSampler(alone, size * processes, False), strict=True):
        assert {pair for part in turn for pair in part} >= set(batch)


def test_padding_of_processes_differs_by_a_few_per_cent_where_shuffled_batches_differ_by_a_lot():
    lengths = np.random.default_rng(0).lognormal(10.5, 0.5, 4000).astype(int)

    def spread(made):
        shards = list(zip(*shards_of(made, 16, 4), strict=True))[:-1]
        padded = np.array([[len(batch) * max(lengths[row] for row in batch) for batch in turn] for turn in shards])
        return float(np.mean(padded.max(1) / padded.min(1)) - 1)

    bucketed = spread(LengthBucketSampler(lengths, 16, 0, processes=4))
    assert bucketed < 0.05 < 0.3 < spread(LengthBucketSampler(lengths, 16, 0)), bucketed
    assert spread(EpochSampler(len(lengths))) > 0.3


KINDS = {
    thing
    for module in (samplers, devices)
    for thing in vars(module).values()
    if inspect.isclass(thing) and issubclass(thing, CounterSampler | SharedLastBatch)
} - {CounterSampler}


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_a_sampler_states_its_guarantee(kind):
    assert "\nGuarantee: " in inspect.getdoc(kind)
