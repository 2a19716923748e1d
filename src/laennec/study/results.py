"""Results files: the scores of many runs with the comparison of their methods, and what each run cost.

Decisions: a results file holds only what the runs' own files hold. The tables of the documents are rendered from such
files (`python -m docs.render`) and never typed. The cost of a row is that of its own processes and of those that made
its inputs: the trainings of an ensemble's members, or the training whose embeddings a classifier uses, without their
scorings. The cost file lies beside a folder, because training may replace the folder.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laennec.errors import InputError, did_you_mean
from laennec.evaluation.comparison.runs import comparison_power, comparison_title
from laennec.evaluation.comparison.statistics import RunFigures, compare_methods, p_text, pool_folds, run_figures
from laennec.evaluation.geometry import four_properties
from laennec.evaluation.intervals import MIN_PATIENTS
from laennec.evaluation.predictions import read_evaluated, stored_predictions
from laennec.evaluation.report.sections import seeds_of, times_scored
from laennec.evaluation.summary import WINDOWS, figure_name, figure_text
from laennec.rendering import text_table
from laennec.study.plan import Study, folder_name
from laennec.training.record import read_record, write_record

Cost = dict[str, Any]
"""{step: {"seconds", "cpu_seconds", "peak_memory_mb", "processes"}}."""
_SCORING = "evaluate"
_VALUES = (
    "icbhi.Score", "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "sprsound.Score", "crackle.roc_auc", "wheeze.roc_auc",
    "crackle.average_precision", "wheeze.average_precision", "f1_macro", "accuracy", "uar",
)  # fmt: skip
_COMPARED = ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc", "roc_auc_macro")


def gather_results(
    evaluations: Sequence[Path],
    into: str | Path,
    baseline: str | None = None,
    baselines: Mapping[str, str] | None = None,
    costs: Mapping[Path, Cost] | None = None,
    study: Mapping[str, Any] | None = None,
) -> Path:
    """Write the results of evaluations into one file, and compare their methods."""
    rows = []
    by_split: dict[str, dict[str, dict[int, list[Path]]]] = {}  # split -> method -> seed -> one evaluation a fold
    folds: dict[str, set[Any]] = {}  # of each split, over all methods
    figures = (study or {}).get("figures") or ()
    scored = [
        (Path(f), _row(read_record(f / "run.json"), read_record(f / "metrics.json"), figures)) for f in evaluations
    ]
    data: dict[Any, set[Any]] = {}  # of each run, what was scored under one name of a split
    for _, row in scored:
        run = tuple(row.get(key) for key in ("split", "name", "seed", "fold"))
        data.setdefault(run, set()).add((row["corpus_fingerprint"], row["protocol"]))
    several = {split for (split, *_), each in data.items() if len(each) > 1}  # the score's name tells them apart
    for folder, row in scored:
        if row["split"] in several:
            row["split"] = folder.name.removeprefix("evaluation-")
        if cost := (costs or {}).get(folder):
            gpus = len(row["hardware"].get("gpus") or [])
            row["cost"] = cost | {"gpu_seconds": round(gpus * sum(step["seconds"] for step in cost.values()), 1)}
        rows.append(row)
        by_split.setdefault(row["split"], {}).setdefault(row["name"], {}).setdefault(row["seed"], []).append(folder)
        folds.setdefault(row["split"], set()).add(row.get("fold"))
    rows.sort(key=lambda row: (row["name"], row["seed"], row["split"], row.get("fold", 0)))
    methods = {}
    for split, runs in sorted(by_split.items()):
        # a seed without some of the folds is left out: it was scored on fewer cycles
        whole = {
            name: found
            for name, seeds in runs.items()
            if (found := {seed: each for seed, each in seeds.items() if len(each) >= len(folds[split])})
        }
        methods[split] = _compared(split, whole, baseline, baselines)
        if few := {name: n for name, seeds in runs.items() if (n := len(seeds) - len(whole.get(name, ())))}:
            methods[split]["left_out"] = few
    write_record(into, {"results": rows, "methods": methods} | ({"study": study} if study else {}))
    return Path(into)


def _compared(
    split: str, runs: dict[str, dict[int, list[Path]]], baseline: str | None, baselines: Mapping[str, str] | None
) -> dict[str, Any]:
    """The comparison of the methods that were scored on one split."""
    wanted = baselines or ({} if baseline is None else dict.fromkeys(runs, baseline))
    pairs = {method: other for method, other in wanted.items() if {method, other} <= set(runs)}
    if not pairs:
        baseline = None  # a study that is not finished may not have its baseline yet
    content: dict[str, Any] = {"baseline": baseline, "seeds": {name: sorted(runs[name]) for name in runs}}
    try:
        measured = {
            name: [run for seed in sorted(runs[name]) for run in _figures(runs[name][seed])] for name in sorted(runs)
        }
        same_cycles = len({run.cycles for of_method in measured.values() for run in of_method}) == 1
        compared = compare_methods(measured, pairs) if pairs or same_cycles else {}
    except ValueError as error:
        raise InputError(f"results of split {split}: {error}; gather runs that were scored on the same data") from error
    return content | {"figures": compared}


def _figures(folds: Sequence[Path]) -> list[RunFigures]:
    """The main metrics of a run: of its pooled folds, or of each fold if all were scored on the same cycles."""
    metrics = [read_record(folder / "metrics.json") for folder in folds]
    predictions = [
        read_evaluated(stored_predictions(folder / "predictions.parquet", "evaluate the run again"), one)
        for folder, one in zip(folds, metrics, strict=True)
    ]
    same = len({frozenset(one.table["cycle_id"]) for one in predictions}) == 1
    pooled = predictions if same else [pool_folds(predictions)]
    return [run_figures(one, _COMPARED) for one in pooled]


def comparison_lines(content: Mapping[str, Any]) -> list[str]:
    """The comparison in a results file as plain text: the methods on each split, and their differences."""
    study = content.get("study") or {}
    lines = _incomplete(study)
    known = {name for row in content.get("results", ()) for name in row["values"]}
    asked = set(study.get("figures") or ()) - {*Study.model_fields["figures"].default}
    for name in sorted(asked - known):
        lines += ["", f"figures: no run has the metric {name!r}{did_you_mean(name, known)}"]
    for split, compared in content["methods"].items():
        methods, baseline = compared["figures"], compared["baseline"]
        for name, n in (compared.get("left_out") or {}).items():
            seeds = "1 seed" if n == 1 else f"{n} seeds"
            lines += ["", f"split {split}: without {seeds} of {name}, scored on fewer folds than other runs"]
        by_name = {name: [cells[name] for cells in methods.values() if name in cells] for name in _COMPARED}
        by_name = {name: cells for name, cells in by_name.items() if cells}
        values = [["method [95 % interval]", *(comparison_title(cells, name) for name, cells in by_name.items())]]
        differences = [["difference from its baseline", *(f"{figure_name(name)} (df; p, Holm)" for name in by_name)]]
        for method, cells in methods.items():
            shown = {name: cells.get(name, {}) for name in by_name}
            values.append([method, *(figure_text(name, x.get("mean"), x.get("interval")) for name, x in shown.items())])
            if any(x.get("difference") is not None for x in shown.values()):
                row = [f"{method} - {baseline}" if baseline else method]
                for name, x in shown.items():
                    gap = figure_text(name, x.get("difference"), x.get("difference_interval"), "+")
                    freedom = "–" if x.get("freedom") is None else f"{x['freedom']:.1f}"
                    row.append(f"{gap} ({freedom}; {p_text(x.get('p_holm'))})")
                differences.append(row)
        for rows in (values, differences):
            if len(rows) > 1:
                lines += ["", f"split {split}", *text_table(rows, indent=0).splitlines()]
        notes: dict[str, list[str]] = {}
        for name, cells in by_name.items():
            few = "" if cells[0]["interval"] else f"no interval and no p value: fewer than {MIN_PATIENTS} patients"
            notes.setdefault(comparison_power(cells, name) or few, []).append(figure_name(name))
        lines += [f"{', '.join(named)}: {note}" for note, named in notes.items() if note]
    return lines


def _incomplete(study: Mapping[str, Any]) -> list[str]:
    """The methods of a study with fewer runs than planned, as lines."""
    missing = Counter(cell.rpartition("/")[0] for cell in study.get("missing") or ())
    few = [f"{method} ({n} missing)" for method in study.get("methods") or () if (n := missing[folder_name(method)])]
    return ["", f"incomplete comparison: fewer runs than planned of {', '.join(few)}"] if few else []


def _row(run: dict[str, Any], metrics: dict[str, Any], figures: Sequence[str] = ()) -> dict[str, Any]:
    """The row of one evaluation, with the figures that every row has and those of its study."""
    evaluated = run["evaluated"]
    if windows := (metrics.get("windows") or {}).get("units"):
        for of in ("values", "intervals"):
            metrics[of] |= {f"{WINDOWS}{name}": value for name, value in windows["windows"][of].items()}
    wanted = dict.fromkeys((*_VALUES, *figures))
    origin = evaluated["corpus"]["provenance"]
    official = {
        task: {k: v for k, v in score.items() if k != "convention"} if isinstance(score, dict) else score
        for task, score in (metrics.get("official") or {}).items()
    }
    optional = {
        "seeds": seeds_of(run) if run.get("members") else None,
        "fold": origin.get("fold"),
        **{name: metrics.get(name) for name in ("effective_patients", "smoothing", "within_lengths", "duration_blind")},
        "geometry": four_properties(metrics["geometry"]) if metrics.get("geometry") else None,
        "official": official,
    }
    return {
        "name": run["name"],
        "description": run["config"]["description"],
        "seed": run["config"]["seed"],
        "split": evaluated["split"],
        "commands": [run.get("command"), evaluated["command"]],
        "corpus": evaluated["corpus"]["name"],
        "corpus_fingerprint": evaluated["corpus"]["fingerprint"],
        "protocol": origin.get("protocol"),
        "stamp": origin.get("stamp"),
        "split_fingerprint": origin.get("split_fingerprint"),  # None where a corpus is scored whole
        "selection_set": run["selection_set"],
        "best_epoch": run.get("best_epoch"),
        "scored": times_scored(run, evaluated["split"], evaluated["corpus"]["name"]),
        "counts": metrics["counts"],
        **{of: {k: metrics[of].get(k) for k in wanted if k in metrics[of]} for of in ("values", "intervals")},
        "floors": [
            {"name": row["name"], "values": {k: row["values"][k] for k in _COMPARED if k in row["values"]}}
            for row in metrics["floors"]
        ],
        # without the run record of a model, those of its evaluation
        **{name: run.get(name) or evaluated[name] for name in ("timings", "hardware", "versions")},
        **{name: value for name, value in optional.items() if value},
    }


def cost_file(folder: Path) -> Path:
    """The file with the costs of a folder."""
    return folder.parent / f"{folder.name}.cost.json"


def read_cost(folder: Path) -> Cost:
    """The costs of a folder by step; empty where none were measured."""
    path = cost_file(folder)
    return read_record(path) if path.exists() else {}


def cost_without_scoring(folder: Path) -> Cost:
    """The costs of making a folder."""
    return {step: took for step, took in read_cost(folder).items() if step != _SCORING}


def add_costs(*costs: Cost) -> Cost:
    """Sums of seconds and processes, and the largest memory, by step."""
    total: Cost = {}
    for step in dict.fromkeys(step for cost in costs for step in cost):
        took = [cost[step] for cost in costs if step in cost]
        total[step] = {
            "seconds": round(sum(one["seconds"] for one in took), 1),
            "cpu_seconds": round(sum(one["cpu_seconds"] for one in took), 1),
            "peak_memory_mb": round(max(one["peak_memory_mb"] for one in took)),
            "processes": sum(one["processes"] for one in took),
        }
    return total


def training_cost(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """CPU seconds and peak memory in MB of training, with pre-training and the members of an ensemble."""
    cost = row.get("cost") or {}
    steps = [took for step, took in cost.items() if step not in (_SCORING, "gpu_seconds")]
    if "train" not in cost:
        return None
    return sum(took["cpu_seconds"] for took in steps), max(took["peak_memory_mb"] for took in steps)
