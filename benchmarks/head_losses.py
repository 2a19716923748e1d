"""Does an auxiliary loss help, with the same search for each? Nested cross-validation over SPRSound's train patients.

    python -m benchmarks.head_losses --data-dir data/sprsound --weights weights/mn04_as_mAP_432.pt
    python -m benchmarks.head_losses --last-layers 1 --trials 3 --epochs 12

A hidden layer on the embeddings of an encoder is trained with binary cross entropy and one more loss; the encoder is
frozen, or its last layers are trained too. Every method has the same budget: for each outer fold of patients, --trials
random draws of its settings, of which inner validation patients choose the best; then --seeds runs with these settings,
each with its best epoch on the same patients. Each seed predicts the outer fold once. Test splits are not read. The
result is docs/results/head_losses.json or docs/results/last_layer_losses.json.
"""

import argparse
import copy
import datetime
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from benchmarks.operating_point import Array
from benchmarks.sprsound import LABELS, embedded_train_split, train_split_before_last_layers
from laennec.evaluation.intervals import effective_patients, interval, patient_codes
from laennec.losses import (
    AngularDistanceDistributionLoss,
    FocalLoss,
    OrthogonalProjectionLoss,
    SupConLoss,
    TupletContrastiveLoss,
    draw_negatives,
)
from laennec.training.record import hardware, versions, write_record

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"
BATCH, HIDDEN, MARGIN = 128, 256, 0.01
Settings = dict[str, float]
Step = Callable[["Head", Tensor, Tensor, Tensor, Settings], Tensor]
bce = nn.functional.binary_cross_entropy_with_logits


class Head(nn.Module):
    """Embeddings (batch, dim) -> a hidden layer (batch, HIDDEN) -> logits (batch, labels).

    Args:
        body: Maps rows of the data to embeddings: the last layers of an encoder, or the identity.
        center: Subtracted from embeddings, (dim,).
        scale: Divisor of all embedding columns.
    """

    def __init__(self, body: nn.Module, center: Tensor, scale: float) -> None:
        super().__init__()
        self.body, self.center, self.scale = copy.deepcopy(body), center, scale
        self.hidden = nn.Sequential(nn.Dropout(0.2), nn.Linear(len(center), HIDDEN), nn.ReLU())
        self.out = nn.Linear(HIDDEN, len(LABELS))

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (batch, dim) of rows of the data."""
        return (self.body(x) - self.center) / self.scale

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (batch, labels)."""
        return self.out(self.hidden(embeddings))


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
    """SupCon of two views, which are two draws of dropout."""
    views = torch.stack([head.hidden(x), head.hidden(x)], dim=1)
    return bce(head.out(views[:, 0]), y) + s["weight"] * SupConLoss(s["temperature"])(views, classes)["supcon"]


def tuplet(head: Head, x: Tensor, y: Tensor, classes: Tensor, s: Settings) -> Tensor:
    """Tuplet loss: every cycle with another cycle of its class in the batch is an anchor, with eight negatives."""
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
    """Mixup of embeddings and labels of two cycles."""
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
# ranges of settings, drawn uniformly on a log scale; the first two are for every method
RANGES = {
    "learning_rate": (2e-4, 5e-3), "weight_decay": (1e-3, 1e-1), "weight": (1e-2, 1.0), "temperature": (0.05, 1.0),
    "gamma": (0.5, 3.0), "alpha": (0.1, 2.0),
}  # fmt: skip


def areas(truth: Array, logits: Array) -> float:
    """Mean AUROC of the labels."""
    return float(np.mean([roc_auc_score(truth[:, k], logits[:, k]) for k in range(len(LABELS))]))


@dataclass
class Data:
    """The train split, and the encoder layers that are trained with a head."""

    x: Tensor  # (events, ...): embeddings, or inputs of the last layers
    y: Tensor  # (events, labels)
    body: nn.Module  # makes embeddings of x
    patients: Array  # (events,)
    epochs: int


