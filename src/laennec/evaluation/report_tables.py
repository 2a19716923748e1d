"""The tables of a report, as text.

Decisions: numbers become text in one place, with the digits of their kind; a template only lays out. What was not
recorded says so.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from laennec.evaluation.bootstrap import FEW_PATIENTS, MIN_PATIENTS
from laennec.evaluation.smoothing import shown_figures, signed
from laennec.evaluation.summary import figure_name, figure_text, is_percent, own_names

NOT_RECORDED = "not recorded"
_PART_NAMES = {"se": "Se, exact class", "sp": "Sp"}


def provenance_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Where the data came from, empty where nothing was recorded."""
    corpus = run.get("corpus") or {}
    return dict(corpus.get("provenance") or {}) if isinstance(corpus, Mapping) else {}


def smoothing(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The comparison without and with smoothing; None where there is none."""
    section = evaluation.get("smoothing")
    if not section:
        return None
    rows = []
    for name in shown_figures(section):
        row = section["figures"][name]
        sides = [figure_text(name, row[side]["value"], row[side]["interval"]) for side in ("without", "with")]
        rows.append({"name": figure_name(name), "sides": sides, "difference": signed(name, row["difference"])})
    return {**section, "how": "chosen on validation" if section.get("chosen") else "given by hand", "rows": rows}


def headline(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The one figure that stands at the top, with its parts."""
    name = evaluation["headline"]
    family = name.split(".")[0]
    parts = [f"{family}.{part}" for part in ("Se", "Sp", "SE", "SP") if f"{family}.{part}" in evaluation["values"]]
    definition = evaluation.get("definitions", {}).get(family)
    lines = [_shown(evaluation, part) | {"name": _PART_NAMES[part.split(".")[1].lower()]} for part in parts]
    return _shown(evaluation, name) | {"definition": definition, "parts": lines}


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """AUROC and AP of each label (of the first four), with how often the label occurs."""
    tiles = []
    for label in evaluation["label_names"][:4]:
        share = evaluation["counts"]["labels"].get(label, 0) / max(evaluation["counts"]["cycles"], 1)
        tile = _shown(evaluation, f"{label}.roc_auc")
        tile["parts"] = [_shown(evaluation, f"{label}.{kind}") for kind in ("average_precision", "f1")]
        tiles.append(tile | {"note": f"present in {100 * share:.0f} % of the cycles"})
    return tiles


def _shown(evaluation: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One figure as text: name, value, interval, unit."""
    bounds = (evaluation.get("intervals") or {}).get(name)
    digits = 1 if is_percent(name) else 3
    return {
        "key": name,
        "name": figure_name(name),
        "value": figure_text(name, evaluation["values"].get(name)),
        "interval": f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}" if bounds else None,
        "unit": "%" if is_percent(name) and evaluation["values"].get(name) is not None else "",
    }


def floor_rows(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The model and its floors as bars on one scale, with the per-label AUROC beside them."""
    rows, name = evaluation.get("floors") or [], evaluation["headline"]
    areas = [f"{label}.roc_auc" for label in evaluation["label_names"]][:4]
    extra = [figure for figure in ("sprsound.Score",) if figure in evaluation["values"] and figure != name]
    columns = [*extra, *areas]
    scale = 1.0 if is_percent(name) else 100.0

    def bar(
        label: str, what: str, values: Mapping[str, Any], intervals: Mapping[str, Any], kind: str
    ) -> dict[str, Any]:
        value, bounds = values.get(name), intervals.get(name)
        return {
            "name": label,
            "what": what,
            "kind": kind,
            "width": None if value is None else round(scale * value, 2),
            "low": round(scale * bounds[0], 2) if bounds else None,
            "span": round(scale * (bounds[1] - bounds[0]), 2) if bounds else None,
            "text": figure_text(name, value),
            "bounds": _bounds(name, bounds),
            "others": [figure_text(column, values.get(column)) for column in columns],
        }

    lines = [bar("this model", "", evaluation["values"], evaluation.get("intervals") or {}, "model")]
    for row in rows:
        line = bar(row["name"], row["what"], row["values"], row["intervals"], "floor")
        if row.get("skipped"):
            line |= {"text": row["skipped"], "bounds": None, "others": [""] * len(columns), "kind": "skipped"}
        gain = row.get("advantage")
        line["gain"] = None if gain is None else _gain(gain)
        lines.append(line)
    return {
        "name": figure_name(name),
        "columns": [figure_name(column) for column in columns],
        "rows": lines if rows else [],
    }


def _gain(gain: Mapping[str, Any]) -> dict[str, Any]:
    """How far the model lies above a floor, and whether that is sure."""
    bounds = gain["interval"]
    sure = gain["value"] > 0 and (bounds is None or bounds[0] > 0)
    shown = f"[{bounds[0]:+.1f}, {bounds[1]:+.1f}]" if bounds else None
    return {"text": f"{gain['value']:+.1f}", "bounds": shown, "sure": sure}


def _bounds(name: str, bounds: Sequence[float] | None) -> str | None:
    """An interval alone, "[low, high]"."""
    digits = 1 if is_percent(name) else 3
    return f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]" if bounds else None


def figure_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure, grouped by what it is of."""
    groups: dict[str, list[dict[str, Any]]] = {}
    own = own_names(evaluation)
    titles = {"icbhi": "ICBHI", "any_abnormal": "Any abnormal (not the ICBHI Score)", "sprsound": "SPRSound scoring"}
    for name in evaluation["values"]:
        family = name.split(".")[0]
        label = family if family in evaluation["label_names"] else None
        others = f"{label.capitalize()} alone" if label else "All classes and labels"
        group = "Own metrics" if name in own else titles.get(family, others)
        groups.setdefault(group, []).append(_shown(evaluation, name))
    macro = evaluation.get("scores", {}).get("macro_one_vs_rest")
    if macro:
        of_lungs = {"icbhi.Score", "sprsound.Score"} & set(evaluation["values"])
        title = "Macro one-vs-rest" + (" (often misnamed ICBHI Score)" if of_lungs else "")
        groups[title] = [
            {"name": f"macro {key}", "value": figure_text("uar", value), "interval": None, "unit": "%" if value else ""}
            for key, value in macro.items()
        ]
    order = ["ICBHI", "Any abnormal (not the ICBHI Score)", "SPRSound scoring"]
    names = sorted(groups, key=lambda title: order.index(title) if title in order else len(order))
    return [{"title": title, "rows": groups[title]} for title in names]


def subgroup_tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Subgroup tables as text."""
    tables = []
    for grouping, rows in (evaluation.get("subgroups") or {}).items():
        columns = list(rows[0]["values"]) if rows else []
        columns = sorted(columns, key=lambda name: (name != evaluation["headline"], name.endswith("_macro")))
        lines = [
            {
                "value": row["value"],
                "cycles": row["cycles"],
                "patients": row["patients"],
                "cells": [(figure_text(c, row["values"].get(c)), _bounds(c, row["intervals"].get(c))) for c in columns],
                "rough": MIN_PATIENTS <= row["patients"] < FEW_PATIENTS,
                "note": None if row["intervals"].get(evaluation["headline"]) else row["note"],
            }
            for row in rows
        ]
        tables.append(
            {"title": grouping.replace("_", " "), "columns": [figure_name(c) for c in columns], "rows": lines}
        )
    return tables


def history(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Loss terms by epoch: the first, the kept and the last epochs, at most twelve lines."""
    history: Sequence[Mapping[str, Any]] = run.get("history") or []
    if not history:
        return None
    best = run.get("best_epoch")
    terms = list(dict.fromkeys(name for entry in history for name in entry.get("loss_terms") or {}))
    step = max(1, -(-len(history) // 10))
    chosen = [e for k, e in enumerate(history) if k % step == 0 or k == len(history) - 1 or e.get("epoch") == best]
    rows = [
        {
            "epoch": shown_text(entry.get("epoch")),
            "kept": best is not None and entry.get("epoch") == best,
            "cells": [
                f"{v:.4f}" if isinstance(v, float) else shown_text(v)
                for v in (entry.get("loss"), *((entry.get("loss_terms") or {}).get(t) for t in terms))
            ],
        }
        for entry in chosen
    ]
    return {"columns": ["total", *terms], "rows": rows, "epochs": len(history)}


def records(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rest of the run record, flattened to lines."""
    titles = {"config": "Configuration", "versions": "Versions", "hardware": "Hardware", "timings": "Timings"}
    records = [{"title": title, "rows": _flat(run[key])} for key, title in titles.items() if run.get(key)]
    provenance = provenance_of(run)
    if provenance:
        records.insert(0, {"title": "Provenance of the data", "rows": _flat(provenance)})
    if evaluation.get("fitted"):
        records.append({"title": "Thresholds and temperatures", "rows": _flat(evaluation["fitted"])})
    return records


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as ("a.b", text) lines."""
    if isinstance(value, Mapping) and value:
        return [line for key, inner in value.items() for line in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name or "value", "none" if value is None or value in ("", [], {}) else shown_text(value))]


def shown_text(value: Any) -> str:
    """A recorded value for readers."""
    if value is None or value == "" or value == {} or value == []:
        return NOT_RECORDED
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown_text(inner) for inner in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
