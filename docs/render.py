"""Render the tables of the documents from result files: `python -m docs.render [--check] [DOCUMENT.md ...]`.

A document names a table by `<!-- laennec:KIND FILE [SPLIT] [only=a_method;another] -->` and ends it by
`<!-- laennec:end -->`; FILE is relative to the document, and a method's name is written with `_` for a space. KIND is a
key of `TABLES`. FILE can be a folder of result files of benchmarks; SPLIT is then BENCHMARK/SPLIT. Without documents it
renders every Markdown file of the repository. `--check` changes nothing and exits with 1 where a table differs from its
file.
"""

import argparse
import json
import re
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost import as_page

from benchmarks import Row, as_table
from laennec.benchmark.result_file import SCORE, read_result
from laennec.evaluation.comparison.statistics import p_text, power_text
from laennec.evaluation.summary import figure_name, figure_text, is_percent
from laennec.rendering import escaped, plain_table
from laennec.study.published import geometry_table, spread
from laennec.study.results import training_cost
from laennec.untrusted import read_yaml

ROOT = Path(__file__).resolve().parents[1]
Content = dict[str, Any]
_MARKER = re.compile(r"(<!-- laennec:(\w+) (\S+)((?: \S+)*) -->\n).*?(<!-- laennec:end -->)", re.S)
_COST_HEADS = ("training, s of CPU (GPU)", "memory, MB")
_FIGURES = (("icbhi.Score", 1), ("crackle.roc_auc", 3), ("wheeze.roc_auc", 3))
_POOR = "with Poor Quality"


def render(document: Path, check: bool = False) -> bool:
    """Render the tables of a document; whether it was as it should be."""
    before = document.read_text(encoding="utf-8")

    def rendered(match: re.Match[str]) -> str:
        opening, kind, file, options, closing = match.groups()
        if kind not in TABLES:
            raise SystemExit(f"{document}: unknown table laennec:{kind}; it can be {', '.join(TABLES)}")
        content = _read(document.parent / file)
        split, content = _chosen(content, options.split(), document)
        return f"{opening}{TABLES[kind](content, split)}\n{closing}"

    after = _MARKER.sub(rendered, before)
    if after != before and not check:
        document.write_text(after, encoding="utf-8")
    return after == before


def _read(path: Path) -> Content:
    """The content of a result file; the entries of a folder of benchmark results, one row a split."""
    if not path.is_dir():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    entries = [read_result(file).model_dump() for file in sorted(path.glob("*.json"))]
    rows = [
        {**scores, "name": entry["entry"], "split": f"{entry['benchmark']}/{split}", "entry": entry}
        for entry in entries
        for split, scores in entry["splits"].items()
        if scores
    ]
    return {"results": rows, "entries": entries}


