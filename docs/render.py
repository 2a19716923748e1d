"""Render the tables of the documents from result files: `python -m docs.render [--check] [DOCUMENT.md ...]`.

A document names a table by `<!-- laennec:KIND FILE [SPLIT;SPLIT] [only=a_method;another] [columns=one;another] -->` and
ends it by `<!-- laennec:end -->`. KIND is a key of `TABLES`; FILE is relative to the document; `_` stands for a space.
A column is named by its head, or by a part that no other head has. Several splits give one table with a column "split".
FILE can be a folder of result files of benchmarks; SPLIT is then BENCHMARK/SPLIT. Without documents every Markdown file
of the repository is rendered. `--check` changes nothing and exits with 1 where a table differs from its file.
"""

import argparse
import json
import re
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cost import as_page

from benchmarks import Row, as_table
from laennec.benchmark.result_file import SCORE, read_result
from laennec.errors import InputError
from laennec.evaluation.comparison.statistics import p_text, power_text
from laennec.evaluation.intervals import FEW_EFFECTIVE, effective_note, effective_text
from laennec.evaluation.summary import figure_name, figure_text, is_percent
from laennec.rendering import escaped, plain_table
from laennec.study.published import geometry_table, spread
from laennec.study.results import training_cost
from laennec.untrusted import read_yaml

ROOT = Path(__file__).resolve().parents[1]
Content = dict[str, Any]
_MARKER = re.compile(r"(<!-- laennec:(\w+) (\S+)((?: \S+)*) -->\n).*?(<!-- laennec:end -->)", re.S)
_FIGURES = ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc")
_POOR = "with Poor Quality"


