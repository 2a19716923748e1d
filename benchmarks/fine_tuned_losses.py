"""Does an auxiliary loss help a fine-tuned encoder, with the same search for each? Nested cross-validation on SPRSound.

    python -m benchmarks.fine_tuned_losses --data-dir data/sprsound_train

All layers of `sprsound/best_mobilenet` are trained with binary cross entropy alone, with ADD and with SupCon. For each
outer fold of patients and each loss, validation patients choose the best of three settings (seed 0), which then also
trains with four other seeds. Validation patients choose the epoch as well; each run predicts the outer fold once.
Trainings are in --runs; those in the result file docs/results/fine_tuned_losses.json are not repeated. The command may
run several times at once: each takes trainings that no other process works on. Test splits are not read.
"""

import argparse
import datetime
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from benchmarks.head_losses import MARGIN, RESULTS, compare, left_out, rarest
from benchmarks.sprsound import LABELS
from laennec.corpora import load_corpus
from laennec.files import try_lock
from laennec.modeling import LaennecForAudioClassification
from laennec.training.data.split_data import load_decoded, make_extractor, make_split
from laennec.training.devices import training_device
from laennec.training.embeddings import embed_cycles, embedding_cache
from laennec.training.recipe import Recipe
from laennec.training.record import hardware, read_record, versions, write_record
from laennec.training.run import train
from laennec.training.tables import predictions_table, truth_table

RECIPE = Path(__file__).resolve().parents[1] / "recipes/sprsound/best_mobilenet.yaml"
RESULT = RESULTS / "fine_tuned_losses.json"
FOLDS, SEEDS = 5, 5


def _add(learning_rate: float, weight: float) -> dict[str, Any]:
    """Settings of ADD with all four terms."""
    add = {"weight": weight, "variant": "paper", "weights": [1, 1, 1, 1]}
    return {"train.learning_rate": learning_rate, "loss.auxiliary": {"add": add}}


def _supcon(learning_rate: float, weight: float, temperature: float) -> dict[str, Any]:
    """Settings of SupCon of two views."""
    supcon = {"weight": weight, "temperature": temperature, "views": 2, "projection_dim": 128}
    own = {"loss.task_weight": 1 - weight, "loss.task_views": "all", "loss.auxiliary": {"supcon": supcon}}
    return {"train.learning_rate": learning_rate, **own}


TRIALS: dict[str, dict[str, dict[str, Any]]] = {
    "BCE": {
        "learning rate 0.001": {"train.learning_rate": 1e-3},
        "0.0005": {"train.learning_rate": 5e-4},
        "0.002": {"train.learning_rate": 2e-3},
    },
    "ADD": {
        "learning rate 0.001, weight 0.1": _add(1e-3, 0.1),
        "0.0005, 0.1": _add(5e-4, 0.1),
        "0.001, 0.5": _add(1e-3, 0.5),
    },
    "SupCon": {
        "learning rate 0.001, weight 0.5, temperature 0.06": _supcon(1e-3, 0.5, 0.06),
        "0.0005, 0.5, 0.06": _supcon(5e-4, 0.5, 0.06),
        "0.001, 0.2, 0.2": _supcon(1e-3, 0.2, 0.2),
    },
}


class Cell(NamedTuple):
    """One training."""

    loss: str
    trial: int
    fold: int
    seed: int

    def __str__(self) -> str:
        return f"{self.loss}-{self.trial}-fold{self.fold}-seed{self.seed}"


Done = dict[Cell, dict[str, Any]]


def read_done(runs: Path) -> Done:
    """Finished trainings of the result file and of the folder of runs."""
    rows = read_record(RESULT)["runs"] if RESULT.exists() else []
    rows += [read_record(path) for path in runs.glob("*-seed*.json")]
    return {Cell(*(row[name] for name in Cell._fields)): row for row in rows}


def chosen_trial(done: Done, loss: str, fold: int) -> int | None:
    """The trial with the best AUROC on validation patients; None until all have been made."""
    reached = [done.get(Cell(loss, trial, fold, 0)) for trial in range(len(TRIALS[loss]))]
    return None if None in reached else int(np.argmax([row["validation"] for row in reached if row]))


def missing(done: Done) -> Iterator[Cell]:
    """Trainings that are left, those of the search first."""
    places = [(loss, fold) for fold in range(FOLDS) for loss in TRIALS]
    cells = [Cell(loss, trial, fold, 0) for loss, fold in places for trial in range(len(TRIALS[loss]))]
    chosen = {place: chosen_trial(done, *place) for place in places}
    for seed in range(1, SEEDS):
        cells += [Cell(loss, t, fold, seed) for (loss, fold), t in chosen.items() if t is not None]
    yield from (cell for cell in cells if cell not in done)


