"""Cut recordings into the windows of `laennec predict`: tables of windows, and their predictions.

Decisions: an annotated span counts for a window where their overlap is at least half of the shorter of the two. A label
is true for a window if it is true for any span that counts. A window without such a span is not annotated: its labels
are unknown, so it is neither scored nor trained on, and its prediction still counts for its recording. Times, samples
and context of a window are those of `laennec.audio.streaming.passing_windows`, so its logits equal those of prediction.
Scores per second of sound use windows of 1 s with the same rules.
"""

import logging
from typing import Any

import datasets
import numpy as np

from laennec.audio.context import beside_window
from laennec.audio.cycles import counting_spans, prediction_windows, window_lengths
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_header
from laennec.corpora.base import ABNORMAL, class_names, column_of, to_arrow
from laennec.corpora.waveforms import CycleWaveforms
from laennec.errors import InputError
from laennec.evaluation.calibration.operating_point import fit_windows, window_points_of
from laennec.modeling import LaennecForAudioClassification
from laennec.training.data.batches import CycleDataset, Neighbours
from laennec.training.data.split_data import make_filter
from laennec.training.data.targets import FOUR_CLASSES, Targets
from laennec.training.data.training_data import refuse_short_cycles
from laennec.training.devices import training_device
from laennec.training.embeddings import cycle_keys, embed_cycles, embedding_cache
from laennec.training.recipe import Recipe
from laennec.training.tables import predictions_table, truth_table

_log = logging.getLogger(__name__)
RULE = "at least half of the shorter of window and annotated span overlap"


def window_table(
    table: Any, recipe: Recipe, sampling_rate: int, window_s: float, hop_s: float, background: bool = False
) -> Any:
    """The windows of every recording of a cycle table, as a cycle table."""
    column = recipe.target.column
    named = ("crackle", "wheeze", "label", "events", *recipe.target.names, column or "label")
    truth = {name for name in named if name in table.column_names}
    flags = sorted(truth - {"label", "events", column})
    names = tuple(class_names(table, "label"))
    four = names in (FOUR_CLASSES, ())
    nothing: dict[str, Any] = dict.fromkeys(flags, 0)
    if background and "label" in truth:
        nothing["label"] = _normal(names)
    recordings: dict[str, list[dict[str, Any]]] = {}
    for row in table.with_format("arrow")[:].to_pylist():
        recordings.setdefault(row["recording_id"], []).append(row)
    made = []
    for name, spans in recordings.items():
        rate, frames = read_header(spans[0]["recording_path"])
        duration_s = int(frames * sampling_rate / rate + 0.5) / sampling_rate
        for index, (start_s, end_s) in enumerate(prediction_windows(duration_s, window_s, hop_s)):
            row = {**spans[0], **dict.fromkeys(truth)}
            if counting := counting_spans(spans, start_s, end_s):
                row = counting[0] | _combined(counting, flags, truth, four)
            elif background and all(span["end_s"] <= start_s or span["start_s"] >= end_s for span in spans):
                row |= nothing
            row |= {"cycle_id": f"{name}#w{index:04d}", "cycle_index": index, "start_s": start_s, "end_s": end_s}
            made.append(row)
    return datasets.Dataset(to_arrow(made, table.features), info=table.info.copy())


def _normal(names: tuple[str, ...]) -> int:
    known = [name.lower() for name in names or FOUR_CLASSES]
    if "normal" not in known:
        raise InputError(
            f"train.background needs a class normal, but the classes are {', '.join(names)}; set train.background: "
            "false"
        )
    return known.index("normal")


def _combined(spans: list[dict[str, Any]], flags: list[str], truth: set[Any], four: bool) -> dict[str, Any]:
    """Combine the labels of several spans: flags are OR-ed, as are the bits of the four classes (`four`)."""
    known = {name: [span[name] for span in spans if span[name] is not None] for name in truth}
    row = {name: max(known[name], default=None) for name in flags}
    if "events" in truth:
        row["events"] = sorted({event for events in known["events"] for event in events}) or None
    if "label" in truth and four and all(isinstance(label, int) for label in known["label"]):
        row["label"] = int(np.bitwise_or.reduce(known["label"])) if known["label"] else None
    return row


def training_examples(recipe: Recipe, splits: Any, extractor: LaennecFeatureExtractor) -> Any:
    """The cycle table that a recipe trains on: annotated events, windows of the training recordings, or both."""
    table, spans = splits["train"], recipe.train.spans
    if spans == "events":
        if recipe.train.background:
            raise InputError("train.background needs windows: set train.spans: windows or both")
        return table
    if recipe.train.background and recipe.target.column not in (None, "label", ABNORMAL):
        raise InputError(
            f"train.background: a window without annotated spans has no known {recipe.target.column}; set "
            "train.background: false"
        )
    if extractor.context_cycles:
        raise InputError(
            f"train.spans is {spans}, but features.context_cycles is {extractor.context_cycles}: windows overlap, so "
            "they are no neighbours of one another; set train.spans: events or features.context_cycles: 0"
        )
    if recipe.corpus.label_fraction < 1:
        raise InputError(
            f"train.spans is {spans}, but corpus.label_fraction is {recipe.corpus.label_fraction:g}: windows would "
            "have the labels that are left out; set train.spans: events"
        )
    refuse_shared_recordings(splits, "train", str(recipe.corpus.protocol))
    lengths = window_lengths(extractor)
    windows = window_table(table, recipe, extractor.sampling_rate, *lengths, recipe.train.background)
    return windows if spans == "windows" else datasets.concatenate_datasets([table, windows])


