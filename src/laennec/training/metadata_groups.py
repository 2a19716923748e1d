"""Columns of the cycle table as groups, for losses and samplers.

Decisions: a group is a number from 0, in the order of the sorted values. Unknown values are never guessed: `drop`
gives them -1 and leaves the cycle out of that loss or sampler, `own_group` makes them one group. Several columns joined
by + make one group of each combination that occurs. An age band is named by its edges in years, which are a setting.
"""

import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.corpora.base import column_of
from laennec.errors import InputError

# what a recipe calls a column -> where it is in the cycle table
COLUMNS = {
    "patient": "patient_id",
    "recording": "recording_id",
    "device": "device",
    "sex": "sex",
    "chest_location": "chest_location",
    "acquisition_mode": "acquisition_mode",
    "diagnosis": "diagnosis",
    "age_band": "age_years",
}
MISSING = ("drop", "own_group")
Codes = NDArray[np.int64]


def metadata_of(table: Any, rows: Codes) -> dict[str, list[Any]]:
    """`cycle_id` and the columns that can be groups, for some rows of a cycle table."""
    names = [name for name in ("cycle_id", *COLUMNS.values()) if name in table.column_names]
    return {name: _shared(column_of(table, name), rows) for name in names}


def _shared(values: list[Any], rows: Codes) -> list[Any]:
    """The values of some rows; equal values share one object, which saves memory."""
    known: dict[Any, Any] = {}
    return [known.setdefault(values[row], values[row]) for row in rows.tolist()]


def age_band(age_years: float | None, edges: Sequence[float]) -> str | None:
    """The band of an age: below the first edge, from an edge to the next, or from the last edge."""
    if age_years is None or age_years != age_years:
        return None
    place = bisect.bisect_right(list(edges), age_years)
    low = f"{edges[place - 1]:g}" if place else "0"
    return f"{place:03d}: {low} to {edges[place]:g}" if place < len(edges) else f"{place:03d}: {low} and more"


def group_codes(columns: Sequence[Sequence[Any]], missing: str = "drop") -> Codes:
    """One number for each combination of values.

    Args:
        columns: Each (cycles,), of any type; None is unknown.
        missing: "drop": -1 where any column is unknown; "own_group": the unknown is a value like any other.

    Returns:
        int64 (cycles,), 0 .. groups - 1, or -1.

    Raises:
        ValueError: If there is no column, they differ in length, or `missing` is another word.
    """
    if missing not in MISSING:
        raise ValueError(f"missing can be {' or '.join(MISSING)}, not {missing!r}")
    if not columns or len({len(column) for column in columns}) != 1:
        raise ValueError("groups need at least one column, all of one length")
    keys = [None if missing == "drop" and None in key else key for key in zip(*columns, strict=True)]
    values = sorted({key for key in keys if key is not None}, key=lambda key: [(v is None, str(v)) for v in key])
    number = {key: i for i, key in enumerate(values)}
    return np.array([-1 if key is None else number[key] for key in keys], dtype=np.int64)


class GroupTable:
    """The groups of the cycles of one split.

    Args:
        rows: Number of cycles.
        metadata: Columns by their name in the cycle table, as `metadata_of` gives them.
        age_edges_years: Edges of the age bands.

    Raises:
        InputError: The edges do not rise.
    """

    def __init__(self, rows: int, metadata: Mapping[str, Sequence[Any]], age_edges_years: Sequence[float] = ()) -> None:
        edges = list(age_edges_years)
        if any(b <= a for a, b in pairwise(edges)):
            raise InputError(f"metadata.age_edges_years must rise, not {edges}")
        self.rows = rows
        self.metadata = metadata
        self.edges = edges

    def column(self, name: str, where: str) -> Sequence[Any]:
        """The values of a column by its recipe name.

        Raises:
            InputError: There is no such column, or it is unknown for every cycle.
        """
        if name not in COLUMNS:
            raise InputError(f"{where} has {name!r}; columns are {', '.join(COLUMNS)}, several are joined by +")
        values = self.metadata.get(COLUMNS[name])
        if values is None or all(v is None for v in values):
            raise InputError(
                f"{where} is {name!r}, but {COLUMNS[name]} is unknown for all {self.rows} training cycles; "
                "choose another column"
            )
        return [age_band(v, self.edges) for v in values] if name == "age_band" else values

    def codes(self, labels: str | Sequence[str], missing: str, where: str) -> Codes:
        """Group of each cycle; -1 where it is unknown and dropped.

        Args:
            labels: A column's name, several joined by +, or a list of names.
            missing: As in `group_codes`.
            where: The setting, for errors.

        Raises:
            InputError: As in `column`, or `missing` is unknown, or no cycle is left.
        """
        names = labels.split("+") if isinstance(labels, str) else list(labels)
        try:
            codes = group_codes([self.column(name.strip(), where) for name in names], missing)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
        if (codes < 0).all():
            raise InputError(f"{where}: no training cycle has all of {', '.join(names)}; {self.whose(codes)}")
        return codes

    def whose(self, codes: Codes) -> str:
        """The cycles without a group, for a message: their number and the first three ids."""
        rows = np.flatnonzero(codes < 0)
        ids = self.metadata.get("cycle_id") or [f"row {row}" for row in range(len(codes))]
        shown = ", ".join(str(ids[row]) for row in rows[:3])
        more = ", ..." if len(rows) > 3 else ""
        return f"unknown for {len(rows)} of {len(codes)} cycles ({shown}{more})"
