"""A small made-up corpus with predictions, seeded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

NAMES = np.array(["normal", "crackle", "wheeze", "both"])
LABELS = ["crackle", "wheeze"]
TWO: dict[str, Any] = {"problem_type": "multi_label", "label_names": LABELS}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def cycles(n_patients: int = 14, per_patient: int = 20, seed: int = 0, skill: float = 2.0) -> pd.DataFrame:
    """Cycle table with logits for crackle and wheeze; crackles last longer, and device B is noisier."""
    rng = np.random.default_rng(seed)
    n = n_patients * per_patient
    patient = np.repeat(np.arange(n_patients), per_patient)
    crackle, wheeze = (rng.random(n) < 0.35).astype(int), (rng.random(n) < 0.25).astype(int)
    device = np.where(patient % 3 == 0, "B", "A")
    table = pd.DataFrame(
        {
            "cycle_id": [f"c{k}" for k in range(n)],
            "recording_id": [f"r{p}_{k % 2}" for k, p in enumerate(patient)],
            "patient_id": [f"p{p}" for p in patient],
            "device": device,
            "chest_location": rng.choice(["Al", "Ar", "Tc"], n),
            "sex": np.where(patient == 1, None, np.where(patient % 2, "F", "M")),
            "age_years": np.where(patient == 1, np.nan, 2.0 + 6 * patient),
            "start_s": np.zeros(n),
            "end_s": 1 + rng.random(n) + 1.5 * crackle,
            "crackle": crackle,
            "wheeze": wheeze,
            "label": NAMES[crackle + 2 * wheeze],
            "split": "test",
        }
    )
    noise = np.where(device == "B", 2.5, 1.0)
    table["logit_crackle"] = skill * (crackle - 0.5) + noise * rng.normal(size=n)
    table["logit_wheeze"] = skill * (wheeze - 0.5) + noise * rng.normal(size=n)
    return table


def with_class_logits(table: pd.DataFrame) -> pd.DataFrame:
    """The same answers as four class logits: those of two independent labels."""
    c, w = table["logit_crackle"], table["logit_wheeze"]
    return table.assign(logit_normal=0.0, logit_both=c + w, logit_crackle=c, logit_wheeze=w)


def official_icbhi(shared_data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cycles of the official train and test splits, from the real annotations."""
    lines = (shared_data / "icbhi2017_tables/official_split.txt").read_text().splitlines()
    split = dict(line.split() for line in lines if line)
    rows = []
    for path in sorted((shared_data / "icbhi2017_annotations").glob("*.txt")):
        patient, _, location, _, device = path.stem.split("_")
        for line in path.read_text().splitlines():
            start, end, crackle, wheeze = line.split()
            rows.append((path.stem, patient, location, device, float(start), float(end), int(crackle), int(wheeze)))
    columns = ["recording_id", "patient_id", "chest_location", "device", "start_s", "end_s", "crackle", "wheeze"]
    table = pd.DataFrame(rows, columns=columns)
    table["label"] = NAMES[table.crackle + 2 * table.wheeze]
    part = table.recording_id.map(split)
    return table[part == "train"].reset_index(drop=True), table[part == "test"].reset_index(drop=True)
