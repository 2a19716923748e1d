"""The evaluation of one predictions table, as a dictionary and as text.

Decisions: every score has its definition, interval, baselines (key "floors"), subgroups and warnings beside it, in one
dictionary of JSON values (null for what is undefined), which is all that report and model card read.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from laennec.errors import InputError
from laennec.evaluation.baselines import length_groups, shortcut_baselines
from laennec.evaluation.calibration.probabilities import (
    calibrated_logits,
    calibration_caution,
    calibration_name,
    sigmoid,
    thresholds_text,
)
from laennec.evaluation.intervals import (
    LEVEL,
    METHOD,
    effective_by_label,
    effective_note,
    effective_text,
    interval_note,
    intervals_of,
    left_out_values,
    patient_codes,
    patients_text,
)
from laennec.evaluation.metrics import Thresholds, is_percent, none_if_nan
from laennec.evaluation.own_metrics import Metric
from laennec.evaluation.predictions import (
    Predictions,
    ProblemType,
    calibration_of,
    describe,
    effective_by_metric,
    read_predictions,
    statistics_of,
)
from laennec.evaluation.report.failures import named_errors
from laennec.evaluation.subgroups import subgroup_tables
from laennec.rendering import text_table

FIGURE_NAMES = {
    "icbhi.Score": "ICBHI Score",
    "icbhi.Sp": "Sp",
    "icbhi.Se": "Se (exact class)",
    "any_abnormal.Score": "any-abnormal Score",
    "any_abnormal.Sp": "any-abnormal Sp",
    "any_abnormal.Se": "any-abnormal Se",
    "sprsound.Score": "SPRSound Score",
    "sprsound.SE": "SPRSound SE",
    "sprsound.SP": "SPRSound SP",
    "sprsound.AS": "SPRSound AS",
    "sprsound.HS": "SPRSound HS",
    "accuracy": "accuracy",
    "uar": "unweighted average recall",
    "roc_auc_macro": "AUROC, mean of labels",
    "average_precision_macro": "AP, mean of labels",
    "f1_macro": "F1, mean of labels",
    "f1_micro": "F1, pooled labels",
}
# metrics that a summary leaves out where it shows an equal one under another name
_EQUAL = {
    "any_abnormal.Sp": "icbhi.Sp",
    "sprsound.SE": "icbhi.Se",
    "sprsound.SP": "icbhi.Sp",
    "sprsound.AS": "icbhi.Score",
}
_LABEL_FIGURES = {"roc_auc": "AUROC", "average_precision": "AP", "f1": "F1"}
_DIGEST = (
    "problem_type", "label_names", "class_names", "thresholds", "temperatures", "intercepts", "second_thresholds",
    "counts", "definitions", "headline", "uncertainty", "effective", "effective_patients", "confusion",
    "warnings", "notes", "failures", "within_lengths", "duration_blind", "official",
)  # fmt: skip
WINDOWS = "windows."  # prefix of metrics of windows, in results of studies
_MOST_LABELS = 4  # a card shows the metrics of this many single labels


def evaluate_predictions(
    table: Any,
    *,
    problem_type: ProblemType | None = None,
    label_names: Sequence[str] | None = None,
    thresholds: Thresholds = None,
    temperatures: Mapping[str, float] | None = None,
    intercepts: Mapping[str, float] | None = None,
    second_thresholds: Mapping[str, float] | None = None,
    metrics: Sequence[Metric | str] = (),
    train_table: Any = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a predictions table: scores, intervals, baselines, subgroups and warnings.

    Args:
        table: The predictions table (DataFrame); see `predictions.read_predictions`.
        problem_type: "multi_label" or "single_label"; None: multi_label where every output has a truth column.
        label_names: Names of the outputs; None: those of the `logit_<name>` columns, in their order.
        thresholds: In logits, fitted on validation; None is 0 (probability 0.5).
        temperatures: Divisor of each output's logit, by name, fitted on validation; calibration is measured after it.
        intercepts: Added to each output's logit afterwards, by name, fitted on validation.
        second_thresholds: As for `predictions.read_predictions`.
        metrics: Own metrics, each a function (or the dotted name of one) from the table to {name: number}; see
            `own_metrics.Metric`. They get intervals and subgroups like the built-in metrics.
        train_table: Cycle table of the training split, to fit the shortcut baselines on; None leaves most of them out,
            with a warning.
        seed: Seed of the baselines.

    Returns:
        JSON-ready: all of `predictions_metrics`, and temperatures, intercepts, failures (see `named_errors`), intervals
        {metric: [low, high] or None}, effective {metric: effective number of patients behind it}, effective_patients
        {label: number with the label}, uncertainty {method, level, unit, patients, note}, subgroups, floors (the
        baselines), warnings [{"level": "bad" | "caution", "text"}], own_metrics {names, left_out} where there are any;
        calibration with ece_before and brier_before, of raw logits.

    Raises:
        InputError: The table lacks a column, a truth or a finite logit, or an own metric fails.
    """
    names = _output_names(table) if label_names is None else list(label_names)
    kind = problem_type or ("multi_label" if set(names) <= set(table.columns) else "single_label")
    how: dict[str, Any] = {"problem_type": kind, "label_names": names, "thresholds": thresholds}
    calibration: dict[str, Any] = {"temperatures": temperatures, "intercepts": intercepts}
    calibration["second_thresholds"] = second_thresholds
    predictions = read_predictions(table, **how, **calibration, metrics=metrics)
    evaluation = describe(predictions, kind, names)
    evaluation |= {name: dict(values) if values else None for name, values in calibration.items()}
    raw = calibration_of(read_predictions(table, **how))
    evaluation["calibration"] |= {"ece_before": raw["ece"], "brier_before": raw["brier"]}
    evaluation["failures"] = named_errors(predictions)
    evaluation |= _uncertainty(predictions)
    if "patient_id" not in predictions.table.columns or predictions.table["patient_id"].isna().any():
        evaluation["notes"].append(
            "some patients are unknown; each of their recordings counts as one, so the intervals may be too narrow"
        )
    evaluation["subgroups"] = subgroup_tables(predictions)
    lengths = length_groups(predictions) if predictions.label_names else None
    evaluation["within_lengths"] = lengths["within"]["values"] if lengths else None
    evaluation["floors"] = []
    if classes := predictions.class_names:
        evaluation["floors"] = shortcut_baselines(
            train_table, None, class_names=classes, seed=seed, predictions=predictions
        )
    evaluation["warnings"] = _warnings(evaluation)
    return evaluation


