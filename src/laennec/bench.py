"""Every stage: speed and memory, as ratios to what one would use instead.

Decided here: each row measures both sides in turn in this process, takes the fastest of several repeats of each
(machines are shared and noisy), and prints the ratio with the bound that the project set itself. What cannot be
measured here says so; nothing is estimated.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from laennec.errors import InputError
from laennec.training.record import hardware, versions
from laennec.writing import write_aside


@dataclass
class Row:
    """One measurement.

    Attributes:
        name: What was measured.
        ours: This project's figure.
        other: The alternative's figure; None where there is only a bound.
        unit: Unit of both.
        ratio: ours / other, or other / ours where more is better; None without an alternative.
        bound: What the project set itself, in words.
        note: What exactly was compared.
    """

    name: str
    ours: float | None
    other: float | None
    unit: str
    ratio: float | None
    bound: str
    note: str


@dataclass
class Setting:
    """Where the rows find their material."""

    data_dir: Path | None
    weights: str | None
    repeats: int


def fastest(*sides: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of the fastest of several runs of each side, the sides taking turns."""
    best = [float("inf")] * len(sides)
    for _ in range(repeats):
        for i, side in enumerate(sides):
            start = time.perf_counter()
            side()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def _needs(setting: Setting, folder: str) -> Path:
    path = setting.data_dir / folder if setting.data_dir else None
    if path is None or not path.is_dir():
        raise InputError(f"needs {folder} below --data-dir")
    return path


