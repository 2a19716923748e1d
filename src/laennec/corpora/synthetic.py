"""A synthetic corpus in the file layout of ICBHI 2017, for tests, teaching and work without data.

Decisions: a patient is drawn from the seed and the patient's own number alone, so that a larger corpus contains the
smaller one. Diseases and devices come from a low-discrepancy sequence over the patients, which keeps even small corpora
near the class mix of ICBHI (53 % normal, 27 % crackle, 13 % wheeze, 7 % both). Labels are exact: a cycle says crackle
or wheeze if and only if one was put in, and events.csv tells where. An existing folder is replaced only if it is such a
corpus, and by one process at a time. It does not stand in for patients: no score of it belongs beside one of real
recordings.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from laennec.audio.cycles import Cycle, flags_of, write_annotation
from laennec.corpora import lung_sounds
from laennec.corpora.base import CorpusOptions
from laennec.corpora.icbhi2017 import Icbhi2017
from laennec.corpora.lung_sounds import COARSE, DEVICES, FINE, SOURCE_RATE_HZ, Event, Kind, Signal, stream
from laennec.errors import InputError
from laennec.files import atomic_folder, atomic_write, cache_root, wait_for_lock
from laennec.untrusted import read_json

FIRST_PATIENT = 101
MOST_PATIENTS = 899
MARK = "synthetic.json"

# diagnosis: (share of adults, share of children, probability of normal, crackle, wheeze, both); from mild to severe, so
# that neighbours in the sequence over patients are alike
_DISEASES = {
    "Healthy": (0.06, 0.40, (0.94, 0.03, 0.03, 0.00)),
    "URTI": (0.05, 0.28, (0.86, 0.07, 0.06, 0.01)),
    "LRTI": (0.03, 0.02, (0.60, 0.28, 0.09, 0.03)),
    "Pneumonia": (0.10, 0.06, (0.44, 0.42, 0.06, 0.08)),
    "Bronchiolitis": (0.00, 0.14, (0.40, 0.14, 0.37, 0.09)),
    "Asthma": (0.05, 0.04, (0.38, 0.04, 0.49, 0.09)),
    "COPD": (0.62, 0.00, (0.34, 0.41, 0.14, 0.11)),
    "Bronchiectasis": (0.09, 0.06, (0.28, 0.50, 0.10, 0.12)),
}
_DEVICE_SHARES = {"AKGC417L": 0.40, "Meditron": 0.26, "Litt3200": 0.18, "LittC2SE": 0.16}
_SIMULTANEOUS_PLACES = ("Al", "Ar", "Pl", "Pr", "Ll", "Lr")
_SEQUENTIAL_PLACES = ("Al", "Pr", "Tc", "Ar", "Pl", "Ll", "Lr")
_CLASSES = ("normal", "crackle", "wheeze", "both")
_LEAD_IN_S = 0.5


@dataclass
class SyntheticOptions(CorpusOptions):
    """Options of `Synthetic`; those of `write_corpus`, for a corpus that is not written yet."""

    patients: int | None = None
    recordings_per_patient: int | None = None
    cycles_per_recording: int | None = None
    max_rate_hz: int | None = None
    corpus_seed: int | None = None


class Synthetic(Icbhi2017):
    """A synthetic corpus in the layout of ICBHI 2017, written if it is not there; it holds no recording of a person."""

    name = "synthetic"
    title = "Synthetic lung sounds of laennec"
    homepage = ""
    licence = "Apache-2.0 (made by laennec)"
    redistribution = "free to pass on"
    citation = ""
    origin = "Nobody: sounds computed from a model of breathing, crackles and wheezes."
    reference_standard = "Labels are exact, because the sounds were put in."
    limitations = ("Its scores say nothing about lungs and do not belong beside those of real recordings.",)
    default_protocol = "patient-60-20-20"
    patient_ids_are_global = False
    made_on_demand = True
    devices = None
    options_class = SyntheticOptions

    @classmethod
    def locate(
        cls, data_dir: str | Path | None, cache_dir: str | Path | None, options: dict[str, Any]
    ) -> tuple[str | Path, dict[str, Any]]:
        """The given folder, or one in the cache; the corpus is written if it is not there.

        Raises:
            InputError: A corpus of other options is there.
        """
        common = {key: value for key, value in options.items() if key in CorpusOptions.__dataclass_fields__}
        settings = {"seed" if key == "corpus_seed" else key: options[key] for key in options if key not in common}
        if data_dir is None:
            made_of = json.dumps([version("laennec"), {"seed": 0, **settings}], sort_keys=True)
            folder = cache_root(cache_dir) / "synthetic" / hashlib.sha256(made_of.encode()).hexdigest()[:16]
            if not folder.is_dir():
                write_corpus(folder, **settings, reuse=True)
            return folder, common
        if not Path(data_dir).exists():
            write_corpus(data_dir, **settings, reuse=True)  # another process may be writing it at this moment
        elif settings:
            _refuse_other_options(Path(data_dir), settings)
        return data_dir, common

    def missing_recordings(self) -> tuple[int, int, str]:
        """A synthetic corpus is complete."""
        return 0, 0, ""

    def check_complete(self) -> None:
        """A synthetic corpus is complete."""

    def further_files(self) -> list[Path]:
        """The published split and folds, and what the corpus was written with."""
        own = (self.root / name for name in (MARK, "events.csv"))
        return [*super().further_files(), *(path for path in own if path.is_file())]


def _refuse_other_options(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse options that an existing synthetic corpus was not written with."""
    try:
        written = read_json(folder / MARK)["options"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "leave the options out, or choose another folder"
        raise InputError(f"{folder}: no {MARK} that says how this corpus was written; {remedy}") from error
    for key, value in wanted.items():
        if written.get(key) != value:
            said = f"{key} {written.get(key)!r}, not {value!r}"
            raise InputError(f"{folder}: a synthetic corpus with {said}; choose another folder or remove this one")


@dataclass(frozen=True)
class Patient:
    """A made-up patient; everything that makes one chest sound unlike another.

    Attributes:
        mix: Probability of normal, crackle, wheeze and both cycles.
        cycle_s: Mean length of a cycle.
        inspiration_share: Share of a cycle that is inspiration.
        beats_per_minute: Heart rate.
        heart_gain: Loudness of the heart, relative to breath.
        breath_gain: Loudness of breath at the skin.
        muffling: How much the chest wall lowers the low-pass corners; below 1 it raises them.
        severity: 0 mild to 1 severe: number and loudness of adventitious sounds.
        fine_share: Share of crackle cycles whose crackles are fine.
        wheeze_hz: Usual pitch of this patient's wheezes.
    """

    number: int
    age_years: float
    sex: str | None
    bmi: float | None
    weight_kg: float | None
    height_cm: float | None
    diagnosis: str
    device: str
    mix: tuple[float, float, float, float]
    cycle_s: float
    inspiration_share: float
    beats_per_minute: float
    heart_gain: float
    breath_gain: float
    muffling: float
    severity: float
    fine_share: float
    wheeze_hz: float


@dataclass(frozen=True)
class Session:
    """One stretch of breathing, which one or several recordings listen to.

    Attributes:
        breathing: Breath and adventitious sounds before the chest wall, at the source rate.
        heart: Heart sounds, same length.
        cycles: What is annotated.
        events: What was put in, in seconds from the start.
    """

    breathing: Signal
    heart: Signal
    cycles: list[Cycle]
    events: list[Event]


def write_corpus(
    folder: str | Path,
    *,
    patients: int = 24,
    recordings_per_patient: int = 2,
    cycles_per_recording: int = 6,
    seed: int = 0,
    max_rate_hz: int | None = None,
    reuse: bool = False,
) -> Path:
    """Write a synthetic corpus in ICBHI 2017's file layout; the folder is whole or absent.

    Beside the recordings and annotations it holds the published tables (split, diagnosis, demographics, folds),
    events.csv with every crackle and wheeze that was put in, and synthetic.json with these arguments.

    Args:
        folder: Where to; an existing folder is replaced only if it is empty or a synthetic corpus.
        patients: Number of patients, 1 to 899.
        recordings_per_patient: Recordings of each.
        cycles_per_recording: Cycles of each recording, give or take one.
        seed: Seed of everything.
        max_rate_hz: Highest sampling rate of the files, for smaller ones; None keeps the rates of the devices (44.1 kHz
            and 4 kHz). A multiple of 100 from 4000.
        reuse: Whether a synthetic corpus of these very arguments is left as it is (another process may have written it
            just now) and one of others refused.

    Returns:
        The folder.

    Raises:
        InputError: A number out of range, a folder that holds something else, or a folder that cannot be written.
    """
    folder = Path(folder)
    _refuse_impossible(patients, recordings_per_patient, cycles_per_recording, max_rate_hz)
    options = {
        "patients": patients,
        "recordings_per_patient": recordings_per_patient,
        "cycles_per_recording": cycles_per_recording,
        "seed": seed,
        "max_rate_hz": max_rate_hz,
    }
    with wait_for_lock(folder):
        if folder.exists() and not (folder / MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: exists and is no synthetic corpus; choose another folder or remove it")
        there = _mark_of(folder) if reuse else None
        if there not in (None, _mark(options)):
            raise InputError(
                f"{folder}: a synthetic corpus of other arguments; choose another folder or remove this one"
            )
        if there is None:
            _write(folder, options)
    return folder


def _write(folder: Path, options: dict[str, Any]) -> None:
    """Make the folder; see `write_corpus`."""
    seed = options["seed"]
    people = [draw_patient(seed, index) for index in range(options["patients"])]
    each = (options["recordings_per_patient"], options["cycles_per_recording"], seed, options["max_rate_hz"])
    with atomic_folder(folder) as temporary:
        names, rows = [], ["file,start_s,end_s,kind,frequency_hz"]
        for patient in people:
            for name, session in _write_recordings(temporary, patient, *each):
                names.append(name)
                rows += [_event_row(name, event) for event in session.events]
        _write_tables(temporary, people, names)
        _write_lines(temporary / "events.csv", rows)
        _write_lines(temporary / MARK, [json.dumps(_mark(options), indent=1)])


def _mark(options: dict[str, Any]) -> dict[str, Any]:
    return {"corpus": "laennec synthetic", "version": 1, "options": options}


def _mark_of(folder: Path) -> Any:
    """What a folder says of how it was written; None where it says nothing."""
    try:
        return read_json(folder / MARK)
    except (OSError, ValueError):
        return None


def _refuse_impossible(patients: int, recordings: int, cycles: int, max_rate_hz: int | None) -> None:
    for name, value, most in (
        ("patients", patients, MOST_PATIENTS),
        ("recordings_per_patient", recordings, 42),
        ("cycles_per_recording", cycles, 99),
    ):
        if not 1 <= value <= most:
            raise InputError(f"{name} is {value}; the synthetic corpus can have 1 to {most}")
    if max_rate_hz is not None and (max_rate_hz < 4000 or max_rate_hz % 100):
        raise InputError(f"max_rate_hz is {max_rate_hz}; give a multiple of 100 from 4000, or nothing for native rates")


def draw_patient(seed: int, index: int) -> Patient:
    """The patient of this index: a function of seed and index alone.

    Args:
        seed: Seed of the corpus.
        index: From 0.
    """
    # steps of an irrational share of a turn (golden ratio, root of 2) visit diseases and devices evenly
    even = (stream(seed, "corpus").random(2) + index * np.array([0.6180339887498949, 0.4142135623730951])) % 1
    rng = stream(seed, "patient", index)
    kinds = [f"{name}/{age}" for name in _DISEASES for age in ("adult", "child")]
    shares = [share for adults, children, _ in _DISEASES.values() for share in (0.64 * adults, 0.36 * children)]
    diagnosis, age_group = _pick(kinds, shares, even[0]).split("/")
    child = age_group == "child"
    mix = _DISEASES[diagnosis][2]
    age = float(rng.uniform(0.5, 16)) if child else float(np.clip(rng.normal(66, 12), 19, 93))
    bmi = float(np.clip(rng.normal(27.5, 5), 17, 46))
    height = 75 + 6.3 * age * (1 + 0.05 * rng.standard_normal())
    breaths = rng.uniform(34, 44) - 1.0 * age if child else rng.uniform(15, 25)
    obstructed = diagnosis in ("COPD", "Asthma", "Bronchiolitis")
    unknown = index % 23 == 22  # as one patient of ICBHI, whose age and sex were not written down
    return Patient(
        number=FIRST_PATIENT + index,
        age_years=float("nan") if unknown else round(age, 2 if child else 0),
        sex=None if unknown else str(rng.choice(["F", "M"])),
        bmi=None if child or unknown else round(bmi, 2),
        weight_kg=round(15.5 * (height / 100) ** 2, 1) if child and not unknown else None,
        height_cm=float(round(height)) if child and not unknown else None,
        diagnosis=diagnosis,
        device=_pick(tuple(_DEVICE_SHARES), tuple(_DEVICE_SHARES.values()), even[1]),
        mix=mix,
        cycle_s=60 / breaths,
        inspiration_share=float(rng.uniform(0.3, 0.36) if obstructed else rng.uniform(0.38, 0.45)),
        beats_per_minute=float(rng.uniform(95, 135) - 2 * age if child else rng.uniform(60, 100)),
        heart_gain=float(np.exp(rng.uniform(np.log(1), np.log(6)))),
        breath_gain=float(np.exp(rng.normal(0, 0.25))),
        muffling=0.75 if child else float(0.85 + 0.018 * (bmi - 22)),
        severity=float(rng.beta(2, 2)),
        fine_share=float(
            {"Pneumonia": 0.7, "COPD": 0.4, "Bronchiectasis": 0.15}.get(diagnosis, 0.5) + rng.uniform(-0.1, 0.1)
        ),
        wheeze_hz=float(np.exp(rng.uniform(np.log(150), np.log(700)))),
    )


def draw_session(patient: Patient, key: tuple[object, ...], cycles: int) -> Session:
    """The breathing of one stretch: cycles that follow each other without a gap, with their sounds.

    Args:
        patient: Who breathes.
        key: Names the stretch among all others, seed included.
        cycles: How many are annotated, give or take one; a piece of one more is heard before and behind.
    """
    rng = stream(*key, "session")
    count = max(1, cycles + int(rng.integers(-1, 2)))
    lengths = np.round(patient.cycle_s * np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.07, count + 2)), 3)
    lengths = np.maximum(lengths, 0.8)
    lead_s = round(float(rng.uniform(0, min(_LEAD_IN_S, lengths[0]))), 3)
    # evenly spread quantiles in random order: a short recording has its patient's mix rather than a chance one
    quantiles = (rng.random() + rng.permutation(count) * 0.6180339887498949) % 1
    end_s = lead_s + float(lengths[1:-1].sum())
    duration_s = np.ceil(end_s * 2) / 2
    breathing = np.zeros(round(duration_s * SOURCE_RATE_HZ))
    annotated, events = [], []
    start_s = round(lead_s - float(lengths[0]), 3)
    for number, length_s in enumerate(lengths.tolist()):
        inside = 1 <= number <= count
        label = _pick(_CLASSES, patient.mix, quantiles[number - 1]) if inside else "normal"
        sound, found = draw_cycle(patient, label, length_s, (*key, "cycle", number))
        _overlay(breathing, sound, start_s)
        if inside:
            annotated.append(Cycle(start_s, round(start_s + length_s, 3), *flags_of(label)))
            # the sample a cycle begins with is the one its sound was put at, so that events stay exact
            offset_s = round(start_s * SOURCE_RATE_HZ) / SOURCE_RATE_HZ
            events += [
                Event(offset_s + event.start_s, offset_s + event.end_s, event.kind, event.frequency_hz)
                for event in found
            ]
        start_s = round(start_s + length_s, 3)
    heart = lung_sounds.heartbeats(duration_s, patient.beats_per_minute * float(np.exp(rng.normal(0, 0.03))), rng)
    return Session(breathing * patient.breath_gain, heart * patient.heart_gain, annotated, events)


