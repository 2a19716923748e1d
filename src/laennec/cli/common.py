"""Options that several commands share."""

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laennec.errors import InputError


def without_library_bars() -> None:
    """Disable the progress bars of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Parse `--key value` and `--key=value` pairs."""
    given: dict[str, str] = {}
    items = iter(arguments)
    for item in items:
        if not item.startswith("--"):
            raise InputError(
                f"command line: {item!r} is not a setting; write --section.key VALUE, e.g. --train.epochs 5"
            )
        key, sign, value = item[2:].partition("=")
        if not sign:
            following = next(items, None)
            if following is None:
                near = difflib.get_close_matches(key, ("overwrite", "debug", "search"), n=1)
                meant = f"did you mean --{near[0]}?" if near else f"write --{key} VALUE"
                raise InputError(f"command line: --{key} has no value; {meant}")
            value = following
        given[key] = value
    return given


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add `--overwrite`, for a command that writes one file."""
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def refuse_existing(path: str, overwrite: bool) -> None:
    """Refuse to replace a file before anything is computed."""
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: is there already; choose another --out, or pass --overwrite to replace it")


def refuse_missing_model(name: str) -> None:
    """Refuse a model that is neither a folder here nor a Hub id, before anything is imported."""
    place = Path(name)
    if place.exists():
        return
    folder = place.parent if place.parent.is_dir() else Path()
    wanted, here = (place.name, folder) if folder == place.parent else (place.parts[0], Path())
    near = difflib.get_close_matches(wanted, [p.name for p in here.iterdir() if p.is_dir()], n=1)
    below = () if folder == place.parent else place.parts[1:]
    meant = here.joinpath(*near, *below) if near else None
    is_hub_id = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not place.parent.is_dir()
    if meant is not None and meant.exists():
        raise InputError(f"{name}: no such run or model; did you mean {meant}?")
    if not is_hub_id:
        raise InputError(f"{name}: no such run or model; give the folder of a run or an exported model, or a Hub id")


def refuse_missing_files(recipe: Any) -> None:
    """Refuse a recipe whose recordings or released checkpoint are not there, before anything is imported or decoded."""
    for one in recipe.corpus.each:
        data, name = one.data_dir, one.name
        if data and "://" not in data and name not in ("synthetic", "hub") and not Path(data).expanduser().exists():
            flag = f"--corpus.{name}.data_dir" if recipe.corpus.corpora else "--corpus.data_dir"
            raise InputError(
                f"{data}: no such folder or archive; set {flag} (`laennec prepare {name}` says where to get it)"
            )
    weights = recipe.encoder.weights
    if weights and Path(weights).suffix in (".pt", ".pth", ".safetensors") and not Path(weights).expanduser().exists():
        from laennec.encoders import ENCODERS

        released = [
            ENCODERS[kind] for kind in (recipe.encoder.type, "mobilenet", "beats", "audiomae") if kind in ENCODERS
        ]
        places = [f"{kind.kind} {kind.homepage} ({kind.licence})" for kind in dict.fromkeys(released) if kind.homepage]
        raise InputError(f"{weights}: no such file; set --encoder.weights to the released file: {', '.join(places)}")


_MODEL = "folder of a run, folder of an exported model, or Hub id"
_OPTIONS: dict[str, dict[str, Any]] = {
    "--base": {"help": "folder or file of the base encoder of a head-only model"},
    "--base-name": {"help": "name of the base encoder in a head or lora export, e.g. its Hub id"},
    "--base-revision": {"help": "commit, tag or branch of the base encoder"},
    "--backend": {
        "default": "auto",
        "help": "what runs the network: torch, onnx (onnxruntime; a model without an ONNX file is exported once), or "
        "auto (default): the ONNX file in the model's folder where there is one and no GPU, torch otherwise",
    },
    "--window-s": {"type": float, "help": "length of a window in seconds (default: as in laennec predict)"},
    "--hop-s": {
        "type": float,
        "help": "time from the start of one window to the start of the next, in seconds (default: half a window)",
    },
    "--data-dir": {"help": "folder of the corpus (default: as in the run)"},
    "--tables-dir": {
        "help": "folder with the split, demographics and diagnosis tables (default: beside the recordings)"
    },
    "--protocol": {"help": "rule that splits the corpus, e.g. official or patient-60-20-20"},
    "--fold": {"type": int, "help": "test fold, for protocols with folds"},
    "--level": {
        "help": "what one row is; icbhi2017, folder: event (default) or recording; sprsound: event (default) or "
        "record; physionet2016: recording (default) or window"
    },
    "--allow-missing": {
        "action": "store_true", "default": None, "help": "continue if recordings of the published corpus are missing",
    },
    "--option": {
        "action": "append", "default": [], "metavar": "KEY=VALUE",
        "help": "option of a corpus, e.g. patients=16, annotations=cycles.csv, window_s=5, fold_column=fold; "
        "repeatable",
    },
    "--smoothing": {
        "metavar": "auto|none|W",
        "help": "smooth predictions: mix the logits of each span with the mean of its recording, with weight W from 0 "
        "to 1, or auto for the weight chosen on validation (default: the model's own, for annotated spans)",
    },
    "--jobs": {
        "type": int, "default": 1, "metavar": "N",
        "help": "work in N processes (default: 1); the results are the same for any N",
    },
    "--engine": {
        "choices": ("processes", "ray"), "default": "processes",
        "help": "ray: work on a Ray cluster (RAY_ADDRESS, or one started here) with --jobs actors; recordings and "
        "--out can be addresses (s3://, gs://, hf://) (default: processes)",
    },
}  # fmt: skip
CORPUS = ("--tables-dir", "--fold", "--level", "--allow-missing")


def add_options(parser: argparse.ArgumentParser, *names: str, **changes: Any) -> None:
    """Add options that several commands share; `changes` replace their settings."""
    for name in names:
        parser.add_argument(name, **_OPTIONS[name] | changes)


def add_model(parser: argparse.ArgumentParser, name: str, **settings: Any) -> None:
    """Add the argument for a model."""
    default = " (default: the model in the package)" if "default" in settings else ""
    parser.add_argument(name, help=f"model: {_MODEL}{default}", **settings)


def add_paths(parser: argparse.ArgumentParser, further: str = "") -> None:
    """Add the model and the recordings; `further` names other inputs."""
    text = f"the model ({_MODEL}; default: the model in the package), then audio files or folders of audio files"
    parser.add_argument("paths", nargs="+", metavar="PATH", help=text + further)


def chosen(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options by name, to be passed on as arguments."""
    return {name: getattr(options, name) for name in names}


def refuse_addresses(options: argparse.Namespace) -> None:
    """Refuse addresses where a path on this machine is needed."""
    places = [*options.paths, options.out or ""]
    if options.engine != "ray" and (found := next((name for name in places if "://" in name), None)):
        raise InputError(f"{found}: an address, which only --engine ray can read and write; add it, or give a path")
    if options.annotation and "://" in options.annotation:
        raise InputError(f"--annotation {options.annotation}: it must be a path that every machine has; copy it there")
