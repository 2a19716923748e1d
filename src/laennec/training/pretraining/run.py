"""Self-supervised pre-training with metadata (Soni et al.), without labels.

Decisions: one recipe serves both steps. `laennec pretrain` trains the recipe's encoder to tell pairs of views from
other cycles and saves it as an encoder folder; `laennec train` with `--encoder.weights RUN/encoder` does the rest. The
objective, the Trainer and the samplers are those of training (the loss takes the rows of all processes); the head is
not trained and the projection is dropped. There is nothing to select on: the last epoch's weights are kept. Sound is
decoded recording by recording into the waveform cache and read back cycle by cycle, so memory does not grow with the
corpus.
"""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from laennec.audio.features import LaennecFeatureExtractor
from laennec.corpora.copies import canonical_hashes
from laennec.corpora.load import provenance
from laennec.corpora.waveforms import CycleWaveforms
from laennec.encoders import encoder_digest
from laennec.errors import InputError
from laennec.files import atomic_folder, explain_write_errors
from laennec.modeling import LaennecForAudioClassification
from laennec.terminal import say
from laennec.training.arguments import LaennecTrainingArguments
from laennec.training.checkpoints import timed_part, train_or_resume
from laennec.training.data.split_data import load_splits, make_extractor, make_filter, with_train_statistics
from laennec.training.data.targets import GroupTable, group_codes, metadata_of
from laennec.training.data.training_data import refuse_short_cycles
from laennec.training.devices import configure_process, explain_lost_process, is_main_process
from laennec.training.embeddings import embed_waveforms
from laennec.training.objectives.loss_specs import LossSpec, loss_specs
from laennec.training.objectives.objective import Stage
from laennec.training.pretraining.dataset import (
    PRETRAINING,
    PairDataset,
    mask_views,
    patients_of,
    pretraining_note,
    pretraining_set,
)
from laennec.training.pretraining.pairs import PairSampling, make_pretrain_sampler, pair_sampling
from laennec.training.recipe import PretrainSettings, Recipe
from laennec.training.recipe.front_end import refuse_other_features
from laennec.training.record import Timings, training_history, write_record
from laennec.training.run import claimed, removed_leftovers, run_facts
from laennec.training.schedules import EpochLines, common_arguments, loss_descriptions
from laennec.training.step_errors import BatchSetting
from laennec.training.trainer import LaennecTrainer

PATIENTS = "patients"
_CHECKED_CYCLES = 256  # whose embeddings are compared before and after


@dataclass
class PairData:
    """The data of a pre-training."""

    table: Any  # cycle table of the rows that are used
    left_out: dict[str, int]  # reason -> number of what was left out
    windows: int  # number of rows that are windows of recordings without annotation
    sampling: PairSampling  # positive pairs and groups of the rows
    dataset: PairDataset  # their pairs of views
    source: dict[str, Any]  # corpus and split
    note: dict[str, Any]  # their description, saved with the encoder


def pretrain(recipe: Recipe, command: str = "", overwrite: bool = False) -> Path:
    """Pre-train a recipe's encoder on pairs of views.

    Args:
        recipe: All settings: its section `pretrain`, with corpus, features and encoder as in training.
        command: The literal command, for the record.
        overwrite: Whether a finished or other run in the output folder may be deleted.

    Returns:
        The run's folder: encoder/ (what `encoder.weights` takes), pretrain.json, recipe.json. It is
        runs/<name>-pretrain where the recipe names no output_dir.

    Raises:
        InputError: Anything a user can fix, from the recipe to the disk.

    Reference: Soni et al., Contrastive Learning of Heart and Lung Sounds for Label-Efficient Diagnosis, Patterns 2022.
    """
    settings = settings_of(recipe)
    out = Path(recipe.output_dir or Path("runs") / f"{recipe.name}-pretrain")
    if recipe.corpus.corpora:
        raise InputError(f"pre-training takes one corpus, not {recipe.corpus.name}; give a recipe with one of them")
    if not overwrite and removed_leftovers(out, recipe):
        return out
    with claimed(out, recipe, overwrite) as begin:
        configure_process(recipe.train.threads)
        _pretrain(recipe, settings, out, command, begin)
    return out


