"""`laennec compare`: compare runs, paired by patients."""

import argparse
from pathlib import Path

from laennec.cli.common import chosen
from laennec.evaluation.comparison.evaluations import compared_folders
from laennec.terminal import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec compare`."""
    parser.add_argument(
        "sources", nargs="+", metavar="RUN", help="folders of evaluated runs; the first is the baseline"
    )
    parser.add_argument("--baseline", metavar="RUN", help="folder or name of the baseline (default: the first run)")
    parser.add_argument("--split", help="split to compare, if the runs were scored on several")
    parser.add_argument(
        "--group-seeds",
        action=argparse.BooleanOptionalAction,
        help="treat the seeds of a recipe as one method (default: if the runs have several recipes)",
    )
    parser.add_argument("--out", default="comparison", help="folder for the results (default: comparison)")


def run(options: argparse.Namespace) -> int:
    """Print the comparison and write it with its plots."""
    compared_folders(options.sources, options.split)  # refuses a wrong folder before the slow imports
    from laennec.evaluation.comparison.runs import compare_runs

    names = ("split", "baseline", "group_seeds", "out")
    say(*compare_runs(options.sources, command=options.line, **chosen(options, *names)).splitlines())
    for kind in ("html", "png", "json"):
        say(f"{kind}: {Path(options.out) / 'compare'}.{kind}")
    return 0
