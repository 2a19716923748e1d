"""The content of a report: facts, scores and tables as text.

Decisions: numbers are formatted here; the template only lays out text. Missing values are shown as "not recorded". A
leak, a caveat of the split, or a selection on anything but validation patients gives a warning above the score. A table
is {"columns", "rows": [{"cells", "class"}]}; a cell is a text, or {"text", "note", "class", "bar"}.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from laennec.corpora.splits import WITH_FOLDS
from laennec.evaluation.calibration.probabilities import calibration_name, smoothing_text
from laennec.evaluation.calibration.smoothing import smoothing_rows
from laennec.evaluation.geometry import four_properties
from laennec.evaluation.intervals import FEW_PATIENTS, MIN_PATIENTS, effective_text
from laennec.evaluation.metrics import is_percent
from laennec.evaluation.summary import (
    bounds_text,
    decision_text,
    figure_name,
    figure_text,
    interval_method,
    length_table,
    own_names,
    row_noun,
    thresholds_in_use,
)
from laennec.evaluation.window_scores import unit_table, unit_title

NOT_RECORDED = "not recorded"
Table = dict[str, Any]
_LEAK = re.compile(r"(?:\S+: )?(\S+) and (\S+) share ")  # of two splits, after the corpus where there are several
_COMPONENTS = {"se": "Se, exact class", "sp": "Sp"}
_PROPERTIES = (
    ("intra", "mean", "Intra-class clustering", "mean distance within a class", "lower is tighter"),
    ("intra", "cv", "Intra-class equidistance", "st. dev. / mean within a class", "lower is more even"),
    ("inter", "mean", "Inter-class separation", "mean distance between classes", "1 is a right angle"),
    ("inter", "cv", "Inter-class equidistance", "st. dev. / mean between classes", "lower is more even"),
)


def shown_text(value: Any) -> str:
    """A recorded value as text."""
    if value is None or value == "" or value == {} or value == []:
        return NOT_RECORDED
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown_text(inner) for inner in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def times_scored(record: Mapping[str, Any], split: str, corpus: str) -> int:
    """How often a run was scored on a split of a corpus; scorings of older versions name the split alone."""
    scored = record.get("evaluations") or []
    return sum(one.get("split") == split and one.get("corpus", corpus) == corpus for one in scored)


def seeds_of(run: Mapping[str, Any]) -> str:
    """The seed of a run, or those of the members of an ensemble; "unknown" for a model without its run record."""
    if run.get("seeds", ...) is None:
        return "unknown"
    return ", ".join(shown_text(one.get("seed")) for one in run.get("members") or [run.get("config") or {}])


def epochs_kept(run: Mapping[str, Any]) -> str | None:
    """The epoch that a run kept, or those of the members of an ensemble; None where none was chosen."""
    kept = [one.get("best_epoch") for one in run.get("members") or [run]]
    return ", ".join(f"{epoch:g}" for epoch in kept if isinstance(epoch, int | float)) or None


def earlier_use(split: str, selection_set: Any) -> str | None:
    """How a scored split of the training corpus was used before scoring; None where it was not."""
    if split == "train":
        return "was used for training"
    return "was used to choose the epoch and the thresholds" if split == selection_set else None


def scored_own_corpus(run: Mapping[str, Any]) -> bool:
    """Whether the scored corpus is the one, or one of those, that the run was trained on."""
    trained, scored = ((run.get(key) or {}).get("name") for key in ("trained_on", "corpus"))
    return scored == trained or scored in str(trained).split("+")


def _provenance(run: Mapping[str, Any]) -> dict[str, Any]:
    return (run.get("corpus") or {}).get("provenance") or {}


def scored_leaks(run: Mapping[str, Any]) -> list[str]:
    """What training, validation and the scored split share; leaks of other test splits do not affect its scores."""
    used = {"train", "validation", split := (run.get("evaluated") or {}).get("split")}
    found = [(line, _LEAK.match(line)) for line in _provenance(run).get("leaks") or []]
    return [line for line, pair in found if split is None or pair is None or used.issuperset(pair.groups())]


def run_warnings(run: Mapping[str, Any]) -> list[dict[str, str]]:
    """Warnings about the run itself: split, leaks, selection, fingerprints."""
    provenance, bad = _provenance(run), []
    if provenance.get("stamp"):
        bad.append(f"Caveat of this split: {shown_text(provenance['stamp'])}.")
    if leaks := scored_leaks(run):
        bad.append(f"Leak between the splits: {shown_text(leaks)}. Scores on this split are too high for new patients.")
    selection = run.get("selection_set")
    if selection is None or str(selection).startswith("unknown"):
        bad.append("The patients on which the epoch and the thresholds were chosen are not recorded.")
    elif str(selection) != "validation":
        bad.append(
            f"The model was selected on \u201c{selection}\u201d, not on validation patients: the score is too high."
        )
    corpus = run.get("corpus") or {}
    split = (run.get("evaluated") or {}).get("split")
    if scored_own_corpus(run) and (use := earlier_use(str(split), selection)):
        bad.append(f"This split {use}: its scores are no estimate for new patients.")
    found = [{"level": "bad", "text": text} for text in bad]
    if not corpus.get("fingerprint") or not provenance.get("split_fingerprint"):
        text = "The corpus or the split has no recorded fingerprint; others cannot check that they use the same data."
        found.append({"level": "caution", "text": text})
    return found


def facts(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts to state with every score: data, split, selection, decision, intervals, seeds."""
    corpus, provenance = run.get("corpus") or {}, _provenance(run)
    patients, counts = evaluation["uncertainty"]["patients"], evaluation["counts"]
    protocol = shown_text(provenance.get("protocol"))
    if provenance.get("fold") is not None and provenance.get("protocol") in WITH_FOLDS:
        protocol += f", fold {provenance['fold']}"
    scored = f"{counts['cycles']:,} {row_noun(evaluation)}s, {patients} patients"
    if counts["unlabelled"]:
        scored += f"; {counts['unlabelled']:,} rows without a known truth left out"
    interval = f"95 %, {interval_method(evaluation)}"
    if effective := effective_text(evaluation.get("effective_patients")):
        interval += f"; effective patients: {effective}"
    decision = "the most probable class"
    if evaluation["thresholds"] is not None:
        decision = f"calibrated probability: {decision_text(evaluation)}"
    if smoothed := smoothing_text((evaluation.get("fitted") or {}).get("smoothing")):
        decision += f"; {smoothed}"
    split = (run.get("evaluated") or {}).get("split")
    times = times_scored(run, str(split), str(corpus.get("name")))
    caveats = [provenance.get("stamp"), "shared data, see above" if scored_leaks(run) else None]
    caveat = "; ".join(filter(None, caveats)) or ("none" if provenance else shown_text(None))
    return [
        ("Corpus", shown_text(corpus.get("name"))),
        ("Corpus fingerprint", shown_text(corpus.get("fingerprint"))),
        ("Protocol", protocol),
        ("Caveats of the split", caveat),
        ("Split fingerprint", shown_text(provenance.get("split_fingerprint"))),
        ("Selection set", shown_text(run.get("selection_set"))),
        ("Split", shown_text(split) + (f", scored {times} times by this run" if times > 1 else "")),
        ("Scored", scored),
        ("Decision", decision),
        ("Intervals", interval),
        ("Seeds", shown_text(run.get("seeds"))),
        ("Epoch kept", shown_text(epochs_kept(run))),
    ]


