"""The whole evaluation of one predictions table, as a dictionary and as text.

Decisions: a score never travels alone. The dictionary holds definition, interval, floors, subgroups and warnings
beside it, is JSON as it stands (null for what is undefined), and is all that the report and the model card read.
Warnings are made here, where the numbers are, so that no page can leave them out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from laennec.errors import InputError
from laennec.evaluation.baselines import floors
from laennec.evaluation.bootstrap import LEVEL, bootstrap_values, interval, interval_note, patient_codes
from laennec.evaluation.failures import named_errors
from laennec.evaluation.length import length_groups
from laennec.evaluation.metrics import Thresholds
from laennec.evaluation.own_metrics import Metric, finite
from laennec.evaluation.predictions import (
    Answers,
    ProblemType,
    answer_statistics,
    calibration_of,
    describe,
    read_predictions,
)
from laennec.evaluation.subgroups import subgroup_tables

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
_LABEL_FIGURES = {
    "roc_auc": "AUROC",
    "average_precision": "AP",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
}


def evaluate_predictions(
    predictions: Any,
    *,
    problem_type: ProblemType | None = None,
    label_names: Sequence[str] | None = None,
    thresholds: Thresholds = None,
    temperatures: Mapping[str, float] | None = None,
    intercepts: Mapping[str, float] | None = None,
    metrics: Sequence[Metric | str] = (),
    train_table: Any = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate a predictions table: scores, intervals, floors, subgroups and warnings.

    Args:
        predictions: The predictions table (DataFrame); see `predictions.read_predictions`.
        problem_type: "multi_label" or "single_label"; None: multi_label where every output has a truth column.
        label_names: Names of the outputs; None: those of the `logit_<name>` columns, in their order.
        thresholds: In logits, fitted on validation; None is 0 (probability 0.5).
        temperatures: Divisor of each output's logit, by name, fitted on validation; calibration is measured after it.
        intercepts: What is added to each output's logit then, by name, fitted on validation.
        metrics: Own metrics, each a function (or the dotted name of one) from the table to {name: number}; see
            `own_metrics.Metric`. They get intervals and subgroups like the built-in figures.
        train_table: Cycle table of the training part, which the floors are fitted on; None leaves most floors out,
            and says so.
        n_draws: Bootstrap draws of patients.
        seed: Seed of the draws and of the floors.

    Returns:
        JSON-ready: all of `predictions_metrics`, and temperatures, intercepts, failures (see `named_errors`), intervals
        {figure: [low, high] or None}, bootstrap {n_draws, seed, level, unit, patients, note}, subgroups, floors,
        warnings [{"level": "bad" | "caution", "text"}]; calibration with ece_before and brier_before, of raw logits.

    Raises:
        InputError: The table lacks a column, a truth or a finite logit.
    """
    label_names = output_names(predictions) if label_names is None else list(label_names)
    if problem_type is None:
        problem_type = "multi_label" if set(label_names) <= set(predictions.columns) else "single_label"
    answers = read_predictions(
        predictions,
        problem_type=problem_type,
        label_names=label_names,
        thresholds=thresholds,
        temperatures=temperatures,
        intercepts=intercepts,
        metrics=metrics,
    )
    evaluation = describe(answers, problem_type, label_names)
    evaluation["temperatures"] = dict(temperatures) if temperatures else None
    evaluation["intercepts"] = dict(intercepts) if intercepts else None
    raw = read_predictions(predictions, problem_type=problem_type, label_names=label_names, thresholds=thresholds)
    evaluation |= errors_by_name(answers, raw, evaluation["calibration"])
    _, n_patients = patient_codes(answers.table)
    drawn = bootstrap_values(answers.table, answer_statistics(answers), n_draws, seed)
    bounds = {name: interval(values, n_patients) for name, values in drawn.items()}
    evaluation["intervals"] = {name: None if pair is None else list(pair) for name, pair in bounds.items()}
    evaluation["bootstrap"] = {
        "n_draws": n_draws,
        "seed": seed,
        "level": LEVEL,
        "unit": "patient",
        "patients": n_patients,
        "note": interval_note(n_patients),
    }
    if answers.own is not None:
        kept = {name: finite(drawn[name]) for name in answers.own.names}
        evaluation["own_metrics"] = {"names": list(answers.own.names), "draws": kept}
    if "patient_id" not in answers.table.columns or answers.table["patient_id"].isna().any():
        evaluation["notes"].append(
            "patients are not all known: recordings stand in for them, so the intervals may be too narrow"
        )
    evaluation["subgroups"] = subgroup_tables(answers, n_draws, seed)
    lengths = length_groups(answers, n_draws=0) if len(answers.label_names) else None
    evaluation["within_lengths"] = lengths["within"]["values"] if lengths else None
    evaluation["floors"] = []
    if answers.class_names:
        evaluation["floors"] = floors(
            train_table, None, class_names=answers.class_names, seed=seed, n_draws=n_draws, answers=answers
        )
    evaluation["warnings"] = _warnings(evaluation)
    return evaluation


