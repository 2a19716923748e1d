"""Studies drawn from a model's predictions: how often the 95 % intervals hold the truth, and how wide they are.

    python tests/soak/interval_coverage.py --data-dir data/sprsound --weights weights/mn04_as_mAP_432.pt \
        --out docs/results/reliability.json

The patients of SPRSound's train part are predicted out of fold by a linear head on a frozen encoder. A study draws some
of them with replacement; the truth is the score of all. Beside the intervals of `laennec.evaluation` those of the
percentiles of a bootstrap over patients are drawn from the same studies.
"""

import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
from benchmarks.sprsound import LABELS, embedded_train_split
from rows import keep, parser_of

from laennec.evaluation.intervals import bootstrap_values, interval, patient_intervals
from laennec.evaluation.predictions import effective_numbers, point_values, read_predictions, statistics_of

PATIENTS = (20, 41, 51, 100, 160)
FIGURES = ("crackle.roc_auc", "wheeze.roc_auc", "icbhi.Score", "crackle.average_precision", "wheeze.recall")


def predicted_out_of_fold(data_dir: str, weights: str) -> pd.DataFrame:
    """Events of the train part with logits that their patient had no part in."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, rows = embedded_train_split(data_dir, weights)
    for label in LABELS:
        logits = np.zeros(len(rows))
        for fitted, left in GroupKFold(5, shuffle=True, random_state=0).split(values, groups=rows.patient_id):
            head = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
            logits[left] = head.fit(values[fitted], rows[label][fitted]).decision_function(values[left])
        rows[f"logit_{label}"] = logits
    return rows


def main() -> None:
    """Draw studies and count the intervals that hold the truth."""
    parser = parser_of(__doc__)
    parser.add_argument("--data-dir", default="data/sprsound")
    parser.add_argument("--weights", default="weights/mn04_as_mAP_432.pt")
    parser.add_argument("--studies", type=int, default=400, help="of each size")
    options = parser.parse_args()
    rows = predicted_out_of_fold(options.data_dir, options.weights)
    thresholds = {label: float(np.quantile(rows[f"logit_{label}"], 1 - rows[label].mean())) for label in LABELS}
    how = {"problem_type": "multi_label", "label_names": LABELS, "thresholds": thresholds}
    truth = point_values(read_predictions(rows, **how))
    of_patient = [group for _, group in rows.groupby("patient_id")]
    draw, figures, worst = np.random.default_rng(options.seed), {}, 1.0
    for size in PATIENTS:
        held = defaultdict(list)
        for _ in range(options.studies):
            chosen = [of_patient[k] for k in draw.integers(0, len(of_patient), size)]
            table = pd.concat([one.assign(patient_id=str(k)) for k, one in enumerate(chosen)], ignore_index=True)
            predictions = read_predictions(table, **how)
            statistics = statistics_of(predictions)
            ours = patient_intervals(table, statistics, effective_numbers(predictions))
            drawn = bootstrap_values(table, statistics, 300, int(draw.integers(1 << 30)))
            for name in FIGURES:
                for kind, bounds in (("ours", ours[name]), ("percentiles", interval(drawn[name], size))):
                    if bounds is not None:
                        held[name, kind].append(bounds[0] <= truth[name] <= bounds[1])
        for name in FIGURES:
            both = [100 * np.mean(held[name, kind]) for kind in ("ours", "percentiles")]
            figures[f"{name}, {size} patients"] = f"{both[0]:.0f} % ({both[1]:.0f} %)"
            worst = min(worst, both[0] / 100) if name.endswith("roc_auc") else worst
        print(size, figures, flush=True)
    keep(
        options.out,
        "coverage",
        "95 % intervals over patients cover the true value in simulated studies (in brackets: bootstrap percentiles); "
        "checked: at least 92 % for every AUROC",
        figures,
        held=worst >= 0.92,
    )


if __name__ == "__main__":
    main()
