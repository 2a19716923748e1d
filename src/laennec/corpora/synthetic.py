"""A synthetic corpus in the file layout of ICBHI 2017, for tests, teaching and work without data.

Decisions: labels are exact: a cycle has the flag crackle or wheeze if and only if one was added. Every draw comes from
a generator keyed by names (seed, patient, recording, cycle), so that a larger corpus contains the smaller one. Diseases
and devices come from a low-discrepancy sequence over the patients, which keeps small corpora near the class mix of
ICBHI (53 % normal, 27 % crackle, 13 % wheeze, 7 % both). The sounds are simple; their scores say nothing about lungs.

Crackles are damped sinusoids with two-cycle durations about 5 ms (fine) and 15 ms (coarse); wheezes are harmonic tones
of 100 to 1000 Hz longer than 80 ms (CORSA guidelines, Sovijarvi et al., European Respiratory Review 2000).
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from laennec.audio.cycles import LABELS, Cycle, flags_of, write_annotation
from laennec.cache import cache_root
from laennec.corpora.base import CorpusOptions
from laennec.corpora.icbhi2017 import Icbhi2017
from laennec.errors import InputError
from laennec.files import atomic_folder, json_text, remove_stale_lock, wait_for_lock
from laennec.untrusted import read_json

_RATE_HZ = 8000
_FIRST_PATIENT = 101
_MARK = "synthetic.json"
_MOST = {"patients": 899, "recordings_per_patient": 42, "cycles_per_recording": 99}
_GOLDEN = (0.6180339887498949, 0.4142135623730951)  # irrational steps cover diseases and devices evenly
# diagnosis: (share of adults, share of children, probability of normal, crackle, wheeze, both), from mild to severe
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

Signal = npt.NDArray[np.float64]


class Device(NamedTuple):
    """A stethoscope: rate in Hz and sample format of its files, share of patients, bandwidth, own noise, mode.

    A device of mode "mc" records several chest locations at once.
    """

    sampling_rate: int
    subtype: str
    share: float
    lowpass_hz: float
    noise: float
    mode: str


DEVICES = {
    "AKGC417L": Device(44100, "PCM_16", 0.40, 3000, 0.03, "mc"),
    "Meditron": Device(44100, "PCM_16", 0.26, 1400, 0.02, "sc"),
    "Litt3200": Device(4000, "PCM_16", 0.18, 900, 0.01, "sc"),
    "LittC2SE": Device(44100, "PCM_24", 0.16, 1000, 0.04, "mc"),
}
_LOCATIONS = {"mc": ("Al", "Ar", "Pl", "Pr", "Ll", "Lr"), "sc": ("Al", "Pr", "Tc", "Ar", "Pl", "Ll", "Lr")}


class Patient(NamedTuple):
    """A synthetic patient: values of the published tables, and parameters of the sounds."""

    number: int
    traits: tuple[float | str | None, ...]  # age in years, sex, BMI, weight in kg, height in cm
    diagnosis: str
    device: str
    cycle_s: float
    severity: float
    fine_share: float
    wheeze_hz: float


def stream(*key: object) -> np.random.Generator:
    """A counter-based generator that depends on nothing but the key."""
    digest = hashlib.sha256("\n".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def draw_patient(seed: int, index: int) -> Patient:
    """The patient of this index, a function of seed and index alone."""
    even = (stream(seed, "corpus").random(2) + index * np.array(_GOLDEN)) % 1
    rng = stream(seed, "patient", index)
    kinds = [(name, child) for name in _DISEASES for child in (False, True)]
    shares = [0.36 * _DISEASES[name][1] if child else 0.64 * _DISEASES[name][0] for name, child in kinds]
    diagnosis, child = _pick(kinds, shares, even[0])
    age = float(rng.uniform(0.5, 16)) if child else float(np.clip(rng.normal(66, 12), 19, 93))
    bmi = float(np.clip(rng.normal(27.5, 5), 17, 46))
    height = 75 + 6.3 * age * (1 + 0.05 * rng.standard_normal())
    breaths_per_minute = rng.uniform(34, 44) - age if child else rng.uniform(15, 25)
    traits: tuple[float | str | None, ...] = (None,) * 5  # unknown, as of one patient of ICBHI
    if index % 23 != 22:
        body = (None, round(15.5 * (height / 100) ** 2, 1), float(round(height))) if child else (round(bmi, 2),)
        traits = (round(age, 2 if child else 0), str(rng.choice(["F", "M"])), *body, *((None, None) * (not child)))
    device = _pick(list(DEVICES), [device.share for device in DEVICES.values()], even[1])
    severity, fine_share = float(rng.beta(2, 2)), float(rng.uniform(0.2, 0.8))
    wheeze_hz = float(np.exp(rng.uniform(np.log(150), np.log(700))))
    number, cycle_s = _FIRST_PATIENT + index, 60 / breaths_per_minute
    return Patient(number, traits, diagnosis, device, cycle_s, severity, fine_share, wheeze_hz)


def _breath(samples: int, rng: np.random.Generator) -> Signal:
    """Turbulent noise of one cycle: inspiration (40 % of it) is louder and brighter than expiration."""
    position = np.arange(samples) / samples
    inward = np.sin(np.pi * np.clip(position / 0.4, 0, 1)) ** 0.8
    outward = np.sin(np.pi * np.clip((position - 0.42) / 0.5, 0, 1)) ** 0.8
    noise = rng.standard_normal(samples)
    return inward * _lowpass(noise, 500) * 1.6 + 0.5 * outward * _lowpass(noise, 250) * 2.2


def _crackle(two_cycle_s: float) -> Signal:
    """A damped sinusoid, two cycles in the given time, largest deflection 1."""
    time = np.arange(round(2 * two_cycle_s * _RATE_HZ)) / _RATE_HZ
    wave = np.sin(4 * np.pi * time / two_cycle_s) * np.exp(-1.6 * time / two_cycle_s)
    return wave / np.abs(wave).max()


def _wheeze(duration_s: float, frequency_hz: float, rng: np.random.Generator) -> Signal:
    """A fundamental that glides a little, two weaker harmonics, soft edges; root mean square about 0.7."""
    time = np.arange(round(duration_s * _RATE_HZ)) / _RATE_HZ
    glide = frequency_hz * (1 + rng.uniform(-0.1, 0.05) * (time / duration_s - 0.5))
    phase = 2 * np.pi * np.cumsum(glide) / _RATE_HZ
    tone = np.sin(phase) + 0.25 * np.sin(2 * phase) + 0.08 * np.sin(3 * phase)
    return tone * np.sin(np.pi / 2 * np.clip(np.minimum(time, duration_s - time) / 0.05, 0, 1)) ** 2


def draw_cycle(patient: Patient, label: str, length_s: float, key: tuple[object, ...]) -> Signal:
    """One cycle of a class at 8 kHz, (samples,)."""
    rng = stream(*key)
    sound = _breath(round(length_s * _RATE_HZ), rng) * np.exp(rng.normal(0, 0.15))
    severity = float(np.clip(patient.severity + rng.normal(0, 0.15), 0, 1))
    has_crackle, has_wheeze = flags_of(label)
    if has_crackle:
        fine = rng.random() < patient.fine_share
        for _ in range(int(rng.integers(5, 11) if fine else rng.integers(3, 7)) + round(3 * severity)):
            place = rng.uniform(0.2, 0.38) if fine else rng.choice([rng.uniform(0.03, 0.2), rng.uniform(0.45, 0.75)])
            wave = _crackle(rng.uniform(0.004, 0.006) if fine else rng.uniform(0.012, 0.018))
            _add(sound, wave * (0.95 + 1.5 * severity) * np.exp(0.3 * rng.standard_normal()), place * length_s)
    if has_wheeze:
        duration_s = max(0.1, length_s * rng.uniform(0.2, 0.42))
        start_s = rng.uniform(0.45 * length_s, max(0.45 * length_s, 0.9 * length_s - duration_s))
        pitch = float(np.clip(patient.wheeze_hz * np.exp(0.07 * rng.standard_normal()), 115, 880))
        _add(sound, _wheeze(duration_s, pitch, rng) * (0.09 + 0.2 * severity), start_s)
    return sound


def _draw_breathing(patient: Patient, key: tuple[object, ...], cycles: int) -> tuple[Signal, list[Cycle]]:
    """A stretch of breathing: cycles without gaps, with a part of an unannotated cycle before and after them."""
    rng = stream(*key, "session")
    count = max(1, cycles + int(rng.integers(-1, 2)))
    lengths = np.round(patient.cycle_s * np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.07, count + 2)), 3)
    lengths = np.maximum(lengths, 0.8)
    lead_s = round(float(rng.uniform(0, min(0.5, lengths[0]))), 3)
    # evenly spread quantiles in random order: even a short recording has its patient's class mix
    quantiles = (rng.random() + rng.permutation(count) * _GOLDEN[0]) % 1
    labels = ["normal", *(_pick(LABELS, _DISEASES[patient.diagnosis][2], q) for q in quantiles), "normal"]
    sound = np.zeros(round(np.ceil((lead_s + float(lengths[1:-1].sum())) * 2) / 2 * _RATE_HZ))
    annotated = []
    start_s = round(lead_s - float(lengths[0]), 3)
    for number, (label, length_s) in enumerate(zip(labels, lengths.tolist(), strict=True)):
        piece = draw_cycle(patient, label, length_s, (*key, "cycle", number))
        _add(sound, piece[max(-round(start_s * _RATE_HZ), 0) :], max(start_s, 0.0))
        end_s = round(start_s + length_s, 3)
        annotated.append(Cycle(start_s, end_s, *flags_of(label)))
        start_s = end_s
    return sound, annotated[1:-1]


def _record(breathing: Signal, device: Device, rate: int, rng: np.random.Generator) -> Signal:
    """A recording by a device: breathing and body noise within its bandwidth, and its own noise, at its file's rate."""
    body = _lowpass(rng.standard_normal(len(breathing)), 60) * rng.uniform(0.5, 1.5)
    filtered = _lowpass(breathing + body, min(device.lowpass_hz, 0.45 * _RATE_HZ))
    sound = soxr.resample(filtered, _RATE_HZ, rate) if rate != _RATE_HZ else filtered
    sound = sound + device.noise * rng.standard_normal(len(sound))
    return np.asarray(sound * (rng.uniform(0.3, 0.9) / np.abs(sound).max()))


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
    """Write a synthetic corpus in ICBHI 2017's file layout, with its tables; the folder is complete or absent.

    Args:
        folder: The target; an existing folder is replaced only if it is empty or a synthetic corpus.
        patients: Number of patients, 1 to 899.
        recordings_per_patient: Recordings of each.
        cycles_per_recording: Cycles of each recording, give or take one.
        seed: Seed of everything.
        max_rate_hz: Highest sampling rate of the files, a multiple of 100 from 4000; None for those of the devices.
        reuse: Whether an existing corpus is kept, and refused if its arguments differ.
    """
    folder = Path(folder)
    counts = dict(zip(_MOST, (patients, recordings_per_patient, cycles_per_recording), strict=True))
    options: dict[str, Any] = {**counts, "seed": seed, "max_rate_hz": max_rate_hz}
    for name, most in _MOST.items():
        if not 1 <= options[name] <= most:
            raise InputError(f"{name} is {options[name]}; the synthetic corpus can have 1 to {most}")
    if max_rate_hz is not None and (max_rate_hz < 4000 or max_rate_hz % 100):
        raise InputError(f"max_rate_hz is {max_rate_hz}; give a multiple of 100 from 4000, or nothing for native rates")
    with wait_for_lock(folder):
        if folder.exists() and not (folder / _MARK).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder}: exists and is no synthetic corpus; choose another folder or remove it")
        if reuse and (folder / _MARK).is_file():
            _refuse_other_options(folder, options)
            return folder
        with atomic_folder(folder) as temporary:
            _write(temporary, options)
            manifest = {"corpus": "laennec synthetic", "version": 3, "options": options}
            (temporary / _MARK).write_text(json_text(manifest, indent=1) + "\n", encoding="utf-8")
    return folder


