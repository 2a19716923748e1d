"""Errors that a user can fix, in one line each.

Decisions: errors that a user can cause and fix derive from `InputError`. For these the command line prints one line and
exits with 2; any other error is a bug of laennec and shows a traceback. Errors of the Hub's client are recognised by
the names of their classes: their modules take long to import, transformers wraps them in its own errors, and two major
versions of the client raise errors of two different libraries.
"""

import contextlib
import difflib
import unicodedata
from collections.abc import Iterable, Iterator
from os import PathLike

_REORDERING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def one_line(text: str) -> str:
    """A text with line ends, control characters, surrogates and text direction marks as escapes."""
    if text.isprintable():
        return text
    strange = [c for c in set(text) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _REORDERING]
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in strange})


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint at the most similar known name, for the end of an error; "" where none is similar enough."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


class InputError(ValueError):
    """Input that a user can fix: the message says what, where, and what to do, in one line.

    Line ends and control characters in its names and values are shown as escapes, so that it stays one line. The
    traceback that torch puts before an error of a process that reads batches is left out.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.startswith("Caught ") and " in DataLoader worker process " in text:
            text = text.rstrip().rpartition("\n")[2].partition(": ")[2]
        return one_line(text)


class Terminated(BaseException):
    """SIGTERM was received; a BaseException, so that `except Exception` does not catch it."""


@contextlib.contextmanager
def in_known_form(path: str | PathLike[str], remedy: str) -> Iterator[None]:
    """Turn an error in the block, from a file with missing or wrong values, into one line with a `remedy`."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: not of the form that laennec writes ({said}); {remedy}") from error


# class name -> reason; the first one in the chain of errors is reported, so specific classes come first
_HUB_REASONS = {
    "OfflineModeIsEnabled": "the Hub is switched off here (HF_HUB_OFFLINE); unset it, or give a local folder",
    "LocalTokenNotFoundError": "no token; log in (hf auth login) or set HF_TOKEN",
    "GatedRepoError": "access to it is granted by its owners; ask on its page, then log in (hf auth login) or set "
    "HF_TOKEN",
    "RepositoryNotFoundError": "the Hub has no such repository, or it is private and not open to you; check the name, "
    "log in (hf auth login) or set HF_TOKEN",
    "RevisionNotFoundError": "the repository has no such revision; name a branch, tag or commit of it",
}
_UNREACHABLE = frozenset(
    (
        "TransportError",
        "TimeoutException",
        "NetworkError",
        "LocalEntryNotFoundError",
        "ConnectionError",
        "MaxRetryError",
    )
)


def hub_reason(error: BaseException) -> str | None:
    """Why a request to the Hub failed and what to do, from the error or its causes; None for any other error."""
    chain = chain_of(error)
    kinds = _kinds(chain)
    said = " ".join(map(str, chain))
    if "Invalid credentials in Authorization header" in said or "Invalid user token" in said:
        return "the token is wrong or has expired; log in again (hf auth login) or correct HF_TOKEN"
    for name, reason in _HUB_REASONS.items():
        if name in kinds:
            return reason
    statuses = [_status(each) for each in chain]
    if 403 in statuses:
        return "the token does not allow this; use one with write access to that name (hf auth login) or set HF_TOKEN"
    if busy := next(filter(_is_busy, statuses), None):
        return f"the Hub has a temporary problem (HTTP {busy}); run the same command again later"
    if kinds & _UNREACHABLE:
        return "the Hub cannot be reached; check the network and run the same command again, or give a local folder"
    return None


def will_pass(error: BaseException) -> bool:
    """Whether a failed request to the Hub may succeed if it is repeated: 408, 429, 5xx, a broken connection."""
    chain = chain_of(error)
    kinds = _kinds(chain)
    return not kinds & {"OfflineModeIsEnabled"} and bool(
        kinds & _UNREACHABLE or any(_is_busy(_status(each)) for each in chain)
    )


def chain_of(error: BaseException | None) -> list[BaseException]:
    """An error and its causes."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _kinds(chain: list[BaseException]) -> set[str]:
    return {kind.__name__ for each in chain for kind in type(each).__mro__}


def _status(error: BaseException) -> int:
    """The HTTP status that an error of the Hub's client carries, or 0."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else 0


def _is_busy(status: int) -> bool:
    return status in (408, 429) or status >= 500
