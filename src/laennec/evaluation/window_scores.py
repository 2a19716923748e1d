"""Scores per window, per second of sound and per recording, as a model is used in prediction.

Decisions: all three are scored label by label on the same predictions of windows. A second has the highest logit of the
windows that contain its middle, because the label of a window is shown over its whole length; a recording has the
highest logit of all its windows, and has a label if any annotated span has it. Windows and seconds that are not
annotated are left out and counted; recordings without annotated spans do not occur. The ICBHI Score is defined for
cycles, so it is not given here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from laennec.audio.features import LaennecFeatureExtractor
from laennec.evaluation.baselines import ALWAYS_NORMAL, shortcut_baselines
from laennec.evaluation.calibration.operating_point import decision_settings, fitting_notes, highest_logits, window_note
from laennec.evaluation.calibration.probabilities import expected_calibration_error, thresholds_text
from laennec.evaluation.intervals import (
    effective_by_label,
    effective_patients,
    interval_note,
    patient_codes,
    patient_intervals,
    patients_text,
    rarer_patients,
)
from laennec.evaluation.metrics import FloatArray, IntArray, RankedLabel, none_if_nan
from laennec.evaluation.predictions import read_predictions
from laennec.evaluation.summary import figure_text
from laennec.modeling import LaennecForAudioClassification
from laennec.rendering import text_table
from laennec.training.data.windows import RULE, predict_windows, window_table, window_truth
from laennec.training.recipe import Recipe

UNITS = ("windows", "seconds", "recordings")
_TITLES = {
    "roc_auc": "AUROC", "average_precision": "AP", "recall": "sensitivity", "specificity": "specificity",
    "precision": "precision",
}  # fmt: skip
_CONSTANT = (ALWAYS_NORMAL, "majority class")


def scored_windows(
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    splits: Any,
    split: str,
    recipe: Recipe,
    lengths: tuple[float, float],
) -> tuple[Any, dict[str, Any]]:
    """The predictions table of the windows of a split, and their scores."""
    config, rate, names = model.config, extractor.sampling_rate, model.config.label_names

    def truth(name: str, window_s: float, hop_s: float) -> Any:
        return window_truth(window_table(splits[name], recipe, rate, window_s, hop_s), name, recipe, names)

    train = None
    if "train" in splits:
        train = {"windows": truth("train", *lengths), "seconds": truth("train", 1.0, 1.0)}
        without_logits = train["windows"].assign(**{f"logit_{name}": 0.0 for name in names})
        train["recordings"] = highest_logits(without_logits, names)
    table = predict_windows(model, extractor, splits[split], split, recipe, *lengths)
    scores = score_windows(table, truth(split, 1.0, 1.0), config, train)
    notes = [note for spans in config.operating_points for note in fitting_notes(config, spans)]
    if note := window_note(config, *lengths):
        notes.insert(0, note)
    return table, {"window_s": lengths[0], "hop_s": lengths[1], "rule": RULE, "notes": notes, **scores}


def score_windows(table: Any, seconds: Any, config: Any, train: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Score the predictions of windows per window, per second and per recording.

    Args:
        table: Predictions table of all windows; unknown truth is null.
        seconds: Truth table of all seconds of the same recordings.
        config: The model's configuration.
        train: Truth tables by unit of the training split, for the baselines; None for none.
    """
    labels, logits, decided, probabilities = _by_label(table, config, "windows")
    windows = table.assign(**_columns(labels, logits))
    recordings = highest_logits(windows, labels)
    covering = _covering(windows, seconds)
    of_recording = list(windows.groupby("recording_id", sort=False).indices.values())
    scored = {
        "windows": windows,
        "seconds": seconds.assign(**_columns(labels, _highest(logits, covering))),
        "recordings": recordings,
    }
    outcome = {"windows": (decided, probabilities)}
    for unit, groups in (("seconds", covering), ("recordings", of_recording)):
        outcome[unit] = (_highest(decided, groups), _highest(probabilities, groups))
    fitted_on = dict.fromkeys(UNITS, "windows" if "windows" in config.operating_points else "events")
    bounds = dict.fromkeys(UNITS, _bounds(config, "windows"))
    if "recordings" in config.operating_points:
        fitted_on["recordings"], bounds["recordings"] = "recordings", _bounds(config, "recordings")
        outcome["recordings"] = _by_label(recordings, config, "recordings")[2:]
    units = {}
    several = len(labels) > 1 and (config.is_multi_label or set(labels) == {"crackle", "wheeze"})
    for name in UNITS:
        units[name] = _unit(scored[name], labels, *outcome[name], several=several) | bounds[name]
        if {"crackle", "wheeze"} <= set(labels):
            trained = None if train is None else train[name]
            units[name]["baselines"] = _baselines(name, trained, scored[name], labels)
    return {"fitted_on": fitted_on, "units": units}


