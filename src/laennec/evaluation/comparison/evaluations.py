"""Reading the folder of an evaluation, as `laennec evaluate` writes it.

Decisions: the metrics are computed again from the predictions, and a folder whose files belong to different evaluations
is refused.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from laennec.errors import InputError, in_known_form
from laennec.evaluation.predictions import Predictions, point_values, read_evaluated
from laennec.evaluation.summary import own_names
from laennec.training.record import read_record

_METRICS = (
    "problem_type", "output_names", "label_names", "thresholds", "values", "counts", "headline", "bootstrap",
    "intervals", "calibration", "subgroups", "floors", "definitions", "notes", "warnings",
)  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as it was written."""

    folder: Path  # its folder
    run: dict[str, Any]  # its record (run.json): the run's own, with what was scored under "evaluated"
    metrics: dict[str, Any]  # what `evaluate_predictions` returned, and geometry
    table: Any  # the predictions table
    predictions: Predictions  # the same as arrays, decided and calibrated as in the metrics

    @property
    def split(self) -> str:
        """The scored split."""
        return str(self.run["evaluated"]["split"])

    @property
    def origin(self) -> dict[str, Any]:
        """Provenance of the scored corpus."""
        return dict((self.run["evaluated"].get("corpus") or {}).get("provenance") or {})


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read an evaluation, and check that its files belong together."""
    folder = Path(folder)
    run, metrics = read_record(folder / "run.json"), read_record(folder / "metrics.json")
    absent = [name for name in _METRICS if name not in metrics]
    if absent or not isinstance(run.get("evaluated"), dict) or "split" not in run["evaluated"]:
        what = f"metrics.json lacks {absent[0]}" if absent else "run.json does not say what was scored"
        raise InputError(f"{folder}: {what}; evaluate the run again")
    path = folder / "predictions.parquet"
    if not path.exists():
        raise InputError(f"{path}: missing; evaluate the run again")
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises many kinds of errors for damaged files
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: no readable predictions table ({reason}); evaluate the run again") from error
    with in_known_form(folder, "evaluate the run again"):
        predictions = read_evaluated(table, metrics)
        _check(folder, metrics, predictions)
    return Evaluation(folder, run, metrics, table, predictions)


def _check(folder: Path, metrics: dict[str, Any], predictions: Predictions) -> None:
    """Refuse metrics that are not those of the predictions; own metrics would need the user's code."""
    again, own = point_values(predictions), own_names(metrics)
    for name, value in metrics["values"].items():
        other = again.get(name)
        same = value == other if value is None or other is None else math.isclose(value, other, abs_tol=1e-6)
        if not same and name not in own:
            raise InputError(
                f"{folder}: metrics.json and predictions.parquet do not belong together ({name!r} is {value!r}, from "
                f"the predictions {other}); evaluate the run again"
            )
