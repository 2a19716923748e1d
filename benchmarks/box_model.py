"""What does distillation lose? The teacher, its members and the model in the package, on events and on windows.

    python -m benchmarks.box_model --runs runs --data-dir data/sprsound
    python -m benchmarks.box_model --runs runs --data-dir data/sprsound --package src/laennec/default_model

The runs are those of `make box-model`, or of `make best-sprsound` alone, beside the model in the package. The result is
docs/results/studies/box_model.json, or box_model_again.json beside it.
"""

import argparse
from pathlib import Path

from laennec.evaluation.evaluate import score
from laennec.study.results import gather_results
from laennec.training.record import read_record

RESULT = Path(__file__).resolve().parents[1] / "docs/results/studies/box_model.json"
RUNS = ("best-sprsound", "box-model", "best-sprsound-seeds/0", "best-sprsound-seeds/1", "best-sprsound-seeds/2")
FIGURES = ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc", "windows.crackle.roc_auc", "windows.wheeze.roc_auc")


def main() -> None:
    """Score the runs that are not scored yet, and gather the results."""
    parser = argparse.ArgumentParser(description="Compare the model in the package with its teacher.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs of make box-model")
    parser.add_argument("--data-dir", default="data/sprsound", help="folder of SPRSound")
    parser.add_argument("--package", type=Path, help="folder of the model in the package, in place of runs/box-model")
    options = parser.parse_args()
    corpus = {"name": "sprsound", "data_dir": options.data_dir, "protocol": "sprsound-official"}
    folders = []
    for run in RUNS:
        source = place = options.runs / run
        if options.package and run == "box-model":
            source, place = options.package, options.runs / "box-package"
        for split in ("validation", "test_intra"):
            folder = place / f"evaluation-{split}"
            if not (folder / "windows.parquet").exists():
                score(source, split=split, corpus=corpus, spans="windows", out=folder)
            folders.append(folder)
    teacher = read_record(folders[0] / "run.json")["name"]
    into = RESULT.with_stem("box_model_again") if options.package else RESULT
    gather_results(folders, into, baseline=teacher, study={"figures": FIGURES})


if __name__ == "__main__":
    main()
