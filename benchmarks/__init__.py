"""Speed and memory as ratios to what a user would use instead: `python -m benchmarks`."""

from benchmarks.row import Row
from benchmarks.table import ROWS, as_table, bench

__all__ = ["ROWS", "Row", "as_table", "bench"]
