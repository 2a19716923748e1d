"""Stage 7, metrics: the report, one page that holds a score together with what it rests on.

Decided here: the page is rendered from the run record and the evaluation dictionary and from nothing else, so it
cannot say what was not recorded; a field that is missing is shown as "not recorded" instead of being left out. It is
one file without scripts and without network: pictures are embedded, and a content policy forbids everything else. All
values are escaped, because corpus metadata may hold HTML.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from laennec.evaluation.bootstrap import FEW_PATIENTS, MIN_PATIENTS
from laennec.evaluation.calibration import sigmoid
from laennec.evaluation.pictures import write_pictures
from laennec.evaluation.smoothing import shown_figures, signed
from laennec.evaluation.summary import figure_name, figure_text, is_percent
from laennec.writing import write_aside

NOT_RECORDED = "not recorded"
_PART_NAMES = {"se": "Se, exact class", "sp": "Sp"}
_PICTURES = {
    "confusion": "Counts and row shares of the classes: rows are the truth, columns the prediction.",
    "reliability": "Predicted probability against observed frequency. Below the diagonal: probabilities too high.",
    "label_confusions": "Each label alone: rows are the truth, columns the prediction.",
    "roc": "Cycles found against false alarms at every threshold; the dot is the decision that the scores above use.",
    "precision_recall": "How many calls are right against how many cycles are found; the dot is the decision in use.",
    "subgroups": "The score in every subgroup with its interval; the band is the interval of all cycles.",
    "geometry": "Angular distance between the classes in the embedding, on the cycles of this evaluation.",
    "training": "Training by epoch.",
}


def write_report(
    folder: str | Path,
    run: Mapping[str, Any],
    evaluation: dict[str, Any],
    predictions: Any = None,
    *,
    geometry: dict[str, Any] | None = None,
) -> Path:
    """Write report.html and its pictures.

    Args:
        folder: Gets report.html and pictures/*.png.
        run: The run record (run.json); anything in it may be missing.
        evaluation: What `evaluate_predictions` returned.
        predictions: The predictions table (DataFrame), for the curves; None leaves them out.
        geometry: What `class_distances` returned, or evaluation["geometry"].

    Returns:
        The path of report.html.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = Path(folder)
    geometry = geometry or evaluation.get("geometry")
    paths = write_pictures(folder / "pictures", evaluation, predictions, run=dict(run), geometry=geometry)
    pictures = {name: _embedded(path) for name, path in paths.items()}
    with write_aside(folder / "report.html") as file:
        file.write(render_report(run, evaluation, pictures))  # type: ignore[call-overload]
    return folder / "report.html"


def render_report(
    run: Mapping[str, Any], evaluation: Mapping[str, Any], pictures: Mapping[str, str] | None = None
) -> str:
    """The page as text.

    Args:
        run: The run record.
        evaluation: What `evaluate_predictions` returned.
        pictures: Data URIs by picture name.
    """
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("laennec").joinpath("templates/report.html").read_text(encoding="utf-8")
    captions = {name: text for name, text in _PICTURES.items() if name in (pictures or {})}
    return environment.from_string(source).render(
        title=str(run.get("name") or "Evaluation"),
        created=run.get("created"),
        version=run.get("laennec_version"),
        command=_command(run.get("command")),
        warnings=[*_run_warnings(run), *evaluation.get("warnings", [])],
        headline=_headline(evaluation),
        tiles=_tiles(evaluation),
        facts=_facts(run, evaluation),
        definitions=evaluation.get("definitions", {}),
        floors=_floor_rows(evaluation),
        smoothing=_smoothing(evaluation),
        figures=_figure_rows(evaluation),
        subgroups=_subgroup_tables(evaluation),
        counts=evaluation.get("counts", {}),
        notes=evaluation.get("notes", []),
        ece={
            name: figure_text("ece", value) for name, value in evaluation.get("calibration", {}).get("ece", {}).items()
        },
        pictures=pictures or {},
        captions=captions,
        history=_history(run),
        records=_records(run, evaluation),
    )


def _smoothing(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
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


def _embedded(path: Path) -> str:
    """A picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _command(command: Any) -> str | None:
    """The command line as one string."""
    return " ".join(map(str, command)) if isinstance(command, list | tuple) else command


def _provenance(run: Mapping[str, Any]) -> dict[str, Any]:
    """Where the data came from, empty where nothing was recorded."""
    corpus = run.get("corpus") or {}
    return dict(corpus.get("provenance") or {}) if isinstance(corpus, Mapping) else {}


def _run_warnings(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the run record itself disappoints in."""
    provenance, found = _provenance(run), []
    if provenance.get("stamp"):
        found.append(("bad", f"This split is stamped: {_text(provenance['stamp'])}."))
    leaks = provenance.get("leaks")
    if leaks:
        found.append(
            ("bad", f"Leak between the parts: {_text(leaks)}. Scores on this split are too good for new patients.")
        )
    selection = run.get("selection_set")
    if selection is None:
        found.append(("bad", "It is not recorded on which patients the epoch and the thresholds were chosen."))
    elif str(selection) != "validation":
        found.append(
            (
                "bad",
                f"The model was selected on \u201c{selection}\u201d, not on validation patients: too good a score.",
            )
        )
    corpus = run.get("corpus") or {}
    if not (isinstance(corpus, Mapping) and corpus.get("fingerprint")) or not provenance.get("split_fingerprint"):
        found.append(
            (
                "caution",
                "The corpus or the split has no recorded fingerprint; others cannot check theirs.",
            )
        )
    return [{"level": level, "text": text} for level, text in found]


def _facts(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What every score must name, for the top of the page."""
    corpus, provenance = run.get("corpus") or {}, _provenance(run)
    draws, counts = evaluation.get("bootstrap", {}), evaluation.get("counts", {})
    protocol = _text(provenance.get("protocol"))
    if provenance.get("fold") is not None:
        protocol += f", fold {provenance['fold']}"
    scored = f"{counts.get('cycles', 0):,} cycles, {draws.get('patients', counts.get('patients'))} patients"
    if counts.get("unlabelled"):
        scored += f"; {counts['unlabelled']:,} rows without a known truth left out"
    interval = NOT_RECORDED
    if draws:
        interval = f"95 %, patient-clustered bootstrap: percentiles of {draws['n_draws']:,} draws of patients, "
        interval += f"seed {draws['seed']}"
    thresholds = evaluation.get("thresholds")
    decision = "the likeliest class"
    if thresholds is not None:
        shown = (f"{name} where logit > {t:.3f} (raw probability {sigmoid(t):.3f})" for name, t in thresholds.items())
        decision = "; ".join(shown)
    return [
        ("Corpus", _text(corpus.get("name"))),
        ("Corpus fingerprint", _text(corpus.get("fingerprint"))),
        ("Protocol", protocol),
        ("Stamp", "none" if provenance and not provenance.get("stamp") else _text(provenance.get("stamp"))),
        ("Split fingerprint", _text(provenance.get("split_fingerprint"))),
        ("Selection set", _text(run.get("selection_set"))),
        ("Scored", scored),
        ("Decision", decision),
        ("Intervals", interval),
        ("Seeds", _text(run.get("seeds"))),
        ("Epoch kept", _text(run.get("best_epoch"))),
    ]


def _headline(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The one figure that stands at the top, with its parts."""
    name = evaluation["headline"]
    family = name.split(".")[0]
    parts = [f"{family}.{part}" for part in ("Se", "Sp", "SE", "SP") if f"{family}.{part}" in evaluation["values"]]
    definition = evaluation.get("definitions", {}).get(family)
    lines = [_shown(evaluation, part) | {"name": _PART_NAMES[part.split(".")[1].lower()]} for part in parts]
    return _shown(evaluation, name) | {"definition": definition, "parts": lines}


def _tiles(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _floor_rows(evaluation: Mapping[str, Any]) -> dict[str, Any]:
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


def _figure_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every figure, grouped by what it is of."""
    groups: dict[str, list[dict[str, Any]]] = {}
    titles = {"icbhi": "ICBHI", "any_abnormal": "Any abnormal (not the ICBHI Score)", "sprsound": "SPRSound scoring"}
    for name in evaluation["values"]:
        family = name.split(".")[0]
        label = family if family in evaluation["label_names"] else None
        group = titles.get(family) or (f"{label.capitalize()} alone" if label else "All classes and labels")
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


def _subgroup_tables(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _history(run: Mapping[str, Any]) -> dict[str, Any] | None:
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
            "epoch": _text(entry.get("epoch")),
            "kept": best is not None and entry.get("epoch") == best,
            "cells": [
                f"{v:.4f}" if isinstance(v, float) else _text(v)
                for v in (entry.get("loss"), *((entry.get("loss_terms") or {}).get(t) for t in terms))
            ],
        }
        for entry in chosen
    ]
    return {"columns": ["total", *terms], "rows": rows, "epochs": len(history)}


def _records(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rest of the run record, flattened to lines."""
    titles = {"config": "Configuration", "versions": "Versions", "hardware": "Hardware", "timings": "Timings"}
    records = [{"title": title, "rows": _flat(run[key])} for key, title in titles.items() if run.get(key)]
    provenance = _provenance(run)
    if provenance:
        records.insert(0, {"title": "Provenance of the data", "rows": _flat(provenance)})
    if evaluation.get("fitted"):
        records.append({"title": "Thresholds and temperatures", "rows": _flat(evaluation["fitted"])})
    return records


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as ("a.b", text) lines."""
    if isinstance(value, Mapping) and value:
        return [line for key, inner in value.items() for line in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name or "value", _text(value))]


def _text(value: Any) -> str:
    """A recorded value for readers."""
    if value is None or value == "" or value == {} or value == []:
        return NOT_RECORDED
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(inner) for inner in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