def headline(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The main score with its components and its definition."""
    name = evaluation["headline"]
    family = name.split(".")[0]
    parts = [f"{family}.{part}" for part in ("Se", "Sp", "SE", "SP") if f"{family}.{part}" in evaluation["values"]]
    lines = [_figure(evaluation, part) | {"name": _COMPONENTS[part.split(".")[1].lower()]} for part in parts]
    return _figure(evaluation, name) | {
        "definition": evaluation["definitions"].get(family),
        "parts": lines,
        "note": None,
    }


def tiles(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """AUROC, AP and F1 of each label (of the first four), with the share of cycles that have it."""
    found = []
    for label in evaluation["label_names"][:4]:
        share = evaluation["counts"]["labels"].get(label, 0) / max(evaluation["counts"]["cycles"], 1)
        parts = [_figure(evaluation, f"{label}.{kind}") for kind in ("average_precision", "f1")]
        note = f"present in {100 * share:.0f} % of the {row_noun(evaluation)}s"
        found.append(_figure(evaluation, f"{label}.roc_auc") | {"parts": parts, "note": note, "definition": None})
    return found


def _figure(evaluation: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One metric as text: name, value, interval, unit."""
    bounds, behind = evaluation["intervals"].get(name), (evaluation.get("effective") or {}).get(name)
    digits = 1 if is_percent(name) else 3
    return {
        "name": figure_name(name),
        "value": figure_text(name, evaluation["values"].get(name)),
        "interval": f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}" if bounds else None,
        "effective": f"{behind:.1f}" if bounds and behind else None,
        "unit": "%" if is_percent(name) and evaluation["values"].get(name) is not None else "",
    }