class Table(NamedTuple):
    """Heads, rows and the notes below them."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]
    notes: Sequence[str] = ()


def render(document: Path, check: bool = False) -> bool:
    """Render the tables of a document; whether it was as it should be."""
    before = document.read_text(encoding="utf-8")

    def rendered(match: re.Match[str]) -> str:
        opening, kind, file, options, closing = match.groups()
        if kind not in TABLES:
            raise SystemExit(f"{document}: unknown table laennec:{kind}; it can be {', '.join(TABLES)}")
        named = dict(option.split("=", 1) for option in options.split() if "=" in option)
        splits = next((option.split(";") for option in options.split() if "=" not in option), [None])
        content = _read(document.parent / file)
        chosen = {split: _chosen(content, split, named.get("only"), document) for split in splits}
        return f"{opening}{_markdown(kind, chosen, named.get('columns'), document)}\n{closing}"

    after = _MARKER.sub(rendered, before)
    if after != before and not check:
        document.write_text(after, encoding="utf-8")
    return after == before


def _markdown(kind: str, chosen: dict[str | None, Content], columns: str | None, document: Path) -> str:
    """The table of one split, or the rows of several."""
    tables = {split: TABLES[kind](content, split) for split, content in chosen.items()}
    first, *others = tables.values()
    if isinstance(first, str):
        return first
    heads, rows, notes = first
    if others:
        heads = [heads[0], "split", *heads[1:]]
        rows = [[row[0], split, *row[1:]] for split, table in tables.items() for row in table.rows]
        notes = [note for table in tables.values() for note in table.notes]
    if columns:
        places = [_place(name.replace("_", " "), heads, document) for name in columns.split(";")]
        heads, rows = [heads[place] for place in places], [[row[place] for place in places] for row in rows]
    compared = [head.partition(",")[0] for head in heads if "difference" in head]
    if not compared:
        notes = [note for note in notes if not note.startswith("Differences")]
    notes = [n for n in notes if not n.startswith("Differences of ") or n.split(" on ")[0][15:] in compared]
    notes = [*([data] if (data := _data(chosen)) else []), *notes]
    parts = [plain_table(heads, rows)] if heads else []
    return "\n\n".join([*parts, *([f"<small>{' '.join(dict.fromkeys(notes))}</small>"] if notes else [])])


def _place(asked: str, heads: Sequence[str], document: Path) -> int:
    found = [head for head in heads if head == asked] or [head for head in heads if asked in head]
    if len(found) != 1:
        raise SystemExit(f"{document}: columns= names {asked}; there are {', '.join(heads)}")
    return heads.index(found[0])


def _read(path: Path) -> Content:
    """The content of a result file; the entries of a folder of benchmark results, one row a split."""
    if not path.is_dir():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    try:
        entries = [read_result(file).model_dump() for file in sorted(path.glob("*.json"))]
    except InputError as error:
        raise SystemExit(str(error)) from None
    named = [f"{entry['entry']} ({entry['benchmark']})" for entry in entries]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise SystemExit(f"{path}: two entries are called {twice}; give one of them another name")
    rows = [
        {**scores, "name": entry["entry"], "split": f"{entry['benchmark']}/{split}", "entry": entry}
        for entry in entries
        for split, scores in entry["splits"].items()
        if scores
    ]
    return {"results": rows, "entries": entries}


def _chosen(content: Content, split: str | None, only: str | None, document: Path) -> Content:
    """The results of a split, and of the methods that a marker asks for."""
    if split is not None:
        content = {**content, "results": [row for row in content.get("results", ()) if row["split"] == split]}
    if only is None:
        return content
    known = {row["name"].replace(" ", "_"): row["name"] for row in content["results"]}
    if unknown := set(only.split(";")) - set(known):
        raise SystemExit(f"{document}: only= names {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = [known[name] for name in only.split(";")]
    return {**content, "results": [row for name in names for row in content["results"] if row["name"] == name]}


def _by_method(content: Content) -> dict[str, list[Content]]:
    found: dict[str, list[Content]] = {}
    for row in content["results"]:
        found.setdefault(row["name"], []).append(row)
    return found


def _data(chosen: dict[str | None, Content]) -> str:
    """Corpus, split, patients and selection set of the results, as far as the rows share them."""
    rows = {split: [r for r in c.get("results", ()) if "corpus_fingerprint" in r] for split, c in chosen.items()}
    shared = _shared([row for own in rows.values() for row in own])
    parts = [", ".join(shared)] if shared else []
    if len(rows) > 1:
        parts += [", ".join(fact for fact in _shared(own) if fact not in shared) for own in rows.values()]
    return f"{'; '.join(parts)}." if parts else ""


def _shared(rows: list[Content]) -> list[str]:
    facts = [
        {f"{row['corpus']} `{row['corpus_fingerprint'][:12]}`" for row in rows},
        {f"protocol {row['protocol']}" for row in rows},
        {f"split {row['split']}" for row in rows},
        {_counted(row) for row in rows},
        {f"split fingerprint `{row['split_fingerprint'][:12]}`" if row["split_fingerprint"] else "" for row in rows},
        {f"epochs and thresholds chosen on {row['selection_set']} patients" for row in rows},
        {f"**{row['stamp']}**" if row["stamp"] else "" for row in rows},
    ]
    return [fact for fact in (found.pop() for found in facts if len(found) == 1) if fact]


def _counted(row: Content) -> str:
    effective = ", ".join(f"{label} {number:.1f}" for label, number in row.get("effective_patients", {}).items())
    counted = f"{row['counts']['cycles']} cycles of {row['counts']['patients']} patients"
    return f"{counted} (effective: {effective})" if effective else counted


def _bounds(bounds: Sequence[float] | None, digits: int, sign: str = "") -> str:
    return "" if not bounds else f" [{bounds[0]:{sign}.{digits}f}, {bounds[1]:{sign}.{digits}f}]"


def _digits(figure: str) -> int:
    return 1 if is_percent(figure) else 3


def _cost(runs: list[Content]) -> list[str]:
    """Seconds and memory of what made a method's runs, as far as they were measured."""
    costs = [made for run in runs if (made := training_cost(run))]
    if not costs:
        return ["", ""]
    gpus = [run["cost"].get("gpu_seconds", 0.0) for run in runs if run.get("cost")]
    seconds = f"{statistics.mean(cpu for cpu, _ in costs):.0f}"
    seconds += f" ({statistics.mean(gpus):.0f})" if any(gpus) else ""
    return [seconds, f"{max(memory for _, memory in costs):.0f}"]


