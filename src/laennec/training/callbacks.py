"""Callbacks of a training: lines on the console, and checkpoints between epochs and on request.

Decisions: one line an epoch, with the loss by term and the metrics that choose the epoch; a bar with the time left on a
terminal only. SIGTERM ends training after the running step, with a checkpoint and exit code 143.
"""

import signal
import sys
import threading
from typing import Any

import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from laennec.errors import Terminated

_TOLERANCE = 1e-6  # of an epoch


class EpochLines(TrainerCallback):
    """Prints one line for each epoch, and a bar of steps on a terminal.

    Args:
        phase: Name of the phase.
        metric: The metric that chooses the epoch; None for a training without validation.
    """

    def __init__(self, phase: str, metric: str | None = None) -> None:
        self.phase = phase
        self.metric = metric
        self.bar: Any = None
        self.losses = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        if state.is_world_process_zero and sys.stderr.isatty():
            steps = {"total": state.max_steps, "initial": state.global_step, "unit": "step"}
            self.bar = tqdm(desc=self.phase, file=sys.stderr, **steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the losses; print once the epoch's last figures are there."""
        logs = logs or {}
        if "loss" in logs:
            terms = ", ".join(f"{k.removeprefix('term_')} {v:.4f}" for k, v in logs.items() if k.startswith("term_"))
            self.losses = f"loss {logs['loss']:.4f}" + (f" ({terms})" if terms else "")
        if ("loss" if self.metric is None else "eval_loss") not in logs or not state.is_world_process_zero:
            return
        shown = dict.fromkeys(("loss", self.metric, "icbhi.Score", "roc_auc_macro"))
        figures = ", ".join(f"{k} {logs[f'eval_{k}']:.4g}" for k in shown if f"eval_{k}" in logs)
        epoch = f"{logs.get('epoch', state.epoch or 0):g}/{args.num_train_epochs:g}"
        line = f"{self.phase} epoch {epoch}: {self.losses}" + (f"; validation {figures}" if figures else "")
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class SaveAndStop(TrainerCallback):
    """Writes checkpoints within epochs, and a last one when the process is asked to end.

    Args:
        every: Steps between checkpoints, in addition to the one of each epoch; 0 for no others.
    """

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.asked = self._stopping = False

    def stop(self, *_: Any) -> None:
        """Ask for the end, as a handler of a signal.

        Raises:
            Terminated: It is the second signal.
        """
        if self.asked:
            raise Terminated("stopped")
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask the Trainer for a checkpoint."""
        self._stopping = self.asked
        if args.world_size > 1:  # if only one process stopped, the others would wait for it
            asked = torch.tensor([int(self.asked)], device=args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            self._stopping = bool(asked.item())
        # the end of an epoch is saved after its evaluation: a checkpoint before that would lose the evaluation
        ends = state.global_step >= state.max_steps or abs(state.epoch - round(state.epoch)) < _TOLERANCE
        if not ends and (self._stopping or (self.every and state.global_step % self.every == 0)):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End, now that the checkpoint is whole.

        Raises:
            Terminated: If this process was asked to end.
        """
        if self._stopping:
            raise Terminated(f"stopped after step {state.global_step}; the checkpoint is written")


def train_or_resume(trainer: Any, save_steps: int = 0) -> None:
    """Train, or continue from the last whole checkpoint; SIGTERM ends training with another one.

    Args:
        trainer: A `LaennecTrainer`.
        save_steps: Steps between checkpoints, in addition to the one of each epoch; 0 for no others.

    Raises:
        Terminated: By SIGTERM, once the checkpoint is written.
    """
    stopping = SaveAndStop(save_steps)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stopping)
    handles = threading.current_thread() is threading.main_thread()  # no other thread may handle signals
    before = signal.signal(signal.SIGTERM, stopping.stop) if handles else None
    try:
        trainer.train(resume_from_checkpoint=True)
    finally:
        if handles:
            signal.signal(signal.SIGTERM, before)
    if trainer.args.world_size > 1:  # a launch of several processes can abort at exit without it
        trainer.accelerator.wait_for_everyone()
