"""Published numbers beside those of a study, with split and selection of each; the geometry of its embeddings.

Decisions: the study file holds the published numbers as printed, as text, so that their digits stay. Ours come from the
results file.
"""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from laennec.evaluation.metrics import is_percent
from laennec.evaluation.summary import figure_name
from laennec.rendering import plain_table, table


def published_table(content: Mapping[str, Any]) -> str:
    """The table of a results file with published numbers, as Markdown."""
    study, runs = content["study"], content["results"]
    published, figures = study["published"], list(study["figures"])
    head = ["method", *(column for name in figures for column in (f"{figure_name(name)}: published", "ours"))]
    rows = []
    for method in study["methods"]:
        theirs = published["values"].get(method, {})
        own = [run for run in runs if run["name"] == method]
        cells: list[Any] = [method]
        for name in figures:
            cells += [theirs.get(name, ""), _mean(name, own)]
        cells += [
            f"{theirs.get('split', published['split'])}; {theirs.get('selection', published['selection'])}",
            _conditions(own),
        ]
        rows.append(cells)
    note = f"Published: {published['source']}. Ours: mean ± standard deviation over seeds (each the mean of its folds)."
    if published.get("note"):
        note += f" {published['note']}"
    heads = [*head, "published: split; selected on", "ours: split; selected on"]
    return f"{table(heads, rows)}\n\n{note}"


def geometry_table(content: Mapping[str, Any]) -> str:
    """Distances of the embeddings within and between classes by method, as Markdown; empty where none were computed."""
    rows = []
    for method in dict.fromkeys(run["name"] for run in content["results"]):
        own = [run["geometry"] for run in content["results"] if run["name"] == method and run.get("geometry")]
        if not own:
            continue
        cells = [spread([of[kind][key] for of in own], 3) for kind in ("intra", "inter") for key in ("mean", "cv")]
        pairs = [(of["inter"]["mean"], of["intra"]["mean"]) for of in own]
        rows.append([method, len(own), *cells, spread([b / w for b, w in pairs if b and w], 2)])
    if not rows:
        return ""
    heads = ["method", "runs", "within classes: mean", "variation", "between classes: mean", "variation"]
    note = (
        "Angular distance 1 - cos over all pairs of cycles; variation is standard deviation / mean. Mean over runs ± "
        "their standard deviation."
    )
    return f"{plain_table([*heads, 'between / within'], rows)}\n\n{note}"


def _mean(figure: str, runs: list[Mapping[str, Any]]) -> str:
    """Mean and standard deviation over seeds, each the mean of its folds."""
    seeds: dict[int, list[float]] = {}
    for run in runs:
        if (value := run["values"].get(figure)) is not None:
            seeds.setdefault(run["seed"], []).append(value)
    text = spread([statistics.mean(folds) for folds in seeds.values()], 1 if is_percent(figure) else 3) or "not run"
    return f"{text} ({len(seeds)})" if len(seeds) > 1 else text


def spread(values: Iterable[float | None], digits: int) -> str:
    """The mean ± standard deviation of the known values; empty if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    text = f"{statistics.mean(known):.{digits}f}"
    return text + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")


def _conditions(runs: list[Mapping[str, Any]]) -> str:
    """Corpus, protocol, split and stamp of our runs, and the data on which their epoch was chosen."""
    found = {
        f"{run['corpus']}, {run['protocol']}, {run['split']}"
        + (f" ({run['stamp']})" if run.get("stamp") else "")
        + f"; {run['selection_set']}"
        for run in runs
    }
    return "; ".join(sorted(found))
