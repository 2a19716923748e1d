"""Shortcut baselines, which ignore the content of the sound, and the length audit.

Decisions: every score is printed beside trivial baselines (always normal, majority class) and shortcut baselines. A
shortcut baseline is a small gradient boosting on one property other than the content of the sound (event length,
device, patient and chest location, level, bandwidth, database), fitted on training rows. Its probabilities of abnormal
classes are multiplied by the factor with the best (Sp + Se) / 2 on training rows; it would otherwise predict normal
nearly always. The length audit gives the AUROC among cycles of similar length (quantile groups, each pair within a
group counted once) and on segments of one length around the middle of each cycle; the decrease on segments is an upper
bound on what length explains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd

from laennec.audio.recording import bandwidth_hz, level_db
from laennec.cache import cache_root, read_entry, write_entry
from laennec.corpora.base import column_of, to_arrow
from laennec.corpora.waveforms import CycleWaveforms
from laennec.evaluation.intervals import MIN_PATIENTS, patient_codes, patient_intervals, rarer_patients
from laennec.evaluation.metrics import (
    CLASSES,
    FloatArray,
    IntArray,
    RankedLabel,
    confusion_matrix,
    exact_sensitivity,
    four_class,
    none_if_nan,
    specificity,
)
from laennec.evaluation.predictions import (
    Predictions,
    effective_numbers,
    headline,
    point_values,
    read_predictions,
    statistics_of,
)

ALWAYS_NORMAL = "always normal"
SHORTCUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "event length": ("its duration", ("length_s",)),
    "device": ("recording device", ("device",)),
    "age, sex, location": ("age and sex of the patient, chest location", ("age_years", "sex", "chest_location")),
    "level": ("its loudness", ("level_db",)),
    "bandwidth": ("highest frequency with energy", ("bandwidth_hz",)),
    "database": ("source database", ("database",)),
    "corpus": ("corpus that it comes from", ("corpus",)),
}
LENGTH_GROUPS = 10
_OPTIONAL = ("level", "bandwidth", "database", "corpus")  # columns that few corpora have: no row where they are missing
_CATEGORIES = ("device", "sex", "chest_location", "database", "corpus")
_FACTORS = tuple(float(factor) for factor in np.geomspace(0.25, 16, 25))
_BOOSTING: dict[str, Any] = {
    "max_iter": 60,
    "max_leaf_nodes": 8,
    "learning_rate": 0.1,
    "min_samples_leaf": 20,
    "early_stopping": False,
}
_FACTS_VERSION = 1  # of the cache; increase it when level or bandwidth is measured differently
_SEGMENT_QUANTILE = 0.05
_SEGMENT_FIGURES = ("icbhi.Score", "any_abnormal.Score", "sprsound.Score", "roc_auc_macro")


def shortcut_baselines(
    train_table: Any,
    test_table: Any,
    *,
    class_names: Sequence[str] = CLASSES,
    seed: int = 0,
    predictions: Predictions | None = None,
) -> list[dict[str, Any]]:
    """Score trivial and shortcut baselines on the test rows.

    Args:
        train_table: Cycle table (DataFrame) to fit the shortcut baselines on; None: only "always normal" is scored.
        test_table: Cycle or predictions table (DataFrame) to score.
        class_names: The classes, normal first. The truth of the four classes is `crackle` and `wheeze`, else `label`.
        seed: Seed of the gradient boosting.
        predictions: The model's predictions for the same rows; adds the paired difference of model and baseline.

    Returns:
        Rows {"name", "what", "values": {metric: number}, "intervals": {metric: [low, high] or None}, "advantage"};
        "advantage" is {"value", "interval"} of the model's headline score minus the baseline's, or None. A baseline
        that cannot be fitted has "skipped" with the reason.
    """
    classes = tuple(class_names)
    test = predictions.table if predictions is not None else test_table
    rows: list[dict[str, Any]] = []
    for name, what, guess in _guesses(train_table, test, classes, seed):
        row: dict[str, Any] = {"name": name, "what": what}
        if isinstance(guess, str):
            rows.append(row | {"skipped": guess, "values": {}, "intervals": {}, "advantage": None})
        else:
            rows.append(row | _scored(test, classes, guess, predictions))
    return rows


def _guesses(train: Any, test: Any, classes: tuple[str, ...], seed: int) -> list[tuple[str, str, FloatArray | str]]:
    """Name, description and class probabilities (cycles, classes), or the reason for none, of every baseline."""
    guesses: list[tuple[str, str, FloatArray | str]] = []
    has_normal = classes[0].lower() == "normal"
    if has_normal:
        guesses.append((ALWAYS_NORMAL, "always predicts normal", _constant(0, len(test), len(classes))))
    if train is None:
        reason = "no training table was given"
        return guesses + [(name, what, reason) for name, (what, _) in SHORTCUTS.items() if name not in _OPTIONAL]
    ids, known = _class_ids(train, classes)
    labelled = train.loc[known]
    if not len(labelled):
        what = "always predicts the most frequent class of the training split"
        return [*guesses, ("majority class", what, "no training row is labelled")]
    commonest = int(np.bincount(ids, minlength=len(classes)).argmax())
    what = f"always predicts the most frequent class of the training split ({classes[commonest]})"
    guesses.append(("majority class", what, _constant(commonest, len(test), len(classes))))
    for name, (what, columns) in SHORTCUTS.items():
        train_x, test_x = _features(labelled, test, columns)
        if len(train_x.columns):
            if lacking := [column for column in columns if column not in train_x.columns]:
                what = f"{what} (not recorded: {', '.join(lacking)})"
            guesses.append((name, what, _fit_shortcut(train_x, ids, test_x, len(classes), seed, has_normal)))
        elif name not in _OPTIONAL:
            guesses.append((name, what, f"{' or '.join(columns)} is not recorded, or shares no value with train"))
    return guesses


def _scored(
    test: Any, classes: tuple[str, ...], probabilities: FloatArray, model: Predictions | None
) -> dict[str, Any]:
    """Values and intervals of one baseline, and the difference of the model from it."""
    guessed = test.assign(**{f"logit_{name}": np.log(probabilities[:, k] + 1e-9) for k, name in enumerate(classes)})
    if classes == CLASSES and "crackle" in test.columns:
        guessed = guessed.drop(columns="label", errors="ignore")
    baseline = read_predictions(guessed, problem_type="single_label", label_names=classes)
    values, statistics, effective = point_values(baseline), statistics_of(baseline), effective_numbers(baseline)
    bounds = patient_intervals(baseline.table, statistics, effective)
    row: dict[str, Any] = {"values": values, "intervals": bounds, "advantage": None}
    if model is not None:
        name, of_model = headline(values), statistics_of(model)
        own, other = point_values(model).get(name), values[name]

        def difference(weights: FloatArray) -> dict[str, FloatArray]:
            return {name: of_model(weights)[name] - statistics(weights)[name]}

        if own is not None and other is not None:
            paired = patient_intervals(baseline.table, difference, effective, shares=False)
            row["advantage"] = {"value": own - other, "interval": paired[name]}
    return row


def _class_ids(table: Any, classes: tuple[str, ...]) -> tuple[IntArray, Any]:
    """Class ids of the labelled rows, and the mask (cycles,) of these rows."""
    if classes == CLASSES and {"crackle", "wheeze"} <= set(table.columns):
        known = table[["crackle", "wheeze"]].notna().all(axis=1).to_numpy()
        rows = table.loc[known]
        return four_class(rows["crackle"].to_numpy(dtype=int), rows["wheeze"].to_numpy(dtype=int)), known
    known = table["label"].isin([*classes, *range(len(classes))]).to_numpy()
    position = {name: k for k, name in enumerate(classes)} | {k: k for k in range(len(classes))}
    return np.array([position[label] for label in table.loc[known, "label"]], dtype=np.int64), known


def _constant(k: int, rows: int, n_classes: int) -> FloatArray:
    return np.tile(np.eye(n_classes)[k], (rows, 1))


def _lengths(table: Any) -> FloatArray | None:
    """Length of each cycle in seconds (cycles,), nan where unknown; None where the table has no times."""
    if not {"start_s", "end_s"} <= set(table.columns):
        return None
    return np.asarray((table["end_s"] - table["start_s"]).to_numpy(dtype=float, na_value=np.nan))


def _features(train: Any, test: Any, names: Sequence[str]) -> tuple[Any, Any]:
    """The recorded features of both tables as DataFrames; a category that training does not have is missing."""
    train_x, test_x = pd.DataFrame(index=train.index), pd.DataFrame(index=test.index)
    for name in names:
        columns: list[Any] = [_lengths(table) if name == "length_s" else table.get(name) for table in (train, test)]
        if columns[0] is None or columns[1] is None:
            continue
        if name in _CATEGORIES:
            known = sorted(columns[0].dropna().astype(str).unique())
            columns = [pd.Series(pd.Categorical(column.astype(str), categories=known)) for column in columns]
        else:
            columns = [pd.Series(np.asarray(column, dtype=float)) for column in columns]
        if all(column.notna().any() for column in columns):
            train_x[name], test_x[name] = (column.array for column in columns)
    return train_x, test_x


def _fit_shortcut(
    train_x: Any, train_y: IntArray, test_x: Any, n_classes: int, seed: int, has_normal: bool
) -> FloatArray:
    """Class probabilities (cycles, classes) on the test rows of a small gradient boosting fitted on training rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    if len(np.unique(train_y)) < 2:
        return _constant(int(train_y[0]), len(test_x), n_classes)
    booster = HistGradientBoostingClassifier(**_BOOSTING, categorical_features="from_dtype", random_state=seed)
    booster.fit(train_x, train_y)
    on_train, on_test = np.full((len(train_x), n_classes), 1e-9), np.full((len(test_x), n_classes), 1e-9)
    on_train[:, booster.classes_] = booster.predict_proba(train_x)
    on_test[:, booster.classes_] = booster.predict_proba(test_x)
    if not has_normal:
        return on_test

    def mean_recall(factor: float) -> float:
        predicted = (on_train * np.r_[1.0, np.full(n_classes - 1, factor)]).argmax(1)
        confusion = confusion_matrix(train_y, predicted, n_classes)
        return float(specificity(confusion) + exact_sensitivity(confusion))

    weighted = on_test * np.r_[1.0, np.full(n_classes - 1, max(_FACTORS, key=mean_recall))]
    return np.asarray(weighted / weighted.sum(1, keepdims=True))


