"""Evaluation of a trained model on a held-out split.

Decisions: a run can only be scored on the split that its protocol held out, recognised by the split fingerprint. The
run record counts every scoring, because a model that is chosen by repeated test scores overfits the test split. Results
are written atomically. Own metrics named in a run's recipe are imported, because its author chose them; names in a
model's configuration are never imported. Several processes share the caches of decoded audio and embeddings: the first
one scores and writes, the others only compute the embeddings that it reads.
"""

import contextlib
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import laennec
from laennec.audio.cycles import window_lengths
from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig, span_noun
from laennec.corpora.base import class_names, column_of
from laennec.corpora.load import provenance
from laennec.corpora.splits import WITH_FOLDS
from laennec.errors import InputError
from laennec.evaluation.baselines import middle_segments, segment_length_s, segment_scores, sound_facts
from laennec.evaluation.calibration.operating_point import decision_settings, fitting_notes, own_operating_point
from laennec.evaluation.calibration.probabilities import smoothing_text
from laennec.evaluation.calibration.recalibrate import resolve_smoothing, smoothing_section
from laennec.evaluation.calibration.smoothing import Smoothing, format_smoothing, parse_smoothing, smooth_predictions
from laennec.evaluation.geometry import class_distances
from laennec.evaluation.own_metrics import Metric, load_metrics
from laennec.evaluation.report.sections import earlier_use, scored_leaks, scored_own_corpus, seeds_of, times_scored
from laennec.evaluation.report.write import write_report
from laennec.evaluation.scored_data import check_split, is_other_corpus, recipe_of, settings_of_model, with_leaks
from laennec.evaluation.sprsound_tasks import official_lines, official_scores, official_tasks, write_submission
from laennec.evaluation.summary import decision_text, digest, evaluate_predictions, format_summary
from laennec.evaluation.window_scores import format_windows, scored_windows
from laennec.files import atomic_folder, atomic_write, model_folder, refuse_other_files
from laennec.modeling import LaennecForAudioClassification
from laennec.packed_model import PackedModel
from laennec.processes import alongside, check_jobs
from laennec.training.data.batches import refuse_lost_neighbours
from laennec.training.data.split_data import SplitData, load_splits, make_filter, make_split
from laennec.training.data.targets import FOUR_CLASSES
from laennec.training.data.windows import predict_windows, refuse_shared_recordings
from laennec.training.devices import is_main_process, training_device
from laennec.training.embeddings import embed_cycles, embedding_cache
from laennec.training.recipe import Recipe
from laennec.training.record import (
    Timings,
    counted_evaluation,
    hardware,
    read_record,
    read_run,
    refuse_absent_split,
    settled_evaluations,
    versions,
    without_results,
    write_record,
)
from laennec.training.tables import predictions_table, truth_table

_WRITTEN = ("predictions.parquet", "windows.parquet", "metrics.json", "run.json", "report.html", "pictures")
SPANS = ("events", "windows")
UNKNOWN_SELECTION = "unknown: the model came without its run record"


@dataclass
class Scored:
    """The folder of the results, the printed summary and the metrics."""

    folder: Path
    summary: str
    evaluation: dict[str, Any]


def load_model(
    source: str | Path = laennec.DEFAULT_MODEL, base: str | None = None
) -> tuple[LaennecForAudioClassification, LaennecFeatureExtractor]:
    """Load a model with its front end.

    Args:
        source: Folder of a run or an exported model, or a Hub id; the model in the package where none is given.
        base: Path of the base encoder of a head-only model.

    Returns:
        The model in evaluation mode, and its feature extractor.

    Raises:
        InputError: No laennec model there, or its base is missing or a different one.
    """
    folder = model_folder(source)
    if Path(source).is_dir() and not (Path(folder) / "preprocessor_config.json").exists():
        raise InputError(
            f"{folder}: no preprocessor_config.json (the model's front end) there; get it from the "
            "source of the model, or export the run again"
        )
    model = LaennecForAudioClassification.from_pretrained(folder, base=base or _base_of_run(Path(source)))
    try:
        extractor = LaennecFeatureExtractor.from_pretrained(folder)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:  # no JSON, or no settings
        said = str(error).splitlines()[0]
        raise InputError(f"{folder}: no usable front end ({said}); export the run again") from error
    if bool(extractor.context_cycles) != model.config.concatenated_context:
        raise InputError(
            f"{folder}: the model takes {'' if model.config.concatenated_context else 'no '}concatenated context, but "
            f"preprocessor_config.json says context_cycles {extractor.context_cycles}; export the run again"
        )
    _refuse_other_front_end(folder, model.config, extractor)
    model.eval()
    return model, extractor


