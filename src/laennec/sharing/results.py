"""Stage 11, results: numbers in documents, rendered from result files and never typed.

Decided here: a results file holds what the runs' own files said, nothing more; a document names the file in a marker,
and the text between the markers is made by `laennec results`. A test renders every document again and fails where one
differs.
"""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.training.record import read_record, write_record
from laennec.writing import write_aside

_VALUES = (
    "icbhi.Score", "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "sprsound.Score", "crackle.roc_auc", "wheeze.roc_auc",
    "crackle.average_precision", "wheeze.average_precision", "f1_macro", "accuracy", "uar",
)  # fmt: skip
_MARKER = re.compile(r"(<!-- laennec:(\w+) (\S+)((?: \S+)*) -->\n).*?(<!-- laennec:end -->)", re.S)


def collect(evaluations: Sequence[str | Path], into: str | Path) -> Path:
    """Gather the results of evaluations into one file.

    Args:
        evaluations: Folders that `laennec evaluate` wrote.
        into: The results file; results that are there already stay, those of the same run and part are replaced.

    Returns:
        The results file.

    Raises:
        InputError: A folder holds no evaluation.
    """
    into = Path(into)
    rows = {_identity(row): row for row in (read_record(into)["results"] if into.exists() else [])}
    for folder in map(Path, evaluations):
        row = _result(read_record(folder / "run.json"), read_record(folder / "metrics.json"))
        rows[_identity(row)] = row
    write_record(into, {"results": [rows[key] for key in sorted(rows)]})
    return into


def _identity(row: dict[str, Any]) -> tuple[str, int, str, int]:
    return row["name"], row["seed"], row["split"], row.get("fold", 0)


