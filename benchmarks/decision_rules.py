"""Which decision rules suit a fine-tuned model, for events and for recordings? Runs on folds of the patients.

    make best-sprsound FOLDS="0 1 2"
    python -m benchmarks.decision_rules runs/best-sprsound-folds/*

Each run predicts events, and windows of recordings, of patients it was not trained on. Among these patients, four
fifths fit a rule and one fifth is scored, in turn, for several draws of the fifths. Test splits are not read. The
result is docs/results/decision_rules.json.
"""

import argparse
import datetime
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.operating_point import AUROC, GROUPS, Array, compared, score, with_findings
from benchmarks.sprsound import LABELS
from laennec.evaluation.calibration.logit_adjustment import adjusted_classes, fit_adjustments
from laennec.evaluation.calibration.operating_point import (
    FittingRule,
    fit_operating_point,
    highest_logits,
)
from laennec.evaluation.calibration.recalibrate import VALIDATION, WINDOWS
from laennec.evaluation.calibration.smoothing import smooth_predictions
from laennec.evaluation.evaluate import load_model
from laennec.evaluation.metrics import POOR_QUALITY
from laennec.evaluation.predictions import read_predictions
from laennec.evaluation.sprsound_tasks import SPRSOUND_TASKS, sprsound_task
from laennec.training.auxiliary_tasks import codes_of, level_tables, task_embeddings, task_logits, tasks_of, windows_of
from laennec.training.recipe import Recipe
from laennec.training.record import hardware, read_run, versions, write_record
from laennec.training.tables import head_logits

RESULT = Path(__file__).resolve().parents[1] / "docs/results/decision_rules.json"
# of the operating points of a run
CALIBRATIONS = {"events": "temperature", "windows": "platt", "recordings": "platt"}
SMOOTHING = 0.3  # weight of the recording's mean
TASKS = {"2-1": "two", "2-2": "all"}
EVENT_RULES = {
    "icbhi": "both thresholds together, for the highest ICBHI Score",
    "icbhi_likeliest": "the same, where the less likely label needs the probability 0.5 too",
    "icbhi_likeliest, smoothed": "the same, on logits mixed with the mean of their recording",
    "icbhi_likeliest, smoothed, findings": "the same, thresholds fitted on patients with findings alone",
    "icbhi_likeliest, smoothed, least cost": "both thresholds at the share of abnormal rows: the class of the highest "
    "expected Score",
}
RECORDING_RULES = {
    "record head": "the model's head for recordings, on the mean embedding of the windows",
    "means": "a logistic regression on this head's logits and the mean logits of crackle, wheeze and the event types",
    "means, maxima, shares, count": "the same with the highest logit, the 90th percentile and the share above 0 of "
    "each, and the number of windows",
}


@dataclass
class Recordings:
    """The recordings of a run's validation patients, without those of poor quality."""

    codes: Array  # (recordings,), 0 for normal
    patients: Array  # (recordings,)
    features: dict[str, Array]  # (recordings, features) by rule; the features of the first rule are class logits


def recordings_of(run: Path) -> Recordings:
    """Predict the windows of all recordings."""
    model, extractor = load_model(run)
    recipe = Recipe.from_record(read_run(run / "run.json")["config"])
    of_events, of_records = (
        next(task for task in tasks_of(recipe) if task.level == level) for level in (None, "record")
    )
    patients = set(pd.read_parquet(run / VALIDATION).patient_id)
    _, table = level_tables(recipe, "record", patients)
    codes = codes_of(of_records, table)
    table = table.select(np.flatnonzero((codes >= 0) & (codes < of_records.labels.index(POOR_QUALITY))))
    owners, windows = windows_of(table, float(of_records.window_s or 0))
    embeddings = task_embeddings(model, extractor, of_records.name, windows, recipe)
    events = task_logits(model, extractor, of_events.name, windows, recipe, embeddings)
    by_window = np.column_stack([head_logits(model, embeddings), events[:, 1:] - events[:, :1]])
    records = task_logits(model, extractor, of_records.name, windows, recipe, embeddings)
    found: dict[str, list[Array]] = {rule: [] for rule in RECORDING_RULES}
    for row in range(len(table)):
        own, record = by_window[owners == row], records[owners == row].mean(0)
        means = np.r_[record[:-1] - record[0], own.mean(0)]
        spread = [own.max(0), np.percentile(own, 90, axis=0), (own > 0).mean(0), [np.log(len(own))]]
        for rule, values in zip(RECORDING_RULES, (record, means, np.r_[means, np.concatenate(spread)]), strict=True):
            found[rule].append(values)
    features = {rule: np.array(rows) for rule, rows in found.items()}
    return Recordings(codes_of(of_records, table), np.array(table["patient_id"]), features)


def decide(data: Recordings, rule: str, fitted: Array, wanted: Array, way: str) -> Array:
    """Classes of the wanted recordings, by a rule fitted on other recordings and a `way` of `adjusted_classes`."""
    labels, x, codes = SPRSOUND_TASKS["2-2"][:-1], data.features[rule], data.codes
    if rule == "record head":
        own, logits = x[fitted, :-1], x[wanted, :-1]
    else:
        own, logits = np.empty((len(fitted), len(labels))), stacked(x, codes, fitted, wanted, len(labels))
        for known, left in GroupKFold(5, shuffle=True, random_state=0).split(fitted, groups=data.patients[fitted]):
            own[left] = stacked(x, codes, fitted[known], fitted[left], len(labels))
    return adjusted_classes(labels, logits, fit_adjustments(labels, codes[fitted], own)[way], way)