def draw_cycle(patient: Patient, label: str, length_s: float, key: tuple[object, ...]) -> tuple[Signal, list[Event]]:
    """One cycle of a class, before the chest wall, with what was put in.

    Args:
        patient: Who breathes.
        label: normal, crackle, wheeze or both.
        length_s: Length in seconds.
        key: Names the cycle among all others, seed included.
    """
    rng = stream(*key)
    share = patient.inspiration_share * float(np.exp(rng.normal(0, 0.04)))
    severity = float(np.clip(patient.severity + rng.normal(0, 0.15), 0, 1))
    sound = lung_sounds.breath(length_s, share, rng) * float(np.exp(rng.normal(0, 0.12)))
    events: list[Event] = []
    crackle, wheeze = flags_of(label)
    if crackle:
        kind: Kind = FINE if rng.random() < patient.fine_share else COARSE
        added, found = lung_sounds.crackles(length_s, share, kind, severity, rng)
        sound, events = sound + added, events + found
    if wheeze:
        added, found = lung_sounds.wheezes(length_s, share, patient.wheeze_hz, severity, rng)
        sound, events = sound + added, events + found
    return sound, sorted(events, key=lambda event: event.start_s)


def _write_recordings(
    folder: Path, patient: Patient, recordings: int, cycles: int, seed: int, max_rate_hz: int | None
) -> list[tuple[str, Session]]:
    """Write every recording of a patient with its annotation, and give their names and what is in them."""
    device = DEVICES[patient.device]
    rate = min(device.sampling_rate, max_rate_hz or device.sampling_rate)
    places = _SIMULTANEOUS_PLACES if device.simultaneous else _SEQUENTIAL_PLACES
    mode = "mc" if device.simultaneous else "sc"
    written: list[tuple[str, Session]] = []
    for number in range(recordings):
        visit, position = divmod(number, len(places))
        place = places[(position + patient.number) % len(places)]
        # "mc" recordings of one visit hear the same breathing; "sc" ones follow each other
        if not (device.simultaneous and position):
            session = draw_session(patient, (seed, "patient", patient.number, "stretch", number), cycles)
        name = f"{patient.number}_{visit + 1}b1_{place}_{mode}_{patient.device}"
        rng = stream(seed, "recording", name)
        path, breath_gain, heart_gain = lung_sounds.CHEST[place]
        path = path.muffled(patient.muffling)
        rub = lung_sounds.friction(len(session.breathing) / SOURCE_RATE_HZ, rng)
        sources = [(session.breathing, path, breath_gain), (session.heart, None, heart_gain), (rub, None, 1.0)]
        soundfile.write(
            folder / f"{name}.wav", lung_sounds.auscultate(sources, device, rate, rng), rate, subtype=device.subtype
        )
        write_annotation(folder / f"{name}.txt", session.cycles)
        written.append((name, session))
    return written


