"""Thresholds for another site: a model of children is applied to adults, with thresholds of some adult patients.

    laennec study recipes/studies/two_corpora.yaml
    python -m benchmarks.new_site runs/studies/two_corpora

The model is trained on SPRSound alone, and its weights do not change. In each draw, ten adults of the ICBHI subset set
the thresholds, which are scored on the other adults. They are compared with thresholds of SPRSound's validation
patients and with models that were trained on both corpora (patient folds). The result is docs/results/new_site.json.
"""

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laennec.evaluation.calibration.operating_point import fit_thresholds_on_validation
from laennec.evaluation.metrics import confusion_matrix, exact_sensitivity, four_class, specificity
from laennec.training.record import hardware, read_record, versions, write_record

LABELS = ("crackle", "wheeze")
ADULT_YEARS, PATIENTS, DRAWS = 18, 10, 200
RESULT = Path(__file__).resolve().parents[1] / "docs/results/new_site.json"
Array = np.ndarray[Any, Any]


def decided(folder: Path, name: str, rule: str) -> pd.DataFrame:
    """Truth and decisions for the adults of the ICBHI subset, by the runs of a method.

    Args:
        folder: Folder of the study.
        name: Folder of the method.
        rule: "as trained" for the thresholds of the run, "own corpus" for thresholds of ICBHI's validation patients.
    """
    parts = []
    for run in sorted(path for path in (folder / name).iterdir() if (path / "run.json").exists()):
        table = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
        points = read_record(run / "run.json")["operating_points"]["thresholds"]
        if rule == "own corpus":
            validation = pd.read_parquet(run / "predictions-validation.parquet")
            points = icbhi_thresholds(validation[validation.corpus == "icbhi2017"])
        parts.append(table.assign(**{f"said_{n}": table[f"logit_{n}"] > points[n] for n in LABELS}))
    table = pd.concat(parts)
    return table[table.age_years >= ADULT_YEARS].set_index("cycle_id").sort_index()


def icbhi_thresholds(table: pd.DataFrame) -> dict[str, float]:
    """Both thresholds, in logits, of the highest ICBHI Score on a predictions table."""
    logits = table[[f"logit_{name}" for name in LABELS]].to_numpy()
    return fit_thresholds_on_validation(logits, table[list(LABELS)].to_numpy(dtype=int), LABELS, "icbhi")


def scores(table: pd.DataFrame, said: Array) -> dict[str, float]:
    """ICBHI Score and any-abnormal Score, in percent, of decisions (cycles, labels)."""
    truth = table[list(LABELS)].to_numpy(dtype=int)
    counts = confusion_matrix(four_class(*truth.T), four_class(*said.astype(int).T), 4)
    found = said.any(axis=1)[truth.any(axis=1)].mean()
    right = float(specificity(counts))
    return {"ICBHI Score": (float(exact_sensitivity(counts)) + right) / 2, "any-abnormal": (100 * found + right) / 2}


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="folder of the runs of recipes/studies/two_corpora.yaml")
    folder = parser.parse_args().study
    adults = decided(folder, "SPRSound_alone", "as trained")
    logits = adults[[f"logit_{name}" for name in LABELS]].to_numpy()
    patients = sorted(adults.patient_id.unique())
    trained = {
        f"{name}, {rule}": decided(folder, place, rule)[["said_crackle", "said_wheeze"]].to_numpy()
        for name, place in (("both", "both"), ("both, balanced", "both_balanced_by_corpus"))
        for rule in ("as trained", "own corpus")
    }
    rules: dict[str, tuple[str, Callable[[Array], Array]]] = {
        "SPRSound alone, probability 0.5": ("each label at logit 0", lambda known: logits > 0),
        "SPRSound alone, as trained": (
            "ICBHI Score on SPRSound's validation patients",
            lambda known: adults[["said_crackle", "said_wheeze"]].to_numpy(),
        ),
        f"SPRSound alone, {PATIENTS} adults": (
            f"ICBHI Score on {PATIENTS} adults, who are not scored",
            lambda known: logits > np.array(list(icbhi_thresholds(adults[known]).values())),
        ),
        "SPRSound alone, the scored adults": (
            "ICBHI Score on the scored adults themselves: an upper bound",
            lambda known: logits > np.array(list(icbhi_thresholds(adults[~known]).values())),
        ),
        **{
            name: (
                "ICBHI Score on the validation patients of " + ("ICBHI alone" if "own" in name else "both corpora"),
                lambda known, said=said: said,
            )
            for name, said in trained.items()
        },
    }
    draw, drawn = np.random.default_rng(0), []
    for _ in range(DRAWS):
        known = adults.patient_id.isin(draw.choice(patients, PATIENTS, replace=False)).to_numpy()
        for name, (_, rule) in rules.items():
            drawn.append({"rule": name, **scores(adults[~known], rule(known)[~known])})
    table = pd.DataFrame(drawn).groupby("rule")
    results = [
        {"rule": name, "words": words, "mean": table.mean().loc[name].to_dict(), "sd": table.std().loc[name].to_dict()}
        for name, (words, _) in rules.items()
    ]
    record = {
        "cycles": len(adults), "patients": len(patients), "fitted_on": PATIENTS, "draws": DRAWS, "rules": results,
        "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
