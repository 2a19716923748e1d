"""Every stage, doctor: one line of the examination, and how a check that breaks becomes one.

Decisions: three states. `ok` needs nothing, `note` can be lived with, `PROBLEM` is something that laennec needs and
that does not work; every note and every PROBLEM says what to do about it. A check that raises is itself a PROBLEM:
whatever breaks is what the user wants to know.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "note", "PROBLEM"]


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        room: The heading it stands under.
        name: What was looked at.
        state: "ok", "note" or "PROBLEM".
        found: What was found.
        remedy: What to do about it; empty where nothing needs to be done.
    """

    room: str
    name: str
    state: State
    found: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        """As plain values."""
        return asdict(self)


# (state, what was found, what to do about it)
Verdict = tuple[State, str, str]


def ok(found: str) -> Verdict:
    """Nothing to do."""
    return "ok", found, ""


def note(found: str, remedy: str) -> Verdict:
    """Works, or is not needed; worth knowing."""
    return "note", found, remedy


def problem(found: str, remedy: str) -> Verdict:
    """Something that is needed does not work."""
    return "PROBLEM", found, remedy


def finding(room: str, name: str, check: Callable[[], Verdict], remedy: str) -> Finding:
    """Run a check; `remedy` is what to do where it breaks down."""
    try:
        return Finding(room, name, *check())
    except ImportError as error:
        absent = (error.name or "").split(".")[0] or "a package"
        return Finding(room, name, "PROBLEM", f"{absent} cannot be imported", f"see {absent} under Packages")
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        return Finding(room, name, "PROBLEM", f"{type(error).__name__}: {said}" if said else repr(error), remedy)


def gigabytes(amount: float) -> str:
    """Bytes for people."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= size:
            return f"{amount / size:.3g} {unit}" if amount < 1000 * size else f"{amount / size:,.0f} {unit}"
    return f"{amount:.0f} bytes"


def worst(findings: Iterator[Finding] | list[Finding]) -> State:
    """The state of the whole."""
    states = {found.state for found in findings}
    return "PROBLEM" if "PROBLEM" in states else "note" if "note" in states else "ok"