def stacked(x: Array, codes: Array, fitted: Array, wanted: Array, classes: int) -> Array:
    """Log-probabilities (wanted rows, classes) of a logistic regression on the fitted rows."""
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(x[fitted], codes[fitted])
    found = np.full((len(wanted), classes), -50.0)  # stays for classes without a fitted row
    found[:, head.classes_] = head.predict_log_proba(x[wanted])
    return found


def tables_of(run: Path) -> dict[str, pd.DataFrame]:
    """The predictions of a run for events, for windows and, by the highest logit, for recordings."""
    windows = pd.read_parquet(run / WINDOWS).dropna(subset=list(LABELS)).reset_index(drop=True)
    return {
        "events": pd.read_parquet(run / VALIDATION),
        "windows": windows,
        "recordings": highest_logits(windows, LABELS),
    }


def label_scores(
    table: pd.DataFrame, rules: Iterable[str], fold: int, calibration: Any, draws: int
) -> Iterator[dict[str, Any]]:
    """ICBHI Score and mean AUROC of each rule and group of patients, for each draw of the fifths."""
    truth, patients = table[list(LABELS)].to_numpy(dtype=int), table.patient_id.to_numpy()
    groups = np.ones(len(table), bool), with_findings(truth, patients)
    for draw, rule in itertools.product(range(draws), rules):
        said, probabilities = np.empty(truth.shape), np.empty(truth.shape)
        for fitted, wanted in GroupKFold(5, shuffle=True, random_state=draw).split(table, groups=patients):
            named, *options = rule.split(", ")
            if "findings" in options:
                fitted = fitted[groups[1][fitted]]
            how = FittingRule(calibration, named, smoothing=SMOOTHING if "smoothed" in options else 0.0)
            point = fit_operating_point(table.iloc[fitted], LABELS, True, how)
            if "least cost" in options:
                at = float(logit(truth[fitted].any(axis=1).mean()))
                slopes, shifts = point["temperatures"], point["intercepts"]
                point["thresholds"] = {name: (at - shifts[name]) * slopes[name] for name in LABELS}
            rows = smooth_predictions(table.iloc[wanted], LABELS, point.get("smoothing", 0.0))
            settings = {name: point[name] for name in ("thresholds", "temperatures", "intercepts", "second_thresholds")}
            found = read_predictions(rows, problem_type="multi_label", label_names=LABELS, **settings)
            said[wanted], probabilities[wanted] = found.decided, found.probabilities
        scores = [score(said[among], truth[among], np.full(2, 0.5)) for among in groups]
        ranking = float(np.mean([roc_auc_score(truth[:, k], probabilities[:, k]) for k in range(len(LABELS))]))
        yield {"seed": draw, "fold": fold, "rule": rule, **dict(zip(GROUPS, scores, strict=True)), AUROC: ranking}


def recording_scores(data: Recordings, fold: int, task: str, draws: int) -> Iterator[dict[str, Any]]:
    """SPRSound's Score of each rule for recordings and group of patients, for each draw of the fifths."""
    truth = np.array(SPRSOUND_TASKS["2-2"])[data.codes]
    groups = np.ones(len(truth), bool), with_findings(data.codes[:, None] > 0, data.patients)
    for draw, rule in itertools.product(range(draws), RECORDING_RULES):
        said = np.empty(len(truth), dtype=object)
        for fitted, wanted in GroupKFold(5, shuffle=True, random_state=draw).split(truth, groups=data.patients):
            said[wanted] = decide(data, rule, fitted, wanted, TASKS[task])
        scores = [sprsound_task(task, list(truth[among]), list(said[among]))["Score"] for among in groups]
        yield {"seed": draw, "fold": fold, "rule": rule, **dict(zip(GROUPS, scores, strict=True))}


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, one for each validation fold")
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    runs, draws = list(enumerate(options.runs)), options.draws
    data = [recordings_of(run) for run in options.runs]
    predicted = [tables_of(run) for _, run in runs]
    tables = {}
    base, *_ = EVENT_RULES
    for name, calibration in CALIBRATIONS.items():
        of_runs = [one[name] for one in predicted]
        rules = dict(list(EVENT_RULES.items())[: 2 if name == "recordings" else None])  # one row each: no mean to mix
        scores = (label_scores(one, rules, k, calibration, draws) for k, one in enumerate(of_runs))
        rows = pd.DataFrame(itertools.chain.from_iterable(scores))
        counted = f"{sum(map(len, of_runs))} {name}"
        tables[name] = {"base": base, "rules": compared(rows, rules, base), "rows": counted}
    counted = f"{sum(len(one.codes) for one in data)} recordings"
    for task in TASKS:
        rows = pd.DataFrame(row for k, one in enumerate(data) for row in recording_scores(one, k, task, draws))
        base, *_ = RECORDING_RULES
        tables[task] = {"base": base, "rules": compared(rows, RECORDING_RULES, base), "rows": counted}
    record = {
        "recipe": read_run(options.runs[0] / "run.json")["name"], "tables": tables, "seeds": draws, "folds": len(runs),
        "patients": sum(one["events"].patient_id.nunique() for one in predicted),
        "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
