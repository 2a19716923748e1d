"""Refuse folders of a study that hold something else than it asks for.

Decisions: a folder is found by its name, so what it was made from is compared: settings and data of a run, members of
an ensemble, data and options of scores. Nothing is deleted: the user decides what to remove.
"""

import contextlib
import functools
import itertools
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from laennec.errors import InputError, in_known_form
from laennec.evaluation.calibration.smoothing import parse_smoothing
from laennec.study.plan import (
    Cell,
    Score,
    Study,
    ensemble_folder,
    of_pretraining,
    overrides,
    recipe_of_cell,
    result_folders,
)
from laennec.training.recipe import CorpusSettings, Recipe
from laennec.training.record import read_record

_CORPUS = {"name", "data_dir", "tables_dir", "allow_missing", "level", "options"}  # settings that identify a corpus
_AFTER_PRETRAINING = ("trainable", "train_last_layers", "lora")  # settings of an encoder that pre-training ignores


def refuse_stale(study: Study) -> None:
    """Refuse folders with runs, ensembles or scores of something else than the study asks for."""
    fingerprint = functools.cache(fingerprint_of)  # most cells have one corpus
    checks: list[tuple[Path, Callable[[], None]]] = []
    for cell in study.cells:
        run = study.output_dir / cell.name
        checks.append((run, functools.partial(refuse_other_run, study, cell, fingerprint)))
        checks.append((run, functools.partial(refuse_other_pretraining, study, cell)))
        for folder in result_folders(study, cell):
            checks.append((folder, functools.partial(refuse_other_scores, cell, run, folder, fingerprint)))
    for members in study.members:
        folder = ensemble_folder(study, members)
        checks.append((folder, functools.partial(refuse_other_ensemble, study, members)))
        checks.append((folder, functools.partial(refuse_other_scores, members[0], folder, folder, fingerprint)))
    problems = []
    for folder, check in checks:
        try:
            with in_known_form(folder, "remove it"):
                check()
        except InputError as error:
            problems.append(str(error))
    if problems:
        others = f" (and {len(problems) - 1} more of this kind)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{others}")


def refuse_other_run(study: Study, cell: Cell, fingerprint: Callable[[str], str | None]) -> None:
    """Refuse a folder with a run of other settings than the cell's, or on data that have changed since."""
    earlier = study.output_dir / cell.name / "recipe.json"
    if not earlier.exists():
        return
    there = Recipe.from_record(read_record(earlier), str(earlier)).identity()
    here = recipe_of_cell(study, cell).identity()
    for key in ("output_dir", "card", "description"):
        there.pop(key, None), here.pop(key, None)
    if there != here:
        raise InputError(
            f"{earlier.parent}: holds a run with {next(_differences(here, there))}; choose another output_dir for this "
            "study, or remove the folder"
        )
    corpus, trained = recipe_of_cell(study, cell).corpus, earlier.with_name("run.json")
    if not trained.exists():
        return
    now = [fingerprint(one.model_dump_json(include=_CORPUS)) for one in corpus.each]
    of_run = read_record(trained)["corpus"]
    each = (of_run.get("provenance") or {}).get("corpora") or {}
    if None not in now and now != ([own["corpus_fingerprint"] for own in each.values()] or [of_run["fingerprint"]]):
        raise InputError(
            f"{earlier.parent}: holds a run on other data: recordings or annotations of {corpus.name} have changed "
            "since; choose another output_dir for this study, or remove the folder"
        )


def refuse_other_ensemble(study: Study, members: Sequence[Cell]) -> None:
    """Refuse a folder with an ensemble of other runs, or of runs that were trained again since."""
    folder = ensemble_folder(study, members)
    if not (folder / "run.json").exists():
        return
    there = {Path(one["folder"]).name: one["timings"] for one in read_record(folder / "run.json")["members"]}
    records = {path.parent.name: path for cell in members if (path := study.output_dir / cell.name / "run.json")}
    here = {name: read_record(path)["timings"] if path.exists() else None for name, path in records.items()}
    if here != there:  # no two trainings take equally long
        raise InputError(
            f"{folder}: holds an ensemble of other runs than {', '.join(cell.name for cell in members)} as they are "
            "now; remove the folder, or choose another output_dir for this study"
        )


