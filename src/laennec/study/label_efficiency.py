"""What an encoder reaches with a fraction of the labels.

Decisions: a cell (mode, fraction, draw) is one training through the same code as `laennec train`, on fewer labelled
cycles, started from the run's encoder; its model is scored once on the part and then forgotten, only its answers stay.
Draw d trains with the run's seed + d, so draw 0 of all labels is the run itself where that was linear. Validation
patients are the same, and whole, in every cell: they choose epoch and thresholds, and their labels are not counted in
the fraction. A cell is written when it is whole; a restart trains only what is missing, and a cell of other settings is
refused rather than mixed in. The encoder of a run that was trained on labels has seen all of them: the table says so.
"""

import datetime
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from laennec.corpora import cache_root, provenance
from laennec.corpora.base import column_of
from laennec.encoders import encoder_digest, load_encoder
from laennec.encoders.composite import EnsembleEncoder, GroupsEncoder
from laennec.errors import InputError
from laennec.evaluation.bootstrap import interval_note
from laennec.evaluation.evaluate import check_split, load_model, provenance_lines, recipe_of
from laennec.evaluation.metrics import ICBHI_SCORE_DEFINITION
from laennec.evaluation.operating_point import logit_thresholds
from laennec.files import atomic_folder, atomic_write, lock_or_refuse, refuse_other_files
from laennec.study.label_table import format_label_table, label_table, percent
from laennec.training.data_loading import configure_process
from laennec.training.embeddings import EmbeddingCache, embed_cycles
from laennec.training.folders import RECORDS
from laennec.training.label_fractions import cell_recipe, labelled_rows, labelled_split, refuse_missing_labels
from laennec.training.neighbours import refuse_lost_neighbours
from laennec.training.pretraining.dataset import refuse_seen_patients
from laennec.training.recipe import EncoderSettings, Recipe
from laennec.training.record import Timings, count_evaluation, hardware, read_record, versions, write_record
from laennec.training.run import fit, make_model
from laennec.training.split_data import SplitData, load_decoded, make_extractor, make_split
from laennec.training.tables import predictions_table, truth_table

_WRITTEN = ("label_efficiency.*", "cells", "encoder")


@dataclass
class Efficiency:
    """Where the table lies, and what it says."""

    folder: Path
    summary: str
    record: dict[str, Any]


@dataclass
class _Bench:
    """What all cells share."""

    recipes: dict[str, Recipe]  # by mode, of draw 0
    settings: dict[str, str]  # by mode: what tells its cells from those of other settings
    identity: str  # of encoder, data and scored part
    extractor: Any
    train_table: Any
    training: SplitData
    validation: SplitData
    scored: SplitData