def _pretrain(recipe: Recipe, settings: PretrainSettings, out: Path, command: str, begin: Callable[..., None]) -> None:
    """From corpus to record; `begin` is called before anything is written below `out`."""
    timings = Timings()
    with timings.measure("total"):
        # pre-training takes cycles without context; training on labels adds the context
        extractor = make_extractor(recipe.features.model_copy(update={"context_cycles": 0}))
        with timings.measure("corpus"):
            pairs = make_pairs(recipe, settings, extractor)
            recipe = with_train_statistics(recipe, pairs.dataset.waveforms)
            extractor = make_extractor(recipe.features.model_copy(update={"context_cycles": 0}))
        model = make_contrastive_model(recipe, settings)
        begin(pairs.source)
        if is_main_process():
            say(*pairs.sampling.notes)
        before = embedding_spread(model, extractor, pairs.dataset)
        with timings.measure(timed_part(out)), explain_write_errors(out / "checkpoints"), explain_lost_process():
            specs, history = _fit(recipe, settings, model, extractor, pairs, out)
        after = embedding_spread(model, extractor, pairs.dataset)
    if not is_main_process():
        return
    record = run_facts(recipe, pairs.source) | {
        "command": command,
        "selection_set": "none: the last epoch is kept",
        "cycles": len(pairs.dataset),
        "windows": pairs.windows,
        "patients": sorted(patients_of(pairs.table)),
        "left_out": pairs.left_out | pairs.sampling.left_out,
        "paired_with_themselves": pairs.sampling.paired_with_themselves,
        "pairs": settings.pairs,
        "views": settings.views,
        "losses": loss_descriptions(specs),
        "initialised_from": model.config.base_model_name_or_path or "random",
        "encoder_digest": encoder_digest(model.encoder),
        "history": training_history(history),
        "embeddings": {"before": before, "after": after},
        "timings": timings.seconds,
    }
    with atomic_folder(out / "encoder") as folder:
        model.encoder.save_pretrained(folder)
        extractor.save_pretrained(folder)
        write_record(folder / PRETRAINING, pairs.note)
    write_record(out / "pretrain.json", record)  # last, because it marks the run as finished
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def settings_of(recipe: Recipe) -> PretrainSettings:
    """The recipe's section `pretrain`."""
    if recipe.pretrain is None:
        raise InputError(
            f"{recipe.name}: the recipe has no section pretrain; add one, or give a setting, e.g. --pretrain.pairs self"
        )
    if recipe.encoder.class_ is None and recipe.encoder.type == "statistics":
        raise InputError("encoder.type is statistics, which has nothing to pre-train; choose mobilenet, cnn or ast")
    return recipe.pretrain


def make_pairs(recipe: Recipe, settings: PretrainSettings, extractor: LaennecFeatureExtractor) -> PairData:
    """Read the corpus, choose the pre-training set, and decode its recordings into the cache."""
    splits = load_splits(recipe)
    table, left_out, windows = pretraining_set(splits, settings, canonical_hashes(splits))
    rows = np.arange(len(table))
    groups = GroupTable(len(rows), metadata_of(table, rows), recipe.metadata.age_edges_years)
    sampling = pair_sampling(settings, groups)
    table = table.select(sampling.kept)
    if len(table) < settings.batch_size:
        raise InputError(
            f"pretrain.batch_size is {settings.batch_size}, but the pre-training set has {len(table)} cycles; lower it "
            "or use a larger corpus"
        )
    waveforms = CycleWaveforms(table, extractor.sampling_rate, filter=make_filter(recipe.features))
    refuse_short_cycles(table, waveforms, extractor)
    least = 2 * extractor.front.window_samples  # so that a time-stretched crop still fills a frame
    dataset = PairDataset(
        waveforms, table["cycle_id"], extractor.sampling_rate, recipe.seed, settings, least, sampling.positives
    )
    note = pretraining_note(splits, table)
    return PairData(table, left_out, windows, sampling, dataset, provenance(splits), note)