def output_names(predictions: Any) -> list[str]:
    """Names of the outputs of a predictions table, in the order of its `logit_<name>` columns.

    Raises:
        InputError: There is no such column.
    """
    names = [str(name).removeprefix("logit_") for name in predictions.columns if str(name).startswith("logit_")]
    if not names:
        raise InputError("predictions table: no column logit_<name>; write the logit of each label into one")
    return names


def own_names(evaluation: Mapping[str, Any]) -> list[str]:
    """Names of the user's own metrics in an evaluation."""
    return list((evaluation.get("own_metrics") or {}).get("names", ()))


def errors_by_name(answers: Answers, raw: Answers, calibration: Mapping[str, Any]) -> dict[str, Any]:
    """The worst errors, and the calibration with that of the raw logits beside it.

    Args:
        answers: What `read_predictions` gives with the calibration.
        raw: The same without.
        calibration: What `calibration_of` gives for `answers`.

    Returns:
        {"failures": what `named_errors` gives, "calibration": with "ece_before" and "brier_before"}.
    """
    before = calibration_of(raw)
    named = {**calibration, "ece_before": before["ece"], "brier_before": before["brier"]}
    return {"failures": named_errors(answers), "calibration": named}


def figure_name(figure: str) -> str:
    """A figure's name for readers: "crackle.roc_auc" is "crackle AUROC"."""
    label, _, kind = figure.rpartition(".")
    return FIGURE_NAMES.get(figure) or f"{label} {_LABEL_FIGURES.get(kind, kind)}".strip()


def figure_text(figure: str, value: float | None, bounds: Sequence[float] | None = None) -> str:
    """A figure and its interval as text: one decimal for percent, three for shares of 1."""
    if value is None:
        return "undefined"
    digits = 1 if is_percent(figure) else 3
    text = f"{value:.{digits}f}"
    return text if bounds is None else f"{text} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def is_percent(figure: str) -> bool:
    """Whether a figure is in percent (scores of confusions) or a share of 1 (per-label figures)."""
    return figure.split(".")[0] in ("icbhi", "any_abnormal", "sprsound", "accuracy", "uar")


def _warnings(evaluation: dict[str, Any]) -> list[dict[str, str]]:
    """What a reader must not overlook."""
    found = _floor_warnings(evaluation)
    values, name = evaluation["values"], evaluation["headline"]
    if evaluation["bootstrap"]["note"]:
        found.append(
            ("caution", evaluation["bootstrap"]["note"][0].upper() + evaluation["bootstrap"]["note"][1:] + ".")
        )
    family = name.split(".")[0]
    missed = values.get("icbhi.Se") if family == "icbhi" else values.get("sprsound.SE")
    if missed is not None and missed < 50:
        found.append(("caution", f"{100 - missed:.0f} % of the abnormal items are not given their class."))
    recall = values.get(f"{family}.Sp", values.get(f"{family}.SP"))
    if recall is not None and recall < 50:
        found.append(("caution", f"{100 - recall:.0f} % of the normal items are called abnormal."))
    for figure, area in values.items():
        bounds = evaluation["intervals"].get(figure)
        if figure.endswith(".roc_auc") and area is not None and bounds is not None and bounds[0] <= 0.5:
            said = f"{figure_name(figure)} {figure_text(figure, area, bounds)}"
            found.append(("bad", f"{said} is no better than chance, as far as these patients tell."))
    found += [("caution", note[0].upper() + note[1:] + ".") for note in evaluation["notes"] if "undefined" in note]
    for grouping, rows in evaluation["subgroups"].items():
        for row in rows:
            own, bounds = row["values"].get(name), row["intervals"].get(name)
            if own is not None and bounds is not None and bounds[1] < values[name]:
                part = f"{grouping.replace('_', ' ')} {row['value']}"
                text = f"{figure_name(name)} is lower on {part}: {figure_text(name, own, bounds)}"
                text += f" against {figure_text(name, values[name])} overall."
                found.append(("caution", text))
    found.sort(key=lambda warning: warning[0] != "bad")
    return [{"level": level, "text": text} for level, text in found]


