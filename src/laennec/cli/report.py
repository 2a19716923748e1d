"""`laennec report`: write the report of an evaluation as one page, with embedding map and sounds."""

import argparse

from laennec.errors import InputError
from laennec.evaluation.comparison.evaluations import evaluation_folder
from laennec.terminal import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec report`."""
    parser.add_argument("source", help="folder of an evaluated run, or of an evaluation")
    parser.add_argument("--split", help="split of the evaluation, if the run has several")
    parser.add_argument(
        "--out", metavar="FILE", help="output file (default: report.html in the folder of the evaluation)"
    )
    parser.add_argument(
        "--no-audio", action="store_true", help="leave the recordings out of the page, e.g. to share it"
    )
    parser.add_argument("--data-dir", help="folder of the corpus (default: as in the run)")
    parser.add_argument("--tables-dir", help="folder with the tables of the corpus (default: beside the recordings)")
    parser.add_argument("--model", help="folder of the model (default: the folder of the run)")
    parser.add_argument("--base", help="folder or file of the base encoder of a head-only model")
    parser.add_argument(
        "--points", type=int, default=1200, help="maximum number of points in the embedding map (default: 1200)"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="continue if recordings of the published corpus are missing",
    )


def run(options: argparse.Namespace) -> int:
    """Write the page and print what is missing in it."""
    if options.points < 10:
        raise InputError(f"--points {options.points}: must be at least 10")
    evaluation_folder(options.source, options.split)  # refuses a wrong folder before the slow imports
    from laennec.evaluation.report.write import report

    made = report(
        options.source,
        split=options.split,
        out=options.out,
        model=options.model,
        base=options.base,
        corpus={name: getattr(options, name) for name in ("data_dir", "tables_dir", "allow_missing")},
        audio=not options.no_audio,
        points=options.points,
    )
    for line in made.missing:
        say(f"note: {line}")
    if made.sounds:
        say(f"note: the page contains {made.sounds} excerpts of recordings; --no-audio leaves them out")
    say(f"report: {made.path}")
    return 0
