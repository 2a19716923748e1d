"""Do settings that save time or memory change what is learned?

Decisions: three seeds train without and with each of bf16, gradient checkpointing and compiled layers; the training
loss curve of a seed is compared with the plain curve of the same seed, epoch by epoch. The largest difference is
divided by the standard deviation of the plain curves over seeds, which is the noise between runs. A setting that is not
available here is reported as such. Cycles keep their natural lengths, because compiling used to fail with them. The row
runs only when it is named, because it takes a dozen trainings.
"""

import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.row import Row, Setting
from laennec.training.recipe import Recipe
from laennec.training.run import train

_SEEDS, _EPOCHS = (0, 1, 2), 2
_OPTIONS: dict[str, Any] = {}  # options of the synthetic corpus
KEYS = ("bf16", "gradient_checkpointing", "compile")
_AST: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_length": 512,
    "layer_norm_eps": 1e-6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def curves(setting: Setting) -> list[Row]:
    """Training losses of a small AST with each setting against those without, over three seeds."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(setting, Path(folder))
        plain = np.stack([_curve(recipe, Path(folder), seed)[0] for seed in _SEEDS])
        noise = float(np.sqrt(plain.var(0, ddof=1).mean()))
        rows = []
        for key in KEYS:
            warned = _Warned(f"train.{key}")
            logging.getLogger("laennec").addHandler(warned)
            try:
                made = [_curve(recipe, Path(folder), seed, key) for seed in _SEEDS]
            finally:
                logging.getLogger("laennec").removeHandler(warned)
            losses, seconds = np.stack([losses for losses, _ in made]), made[0][1]
            rows.append(_row(key, plain, losses, noise, seconds, warned.said, recipe["corpus"]["name"]))
    return rows


def _row(
    key: str,
    plain: NDArray[np.float64],
    losses: NDArray[np.float64],
    noise: float,
    seconds: float,
    said: str,
    corpus: str,
) -> Row:
    """The largest difference between the curves with a setting and the plain ones, against the noise over seeds."""
    name = f"loss curve with train.{key}"
    if said:
        return Row(name, None, noise, "loss", None, "< 1", f"not measured here: {said}")
    difference = float(np.abs(losses - plain).max())
    note = (
        f"largest difference to the same seed's plain curve against the standard deviation over seeds; a small AST on "
        f"{corpus}, {len(_SEEDS)} seeds, {_EPOCHS} epochs, losses from {plain[:, 0].mean():.3f} to "
        f"{plain[:, -1].mean():.3f}; the first training took {seconds:.0f} s"
    )
    return Row(name, difference, noise, "loss", difference / noise, "< 1", note)


class _Warned(logging.Handler):
    """Keeps the first warning that names a setting."""

    def __init__(self, key: str) -> None:
        super().__init__(logging.WARNING)
        self.key, self.said = key, ""

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record."""
        if self.key in record.getMessage() and not self.said:
            self.said = record.getMessage()


def _recipe(setting: Setting, folder: Path) -> dict[str, Any]:
    """A small AST on the real subset of ICBHI 2017 if it is available, else on the synthetic corpus."""
    real = setting.data_dir / "icbhi2017_subset" if setting.data_dir else None
    corpus: dict[str, Any] = {"name": "synthetic", "data_dir": str(folder / "corpus"), "protocol": "patient-60-20-20"}
    corpus["options"] = dict(_OPTIONS)
    if real is not None and real.is_dir():
        corpus |= {"name": "icbhi2017", "data_dir": str(real), "allow_missing": True, "options": {}}
    return {
        "name": "curves",
        "corpus": corpus,
        "features": {"preset": "ast"},
        "encoder": {"type": "ast", "config": dict(_AST)},
        "sampler": {"name": "length_bucketed"},
        "train": {"epochs": _EPOCHS, "batch_size": 16, "selection_metric": "loss"},
    }


def _curve(recipe: dict[str, Any], folder: Path, seed: int, key: str | None = None) -> tuple[Any, float]:
    """Mean training loss of each epoch (epochs,), and the training time in seconds."""
    made = Recipe.from_record(recipe | {"seed": seed})
    if key is not None:
        setattr(made.train, key, True)
    made.output_dir = str(folder / f"{key or 'plain'}-{seed}")
    start = time.perf_counter()
    history = json.loads((train(made) / "run.json").read_text())["history"]
    return np.array([entry["loss"] for entry in history]), time.perf_counter() - start
