"""Files of weights, read strictly.

Decisions: only tensors are read: safetensors, or a pickle that holds nothing else. Every name that is missing, left
over or of another shape is refused: a partly loaded encoder has random weights. Nothing is downloaded but the
configuration and the weights.
"""

import argparse
import contextlib
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from laennec.errors import InputError, hub_reason
from laennec.untrusted import read_json, refuse_index

# what transformers, torch and safetensors raise where a checkpoint cannot be found or read
LOADING_ERRORS = (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.PickleError, zipfile.BadZipFile)
_CODE = re.compile(r"GLOBAL (\w\S+)")
_NAMED = 4
_MOST_MODULES = 10_000
_IN_NO_FILE = 20_000_000  # numbers that a model may have without a file: computed tables, parts only for training
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def released_error(path: str | Path, reason: str) -> InputError:
    """The error for a checkpoint that cannot be used."""
    return InputError(f"{path}: {reason}; get the file again from its authors, or give the checkpoint of this encoder")


def read_released(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors and plain values, on the CPU."""
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
    """A state dict that holds nothing but tensors, all finite."""
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
        return InputError(f"{source}: not found locally, and cannot be downloaded from the Hub: {why}")
    return InputError(
        f"{source}: not found locally and the Hub cannot be reached or does not have it; download it on a machine "
        "with a network (huggingface_hub.snapshot_download), or give a local folder"
    )


def published_features(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """The values of a checkpoint's preprocessor_config.json; empty where there is none."""
    try:
        path = _file(source, "preprocessor_config.json", revision=revision)
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
    """Load as transformers does, but refuse checkpoints that fit partly: the model and its loading report."""
    # without the second setting transformers raises its own error for another shape
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _without_loading_report(), _few_modules(source):
        model, info = load(source, *args, **settings)
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = {*(key for key in info["missing_keys"] if not key.startswith(absent)), *mismatched}
    wrong = {"missing or of another shape": missing, "left over": info["unexpected_keys"]}
    refuse_differences(source, what, wrong)
    for name, value in model.state_dict().items():
        # weights that may be missing are undefined until they are filled later
        if not value.is_meta and not name.startswith(absent):
            refuse_not_finite(source, name, value)
    return model, info


def refuse_larger(build: Callable[[], nn.Module], files: Iterable[Path], source: str | Path, known: int = 0) -> None:
    """Refuse settings that describe a larger model than its weights, before memory is allocated for it.

    A file holds at most as many numbers as bytes, whatever their type.
    """
    with wrong_settings(str(source)), _few_modules(source), no_init_weights(), torch.device("meta"):
        model = build()
    held = known + sum(path.stat().st_size for path in files)
    wanted = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if wanted > held + _IN_NO_FILE:
        raise InputError(
            f"{source}: config.json describes a model of {wanted:.3g} numbers, but its weights are {held:.3g} bytes; "
            "give the config.json that belongs to them, or get the model again"
        )


@contextlib.contextmanager
def _few_modules(source: str | Path) -> Iterator[None]:
    """Refuse settings of too many modules while they are made: each takes time even on the meta device."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > _MOST_MODULES:
            raise InputError(
                f"{source}: config.json describes a model of more than {_MOST_MODULES} modules, which no model has; "
                "get the model again"
            )

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def wrong_settings(what: str) -> Iterator[None]:
    """Turn errors of torch and transformers for inconsistent settings into one line."""
    try:
        yield
    except InputError:
        raise
    except (
        StrictDataclassError, AssertionError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError,
        LookupError,
    ) as error:  # fmt: skip
        said = " ".join(str(error).split())[:160]
        raise InputError(f"{what}: {said}; correct encoder.config or the config.json") from error


@contextlib.contextmanager
def _without_loading_report() -> Iterator[None]:
    """Hide transformers' progress bar and its table of missing keys, which laennec reports as one error."""

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
    """Kind of difference of a state dict ("missing", ...) -> the names concerned."""
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
    """Refuse a checkpoint whose weights are missing, left over or of another shape."""
    said = []
    for how, names in wrong.items():
        first, *more = [*sorted(names), ""]
        if first:
            more = more[:-1]
            unnamed = f" and {len(more) - _NAMED + 1} more" if len(more) >= _NAMED else ""
            said.append(f"{first} is {how}" + (f" (and {', '.join(more[: _NAMED - 1])}{unnamed})" if more else ""))
    if said:
        raise InputError(
            f"{source}: the weights are not those of the {what} in its configuration: {'; '.join(said)}; give the "
            "config.json that belongs to them (its depth or width differs), or get the checkpoint again"
        )


def renamed(
    path: str | Path,
    kind: type[Any],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    released_name: Callable[[str, Container[str]], str],
    settings: Mapping[str, Any],
    repeats: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """An encoder with the weights of its authors' state dict, strictly.

    Args:
        path: The file, for errors.
        kind: Class of the encoder.
        config: Of the network that the file holds.
        state: The authors' weights.
        released_name: Maps one of our names (given all of them) to the authors'; weights with one name are concatenated
            in it.
        settings: Changes of the configuration afterwards; weights that the encoder then lacks are left out.
        repeats: Authors' names of weights that must equal another one of theirs.
    """
    with torch.device("meta"):
        expected = kind(config).state_dict()
    names: dict[str, list[str]] = {}
    for name in expected:
        names.setdefault(released_name(name, expected), []).append(name)
    wanted = {
        theirs: expected[ours[0]] if len(ours) == 1 else torch.cat([expected[name] for name in ours])
        for theirs, ours in names.items()
    }
    wanted |= {name: wanted[other] for name, other in repeats.items()}
    refuse_differences(path, kind.__name__, differences(state, wanted))
    for name, other in repeats.items():
        if not torch.equal(state[name], state[other]):
            raise released_error(path, f"{name} is not that of layer 0, which all layers share")
    for name, value in settings.items():
        setattr(config, name, value)
    encoder = kind._from_config(config)
    values = encoder.state_dict()
    for theirs, ours in names.items():
        parts = [state[theirs]] if len(ours) == 1 else state[theirs].chunk(len(ours))
        values |= {name: part for name, part in zip(ours, parts, strict=True) if name in values}
    encoder.load_state_dict(values)
    return encoder.eval()


def _sizes(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def read_weights(source: str | Path, revision: str | None) -> dict[str, Tensor]:
    """All tensors of a checkpoint in one file or several; safetensors where there are any."""
    paths = weight_files(source, revision=revision)
    if not paths:
        raise FileNotFoundError(f"there is no {_FILES[0]}")
    return {name: value for path in paths for name, value in read_tensors(path).items()}


def weight_files(source: str | Path, **hub: Any) -> list[Path]:
    """The files of a checkpoint's weights; none where there are no weights."""
    for name in _FILES:
        path = _file(source, name, **hub)
        if path is None:
            continue
        if not name.endswith(".json"):
            return [path]
        try:
            shards = refuse_index(path)
        except InputError as error:
            raise InputError(f"{source}: {str(error).removeprefix(str(path.parent)).lstrip('/')}") from error
        parts = {shard: _file(source, shard, **hub) for shard in shards}
        for shard, part in parts.items():
            if part is None:
                raise InputError(f"{source}: {shard} is missing, which {name} names; get the checkpoint again")
        return [part for part in parts.values() if part is not None]
    return []


def _file(source: str | Path, name: str, **hub: Any) -> Path | None:
    """A file of the folder or the Hub repository; None where there is none of that name."""
    path = cached_file(str(source), name, **hub, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, finite, on the CPU."""
    return checked_state(path, load_file(path) if path.suffix == ".safetensors" else read_released(path))


def refuse_not_finite(source: str | Path, name: str, value: Tensor) -> None:
    """Refuse a tensor with NaN or infinite values."""
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"{source}: {name} holds values that are not finite; get the checkpoint again")