def _base_of_run(run: Path) -> str | None:
    """The encoder weights of a run's own recipe, if the model's configuration names the same; None otherwise."""
    try:
        weights = read_record(run / "run.json")["config"]["encoder"]["weights"]
        named = read_record(run / "model" / "config.json")["base_model_name_or_path"]
    except (InputError, KeyError, TypeError):
        return None
    return weights if isinstance(weights, str) and weights == named and Path(weights).exists() else None


def _refuse_other_front_end(folder: str | Path, config: LaennecConfig, extractor: LaennecFeatureExtractor) -> None:
    rate, expected = config.sampling_rate, config.features_fingerprint
    remedy = "get the model's own preprocessor_config.json again, or export the run again"
    if rate is not None and rate != extractor.sampling_rate:
        raise InputError(
            f"{folder}: preprocessor_config.json says {extractor.sampling_rate} Hz, but the model was trained on "
            f"{rate} Hz; {remedy}"
        )
    if expected is not None and expected != extractor.fingerprint():
        raise InputError(f"{folder}: preprocessor_config.json has other settings than in training; {remedy}")


def score(
    source: str | Path,
    *,
    split: str = "test",
    corpus: dict[str, Any] | None = None,
    out: str | Path | None = None,
    base: str | None = None,
    command: str = "",
    smoothing: str | float | None = None,
    submission: str | Path | None = None,
    metrics: Sequence[Metric | str] = (),
    spans: str = "events",
    window_s: float | None = None,
    hop_s: float | None = None,
    jobs: int = 1,
) -> Scored:
    """Score a run or a model on one split of a corpus.

    Args:
        source: A run's folder, an exported model's folder or a Hub id.
        split: Name of the split: "test", or "test_intra" and the like where a corpus has several.
        corpus: Corpus settings that replace the run's; "name" selects one of its corpora, or another corpus.
        out: Folder of the results; None: in the run's, `evaluation-<split>`, of another corpus, or one of
            several, `evaluation-<corpus>-<split>`.
        base: The base of a head-only model.
        command: The literal command, for the record.
        smoothing: Also score predictions smoothed over each recording: a strength from 0 to 1, "auto" to choose it on
            the run's validation predictions, or None.
        submission: Folder for SPRSound's submission files; None for none.
        metrics: Own metrics (functions or dotted names) beside those of the recipe's `evaluation.metrics`.
        spans: "windows" also scores the windows that `laennec predict` cuts, per window, second and recording; "events"
            scores the annotated events alone.
        window_s: Length of a window, in seconds; None for that of prediction.
        hop_s: Time from the start of one window to that of the next, in seconds; None likewise.
        jobs: Number of processes; the ranks of a launch (`accelerate launch`) share the work too.

    Returns:
        The folder with predictions.parquet, windows.parquet where windows were scored, metrics.json, run.json,
        pictures and report.html; the printed summary.

    Raises:
        InputError: The split does not exist, the corpus is not the run's, or data or model cannot be read.
    """
    run_path = Path(source) / "run.json"
    run = read_run(run_path) if run_path.exists() else None
    if run is not None:
        asked = corpus or {}
        if asked.get("name") is None or (
            asked["name"] == run["corpus"]["name"] and not asked.get("data_dir") and not asked.get("protocol")
        ):
            refuse_absent_split(run, split)
        run["evaluations"] = without_results(settled_evaluations(run_path).get("evaluations") or [])
    recipe = recipe_of(source, run, corpus)
    folder = Path(out) if out is not None else _own_folder(source, run, recipe, split)
    refuse_other_files(folder, _WRITTEN, "choose another --out")
    parse_smoothing(smoothing)
    _check_spans(spans, window_s, hop_s)
    own = [*load_metrics(recipe.evaluation.metrics, "evaluation.metrics"), *load_metrics(metrics)]
    timings = Timings()
    with timings.measure("evaluation"):
        model, extractor = load_model(source, base)
        splits = load_splits(recipe, check_jobs(jobs))
        origin = provenance(splits)
        if smoothing is not None and model.config.smoothing:
            raise InputError(
                f"smoothing {smoothing}: this model smooths its predictions itself, by {model.config.smoothing:g}; "
                "leave --smoothing out, or fit the model without: laennec calibrate RUN --smoothing none"
            )
        smooth = resolve_smoothing(smoothing, source, model)
        named = bool((corpus or {}).get("name"))
        if run is not None and is_other_corpus(run, recipe, origin, named):
            origin = with_leaks(source, run, splits, split, origin, out)
        else:
            check_split(run, recipe, origin)
        refuse_lost_neighbours(splits, origin.get("protocol"), extractor.context_cycles)
        if split not in splits:
            listed = ", ".join(splits)
            raise InputError(f"{recipe.corpus.name}: no split {split!r}; choose split (--split) from {listed}")
        settings_of_model(recipe, run, model, extractor, splits[split])
        lengths = window_lengths(extractor, window_s, hop_s)
        if spans == "windows" and model.config.span == "recording":
            raise InputError("spans windows: this model predicts whole recordings, not windows; leave spans out")
        if spans == "windows":
            refuse_shared_recordings(splits, split, str(origin.get("protocol")))
        scored = (splits, split, recipe, lengths if spans == "windows" else None)
        if not is_main_process():
            _embed(model, extractor, *scored)
            return Scored(folder, "", {})
        helper = partial(_embed_packed, PackedModel.of(model, extractor), scored) if jobs > 1 else print
        with alongside(helper, jobs - 1):
            predictions, evaluation, official = _evaluate(model, extractor, splits, split, recipe, own)
            if smooth is not None:
                evaluation["smoothing"] = smoothing_section(smooth, model.config, predictions)
                after = smooth_predictions(predictions, names := model.config.label_names, smooth.strength)
                predictions = predictions.assign(**{f"smoothed_logit_{n}": after[f"logit_{n}"] for n in names})
            windows = None
            if spans == "windows":
                windows, evaluation["windows"] = scored_windows(model, extractor, splits, split, recipe, lengths)
    if (noun := span_noun(model.config.span)) != "cycle":
        evaluation["span"] = noun
    evaluation["fitted"] = run.get("operating_points") if run else own_operating_point(model.config)
    record = _record(run, source, recipe, origin, split, command, timings, smooth, model.config.selection_set)
    write_results(folder, record, evaluation, {"predictions": predictions, "windows": windows}, run_path, run)
    if submission is not None:
        write_submission(official, submission)
    return Scored(folder, _printed(record, split, evaluation, model.config), evaluation)


