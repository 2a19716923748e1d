"""Own metrics: functions of a predictions table, evaluated with the built-in metrics.

Decisions: an interval leaves out one patient at a time, so an own metric is called with the rows of the others.
`ValueError`, `ZeroDivisionError`, `KeyError` and `IndexError` without a patient or in a subgroup mean "undefined"
(scikit-learn raises for one class); on the whole table they are an error. The values without each patient are stored
with the evaluation, so that `laennec compare` does not need the user's code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from laennec.errors import InputError
from laennec.evaluation.metrics import FloatArray
from laennec.extension import load_object

Metric: TypeAlias = Callable[[pd.DataFrame], Mapping[str, float | None]]
"""From a predictions table to named numbers.

The table has the rows with known truth, in the order of the corpus, and the columns of predictions.parquet (cycle_id,
recording_id, patient_id, device, ..., `logit_<output>`, and the truth) and, for each label, `true_<label>` (0/1),
`probability_<label>` (calibrated) and `predicted_<label>` (0/1); where the labels form classes also `true_class` and
`predicted_class` (names). None and nan mean "undefined".
"""


@dataclass(frozen=True)
class OwnMetrics:
    """Own metrics with the names that they return."""

    functions: tuple[Metric, ...]  # the metrics
    names: tuple[str, ...]  # what they return, in order
    table: pd.DataFrame  # what they are called with

    def subset(self, rows: Any) -> "OwnMetrics":
        """The same metrics on some of the rows, given as a mask (cycles,)."""
        return OwnMetrics(self.functions, self.names, self.table.loc[rows].reset_index(drop=True))

    def statistic(self, weights: FloatArray) -> dict[str, FloatArray]:
        """Values over some of the rows: weights of 0 or 1 (weightings, cycles) -> {name: (weightings,)}."""
        values = {name: np.full(len(weights), np.nan) for name in self.names}
        for row, kept in enumerate(weights > 0):
            table = self.table if kept.all() else self.table.loc[kept].reset_index(drop=True)
            for function in self.functions:
                try:
                    found = function(table.copy())  # it may sort or change its table
                except (ValueError, ZeroDivisionError, LookupError):
                    continue
                for name, value in found.items():
                    if name in values:
                        values[name][row] = np.nan if value is None else float(value)
        return values


def load_metrics(given: Sequence[Metric | str], where: str = "metrics") -> tuple[Metric, ...]:
    """Metrics given as functions or by their dotted names."""
    found = []
    for item in given:
        metric = load_object(item, where) if isinstance(item, str) else item
        if not callable(metric):
            raise InputError(f"{where}: {item!r} is not a function; a metric maps a predictions table to named numbers")
        found.append(metric)
    return tuple(found)


def metric_table(predictions: Any) -> pd.DataFrame:
    """The scored rows with the columns that `Metric` names."""
    columns: dict[str, Any] = {}
    for k, name in enumerate(predictions.label_names):
        columns[f"true_{name}"] = predictions.truth[:, k]
        columns[f"probability_{name}"] = predictions.probabilities[:, k]
        columns[f"predicted_{name}"] = predictions.decided[:, k]
    if predictions.class_names:
        names = np.array(predictions.class_names)
        columns |= {"true_class": names[predictions.true], "predicted_class": names[predictions.predicted]}
    table: pd.DataFrame = predictions.table.assign(**columns)
    return table


def bind_metrics(metrics: Sequence[Metric | str], predictions: Any, taken: Sequence[str]) -> OwnMetrics:
    """Call every metric once on all rows and note the names that it returns."""
    names: list[str] = []
    functions, table = load_metrics(metrics), metric_table(predictions)
    for function in functions:
        title = getattr(function, "__name__", type(function).__name__)
        try:
            found = function(table.copy())
        except Exception as error:
            raise InputError(f"metric {title}: {type(error).__name__}: {error}; correct the metric") from error
        if not isinstance(found, Mapping) or not all(_is_value(name, value) for name, value in found.items()):
            raise InputError(f"metric {title}: returned {found!r:.80}; return a dictionary of names to numbers")
        if doubled := [name for name in found if name in taken or name in names]:
            raise InputError(f"metric {title}: the name {doubled[0]!r} is already in use; return another name")
        names += found
    return OwnMetrics(functions, tuple(names), table)


def _is_value(name: Any, value: Any) -> bool:
    """Whether an entry is a name with a number, or with None for what is undefined."""
    return isinstance(name, str) and (value is None or isinstance(value, int | float | np.integer | np.floating))
