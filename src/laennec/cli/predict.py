"""`laennec predict`: answer recordings with a timeline of crackle and wheeze."""

import argparse
import sys

from laennec.cli.common import progress, say, without_library_bars


def flags(parser: argparse.ArgumentParser) -> None:
    """Those of `laennec predict`; what has a default has it in `_settings`, so that a file can stand between."""
    parser.add_argument("model", help="folder of a run, of an exported model, or a Hub id")
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_DIR", help="recordings, or folders that hold some")
    parser.add_argument("--out", required=True, help="folder for the timelines")
    parser.add_argument("--format", help="any of json, csv, audacity, raven, picture, with commas (default: json,csv)")
    parser.add_argument(
        "--window-s",
        type=float,
        help="length of a window in seconds (default: 3, or what the model hears of a cycle where that is less)",
    )
    parser.add_argument("--hop-s", type=float, help="from window to window in seconds (default: half a window)")
    parser.add_argument(
        "--annotation",
        help="answer the cycles of this file (or of FOLDER/<recording>.txt or .json) instead of windows: ICBHI text, "
        "Audacity labels, a Raven selection table or SPRSound JSON",
    )
    parser.add_argument(
        "--segment",
        action="store_true",
        help="answer breath cycles that are found in the sound instead of windows (a convenience: the README says how "
        "well they are found)",
    )
    parser.add_argument(
        "--smoothing",
        metavar="auto|none|W",
        help="mix each answer with the mean of its recording: a strength W from 0 to 1, or auto, chosen on a run's "
        "validation cycles (default: none)",
    )
    parser.add_argument(
        "--smoothing-neighbours",
        type=int,
        metavar="K",
        help="smooth with the mean of the K windows or cycles on either side instead (default: 0, the whole recording)",
    )
    parser.add_argument(
        "--thresholds", metavar="LABEL=P,...", help="probabilities above which a label is present, for the model's own"
    )
    parser.add_argument(
        "--parameters", metavar="FILE", help="the parameters.yaml of an earlier run as defaults; flags override it"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the answers of another model or other settings in --out"
    )
    parser.add_argument("--base", help="where the base of a head-only model lies")


def run(options: argparse.Namespace) -> int:
    """Answer; 2 where some recordings failed."""
    from laennec.errors import InputError
    from laennec.evaluation.evaluate import load_model
    from laennec.evaluation.recalibrate import parse_smoothing, smooth_model
    from laennec.inference.batch import Predictor, model_fingerprint, predict
    from laennec.inference.outputs import DEFAULT_FORMATS
    from laennec.inference.parameters import Settings, parse_thresholds, read_parameters
    from laennec.inference.predictor import input_note

    if options.annotation and options.segment:
        raise InputError("--annotation and --segment: both say where the breaths are; give one of them")
    without_library_bars()
    chosen = Settings(
        options.window_s,
        options.hop_s,
        options.annotation,
        {} if options.segment else None,
        options.smoothing,
        options.smoothing_neighbours,
        None if options.thresholds is None else parse_thresholds(options.thresholds),
        None if options.format is None else [f.strip() for f in options.format.split(",") if f.strip()],
    )
    fingerprint = None
    if options.parameters:
        earlier, fingerprint = read_parameters(options.parameters)
        chosen = chosen.over(earlier)
    formats = list(DEFAULT_FORMATS) if chosen.format is None else chosen.format
    parse_smoothing(chosen.smoothing)
    neighbours = chosen.smoothing_neighbours or 0
    if neighbours < 0:
        raise InputError(f"--smoothing-neighbours {neighbours}: it must be 0 (the whole recording) or more")
    model, extractor = load_model(options.model, options.base)
    strength, said = smooth_model(chosen.smoothing, options.model, model, neighbours)
    if said:
        say(said)
    predictor = Predictor(
        model,
        extractor,
        chosen.window_s,
        chosen.hop_s,
        strength,
        neighbours=neighbours,
        thresholds=chosen.thresholds,
        segmentation=None if chosen.annotation else chosen.segmentation(),
    )
    if fingerprint not in (None, model_fingerprint(predictor)):
        _note(f"{options.parameters} was written for another model")
    if chosen.annotation is None and (heard := input_note(predictor)):
        _note(heard)
    chosen.window_s, chosen.hop_s = predictor.window_s, predictor.hop_s
    chosen.smoothing, chosen.smoothing_neighbours = chosen.smoothing or "none", neighbours
    done = predict(
        predictor,
        options.inputs,
        options.out,
        formats=formats,
        annotation=chosen.annotation,
        progress=progress("predicting"),
        overwrite=options.overwrite,
        settings=chosen,
        source=options.model,
    )
    for _, reason in done.failed:
        print(f"laennec: {reason}", file=sys.stderr)
    total = len(done.answered) + len(done.failed)
    said = f"{total} recording{'s' if total != 1 else ''}"
    if done.failed:
        others = f"the other{'s' if len(done.failed) != 1 else ''} failed" if done.answered else "failed.csv says why"
        said = f"{len(done.answered)} of {said}, {others}"
    if done.resumed:
        said += f", {done.resumed} of them answered before"
    say(f"predictions: {options.out} ({said})")
    return 2 if done.failed else 0


def _note(text: str) -> None:
    print(f"laennec: note: {text}", file=sys.stderr)