def _figure(figure: str, runs: list[Content], compared: Content) -> str:
    """A figure's mean ± standard deviation [interval]; of folds with other patients, that of all their cycles."""
    digits, cell = _digits(figure), compared.get(figure)
    if cell is None:
        text = spread((run["values"].get(figure) for run in runs), digits)
        return text + (_bounds(runs[0]["intervals"].get(figure), digits) if len(runs) == 1 else "")
    sd = "" if cell["sd"] is None else f" ± {cell['sd']:.{digits}f}"
    return f"{cell['mean']:.{digits}f}{sd}{_bounds(cell['interval'], digits)}"


def _size(runs: list[Content]) -> str:
    """Cycles (patients) that are scored: those of the first seed, of all its folds."""
    counts = [run["counts"] for run in runs if run["seed"] == runs[0]["seed"]]
    counts = counts[:1] if all(count == counts[0] for count in counts) else counts
    cycles, patients = (sum(count[of] for count in counts) for of in ("cycles", "patients"))
    return f"{cycles} ({patients})"


def _difference(figure: str, cell: Content | None, tested: bool = True) -> str:
    """A paired difference with its interval and, where that is tested, its corrected p value."""
    if not cell or cell.get("difference") is None:
        return ""
    digits = _digits(figure)
    interval = _bounds(cell["difference_interval"], digits, "+")
    return f"{cell['difference']:+.{digits}f}{interval}" + (f", p {p_text(cell['p_holm'])}" if tested else "")


def _study(content: Content, split: str | None) -> Table:
    runs, methods = _by_method(content), content["methods"][split]
    figures = list((content.get("study") or {}).get("figures") or _FIGURES)
    if not set(figures) & set(content["results"][0]["values"]):
        figures = ["accuracy", "uar"]  # classes other than crackle and wheeze
    costs = {name: _cost(own) for name, own in runs.items()}
    heads = ["method", "seeds", "runs", "cycles (patients)", *(figure_name(figure) for figure in figures)]
    differences = ("roc_auc_macro", "icbhi.Score") if methods["baseline"] else ()
    heads += [f"{name}, difference from {methods['baseline']}" for name in ("mean AUROC", "ICBHI Score") if differences]
    heads.append("minutes to train")
    known = any(any(cells) for cells in costs.values())
    behind = {name: cell.get("effective") for cells in methods["figures"].values() for name, cell in cells.items()}
    earlier = not all(behind.values())  # of a version with bootstrap intervals
    least = min(min((run.get("effective_patients") or {"": 0}).values()) for own in runs.values() for run in own)
    tested = not earlier or least >= FEW_EFFECTIVE
    rows = []
    for name, own in runs.items():
        compared = methods["figures"].get(name, {})
        seeds = ", ".join(dict.fromkeys(str(run.get("seeds", run["seed"])) for run in own))
        cells = [_figure(figure, own, compared) for figure in figures]
        cells += [_difference(figure, compared.get(figure), tested) for figure in differences]
        times = [run["timings"]["total"] / 60 for run in own if {"training", "total"} <= {*run["timings"]}]
        minutes = f"{statistics.mean(times):.0f}" if times else ""
        rows.append([name, seeds, len(own), _size(own), *cells, minutes, *(costs[name] if known else ())])
    if not earlier:
        effective = ", ".join(f"{figure_name(name)} {number:.1f}" for name, number in behind.items() if name in figures)
        notes = ["Mean over runs ± their standard deviation [95 % interval]."]
        if any(len({run.get("fold") for run in own if run["seed"] == own[0]["seed"]}) > 1 for own in runs.values()):
            notes = ["Each patient is scored once: predictions of the folds are pooled [95 % interval]."]
            if any("±" in str(cell) for row in rows for cell in row):
                notes = [notes[0].replace("once:", "once with each seed:"), "± standard deviation over the seeds."]
        if not behind:  # nothing was compared
            of_method = {name: effective_text(own[0].get("effective_patients")) for name, own in runs.items()}
            effective = "; ".join(f"{name}: {text}" for name, text in of_method.items() if text)
        notes += [f"Effective patients ({split}): {effective}."] if effective else []
    else:
        notes = ["Mean over runs ± their standard deviation [95 % bootstrap interval over patients]."]
        notes += ["Such intervals are too narrow where few effective patients have the finding."]
    few = {name.removesuffix(".roc_auc"): n or 0.0 for name, n in behind.items() if name.endswith(".roc_auc")}
    if not few or earlier:  # the smallest of the methods
        few = {}
        for own in runs.values():
            for label, number in (own[0].get("effective_patients") or {}).items():
                few[label] = min(number, few.get(label, number))
    if caution := effective_note(few):
        notes += [f"{caution[0].upper()}{caution[1:]} ({split}{'' if behind else ', the method with the fewest'})."]
    if differences:
        every = methods["figures"]
        if earlier:
            _add_power(every)
        each = "" if methods["baseline"] in every else ", each from that with the row's other settings,"
        beside = [every[name] for name in runs if name in every]
        power = {
            "mean AUROC": power_text([cells["roc_auc_macro"] for cells in beside], "{:.3f}".format),
            "ICBHI Score": power_text([cells["icbhi.Score"] for cells in beside], "{:.1f}".format),
        }
        corrected = (
            "; p is corrected over all methods of the study (Holm), intervals are not"
            if tested
            else f", not tested on {split} (too few effective patients)"
        )
        notes += [f"Differences{each} are paired by patients{corrected}."]
        if tested:
            about = "power: about " if earlier else "power: "
            said = {name: text.replace("power: ", about) for name, text in power.items() if text}
            notes += [f"Differences of {name} on {split}: {text}." for name, text in said.items()]
    return Table([*heads, *(("training, s of CPU (GPU)", "memory, MB") if known else ())], rows, notes)