def run(cell: Cell, data_dir: str, runs: Path) -> dict[str, Any]:
    """Train once and predict the outer fold: AUROC there, also without each of its patients."""
    settings = list(TRIALS[cell.loss].values())[cell.trial]
    fold = {"corpus.data_dir": data_dir, "corpus.protocol": "patient-5fold", "corpus.fold": cell.fold}
    out = runs / str(cell)
    recipe = Recipe.from_yaml(RECIPE, seed=cell.seed, output_dir=str(out), **fold, **settings)
    if not (out / "run.json").exists():
        train(recipe)
    record = read_record(out / "run.json")
    model = LaennecForAudioClassification.from_pretrained(out / "model").eval().to(training_device())
    extractor = make_extractor(recipe.features)
    held = load_decoded(recipe, extractor.sampling_rate)["test"]
    split = make_split("test", held, recipe, extractor, record["labels"], False)
    embeddings = embed_cycles(split.dataset, split.keys(), embedding_cache(recipe, model, extractor))
    table = predictions_table(model, truth_table(split.table, "test", None, record["labels"]), embeddings)

    truth, logits = table[list(LABELS)].to_numpy(dtype=int), table[[f"logit_{name}" for name in LABELS]].to_numpy()
    return cell._asdict() | {
        "validation": record["best_metric"], "epoch": record["best_epoch"],
        **{name: float(roc_auc_score(truth[:, k], logits[:, k])) for k, name in enumerate(LABELS)},
        "without": left_out(truth, logits, table.patient_id.to_numpy())[1:].round(7).tolist(),
        "gpu": record["hardware"]["gpus"][:1],
    }  # fmt: skip


def gather(done: Done, data_dir: str) -> dict[str, Any]:
    """Compare the losses over the seeds that all of them have in all folds."""
    table = load_corpus("sprsound", data_dir, protocol="patient-5fold", fold=0)
    parts = [part.select_columns(["patient_id", *LABELS]).to_pandas() for part in table.values()]
    rows = pd.concat(parts)
    effective = rarest(rows[list(LABELS)].to_numpy(dtype=int), rows.patient_id.to_numpy())
    chosen = {(loss, fold): chosen_trial(done, loss, fold) for loss in TRIALS for fold in range(FOLDS)}
    cells = {
        (loss, seed): [Cell(loss, chosen[loss, fold] or 0, fold, seed) for fold in range(FOLDS)]
        for loss in TRIALS
        for seed in range(SEEDS)
    }
    seeds = [seed for seed in range(SEEDS) if all(cell in done for loss in TRIALS for cell in cells[loss, seed])]
    values, methods = {}, []
    for loss, trials in TRIALS.items():
        runs = [[done[cells[loss, seed][fold]] for seed in seeds] for fold in range(FOLDS)]
        values[loss] = [
            np.array([[np.mean([run[name] for name in LABELS]), *run["without"]] for run in of_fold])
            for of_fold in runs
        ]
        labels = {name: float(np.mean([run[name] for of_fold in runs for run in of_fold])) for name in LABELS}
        folds = Counter(chosen[loss, fold] for fold in range(FOLDS))
        row = {"method": loss, "auroc": float(np.mean(list(labels.values()))), **labels}
        row["chosen"] = {name: folds[trial] for trial, name in enumerate(trials)}
        methods.append(row | ({} if loss == "BCE" else compare(values[loss], values["BCE"], effective)))
    return {
        "events": len(rows), "patients": int(rows.patient_id.nunique()), "effective": effective, "folds": FOLDS,
        "seeds": len(seeds), "margin": MARGIN, "methods": methods,
        "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
        "runs": [done[cell] for cell in sorted(done)],
    }  # fmt: skip


def main() -> None:
    """Train what is missing, then write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data/sprsound_train", help="a folder with only the train part")
    parser.add_argument("--runs", type=Path, default=Path("runs/fine_tuned_losses"))
    options = parser.parse_args()
    while True:
        for cell in missing(read_done(options.runs)):
            record = options.runs / f"{cell}.json"
            with try_lock(record) as ours:
                if ours and not record.exists():
                    write_record(record, run(cell, options.data_dir, options.runs))
                    break  # the list may be another one now
        else:
            break
    done = read_done(options.runs)
    if all(chosen_trial(done, loss, fold) is not None for loss in TRIALS for fold in range(FOLDS)):
        write_record(RESULT, gather(done, options.data_dir))


if __name__ == "__main__":
    main()
