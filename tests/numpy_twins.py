"""Small copies of ICBHI 2017 and SPRSound with sound from numpy alone, so that golden values depend on nothing else.

Decisions: draws come from RandomState, because numpy guarantees that its stream never changes.
"""

import json
from pathlib import Path

import numpy as np

from audio_twins import write

FLAGS = {"normal": (0, 0), "crackle": (1, 0), "wheeze": (0, 1), "both": (1, 1)}
DEVICES = ("Meditron", "LittC2SE", "Litt3200", "AKGC417L")
PLACES = ("Tc", "Al", "Ar", "Pl", "Pr", "Ll", "Lr")
DIAGNOSES = ("COPD", "Healthy", "URTI", "Asthma", "Pneumonia", "NA")
EVENTS = {
    "Normal": (0, 0),
    "Fine Crackle": (1, 0),
    "Coarse Crackle": (1, 0),
    "Wheeze": (0, 1),
    "Rhonchi": (0, 1),
    "Stridor": (0, 1),
    "Wheeze+Crackle": (1, 1),
}


def cycle(seconds: float, rate_hz: int, crackle: int, wheeze: int, draw: np.random.RandomState) -> np.ndarray:
    """One breath (samples,): noise that swells and fades, short noise bursts for crackle, a sine tone for wheeze."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    sound = 0.05 * draw.standard_normal(len(time)) * (0.2 + np.sin(np.pi * time / seconds) ** 2)
    tone = 0.1 * np.sin(2 * np.pi * draw.uniform(150, 700) * time)
    for start in draw.uniform(0, seconds - 0.03, 5) if crackle else ():
        burst = slice(round(start * rate_hz), round((start + 0.02) * rate_hz))
        sound[burst] += 0.4 * draw.standard_normal(len(sound[burst]))
    return sound + wheeze * tone


def waveform(seconds: float = 6.0, rate_hz: int = 8000) -> np.ndarray:
    """The fixed sound (samples,) of the stored predictions: each kind of cycle in turn."""
    draw, each = np.random.RandomState(1), seconds / len(FLAGS)
    return np.concatenate([cycle(each, rate_hz, *flags, draw) for flags in FLAGS.values()])


def icbhi2017(folder: Path, patients: int = 16, cycles: int = 5) -> Path:
    """ICBHI 2017's layout: sound and annotation of one or two recordings a patient, and the four published tables.

    In the published split, one patient is in train and test; one patient has two devices, and one lacks age and sex.
    """
    draw = np.random.RandomState(0)
    tables: dict[str, list[str]] = {"split": [], "diagnosis": [], "people": [], "folds": []}
    names, kinds = list(FLAGS), 0
    for number in range(patients):
        patient, child = 101 + number, number % 3 == 0
        device = number % 4
        for recording in range(1 + number % 2):
            device = 3 if (patient, recording) == (104, 1) else device
            mode, place = ("mc", "sc")[number % 4 == 0], PLACES[(number + 3 * recording) % 7]
            name = f"{patient}_{recording + 1}b1_{place}_{mode}_{DEVICES[device]}"
            rate_hz, sounds, lines, start = (4000, 8000)[number % 4 == 3], [], [], 0.0
            for _ in range(cycles):
                seconds = round(float(draw.uniform(0.6, 1.5)), 2)
                crackle, wheeze = FLAGS[names[kinds % 4]]
                sounds.append(cycle(seconds, rate_hz, crackle, wheeze, draw))
                lines.append(f"{start:.2f}\t{start + seconds:.2f}\t{crackle}\t{wheeze}\n")
                start, kinds = start + seconds, kinds + 1
            kinds += 1
            write(folder / f"{name}.wav", np.concatenate(sounds), rate_hz)
            (folder / f"{name}.txt").write_text("".join(lines))
            part = "test" if number % 5 in (1, 3) and not (patient == 102 and recording) else "train"
            tables["split"].append(f"{name}\t{part}")
        tables["diagnosis"].append(f"{patient}\t{DIAGNOSES[number % 6]}")
        body = f"NA\t{15 + number}\t{95 + number}" if child else f"{20 + number / 2}\tNA\tNA"
        age, sex = ("NA", "NA") if number == 10 else (3 + number / 2 if child else 30 + 3 * number, "FM"[number % 2])
        tables["people"].append(f"{patient}\t{age}\t{sex}\t{body}")
        tables["folds"].append(f"{patient} {number % 5}")
    files = {
        "split": "ICBHI_challenge_train_test.txt",
        "diagnosis": "ICBHI_Challenge_diagnosis.txt",
        "people": "ICBHI_Challenge_demographic_information.txt",
        "folds": "patient_list_foldwise.txt",
    }
    for kind, lines in tables.items():
        (folder / files[kind]).write_text("\n".join(lines) + "\n")
    return folder


def sprsound(folder: Path, rate_hz: int = 8000) -> Path:
    """SPRSound's layout: splits with wav/ and json/, events of every type, recordings of every class.

    Patients of test_intra are also in train, those of test_inter are not.
    """
    draw = np.random.RandomState(2)
    classes = {"Normal": ["Normal"], "DAS": ["Normal", "Fine Crackle", "Coarse Crackle"], "Poor Quality": []}
    classes |= {"CAS": ["Wheeze", "Rhonchi", "Stridor"], "CAS & DAS": ["Wheeze+Crackle", "Normal", "Wheeze"]}
    number = 0
    for part, patients in (("train", range(12)), ("test_intra", range(4)), ("test_inter", range(12, 16))):
        for place in ("wav", "json"):
            (folder / part / place).mkdir(parents=True)
        for patient in patients:
            for recording in range(2 if part == "train" else 1):
                record = list(classes)[(patient + 2 * recording) % len(classes)]
                age, sex = round(0.8 + 1.1 * patient, 1), patient % 2
                name = f"{40000001 + patient}_{age}_{sex}_p{1 + number % 4}_{number}"
                types, sounds, events, start = classes[record] or ["Normal"] * 2, [], [], 0
                for kind in (*types, *types)[:4]:
                    length = int(draw.randint(500, 1100))
                    sounds.append(cycle(length / 1000, rate_hz, *EVENTS[kind], draw))
                    events.append({"start": str(start), "end": str(start + length), "type": kind})
                    start += length
                write(folder / part / "wav" / f"{name}.wav", np.concatenate(sounds), rate_hz)
                said = {"record_annotation": record, "event_annotation": events if classes[record] else []}
                (folder / part / "json" / f"{name}.json").write_text(json.dumps(said))
                number += 1
    return folder
