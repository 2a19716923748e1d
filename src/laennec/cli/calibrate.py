"""`laennec calibrate`: fit a run's calibration and thresholds again on its validation predictions."""

import argparse

from laennec.cli.common import say


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec calibrate`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--calibration", help="none, temperature or platt (default: as before)")
    parser.add_argument(
        "--threshold-rule", help="youden, f1, icbhi, sensitivity, or none for probability 0.5 (default: as before)"
    )
    parser.add_argument("--sensitivity", type=float, help="the sensitivity of --threshold-rule sensitivity, 0 to 1")


def run(options: argparse.Namespace) -> int:
    """Fit, store and print the operating point."""
    from laennec.evaluation.recalibrate import format_fitted, recalibrate
    from laennec.training.record import read_record

    fitted = recalibrate(
        options.run_folder, options.calibration, options.threshold_rule, options.sensitivity, options.line
    )
    say(format_fitted(fitted))
    if read_record(f"{options.run_folder}/run.json").get("evaluations"):
        say("note: this run was scored before; those scores used the earlier thresholds")
    return 0