def _add_power(cells: Mapping[str, Mapping[str, Content]]) -> None:
    """Add smallest p and detectable difference to cells of earlier results, of a bootstrap of 1000 draws."""
    for figure in ("roc_auc_macro", "icbhi.Score"):
        compared = [own[figure] for own in cells.values() if own.get(figure, {}).get("p") is not None]
        for cell in compared:
            cell.setdefault("smallest_p", min(1.0, 2 / 1001 * len(compared)))
            cell.setdefault("detectable", _detectable(cell["difference_interval"], len(compared)))


def _detectable(interval: Sequence[float], tests: int = 1) -> float:
    """The difference found with a power of 80 % at 5 %, corrected for so many tests, from the width of its interval."""
    z = statistics.NormalDist().inv_cdf
    return (interval[1] - interval[0]) / 2 * (z(1 - 0.025 / tests) + z(0.8)) / z(0.975)


def _gap(content: Content, split: str | None) -> Table:
    """How much higher the split that chose epoch and thresholds scores than an unused one."""
    chosen = content["results"][0]["selection_set"]
    (unused,) = set(content["methods"]) - {chosen}
    runs = {(row["split"], row["seed"]): row["values"] for row in content["results"]}
    seeds = sorted({seed for _, seed in runs})
    rows = []
    for figure in content["study"]["figures"]:
        digits = _digits(figure)
        sides = [[runs[of, seed][figure] for seed in seeds] for of in (chosen, unused)]
        gaps = [high - low for high, low in zip(*sides, strict=True)]
        error = statistics.stdev(gaps) / len(gaps) ** 0.5
        gap = f"{statistics.mean(gaps):+.{digits}f} ± {error:.{digits}f}"
        rows.append([figure_name(figure), *(spread(side, digits) for side in sides), gap])
    heads = ["score", "on the patients that chose epoch and thresholds", "on unused patients", "difference"]
    return Table(heads, rows, [f"Mean over {len(seeds)} draws ± standard deviation; difference ± standard error."])


def _smoothing(content: Content, split: str | None) -> Table:
    rows = []
    for row in content["results"]:
        if (section := row.get("smoothing")) is None:
            continue
        cells = []
        for name in ("icbhi.Score", "roc_auc_macro"):
            before, after = (figure_text(name, section["figures"][name][side]["value"]) for side in ("without", "with"))
            gain = section["figures"][name]["difference"]
            cells += [f"{before} → {after}", figure_text(name, gain["value"], gain["interval"], "+")]
        rows.append([row["name"], row["seed"], f"{section['strength']:g}", *cells])
    note = (
        "Each prediction mixed with the mean of its recording, at a strength chosen on validation patients; without → "
        "with, and the difference with its 95 % bootstrap interval paired by patients, which is too narrow where few "
        "effective patients have the finding."
    )
    heads = ["method", "seed", "strength", "ICBHI Score", "ICBHI Score, difference", "mean AUROC"]
    return Table([*heads, "mean AUROC, difference"], rows, [note])