def _cell(name: str, value: float | None, bounds: Sequence[float] | None = None, sign: str = "") -> dict[str, Any]:
    """A metric's value with its interval as the note of the cell; a dash where it is undefined."""
    text = "–" if value is None else f"{value:{sign}.{1 if is_percent(name) else 3}f}"
    return {"text": text, "note": bounds_text(name, bounds, sign)}


def _barred(name: str, values: Mapping[str, Any], intervals: Mapping[str, Any], whole: float | None = None) -> Any:
    """A metric's value with a bar and its interval; `whole` is marked on the bar."""
    value, bounds, scale = values.get(name), intervals.get(name), 1.0 if is_percent(name) else 100.0
    cell = _cell(name, value, bounds)
    if value is not None:
        cell["bar"] = {"width": round(scale * value, 2)}
        if bounds:
            cell["bar"] |= {"low": round(scale * bounds[0], 2), "span": round(scale * (bounds[1] - bounds[0]), 2)}
        if whole is not None:
            cell["bar"]["whole"] = round(scale * whole, 2)
    return cell


def _row(*cells: Any, kind: str = "") -> dict[str, Any]:
    return {"cells": list(cells), "class": kind}


def baseline_table(evaluation: Mapping[str, Any]) -> Table | None:
    """The model and its baselines as bars on one scale, with the AUROC of each label beside them."""
    rows, name = evaluation["floors"], evaluation["headline"]
    if not rows:
        return None
    areas = [f"{label}.roc_auc" for label in evaluation["label_names"]][:4]
    extra = {figure for row in rows for figure in row["values"] if figure == "sprsound.Score"} - {name}
    others = [*extra, *areas]

    def line(title: Any, values: Mapping[str, Any], intervals: Mapping[str, Any], gain: Any, kind: str) -> Any:
        further = [figure_text(figure, values.get(figure)) if values else "" for figure in others]
        return _row(title, _barred(name, values, intervals), gain, *further, kind=kind)

    lines = [line("this model", evaluation["values"], evaluation["intervals"], "", "model")]
    for row in rows:
        title = {"text": row["name"], "note": row["what"]}
        lines.append(line(title, row["values"], row["intervals"], _gain(row["advantage"]), "baseline"))
        if row.get("skipped"):
            lines[-1]["cells"][1] = {"text": f"not computed: {row['skipped']}", "class": "wordy"}
    columns = ["", figure_name(name), "model minus baseline", *map(figure_name, others)]
    return {"columns": columns, "rows": lines, "score": figure_name(name)}


def _gain(gain: Mapping[str, Any] | None) -> dict[str, Any] | str:
    """The difference of the model from a baseline, and whether its interval is above 0."""
    if gain is None:
        return ""
    bounds = gain["interval"]
    clear = gain["value"] > 0 and (bounds is None or bounds[0] > 0)
    note = bounds_text("icbhi.Score", bounds, "+")  # every baseline has classes, so the score is in percent
    return {"text": f"{gain['value']:+.1f}", "note": note, "class": "sure" if clear else "unsure"}


