"""`laennec evaluate`: score a model on a held-out split and write a report."""

import argparse
from pathlib import Path

from laennec.cli.common import CORPUS, add_model, add_options, chosen, refuse_missing_model
from laennec.files import model_folder
from laennec.terminal import say
from laennec.training.record import read_run, refuse_absent_split


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec evaluate`."""
    add_model(parser, "source")
    parser.add_argument(
        "--split", default="test", help="the split to score (default: test; SPRSound has test_intra and test_inter)"
    )
    parser.add_argument(
        "--corpus", help="corpus to score: one of those of the run, or another one (default: all of the run)"
    )
    add_options(parser, "--data-dir", "--protocol")
    parser.add_argument(
        "--out",
        help="folder for the results (default: evaluation-SPLIT in the folder of the run, of another corpus "
        "evaluation-CORPUS-SPLIT)",
    )
    add_options(parser, "--base")
    text = "also score predictions smoothed over each recording, with strength W from 0 to 1, or auto for the strength "
    add_options(parser, "--smoothing", help=f"{text}chosen on validation (default: none)")
    parser.add_argument(
        "--submission", metavar="DIR", help="also write SPRSound's submission files, task1_1.json to task2_2.json"
    )
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="my_code:my_metric",
        help="your own metric, a function from the predictions table to named numbers; repeatable",
    )
    parser.add_argument(
        "--spans",
        choices=("events", "windows"),
        default="events",
        metavar="events|windows",
        help="windows: also score the windows that laennec predict cuts, per window, second and recording (default: "
        "events)",
    )
    add_options(parser, "--window-s", "--hop-s", *CORPUS, "--jobs")


def run(options: argparse.Namespace) -> int:
    """Score a held-out split and print the scores."""
    from laennec.evaluation.calibration.smoothing import parse_smoothing

    refuse_missing_model(options.source)
    model_folder(options.source)
    record = Path(options.source) / "run.json"
    if options.corpus is None and record.exists():
        refuse_absent_split(read_run(record), options.split)
    parse_smoothing(options.smoothing)
    names = ("data_dir", "protocol", "tables_dir", "fold", "level", "allow_missing")
    corpus = {"name": options.corpus, **chosen(options, *names)}
    from laennec.evaluation.evaluate import score

    scored = score(
        options.source,
        corpus=corpus,
        command=options.line,
        **chosen(options, "split", "out", "base", "smoothing", "submission", "metrics", "spans", "jobs"),
        **chosen(options, "window_s", "hop_s"),
    )
    say(*scored.summary.splitlines())
    say(f"report: {scored.folder / 'report.html'}")
    say(f"predictions: {scored.folder / 'predictions.parquet'}")
    if options.submission is not None:
        say(f"submission files: {options.submission}")
    return 0
