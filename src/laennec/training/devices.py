"""Devices and processes: where a training computes, how batches get there, and what processes exchange.

Decisions: with a GPU, worker processes read, augment and pad cycles ahead into pinned memory, and batches are copied
while the GPU computes. Features, masks, mixing and a frozen encoder run on the GPU. On a CPU cycles are read and
predicted one by one, because rounding depends on the shape of a batch: the prediction for a cycle then depends on that
cycle alone, to the last bit, whatever the batch and the number of threads.

Only the layers of a transformer are compiled, once for all lengths (`dynamic=True`): a whole model would be compiled
anew for each cycle length, or not at all. Validation runs uncompiled, so that it equals prediction.

A gather keeps gradients (that of accelerate does not), because a contrastive loss needs the pairs of all processes: two
processes of half the batch give the loss and the gradient of one process. When another process ends, the first exchange
that fails ends this process with a one-line error.
"""

import contextlib
import copy
import logging
import math
import os
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers.utils.logging import disable_progress_bar

from laennec.encoders import AstEncoder, BeatsEncoder, ResNetAudioEncoder, TransformersEncoder, Wrapper
from laennec.encoders.adapters import stack_of
from laennec.encoders.masks import process_count
from laennec.encoders.transformers_audio import ClapAudioEncoder
from laennec.encoders.weights.checkpoints import reason
from laennec.errors import InputError
from laennec.memory import ran_out

_log = logging.getLogger(__name__)
_CANNOT = "train.compile: %s; training goes on uncompiled"
# messages of the transports about a process that has ended
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore", "Broken pipe")


def configure_process(threads: int) -> None:
    """Set torch's threads, silence libraries, and log warnings in the first process only."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    # its warning is harmless: it sorts checkpoints by step number, not by file time
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    logging.getLogger("laennec").setLevel(logging.NOTSET if is_main_process() else logging.ERROR)


def has_gpu() -> bool:
    """Whether training would use a GPU: one is there, and accelerate is not set to the CPU."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true", "yes")


def training_device() -> torch.device:
    """Where this process computes: its own GPU, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if has_gpu() else torch.device("cpu")


def encodes_one_by_one(device: torch.device) -> bool:
    """Whether cycles are predicted one by one there: on a CPU, where it is hardly slower."""
    return device.type == "cpu"


def is_main_process() -> bool:
    """Whether this process writes and prints: the first of its launch."""
    return os.environ.get("RANK", "0") == "0"


def process_count_of_launch() -> int:
    """How many processes the launch starts, known before they connect."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_settings(workers: int | None, gpu: bool) -> dict[str, Any]:
    """Transformers' settings of the device and of data loading.

    Without `workers`, no extra process reads batches for a CPU, and up to 8 do for a GPU.
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


def recompute_activations(model: Any) -> None:
    """Turn on gradient checkpointing: the encoder recomputes its activations in the backward pass."""
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"train.gradient_checkpointing: {model.encoder.config.model_type} encoders do not support it; leave it out"
        ) from error


def compile_layers(model: Any, backend: Any = "inductor") -> None:
    """Compile the encoder's layers in place; if the machine cannot compile, warn and leave them uncompiled."""
    if not hasattr(model, "encoder"):
        _log.warning(_CANNOT, "the encoder is frozen and runs once")
        return
    layers = _layers(model.encoder)
    if not layers:
        _log.warning(_CANNOT, f"the encoder {model.encoder.config.model_type} has no transformer layers")
        return
    try:
        weight = next(model.parameters())
        torch.compile(lambda x: x.sin() + 1, backend=backend)(weight.new_ones(2))
    except Exception as error:
        _log.warning(_CANNOT, f"this machine cannot compile ({type(error).__name__}: {reason(error)})")
        return
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)


def uncompiled(wanted: bool) -> Any:
    """Run compiled layers uncompiled within the block, if `wanted`."""
    return torch.compiler.set_stance("force_eager") if wanted else contextlib.nullcontext()


def _layers(encoder: Any) -> list[nn.Module]:
    """The layers of a transformer; none for other encoders, nor for CLAP, whose windows shift with the input size."""
    inner = encoder.encoder if isinstance(encoder, Wrapper) else encoder
    transformer = isinstance(inner, AstEncoder | BeatsEncoder | TransformersEncoder)
    transformer &= not isinstance(inner, ClapAudioEncoder | ResNetAudioEncoder)
    return list(stack_of(inner)[0]) if transformer else []


