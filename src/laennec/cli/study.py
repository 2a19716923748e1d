"""`laennec study`: run the missing cells of a study and compare its methods."""

import argparse
import os

from laennec.errors import InputError
from laennec.terminal import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec study`."""
    parser.add_argument(
        "study",
        help="a YAML file with methods, axes, seeds and the splits to score, or the name of a study of the "
        "package, such as paper_song2021_table2",
    )
    parser.add_argument(
        "--data-dir", help="folder of the recordings and weights that recipes name (default: LAENNEC_DATA)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the missing commands and run nothing")
    parser.add_argument(
        "--most", type=int, metavar="N", help="stop after N cells (one method with one seed) are trained or scored"
    )


def run(options: argparse.Namespace) -> int:
    """Run the missing cells and collect the results."""
    from laennec.study import PUBLISHED, load_study, run_study
    from laennec.study.results import comparison_lines
    from laennec.training.record import read_record

    if options.data_dir is not None:
        os.environ["LAENNEC_DATA"] = options.data_dir
    if options.most is not None and options.most < 1:
        raise InputError(f"--most {options.most}: must be at least 1")
    study = load_study(options.study)
    done = run_study(study, say=say, most=options.most, dry=options.dry_run)
    if done.results is not None:
        say(*comparison_lines(read_record(done.results)))
        say("", f"results: {done.results}; pictures: {study.output_dir / 'pictures'}")
        if study.published is not None:
            say(f"published numbers beside ours: {study.output_dir / PUBLISHED}")
    for cell, problem in done.failed.items():
        say(f"failed: {cell}: {problem}")
    if done.elsewhere:
        count = len(done.elsewhere)
        say(f"still run by other processes: {count}, first {done.elsewhere[0]}; the last one to end writes all results")
    if done.left:
        say(f"not yet run: {len(done.left)} cells, next {done.left[0]}; run the same command again to continue")
    return 2 if done.failed else 0
