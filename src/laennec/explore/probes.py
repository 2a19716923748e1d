"""Linear probes: how well embeddings predict labels, patients, devices and chest locations.

Decisions: a probe is a ridge regression on the standardised embedding, which has a closed form and nothing to tune on
the scored rows. Labels, devices and locations are probed on patients that the probe was not fitted on; patients on
recordings that it was not fitted on, so that it cannot use the noise of one recording. A class of fewer than five
patients is left out. Scores are AUROC, the mean of each class against the others; chance is 0.5 for any class
frequencies. Intervals leave out one patient at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from laennec.evaluation.intervals import Interval, patient_codes, patient_intervals, rarer_patients
from laennec.evaluation.metrics import FloatArray, RankedLabel
from laennec.explore.index import findings

MOST_PATIENTS = 100  # of the probe of patients, drawn at random
READABLE = 0.7
_UNKNOWN = "unknown: name the corpus that was embedded"
_FOLDS, _LEAST = 5, 5
_PENALTY = 100.0
_WORDS = {"device": "device", "chest_location": "chest location"}


@dataclass(frozen=True)
class Probe:
    """What one probe found."""

    name: str
    kind: str  # "label", "patient", "device" or "chest location"
    auroc: float | None  # None where it cannot be measured
    interval: Interval
    note: str  # what it was measured on, or why not


def probes(embeddings: NDArray[np.float32], rows: pd.DataFrame, seed: int = 0) -> list[Probe]:
    """Probe each label, the patient, the device and the chest location.

    Args:
        embeddings: (spans, dim).
        rows: As `EmbeddingIndex.rows`; columns that are missing or empty are reported as unknown.
        seed: Seed of the draw of patients.
    """
    patients = pd.Series([None if one is None else f"p:{one}" for one in _texts(rows, "patient_id")], rows.index)
    found = []
    labels = [findings(text) for text in _texts(rows, "label")]
    for name in sorted({part for parts in labels for part in parts or ()}):
        has = np.array([name in (parts or ()) for parts in labels])
        known = np.array([parts is not None for parts in labels])
        found.append(_grouped(name, "label", embeddings, np.column_stack([has, ~has]), known, patients))
    if not found:
        found.append(Probe("labels", "label", None, None, _UNKNOWN))
    found.append(_of_patients(embeddings, rows, patients, seed))
    for column, kind in _WORDS.items():
        values = pd.Series(_texts(rows, column), rows.index)
        classes = sorted(set(values.dropna()))
        truth = np.array([[value == name for name in classes] for value in values]).reshape(len(rows), len(classes))
        found.append(_grouped(kind, kind, embeddings, truth, values.notna().to_numpy(), patients))
    return found


def verdict(found: Sequence[Probe]) -> str:
    """What the probes mean, in one or two sentences."""

    def named(of_label: bool, predicted: bool) -> str:
        article = "" if of_label else "the "
        return _listed(
            [
                f"{article}{probe.name} ({probe.auroc:.2f})"
                for probe in found
                if probe.auroc is not None and (probe.kind == "label") == of_label
                if (probe.auroc >= READABLE) == predicted
            ]
        )

    clear, weak, confounds, harmless = (named(*case) for case in product((True, False), (True, False)))
    if not clear and not weak:
        labels = "No label was probed"
    elif not clear:
        labels = f"Linear probes hardly predict {weak} of unseen patients"
    else:
        labels = f"Linear probes predict {clear} of unseen patients" + (f", but hardly {weak}" if weak else "")
    if confounds:
        return (
            f"{labels}. They predict {confounds}: a classifier can use these in place of the sound, so split by "
            "patient, and compare labels within one device and one place."
        )
    if not harmless:
        return f"{labels}. Patient, device and place are unknown, so confounds cannot be probed."
    return f"{labels}. They hardly predict {harmless} (AUROC below {READABLE:g})."


def _of_patients(values: NDArray[np.float32], rows: pd.DataFrame, patients: pd.Series, seed: int) -> Probe:
    """A probe of the patient, scored on other recordings of patients with several recordings."""
    recordings = rows["recording"].astype(str)
    several = recordings.groupby(patients).nunique()
    names = sorted(several[several > 1].index)
    if len(names) < _LEAST:
        why = f"{len(names)} known patients have several recordings: too few" if patients.notna().any() else _UNKNOWN
        return Probe("patient", "patient", None, None, why)
    names = sorted(np.random.default_rng(seed).permutation(names)[:MOST_PATIENTS])
    kept = patients.isin(names).to_numpy()
    truth = patients[kept].to_numpy()[:, None] == np.array(names, dtype=object)[None, :]
    note = f"{len(names)} patients with several recordings, in other recordings of theirs"
    return _measured("patient", "patient", values[kept], truth, recordings[kept], patients[kept], note)


def _grouped(
    name: str, kind: str, values: NDArray[np.float32], truth: Any, known: NDArray[np.bool_], patients: pd.Series
) -> Probe:
    """A probe whose folds are patients; classes (columns of `truth`) of too few patients are left out."""
    rows = np.flatnonzero(known & patients.notna().to_numpy())
    counts = [patients.iloc[rows[column]].nunique() for column in truth[rows].T]
    truth = truth[:, np.array(counts, dtype=int) >= _LEAST]
    if truth.shape[1] < 2:
        if not len(rows):
            return Probe(name, kind, None, None, _UNKNOWN)
        have = f"{kind}s of {_LEAST} patients or more: {truth.shape[1]} of {len(counts)}; two are needed"
        if kind == "label":
            have = f"{counts[0]} patients have it and {counts[1]} do not; {_LEAST} of each are needed"
        return Probe(name, kind, None, None, have)
    rows = rows[truth[rows].any(1)]
    people = patients.iloc[rows]
    what = f"{counts[0]} have it" if kind == "label" else f"{truth.shape[1]} {kind}s"
    note = f"{people.nunique()} patients ({what}), each by a probe fitted on others"
    return _measured(name, kind, values[rows], truth[rows], people, people, note)


def _measured(
    name: str, kind: str, values: NDArray[np.float32], truth: Any, groups: pd.Series, patients: pd.Series, note: str
) -> Probe:
    """AUROC of predictions for groups that the probe was not fitted on: truth (rows, classes) of 0 and 1."""
    folds = GroupKFold(min(_FOLDS, groups.nunique()), shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), Ridge(_PENALTY))
    scores = cross_val_predict(probe, values, truth.astype(float), groups=groups, cv=folds)
    ranked = [RankedLabel(scores[:, k], truth[:, k].astype(int)) for k in range(truth.shape[1])]

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        """The mean over classes; one without rows, of a patient that was left out, does not count."""
        return {"auroc": np.nanmean([label.auroc(weights) for label in ranked], axis=0)}

    people = patients.tolist()
    effective = {"auroc": rarer_patients(patient_codes(people)[0], truth[:, 0])} if truth.shape[1] == 2 else {}
    note += "".join(f"; effective patients: {number:.1f}" for number in effective.values())
    bounds = patient_intervals(people, statistic, effective)["auroc"]
    return Probe(name, kind, float(statistic(np.ones((1, len(truth))))["auroc"][0]), bounds, note)


def _texts(rows: pd.DataFrame, column: str) -> list[str | None]:
    return [None if pd.isna(value) else str(value) for value in rows.get(column, [None] * len(rows))]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