def _chosen(content: Content, options: list[str], document: Path) -> tuple[str | None, Content]:
    """The split that a marker names, and the results of the methods that it asks for."""
    split = next((option for option in options if not option.startswith("only=")), None)
    asked = next((option.removeprefix("only=") for option in options if option.startswith("only=")), None)
    if split is not None:
        content = {**content, "results": [row for row in content["results"] if row["split"] == split]}
    if asked is not None:
        known = {row["name"].replace(" ", "_"): row["name"] for row in content["results"]}
        if unknown := set(asked.split(";")) - set(known):
            raise SystemExit(f"{document}: only= names {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        names = [known[name] for name in asked.split(";")]
        content["results"] = [row for name in names for row in content["results"] if row["name"] == name]
        content["methods"] = {
            part: {**compared, "figures": {n: compared["figures"][n] for n in names if n in compared["figures"]}}
            for part, compared in content.get("methods", {}).items()
        }
    return split, content


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> str:
    text = plain_table(heads, rows)
    return f"{text}\n\n{note}" if note else text


def _by_method(content: Content) -> dict[str, list[Content]]:
    found: dict[str, list[Content]] = {}
    for row in content["results"]:
        found.setdefault(row["name"], []).append(row)
    return found


def _bounds(bounds: Sequence[float] | None, digits: int, sign: str = "") -> str:
    return "" if not bounds else f" [{bounds[0]:{sign}.{digits}f}, {bounds[1]:{sign}.{digits}f}]"


def _difference(cell: Content | None) -> list[str]:
    """A paired difference with its interval, and its corrected p value."""
    if not cell or cell.get("difference") is None:
        return ["", ""]
    return [f"{cell['difference']:+.3f}{_bounds(cell.get('difference_interval'), 3, '+')}", p_text(cell["p_holm"])]


def _cost(runs: list[Content]) -> list[str]:
    """Seconds and memory of what made a method's runs, as far as they were measured."""
    costs = [made for run in runs if (made := training_cost(run))]
    if not costs:
        return ["", ""]
    gpus = [run["cost"].get("gpu_seconds", 0.0) for run in runs if run.get("cost")]
    seconds = f"{statistics.mean(cpu for cpu, _ in costs):.0f}"
    seconds += f" ({statistics.mean(gpus):.0f})" if any(gpus) else ""
    return [seconds, f"{max(memory for _, memory in costs):.0f}"]


def _scores(content: Content, split: str | None) -> str:
    figures = (*_FIGURES[:1], ("icbhi.Sp", 1), ("icbhi.Se", 1), *_FIGURES[1:], ("sprsound.Score", 1))
    rows = []
    for row in content["results"]:
        cells = []
        for name, digits in figures:
            value = row["values"].get(name)
            interval = _bounds(row["intervals"].get(name), digits)
            cells.append("not defined" if value is None else f"{value:.{digits}f}{interval}")
        rows.append([row["name"], row.get("seeds", row["seed"]), *cells])
    first = content["results"][0]
    counts = first["counts"]
    note = (
        f"{first['corpus']} (fingerprint `{first['corpus_fingerprint'][:12]}`), protocol {first['protocol']}, split "
        f"{first['split']}: {counts['cycles']} cycles of {counts['patients']} patients; epochs, thresholds and "
        f"temperatures chosen on {first['selection_set']} patients; [95 % interval, 1000 draws of patients]."
        + (f" **{first['stamp']}.**" if first["stamp"] else "")
    )
    heads = ["recipe", "seed", "ICBHI Score", "Sp", "Se", "crackle AUROC", "wheeze AUROC", "SPRSound Score"]
    return _markdown(heads, rows, note)


def _means(content: Content, split: str | None) -> str:
    methods = content["methods"][split]
    baseline, figures, runs = methods["baseline"], methods["figures"], _by_method(content)
    costs = {name: _cost(runs[name]) for name in figures}
    known = any(any(cells) for cells in costs.values())
    rows = []
    for name in sorted(figures, key=lambda name: -figures[name]["roc_auc_macro"]["mean"]):
        cells = []
        for figure, digits in _FIGURES:
            cell = figures[name][figure]
            spread = "" if cell["sd"] is None else f" ± {cell['sd']:.{digits}f}"
            cells.append(f"{cell['mean']:.{digits}f}{spread}{_bounds(cell['interval'], digits)}")
        cells += _difference(figures[name]["roc_auc_macro"]) if baseline else []
        cells += costs[name] if known else []
        seeds = ", ".join(dict.fromkeys(str(row.get("seeds", row["seed"])) for row in runs[name]))
        rows.append([name, seeds, *cells])
    heads = ["recipe", "seeds", "ICBHI Score", "crackle AUROC", "wheeze AUROC"]
    heads += [f"mean AUROC, difference from {baseline}", "p (Holm)"] if baseline else []
    note = (
        "Mean over seeds ± their standard deviation, [95 % interval over draws of patients and of seeds], in the order "
        "of the mean AUROC of the labels; the difference in it is paired by patients, its p value corrected over all "
        "rows (Holm)."
    )
    return _markdown([*heads, *(_COST_HEADS if known else ())], rows, note)


def _classes(content: Content, split: str | None) -> str:
    rows = []
    for name, runs in _by_method(content).items():
        seeds, folds = (sorted({row.get(key, 0) for row in runs}) for key in ("seed", "fold"))
        cells = []
        for figure in ("accuracy", "uar"):
            by_seed = [[row["values"].get(figure) for row in runs if row["seed"] == seed] for seed in seeds]
            cells.append(spread([statistics.mean(v) for v in by_seed if v and None not in v], 1) or "not defined")
        rows.append([name, ", ".join(map(str, seeds)), ", ".join(map(str, folds)), *cells])
    note = "Mean over the folds of each seed; of these the mean and the standard deviation over seeds."
    return _markdown(["recipe", "seeds", "folds", "accuracy", "unweighted average recall"], rows, note)


def _smoothing(content: Content, split: str | None) -> str:
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
        "with, and the difference with its 95 % interval over the same draws of patients."
    )
    return _markdown(
        ["recipe", "seed", "strength", "ICBHI Score", "difference", "mean AUROC", "difference"], rows, note
    )


def _baselines(content: Content, split: str | None) -> str:
    rows = []
    for baseline in content["results"][0]["floors"]:
        values = [(baseline["values"].get(name), digits) for name, digits in _FIGURES]
        rows.append([baseline["name"], *("" if value is None else f"{value:.{d}f}" for value, d in values)])
    return _markdown(["baseline", "ICBHI Score", "crackle AUROC", "wheeze AUROC"], rows)


