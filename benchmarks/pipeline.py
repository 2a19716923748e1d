"""How much of a training step the device waits for data.

Decisions: the real Trainer runs on real recordings, with the settings and draws of a recipe; its call for the next
batch is timed. On a GPU, a call counts only if the device was idle when the batch came, and then in full, which is an
upper bound. The GPU gets a larger encoder.
"""

import contextlib
import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import PrinterCallback

from benchmarks.device import EpochClock, device_name, devices, gpu, not_measured, on
from benchmarks.row import Row, Setting, needs
from laennec.audio.augmentation import Gain, PitchShift, SpecAugment, TimeShift, TimeStretch, WhiteNoise
from laennec.corpora import load_corpus
from laennec.training.data.split_data import make_extractor, make_split
from laennec.training.recipe import Recipe
from laennec.training.run import make_model
from laennec.training.schedules import make_arguments, plan_phases
from laennec.training.trainer import LaennecTrainer

# cycles of an epoch (two epochs, the second counts) and of a batch
CYCLES = {"cpu": 128, "cuda": 1024}
BATCH = {"cpu": 16, "cuda": 64}
# overrides of the encoder's configuration
SIZE: dict[str, dict[str, Any]] = {"cpu": {}, "cuda": {}}
_NAME, _BOUND = "waiting for data", "< 0.05"


class TimedTrainer(LaennecTrainer):
    """A Trainer that measures how long the device waited for batches in the last epoch.

    Attributes:
        waited_s: Waiting time in seconds.
    """

    waited_s = 0.0

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Get the batches of a step, and add the waiting time."""
        if self.state.epoch == int(self.state.epoch or 0):
            self.waited_s = 0.0
        before = None
        if device.type == "cuda":
            before = torch.cuda.Event()
            before.record()  # the event is complete when all steps so far are computed
        start = time.perf_counter()
        batches = super().get_batch_samples(epoch_iterator, num_batches, device)
        took = time.perf_counter() - start
        if before is None or before.query():
            self.waited_s += took
        return batches


def waiting_for_data(setting: Setting) -> list[Row]:
    """Share of an epoch that the device waits for the next batch."""
    rows = [_waiting(setting, devices()[0], moved=moved) for moved in (False, True)]
    found = gpu()
    name = f"{_NAME}, stretch and pitch on a GPU"
    return [*rows, not_measured(name, "of a step", _BOUND) if found is None else _waiting(setting, found, moved=True)]


def _waiting(setting: Setting, device: torch.device, moved: bool) -> Row:
    torch.set_num_threads(1)
    clock = EpochClock(1, device)
    there = {"ACCELERATE_USE_CPU": "true"} if device.type == "cpu" else {}  # even if there is a GPU
    with tempfile.TemporaryDirectory() as out, patch.dict(os.environ, there):
        trainer, cycles = _trainer(setting, device, Path(out), moved)
        trainer.add_callback(clock)
        trainer.train()
    what = "mn04" if setting.weights else "mobilenet of width 0.4"
    if device.type == "cuda":
        what = f"AST-base, bfloat16, {device_name(device)}, {trainer.args.dataloader_num_workers} processes that read"
    note = (
        f"{what}, {cycles} cycles of the ICBHI subset in batches of {BATCH[device.type]}, with noise, shift, gain"
        f"{', stretch, pitch' if moved else ''} and masks; {cycles / clock.seconds:.0f} cycles/s"
    )
    if device.type == "cpu":
        note += ", one thread, cycles read and augmented by the process that trains"
    name = f"{_NAME}{', stretch and pitch' if moved else ''}{on(device)}"
    # no bound: stretching on the CPU takes CPU time in any case
    bound = "" if moved and device.type == "cpu" else _BOUND
    return Row(name, trainer.waited_s / clock.seconds, None, "of a step", None, bound, note)


def _trainer(setting: Setting, device: torch.device, out: Path, moved: bool) -> tuple[TimedTrainer, int]:
    """The Trainer of a recipe without validation and checkpoints, and its number of cycles."""
    recipe = _recipe(setting, device.type, moved)
    extractor = make_extractor(recipe.features)
    table = load_corpus("icbhi2017", needs(setting, "icbhi2017_subset"), protocol="none")["all"]
    cycles = min(CYCLES[device.type], len(table))
    part = make_split("train", table.select(range(cycles)), recipe, extractor, None, True)
    model = make_model(recipe, part.targets.names)
    truth = part.table.to_pandas()[["cycle_id"]]
    with contextlib.redirect_stdout(io.StringIO()):
        plan = plan_phases(recipe, model, extractor, part.targets, part.table, (part.dataset, part.dataset), truth)
    ((phase, sampler, size),) = plan.phases
    arguments = make_arguments(recipe, phase, out, size)
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        setattr(arguments, name, "no")
    arguments.load_best_model_at_end = False
    trainer = TimedTrainer(model, arguments, sampler=sampler, **plan.settings)
    trainer.remove_callback(PrinterCallback)
    return trainer, cycles


def _recipe(setting: Setting, kind: str, moved: bool) -> Any:
    """A recipe with augmentation (`moved`: also stretch and pitch) and an encoder that suits the device."""
    recipe = Recipe(name="bench")
    recipe.encoder.config = dict(SIZE[kind])
    if kind == "cuda":
        recipe.encoder.type, recipe.features.preset, recipe.train.bf16 = "ast", "ast", True
    elif setting.weights:
        recipe.encoder.weights = setting.weights
    recipe.sampler.name = "length_bucketed"
    recipe.augment.noise, recipe.augment.shift, recipe.augment.gain = WhiteNoise(), TimeShift(), Gain()
    if moved:
        recipe.augment.stretch, recipe.augment.pitch = TimeStretch(), PitchShift()
    recipe.augment.spec = SpecAugment()
    recipe.train.epochs, recipe.train.batch_size, recipe.train.selection_metric = 2, BATCH[kind], "loss"
    return recipe
