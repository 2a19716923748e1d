"""Train one recipe, from corpus to the best epoch's model, and write the folder of the run.

Decisions: nothing in this file reads a test split. Validation patients choose the epoch; the best epoch is restored;
`laennec evaluate` scores the test split afterwards. A frozen encoder runs once over all cycles, then the same Trainer
trains the head on embeddings. An unfinished run in the output folder is continued if its recipe is the same; a finished
or other one is overwritten only with `overwrite`, and not before data and weights were checked.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import span_noun
from laennec.corpora.load import provenance
from laennec.encoders import Wrapper
from laennec.errors import InputError
from laennec.files import atomic_folder, atomic_write, explain_write_errors, lock_of, lock_or_refuse, remove_stale_lock
from laennec.modeling import LaennecForAudioClassification
from laennec.terminal import say
from laennec.training.auxiliary_tasks import AuxiliaryTasks, config_of, fit_logit_adjustment, predict_tasks, tasks_of
from laennec.training.checkpoints import timed_part
from laennec.training.data.batches import EmbeddingDataset, refuse_lost_neighbours
from laennec.training.data.mixing import check_mixing
from laennec.training.data.split_data import (
    SplitData,
    labelled_split,
    load_decoded,
    make_extractor,
    make_split,
    with_train_statistics,
)
from laennec.training.data.targets import span_of, target_of
from laennec.training.data.windows import fit_window_points, training_examples
from laennec.training.devices import (
    configure_process,
    explain_lost_process,
    is_main_process,
    process_count_of_launch,
    training_device,
)
from laennec.training.embeddings import EmbeddingCache, embed_cycles, embed_waveforms, embedding_cache
from laennec.training.initial import InitialModel, soften_labels, write_trained_on
from laennec.training.pretraining.dataset import refuse_seen_patients
from laennec.training.recipe import Recipe
from laennec.training.recipe.front_end import refuse_other_features
from laennec.training.record import Timings, hardware, read_record, training_history, versions, write_record
from laennec.training.schedules import Result, check_schedule, plan_phases, run_phases
from laennec.training.tables import calibrate, check_rule, predictions_table, truth_table

RECORDS = ("run.json", "pretrain.json")  # of training and of pre-training, written last
_SETTINGS = "recipe.json"
# temporary files that a killed run can leave before it writes its settings
_TEMPORARY = (lock_of(RECORDS[0]).name, f".{_SETTINGS}.part")


def make_model(recipe: Recipe, names: list[str], start: InitialModel | None = None) -> LaennecForAudioClassification:
    """Encoder (loaded, random, or that of a trained model) and a new head for the given labels."""
    e, h = recipe.encoder, recipe.head
    model = LaennecForAudioClassification.from_encoder(
        e.weights if start is None else start.encoder,
        names,
        recipe.target.problem_type or "multi_label",
        type=recipe.encoder_type(),
        revision=e.revision,
        encoder_config=e.config,
        trainable=e.trainable,
        last_layers=e.train_last_layers,
        lora=e.lora.model_dump(),
        group_frames=e.group_frames,
        group_step=e.group_step,
        layers=e.layers,
        combine_layers=e.combine_layers,
        pooling=h.pooling,
        head_hidden_dim=h.hidden_dim,
        head_dropout=h.dropout,
        head_layer_norm=h.layer_norm,
        head_relu=h.relu,
        projection_dim=h.projection_dim,
        concatenated_context=recipe.features.context_cycles > 0,
        tasks=config_of(tasks_of(recipe)),
        features=make_extractor(recipe.features),
        base=None if start is None else start.base,
        seed=recipe.seed,
    )
    refuse_other_features(recipe, model.encoder.encoder if isinstance(model.encoder, Wrapper) else model.encoder)
    return model


def train(recipe: Recipe, command: str = "", overwrite: bool = False, watch: Any = None) -> Path:
    """Run a recipe.

    Args:
        recipe: All settings.
        command: The literal command, for the record.
        overwrite: Whether a finished or other run in the output folder may be deleted.
        watch: A TrainerCallback for every phase; None for none.

    Returns:
        The run's folder: model/, predictions-validation.parquet, windows-validation.parquet, recipe.json, run.json.

    Raises:
        InputError: Anything a user can fix, from the recipe to the disk.
    """
    out = Path(recipe.output_dir or Path("runs") / recipe.name)
    if not overwrite and removed_leftovers(out, recipe):
        return out
    with claimed(out, recipe, overwrite) as begin:
        configure_process(recipe.train.threads)
        _train(recipe, out, command, begin, watch)
    return out


def _train(recipe: Recipe, out: Path, command: str, begin: Callable[..., None], watch: Any) -> None:
    """From corpus to record; `begin` is called before anything is written below `out`."""
    timings = Timings()
    with timings.measure("total"):
        extractor, start = make_extractor(recipe.features), InitialModel.of(recipe)
        check_mixing(recipe)
        check_schedule(recipe)
        tasks_of(recipe)
        with timings.measure("corpus"):
            splits = load_decoded(recipe, extractor.sampling_rate)
            source, pretraining = provenance(splits), refuse_seen_patients(recipe.encoder.weights, splits)
            refuse_lost_neighbours(splits, source.get("protocol"), extractor.context_cycles)
            recipe = recipe.with_target(target_of(splits["train"], recipe.target, list(splits.values())))
            training = labelled_split(recipe, training_examples(recipe, splits, extractor), extractor)
            names = training.targets.names
            recipe = with_train_statistics(recipe, training.dataset.waveforms)
            extractor = make_extractor(recipe.features)
            if start is not None:
                start.refuse_other_front_end(recipe)
                start.refuse_seen_patients(splits)
            validation = make_split("validation", splits["validation"], recipe, extractor, names, False)
            teacher = soften_labels(recipe, training, splits)
        model = make_model(recipe, names, start)
        kept = start is not None and start.keep_head(model)
        model.config.span = span_of(training.table)
        if is_main_process():
            how = "each independently" if recipe.target.problem_type == "multi_label" else "exactly one"
            of = f"({recipe.target.problem_type}: {how}) of {span_noun(model.config.span)}s"
            say(f"target: {', '.join(names)} {of}")
            if recipe.corpus.corpora:
                say(f"selection: {selection_of(recipe)}")
        with explain_lost_process():
            result, (predictions, operating_points, tasks) = fit(
                recipe, model, extractor, training, validation, out, timings, partial(begin, source), watch
            )
            with timings.measure("validation windows"):
                windows, points = fit_window_points(result.model, extractor, recipe, splits, recipe.head)
    if not is_main_process():
        return
    record = run_facts(recipe, source) | {
        "command": command,
        "problem_type": recipe.target.problem_type,
        "selection_set": "validation",
        "selection_metric": selection_of(recipe),
        "labels": names,
        "span": model.config.span,
        "held_out": [name for name in splits if name not in ("train", "validation")],
        "cycles": {"train": len(training.dataset), "validation": len(validation.dataset)},
        "labelled": len(set(training.table["cycle_id"])),
        "patients": {part.name: len(set(part.table["patient_id"]) - {None}) for part in (training, validation)},
        "pretraining": pretraining,
        "initialised_from": None if start is None else start.facts(kept),
        "teacher": None if teacher is None else teacher.facts(False) | {"weight": recipe.loss.teacher_weight},
        "timings": timings.seconds,
        "losses": result.losses,
        "history": training_history(result.history),
        "best_epoch": result.best_epoch,
        "best_metric": result.best_metric,
        "operating_points": operating_points,
        "window_points": points,
        "tasks": tasks,
        "evaluations": [],
    }
    write_trained_on(out, splits, training.table, start, teacher)
    write_run(out, result.model, extractor, {"predictions": predictions, "windows": windows}, record)


def selection_of(recipe: Recipe) -> str:
    """What chooses the epoch on validation, in words."""
    metric = recipe.train.selection_metric
    # without the corpora that are only tested on
    corpora = [one.name for one in recipe.corpus.corpora if one.protocol not in ("corpus-out", "none")]
    how = "over all cycles" if metric == "loss" else f"mean over {' and '.join(corpora)}"
    return f"{metric} ({how})" if len(corpora) > 1 else metric


def run_facts(recipe: Recipe, source: dict[str, Any]) -> dict[str, Any]:
    """What the records of training and pre-training share: name, corpus, settings, seed and machine."""
    return {
        "name": recipe.name,
        "corpus": recipe.corpus_facts(source),
        "config": recipe.to_dict(),
        "seeds": {"recipe": recipe.seed},
        "versions": versions(),
        "hardware": hardware(),
    }


def fit(
    recipe: Recipe,
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    training: SplitData,
    validation: SplitData,
    out: Path,
    timings: Timings,
    begin: Callable[[], None],
    watch: Any,
) -> tuple[Result, tuple[Any, dict[str, Any] | None, dict[str, Any]]]:
    """Train a model and choose its epoch on validation; with the result comes what `predict_validation` returns.

    `begin` is called when recipe and corpus were found to fit, before anything is written below `out`.
    """
    cache = None
    names = training.targets.names
    check_rule(recipe.head, names, training.targets.labels.ndim == 2)
    truth = truth_table(validation.table, "validation", recipe.target.column, names)
    datasets: tuple[Any, Any] = (training.dataset, validation.dataset)
    model.to(training_device())  # type: ignore[arg-type]
    if recipe.encoder.frozen:
        with timings.measure("embedding"):
            cache = embedding_cache(recipe, model, extractor)
            datasets = _embedded(recipe, model, training, validation, cache)
    elif recipe.standardises and recipe.encoder.weights is not None:
        _standardise_on_sample(recipe, model, extractor, training)
    plan = plan_phases(recipe, model, extractor, training.targets, training.table, datasets, truth)
    if tasks := tasks_of(recipe):
        held_out = set(validation.table["patient_id"])
        auxiliary_tasks = AuxiliaryTasks(recipe, tasks, training.dataset, training.table, extractor, held_out)
        plan.settings["auxiliary_tasks"] = auxiliary_tasks
    begin()
    with timings.measure(timed_part(out)), explain_write_errors(out / "checkpoints"):
        result = run_phases(recipe, model, plan, out, watch)
    with timings.measure("validation predictions"):
        return result, predict_validation(result.model, extractor, recipe, validation, cache)


def predict_validation(
    model: LaennecForAudioClassification,
    extractor: LaennecFeatureExtractor,
    recipe: Recipe,
    validation: SplitData,
    cache: EmbeddingCache | None = None,
) -> tuple[Any, dict[str, Any] | None, dict[str, Any]]:
    """Predict the validation split, fit calibration and thresholds on it, and store them in the model's config.

    Returns:
        The predictions table; the operating points; what was fitted for auxiliary tasks.
    """
    truth = truth_table(validation.table, "validation", recipe.target.column, validation.targets.names)
    model.to(training_device())  # type: ignore[arg-type]
    cache = cache or embedding_cache(recipe, model, extractor)
    embeddings = embed_cycles(validation.dataset, validation.keys(), cache)
    predictions = predictions_table(model, truth, embeddings)
    points = calibrate(model, predictions, recipe.head)
    tasks = tasks_of(recipe)
    predicted = predict_tasks(model, extractor, recipe, tasks, validation)
    return predictions, points, fit_logit_adjustment(model.config, tasks, predicted)


def _embedded(
    recipe: Recipe, model: Any, training: SplitData, validation: SplitData, cache: EmbeddingCache
) -> tuple[EmbeddingDataset, EmbeddingDataset]:
    """Embed both splits once (training once for each augmented copy of the recipe)."""
    dataset = training.dataset
    if dataset.augmentation is None and dataset.concatenation is None:
        copies = [embed_cycles(dataset, training.keys(), cache)]
        labels = [training.targets.labels]
    else:
        copies, labels = [], []
        # the set of cycles that second cycles are drawn from is a part of the key
        source = hashlib.sha256("\n".join(training.table["cycle_id"]).encode()).hexdigest()
        for copy in range(recipe.augment.copies):
            keys = training.keys(f"{recipe.seed} {copy} {recipe.augment} {source}")
            copies.append(embed_cycles(dataset, keys, cache, copy))
            labels.append(np.stack([dataset.label_at(row, copy) for row in range(len(dataset))]))
    held_out = embed_cycles(validation.dataset, validation.keys(), cache)
    if recipe.standardises:
        model.head.standardise(torch.from_numpy(np.concatenate(copies)))
    return (
        EmbeddingDataset(np.stack(copies), np.stack(labels), training.table["cycle_id"]),
        EmbeddingDataset(held_out[None], validation.targets.labels[None]),
    )


def _standardise_on_sample(recipe: Recipe, model: Any, extractor: Any, training: SplitData) -> None:
    """Scale the head's input by the embeddings of some training cycles, before training."""
    rows = np.random.Generator(np.random.Philox(key=recipe.seed)).permutation(len(training.dataset))[:256]
    sample = torch.from_numpy(embed_waveforms(model, extractor, [training.dataset.sound(int(r)) for r in rows]))
    for head in (model.head, *model.tasks.values()):
        head.standardise(sample)