def _runs(content: Content, split: str | None) -> str:
    rows = []
    for row in content["results"]:
        epoch = "" if row["best_epoch"] is None else f"{row['best_epoch']:g}"
        scored = "once" if row["scored"] == 1 else f"{row['scored']} times"
        times = [f"{row['timings'][step]:.0f} s" for step in ("training", "total")]
        rows.append([row["name"], row.get("seeds", row["seed"]), f"`{row['commands'][0]}`", epoch, *times, scored])
    machine, version = content["results"][0]["hardware"], content["results"][0]["versions"]
    note = (
        f"{machine['processor']}, {machine['torch_threads']} thread; torch {version['torch']}, transformers "
        f"{version['transformers']}. Times are of a shared machine; a cache filled by an earlier run shortens the run."
    )
    return _markdown(["recipe", "seed", "command", "best epoch", "training", "whole run", "scored"], rows, note)


def _study(content: Content, split: str | None) -> str:
    runs, study = _by_method(content), content.get("study") or {}
    figures = list(study.get("figures") or [name for name, _ in _FIGURES])
    compared = (content.get("methods") or {}).get(split) or {}
    baseline = compared.get("baseline")
    heads = ["method", "runs", *(figure_name(figure) for figure in figures)]
    heads += [f"mean AUROC, difference from {baseline}", "p (Holm)"] if baseline else []
    rows = []
    for name, own in runs.items():
        cells = [spread((run["values"].get(f) for run in own), 1 if is_percent(f) else 3) for f in figures]
        cells += _difference(compared["figures"].get(name, {}).get("roc_auc_macro")) if baseline else []
        rows.append([name, len(own), *cells, *_cost(own)])
    note = "Mean over runs ± their standard deviation"
    if baseline:
        each = "" if baseline in runs else ", each from that with the row's other settings,"
        note += f"; differences{each} are paired by patients, [95 % interval], p corrected over all rows (Holm)"
        cells = [found["roc_auc_macro"] for found in compared["figures"].values() if "roc_auc_macro" in found]
        note += "".join(f". {text[0].upper()}{text[1:]}" for text in [power_text(cells, "{:.3f}".format)] if text)
    return _markdown([*heads, *_COST_HEADS], rows, f"{note}.")


def _leakage(content: Content, split: str | None) -> str:
    """What a split of random cycles adds to each method, in points."""
    study, runs = content["study"], _by_method(content)
    figures, rows = study["figures"], []
    for name, places in study["methods"].items():
        honest = name.replace(places["splits"], "patients")
        if places["splits"] == "patients" or name not in runs or honest not in runs:
            continue
        cells = []
        for figure in figures:
            digits, by = (1 if is_percent(figure) else 3), [runs[which] for which in (name, honest)]
            leaky, fair = (statistics.mean(run["values"][figure] for run in of) for of in by)
            cells.append(f"{leaky:.{digits}f} - {fair:.{digits}f} = **{leaky - fair:+.{digits}f}**")
        rows.append([name.removesuffix(f", {places['splits']}"), len(runs[name]), *cells])
    note = "Split by random cycles minus split by patient: same recipe, same corpus, other test cycles."
    return _markdown(["method", "runs", *(figure_name(figure) for figure in figures)], rows, note)


def _official(content: Content, split: str | None) -> str:
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
        "SPRSound's Score of each task, mean over runs ± their standard deviation; Poor Quality is never predicted but "
        "in the last three columns. Recordings whose truth is Poor Quality enter neither SE nor SP: predicting it can "
        "only cost."
    )
    return _markdown(heads, rows, note)


def _audit(content: Content, split: str | None) -> str:
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
        f"AUROC, mean over runs ± their standard deviation{middle}. The last three columns are shortcut baselines: "
        "small models without the content of the sound."
    )
    return _markdown(heads, rows, note)


def _geometry(content: Content, split: str | None) -> str:
    return geometry_table(content)


def _bench(content: Content, split: str | None) -> str:
    return as_table([Row(**row) for row in content["rows"]], content)


def _cluster_cost(content: Content, split: str | None) -> str:
    return as_page([Row(**row) for row in content["rows"]], content)


def _reliability(content: Content, split: str | None) -> str:
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
    return _markdown(["promise", "held", "seen", "by", "when"], rows)


def _operating_point(content: Content, split: str | None) -> str:
    rows, groups = [], ("all patients", "patients with findings")
    for row in content["rules"]:
        cells = [row["rule"], row["words"]]
        for group in groups:
            found = row[group]
            gain = (
                ""
                if row["rule"] == "one split"
                else f" ({found['gain']:+.1f}, {found['folds ahead']} of 5 folds ahead)"
            )
            cells.append(f"{found['score']:.1f} ± {found['between folds']:.1f}{gain}")
        rows.append(cells)
    note = (
        "ICBHI Score ± standard deviation between outer folds; in brackets the difference from one split. "
        f"{content['events']} events of {content['patients']} patients, {content['seeds']} draws of the folds, "
        f"{content['date']}."
    )
    return _markdown(["rule", "thresholds", *groups], rows, note)


