"""The command line: the flags of each command.

Decided here: flags say what they do in their help, with the default in brackets; what a flag does not cover is a
setting of the recipe. Nothing is imported for them.
"""

import argparse


def prepare(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec prepare`."""
    parser.add_argument("corpus", help="icbhi2017, sprsound, physionet2016, folder, hub or synthetic")
    parser.add_argument("--data-dir", help="folder (or zip) with the recordings; a synthetic corpus is written there")
    parser.add_argument("--check", action="store_true", help="decode everything and list every problem; writes nothing")
    parser.add_argument("--protocol", help="how to split")
    parser.add_argument("--sampling-rate", type=int, help="decode to this rate into the cache, e.g. 16000")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of one corpus alone: patients=16, annotations=cycles.csv, window_s=5, fold_column=fold; may be repeated",
    )
    _corpus_options(parser)


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec evaluate`."""
    parser.add_argument("source", help="folder of a run, of an exported model, or a Hub id")
    parser.add_argument("--split", default="test", help="the part to score (default: test)")
    parser.add_argument("--corpus", help="another corpus than the run's")
    parser.add_argument("--data-dir", help="where the corpus lies, if not where the run found it")
    parser.add_argument("--protocol", help="how to split another corpus")
    parser.add_argument("--out", help="folder for the results (default: evaluation-SPLIT in the run's folder)")
    parser.add_argument("--base", help="where the base of a head-only model lies")
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
        help="also score answers mixed with the mean of their recording: a strength W from 0 to 1, or auto, chosen on "
        "validation (default: none)",
    )
    _corpus_options(parser)


def export(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec export`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--format", default="full", help="head (a few kB, names its base), lora (head and adapters) or full (default)"
    )
    parser.add_argument("--out", help="folder (default: export-FORMAT in the run's folder)")
    parser.add_argument("--base", help="where the base of a head-only run lies now")
    parser.add_argument("--base-name", help="the name a head-only export gives its base, e.g. its Hub id")


def predict(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec predict`."""
    parser.add_argument("model", help="folder of a run, of an exported model, or a Hub id")
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_DIR", help="recordings, or folders that hold some")
    parser.add_argument("--out", required=True, help="folder for the timelines")
    parser.add_argument("--format", default="json,csv", help="json, csv or both (default)")
    parser.add_argument("--window-s", type=float, default=3.0, help="length of a window in seconds (default: 3)")
    parser.add_argument("--hop-s", type=float, default=1.5, help="from window to window in seconds (default: 1.5)")
    parser.add_argument(
        "--annotation", help="answer the cycles of this file (or of FOLDER/<recording>.txt) instead of windows"
    )
    parser.add_argument(
        "--smoothing",
        default="none",
        metavar="auto|none|W",
        help="mix each answer with the mean of its recording: a strength W from 0 to 1, or auto, chosen on a run's "
        "validation cycles (default: none)",
    )
    parser.add_argument("--base", help="where the base of a head-only model lies")


def bench(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec bench`."""
    parser.add_argument("rows", nargs="*", help="which rows (default: all that can run here)")
    parser.add_argument("--data-dir", help="folder with icbhi2017_subset and sprsound, as far as they are there")
    parser.add_argument("--weights", help="a released EfficientAT checkpoint, for the rows that want real weights")
    parser.add_argument("--out", help="write the table as JSON here")
    parser.add_argument(
        "--repeats", type=int, default=5, help="how often each side is measured; the fastest counts (default: 5)"
    )


def _corpus_options(parser: argparse.ArgumentParser) -> None:
    """Which data to read, and how they are split."""
    parser.add_argument(
        "--tables-dir", help="folder with split, demographics and diagnosis tables, if not beside the recordings"
    )
    parser.add_argument("--fold", type=int, help="test fold, where the protocol has folds")
    parser.add_argument(
        "--level", help="sprsound: event (default) or record; physionet2016: recording (default) or window"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="go on where the published corpus has more recordings",
    )
