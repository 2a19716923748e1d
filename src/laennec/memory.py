"""Memory that does not suffice, recognised and said in one line.

Decisions: running out of memory is something a user can mend with a smaller setting, so it is never a traceback.
torch says it in several ways (an error of its own on a GPU, plain RuntimeErrors with a sentence on a CPU), numpy and
Python in another; what they have in common is looked for in their words, without importing any of them.
"""

import contextlib
import gc
import re
import sys
from collections.abc import Iterator

from laennec.errors import InputError

_WORDS = re.compile(
    r"out of memory|not enough memory|can't allocate memory|cannot allocate memory|unable to allocate|bad_?alloc|"
    r"could not create a (?:memory|primitive)|CUBLAS_STATUS_ALLOC_FAILED|alloc_cpu\.cpp",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+ ?(?:[KMGT]iB|bytes))", re.IGNORECASE)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_WORDS.search(str(error)))


def asked_for(error: BaseException | str) -> str:
    """How much was asked for in vain, in brackets; "" where the error does not say."""
    found = _AMOUNT.search(str(error))
    if found is None:
        return ""
    amount, unit = re.fullmatch(r"([\d.]+) ?(\w+)", found[1]).groups()  # type: ignore[union-attr]
    if unit == "bytes":
        size = float(amount)
        amount, unit = (f"{size / 2**30:.3g}", "GiB") if size >= 2**30 else (f"{size / 2**20:.3g}", "MiB")
    return f" ({amount} {unit} more were asked for)"


def release() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def in_one_line(what: str, remedy: str) -> Iterator[None]:
    """Have memory that does not suffice within the block be one line: `what` it was needed for, and a `remedy`.

    Raises:
        InputError: It did not suffice.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not ran_out(error):
            raise
        raise InputError(f"{what}: not enough memory{asked_for(error)}; {remedy}") from error