def length_section(lengths: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """AUROC over all cycles, within groups of similar length and on segments of one length."""
    columns, *lines = length_table({**evaluation, "within_lengths": lengths["within"]["values"]})
    rows = []
    for label, whole, within, *others in lines:
        areas = [
            {"text": area, "note": bounds_text("", lengths[kind]["intervals"][label])}
            for kind, area in (("overall", whole), ("within", within))
        ]
        rows.append(_row(label, *areas, *others))
    segments = evaluation.get("duration_blind")
    seconds = f"{segments['seconds']:g}" if segments else None
    return {"summary": {"columns": columns, "rows": rows}, "seconds": seconds}


def smoothing_section(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The comparison without and with smoothing; None where there is none."""
    section = evaluation.get("smoothing")
    if not section:
        return None
    rows = [_row(*cells) for cells in smoothing_rows(section)]
    return section | {
        "table": {"columns": ["", "without", "with", "difference, paired by patients", "effective"], "rows": rows},
        "how": "chosen on validation" if section.get("chosen") else "as given",
    }


def window_sections(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores of windows, seconds and recordings; None where windows were not scored."""
    section = evaluation.get("windows")
    if not section:
        return None
    tables = []
    for unit in section["units"]:
        head, *rows = unit_table(section, unit)
        table = {"columns": head, "rows": [_row(*cells) for cells in rows]}
        tables.append({"title": unit.capitalize(), "what": unit_title(section, unit), "table": table})
    return section | {"tables": tables}


def decision_table(curves: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Table | None:
    """Net benefit of each label at the threshold in use, and its calibration error."""
    in_use, ece = thresholds_in_use(evaluation), evaluation["calibration"]["ece"]
    rows = []
    for name, curve in curves.items():
        error = figure_text("ece", ece.get(name))
        if name not in in_use:
            rows.append(_row(name, "–", "–", "–", error))
            continue
        place = min(range(len(curve["thresholds"])), key=lambda k: abs(curve["thresholds"][k] - in_use[name]))
        value, everyone = curve["model"][place], curve["treat_all"][place]
        helps = "above" if value > max(everyone, 0.0) else "no better than"
        first = {"text": name, "note": f"{helps} acting on all or none"}
        benefit = _cell("", value, curve["intervals"][place], "+")
        rows.append(_row(first, f"{in_use[name]:.2f}", benefit, f"{everyone:+.3f}", error))
    columns = ["label", "threshold", "net benefit", "acting on all", "ECE"]
    return {"columns": columns, "rows": rows} if rows else None


def subgroup_sections(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table for each grouping, the headline score as bars beside that of all rows."""
    sections, main = [], evaluation["headline"]
    for grouping, rows in evaluation["subgroups"].items():
        columns = sorted(rows[0]["values"], key=lambda name: (name != main, name.endswith("_macro")))
        rough = [MIN_PATIENTS <= row["patients"] < FEW_PATIENTS for row in rows]
        effective = [effective_text(row.get("effective_patients")) for row in rows]
        lines = []
        for row, few, behind in zip(rows, rough, effective, strict=True):
            note = None if row["intervals"].get(main) else row["note"]
            cells: list[Any] = [behind] if any(effective) else []
            cells += [_barred(main, row["values"], row["intervals"], evaluation["values"][main])]
            cells += [_cell(name, row["values"].get(name), row["intervals"].get(name)) for name in columns[1:]]
            first = {"text": row["value"], "note": note}
            lines.append(_row(first, f"{row['cycles']:,}", f"{row['patients']}{' †' if few else ''}", *cells))
        title = grouping.replace("_", " ")
        names = [title, f"{row_noun(evaluation)}s", "patients", *["effective patients"][: any(effective)]]
        names += map(figure_name, columns)
        sections.append({"title": title, "rough": any(rough), "table": {"columns": names, "rows": lines}})
    return sections


def metric_groups(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every metric, grouped by family and label."""
    groups: dict[str, list[dict[str, Any]]] = {}
    own = own_names(evaluation)
    titles = {"icbhi": "ICBHI", "any_abnormal": "Any abnormal (not the ICBHI Score)", "sprsound": "SPRSound scoring"}
    for name in evaluation["values"]:
        family = name.split(".")[0]
        label = family if family in evaluation["label_names"] else None
        others = f"{label.capitalize()} alone" if label else "All classes and labels"
        group = "Own metrics" if name in own else titles.get(family, others)
        groups.setdefault(group, []).append(_figure(evaluation, name))
    if macro := evaluation.get("scores", {}).get("macro_one_vs_rest"):
        of_lungs = {"icbhi.Score", "sprsound.Score"} & set(evaluation["values"])
        title = "Mean over classes, one-vs-rest" + (" (often misnamed ICBHI Score)" if of_lungs else "")
        groups[title] = [
            {"name": f"mean {key}", "value": figure_text("uar", value), "unit": "%" if value else ""}
            | {"interval": None, "effective": None}
            for key, value in macro.items()
        ]
    order = list(titles.values())
    names = sorted(groups, key=lambda title: order.index(title) if title in order else len(order))
    return [{"title": title, "rows": groups[title]} for title in names]


def counts_and_calibration(evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Numbers of spans by class (or label), and calibration errors."""
    counts = evaluation["counts"]
    rows = [(f"{name} {row_noun(evaluation)}s", f"{count:,}") for name, count in counts["classes"].items()]
    rows = rows or [(f"{row_noun(evaluation)}s with {name}", f"{count:,}") for name, count in counts["labels"].items()]
    ece = evaluation["calibration"]["ece"]
    return rows + [
        (f"{calibration_name(n)} calibration error (ECE, 15 bins)", figure_text("ece", value))
        for n, value in ece.items()
    ]


def geometry_section(geometry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The four properties as text, and the distances between classes as shaded cells."""
    if not geometry:
        return None
    properties = four_properties(geometry)
    lines = []
    for kind, key, name, what, better in _PROPERTIES:
        found = properties[kind]
        note = f"st. dev. {figure_text('sd', found['sd'])}, variance {figure_text('sd', found['variance'])}, "
        note += f"{found['pairs']:,} pairs"
        value = figure_text("cv", found[key])
        lines.append({"name": name, "what": what, "better": better, "value": value, "note": note})
    titles = (("mean", "Mean of d = 1 − cos"), ("cv", "Coefficient of variation of d"))
    return {
        "properties": lines,
        "classes": geometry["classes"],
        "matrices": [{"title": title, "rows": _shaded(geometry[key])} for key, title in titles],
        "many": len(geometry["classes"]) > 12,
    }


def _shaded(values: Sequence[Sequence[float | None]]) -> list[list[dict[str, Any]]]:
    """Cells with a depth of colour from 0 to 88, relative to the largest value."""
    top = max((v for row in values for v in row if v is not None), default=0.0) or 1.0
    return [
        [
            {"text": "–" if v is None else f"{v:.2f}", "depth": 0 if v is None else round(88 * max(v, 0) / top)}
            for v in row
        ]
        for row in values
    ]


def records(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The remaining keys of the run record, flattened to lines."""
    titles = {"config": "Configuration", "versions": "Versions", "hardware": "Hardware", "timings": "Timings"}
    found = [{"title": title, "rows": _flat(run[key])} for key, title in titles.items() if run.get(key)]
    if provenance := _provenance(run):
        found.insert(0, {"title": "Provenance of the data", "rows": _flat(provenance)})
    if evaluation.get("fitted"):
        found.append({"title": "Thresholds and temperatures", "rows": _flat(evaluation["fitted"])})
    return found


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested mappings as ("a.b", text) lines."""
    if isinstance(value, Mapping) and value:
        return [line for key, inner in value.items() for line in _flat(inner, f"{name}.{key}" if name else str(key))]
    return [(name or "value", "none" if value is None or value in ("", [], {}) else shown_text(value))]
