"""`laennec evaluate`: score a model on a held-out split and write a report."""

import argparse
from pathlib import Path

from laennec.cli.common import corpus_flags, jobs_flag, refuse_missing_model
from laennec.files import model_folder
from laennec.terminal import say
from laennec.training.record import read_run, refuse_absent_split


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec evaluate`."""
    parser.add_argument("source", help="model: folder of a run, folder of an exported model, or Hub id")
    parser.add_argument(
        "--split", default="test", help="the split to score (default: test; SPRSound has test_intra and test_inter)"
    )
    parser.add_argument(
        "--corpus", help="corpus to score: one of those of the run, or another one (default: all of the run)"
    )
    parser.add_argument("--data-dir", help="folder of the corpus (default: as in the run)")
    parser.add_argument("--protocol", help="rule that splits the corpus given with --corpus")
    parser.add_argument("--out", help="folder for the results (default: evaluation-SPLIT in the run's folder)")
    parser.add_argument("--base", help="folder or file of the base encoder of a head-only model")
    parser.add_argument(
        "--draws",
        type=int,
        default=1000,
        help="bootstrap draws of patients, for comparisons of your own metrics (default: 1000)",
    )
    parser.add_argument(
        "--smoothing",
        default="none",
        metavar="auto|none|W",
        help="also score predictions smoothed over each recording, with strength W from 0 to 1, or auto for the "
        "strength chosen on validation (default: none)",
    )
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
    parser.add_argument("--window-s", type=float, help="length of a window in seconds (default: as in laennec predict)")
    parser.add_argument("--hop-s", type=float, help="seconds from window to window (default: as in laennec predict)")
    corpus_flags(parser)
    jobs_flag(parser)


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
    corpus = {"name": options.corpus, **{k: getattr(options, k) for k in names}}
    from laennec.evaluation.evaluate import score

    scored = score(
        options.source,
        split=options.split,
        corpus=corpus,
        out=options.out,
        base=options.base,
        command=options.line,
        draws=options.draws,
        smoothing=options.smoothing,
        submission=options.submission,
        metrics=options.metrics,
        spans=options.spans,
        window_s=options.window_s,
        hop_s=options.hop_s,
        jobs=options.jobs,
    )
    say(*scored.summary.splitlines())
    say(f"report: {scored.folder / 'report.html'}")
    say(f"predictions: {scored.folder / 'predictions.parquet'}")
    if options.submission is not None:
        say(f"submission files: {options.submission}")
    return 0
