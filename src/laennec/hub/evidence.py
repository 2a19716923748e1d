"""What a run's record states: its settings, its scores and what it used.

Decisions: the published record is run.json without training curves and without the folders of the machine. Losses,
encoders and corpora state their own citation; templates/citations.yaml has those of methods without a class.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from laennec.corpora.load import find_corpus
from laennec.encoders import encoder_class
from laennec.errors import InputError, in_known_form
from laennec.training.recipe import Recipe
from laennec.training.record import read_record, shown_evaluations, write_record

_ROOT = r"(?:~|[A-Za-z]:)?[/\\]"  # the start of an absolute path
_PATHS = re.compile(
    rf"^(?P<whole>{_ROOT}.+)$|(?P<mark>['\"])(?P<quoted>{_ROOT}[^'\"]+)(?P=mark)"
    rf"|(?P<before>[\s=(\[,])(?P<bare>{_ROOT}[^\s'\",;()\[\]]+)"
)


@dataclass(frozen=True)
class Evidence:
    """What a run's record states."""

    run: dict[str, Any]  # the run record
    # {"evaluated", "metrics"} of each split that was scored with the present operating point
    evaluations: list[dict[str, Any]]
    outdated: list[str]  # splits that were scored with another operating point


def read_evidence(folder: str | Path) -> Evidence:
    """Read the record in a run's folder, or a published record."""
    path = Path(folder) / "run.json"
    run = read_record(path)
    if "evaluated" in run:
        raise InputError(f"{folder}: holds the results of an evaluation; give the folder of the run")
    if "config" not in run or "corpus" not in run:
        raise InputError(f"{path}: has no recipe or no corpus; give the folder of a finished run")
    # settings that an older record lacks get their defaults
    run["config"] = Recipe.from_record(run["config"], str(path)).to_dict()
    with in_known_form(path, "train the run again, or evaluate it again"):
        run["evaluations"] = shown_evaluations(run)
        results = {scored["folder"]: scored["result"] for scored in run["evaluations"] if scored.get("result")}
        found = [results[place] for place in sorted(results)]
        for entry in found:
            if before := entry["metrics"].pop("bootstrap", None):  # of an older version
                entry["metrics"]["uncertainty"] = {"method": "percentiles of bootstrap draws", **before}
        current = [entry for entry in found if _same_decision(entry["metrics"], run.get("operating_points") or {})]
        outdated = [entry["evaluated"]["split"] for entry in found if entry not in current]
    return Evidence(run, current, outdated)


def write_evidence(evidence: Evidence, folder: str | Path) -> Path:
    """Write the record that is published: run.json without training curves and without paths of this machine."""
    run = {name: value for name, value in evidence.run.items() if name != "history"}
    write_record(Path(folder) / "run.json", without_machine_paths(run))
    return Path(folder)


def _same_decision(metrics: Mapping[str, Any], fitted: Mapping[str, Any]) -> bool:
    """Whether thresholds and calibration are equal up to rounding; a missing value is logit 0 or the identity."""
    for kind, neutral in (("thresholds", 0.0), ("temperatures", 1.0), ("intercepts", 0.0), ("second_thresholds", 0.0)):
        one, other = metrics.get(kind) or {}, fitted.get(kind) or {}
        if any(abs(one.get(n, neutral) - other.get(n, neutral)) > 1e-4 for n in {*one, *other}):
            return False
    return True


def without_machine_paths(value: Any) -> Any:
    """Plain values with the folders of absolute paths cut: "/home/me/data/sprsound" becomes ".../sprsound"."""
    if isinstance(value, Mapping):
        return {k: without_machine_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_machine_paths(v) for v in value]
    if not isinstance(value, str) or "://" in value:
        return value
    return _PATHS.sub(_without_folders, value)


def _without_folders(found: re.Match[str]) -> str:
    path = found["whole"] or found["quoted"] or found["bare"]
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    mark = found["mark"] or ""
    return f"{found['before'] or mark}.../{last}{mark}"


def citations_of(run: Mapping[str, Any]) -> list[str]:
    """BibTeX entries of what a run used, each once: corpus, encoder, losses, methods."""
    config = run["config"]
    encoder, augment = config["encoder"], config.get("augment") or {}
    mix, fitted = augment.get("mix") or {}, run.get("operating_points") or {}
    corpus, kind = find_corpus(config["corpus"]["name"]), encoder_class(encoder)
    audioset = "AudioSet" in getattr(kind, "title", "") and encoder.get("weights") and not run.get("pretraining")
    first = [*(["audioset"] if audioset else []), *(["lora"] if encoder.get("trainable") == "lora" else [])]
    then = [mix.get("method"), *(["lungmix"] if mix.get("labels") == "lungmix" else [])]
    then += [name for name, used in (
        ("spec_augment", augment.get("spec")),
        ("pretrain", run.get("pretraining")),
        ("sam", config["train"].get("sam_rho") is not None),
    ) if used]  # fmt: skip
    then.append(fitted.get("calibration") or ("temperature" if fitted.get("temperatures") else None))
    known = _citations()
    entries = [str(getattr(owner, "citation", "") or "") for owner in (corpus, kind)]
    entries += [known[key] for key in first if key in known] + _loss_citations(config)
    entries += [known[key] for key in then if key in known]
    return list(dict.fromkeys(entry.strip() for entry in entries if entry))


@cache
def _citations() -> dict[str, str]:
    text = resources.files("laennec").joinpath("templates/citations.yaml").read_text(encoding="utf-8")
    entries: dict[str, str] = yaml.safe_load(text)
    return entries


def _loss_citations(config: Mapping[str, Any]) -> list[str]:
    from laennec.losses import AUXILIARY_LOSSES, FocalLoss, PatchMixContrastiveLoss

    loss, found = config["loss"], []
    if loss["task"] == "focal":
        found.append(FocalLoss.citation)
    for name, given in (loss.get("auxiliary") or {}).items():
        kind = (given or {}).get("loss", name)
        found.append(str(getattr(AUXILIARY_LOSSES.get(kind), "citation", "") or ""))
        if kind == "supcon" and loss.get("task_views") == "all":
            found.append(_citations()["hybrid"])
        if (given or {}).get("detach_other_views"):
            found.append(_citations()["stethoscope"])
    if ((config.get("augment") or {}).get("mix") or {}).get("method") == "patch_mix":
        found.append(PatchMixContrastiveLoss.citation)
    return found
