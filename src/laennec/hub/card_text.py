"""Text that stays text in Markdown, whoever wrote it.

Decisions: everything that reaches the card is escaped unless it was made here on purpose: names of devices, labels
and cycles come from other people's files and may hold HTML, links or table bars. Names stand in code, where nothing
means anything; sentences have every character escaped that could. Folders of the machine a run was made on are cut.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# an underscore between letters or digits means nothing
_MEANING = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_+|_+(?![^\W_])")
_OPENING = re.compile(r"^([-+=#]|\d+[.)](?=\s|$))")  # at the start of a line it would begin a list or a heading
# what makes a link out of plain text
_LINKS = (("://", "&#58;//"), ("www.", "www&#46;"), ("@", "&#64;"))
_ROOT = r"(?:~|[A-Za-z]:)?[/\\]"  # what an absolute path begins with
_PATHS = re.compile(
    rf"^(?P<whole>{_ROOT}.+)$|(?P<mark>['\"])(?P<quoted>{_ROOT}[^'\"]+)(?P=mark)"
    rf"|(?P<before>[\s=(\[,])(?P<bare>{_ROOT}[^\s'\",;()\[\]]+)"
)


class Markdown(str):
    """Text that is Markdown already."""


def plain(value: Any) -> str:
    """One line without control characters."""
    text = "".join(c for c in str(value) if c.isprintable() or c.isspace())
    return re.sub(r"\s+", " ", text).strip()


def escaped(value: Any) -> Markdown:
    """A sentence of anybody's, shown as it stands."""
    if isinstance(value, Markdown):
        return value
    text = "".join(_ENTITIES.get(c, c) for c in plain(value))
    text = _MEANING.sub(lambda found: "".join("\\" + c for c in found[0]), text)
    for found, instead in _LINKS:
        text = re.sub(re.escape(found), instead, text, flags=re.I)
    return Markdown(_OPENING.sub(lambda found: f"&#{ord(text[0])};{found[0][1:]}", text))


def code(value: Any) -> Markdown:
    """A name of anybody's, in code, also inside a table."""
    text = plain(value).replace("|", "¦")
    if not text:
        return Markdown("(empty)")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if "`" in (text[0], text[-1]) else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def fenced(text: str, language: str = "") -> Markdown:
    """A block of code that its content cannot leave."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Markdown:
    """A table; every cell is escaped."""
    lines = [" | ".join(escaped(cell) for cell in head), " | ".join(["---"] * len(head))]
    lines += [" | ".join(escaped(cell) for cell in row) for row in rows]
    return Markdown("\n".join(f"| {line} |" for line in lines))


def without_machine_paths(value: Any) -> Any:
    """Plain values with the folders of absolute paths cut: "/home/me/data/sprsound" becomes ".../sprsound"."""
    if isinstance(value, Mapping):
        return {k: without_machine_paths(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_machine_paths(v) for v in value]
    if not isinstance(value, str) or "://" in value:
        return value
    return _PATHS.sub(_without_folders, value)


def _without_folders(found: re.Match[str]) -> str:
    path = found["whole"] or found["quoted"] or found["bare"]
    last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    mark = found["mark"] or ""
    return f"{found['before'] or mark}.../{last}{mark}"