def refuse_other_pretraining(study: Study, cell: Cell) -> None:
    """Refuse a folder with a pre-training of other settings than the cell's."""
    earlier = study.output_dir / cell.pretraining_name / "pretrain.json"
    if not cell.pretrained_as or not earlier.exists():
        return
    there = Recipe.from_record(read_record(earlier)["config"], str(earlier)).identity()
    here = Recipe.from_yaml(cell.recipe, **of_pretraining(overrides(study, cell))).identity()
    here = {key: here[key] for key in ("seed", "encoder", "metadata", "pretrain")}
    here["encoder"] = {key: value for key, value in here["encoder"].items() if key not in _AFTER_PRETRAINING}
    if found := next(_differences(here, there), None):
        raise InputError(
            f"{earlier.parent}: holds a pre-training with {found}; remove the folder, or choose another output_dir for "
            "this study"
        )


def refuse_other_scores(cell: Cell, run: Path, folder: Path, fingerprint: Callable[[str], str | None]) -> None:
    """Refuse results in a folder of other data, settings or another training of the run than the study asks for."""
    for score in cell.scores:
        record = score.folder(folder) / "run.json"
        if not record.exists():
            continue
        scored = read_record(record)
        trained = read_record(run / "run.json") if (run / "run.json").exists() else {}
        if scored.get("history") != trained.get("history"):
            raise InputError(f"{record.parent}: holds results of an earlier training of {run}; remove the folder")
        evaluated = scored["evaluated"]
        corpus, own = evaluated["corpus"], scored.get("trained_on") or {}
        here: dict[str, Any] = {"split": score.split, "corpus": score.corpus or own.get("name")}
        there: dict[str, Any] = {"split": evaluated["split"], "corpus": corpus["name"]}
        if score.corpus and score.data_dir:
            now = fingerprint(_corpus_of(run, trained, score).model_dump_json(include=_CORPUS))
            here["fingerprint of the corpus"], there["fingerprint of the corpus"] = now, corpus["fingerprint"]
        if score.protocol:
            here["protocol"], there["protocol"] = score.protocol, corpus["provenance"].get("protocol")
        words = [part for word in shlex.split(evaluated.get("command") or "") for part in word.split("=", 1)]
        if words[1:2] == ["evaluate"]:
            flags = dict(itertools.pairwise(words))
            here["smoothing"] = parse_smoothing(cell.evaluate.get("smoothing")) or "none"
            there["smoothing"] = parse_smoothing(flags.get("--smoothing")) or "none"
            if cell.evaluate.get("spans") == "windows":  # results of windows have those of events too
                here["spans"], there["spans"] = "windows", flags.get("--spans", "events")
        if found := [key for key, value in here.items() if value is not None and there[key] != value]:
            raise InputError(
                f"{record.parent}: holds results with {found[0]} {there[found[0]]}, where the study says "
                f"{here[found[0]]}; remove the folder"
            )


def _corpus_of(run: Path, trained: dict[str, Any], score: Score) -> Any:
    """The settings of a scored corpus; those that `laennec evaluate` takes from the run where it has the same name."""
    if trained and score.corpus in str(trained["corpus"]["name"]).split("+"):
        from laennec.evaluation.scored_data import recipe_of  # imports torch

        return recipe_of(run, trained, score.corpus_settings).corpus
    return CorpusSettings(**score.corpus_settings)


def fingerprint_of(corpus: str) -> str | None:
    """The fingerprint of a corpus (a recipe's settings as JSON) as it is now; None where it is not available."""
    from laennec.corpora.load import open_corpus  # imports datasets

    given = json.loads(corpus)
    with contextlib.suppress(InputError):
        opened = open_corpus(given.pop("name"), given.pop("data_dir"), **given.pop("options"), **given)
        return opened.manifest.corpus_fingerprint
    return None


def _differences(here: dict[str, Any], there: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in here:
        one, other = here[key], there.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and not prefix:
            yield from _differences(one, other, f"{key}.")
        elif one != other:
            yield f"{prefix}{key} = {other!r}, where the study says {one!r}"
