"""Speed and memory in comparison with what users would use instead: `python -m benchmarks`."""

from benchmarks.row import Row
from benchmarks.table import ROWS, as_table, bench

__all__ = ["ROWS", "Row", "as_table", "bench"]