def start_up(setting: Setting) -> list[Row]:
    """Time until `import laennec` and `laennec --help` are done, in new processes."""

    def run(*arguments: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    bare, imported, helped = fastest(
        run("-c", "pass"), run("-c", "import laennec"), run("-m", "laennec", "--help"), repeats=setting.repeats
    )
    return [
        Row("import laennec", imported - bare, None, "s", None, "< 0.2", "a new process, less the bare interpreter"),
        Row("laennec --help", helped, None, "s", None, "< 0.5", "a new process, interpreter included"),
    ]


def reading(setting: Setting) -> list[Row]:
    """Read, resample and cut the real ICBHI subset, against a bare soundfile + soxr loop."""
    import soundfile
    import soxr

    from laennec.corpora import CycleWaveforms, load_corpus

    table = load_corpus("icbhi2017", _needs(setting, "icbhi2017_subset"), protocol="none")["all"]
    spans: dict[str, list[tuple[float, float]]] = {}
    for path, start, end in zip(table["recording_path"], table["start_s"], table["end_s"], strict=True):
        spans.setdefault(path, []).append((start, end))
    kept: list[Any] = []

    def bare() -> None:
        kept.clear()
        for path, times in spans.items():
            samples, rate = soundfile.read(path, dtype="float32")
            samples = soxr.resample(samples, rate, 16000)
            kept.append([samples[int(s * 16000) : int(e * 16000)].copy() for s, e in times])

    # a new cache for each run; taking them away afterwards is no part of reading
    with tempfile.TemporaryDirectory() as caches:
        ours, other = fastest(
            lambda: CycleWaveforms(table, 16000, cache_dir=tempfile.mkdtemp(dir=caches)).prepare(),
            bare,
            repeats=setting.repeats,
        )
        CycleWaveforms(table, 16000, cache_dir=caches).prepare()
        (again,) = fastest(lambda: _read_all(table, caches), repeats=setting.repeats)
    n = len(table)
    return [
        Row(
            "read + resample + cut",
            ours,
            other,
            "s",
            ours / other,
            "<= 1.2",
            f"{len(spans)} recordings, {n} cycles, into the cache; against soundfile + soxr into memory",
        ),
        Row("the same from the cache", again, other, "s", again / other, "no decoding", f"{n} cycles read back"),
    ]


def memory(setting: Setting) -> list[Row]:
    """Peak memory of preparing a quarter of the recordings and all of them, each in a process of its own."""
    folder = _needs(setting, "icbhi2017_subset")
    script = """
import resource, sys, tempfile, warnings
warnings.simplefilter("ignore")
from laennec.corpora import CycleWaveforms, load_corpus
table = load_corpus("icbhi2017", sys.argv[1], protocol="none")["all"]
names = sorted(set(table["recording_id"]))
kept = set(names[: int(len(names) * float(sys.argv[2]))])
rows = [i for i, name in enumerate(table["recording_id"]) if name in kept]
with tempfile.TemporaryDirectory() as cache:
    CycleWaveforms(table.select(rows), 16000, cache_dir=cache).prepare()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

    def peak(share: float) -> float:
        done = subprocess.run([sys.executable, "-c", script, str(folder), str(share)], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"measuring memory failed: {done.stderr.strip().splitlines()[-1]}")
        return int(done.stdout.split()[-1]) / 1024

    quarter, whole = peak(0.25), peak(1.0)
    note = "peak of the whole process, all recordings against the first quarter of them"
    return [Row("memory of reading", whole, quarter, "MB", whole / quarter, "does not grow with the corpus", note)]


def _read_all(table: Any, cache: str) -> None:
    from laennec.corpora import CycleWaveforms

    waveforms = CycleWaveforms(table, 16000, cache_dir=cache)
    waveforms.prepare()
    for row in range(len(table)):
        waveforms[row]


def filter_bank(setting: Setting) -> list[Row]:
    """Batched fbank against transformers' ASTFeatureExtractor (numpy path), per cycle, one thread."""
    import torch
    from transformers import ASTFeatureExtractor

    from laennec.audio.features import LaennecFeatureExtractor

    torch.set_num_threads(1)
    draw = np.random.Generator(np.random.Philox(key=1))
    rows = []
    for seconds in (2.7, 10.24):
        cycles = [draw.standard_normal(round(seconds * 16000)).astype(np.float32) * 0.1 for _ in range(32)]
        natural = LaennecFeatureExtractor("ast")
        theirs = ASTFeatureExtractor()
        ours, other = fastest(
            partial(natural, cycles, sampling_rate=16000),
            partial(theirs, cycles, sampling_rate=16000, return_tensors="pt"),
            repeats=setting.repeats,
        )
        rows.append(
            Row(
                f"fbank of {seconds} s cycles",
                1000 * ours / 32,
                1000 * other / 32,
                "ms/cycle",
                other / ours,
                ">= 5",
                "32 cycles in a batch; theirs pads to 10.24 s",
            )
        )
    rows.append(Row("fbank on a GPU", None, None, "ms/cycle", None, "", "not measured here"))
    return rows


def augmentation(setting: Setting) -> list[Row]:
    """Stretch and pitch shift of real cycles, on one thread."""
    from laennec.audio.augment import PitchShift, TimeStretch, WaveformAugmentation
    from laennec.corpora import CycleWaveforms, load_corpus

    table = load_corpus("icbhi2017", _needs(setting, "icbhi2017_subset"), protocol="none")["all"].select(range(64))
    cycles = list(CycleWaveforms(table, 16000))
    draws = WaveformAugmentation(stretch=TimeStretch(1.0), pitch=PitchShift(1.0))
    (took,) = fastest(
        lambda: [draws(c, 16000, seed=0, epoch=0, cycle_index=i) for i, c in enumerate(cycles)], repeats=setting.repeats
    )
    note = f"each of {len(cycles)} real cycles stretched and shifted in pitch"
    return [Row("stretch and pitch", len(cycles) / took, None, "cycles/s", None, ">= 20", note)]


def frozen_experiment(setting: Setting) -> list[Row]:
    """SPRSound train with a frozen mobilenet: encode once, then a 20-epoch head."""
    import torch

    from laennec.corpora import load_corpus
    from laennec.training.config import Recipe
    from laennec.training.embed import EmbeddingCache, embed_cycles
    from laennec.training.experiment import make_extractor, make_model, make_part, train

    folder = _needs(setting, "sprsound")
    torch.set_num_threads(1)
    recipe = Recipe(name="bench")
    recipe.corpus.name, recipe.corpus.data_dir = "sprsound", str(folder)
    recipe.encoder.weights, recipe.encoder.frozen = setting.weights, True
    recipe.encoder.config = {} if setting.weights else {"width_mult": 0.4}
    recipe.train.batch_size = 64
    extractor = make_extractor(recipe.features)
    everything = load_corpus("sprsound", folder, protocol="none")["all"]
    table = everything.select([row for row, part in enumerate(everything["part"]) if part == "train"])
    part = make_part("train", table, recipe, extractor, None, False)
    seconds = float(sum(np.array(table["end_s"]) - np.array(table["start_s"])))
    model = make_model(recipe, part.targets.names)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        embed_cycles(model, extractor, part.dataset, part.keys(), EmbeddingCache(Path(cache), model, extractor))
        took = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as out:
        recipe.output_dir = str(Path(out) / "run")
        record = json.loads((train(recipe) / "run.json").read_text())
    name = "mn04" if setting.weights else "mobilenet of width 0.4, random weights"
    return [
        Row(
            "encode once",
            seconds / took,
            None,
            "x real time",
            None,
            ">= 100",
            f"{len(table)} events, {seconds:.0f} s of sound, {name}, one thread, features included",
        ),
        Row(
            "20-epoch head",
            record["timings"]["training"],
            None,
            "s",
            None,
            "< 10",
            "on the cached embeddings, validated and saved every epoch",
        ),
    ]


def trainer_step(setting: Setting) -> list[Row]:
    """A Trainer step against a bare PyTorch loop of the same model and batch."""
    import torch
    from transformers import TrainingArguments

    from laennec.model import LaennecForAudioClassification
    from laennec.training.batches import CycleDataset, Targets, collate_cycles
    from laennec.training.config import Recipe
    from laennec.training.experiment import make_extractor, make_model
    from laennec.training.objective import Objective
    from laennec.training.sampler import EpochSampler
    from laennec.training.trainer import LaennecTrainer

    torch.set_num_threads(1)
    steps, size = 20, 16
    recipe = Recipe(name="bench")
    recipe.encoder.config = {"width_mult": 0.4}
    draw = np.random.Generator(np.random.Philox(key=1))
    sound = [draw.standard_normal(round(2.7 * 32000)).astype(np.float32) * 0.1 for _ in range(steps * size)]
    flags = (draw.random((len(sound), 2)) < 0.3).astype(np.float32)
    targets = Targets(["crackle", "wheeze"], flags, flags.sum(1).astype(np.int64), np.arange(len(sound)))
    dataset = CycleDataset(sound, targets, [str(i) for i in range(len(sound))], 32000, 0)
    extractor = make_extractor(recipe.features)
    objective = Objective(recipe.loss, True, flags, 2)
    model: LaennecForAudioClassification = make_model(recipe, targets.names)
    sampler = EpochSampler(len(dataset), seed=0)

    def with_trainer() -> None:
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out, per_device_train_batch_size=size, max_steps=steps, use_cpu=True, save_strategy="no",
                report_to="none",
                remove_unused_columns=False, disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
            )  # fmt: skip
            trainer = LaennecTrainer(
                model,
                arguments,
                objective=objective,
                feature_extractor=extractor,
                sampler=sampler,
                data_collator=collate_cycles,
                train_dataset=dataset,
            )
            trainer.train()

    def bare() -> None:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
        for batch in torch.utils.data.DataLoader(dataset, batch_size=size, sampler=sampler, collate_fn=collate_cycles):
            values, mask = extractor.features(batch["waveforms"], batch["lengths"])
            logits = model(values, mask).logits
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    ours, other = fastest(with_trainer, bare, repeats=setting.repeats)
    note = f"{steps} steps of mobilenet width 0.4 on {size} cycles of 2.7 s, features, start and end included"
    return [Row("training step", 1000 * ours / steps, 1000 * other / steps, "ms", ours / other, "<= 1.15", note)]


