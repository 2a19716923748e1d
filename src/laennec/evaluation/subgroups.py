"""The same score on parts of the patients.

Decisions: the parts are device, chest location, sex and age, because these are what differs between clinics; rows
that do not know theirs form a part of their own ("unknown") instead of vanishing. Age bands: 0-2, 3-11, 12-18, 19-64
and 65 or more completed years. A part of fewer than five patients has figures but no interval.
"""

from typing import Any

import numpy as np

from laennec.evaluation.bootstrap import MIN_PATIENTS, bootstrap_values, interval, interval_note, patient_codes
from laennec.evaluation.metrics import none_if_nan
from laennec.evaluation.predictions import Answers, answer_statistics, headline, point_values

AGE_BANDS = (("0-2", 0, 3), ("3-11", 3, 12), ("12-18", 12, 19), ("19-64", 19, 65), ("65+", 65, 200))
GROUPINGS = ("device", "chest_location", "sex", "age_band")
UNKNOWN = "unknown"


def age_band(age_years: float | None) -> str:
    """The band of an age in years: 2.9 is in "0-2", 65 in "65+"; a missing or negative age is "unknown"."""
    if age_years is None or not np.isfinite(age_years):
        return UNKNOWN
    return next((name for name, low, high in AGE_BANDS if low <= age_years < high), UNKNOWN)


def subgroup_tables(answers: Answers, n_draws: int = 1000, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Score every device, chest location, sex and age band.

    Args:
        answers: What `read_predictions` gives; its table holds the metadata columns that there are.
        n_draws: Bootstrap draws of patients within each part.
        seed: Seed of the draws.

    Returns:
        {"device": rows, "chest_location": rows, "sex": rows, "age_band": rows}, each row {"value", "cycles",
        "patients", "values":
        {figure: number or None}, "intervals": {figure: [low, high] or None}, "note"}. A grouping nobody knows
        anything of is left out.
    """
    tables = {}
    for grouping in GROUPINGS:
        values = _group_values(answers.table, grouping)
        if values is None or set(values) == {UNKNOWN}:
            continue
        order = [name for name, _, _ in AGE_BANDS] if grouping == "age_band" else sorted(set(values) - {UNKNOWN})
        present = [name for name in [*order, UNKNOWN] if (values == name).any()]
        tables[grouping] = [_row(answers.part(values == name), name, n_draws, seed) for name in present]
    return tables


def _group_values(table: Any, grouping: str) -> Any:
    """The part each row belongs to (cycles,), as text; None where the table has no such column."""
    column = "age_years" if grouping == "age_band" else grouping
    if column not in table.columns:
        return None
    if grouping == "age_band":
        return np.array([age_band(age) for age in table[column].to_numpy(dtype=float, na_value=np.nan)], dtype=object)
    return table[column].astype(object).where(table[column].notna(), UNKNOWN).astype(str).to_numpy(dtype=object)


def _row(part: Answers, value: str, n_draws: int, seed: int) -> dict[str, Any]:
    """One line of a subgroup table."""
    figures = point_values(part)
    family = headline(figures).split(".")[0]
    own = part.own.names if part.own is not None else ()
    kept = [n for n in figures if n.split(".")[0] == family or n.endswith("roc_auc") or n in own]
    _, n_patients = patient_codes(part.table)
    note = interval_note(n_patients)
    intervals: dict[str, list[float] | None] = dict.fromkeys(kept)
    statistics = answer_statistics(part)
    # Below the least number of patients `interval` gives None anyway; one draw keeps the code path without the work.
    for name, drawn in bootstrap_values(
        part.table, statistics, n_draws if n_patients >= MIN_PATIENTS else 1, seed
    ).items():
        if name in intervals:
            bounds = interval(drawn, n_patients)
            intervals[name] = None if bounds is None else list(bounds)
    if n_patients >= MIN_PATIENTS and intervals.get(headline(figures)) is None:
        note = "too few abnormal or normal cycles for an interval of the score"
    return {
        "value": value,
        "cycles": len(part.table),
        "patients": n_patients,
        "values": {name: none_if_nan(figures[name]) if figures[name] is not None else None for name in kept},
        "intervals": intervals,
        "note": note,
    }
