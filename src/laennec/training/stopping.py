"""Stop when a cluster asks for the machine back, or takes a process away, without losing a step.

Decisions: SIGTERM asks; the step that is running is finished, a checkpoint is written, and the process ends with
exit code 143. A second one, or one outside of training, ends at once; files are written aside, so none is half there.
Under several processes all of them stop after the same step. Where one of them is gone the others cannot go on: the
first exchange that fails ends them, in a line that says so.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TrainerCallback

from laennec.errors import InputError, Terminated
from laennec.memory import ran_out

_TOLERANCE = 1e-6  # of an epoch
# what the transports say of a peer that is no longer there
_LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore", "Broken pipe")


class StopRequest:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: Any) -> None:
        """The signal's handler.

        Raises:
            Terminated: It is the second one.
        """
        if self.asked:
            raise Terminated("stopped")
        self.asked = True


@contextlib.contextmanager
def on_request() -> Iterator[StopRequest]:
    """Take SIGTERM for a request while the block runs."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, request)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def with_the_others() -> Iterator[None]:
    """Say in one line that another process of the launch is gone.

    Raises:
        InputError: An exchange between processes failed.
    """
    try:
        yield
    except RuntimeError as error:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        lost = isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in _LOST)
        if not (together and lost) or ran_out(error):
            raise
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        raise InputError(
            f"process {rank} of {world}: another process of this launch has ended, or cannot be reached (its own last "
            "line says why; none: it was killed); run the same command again to continue from the last checkpoint"
        ) from error


class SaveAndStop(TrainerCallback):
    """Writes checkpoints within epochs, and a last one when asked to end.

    Args:
        request: Says whether it was.
        every: A checkpoint after so many steps, beside the one an epoch; None for no others.
    """

    def __init__(self, request: StopRequest, every: int | None = None) -> None:
        self.request = request
        self.every = every
        self._stopping = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the Trainer for a checkpoint."""
        self._stopping = self._agreed(args)
        # the end of an epoch is saved after it was evaluated: a checkpoint before that would lose the evaluation
        ends = state.global_step >= state.max_steps or abs(state.epoch - round(state.epoch)) < _TOLERANCE
        if not ends and (self._stopping or (self.every and state.global_step % self.every == 0)):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End, now that the checkpoint is whole.

        Raises:
            Terminated: Where this process was asked to.
        """
        if self._stopping:
            raise Terminated(f"stopped after step {state.global_step}; the checkpoint is written")

    def _agreed(self, args: Any) -> bool:
        """Whether any process was asked; one alone would wait for the others for ever."""
        if args.world_size == 1:
            return self.request.asked
        asked = torch.tensor([int(self.request.asked)], device=args.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked.item())
