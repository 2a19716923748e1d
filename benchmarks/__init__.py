"""Speed and memory as ratios, `laennec bench`."""

from benchmarks.row import Row
from benchmarks.table import ROWS, as_table, bench

__all__ = ["ROWS", "Row", "as_table", "bench"]
