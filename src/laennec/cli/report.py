"""`laennec report`: write the report of an evaluation as one page, with embedding map and sounds."""

import argparse

from laennec.cli.common import add_options, chosen
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
    add_options(parser, "--data-dir", "--tables-dir")
    parser.add_argument("--model", help="folder of the model (default: the folder of the run)")
    text = "maximum number of points in the embedding map (default: 1200)"
    parser.add_argument("--points", type=int, default=1200, help=text)
    add_options(parser, "--base", "--allow-missing")


def run(options: argparse.Namespace) -> int:
    """Write the page and print what is missing in it."""
    if options.points < 10:
        raise InputError(f"--points {options.points}: must be at least 10")
    evaluation_folder(options.source, options.split)  # refuses a wrong folder before the slow imports
    from laennec.evaluation.report.write import report

    made = report(
        options.source,
        corpus=chosen(options, "data_dir", "tables_dir", "allow_missing"),
        audio=not options.no_audio,
        **chosen(options, "split", "out", "model", "base", "points"),
    )
    for line in made.missing:
        say(f"note: {line}")
    if made.sounds:
        say(f"note: the page contains {made.sounds} excerpts of recordings; --no-audio leaves them out")
    say(f"report: {made.path}")
    return 0
