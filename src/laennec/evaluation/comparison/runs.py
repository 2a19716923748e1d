"""Comparison of runs on the split that all of them were scored on.

Decisions: runs are compared only where corpus, split, cycles and truth are the same by fingerprint and id, because a
difference between splits would look like one between models. If several recipes are compared, the runs of one recipe
form one method; they may differ only in their seed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from laennec.errors import InputError
from laennec.evaluation.comparison.evaluations import Evaluation, compared_folders, read_evaluation
from laennec.evaluation.comparison.statistics import compare_methods, p_text, power_text, run_figures
from laennec.evaluation.intervals import LEAST_EFFECTIVE, effective_note, interval_note
from laennec.evaluation.metrics import is_percent
from laennec.evaluation.report.plots import figure_png
from laennec.evaluation.report.plots_runs import difference_plot, figure_reach, is_significant
from laennec.evaluation.report.sections import scored_leaks, shown_text, times_scored
from laennec.evaluation.summary import bounds_text, figure_name, figure_text, own_names, row_noun
from laennec.files import atomic_folder, atomic_write, refuse_other_files
from laennec.rendering import render_template, text_table
from laennec.training.record import write_record

_WRITTEN = ("compare.json", "compare.html", "compare.png")
_MOST_LABELS = 6
_NOT_COMPARED = ("seed", "output_dir")
_FINGERPRINTS = {"corpus": "corpus_fingerprint", "protocol": "protocol", "split fingerprint": "split_fingerprint"}


def compare_runs(
    sources: Sequence[str | Path],
    *,
    split: str | None = None,
    baseline: str | None = None,
    group_seeds: bool | None = None,
    out: str | Path = "comparison",
    command: str = "",
) -> str:
    """Compare runs that were scored on the same split; the comparison as text.

    Args:
        sources: Folders of runs, or of evaluations.
        split: The split; None where they have only one in common.
        baseline: Folder or name of the run (or recipe) that the others are compared with; None: the first.
        group_seeds: Whether runs of one recipe are one method; None: where several recipes are given.
        out: Folder of compare.json, compare.png and compare.html.
        command: The literal command, for the record.
    """
    folders = compared_folders(sources, split)
    refuse_other_files(out, _WRITTEN, "choose another --out")
    evaluations = [read_evaluation(folder) for folder in folders]
    _check_comparable(evaluations)
    methods = _methods(sources, evaluations, group_seeds)
    chosen = _baseline(sources, methods, baseline)
    figures, left_out = _figures(evaluations)
    measured = {
        name: [run_figures(evaluations[k].predictions, figures, _own(evaluations[k])) for k in runs]
        for name, runs in methods.items()
    }
    compared = compare_methods(measured, chosen)
    content = {
        **_data(evaluations),
        "baseline": chosen,
        "grouped": any(len(runs) > 1 for runs in methods.values()),
        "command": command,
        "comparisons": len(methods) - 1,
        "figures": figures,
        "left_out": left_out,
        "methods": {
            name: {"runs": [_run(sources[k], evaluations[k]) for k in runs], "figures": compared[name]}
            for name, runs in methods.items()
        },
    }
    _write(Path(out), content)
    return format_comparison(content)


def _check_comparable(evaluations: Sequence[Evaluation]) -> None:
    first, *others = evaluations
    truth, folders = _truth(first), [one.folder.resolve() for one in evaluations]
    for other in others:
        if folders.count(other.folder.resolve()) > 1:
            raise InputError(f"{other.folder}: given twice; give each run once")
        for name, key in (*_FINGERPRINTS.items(), ("split", None)):
            here, there = (one.split if key is None else one.origin.get(key) for one in (first, other))
            if here != there:
                raise InputError(
                    f"{other.folder}: scored on {name} {_short(there)}, but {first.folder} on {name} {_short(here)}; "
                    "only runs scored on the same data can be compared"
                )
        own = _truth(other)
        if own.keys() != truth.keys():
            raise InputError(
                f"{other.folder}: scored on {len(own):,} cycles, {len(own.keys() - truth.keys()):,} of them not among "
                f"those of {first.folder} ({len(truth):,}); only runs scored on the same data can be compared"
            )
        if changed := [name for name, value in truth.items() if own[name] != value]:
            raise InputError(
                f"{other.folder}: cycle {changed[0]} has another truth or patient than in {first.folder}; evaluate "
                "both on the same data"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _truth(evaluation: Evaluation) -> dict[str, tuple[Any, ...]]:
    """Patient and truth of every cycle: its class, or its labels by name."""
    predictions, table = evaluation.predictions, evaluation.predictions.table
    if "cycle_id" not in table.columns:
        raise InputError(f"{evaluation.folder}: the predictions have no cycle_id; evaluate the run again")
    patients = table["patient_id"].astype(str).tolist() if "patient_id" in table.columns else [""] * len(table)
    if predictions.class_names:
        truth: list[Any] = [predictions.class_names[k] for k in predictions.true]
    else:
        names = np.array(predictions.label_names)
        truth = [tuple(sorted(names[row == 1])) for row in predictions.truth]
    return dict(zip(map(str, table["cycle_id"]), zip(patients, truth, strict=True), strict=True))


def _methods(
    sources: Sequence[str | Path], evaluations: Sequence[Evaluation], group: bool | None
) -> dict[str, list[int]]:
    recipes = [str(evaluation.run.get("name")) for evaluation in evaluations]
    if group is None:
        group = 1 < len(set(recipes)) < len(recipes)
    if not group:
        names = [_run_name(evaluation.folder) for evaluation in evaluations]
        given = [name if names.count(name) == 1 else str(source) for name, source in zip(names, sources, strict=True)]
        return {name: [k] for k, name in enumerate(given)}
    methods: dict[str, list[int]] = {}
    for k, recipe in enumerate(recipes):
        methods.setdefault(recipe, []).append(k)
    if len(methods) < 2:
        raise InputError(f"--group-seeds: all runs are of the recipe {recipes[0]}, a single method; leave the flag out")
    for recipe, runs in methods.items():
        _check_seeds(recipe, [evaluations[k] for k in runs])
    return methods


def _check_seeds(recipe: str, evaluations: Sequence[Evaluation]) -> None:
    """Refuse runs of one recipe with equal seeds, or that differ in more than the seed."""
    first = evaluations[0]
    seeds: dict[Any, Path] = {}
    for one in evaluations:
        if (own := one.config.get("seed")) in seeds:
            raise InputError(
                f"{one.folder} and {seeds[own]} are both {recipe} with seed {own}; give each seed once, or compare "
                "run by run: --no-group-seeds"
            )
        seeds[own] = one.folder
        if key := recipe_difference(first.config, one.config):
            raise InputError(
                f"{one.folder} and {first.folder} have the recipe name {recipe} but another {key}, so they are not "
                "seeds of one method; compare run by run: --no-group-seeds"
            )


def recipe_difference(one: Any, other: Any, name: str = "") -> str | None:
    """The first setting in which two configurations differ, apart from seed and output folder."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return None if one == other else name
    for key in sorted({*one, *other}):
        if name or key not in _NOT_COMPARED:
            found = recipe_difference(one.get(key), other.get(key), f"{name}.{key}" if name else key)
            if found:
                return found
    return None


