"""Run what is missing of a study, one process a training, and gather the results.

Decisions: every training, ensemble and scoring is the command that a person would type, in a process of its own,
so a reader can repeat each of them. What is finished is not run again; what was stopped is continued by the same
command. A cell whose settings differ from the file is refused. A run that fails is
listed, and the others go on.
"""

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.files import atomic_write, try_lock
from laennec.study.classical import score_classical
from laennec.study.cost import add_cost, call_apart, run_command
from laennec.study.pictures import study_pictures
from laennec.study.plan import CLASSICAL, Cell, Score, Study, without_labels
from laennec.training.recipe import Recipe
from laennec.training.record import read_record, write_record


@dataclass
class Done:
    """The state of a study.

    Attributes:
        results: The results file.
        runs: Folders of whole cells.
        failed: {cell: last line of its errors}.
        left: Names of cells that were not run (a limit, or a dry run).
    """

    results: Path | None
    runs: list[Path]
    failed: dict[str, str]
    left: list[str]


def run_study(
    study: Study, *, say: Callable[[str], None] = lambda _: None, most: int | None = None, dry: bool = False
) -> Done:
    """Run every cell that is missing, score it, and gather all into the study's results file.

    Args:
        study: What `load_study` read.
        say: Called with a line for each command and its end.
        most: Stop after so many cells were trained; None for all.
        dry: Only say the commands.

    Returns:
        The results file, and what failed.

    Raises:
        InputError: Another process works on this study, or a cell's folder holds a run of other settings.
    """
    done = Done(None, [], {}, [])
    for cell in study.cells:
        refuse_other(study, cell)
    if dry:
        every = [command for cell in study.cells for command in commands(study, cell)]
        every += [command for method in study.ensembles for command in ensemble_commands(study, method)]
        for line in dict.fromkeys(shlex.join(["laennec", *command]) for command in every):
            say(line)  # once, though cells that share a pre-training each name it
        return done
    trained = 0
    study.output_dir.mkdir(parents=True, exist_ok=True)
    with try_lock(study.output_dir / "study") as alone:
        if not alone:
            raise InputError(f"{study.output_dir}: another process works on this study; wait for it, or stop it")
        for number, cell in enumerate(study.cells, start=1):
            missing = list(commands(study, cell))
            if missing and most is not None and trained >= most:
                done.left.append(cell.name)
                continue
            trained += bool(missing)
            if problem := _make(study, cell, missing, f"{number}/{len(study.cells)}", say):
                done.failed[cell.name] = problem
                continue
            done.runs.append(study.output_dir / cell.name)
            for kind in cell.classical:
                done.runs.append(_make_classical(study, cell, kind, say))
        whole = set(done.runs)
        for method in study.ensembles:
            members = [study.output_dir / cell.name for cell in study.members(method)]
            if len(members) < 2 or not set(members) <= whole:
                continue
            folder = ensemble_folder(study, method)
            for command in ensemble_commands(study, method):
                say(shlex.join(["laennec", *command]))
                if problem := _run(command, folder, say):
                    done.failed[str(folder.relative_to(study.output_dir))] = problem
                    break
            else:
                done.runs.append(folder)
        if done.runs:
            done.results = gather(study, done.runs)
    return done


def _make(study: Study, cell: Cell, missing: list[list[str]], place: str, say: Callable[[str], None]) -> str | None:
    """Run the commands that a cell still needs; what the first that failed said."""
    for command in missing:
        say(f"{place} {shlex.join(['laennec', *command])}")
        folder = pretraining_folder(study, cell) if command[0] == "pretrain" else study.output_dir / cell.name
        if problem := _run(command, folder, say):
            return problem
    return None


