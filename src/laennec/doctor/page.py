"""Every stage, doctor: the findings as one page.

Decisions: 96 columns, one column a thing, what to do on a line of its own behind an arrow; colours on a terminal
alone and never the only sign.
"""

import textwrap
from collections.abc import Sequence

from laennec.doctor.finding import Finding

_WIDTH = 96
_COLOURS = {"ok": "32", "note": "33", "PROBLEM": "1;31"}


def page(findings: Sequence[Finding], coloured: bool = False) -> str:
    """Render them, room by room, with a summary at the end."""
    wide = max((len(found.name) for found in findings), default=0)
    indent = " " * (2 + 7 + 2 + wide + 2)
    lines: list[str] = []
    room = None
    for found in findings:
        if found.room != room:
            lines += ["", found.room] if lines else [found.room]
            room = found.room
        state = f"\033[{_COLOURS[found.state]}m{found.state:<7}\033[0m" if coloured else f"{found.state:<7}"
        first, *more = _wrapped(found.found, _WIDTH - len(indent)) or [""]
        lines.append(f"  {state}  {found.name:<{wide}}  {first}".rstrip())
        lines += [indent + line for line in more]
        if found.remedy:
            first, *more = _wrapped(found.remedy, _WIDTH - len(indent) - 3)
            lines += [f"{indent}-> {first}", *(f"{indent}   {line}" for line in more)]
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    """The whole in a sentence."""
    problems = [found.name for found in findings if found.state == "PROBLEM"]
    notes = sum(found.state == "note" for found in findings)
    aside = f" ({notes} note{'s' * (notes != 1)} above)" if notes else ""
    if not problems:
        return f"All that laennec needs works here{aside}."
    some = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{some}: {', '.join(problems)}{aside}. What to do stands behind the arrows."


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
