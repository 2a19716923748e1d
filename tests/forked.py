"""Processes of their own that have everything imported already: forks of the one that runs the tests.

Importing torch and transformers takes longer than most of what a test has another process do. A process whose imports,
memory or environment at import time matter is started the ordinary way.
"""

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from laennec import files
from laennec.cli.main import main


class Done(NamedTuple):
    """How a process ended, as `subprocess.run` says it."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A process that does some work; its pipes and its methods are those of `subprocess.Popen`.

    Args:
        work: What it does; a number is its exit code, an exception is told as an interpreter does.
        **environment: Set there, and nowhere else.
    """

    def __init__(self, work: Callable[[], Any], **environment: str) -> None:
        self.returncode: int | None = None
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run(work, out_end, err_end, environment)
        os.close(out_end)
        os.close(err_end)
        self.stdout: IO[str] = os.fdopen(out)
        self.stderr: IO[str] = os.fdopen(err)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it still says, and then its end; after `timeout` seconds it is killed."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        said: dict[str, str] = {}
        reader = threading.Thread(target=lambda: said.update(err=self.stderr.read()))
        reader.start()
        out = self.stdout.read()
        reader.join()
        while self.poll() is None:
            time.sleep(0.005)
        late.cancel()
        self.stdout.close()
        self.stderr.close()
        return out, said["err"]

    def done(self, timeout: float = 600) -> Done:
        """Wait for its end."""
        out, err = self.communicate(timeout)
        assert self.returncode is not None
        return Done(self.returncode, out, err)


def laennec(*words: object, **environment: str) -> Forked:
    """Run a command line of laennec."""
    return Forked(lambda: main([str(word) for word in words]), **environment)


def script(code: str, *words: object, **environment: str) -> Forked:
    """Run a script as `python -c` does."""

    def work() -> None:
        sys.argv = ["-c", *map(str, words)]
        exec(compile(code, "<script>", "exec"), {"__name__": "__main__"})

    return Forked(work, **environment)


def ranks(number: int, work: Callable[[], Any], timeout: float = 600) -> Done:
    """Processes that do the same work together, as a launcher starts them; what they say, rank by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    shared |= {"LOCAL_WORLD_SIZE": str(number), "ACCELERATE_MIXED_PRECISION": "no"}
    started = [Forked(work, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(number)]
    # a rank whose pipe is full waits, and the others wait for it: they are read at once
    ended: dict[int, Done] = {}

    def wait(rank: int) -> None:
        ended[rank] = started[rank].done(timeout)

    readers = [threading.Thread(target=wait, args=(rank,)) for rank in range(number)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    code = next((done.returncode for done in ended.values() if done.returncode), 0)
    return Done(code, *("".join(ended[rank][place] for rank in range(number)) for place in (1, 2)))


class NoLock:
    """A lock that another machine does not see."""

    is_locked = True

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def acquire(self, timeout: float) -> None:
        """Always at once."""

    def release(self) -> None:
        """Nothing was held."""


def on_another_machine(work: Callable[[], Any], folder: Path, name: str, others: int) -> Forked:
    """A process that begins together with others, at work in this folder too, and sees none of their locks."""

    def alone() -> None:
        files.FileLock, files._lock_handle, files._MACHINE = NoLock, lambda handle: True, f"{len(name):04x}"
        (folder / f"ready.{name}").touch()
        while len(list(folder.glob("ready.*"))) < others:
            time.sleep(0.001)
        print(work())

    return Forked(alone)


def _run(work: Callable[[], Any], out: int, err: int, environment: dict[str, str]) -> None:
    """What the new process does; never returns."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        # whatever started the tests may have had them ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logging.getLogger().handlers.clear()  # those that gather for a test
        os.environ.update(environment)
        tqdm.set_lock(threading.RLock())  # the one it has is shared: a kill while it is held stops the others for ever
        _forget_accelerate()
        code = int(work() or 0)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _forget_accelerate() -> None:
    """Accelerate keeps in its classes how many processes there are."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()  # type: ignore[attr-defined]
