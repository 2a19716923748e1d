"""Running a study: each missing step in a process of its own, then the results file.

Decisions: every step is a command in a process of its own, so that it can be repeated by hand, and its time and peak
memory can be measured. Finished steps are not run again; interrupted ones are continued by the same command, and their
costs add up. If the study ends or is killed, its running step ends too. The same command may run several times at once,
also on machines that share the folder: each takes cells that no other process works on, and tries the others again at
its end. A cell whose folder holds a run of other settings is refused. A failed run is listed, the others continue, and
the results file names the missing runs.
"""

import contextlib
import functools
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laennec.evaluation.report.plots_runs import study_plots
from laennec.files import atomic_write, try_lock
from laennec.processes import module_process, used_by
from laennec.study.plan import (
    Cell,
    Study,
    classical_folder,
    ensemble_folder,
    ensemble_name,
    of_pretraining,
    overrides,
    result_folders,
)
from laennec.study.published import geometry_table, published_table
from laennec.study.results import Cost, add_costs, cost_file, cost_without_scoring, gather_results, read_cost
from laennec.study.stale import refuse_stale
from laennec.training.record import read_record, settled_evaluations, write_record

PUBLISHED = "published.md"  # published numbers beside ours, in the folder of a study
Command = list[str]
"""The words after `laennec`; those of a classifier begin with `-m`."""


@dataclass
class StudyState:
    """The state of a study."""

    results: Path | None = None  # the results file
    runs: list[Path] = field(default_factory=list)  # folders of finished runs
    failed: dict[str, str] = field(default_factory=dict)  # {folder below that of the study: last line of its log}
    left: list[str] = field(default_factory=list)  # names of cells that were not run, because of a limit
    elsewhere: list[str] = field(default_factory=list)  # names of cells and ensembles that other processes run


def run_study(
    study: Study, *, say: Callable[[str], None] = lambda _: None, most: int | None = None, dry: bool = False
) -> StudyState:
    """Run and score every cell that is missing, and gather all results in one file.

    Args:
        study: What `load_study` read.
        say: Called with a line for each command and its end.
        most: Largest number of cells to train; None for all.
        dry: Only report the commands, the expected time, and missing data and weights.
    """
    state = StudyState()
    refuse_stale(study)
    if dry:
        every = [command for cell in study.cells for command in commands(study, cell)]
        every += [command for members in study.members for command in ensemble_commands(study, members)]
        for line in dict.fromkeys(map(_line, every)):  # cells that share a pre-training list it each
            say(line)
        from laennec.study import outlook  # imports torch

        say(_outlook(study))
        for what in outlook.missing(study):
            say(f"missing: {what}")
        return state
    # of each cell and ensemble: the cells it needs, its folders, and a function that yields its remaining commands
    steps: list[tuple[Sequence[Cell], list[Path], Callable[[], Iterator[Command]]]] = []
    steps += [([cell], result_folders(study, cell), functools.partial(commands, study, cell)) for cell in study.cells]
    steps += [
        (members, [ensemble_folder(study, members)], functools.partial(ensemble_commands, study, members))
        for members in study.members
    ]

    def blocked(number: int, cells: Sequence[Cell]) -> bool:
        """Whether the step is an ensemble of cells that are not finished."""
        return number > len(study.cells) and any(any(commands(study, cell)) for cell in cells)

    trained, waiting = 0, list(enumerate(steps, start=1))
    for _ in range(2):  # another process may have held no more than the pre-training of a cell
        later = []
        for number, step in waiting:
            cells, made, needed = step
            with _claimed(study, cells) as ours:
                missing, is_cell = list(needed()), number <= len(study.cells)
                if blocked(number, cells) or (missing and not ours):
                    later.append((number, step))
                elif missing and is_cell and trained == most:
                    state.left.append(cells[0].name)
                else:
                    trained += bool(missing)
                    _run_all(study, state, missing, made, f"{number}/{len(study.cells)} " if is_cell else "", say)
        waiting = later
    for number, (cells, made, needed) in waiting:
        if blocked(number, cells):
            continue
        if any(needed()):
            state.elsewhere.append(str(made[0].relative_to(study.output_dir)))
        else:
            state.runs += made  # another process has finished it meanwhile
    if state.runs:
        state.results = gather(study, state.runs)
    return state


