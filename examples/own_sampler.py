"""An own sampler: an ordinary torch `Sampler` of row numbers.

In a recipe: `sampler: {class: own_sampler:OneCyclePerPatient}`, further keys are arguments. Run it:
`python examples/own_sampler.py`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

import laennec


class OneCyclePerPatient(Sampler[int]):
    """Rounds of one cycle per patient, so that neighbouring rows come from different patients.

    Args:
        table: The table of the training cycles, which defines the row numbers.
        batch_size: Rows of a batch.
        seed: Seed of the run.
        rounds: Cycles of each patient in an epoch.
    """

    def __init__(self, table: Any, batch_size: int, seed: int, rounds: int = 4) -> None:
        patients = np.asarray(table["patient_id"])
        self.rows = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
        self.seed, self.rounds, self.epoch = seed, rounds, 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch; the order depends on (seed, epoch) alone, so a run can be resumed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rounds * len(self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        for _ in range(self.rounds):
            for patient in generator.permutation(len(self.rows)):
                yield int(generator.choice(self.rows[patient]))


def main(out: str = "runs/own_sampler", steps: int = -1) -> None:
    """Train the demo with it."""
    sampler = {"class": "own_sampler:OneCyclePerPatient", "rounds": 6}
    recipe = laennec.Recipe.from_yaml("demo/add_cnn", output_dir=out, train__max_steps=steps, sampler=sampler)
    print("run:", laennec.train(recipe))


if __name__ == "__main__":
    main()