def _make_classical(study: Study, cell: Cell, kind: str, say: Callable[[str], None]) -> Path:
    """Fit and score a classifier on the embeddings of a cell's run, unless that was done."""
    run, folder = study.output_dir / cell.name, classical_folder(study, cell, kind)
    if not all((evaluation_folder(folder, score) / "run.json").exists() for score in cell.scores):
        say(f"  {CLASSICAL[kind]} on its embeddings")
        say(f"  {call_apart('train', folder, score_classical, kind, cell.method, run, cell.scores, folder)}")
    return folder


def refuse_other(study: Study, cell: Cell) -> None:
    """Refuse a folder whose run is not the one that the study means.

    Raises:
        InputError: Names the first setting that differs.
    """
    earlier = study.output_dir / cell.name / "recipe.json"
    if not earlier.exists():
        return
    there, here = Recipe.from_record(read_record(earlier), str(earlier)).to_dict(), _recipe(study, cell).to_dict()
    for key in ("output_dir", "card", "description"):
        there.pop(key, None), here.pop(key, None)
    if there != here:
        differing = next(_differences(here, there))
        raise InputError(
            f"{earlier.parent}: holds a run with {differing}; choose another output_dir for this study, or remove the "
            "folder"
        )


def _differences(here: dict[str, Any], there: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in here:
        one, other = here[key], there.get(key)
        if isinstance(one, dict) and isinstance(other, dict) and prefix.count(".") < 1:
            yield from _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key} = {other!r}, where the study says {one!r}"


def _overrides(study: Study, cell: Cell) -> dict[str, Any]:
    given = dict(cell.settings) | {"name": cell.method, "seed": cell.seed}
    if cell.fold is not None:
        given["corpus.fold"] = cell.fold
    if study.own_splits:
        given["corpus.split_seed"] = cell.seed
    if "corpus.label_fraction" in given:
        given["corpus.label_draw"] = cell.seed
    return given


def _recipe(study: Study, cell: Cell) -> Any:
    given = _overrides(study, cell)
    if cell.pretrained_as:
        given["encoder.weights"] = str(pretraining_folder(study, cell) / "encoder")
    return Recipe.from_yaml(cell.recipe, **given)


def commands(study: Study, cell: Cell) -> Iterator[list[str]]:
    """The commands that a cell still needs, each as the words behind `laennec`."""
    folder = study.output_dir / cell.name
    given = _overrides(study, cell)
    before = pretraining_folder(study, cell)
    if cell.pretrained_as:
        if not (before / "pretrain.json").exists() and not (folder / "run.json").exists():
            seen = without_labels(given) | {"name": cell.pretrained_as}
            yield ["pretrain", str(cell.recipe), *_flags(seen), "--output_dir", str(before)]
        given["encoder.weights"] = str(before / "encoder")
    if not (folder / "run.json").exists():
        yield ["train", str(cell.recipe), *_flags(given), "--output_dir", str(folder)]
    yield from _scoring(cell, folder)


def ensemble_commands(study: Study, method: str) -> Iterator[list[str]]:
    """The commands that the ensemble of a method's runs still needs."""
    members = study.members(method)
    if len(members) < 2:
        return
    folder = ensemble_folder(study, method)
    if not (folder / "run.json").exists():
        runs = [str(study.output_dir / cell.name) for cell in members]
        yield ["ensemble", *runs, "--name", f"{method}, {len(members)} together", "--out", str(folder)]
    yield from _scoring(members[0], folder)


def _scoring(cell: Cell, folder: Path) -> Iterator[list[str]]:
    """The commands that score a run as its cell wants it, but for those that did."""
    for score in cell.scores:
        out = evaluation_folder(folder, score)
        if not (out / "run.json").exists():
            yield ["evaluate", str(folder), "--split", score.split, *_evaluation_flags(score.corpus), "--out", str(out),
                   *_evaluation_flags(cell.evaluate)]  # fmt: skip


def pretraining_folder(study: Study, cell: Cell) -> Path:
    """Where the encoder of a pre-trained cell lies; runs that differ in labels alone share it."""
    return study.output_dir / cell.pretraining_name


