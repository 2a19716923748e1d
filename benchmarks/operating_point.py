"""Which rule should set the thresholds? Nested cross-validation over SPRSound's train patients.

    python -m benchmarks.operating_point --data-dir data/sprsound --weights weights/mn04_as_mAP_432.pt

Linear heads on a frozen encoder, several of its layers and the neighbouring events. A rule is fitted on out-of-fold
predictions for the patients outside an outer fold, and scored on the unseen patients of that fold. Test splits are not
read. The result is docs/results/operating_point.json.
"""

import argparse
import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.sprsound import LABELS, embedded_train_split
from laennec.evaluation.calibration.operating_point import fit_thresholds_on_validation
from laennec.evaluation.calibration.probabilities import pass_second, sigmoid
from laennec.evaluation.metrics import confusion_matrix, exact_sensitivity, four_class, specificity
from laennec.training.record import hardware, versions, write_record

LAYERS = [7, 11, 13, "embedding"]
DRAWS = 25
GROUPS = ("all patients", "patients with findings")
AUROC = "mean AUROC"  # of the labels, over all patients
RESULT = Path(__file__).resolve().parents[1] / "docs/results/operating_point.json"
Array = np.ndarray[Any, Any]


def logits_of(values: Array, truth: Array, fitted: Array, wanted: Array) -> Array:
    """Logits (wanted rows, labels) of linear heads trained on the fitted rows."""
    columns = []
    for label in range(truth.shape[1]):
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=200))
        columns.append(head.fit(values[fitted], truth[fitted, label]).decision_function(values[wanted]))
    return np.column_stack(columns)


def icbhi(logits: Array, truth: Array) -> Array:
    """Both thresholds (labels,) of the highest ICBHI Score."""
    return np.array(list(fit_thresholds_on_validation(logits, truth, LABELS, "icbhi").values()))


def youden(logits: Array, truth: Array) -> Array:
    """A threshold (labels,) of the highest sensitivity + specificity of each label."""
    return np.array(list(fit_thresholds_on_validation(logits, truth, LABELS, "youden").values()))


def equal_errors(logits: Array, truth: Array) -> Array:
    """A threshold (labels,) at which the miss rate equals the false alarm rate.

    For each label, the decision is the one with the higher label-conditional conformal p-value.
    """
    found = []
    for scores, flags in zip(logits.T, truth.T, strict=True):
        alarms, hits, places = roc_curve(flags, scores)
        found.append(places[np.argmin(np.abs(1 - hits - alarms))])
    return np.array(found)


def shrunk(logits: Array, truth: Array) -> Array:
    """Mean of the thresholds of the ICBHI Score and the logit of each label's share."""
    return (icbhi(logits, truth) + logit(truth.mean(0))) / 2


def calibrated(logits: Array, truth: Array, *others: Array) -> list[Array]:
    """The logits, and other logits, calibrated with slope and intercept fitted for each label."""
    heads = [LogisticRegression(C=np.inf).fit(logits[:, [k]], truth[:, k]) for k in range(2)]
    return [
        np.column_stack([head.decision_function(z[:, [k]]) for k, head in enumerate(heads)]) for z in (logits, *others)
    ]


def likeliest(logits: Array, truth: Array, wanted: Array) -> Array:
    """Decisions of rule icbhi_likeliest, as 1 and -1, (wanted rows, labels)."""
    own, z = calibrated(logits, truth, wanted)
    above = z > list(fit_thresholds_on_validation(own, truth, LABELS, "icbhi_likeliest").values())
    return np.where(above & pass_second(sigmoid(z), np.full(2, 0.5)), 1, -1)


def least_cost(logits: Array, truth: Array, wanted: Array) -> Array:
    """Decisions of the highest expected ICBHI Score, as 1 and -1, (wanted rows, labels).

    A right decision is worth 1 / the number of normal (or of abnormal) events; the probabilities of the four classes
    follow from calibrated label probabilities, which are taken as independent.
    """
    crackle, wheeze = sigmoid(calibrated(logits, truth, wanted)[1]).T
    classes = np.column_stack(
        [(1 - crackle) * (1 - wheeze), crackle * (1 - wheeze), (1 - crackle) * wheeze, crackle * wheeze]
    )
    abnormal = truth.any(axis=1).mean()
    best = (classes / np.array([1 - abnormal, abnormal, abnormal, abnormal])).argmax(axis=1)
    return np.column_stack([best & 1, best >> 1]) * 2 - 1


def averaged(logits: Array, truth: Array, patients: Array, draw: np.random.Generator) -> Array:
    """The mean of the thresholds from bootstrap samples of patients."""
    rows_of = list(pd.Series(range(len(patients))).groupby(patients).indices.values())
    found = []
    for _ in range(DRAWS):
        rows = np.concatenate([rows_of[k] for k in draw.integers(0, len(rows_of), len(rows_of))])
        found.append(icbhi(logits[rows], truth[rows]))
    return np.mean(found, axis=0)


def with_findings(truth: Array, patients: Array) -> Array:
    """Whether a row is of a patient who has at least one crackle or wheeze, (rows,) bool."""
    ill = set(patients[truth.any(axis=1)])
    return np.array([patient in ill for patient in patients])


def prior_shifted(logits: Array, shares: Array) -> Array:
    """Logits after EM estimation of each label's share among the unlabelled rows (Saerens et al., 2002)."""
    shifted = np.empty_like(logits)
    for k, share in enumerate(shares):
        now, old = share, np.log(share / (1 - share))
        for _ in range(100):
            shifted[:, k] = logits[:, k] + np.log(now / (1 - now)) - old
            now = float(np.clip(sigmoid(shifted[:, k]).mean(), 1e-3, 1 - 1e-3))
    return shifted


