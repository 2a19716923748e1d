"""Is an ensemble of validation folds better than one of seeds? Runs of `sprsound/best_mobilenet` on unseen patients.

    python -m benchmarks.fold_ensembles --data-dir data/sprsound_train

For each outer fold of the train patients, five runs are trained on the other patients, each with a different fifth of
them for validation. Their ensemble has thresholds fitted on out-of-fold predictions for all these patients, and is
scored on the outer fold. Ensembles of five seeds, with thresholds fitted on one fifth, and their single runs are read
from the result file of the study `unseen_sprsound`. Test splits are not read; --scored adds what `laennec evaluate`
wrote for an ensemble of folds on one, beside that of three seeds. The result is docs/results/fold_ensembles.json.
"""

import argparse
import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.head_losses import RESULTS
from benchmarks.operating_point import AUROC, GROUPS, compared
from laennec.evaluation.evaluate import score
from laennec.study.ensembles import ensemble_runs
from laennec.study.results import gather_results
from laennec.training.recipe import Recipe
from laennec.training.record import hardware, read_record, versions, write_record
from laennec.training.run import train

RECIPE = Path(__file__).resolve().parents[1] / "recipes/sprsound/best_mobilenet.yaml"
RESULT = RESULTS / "fold_ensembles.json"
FOLDS = 5
OF_SEEDS, OF_FOLDS = "ensemble of 5 seeds", "ensemble of 5 folds"
RULES = {
    "one run": "fitted on one fifth of the patients",
    OF_SEEDS: "fitted on the same fifth",
    OF_FOLDS: "fitted on out-of-fold predictions for all patients",
}
# result file, split, and names there and here
OTHERS = [
    ("unseen_sprsound", "test", {"best_mobilenet": "one run", "best_mobilenet, ensemble of 5": OF_SEEDS}),
    ("box_model", "test_intra", {"sprsound_best_mobilenet_ensemble_of_3": "ensemble of 3 seeds"}),
]


def scored_ensemble(outer: int, data_dir: str, runs: Path) -> Path:
    """Train five runs on the patients outside a fold, and score their ensemble on it: the folder of the results."""
    out = runs / f"ensemble-{outer}"
    if not (results := out / "evaluation-test").exists():
        members = [runs / f"{outer}/f{inner}" for inner in range(FOLDS)]
        for inner, member in enumerate(members):
            if not (member / "run.json").exists():
                corpus = {"data_dir": data_dir, "protocol": "patient-5fold", "fold": outer, "validation_fold": inner}
                settings = {f"corpus.{key}": value for key, value in corpus.items()}
                train(Recipe.from_yaml(RECIPE, output_dir=str(member), **settings))
        ensemble_runs(members, out, name=OF_FOLDS, overwrite=True)
        score(out)
    return results


def figures_of(row: dict[str, Any]) -> dict[str, Any]:
    """ICBHI Score and mean AUROC of a row of a results file."""
    values = row["values"]
    ranking = (values["crackle.roc_auc"] + values["wheeze.roc_auc"]) / 2
    return {"fold": row.get("fold", 0), "rule": row["name"], GROUPS[0]: values["icbhi.Score"], AUROC: ranking}


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data/sprsound_train", help="a folder with only the train part")
    parser.add_argument("--runs", type=Path, default=Path("runs/fold_ensembles"))
    parser.add_argument("--outer", type=int, nargs="+", default=list(range(FOLDS)), help="outer folds to score")
    parser.add_argument("--scored", type=Path, nargs="*", default=[], help="results of an ensemble of folds")
    options = parser.parse_args()
    folders = [scored_ensemble(outer, options.data_dir, options.runs) for outer in options.outer]
    own = read_record(gather_results([*folders, *options.scored], options.runs / "results.json"))["results"]
    rows = [row | {"name": OF_FOLDS} for row in own]
    for study, split, names in OTHERS:
        others = read_record(RESULTS / f"studies/{study}.json")["results"]
        rows += [row | {"name": names[row["name"]]} for row in others if row["name"] in names and row["split"] == split]
    rows = [row for row in rows if row["split"] != "test" or row.get("fold", 0) in options.outer]
    unseen = [row for row in rows if row["split"] == "test"]
    scored = pd.DataFrame(map(figures_of, unseen)).groupby(["fold", "rule"], as_index=False).mean().assign(seed=0)
    parts = {
        (row.get("fold", 0), row["corpus_fingerprint"], row["counts"]["cycles"], row["counts"]["patients"])
        for row in unseen
    }
    if len(parts) > len(options.outer):
        raise SystemExit("the ensembles of seeds and of folds were scored on different data")
    record = {
        "rules": compared(scored, RULES, OF_SEEDS), "base": OF_SEEDS, "folds": len(options.outer), "seeds": 1,
        "events": sum(cycles for *_, cycles, _ in parts), "patients": sum(patients for *_, patients in parts),
        "results": rows, "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
