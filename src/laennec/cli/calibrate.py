"""`laennec calibrate`: fit the calibration and thresholds of a run again on its validation predictions."""

import argparse

from laennec.cli.common import add_options, chosen
from laennec.terminal import say
from laennec.training.record import read_record


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options of `laennec calibrate`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--calibration", help="none, temperature or platt (default: as in the run)")
    parser.add_argument(
        "--threshold-rule",
        help="youden, f1, icbhi, icbhi_likeliest, sensitivity, or none for probability 0.5 (default: as in the run)",
    )
    parser.add_argument("--sensitivity", type=float, help="target of --threshold-rule sensitivity, 0 to 1")
    add_options(
        parser,
        "--smoothing",
        default=None,
        help="mix the logits of annotated events with the mean of their recording, with weight W from 0 to 1, or auto "
        "for the weight that ranks validation best (default: as in the run)",
    )
    parser.add_argument(
        "--spans",
        choices=("events", "windows"),
        default="events",
        help="windows: predict the validation windows of a run that lacks them, and fit on them too (default: events)",
    )
    add_options(parser, "--data-dir", help="folder of the corpus, for --spans windows (default: as in the run)")


def run(options: argparse.Namespace) -> int:
    """Fit, store and print the operating point."""
    from laennec.evaluation.calibration.recalibrate import format_fitted, recalibrate

    names = ("calibration", "threshold_rule", "sensitivity", "spans", "data_dir", "smoothing")
    fitted = recalibrate(options.run_folder, command=options.line, **chosen(options, *names))
    for spans, point in fitted.items():
        say(*format_fitted(point, spans).splitlines())
    if read_record(f"{options.run_folder}/run.json").get("evaluations"):
        say("note: the existing scores of this run used the earlier thresholds; evaluate it again")
    return 0