def classical_folder(study: Study, cell: Cell, kind: str) -> Path:
    """Where the results of a classifier on a cell's embeddings lie."""
    folder = study.output_dir / cell.name
    return folder.with_name(f"{folder.name}-{kind}")


def ensemble_folder(study: Study, method: str) -> Path:
    """Folder of the ensemble of a method's runs."""
    members = study.members(method)
    first = study.output_dir / members[0].name
    return first.parent.with_name(f"{first.parent.name}-ensemble") / str(len(members))


def evaluation_folder(run: Path, score: Score) -> Path:
    """Where the results of scoring a run on a part lie."""
    return run / f"evaluation-{score.name}"


def _flags(given: dict[str, Any]) -> list[str]:
    """Settings as flags; values that YAML reads back as they were."""
    flags = []
    for key, value in given.items():
        text = value if isinstance(value, str) else json.dumps(value)
        flags += [f"--{key}", text]
    return flags


def _evaluation_flags(given: Mapping[str, Any]) -> list[str]:
    """Settings as the flags of `laennec evaluate`, where True is a flag alone."""
    flags = []
    for key, value in given.items():
        flag = "--corpus" if key == "name" else f"--{key.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value not in (None, False):
            flags += [flag, str(value)]
    return flags


def _run(command: list[str], folder: Path, say: Callable[[str], None]) -> str | None:
    """Run one command to its end; what its last line said where it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    status, took = run_command(command, folder, log)
    if status == 0:
        say(f"  {took}")
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    problem = lines[-1] if lines else f"exit code {status}"
    say(f"  FAILED (exit code {status}; {log}): {problem}")
    return problem


def gather(study: Study, runs: list[Path]) -> Path:
    """One results.json beside each run, all of them with their comparison in the study's results file, and pictures."""
    from laennec.study.gather import gather_results

    made_of = _made_of(study)
    parts = list(dict.fromkeys(score.name for cell in study.cells for score in cell.scores))
    scored = {run: [e for name in parts if (e := run / f"evaluation-{name}").exists()] for run in runs}
    for run in runs:
        (run / "results.json").unlink(missing_ok=True)
        gather_results(scored[run], run / "results.json")
        add_cost(run / "results.json", run, made_of.get(run, []))
    study.results.unlink(missing_ok=True)
    evaluations = [evaluation for run in runs for evaluation in scored[run]]
    # of a study that is not whole yet, the baseline may be still to come
    there = study.against or any(
        read_record(run / "results.json")["results"][0]["name"] == study.baseline for run in runs
    )
    path = gather_results(evaluations, study.results, study.baseline if there else None, study.against)
    content = read_record(path)
    by_run = {_key(row): row for run in runs for row in read_record(run / "results.json")["results"]}
    content["results"] = [by_run[_key(row)] for row in content["results"]]
    content["study"] = {
        "name": study.name,
        "description": study.description,
        "baseline": study.baseline,
        "figures": list(study.figures),
        "methods": {cell.method: dict(cell.places) for cell in study.cells},
    }
    write_record(path, content)
    pictures = study.output_dir / "pictures"
    pictures.mkdir(exist_ok=True)
    for name, png in study_pictures(content).items():
        with atomic_write(pictures / name, "wb") as file:
            file.write(png)
    return path


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("name", "seed", "split", "fold"))


def _made_of(study: Study) -> dict[Path, list[Path]]:
    """{folder of results: folders that had to be made first}, without folders that rest on none."""
    made: dict[Path, list[Path]] = {}
    for cell in study.cells:
        run = study.output_dir / cell.name
        made[run] = [pretraining_folder(study, cell)] if cell.pretrained_as else []
        for kind in cell.classical:
            made[classical_folder(study, cell, kind)] = [run, *made[run]]
    for method in study.ensembles:
        members = [study.output_dir / cell.name for cell in study.members(method)]
        sources = [folder for run in members for folder in (run, *made[run])]
        made[ensemble_folder(study, method)] = list(dict.fromkeys(sources))
    return made