def sound_facts(table: Any, sampling_rate: int, filter: Any = None) -> dict[str, list[float]]:
    """Measure level and bandwidth of each cycle, with a cache: columns for a predictions or truth table."""
    waveforms = CycleWaveforms(table, sampling_rate, filter=filter)
    place = cache_root() / "sound_facts" / f"{waveforms.key}-{_FACTS_VERSION}.f64"
    stored = read_entry(place)
    if stored is None:
        waveforms.prepare()
        measured = [(level_db(samples), bandwidth_hz(samples, sampling_rate)) for samples in map(np.asarray, waveforms)]
        stored = np.array(measured, dtype=np.float64).tobytes()
        write_entry(place, stored)
    levels, bandwidths = np.frombuffer(stored).reshape(-1, 2).T
    return {"level_db": levels.tolist(), "bandwidth_hz": bandwidths.tolist()}


def segment_length_s(table: Any) -> float:
    """The length that 95 % of the cycles of a table reach, in seconds."""
    lengths = np.subtract(column_of(table, "end_s"), column_of(table, "start_s"))
    return float(np.round(np.quantile(lengths, _SEGMENT_QUANTILE), 3))


def middle_segments(table: Any, seconds: float) -> Any:
    """Replace every cycle by a segment of this length around its middle, within its recording."""
    rows = table.with_format("arrow")[:].to_pylist()
    ends: dict[str, float] = {}
    for row in rows:
        ends[row["recording_id"]] = max(ends.get(row["recording_id"], 0.0), row["end_s"])
    moved = []
    for row in rows:
        start = (row["start_s"] + row["end_s"] - seconds) / 2
        start = max(0.0, min(start, ends[row["recording_id"]] - seconds))
        moved.append({**row, "start_s": start, "end_s": min(start + seconds, ends[row["recording_id"]])})
    return datasets.Dataset(to_arrow(moved, table.features), info=table.info.copy())