def write_run(out: Path, model: Any, extractor: Any, validation: dict[str, Any], record: dict[str, Any]) -> None:
    """Write model, tables of validation predictions and record; the record last, because it marks the run finished."""
    if model.config.lora and model.config.base_model_name_or_path is None:  # adapters of an encoder that has no file
        model.merge_adapters()
    with atomic_folder(out / "model") as folder:
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
    for name, table in validation.items():
        if table is not None:
            with atomic_write(out / f"{name}-validation.parquet", "wb") as file:
                table.to_parquet(file, write_page_checksum=True)
    for logged in sorted((out / "checkpoints").glob("*/runs/*")):  # TensorBoard writes beside the checkpoints
        folder = out / "logs" / logged.parents[1].name
        folder.mkdir(parents=True, exist_ok=True)
        logged.rename(folder / logged.name)
    write_record(out / "run.json", record)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _is_of(out: Path, recipe: Recipe) -> bool:
    """Whether the run in a folder has these settings."""
    earlier = out / _SETTINGS
    return Recipe.from_record(read_record(earlier), str(earlier)).identity() == recipe.identity()


def refuse_taken(out: Path, recipe: Recipe, overwrite: bool) -> None:
    """Refuse an output folder unless it is new, or holds an unfinished run of the same recipe."""
    earlier = (out / _SETTINGS).exists()
    others = out.exists() and (not out.is_dir() or any(path.name not in _TEMPORARY for path in out.iterdir()))
    if overwrite:
        if others and not earlier:
            raise InputError(f"{out}: holds no laennec run, so it is not overwritten; choose another output folder")
    elif any((out / record).exists() for record in RECORDS):
        for record in RECORDS:
            remove_stale_lock(out / record)
        raise InputError(f"{out}: holds a finished run; choose another output folder or pass --overwrite")
    elif earlier and not _is_of(out, recipe):
        raise InputError(
            f"{out}: holds an unfinished run of another recipe; choose another output folder or pass --overwrite"
        )
    elif others and not earlier:
        raise InputError(f"{out}: holds other files; choose another output folder")


