"""Stage 11, study: the runs of a method answering together.

Decided here: members are averaged in calibrated log-odds (for one class of several: log-probabilities), each after its
own temperature, so that no member shouts the others down. Calibration and thresholds of the mean are fitted on the mean
of the members' stored validation predictions, as a run's own are; the scored part is averaged afterwards and looked at
once. Members must have been validated and scored on the same cycles.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laennec.errors import InputError
from laennec.evaluation.calibration import calibrated_logits, softmax
from laennec.study.derived import write_derived
from laennec.study.plan import Score
from laennec.training.config import recipe_from_dict
from laennec.training.record import read_record
from laennec.training.tables import fit_operating_point


def make_ensemble(method: str, runs: Sequence[Path], scores: Sequence[Score], output_dir: Path) -> Path:
    """Score the mean of several runs on every part that they were scored on.

    Args:
        method: What the runs are called in tables.
        runs: Folders of the runs, each scored on `scores`.
        scores: The parts.
        output_dir: The study's folder; the ensemble's is `<first run's parent>-ensemble`.

    Returns:
        A folder with an `evaluation-<part>` for each part, like that of a run.

    Raises:
        InputError: The runs answer other labels, or were not scored on the same cycles.
    """
    records = [read_record(run / "run.json") for run in runs]
    first = records[0]
    recipe = recipe_from_dict(first["config"], str(runs[0] / "run.json"))
    names, multi_label = list(first["labels"]), first["problem_type"] == "multi_label"
    if any(list(record["labels"]) != names for record in records):
        raise InputError(f"{method}: its runs answer other labels from seed to seed; they cannot be averaged")
    validation = _mean([run / "predictions-validation.parquet" for run in runs], records, names, multi_label)
    fitted = fit_operating_point(validation, names, multi_label, recipe.head)
    folder = output_dir / f"{runs[0].parent.name}-ensemble" / str(len(runs))
    title = f"{method}, {len(runs)} together"
    timings = added_timings([record["timings"] for record in records])
    for score in scores:
        places = [run / f"evaluation-{score.name}" for run in runs]
        predictions = _mean([place / "predictions.parquet" for place in places], records, names, multi_label)
        changes = {"name": title, "ensemble": [str(run) for run in runs], "timings": timings}
        write_derived(folder, runs[0], score, predictions, fitted, changes)
    return folder


def _mean(paths: Sequence[Path], records: Sequence[dict[str, Any]], names: list[str], multi_label: bool) -> Any:
    """A predictions table with the mean of the members' calibrated answers."""
    total, first = None, None
    for path, record in zip(paths, records, strict=True):
        table = pd.read_parquet(path)
        if first is None:
            first = table
        elif list(table["cycle_id"]) != list(first["cycle_id"]):
            raise InputError(f"{path}: other cycles than those of {paths[0]}; members must share their split")
        points = record.get("operating_points") or {}
        raw = np.column_stack([table[f"logit_{name}"].to_numpy(dtype=float) for name in names])
        logits = calibrated_logits(raw, names, points.get("temperatures"), points.get("intercepts"))
        answered = logits if multi_label else np.log(softmax(logits) + 1e-12)
        total = answered if total is None else total + answered
    assert first is not None and total is not None
    mean = total / len(paths)
    return first.assign(**{f"logit_{name}": mean[:, k] for k, name in enumerate(names)})


def added_timings(timings: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds of all members, by what they were spent on."""
    keys = {key for times in timings for key in times}
    return {key: round(sum(times.get(key, 0.0) for times in timings), 3) for key in sorted(keys)}