def _baselines(content: Content, split: str | None) -> Table:
    rows = []
    for baseline in content["results"][0]["floors"]:
        values = [(baseline["values"].get(name), _digits(name)) for name in _FIGURES]
        rows.append([baseline["name"], *("" if value is None else f"{value:.{d}f}" for value, d in values)])
    return Table(["baseline", *(figure_name(name) for name in _FIGURES)], rows)


def _official(content: Content, split: str | None) -> Table:
    columns = [*((task, "Score") for task in ("1-1", "1-2", "2-1", "2-2")), ("total", ""), (f"2-1 {_POOR}", "Score")]
    columns += [(f"2-1 {_POOR}", "poor_quality_recall"), (f"2-2 {_POOR}", "Score")]
    rows = []
    for name, runs in _by_method(content).items():
        scored = [run["official"] for run in runs if run.get("official")]
        cells = [spread([s.get(t) if t == "total" else (s.get(t) or {}).get(f) for s in scored], 1) for t, f in columns]
        rows += [[name, len(runs), *cells]] if scored else []
    heads = ["method", "runs", "1-1", "1-2", "2-1", "2-2", "total"]
    heads += ["2-1, Poor Quality predicted", "its recall", "2-2, predicted"]
    note = (
        "SPRSound's Score of each task, mean over runs ± their standard deviation; Poor Quality is predicted "
        "only where a column says so. Recordings whose truth is Poor Quality enter neither SE nor SP: predicting it "
        "can only cost."
    )
    return Table(heads, rows, [note])


def _audit(content: Content, split: str | None) -> Table:
    rows, seconds = [], set()
    for name, runs in _by_method(content).items():
        for label in sorted({label for run in runs for label in run.get("within_lengths") or {}}):
            figure = f"{label}.roc_auc"
            blind = [run["duration_blind"] for run in runs if run.get("duration_blind")]
            seconds |= {entry["seconds"] for entry in blind}
            cells = [
                spread((run["values"].get(figure) for run in runs), 3),
                spread((run["within_lengths"].get(label) for run in runs if run.get("within_lengths")), 3),
                spread((entry["values"].get(figure) for entry in blind), 3),
            ]
            for baseline in ("event length", "level", "age, sex, location"):
                found = {b["values"].get(figure) for run in runs for b in run["floors"] if b["name"] == baseline}
                known = sorted(found - {None})
                cells.append(f"{statistics.mean(known):.3f}" if known else "")
            rows.append([name, label, *cells])
    lengths = [f"{s:g} s" for s in sorted(seconds)]
    length = ", ".join(lengths) if len(lengths) < 4 else f"{lengths[0]} to {lengths[-1]}, by split,"
    middle = f"; the middle is {length} of every cycle" if seconds else ""
    heads = ["method", "label", "all cycles", "within similar lengths", "middle of every cycle"]
    heads += ["length alone", "level alone", "age, sex, location alone"]
    note = (
        f"AUROC, mean over runs ± their standard deviation{middle}. Length, level, and age, sex and location alone are "
        "shortcut baselines: small models without the content of the sound."
    )
    return Table(heads, rows, [note])


def _reliability(content: Content, split: str | None) -> Table:
    rows = []
    for row in content["rows"]:
        seen = "; ".join(f"{name}: {value}" for name, value in row["figures"].items())
        machine, version = row["hardware"], row["versions"]
        when = (
            f"{row['date']}, {row['seconds'] / 60:.0f} min; {machine['processor']}, {machine['cores']} cores; Python "
            f"{version['python']}, torch {version['torch']}, transformers {version['transformers']}"
        )
        cells = [row["promise"], "yes" if row["held"] else "**no**", seen, f"`{row['command']}`", when]
        rows.append([cell.replace("|", "&#124;") for cell in cells])
    return Table(["claim", "passed", "evidence", "command", "when"], rows)