def _write(folder: Path, options: dict[str, Any]) -> None:
    seed, names = options["seed"], []
    people = [draw_patient(seed, index) for index in range(options["patients"])]
    for patient in people:
        device = DEVICES[patient.device]
        rate = min(device.sampling_rate, options["max_rate_hz"] or device.sampling_rate)
        for number in range(options["recordings_per_patient"]):
            locations = _LOCATIONS[device.mode]
            visit, position = divmod(number, len(locations))
            location = locations[(position + patient.number) % len(locations)]
            if device.mode == "sc" or position == 0:  # "mc" recordings of one visit have the same breathing
                key = (seed, "patient", patient.number, "stretch", number)
                breathing, cycles = _draw_breathing(patient, key, options["cycles_per_recording"])
            name = f"{patient.number}_{visit + 1}b1_{location}_{device.mode}_{patient.device}"
            sound = _record(breathing, device, rate, stream(seed, "recording", name))
            file = io.BytesIO()  # written by Python, whose errors state the cause; libsndfile's do not
            soundfile.write(file, sound, rate, format="WAV", subtype=device.subtype)
            (folder / f"{name}.wav").write_bytes(file.getvalue())
            write_annotation(folder / f"{name}.txt", cycles)
            names.append(name)
    _write_tables(folder, people, names)


