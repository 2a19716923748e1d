"""How many patients are needed to set the thresholds of a fine-tuned model? Five folds, thresholds from other folds.

    make best-sprsound FOLDS="0 1 2 3 4"
    python -m benchmarks.fold_thresholds runs/best-sprsound-folds/*

Each run predicts the patients it was not trained on. The thresholds for one fold are fitted on the predictions for one,
two, three or four of the other folds, in all combinations. Test splits are not read. The result is
docs/results/fold_thresholds.json.
"""

import argparse
import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.operating_point import GROUPS, compared, icbhi, score, with_findings
from benchmarks.sprsound import LABELS
from laennec.training.record import hardware, read_run, versions, write_record

RESULT = Path(__file__).resolve().parents[1] / "docs/results/fold_thresholds.json"


def scores_of_folds(folds: list[pd.DataFrame]) -> pd.DataFrame:
    """ICBHI Score of each fold by the number of other folds that its thresholds are fitted on.

    Args:
        folds: Predictions for the patients of each fold, with `patient_id`, a column of each label and its logit.
    """
    logits = [fold[[f"logit_{name}" for name in LABELS]].to_numpy() for fold in folds]
    truth = [fold[list(LABELS)].to_numpy(dtype=int) for fold in folds]
    rows = []
    for held, fold in enumerate(folds):
        groups = np.ones(len(fold), bool), with_findings(truth[held], fold["patient_id"].to_numpy())
        others = [k for k in range(len(folds)) if k != held]
        for number in range(1, len(folds)):
            points = [
                icbhi(np.concatenate([logits[k] for k in some]), np.concatenate([truth[k] for k in some]))
                for some in combinations(others, number)
            ]
            scores = [
                float(np.mean([score(logits[held][among], truth[held][among], point) for point in points]))
                for among in groups
            ]
            rows.append({"seed": 0, "fold": held, "rule": _rule(number), **dict(zip(GROUPS, scores, strict=True))})
    return pd.DataFrame(rows)


def _rule(number: int) -> str:
    return "one fold" if number == 1 else f"{number} folds"


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, one for each validation fold")
    options = parser.parse_args()
    folds = [pd.read_parquet(run / "predictions-validation.parquet") for run in options.runs]
    patients = [int(fold["patient_id"].nunique()) for fold in folds]
    about = {_rule(n): f"fitted on about {round(np.mean(patients) * n)} patients" for n in range(1, len(folds))}
    record: dict[str, Any] = {
        "recipe": read_run(options.runs[0] / "run.json")["name"],
        "events": sum(map(len, folds)), "patients": sum(patients), "seeds": 1,
        "base": _rule(1), "rules": compared(scores_of_folds(folds), about, _rule(1)),
        "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
