"""Work divided among processes of this machine.

Decisions: processes are spawned, not forked, because torch's threads do not survive a fork. Only a few items are
submitted at a time, so memory does not grow with the number of items. If a process dies, its pool breaks; the submitted
items are then tried again, each in a process of its own, so only an item that kills its process is lost. Workers ignore
Ctrl-C and exit when the parent closes a pipe or is killed. A module run by `module_process` exits likewise but handles
Ctrl-C itself; -P keeps files of the working directory from replacing standard modules.
"""

import contextlib
import itertools
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, TypeVar

from laennec.errors import InputError
from laennec.files import wait_for_lock
from laennec.memory import peak_mb_of

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Any], Any]
DIED = "the process that worked on it was killed, twice (not enough memory, or a crash of the decoder); check this file"
_POLL_S = 1.0
# without these, glibc returns the memory of each decoded block and requests it again, a third of the run time
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 26), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
_PENDING = 2  # submitted items for each process, so that none waits for the parent
_work: Work | None = None


class Died:
    """The result of an item whose process died twice."""


def check_jobs(jobs: int) -> int:
    """The number of processes."""
    if jobs < 1:
        raise InputError(f"jobs {jobs}: the number of processes must be 1 or more")
    return jobs


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> Generator[tuple[Item, Result | Died]]:
    """Call `work` on each item in several processes; yields items with their results as they are finished."""
    left = iter(items)
    first = list(itertools.islice(left, 1))
    if not first:
        return
    left = itertools.chain(first, left)
    pending: dict[Future[Result], Item] = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_pool(work, jobs))
        while True:
            lost: list[Item] = []
            for item in itertools.islice(left, max(_PENDING * jobs - len(pending), 0)):
                try:
                    pending[pool.submit(_do, item)] = item
                except BrokenProcessPool:
                    lost.append(item)
            if not pending and not lost:
                return
            done = wait(pending, return_when=FIRST_COMPLETED).done
            if lost or any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                done = wait(pending).done  # all submitted items end with the pool
            for future in done:
                item = pending.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(item)
                else:
                    yield item, future.result()
            if lost:
                yield from _one_by_one(work, lost)
                pool = stack.enter_context(_pool(work, jobs))


def _one_by_one(work: Work, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """Try the items again that were submitted when a process died, each in a process of its own."""
    for item in items:
        result: Any = Died()
        for _ in range(2):  # two tries: another item may have broken the pool
            with _pool(work, 1) as pool, contextlib.suppress(BrokenProcessPool):
                result = pool.submit(_do, item).result()
                break
        yield item, result


@contextlib.contextmanager
def alongside(work: Callable[[], Any], number: int) -> Iterator[None]:
    """Call `work` in other processes during this block; their messages and errors are ignored."""
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    started = [context.Process(target=_run_alongside, args=(watched, work), daemon=True) for _ in range(number)]

    def start() -> None:
        with contextlib.suppress(Exception):
            for process in started:
                process.start()
        watched.close()

    starter = threading.Thread(target=start)  # `start` can block until the process has imported what `work` needs
    starter.start()
    try:
        yield
    finally:
        starter.join()
        held.close()
        for process in started:
            if process.pid:
                process.join()


def _run_alongside(watched: Connection, work: Callable[[], Any]) -> None:
    os.environ["RANK"] = "1"  # only the first process shows progress
    logging.disable(logging.CRITICAL)
    _start(watched, lambda item: None)
    with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
        work()


@contextlib.contextmanager
def module_process(words: Sequence[str], log: IO[Any], place: Path) -> Iterator[subprocess.Popen[Any]]:
    """Run a module in a process that ends with this block at the latest."""
    command = [sys.executable, "-P", "-m", "laennec.processes", str(place), *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    with process.stdin:  # the pipe closes when the parent ends, in whatever way
        try:
            yield process
        except BaseException:
            process.terminate()
            process.wait()
            raise


def used_by(process: subprocess.Popen[Any]) -> tuple[float, float]:
    """Wait for the end of a process; returns its CPU time in seconds and its peak memory in MiB."""
    if hasattr(os, "wait4"):  # the only call with the peak memory of one child
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return used.ru_utime + used.ru_stime, peak_mb_of(used)
    import psutil

    child, seconds, memory = psutil.Process(process.pid), 0.0, 0.0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds, memory = sum(child.cpu_times()[:2]), child.memory_info().rss / 2**20
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_S)
    return seconds, memory


def _run_module(place: str, *words: str) -> None:
    """Entry point of the process of `module_process`."""
    watched = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    _end_when(lambda: os.read(watched, 1))
    with wait_for_lock(Path(f"{place}.step")):
        sys.argv = list(words)
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def _pool(work: Work, jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this block at the latest."""
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    os.environ.update({name: os.environ.get(name, value) for name, value in _MALLOC.items()})
    pool = ProcessPoolExecutor(jobs, context, _start, (watched, work))
    try:
        try:
            first, *_ = [pool.submit(os.getpid) for _ in range(jobs)]  # all of them start at once
            first.result()
        except BrokenProcessPool as error:
            raise InputError(
                "the processes of jobs do not start; in a script, put the call below `if __name__ == '__main__':`, "
                "or leave jobs out"
            ) from error
        yield pool
        pool.shutdown()
    finally:
        held.close()  # ends processes that still work
        pool.shutdown(cancel_futures=True)


def _start(watched: Connection, work: Work) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_when(watched.recv)
    _work = work


def _end_when(wait: Callable[[], Any]) -> None:
    """Exit this process when `wait` returns: a read from a pipe that the parent closes."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do(item: Any) -> Any:
    assert _work is not None, "a process is prepared before it works"
    return _work(item)


if __name__ == "__main__":
    _run_module(*sys.argv[1:])