def _bounds(config: Any, spans: str) -> dict[str, Any]:
    """Thresholds and second thresholds; None for a single-label model."""
    if not config.is_multi_label:
        return {"thresholds": None}
    second = config.labels_with_second(spans)
    return {"thresholds": config.per_label("thresholds", spans)} | ({"second_thresholds": second} if second else {})


def _by_label(table: Any, config: Any, spans: str) -> tuple[list[str], FloatArray, Any, FloatArray]:
    """Labels, and of every row their log-odds, decisions and probabilities (rows, labels)."""
    settings = decision_settings(config, spans)
    names = settings["label_names"]
    # placeholder: the truth is not used here, but rows without truth would be left out
    known = dict.fromkeys(names, 0) if config.is_multi_label else {"label": names[0]}
    read = read_predictions(table.assign(**known), **settings)
    return list(read.label_names), read.logits, read.decided, read.probabilities


def _covering(windows: Any, seconds: Any) -> list[Any]:
    """For each second the windows that contain its middle."""
    of_recording = windows.groupby("recording_id").indices
    starts, ends = windows["start_s"].to_numpy(dtype=float), windows["end_s"].to_numpy(dtype=float)
    found = []
    middles = (seconds["start_s"] + seconds["end_s"]) / 2
    for name, middle in zip(seconds["recording_id"], middles, strict=True):
        rows = of_recording[name]
        found.append(rows[(starts[rows] <= middle) & (middle < ends[rows])])
    return found


def _highest(values: Any, groups: Sequence[Any]) -> FloatArray:
    """The highest of each group of rows: (rows, labels) -> (groups, labels)."""
    return np.array([values[rows].max(0) for rows in groups], dtype=float).reshape(len(groups), values.shape[1])


def _columns(labels: Sequence[str], logits: FloatArray) -> dict[str, FloatArray]:
    return {f"logit_{label}": logits[:, k] for k, label in enumerate(labels)}


def _unit(
    table: Any, labels: Sequence[str], decided: Any, probabilities: FloatArray, *, several: bool
) -> dict[str, Any]:
    """Counts, values, intervals and calibration errors of one kind of row, and those of any label (`several`)."""
    known = table[list(labels)].notna().all(axis=1).to_numpy()
    rows = table.loc[known].reset_index(drop=True)
    truth = rows[list(labels)].to_numpy(dtype=np.int64)
    decided, probabilities = np.asarray(decided)[known].astype(np.int64), probabilities[known]
    logits = rows[[f"logit_{label}" for label in labels]].to_numpy(dtype=float)
    statistic = _statistic(labels, truth, logits, decided, several)
    once = {name: none_if_nan(value[0]) for name, value in statistic(np.ones((1, len(rows)))).items()}
    codes, patients = patient_codes(rows)
    flags = dict(zip([*labels, "any"], [*truth.T, truth.any(1)], strict=True))
    effective = {}
    for name, present in flags.items():
        effective[name] = rarer_patients(codes, present)  # areas under curves need both
        effective |= dict.fromkeys((f"{name}.recall", f"{name}.precision"), effective_patients(codes, present))
        effective[f"{name}.specificity"] = effective_patients(codes, 1 - present)
    return {
        "rows": len(rows),
        "left_out": int((~known).sum()),
        "patients": patients,
        "effective_patients": effective_by_label(codes, truth, labels),
        "positives": {label: int(n) for label, n in zip(labels, truth.sum(0), strict=True)},
        "values": once,
        "intervals": patient_intervals(rows, statistic, effective),
        "ece": {
            label: none_if_nan(expected_calibration_error(probabilities[:, k], truth[:, k]))
            for k, label in enumerate(labels)
        },
        "note": interval_note(patients),
        "baselines": {},
    }


