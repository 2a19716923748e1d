"""Labels of a cycle table as training targets.

Decisions: rows without a label are left out, because an unknown label is not a negative one. Label names keep the order
of the recipe, or else of the training split, because they are the order of the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.corpora.base import column_of
from laennec.errors import InputError
from laennec.training.metadata_groups import metadata_of
from laennec.training.recipe import TargetSettings

FOUR_CLASSES = ("normal", "crackle", "wheeze", "both")
TWO_LABELS = ("crackle", "wheeze")


@dataclass
class Targets:
    """The labels of the cycles of one split.

    Attributes:
        names: The labels in the order of the logits.
        labels: float32 (cycles, labels) for multi_label, int64 (cycles,) for single_label.
        class_ids: int64 (cycles,), one number for each distinct label; auxiliary losses and samplers use them.
        kept: int64 rows of the table these belong to (rows without a label are left out).
        metadata: Columns of the table that groups can be made of, for the kept rows.
    """

    names: list[str]
    labels: NDArray[Any]
    class_ids: NDArray[np.int64]
    kept: NDArray[np.int64]
    metadata: dict[str, list[Any]] = field(default_factory=dict)

    def take(self, rows: NDArray[np.int64]) -> "Targets":
        """The labels of some of the cycles, in the given order."""
        metadata = {name: [values[row] for row in rows.tolist()] for name, values in self.metadata.items()}
        return replace(
            self, labels=self.labels[rows], class_ids=self.class_ids[rows], kept=self.kept[rows], metadata=metadata
        )


def targets_of(table: Any, settings: TargetSettings, names: Sequence[str] | None = None) -> Targets:
    """Read labels from a cycle table.

    Args:
        table: A cycle table (datasets.Dataset).
        settings: Which problem, column and names.
        names: The label names of training, for any other split.

    Raises:
        InputError: The column does not exist, or a label occurs that training did not have.
    """
    names = list(names or settings.names)
    column = settings.column
    if column is not None and column not in table.column_names:
        raise InputError(f"target.column is {column!r}; the cycle table has {', '.join(table.column_names)}")
    if settings.problem_type == "multi_label":
        targets = _multi_label(table, column, names)
    else:
        targets = _single_label(table, column or "label", names)
    if len(table) and not len(targets.kept):
        own = [name for name in table.column_names if name != "label" and class_names(table, name)]
        hint = f"this corpus has labels in {', '.join(own)}" if own else "choose another column"
        asked = column or ("label" if settings.problem_type == "single_label" else ", ".join(targets.names))
        raise InputError(f"no cycle has a label in {asked}; {hint} (target.column)")
    return replace(targets, metadata=metadata_of(table, targets.kept))


def class_names(table: Any, column: str) -> list[str]:
    """Names of the classes of a column that holds class numbers; none of any other column."""
    features = getattr(table, "features", None) or {}
    return list(getattr(features.get(column), "names", None) or [])


def _multi_label(table: Any, column: str | None, names: list[str]) -> Targets:
    if column == "events":
        events = [set(e or ()) for e in column_of(table, "events")]
        names = names or sorted(set().union(*events))
        kept = np.array([i for i, e in enumerate(events) if e], dtype=np.int64)
        flags = np.array([[name in events[i] for name in names] for i in kept], dtype=np.float32).reshape(
            -1, len(names)
        )
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
        flags = np.array([[c[i] for c in columns] for i in kept], dtype=np.float32).reshape(-1, len(names))
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
