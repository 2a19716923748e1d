"""`laennec ensemble`: combine several runs into one."""

import argparse
from pathlib import Path

from laennec.terminal import say
from laennec.training.record import read_record, read_run


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec ensemble`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of finished runs that differ only in seed, or in corpus.validation_fold",
    )
    parser.add_argument("--out", required=True, help="folder of the new run")
    parser.add_argument("--name", help="name in tables and cards (default: RECIPE_ensemble_of_N)")
    parser.add_argument("--data-dir", help="folder of the corpus (default: as in the runs)")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the folder")


def run(options: argparse.Namespace) -> int:
    """Combine the runs, and print the operating point of the ensemble on validation."""
    for folder in options.runs:
        read_run(Path(folder) / "run.json")  # refuses a wrong folder before the slow imports
    from laennec.evaluation.calibration.recalibrate import format_fitted
    from laennec.study.ensembles import ensemble_runs

    out = ensemble_runs(options.runs, options.out, options.line, options.data_dir, options.overwrite, options.name)
    if points := read_record(out / "run.json").get("operating_points"):
        say(*format_fitted(points).splitlines())
    say(f"run: {out}")
    return 0
