"""The devices of the rows, timing on them, and FLOPs.

Decisions: the GPU is warmed up, and synchronised before and after everything that is timed. FLOPs are those of matrix
products (attention included); a multiplication and an addition count as two, backward counts as twice forward, and
computation on padding does not count. Peaks are the dense bfloat16 figures of the makers' data sheets, without
sparsity. A device that is not in the table gets no utilisation instead of a guessed one.
"""

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.row import Row

NOT_MEASURED = "not measured here: no GPU"

# dense bfloat16 FLOP/s by the driver's name of the device, more specific names first
_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A30": 165e12,
    "A40": 149.7e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10": 125e12,
    "L4": 121e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def gpu() -> torch.device | None:
    """The first GPU, or None."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else None


def devices() -> list[torch.device]:
    """The CPU, then the GPU if there is one."""
    found = gpu()
    return [torch.device("cpu"), *([] if found is None else [found])]


def on(device: torch.device) -> str:
    """Suffix of a row's name."""
    return " on a GPU" if device.type == "cuda" else ""


def not_measured(name: str, unit: str, bound: str = "") -> Row:
    """The row of a device that is not available."""
    return Row(name, None, None, unit, None, bound, NOT_MEASURED)


def wait_for(device: torch.device) -> None:
    """Return when the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def waiting(device: torch.device, side: Callable[[], Any]) -> Callable[[], None]:
    """A side that returns only when the device has finished."""

    def whole() -> None:
        wait_for(device)
        side()
        wait_for(device)

    return whole


def mixed_precision(device: torch.device) -> Any:
    """Activations in bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def peak_flops(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by its name; None if the table lacks it."""
    return next((peak for known, peak in _PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def device_name(device: torch.device) -> str:
    """The driver's name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def ast_flops(config: Any, frames: int) -> float:
    """FLOPs of the matrix products of one AST forward pass over one cycle.

    Args:
        config: transformers' ASTConfig.
        frames: Frames of the cycle, without padding.
    """
    size, dim, hidden = int(config.patch_size), int(config.hidden_size), int(config.intermediate_size)
    bands = (int(config.num_mel_bins) - size) // int(config.frequency_stride) + 1
    steps = (max(frames, size) - size) // int(config.time_stride) + 1
    patches = bands * steps
    tokens = patches + 2
    projections = 2 * tokens * (4 * dim * dim + 2 * dim * hidden)  # queries, keys, values, output; MLP
    attention = 2 * 2 * tokens * tokens * dim
    return float(2 * patches * size * size * dim + int(config.num_hidden_layers) * (projections + attention))


class EpochClock(TrainerCallback):
    """Measures the seconds of one epoch of a Trainer.

    Args:
        epoch: Number of the epoch, from 0; earlier epochs warm up.
        device: Device to synchronise.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch, self.device = epoch, device
        self.seconds = 0.0
        self._seen = 0
        self._start = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        if self._seen == self.epoch:
            wait_for(self.device)
            self._start = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        if self._seen == self.epoch:
            wait_for(self.device)
            self.seconds = time.perf_counter() - self._start
        self._seen += 1