def make_contrastive_model(recipe: Recipe, settings: PretrainSettings) -> LaennecForAudioClassification:
    """The encoder (loaded or random) with SimCLR's projection: a hidden layer as wide as the embedding, then 256."""
    e = recipe.encoder
    model = LaennecForAudioClassification.from_encoder(
        e.weights if settings.init == "weights" else None,
        ["none"],
        type=recipe.encoder_type(),
        revision=e.revision,
        encoder_config=e.config,
        pooling=recipe.head.pooling,
        projection_dim=settings.projection_dim,
        seed=recipe.seed,
    )
    refuse_other_features(recipe, model.encoder)
    model.head.requires_grad_(False)  # DDP waits for a gradient of each trainable weight
    return model


def contrastive_loss(settings: PretrainSettings) -> list[LossSpec]:
    """NT-Xent between the two views of a pair, or SupCon by age band."""
    entry: dict[str, Any] = {"on": "projection", "views": 2, "temperature": settings.temperature}
    scale = 1.0 if settings.base_temperature is None else settings.temperature / settings.base_temperature
    if settings.pairs == "age_band":
        entry |= {"loss": "supcon", "labels": "age_band", "missing": "own_group", "weight": scale}
    else:
        entry |= {"loss": "ntxent", "base_temperature": settings.base_temperature or settings.temperature}
    (spec,) = loss_specs({"supcon" if settings.pairs == "age_band" else "ntxent": entry})
    return [dataclasses.replace(spec, negative_groups=PATIENTS if settings.negatives == "other_patients" else "")]


def _fit(
    recipe: Recipe, settings: PretrainSettings, model: Any, extractor: Any, pairs: PairData, out: Path
) -> tuple[list[LossSpec], list[dict[str, Any]]]:
    """Train the model in place; an interrupted pre-training continues from its last checkpoint."""
    specs = contrastive_loss(settings)
    patients = pairs.table["patient_id"]
    if pairs.sampling.age_groups is not None:
        pairs.dataset.groups = {str(specs[0].group_key): pairs.sampling.age_groups}
    elif settings.negatives == "other_patients":
        pairs.dataset.groups = {PATIENTS: group_codes([patients], "drop")}
    folder = out / "checkpoints" / "self-supervision"
    unsupervised = Stage(head=False)
    trainer = LaennecTrainer(
        model,
        LaennecTrainingArguments(
            **common_arguments(recipe, settings, folder),
            per_device_train_batch_size=settings.batch_size,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            dataloader_drop_last=True,  # a short last batch would have fewer negatives than the others
            ddp_find_unused_parameters=False,
        ),
        train_dataset=pairs.dataset,
        processing_class=extractor,
        losses={spec.name: spec for spec in specs},
        spec_augment=mask_views(settings),
        sampler=make_pretrain_sampler(settings, pairs.sampling, patients, recipe.seed),
        stages=lambda _: unsupervised,
        batch_setting=BatchSetting("pretrain.batch_size", settings.batch_size, settings.batch_size),
    )
    trainer.add_callback(EpochLines("pretrain"))
    train_or_resume(trainer, settings.save_steps)
    return specs, trainer.state.log_history


def embedding_spread(model: Any, extractor: LaennecFeatureExtractor, dataset: PairDataset) -> dict[str, float]:
    """Whether embeddings have collapsed: how similar those of different cycles are, over a fixed sample.

    Returns:
        mean_cosine: mean cosine of two different cycles, 1 where all embeddings point the same way;
        effective_rank: exp of the entropy of the covariance's eigenvalues, 1 where one direction is left;
        spread: mean over dimensions of the standard deviation of normalised embeddings, times sqrt(dimensions).
    """
    rows = np.sort(np.random.Generator(np.random.Philox(key=0)).permutation(len(dataset))[:_CHECKED_CYCLES])
    vectors = torch.from_numpy(embed_waveforms(model, extractor, [dataset.waveforms[int(r)] for r in rows])).double()
    z = normalize(vectors, dim=1)
    n = len(z)
    variances = torch.linalg.svdvals(z - z.mean(0)).square()
    share = variances / variances.sum().clamp_min(1e-300)
    return {
        "cycles": n,
        "mean_cosine": float((z.sum(0).square().sum() - n) / (n * (n - 1))),
        "effective_rank": float(torch.special.entr(share).sum().exp()),
        "spread": float(z.std(0).mean() * z.shape[1] ** 0.5),
    }