def _floor_warnings(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Floors that the model does not clear; of several, the highest is named."""
    found = []
    values, name = evaluation["values"], evaluation["headline"]
    rows = [row for row in evaluation["floors"] if row["advantage"] is not None]
    rows.sort(key=lambda row: row["advantage"]["value"])
    if rows and rows[0]["advantage"]["value"] <= 0:
        said = f"{figure_name(name)} {figure_text(name, values[name])} does not reach above"
        found.append(("bad", f"{said} the floor {_floor_text(rows[0], name)}."))
    doubtful = [row for row in rows if row["advantage"]["interval"] and row["advantage"]["interval"][0] <= 0]
    doubtful = [row for row in doubtful if row["advantage"]["value"] > 0]
    if doubtful:
        low, high = doubtful[0]["advantage"]["interval"]
        said = f"{figure_name(name)} {figure_text(name, values[name])} is not distinguishable from"
        gain = f"{doubtful[0]['advantage']['value']:+.1f} [{low:+.1f}, {high:+.1f}]"
        found.append(("bad", f"{said} the floor {_floor_text(doubtful[0], name)}: {gain}."))
    for figure in (figure for figure in values if figure.endswith(".roc_auc")):
        known = [row for row in evaluation["floors"] if row["values"].get(figure) is not None]
        highest = max(known, key=lambda row: row["values"][figure], default=None)
        own = values[figure]
        if highest is not None and own is not None and highest["values"][figure] > max(own, 0.5):
            said = f"{figure_name(figure)} {figure_text(figure, own)} lies below"
            found.append(("bad", f"{said} the floor {_floor_text(highest, figure)}."))
    if any(row.get("skipped") == "no training table was given" for row in evaluation["floors"]):
        found.append(("caution", "The shortcut floors were not computed, because no training table was given."))
    return found


def _floor_text(row: dict[str, Any], figure: str) -> str:
    """A floor's name and what it reaches."""
    return f"\u201c{row['name']}\u201d ({figure_text(figure, row['values'][figure])})"


def format_summary(evaluation: dict[str, Any]) -> str:
    """The evaluation as plain text for a terminal: counts, figures with intervals, floors, definitions, warnings.

    Args:
        evaluation: What `evaluate_predictions` returned.
    """
    counts, draws = evaluation["counts"], evaluation["bootstrap"]
    lines = [f"{counts['cycles']} cycles of {draws['patients']} patients"]
    lines[0] += f" ({counts['unlabelled']} unlabelled rows left out)" if counts["unlabelled"] else ""
    lines += [f"[low, high]: 95 % interval, {draws['n_draws']} draws of patients, seed {draws['seed']}", ""]
    own = own_names(evaluation)
    shown = [n for n in evaluation["values"] if n in FIGURE_NAMES or n in own or n.endswith(("roc_auc", ".f1"))]
    lines += [f"  {figure_name(name):<34}{_with_interval(evaluation, name)}" for name in shown]
    lines += [
        f"  {label + ' ECE':<34}{figure_text('ece', value)}"
        for label, value in evaluation["calibration"]["ece"].items()
    ]
    name = evaluation["headline"]
    if evaluation["floors"]:
        lines += ["", f"floors ({figure_name(name)}, and how far above it the model lies)"]
    for row in evaluation["floors"]:
        gain = row["advantage"]
        text = (
            f"skipped: {row['skipped']}"
            if "skipped" in row
            else figure_text(name, row["values"].get(name), row["intervals"].get(name))
        )
        above = f"   model {gain['value']:+.1f}" if gain else ""
        above += f" [{gain['interval'][0]:+.1f}, {gain['interval'][1]:+.1f}]" if gain and gain["interval"] else ""
        lines.append(f"  {row['name']:<34}{text}{above}")
    lines += _audit(evaluation)
    lines += ["", *(f"{text}." for text in evaluation["definitions"].values())]
    lines += [f"{'!!' if warning['level'] == 'bad' else '! '} {warning['text']}" for warning in evaluation["warnings"]]
    return "\n".join([*lines, "Research use only: not a medical device."])


def _audit(evaluation: dict[str, Any]) -> list[str]:
    """What of each label's AUROC is left where length says nothing, as lines."""
    within, blind = evaluation.get("within_lengths"), evaluation.get("duration_blind")
    if not within and not blind:
        return []
    lines = ["", "length audit (AUROC)"]
    for label in within or evaluation["label_names"]:
        figure = f"{label}.roc_auc"
        found = {"all cycles": evaluation["values"].get(figure), "within like lengths": (within or {}).get(label)}
        if blind:
            found[f"{blind['seconds']:g} s about the middle"] = blind["values"].get(figure)
        alone = [row["values"].get(figure) for row in evaluation["floors"] if row["name"] == "event length"]
        found["length alone"] = alone[0] if alone else None
        known = [f"{name} {figure_text(figure, value)}" for name, value in found.items() if value is not None]
        if known:
            lines.append(f"  {label:<34}{', '.join(known)}")
    return lines if len(lines) > 2 else []


def _with_interval(evaluation: dict[str, Any], name: str) -> str:
    """One figure of the evaluation with its interval."""
    return figure_text(name, evaluation["values"][name], evaluation["intervals"].get(name))