def _operating_point(content: Content, split: str | None) -> Table:
    content = content | content["tables"][split] if split else content
    columns = [c for c in ("all patients", "patients with findings", "mean AUROC") if c in content["rules"][0]]
    rows = []
    for row in content["rules"]:
        cells = [row["rule"], row["words"]]
        for name in columns:
            found, digits = row[name], 3 if name == "mean AUROC" else 1
            gain = f" ({found['gain']:+.{digits}f}, {found['folds ahead']} of {content.get('folds', 5)} folds ahead)"
            gain = "" if row["rule"] == content["base"] else gain
            cells.append(f"{found['score']:.{digits}f} ± {found['between folds']:.{digits}f}{gain}")
        rows.append(cells)
    of_task = split is not None and split[0].isdigit()
    score = f"Score of SPRSound's task {split}" if of_task else "ICBHI Score"
    counted = content.get("rows") or f"{content['events']} events"
    note = (
        f"{score} ± standard deviation between folds; in brackets the difference from {content['base']}. {counted} of "
        f"{content['patients']} patients, draws of the folds: {content['seeds']}, {content['date']}."
    )
    return Table(["rule", "input" if of_task else "thresholds", *columns], rows, [note])


def _leaderboard(content: Content, split: str | None) -> Table:
    """The entries of one test split, the highest ICBHI Score first."""
    rows = sorted(content["results"], key=lambda row: -row["values"][SCORE])
    if not rows:
        return Table([], [], ["No entry yet."])
    labels, cells = ("crackle", "wheeze"), []
    for row in rows:
        values, bounds, cost = row["values"], row["intervals"], row["entry"]["cost"]
        figures = (SCORE, "icbhi.Sp", "icbhi.Se", *(f"{label}.roc_auc" for label in labels))
        shown = [figure_text(f, values[f], bounds.get(f)) if f in values else "" for f in figures]
        highest = max(row["baselines"], key=lambda baseline: baseline["values"][SCORE], default=None)
        gain = highest and figure_text(SCORE, highest["difference"], highest["difference_interval"], "+")
        blind = [_by_label(row[part], labels) for part in ("within_lengths", "calibration_error")]
        middle = "" if row["middle"] is None else figure_text(SCORE, row["middle"][SCORE])
        seconds = cost and ("on a GPU" if cost["cpu_s_per_hour"] is None else cost["cpu_s_per_hour"])
        paid = [f"{cost['parameters']:,}", f"{seconds} ({escaped(cost['processor'])})"] if cost else ["", ""]
        cells.append([escaped(row["name"]), *shown, gain or "", middle, *blind, *paid])
    first = rows[0]
    known = [f"{b['name']} {figure_text(SCORE, b['values'][SCORE])}" for b in first["baselines"]]
    behind = ", ".join(f"{label} {number:.1f}" for label, number in first["effective_patients"].items())
    note = (
        f"{sum(map(sum, first['confusion']))} cycles of {first['patients']} patients (effective: {behind}); split "
        f"fingerprint `{first['fingerprint'][:12]}`. [95 % interval over patients]. Baselines (ICBHI Score): "
        f"{', '.join(known)}. Empty: cannot be computed from a file, or from predictions of 0 and 1."
    )
    heads = ["entry", "ICBHI Score", "Sp", "Se", "crackle AUROC", "wheeze AUROC", "above the highest baseline"]
    heads += ["ICBHI Score, middle of every cycle", "AUROC within similar lengths (crackle, wheeze)"]
    heads += ["calibration error (crackle, wheeze)", "parameters", "CPU s per hour of sound"]
    return Table(heads, cells, [note])


def _by_label(values: Content | None, labels: Sequence[str]) -> str:
    return "" if values is None else ", ".join("" if values[n] is None else f"{values[n]:.3f}" for n in labels)