def segment_scores(table: Any, seconds: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scores and AUROCs on segments of one length: {"seconds", "cycles", "values"}."""
    values = point_values(read_predictions(table, **settings))
    kept = [name for name in values if name in _SEGMENT_FIGURES or name.endswith(".roc_auc")]
    return {"seconds": seconds, "cycles": len(table), "values": {name: values[name] for name in kept}}


def length_groups(predictions: Predictions) -> dict[str, Any] | None:
    """AUROC of every label within groups of similar length; None where lengths are unknown or all the same.

    Returns:
        JSON-ready {"groups": [{"low_s", "high_s", "cycles", "patients", "positives", "values", "intervals"}], "within":
        {"values", "intervals"}, "overall": {"values", "intervals"}}; the inner ones by label.
    """
    length = _lengths(predictions.table)
    if length is None:
        return None
    rows = np.isfinite(length)
    subset, length = (predictions, length) if rows.all() else (predictions.subset(rows), length[rows])
    cuts = np.unique(np.quantile(length, np.linspace(0, 1, LENGTH_GROUPS + 1)[1:-1])) if length.size else length
    place = np.searchsorted(cuts, length, side="left")  # a length equal to a cut lies below it
    members = [np.flatnonzero(place == k) for k in range(len(cuts) + 1)]
    members = [group for group in members if group.size]
    if len(members) < 2:
        return None
    statistics = _length_statistics(subset, members)
    once = {name: values[0] for name, values in statistics(np.ones((1, len(length)))).items()}
    codes, n_patients = patient_codes(subset.table)
    kinds: dict[str, Any] = {
        "overall": slice(None),
        "within": slice(None),
        **{str(k): group for k, group in enumerate(members)},
    }
    effective = {
        f"{kind}.{label}": rarer_patients(codes[rows], subset.truth[rows, k])
        for kind, rows in kinds.items()
        for k, label in enumerate(subset.label_names)
    }
    bounds = patient_intervals(subset.table, statistics, effective)

    def figures(kind: str, patients: int) -> dict[str, Any]:
        names = {label: f"{kind}.{label}" for label in subset.label_names}
        return {
            "values": {label: none_if_nan(once[name]) for label, name in names.items()},
            "intervals": {label: bounds[name] if patients >= MIN_PATIENTS else None for label, name in names.items()},
        }

    groups = [
        {
            "low_s": float(length[group].min()),
            "high_s": float(length[group].max()),
            "cycles": int(group.size),
            "patients": len(np.unique(codes[group])),
            "positives": {name: int(subset.truth[group, k].sum()) for k, name in enumerate(subset.label_names)},
            **figures(str(number), len(np.unique(codes[group]))),
        }
        for number, group in enumerate(members)
    ]
    return {"groups": groups, "within": figures("within", n_patients), "overall": figures("overall", n_patients)}


def _length_statistics(predictions: Predictions, members: list[Any]) -> Any:
    """Named AUROCs as a function of row weights (weightings, cycles)."""
    logits, truth = predictions.logits, predictions.truth
    ranked = [
        (RankedLabel(logits[:, k], truth[:, k]), [RankedLabel(logits[group, k], truth[group, k]) for group in members])
        for k in range(len(predictions.label_names))
    ]

    def statistics(weights: FloatArray) -> dict[str, FloatArray]:
        values: dict[str, FloatArray] = {}
        for k, (name, (whole, groups)) in enumerate(zip(predictions.label_names, ranked, strict=True)):
            values[f"overall.{name}"] = whole.auroc(weights)
            right = pairs = np.zeros(len(weights))
            for number, (group, ranking) in enumerate(zip(members, groups, strict=True)):
                area = ranking.auroc(weights[:, group])
                positive = weights[:, group] @ truth[group, k]
                count = positive * (weights[:, group].sum(1) - positive)
                values[f"{number}.{name}"] = area
                right, pairs = right + np.where(count > 0, area * count, 0.0), pairs + count
            values[f"within.{name}"] = np.where(pairs > 0, right / np.where(pairs > 0, pairs, 1), np.nan)
        return values

    return statistics
