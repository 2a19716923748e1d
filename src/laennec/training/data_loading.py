"""How batches get to where the model is.

Decisions: beside a GPU, worker processes read, augment and pad cycles ahead into pinned memory, the copy runs while the
device computes, and features are computed, masked and mixed there. A frozen encoder runs there too. On a CPU cycles are
read and predicted one by one, because the sums of a batch are rounded by its shape: the prediction for a cycle is a
function of that cycle alone, to the last bit, whatever the batch and the number of threads.
"""

import logging
import os
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from laennec.training.recipe import Recipe


def configure_process(recipe: Recipe) -> None:
    """Give torch the recipe's threads, and keep libraries from talking while it trains."""
    torch.set_num_threads(recipe.train.threads)
    disable_progress_bar()
    # it says that file times may not be exact and that it then goes by step numbers, which are
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)


def has_gpu() -> bool:
    """Whether training would use a GPU: one is there, and accelerate was not told to leave it alone."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")


def training_device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu() else torch.device("cpu")


def encodes_one_by_one(device: torch.device) -> bool:
    """Whether cycles are answered one by one there: on a CPU, which loses little by it."""
    return device.type == "cpu"


def device_settings(workers: int | None, gpu: bool) -> dict[str, Any]:
    """Transformers' settings of where to compute, and of how batches get there.

    Beside a GPU processes read ahead and pinned batches are copied while it computes.

    Args:
        workers: Processes that read batches; None for none on a CPU, and up to 8 beside a GPU.
        gpu: Whether there is one.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)) if gpu else 0
    return {
        "use_cpu": not gpu,
        "dataloader_num_workers": workers,
        "dataloader_prefetch_factor": 4 if workers and gpu else None,
        "dataloader_persistent_workers": bool(workers) and gpu,
        "dataloader_pin_memory": gpu,
        "accelerator_config": {"non_blocking": gpu},
    }