def _write_tables(folder: Path, people: list[Patient], names: list[str]) -> None:
    """The published tables, in the column order, separators and line ends of the originals."""

    def text(value: float | str | None) -> str:
        return "NA" if value is None or value != value else f"{value:g}" if isinstance(value, float) else value

    _write_lines(folder / "ICBHI_Challenge_diagnosis.txt", [f"{one.number}\t{one.diagnosis}" for one in people])
    traits = [(one.age_years, one.sex, one.bmi, one.weight_kg, one.height_cm) for one in people]
    rows = ["\t".join([str(one.number), *map(text, row)]) for one, row in zip(people, traits, strict=True)]
    _write_lines(folder / "ICBHI_Challenge_demographic_information.txt", rows, end="\r\n")
    # patients 2 and 4 of every five are in test, so that a larger corpus keeps the split of the smaller one
    in_test = {str(one.number) for one in people if (one.number - FIRST_PATIENT) % 5 in (1, 3)}
    rows = [f"{name}\t{'test' if name.split('_')[0] in in_test else 'train'}" for name in names]
    _write_lines(folder / "ICBHI_challenge_train_test.txt", rows, end="\r\n")
    rows = [f"{one.number} {(one.number - FIRST_PATIENT) % 5}" for one in people]
    _write_lines(folder / "patient_list_foldwise.txt", rows)


def _write_lines(path: Path, lines: list[str], end: str = "\n") -> None:
    with atomic_write(path, "wb") as file:
        file.write("".join(line + end for line in lines).encode())  # type: ignore[arg-type]


def _event_row(name: str, event: Event) -> str:
    pitch = "" if event.frequency_hz is None else f"{event.frequency_hz:.1f}"
    return f"{name},{event.start_s:.6f},{event.end_s:.6f},{event.kind},{pitch}"


def _overlay(sound: Signal, piece: Signal, start_s: float) -> None:
    """Add a piece at a time; what lies before the beginning or behind the end is left off."""
    first = round(start_s * SOURCE_RATE_HZ)
    piece = piece[max(-first, 0) : len(sound) - first]
    first = max(first, 0)
    sound[first : first + len(piece)] += piece


def _pick(names: Sequence[str], shares: Sequence[float], position: float) -> str:
    """The name in whose share of the interval from 0 to 1 the position lies."""
    edges = np.cumsum(shares) / np.sum(shares)
    return names[min(int(np.searchsorted(edges, position, side="right")), len(names) - 1)]
