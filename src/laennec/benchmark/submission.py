"""A file of predictions that is entered in a benchmark.

Decisions: a file has every cycle of each test split that it covers once and no other cycle; all its problems are listed
in one message. A label is predicted above a probability of 0.5, or as the columns `crackle` and `wheeze` say. Columns
that repeat the labels of the corpus are refused.
"""

import csv
import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laennec.benchmark.definitions import Benchmark
from laennec.corpora.base import column_of
from laennec.corpora.recordings import named
from laennec.errors import InputError
from laennec.untrusted import read_bytes

LABELS = ("crackle", "wheeze")
_PROBABILITIES = ["p_crackle", "p_wheeze"]
_LARGEST_LOGIT = 750.0  # in place of infinity; that of the smallest number above 0 is -744


def is_submission(path: Path) -> bool:
    """Whether a path has the name of a file of predictions."""
    return path.suffix.lower() in (".csv", ".parquet") and not path.is_dir()


def read_submission(path: Path, benchmark: Benchmark, splits: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The predictions of a file for each test split that it covers, in the order of the split.

    Returns:
        {split: table of p_<label>, logit_<label> and, where decisions were given, decided_<label>}.

    Raises:
        InputError: The file cannot be read, or is not the predictions of whole test splits.
    """
    table = _read(path)
    ids = {name: column_of(cycles, "cycle_id") for name, cycles in splits.items()}
    tests = {name: ids[name] for name in benchmark.tests if name in ids}
    if problems := [*_wrong_cycles(table.index, tests, ids, benchmark.tests), *_wrong_values(table)]:
        raise InputError(
            f"{path}: not predictions of benchmark {benchmark.name}: {'; '.join(problems)}; give every cycle of a test "
            "split once, with p_crackle and p_wheeze from 0 to 1"
        )
    for label, name in zip(LABELS, _PROBABILITIES, strict=True):
        with np.errstate(divide="ignore"):
            logits = np.log(table[name]) - np.log1p(-table[name])
        table[f"logit_{label}"] = logits.clip(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    table = table.astype({label: int for label in LABELS if label in table})
    table = table.rename(columns={label: f"decided_{label}" for label in LABELS})
    given = {name: table.loc[own].reset_index(drop=True) for name, own in tests.items() if own[0] in table.index}
    for name, rows in given.items():
        truth = [list(column_of(splits[name], label)) for label in LABELS]
        for columns in ([f"decided_{label}" for label in LABELS], _PROBABILITIES):
            if set(columns) <= set(rows) and rows[columns].to_numpy().T.tolist() == truth:
                shown = " and ".join(column.removeprefix("decided_") for column in columns)
                raise InputError(f"{path}: {shown} are the true labels of {name}; give the predictions of the model")
        if all(_separates(rows[column], label) for column, label in zip(_PROBABILITIES, truth, strict=True)):
            raise InputError(
                f"{path}: p_crackle and p_wheeze rank every cycle of {name} without an error, as the true labels do; "
                "give the predictions of the model"
            )
    return given


def _separates(p: pd.Series, label: list[int]) -> bool:
    """Whether probabilities separate the cycles with a label from all others without an error."""
    of_label, of_others = p[np.array(label) == 1], p[np.array(label) == 0]
    return bool(of_label.min() > of_others.max() or of_label.max() < of_others.min())


def _read(path: Path) -> pd.DataFrame:
    """The columns that are used, as numbers by cycle id."""
    try:
        content = io.BytesIO(read_bytes(path))
        is_csv = path.suffix.lower() == ".csv"
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):  # more values than columns
            table = pd.read_csv(content, dtype=str, index_col=False) if is_csv else pd.read_parquet(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except (ValueError, TypeError, pd.errors.ParserWarning) as error:
        said = _uneven(content) if is_csv else None
        said = said or " ".join(str(error).split())[:100]
        raise InputError(
            f"{path}: no table in CSV or Parquet ({said}); write it with commas between columns and decimal points"
        ) from error
    if table.index.name == "cycle_id" and "cycle_id" not in table.columns:
        table = table.reset_index()
    if missing := {"cycle_id", *_PROBABILITIES} - set(table.columns):
        raise InputError(
            f"{path}: no column {', '.join(sorted(missing))} (columns: {named(map(repr, table.columns))}); give "
            "cycle_id, p_crackle and p_wheeze" + (", separated by commas" if is_csv else "")
        )
    if twice := sorted(name for name in ("cycle_id", *_PROBABILITIES, *LABELS) if f"{name}.1" in table.columns):
        raise InputError(f"{path}: two columns {twice[0]}; give each once")
    if empty := [str(row + 1) for row in np.flatnonzero(table["cycle_id"].isna())]:
        raise InputError(f"{path}: no cycle_id in row {named(empty)}; give every row one")
    numbers = table[[name for name in (*_PROBABILITIES, *LABELS) if name in table.columns]]
    yes_or_no = [name for name in _PROBABILITIES if pd.api.types.is_bool_dtype(numbers[name])]
    numbers = numbers.astype(dict.fromkeys(yes_or_no, str))  # True and False are not probabilities
    return numbers.apply(pd.to_numeric, errors="coerce").astype(float).set_index(table["cycle_id"].astype(str))


def _uneven(content: io.BytesIO) -> str | None:
    """Where a CSV file has more values than columns; None where it has not, or is no text."""
    try:
        width, *others = map(len, csv.reader(content.getvalue().decode("utf-8-sig").splitlines()))
    except (ValueError, csv.Error):
        return None
    rows = [(row, values) for row, values in enumerate(others, 2) if values > width]
    return f"line {rows[0][0]} has {rows[0][1]} values, line 1 names {width}" if rows else None


def _wrong_cycles(
    given: pd.Index, tests: Mapping[str, list[str]], ids: Mapping[str, list[str]], published: Iterable[str]
) -> list[str]:
    """Problems with cycles: missing, unknown or repeated ones; some published test splits may be absent here."""
    absent = "".join(f"; the data folder is without {name}" for name in published if name not in tests)
    problems, here = [], set(given)
    covered = {name: own for name, own in tests.items() if not here.isdisjoint(own)} or tests
    for name, own in covered.items():
        if gone := [cycle for cycle in own if cycle not in here]:
            problems.append(f"{len(gone)} of the {len(own)} cycles of {name} are missing ({named(map(repr, gone))})")
    if unknown := sorted(here.difference(*tests.values())):
        whose = [f", {name}" for name, own in ids.items() if name not in tests and not here.isdisjoint(own)]
        problems.append(
            f"{len(unknown)} cycles are unknown or of other splits{''.join(whose)} "
            f"({named(map(repr, unknown))}){absent}"
        )
    if repeated := sorted(set(given[given.duplicated()])):
        problems.append(f"{len(repeated)} cycles occur more than once ({named(map(repr, repeated))})")
    return problems


def _wrong_values(table: pd.DataFrame) -> list[str]:
    """Problems with values: probabilities outside 0 to 1, decisions other than 0 and 1."""
    problems = []
    for name in table.columns:
        right = table[name].between(0, 1) if name in _PROBABILITIES else table[name].isin((0, 1))
        if wrong := table.index[~right].tolist():
            what = "a number from 0 to 1" if name in _PROBABILITIES else "0 or 1"
            problems.append(f"{name} is not {what} in {len(wrong)} rows ({named(wrong)})")
    if len(alone := [name for name in LABELS if name in table.columns]) == 1:
        problems.append(f"there are decisions of {alone[0]} alone")
    return problems
