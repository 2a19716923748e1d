"""Numbers in documents, rendered from result files and never typed.

Decisions: a results file holds what the runs' own files said, nothing more; a document names the file in a marker,
and the text between the markers is made by `laennec results`. A test renders every document again and fails where one
differs.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from laennec.errors import InputError, in_known_form
from laennec.evaluation.compare import Drawn, compare_methods, draw_figures, p_text, pool_folds
from laennec.evaluation.geometry import four_properties
from laennec.evaluation.predictions import read_predictions
from laennec.evaluation.report_facts import seeds_of
from laennec.evaluation.smoothing import signed
from laennec.evaluation.summary import figure_text
from laennec.files import atomic_write
from laennec.study.tables import (
    COST_HEADS,
    audit_table,
    cost_cells,
    geometry_table,
    official_table,
    study_table,
)
from laennec.training.record import read_record, write_record

_VALUES = (
    "icbhi.Score", "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "sprsound.Score", "crackle.roc_auc", "wheeze.roc_auc",
    "crackle.average_precision", "wheeze.average_precision", "f1_macro", "accuracy", "uar",
)  # fmt: skip
_COMPARED = ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc", "roc_auc_macro")
_MARKER = re.compile(r"(<!-- laennec:(\w+) (\S+)((?: \S+)*) -->\n).*?(<!-- laennec:end -->)", re.S)


def collect(
    evaluations: Sequence[str | Path],
    into: str | Path,
    baseline: str | None = None,
    against: Mapping[str, str] | None = None,
) -> Path:
    """Gather the results of evaluations into one file, and compare their methods.

    Args:
        evaluations: Folders that `laennec evaluate` wrote.
        into: The results file; results that are there already stay, those of the same run and part are replaced. The
            comparison of methods is made anew, of the given evaluations.
        baseline: Name of the recipe that the others are compared with.
        against: Where that is not one for all, the name that each is compared with; `baseline` then is what tables
            call them together.

    Returns:
        The results file.

    Raises:
        InputError: A folder holds no evaluation, or the evaluations cannot be compared.
    """
    into = Path(into)
    rows = {_identity(row): row for row in (read_record(into)["results"] if into.exists() else [])}
    said: dict[str, dict[str, dict[int, dict[int, Path]]]] = {}  # part -> recipe -> seed -> fold -> evaluation
    for folder in map(Path, evaluations):
        run, metrics = read_record(folder / "run.json"), read_record(folder / "metrics.json")
        row = _result(run, metrics)
        rows[_identity(row)] = row
        of_run = said.setdefault(row["split"], {}).setdefault(row["name"], {}).setdefault(row["seed"], {})
        of_run[row.get("fold", 0)] = folder
    everybody = sorted({name for runs in said.values() for name in runs})
    if baseline is not None and not against and baseline not in everybody:
        raise InputError(f"the baseline {baseline} is not among the methods {', '.join(everybody)}")
    methods = {part: _methods(part, runs, baseline, against) for part, runs in sorted(said.items())}
    write_record(into, {"results": [rows[key] for key in sorted(rows)], "methods": methods})
    return into


def _drawn(folds: Mapping[int, Path]) -> Drawn:
    """A run's main figures in every draw of patients, its folds together."""
    answers = []
    for _, folder in sorted(folds.items()):
        metrics = read_record(folder / "metrics.json")
        answers.append(
            read_predictions(
                pd.read_parquet(folder / "predictions.parquet"),
                problem_type=metrics["problem_type"],
                label_names=metrics["output_names"],
                thresholds=metrics["thresholds"],
                temperatures=metrics["temperatures"],
                intercepts=metrics.get("intercepts"),
            )
        )
    return draw_figures(pool_folds(answers), _COMPARED, metrics["bootstrap"]["n_draws"], metrics["bootstrap"]["seed"])


def _methods(
    part: str, runs: dict[str, dict[int, dict[int, Path]]], baseline: str | None, against: Mapping[str, str] | None
) -> dict[str, Any]:
    """The comparison of the methods that were scored on one part."""
    content: dict[str, Any] = {
        "baseline": baseline,
        "seeds": {name: sorted(of) for name, of in runs.items()},
        "figures": {},
    }
    try:
        drawn = {name: [_drawn(of[seed]) for seed in sorted(of)] for name, of in sorted(runs.items())}
        if baseline is not None or len({run.cycles for of in drawn.values() for run in of}) == 1:
            # what a method is compared with may not have been scored on this part
            others = against or ({} if baseline is None else dict.fromkeys(drawn, baseline))
            pairs = {method: other for method, other in others.items() if {method, other} <= set(drawn)}
            content["figures"] = compare_methods(drawn, pairs)
    except ValueError as error:
        raise InputError(f"results, part {part}: {error}; gather what belongs together") from error
    return content


def _identity(row: dict[str, Any]) -> tuple[str, int, str, int]:
    return row["name"], row["seed"], row["split"], row.get("fold", 0)