def _uncertainty(predictions: Predictions) -> dict[str, Any]:
    """Intervals over patients, their method, effective numbers of patients, and own metrics without each patient."""
    codes, n_patients = patient_codes(predictions.table)
    values = left_out_values(predictions.table, statistics_of(predictions))
    effective = effective_by_metric(predictions, values)
    found: dict[str, Any] = {
        "intervals": intervals_of(predictions.table, values, effective),
        "effective": effective,
        "effective_patients": effective_by_label(codes, predictions.truth, predictions.label_names),
        "uncertainty": {
            "method": METHOD,
            "level": LEVEL,
            "unit": "patient",
            "patients": n_patients,
            "note": interval_note(n_patients),
        },
    }
    if predictions.own is not None:
        kept = {n: [none_if_nan(v) for v in values[n]] for n in predictions.own.names if n in values}
        found["own_metrics"] = {"names": list(predictions.own.names), "left_out": kept}
    return found


def _output_names(table: Any) -> list[str]:
    names = [str(name).removeprefix("logit_") for name in table.columns if str(name).startswith("logit_")]
    if not names:
        raise InputError("predictions table: no column logit_<name>; write the logit of each label into one")
    return names


def thresholds_in_use(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The calibrated probability above which each label is predicted; {} for a single-label model."""
    thresholds = evaluation.get("thresholds") or {}
    temperatures, intercepts = evaluation.get("temperatures"), evaluation.get("intercepts")
    logits = calibrated_logits(list(thresholds.values()), list(thresholds), temperatures, intercepts)
    return dict(zip(thresholds, sigmoid(logits).tolist(), strict=True))


def decision_text(evaluation: Mapping[str, Any]) -> str:
    """How the labels are decided, by calibrated probability; "" where the most probable class is predicted."""
    return thresholds_text(thresholds_in_use(evaluation), evaluation.get("second_thresholds"))


def length_alone(evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """AUROC of the event-length baseline, by label."""
    rows = [row for row in evaluation["floors"] if row["name"] == "event length"]
    return {label: row["values"].get(f"{label}.roc_auc") for row in rows for label in evaluation["label_names"]}


def own_names(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the user's own metrics in an evaluation."""
    return list((evaluation.get("own_metrics") or {}).get("names", ()))


def interval_method(evaluation: Mapping[str, Any]) -> str:
    """How the intervals of an evaluation were computed, as text."""
    how = evaluation["uncertainty"]["method"]
    return "one patient left out at a time (jackknife, t with effective patients)" if how == METHOD else str(how)


def row_noun(evaluation: Mapping[str, Any]) -> str:
    """The word for one scored row: cycle, recording or window."""
    return str(evaluation.get("span", "cycle"))


def figure_name(figure: str) -> str:
    """The printed name of a metric: "crackle.roc_auc" is "crackle AUROC"."""
    if figure.startswith(WINDOWS):
        return f"{figure_name(figure.removeprefix(WINDOWS))} of windows"
    label, _, kind = figure.rpartition(".")
    return FIGURE_NAMES.get(figure) or f"{label} {_LABEL_FIGURES.get(kind, kind)}".strip()


def figure_text(figure: str, value: float | None, bounds: Sequence[float] | None = None, sign: str = "") -> str:
    """A value and its interval as text: one decimal for percent, three for shares of 1; sign "+" for differences."""
    if value is None:
        return "undefined"
    digits = 1 if is_percent(figure) else 3
    text = f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # no minus sign before a rounded zero
    return " ".join(filter(None, [text, bounds_text(figure, bounds, sign)]))


def bounds_text(figure: str, bounds: Sequence[float] | None, sign: str = "") -> str | None:
    """An interval as text; None where there is none."""
    if not bounds:
        return None
    return f"[{figure_text(figure, bounds[0], None, sign)}, {figure_text(figure, bounds[1], None, sign)}]"


def _warnings(evaluation: dict[str, Any]) -> list[dict[str, str]]:
    """Warnings that belong beside the score, bad ones first."""
    found = _baseline_warnings(evaluation)
    values, name = evaluation["values"], evaluation["headline"]
    for note in (evaluation["uncertainty"]["note"], effective_note(evaluation["effective_patients"])):
        if note:
            found.append(("caution", note[0].upper() + note[1:] + "."))
    family = name.split(".")[0]
    missed = values.get("icbhi.Se") if family == "icbhi" else values.get("sprsound.SE")
    if missed is not None and missed < 50:
        found.append(("caution", f"{100 - missed:.0f} % of the abnormal items are not predicted as their class."))
    recall = values.get(f"{family}.Sp", values.get(f"{family}.SP"))
    if recall is not None and recall < 50:
        found.append(("caution", f"{100 - recall:.0f} % of the normal items are predicted abnormal."))
    for figure, area in values.items():
        bounds = evaluation["intervals"].get(figure)
        if figure.endswith(".roc_auc") and area is not None and bounds is not None and bounds[0] <= 0.5:
            said = f"{figure_name(figure)} {figure_text(figure, area, bounds)}"
            found.append(("bad", f"{said} is not distinguishable from chance (0.5) on these patients."))
    for label, ece in evaluation["calibration"]["ece"].items():
        if caution := calibration_caution(label, ece):
            found.append(("caution", f"{caution}."))
    found += [("caution", note[0].upper() + note[1:] + ".") for note in evaluation["notes"] if "undefined" in note]
    for grouping, rows in evaluation["subgroups"].items():
        for row in rows:
            own, bounds = row["values"].get(name), row["intervals"].get(name)
            if own is not None and bounds is not None and bounds[1] < values[name]:
                group = f"{grouping.replace('_', ' ')} {row['value']}"
                text = f"{figure_name(name)} is lower for {group}: {figure_text(name, own, bounds)}"
                found.append(("caution", f"{text}, {figure_text(name, values[name])} overall."))
    found.sort(key=lambda warning: warning[0] != "bad")
    return [{"level": level, "text": text} for level, text in found]


def _baseline_warnings(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Warnings about baselines that the model does not exceed; only the highest one is named."""
    found = []
    values, name = evaluation["values"], evaluation["headline"]
    score = f"{figure_name(name)} {figure_text(name, values[name])}"
    rows = [row for row in evaluation["floors"] if row["advantage"] is not None]
    rows.sort(key=lambda row: row["advantage"]["value"])
    if rows and rows[0]["advantage"]["value"] <= 0:
        found.append(("bad", f"{score} is not above the baseline {_baseline_text(rows[0], name)}."))
    gains = [(row, row["advantage"]["value"], row["advantage"]["interval"]) for row in rows]
    doubtful = [row for row, gain, interval in gains if interval and interval[0] <= 0 < gain]
    if doubtful:
        text = f"{score} is not distinguishable from the baseline {_baseline_text(doubtful[0], name)}"
        found.append(("bad", f"{text}: difference {_gain_text(name, doubtful[0]['advantage'])}."))
    for figure in (figure for figure in values if figure.endswith(".roc_auc")):
        known = [row for row in evaluation["floors"] if row["values"].get(figure) is not None]
        highest = max(known, key=lambda row: row["values"][figure], default=None)
        own = values[figure]
        if highest is not None and own is not None and highest["values"][figure] > max(own, 0.5):
            said = f"{figure_name(figure)} {figure_text(figure, own)} is below"
            found.append(("bad", f"{said} the baseline {_baseline_text(highest, figure)}."))
    if any(row.get("skipped") == "no training table was given" for row in evaluation["floors"]):
        found.append(("caution", "The shortcut baselines were not computed, because no training table was given."))
    return found


def _baseline_text(row: dict[str, Any], figure: str) -> str:
    return f"\u201c{row['name']}\u201d ({figure_text(figure, row['values'][figure])})"


def _gain_text(figure: str, gain: Mapping[str, Any]) -> str:
    return figure_text(figure, gain["value"], gain["interval"], "+")


def format_summary(evaluation: dict[str, Any]) -> str:
    """The evaluation as plain text for a terminal: counts, metrics with intervals, baselines, definitions, warnings."""
    counts, own = evaluation["counts"], own_names(evaluation)
    spans = f"{row_noun(evaluation)}s"
    out = f" ({counts['unlabelled']} unlabelled rows left out)" if counts["unlabelled"] else ""
    lines = [f"{counts['cycles']} {spans} of {evaluation['uncertainty']['patients']} patients{out}"]
    lines += [f"[low, high]: 95 % interval, {interval_method(evaluation)}"]
    if effective := effective_text(evaluation.get("effective_patients")):
        lines += [f"effective patients: {effective}"]
    values, intervals = evaluation["values"], evaluation["intervals"]
    shown = [n for n in values if n in FIGURE_NAMES or n in own or n.endswith(("roc_auc", ".f1"))]
    shown = [name for name in shown if _EQUAL.get(name) not in values]
    behind = evaluation.get("effective") or {}  # an earlier evaluation has none
    lines += ["", f"  {'':<34}{'':<24}effective patients" if behind else ""]
    for name in shown:
        text, number = figure_text(name, values[name], intervals.get(name)), behind.get(name)
        few = f"{number:.1f}" if intervals.get(name) and number is not None else ""
        lines.append(f"  {figure_name(name):<34}{text:<24}{few}".rstrip())
    ece = evaluation["calibration"]["ece"]
    errors = {f"{calibration_name(label)} calibration error (ECE)": value for label, value in ece.items()}
    lines += [f"  {name:<34}{figure_text('ece', value)}" for name, value in errors.items()]
    name = evaluation["headline"]
    if evaluation["floors"]:
        lines += ["", f"shortcut baselines ({figure_name(name)}; model: difference of the model from it)"]
    for row in evaluation["floors"]:
        text = figure_text(name, row["values"].get(name), row["intervals"].get(name))
        if "skipped" in row:
            text = f"skipped: {row['skipped']}"
        if row["advantage"]:
            text += f"   model {_gain_text(name, row['advantage'])}"
        lines.append(f"  {row['name']:<34}{text}")
    lines += _corpora(evaluation)
    if lengths := length_table(evaluation):
        lines += ["", f"AUROC, controlled for the length of {spans} (length audit)", text_table(lengths)]
    lines += ["", *(f"{text}." for text in evaluation["definitions"].values())]
    for warning in evaluation["warnings"]:
        lines.append(f"{'warning' if warning['level'] == 'bad' else 'note'}: {warning['text']}")
    return "\n".join([*lines, "Research use only: not a medical device."])


def _corpora(evaluation: dict[str, Any]) -> list[str]:
    """The headline score and the AUROCs on each of several corpora, as lines."""
    rows, main = evaluation["subgroups"].get("corpus", ()), evaluation["headline"]
    lines = ["", "each corpus alone"] if rows else []
    for row in rows:
        names = [main, *(name for name in row["values"] if name.endswith("roc_auc"))]
        scores = [f"{figure_name(n)} {figure_text(n, row['values'][n], row['intervals'].get(n))}" for n in names]
        about = f"{row['cycles']} {row_noun(evaluation)}s of {patients_text(row)}"
        lines.append(f"  {row['value']:<34}{about}: {'; '.join(filter(None, [', '.join(scores), row['note']]))}")
    return lines


def length_table(evaluation: Mapping[str, Any], undefined: str = "–") -> list[list[str]]:
    """AUROC of each label, controlled for length, as text below a row of titles; empty without a length audit."""
    noun, segments = row_noun(evaluation), evaluation.get("duration_blind")
    within = {f"{label}.roc_auc": area for label, area in (evaluation.get("within_lengths") or {}).items()}
    if not within and not segments:
        return []
    columns = {f"whole {noun}s": evaluation["values"], f"{noun}s of similar length": within}
    if segments:
        columns[f"the middle {segments['seconds']:g} s of each {noun}"] = segments["values"]
    alone = [row["values"] for row in evaluation["floors"] if row["name"] == "event length"]
    columns |= {f"length of the {noun} alone": areas for areas in alone}
    lines = [["label", *columns]]
    for label in evaluation["label_names"]:
        if (name := f"{label}.roc_auc") in evaluation["values"]:
            areas = [values.get(name) for values in columns.values()]
            lines.append([label, *(undefined if area is None else figure_text(name, area) for area in areas)])
    return lines


def digest(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an evaluation that the run record keeps, for the model card."""
    kept = {name: metrics.get(name) for name in _DIGEST}
    names = card_figures(metrics)
    kept["calibration"] = {k: v for k, v in metrics["calibration"].items() if k != "bins"}
    kept["values"] = {name: metrics["values"][name] for name in names}
    kept["intervals"] = {name: metrics["intervals"].get(name) for name in names}
    own = [name for name in names if name == metrics["headline"] or name.endswith(".roc_auc")]
    kept["floors"] = [_only(row, own) for row in metrics["floors"]]
    kept["subgroups"] = {grouping: [_only(row, own) for row in rows] for grouping, rows in metrics["subgroups"].items()}
    if metrics.get("windows"):
        kept["windows"] = metrics["windows"]
    if "own_metrics" in metrics:
        kept["own_metrics"] = {"names": own_names(metrics)}
    return kept


def card_figures(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics of an evaluation that a model card shows, in its order."""
    values, labels = metrics["values"], metrics["label_names"]
    names = ["icbhi.Score", "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "sprsound.Score", "accuracy", "uar"]
    if "icbhi.Score" in values:
        names = [name for name in names if name not in ("accuracy", "uar")]
    if len(labels) <= _MOST_LABELS:
        names += [f"{label}.{kind}" for kind in ("roc_auc", "average_precision") for label in labels]
        names += [f"{label}.{kind}" for label in labels for kind in ("recall", "precision")]
    else:
        names += ["roc_auc_macro", "average_precision_macro", "f1_macro"]
    names = [*([] if metrics["headline"] in names else [metrics["headline"]]), *names]
    return [name for name in [*names, *own_names(metrics)] if name in values]


def _only(row: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """A baseline or subgroup with these metrics alone."""
    return {**row, **{of: {n: row[of].get(n) for n in names} for of in ("values", "intervals") if row.get(of)}}