def label_efficiency(
    source: str | Path,
    *,
    fractions: Sequence[float],
    modes: Sequence[str],
    draws: int = 3,
    split: str = "test",
    corpus: dict[str, Any] | None = None,
    out: str | Path | None = None,
    base: str | None = None,
    overrides: dict[str, str] | None = None,
    command: str = "",
    n_bootstrap: int = 1000,
    say: Callable[[str], None] | None = None,
) -> Efficiency:
    """Train and score a run's encoder with fractions of the labels.

    Args:
        source: Folder of a run: a recipe in its record, and an encoder (`encoder/`, or that of `model/`).
        fractions: Shares of the labelled training cycles, above 0 and at most 1.
        modes: "linear" (frozen encoder) and "finetune".
        draws: How many samples of each fraction.
        split: The part to score.
        corpus: Settings that replace those of the run's corpus.
        out: Folder of the results; None: `label-efficiency-<split>` in the run's folder.
        base: Where the base of a head-only run lies.
        overrides: Settings of train, head, loss and augment for these cells.
        command: The literal command, for the record.
        n_bootstrap: Draws of patients.
        say: Called with a line for each cell; None for silence.

    Returns:
        The folder with label_efficiency.json, .csv, .parquet and .png and the answers of every cell; the table as text.

    Raises:
        InputError: No run or no encoder there, an encoder pre-trained on patients of a test part, a fraction too small
            for the labels, cells of other settings in the folder, or data that cannot be read.
    """
    if draws < 1:
        raise InputError(f"--draws {draws}: at least one draw of labels is needed")
    source = Path(source)
    record_path, run = _run_record(source)
    recipe = recipe_of(source, run, corpus)
    folder = Path(out) if out is not None else source / f"label-efficiency-{split}"
    refuse_other_files(folder, _WRITTEN, "choose another --out")
    start, encoder = _start(source, recipe, base, folder)
    recipes = {mode: cell_recipe(recipe, mode, start, overrides or {}) for mode in modes}
    configure_process(recipe)
    bench, origin = _bench(run, recipe, recipes, split)
    seed, classes = recipe.corpus.split_seed, bench.training.targets.class_ids
    wanted = {
        (mode, fraction, draw): labelled_rows(classes, bench.training.table["cycle_id"], fraction, seed, draw)
        for mode in modes
        for fraction in fractions
        for draw in range(draws)
    }
    with lock_or_refuse(folder / "label_efficiency.json"):
        _put_encoder(encoder, start)
        _identify(bench, origin, split)
        _refuse_other_settings(folder, bench)
        missing = [key for key in wanted if not (_cell_folder(folder, *key) / "result.json").exists()]
        for number, key in enumerate(missing, start=1):
            cell = _run_cell(bench, *key, wanted[key], _cell_folder(folder, *key))
            if say:
                say(f"{number}/{len(missing)} {_cell_line(cell)}")
    record = _gather(folder, bench, origin, split, n_bootstrap)
    record |= {
        "name": recipe.name,
        "run": str(source),
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "heading": provenance_lines(recipe.corpus.name, origin, split),
        "selection_set": "validation",
        "notes": _notes(record, run, record_path),
        "versions": versions(),
        "hardware": hardware(),
    }
    summary = _summary(record)
    _write(folder, record, recipe.corpus.name, split)
    if missing:
        looked = {"split": split, "created": record["created"], "command": command, "label_efficiency": len(missing)}
        count_evaluation(record_path, looked)
    return Efficiency(folder, summary, record)


def _run_record(source: Path) -> tuple[Path, dict[str, Any]]:
    """The record of a training or a pre-training, and where it lies."""
    for name in RECORDS:
        if (source / name).exists():
            record = read_record(source / name)
            if "config" not in record:
                raise InputError(f"{source / name}: holds no recipe (config); train the run again")
            return source / name, record
    raise InputError(f"{source}: no {' or '.join(RECORDS)} there; give the folder of a finished run")


def _start(source: Path, recipe: Recipe, base: str | None, folder: Path) -> tuple[EncoderSettings, Any]:
    """Where the run's encoder can be loaded from, and the encoder itself where it has to be put there first.

    The weights of an encoder that was trained inside a model go beside the results, so that cells start as any run does
    that names weights.
    """
    given = recipe.encoder
    if (source / "encoder" / "config.json").exists():
        return given.model_copy(update={"weights": str(source / "encoder"), "revision": None, "config": {}}), None
    if not (source / "model" / "config.json").exists():
        raise InputError(
            f"{source}: no encoder there (neither encoder/ nor model/ with a config.json); give the folder of a "
            "finished run"
        )
    model, _ = load_model(source, base)
    if isinstance(model.encoder, EnsembleEncoder):
        raise InputError(f"{source}: an ensemble is not trained any further; give one of the runs it was made of")
    if model.config.frozen_encoder and given.weights is not None:
        return given.model_copy(update={"weights": base or given.weights}), None
    if model.config.lora:
        model.merge_adapters()
    encoder = model.encoder.encoder if isinstance(model.encoder, GroupsEncoder) else model.encoder
    return given.model_copy(update={"weights": str(folder / "encoder"), "revision": None, "config": {}}), encoder


