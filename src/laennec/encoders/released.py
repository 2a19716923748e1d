"""Reading checkpoint files as their authors publish them.

Decisions: tensors only. A pickle that wants to run code is refused, whatever it holds beside them. Whatever a reader
of torch's or safetensors' says of a broken file, it is the file that is at fault, and is said in one line.
"""

import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from laennec.errors import InputError, hub_reason

# what transformers, torch and safetensors raise where a checkpoint cannot be found or read
LOADING_ERRORS = (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.PickleError, zipfile.BadZipFile)
_CODE = re.compile(r"GLOBAL (\w\S+)")
_NAMED = 4


def released_error(path: str | Path, reason: str) -> InputError:
    """The one-line error for a checkpoint that cannot be used."""
    return InputError(f"{path}: {reason}; get the file again from its authors, or give the checkpoint of this encoder")


def read_released(path: str | Path) -> dict[str, Any]:
    """Read a file of tensors and plain values, on the CPU.

    Raises:
        InputError: No such file, unreadable, a pickle that runs code, or not a table of names.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; give the path of a released checkpoint (.pt)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # readers of broken files raise whatever comes
        raise released_error(path, f"cannot be read as a file of tensors ({reason(error)})") from error
    if not isinstance(content, dict) or not content or not all(isinstance(k, str) for k in content):
        raise released_error(path, "holds no state dict (names to tensors)")
    return content


def checked_state(path: str | Path, state: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict that holds nothing but tensors, all finite.

    Raises:
        InputError: Anything else.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise released_error(path, f"holds {type(value).__name__} under {name!r}, not a tensor")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise released_error(path, f"{name} holds values that are not finite")
    return state


def reason(error: BaseException) -> str:
    """Why a checkpoint could not be read, short: the code that a pickle wants to run, or the reader's first line."""
    if found := _CODE.search(str(error)):
        return f"it holds code, {found[1]}, which is never run; weights come as safetensors"
    if isinstance(error, pickle.PickleError):
        return "a pickle of other things than tensors, which is never run; weights come as safetensors"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]


def named(names: Iterable[str], saying: str = "") -> str:
    """What is true of the first of many names, the next ones, and how many more there are."""
    first, *more = sorted(names)
    if not saying:
        return ", ".join([first, *more[: _NAMED - 1]]) + (
            f" and {len(more) - _NAMED + 1} more" if len(more) >= _NAMED else ""
        )
    also = f" (and {', '.join(more[: _NAMED - 1])}" if more else ""
    also += f" and {len(more) - _NAMED + 1} more" if len(more) >= _NAMED else ""
    return f"{first}{saying}{also}{')' if more else ''}"


def out_of_reach(source: str | Path, error: BaseException) -> InputError:
    """The one-line error for what is neither a folder here nor to be had from the Hub."""
    why = hub_reason(error)
    if why and not any(said in why for said in ("be reached", "switched off")):
        return InputError(f"{source}: not found locally, and not to be had from the Hub: {why}")
    return InputError(
        f"{source}: not found locally and the Hub cannot be reached or does not have it; download it on a machine "
        "with a network (huggingface_hub.snapshot_download), or give a local folder"
    )
