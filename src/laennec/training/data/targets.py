"""Labels of a cycle table as training targets.

Decisions: rows without a label are left out, because an unknown label is not a negative one. Label names keep the order
of the recipe, or else of the training split, because they are the order of the logits.
"""

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from laennec.configuration import Span
from laennec.corpora.base import class_names, column_of
from laennec.corpora.load import provenance
from laennec.errors import InputError, did_you_mean
from laennec.training.recipe import TargetSettings

FOUR_CLASSES = ("normal", "crackle", "wheeze", "both")
TWO_LABELS = ("crackle", "wheeze")
# columns of labels: training may group cycles by them, pre-training must not
LABEL_COLUMNS = ("class", "label", *TWO_LABELS)
# name of a column in a recipe -> its name in the cycle table
COLUMNS = {
    "patient": "patient_id",
    "recording": "recording_id",
    "device": "device",
    "sex": "sex",
    "chest_location": "chest_location",
    "acquisition_mode": "acquisition_mode",
    "diagnosis": "diagnosis",
    "corpus": "corpus",
    "age_band": "age_years",
    **{name: name for name in LABEL_COLUMNS},
}
MISSING = ("drop", "own_group")
Codes = NDArray[np.int64]


@dataclass
class Targets:
    """The labels of the cycles of one split."""

    names: list[str]  # the labels in the order of the logits
    labels: NDArray[Any]  # float32 (cycles, labels) for multi_label, int64 (cycles,) for single_label
    # int64 (cycles,), one number for each distinct label; auxiliary losses and samplers use them
    class_ids: NDArray[np.int64]
    kept: NDArray[np.int64]  # int64 (cycles,), their rows in the table (rows without a label are left out)
    # columns of the table with one value in a row, for the kept rows, and `class`, the class_ids
    metadata: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, rows: NDArray[np.int64]) -> "Targets":
        """The labels of some of the cycles, in the given order."""
        metadata = {name: [values[row] for row in rows.tolist()] for name, values in self.metadata.items()}
        return replace(
            self, labels=self.labels[rows], class_ids=self.class_ids[rows], kept=self.kept[rows], metadata=metadata
        )


def targets_of(table: Any, settings: TargetSettings, names: Sequence[str] | None = None) -> Targets:
    """Read labels from a cycle table."""
    settings = target_of(table, settings)
    column, names = settings.column, list(names or settings.names)
    if settings.problem_type == "multi_label":
        targets = _multi_label(table, column, names)
    else:
        targets = _single_label(table, column or "label", names)
    if len(table) and not len(targets.kept):
        own = [name for name in table.column_names if name != "label" and class_names(table, name)]
        hint = f"this corpus has labels in {', '.join(own)}" if own else "choose another column"
        asked = column or ("label" if settings.problem_type == "single_label" else ", ".join(targets.names))
        raise InputError(f"no cycle has a label in {asked}; {hint} (target.column)")
    kinds = {
        n: kind.dtype for n, kind in table.features.items() if isinstance(kind, datasets.Value | datasets.ClassLabel)
    }
    single = [name for name, kind in kinds.items() if "binary" not in kind]
    columns = {name: _shared(column_of(table, name), targets.kept) for name in single}
    metadata = metadata_of(table, targets.kept) | columns | {"class": targets.class_ids.tolist()}
    return replace(targets, metadata=metadata)


