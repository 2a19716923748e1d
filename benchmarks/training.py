"""Speed of embedding and training.

Decisions: a step is compared with a bare PyTorch loop for the same model and batch.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import PrinterCallback, TrainingArguments

from benchmarks.device import devices, not_measured
from benchmarks.material import mobilenet
from benchmarks.row import Row, Setting, fastest, needs, profiled
from laennec.audio.features import LaennecFeatureExtractor
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.modeling import LaennecForAudioClassification
from laennec.training import run, schedules
from laennec.training.data.batches import CycleDataset, EmbeddingDataset, collate_cycles
from laennec.training.data.split_data import make_extractor, make_split
from laennec.training.data.targets import Targets
from laennec.training.embeddings import EmbeddingCache, embed_cycles, embed_waveforms
from laennec.training.recipe import Recipe
from laennec.training.run import make_model, train
from laennec.training.samplers import EpochSampler
from laennec.training.trainer import LaennecTrainer


def frozen_experiment(setting: Setting) -> list[Row]:
    """SPRSound train with a frozen mobilenet: encode once, then a 20-epoch head."""
    folder = needs(setting, "sprsound")
    torch.set_num_threads(1)
    recipe = Recipe(name="bench")
    recipe.corpus.name, recipe.corpus.data_dir = "sprsound", str(folder)
    recipe.encoder.weights, recipe.encoder.trainable = setting.weights, "frozen"
    recipe.encoder.config = {} if setting.weights else {"width_mult": 0.4}
    recipe.train.batch_size = 64
    extractor = make_extractor(recipe.features)
    everything = load_corpus("sprsound", folder, protocol="none")["all"]
    table = everything.select([row for row, part in enumerate(everything["part"]) if part == "train"])
    part = make_split("train", table, recipe, extractor, None, False)
    seconds = float(sum(np.array(table["end_s"]) - np.array(table["start_s"])))
    model = make_model(recipe, part.targets.names)
    took = {device.type: _embedding(model.to(device), extractor, part) for device in reversed(devices())}
    with tempfile.TemporaryDirectory() as out:
        recipe.output_dir = str(Path(out) / "run")
        record = json.loads((train(recipe) / "run.json").read_text())
        recipe.output_dir = str(Path(out) / "profiled")
        profile = _profile_of_training(recipe)
    name = "mn04" if setting.weights else "mobilenet of width 0.4, random weights"
    what = f"{len(table)} events, {seconds:.0f} s of sound, {name}, one thread, features included"
    profile = profiled(lambda: _embedding(model, extractor, part))
    rows = [Row("encode once", seconds / took["cpu"], None, "x real time", None, ">= 400", f"{what}; {profile}")]
    if "cuda" in took:
        rows.append(Row("encode once on a GPU", seconds / took["cuda"], None, "x real time", None, "", what))
    else:
        rows.append(not_measured("encode once on a GPU", "x real time"))
    note = f"on the cached embeddings, validated and saved every epoch; {profile}"
    return [*rows, Row("20-epoch head", record["timings"]["training"], None, "s", None, "<= 2.5 s", note)]


def _profile_of_training(recipe: Any) -> str:
    said, results = [], []

    def phases(*arguments: Any) -> Any:
        said.append(profiled(lambda: results.append(schedules.run_phases(*arguments))))
        return results[0]

    with patch.object(run, "run_phases", phases):
        run.train(recipe)
    return said[0]


def _embedding(model: Any, extractor: Any, part: Any) -> float:
    """Seconds of embedding a split on the device of the model; a GPU is warmed up first."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        embed_waveforms(model, extractor, [part.dataset.sound(row) for row in range(min(256, len(part.dataset)))])
    with tempfile.TemporaryDirectory() as cache:
        kept = EmbeddingCache(Path(cache), model, extractor)
        start = time.perf_counter()
        embed_cycles(part.dataset, part.keys(), kept)  # the result is on the CPU, so the GPU has finished
        return time.perf_counter() - start


# number of events that are encoded again in every epoch, and number of epochs
SUBSET, EPOCHS = 512, 20