def removed_leftovers(out: Path, recipe: Recipe) -> bool:
    """Remove the checkpoints that a finished run left because it was killed; False for any other run."""
    checkpoints = out / "checkpoints"
    # several processes would have to agree first
    if process_count_of_launch() > 1 or not checkpoints.is_dir() or not (out / _SETTINGS).exists():
        return False
    if not any((out / record).exists() for record in RECORDS) or not _is_of(out, recipe):
        return False
    with lock_or_refuse(out / RECORDS[0]):
        shutil.rmtree(checkpoints, ignore_errors=True)
    return True


def _begin_on_data(path: Path, source: dict[str, Any]) -> None:
    """Record what data a run began on; refuse to go on with other data."""
    now = {name: source.get(name) for name in ("corpus_fingerprint", "split_fingerprint")}
    if path.exists() and read_record(path) != now:
        raise InputError(
            f"{path.parents[1]}: holds an unfinished run on other data: recordings, annotations or splits have changed "
            "since it began; pass --overwrite to train anew, or choose another output folder"
        )
    write_record(path, now)


@contextlib.contextmanager
def claimed(out: Path, recipe: Recipe, overwrite: bool) -> Iterator[Callable[..., None]]:
    """Lock an output folder within the block, once the block calls the function that it gets.

    The block calls it, with the provenance of the data, after data, weights and objective were checked; earlier results
    are kept until then. Of several processes only the first writes, so only the first locks.
    """
    with contextlib.ExitStack() as ours:

        def begin(source: dict[str, Any] | None = None) -> None:
            if not is_main_process():
                return
            ours.enter_context(lock_or_refuse(out / RECORDS[0]))
            refuse_taken(out, recipe, overwrite)  # again: another run may have used the folder while data were read
            # the record first: a run without it counts as unfinished; not the settings, which mark the folder as a run
            kept = (lock_of(out / RECORDS[0]), out / _SETTINGS)
            for path in sorted(out.iterdir(), key=lambda p: p.name not in RECORDS) if overwrite else []:
                if path not in kept:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            write_record(out / _SETTINGS, recipe.to_dict())
            if source is not None:
                _begin_on_data(out / "checkpoints" / "corpus.json", source)

        if is_main_process():
            refuse_taken(out, recipe, overwrite)
        yield begin
