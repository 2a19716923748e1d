"""Does an auxiliary loss help a head on frozen features? Nested cross-validation over SPRSound's train patients.

    python -m benchmarks.head_losses --data-dir data/sprsound --weights weights/mn04_as_mAP_432.pt

A hidden layer on the embeddings of a frozen encoder learns with binary cross entropy and one more loss. Every method
has the same budget: for each outer fold of patients, so many draws of its own settings, chosen on inner validation
patients; then so many seeds with the chosen settings, each with its best epoch there. Each seed predicts the outer fold
once. Test splits are not read. The result is docs/results/head_losses.json.
"""

import argparse
import datetime
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from benchmarks.operating_point import Array
from benchmarks.sprsound import LABELS, embedded_train_split
from laennec.losses import (
    AngularDistanceDistributionLoss,
    FocalLoss,
    OrthogonalProjectionLoss,
    SupConLoss,
    TupletContrastiveLoss,
    draw_negatives,
)
from laennec.training.record import hardware, versions, write_record

RESULT = Path(__file__).resolve().parents[1] / "docs/results/head_losses.json"
EPOCHS, BATCH, HIDDEN, MARGIN = 15, 128, 256, 0.01
Settings = dict[str, float]
Step = Callable[["Head", Tensor, Tensor, Tensor, Settings], Tensor]
bce = nn.functional.binary_cross_entropy_with_logits


class Head(nn.Module):
    """Embeddings (batch, dim) -> a hidden layer (batch, HIDDEN) -> logits (batch, labels)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Dropout(0.2), nn.Linear(dim, HIDDEN), nn.ReLU())
        self.out = nn.Linear(HIDDEN, len(LABELS))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, labels)."""
        return self.out(self.hidden(x))


def with_loss(make: Callable[[Settings], nn.Module]) -> Step:
    """Binary cross entropy and a weighted loss of (hidden layer, class)."""

    def step(head: Head, x: Tensor, y: Tensor, classes: Tensor, s: Settings) -> Tensor:
        hidden = head.hidden(x)
        return bce(head.out(hidden), y) + s["weight"] * sum(make(s)(hidden, classes).values())

    return step


def plain(head: Head, x: Tensor, y: Tensor, classes: Tensor, s: Settings) -> Tensor:
    """Binary cross entropy alone."""
    return bce(head(x), y)


def supcon(head: Head, x: Tensor, y: Tensor, classes: Tensor, s: Settings) -> Tensor:
    """SupCon of two draws of dropout."""
    views = torch.stack([head.hidden(x), head.hidden(x)], dim=1)
    return bce(head.out(views[:, 0]), y) + s["weight"] * SupConLoss(s["temperature"])(views, classes)["supcon"]


def tuplet(head: Head, x: Tensor, y: Tensor, classes: Tensor, s: Settings) -> Tensor:
    """Every cycle whose class has another member in the batch is an anchor, with eight negatives."""
    hidden = head.hidden(x)
    same = (classes[:, None] == classes).fill_diagonal_(False)
    anchors = same.any(1).nonzero()[:, 0]
    positives = torch.multinomial(same[anchors].float(), 1)[:, 0]
    negatives, mask = draw_negatives(classes[anchors], classes, 8)
    loss = TupletContrastiveLoss(s["temperature"])
    terms = loss(hidden[anchors], hidden[positives], hidden[negatives], mask)
    return bce(head.out(hidden), y) + s["weight"] * terms["tuplet"]


def focal(head: Head, x: Tensor, y: Tensor, classes: Tensor, s: Settings) -> Tensor:
    """The focal loss of each label in place of binary cross entropy."""
    logits = head(x)
    both = torch.stack([torch.zeros_like(logits), logits], dim=-1).flatten(0, 1)  # (batch * labels, 2)
    return FocalLoss(s["gamma"])(both, y.long().flatten())["focal"]


def mixup(head: Head, x: Tensor, y: Tensor, classes: Tensor, s: Settings) -> Tensor:
    """Embeddings and labels of two cycles, mixed."""
    share, other = float(np.random.beta(s["alpha"], s["alpha"])), torch.randperm(len(x))
    return bce(head(share * x + (1 - share) * x[other]), share * y + (1 - share) * y[other])


METHODS: dict[str, tuple[Step, tuple[str, ...]]] = {
    "BCE": (plain, ()),
    "ADD": (with_loss(lambda s: AngularDistanceDistributionLoss()), ("weight",)),
    "SupCon": (supcon, ("weight", "temperature")),
    "tuplet": (tuplet, ("weight", "temperature")),
    "OPL": (with_loss(lambda s: OrthogonalProjectionLoss()), ("weight",)),
    "focal": (focal, ("gamma",)),
    "mixup": (mixup, ("alpha",)),
}
# each drawn uniformly on a log scale, the first two for every method
RANGES = {
    "learning_rate": (2e-4, 5e-3), "weight_decay": (1e-3, 1e-1), "weight": (1e-2, 1.0), "temperature": (0.05, 1.0),
    "gamma": (0.5, 3.0), "alpha": (0.1, 2.0),
}  # fmt: skip


def areas(truth: Array, logits: Array) -> float:
    """Mean AUROC of the labels."""
    return float(np.mean([roc_auc_score(truth[:, k], logits[:, k]) for k in range(len(LABELS))]))


