"""What a score owes to things that are not the sound's content.

Decisions: level and bandwidth of every cycle go into the predictions table, where the floors read them. The
duration-blind control asks the same model about stretches of one length around the middle of each cycle, so that nobody
can tell cycles apart by how long they were cut; the length is one that nearly all training cycles have, and what is
shorter takes in the sound around it. What a model loses there it owed to length, or to what a stretch leaves out: an
upper bound, not an estimate.
"""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from laennec.audio.facts import bandwidth_hz, level_db
from laennec.corpora import CycleWaveforms
from laennec.corpora.base import to_arrow
from laennec.evaluation.predictions import point_values, read_predictions
from laennec.training.recipe import Recipe
from laennec.training.split_data import make_filter

COLUMNS = ("level_db", "bandwidth_hz")
_QUANTILE = 0.05
_SHOWN = ("icbhi.Score", "any_abnormal.Score", "sprsound.Score", "roc_auc_macro")


def sound_facts(table: Any, sampling_rate: int, recipe: Recipe) -> dict[str, list[float]]:
    """Level and bandwidth of each cycle as the model hears it: columns for a predictions or truth table.

    Args:
        table: Cycle table.
        sampling_rate: The front end's, in Hz.
        recipe: Its features.filter_kind is applied first.
    """
    waveforms = CycleWaveforms(table, sampling_rate, filter=make_filter(recipe.features))
    waveforms.prepare()
    levels, bandwidths = [], []
    for samples in waveforms:
        levels.append(level_db(np.asarray(samples)))
        bandwidths.append(bandwidth_hz(np.asarray(samples), sampling_rate))
    return {"level_db": levels, "bandwidth_hz": bandwidths}


def blind_length_s(table: Any) -> float:
    """The length that 95 % of a part's cycles have, in seconds."""
    lengths = np.asarray(table["end_s"]) - np.asarray(table["start_s"])
    return float(np.round(np.quantile(lengths, _QUANTILE), 3))


def centred(table: Any, seconds: float) -> Any:
    """Every cycle as the stretch of one length around its middle, within its recording.

    Args:
        table: Cycle table; a recording is taken to reach as far as its last cycle.
        seconds: How long.
    """
    rows = table.with_format("arrow")[:].to_pylist()
    ends: dict[str, float] = {}
    for row in rows:
        ends[row["recording_id"]] = max(ends.get(row["recording_id"], 0.0), row["end_s"])
    moved = []
    for row in rows:
        start = (row["start_s"] + row["end_s"] - seconds) / 2
        start = max(0.0, min(start, ends[row["recording_id"]] - seconds))
        moved.append({**row, "start_s": start, "end_s": min(start + seconds, ends[row["recording_id"]])})
    return datasets.Dataset(to_arrow(moved, table.features), info=table.info.copy())


def duration_blind(predictions: Any, seconds: float, reading: Mapping[str, Any]) -> dict[str, Any]:
    """Scores on stretches of one length.

    Args:
        predictions: Predictions table of the cycles that `centred` gave.
        seconds: Length of the stretches.
        reading: How the table is read, as `reading_of` gives it.

    Returns:
        {"seconds", "cycles", "values": {figure: value}} with the scores and the AUROC of every label.
    """
    values = point_values(read_predictions(predictions, **reading))
    kept = [name for name in values if name in _SHOWN or name.endswith(".roc_auc")]
    return {"seconds": seconds, "cycles": len(predictions), "values": {name: values[name] for name in kept}}
