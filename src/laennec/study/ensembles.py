"""Ensembles: several runs of a recipe as one run.

Decisions: the result is a run like any other. Its operating point is fitted on the validation patients that the members
share; a member with another split may have been trained on some of them, and is refused. Members may instead differ in
their validation fold: the operating point is then fitted on the patients of all these folds, each predicted by the
members that had not seen them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laennec.corpora.load import provenance
from laennec.ensemble import ensemble_models
from laennec.errors import InputError
from laennec.evaluation.calibration.operating_point import fit_windows, window_points_of
from laennec.evaluation.calibration.probabilities import calibrated_logits
from laennec.evaluation.calibration.recalibrate import fitted_rule, read_validation
from laennec.evaluation.comparison.runs import recipe_difference
from laennec.evaluation.evaluate import load_model
from laennec.evaluation.scored_data import check_split, recipe_of
from laennec.training.auxiliary_tasks import TaskPredictions, fit_logit_adjustment, predict_tasks, tasks_of
from laennec.training.data.split_data import load_splits, make_split
from laennec.training.data.windows import fit_window_points
from laennec.training.devices import configure_process
from laennec.training.initial import unite_trained_on
from laennec.training.recipe import Recipe
from laennec.training.record import Timings, hardware, read_run, versions
from laennec.training.run import claimed, predict_validation, write_run
from laennec.training.tables import calibrate


def ensemble_runs(
    runs: Sequence[str | Path],
    out: str | Path,
    command: str = "",
    data_dir: str | None = None,
    overwrite: bool = False,
    name: str | None = None,
) -> Path:
    """Make one run of several that differ only in their seed.

    Args:
        runs: Folders of finished runs; their seeds differ, or the folds of patients that they validate on.
        out: The new run's folder.
        command: The literal command, for the record.
        data_dir: Folder of the corpus; None: that of the first member.
        overwrite: Whether an earlier run in the folder may be deleted.
        name: Name in tables and cards; None: `<recipe>_ensemble_of_<number of runs>`.

    Returns:
        The new run's folder: model/, predictions-validation.parquet, recipe.json, run.json.

    Raises:
        InputError: There are fewer than two runs, one is not finished, they differ in more than seed and fold or in
            their data, or their heads cannot be combined.
    """
    folders, out = [Path(run) for run in runs], Path(out)
    if len(folders) < 2:
        raise InputError(f"an ensemble needs two runs or more, not {len(folders)}")
    if out.resolve() in [folder.resolve() for folder in folders]:
        raise InputError(f"{out}: is one of the members, which the ensemble would replace; name another folder (--out)")
    records = [read_run(folder / "run.json") for folder in folders]
    _refuse_different(folders, records)
    first = records[0]
    if data_dir is not None and first["config"]["corpus"].get("corpora"):
        raise InputError(
            f"{data_dir}: the runs were trained on several corpora, each in a folder of its own; leave it out"
        )
    recipe = recipe_of(folders[0], first, {"data_dir": data_dir})
    recipe.name, recipe.output_dir = name or f"{recipe.name}_ensemble_of_{len(folders)}", str(out)
    rule = fitted_rule(first)  # that of `laennec calibrate`, where it was used on the members
    recipe.head = recipe.head.model_copy(update=asdict(rule))
    timings = Timings()
    with claimed(out, recipe, overwrite) as begin:
        configure_process(recipe.train.threads)
        loaded = [load_model(folder) for folder in folders]
        model, extractor = ensemble_models([model for model, _ in loaded]), loaded[0][1]
        with timings.measure("validation predictions"):
            if _fold(first) is None:
                splits = load_splits(recipe)
                check_split(first, recipe, provenance(splits))
                tables, facts = _fit_on_validation(model, extractor, recipe, splits, first["labels"], begin)
            else:
                found = _out_of_fold(folders, records, loaded, recipe)
                for one in recipe.corpus.each:
                    one.validation_fold = "all"
                splits = load_splits(recipe)
                begin()
                facts = _fit_out_of_fold(model, found, recipe) | _facts_of_folds(first, splits, found)
                tables = found.tables
        spent: Counter[str] = Counter()
        for one in (*(record["timings"] for record in records), timings.seconds):
            spent.update(one)
        record = {
            **first,
            **facts,
            "name": recipe.name,
            "corpus": recipe.corpus_facts(provenance(splits)),
            "command": command,
            "config": recipe.to_dict(),
            "members": [_member(folder, record) for folder, record in zip(folders, records, strict=True)],
            "seeds": {"recipe": [record["config"]["seed"] for record in records]},
            "versions": versions(),
            "hardware": hardware(),
            "timings": {step: round(seconds, 3) for step, seconds in sorted(spent.items())},
            "history": [],
            "best_epoch": None,
            "best_metric": None,
            "evaluations": [],
            "calibrations": [],
        }
        unite_trained_on(folders, out)
        write_run(out, model, extractor, tables, record)
    return out


def _fit_on_validation(
    model: Any, extractor: Any, recipe: Recipe, splits: Any, labels: list[str], begin: Callable[[], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Predict the validation patients that the members share, and fit on them; the tables and the facts."""
    validation = make_split("validation", splits["validation"], recipe, extractor, labels, False)
    begin()
    predictions, points, tasks = predict_validation(model, extractor, recipe, validation)
    windows, window_points = fit_window_points(model, extractor, recipe, splits, recipe.head)
    facts = {"operating_points": points, "window_points": window_points, "tasks": tasks}
    return {"predictions": predictions, "windows": windows}, facts


