"""One model for SPRSound and the ICBHI subset: does it help to train last layers, with losses across corpora?

    python -m benchmarks.two_corpora --sprsound data/sprsound --icbhi data/icbhi2017_subset --last-layers 2

A hidden layer and the last blocks of a mobilenet are trained on SPRSound, on the ICBHI subset or on both, with both
corpora drawn equally often. Patients of the ICBHI subset are held out in five folds and scored together; a quarter of
its other patients and a fifth of SPRSound's patients choose the epoch. The official test splits are not read. The
result is docs/results/two_corpora_last_layers.json.
"""

import argparse
import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupKFold
from torch import nn

from benchmarks.head_losses import Head, areas, bce, predict
from benchmarks.operating_point import Array
from benchmarks.sprsound import LABELS, train_split_before_last_layers
from laennec.evaluation.intervals import effective_patients, patient_codes, patient_intervals
from laennec.evaluation.metrics import RankedLabel
from laennec.losses import DeviceAdversarialLoss, GradientReversal, SupConLoss
from laennec.training.record import hardware, versions, write_record

RESULT = Path(__file__).resolve().parents[1] / "docs/results/two_corpora_last_layers.json"
FOLDS, BATCH, ADULT_YEARS = 5, 64, 18
RATE, DECAY, TEMPERATURE = 5e-4, 1e-2, 0.1
# training corpora, weight of the device-adversarial loss, weight of SupCon
METHODS: dict[str, tuple[tuple[str, ...], float, float]] = {
    "SPRSound alone": (("sprsound",), 0.0, 0.0),
    "ICBHI subset alone": (("icbhi2017",), 0.0, 0.0),
    "both": (("sprsound", "icbhi2017"), 0.0, 0.0),
    "both, device-adversarial": (("sprsound", "icbhi2017"), 0.1, 0.0),
    "both, SupCon by label": (("sprsound", "icbhi2017"), 0.0, 0.1),
}


class Both:
    """The cycles of both corpora in one table, and the inputs of the last layers."""

    def __init__(self, folders: dict[str, str], weights: str, layers: int) -> None:
        found = {name: train_split_before_last_layers(path, weights, layers, name) for name, path in folders.items()}
        self.x = torch.from_numpy(np.concatenate([x for x, _, _ in found.values()]))
        self.body = next(iter(found.values()))[1]
        self.rows = pd.concat([rows.assign(corpus=name) for name, (_, _, rows) in found.items()], ignore_index=True)
        self.y = torch.tensor(self.rows[list(LABELS)].to_numpy(), dtype=torch.float32)
        self.devices = torch.tensor(pd.factorize(self.rows.corpus + self.rows.device.fillna(""))[0])
        with torch.no_grad():
            before = torch.cat([self.body.eval()(some) for some in self.x.split(512)])
        self.new = partial(Head, self.body, before.mean(0), before.std().item())

    def of(self, corpus: str) -> Array:
        """Row numbers of a corpus."""
        return np.flatnonzero(self.rows.corpus == corpus)