def train(step: Step, s: Settings, data: tuple[Tensor, Tensor], inner: Array, held: Array, seed: int) -> Any:
    """Train one head on the rows `inner`.

    Returns:
        The best validation AUROC (mean of the labels) over epochs, and that epoch's logits of all rows (rows, labels).
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    x, y = data
    classes = (y[:, 0] + 2 * y[:, 1]).long()
    head = Head(x.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=s["learning_rate"], weight_decay=s["weight_decay"])
    best, kept = -1.0, np.zeros(0)
    for _ in range(EPOCHS):
        head.train()
        for rows in torch.from_numpy(np.random.permutation(inner)).split(BATCH)[:-1]:
            optimizer.zero_grad()
            step(head, x[rows], y[rows], classes[rows], s).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            logits = head(x).numpy()
        if (reached := areas(y[held].numpy(), logits[held])) > best:
            best, kept = reached, logits
    return best, kept


def outer_folds(values: Array, rows: pd.DataFrame, trials: int, seeds: int) -> Iterator[dict[str, Any]]:
    """For each method and outer fold: the chosen settings, seconds, and logits (seeds, held rows, labels)."""
    patients = rows.patient_id.to_numpy()
    y = torch.tensor(rows[list(LABELS)].to_numpy(), dtype=torch.float32)
    folds = GroupKFold(5, shuffle=True, random_state=0)
    for fold, (known, held) in enumerate(folds.split(values, groups=patients)):
        fitted, left = next(iter(GroupKFold(5, shuffle=True, random_state=1).split(known, groups=patients[known])))
        center, scale = values[known].mean(0), values[known].std().item()  # one scale: no column is standardised
        data = torch.from_numpy(((values - center) / scale).astype(np.float32)), y
        for name, (step, own) in METHODS.items():
            start, draw = time.process_time(), np.random.default_rng(fold)
            tried = []
            for _ in range(trials):
                drawn = {key: float(np.exp(draw.uniform(*np.log(RANGES[key])))) for key in RANGES}
                s = {key: drawn[key] for key in ("learning_rate", "weight_decay", *own)}
                tried.append((train(step, s, data, known[fitted], known[left], 0)[0], s))
            value, s = max(tried, key=lambda one: one[0])
            runs = [train(step, s, data, known[fitted], known[left], seed)[1][held] for seed in range(1, seeds + 1)]
            seconds = time.process_time() - start
            print(f"{fold} {name}: {value:.4f} {s} {seconds:.0f} s", flush=True)
            yield {"fold": fold, "method": name, "settings": s, "held": held, "logits": np.stack(runs), "s": seconds}


def mean_area(found: dict[int, Array], truth: Array, held: dict[int, Array]) -> dict[int, float]:
    """Mean AUROC over seeds, by fold."""
    return {fold: float(np.mean([areas(truth[held[fold]], z) for z in found[fold]])) for fold in found}


def compare(ours: dict[int, Array], base: dict[int, Array], held: dict[int, Array], rows: pd.DataFrame) -> Any:
    """Difference of two methods' mean AUROC, with a jackknife interval over patients and a sign test over folds."""
    truth, patients = rows[list(LABELS)].to_numpy(dtype=int), rows.patient_id.to_numpy()
    a, b = mean_area(ours, truth, held), mean_area(base, truth, held)
    gains = np.array([a[fold] - b[fold] for fold in a])
    without = []
    for place, (fold, row) in enumerate(held.items()):
        for patient in np.unique(patients[row]):
            keep = patients[row] != patient
            left = [np.mean([areas(truth[row][keep], z[keep]) for z in one[fold]]) for one in (ours, base)]
            without.append((gains.sum() - gains[place] + left[0] - left[1]) / len(gains))
    n = len(without)
    error = float(np.sqrt((n - 1) / n * np.sum((np.array(without) - np.mean(without)) ** 2)))
    reach = float(student.ppf(0.975, n - 1)) * error
    flips = np.array(list(itertools.product((1, -1), repeat=len(gains))))
    p = float(np.mean(np.abs(flips @ gains) >= abs(gains.sum()) - 1e-12))
    low, high = gains.mean() - reach, gains.mean() + reach
    return {
        "difference": float(gains.mean()), "interval": [float(low), float(high)], "folds ahead": int((gains > 0).sum()),
        "p": p, "smallest p": 2 / len(flips), "within margin": bool(low > -MARGIN and high < MARGIN),
    }  # fmt: skip


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data/sprsound")
    parser.add_argument("--weights", default="weights/mn04_as_mAP_432.pt")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    values, rows = embedded_train_split(options.data_dir, options.weights)
    found = list(outer_folds(values, rows, options.trials, options.seeds))
    truth = rows[list(LABELS)].to_numpy(dtype=int)
    held = {one["fold"]: one["held"] for one in found}
    by_method = {m: {one["fold"]: one["logits"] for one in found if one["method"] == m} for m in METHODS}
    results = []
    for name, logits in by_method.items():
        own = [one for one in found if one["method"] == name]
        labels = {
            label: float(np.mean([roc_auc_score(truth[held[f], k], z[:, k]) for f in logits for z in logits[f]]))
            for k, label in enumerate(LABELS)
        }
        row = {"method": name, "auroc": float(np.mean(list(mean_area(logits, truth, held).values()))), **labels}
        row |= {"settings": [one["settings"] for one in own], "cpu_seconds": sum(one["s"] for one in own)}
        results.append(row | ({} if name == "BCE" else compare(logits, by_method["BCE"], held, rows)))
    record = {
        "events": len(rows), "patients": int(rows.patient_id.nunique()), "folds": len(held), "trials": options.trials,
        "seeds": options.seeds, "epochs": EPOCHS, "margin": MARGIN, "methods": results,
        "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