def train(
    data: Data, new: Callable[[], Head], step: Step, s: Settings, rows: tuple[Array, Array, Array], seed: int
) -> Any:
    """Train one head.

    Args:
        data: The events.
        new: Makes the head.
        step: The loss of a batch.
        s: Settings of the method.
        rows: Events for training, for validation, and those to predict.
        seed: Seed of all draws.

    Returns:
        The best validation AUROC (mean of the labels) over epochs, and that epoch's logits (rows to predict, labels).
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    fitted, left, wanted = rows
    classes = (data.y[:, 0] + 2 * data.y[:, 1]).long()
    head = new()
    optimizer = torch.optim.AdamW(head.parameters(), lr=s["learning_rate"], weight_decay=s["weight_decay"])
    best, kept = -1.0, np.zeros(0)
    for _ in range(data.epochs):
        head.train()
        for batch in torch.from_numpy(np.random.permutation(fitted)).split(BATCH)[:-1]:
            optimizer.zero_grad()
            step(head, head.embed(data.x[batch]), data.y[batch], classes[batch], s).backward()
            optimizer.step()
        head.eval()
        if (reached := areas(data.y[left].numpy(), predict(head, data.x[left]))) > best:
            best, kept = reached, predict(head, data.x[wanted])
    return best, kept


@torch.no_grad()
def predict(head: Head, x: Tensor) -> Array:
    """Logits (rows, labels)."""
    return torch.cat([head(head.embed(some)) for some in x.split(512)]).numpy()


def outer_fold(fold: int, data: Data, trials: int, seeds: int) -> list[dict[str, Any]]:
    """For each method: the chosen settings, seconds, and logits (seeds, held rows, labels)."""
    torch.set_num_threads(1)
    known, held = list(GroupKFold(5, shuffle=True, random_state=0).split(data.y, groups=data.patients))[fold]
    inner = GroupKFold(5, shuffle=True, random_state=1).split(known, groups=data.patients[known])
    fitted, left = (known[rows] for rows in next(iter(inner)))
    with torch.no_grad():
        before = torch.cat([data.body.eval()(some) for some in data.x[known].split(512)])
    new = partial(Head, data.body, before.mean(0), before.std().item())
    found = []
    for name, (step, own) in METHODS.items():
        start, draw = time.process_time(), np.random.default_rng(fold)
        tried = []
        for _ in range(trials):
            drawn = {key: float(np.exp(draw.uniform(*np.log(RANGES[key])))) for key in RANGES}
            s = {key: drawn[key] for key in ("learning_rate", "weight_decay", *own)}
            tried.append((train(data, new, step, s, (fitted, left, left), 0)[0], s))
        value, s = max(tried, key=lambda one: one[0])
        runs = [train(data, new, step, s, (fitted, left, held), seed)[1] for seed in range(1, seeds + 1)]
        seconds = time.process_time() - start
        print(f"{fold} {name}: {value:.4f} {s} {seconds:.0f} s", flush=True)
        found.append(
            {"fold": fold, "method": name, "settings": s, "held": held, "logits": np.stack(runs), "s": seconds}
        )
    return found


def left_out(truth: Array, logits: Array, patients: Array) -> Array:
    """Mean AUROC over all patients of a fold, then without each: (1 + patients,)."""
    kept = [np.ones(len(patients), dtype=bool), *(patients != patient for patient in np.unique(patients))]
    return np.array([areas(truth[rows], logits[rows]) for rows in kept])


def compare(ours: list[Array], base: list[Array], effective: float) -> dict[str, Any]:
    """Difference in mean AUROC of two methods, with an interval over patients and seeds and a sign test over folds.

    Args:
        ours: For each fold, what `left_out` returned for each seed: (seeds, 1 + patients of the fold).
        base: The same of the method that it is compared with.
        effective: Effective number of patients with the rarer finding.
    """
    both = list(zip(ours, base, strict=True))
    by_fold = [one.mean(0) - other.mean(0) for one, other in both]
    gains = np.array([fold[0] for fold in by_fold])
    without = [gains.mean() + (fold[1:] - fold[0]) / len(gains) for fold in by_fold]
    runs = [np.mean([fold[:, 0] for fold in method], axis=0) for method in (ours, base)]
    low, high = interval(np.concatenate([[gains.mean()], *without]), effective, runs=runs) or (-np.inf, np.inf)
    flips = np.array(list(itertools.product((1, -1), repeat=len(gains))))
    p = float(np.mean(np.abs(flips @ gains) >= abs(gains.sum()) - 1e-12))
    return {
        "difference": float(gains.mean()), "interval": [low, high], "folds ahead": int((gains > 0).sum()),
        "p": p, "smallest p": 2 / len(flips), "within margin": bool(low > -MARGIN and high < MARGIN),
    }  # fmt: skip


def rarest(truth: Array, patients: Array) -> float:
    """Effective number of patients with the rarer finding."""
    codes, _ = patient_codes(patients)
    return min(effective_patients(codes, truth[:, k]) for k in range(len(LABELS)))


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data/sprsound")
    parser.add_argument("--weights", default="weights/mn04_as_mAP_432.pt")
    parser.add_argument("--last-layers", type=int, default=0, help="how many blocks of the encoder learn too")
    parser.add_argument("--trials", type=int, default=10, help="draws of settings for each method")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    body: nn.Module = nn.Identity()
    if options.last_layers:
        x, body, rows = train_split_before_last_layers(options.data_dir, options.weights, options.last_layers)
    else:
        x, rows = embedded_train_split(options.data_dir, options.weights)
    y = torch.tensor(rows[list(LABELS)].to_numpy(), dtype=torch.float32)
    data = Data(torch.from_numpy(x), y, body, rows.patient_id.to_numpy(), options.epochs)
    job = partial(outer_fold, data=data, trials=options.trials, seeds=options.seeds)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        found = [one for fold in pool.map(job, range(5)) for one in fold]
    truth, patients = rows[list(LABELS)].to_numpy(dtype=int), rows.patient_id.to_numpy()
    effective = rarest(truth, patients)
    results: list[dict[str, Any]] = []
    values: dict[str, list[Array]] = {}
    for name in METHODS:
        own = [one for one in found if one["method"] == name]
        values[name] = [
            np.stack([left_out(truth[one["held"]], z, patients[one["held"]]) for z in one["logits"]]) for one in own
        ]
        labels = {
            label: float(np.mean([roc_auc_score(truth[one["held"], k], z[:, k]) for one in own for z in one["logits"]]))
            for k, label in enumerate(LABELS)
        }
        row = {"method": name, "auroc": float(np.mean([of_fold[:, 0] for of_fold in values[name]])), **labels}
        row |= {"settings": [one["settings"] for one in own], "cpu_seconds": sum(one["s"] for one in own)}
        results.append(row | ({} if name == "BCE" else compare(values[name], values["BCE"], effective)))
    record = {
        "events": len(rows), "patients": int(rows.patient_id.nunique()), "effective": effective, "folds": 5,
        "trials": options.trials, "seeds": options.seeds, "epochs": options.epochs, "margin": MARGIN,
        "last_layers": options.last_layers, "methods": results,
        "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    write_record(RESULTS / ("last_layer_losses.json" if options.last_layers else "head_losses.json"), record)


if __name__ == "__main__":
    main()
