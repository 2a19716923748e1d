"""What a score is worth without listening.

Decisions: every score is printed beside what one gets by always answering normal, by answering the commonest
class, and by looking at one thing that is not the sound's content: how long the cycle is, which device recorded it,
who the patient is and where the stethoscope lay, how loud or how wide-band the recording is. A shortcut is a small
gradient boosting with fixed settings; it leans towards the abnormal classes as far as pays best on its training rows,
because plain class frequencies would make it answer "normal" nearly always and hide what it knows. Everything is
fitted on training rows. Classes without a normal one are answered by the likeliest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from laennec.evaluation.bootstrap import bootstrap_values, interval, patient_codes
from laennec.evaluation.metrics import (
    CLASSES,
    FloatArray,
    IntArray,
    confusion_matrix,
    exact_sensitivity,
    four_class,
    specificity,
)
from laennec.evaluation.predictions import Answers, answer_statistics, headline, point_values, read_predictions

SHORTCUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "event length": ("how long the cycle lasts", ("length_s",)),
    "device": ("which stethoscope recorded it", ("device",)),
    "age, sex, location": (
        "the patient's age and sex and the chest location",
        ("age_years", "sex", "chest_location"),
    ),
    "level": ("how loud the cycle is", ("level_db",)),
    "bandwidth": ("up to which frequency the recording has energy", ("bandwidth_hz",)),
    "database": ("which of several databases it comes from", ("database",)),
}
_OPTIONAL = ("level", "bandwidth", "database")  # columns that few corpora have: absent is normal
_CATEGORIES = ("device", "sex", "chest_location", "database")
_LEANINGS = tuple(float(factor) for factor in np.geomspace(0.25, 16, 25))
_SETTINGS: dict[str, Any] = {
    "max_iter": 60,
    "max_leaf_nodes": 8,
    "learning_rate": 0.1,
    "min_samples_leaf": 20,
    "early_stopping": False,
}


def floors(
    train_table: Any,
    test_table: Any,
    *,
    class_names: Sequence[str] = CLASSES,
    seed: int = 0,
    n_draws: int = 0,
    answers: Answers | None = None,
) -> list[dict[str, Any]]:
    """Score the trivial answers and the shortcuts on the test rows.

    Args:
        train_table: Cycle table (DataFrame) the shortcuts are fitted on, or None: then only "always normal" can be
            scored.
        test_table: Cycle or predictions table (DataFrame) to score.
        class_names: The classes, normal first. For the four classes the truth is `crackle` and `wheeze`, else `label`.
        seed: Seed of the gradient boosting and of the draws.
        n_draws: Bootstrap draws of patients; 0 for no intervals.
        answers: The model's answers on the same test rows; adds how far the model lies above each floor, drawn in
            pairs.

    Returns:
        Rows {"name", "what", "values": {figure: number}, "intervals": {figure: [low, high] or None}, "advantage"};
        "advantage" is {"value",
        "interval"} of the model's headline score minus the floor's, or None. A shortcut that cannot be fitted has
        "skipped" with the reason.
    """
    classes = tuple(class_names)
    test = answers.table if answers is not None else test_table
    rows: list[dict[str, Any]] = []
    model = (
        None if answers is None or not n_draws else bootstrap_values(test, answer_statistics(answers), n_draws, seed)
    )
    for name, what, guess in _guesses(train_table, test, classes, seed):
        if isinstance(guess, str):
            rows.append(
                {"name": name, "what": what, "skipped": guess, "values": {}, "intervals": {}, "advantage": None}
            )
            continue
        row = _scored(test, classes, guess, n_draws, seed, answers, model)
        rows.append({"name": name, "what": what} | row)
    return rows


def _guesses(train: Any, test: Any, classes: tuple[str, ...], seed: int) -> list[tuple[str, str, FloatArray | str]]:
    """Class probabilities (cycles, classes) of every floor, or the reason why there are none."""
    guesses: list[tuple[str, str, FloatArray | str]] = []
    if classes[0].lower() == "normal":
        guesses.append(("always normal", "answers normal to everything", _constant(0, len(test), len(classes))))
    if train is None:
        reason = "no training table was given"
        return guesses + [(name, what, reason) for name, (what, _) in SHORTCUTS.items() if name not in _OPTIONAL]
    ids, known = _class_ids(train, classes)
    learned = train.loc[known]
    if not len(learned):
        return [
            *guesses,
            ("majority class", "answers the commonest class of the training part", "no training row is labelled"),
        ]
    commonest = int(np.bincount(ids, minlength=len(classes)).argmax())
    what = f"answers the commonest class of the training part ({classes[commonest]}) to everything"
    guesses.append(("majority class", what, _constant(commonest, len(test), len(classes))))
    for name, (what, columns) in SHORTCUTS.items():
        train_x, test_x, usable = _features(learned, test, columns)
        if not usable:
            if name not in _OPTIONAL:
                guesses.append((name, what, f"the tables do not know {' or '.join(columns)}"))
            continue
        categorical = [column in _CATEGORIES for column in usable]
        leans = classes[0].lower() == "normal"
        guesses.append((name, what, _shortcut(train_x, ids, test_x, categorical, len(classes), seed, leans)))
    return guesses


def _scored(
    test: Any,
    classes: tuple[str, ...],
    probabilities: FloatArray,
    n_draws: int,
    seed: int,
    answers: Answers | None,
    model: dict[str, FloatArray] | None,
) -> dict[str, Any]:
    """Values and intervals of one floor, and how far the model lies above it."""
    guessed = test.assign(**{f"logit_{name}": np.log(probabilities[:, k] + 1e-9) for k, name in enumerate(classes)})
    if classes == CLASSES and "crackle" in test.columns:
        guessed = guessed.drop(columns="label", errors="ignore")
    floor = read_predictions(guessed, problem_type="single_label", label_names=classes)
    values = point_values(floor)
    row: dict[str, Any] = {"values": values, "intervals": {}, "advantage": None}
    if not n_draws:
        return row
    drawn = bootstrap_values(floor.table, answer_statistics(floor), n_draws, seed)
    _, n_patients = patient_codes(floor.table)
    bounds = {name: interval(figures, n_patients) for name, figures in drawn.items()}
    row["intervals"] = {name: None if pair is None else list(pair) for name, pair in bounds.items()}
    if answers is not None and model is not None:
        name = headline(values)
        own, other = point_values(answers).get(name), values[name]
        if own is not None and other is not None:
            difference = interval(model[name] - drawn[name], n_patients)
            row["advantage"] = {"value": own - other, "interval": None if difference is None else list(difference)}
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
    """The same certain answer for every row."""
    return np.tile(np.eye(n_classes)[k], (rows, 1))


def _column(table: Any, name: str) -> Any:
    """One feature of a table, or None where the table does not have it."""
    if name == "length_s":
        known = {"start_s", "end_s"} <= set(table.columns)
        return (table["end_s"] - table["start_s"]).to_numpy(dtype=float, na_value=np.nan) if known else None
    return table[name] if name in table.columns else None


def _features(train: Any, test: Any, names: Sequence[str]) -> tuple[FloatArray, FloatArray, list[str]]:
    """Features (cycles, used) of both tables and the names used; a category not seen in training is missing."""
    usable, train_x, test_x = [], [], []
    for name in names:
        seen, asked = _column(train, name), _column(test, name)
        if seen is None or asked is None:
            continue
        if name in _CATEGORIES:
            levels = {level: float(k) for k, level in enumerate(sorted(seen.dropna().astype(str).unique()))}
            seen, asked = (np.array([levels.get(str(v), np.nan) for v in column]) for column in (seen, asked))
        seen, asked = np.asarray(seen, dtype=float), np.asarray(asked, dtype=float)
        if np.isfinite(seen).any() and np.isfinite(asked).any():
            usable.append(name)
            train_x.append(seen)
            test_x.append(asked)
    if not usable:
        return np.zeros((len(train), 0)), np.zeros((len(test), 0)), []
    return np.column_stack(train_x), np.column_stack(test_x), usable


def _shortcut(
    train_x: FloatArray,
    train_y: IntArray,
    test_x: FloatArray,
    categorical: list[bool],
    n_classes: int,
    seed: int,
    leans: bool = True,
) -> FloatArray:
    """Class probabilities (cycles, classes) on the test rows of a small gradient boosting fitted on training rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    if len(np.unique(train_y)) < 2:
        return _constant(int(train_y[0]), len(test_x), n_classes)
    booster = HistGradientBoostingClassifier(**_SETTINGS, categorical_features=categorical, random_state=seed)
    booster.fit(train_x, train_y)
    seen, asked = np.full((len(train_x), n_classes), 1e-9), np.full((len(test_x), n_classes), 1e-9)
    seen[:, booster.classes_], asked[:, booster.classes_] = (
        booster.predict_proba(train_x),
        booster.predict_proba(test_x),
    )
    if not leans:  # without a normal class there is nothing to lean away from
        return asked
    leaning = np.r_[1.0, np.full(n_classes - 1, _best_leaning(seen, train_y))]
    return np.asarray(asked * leaning / (asked * leaning).sum(1, keepdims=True))


def _best_leaning(probabilities: FloatArray, truth: IntArray) -> float:
    """The factor on the abnormal classes with which the argmax has the best (Sp + Se) / 2 on the training rows."""

    def mean_recall(factor: float) -> float:
        answers = (probabilities * np.r_[1.0, np.full(probabilities.shape[1] - 1, factor)]).argmax(1)
        confusion = confusion_matrix(truth, answers, probabilities.shape[1])
        return float(specificity(confusion) + exact_sensitivity(confusion))

    return max(_LEANINGS, key=mean_recall)