def batches(parts: list[Array], draw: np.random.Generator) -> list[Array]:
    """Rows of each batch of an epoch: equally many of each part, until the largest part is used up."""
    share = BATCH // len(parts)
    steps = max(map(len, parts)) // share
    drawn = [np.concatenate([draw.permutation(part) for _ in range(-(-steps * share // len(part)))]) for part in parts]
    return [np.concatenate([rows[k * share : (k + 1) * share] for rows in drawn]) for k in range(steps)]


def train(data: Both, method: str, parts: list[Array], held: list[Array], wanted: Array, epochs: int, seed: int) -> Any:
    """Logits (wanted rows, labels) of the epoch with the best mean AUROC over the validation rows of each corpus."""
    torch.manual_seed(seed)
    _, adversarial, contrast = METHODS[method]
    head, reversal = data.new(), GradientReversal()
    device_head = nn.Linear(head.out.in_features, int(data.devices.max()) + 1)
    optimizer = torch.optim.AdamW([*head.parameters(), *device_head.parameters()], lr=RATE, weight_decay=DECAY)
    classes = (data.y[:, 0] + 2 * data.y[:, 1]).long()
    devices, supcon = DeviceAdversarialLoss(), SupConLoss(TEMPERATURE)
    draw, best, kept = np.random.default_rng(seed), -1.0, np.zeros(0)
    for epoch in range(epochs):
        head.train()
        for rows in batches(parts, draw):
            optimizer.zero_grad()
            embeddings = head.embed(data.x[rows])
            hidden = head.hidden(embeddings)
            loss = bce(head.out(hidden), data.y[rows])
            if adversarial:
                reversal.set_progress(epoch / epochs)
                loss = (
                    loss
                    + adversarial * devices(device_head(reversal(hidden)), data.devices[rows])["device_adversarial"]
                )
            if contrast:
                views = torch.stack([hidden, head.hidden(embeddings)], dim=1)
                loss = loss + contrast * supcon(views, classes[rows])["supcon"]
            loss.backward()
            optimizer.step()
        head.eval()
        reached = float(np.mean([areas(data.y[rows].numpy(), predict(head, data.x[rows])) for rows in held]))
        if reached > best:
            best, kept = reached, predict(head, data.x[wanted])
    return kept


def predictions(data: Both, method: str, epochs: int, seed: int) -> dict[str, Array]:
    """Logits (rows, labels) by corpus: of all ICBHI cycles, out of fold, and of SPRSound's validation patients."""
    names = METHODS[method][0]
    train_rows, validation = split(data, data.of("sprsound"), 5)
    icbhi = data.of("icbhi2017")
    patients = data.rows.patient_id.to_numpy()
    # a model of SPRSound alone has seen no patient of ICBHI
    folds = [(np.arange(0), np.arange(len(icbhi)))]
    if "icbhi2017" in names:
        folds = list(GroupKFold(FOLDS, shuffle=True, random_state=seed).split(icbhi, groups=patients[icbhi]))
    out, of_validation = np.empty((len(icbhi), len(LABELS))), []
    for known, held in folds:
        parts, chosen_on = [], []
        if "sprsound" in names:
            parts, chosen_on = [train_rows], [validation]
        if "icbhi2017" in names:
            fitted, left = split(data, icbhi[known], 4)
            parts, chosen_on = [*parts, fitted], [*chosen_on, left]
        test = icbhi[held]
        logits = train(data, method, parts, chosen_on, np.r_[test, validation], epochs, seed)
        out[held] = logits[: len(test)]
        of_validation.append(logits[len(test) :])
    return {"icbhi2017": out, "sprsound": np.mean(of_validation, axis=0)}


def split(data: Both, rows: Array, parts: int) -> tuple[Array, Array]:
    """Rows for training, and rows of one of `parts` groups of patients for validation."""
    patients = data.rows.patient_id.to_numpy()[rows]
    fitted, left = next(iter(GroupKFold(parts, shuffle=True, random_state=0).split(rows, groups=patients)))
    return rows[fitted], rows[left]


def scored(rows: pd.DataFrame, of_seeds: list[Array], base: list[Array] | None) -> dict[str, Any]:
    """AUROC of each label, mean over seeds, and its difference from the base, with intervals over patients."""
    truth = rows[list(LABELS)].to_numpy(dtype=int)
    codes, _ = patient_codes(rows.patient_id)
    effective = {name: effective_patients(codes, truth[:, k]) for k, name in enumerate(LABELS)}

    def statistic(one: list[Array]) -> Any:
        ranked = {name: [RankedLabel(z[:, k], truth[:, k]) for z in one] for k, name in enumerate(LABELS)}
        return lambda weights: {
            f"{name}.roc_auc": np.mean([label.auroc(weights) for label in labels], axis=0)
            for name, labels in ranked.items()
        }

    own = statistic(of_seeds)
    once = own(np.ones((1, len(rows))))
    bounds = patient_intervals(rows.patient_id, own, effective)
    found: dict[str, Any] = {
        name: {"auroc": float(once[f"{name}.roc_auc"][0]), "interval": bounds[f"{name}.roc_auc"]} for name in LABELS
    }
    if base is not None:
        other = statistic(base)

        def difference(weights: Array) -> dict[str, Array]:
            ours, theirs = own(weights), other(weights)
            return {name: ours[name] - theirs[name] for name in ours}

        gain = difference(np.ones((1, len(rows))))
        bounds = patient_intervals(rows.patient_id, difference, effective, shares=False)
        for name in LABELS:
            key = f"{name}.roc_auc"
            found[name] |= {"difference": float(gain[key][0]), "difference_interval": bounds[key]}
    return found | {"patients": int(rows.patient_id.nunique()), "cycles": len(rows), "effective_patients": effective}


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprsound", default="data/sprsound", help="folder of SPRSound")
    parser.add_argument("--icbhi", default="data/icbhi2017_subset", help="folder of ICBHI 2017 or of its subset")
    parser.add_argument("--weights", default="weights/mn04_as_mAP_432.pt")
    parser.add_argument("--last-layers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data = Both({"sprsound": options.sprsound, "icbhi2017": options.icbhi}, options.weights, options.last_layers)
    icbhi = data.rows.iloc[data.of("icbhi2017")]
    adults = (icbhi.age_years >= ADULT_YEARS).to_numpy()
    children = data.rows.iloc[split(data, data.of("sprsound"), 5)[1]]
    results, base = [], None
    for method in METHODS:
        of_seeds = [predictions(data, method, options.epochs, seed) for seed in range(options.seeds)]
        parts = {
            "ICBHI subset": (icbhi, [one["icbhi2017"] for one in of_seeds]),
            "ICBHI subset, adults": (icbhi[adults], [one["icbhi2017"][adults] for one in of_seeds]),
            "SPRSound, validation": (children, [one["sprsound"] for one in of_seeds]),
        }
        base = base or {name: z for name, (_, z) in parts.items()}
        first = method == next(iter(METHODS))
        row = {name: scored(rows, z, None if first else base[name]) for name, (rows, z) in parts.items()}
        print(method, {n: {k: round(r[k]["auroc"], 3) for k in LABELS} for n, r in row.items()}, flush=True)
        results.append({"method": method, **row})
    record = {
        "methods": results, "folds": FOLDS, "seeds": options.seeds, "epochs": options.epochs,
        "last_layers": options.last_layers, "date": datetime.date.today().isoformat(), "hardware": hardware(),
        "versions": versions(),
    }  # fmt: skip
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