ROWS: dict[str, Callable[[Setting], list[Row]]] = {
    "start": start_up,
    "read": reading,
    "memory": memory,
    "fbank": filter_bank,
    "augment": augmentation,
    "frozen": frozen_experiment,
    "step": trainer_step,
}


def bench(names: Sequence[str], data_dir: str | None, weights: str | None, out: str | None, repeats: int = 5) -> str:
    """Run rows of the benchmark.

    Args:
        names: Which rows; none for all.
        data_dir: Folder with icbhi2017_subset and sprsound.
        weights: A released EfficientAT checkpoint.
        out: A JSON file for the result.
        repeats: How often each side runs.

    Returns:
        The table as text.

    Raises:
        InputError: An unknown row, or a named row whose data is not there.
    """
    unknown = [n for n in names if n not in ROWS]
    if unknown:
        raise InputError(f"unknown row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    setting = Setting(Path(data_dir) if data_dir else None, weights, repeats)
    rows: list[Row] = []
    for name in names or ROWS:
        try:
            rows += ROWS[name](setting)
        except InputError as error:
            if names:
                raise
            rows.append(Row(name, None, None, "", None, "", f"not measured here: {error}"))
    result = {"versions": versions(), "hardware": hardware(), "rows": [asdict(r) for r in rows]}
    if out:
        with write_aside(out) as file:
            json.dump(result, file, indent=2)
    return as_table(rows, result)


def as_table(rows: Sequence[Row], result: dict[str, Any]) -> str:
    """Rows as Markdown, with machine and versions below."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    lines = ["| what | laennec | alternative | unit | ratio | bound | how |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r.name} | {number(r.ours)} | {number(r.other)} | {r.unit} | {number(r.ratio)} | {r.bound} | {r.note} |"
        for r in rows
    ]
    machine, version = result["hardware"], result["versions"]
    lines.append("")
    lines.append(
        f"{machine['processor']}, {machine['cores']} cores; Python {version['python']}, torch {version['torch']}, "
        f"transformers {version['transformers']}"
    )
    return "\n".join(lines)