def _run_name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name.startswith("evaluation-") else folder.name


def _baseline(sources: Sequence[str | Path], methods: Mapping[str, list[int]], baseline: str | None) -> str:
    wanted = str(sources[0]) if baseline is None else baseline
    if wanted in methods:
        return wanted
    for k, source in enumerate(sources):
        if Path(source).resolve() == Path(wanted).resolve():
            return next(name for name, runs in methods.items() if k in runs)
    raise InputError(f"--baseline {wanted}: not among the compared runs; it can be {', '.join(methods)}")


def _figures(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[str]]:
    """Metrics of every run: the headline and its components, AUROCs, own metrics; and those undefined somewhere."""
    metrics = evaluations[0].metrics
    family = metrics["headline"].split(".")[0]
    parts = [f"{family}.{part}" for part in ("Sp", "Se", "SP", "SE")]
    extra = ["uar"] if family == "accuracy" else []
    areas = [f"{label}.roc_auc" for label in metrics["label_names"][:_MOST_LABELS]]
    wanted = dict.fromkeys([metrics["headline"], *parts, *extra, *areas, "roc_auc_macro", *own_names(metrics)])
    shared = [name for name in wanted if all(name in one.metrics["values"] for one in evaluations)]
    defined = [name for name in shared if all(one.metrics["values"][name] is not None for one in evaluations)]
    if not defined:
        raise InputError(
            f"{evaluations[0].folder}: the runs have no metric in common; compare runs with the same labels"
        )
    return defined, [name for name in shared if name not in defined]


