"""What a person sees while a training runs.

Decisions: one line an epoch, with the loss by term and the metrics that choose the epoch; a bar with the time left on a
terminal only.
"""

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


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
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.phase, unit="step", file=sys.stderr
            )

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
        self._print(f"{self.phase} epoch {epoch}: {self.losses}" + (f"; validation {figures}" if figures else ""))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def _print(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)