def _write_tables(folder: Path, people: list[Patient], names: list[str]) -> None:
    """The published tables, with the column order, separators and line ends of the originals."""

    def text(value: float | str | None) -> str:
        return "NA" if value is None else f"{value:g}" if isinstance(value, float) else value

    _write_lines(folder / "ICBHI_Challenge_diagnosis.txt", [f"{one.number}\t{one.diagnosis}" for one in people])
    rows = ["\t".join(map(text, (str(one.number), *one.traits))) for one in people]
    _write_lines(folder / "ICBHI_Challenge_demographic_information.txt", rows, end="\r\n")
    folds = {str(one.number): (one.number - _FIRST_PATIENT) % 5 for one in people}
    # whole folds are test, so that a larger corpus keeps the split of the smaller one
    rows = [f"{name}\t{'test' if folds[name.split('_')[0]] in (1, 3) else 'train'}" for name in names]
    _write_lines(folder / "ICBHI_challenge_train_test.txt", rows, end="\r\n")
    _write_lines(folder / "patient_list_foldwise.txt", [f"{number} {fold}" for number, fold in folds.items()])


def _write_lines(path: Path, lines: list[str], end: str = "\n") -> None:
    path.write_bytes("".join(line + end for line in lines).encode())


def _add(sound: Signal, wave: Signal, start_s: float) -> None:
    """Add a wave at a time; what lies beyond the end is left off."""
    first = min(round(start_s * _RATE_HZ), len(sound) - 1)
    wave = wave[: len(sound) - first]
    sound[first : first + len(wave)] += wave


