"""What `laennec evaluate` left in a folder, found and read once for report and comparison.

Decisions: an evaluation is its record, its metrics and its predictions together, and they must agree: the figures
are computed again from the predictions, and a folder whose files are not of one evaluation is refused. Nothing is
guessed where several parts were scored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from laennec.errors import InputError, in_known_form
from laennec.evaluation.pictures import evaluated_answers
from laennec.evaluation.predictions import Answers, point_values
from laennec.evaluation.summary import own_names
from laennec.training.record import read_record

_PREFIX = "evaluation-"
_METRICS = ("problem_type", "output_names", "label_names", "thresholds", "values", "counts", "headline", "bootstrap")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as it was written.

    Attributes:
        folder: Where it lies.
        run: Its record (run.json): the run's own, with what was scored under "evaluated".
        metrics: What `evaluate_predictions` returned, and geometry.
        predictions: The predictions table.
        answers: The same as arrays, decided and calibrated as the metrics say.
    """

    folder: Path
    run: dict[str, Any]
    metrics: dict[str, Any]
    predictions: Any
    answers: Answers

    @property
    def split(self) -> str:
        """The part that was scored."""
        return str(self.run["evaluated"]["split"])

    @property
    def origin(self) -> dict[str, Any]:
        """Provenance of the corpus that was scored."""
        return dict((self.run["evaluated"].get("corpus") or {}).get("provenance") or {})


def evaluation_folder(source: str | Path, split: str | None = None) -> Path:
    """The folder of an evaluation.

    Args:
        source: A run's folder, or the evaluation's own.
        split: The part; None where there is only one.

    Raises:
        InputError: No such folder, no evaluation there, or several and no part named.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: there is no such folder; give the folder of a run, or of an evaluation")
    if (source / "metrics.json").exists():
        own = source.name.removeprefix(_PREFIX)
        if split is not None and source.name.startswith(_PREFIX) and own != split:
            raise InputError(
                f"{source}: is an evaluation of {own}, not of {split}; give the run's folder, or no --split"
            )
        return source
    found = _parts(source)
    if split is not None and split not in found:
        there = f"scored parts: {', '.join(found)}" if found else "it was not scored yet"
        raise InputError(f"{source}: no evaluation of {split} ({there}); run laennec evaluate {source} --split {split}")
    if split is None and len(found) != 1:
        if found:
            raise InputError(f"{source}: several parts were scored ({', '.join(found)}); say which: --split {found[0]}")
        raise InputError(f"{source}: no evaluation there; run laennec evaluate {source}")
    return source / f"{_PREFIX}{split or found[0]}"


def _parts(source: Path) -> list[str]:
    """The parts of a run that were scored."""
    return sorted(path.parent.name.removeprefix(_PREFIX) for path in source.glob(f"{_PREFIX}*/metrics.json"))


def common_split(sources: Sequence[str | Path]) -> str | None:
    """The one part that all of several runs were scored on; None where there is none.

    An evaluation's own folder counts as scored on its part alone.

    Raises:
        InputError: Several parts in common.
    """
    scored = []
    for source in map(Path, sources):
        if (source / "metrics.json").exists():
            if source.name.startswith(_PREFIX):
                scored.append({source.name.removeprefix(_PREFIX)})
        elif parts := _parts(source):
            scored.append(set(parts))
    shared = sorted(set.intersection(*scored)) if scored else []
    if len(shared) > 1:
        raise InputError(
            f"these runs were all scored on {', '.join(shared)}; say on which to compare: --split {shared[0]}"
        )
    return shared[0] if shared else None


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read an evaluation, and check that its files belong together.

    Raises:
        InputError: A file is missing, damaged or of another evaluation.
    """
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
        predictions = pd.read_parquet(path)
    except Exception as error:  # pyarrow has an error of its own for every way of being broken
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{path}: no readable predictions table ({said}); evaluate the run again") from error
    with in_known_form(folder, "evaluate the run again"):
        answers = evaluated_answers(predictions, metrics)
        _check(folder, metrics, answers)
    return Evaluation(folder, run, metrics, predictions, answers)


def _check(folder: Path, metrics: dict[str, Any], answers: Answers) -> None:
    """Refuse metrics that are not those of the predictions."""
    again, own = point_values(answers), own_names(metrics)  # own metrics need the user's code, which is not run here
    for name, value in metrics["values"].items():
        if name in own:
            continue
        other = again.get(name)
        same = value == other if value is None or other is None else math.isclose(value, other, abs_tol=1e-6)
        if not same:
            raise InputError(
                f"{folder}: metrics.json and predictions.parquet do not belong together ({name!r} is {value!r}, from "
                f"the predictions {other}); evaluate the run again"
            )
