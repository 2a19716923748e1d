"""Speed and memory with a growing corpus, and with two processes.

Decisions: every size runs in its own process, from a folder in ICBHI's layout to a trained head, and through one epoch
of the Trainer over sound. Recordings are short, features cheap and the encoder has no network, so that the time is that
of laennec's own work for each cycle. A small corpus runs first in the same process, so that one-time costs do not
count. Several processes are measured with a real network and an unchanged batch size for each process.
"""

import os
import sys
import tempfile
import time
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.row import PEAK_MEMORY, Row, Setting, in_a_new_process, run_command
from benchmarks.training import head_epochs
from laennec.audio.features import LaennecFeatureExtractor
from laennec.corpora import load_corpus
from laennec.errors import InputError
from laennec.training.data.batches import EmbeddingDataset
from laennec.training.data.split_data import make_split
from laennec.training.embeddings import EmbeddingCache, embed_cycles
from laennec.training.recipe import Recipe
from laennec.training.run import make_model

SIZES = (1_000, 10_000, 100_000)
# cycles of each process, and its batch size
RANK_CYCLES, RANK_BATCH = 96, 8
_CYCLES_PER_RECORDING, _CYCLE_S, _RATE = 100, 0.1, 4000
_SCRIPT = (
    PEAK_MEMORY
    + """
import torch, warnings
warnings.simplefilter("ignore")
torch.set_num_threads(1)
from benchmarks.growth import table_to_head
table_to_head(200)
begin()
seconds = table_to_head(int(sys.argv[1]))
print(seconds, start + peak())
"""
)
# the same settings as recipes/accelerate/cpu_two_processes.yaml
_LAUNCH = (
    "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
    "--main_process_port", "0", "--module",
)  # fmt: skip


def growth(setting: Setting) -> list[Row]:
    """Cycles per second and peak memory for corpora of synthetic cycles."""
    return _compared([in_a_new_process(_SCRIPT, str(cycles)) for cycles in SIZES])


def _compared(measured: list[list[float]]) -> list[Row]:
    """Rows of (seconds, peak in MB) of each size, against those of the smallest."""
    rates = [cycles / seconds for cycles, (seconds, _) in zip(SIZES, measured, strict=True)]
    peaks = [megabytes for _, megabytes in measured]
    what = f"{_CYCLE_S:g} s cycles at {_RATE} Hz: table, waveforms, embedding, an epoch of the head, one over sound"
    rows = []
    for cycles, rate in zip(SIZES, rates, strict=True):
        rows.append(_grown(Row(f"{cycles:,} cycles", rate, rates[0], "cycles/s", rate / rates[0], ">= 0.9", what)))
    for cycles, peak in zip(SIZES, peaks, strict=True):
        more = (peak - peaks[0]) / max(cycles - SIZES[0], 1) * 1000
        note = f"peak of the whole process; {more:.2g} kB for each cycle more"
        row = Row(f"{cycles:,} cycles, memory", peak, peaks[0], "MB", peak / peaks[0], "<= 1.5", note)
        rows.append(_grown(row))
    return rows


def _grown(row: Row) -> Row:
    """A row with its comparison in the note; the smallest size, to which others are compared, has no other side."""
    first = row.name.startswith(f"{SIZES[0]:,} ")
    if first:
        return replace(row, other=None, ratio=None, bound="", note=row.note.split(";")[0])
    return replace(row, note=f"{row.note}; against {SIZES[0]:,} cycles")


def table_to_head(cycles: int) -> float:
    """Seconds from a folder to a trained head plus one epoch over sound; writing the folder is not timed."""
    recipe, extractor = _recipe()
    with tempfile.TemporaryDirectory() as out, patch.dict(os.environ, LAENNEC_CACHE=f"{out}/cache"):
        folder, cache = Path(out) / "corpus", Path(out) / "cache"
        _write(folder, cycles)
        since = time.perf_counter()
        table = load_corpus("icbhi2017", folder, protocol="none")["all"]
        part = make_split("train", table, recipe, extractor, None, False)
        model = make_model(recipe, part.targets.names)
        kept = EmbeddingCache(cache, model, extractor)
        embeddings = embed_cycles(part.dataset, part.keys(), kept)
        head_epochs(model, EmbeddingDataset(embeddings[None], part.targets.labels[None]), None)
        head_epochs(model, part.dataset, extractor)
        return time.perf_counter() - since


def _recipe() -> tuple[Any, Any]:
    """Cheap features, and an encoder without a network."""
    recipe = Recipe(name="bench")
    recipe.encoder.type, recipe.encoder.trainable = "statistics", "frozen"
    recipe.features.preset = "song2021"
    recipe.encoder.config = {"num_mel_bins": 64}
    extractor = LaennecFeatureExtractor(
        "song2021", length="natural", sampling_rate=_RATE, num_mel_bins=64, window_samples=256, fft_samples=256,
        hop_samples=64, reflect_samples=0, high_hz=_RATE / 2,
    )  # fmt: skip
    return recipe, extractor


def _write(folder: Path, cycles: int) -> None:
    """Write different recordings of noise in ICBHI's layout, with equal numbers of cycles."""
    folder.mkdir(parents=True)
    each = min(_CYCLES_PER_RECORDING, cycles)
    draw = np.random.Generator(np.random.Philox(key=cycles))
    samples = (draw.standard_normal(round(_CYCLE_S * _RATE) * each) * 3000).astype("<i2")
    lines = (f"{i * _CYCLE_S:.3f}\t{(i + 1) * _CYCLE_S:.3f}\t{i % 2}\t{i // 2 % 2}\n" for i in range(each))
    annotation = "".join(lines)
    for number in range(cycles // each):
        name = f"{101 + number // 4}_{number % 4 + 1}b1_Al_sc_Meditron"
        samples[:2] = number % 30000, number // 30000
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(_RATE)
            file.writeframes(samples.tobytes())
        (folder / f"{name}.txt").write_text(annotation)


def processes(setting: Setting) -> list[Row]:
    """Cycles per second of one process and of two (gloo) that train one mobilenet on the CPU."""
    if (os.cpu_count() or 1) < 2:
        raise InputError("needs two cores")
    best = {1: 0.0, 2: 0.0}
    for _ in range(min(setting.repeats, 2)):
        for number in best:
            best[number] = max(best[number], _rate(number))
    efficiency = best[2] / (2 * best[1])
    note = (
        f"mobilenet of width 0.4, {RANK_CYCLES} cycles of 2.7 s for each process in batches of {RANK_BATCH}, one "
        f"thread each; against one process: {100 * efficiency:.0f} % of twice its rate"
    )
    return [Row("two processes", best[2], best[1], "cycles/s", best[2] / best[1], ">= 1.6", note)]


def _rate(number: int) -> float:
    """Cycles per second of so many processes in total."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rate"
        arguments = ["benchmarks.ranks", str(out), str(RANK_CYCLES), str(RANK_BATCH)]
        start = ["-m", *arguments]
        if number > 1:
            start = ["-m", "accelerate.commands.launch", *_LAUNCH[:1], "--num_processes", str(number), *_LAUNCH[1:]]
            start += arguments
        run_command(sys.executable, *start)
        return float(out.read_text())
