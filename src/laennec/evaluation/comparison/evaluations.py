"""Find and read the folders of evaluations that `laennec evaluate` writes.

Decisions: where several splits were scored, the split must be named. Metrics are computed again from the predictions,
and a folder whose files belong to different evaluations is refused. Slow modules are imported when a folder is read, so
that a command refuses a wrong folder at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laennec.errors import InputError, in_known_form

if TYPE_CHECKING:
    from laennec.evaluation.predictions import Predictions

_PREFIX = "evaluation-"
_METRICS = (
    "problem_type", "output_names", "label_names", "thresholds", "values", "counts", "headline", "uncertainty",
    "intervals", "calibration", "subgroups", "floors", "definitions", "notes", "warnings",
)  # fmt: skip


def evaluation_folder(source: str | Path, split: str | None = None) -> Path:
    """The folder of an evaluation."""
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the folder of a run, or of an evaluation")
    if (source / "metrics.json").exists():
        own = source.name.removeprefix(_PREFIX)
        if split is not None and source.name.startswith(_PREFIX) and own != split:
            raise InputError(
                f"{source}: an evaluation of {own}, not of {split}; give the run's folder, or leave split (--split) out"
            )
        return source
    found = _scored_splits(source)
    if split is not None and split not in found:
        there = f"scored splits: {', '.join(found)}" if found else "it was not scored yet"
        raise InputError(f"{source}: no evaluation of {split} ({there}); run laennec evaluate {source} --split {split}")
    if split is None and len(found) != 1:
        if found:
            listed = ", ".join(found)
            raise InputError(f"{source}: several splits were scored ({listed}); name one: split (--split) {found[0]}")
        raise InputError(f"{source}: no evaluation there; run laennec evaluate {source}")
    return source / f"{_PREFIX}{split or found[0]}"


def _scored_splits(source: Path) -> list[str]:
    return sorted(path.parent.name.removeprefix(_PREFIX) for path in source.glob(f"{_PREFIX}*/metrics.json"))


def compared_folders(sources: Sequence[str | Path], split: str | None = None) -> list[Path]:
    """The folders of the evaluations of several runs on one split; None: the one that all were scored on."""
    if len(sources) < 2:
        raise InputError("a comparison needs two runs or more; give their folders, the baseline first")
    split = split or _common_split(sources)
    return [evaluation_folder(source, split) for source in sources]


def _common_split(sources: Sequence[str | Path]) -> str | None:
    """The one split that all of several runs were scored on; None where there is none."""
    scored = []
    for source in map(Path, sources):
        if (source / "metrics.json").exists():
            if source.name.startswith(_PREFIX):
                scored.append({source.name.removeprefix(_PREFIX)})
        elif splits := _scored_splits(source):
            scored.append(set(splits))
    shared = sorted(set.intersection(*scored)) if scored else []
    if len(shared) > 1:
        raise InputError(f"these runs were all scored on {', '.join(shared)}; name one: split (--split) {shared[0]}")
    return shared[0] if shared else None


@dataclass(frozen=True)
class Evaluation:
    """A stored evaluation."""

    folder: Path  # its folder
    run: dict[str, Any]  # its record (run.json): the run's own, with what was scored under "evaluated"
    metrics: dict[str, Any]  # what `evaluate_predictions` returned, and geometry
    predictions: "Predictions"  # the predictions table as arrays, decided and calibrated as in the metrics

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the run, as this version of laennec would record them."""
        from laennec.training.recipe import Recipe

        return Recipe.from_record(self.run.get("config") or {}, f"{self.folder}/run.json").identity()

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
    from laennec.evaluation.predictions import read_evaluated, stored_predictions
    from laennec.training.record import read_record

    folder = Path(folder)
    run, metrics = read_record(folder / "run.json"), read_record(folder / "metrics.json")
    absent = [name for name in _METRICS if name not in metrics]
    if absent or not isinstance(run.get("evaluated"), dict) or "split" not in run["evaluated"]:
        what = f"metrics.json lacks {absent[0]}" if absent else "run.json does not say what was scored"
        raise InputError(f"{folder}: {what}; evaluate the run again")
    path = folder / "predictions.parquet"
    if not path.exists():
        raise InputError(f"{path}: missing; evaluate the run again")
    table = stored_predictions(path, "evaluate the run again")
    with in_known_form(folder, "evaluate the run again"):
        predictions = read_evaluated(table, metrics)
        _check(folder, metrics, predictions)
    return Evaluation(folder, run, metrics, predictions)


def _check(folder: Path, metrics: dict[str, Any], predictions: "Predictions") -> None:
    """Refuse metrics that do not follow from the predictions; own metrics are not checked (user code)."""
    from laennec.evaluation.predictions import point_values
    from laennec.evaluation.summary import own_names

    again, own = point_values(predictions), own_names(metrics)
    for name, value in metrics["values"].items():
        other = again.get(name)
        same = value == other if value is None or other is None else math.isclose(value, other, abs_tol=1e-6)
        if not same and name not in own:
            raise InputError(
                f"{folder}: metrics.json and predictions.parquet do not belong together ({name!r} is {value!r}, from "
                f"the predictions {other}); evaluate the run again"
            )