def _result(run: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    evaluated = run["evaluated"]
    origin = evaluated["corpus"]["provenance"]
    return {
        "name": run["name"],
        "description": run["config"]["description"],
        "seed": run["config"]["seed"],
        **({"seeds": seeds_of(run)} if run.get("members") else {}),
        "split": evaluated["split"],
        "commands": [run.get("command"), evaluated["command"]],
        "corpus": evaluated["corpus"]["name"],
        "corpus_fingerprint": evaluated["corpus"]["fingerprint"],
        "protocol": origin.get("protocol"),
        **({"fold": origin["fold"]} if origin.get("fold") else {}),
        "stamp": origin.get("stamp"),
        "split_fingerprint": origin.get("split_fingerprint"),  # none where a corpus is scored whole
        "selection_set": run["selection_set"],
        "best_epoch": run.get("best_epoch"),
        "scored": sum(e["split"] == evaluated["split"] for e in run.get("evaluations", [])),
        "counts": metrics["counts"],
        "values": {k: metrics["values"].get(k) for k in _VALUES if k in metrics["values"]},
        "intervals": {k: metrics["intervals"].get(k) for k in _VALUES if k in metrics["intervals"]},
        **{name: metrics[name] for name in ("smoothing", "within_lengths", "duration_blind") if metrics.get(name)},
        **({"geometry": four_properties(metrics["geometry"])} if metrics.get("geometry") else {}),
        **({"official": _official(metrics["official"])} if metrics.get("official") else {}),
        "floors": [
            {"name": f["name"], "values": {k: f["values"].get(k) for k in _VALUES if k in f["values"]}}
            for f in metrics["floors"]
        ],
        # of the training; a model that came alone has only what scored it
        "timings": run.get("timings") or evaluated["timings"],
        "hardware": run.get("hardware") or evaluated["hardware"],
        "versions": run.get("versions") or evaluated["versions"],
    }


def _official(scores: dict[str, Any]) -> dict[str, Any]:
    """SPRSound's figures without the convention in words."""
    return {
        task: {k: v for k, v in score.items() if k != "convention"} if isinstance(score, dict) else score
        for task, score in scores.items()
    }


def render(document: str | Path, check: bool = False) -> bool:
    """Make the text between the markers of a Markdown document anew.

    Markers: `<!-- laennec:scores FILE [part] -->` is a table of scores, `means` of their means over seeds, `classes` of
    accuracies over folds and seeds, `smoothing` of answers without and with it, `floors` of what is reached without
    listening, `runs` of commands, seeds and run times, `bench` of the benchmark, `cost` of what its rates mean for a
    large corpus, `study` of methods with their cost, `official` of SPRSound's four tasks, `audit` of what is left of
    each AUROC where length says nothing, `geometry` of angles between embeddings, `reliability` of promises and what
    they were held to; each ends at `<!-- laennec:end -->`. FILE is relative to the document. `only=a_method;another`
    after the part leaves out every other method; a name is written with `_` for a space.

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
        with in_known_form(document.parent / file, f"laennec:{kind} wants another results file; make it again"):
            table = _TABLES[kind](*_chosen(content, options.split(), document))
        return f"{opening}{table}\n{closing}"

    after = _MARKER.sub(made, before)
    if after != before and not check:
        with atomic_write(document) as out:
            out.write(after)
    return after == before


def _chosen(content: dict[str, Any], options: list[str], document: Path) -> tuple[dict[str, Any], list[str]]:
    """The results of the methods that a marker asks for, and its other options."""
    asked = [option.removeprefix("only=") for option in options if option.startswith("only=")]
    if not asked:
        return content, options
    there = {row["name"].replace(" ", "_"): row["name"] for row in content["results"]}
    if unknown := set(asked[0].split(";")) - set(there):
        missing = ", ".join(sorted(unknown))
        raise InputError(f"{document}: only= asks for {missing}, no method; there are {', '.join(sorted(there))}")
    names = [there[name] for name in asked[0].split(";")]
    content = {**content, "results": [row for name in names for row in content["results"] if row["name"] == name]}
    if "methods" in content:
        content["methods"] = {part: _only(compared, names) for part, compared in content["methods"].items()}
    return content, [option for option in options if not option.startswith("only=")]


def _only(compared: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """A comparison of methods without those that were not asked for."""
    return compared | {"figures": {name: compared["figures"][name] for name in names if name in compared["figures"]}}


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
        lines.append(f"| {row['name']} | {row.get('seeds', row['seed'])} | {' | '.join(cells)} |")
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
    methods = content.get("methods", {}).get(options[0])
    if methods is None:
        raise InputError(f"laennec:means: no methods were compared on part {options[0]}; gather the evaluations again")
    baseline = methods["baseline"]
    head = ["recipe", "seeds", "ICBHI Score", "crackle AUROC", "wheeze AUROC"]
    head += [f"mean AUROC, difference from {baseline}", "p (Holm)"] if baseline else []
    runs = {name: [row for row in _part(content, options) if row["name"] == name] for name in methods["figures"]}
    costs = {name: cost_cells(rows) for name, rows in runs.items()}
    known = any(any(cells) for cells in costs.values())
    head += COST_HEADS if known else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    order = sorted(methods["figures"], key=lambda name: -methods["figures"][name]["roc_auc_macro"]["mean"])
    for name in order:
        figures = methods["figures"][name]
        cells = [_mean(figures[f], d) for f, d in (("icbhi.Score", 1), ("crackle.roc_auc", 3), ("wheeze.roc_auc", 3))]
        cells += _difference(figures["roc_auc_macro"]) if baseline else []
        cells += costs[name] if known else []
        seeds = ", ".join(dict.fromkeys(str(row.get("seeds", row["seed"])) for row in runs[name]))
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    lines += [
        "",
        "Mean over seeds ± their standard deviation, [95 % interval over draws of patients and of seeds], in the order "
        "of the mean AUROC of the labels; the difference in it is paired by patients, its p value corrected over all "
        "rows (Holm).",
    ]
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


def _smoothing(content: dict[str, Any], options: list[str]) -> str:
    lines = [
        "| recipe | seed | strength | ICBHI Score | difference | mean AUROC | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in _part(content, options):
        if (section := row.get("smoothing")) is None:
            continue
        cells = []
        for name in ("icbhi.Score", "roc_auc_macro"):
            before, after = (figure_text(name, section["figures"][name][side]["value"]) for side in ("without", "with"))
            cells += [f"{before} → {after}", signed(name, section["figures"][name]["difference"])]
        lines.append(f"| {row['name']} | {row['seed']} | {section['strength']:g} | {' | '.join(cells)} |")
    lines += [
        "",
        "Each answer mixed with the mean of its recording, at a strength that validation patients chose; without → "
        "with, and the difference with its 95 % interval over the same draws of patients.",
    ]
    return "\n".join(lines)


def _mean_and_spread(values: list[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "not defined"
    mean = f"{statistics.mean(known):.{digits}f}"
    return f"{mean} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else mean


def _mean(cell: dict[str, Any], digits: int) -> str:
    """A mean over seeds with its spread and interval."""
    text = f"{cell['mean']:.{digits}f}" + ("" if cell["sd"] is None else f" ± {cell['sd']:.{digits}f}")
    return text + _bounds(cell["interval"], digits)


def _difference(cell: dict[str, Any]) -> list[str]:
    """A difference from the baseline with its interval, and its corrected p value."""
    if cell["difference"] is None:
        return ["", ""]
    return [f"{cell['difference']:+.3f}{_bounds(cell['difference_interval'], 3, '+')}", p_text(cell["p_holm"])]


def _bounds(bounds: Sequence[float] | None, digits: int, sign: str = "") -> str:
    return "" if not bounds else f" [{bounds[0]:{sign}.{digits}f}, {bounds[1]:{sign}.{digits}f}]"


def _with_interval(row: dict[str, Any], name: str, digits: int) -> str:
    value, interval = row["values"].get(name), row["intervals"].get(name)
    if value is None:
        return "not defined"
    return f"{value:.{digits}f}" + _bounds(interval, digits)


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
        seeds = row.get("seeds", row["seed"])
        lines.append(f"| {row['name']} | {seeds} | `{row['commands'][0]}` | {epoch} | {times} | {scored} |")
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
    from benchmarks import Row, as_table

    return as_table([Row(**row) for row in content["rows"]], content)


def _cost(content: dict[str, Any], options: list[str]) -> str:
    from benchmarks.cost import as_page

    from benchmarks import Row

    return as_page([Row(**row) for row in content["rows"]], content)


def _reliability(content: dict[str, Any], options: list[str]) -> str:
    lines = ["| promise | held | seen | by | when |", "|---|---|---|---|---|"]
    for row in content["rows"]:
        seen = "; ".join(f"{name}: {value}" for name, value in row["figures"].items())
        cells = (row["promise"], "yes" if row["held"] else "**no**", seen, f"`{row['command']}`", _made_when(row))
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def _made_when(row: dict[str, Any]) -> str:
    """Day, duration, machine and versions of a row, short."""
    machine, version = row["hardware"], row["versions"]
    return (
        f"{row['date']}, {row['seconds'] / 60:.0f} min; {machine['processor']}, {machine['cores']} cores; "
        f"Python {version['python']}, torch {version['torch']}, transformers {version['transformers']}"
    )


_TABLES = {
    "scores": _scores,
    "means": _means,
    "classes": _classes,
    "smoothing": _smoothing,
    "floors": _floors,
    "runs": _runs,
    "bench": _bench,
    "cost": _cost,
    "study": study_table,
    "official": official_table,
    "audit": audit_table,
    "geometry": geometry_table,
    "reliability": _reliability,
}
