"""Work divided among processes of this machine.

Decisions: processes are spawned, not forked, because torch's threads do not survive a fork. A few items are in hand at
a time, so memory does not grow with the number of items. A process that dies takes the others of its pool with it; the
items in hand are then tried again one at a time in a process of their own, so an item that kills its process costs
that item alone. Workers ignore Ctrl-C and end when the parent closes a pipe, as it also does when it is killed. So
does a module that is run for a parent, which handles Ctrl-C itself; a file of the working directory with the name of a
standard module is not imported in its place (-P).
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
# without these, glibc gives the memory of each decoded block back and takes it again page by page, a third of the time
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 26), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
_IN_HAND = 2  # items for each process, so that none waits for the parent
_work: Work | None = None


class Died:
    """The result of an item whose process died, and died again."""


def check_jobs(jobs: int) -> int:
    """The number of processes."""
    if jobs < 1:
        raise InputError(f"jobs {jobs}: the number of processes must be 1 or more")
    return jobs


def in_processes(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> Generator[tuple[Item, Result | Died]]:
    """Do some work on each item in several processes."""
    left = iter(items)
    first = list(itertools.islice(left, 1))
    if not first:
        return
    left = itertools.chain(first, left)
    in_hand: dict[Future[Result], Item] = {}
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(_pool(work, jobs))
        while True:
            lost: list[Item] = []
            for item in itertools.islice(left, max(_IN_HAND * jobs - len(in_hand), 0)):
                try:
                    in_hand[pool.submit(_do, item)] = item
                except BrokenProcessPool:
                    lost.append(item)
            if not in_hand and not lost:
                return
            done = wait(in_hand, return_when=FIRST_COMPLETED).done
            if lost or any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                done = wait(in_hand).done  # all that were in hand end with it
            for future in done:
                item = in_hand.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(item)
                else:
                    yield item, future.result()
            if lost:
                yield from _one_by_one(work, lost)
                pool = stack.enter_context(_pool(work, jobs))


def _one_by_one(work: Work, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
    """Items that were in hand when a process died, each in a process that works on nothing else."""
    for item in items:
        result: Any = Died()
        for _ in range(2):  # perhaps it was only waiting when the first one died
            with _pool(work, 1) as pool, contextlib.suppress(BrokenProcessPool):
                result = pool.submit(_do, item).result()
                break
        yield item, result


@contextlib.contextmanager
def alongside(work: Callable[[], Any], number: int) -> Iterator[None]:
    """Have other processes do some work as long as this block lasts; what they say and how they end does not matter."""
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    started = [context.Process(target=_help, args=(watched, work), daemon=True) for _ in range(number)]

    def start() -> None:
        with contextlib.suppress(Exception):
            for process in started:
                process.start()
        watched.close()

    starter = threading.Thread(target=start)  # a process takes its work when it has imported what that needs
    starter.start()
    try:
        yield
    finally:
        starter.join()
        held.close()
        for process in started:
            if process.pid:
                process.join()


def _help(watched: Connection, work: Callable[[], Any]) -> None:
    os.environ["RANK"] = "1"  # only the first process shows progress
    logging.disable(logging.CRITICAL)
    _start(watched, lambda item: None)
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()


@contextlib.contextmanager
def module_process(words: Sequence[str], log: IO[Any], place: Path) -> Iterator[subprocess.Popen[Any]]:
    """Run a module in a process that ends with this block at the latest."""
    command = [sys.executable, "-P", "-m", "laennec.processes", str(place), *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
    assert process.stdin is not None
    with process.stdin:  # it is closed with the process that started this one, however that ends
        try:
            yield process
        except BaseException:
            process.terminate()
            process.wait()
            raise


def used_by(process: subprocess.Popen[Any]) -> tuple[float, float]:
    """Wait for the end of a process; the seconds of processor that it took, and its peak memory in MiB."""
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
    """What the process of `module_process` does."""
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
        held.close()  # ends what still works
        pool.shutdown(cancel_futures=True)


def _start(watched: Connection, work: Work) -> None:
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_when(watched.recv)
    _work = work


def _end_when(wait: Callable[[], Any]) -> None:
    """End this process when a call returns: a read from a pipe that the parent closes."""

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