def score(logits: Array, truth: Array, thresholds: Array) -> float:
    """ICBHI Score in percent."""
    true, said = four_class(*truth.T), four_class(*(logits > thresholds).astype(int).T)
    counts = confusion_matrix(true, said, 4)
    return (float(exact_sensitivity(counts)) + float(specificity(counts))) / 2


RULES: dict[str, str] = {
    "probability 0.5": "each label at the probability 0.5",
    "one split": "ICBHI Score on one fifth of the patients, a head trained on the other four (common practice)",
    "one split, ensemble": "the same thresholds for the mean of five heads",
    "one split, likeliest": "ICBHI Score on the same fifth; the less likely label needs the probability 0.5 too",
    "out of fold": "ICBHI Score on all patients, each predicted by a head that had not seen them; mean of five heads",
    "out of fold, likeliest": "the same; the less likely label needs the probability 0.5 too",
    "out of fold, averaged": f"the mean of the thresholds of {DRAWS} bootstrap samples of these patients",
    "out of fold, youden": "sensitivity + specificity of each label on the same predictions",
    "out of fold, equal errors": "as many misses as false alarms, in shares, of each label (conformal)",
    "out of fold, shrunk": "half-way from those of the ICBHI Score to the logit of each label's share",
    "out of fold, least cost": "no thresholds: the class of the highest expected Score, from calibrated probabilities",
    "out of fold, findings": "ICBHI Score on the patients who have a finding",
    "out of fold, prior shift": "averaged thresholds; logits shifted by the share of each label that EM estimates "
    "from the unlabelled events of the outer fold",
}


def outer_folds(values: Array, rows: pd.DataFrame, seeds: int) -> Iterator[dict[str, Any]]:
    """Scores by rule on each outer fold, for all its patients and for those with a finding."""
    truth, patients = rows[list(LABELS)].to_numpy(dtype=int), rows.patient_id.to_numpy()
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        outer = GroupKFold(5, shuffle=True, random_state=seed)
        for number, (known, held) in enumerate(outer.split(values, groups=patients)):
            inner = list(GroupKFold(5, shuffle=True, random_state=seed).split(known, groups=patients[known]))
            own, of_head = np.empty((len(known), 2)), []
            for fitted, left in inner:
                logits = logits_of(values, truth, known[fitted], np.r_[known[left], held])
                own[left] = logits[: len(left)]
                of_head.append(logits[len(left) :])
            mean = np.mean(of_head, axis=0)
            ill = with_findings(truth[known], patients[known])
            average = averaged(own, truth[known], patients[known], draw)
            single = [icbhi(own[left], truth[known[left]]) for _, left in inner]
            decided: dict[str, list[tuple[Array, Array]]] = {
                "probability 0.5": [(mean, np.zeros(2))],
                "one split": list(zip(of_head, single, strict=True)),
                "one split, likeliest": [
                    (likeliest(own[left], truth[known[left]], z), np.zeros(2))
                    for z, (_, left) in zip(of_head, inner, strict=True)
                ],
                "one split, ensemble": [(mean, one) for one in single],
                "out of fold": [(mean, icbhi(own, truth[known]))],
                "out of fold, likeliest": [(likeliest(own, truth[known], mean), np.zeros(2))],
                "out of fold, averaged": [(mean, average)],
                "out of fold, youden": [(mean, youden(own, truth[known]))],
                "out of fold, equal errors": [(mean, equal_errors(own, truth[known]))],
                "out of fold, shrunk": [(mean, shrunk(own, truth[known]))],
                "out of fold, least cost": [(least_cost(own, truth[known], mean), np.zeros(2))],
                "out of fold, findings": [(mean, icbhi(own[ill], truth[known][ill]))],
                "out of fold, prior shift": [(prior_shifted(mean, truth[known].mean(0)), average)],
            }
            there = with_findings(truth[held], patients[held])
            for rule, decisions in decided.items():
                both = {}
                for name, among in zip(GROUPS, (np.ones(len(held), bool), there), strict=True):
                    both[name] = float(np.mean([score(z[among], truth[held][among], t) for z, t in decisions]))
                yield {"seed": seed, "fold": number, "rule": rule, **both}
            print(seed, number, flush=True)


def compared(scores: pd.DataFrame, rules: Mapping[str, str], against: str) -> list[dict[str, Any]]:
    """For each rule: its description, its Score by group of patients, and the difference from the base rule."""
    results = []
    base = scores[scores.rule == against].set_index(["seed", "fold"])
    for rule, words in rules.items():
        of_rule = scores[scores.rule == rule].set_index(["seed", "fold"])
        row: dict[str, Any] = {"rule": rule, "words": words}
        for name in scores.columns.intersection([*GROUPS, AUROC]):
            gain = (of_rule[name] - base[name]).groupby("fold").mean()
            row[name] = {
                "score": float(of_rule[name].mean()),
                "between folds": float(of_rule[name].groupby("fold").mean().std()),
                "gain": float(gain.mean()),
                "folds ahead": int((gain > 0).sum()),
            }
        results.append(row)
    return results


def main() -> None:
    """Write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default="data/sprsound")
    parser.add_argument("--weights", default="weights/mn04_as_mAP_432.pt")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    values, rows = embedded_train_split(options.data_dir, options.weights, LAYERS, context_cycles=1)
    scores = pd.DataFrame(outer_folds(values, rows, options.seeds))
    record = {
        "events": len(rows), "patients": int(rows.patient_id.nunique()), "seeds": options.seeds, "layers": LAYERS,
        "base": "one split", "rules": compared(scores, RULES, "one split"),
        "date": datetime.date.today().isoformat(), "hardware": hardware(), "versions": versions(),
    }  # fmt: skip
    write_record(RESULT, record)


if __name__ == "__main__":
    main()
