"""What a million recordings would cost at the measured rates.

Decisions: all rates are converted to seconds of sound per second. Rates that could not be measured here stay blank. The
FLAC ratio is measured on annotated cycles, because recordings that consist of joined cycles contain silence, which
compresses to almost nothing.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.device import devices, gpu, not_measured, on, waiting
from benchmarks.material import cycle_lengths, noise
from benchmarks.row import Row, Setting, fastest, needs
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_recording
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.corpora.base import column_of
from laennec.rendering import plain_table
from laennec.training.embeddings import length_batches

HOURS = 5_000
_DECODE, _FEATURES, _FLAC = "decode and resample", "features", "FLAC at 16 kHz"
_GPU = " on a GPU"
_MACHINES = {"laptop": 8, "cluster": 64}
# job -> (names of the rows for one thread, for a GPU and for two processes against one), command
_JOBS = {
    "predict (model in the package, ONNX)": (
        ("whole recordings, ONNX", "whole recordings on a GPU", "two processes that predict"),
        "laennec predict s3://bucket/recordings --out s3://bucket/timelines --engine ray --jobs 64",
    ),
    "embed cycles with mn04": (
        ("encode once", "encode once on a GPU", "two processes that embed"),
        "laennec embed recordings --out embeddings --jobs 8",
    ),
    "embed cycles with AST-base": (
        ("AST-base forward", "AST-base forward on a GPU", "two processes that embed"),
        "accelerate launch -m laennec embed AST_MODEL recordings --out embeddings",
    ),
    "one epoch of training AST-base": (
        ("AST-base fine-tuning", "AST-base fine-tuning on a GPU", "two processes"),
        "accelerate launch -m laennec train recipe.yaml",
    ),
}
# number of recordings to decode, and of cycles to compute features of
RECORDINGS, CYCLES = 24, {"cpu": 64, "cuda": 1024}


def rates(setting: Setting) -> list[Row]:
    """Decoding, features and FLAC: figures of the cost page that no other row measures."""
    return [_decoding(setting), *_features(setting), _flac(setting)]


def _decoding(setting: Setting) -> Row:
    found = sorted(needs(setting, "icbhi2017_subset").glob("*.flac"))
    chosen = found[:: max(1, len(found) // RECORDINGS)][:RECORDINGS]
    seconds = sum(float(soundfile.info(path).duration) for path in chosen)
    (took,) = fastest(lambda: [read_recording(path, 16000) for path in chosen], repeats=setting.repeats)
    note = f"{len(chosen)} FLAC recordings of {seconds:.0f} s in all to 16 kHz, one thread"
    return Row(_DECODE, seconds / took, None, "x real time", None, "", note)


def _features(setting: Setting) -> list[Row]:
    torch.set_num_threads(1)
    extractor = LaennecFeatureExtractor("ast")
    rows = []
    for device in devices():
        seconds, source = cycle_lengths(setting, CYCLES[device.type])
        sound = noise(seconds, 16000)
        size = 16 if device.type == "cpu" else 256
        batches = list(length_batches([len(s) for s in sound], size, 10**9))

        def side(batches: Any = batches, sound: Any = sound, device: Any = device) -> None:
            for batch in batches:
                extractor([sound[row] for row in batch], sampling_rate=16000, device=device)

        waiting(device, side)()
        (took,) = fastest(waiting(device, side), repeats=setting.repeats)
        what = "one thread" if device.type == "cpu" else "copied from memory that is not pinned"
        note = f"AST's filter bank of {len(sound)} cycles, {source}, {what}"
        rows.append(Row(f"{_FEATURES}{on(device)}", float(seconds.sum()) / took, None, "x real time", None, "", note))
    return rows if gpu() else [*rows, not_measured(_FEATURES + _GPU, "x real time")]


def _flac(setting: Setting) -> Row:
    """Bytes of 16-bit FLAC over bytes of WAV, for real cycles whose recordings use the full frequency band."""
    table = load_corpus("icbhi2017", needs(setting, "icbhi2017_subset"), protocol="none")["all"]
    wide = [row for row, rate in enumerate(column_of(table, "source_sampling_rate")) if rate >= 44100]
    table = table.select(wide[:: max(1, len(wide) // 200)])
    cycles = CycleWaveforms(table, 16000)
    sound = np.concatenate(list(cycles))
    file = io.BytesIO()
    soundfile.write(file, sound, 16000, format="FLAC", subtype="PCM_16")
    share = len(file.getvalue()) / (2 * len(sound))
    note = f"{len(table)} real cycles of 44.1 kHz recordings, resampled, 16 bit"
    return Row(_FLAC, share, None, "of WAV", None, "", note)


def as_page(rows: Sequence[Row], result: dict[str, Any]) -> str:
    """Rates, hours and storage as Markdown, with blanks for missing measurements."""
    speed = {row.name: _real_time(row) for row in rows}
    measured = {row.name: row for row in rows}
    heads = [
        "job",
        "one thread",
        *(f"{who}, {cores} threads" for who, cores in _MACHINES.items()),
        "one GPU",
        "command",
    ]
    jobs = []
    for job, ((name, on_gpu, two), command) in _JOBS.items():
        thread, device = speed.get(name), speed.get(on_gpu)
        pair = measured.get(two)
        share = min(1.0, pair.ratio / 2) if pair is not None and pair.ratio else 1.0
        hours = [None if thread is None else HOURS / (thread * cores * share) for cores in _MACHINES.values()]
        cells = [_said(thread, " x"), *(_said(each, " h") for each in hours)]
        jobs.append([job, *cells, _said(device and HOURS / device, " h"), f"`{command}`"])
    machine = result["hardware"]
    flac = measured[_FLAC].ours if _FLAC in measured else None
    wav = HOURS * 3600 * 16000 * 2 / 1e9
    notes = [
        f"{HOURS:,} hours of sound: 1,000,000 recordings of {HOURS * 3600 / 1e6:g} s. One thread: seconds of sound a",
        f"second on {machine['processor']}; {', '.join(machine['gpus']) or 'no GPU'}. Several threads: as many",
        f"processes, each as fast as each of two was. The GPU predicts in torch. {_measured_of(rows)}".rstrip(),
    ]
    stored = [
        f"At 16 kHz and 16 bits the recordings are {_said(wav)} GB of WAV, or {_said(flac and wav * flac)} GB of FLAC.",
        f"Decoding FLAC and resampling runs at {_said(speed.get(_DECODE))} x real time on one thread, AST's filter",
        f"bank at {_said(speed.get(_FEATURES))} x.",
    ]
    return "\n".join([plain_table(heads, jobs), "", " ".join(notes), "", " ".join(stored)])


def _measured_of(rows: Sequence[Row]) -> str:
    lengths = {row.sound_s for row in rows if row.name.startswith("AST-base") and row.sound_s}
    return f"AST-base: cycles of {min(lengths):.2f} s on average (ICBHI's lengths)." if lengths else ""


def _real_time(row: Row) -> float | None:
    """Seconds of sound per second."""
    if row.ours is None or row.unit == "x real time":
        return row.ours
    return row.ours * row.sound_s if row.unit == "cycles/s" and row.sound_s else None


def _said(value: float | None, unit: str = "") -> str:
    if value is None:
        return "not measured here"
    rounded = float(f"{value:.3g}")
    return (f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}") + unit
