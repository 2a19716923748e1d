"""The scores of many runs in one results file, with the comparison of their methods.

Decisions: a results file holds what the runs' own files say, nothing more. The tables in the documents are rendered
from such files (`python -m docs.render`) and never typed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from laennec.errors import InputError
from laennec.evaluation.compare import Drawn, compare_methods, draw_figures, pool_folds
from laennec.evaluation.geometry import four_properties
from laennec.evaluation.predictions import read_predictions
from laennec.evaluation.report_sections import seeds_of
from laennec.training.record import read_record, write_record

_VALUES = (
    "icbhi.Score", "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "sprsound.Score", "crackle.roc_auc", "wheeze.roc_auc",
    "crackle.average_precision", "wheeze.average_precision", "f1_macro", "accuracy", "uar",
)  # fmt: skip
_COMPARED = ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc", "roc_auc_macro")


def gather_results(
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