def _put_encoder(encoder: Any, start: EncoderSettings) -> None:
    """Write an encoder where cells will load it from, if it is not there yet."""
    if encoder is None:
        return
    place = Path(str(start.weights))
    if (place / "config.json").exists() and encoder_digest(load_encoder(place)) == encoder_digest(encoder):
        return
    with atomic_folder(place) as temporary:
        encoder.save_pretrained(temporary)


def _bench(
    run: dict[str, Any], recipe: Recipe, recipes: dict[str, Recipe], split: str
) -> tuple[_Bench, dict[str, Any]]:
    """Parts, front end and the fingerprints of what is compared."""
    extractor = make_extractor(recipe.features)
    parts = load_decoded(recipe, extractor.sampling_rate)
    origin = provenance(parts)
    check_split(run, recipe, origin)
    for cell in recipes.values():
        refuse_seen_patients(cell.encoder.weights, parts)
    refuse_lost_neighbours(parts, origin.get("protocol"), extractor.context_cycles)
    if split not in parts:
        raise InputError(
            f"{recipe.corpus.name}: there is no part {split!r}; the parts are {', '.join(parts)} (--split)"
        )
    if split in ("train", "validation"):
        raise InputError(f"--split {split}: cells are trained and chosen on it; give a part that was held out")
    training = make_split("train", parts["train"], recipe, extractor, None, False)
    refuse_missing_labels(training.targets)
    names = training.targets.names
    validation = make_split("validation", parts["validation"], recipe, extractor, names, False)
    scored = make_split(split, parts[split], recipe, extractor, names, False)
    settings = {mode: _digest(_settings(cell)) for mode, cell in recipes.items()}
    return _Bench(recipes, settings, "", extractor, parts["train"], training, validation, scored), origin


def _identify(bench: _Bench, origin: dict[str, Any], split: str) -> None:
    """Note what encoder, data and front end all cells of the table must share."""
    encoder = make_model(next(iter(bench.recipes.values())), bench.training.targets.names).encoder
    parts = [origin.get("corpus_fingerprint"), origin.get("split_fingerprint"), split]
    bench.identity = _digest([encoder_digest(encoder), *parts, bench.extractor.fingerprint()])


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What of a cell's recipe can change its result; where things lie and how many threads there are cannot."""
    values = recipe.to_dict()
    left_out = ("name", "description", "output_dir", "corpus", "encoder")
    train = {k: v for k, v in values["train"].items() if k not in ("threads", "workers", "evaluation_batch_size")}
    return {k: v for k, v in values.items() if k not in left_out} | {"train": train}


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _cell_folder(folder: Path, mode: str, fraction: float, draw: int) -> Path:
    return folder / "cells" / f"{mode}-{fraction!r}-{draw}"


def _refuse_other_settings(folder: Path, bench: _Bench) -> None:
    """Refuse a folder whose cells cannot stand in one table with those to come."""
    for path in sorted(folder.glob("cells/*/result.json")):
        cell = read_record(path)
        other = None
        if cell.get("identity") != bench.identity:
            other = "another encoder, other data or another front end"
        elif cell.get("mode") in bench.settings and cell.get("settings") != bench.settings[cell["mode"]]:
            other = f"other settings of {cell['mode']}"
        if other:
            raise InputError(f"{path.parent}: a cell of {other}; choose another --out, or delete {folder}")


