"""Kill a process after some seconds or at its n-th change of given folders, or fill the disk at that change.

Decisions: ptrace with a filter of system calls (Linux on x86-64), so that the process stops only at calls that create,
write, rename or remove files, and kills happen exactly between two such calls. Where the system does not allow ptrace,
`Traced.possible` is False, and kills at random moments remain. Only the process itself is killed. Changes by its
children count as its own; the children must end with it, and `outlived` names those that do not.
"""

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_TRACEME, _CONT, _GETREGS, _SETREGS, _SETOPTIONS = 0, 7, 12, 13, 0x4200
_OPTIONS = 0x100000 | 0x80 | 0x08 | 0x04 | 0x02  # end with the tracer; stop at the filter; follow threads and children
_AT_FILTER, _ALL = 7, 0x40000000
ENDING_S = 60.0  # time for children to notice that their parent is gone
NEEDS_ROOM = ("write", "pwrite", "writev", "open", "mkdir", "link")
_CREATES, _HERE = 0o100, 0xFFFFFF9C
# number of the system call -> (name, index of the path argument, or ~index of the file descriptor argument)
CALLS = {
    1: ("write", ~0), 18: ("pwrite", ~0), 20: ("writev", ~0), 74: ("fsync", ~0), 75: ("fdatasync", ~0),
    77: ("ftruncate", ~0), 2: ("open", 0), 257: ("open", 1), 85: ("open", 0), 82: ("rename", 0), 264: ("rename", 1),
    316: ("rename", 1), 83: ("mkdir", 0), 258: ("mkdir", 1), 84: ("remove", 0), 87: ("remove", 0), 263: ("remove", 1),
    86: ("link", 1), 265: ("link", 3), 88: ("link", 1), 266: ("link", 2), 90: ("chmod", 0), 268: ("chmod", 1),
}  # fmt: skip
_RELATIVE = (257, 264, 316, 258, 263, 265, 266, 268)  # the path is relative to the folder of the argument before it
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
)  # fmt: skip


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    libc.ptrace.restype = ctypes.c_long
    return libc


