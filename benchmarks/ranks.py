"""The training that each of several processes runs when their speed is measured.

Decisions: this is a separate module, because a launcher starts it. The second epoch counts; the first one warms up.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.device import EpochClock
from benchmarks.training import plain_trainer
from laennec.files import atomic_write
from laennec.training.data.batches import CycleDataset
from laennec.training.data.split_data import make_extractor
from laennec.training.data.targets import Targets
from laennec.training.recipe import Recipe
from laennec.training.run import make_model


def train_together(out: Path, cycles_each: int, batch_size: int) -> None:
    """Train a mobilenet on the CPU with all processes of the launch; rank 0 writes the total cycles per second.

    Args:
        out: File for the result.
        cycles_each: Cycles of each process.
        batch_size: Batch size of each process.
    """
    torch.set_num_threads(1)
    clock = EpochClock(1, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        cycles = cycles_each * int(os.environ.get("WORLD_SIZE", "1"))
        recipe = Recipe(name="bench")
        recipe.encoder.config = {"width_mult": 0.4}
        draw = np.random.Generator(np.random.Philox(key=1))
        sound = [draw.standard_normal(round(2.7 * 32000), dtype=np.float32) * np.float32(0.1) for _ in range(cycles)]
        flags = (draw.random((cycles, 2)) < 0.3).astype(np.float32)
        targets = Targets(["crackle", "wheeze"], flags, flags.sum(1).astype(np.int64), np.arange(cycles))
        model, extractor = make_model(recipe, targets.names), make_extractor(recipe.features)
        dataset = CycleDataset(sound, targets, [str(row) for row in range(cycles)], 32000, 0)
        settings = {"num_train_epochs": 2, "ddp_find_unused_parameters": False}
        trainer = plain_trainer(folder, model, dataset, extractor, batch_size, [clock], **settings)
        trainer.train()
        if trainer.is_world_process_zero():
            with atomic_write(out) as file:
                file.write(repr(cycles / clock.seconds))
        trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    train_together(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