def _entries(content: Content, split: str | None) -> Table:
    """What was entered, and how it was chosen."""
    rows = []
    for entry in content["entries"]:
        source, missing = entry["source"], [f", without {n}" for n, scores in entry["splits"].items() if not scores]
        version = source["revision"] or f"sha256 {source['sha256'][:12]}"
        where = f"{escaped(source['origin'] or source['name'])} ({source['kind']}, {version})"
        declared = [escaped(entry[name]) for name in ("decisions", "trained_on", "selection")]
        rows.append([escaped(entry["entry"]), entry["benchmark"] + "".join(missing), where, *declared])
        rows[-1].append(f"laennec {escaped(entry['laennec'])}, {escaped(entry['date'])}")
    heads = ["entry", "benchmark", "source", "decided by", "trained on", "chosen on", "scored by"]
    return Table(heads, rows)


def _published(content: Content, split: str | None) -> Table:
    """Published ICBHI Scores, of studies and others, each with its split and the data its epoch was chosen on."""
    figures = list(content["figures"])
    for study in content["studies"]:
        published = read_yaml(ROOT / study)["published"]
        for method, values in published["values"].items():
            if SCORE in values:
                own = {name: values.get(name, published[name]) for name in ("split", "selection")}
                figures.append({"method": method, "source": published["source"], **own, **values})
    columns = ("method", SCORE, "icbhi.Sp", "icbhi.Se", "split", "selection", "source")
    figures.sort(key=lambda row: (row["split"], row["method"]))
    rows = [[escaped(row.get(name, "")) for name in columns] for row in figures]
    heads = ["method", "ICBHI Score, as printed", "Sp", "Se", "split", "epoch chosen on", "source"]
    return Table(heads, rows)


def _new_site(content: Content, split: str | None) -> Table:
    rows = []
    for row in content["rules"]:
        cells = [f"{row['mean'][name]:.1f} ± {row['sd'][name]:.1f}" for name in ("ICBHI Score", "any-abnormal")]
        rows.append([row["rule"], row["words"], *cells])
    note = (
        f"Mean over {content['draws']} draws of {content['fitted_on']} of the {content['patients']} adults ± standard "
        f"deviation; the others are scored (all adults: {content['cycles']} cycles)."
    )
    return Table(["model, thresholds", "fitted for", "ICBHI Score", "any-abnormal Score"], rows, [note])


def _active_learning(content: Content, split: str | None) -> Table:
    def cell(found: Content, digits: int) -> str:
        low, high = found["interval"]
        return f"{found['mean']:.{digits}f} [{max(low, 0):.{digits}f}, {high:.{digits}f}]"

    rows = []
    for row in sorted(content["results"], key=lambda row: row["labels"]["above chance"]["mean"]):
        limit = "no limit" if row["limit"] is None else f"at most {row['limit']}"
        kinds = ("score", "above chance")
        cells = [cell(row[part][kind], digits) for kind in kinds for part, digits in (("labels", 0), ("of_random", 2))]
        rows.append([row["rule"], limit, *cells])
    full, pool = content["full"], content["pool"]
    note = (
        f"Mean over {content['seeds']} splits of the {content['patients']} patients (in each {content['draws']} draws "
        f"of the first {content['first']} events), [95 % interval over splits, Student's t]. All labels of the pool "
        f"({min(pool)} to {max(pool)} events): mean AUROC {cell(full, 3)}. {content['date']}."
    )
    share = f"{100 * content['share']:g} %"
    heads = ["rule", "events of a patient in a session", f"labels for {share} of the mean AUROC", "ratio to random"]
    heads += [f"labels for {share} of its distance from chance", "ratio to random"]
    return Table(heads, rows, [note])


