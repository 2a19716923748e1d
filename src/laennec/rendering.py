"""One jinja environment for every page and card, the escaping of untrusted text, and tables of text.

Decisions: values are escaped by default. Names of devices, labels and cycles come from other people's files and may
contain HTML, links or table bars; text that is Markdown on purpose has the type `Markdown`.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, StrictUndefined, Undefined

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SYNTAX = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_+|_+(?![^\W_])")  # not an underscore within a word
_LINE_START = re.compile(r"^([-+=#]|\d+[.)](?=\s|$))")  # would begin a list or a heading
_LINKS = (("://", "&#58;//"), ("www.", "www&#46;"), ("@", "&#64;"))  # would become a link


def render_template(name: str, /, **values: Any) -> str:
    """Render `laennec/templates/<name>`.

    Values are escaped for HTML in templates whose name contains ".html", and for Markdown in those whose name contains
    ".md.jinja", where a missing value is rendered as "not recorded".
    """
    page = _environment(".md.jinja" in name).get_template(name).render(**values)
    return page.encode("utf-8", "replace").decode("utf-8")  # file names can hold surrogates, which UTF-8 lacks


@cache
def _environment(markdown: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("laennec"),
        autoescape=lambda name: ".html" in (name or ""),
        undefined=ChainableUndefined if markdown else StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize_markdown if markdown else None,
    )
    environment.filters |= {"code": code}
    environment.globals |= {"table": table}
    return environment


def _finalize_markdown(value: Any) -> str:
    return "not recorded" if value is None or isinstance(value, Undefined) else escaped(value)


class Markdown(str):
    """Text that is Markdown on purpose and is not escaped."""


def plain(value: Any) -> str:
    """The value as one line without control characters."""
    text = "".join(c for c in str(value) if c.isprintable() or c.isspace())
    return re.sub(r"\s+", " ", text).strip()


def escaped(value: Any) -> Markdown:
    """Untrusted text, escaped so that Markdown shows it literally."""
    if isinstance(value, Markdown):
        return value
    text = "".join(_ENTITIES.get(c, c) for c in plain(value))
    text = _SYNTAX.sub(lambda found: "".join("\\" + c for c in found[0]), text)
    for found, instead in _LINKS:
        text = re.sub(re.escape(found), instead, text, flags=re.I)
    return Markdown(_LINE_START.sub(lambda found: f"&#{ord(text[0])};{found[0][1:]}", text))


def code(value: Any) -> Markdown:
    """Untrusted text as inline code, also inside a table."""
    text = plain(value).replace("|", "¦")
    if not text:
        return Markdown("(empty)")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if "`" in (text[0], text[-1]) else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def fenced(text: str, language: str = "") -> Markdown:
    """A code block whose fence is longer than any in its content."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def data_uri(kind: str, content: bytes) -> str:
    """The content of a file as a data URI, for use within a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> Markdown:
    """A Markdown table with escaped cells."""
    lines = [" | ".join(escaped(cell) for cell in head), " | ".join(["---"] * len(head))]
    lines += [" | ".join(escaped(cell) for cell in row) for row in rows]
    return Markdown("\n".join(f"| {line} |" for line in lines))


def text_table(rows: Sequence[Sequence[str]], indent: int = 2) -> str:
    """Rows of text in aligned columns, for a terminal."""
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    lines = ("".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"{' ' * indent}{line}".rstrip() for line in lines)


def plain_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markdown:
    """A Markdown table of cells that are Markdown already."""
    return table([Markdown(cell) for cell in head], [[Markdown(cell) for cell in row] for row in rows])
