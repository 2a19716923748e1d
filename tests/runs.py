"""Inspect the results of commands: compare two runs bit by bit, find unfinished files, check one-line errors."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pandas as pd
from safetensors.numpy import load_file

KEPT = ("history", "best_epoch", "best_metric", "operating_points")


def what_it_left(run: Path) -> tuple:
    """Weights, validation predictions, and the run record without times, to compare two runs bit by bit."""
    record = json.loads((run / "run.json").read_text())
    kept = json.dumps({k: record[k] for k in KEPT}, sort_keys=True)
    weights = {k: v.tobytes() for k, v in load_file(run / "model" / "model.safetensors").items()}
    return weights, pd.read_parquet(run / "predictions-validation.parquet").to_csv(), kept


@contextlib.contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Raise KeyboardInterrupt in the training step of this number, counted over all trainings."""
    from laennec.training.trainer import LaennecTrainer

    steps, plain = [], LaennecTrainer.training_step

    def breaks(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == step:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    with mock.patch.object(LaennecTrainer, "training_step", breaks):
        yield


def half_made(*folders: Path) -> list[Path]:
    """Temporary files of unfinished writes; lock files are not counted, because `datasets` leaves them in any case."""
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix != ".lock"]
    return [p for p in found if p.name.endswith((".part", ".old", ".tmp", ".writing")) or "incomplete" in p.name]


def one_line(capsys, *said) -> str:
    """Check that stderr, without notes and progress, is one line that contains all of these; return the line."""
    err = [line for line in capsys.readouterr().err.splitlines() if ": note: " not in line and "it/s]" not in line]
    assert len(err) == 1 and err[0].startswith("laennec: "), err
    assert all(str(part) in err[0] for part in said), err
    return err[0]