def _run_cell(bench: _Bench, mode: str, fraction: float, draw: int, rows: Any, folder: Path) -> dict[str, Any]:
    """Train and score one cell, and write it; its result last, because it says that the cell is whole."""
    recipe = replace(bench.recipes[mode], seed=bench.recipes[mode].seed + draw)
    # an interrupted cell goes on from its own checkpoints and from no others
    work = folder / f"unfinished-{_digest([bench.identity, bench.settings[mode]])[:16]}"
    timings = Timings()
    names = bench.training.targets.names
    with timings.measure("total"):
        model = make_model(recipe, names)
        training = labelled_split(recipe, bench.train_table, bench.extractor, bench.training, rows)
        fitted = fit(recipe, model, bench.extractor, training, bench.validation, work, timings, lines=False)
        cache = EmbeddingCache(cache_root(), model, bench.extractor)
        embeddings = embed_cycles(model, bench.extractor, bench.scored.dataset, bench.scored.keys(), cache)
        truth = truth_table(bench.scored.table, bench.scored.name, recipe.target.column, names)
        predictions = predictions_table(model, truth, embeddings)
    patients, classes = bench.training.table["patient_id"], bench.training.targets.class_ids[rows]
    cell = {
        "mode": mode,
        "fraction": fraction,
        "draw": draw,
        "seed": recipe.seed,
        "cycles": len(rows),
        "patients": len({patients[int(row)] for row in rows}),
        "cycles_by_class": {str(number): int((classes == number).sum()) for number in sorted(set(classes.tolist()))},
        "cycles_an_epoch": len(training.dataset),
        "best_epoch": fitted.result.best_epoch,
        "best_metric": fitted.result.best_metric,
        "selection_metric": recipe.train.selection_metric,
        "thresholds": logit_thresholds(model.config),
        "timings": timings.seconds,
        "identity": bench.identity,
        "settings": bench.settings[mode],
        "config": recipe.to_dict(),
    }
    with atomic_write(folder / "predictions.parquet", "wb") as file:
        predictions.to_parquet(file)
    write_record(folder / "result.json", cell)
    for unfinished in folder.glob("unfinished-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    return cell


def _cell_line(cell: Mapping[str, Any]) -> str:
    """One line about a finished cell."""
    best = (
        "" if cell["best_metric"] is None else f", {cell['selection_metric']} {cell['best_metric']:.4g} on validation"
    )
    epoch = "" if cell["best_epoch"] is None else f"epoch {cell['best_epoch']:g}"
    return (
        f"{cell['mode']}, {percent(cell['fraction'])} of the labels, draw {cell['draw']}: {cell['cycles']} cycles of "
        f"{cell['patients']} patients; {epoch}{best}; {cell['timings']['total']:.0f} s"
    )


def _gather(folder: Path, bench: _Bench, origin: dict[str, Any], split: str, n_bootstrap: int) -> dict[str, Any]:
    """The table of every finished cell in the folder."""
    cells = [read_record(path) for path in sorted(folder.glob("cells/*/result.json"))]
    cells.sort(key=lambda cell: (cell["mode"] != "linear", cell["fraction"], cell["draw"]))
    for cell in cells:
        path = _cell_folder(folder, cell["mode"], cell["fraction"], cell["draw"]) / "predictions.parquet"
        try:
            cell["predictions"] = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise InputError(f"{path}: cannot read the cell's answers ({said}); delete {path.parent}") from error
    recipe = next(iter(bench.recipes.values()))
    problem: Any = recipe.target.problem_type
    names = bench.training.targets.names
    rows = label_table(cells, problem_type=problem, label_names=names, n_draws=n_bootstrap)
    scored, seen = set(bench.scored.table["patient_id"]), [bench.training, bench.validation]
    seen_patients = scored.intersection(*[{p for part in seen for p in column_of(part.table, "patient_id")}])
    return {
        "split": split,
        "corpus": {"name": recipe.corpus.name, "fingerprint": origin.get("corpus_fingerprint"), "provenance": origin},
        "labels": names,
        "scored": {
            "cycles": len(bench.scored.table),
            "patients": len(scored),
            "patients_seen_in_training": len(seen_patients - {None}),
        },
        "training": {
            "cycles": len(bench.training.table),
            "patients": len(set(bench.training.table["patient_id"])),
            "validation_cycles": len(bench.validation.table),
            "validation_patients": len(set(bench.validation.table["patient_id"])),
        },
        "sampling": {"unit": "cycle", "stratified_by": "class", "nested": True, "seed": recipe.corpus.split_seed},
        "bootstrap": {"n_draws": n_bootstrap, "seed": 0, "level": 0.95, "unit": "patient"},
        "rows": rows,
        "cells": [{k: v for k, v in cell.items() if k != "predictions"} for cell in cells],
    }


def _notes(record: Mapping[str, Any], run: Mapping[str, Any], record_path: Path) -> list[str]:
    """What a reader of the table must know."""
    cells, scored = record["cells"], record["scored"]
    notes = [
        "a draw takes cycles at random within each class (at least one of each), not patients: its cycles come from as "
        "many patients as the table says; smaller fractions of a draw lie within larger ones",
        "validation patients keep all their labels in every cell; they choose epoch and thresholds and are not counted",
        "a small fraction repeats its cycles, so every cell makes about as many updates as all labels do",
    ]
    if any(cell["fraction"] == 1 and cell["draw"] > 0 for cell in cells):
        notes.append("with all labels, draws differ by their seed alone")
    if rough := interval_note(scored["patients"]):
        notes.append(rough)
    if seen := scored["patients_seen_in_training"]:
        notes.append(
            f"{seen} of the {scored['patients']} scored patients have other cycles in training or validation: this is "
            "no estimate for new patients"
        )
    if record_path.name == "run.json" and not Recipe.from_record(run["config"], str(record_path)).encoder.frozen:
        notes.append(
            "THE ENCODER WAS TRAINED ON ALL LABELS of this run, so small fractions say how few labels a new head "
            "needs, not what few labels are worth"
        )
    return notes


def _summary(record: Mapping[str, Any]) -> str:
    """The table with what it was made on, as text."""
    n, scored, boot = record["training"], record["scored"], record["bootstrap"]
    definition = [ICBHI_SCORE_DEFINITION] if any(row["figure"] == "icbhi.Score" for row in record["rows"]) else []
    return "\n".join(
        [
            *record["heading"],
            f"labels: shares of {n['cycles']} training cycles of {n['patients']} patients; selection set: validation "
            f"({n['validation_cycles']} cycles of {n['validation_patients']} patients); scored: {scored['cycles']} "
            f"cycles of {scored['patients']} patients",
            f"mean over draws of labels ± their standard deviation [95 % interval of the mean, {boot['n_draws']} draws "
            f"of patients, seed {boot['seed']}]",
            "",
            format_label_table(record["rows"]),
            "",
            *(f"{text}." for text in definition),
            *(f"note: {note}" for note in record["notes"]),
            "Research use only: not a medical device.",
        ]
    )


def _write(folder: Path, record: dict[str, Any], corpus: str, split: str) -> None:
    """Write record, tables and picture."""
    from laennec.evaluation.plots import save_picture
    from laennec.study.label_table import label_efficiency_picture

    rows = [{k: v for k, v in row.items() if k != "values"} for row in record["rows"]]
    frame = pd.DataFrame(rows).astype(dict.fromkeys(("mean", "sd", "low", "high"), float))
    text = io.StringIO()
    frame.to_csv(text, index=False)
    with atomic_write(folder / "label_efficiency.csv") as file:
        file.write(text.getvalue())
    with atomic_write(folder / "label_efficiency.parquet", "wb") as file:
        frame.to_parquet(file)
    scored = record["scored"]
    title = f"{record['name']}: {corpus} {split}, {scored['cycles']:,} cycles of {scored['patients']} patients"
    if seen := scored["patients_seen_in_training"]:
        title += f" ({'all' if seen == scored['patients'] else seen} known from training)"
    save_picture(label_efficiency_picture(record["rows"], title), folder / "label_efficiency.png")
    write_record(folder / "label_efficiency.json", record)
