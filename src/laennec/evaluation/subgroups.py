"""Scores of subgroups of the rows.

Decisions: subgroups are corpus, device, chest location, sex and age band (0-2, 3-11, 12-18, 19-64, 65 and more
completed years); rows with missing metadata form the subgroup "unknown".
"""

from typing import Any

import numpy as np
import pandas as pd

from laennec.evaluation.intervals import (
    LEAST_EFFECTIVE,
    MIN_PATIENTS,
    effective_by_label,
    effective_patients,
    interval_note,
    patient_codes,
    patient_intervals,
)
from laennec.evaluation.predictions import Predictions, effective_numbers, headline, point_values, statistics_of

AGE_BANDS, _AGE_EDGES = ("0-2", "3-11", "12-18", "19-64", "65+"), (0, 3, 12, 19, 65, 200)
GROUPINGS = ("corpus", "device", "chest_location", "sex", "age_band")
UNKNOWN = "unknown"


def subgroup_tables(predictions: Predictions) -> dict[str, list[dict[str, Any]]]:
    """Score every corpus (where there are several), device, chest location, sex and age band: rows by grouping.

    A grouping without any metadata is left out.
    """
    tables = {}
    for grouping in GROUPINGS:
        values = _group_values(predictions.table, grouping)
        if values is None or set(values) == {UNKNOWN}:
            continue
        order = AGE_BANDS if grouping == "age_band" else sorted(set(values) - {UNKNOWN})
        present = [name for name in [*order, UNKNOWN] if (values == name).any()]
        tables[grouping] = [_subgroup(predictions.subset(values == name), name) for name in present]
    return tables


def _group_values(table: Any, grouping: str) -> Any:
    """The subgroup of each row (cycles,), as text; None where the table has no such column."""
    column = "age_years" if grouping == "age_band" else grouping
    if column not in table.columns:
        return None
    values = table[column]
    if grouping == "age_band":
        ages = values.to_numpy(dtype=float, na_value=np.nan)
        values = pd.Series(pd.cut(ages, _AGE_EDGES, right=False, labels=AGE_BANDS))
    return values.astype(object).where(values.notna(), UNKNOWN).astype(str).to_numpy(dtype=object)


def _subgroup(subset: Predictions, value: str) -> dict[str, Any]:
    """One row of a subgroup table: the headline's family, AUROCs and own metrics."""
    figures = point_values(subset)
    main = headline(figures)
    family = main.split(".")[0]
    own = subset.own.names if subset.own is not None else ()
    kept = [n for n in figures if n.split(".")[0] == family or n.endswith("roc_auc") or n in own]
    codes, n_patients = patient_codes(subset.table)
    effective = {family: effective_patients(codes, np.ones(len(codes)))} | effective_numbers(subset)
    bounds = patient_intervals(subset.table, statistics_of(subset), effective)
    note = interval_note(n_patients)
    if n_patients >= MIN_PATIENTS and bounds.get(main) is None:
        few = f"{effective[family]:.1f} effective patients"
        note = f"{few}: too few for an interval (at least {LEAST_EFFECTIVE:g} are needed)"
    return {
        "value": value,
        "cycles": len(subset.table),
        "patients": n_patients,
        "effective_patients": effective_by_label(codes, subset.truth, subset.label_names),
        "values": {name: figures[name] for name in kept},
        "intervals": {name: bounds.get(name) for name in kept},
        "note": note,
    }
