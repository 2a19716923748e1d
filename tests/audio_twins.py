"""Small copies of published corpora: the published layout, with sound cut out of real recordings."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import soxr

from laennec.audio.context import InContext, beside_window
from laennec.audio.cycles import cut

ESC50_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
ESC50_CLASSES = ("dog", "rain", "crying_baby", "door_wood_knock")
WORDS = ("backward", "bed", "cat", "zero")


def excerpts(recordings: Sequence[Path], count: int, seconds: float, rate_hz: int) -> list[np.ndarray]:
    """Different stretches of recordings, float32 (samples,), none of them silent."""
    found: list[np.ndarray] = []
    for path in recordings:
        sound, own_hz = soundfile.read(path, dtype="float32", always_2d=True)
        sound = soxr.resample(sound[:, 0], own_hz, rate_hz) if own_hz != rate_hz else sound[:, 0]
        step = int(seconds * rate_hz)
        pieces = [sound[i : i + step] for i in range(0, len(sound) - step, step)]
        found += [piece for piece in pieces if np.ptp(piece) > 0]
        if len(found) >= count:
            return found[:count]
    raise ValueError(f"{len(found)} excerpts of {seconds} s, {count} wanted")


def write(path: Path, sound: np.ndarray, rate_hz: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate_hz, subtype="PCM_16")
    return path


def physionet2016(folder: Path, recordings: Sequence[Path]) -> Path:
    """Databases a, b and e at 2 kHz with RECORDS, references and quality; validation holds copies of a and e."""
    sounds = iter(excerpts(recordings, 20, 4.3, 2000))
    for letter, count, abnormal in (("a", 8, 4), ("b", 6, 2), ("e", 6, 2)):
        place = folder / f"training-{letter}"
        names = [f"{letter}{number:04d}" for number in range(1, count + 1)]
        for name in names:
            write(place / f"{name}.wav", next(sounds), 2000)
        (place / "RECORDS").write_text("\n".join(names) + "\n")
        labels = [1 if number < abnormal else -1 for number in range(count)]
        (place / "REFERENCE.csv").write_text("".join(f"{n},{v}\n" for n, v in zip(names, labels, strict=True)))
        updated = folder / "annotations" / "updated" / place.name
        updated.mkdir(parents=True)
        lines = [f"{n},{v},{int(k != 0)}\n" for k, (n, v) in enumerate(zip(names, labels, strict=True))]
        (updated / "REFERENCE_withSQI.csv").write_text("".join(lines))
    held_out = folder / "validation"
    held_out.mkdir()
    for name in ("a0001", "e0006"):
        (held_out / f"{name}.wav").write_bytes((folder / f"training-{name[0]}" / f"{name}.wav").read_bytes())
    (held_out / "RECORDS").write_text("a0001\ne0006\n")
    (held_out / "REFERENCE.csv").write_text("a0001,1\ne0006,-1\n")
    return folder


def esc50_rows(takes: int = 2) -> list[dict[str, Any]]:
    """Lines of esc50.csv: five folds of four classes, two takes of one source each."""
    rows = []
    for fold in range(1, 6):
        for target, category in enumerate(ESC50_CLASSES):
            source = 100000 + 10 * fold + target
            for take in "AB"[:takes]:
                name = f"{fold}-{source}-{take}-{target}.wav"
                values = (name, fold, target, category, target < 2, source, take)
                rows.append(dict(zip(ESC50_COLUMNS, values, strict=True)))
    return rows


def esc50_github(folder: Path, recordings: Sequence[Path], rate_hz: int = 8000, seconds: float = 0.6) -> Path:
    """ESC-50 as on GitHub: audio/ and meta/esc50.csv."""
    rows = esc50_rows()
    (folder / "meta").mkdir(parents=True)
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ESC50_COLUMNS)
        table.writeheader()
        table.writerows(rows)
    for row, sound in zip(rows, excerpts(recordings, len(rows), seconds, rate_hz), strict=True):
        write(folder / "audio" / row["filename"], sound, rate_hz)
    return folder


def esc50_hub(folder: Path, github: Path) -> Path:
    """The same as Parquet with an audio column, as on the Hub."""
    rows = esc50_rows()
    for row in rows:
        row["audio"] = {"bytes": (github / "audio" / row["filename"]).read_bytes(), "path": row["filename"]}
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    return folder


def write_parquet(path: Path, rows: list[dict[str, Any]], label: datasets.ClassLabel | None = None) -> Path:
    """Rows as Parquet through `datasets`, the audio column as an Audio feature."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio(decode=False))
    if label is not None:
        table = table.cast_column("label", label)
    datasets.disable_progress_bars()
    table.to_parquet(str(path))
    return path


def speech_commands(folder: Path, recordings: Sequence[Path], rate_hz: int = 16000) -> Path:
    """Speech Commands v0.02 as released: folders of words, two lists, a folder of noise; six speakers."""
    sounds = iter(excerpts(recordings, 6 * len(WORDS) + 1, 0.5, rate_hz))
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for speaker in range(6):
        for word in WORDS:
            name = f"{word}/{speaker:08x}_nohash_{speaker % 2}.wav"
            write(folder / name, next(sounds), rate_hz)
            if speaker in (4, 5):
                lists["testing_list.txt" if speaker == 5 else "validation_list.txt"].append(name)
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    write(folder / "_background_noise_" / "white_noise.wav", next(sounds), rate_hz)
    return folder


def iemocap(folder: Path, recordings: Sequence[Path], rate_hz: int = 16000) -> Path:
    """IEMOCAP as released: five sessions of two speakers, an evaluation file for each dialogue."""
    emotions = ("neu", "hap", "exc", "sad", "ang", "fru", "xxx")
    sounds = iter(excerpts(recordings, 5 * 2 * len(emotions), 0.5, rate_hz))
    for number in range(1, 6):
        session, dialogue = folder / f"Session{number}", f"Ses0{number}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
        for k, emotion in enumerate(emotions):
            for who in "FM":
                turn = f"{dialogue}_{who}{k:03d}"
                lines.append(f"\n[{k}.2901 - {k}.8257]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n")
                lines.append("C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n")
                write(session / "sentences" / "wav" / dialogue / f"{turn}.wav", next(sounds), rate_hz)
        evaluation = session / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
        evaluation.parent.mkdir(parents=True)
        evaluation.write_text("".join(lines))
    return folder


def windows_in_context(sound, rate, spans, k):
    """Context windows of a recording that is in memory as a whole."""
    for span in spans:
        sides = beside_window(span, len(sound) / rate, k)
        before, after = ([cut(sound, rate, *beside) for beside in side] for side in sides)
        yield InContext(cut(sound, rate, *span), before, after)