def timed(work: Callable[[], int], kill_after_s: float | None) -> int | None:
    """The exit code of a child; None where it was killed."""
    pid = os.fork()
    if pid == 0:
        code = 97
        try:
            code = work()
        finally:
            sys.stdout.flush()
            os._exit(code)
    until = None if kill_after_s is None else time.monotonic() + kill_after_s
    while True:
        done, status = os.waitpid(pid, 0 if until is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() >= until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


def adopt() -> None:
    """Make this process the parent of orphaned descendants (PR_SET_CHILD_SUBREAPER)."""
    _libc().prctl(36, 1, 0, 0, 0)


def outlived(within_s: float = ENDING_S) -> list[str]:
    """Wait for the descendants of ended commands; those that do not end are killed and returned by command line."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        time.sleep(0 if pid else 0.01)
    left = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    named = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip() for pid in left]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return named


def _be_traced(libc: ctypes.CDLL) -> None:
    """In the child: ask to be traced, wait for the tracer, and install a filter that stops at the calls above."""
    if libc.ptrace(_TRACEME, 0, 0, 0):
        os._exit(99)
    os.kill(os.getpid(), signal.SIGSTOP)
    numbers = sorted(CALLS)
    steps = [struct.pack("HBBI", 0x20, 0, 0, 0)]  # load the number of the call
    for place, number in enumerate(numbers):
        steps.append(struct.pack("HBBI", 0x15, len(numbers) - place, 0, number))
    steps += [struct.pack("HBBI", 6, 0, 0, 0x7FFF0000), struct.pack("HBBI", 6, 0, 0, 0x7FF00000)]  # allow; trace
    code = ctypes.create_string_buffer(b"".join(steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
    libc.prctl(38, 1, 0, 0, 0)
    if libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0):
        os._exit(98)


@dataclass
class Traced:
    """Exit code and changes of a traced process.

    Attributes:
        code: Exit code; None if the process was killed before a change.
        changes: (call, path) of each change below the folders that it started.
    """

    code: int | None = None
    changes: list[tuple[str, str]] = field(default_factory=list)

    @staticmethod
    def possible() -> bool:
        """Whether this system allows ptrace."""
        if platform.system() != "Linux" or platform.machine() != "x86_64":
            return False
        return run_traced(lambda: 7, [Path("/nowhere")]).code == 7


def run_traced(
    work: Callable[[], int], folders: list[Path], kill_at: int | None = None, full_from: int | None = None
) -> Traced:
    """Fork, call `work` in the child, and kill it before its n-th change below the folders, or fill the disk then.

    Returns when all processes that the child started have ended, or `ENDING_S` after the end of the child.

    Args:
        work: Function for the child; returns its exit code.
        folders: Absolute paths.
        kill_at: n, counted from 1; None for no kill.
        full_from: From the n-th change on, calls that need room on the disk of the folders fail.
    """
    libc = _libc()
    leader = os.fork()
    if leader == 0:
        code = 97
        try:
            _be_traced(libc)
            code = work()
        finally:
            os._exit(code)
    os.waitpid(leader, _ALL)
    if libc.ptrace(_SETOPTIONS, leader, 0, _OPTIONS):
        os.kill(leader, signal.SIGKILL)
    libc.ptrace(_CONT, leader, 0, 0)
    seen = Traced()
    prefixes = tuple(str(folder) for folder in folders)
    until = None
    while until is None or time.monotonic() < until:
        try:
            pid, status = os.waitpid(-1, _ALL | (os.WNOHANG if until else 0))
        except ChildProcessError:
            break
        if not pid:
            time.sleep(0.002)
            continue
        if not os.WIFSTOPPED(status):
            if pid == leader:
                killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
                seen.code = None if killed else os.waitstatus_to_exitcode(status)
                until = time.monotonic() + ENDING_S
            continue
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _AT_FILTER:
            change = _change(libc, pid, prefixes)
            if change is not None:
                seen.changes.append(change)
                if len(seen.changes) == kill_at:
                    os.kill(leader, signal.SIGKILL)  # this also skips a system call at which it is stopped
                if full_from is not None and len(seen.changes) >= full_from and change[0] in NEEDS_ROOM:
                    _refuse(libc, pid)
        passed_on = 0 if event or number in (signal.SIGSTOP, signal.SIGTRAP) else number
        libc.ptrace(_CONT, pid, 0, passed_on)
    return seen


def _refuse(libc: ctypes.CDLL, pid: int) -> None:
    """Make the system call before which a process stopped fail with ENOSPC."""
    block = ctypes.create_string_buffer(27 * 8)
    libc.ptrace(_GETREGS, pid, 0, ctypes.addressof(block))
    struct.pack_into("q", block, 8 * _REGISTERS.index("orig_rax"), -1)  # no such call: the kernel skips it
    struct.pack_into("q", block, 8 * _REGISTERS.index("rax"), -errno.ENOSPC)
    libc.ptrace(_SETREGS, pid, 0, ctypes.addressof(block))


def _change(libc: ctypes.CDLL, pid: int, prefixes: tuple[str, ...]) -> tuple[str, str] | None:
    """The change below the folders that a stopped process is about to make; None if it is another call."""
    block = ctypes.create_string_buffer(27 * 8)
    if libc.ptrace(_GETREGS, pid, 0, ctypes.addressof(block)):
        return None
    values = dict(zip(_REGISTERS, struct.unpack("27Q", block.raw), strict=False))
    name, at = CALLS[values["orig_rax"]]
    try:
        if at < 0:
            path = os.readlink(f"/proc/{pid}/fd/{values[_ARGUMENTS[~at]]}")
        else:
            flags = values[_ARGUMENTS[at + 1]]
            if name == "open" and values["orig_rax"] != 85 and not flags & _CREATES:
                return None
            path = _text(pid, values[_ARGUMENTS[at]])
            if not path.startswith("/"):
                start = values[_ARGUMENTS[at - 1]] & 0xFFFFFFFF if values["orig_rax"] in _RELATIVE else _HERE
                path = os.path.join(os.readlink(f"/proc/{pid}/{'cwd' if start == _HERE else f'fd/{start}'}"), path)
    except OSError:
        return None
    return (name, path) if path.startswith(prefixes) else None


def _text(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return os.fsdecode(memory.read(4096).split(b"\0", 1)[0])