def _own(evaluation: Evaluation) -> dict[str, list[float | None]]:
    """Own metrics as the evaluation stored them, so that the user's code is not needed."""
    return dict((evaluation.metrics.get("own_metrics") or {}).get("left_out", {}))


def _run(source: str | Path, evaluation: Evaluation) -> dict[str, Any]:
    run = evaluation.run
    return {
        "source": str(source),
        "recipe": run.get("name"),
        "seed": evaluation.config.get("seed"),
        "selection_set": run.get("selection_set"),
        "scored": times_scored(run, evaluation.split, run["corpus"]["name"]) or None,
        "values": evaluation.metrics["values"],
    }


def _data(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The compared data, and the notes to read before the numbers."""
    first, origin = evaluations[0], evaluations[0].origin
    patients = first.metrics["uncertainty"]["patients"]
    notes = [str(origin["stamp"])] if origin.get("stamp") else []
    notes += [f"leak: {line}" for line in scored_leaks(first.run)]
    for one in evaluations:
        if one.run.get("selection_set") != "validation":
            notes.append(f"{_run_name(one.folder)}: selected on {one.run.get('selection_set')}")
    few = interval_note(patients, differences=True), effective_note(first.metrics.get("effective_patients") or {})
    return {
        "part": first.split,
        "corpus": (first.run["evaluated"].get("corpus") or {}).get("name"),
        "corpus_fingerprint": origin.get("corpus_fingerprint"),
        "protocol": origin.get("protocol"),
        "split_fingerprint": origin.get("split_fingerprint"),
        "cycles": first.metrics["counts"]["cycles"],
        "span": row_noun(first.metrics),
        "patients": patients,
        "notes": [*notes, *filter(None, few)],
    }


def _cells(content: Mapping[str, Any], figure: str) -> list[Mapping[str, Any]]:
    return [method["figures"][figure] for method in content["methods"].values()]


def comparison_title(cells: Sequence[Mapping[str, Any]], figure: str) -> str:
    """The name of a metric with the effective number of patients behind it."""
    return f"{figure_name(figure)} ({cells[0]['effective']:.1f} effective patients)"


def comparison_rows(content: Mapping[str, Any], figure: str) -> list[list[str]]:
    """One metric of the methods as text, the baseline first: name, value, interval, difference, df, p, corrected p."""
    rows = []
    for name in sorted(content["methods"], key=lambda name: name != content["baseline"]):
        method = content["methods"][name]
        cell = method["figures"][figure]
        title = f"{name} ({len(method['runs'])})" if content["grouped"] else name
        value = figure_text(figure, cell["mean"])
        value += f" ± {figure_text(figure, cell['sd'])}" if cell["sd"] is not None else ""
        row = [title, value, bounds_text(figure, cell["interval"]) or "–"]
        if name == content["baseline"]:
            rows.append([*row, "baseline", "", "", ""])
        else:
            difference = figure_text(figure, cell["difference"], cell["difference_interval"], "+")
            freedom = "–" if cell["freedom"] is None else f"{cell['freedom']:.1f}"
            rows.append([*row, difference, freedom, p_text(cell["p"]), p_text(cell["p_holm"])])
    return rows


def comparison_power(cells: Sequence[Mapping[str, Any]], figure: str) -> str:
    """The smallest difference that a comparison can detect, or why nothing is compared, as text."""
    if cells[0]["effective"] < LEAST_EFFECTIVE:
        return f"no interval and no p value: fewer than {LEAST_EFFECTIVE:g} effective patients"
    return power_text(cells, lambda difference: figure_text(figure, difference))


def format_comparison(content: Mapping[str, Any]) -> str:
    """The comparison as plain text for a terminal."""
    lines = [
        f"corpus {content['corpus']} {_short(content['corpus_fingerprint'])}, protocol {content['protocol']}, split "
        f"{content['part']} ({_short(content['split_fingerprint'])}): {content['cycles']:,} {content['span']}s of "
        f"{content['patients']} patients",
        *(f"note: {note}" for note in content["notes"]),
        f"difference from {content['baseline']}, paired by patients: 95 % interval and p (t test over patients"
        f"{' and seeds' if content['grouped'] else ''}; df: its degrees of freedom); p (Holm) corrected over "
        f"{content['comparisons']} comparison{'s' if content['comparisons'] > 1 else ''} in each metric",
    ]
    for figure in content["figures"]:
        cells = _cells(content, figure)
        heads = [comparison_title(cells, figure), "value", "95 % interval", "difference", "df", "p", "p (Holm)"]
        lines += ["", text_table([heads, *comparison_rows(content, figure)], indent=0)]
        lines += filter(None, [comparison_power(cells, figure)])
    lines += [f"\n{figure_name(name)}: left out, because it is undefined for some run" for name in content["left_out"]]
    return "\n".join(lines)


def _page_rows(content: Mapping[str, Any], figure: str) -> list[dict[str, Any]]:
    """`comparison_rows` for a page, with the difference as a bar on an axis with zero in the middle."""
    reach, lines = figure_reach(content, figure), []
    methods = sorted(content["methods"], key=lambda name: name != content["baseline"])
    for name, (title, value, bounds, difference, *p) in zip(methods, comparison_rows(content, figure), strict=True):
        cell = content["methods"][name]["figures"][figure]
        shown: dict[str, Any] = {"text": difference}
        if name != content["baseline"]:
            low, high = cell["difference_interval"] or [cell["difference"]] * 2
            at, low, high = (round(50 + 50 * x / reach, 2) for x in (cell["difference"], low, high))
            shown |= {"gap": {"at": at, "low": low, "span": round(high - low, 2), "sure": is_significant(cell)}}
        kind = "kept" if name == content["baseline"] else ""
        lines.append({"cells": [title, {"text": value, "note": bounds}, shown, *p], "class": kind})
    return lines


def _write(folder: Path, content: dict[str, Any]) -> None:
    """Write compare.json, compare.png and compare.html, whole or not at all."""
    tables = [
        {
            "name": comparison_title(_cells(content, figure), figure),
            "columns": ["method", "value", "difference", "df", "p", "p (Holm)"],
            "rows": _page_rows(content, figure),
            "note": comparison_power(_cells(content, figure), figure),
        }
        for figure in content["figures"]
    ]
    scales = {figure_reach(content, name): is_percent(name) for name in content["figures"]}
    names = ("corpus", "corpus_fingerprint", "protocol", "split_fingerprint", "part", "cycles", "patients")
    facts = [("Split" if n == "part" else n.replace("_", " ").capitalize(), shown_text(content[n])) for n in names]
    keys = {
        "source": "run",
        "recipe": "recipe",
        "seed": "seed",
        "selection_set": "selected on",
        "scored": "times scored",
    }
    runs = [
        {"cells": [name, *(shown_text(run[key]) for key in keys)], "class": ""}
        for name, method in content["methods"].items()
        for run in method["runs"]
    ]
    page = render_template(
        "compare.html",
        content=content,
        tables=tables,
        runs={"columns": ["method", *keys.values()], "rows": runs},
        scales=[f"±{reach:.1f} points" if percent else f"±{reach:.3f}" for reach, percent in scales.items()],
        facts=facts,
        left_out=[figure_name(name) for name in content["left_out"]],
    )
    with atomic_folder(folder) as temporary:
        write_record(temporary / "compare.json", content)
        with atomic_write(temporary / "compare.png", "wb") as file:
            file.write(figure_png(difference_plot(content)))
        with atomic_write(temporary / "compare.html") as file:
            file.write(page)
