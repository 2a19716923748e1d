"""Published numbers beside those of a study, with what each was scored and selected on.

Decisions: the study file holds the published numbers as its paper prints them (text, so that no digit is invented),
with the split and the data on which the epoch was chosen, where the paper says so. Ours come from the results file.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from laennec.evaluation.summary import figure_name, is_percent
from laennec.rendering import Markdown, escaped, table


def published_table(content: Mapping[str, Any], split: str | None = None) -> str:
    """The table of a results file with published numbers, as Markdown.

    Args:
        content: A results file whose study has `published`.
        split: The scored split; None for all.
    """
    study, runs = content["study"], content["results"]
    published, figures = study["published"], list(study["figures"])
    head = ["method", *(column for name in figures for column in (f"{figure_name(name)}: published", "ours"))]
    rows = []
    for method in study["methods"]:
        theirs = published["values"].get(method, {})
        own = [run for run in runs if run["name"] == method and split in (None, run["split"])]
        cells: list[Any] = [Markdown(escaped(method))]
        for name in figures:
            cells += [theirs.get(name, ""), _mean(name, [run["values"].get(name) for run in own])]
        cells += [
            f"{theirs.get('split', published['split'])}; {theirs.get('selection', published['selection'])}",
            _conditions(own),
        ]
        rows.append(cells)
    note = f"Published: {published['source']}. Ours: mean over runs ± their standard deviation."
    if published.get("note"):
        note += f" {published['note']}"
    heads = [*head, "published: split; selected on", "ours: split; selected on"]
    return f"{table(heads, rows)}\n\n{note}"


def _mean(figure: str, values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not run"
    digits = 1 if is_percent(figure) else 3
    text = f"{statistics.mean(known):.{digits}f}"
    return text + (f" ± {statistics.stdev(known):.{digits}f} ({len(known)})" if len(known) > 1 else "")


def _conditions(runs: list[Mapping[str, Any]]) -> str:
    """Corpus, protocol and stamp of our runs, and what their epoch was chosen on."""
    found = {
        f"{run['corpus']}, {run['protocol']}, {run['split']}"
        + (f" ({run['stamp']})" if run.get("stamp") else "")
        + f"; {run['selection_set']}"
        for run in runs
    }
    return "; ".join(sorted(found))
