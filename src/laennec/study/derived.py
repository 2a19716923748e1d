"""Stage 11, study: results that no training of their own made.

Decided here: seeds that answer together and classifiers fitted on a run's embeddings are scored like any run, in a
folder like that of a run, so that tables, comparisons and reports need not know. What is reached without listening is
copied from the run they come from: it does not depend on who listens.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from laennec.evaluation import evaluate_predictions, write_report
from laennec.study.plan import Score
from laennec.training.record import read_record, write_record
from laennec.writing import folder_aside, write_aside


def write_derived(
    folder: Path, run: Path, score: Score, predictions: Any, fitted: dict[str, Any], changes: Any
) -> None:
    """Score predictions on a part as `laennec evaluate` would have, and write the folder of the results.

    Args:
        folder: Of what is scored; the results lie in `evaluation-<part>` below it.
        run: Folder of a run that was scored on the same part.
        score: The part.
        predictions: Predictions table.
        fitted: Operating points, as `fit_operating_point` gives them.
        changes: What the record says in place of the run's own: "name", "timings", ...
    """
    place = run / f"evaluation-{score.name}"
    own, record = read_record(place / "metrics.json"), copy.deepcopy(read_record(place / "run.json"))
    names, multi_label = list(record["labels"]), record["problem_type"] == "multi_label"
    evaluation = evaluate_predictions(
        predictions,
        problem_type=record["problem_type"],
        label_names=names,
        thresholds=_raw_thresholds(fitted, names) if multi_label else None,
        temperatures=fitted.get("temperatures"),
        intercepts=fitted.get("intercepts"),
        n_draws=own["bootstrap"]["n_draws"],
    )
    evaluation |= {"fitted": fitted, "geometry": None, "floors": own["floors"]}
    record |= {"operating_points": fitted, **changes}
    record["config"] = record["config"] | {"name": record["name"]}
    with folder_aside(folder / f"evaluation-{score.name}") as temporary:
        with write_aside(temporary / "predictions.parquet", "wb") as file:
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