def _own_folder(source: str | Path, run: dict[str, Any] | None, recipe: Recipe, split: str) -> Path:
    """The folder of the results inside that of the run."""
    if run is None:
        raise InputError("an exported model has no run folder for the results; give one (out, or --out DIR)")
    own = recipe.corpus.name == run["corpus"]["name"]
    return Path(source) / f"evaluation-{split if own else f'{recipe.corpus.name}-{split}'}"


def _check_spans(spans: str, window_s: float | None, hop_s: float | None) -> None:
    if spans not in SPANS:
        raise InputError(f"spans {spans!r}: it can be {' or '.join(SPANS)}")
    if spans == "events" and (window_s, hop_s) != (None, None):
        raise InputError("window_s and hop_s are for spans windows; add --spans windows, or leave them out")


def _embed(
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    splits: Any,
    split: str,
    recipe: Recipe,
    windows: tuple[float, float] | None,
) -> None:
    """Compute the embeddings that scoring a split reads, so that they are in the cache."""
    predictions, embeddings, data = predict_split(model, extractor, splits[split], split, recipe)
    segments = middle_segments(data.table, segment_length_s(splits.get("train", data.table)))
    predict_split(model, extractor, segments, split, recipe)
    official_tasks(model, extractor, recipe, split, predictions, embeddings, data.table)
    if windows is not None:
        predict_windows(model, extractor, splits[split], split, recipe, *windows)


