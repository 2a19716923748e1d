"""The settings of a prediction, saved beside its results so that they can be read and used again.

Decisions: one YAML file. `settings` are the chosen values, which `--parameters` takes as defaults. `model` and
`applied` record what resulted from them and are never read back, so the thresholds of one model cannot become those
of another. There is no time stamp: the same run writes the same file.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict

from laennec.audio.segmentation import BreathSegmentation
from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.sections import Section
from laennec.untrusted import read_mapping

PARAMETERS = "laennec.parameters.yaml"
_HEAD = "# Written by laennec predict. --parameters FILE takes `settings` as defaults; flags override them.\n"


class Settings(Section):
    """The settings of a prediction; None for a setting that was not given."""

    model_config = ConfigDict(strict=True, frozen=False)  # predict fills in what the model decides

    window_s: float | None = None  # length of a window in seconds
    hop_s: float | None = None  # time from the start of one window to the start of the next, in seconds
    annotation: str | None = None  # the annotation file, or a folder of annotations
    segment: dict[str, float] | None = None  # parameters of breath segmentation, by name; empty for its defaults
    smoothing: str | float | None = None  # "auto", "none" or a weight
    smoothing_neighbours: int | None = None  # number of spans on either side in the mean; 0 for the whole recording
    thresholds: dict[str, float] | None = None  # probabilities by label name
    format: list[str] | None = None  # names of formats

    def over(self, other: "Settings") -> "Settings":
        """These settings, with those of `other` where a setting was not given here."""
        chosen = self.model_dump(exclude_none=True)
        # --annotation replaces an earlier --segment, and the other way round
        if chosen.keys() & {"annotation", "segment"}:
            other = other.model_copy(update={"annotation": None, "segment": None})
        if self.smoothing == "none":
            other = other.model_copy(update={"smoothing_neighbours": None})
        return other.model_copy(update=chosen)

    def segmentation(self) -> BreathSegmentation | None:
        """The breath segmentation of these settings."""
        if self.segment is None:
            return None
        try:
            return BreathSegmentation(**self.segment)
        except (TypeError, ValueError) as error:
            names = ", ".join(field.name for field in fields(BreathSegmentation))
            raise InputError(f"segment: {error}; the parameters are {names}") from error


def parse_thresholds(text: str) -> dict[str, float]:
    """Parse `crackle=0.4,wheeze=0.2`."""
    try:
        pairs = [(name.strip(), float(value)) for name, value in (item.split("=") for item in text.split(","))]
        if len(dict(pairs)) == len(pairs):
            return dict(pairs)
    except ValueError:
        pass
    raise InputError(f"--thresholds {text}: write LABEL=PROBABILITY, each label once, e.g. crackle=0.4,wheeze=0.2")


def read_parameters(path: str | Path) -> tuple[Settings, str | None]:
    """Read the settings of an earlier prediction."""
    remedy = f"give the {PARAMETERS} of an earlier prediction"
    content = read_mapping(path, "parameters", remedy)
    settings = content.get("settings")
    if not isinstance(settings, dict):
        raise InputError(f"{path}: has no `settings`; {remedy}")
    chosen = Settings.checked(settings, path)
    model = content.get("model")
    fingerprint = model.get("fingerprint") if isinstance(model, dict) else None
    return chosen, fingerprint if isinstance(fingerprint, str) else None


def write_parameters(path: Path, settings: Settings, model: Mapping[str, Any], applied: Mapping[str, Any]) -> Path:
    """Write the settings of a prediction."""
    from laennec import __version__

    content = {
        "settings": settings.model_dump(),
        "model": dict(model),
        "applied": dict(applied),
        "laennec": __version__,
    }
    with atomic_write(path) as file:
        file.write(_HEAD)  # type: ignore[call-overload]
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
    return path