@dataclass
class OutOfFold:
    """Predictions for the patients of all validation folds, on the scale of the ensemble's logits."""

    tables: dict[str, pd.DataFrame]  # "predictions" of cycles and, where every member has them, of "windows"
    tasks: dict[str, TaskPredictions]
    window_points: dict[str, Any] | None  # a member's, for the lengths of windows


def _out_of_fold(
    folders: Sequence[Path], records: Sequence[dict[str, Any]], loaded: Sequence[Any], ensemble: Recipe
) -> OutOfFold:
    """Each patient predicted by the members that had not seen them: the mean of those of one fold."""
    of_fold: dict[int, list[tuple[dict[str, pd.DataFrame], dict[str, TaskPredictions]]]] = {}
    for folder, record, (model, extractor) in zip(folders, records, loaded, strict=True):
        recipe = recipe_of(folder, record, {"data_dir": ensemble.corpus.data_dir})
        paths = {name: folder / f"{name}-validation.parquet" for name in ("predictions", "windows")}
        kept = {name: path for name, path in paths.items() if name == "predictions" or path.is_file()}
        tables = {name: _calibrated(read_validation(path), model.config) for name, path in kept.items()}
        predicted: dict[str, TaskPredictions] = {}
        if tasks := tasks_of(recipe):
            splits = load_splits(recipe)
            check_split(record, recipe, provenance(splits))
            validation = make_split("validation", splits["validation"], recipe, extractor, record["labels"], False)
            predicted = predict_tasks(model, extractor, recipe, tasks, validation)
        of_fold.setdefault(_fold(record), []).append((tables, predicted))
    means = [_mean(members) for _, members in sorted(of_fold.items())]
    shared = [name for name in ("predictions", "windows") if all(name in tables for tables, _ in means)]
    whole = {name: pd.concat([tables[name] for tables, _ in means], ignore_index=True) for name in shared}
    if whole["predictions"]["cycle_id"].duplicated().any():
        raise InputError(f"{folders[0].parent}: a cycle is in two validation folds; train the members on one corpus")
    pooled = {}
    for name in means[0][1]:
        each = [predicted[name] for _, predicted in means]
        codes, logits = np.concatenate([one.codes for one in each]), np.concatenate([one.logits for one in each])
        pooled[name] = TaskPredictions(codes, logits, [recording for one in each for recording in one.recordings])
    return OutOfFold(whole, pooled, records[0].get("window_points"))


def _mean(members: Sequence[tuple[dict[str, pd.DataFrame], dict[str, TaskPredictions]]]) -> Any:
    """The mean logits of members with one validation fold, whose rows are the same."""
    tables, tasks = dict(members[0][0]), dict(members[0][1])
    for name, table in tables.items():
        columns = [column for column in table if column.startswith("logit_")]
        others = [tables[name].set_index("cycle_id").loc[table["cycle_id"], columns] for tables, _ in members]
        tables[name] = table.assign(**dict(zip(columns, np.mean(others, axis=0).T, strict=True)))
    for name, task in tasks.items():
        tasks[name] = replace(task, logits=np.mean([predicted[name].logits for _, predicted in members], axis=0))
    return tables, tasks


def _calibrated(table: pd.DataFrame, config: Any) -> pd.DataFrame:
    """A member's predictions with calibrated logits, whose mean is what an ensemble predicts."""
    names = config.label_names
    logits = table[[f"logit_{name}" for name in names]].to_numpy(float)
    scaled = calibrated_logits(logits, names, config.per_label("temperatures"), config.per_label("intercepts"))
    return table.assign(**{f"logit_{name}": scaled[:, k].astype(np.float32) for k, name in enumerate(names)})