@contextlib.contextmanager
def unsharded(model: Any) -> Iterator[Any]:
    """Yield the model that has the trained weights after the block: normally `model` itself.

    Where the launch shards weights over processes (FSDP), which changes `model` permanently, it is a copy, which gets
    the unsharded weights when the block ends.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        yield model
        return
    whole = copy.deepcopy(model)
    yield whole
    state = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()
        for name, value in model.state_dict().items()
    }
    whole.load_state_dict(state)
    whole.train(model.training)


def first_row(rows: Tensor) -> int:
    """Index of this process's first row among the rows of all processes."""
    return 0 if process_count() == 1 else sum(_rows_by_rank(rows)[: torch.distributed.get_rank()])


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks; each process may have another number of rows.

    Gradients flow back to the process that a row comes from.
    """
    if process_count() == 1:
        return rows
    import torch.distributed.nn.functional as distributed

    counts = _rows_by_rank(rows)
    longest = max(counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])]).contiguous()
    if rows.is_floating_point():
        with warnings.catch_warnings():
            # deprecated in favour of an interface that is still experimental
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            parts = list(distributed.all_gather(padded))
    else:
        parts = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_groups(values: Tensor) -> Tensor:
    """(batch, groups, ...) of all processes, padded with zeros to the largest number of groups; masks become uint8."""
    values = values.to(torch.uint8) if values.dtype == torch.bool else values
    if process_count() == 1:
        return values
    missing = max(_rows_by_rank(values.transpose(0, 1))) - values.shape[1]
    padded = torch.cat([values, values.new_zeros(values.shape[0], missing, *values.shape[2:])], dim=1)
    return gather_with_gradient(padded)


def _rows_by_rank(rows: Tensor) -> list[int]:
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(process_count())]
    torch.distributed.all_gather(counts, torch.full_like(counts[0], len(rows)))
    return [int(count) for count in counts]


@contextlib.contextmanager
def explain_lost_process() -> Iterator[None]:
    """Explain in one line that another process of the launch has ended."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in _LOST)
        if process_count() == 1 or not lost or ran_out(error):
            raise
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        raise InputError(
            f"process {rank} of {world}: another process of this launch has ended, or cannot be reached (its own last "
            "line gives the reason; no line: it was killed); run the same command again to continue from the last "
            "checkpoint"
        ) from error


class SharedLastBatch(Sampler[list[Any]]):
    """Batches of an order for several processes; the short last round is divided nearly equally.

    Guarantee: each process has the same number of batches, and a round (one batch per process) has the rows of one
    batch of a single process. If fewer rows are left than there are processes, rows from the start complete the round.

    Args:
        sampler: Sampler that defines the order.
        batch_size: Batch size of one process.
        processes: Number of processes; batch i is for process i modulo this number.
    """

    def __init__(self, sampler: Sampler[Any], batch_size: int, processes: int) -> None:
        # without an attribute `batch_size`, accelerate takes batches of any size
        self.sampler, self.rows, self.processes = sampler, batch_size, processes

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield batches, one for each process in turn."""
        order = list(self.sampler)
        whole = self.rows * self.processes
        for start in range(0, len(order), whole):
            rows = order[start : start + whole]
            if len(rows) < self.processes:
                rows += [order[place % len(order)] for place in range(self.processes - len(rows))]
            size, larger = divmod(len(rows), self.processes)
            ends = [(process + 1) * size + min(process + 1, larger) for process in range(self.processes)]
            yield from (rows[first:last] for first, last in pairwise([0, *ends]))

    def __len__(self) -> int:
        """Batches of all processes."""
        order: Any = self.sampler
        return math.ceil(len(order) / (self.rows * self.processes)) * self.processes


def shared_loader(data: Any, sampler: Sampler[Any], collate: Any, args: Any, accelerator: Any) -> Any:
    """The batches of this process, out of those of `SharedLastBatch`."""
    loader: Any = DataLoader(
        data,
        batch_sampler=SharedLastBatch(sampler, args.train_batch_size, args.world_size),
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    before, accelerator.even_batches = accelerator.even_batches, False  # they are even already
    try:
        return accelerator.prepare(loader)
    finally:
        accelerator.even_batches = before
