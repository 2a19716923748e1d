"""Checkpoints that are either whole or treated as absent.

Decisions: transformers writes a checkpoint into its final folder; then each file is hashed and synced, and a manifest
is written last. A checkpoint without a manifest, or with a file that differs from it, is not whole: the next start
names it in a warning, deletes it, and continues from the checkpoint before it. Rotation keeps two, so a whole one
exists while another is written. SIGTERM ends training after the current step, with a checkpoint and exit code 143.
"""

import hashlib
import logging
import os
import re
import shutil
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from laennec.errors import InputError, Terminated
from laennec.files import atomic_write, json_text
from laennec.training.record import read_record

MANIFEST, SUMS = "manifest.json", "sums.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_TOLERANCE = 1e-6  # of an epoch
_log = logging.getLogger(__name__)


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write weights under the names that they have in the model.

    `save_pretrained` writes some under the names of older releases of transformers. A Trainer resumes with
    `load_state_dict`, which would skip those with a warning.
    """
    with atomic_write(path, "wb") as file:
        file.write(save({name: value.contiguous() for name, value in state.items()}, metadata={"format": "pt"}))


def seal(checkpoint: Path, processes: int) -> None:
    """Sync and hash every file of a checkpoint, then write its manifest with the number of processes."""
    files = {}
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(checkpoint).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    with atomic_write(checkpoint / MANIFEST) as manifest:
        manifest.write(json_text({"processes": processes, "files": files}, indent=1))


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used: a file is missing, shorter or different; None if it is whole."""
    try:
        files = read_record(checkpoint / MANIFEST)["files"]
        wanted = {name: (int(said["bytes"]), str(said["sha256"])) for name, said in files.items()}
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return f"{MANIFEST} is missing or damaged"
    for name, (size, digest) in wanted.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} differs from what was written"
    return None


def check_whole(checkpoint: Path, world_size: int = 1) -> None:
    """Refuse a checkpoint that cannot be resumed."""
    if wrong := damage(checkpoint) or _damage_of_best(checkpoint):
        raise InputError(f"{checkpoint}: the checkpoint is not whole ({wrong}); resume from another one")
    _check_processes(checkpoint, world_size)


def _check_processes(checkpoint: Path, world_size: int) -> None:
    wrote = read_record(checkpoint / MANIFEST).get("processes", world_size)
    if wrote != world_size:
        raise InputError(
            f"{checkpoint}: the number of processes was {wrote}, now it is {world_size}; start {wrote} processes, or "
            "delete the checkpoints to train anew (--overwrite)"
        )


def last_whole(folder: Path, world_size: int = 1) -> Path | None:
    """The newest checkpoint that is whole and whose best checkpoint is whole; None if there is none.

    A checkpoint that is not whole is named in a warning and deleted, so that rotation never counts it.
    """
    found = {int(m.group(1)): p for p in folder.glob("checkpoint-*") if (m := _NAME.fullmatch(p.name))}
    for step in sorted(found, reverse=True):
        checkpoint = found[step]
        wrong = damage(checkpoint) or _damage_of_best(checkpoint)
        if wrong is None:
            _check_processes(checkpoint, world_size)
            return checkpoint
        _log.warning("%s: not whole (%s); training continues from the one before it", checkpoint, wrong)
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def checkpoint_to_resume(args: Any, resume: str | bool | None) -> Path | None:
    """The checkpoint that a training continues from; None for a new training."""
    if resume is True:
        with args.main_process_first(desc="checkpoints"):
            return last_whole(Path(str(args.output_dir)), args.world_size)
    if not resume:
        return None
    check_whole(Path(resume), args.world_size)
    return Path(resume)


def remove_unsealed(folder: Path) -> None:
    """Remove the checkpoints that an error left without a manifest."""
    for checkpoint in folder.glob("checkpoint-*"):
        if _NAME.fullmatch(checkpoint.name) and not (checkpoint / MANIFEST).exists():
            shutil.rmtree(checkpoint, ignore_errors=True)


def _damage_of_best(checkpoint: Path) -> str | None:
    """Why the best checkpoint that this one refers to cannot be restored; None if it can."""
    best = read_record(checkpoint / "trainer_state.json").get("best_model_checkpoint")
    if not isinstance(best, str | None):
        return "trainer_state.json names no folder as the best checkpoint"
    if best is None or Path(best).name == checkpoint.name:
        return None
    wrong = damage(checkpoint.parent / Path(best).name)
    return None if wrong is None else f"the best checkpoint that it refers to, {Path(best).name}: {wrong}"


class SealCheckpoints(TrainerCallback):
    """Seals each checkpoint once transformers has written it."""

    def __init__(self) -> None:
        self.checkpoint: Path | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the best checkpoint by its name: the folder may have been moved since it was written."""
        best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and best.is_dir():
            state.best_model_checkpoint = str(best)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seal, once every process has written its random state."""
        if args.world_size > 1:
            torch.distributed.barrier()
        if args.should_save and self.checkpoint is not None:
            seal(self.checkpoint, args.world_size)
        if args.world_size > 1:
            torch.distributed.barrier()


class SaveAndStop(TrainerCallback):
    """Writes checkpoints within epochs, and a last one after SIGTERM."""

    def __init__(self, every: int = 0) -> None:
        self.every = every
        self.asked = self._stopping = False

    def stop(self, *_: Any) -> None:
        """Handle a signal: stop after the current step, or at once on a second signal."""
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
        """Stop after the last checkpoint is whole."""
        if self._stopping:
            raise Terminated(f"stopped after step {state.global_step}; the checkpoint is written")


def timed_part(out: Path) -> str:
    """Name of what this process times: the training, or what an interruption left of it."""
    left = (*out.glob("checkpoints/*/checkpoint-*"), *out.glob("checkpoints/*/finished.json"))
    return "training since an interruption" if left else "training"


def train_or_resume(trainer: Any, save_steps: int = 0) -> None:
    """Train, or continue from the last whole checkpoint; SIGTERM ends training with another one."""
    stopping = SaveAndStop(save_steps)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(stopping)
    handles = threading.current_thread() is threading.main_thread()  # no other thread may handle signals
    before = signal.signal(signal.SIGTERM, stopping.stop) if handles else None
    try:
        trainer.train(resume_from_checkpoint=True)
    finally:
        if handles:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)  # None: set by other code than Python
    if trainer.args.world_size > 1:  # a launch of several processes can abort at exit without it
        trainer.accelerator.wait_for_everyone()


def check_loaded(load_result: Any, model: Any, folder: str) -> None:
    """Refuse a checkpoint that did not fill a model."""
    missing = [key for key in load_result.missing_keys if not model.is_frozen(key)]
    if missing or load_result.unexpected_keys:
        what = f"{missing[0]} is missing" if missing else f"{load_result.unexpected_keys[0]} is unknown"
        raise InputError(
            f"{folder}: a checkpoint does not fit the model ({what}); delete it to train anew (--overwrite)"
        )
