"""Classical classifiers on the embeddings of a frozen encoder: gradient boosting and a support vector machine.

Decisions: they take the input of a linear head and are fitted on the same training cycles; with the encoder
`statistics` (mean and spread of each mel bin) that is the classical baseline of the field. Their settings are fixed;
calibration and thresholds are fitted on validation as a head's are. Abnormal and normal cycles have equal total weight.
The results lie in a folder like that of a run, so that tables and reports treat them alike; the shortcut baselines are
copied from the run. `python -m laennec.study.classical KIND RUN OUT --scores JSON` is a step of a study.
"""

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.corpora.base import column_of
from laennec.errors import InputError
from laennec.evaluation.baselines import middle_segments, segment_scores
from laennec.evaluation.calibration.operating_point import fit_operating_point
from laennec.evaluation.evaluate import load_model, predict_split, write_results
from laennec.evaluation.scored_data import recipe_of
from laennec.evaluation.sprsound_tasks import official_scores, tasks_by_flags
from laennec.evaluation.summary import evaluate_predictions
from laennec.study.plan import CLASSICAL, Score
from laennec.training.data.split_data import labelled_rows, load_splits
from laennec.training.recipe import Recipe
from laennec.training.record import Timings, read_record

_BOOSTING: dict[str, Any] = {"max_iter": 200, "learning_rate": 0.1, "max_leaf_nodes": 15, "early_stopping": False}


def score_classical(kind: str, run: Path, scores: Sequence[Score], folder: Path) -> Path:
    """Fit a classifier on a run's embeddings and score it on the splits that the run was scored on."""
    record = read_record(run / "run.json")
    recipe = Recipe.from_record(record["config"], str(run / "run.json"))
    names, multi_label = list(record["labels"]), record["problem_type"] == "multi_label"
    if not recipe.encoder.frozen:
        raise InputError(f"{run}: {kind} needs the embeddings of a frozen encoder; set encoder.trainable: frozen")
    timings = Timings()
    with timings.measure("training"):
        model, extractor = load_model(run)
        splits = load_splits(recipe)
        _, embeddings, training = predict_split(model, extractor, splits["train"], "train", recipe)
        corpus, ids = recipe.corpus, column_of(training.table, "cycle_id")
        draw = (corpus.label_fraction, corpus.split_seed, corpus.label_draw)
        rows = labelled_rows(training.targets.class_ids, ids, *draw)
        decision = _fit(kind, embeddings[rows], training.targets.labels[rows], recipe.seed)

        def predict(table: Any, split: str, recipe: Recipe) -> Any:
            predictions, embeddings, _ = predict_split(model, extractor, table, split, recipe)
            logits = decision(embeddings)
            return predictions.assign(**{f"logit_{name}": logits[:, k] for k, name in enumerate(names)})

        validation = predict(splits["validation"], "validation", recipe)
        fitted = fit_operating_point(validation, names, multi_label, recipe.head.model_copy(update={"smoothing": 0.0}))
    changes = {
        "name": f"{record['name']}, {CLASSICAL[kind]}",
        "classical": kind,
        "timings": timings.seconds,
        "operating_points": fitted,
    }
    for score in scores:
        of_score = recipe_of(run, record, score.corpus_settings)
        table = (load_splits(of_score) if score.corpus_settings else splits)[score.split]

        def of_split(table: Any, split: str = score.split, of_score: Recipe = of_score) -> Any:
            return predict(table, split, of_score)

        _score(score.folder(run), score.folder(folder), of_score, table, of_split, changes)
    return folder


def _score(
    source: Path, folder: Path, recipe: Recipe, table: Any, predict: Callable[[Any], Any], changes: dict[str, Any]
) -> None:
    """Score a classifier on a split, and write the folder of the results as `laennec evaluate` does."""
    of_run, record = read_record(source / "metrics.json"), copy.deepcopy(read_record(source / "run.json"))
    names, multi_label = list(record["labels"]), record["problem_type"] == "multi_label"
    fitted = changes["operating_points"] or {}
    settings: dict[str, Any] = {
        "problem_type": record["problem_type"],
        "label_names": names,
        **{key: fitted.get(key) for key in ("thresholds", "temperatures", "intercepts", "second_thresholds")},
    }
    predictions = predict(table)
    evaluation = evaluate_predictions(predictions, **settings)
    evaluation |= {"fitted": fitted, "geometry": None, "floors": of_run["floors"], "duration_blind": None}
    if of_run.get("duration_blind"):
        seconds = of_run["duration_blind"]["seconds"]
        evaluation["duration_blind"] = segment_scores(predict(middle_segments(table, seconds)), seconds, settings)
    if set(names) == {"crackle", "wheeze"} and multi_label:
        evaluation["official"] = official_scores(tasks_by_flags(recipe, predictions, settings, table))
    record |= changes
    record["config"] = record["config"] | {"name": record["name"]}
    write_results(folder, record, evaluation, {"predictions": predictions})


def _fit(
    kind: str, embeddings: NDArray[np.float32], truth: NDArray[Any], seed: int
) -> Callable[[NDArray[np.float32]], NDArray[np.float64]]:
    """A function from embeddings (cycles, dim) to logits (cycles, labels)."""
    columns = truth.T if truth.ndim == 2 else [truth]
    fitted = [_classifier(kind, seed).fit(embeddings, column.astype(int)) for column in columns]

    def decision(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        if truth.ndim == 2:
            return np.column_stack([one.decision_function(embeddings) for one in fitted])
        values: NDArray[np.float64] = fitted[0].decision_function(embeddings)
        return values if values.ndim == 2 else np.column_stack([-values / 2, values / 2])

    return decision


def _classifier(kind: str, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    if kind == "gradient_boosting":
        return HistGradientBoostingClassifier(class_weight="balanced", random_state=seed, **_BOOSTING)
    return make_pipeline(StandardScaler(), SVC(class_weight="balanced", random_state=seed))


def _main() -> None:
    parser = argparse.ArgumentParser(description="Fit a classifier on the embeddings of a run and score it.")
    parser.add_argument("kind", choices=CLASSICAL)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--scores", type=json.loads, required=True)
    options = parser.parse_args()
    score_classical(options.kind, options.run, [Score(**score) for score in options.scores], options.out)


if __name__ == "__main__":
    _main()