def _statistic(labels: Sequence[str], truth: IntArray, logits: FloatArray, decided: IntArray, several: bool) -> Any:
    """Weights (weightings, rows) -> every figure of every label (weightings,), and those of any label (`several`)."""
    ranked = [RankedLabel(logits[:, k], truth[:, k]) for k in range(len(labels))]
    names, true, predicted = [*labels], truth, decided
    if several:
        names = [*labels, "any"]
        true, predicted = (np.column_stack([flags, flags.any(1)]).astype(np.int64) for flags in (truth, decided))

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        def share(part: Any, whole: Any) -> FloatArray:
            count = weights @ whole
            return np.asarray(np.where(count > 0, (weights @ part) / np.where(count > 0, count, 1), np.nan))

        figures = {
            "recall": share(true * predicted, true),
            "specificity": share((1 - true) * (1 - predicted), 1 - true),
            "precision": share(true * predicted, predicted),
        }
        values = {f"{name}.{figure}": v[:, k] for k, name in enumerate(names) for figure, v in figures.items()}
        for label, one in zip(labels, ranked, strict=True):
            values |= {
                f"{label}.roc_auc": one.auroc(weights),
                f"{label}.average_precision": one.average_precision(weights),
            }
        return values

    return statistic


def _baselines(unit: str, train: Any, table: Any, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """AUROCs with intervals of the shortcut baselines; length only of recordings, which differ in it."""
    known = table.loc[table[list(labels)].notna().all(axis=1).to_numpy()].reset_index(drop=True)
    found = {}
    for row in shortcut_baselines(train, known):
        if row["name"] in _CONSTANT or "skipped" in row:
            continue
        name = row["name"].replace("event length", "recording length")
        if name != "recording length" or unit == "recordings":
            areas = [f"{label}.roc_auc" for label in labels]
            found[name] = {kind: {area: row[kind].get(area) for area in areas} for kind in ("values", "intervals")}
    return found


def unit_table(section: Mapping[str, Any], unit: str) -> list[list[str]]:
    """The figures of one kind of row as text: a line of labels, then a line for each figure."""
    found = section["units"][unit]
    labels = [*found["positives"]]
    if any(name.startswith("any.") for name in found["values"]):
        labels.append("any")
    lines = [["", *labels]]
    for figure, title in _TITLES.items():
        names = [f"{label}.{figure}" for label in labels]
        values, bounds = found["values"], found["intervals"]
        cells = [figure_text(name, values[name], bounds.get(name)) if name in values else "" for name in names]
        lines.append([title, *cells])
    lines.append(
        ["ECE", *(figure_text("ece", found["ece"][label]) if label in found["ece"] else "" for label in labels)]
    )
    for name, row in found["baselines"].items():
        areas = [f"{label}.roc_auc" for label in found["positives"]]
        cells = [figure_text(area, row["values"].get(area), row["intervals"].get(area)) for area in areas]
        lines.append([f"AUROC of {name} alone", *cells, *[""] * (len(labels) - len(cells))])
    return lines


def unit_title(section: Mapping[str, Any], unit: str) -> str:
    """Rows, patients, positives and decision of one kind of row, as one line."""
    found = section["units"][unit]
    positives = ", ".join(f"{n} with {label}" for label, n in found["positives"].items())
    left_out = f" ({found['left_out']} not annotated, left out)" if found["left_out"] else ""
    text = f"{found['rows']} {unit} of {patients_text(found)}: {positives}{left_out}"
    if found["thresholds"] is None:
        return f"{text}; most probable class"
    bounds = thresholds_text(found["thresholds"], found.get("second_thresholds"))
    return f"{text}; {bounds} (fitted on {section['fitted_on'][unit]})"


def format_windows(section: Mapping[str, Any]) -> str:
    """The scores of windows, seconds and recordings as plain text."""
    lines = [
        f"as predicted: windows of {section['window_s']:g} s every {section['hop_s']:g} s; a label is true where "
        f"{section['rule']}"
    ]
    for unit in section["units"]:
        lines += ["", unit_title(section, unit), text_table(unit_table(section, unit))]
        if note := section["units"][unit]["note"]:
            lines.append(f"  note: {note}")
    return "\n".join([*lines, *(f"note: {note}" for note in section["notes"])])
