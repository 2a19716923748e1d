"""Files of weights, read strictly.

Decisions: only tensors are read: safetensors, or a pickle that holds nothing else. Every name that is missing, left
over or of another shape is refused: an encoder that loads partly is a random one. Errors of torch and safetensors for
a broken file become one line that names the file. Nothing is downloaded but the configuration and the weights.
"""

import argparse
import contextlib
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from laennec.errors import InputError, hub_reason
from laennec.untrusted import read_json, refuse_index

# what transformers, torch and safetensors raise where a checkpoint cannot be found or read
LOADING_ERRORS = (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.PickleError, zipfile.BadZipFile)
_CODE = re.compile(r"GLOBAL (\w\S+)")
_NAMED = 4
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def released_error(path: str | Path, reason: str) -> InputError:
    """The error for a checkpoint that cannot be used."""
    return InputError(f"{path}: {reason}; get the file again from its authors, or give the checkpoint of this encoder")


def read_released(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors and plain values, on the CPU.

    Raises:
        InputError: No such file, unreadable, a pickle that runs code, or not a table of names.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the path of a released checkpoint (.pt)")
    try:
        if Path(path).suffix == ".safetensors":
            content = load_file(path)
        else:
            # training scripts keep their arguments beside the weights; a Namespace runs no code
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a broken file can raise any type
        raise released_error(path, f"cannot be read as a file of tensors ({reason(error)})") from error
    if not isinstance(content, dict) or not content or not all(isinstance(k, str) for k in content):
        raise released_error(path, "holds no state dict (names to tensors)")
    return content


def checked_state(path: str | Path, state: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict that holds nothing but tensors, all finite.

    Raises:
        InputError: It holds anything else.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise released_error(path, f"holds {type(value).__name__} under {name!r}, not a tensor")
        refuse_not_finite(path, name, value)
    return state


def reason(error: BaseException) -> str:
    """Why a checkpoint cannot be read, short: the code that a pickle would run, or the reader's first line."""
    if found := _CODE.search(str(error)):
        return f"it holds code, {found[1]}, which is never run; weights come as safetensors"
    if isinstance(error, pickle.PickleError):
        return "a pickle of other things than tensors, which is never run; weights come as safetensors"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]


def out_of_reach(source: str | Path, error: BaseException) -> InputError:
    """The one-line error for what is neither a local folder nor available from the Hub."""
    why = hub_reason(error)
    if why and not any(said in why for said in ("be reached", "switched off")):
        return InputError(f"{source}: not found locally, and not to be had from the Hub: {why}")
    return InputError(
        f"{source}: not found locally and the Hub cannot be reached or does not have it; download it on a machine "
        "with a network (huggingface_hub.snapshot_download), or give a local folder"
    )


def published_features(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The values of a checkpoint's preprocessor_config.json; empty where there is none.

    Args:
        source: A folder or a Hub id.
        revision: Of a Hub id.

    Raises:
        InputError: The file exists and cannot be read.
    """
    try:
        path = _file(source, "preprocessor_config.json", revision)
    except OSError:  # no network: the weights came from the cache, and this file is not in it
        return {}
    if path is None:
        return {}
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON; get the checkpoint again, or delete the file") from error
    return values if isinstance(values, dict) else {}


def loaded_strictly(
    load: Callable[..., Any], source: str | Path, what: str, *args: Any, absent: tuple[str, ...] = (), **settings: Any
) -> tuple[Any, dict[str, Any]]:
    """Load as transformers does, but refuse checkpoints that fit partly: the model and its loading report.

    Args:
        load: A `from_pretrained`.
        source: A folder or a Hub id.
        what: The model it should hold.
        *args: Passed to `load`.
        absent: Prefixes of names that may be missing.
        **settings: Passed to `load`.

    Raises:
        InputError: Weights are missing, left over, of another shape or not finite.
    """
    # without the second setting transformers raises its own error for another shape
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _without_loading_report():
        model, info = load(source, *args, **settings)
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = {*(key for key in info["missing_keys"] if not key.startswith(absent)), *mismatched}
    wrong = {"missing or of another shape": missing, "left over": info["unexpected_keys"]}
    refuse_differences(source, what, wrong)
    for name, value in model.state_dict().items():
        # names that may be missing are filled later, and undefined until then
        if not value.is_meta and not name.startswith(absent):
            refuse_not_finite(source, name, value)
    return model, info


@contextlib.contextmanager
def _without_loading_report() -> Iterator[None]:
    """Hide transformers' progress bar, and its table of missing keys: it becomes one error."""

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_no_report)
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)
        if shown:
            transformers_logging.enable_progress_bar()


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Iterable[str]]:
    """What is wrong with a state dict ("missing", ...) -> the names of which it is true."""
    return {
        "missing": expected.keys() - state.keys(),
        "left over": state.keys() - expected.keys(),
        "of another shape": [
            f"{name} ({_sizes(state[name])} instead of {_sizes(value)})"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ],
    }


def refuse_differences(source: str | Path, what: str, wrong: Mapping[str, Iterable[str]]) -> None:
    """Refuse a checkpoint whose weights are missing, left over or of another shape.

    Args:
        source: Its place.
        what: The encoder it should hold.
        wrong: As `differences` returns it.

    Raises:
        InputError: There is any name; the line lists the first ones.
    """
    said = []
    for how, names in wrong.items():
        first, *more = [*sorted(names), ""]
        if first:
            more = more[:-1]
            rest = f" and {len(more) - _NAMED + 1} more" if len(more) >= _NAMED else ""
            said.append(f"{first} is {how}" + (f" (and {', '.join(more[: _NAMED - 1])}{rest})" if more else ""))
    if said:
        raise InputError(
            f"{source}: the weights are not those of the {what} in its configuration: {'; '.join(said)}; give the "
            "config.json that belongs to them (its depth or width differs), or get the checkpoint again"
        )


def _sizes(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def read_weights(source: str | Path, revision: str | None) -> dict[str, Tensor]:
    """All tensors of a checkpoint in one file or several; safetensors where there are any.

    Raises:
        InputError: A file of the index is missing, or holds other things than finite tensors.
        FileNotFoundError: There are no weights.
    """
    for name in _FILES:
        path = _file(source, name, revision)
        if path is None:
            continue
        if not name.endswith(".json"):
            return _read_tensors(path)
        try:
            shards = refuse_index(path)
        except InputError as error:
            raise InputError(f"{source}: {str(error).removeprefix(str(path.parent)).lstrip('/')}") from error
        state: dict[str, Tensor] = {}
        for shard in shards:
            part = _file(source, shard, revision)
            if part is None:
                raise InputError(f"{source}: {shard} is missing, which {name} names; get the checkpoint again")
            state |= _read_tensors(part)
        return state
    raise FileNotFoundError(f"there is no {_FILES[0]}")


def _file(source: str | Path, name: str, revision: str | None) -> Path | None:
    """A file of the folder or the Hub repository; None where there is none of that name."""
    path = cached_file(str(source), name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    return checked_state(path, read_released(path)) if path.suffix == ".bin" else read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, finite, on the CPU."""
    state: dict[str, Tensor] = load_file(path)
    for name, value in state.items():
        refuse_not_finite(path, name, value)
    return state


def refuse_not_finite(source: str | Path, name: str, value: Tensor) -> None:
    """Refuse a tensor with NaN or infinite values."""
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"{source}: {name} holds values that are not finite; get the checkpoint again")
