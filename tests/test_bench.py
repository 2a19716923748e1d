"""The benchmark's machinery; what it measures is measured by `laennec bench` alone."""

import importlib.util

import pytest

from laennec.bench import ROWS, bench, losses, row
from laennec.errors import InputError

HOLDS_40_MB = """
before = b"x" * 80_000_000
del before
begin()
kept = b"x" * 40_000_000
print(peak())
"""


def test_an_unknown_row_names_those_there_are():
    with pytest.raises(InputError, match=r"unknown row 'los'; the rows are .*losses"):
        bench(["los"], None, None, None)
    assert {"start", "read", "memory", "fbank", "frozen", "step", "losses"} <= set(ROWS)


def test_peak_memory_is_counted_from_where_it_begins_whatever_the_starting_process_holds():
    held = b"x" * 300_000_000  # what a new process would inherit as its peak from getrusage
    (megabytes,) = row.in_a_new_process(row.PEAK_MEMORY + HOLDS_40_MB)
    assert 35 < megabytes < 60
    assert len(held) == 300_000_000


def test_a_failed_measurement_says_why():
    with pytest.raises(InputError, match="ZeroDivisionError"):
        row.in_a_new_process("1 / 0")


def test_large_batches_say_that_the_other_side_is_not_there(monkeypatch):
    monkeypatch.setattr(losses, "ROWS_IN_BATCH", 200)
    monkeypatch.setattr(losses, "DIM", 8)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pytorch_metric_learning" else find(n))
    rows = losses.large_batches(row.Setting(None, None, 1))
    assert [r.bound for r in rows] == ["<= 0.5", "<= 0.5", "<= 0.7", "<= 0.5"]
    assert all(r.other is r.ratio is None and "not measured here" in r.note for r in rows)
    assert all(r.ours > 0 for r in rows if r.unit == "s")
