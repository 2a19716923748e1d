"""Every stage: speed and memory as ratios, `laennec bench`."""

from laennec.bench.row import Row
from laennec.bench.table import ROWS, as_table, bench

__all__ = ["ROWS", "Row", "as_table", "bench"]
