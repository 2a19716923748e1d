"""The settings of a run beside its answers, to be read and to be used again.

Decisions: one YAML file with two halves. `settings` are what somebody chose, and what `--parameters` takes as
defaults; `model` and `applied` are what came of it, and are never read back, so that the thresholds of one model cannot
become those of another. No time stamp: the same run writes the same file.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from laennec.audio.segmentation import BreathSegmentation
from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.untrusted import read_yaml

PARAMETERS = "parameters.yaml"
_HEAD = "# Written by laennec predict. --parameters FILE takes `settings` as defaults; flags override them.\n"


@dataclass
class Settings:
    """What somebody can choose about a prediction; None where nothing was.

    Attributes:
        window_s: Length of a window in seconds.
        hop_s: From window to window in seconds.
        annotation: The annotation file, or the folder of them.
        segment: Parameters of breath segmentation, by name; empty for its defaults.
        smoothing: "auto", "none" or a strength.
        smoothing_neighbours: Spans on either side that smoothing goes over; 0 for the whole recording.
        thresholds: Probabilities by label name.
        format: Names of formats.
    """

    window_s: float | None = None
    hop_s: float | None = None
    annotation: str | None = None
    segment: dict[str, float] | None = None
    smoothing: str | float | None = None
    smoothing_neighbours: int | None = None
    thresholds: dict[str, float] | None = None
    format: list[str] | None = None

    def over(self, other: "Settings") -> "Settings":
        """These settings, and those of `other` where nothing was chosen here."""
        chosen = {k: v for k, v in vars(self).items() if v is not None}
        # a place to look that is given anew replaces one of another kind
        if chosen.keys() & {"annotation", "segment"}:
            other = Settings(**{**vars(other), "annotation": None, "segment": None})
        return Settings(**{**vars(other), **chosen})

    def segmentation(self) -> BreathSegmentation | None:
        """The breath segmentation that was asked for.

        Raises:
            InputError: Its parameters cannot be.
        """
        if self.segment is None:
            return None
        try:
            return BreathSegmentation(**self.segment)
        except ValueError as error:
            raise InputError(f"segment: {error}") from error


def parse_thresholds(text: str) -> dict[str, float]:
    """`crackle=0.4,wheeze=0.2` as a dictionary.

    Raises:
        InputError: It says something else.
    """
    found: dict[str, float] = {}
    for item in text.split(","):
        name, sign, value = item.strip().partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError as error:
            raise InputError(f"--thresholds {text}: write LABEL=PROBABILITY, e.g. crackle=0.4,wheeze=0.2") from error
        if not sign or not name.strip():
            raise InputError(f"--thresholds {text}: write LABEL=PROBABILITY, e.g. crackle=0.4,wheeze=0.2")
    return found


def read_parameters(path: str | Path) -> tuple[Settings, str | None]:
    """The settings of an earlier run.

    Args:
        path: A `parameters.yaml`.

    Returns:
        The settings, and the fingerprint of the model they were used with, where the file says.

    Raises:
        InputError: It cannot be read, holds no settings, or one that there is not.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the parameters ({error.strerror}); check the path") from error
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: is no YAML ({said}); give the {PARAMETERS} of an earlier run") from error
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: has no `settings`; give the {PARAMETERS} of an earlier run")
    known = [f.name for f in fields(Settings)]
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(known)}"
            raise InputError(f"{path}: there is no setting {name!r}; {hint}")
        if value is not None and not _fits(name, value):
            raise InputError(f"{path}: {name} is {value!r}; it must be {_WANTED[name]}")
    model = content.get("model")
    fingerprint = model.get("fingerprint") if isinstance(model, dict) else None
    return Settings(**settings), fingerprint if isinstance(fingerprint, str) else None


_WANTED = {
    "window_s": "seconds",
    "hop_s": "seconds",
    "annotation": "a path",
    "segment": f"numbers by name ({', '.join(f.name for f in fields(BreathSegmentation))})",
    "smoothing": "auto, none or a strength",
    "smoothing_neighbours": "a whole number",
    "thresholds": "probabilities by label name",
    "format": "a list of names",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(name: str, value: Any) -> bool:
    """Whether a value that was read can be a setting's."""
    if name in ("window_s", "hop_s"):
        return _is_number(value)
    if name == "annotation":
        return isinstance(value, str)
    if name == "smoothing":
        return isinstance(value, str) or _is_number(value)
    if name == "smoothing_neighbours":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "format":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if not isinstance(value, dict) or not all(isinstance(k, str) and _is_number(v) for k, v in value.items()):
        return False
    return name == "thresholds" or value.keys() <= asdict(BreathSegmentation()).keys()


def write_parameters(path: Path, settings: Settings, model: Mapping[str, Any], applied: Mapping[str, Any]) -> Path:
    """Write the parameters of a run.

    Args:
        path: The file.
        settings: What was chosen.
        model: Which model answered: source, fingerprint, labels, decision.
        applied: What came of the settings.

    Raises:
        InputError: It cannot be written.
    """
    from laennec import __version__

    content = {"settings": vars(settings), "model": dict(model), "applied": dict(applied), "laennec": __version__}
    with atomic_write(path) as file:
        file.write(_HEAD)  # type: ignore[call-overload]
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True)
    return path