def target_of(table: Any, settings: TargetSettings, tables: Sequence[Any] = ()) -> TargetSettings:
    """The settings, completed from a table where they leave the target open.

    Own classes in the column `label` make one class of several, or yes/no labels if each is a column of 0 and 1
    (`laennec.corpora.labels`). Otherwise the target is crackle and wheeze or, if they are unknown, the only column of
    classes. A column of text has the classes that occur in `tables`, all splits of the corpus, if given.
    """
    column, names, problem = settings.column, list(settings.names), settings.problem_type
    own = class_names(table, "label")
    if column is not None:
        if column not in table.column_names and not class_names(table, column):
            raise InputError(f"target.column is {column!r}; the cycle table has {', '.join(table.column_names)}")
        several = column == "events" and any(len(names or ()) > 1 for names in column_of(table, column))
        problem = problem or ("multi_label" if several else "single_label")
        if problem == "single_label" and column != "events" and not names and not class_names(table, column):
            names = sorted({str(value) for one in tables for value in column_of(one, column) if value is not None})
    elif names:
        problem = problem or ("multi_label" if set(names) & set(table.column_names) else "single_label")
    elif own and tuple(own) != FOUR_CLASSES:
        labels = {label for name in own for label in name.split("+")} - {"normal"}
        flags = [name for name in table.column_names if name in labels]
        several = len(flags) == len(labels)
        problem = problem or ("multi_label" if several else "single_label")
        if problem == "multi_label":
            column, names = (None, flags) if several else ("events", [name for name in own if name in labels])
    elif problem is None:
        classes = [name for name in table.column_names if name != "label" and class_names(table, name)]
        known = "crackle" not in table.column_names or any(flag is not None for flag in column_of(table, "crackle"))
        problem = "multi_label"
        if not known and len(classes) == 1:
            column, problem = classes[0], "single_label"
    return TargetSettings(problem_type=problem, column=column, names=names)


def _multi_label(table: Any, column: str | None, names: list[str]) -> Targets:
    if column == "events":
        events = [set(e or ()) for e in column_of(table, "events")]
        names = names or sorted(set().union(*events))
        kept = np.array([i for i, e in enumerate(events) if e], dtype=np.int64)
        rows = [[name in events[i] for name in names] for i in kept]
    else:
        names = names or list(TWO_LABELS)
        absent = [n for n in names if n not in table.column_names]
        if absent:
            raise InputError(
                f"target.names has {absent[0]!r}, which is no column of the cycle table; "
                "set target.column: events for event names"
            )
        columns = [column_of(table, name) for name in names]
        kept = np.array([i for i in range(len(table)) if all(c[i] is not None for c in columns)], dtype=np.int64)
        for name, values in zip(names, columns, strict=True):
            if (row := next((i for i in kept.tolist() if values[i] not in (0, 1)), None)) is not None:
                raise InputError(
                    f"column {name!r}, row {row}: {values[row]!r} is neither 0 nor 1; give 0, 1, or null if unknown"
                )
        rows = [[c[i] for c in columns] for i in kept]
    flags = np.array(rows, dtype=np.float32).reshape(-1, len(names))
    class_ids = (flags.astype(np.int64) << np.arange(len(names))).sum(1)
    return Targets(names, flags, class_ids, kept)


def _single_label(table: Any, column: str, names: list[str]) -> Targets:
    values = column_of(table, column)
    classes = class_names(table, column)
    if column == "label" and not classes and all(v is None or v in range(len(FOUR_CLASSES)) for v in values):
        classes = list(FOUR_CLASSES)
    if column == "events":
        values = [v[0] if v else None for v in values]
    elif classes:
        values = [None if v is None else classes[v] for v in values]
        names = names or classes
    names = names or sorted({str(v) for v in values if v is not None})
    number = {name: i for i, name in enumerate(names)}
    kept = np.array([i for i, v in enumerate(values) if v is not None], dtype=np.int64)
    unknown = sorted({str(values[i]) for i in kept} - set(names))
    if unknown:
        raise InputError(
            f"the label {unknown[0]!r} of column {column!r} is none of {', '.join(names)}; "
            "name all of them in target.names"
        )
    labels = np.array([number[str(values[i])] for i in kept], dtype=np.int64)
    return Targets(names, labels, labels, kept)


def span_of(table: Any) -> Span:
    """What the rows of a table are: "cycle" (or other events), "recording", or the seconds of a window."""
    if "start_s" not in table.column_names and "audio" in table.column_names:
        return "recording"  # a row is a whole recording
    if "cycle_id" not in table.column_names or not len(table):
        return "cycle"
    if all(name.endswith("#record") for name in column_of(table, "cycle_id")):
        return "recording"
    if provenance(table).get("level") != "window":
        return "cycle"
    return float(np.max(np.array(column_of(table, "end_s")) - np.array(column_of(table, "start_s"))).round(3))


