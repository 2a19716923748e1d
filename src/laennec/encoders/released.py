"""Stage 4, encoders: reading checkpoint files as their authors publish them.

Decided here: tensors only. A pickle that wants to run code is refused, whatever it holds beside them.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laennec.errors import InputError


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
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise released_error(path, f"cannot be read as a file of tensors ({first[:80]})") from error
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
