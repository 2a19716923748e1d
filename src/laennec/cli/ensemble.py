"""`laennec ensemble`: make one run of several."""

import argparse

from laennec.cli.common import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec ensemble`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs that differ in their seed")
    parser.add_argument("--out", required=True, help="folder of the run that is made")
    parser.add_argument("--name", help="what tables and cards call it (default: RECIPE_ensemble_of_N)")
    parser.add_argument("--data-dir", help="where the corpus lies, if not where the runs found it")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the folder")


def run(options: argparse.Namespace) -> int:
    """Join the runs, and say how the mean answers on validation."""
    from laennec.evaluation.recalibrate import format_fitted
    from laennec.study.ensembles import join_runs
    from laennec.training.record import read_record

    folder = join_runs(options.runs, options.out, options.line, options.data_dir, options.overwrite, options.name)
    if points := read_record(folder / "run.json").get("operating_points"):
        say(format_fitted(points))
    say(f"run: {folder}")
    return 0