def _fit_out_of_fold(model: Any, found: OutOfFold, recipe: Recipe) -> dict[str, Any]:
    """Fit the operating points of an ensemble of folds, and store them in its configuration."""
    points, windows = calibrate(model, found.tables["predictions"], recipe.head), None
    if found.window_points and "windows" in found.tables:
        lengths = [found.window_points["windows"][name] for name in ("window_s", "hop_s")]
        config = model.config
        windows = fit_windows(found.tables["windows"], config.label_names, config.is_multi_label, recipe.head, *lengths)
        config.operating_points = window_points_of(windows)
    tasks = fit_logit_adjustment(model.config, tasks_of(recipe), found.tasks)
    return {"operating_points": points, "window_points": windows, "tasks": tasks}


def _facts_of_folds(first: dict[str, Any], splits: Any, found: OutOfFold) -> dict[str, Any]:
    """What the record of an ensemble of folds says of its data."""
    train, patients = splits["train"], len(set(splits["train"]["patient_id"]) - {None})
    return {
        "corpus": {**first["corpus"], "provenance": provenance(splits)},
        "selection_set": "out-of-fold",
        "cycles": {"train": len(train), "validation": len(found.tables["predictions"])},
        "labelled": len(train),
        "patients": {"train": patients, "validation": patients},
    }


def _fold(record: dict[str, Any]) -> Any:
    """The validation fold of a run; None if its validation patients were drawn."""
    corpus = record["config"]["corpus"]
    folds = {one.get("validation_fold") for one in corpus.get("corpora") or [corpus]}
    if len(folds) > 1:
        raise InputError(f"{record['name']}: its corpora have validation folds {folds}; give all the same one")
    return folds.pop()


def _refuse_different(folders: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    """Refuse runs that are not different seeds of one recipe on one split, or on folds of it."""
    seeds: dict[Any, Path] = {}
    configs = [  # as any version of laennec records them
        Recipe.from_record(record["config"], f"{folder}/run.json").identity()
        for folder, record in zip(folders, records, strict=True)
    ]
    of_folds = len({_fold(record) for record in records}) > 1
    for folder, record, config in zip(folders, records, configs, strict=True):
        if fitted_rule(record) != fitted_rule(records[0]):
            raise InputError(
                f"{folder} and {folders[0]} have thresholds, calibration or smoothing of different rules; fit them "
                "by one rule first: laennec calibrate RUN --calibration ... --threshold-rule ... --smoothing ..."
            )
        if record.get("members"):
            raise InputError(f"{folder}: this run is an ensemble; give its members")
        seed, fold = record["config"]["seed"], _fold(record)
        if (of_folds and fold is None) or (fold is not None and not of_folds):
            raise InputError(
                f"{folder}: its validation_fold is {fold}; give runs of two folds or more, or only runs without"
            )
        if (seed, fold) in seeds:
            of = f" and fold {fold}" if of_folds else ""
            raise InputError(f"{folder} and {seeds[seed, fold]} both have seed {seed}{of}; give each once")
        seeds[seed, fold] = folder
        if key := recipe_difference(_compared(configs[0]), _compared(config)):
            raise InputError(f"{folder} and {folders[0]} differ in {key}; only seeds of one recipe form an ensemble")
        key = "corpus_fingerprint" if of_folds else "split_fingerprint"
        here, there = (one["corpus"]["provenance"].get(key) for one in (record, records[0]))
        if here != there or record["labels"] != records[0]["labels"]:
            raise InputError(
                f"{folder} and {folders[0]} were trained on other data or another split; one may have been trained on "
                "the validation patients of the other"
            )


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its validation fold, and without the draw of labels where all labels are used."""
    corpus = config["corpus"] | {"validation_fold": None}
    corpus["corpora"] = [one | {"validation_fold": None} for one in corpus.get("corpora") or []]
    config = config | {"corpus": corpus}
    return config if corpus["label_fraction"] < 1 else config | {"corpus": corpus | {"label_draw": None}}


def _member(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    kept = ("command", "best_epoch", "best_metric", "timings", "hardware", "versions")
    fold = {} if _fold(record) is None else {"validation_fold": _fold(record)}
    return {
        "folder": str(folder),
        "seed": record["config"]["seed"],
        **fold,
        **{name: record.get(name) for name in kept},
    }
