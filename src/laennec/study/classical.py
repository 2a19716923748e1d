"""Gradient boosting and a support vector machine on the embeddings of a frozen encoder.

Decisions: they take the input of a linear head, the embeddings of a finished run with a frozen encoder, and are fitted
on the same training cycles; with the encoder `statistics` (mean and spread of each mel bin) that is the classical
baseline of the field. Settings are fixed, so nothing is searched; calibration and thresholds are fitted on validation
as a head's are. Abnormal and normal cycles weigh the same in sum. They are scored in a folder like that of a run, so
that tables and reports treat them alike; the shortcut baselines are copied from the run whose encoder they use.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.corpora.base import column_of
from laennec.errors import InputError
from laennec.evaluation.baselines import middle_segments, segment_scores
from laennec.evaluation.evaluate import load_model, predict_split, recipe_of
from laennec.evaluation.operating_point import fit_operating_point
from laennec.evaluation.report import write_report
from laennec.evaluation.sprsound_tasks import official_scores, tasks_by_flags
from laennec.evaluation.summary import evaluate_predictions
from laennec.files import atomic_folder, atomic_write
from laennec.study.plan import CLASSICAL, Score
from laennec.training.recipe import Recipe
from laennec.training.record import Timings, read_record, write_record
from laennec.training.split_data import labelled_rows, load_splits

_BOOSTING: dict[str, Any] = {"max_iter": 200, "learning_rate": 0.1, "max_leaf_nodes": 15, "early_stopping": False}


def score_classical(kind: str, method: str, run: Path, scores: Sequence[Score], folder: Path) -> Path:
    """Fit a classifier on a run's embeddings and score it on every split that the run was scored on.

    Args:
        kind: "gradient_boosting" or "svc".
        method: What the run is called in tables.
        run: Its folder.
        scores: The parts.
        folder: Where the results go.

    Returns:
        `folder`, with an `evaluation-<part>` for each part.

    Raises:
        InputError: The run's encoder was trained with the head (what is fitted on its embeddings would be no baseline),
            or a part is of another corpus.
    """
    record = read_record(run / "run.json")
    recipe = Recipe.from_record(record["config"], str(run / "run.json"))
    names, multi_label = list(record["labels"]), record["problem_type"] == "multi_label"
    if not recipe.encoder.frozen:
        raise InputError(f"{run}: {kind} is fitted on a frozen encoder's embeddings; set encoder.trainable: frozen")
    timings = Timings()
    with timings.measure("training"):
        model, extractor = load_model(run)
        parts = load_splits(recipe)
        _, embedded, part = predict_split(model, extractor, parts["train"], "train", recipe)
        known = _learned(recipe, part)
        answer = _fit(kind, embedded[known], part.targets.labels[known], recipe.seed)
        predictions, embedded, _ = predict_split(model, extractor, parts["validation"], "validation", recipe)
        fitted = fit_operating_point(_with(predictions, names, answer(embedded)), names, multi_label, recipe.head)
    changes = {"name": f"{method}, {CLASSICAL[kind]}", "classical": kind, "timings": timings.seconds}
    for score in scores:
        theirs = recipe_of(run, record, dict(score.corpus))
        table = (load_splits(theirs) if score.corpus else parts)[score.split]

        def ask(table: Any, split: str = score.split, theirs: Recipe = theirs) -> Any:
            predictions, embedded, _ = predict_split(model, extractor, table, split, theirs)
            return _with(predictions, names, answer(embedded))

        _score(folder, run, score, theirs, table, ask, fitted, changes)
    return folder


def _score(
    folder: Path,
    run: Path,
    score: Score,
    recipe: Recipe,
    table: Any,
    ask: Callable[[Any], Any],
    fitted: dict[str, Any],
    changes: Any,
) -> None:
    """Score answers to a part as `laennec evaluate` would have, and write the folder of the results.

    Args:
        folder: Of what is scored; the results lie in `evaluation-<part>` below it.
        run: Folder of the run, scored on the same part.
        score: The part.
        recipe: That of the run, with the corpus of the part.
        table: Its cycles.
        ask: Cycle table to predictions table.
        fitted: Operating points, as `fit_operating_point` gives them.
        changes: What the record says in place of the run's own: "name", "timings", ...
    """
    place = run / f"evaluation-{score.name}"
    own, record = read_record(place / "metrics.json"), copy.deepcopy(read_record(place / "run.json"))
    names, multi_label = list(record["labels"]), record["problem_type"] == "multi_label"
    reading: dict[str, Any] = {
        "problem_type": record["problem_type"],
        "label_names": names,
        "thresholds": _raw_thresholds(fitted, names) if multi_label else None,
        "temperatures": fitted.get("temperatures"),
        "intercepts": fitted.get("intercepts"),
    }
    predictions = ask(table)
    evaluation = evaluate_predictions(predictions, **reading, n_draws=own["bootstrap"]["n_draws"])
    evaluation |= {"fitted": fitted, "geometry": None, "floors": own["floors"], "duration_blind": None}
    if own.get("duration_blind"):
        seconds = own["duration_blind"]["seconds"]
        evaluation["duration_blind"] = segment_scores(ask(middle_segments(table, seconds)), seconds, reading)
    if set(names) == {"crackle", "wheeze"} and multi_label:
        evaluation["official"] = official_scores(tasks_by_flags(recipe, predictions, reading["thresholds"], table))
    record |= {"operating_points": fitted, **changes}
    record["config"] = record["config"] | {"name": record["name"]}
    with atomic_folder(folder / f"evaluation-{score.name}") as temporary:
        with atomic_write(temporary / "predictions.parquet", "wb") as file:
            predictions.to_parquet(file)
        write_record(temporary / "metrics.json", evaluation)
        write_record(temporary / "run.json", record)
        write_report(temporary, record, evaluation, predictions)


def _raw_thresholds(fitted: dict[str, Any], names: list[str]) -> dict[str, float]:
    """The fitted probabilities as logits before temperature and intercept."""
    thresholds = {}
    for name in names:
        p = min(max(float(fitted.get("threshold_probabilities", {}).get(name, 0.5)), 1e-12), 1 - 1e-12)
        offset, divisor = fitted.get("intercepts", {}).get(name, 0.0), fitted.get("temperatures", {}).get(name, 1.0)
        thresholds[name] = (float(np.log(p / (1 - p))) - offset) * divisor
    return thresholds


def _learned(recipe: Recipe, part: Any) -> NDArray[np.int64]:
    """The training rows with the labels that the recipe lets a head see."""
    c, ids = recipe.corpus, column_of(part.table, "cycle_id")
    if c.label_fraction < 1:
        return np.asarray(
            labelled_rows(part.targets.class_ids, ids, c.label_fraction, c.split_seed, c.label_draw), dtype=np.int64
        )
    return np.arange(len(ids))


def _with(predictions: Any, names: Sequence[str], logits: NDArray[np.float64]) -> Any:
    return predictions.assign(**{f"logit_{name}": logits[:, k] for k, name in enumerate(names)})


def _fit(kind: str, embedded: NDArray[np.float32], truth: NDArray[Any], seed: int) -> Any:
    """A function from embeddings (cycles, dim) to logits (cycles, labels)."""
    columns = truth.T if truth.ndim == 2 else [truth]
    fitted = [_classifier(kind, seed).fit(embedded, column.astype(int)) for column in columns]

    def answer(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        if truth.ndim == 2:
            return np.column_stack([one.decision_function(embeddings) for one in fitted])
        values = fitted[0].decision_function(embeddings)
        return values if values.ndim == 2 else np.column_stack([-values / 2, values / 2])

    return answer


def _classifier(kind: str, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if kind == "gradient_boosting":
        return HistGradientBoostingClassifier(class_weight="balanced", random_state=seed, **_BOOSTING)
    return make_pipeline(StandardScaler(), SVC(class_weight="balanced", random_state=seed))
