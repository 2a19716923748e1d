"""What is said of a model beside its answers.

Decisions: where thresholds come from is said by the model itself or by the run record beside it, and a record is
believed only where its thresholds are the model's; nothing is guessed.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification
from laennec.training.record import read_record


@dataclass(frozen=True)
class ModelFacts:
    """What the page says of the model.

    Attributes:
        name: What the model was called when the page was started.
        labels: Label names.
        multi_label: Whether each label is decided by itself.
        thresholds: Probability above which each label counts as heard; empty where the most probable label is answered.
        origin: Where the thresholds come from, a sentence.
        notes: Further sentences.
    """

    name: str
    labels: list[str]
    multi_label: bool
    thresholds: dict[str, float]
    origin: str
    notes: list[str] = field(default_factory=list)


def model_facts(model: LaennecForAudioClassification, source: str | Path) -> ModelFacts:
    """What the page says of a model: labels, thresholds, and how those came about.

    Args:
        model: The model.
        source: Where it was loaded from; a run record there (or above an export in its run) says how it was fitted.
    """
    config = model.config
    labels = config.label_names
    if not config.is_multi_label:
        return ModelFacts(_name_of(source), labels, False, {}, "The most probable label is answered; no threshold.")
    thresholds = {label: config.thresholds.get(label, 0.5) for label in labels}
    return ModelFacts(_name_of(source), labels, True, thresholds, _origin(config.thresholds, _fitted(model, source)))


def _record(source: str | Path) -> dict[str, Any]:
    """The run record of a run, or of the run that an export lies in; empty without one."""
    for folder in (Path(source), Path(source).resolve().parent):
        with contextlib.suppress(InputError):
            return read_record(folder / "run.json")
    return {}


def _name_of(source: str | Path) -> str:
    """What a model is called: as its recipe, its folder, or on the Hub."""
    if not Path(source).exists():
        return str(source)
    return str(_record(source).get("name") or Path(source).resolve().name)


def _fitted(model: LaennecForAudioClassification, source: str | Path) -> dict[str, Any]:
    """How the thresholds came about: as the model says, and the run record beside it; empty where neither does."""
    record = _record(source)
    found = dict(record.get("operating_points") or {})
    mine, theirs = model.config.thresholds, found.get("threshold_probabilities") or {}
    if mine and all(abs(theirs.get(name, 2.0) - value) < 1e-6 for name, value in mine.items()):
        return {**found, "corpus": (record.get("corpus") or {}).get("name")}
    return dict(model.config.operating_point)


def _origin(thresholds: Mapping[str, float], fitted: Mapping[str, Any]) -> str:
    """Where thresholds come from, in a sentence."""
    if not thresholds:
        return "No threshold was fitted for this model: a label counts as heard above 0.5."
    if not fitted:
        return (
            "The thresholds were fitted on validation patients when the model was trained; this copy of it does not "
            "say by which rule."
        )
    on = fitted.get("fitted_on") or {}
    counts = f"{on['cycles']} cycles of {on['patients']} patients" if {"cycles", "patients"} <= set(on) else "patients"
    corpus = f" of {fitted['corpus']}" if fitted.get("corpus") else ""
    rule = f" by the rule {fitted['rule']}" if fitted.get("rule") else ""
    return f"The thresholds were fitted on {counts} in the validation part{corpus}{rule}; no test part had a say."
