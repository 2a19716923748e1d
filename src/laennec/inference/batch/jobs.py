"""Distribute recordings over this process, several processes (`jobs`) or the ranks of a launch.

Decisions: a worker is a function that can be pickled, and its results are the same wherever it runs. A rank claims a
recording by a lock, which ends with its process, so other ranks take over the recordings of a dead rank. A rank keeps
its claim on a recording that failed, so that the others do not try it; the first rank tries it again once the others
have ended, to report the reason.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from laennec.errors import InputError, one_line
from laennec.files import remove_stale_lock, try_lock
from laennec.memory import in_one_line
from laennec.processes import DIED, Died, in_processes
from laennec.terminal import rank_and_size

CLAIMS = ".laennec.claims"

Task = tuple[Path, Any]
"""A recording, and what else is needed to work on it."""
Report = Callable[[float], None]
"""Called with the fraction of a recording that is done."""
Worker = Callable[[Path, Any, Report], Any]


def outcomes(
    worker: Worker, tasks: Iterable[Task], jobs: int, report: Report | None = None
) -> Generator[tuple[Path, Any]]:
    """Yield recordings as they are finished, each with its result, or with the reason of its failure as a string."""
    if jobs == 1:
        for task in tasks:
            yield task[0], _outcome(worker, report or _silent, task)
        return
    with contextlib.closing(in_processes(partial(_outcome, worker, _silent), tasks, jobs)) as results:
        for (path, _), outcome in results:
            yield path, f"{path}: {DIED}" if isinstance(outcome, Died) else outcome


def _outcome(worker: Worker, report: Report, task: Task) -> Any:
    path, more = task
    try:
        with in_one_line(str(path), "cut the recording, or use a machine with more memory"):
            return worker(path, more, report)
    except InputError as error:
        return reason_of(path, error)


def _silent(part: float) -> None:
    """Report nothing."""


def reason_of(path: Path, error: InputError) -> str:
    """The message of an error, with the recording's name."""
    reason = str(error)
    return reason if one_line(str(path)) in reason else f"{path}: {reason}"


class Ranks:
    """The processes of a launch that share an output folder (environment variables RANK and WORLD_SIZE).

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, folder: Path) -> None:
        self.rank, self.size = rank_and_size()
        self._folder = folder / CLAIMS
        self._held: dict[str, ExitStack] = {}

    def claim(self, name: str) -> bool:
        """Claim a recording by the name of its files; False where another rank works on it."""
        if self.size == 1 or name in self._held:
            return True
        stack = ExitStack()
        ours = stack.enter_context(try_lock(self._folder / name))
        if ours:
            self._held[name] = stack
        return ours

    def release(self, name: str) -> None:
        """Release a claimed recording, if it is claimed."""
        if name in self._held:
            self._held.pop(name).close()

    def close(self) -> None:
        """Release all recordings, and remove the lock files of dead ranks."""
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # another rank has claims
            for left in self._folder.glob(".*.lock"):
                remove_stale_lock(self._folder / left.name[1:].removesuffix(".lock"))
            self._folder.rmdir()