def _result(run: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    evaluated = run["evaluated"]
    origin = evaluated["corpus"]["provenance"]
    return {
        "name": run["name"],
        "description": run["config"]["description"],
        "seed": run["config"]["seed"],
        "split": evaluated["split"],
        "commands": [run.get("command"), evaluated["command"]],
        "corpus": evaluated["corpus"]["name"],
        "corpus_fingerprint": evaluated["corpus"]["fingerprint"],
        "protocol": origin["protocol"],
        **({"fold": origin["fold"]} if origin.get("fold") else {}),
        "stamp": origin.get("stamp"),
        "split_fingerprint": origin["split_fingerprint"],
        "selection_set": run["selection_set"],
        "best_epoch": run.get("best_epoch"),
        "scored": sum(e["split"] == evaluated["split"] for e in run.get("evaluations", [])),
        "counts": metrics["counts"],
        "values": {k: metrics["values"].get(k) for k in _VALUES if k in metrics["values"]},
        "intervals": {k: metrics["intervals"].get(k) for k in _VALUES if k in metrics["intervals"]},
        "floors": [
            {"name": f["name"], "values": {k: f["values"].get(k) for k in _VALUES if k in f["values"]}}
            for f in metrics["floors"]
        ],
        "timings": run["timings"],
        "hardware": run["hardware"],
        "versions": run["versions"],
    }


def render(document: str | Path, check: bool = False) -> bool:
    """Make the text between the markers of a Markdown document anew.

    Markers: `<!-- laennec:scores FILE [part] -->` is a table of scores, `means` of their means over seeds, `classes` of
    accuracies over folds and seeds, `floors` of
    what is reached without listening, `runs` of commands, seeds and run times, `bench` of the benchmark; each ends at
    `<!-- laennec:end -->`. FILE is relative to the document.

    Args:
        document: The document.
        check: Only look, change nothing.

    Returns:
        Whether the document was as it should be.

    Raises:
        InputError: An unknown marker, or a results file that is not there.
    """
    document = Path(document)
    try:
        before = document.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{document}: cannot read: {error.strerror}; give a Markdown document") from error

    def made(match: re.Match[str]) -> str:
        opening, kind, file, options, closing = match.groups()
        if kind not in _TABLES:
            raise InputError(f"{document}: unknown marker laennec:{kind}; it can be {', '.join(_TABLES)}")
        content = read_record(document.parent / file)
        return f"{opening}{_TABLES[kind](content, options.split())}\n{closing}"

    after = _MARKER.sub(made, before)
    if after != before and not check:
        with write_aside(document) as out:
            out.write(after)
    return after == before


def _part(content: dict[str, Any], options: list[str]) -> list[dict[str, Any]]:
    return [row for row in content["results"] if not options or row["split"] == options[0]]


def _scores(content: dict[str, Any], options: list[str]) -> str:
    lines = [
        "| recipe | seed | ICBHI Score | Sp | Se | crackle AUROC | wheeze AUROC | SPRSound Score |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = _part(content, options)
    for row in rows:
        cells = [
            _with_interval(row, name, digits)
            for name, digits in (
                ("icbhi.Score", 1),
                ("icbhi.Sp", 1),
                ("icbhi.Se", 1),
                ("crackle.roc_auc", 3),
                ("wheeze.roc_auc", 3),
                ("sprsound.Score", 1),
            )
        ]
        lines.append(f"| {row['name']} | {row['seed']} | {' | '.join(cells)} |")
    if rows:
        first = rows[0]
        counts = first["counts"]
        lines.append("")
        lines.append(
            f"{first['corpus']} (fingerprint `{first['corpus_fingerprint'][:12]}`), protocol {first['protocol']}, part "
            f"{first['split']}: {counts['cycles']} cycles of {counts['patients']} patients; epochs, thresholds and "
            f"temperatures chosen on {first['selection_set']} patients; [95 % interval, 1000 draws of patients]."
            + (f" **{first['stamp']}.**" if first["stamp"] else "")
        )
    return "\n".join(lines)


def _means(content: dict[str, Any], options: list[str]) -> str:
    lines = ["| recipe | seeds | ICBHI Score | crackle AUROC | wheeze AUROC |", "|---|---|---|---|---|"]
    rows = _part(content, options)
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        cells = [
            _mean_and_spread([row["values"][figure] for row in own], digits)
            for figure, digits in (("icbhi.Score", 1), ("crackle.roc_auc", 3), ("wheeze.roc_auc", 3))
        ]
        lines.append(f"| {name} | {', '.join(str(row['seed']) for row in own)} | {' | '.join(cells)} |")
    lines += ["", "Mean over seeds, and their standard deviation; it says nothing about other patients."]
    return "\n".join(lines)


def _classes(content: dict[str, Any], options: list[str]) -> str:
    lines = ["| recipe | seeds | folds | accuracy | unweighted average recall |", "|---|---|---|---|---|"]
    rows = _part(content, options)
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        seeds, folds = (sorted({row.get(key, 0) for row in own}) for key in ("seed", "fold"))
        cells = []
        for figure in ("accuracy", "uar"):
            by_seed = [[row["values"].get(figure) for row in own if row["seed"] == seed] for seed in seeds]
            means = [statistics.mean(values) for values in by_seed if values and None not in values]
            cells.append(_mean_and_spread(means, 1))
        lines.append(f"| {name} | {', '.join(map(str, seeds))} | {', '.join(map(str, folds))} | {' | '.join(cells)} |")
    lines += ["", "Mean over the folds of each seed; of these the mean and the standard deviation over seeds."]
    return "\n".join(lines)


def _mean_and_spread(values: list[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "not defined"
    mean = f"{statistics.mean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def _with_interval(row: dict[str, Any], name: str, digits: int) -> str:
    value, interval = row["values"].get(name), row["intervals"].get(name)
    if value is None:
        return "not defined"
    text = f"{value:.{digits}f}"
    return text if not interval else f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _floors(content: dict[str, Any], options: list[str]) -> str:
    lines = ["| floor | ICBHI Score | crackle AUROC | wheeze AUROC |", "|---|---|---|---|"]
    rows = _part(content, options)
    for floor in rows[0]["floors"] if rows else []:
        values = floor["values"]
        cells = [
            "" if values.get(name) is None else f"{values[name]:.{digits}f}"
            for name, digits in (("icbhi.Score", 1), ("crackle.roc_auc", 3), ("wheeze.roc_auc", 3))
        ]
        lines.append(f"| {floor['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _runs(content: dict[str, Any], options: list[str]) -> str:
    lines = [
        "| recipe | seed | command | best epoch | training | whole run | scored |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = _part(content, options)
    for row in rows:
        seconds = row["timings"]
        times = f"{seconds['training']:.0f} s | {seconds['total']:.0f} s"
        scored = "once" if row["scored"] == 1 else f"{row['scored']} times"
        epoch = "" if row["best_epoch"] is None else f"{row['best_epoch']:g}"
        lines.append(f"| {row['name']} | {row['seed']} | `{row['commands'][0]}` | {epoch} | {times} | {scored} |")
    if rows:
        machine, version = rows[0]["hardware"], rows[0]["versions"]
        lines.append("")
        lines.append(
            f"{machine['processor']}, {machine['torch_threads']} thread; torch {version['torch']}, "
            f"transformers {version['transformers']}. Times are of a shared machine; a cache filled by an earlier run "
            "shortens the whole run."
        )
    return "\n".join(lines)


def _bench(content: dict[str, Any], options: list[str]) -> str:
    from laennec.bench import Row, as_table

    return as_table([Row(**row) for row in content["rows"]], content)


_TABLES = {"scores": _scores, "means": _means, "classes": _classes, "floors": _floors, "runs": _runs, "bench": _bench}
