"""One jinja environment for every page and card."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_template(name: str, **values: Any) -> str:
    """Render `laennec/templates/<name>`; values are escaped in templates whose name contains ".html"."""
    page = _environment().get_template(name).render(**values)
    return page.encode("utf-8", "replace").decode("utf-8")  # names of files can hold characters that no file can


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("laennec"),
        autoescape=lambda name: ".html" in (name or ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
