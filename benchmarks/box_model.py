"""What does distillation lose? The teacher, its members and the model in the package, on events and on windows.

    python -m benchmarks.box_model --runs runs --data-dir data/sprsound

The runs are those of `make box-model`. The result is docs/results/studies/box_model.json.
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
    options = parser.parse_args()
    folders = []
    for run in RUNS:
        for split in ("validation", "test_intra"):
            folder = options.runs / run / f"evaluation-{split}"
            if not (folder / "windows.parquet").exists():
                score(options.runs / run, split=split, corpus={"data_dir": options.data_dir}, spans="windows")
            folders.append(folder)
    teacher = read_record(folders[0] / "run.json")["name"]
    gather_results(folders, RESULT, baseline=teacher, study={"figures": FIGURES})


if __name__ == "__main__":
    main()
