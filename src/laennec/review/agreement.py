"""How far two reviewers agree on the spans that both have answered.

Decisions: spans that one of them skipped are left out. Each label is a yes or no; where crackle and wheeze are labels,
another row compares the four classes normal, crackle, wheeze and both. Intervals leave out one patient at a time,
because spans of one patient resemble each other. A reviewer who gave one answer throughout has no kappa.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from laennec.errors import InputError
from laennec.evaluation.intervals import effective_patients, interval_note, patient_codes, patient_intervals
from laennec.evaluation.metrics import FloatArray, IntArray
from laennec.review.answers import JOURNAL, Answer, Answers

AGREEMENT_COLUMNS = (
    "reviewers", "label", "n", "patients", "effective", "agreement", "kappa", "kappa_low", "kappa_high"
)  # fmt: skip
CLASSES = ("crackle", "wheeze")


def agreement_of(folder: str | Path) -> pd.DataFrame:
    """The agreement of the reviewers of a review folder; see `agreement_table`."""
    if not (Path(folder) / JOURNAL).exists():
        raise InputError(f"{folder}: no review in this folder (no {JOURNAL}); give what was --out of laennec review")
    answers = Answers(folder).active()
    labels = {label for answer in answers for label in answer.labels or ()}
    return agreement_table(answers, sorted(labels | (set(CLASSES) if labels & set(CLASSES) else set())))


def agreement_table(answers: Iterable[Answer], labels: Sequence[str]) -> pd.DataFrame:
    """The agreement of every two reviewers, for each label and for the four classes.

    Args:
        answers: Of all reviewers, one for each reviewer and span.
        labels: The labels, without normal.

    Returns:
        The columns of `AGREEMENT_COLUMNS`: `n` spans of so many patients, the effective number of patients, the share
        of equal answers, Cohen's kappa and its 95 % interval; nan where it is not defined, as with fewer than five
        patients or three effective ones.
    """
    given: dict[str, dict[object, Answer]] = {}
    for answer in answers:
        if answer.labels is not None:
            given.setdefault(answer.reviewer, {})[answer.span] = answer
    classes = {"class": CLASSES} if set(CLASSES) <= set(labels) else {}
    rows = []
    for first, second in combinations(sorted(given), 2):
        spans = sorted(given[first].keys() & given[second].keys(), key=str)
        pairs = [(given[first][span], given[second][span]) for span in spans]
        patients = [one.patient_id or one.recording for one, _ in pairs]
        for label, parts in {**{label: (label,) for label in labels}, **classes}.items():
            # what is compared of each answer: one label, or crackle and wheeze together
            both = [["+".join(part for part in parts if part in (a.labels or ())) for a in pair] for pair in pairs]
            codes = np.unique(np.array(both, str).reshape(-1, 2), return_inverse=True)[1].reshape(-1, 2)
            rows.append((f"{first}, {second}", label, *_row(codes, patients)))
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS))


def agreement_text(table: pd.DataFrame) -> list[str]:
    """The table as lines for a terminal, with a caution where there are few patients."""
    if not len(table):
        return ["no two reviewers have answered; each starts laennec review with a name of their own (--reviewer)"]
    note = interval_note(int(table["patients"].min()))
    lines = table.round(2).to_string(index=False, na_rep="not defined").splitlines()
    return [*lines, *([f"note: {note}"] if note else [])]


def _row(codes: IntArray, patients: Sequence[str]) -> tuple[float, ...]:
    """All columns after the label, of answers (n, 2)."""
    if not len(codes):
        return 0, 0, 0.0, *[float("nan")] * 4
    first, second = (codes[:, side, None] == np.arange(codes.max() + 1) for side in (0, 1))  # (n, categories)

    def statistic(weights: FloatArray) -> dict[str, FloatArray]:
        share = weights / weights.sum(1, keepdims=True)
        chance = ((share @ first) * (share @ second)).sum(1)
        chance[chance > 1 - 1e-9] = np.nan  # one answer throughout
        return {"kappa": (share @ (codes[:, 0] == codes[:, 1]) - chance) / (1 - chance)}

    clusters, n_patients = patient_codes(patients)
    effective = effective_patients(clusters, np.ones(len(codes)))
    low, high = patient_intervals(patients, statistic, shares=False)["kappa"] or (float("nan"),) * 2
    agreement, kappa = (codes[:, 0] == codes[:, 1]).mean(), statistic(np.ones((1, len(codes))))["kappa"][0]
    return len(codes), n_patients, effective, float(agreement), float(kappa), max(low, -1.0), min(high, 1.0)
