"""Exchange of rows between the processes of one launch.

Decisions: a gather carries gradients (that of accelerate does not), because the pairs of a contrastive loss are its
data: two processes of half the batch give the loss and the gradient of one process. When another process is lost, the
first exchange that fails ends this one with one line.
"""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from laennec.errors import InputError
from laennec.memory import ran_out

# what the transports say of a peer that is no longer there
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore", "Broken pipe")


def process_count() -> int:
    """How many processes train together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size()


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
    """Say in one line that another process of the launch is gone.

    Raises:
        InputError: An exchange between processes failed.
    """
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
