"""Simulated studies from a model's predictions: how often 95 % intervals contain the true value, and how wide they are.

    python tests/soak/interval_coverage.py --data-dir data/sprsound --weights weights/mn04_as_mAP_432.pt \
        --out docs/results/reliability.json

Two linear heads on a frozen encoder predict the patients of SPRSound's train split out of fold; the second head gets
half of the embedding. A study draws some of the patients with replacement; the true value is the score of all patients,
or the difference between the heads. The intervals of `laennec.evaluation` are compared with percentiles of a bootstrap
over patients on the same studies.
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

from laennec.evaluation.comparison.statistics import compare_methods, run_figures
from laennec.evaluation.intervals import FEW_PAIRED, patient_codes, patient_intervals
from laennec.evaluation.predictions import Predictions, effective_numbers, point_values, read_predictions, statistics_of
from laennec.evaluation.summary import figure_name

PATIENTS = (20, 41, 51, 100, 160)
FIGURES = ("crackle.roc_auc", "wheeze.roc_auc", "icbhi.Score", "crackle.average_precision", "wheeze.recall")
AREAS = FIGURES[:2]


def predicted_out_of_fold(data_dir: str, weights: str) -> pd.DataFrame:
    """Events of the train split with logits of two heads that were trained without their patient."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, rows = embedded_train_split(data_dir, weights)
    for label in LABELS:
        for column, read in ((f"logit_{label}", values), (f"half_{label}", values[:, ::2])):
            logits = np.zeros(len(rows))
            for fitted, left in GroupKFold(5, shuffle=True, random_state=0).split(values, groups=rows.patient_id):
                head = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
                logits[left] = head.fit(read[fitted], rows[label][fitted]).decision_function(read[left])
            rows[column] = logits
    return rows


def of_half(table: pd.DataFrame) -> pd.DataFrame:
    """The predictions of the second head."""
    return table.assign(**{f"logit_{label}": table[f"half_{label}"] for label in LABELS})


def percentiles(predictions: Predictions, draws: int, seed: int) -> dict[str, np.ndarray]:
    """95 % intervals of a bootstrap over patients: {metric: (2,)}."""
    codes, n_patients = patient_codes(predictions.table)
    drawn = np.random.default_rng(seed).integers(0, n_patients, size=(draws, n_patients))
    times = np.array([np.bincount(draw, minlength=n_patients) for draw in drawn])
    values = statistics_of(predictions)(times[:, codes].astype(float))
    return {name: np.nanquantile(values[name], [0.025, 0.975]) for name in FIGURES}


def main() -> None:
    """Draw studies and count the intervals that contain the true value."""
    parser = parser_of(__doc__)
    parser.add_argument("--data-dir", default="data/sprsound")
    parser.add_argument("--weights", default="weights/mn04_as_mAP_432.pt")
    parser.add_argument("--studies", type=int, default=400, help="of each size")
    options = parser.parse_args()
    rows = predicted_out_of_fold(options.data_dir, options.weights)
    thresholds = {label: float(np.quantile(rows[f"logit_{label}"], 1 - rows[label].mean())) for label in LABELS}
    how = {"problem_type": "multi_label", "label_names": LABELS, "thresholds": thresholds}
    truth, of_other = (point_values(read_predictions(table, **how)) for table in (rows, of_half(rows)))
    of_patient = [group for _, group in rows.groupby("patient_id")]
    draw, figures, worst = np.random.default_rng(options.seed), defaultdict(list), 1.0
    for size in PATIENTS:
        held = defaultdict(list)
        for _ in range(options.studies):
            chosen = [of_patient[k] for k in draw.integers(0, len(of_patient), size)]
            table = pd.concat([one.assign(patient_id=str(k)) for k, one in enumerate(chosen)], ignore_index=True)
            predictions = read_predictions(table, **how)
            ours = patient_intervals(table, statistics_of(predictions), effective_numbers(predictions))
            drawn = percentiles(predictions, 300, int(draw.integers(1 << 30)))
            for name in FIGURES:
                for kind, bounds in (("ours", ours[name]), ("percentiles", drawn[name])):
                    if bounds is not None:
                        held[name, kind].append(bounds[0] <= truth[name] <= bounds[1])
            sides = {"one": predictions, "half": read_predictions(of_half(table), **how)}
            cells = compare_methods({name: [run_figures(one, AREAS)] for name, one in sides.items()}, "one")["half"]
            for name in AREAS:
                if (bounds := cells[name]["difference_interval"]) is not None:
                    held[name, "difference"].append(bounds[0] <= of_other[name] - truth[name] <= bounds[1])
        for name in FIGURES:
            both = [100 * np.mean(held[name, kind]) for kind in ("ours", "percentiles")]
            figures[figure_name(name)].append(f"{both[0]:.0f} ({both[1]:.0f})")
            worst = min(worst, both[0] / 100) if name in AREAS else worst
        for name in AREAS:
            share = np.mean(held[name, "difference"])
            figures[f"difference of {figure_name(name)}"].append(f"{100 * share:.0f}")
            worst = min(worst, share) if size >= FEW_PAIRED else worst
        print(size, dict(figures), flush=True)
    keep(
        options.out,
        "coverage",
        f"95 % intervals over patients cover the true value in simulated studies of {', '.join(map(str, PATIENTS))} "
        "patients, in % (in brackets: bootstrap percentiles); checked: at least 90 % for every AUROC, and for "
        f"differences of AUROCs from {FEW_PAIRED} patients on, below which they are called rough",
        {name: ", ".join(shares) for name, shares in figures.items()},
        held=worst >= 0.9,
    )


if __name__ == "__main__":
    main()
