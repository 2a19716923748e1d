"""Child processes forked from the test process, which has imported everything already.

Importing torch and transformers takes longer than most work that a test does in another process. Tests that depend on
imports, memory or the environment at import time start an ordinary process instead.
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
    """Exit code and output of a process, as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A child process that calls a function; it has the pipes and methods of `subprocess.Popen`.

    Args:
        work: The function; it returns the exit code or None, and the traceback of an exception goes to stderr.
        **environment: Environment variables that are set in the child only.
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
        """Send a signal if the process is still running."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Exit code, negative signal number if a signal ended the process, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """Read stdout and stderr until the process ends; kill it after `timeout` seconds."""
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
        """Wait until the process ends."""
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
    """Run the same function in several distributed ranks, as a launcher does; outputs are joined in rank order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    shared |= {"LOCAL_WORLD_SIZE": str(number), "ACCELERATE_MIXED_PRECISION": "no"}
    started = [Forked(work, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(number)]
    # all pipes are read at the same time: a rank with a full pipe blocks, and so do the ranks that wait for it
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
    """A file lock that is always free, as on a machine that does not see the locks of others."""

    is_locked = True

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def acquire(self, timeout: float) -> None:
        """Succeed at once."""

    def release(self) -> None:
        """Do nothing."""


def on_another_machine(work: Callable[[], Any], folder: Path, name: str, others: int) -> Forked:
    """Run a function like a process on another machine: it does not see the locks that others hold in the folder.

    It starts when `others` processes are ready.
    """

    def alone() -> None:
        files.FileLock, files._lock_handle, files._MACHINE = NoLock, lambda handle: True, f"{len(name):04x}"
        (folder / f"ready.{name}").touch()
        while len(list(folder.glob("ready.*"))) < others:
            time.sleep(0.001)
        print(work())

    return Forked(alone)


def _run(work: Callable[[], Any], out: int, err: int, environment: dict[str, str]) -> None:
    """Body of the child process; never returns."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        # the parent of the tests may have ignored these signals
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        logging.getLogger().handlers.clear()  # pytest's handlers
        os.environ.update(environment)
        tqdm.set_lock(threading.RLock())  # forks share tqdm's lock: killing a holder would block the others for ever
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
    """Reset accelerate, which stores the number of processes in class attributes."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()  # type: ignore[attr-defined]
