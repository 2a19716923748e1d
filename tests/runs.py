"""What commands leave behind: a finished run, for comparing two to the last bit, and one line of error."""

import json
from pathlib import Path

import pandas as pd
from safetensors.numpy import load_file

KEPT = ("history", "best_epoch", "best_metric", "operating_points")


def what_it_left(run: Path) -> tuple:
    """Weights, validation predictions, and the record but for times."""
    record = json.loads((run / "run.json").read_text())
    kept = json.dumps({k: record[k] for k in KEPT}, sort_keys=True)
    weights = {k: v.tobytes() for k, v in load_file(run / "model" / "model.safetensors").items()}
    return weights, pd.read_parquet(run / "predictions-validation.parquet").to_csv(), kept


def one_line(capsys, *said) -> str:
    """The error output is one line, notes aside, that holds all of these."""
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("laennec: note: ")]
    assert len(err) == 1 and err[0].startswith("laennec: "), err
    assert all(str(part) in err[0] for part in said), err
    return err[0]