def _leaderboard(content: Content, split: str | None) -> str:
    """The entries of one test split, the highest ICBHI Score first."""
    rows = sorted(content["results"], key=lambda row: -row["values"][SCORE])
    if not rows:
        return "No entry yet."
    labels, cells = ("crackle", "wheeze"), []
    for row in rows:
        values, bounds, cost = row["values"], row["intervals"], row["entry"]["cost"]
        figures = (SCORE, "icbhi.Sp", "icbhi.Se", *(f"{label}.roc_auc" for label in labels))
        shown = [figure_text(f, values[f], bounds.get(f)) if f in values else "" for f in figures]
        highest = max(row["baselines"], key=lambda baseline: baseline["values"][SCORE], default=None)
        gain = highest and figure_text(SCORE, highest["difference"], highest["difference_interval"], "+")
        blind = [_by_label(row[part], labels) for part in ("within_lengths", "calibration_error")]
        middle = "" if row["middle"] is None else figure_text(SCORE, row["middle"][SCORE])
        paid = [f"{cost['parameters']:,}", f"{cost['cpu_s_per_hour'] or 'on a GPU'}"] if cost else ["", ""]
        cells.append([escaped(row["name"]), *shown, gain or "", middle, *blind, *paid])
    first = rows[0]
    known = [f"{b['name']} {figure_text(SCORE, b['values'][SCORE])}" for b in first["baselines"]]
    behind = ", ".join(f"{label} {number:.1f}" for label, number in first["effective_patients"].items())
    machines = sorted({row["entry"]["cost"]["processor"] for row in rows if row["entry"]["cost"]})
    note = (
        f"{sum(map(sum, first['confusion']))} cycles of {first['patients']} patients (effective: {behind}); split "
        f"fingerprint `{first['fingerprint'][:12]}`. [95 % interval over patients]. Baselines (ICBHI Score): "
        f"{', '.join(known)}. Empty: not to be had from a file, or from predictions of 0 and 1."
        + (f" CPU time on {', '.join(map(escaped, machines))}." if machines else "")
    )
    heads = ["entry", "ICBHI Score", "Sp", "Se", "crackle AUROC", "wheeze AUROC", "above the highest baseline"]
    heads += ["ICBHI Score, middle of every cycle", "AUROC within similar lengths (crackle, wheeze)"]
    heads += ["calibration error (crackle, wheeze)", "parameters", "CPU s per hour of sound"]
    return _markdown(heads, cells, note)


def _by_label(values: Content | None, labels: Sequence[str]) -> str:
    return "" if values is None else ", ".join("" if values[n] is None else f"{values[n]:.3f}" for n in labels)


def _entries(content: Content, split: str | None) -> str:
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
    return _markdown(heads, rows)


def _published(content: Content, split: str | None) -> str:
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
    return _markdown(heads, rows)


def _new_site(content: Content, split: str | None) -> str:
    rows = []
    for row in content["rules"]:
        cells = [f"{row['mean'][name]:.1f} ± {row['sd'][name]:.1f}" for name in ("ICBHI Score", "any-abnormal")]
        rows.append([row["rule"], row["words"], *cells])
    note = (
        f"Mean over {content['draws']} draws of {content['fitted_on']} of the {content['patients']} adults ± standard "
        f"deviation; scored are the other adults ({content['cycles']} cycles of all)."
    )
    return _markdown(["model, thresholds", "fitted for", "ICBHI Score", "any-abnormal Score"], rows, note)


def _active_learning(content: Content, split: str | None) -> str:
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
    heads = ["rule", "events of a patient in a session", f"labels for {share} of the mean AUROC", "of those of random"]
    heads += [f"labels for {share} of its distance from chance", "of those of random"]
    return _markdown(heads, rows, note)


TABLES: dict[str, Callable[[Content, str | None], str]] = {
    "scores": _scores,
    "means": _means,
    "classes": _classes,
    "smoothing": _smoothing,
    "baselines": _baselines,
    "runs": _runs,
    "study": _study,
    "leakage": _leakage,
    "official": _official,
    "audit": _audit,
    "geometry": _geometry,
    "bench": _bench,
    "cost": _cluster_cost,
    "reliability": _reliability,
    "operating_point": _operating_point,
    "new_site": _new_site,
    "active_learning": _active_learning,
    "leaderboard": _leaderboard,
    "entries": _entries,
    "published": _published,
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