def _lowpass(sound: Signal, corner_hz: float) -> Signal:
    from scipy.signal import butter, sosfilt  # slow to import, and every corpus imports this module

    return np.asarray(sosfilt(butter(4, corner_hz, fs=_RATE_HZ, output="sos"), sound))


def _pick(names: Sequence[Any], shares: Sequence[float], position: float) -> Any:
    """The name in whose share of the interval from 0 to 1 the position lies."""
    edges = np.cumsum(shares) / np.sum(shares)
    return names[min(int(np.searchsorted(edges, position, side="right")), len(names) - 1)]


@dataclass
class SyntheticOptions(CorpusOptions):
    """Options of `Synthetic`: those of `write_corpus`, for a corpus that is not written yet."""

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
    origin = "No person: breathing, crackles and wheezes are computed."
    reference_standard = "Labels are exact, because the sounds were put in."
    limitations = ("Its scores say nothing about lungs and do not belong beside those of real recordings.",)
    default_protocol = "patient-60-20-20"
    patient_ids_are_global = False
    devices = None
    options_class = SyntheticOptions

    @classmethod
    def locate(
        cls, data_dir: str | Path | None, cache_dir: str | Path | None, options: dict[str, Any]
    ) -> tuple[str | Path, dict[str, Any]]:
        """The given folder, or one in the cache; the corpus is written if it is not there."""
        common = {key: value for key, value in options.items() if key in CorpusOptions.__dataclass_fields__}
        settings = {"seed" if key == "corpus_seed" else key: options[key] for key in options if key not in common}
        if data_dir is None:
            made_of = json.dumps([version("laennec"), {"seed": 0, **settings}], sort_keys=True)
            data_dir = cache_root(cache_dir) / "synthetic" / hashlib.sha256(made_of.encode()).hexdigest()[:16]
        folder = Path(data_dir)
        if not folder.exists():
            write_corpus(folder, **settings, reuse=True)  # another process may be writing it at this moment
        else:
            remove_stale_lock(folder)
            if settings:
                _refuse_other_options(folder, settings)
        return folder, common

    def missing_recordings(self) -> tuple[int, int, str]:
        """A synthetic corpus is complete."""
        return 0, 0, ""

    def check_complete(self) -> None:
        """A synthetic corpus is complete."""

    def further_files(self) -> list[Path]:
        """The published split and folds, and what the corpus was written with."""
        mark = self.root / _MARK
        return [*super().further_files(), *([mark] if mark.is_file() else [])]


def _refuse_other_options(folder: Path, wanted: dict[str, Any]) -> None:
    try:
        written = dict(read_json(folder / _MARK)["options"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        remedy = "leave the options out, or choose another folder"
        raise InputError(f"{folder}: no {_MARK} that says how this corpus was written; {remedy}") from error
    for key, value in wanted.items():
        if written.get(key) != value:
            said = f"{key} {written.get(key)!r}, not {value!r}"
            raise InputError(f"{folder}: a synthetic corpus with {said}; choose another folder or remove this one")
