"""The peak memory of a process, and out-of-memory errors in one line.

Decisions: a user can avoid them with a smaller setting, so they show no traceback. torch raises an error class of
its own on a GPU and plain RuntimeErrors on a CPU, numpy and Python raise MemoryError: they are recognised by class name
and message, so that this module imports none of them.
"""

import contextlib
import gc
import re
import sys
from collections.abc import Iterator
from typing import Any

from laennec.errors import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_WORDS = re.compile(
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|unable to allocate|bad_?alloc|"
    r"could not create a (?:memory|primitive)|CUBLAS_STATUS_ALLOC_FAILED|alloc_cpu\.cpp",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+ ?(?:[KMGT]iB|bytes))", re.IGNORECASE)


def peak_memory_mb() -> float:
    """The most memory that this process has taken, in MiB."""
    if resource is None:
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    return peak_mb_of(resource.getrusage(resource.RUSAGE_SELF))


def peak_mb_of(usage: Any) -> float:
    """The peak memory in a result of `getrusage` or `wait4`, in MiB."""
    return float(usage.ru_maxrss) / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def ran_out(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_WORDS.search(str(error)))


def asked_for(error: BaseException | str) -> str:
    """The size of the failed allocation, in brackets; "" where the message has none."""
    found = _AMOUNT.search(str(error))
    if found is None:
        return ""
    amount, unit = re.fullmatch(r"([\d.]+) ?(\w+)", found[1]).groups()  # type: ignore[union-attr]
    if unit == "bytes":
        size = float(amount)
        amount, unit = (f"{size / 2**30:.3g}", "GiB") if size >= 2**30 else (f"{size / 2**20:.3g}", "MiB")
    return f" ({amount} {unit} more were asked for)"


def release() -> None:
    """Free unused memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def in_one_line(what: str, remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error in the block into an `InputError`: `what` needed the memory, and a `remedy`."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise InputError(f"{what}: not enough memory{asked_for(error)}; {remedy}") from error


def shorter_cycles(extractor: Any, frames: int) -> str:
    """The setting that halves the longest cycle, which has this number of frames."""
    shorter = max(extractor.window_ms / 1000, frames / extractor.frames_per_second / 2)
    if extractor.length == "natural":
        return f"features.length: crop with features.duration_s: {shorter:.2g}"
    return f"features.duration_s: {shorter:.2g}"
