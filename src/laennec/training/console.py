"""What a person sees while it runs.

Decisions: one line an epoch, with the loss by term and the figures that choose the epoch; a bar with the time left
on a terminal only.
"""

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class EpochLines(TrainerCallback):
    """Prints one line for each epoch, and a bar of steps on a terminal.

    Args:
        phase: Name of the phase.
        metric: The figure that chooses the epoch.
    """

    def __init__(self, phase: str, metric: str) -> None:
        self.phase = phase
        self.metric = metric
        self.bar: Any = None
        self.losses = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar."""
        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.phase, unit="step", file=sys.stderr
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Remember the losses; print when validation has spoken."""
        logs = logs or {}
        if "loss" in logs:
            terms = ", ".join(f"{k.removeprefix('term_')} {v:.4f}" for k, v in logs.items() if k.startswith("term_"))
            self.losses = f"loss {logs['loss']:.4f}" + (f" ({terms})" if terms else "")
        if "eval_loss" in logs and state.is_world_process_zero:
            shown = ("loss", self.metric, "icbhi.Score", "roc_auc_macro")
            figures = ", ".join(f"{k} {logs[f'eval_{k}']:.4g}" for k in dict.fromkeys(shown) if f"eval_{k}" in logs)
            epoch = f"{logs.get('epoch', state.epoch or 0):g}/{args.num_train_epochs:g}"
            line = f"{self.phase} epoch {epoch}: {self.losses}; validation {figures}"
            if self.bar is not None:
                self.bar.write(line, file=sys.stdout)
            else:
                print(line, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class LossLines(EpochLines):
    """Prints one line for each epoch of a training without validation.

    Args:
        phase: Name of the phase.
    """

    def __init__(self, phase: str) -> None:
        super().__init__(phase, "loss")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Print the losses of the epoch."""
        super().on_log(args, state, control, logs, **kwargs)
        if "loss" in (logs or {}) and state.is_world_process_zero:
            line = f"{self.phase} epoch {state.epoch or 0:g}/{args.num_train_epochs:g}: {self.losses}"
            if self.bar is not None:
                self.bar.write(line, file=sys.stdout)
            else:
                print(line, flush=True)


def say(line: str) -> None:
    """Print a line that belongs to no epoch."""
    print(line, flush=True)