def metadata_of(table: Any, rows: Codes) -> dict[str, list[Any]]:
    """`cycle_id` and the columns for groups, without labels, of some rows of a cycle table."""
    names = [n for n in ("cycle_id", *COLUMNS.values()) if n in table.column_names and n not in LABEL_COLUMNS]
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
        missing: "drop": -1 where any column is unknown; "own_group": unknown is one more value.

    Returns:
        int64 (cycles,), 0 .. groups - 1, or -1.
    """
    keys = [None if missing == "drop" and None in key else key for key in zip(*columns, strict=True)]
    values = sorted({key for key in keys if key is not None}, key=lambda key: [(v is None, str(v)) for v in key])
    number = {key: i for i, key in enumerate(values)}
    return np.array([-1 if key is None else number[key] for key in keys], dtype=np.int64)


def as_codes(labels: Sequence[Any] | NDArray[Any]) -> Codes:
    """Labels of any type as 0 .. groups - 1."""
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"labels must be a non-empty column (cycles,), not of shape {values.shape}")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


class GroupTable:
    """The groups of the cycles of one split."""

    def __init__(self, rows: int, metadata: Mapping[str, Sequence[Any]], age_edges_years: Sequence[float] = ()) -> None:
        edges = list(age_edges_years)
        if any(b <= a for a, b in pairwise(edges)):
            raise InputError(f"metadata.age_edges_years must rise, not {edges}")
        self.rows = rows
        self.metadata = metadata
        self.edges = edges

    def column(self, name: str, where: str) -> Sequence[Any]:
        """The values of a column by its name in a recipe, or in the cycle table."""
        column = COLUMNS.get(name, name)
        values = self.metadata.get(column)
        if values is None and column not in COLUMNS.values():
            hint = did_you_mean(name, {*COLUMNS, *self.metadata})
            raise InputError(f"{where} has {name!r}; columns are {', '.join(COLUMNS)}, several are joined by +{hint}")
        if values is None or all(v is None for v in values):
            raise InputError(
                f"{where} is {name!r}, but {column} is unknown for all {self.rows} training cycles; "
                "choose another column"
            )
        return [age_band(v, self.edges) for v in values] if name == "age_band" else values

    def codes(self, labels: str | Sequence[str], missing: str, where: str) -> Codes:
        """Group of each cycle; -1 where it is unknown and dropped."""
        names = labels.split("+") if isinstance(labels, str) else list(labels)
        codes = group_codes([self.column(name.strip(), where) for name in names], missing)
        if (codes < 0).all():
            absent = self.describe_ungrouped(codes)
            raise InputError(f"{where}: no training cycle has all of {', '.join(names)}; {absent}; choose others")
        return codes

    def describe_ungrouped(self, codes: Codes) -> str:
        """The cycles without a group, for a message: their number and the first three ids."""
        rows = np.flatnonzero(codes < 0)
        ids = self.metadata.get("cycle_id") or [f"row {row}" for row in range(len(codes))]
        shown = ", ".join(str(ids[row]) for row in rows[:3])
        more = ", ..." if len(rows) > 3 else ""
        return f"unknown for {len(rows)} of {len(codes)} cycles ({shown}{more})"


def refuse_one_class(targets: Targets) -> None:
    """Refuse a training split whose cycles all have the same label."""
    if len(np.unique(targets.class_ids)) > 1:
        return
    label = targets.labels[0]
    said = (
        ", ".join(f"{name} {value:g}" for name, value in zip(targets.names, label, strict=True))
        if targets.labels.ndim == 2
        else targets.names[int(label)]
    )
    raise InputError(
        f"all {len(targets.class_ids)} training cycles have the same label ({said}), so there is nothing to learn; "
        "choose another target.column or another corpus"
    )