@contextlib.contextmanager
def _claimed(study: Study, cells: Sequence[Cell]) -> Iterator[bool]:
    """Lock cells and their pre-training; yields False if another process works on one of them."""
    names = [name for cell in cells for name in (cell.name, *([cell.pretraining_name] if cell.pretrained_as else []))]
    with contextlib.ExitStack() as locks:
        yield all(locks.enter_context(try_lock(study.output_dir / f"{name}.cell")) for name in dict.fromkeys(names))


def _run_all(
    study: Study,
    state: StudyState,
    missing: Sequence[Command],
    made: list[Path],
    place: str,
    say: Callable[[str], None],
) -> None:
    """Run the commands that some folders need, until one fails."""
    for command in missing:
        say(f"{place}{_line(command)}")
        folder = _folder_made_by(command)
        if problem := run_step(command, folder, say):
            state.failed[str(made[0].relative_to(study.output_dir))] = problem
            return
    for record in (folder / "run.json" for folder in made):
        if record.exists():
            settled_evaluations(record)  # if the process was killed, the count of evaluations is not final
    state.runs += made


def _line(command: Command) -> str:
    return shlex.join(["python" if command[0] == "-m" else "laennec", *command])


def commands(study: Study, cell: Cell) -> Iterator[Command]:
    """The commands that a cell still needs."""
    folder, before = study.output_dir / cell.name, study.output_dir / cell.pretraining_name
    given, untrained = overrides(study, cell), not (folder / "run.json").exists()
    if cell.pretrained_as:
        if untrained and not (before / "pretrain.json").exists():
            used = of_pretraining(given) | {"name": cell.pretrained_as}
            yield ["pretrain", str(cell.recipe), *_setting_flags(used), "--output_dir", str(before)]
        given["encoder.weights"] = str(before / "encoder")
    if untrained:
        yield ["train", str(cell.recipe), *_setting_flags(given), "--output_dir", str(folder)]
    yield from _scoring(cell, folder)
    scores = json.dumps([score.model_dump(exclude_none=True) for score in cell.scores])
    for kind in cell.classical:
        out = classical_folder(study, cell, kind)
        if not all((score.folder(out) / "run.json").exists() for score in cell.scores):
            yield ["-m", "laennec.study.classical", kind, str(folder), str(out), "--scores", scores]


def ensemble_commands(study: Study, members: Sequence[Cell]) -> Iterator[Command]:
    """The commands that an ensemble still needs."""
    folder = ensemble_folder(study, members)
    if not (folder / "run.json").exists():
        runs = [str(study.output_dir / cell.name) for cell in members]
        yield ["ensemble", *runs, "--name", ensemble_name(members), "--out", str(folder)]
    yield from _scoring(members[0], folder)


def _scoring(cell: Cell, folder: Path) -> Iterator[Command]:
    """The commands that score a run on the splits that are not scored yet."""
    for score in cell.scores:
        out = score.folder(folder)
        if not (out / "run.json").exists():
            flags = [*_flags(score.flags), "--out", str(out), *_flags(cell.evaluate)]
            yield ["evaluate", str(folder), "--split", score.split, *flags]


def _outlook(study: Study) -> str:
    """How many cells are finished, and how long the others take if they take as long as those."""
    waiting = [cell for cell in study.cells if next(commands(study, cell), None) is not None]
    finished = [cell for cell in study.cells if cell not in waiting]
    costs = [read_cost(study.output_dir / cell.name) for cell in finished]
    seconds = [sum(step["seconds"] for step in cost.values()) for cost in costs if "train" in cost]
    counts = f"{len(study.cells)} cells: {len(finished)} finished, {len(waiting)} to run"
    if not waiting:
        return counts
    if not seconds:
        from laennec.study.outlook import GPU, GPU_SHARE, hours

        if (needed := hours(study)) is None:
            return f"{counts}; the time is unknown until a cell is finished"
        return (
            f"{counts}; about {needed.cpu:.3g} hours for all on one thread of this processor (a forward pass on a "
            f"cycle of average length was timed), {needed.gpu:.2g} hours on an {GPU} at {100 * GPU_SHARE:.0f} % of its "
            "peak; loading of data and evaluation not included"
        )
    left = len(waiting) * sum(seconds) / len(seconds) / 3600
    return f"{counts}; about {left:.1f} hours at the pace of the finished ones"