def _head_losses(content: Content, split: str | None) -> Table:
    heads = ["method", "crackle AUROC", "wheeze AUROC", "mean AUROC, difference from BCE"]
    heads += [f"within {content['margin']:g} of BCE", "folds ahead"]
    chosen = "chosen" in content["methods"][0]
    heads.append("settings, chosen in folds" if chosen else "search and training, s of CPU")
    rows = []
    for row in content["methods"]:
        cells = [row["method"], *(f"{row[label]:.3f}" for label in ("crackle", "wheeze"))]
        if "difference" in row:
            low, high = row["interval"]
            cells.append(f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]")
            cells.append("yes" if row["within margin"] else "not shown")
            cells.append(f"{row['folds ahead']} of {content['folds']}, p {row['p']:.2f}")
        else:
            cells += [""] * 3
        if chosen:
            cells.append("; ".join(f"{name}: {folds}" for name, folds in row["chosen"].items()))
        else:
            cells.append(f"{row['cpu_seconds']:.0f}")
        rows.append(cells)
    smallest = next(row["smallest p"] for row in content["methods"] if "smallest p" in row)
    found = [_detectable(row["interval"]) for row in content["methods"] if "interval" in row]
    detectable = " to ".join(dict.fromkeys(f"{bound(found):.3f}" for bound in (min, max)))
    seeds = "one seed" if content["seeds"] == 1 else f"{content['seeds']} seeds"
    covered = "patients" if content["seeds"] == 1 else "patients and seeds"
    note = (
        f"AUROC on unseen patients, mean over {content['folds']} folds of {content['patients']} patients "
        f"({content['events']} events; effective patients with the rarer finding: {content['effective']:.1f}) and "
        f"{seeds}. Differences are paired, [95 % interval over {covered}]; p: exact permutation test of the signs of "
        f"the differences of the folds, at the least {smallest:.2f}. Smallest difference whose interval excludes 0 "
        f"with 80 % power: {detectable} (not corrected for several losses). {content['date']}."
    )
    return Table(heads, rows, [note])


def _last_layers(content: Content, split: str | None) -> Table:
    """AUROCs of the methods on one set of patients, given as the split."""
    part = (split or "").replace("_", " ")
    rows, widths = [], []
    for row in content["methods"]:
        cells = [row["method"]]
        for label in ("crackle", "wheeze"):
            found = row[part][label]
            cells.append(figure_text(f"{label}.roc_auc", found["auroc"], found["interval"]))
            gain = found.get("difference")
            between = found.get("difference_interval")
            widths += [_detectable(between)] if between else []
            cells.append("" if gain is None else figure_text(f"{label}.roc_auc", gain, between, "+"))
        rows.append(cells)
    first, detectable = content["methods"][0][part], f"{min(widths):.3f} to {max(widths):.3f}"
    behind = ", ".join(f"{name} {number:.1f}" for name, number in first["effective_patients"].items())
    note = (
        f"{part}: {first['cycles']} cycles of {first['patients']} patients (effective: {behind}). Mean over "
        f"{content['seeds']} seeds [95 % interval over patients]. Differences are not tested; the smallest whose "
        f"interval excludes 0 with 80 % power: {detectable}. {content['date']}."
    )
    if caution := effective_note(first["effective_patients"]):
        note += f" {caution[0].upper()}{caution[1:]}."
    heads = [f"{label} AUROC{what}" for label in ("crackle", "wheeze") for what in ("", ", difference")]
    return Table(["method", *heads], rows, [note])


def _rows(content: Content) -> list[Row]:
    return [Row(**row) for row in content["rows"]]


def _cost_page(content: Content, split: str | None) -> str:
    """What jobs cost: rates of a CPU from the given file, those of a GPU from the file beside it."""
    gpu = _read(ROOT / "docs/results/bench_gpu.json")
    machine = content["hardware"] | {"gpus": gpu["hardware"]["gpus"]}
    measured = [row for row in _rows(content) if row.ours is not None]
    return as_page([*measured, *_rows(gpu)], content | {"hardware": machine})


TABLES: dict[str, Callable[[Content, str | None], Table | str]] = {
    "study": _study,
    "gap": _gap,
    "smoothing": _smoothing,
    "baselines": _baselines,
    "official": _official,
    "audit": _audit,
    "reliability": _reliability,
    "operating_point": _operating_point,
    "new_site": _new_site,
    "last_layers": _last_layers,
    "head_losses": _head_losses,
    "active_learning": _active_learning,
    "leaderboard": _leaderboard,
    "entries": _entries,
    "published": _published,
    "geometry": lambda content, split: geometry_table(content),
    "bench": lambda content, split: as_table(_rows(content), content),
    "cost": _cost_page,
}


def documents() -> list[Path]:
    """Every Markdown file that git knows."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def main() -> int:
    """Render, or check; 1 where a check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    changed = [path for path in options.documents or documents() if not render(path, options.check)]
    for path in changed:
        print(f"{path}: {'differs from its result files' if options.check else 'rendered'}")
    return int(bool(changed) and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