def predict_windows(
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    table: Any,
    split: str,
    recipe: Recipe,
    window_s: float,
    hop_s: float,
) -> Any:
    """The predictions table of the windows of a split, including those without annotation."""
    rate, names, filter_ = extractor.sampling_rate, model.config.label_names, make_filter(recipe.features)
    windows = window_table(table, recipe, rate, window_s, hop_s)
    everything, beside = _with_context(windows, extractor.context_cycles)
    waveforms = CycleWaveforms(windows, rate, filter=filter_)
    refuse_short_cycles(windows, waveforms, extractor)
    rows = np.arange(len(windows))
    neighbours = None
    if extractor.context_cycles:
        sounds = CycleWaveforms(everything, rate, filter=filter_)
        neighbours = Neighbours(everything, sounds, rows, extractor.context_cycles, beside)
    unused = Targets(names, np.zeros((len(rows), len(names)), np.float32), np.zeros(len(rows), np.int64), rows)
    dataset = CycleDataset(waveforms, unused, windows["cycle_id"], rate, recipe.seed, neighbours=neighbours)
    model.to(training_device())  # type: ignore[arg-type]
    keys = cycle_keys(windows, f"{rate} {filter_!r}", "", neighbours)
    embeddings = embed_cycles(dataset, keys, embedding_cache(recipe, model, extractor))
    return predictions_table(model, window_truth(windows, split, recipe, names), embeddings)


def window_truth(windows: Any, split: str, recipe: Recipe, names: list[str]) -> Any:
    """The truth table of windows: a 0/1 column for each label, null where the window is not annotated."""
    frame = truth_table(windows, split, recipe.target.column, names)
    for name in names:
        if name not in frame.columns or recipe.target.column == "events":
            flags = (frame["label"] == name) if name not in frame.columns else frame[name]
            frame[name] = flags.astype("Int8").where(frame["label"].notna())
    return frame


def _with_context(windows: Any, context_cycles: int) -> tuple[Any, list[tuple[list[int], list[int]]]]:
    """The windows followed by the sound beside each, as one table; and its rows before and after each window."""
    rows = windows.with_format("arrow")[:].to_pylist() if context_cycles else []
    ends: dict[str, float] = {}
    for row in rows:
        ends[row["recording_id"]] = max(ends.get(row["recording_id"], 0.0), row["end_s"])
    stretches: list[dict[str, Any]] = []
    places = []
    for row in rows:
        sides: list[list[int]] = []
        for spans in beside_window((row["start_s"], row["end_s"]), ends[row["recording_id"]], context_cycles):
            sides.append([len(rows) + len(stretches) + place for place in range(len(spans))])
            stretches += [row | {"start_s": start_s, "end_s": end_s} for start_s, end_s in spans]
        places.append((sides[0], sides[1]))
    return datasets.Dataset(to_arrow(rows + stretches, windows.features), info=windows.info.copy()), places


def refuse_shared_recordings(splits: Any, split: str, protocol: str) -> None:
    """Refuse a split that shares recordings with others."""
    own = set(column_of(splits[split], "recording_id"))
    for name, table in splits.items():
        if name != split and own & set(column_of(table, "recording_id")):
            raise InputError(
                f"windows of {split} would hold the sound of cycles of {name}, because protocol {protocol} splits "
                "recordings; choose a protocol that keeps recordings whole, or take events"
            )


def fit_window_points(
    model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, recipe: Recipe, splits: Any, rule: Any
) -> tuple[Any, dict[str, Any] | None]:
    """Predict the validation windows of the default length, and fit calibration and thresholds for windows on them.

    Returns:
        The predictions table of the windows, and the points by name as in the run record; None and None if the rule
        fits nothing, the model predicts whole recordings, or splits share recordings.
    """
    try:
        refuse_shared_recordings(splits, "validation", str(recipe.corpus.protocol))
    except InputError as error:
        _log.warning("nothing was fitted on validation windows: %s", error)
        return None, None
    if model.config.span == "recording" or (rule.calibration == "none" and rule.threshold_rule is None):
        return None, None
    span = model.config.span
    window_s, hop_s = window_lengths(extractor, None if isinstance(span, str) else span)
    table = predict_windows(model, extractor, splits["validation"], "validation", recipe, window_s, hop_s)
    points = fit_windows(table, model.config.label_names, model.config.is_multi_label, rule, window_s, hop_s)
    for name, fitted in points.items():
        for note in fitted["notes"]:
            _log.warning("%s: %s", name, note)
    model.config.operating_points = window_points_of(points)
    return table, points
