"""A run's own record, and what of it is published.

Decisions: run.json is the card's only source; `laennec evaluate` writes into it what a card says of each scored
part. What is published is the same file without the training curves and without the folders of the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.errors import InputError, in_known_form
from laennec.hub.card_text import without_machine_paths
from laennec.training.recipe import Recipe
from laennec.training.record import read_record, shown_evaluations, write_record


@dataclass(frozen=True)
class Evidence:
    """What is known of a run.

    Attributes:
        run: The run record.
        evaluations: One {"evaluated", "metrics"} for each scored part, those of the model as it is now.
        outdated: Parts that were scored with another operating point than the model has now.
    """

    run: dict[str, Any]
    evaluations: list[dict[str, Any]]
    outdated: list[str]


def read_evidence(folder: str | Path) -> Evidence:
    """Read the record in a run's folder, or a published one.

    Raises:
        InputError: There is no run record, or it is torn.
    """
    path = Path(folder) / "run.json"
    run = read_record(path)
    if "config" not in run or "corpus" not in run:
        raise InputError(f"{path}: names no recipe and corpus; give the folder of a finished run")
    # settings that a record of an earlier version does not name have their defaults
    run["config"] = Recipe.from_record(run["config"], str(path)).to_dict()
    with in_known_form(path, "train the run again, or evaluate it again"):
        run["evaluations"] = shown_evaluations(run)
        results = {looked["folder"]: looked["result"] for looked in run["evaluations"] if looked.get("result")}
        found = [results[place] for place in sorted(results)]
        current = [entry for entry in found if _same(entry["metrics"], run.get("operating_points") or {})]
        outdated = [entry["evaluated"]["split"] for entry in found if entry not in current]
    return Evidence(run, current, outdated)


def write_evidence(evidence: Evidence, folder: str | Path) -> Path:
    """Write the small record that is published: run.json.

    Args:
        evidence: What `read_evidence` gave.
        folder: Gets the file.

    Returns:
        The folder.

    Raises:
        InputError: It cannot be written to.
    """
    run = {name: value for name, value in evidence.run.items() if name != "history"}
    write_record(Path(folder) / "run.json", without_machine_paths(run))
    return Path(folder)


def _same(metrics: Mapping[str, Any], fitted: Mapping[str, Any]) -> bool:
    """Whether thresholds and calibration are the same to rounding; what was not fitted is logit 0 and identity."""
    for kind, neutral in (("thresholds", 0.0), ("temperatures", 1.0), ("intercepts", 0.0)):
        one, other = metrics.get(kind) or {}, fitted.get(kind) or {}
        if any(abs(one.get(n, neutral) - other.get(n, neutral)) > 1e-4 for n in {*one, *other}):
            return False
    return True