def validation(setting: Setting) -> list[Row]:
    """Embedding events as in validation and prediction, against one at a time."""
    torch.set_num_threads(1)
    table = load_corpus("sprsound", needs(setting, "sprsound"), protocol="none")["all"]
    kept = [row for row, part in enumerate(table["part"]) if part == "train"]
    encoder, _ = mobilenet(setting)
    model, extractor = LaennecForAudioClassification.from_encoder(encoder), LaennecFeatureExtractor("efficientat")
    sounds = list(CycleWaveforms(table.select(kept[:: max(1, len(kept) // SUBSET)]), extractor.sampling_rate))
    seconds = sum(map(len, sounds)) / extractor.sampling_rate

    @torch.inference_mode()
    def alone() -> None:
        for sound in sounds:
            model(**extractor([sound], sampling_rate=extractor.sampling_rate, filtered=True))

    own, other = fastest(lambda: embed_waveforms(model, extractor, sounds), alone, repeats=setting.repeats)
    note = f"{len(sounds)} events of {seconds:.0f} s in all, mn04, one thread, features included; theirs: one by one"
    note += f"; {profiled(lambda: embed_waveforms(model, extractor, sounds))}"
    own, other = (1e3 * took / len(sounds) for took in (own, other))
    return [Row("validation", own, other, "ms/event", own / other, "<= 2.5 ms", note)]


def padded_step(setting: Setting) -> list[Row]:
    """The cost of masks: a training step with a padded batch against one of cycles of equal length."""
    torch.set_num_threads(1)
    encoder, _ = mobilenet(setting)
    model = LaennecForAudioClassification.from_encoder(encoder).to(memory_format=torch.channels_last).train()
    values = torch.randn(32, 200, 128, generator=torch.Generator().manual_seed(0))
    equal = torch.ones(32, 200, dtype=torch.int64)
    padded = equal.clone()
    padded[0, -1] = 0
    labels = torch.randint(0, 2, (32, 2), generator=torch.Generator().manual_seed(1)).float()

    def step(mask: torch.Tensor) -> None:
        model(values, mask, labels=labels).loss.backward()
        model.zero_grad()

    own, other = fastest(lambda: step(padded), lambda: step(equal), repeats=setting.repeats)
    note = "forward and backward of mn04, 32 x 2 s, one of them a frame shorter; theirs: none shorter"
    note += f"; {profiled(lambda: step(padded))}"
    return [Row("training step on natural lengths", 1e3 * own, 1e3 * other, "ms", own / other, "<= 1.15", note)]


def encoding_again(setting: Setting) -> list[Row]:
    """A frozen mobilenet and a head for 20 epochs: encoding once or in every epoch, all steps included."""
    folder = needs(setting, "sprsound")
    torch.set_num_threads(1)
    recipe = Recipe(name="bench")
    recipe.encoder.weights, recipe.encoder.trainable = setting.weights, "frozen"
    recipe.encoder.config = {} if setting.weights else {"width_mult": 0.4}
    extractor = make_extractor(recipe.features)
    everything = load_corpus("sprsound", folder, protocol="none")["all"]
    kept = [row for row, part in enumerate(everything["part"]) if part == "train"]
    table = everything.select(kept[:: max(1, len(kept) // SUBSET)][:SUBSET])
    part = make_split("train", table, recipe, extractor, None, False)
    seconds = float(sum(np.array(table["end_s"]) - np.array(table["start_s"])))

    def ours() -> None:
        model = make_model(recipe, part.targets.names)
        with tempfile.TemporaryDirectory() as cache:
            kept = EmbeddingCache(Path(cache), model, extractor)
            embeddings = embed_cycles(part.dataset, part.keys(), kept)
        dataset = EmbeddingDataset(embeddings[None], part.targets.labels[None])
        head_epochs(model, dataset, None, EPOCHS)

    def theirs() -> None:
        head_epochs(make_model(recipe, part.targets.names), part.dataset, extractor, EPOCHS)

    own, other = fastest(ours, theirs, repeats=1)
    note = (
        f"{EPOCHS} epochs over {len(table)} events ({seconds:.0f} s of sound), both sides in full from cached "
        "waveforms, one thread; theirs: the same Trainer on batches of sound"
    )
    return [Row("frozen encoder and head", own, other, "s", other / own, ">= 15", note)]


def head_epochs(model: Any, dataset: Any, extractor: Any, epochs: int = 1) -> None:
    """Train the head on a frozen encoder, from embeddings or from sound."""
    with tempfile.TemporaryDirectory() as out:
        plain_trainer(out, model, dataset, extractor, 64, num_train_epochs=epochs).train()


def plain_trainer(
    folder: str, model: Any, dataset: Any, extractor: Any, batch_size: int, callbacks: Any = (), **settings: Any
) -> LaennecTrainer:
    """A Trainer on the CPU that saves and logs nothing."""
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=batch_size, use_cpu=True, save_strategy="no", logging_strategy="no",
        report_to="none", disable_tqdm=True, dataloader_pin_memory=False, **settings,
    )  # fmt: skip
    sampler = EpochSampler(len(dataset), seed=0)
    trainer = LaennecTrainer(
        model, arguments, processing_class=extractor, sampler=sampler, train_dataset=dataset, callbacks=list(callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def trainer_step(setting: Setting) -> list[Row]:
    """A Trainer step against a bare PyTorch loop of the same model and batch."""
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
    model: LaennecForAudioClassification = make_model(recipe, targets.names)
    sampler = EpochSampler(len(dataset), seed=0)

    def with_trainer() -> None:
        with tempfile.TemporaryDirectory() as out:
            plain_trainer(out, model, dataset, extractor, size, max_steps=steps).train()

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
