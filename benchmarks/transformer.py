"""AST-base at the natural length of each cycle, against transformers' AST at 1024 frames.

Decisions: both sides have the same size, cycles, batch size, precision and workers, and random weights, because speed
does not depend on the weights. The other side is transformers' audio classification example: its Trainer, its model,
its feature extractor on each clip. One epoch is measured (on a GPU the second one), including waiting for data.
"""

import tempfile
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from benchmarks.device import (
    EpochClock,
    ast_flops,
    device_name,
    devices,
    gpu,
    mixed_precision,
    not_measured,
    on,
    peak_flops,
    waiting,
)
from benchmarks.material import cycle_lengths, noise, shuffled
from benchmarks.pipeline import TimedTrainer
from benchmarks.row import Row, Setting, fastest
from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder
from laennec.modeling import LaennecForAudioClassification
from laennec.training.data.batches import CycleDataset
from laennec.training.data.targets import Targets
from laennec.training.embeddings import length_batches
from laennec.training.samplers import LengthBucketSampler

RATE = 16000
PADDED_FRAMES = 1024
# overrides of the configurations, and cycles for each device: (encoder, training)
SIZE: dict[str, Any] = {}
BEATS_SIZE: dict[str, Any] = {}
NAMES = {"ast": "AST-base", "beats": "BEATs"}
CYCLES = {"cpu": (8, 6), "cuda": (4096, 2048)}
BATCH = {"cpu": (2, 2), "cuda": (128, 64)}
# DataLoader workers of both sides with a GPU
_WORKERS = 8


def encoder_forward(setting: Setting) -> list[Row]:
    """The encoder alone, without gradients: batches of similar lengths, against all cycles padded to 1024 frames."""
    rows = [_forward(setting, device, kind) for kind in NAMES for device in devices()]
    absent = [] if gpu() else [not_measured(f"{name} forward on a GPU", "cycles/s", ">= 3") for name in NAMES.values()]
    return [*rows, *absent]


def _forward(setting: Setting, device: torch.device, kind: str) -> Row:
    torch.set_num_threads(1)
    cycles, size = CYCLES[device.type][0], BATCH[device.type][0]
    seconds, source = cycle_lengths(setting, cycles)
    sound = noise(seconds, RATE)
    encoder = load_encoder(None, type=kind, **(SIZE if kind == "ast" else BEATS_SIZE)).to(device)
    extractor = LaennecFeatureExtractor(kind)
    buckets = []
    for rows in length_batches([len(s) for s in sound], size, max_samples=10**9):
        batch = extractor([sound[row] for row in rows], sampling_rate=RATE, device=device)
        mask = batch["attention_mask"]
        buckets.append((batch["input_values"], None if bool(mask.all()) else mask))
    padded = torch.zeros(size, PADDED_FRAMES, extractor.num_mel_bins, device=device)
    # transformers has no BEATs: the other side is our BEATs on padded cycles
    stock: Any = encoder.audio_spectrogram_transformer if kind == "ast" else encoder

    @torch.inference_mode()
    def ours() -> None:
        with mixed_precision(device):
            for values, mask in buckets:
                encoder(values, mask)

    @torch.inference_mode()
    def theirs() -> None:
        with mixed_precision(device):
            for start in range(0, cycles, size):
                stock(padded[: cycles - start])

    repeats = min(setting.repeats, 2) if device.type == "cpu" else setting.repeats
    if device.type == "cuda":
        ours(), theirs()
    own, other = fastest(waiting(device, ours), waiting(device, theirs), repeats=repeats)
    precision = "one thread" if device.type == "cpu" else f"bfloat16, {device_name(device)}"
    note = f"{cycles} cycles, {seconds.mean():.2f} s on average, {source}; theirs: 1024 frames; {precision}"
    name, each = f"{NAMES[kind]} forward{on(device)}", float(seconds.mean())
    return Row(name, cycles / own, cycles / other, "cycles/s", other / own, ">= 3", note, each)


