"""`laennec predict`: predict the labels of recordings over time."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laennec import DEFAULT_MODEL, __version__
from laennec.cli.common import add_options, add_paths, chosen, refuse_addresses, refuse_missing_model
from laennec.errors import InputError
from laennec.progress import Progress
from laennec.terminal import complain, say

if TYPE_CHECKING:
    from laennec.inference.batch.parameters import Settings
    from laennec.inference.batch.ray_engine import RayWork
    from laennec.inference.batch.run import BatchResult
    from laennec.inference.predictor import Predictor


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the options; their defaults are set later, so that --parameters can replace them."""
    add_paths(parser)
    parser.add_argument("--out", help="output folder (default: print the predictions)")
    parser.add_argument(
        "--format", help="comma-separated list of json, csv, parquet, audacity, raven, picture (default: json,csv)"
    )
    text = "what the model was trained on: recordings or windows, or for cycles 3 s, or the length of the model's input"
    text = f"length of a window in seconds (default: {text} if that is shorter)"
    add_options(parser, "--window-s", help=text)
    add_options(parser, "--hop-s")
    parser.add_argument(
        "--annotation",
        help="predict annotated cycles instead of windows: an annotation file, or a folder with a .txt or .json per "
        "recording (ICBHI text, Audacity labels, Raven selection table or SPRSound JSON)",
    )
    parser.add_argument(
        "--segment",
        action="store_true",
        help="predict automatically detected breaths instead of windows (approximate; the documentation states the "
        "accuracy)",
    )
    add_options(parser, "--smoothing")
    parser.add_argument(
        "--smoothing-neighbours",
        type=int,
        metavar="K",
        help="smooth with the mean of K spans on either side (default: 0, the whole recording)",
    )
    parser.add_argument(
        "--thresholds",
        metavar="LABEL=P,...",
        help="thresholds above which a label is present (default: those of the model)",
    )
    parser.add_argument(
        "--parameters",
        metavar="FILE",
        help="use the laennec.parameters.yaml of an earlier prediction; other options override it",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace predictions of another model or other settings in --out, and other files of the same names",
    )
    add_options(parser, "--backend", "--base", "--jobs", "--engine")


def run(options: argparse.Namespace) -> int:
    """Predict and write the results; exit code 2 if some recordings failed."""
    _check(options)
    source, inputs = model_and_inputs(options.paths)
    from laennec.inference.batch.parameters import read_parameters
    from laennec.inference.batch.run import predict
    from laennec.inference.outputs import DEFAULT_FORMATS
    from laennec.inference.predictor import input_note

    settings = _settings(options)
    fingerprint = None
    if options.parameters:
        earlier, fingerprint = read_parameters(options.parameters)
        settings = settings.over(earlier)
        _refuse_windows(options, settings)
    settings.smoothing_neighbours = settings.smoothing_neighbours or 0
    predictor = _make_predictor(options, settings, source)
    if fingerprint not in (None, predictor.fingerprint()):
        complain(f"note: {options.parameters} was written for another model")
    if note := input_note(predictor, settings.annotation is not None):
        complain(f"note: {note}")
    if options.out is None:
        failed = _print_predictions(predictor, inputs, settings.annotation)
        _say_decision(predictor, source, settings.annotation is not None)
        say("Research use only: not a medical device.")
        return 2 if failed else 0
    if options.engine == "ray":
        from laennec.inference.batch.ray_engine import RayWork

        identity = {**predictor.identity(settings.annotation is not None), "model": predictor.fingerprint()}
        return run_ray(options, RayWork(predictor, {"laennec": __version__, **identity}, settings.annotation), inputs)
    if not predictor.whole:
        settings.window_s, settings.hop_s = predictor.window_s, predictor.hop_s
    done = predict(
        predictor,
        inputs,
        options.out,
        formats=list(DEFAULT_FORMATS) if settings.format is None else settings.format,
        annotation=settings.annotation,
        progress=Progress("predicting"),
        settings=settings,
        source=source,
        **chosen(options, "overwrite", "jobs"),
    )
    code = say_outcome("predictions", options.out, done)
    _say_decision(predictor, source, settings.annotation is not None)
    return code


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if options.annotation and options.segment:
        raise InputError("--annotation and --segment cannot be combined; give one of them")
    _refuse_windows(options, options)
    on_ray = options.engine == "ray"
    if options.out is None and (options.format or options.overwrite or options.jobs != 1 or on_ray):
        raise InputError("--format, --overwrite, --jobs and --engine need --out; add it, or leave them out")
    refuse_addresses(options)
    if on_ray and (options.format or options.segment or options.parameters):
        raise InputError("--format, --segment and --parameters cannot be combined with --engine ray; leave them out")


def _refuse_windows(options: argparse.Namespace, settings: Any) -> None:
    """Refuse lengths of windows where cycles are predicted."""
    if (settings.annotation or settings.segment) and (options.window_s, options.hop_s) != (None, None):
        raise InputError("--annotation and --segment predict cycles, not windows; leave out --window-s and --hop-s")


def _make_predictor(options: argparse.Namespace, settings: "Settings", source: str) -> "Predictor":
    """Load the model, and set its smoothing, windows and thresholds."""
    from laennec.evaluation.calibration.smoothing import parse_smoothing
    from laennec.inference.backends import load_for_prediction
    from laennec.inference.predictor import Predictor

    parse_smoothing(settings.smoothing)
    neighbours = settings.smoothing_neighbours or 0
    if neighbours < 0:
        raise InputError(f"--smoothing-neighbours {neighbours}: it must be 0 (the whole recording) or more")
    if neighbours and settings.smoothing in (None, "none"):
        raise InputError("--smoothing-neighbours needs --smoothing auto or a strength; give both, or leave it out")
    model, extractor = load_for_prediction(source, options.base, options.backend)
    strength = 0.0 if settings.smoothing == "none" else None
    if settings.smoothing not in (None, "none"):
        from laennec.evaluation.calibration.recalibrate import smooth_model

        spans = "events" if settings.annotation or settings.segment is not None else "windows"
        strength, smoothing = smooth_model(settings.smoothing, source, model, neighbours, spans)
        if smoothing:
            say(smoothing)
    return Predictor(
        model,
        extractor,
        settings.window_s,
        settings.hop_s,
        strength,
        neighbours=neighbours,
        thresholds=settings.thresholds,
        segmentation=None if settings.annotation else settings.segmentation(),
        backend=options.backend,
    )


