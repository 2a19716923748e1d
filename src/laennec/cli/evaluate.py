"""`laennec evaluate`: score a run on its held-out split and write the report."""

import argparse
from typing import Any

from laennec.cli.common import corpus_flags, overrides, say, without_library_bars
from laennec.errors import InputError


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec evaluate`."""
    parser.add_argument("source", help="folder of a run, of an exported model, or a Hub id")
    parser.add_argument("--split", default="test", help="the split to score (default: test)")
    parser.add_argument("--corpus", help="another corpus than the run's")
    parser.add_argument("--data-dir", help="folder of the corpus, if not that of the run")
    parser.add_argument("--protocol", help="how to split another corpus")
    parser.add_argument("--out", help="folder for the results (default: evaluation-SPLIT in the run's folder)")
    parser.add_argument("--base", help="folder or file of the base of a head-only model")
    parser.add_argument(
        "--draws",
        type=int,
        help="bootstrap draws (default: 1000); with --label-fraction: samples of each fraction (default: 3)",
    )
    parser.add_argument(
        "--label-fraction",
        metavar="F,F,...",
        help="train the run's encoder again with these shares of the labels, e.g. 0.01,0.1,0.5,1.0, and write the "
        "label-efficiency table; settings as for train, e.g. --train.epochs 5",
    )
    parser.add_argument(
        "--mode", metavar="linear,finetune", help="with --label-fraction: frozen encoder, all of it, or both (default)"
    )
    parser.add_argument(
        "--smoothing",
        default="none",
        metavar="auto|none|W",
        help="also score predictions smoothed over their recording: a strength W from 0 to 1, or auto, chosen on "
        "validation (default: none)",
    )
    parser.add_argument(
        "--submission", metavar="DIR", help="also write SPRSound's submission files, task1_1.json to task2_2.json"
    )
    parser.add_argument(
        "--metrics",
        action="append",
        default=[],
        metavar="my_code:my_metric",
        help="an own metric, a function from the predictions table to named numbers; may be given several times",
    )
    corpus_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Score a held-out split, or compute the label-efficiency table."""
    names = ("data_dir", "protocol", "tables_dir", "fold", "level", "allow_missing")
    corpus = {"name": options.corpus, **{k: getattr(options, k) for k in names}}
    if options.label_fraction is not None:
        return _label_efficiency(options, corpus)
    if options.mode is not None:
        raise InputError("--mode says how to learn from fractions of the labels: give --label-fraction too")
    from laennec.evaluation.evaluate import score

    without_library_bars()
    scored = score(
        options.source,
        split=options.split,
        corpus=corpus,
        out=options.out,
        base=options.base,
        command=options.line,
        draws=1000 if options.draws is None else options.draws,
        smoothing=options.smoothing,
        submission=options.submission,
        metrics=options.metrics,
    )
    say(scored.summary)
    say(f"report: {scored.folder / 'report.html'}")
    say(f"predictions: {scored.folder / 'predictions.parquet'}")
    if options.submission is not None:
        say(f"submission files: {options.submission}")
    return 0


def _label_efficiency(options: argparse.Namespace, corpus: dict[str, Any]) -> int:
    from laennec.training.label_fractions import MODES, parse_fractions, parse_modes

    if options.smoothing != "none":
        raise InputError("--smoothing and --label-fraction do not go together: smooth one run at a time")
    fractions, modes = parse_fractions(options.label_fraction), parse_modes(options.mode or ",".join(MODES))
    from laennec.study.label_efficiency import label_efficiency

    without_library_bars()
    made = label_efficiency(
        options.source,
        fractions=fractions,
        modes=modes,
        draws=3 if options.draws is None else options.draws,
        split=options.split,
        corpus=corpus,
        out=options.out,
        base=options.base,
        overrides=overrides(options.rest),
        command=options.line,
        say=say,
    )
    say(made.summary)
    for ending in ("png", "csv", "json"):
        say(f"{ending}: {made.folder / f'label_efficiency.{ending}'}")
    return 0