def _setting_flags(given: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a recipe as flags; YAML reads the values back as they were."""
    for key, value in given.items():
        yield from (f"--{key}", value if isinstance(value, str) else json.dumps(value))


def _flags(given: Mapping[str, Any]) -> Iterator[str]:
    """Settings as the flags of `laennec evaluate`; True is a flag alone."""
    for key, value in given.items():
        if value is not False:
            yield f"--{key.replace('_', '-')}"
            yield from () if value is True else (str(value),)


def _folder_made_by(command: Command) -> Path:
    """The folder that a command's costs belong to: what it makes, or the run that it scores."""
    if command[0] == "evaluate":
        return Path(command[1])
    if command[0] == "-m":
        return Path(command[4])
    return Path(command[-1])


def run_step(command: Command, folder: Path, say: Callable[[str], None] = lambda _: None) -> str | None:
    """Run one command to its end, its output in FOLDER.log, and add its costs to those of a folder.

    Returns:
        The last line of its log where it failed, else None.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, start = folder.parent / f"{folder.name}.log", time.perf_counter()
    words = command[1:] if command[0] == "-m" else ["laennec", *command]
    with log.open("a", encoding="utf-8") as out, module_process(words, out, folder) as process:
        cpu_seconds, memory = used_by(process)
    seconds = time.perf_counter() - start
    took = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_memory_mb": memory, "processes": 1}
    step = "train" if command[0] == "-m" else command[0]
    write_record(cost_file(folder), add_costs(read_cost(folder), {step: took}))
    if process.returncode == 0:
        say("  {seconds:.0f} s, {cpu_seconds:.0f} CPU seconds, {peak_memory_mb:.0f} MB".format(**took))
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    problem = lines[-1] if lines else f"exit code {process.returncode}"
    say(f"  FAILED (exit code {process.returncode}; {log}): {problem}")
    return problem


def gather(study: Study, runs: Sequence[Path]) -> Path:
    """Write the results file and the plots of a study, of the folders of its finished runs and ensembles."""
    sources = _sources(study)
    scores = list(dict.fromkeys(score for cell in study.cells for score in cell.scores))
    costs: dict[Path, Cost] = {}
    for run in runs:
        cost = add_costs(read_cost(run), *map(cost_without_scoring, sources[run]))
        costs |= {score.folder(run): cost for score in scores if score.folder(run).exists()}
    missing = [cell.name for cell in study.cells if study.output_dir / cell.name not in runs]
    about = {
        "name": study.name,
        "description": study.description,
        "baseline": study.baseline,
        "figures": list(study.figures),
        "methods": {cell.method: dict(cell.places) for cell in study.cells},
        **({"missing": missing} if missing else {}),
        **({"published": study.published.model_dump()} if study.published else {}),
    }
    path = gather_results(list(costs), study.results, study.baseline, study.baselines, costs, about)
    for name, png in study_plots(read_record(path)).items():
        with atomic_write(study.output_dir / "pictures" / name, "wb") as file:
            file.write(png)
    if study.published:
        with atomic_write(study.output_dir / PUBLISHED) as page:
            content = read_record(path)
            page.write("\n\n".join(filter(None, [published_table(content), geometry_table(content)])) + "\n")
    return path


def _sources(study: Study) -> dict[Path, list[Path]]:
    """{folder of results: folders of the runs that had to be made first}."""
    sources: dict[Path, list[Path]] = {}
    for cell in study.cells:
        run = study.output_dir / cell.name
        sources[run] = [study.output_dir / cell.pretraining_name] if cell.pretrained_as else []
        sources |= {classical_folder(study, cell, kind): [run, *sources[run]] for kind in cell.classical}
    for members in study.members:
        runs = [study.output_dir / cell.name for cell in members]
        made_first = [folder for run in runs for folder in (run, *sources[run])]
        sources[ensemble_folder(study, members)] = list(dict.fromkeys(made_first))
    return sources