def run_ray(options: argparse.Namespace, work: "RayWork", inputs: Sequence[str]) -> int:
    """Predict or embed on a Ray cluster; exit code 2 if some recordings failed."""
    from laennec.inference.batch.ray_engine import run_on_ray

    progress = Progress("predicting" if work.embedder is None else "embedding")
    done = run_on_ray(work, inputs, options.out, workers=options.jobs, overwrite=options.overwrite, progress=progress)
    return say_outcome(work.what, options.out, done)


def _settings(options: argparse.Namespace) -> "Settings":
    from laennec.inference.batch.parameters import Settings, parse_thresholds

    return Settings(
        **chosen(options, "window_s", "hop_s", "annotation", "smoothing", "smoothing_neighbours"),
        segment={} if options.segment else None,
        thresholds=None if options.thresholds is None else parse_thresholds(options.thresholds),
        format=None if options.format is None else listed(options.format),
    )


def listed(text: str) -> list[str]:
    """Split a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def say_outcome(what: str, out: str, done: "BatchResult") -> int:
    """Print how many recordings were finished or failed, and why; returns the exit code."""
    total = len(done.predicted) + len(done.failed)
    text = f"{total} recording{'s' if total != 1 else ''}"
    if done.failed:
        text = f"{text}, {len(done.failed)} failed; see laennec.failed.csv"
    if done.resumed:
        text += f"; {done.resumed} {'was' if done.resumed == 1 else 'were'} already finished"
    complain(*(reason for _, reason in done.failed))
    say(f"{what}: {out} ({text})")
    return 2 if done.failed else 0


def _say_decision(predictor: "Predictor", source: str, annotated: bool) -> None:
    """Print the model, what ran it, the thresholds in use, what they were fitted on, and what was not fitted."""
    from laennec.evaluation.calibration.operating_point import fitting_notes, window_note
    from laennec.evaluation.calibration.probabilities import smoothing_text, thresholds_text
    from laennec.inference.decisions import ANY_SPAN, GIVEN_RULE

    config, decision = predictor.model.config, predictor.decision_for(annotated)
    name = "the model in the package" if source == DEFAULT_MODEL else source
    trained = (config.summary or "").partition("; trained on ")[2].partition(". ")[0]  # without the scores
    say(f"model: {name}{f'; trained on {trained}' if trained else ''}", f"backend: {predictor.backend.name}")
    given = decision["rule"] == GIVEN_RULE
    if decision["thresholds"] is not None:
        bounds = f": {thresholds_text(decision['thresholds'], decision.get('second_thresholds'))}"
        if decision["recording"] != ANY_SPAN:
            whole = decision["recording"]
            recording = thresholds_text(whole["thresholds"], whole.get("second_thresholds"))
            bounds = f" in a window{bounds}; in the recording: {recording}"
        kind, origin = "calibrated probability", f"rule {decision['rule']}, fitted on {decision['fitted_on']}"
        if not (config.thresholds or config.temperatures or config.operating_points):
            kind, origin = "probability", "nothing was fitted"
        say(f"a label is present{bounds} ({kind}; {'given' if given else origin})")
    if smoothed := smoothing_text(predictor.smoothing_for(annotated), predictor.neighbours):
        say(smoothed)
    notes = fitting_notes(config, decision["fitted_on"])
    if not (annotated or predictor.segmentation or predictor.whole or given):
        notes.insert(0, window_note(config, predictor.window_s, predictor.hop_s) or "")
    for note in filter(None, notes):
        say(f"note: {note}")


def model_and_inputs(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Split the paths of `laennec predict` into the model and the recordings."""
    from laennec.audio.recording import AUDIO_SUFFIXES
    from laennec.inference.batch.recordings import sounds_below

    first, *others = paths
    place = Path(first)
    # os.path is False, where Path raises, for what the user may not read
    is_model = os.path.exists(place / "config.json") or os.path.exists(place / "model" / "config.json")
    if is_model and not others:
        raise InputError(f"{first}: a model, but no recordings; give audio files or folders after it")
    is_sound = place.suffix.lower() in AUDIO_SUFFIXES
    is_folder = os.path.isdir(place) and any(sounds_below(place))
    alone = not others or (not is_model and (is_sound or is_folder or "://" in first))
    model, inputs = (DEFAULT_MODEL, [*paths]) if alone else (first, others)
    if not alone:
        refuse_missing_model(first)
    if not any(os.path.exists(name) or "://" in name for name in inputs):
        raise InputError(f"{inputs[0]}: no such file or folder, or no permission to read it; check the path")
    return model, inputs


def _print_predictions(predictor: "Predictor", inputs: list[str], annotation: str | None) -> int:
    """Print the predictions for each recording; the number of recordings that failed."""
    from laennec.inference.batch.recordings import annotation_of, find_recordings
    from laennec.inference.outputs import as_lines

    failed = 0
    for path in find_recordings(inputs):
        try:
            say(*as_lines(predictor(path, annotation_of(path, annotation)).to_dict()))
        except InputError as error:
            failed += 1
            complain(str(error))
    return failed