def _embed_packed(packed: PackedModel, scored: tuple[Any, ...]) -> None:
    _embed(*packed.unpack(), *scored)


def _evaluate(
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    splits: Any,
    split: str,
    recipe: Recipe,
    own: Sequence[Metric],
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The predictions table of a split, its evaluation, and the official tasks' tables."""
    config, filter, rate = model.config, make_filter(recipe.features), extractor.sampling_rate
    predictions, embeddings, data = predict_split(model, extractor, splits[split], split, recipe)
    predictions = predictions.assign(**sound_facts(data.table, rate, filter))
    learned = None
    if "train" in splits:
        learned = truth_table(splits["train"], "train", recipe.target.column, config.label_names)
        learned = learned.assign(**sound_facts(splits["train"], rate, filter))
    how = decision_settings(config)
    evaluation = evaluate_predictions(predictions, **how, metrics=own, train_table=learned)
    seconds = segment_length_s(splits.get("train", data.table))
    segments, _, _ = predict_split(model, extractor, middle_segments(data.table, seconds), split, recipe)
    evaluation["duration_blind"] = segment_scores(segments, seconds, how)
    official = official_tasks(model, extractor, recipe, split, predictions, embeddings, data.table)
    evaluation["official"] = official_scores(official)
    evaluation["geometry"] = _geometry(embeddings, data.table, recipe.target.column)
    return predictions, evaluation, official


def _record(
    run: dict[str, Any] | None,
    source: str | Path,
    recipe: Recipe,
    origin: dict[str, Any],
    split: str,
    command: str,
    timings: Timings,
    smooth: Smoothing | None,
    selection_set: str | None,
) -> dict[str, Any]:
    """Build the record of this evaluation, and append it to the evaluations of a run."""
    evaluated = {
        "split": split,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "corpus": recipe.corpus_facts(origin),
        "versions": versions(),
        "hardware": hardware(),
        "timings": timings.seconds,
    }
    if run is None:
        known = selection_set or UNKNOWN_SELECTION
        trained = {"name": str(source), "config": recipe.to_dict(), "selection_set": known, "seeds": None}
    else:
        entry: dict[str, Any] = {k: evaluated[k] for k in ("split", "created", "command")}
        entry["corpus"] = recipe.corpus.name
        if smooth is not None:
            entry["smoothing"] = smooth.strength
        run["evaluations"] = [*run.get("evaluations", []), entry]
        trained = run
    return {**trained, "trained_on": trained.get("corpus"), "corpus": evaluated["corpus"], "evaluated": evaluated}


def _heading(record: dict[str, Any], split: str) -> str:
    """Data with fingerprints, selection set, seeds, caveats and leaks, printed above the numbers."""
    corpus, origin = record["corpus"], record["corpus"]["provenance"]
    fingerprint, splits = (str(origin.get(key))[:12] for key in ("corpus_fingerprint", "split_fingerprint"))
    fold = f" fold {origin['fold']}" if origin.get("protocol") in WITH_FOLDS else ""
    selection_set = record.get("selection_set")
    lines = [
        f"corpus {corpus['name']} {fingerprint}, protocol {origin.get('protocol')}{fold} ({splits}), split {split}",
        f"selection set: {selection_set}; seed {seeds_of(record)}, split seed {origin.get('seed')}",
        *([f"note: {origin['stamp']}"] if origin.get("stamp") else []),
        *(f"leak: {line}" for line in scored_leaks(record)),
    ]
    if scored_own_corpus(record) and (use := earlier_use(split, selection_set)):
        lines.append(f"note: split {split} {use}; its scores are no estimate for new patients")
    if (times := times_scored(record, split, corpus["name"])) > 1:
        lines.append(f"note: this run was scored {times} times on {split}")
    return "\n".join(lines)


def _printed(record: dict[str, Any], split: str, evaluation: dict[str, Any], config: LaennecConfig) -> str:
    """What the command prints: data, scores, the thresholds in use, notes, smoothing and windows."""
    lines = [_heading(record, split), format_summary(evaluation), *official_lines(evaluation["official"])]
    if shown := decision_text(evaluation):
        lines.append(f"a label is predicted: {shown} (probability after calibration)")
    if smoothed := smoothing_text(config.smoothing):
        lines.append(smoothed)
    lines += [f"note: {note}" for note in fitting_notes(config, "events")]
    if "smoothing" in evaluation:
        lines += ["", format_smoothing(evaluation["smoothing"])]
    if "windows" in evaluation:
        lines += ["", format_windows(evaluation["windows"])]
    return "\n".join(lines)


def predict_split(
    model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, table: Any, split: str, recipe: Recipe
) -> tuple[Any, NDArray[np.float32], SplitData]:
    """The predictions table of a split (smoothed if the model says so), its embeddings (cycles, dim), and its data."""
    names = model.config.label_names
    data = make_split(split, table, recipe, extractor, names, False)
    model.to(training_device())  # type: ignore[arg-type]
    embeddings = embed_cycles(data.dataset, data.keys(), embedding_cache(recipe, model, extractor))
    truth = truth_table(data.table, split, recipe.target.column, names)
    predictions = predictions_table(model, truth, embeddings)
    if model.config.smoothing:
        predictions = smooth_predictions(predictions, names, model.config.smoothing)
    return predictions, embeddings, data


def write_results(
    folder: Path,
    record: dict[str, Any],
    evaluation: dict[str, Any],
    tables: dict[str, Any],
    run_path: Path | None = None,
    run: dict[str, Any] | None = None,
) -> None:
    """Write the folder of the results atomically, and add the evaluation to the record of the run."""
    with contextlib.ExitStack() as counted, atomic_folder(folder) as temporary:
        for name, table in tables.items():
            if table is not None:
                with atomic_write(temporary / f"{name}.parquet", "wb") as file:
                    table.to_parquet(file, write_page_checksum=True)
        write_record(temporary / "metrics.json", evaluation)
        write_record(temporary / "run.json", record)
        write_report(temporary, record, evaluation, tables["predictions"])
        if run_path is not None and run is not None:
            entry = run["evaluations"][-1]
            if folder.parent.resolve() == run_path.parent.resolve():  # the model card shows splits scored in the run
                evaluated = {k: record["evaluated"][k] for k in ("split", "created", "command", "corpus", "timings")}
                entry |= {"folder": folder.name, "result": {"evaluated": evaluated, "metrics": digest(evaluation)}}
            counted.enter_context(counted_evaluation(run_path, entry, folder.absolute()))


def _geometry(embeddings: NDArray[np.float32], table: Any, column: str | None) -> dict[str, Any] | None:
    """Distances between the four classes, or the corpus's own classes, over the cycles whose class is known."""
    column = column if column and class_names(table, column) else "label"
    classes, labels = tuple(class_names(table, column)) or FOUR_CLASSES, column_of(table, column)
    known = [row for row, label in enumerate(labels) if label is not None]
    if not known:
        return None
    return dict(class_distances(embeddings[known], [classes[labels[row]] for row in known], classes))