class _Clips(torch.utils.data.Dataset[dict[str, Any]]):
    """Data set of transformers' example: the features of a clip are computed on access."""

    def __init__(self, sound: list[Any], flags: Any) -> None:
        self.sound, self.flags = sound, flags
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its lowest mel filter is empty
            self.extractor = ASTFeatureExtractor()

    def __len__(self) -> int:
        return len(self.sound)

    def __getitem__(self, row: int) -> dict[str, Any]:
        values = self.extractor(self.sound[row], sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        return {"input_values": values, "labels": torch.from_numpy(self.flags[row])}


@dataclass
class _Task:
    """Data and settings of both sides."""

    device: torch.device
    sound: list[Any]
    flags: Any
    batch_size: int

    @property
    def epochs(self) -> int:
        return 1 if self.device.type == "cpu" else 2

    def arguments(self, folder: str) -> TrainingArguments:
        on_gpu = self.device.type == "cuda"
        return TrainingArguments(
            folder, per_device_train_batch_size=self.batch_size, num_train_epochs=self.epochs, learning_rate=1e-5,
            use_cpu=not on_gpu, bf16=on_gpu, dataloader_num_workers=_WORKERS if on_gpu else 0,
            dataloader_pin_memory=on_gpu, accelerator_config={"non_blocking": on_gpu}, save_strategy="no",
            logging_strategy="no", report_to="none", disable_tqdm=True,
            label_names=["labels"],
        )  # fmt: skip


def fine_tuning(setting: Setting) -> list[Row]:
    """One epoch of fine-tuning AST-base, and the FLOP utilisation of the device."""
    rows = [row for device in devices() for row in _fine_tuning(setting, device)]
    if gpu() is None:
        rows.append(not_measured("AST-base fine-tuning on a GPU", "cycles/s", ">= 4"))
        rows.append(not_measured("AST-base fine-tuning, model-FLOP utilisation on a GPU", "of peak"))
    return rows


def _fine_tuning(setting: Setting, device: torch.device) -> list[Row]:
    torch.set_num_threads(1)
    cycles, size = CYCLES[device.type][1], BATCH[device.type][1]
    seconds, source = cycle_lengths(setting, cycles)
    seconds = seconds[shuffled(cycles)]
    flags = (np.random.Generator(np.random.Philox(key=3)).random((cycles, 2)) < 0.3).astype(np.float32)
    task = _Task(device, noise(seconds, RATE), flags, size)
    own, shares, frames, config = _ours(task)
    other = _theirs(task)
    peak = peak_flops(device_name(device))
    work = 3 * sum(ast_flops(config, n) for n in frames)
    padded = 3 * cycles * ast_flops(config, PADDED_FRAMES)
    precision = "one thread" if device.type == "cpu" else f"bfloat16, {device_name(device)}"
    note = (
        f"{cycles} cycles, {seconds.mean():.2f} s on average, {source}, in batches of {size}, {precision}; theirs: "
        f"transformers.Trainer, ASTForAudioClassification and ASTFeatureExtractor at 1024 frames; {_limit(shares)}"
    )
    name, bound = f"AST-base fine-tuning{on(device)}", ">= 4" if device.type == "cuda" else ""
    tuned = Row(name, cycles / own, cycles / other, "cycles/s", other / own, bound, note, float(seconds.mean()))
    return [tuned, _utilisation(device, work / own, padded / other, peak)]


def _utilisation(device: torch.device, own: float, other: float, peak: float | None) -> Row:
    """Achieved FLOP/s of both sides over the device's peak, or n/a."""
    name = f"AST-base fine-tuning, model-FLOP utilisation{on(device)}"
    achieved = f"matrix products of own frames, forward and twice as many backward: {own / 1e12:.3g} TFLOP/s"
    if peak is None:
        kind = "a CPU" if device.type == "cpu" else f"unknown device {device_name(device)}"
        return Row(name, None, None, "of peak", None, "", f"n/a: no peak is on record for {kind}; {achieved}")
    note = f"{achieved} of {peak / 1e12:.0f} (dense bfloat16)"
    return Row(name, own / peak, other / peak, "of peak", own / other, "", note)


def _limit(shares: dict[str, float]) -> str:
    """Shares of a step's time, the largest first."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    said = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ordered)
    return f"limited by {ordered[0][0]} ({said})"


def _ours(task: _Task) -> tuple[float, dict[str, float], list[int], Any]:
    """Seconds of an epoch of our Trainer, shares of its time, frames of each cycle, and the encoder's configuration."""
    cycles = len(task.sound)
    targets = Targets(["crackle", "wheeze"], task.flags, task.flags.sum(1).astype(np.int64), np.arange(cycles))
    dataset = CycleDataset(task.sound, targets, [str(row) for row in range(cycles)], RATE, 0)
    extractor = LaennecFeatureExtractor("ast")
    encoder = load_encoder(None, type="ast", **SIZE)
    config = LaennecConfig(encoder_config=encoder.config, id2label=dict(enumerate(targets.names)))
    clock = EpochClock(task.epochs - 1, task.device)
    with tempfile.TemporaryDirectory() as out:
        trainer = TimedTrainer(
            LaennecForAudioClassification(config, encoder),
            task.arguments(out),
            processing_class=extractor,
            sampler=LengthBucketSampler([len(s) for s in task.sound], task.batch_size),
            train_dataset=dataset,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        waited = trainer.waited_s
        computing = _alone(trainer)
    frames = [extractor.frames(len(sound)) for sound in task.sound]
    shares = {"forward and backward": computing / clock.seconds, "waiting for data": waited / clock.seconds}
    shares["features, optimizer and the rest"] = max(0.0, 1 - sum(shares.values()))
    return clock.seconds, shares, frames, encoder.config


def _alone(trainer: Any) -> float:
    """Seconds of forward and backward alone over the batches of an epoch, with features already on the device."""
    device = trainer.args.device
    model = trainer.model.train()
    batches = []
    for batch in trainer.get_train_dataloader():
        features, mask = trainer.processing_class.features(batch["waveforms"].to(device), batch["lengths"])
        batches.append({"input_values": features, "attention_mask": mask, "labels": batch["labels"].to(device)})

    def passes() -> None:
        for batch in batches:
            with mixed_precision(device):
                logits = model(batch["input_values"], batch["attention_mask"]).logits
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), batch["labels"])
            loss.backward()
            model.zero_grad()

    (took,) = fastest(waiting(device, passes), repeats=1 if device.type == "cpu" else 2)
    return took


def _theirs(task: _Task) -> float:
    """Seconds of an epoch of transformers' example."""
    config = ASTConfig(num_labels=2, problem_type="multi_label_classification", **SIZE)
    model = ASTForAudioClassification._from_config(config)
    clock = EpochClock(task.epochs - 1, task.device)
    with tempfile.TemporaryDirectory() as out:
        trainer = Trainer(model, task.arguments(out), train_dataset=_Clips(task.sound, task.flags), callbacks=[clock])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds
