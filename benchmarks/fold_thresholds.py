"""How many patients should set the thresholds of a fine-tuned model? Five folds, each scored with thresholds of others.

    make best-sprsound FOLDS="0 1 2 3 4"
    python -m benchmarks.fold_thresholds runs/best-sprsound-folds/*

Each run predicts the patients it was not trained on. The thresholds for those of one fold are fitted on the predictions
for one, two, three or four of the others, by all choices of these. Test splits are not read. The result is
docs/results/fold_thresholds.json.
"""

import argparse
import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.operating_point import icbhi, score, with_findings
from benchmarks.sprsound import LABELS
from laennec.training.record import hardware, read_run, versions, write_record

RESULT = Path(__file__).resolve().parents[1] / "docs/results/fold_thresholds.json"


def scores_by_folds(folds: list[pd.DataFrame]) -> dict[str, dict[str, list[float]]]:
    """ICBHI Score on each fold, by the number of other folds that set the thresholds.

    Args:
        folds: Predictions for the patients of each fold, with `patient_id`, a column of each label and its logit.
    """
    logits = [fold[[f"logit_{name}" for name in LABELS]].to_numpy() for fold in folds]
    truth = [fold[list(LABELS)].to_numpy(dtype=int) for fold in folds]
    ill = [with_findings(true, fold["patient_id"].to_numpy()) for true, fold in zip(truth, folds, strict=True)]
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(1, len(folds)):
        everyone, with_finding = [], []
        for held in range(len(folds)):
            chosen = list(combinations([k for k in range(len(folds)) if k != held], number))
            points = [
                icbhi(np.concatenate([logits[k] for k in some]), np.concatenate([truth[k] for k in some]))
                for some in chosen
            ]
            for scores, rows in ((everyone, np.ones(len(truth[held]), bool)), (with_finding, ill[held])):
                scores.append(float(np.mean([score(logits[held][rows], truth[held][rows], p) for p in points])))
        found[str(number)] = {"all patients": everyone, "patients with findings": with_finding}
    return found


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, one for each validation fold")
    options = parser.parse_args()
    folds = [pd.read_parquet(run / "predictions-validation.parquet") for run in options.runs]
    records = [read_run(run / "run.json") for run in options.runs]
    record: dict[str, Any] = {
        "recipe": records[0]["name"],
        "folds": [one["config"]["corpus"]["validation_fold"] for one in records],
        "seeds": [one["config"]["seed"] for one in records],
        "epochs": [one["best_epoch"] for one in records],
        "patients": [int(fold["patient_id"].nunique()) for fold in folds],
        "events": sum(map(len, folds)),
        "scores": scores_by_folds(folds),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
    }
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
