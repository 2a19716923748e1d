"""What each process took, kept beside its folder and put into the rows that rest on it.

Decisions: a training, a pre-training, a scoring and a classifier each have a process of their own, so that seconds
and peak memory are theirs alone; what an interrupted process took is added to what its continuation takes. The cost of
a row is that of its own processes and of those that made its inputs: for an ensemble the trainings of its members,
for a classifier the training whose embeddings it uses; scorings are left out.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from laennec.training.record import read_record, write_record

COST = "cost.json"
_KIBIBYTE = 1024
_SCORING = "evaluate"


def run_command(command: Sequence[str], folder: Path, log: Path) -> tuple[int, str]:
    """Run one `laennec` command to its end, and keep what it took as that of `folder`.

    Args:
        command: The words behind `laennec`.
        folder: What it makes.
        log: Both its outputs are appended here.

    Returns:
        Its exit status, and its cost as one line.
    """
    start = time.perf_counter()
    with log.open("a", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "laennec", *command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, _keep(folder, command[0], start, used)


def call_apart(step: str, folder: Path, function: Callable[..., Any], *arguments: Any) -> str:
    """Call a function in a process of its own, and keep what it took as that of `folder`.

    Args:
        step: What it is kept as.
        folder: What it makes.
        function: Of a module, so that another process finds it.
        arguments: What can be pickled.

    Returns:
        Its cost as one line.

    Raises:
        Exception: What the function raised.
    """
    start = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        used = pool.submit(_usage_of, function, arguments).result()
    return _keep(folder, step, start, used)


def _usage_of(function: Callable[..., Any], arguments: Sequence[Any]) -> resource.struct_rusage:
    function(*arguments)
    return resource.getrusage(resource.RUSAGE_SELF)


def _keep(folder: Path, step: str, start: float, used: resource.struct_rusage) -> str:
    seconds, cpu, memory = time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / _KIBIBYTE
    took = {"seconds": seconds, "cpu_seconds": cpu, "peak_memory_mb": memory, "processes": 1}
    cost = _cost_of(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_record(_path(folder), cost | {step: _added(cost.get(step), took)})
    return f"{seconds:.0f} s, {cpu:.0f} CPU seconds, {memory:.0f} MB"


def _path(folder: Path) -> Path:
    """Beside the folder, for a folder that is being made may be swept."""
    return folder.parent / f"{folder.name}.{COST}"


def _cost_of(folder: Path) -> dict[str, Any]:
    path = _path(folder)
    return read_record(path) if path.exists() else {}


def _added(known: dict[str, Any] | None, took: dict[str, Any]) -> dict[str, Any]:
    known = known or {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mb": 0.0, "processes": 0}
    return {
        "seconds": round(known["seconds"] + took["seconds"], 1),
        "cpu_seconds": round(known["cpu_seconds"] + took["cpu_seconds"], 1),
        "peak_memory_mb": round(max(known["peak_memory_mb"], took["peak_memory_mb"])),
        "processes": known["processes"] + took["processes"],
    }


def add_cost(results: Path, folder: Path, made_of: Sequence[Path]) -> None:
    """Put into the rows of a results file what a folder cost.

    Args:
        results: The results file.
        folder: What its rows are of.
        made_of: Folders that had to be made first.
    """
    cost = _cost_of(folder)
    for source in made_of:
        for step, took in _cost_of(source).items():
            if step != _SCORING:
                cost[step] = _added(cost.get(step), took)
    if not cost:
        return
    content = read_record(results)
    for row in content["results"]:
        gpus = len(row["hardware"].get("gpus") or [])
        row["cost"] = cost | {"gpu_seconds": round(gpus * sum(step["seconds"] for step in cost.values()), 1)}
    write_record(results, content)


def cost_of_making(run: Mapping[str, Any]) -> tuple[float, float] | None:
    """CPU seconds and peak memory in MB of the processes that made a run, pre-training and members included.

    Args:
        run: A row of a results file.

    Returns:
        Both, without the scorings; None where no cost was measured.
    """
    steps = {name: step for name, step in (run.get("cost") or {}).items() if name not in ("evaluate", "gpu_seconds")}
    if "train" not in steps:
        return None
    return sum(step["cpu_seconds"] for step in steps.values()), max(step["peak_memory_mb"] for step in steps.values())
