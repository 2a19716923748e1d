"""Tables of studies: methods with their cost, SPRSound's tasks, shortcuts, geometry.

Decisions: a cell is the mean over runs with its standard deviation; what has one run has no spread and shows none.
Cost is that of the training alone, in CPU or GPU seconds of one run and its highest memory, so that a reader can set
what a method gains against what it takes.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from laennec.errors import InputError
from laennec.evaluation.compare import p_text
from laennec.evaluation.summary import figure_name, is_percent

_KINDS = ("intra", "inter")
_TASKS = ("1-1", "1-2", "2-1", "2-2")


def _rows(content: dict[str, Any], options: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The results of one part by method."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in content["results"]:
        if not options or row["split"] == options[0]:
            found.setdefault(row["name"], []).append(row)
    if not found:
        raise InputError(f"no results on part {options[0] if options else '?'}; gather the evaluations again")
    return found


def _mean(values: Iterable[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    text = f"{statistics.mean(known):.{digits}f}"
    return text + (f" ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else "")


COST_HEADS = ("training, s of CPU (GPU)", "memory, MB")


def study_table(content: dict[str, Any], options: Sequence[str]) -> str:
    """Methods of a study on one part: figures, difference from the baseline, cost."""
    rows, study = _rows(content, options), content.get("study") or {}
    figures = list(study.get("figures") or ("icbhi.Score", "crackle.roc_auc", "wheeze.roc_auc"))
    compared = (content.get("methods") or {}).get(options[0]) if options else None
    baseline = (compared or {}).get("baseline")
    head = ["method", "runs", *(figure_name(figure) for figure in figures)]
    head += [f"mean AUROC, difference from {baseline}", "p (Holm)"] if baseline else []
    head += COST_HEADS
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, runs in rows.items():
        cells = [
            _mean((run["values"].get(figure) for run in runs), 1 if is_percent(figure) else 3) for figure in figures
        ]
        if baseline:
            cells += _difference((compared or {})["figures"].get(name, {}).get("roc_auc_macro"))
        lines.append(f"| {name} | {len(runs)} | {' | '.join([*cells, *cost_cells(runs)])} |")
    note = "Mean over runs ± their standard deviation"
    if baseline:
        each = "" if baseline in rows else ", each from that with the row's other settings,"
        note += f"; differences{each} are paired by patients, [95 % interval], p corrected over all rows (Holm)"
    return "\n".join([*lines, "", f"{note}."])


def _difference(cell: dict[str, Any] | None) -> list[str]:
    if not cell or cell.get("difference") is None:
        return ["", ""]
    bounds = cell.get("difference_interval")
    text = f"{cell['difference']:+.3f}" + (f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else "")
    return [text, p_text(cell["p_holm"])]


def cost_cells(runs: list[dict[str, Any]]) -> list[str]:
    """Seconds and memory of what made a method's runs, as far as they were measured."""
    costs = [made for run in runs if (made := cost_of_making(run))]
    if not costs:
        return ["", ""]
    gpus = [run["cost"].get("gpu_seconds", 0.0) for run in runs if run.get("cost")]
    seconds = f"{statistics.mean(cpu for cpu, _ in costs):.0f}"
    seconds += f" ({statistics.mean(gpus):.0f})" if any(gpus) else ""
    return [seconds, f"{max(memory for _, memory in costs):.0f}"]


def cost_of_making(run: Mapping[str, Any]) -> tuple[float, float] | None:
    """CPU seconds and peak memory in MB of the processes that made a run, pre-training and members included.

    Args:
        run: A row of a results file.

    Returns:
        Both, without the scorings; None where no cost was measured.
    """
    steps = {name: step for name, step in (run.get("cost") or {}).items() if name not in ("evaluate", "gpu_seconds")}
    if "train" not in steps:
        return None
    return sum(step["cpu_seconds"] for step in steps.values()), max(step["peak_memory_mb"] for step in steps.values())


def official_table(content: dict[str, Any], options: Sequence[str]) -> str:
    """SPRSound's four tasks by method, both ways with Poor Quality."""
    lines = [
        "| method | runs | 1-1 | 1-2 | 2-1 | 2-2 | total | 2-1, Poor Quality answered | its recall | 2-2, answered |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in _rows(content, options).items():
        scored = [run["official"] for run in runs if run.get("official")]
        if not scored:
            continue
        cells = [_mean((_of(score, task, "Score") for score in scored), 1) for task in _TASKS]
        cells.append(_mean((score.get("total") for score in scored), 1))
        poor = "with Poor Quality"
        cells.append(_mean((_of(score, f"2-1 {poor}", "Score") for score in scored), 1))
        cells.append(_mean((_of(score, f"2-1 {poor}", "poor_quality_recall") for score in scored), 1))
        cells.append(_mean((_of(score, f"2-2 {poor}", "Score") for score in scored), 1))
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} |")
    lines += [
        "",
        "SPRSound's Score of each task, mean over runs ± their standard deviation; Poor Quality is never answered but "
        "in the last three columns. Recordings whose truth is Poor Quality enter neither SE nor SP: answering it can "
        "only cost.",
    ]
    return "\n".join(lines)


def _of(scores: dict[str, Any], task: str, figure: str) -> float | None:
    value = (scores.get(task) or {}).get(figure)
    return None if value is None else float(value)


def audit_table(content: dict[str, Any], options: Sequence[str]) -> str:
    """AUROC of every label by method: all cycles, within like lengths, about the middle, and length alone."""
    lines = [
        "| method | label | all cycles | within like lengths | middle of every cycle | length alone | level alone "
        "| age, sex, location alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seconds: set[float] = set()
    for name, runs in _rows(content, options).items():
        for label in sorted({label for run in runs for label in run.get("within_lengths") or {}}):
            figure = f"{label}.roc_auc"
            blind = [run["duration_blind"] for run in runs if run.get("duration_blind")]
            seconds |= {entry["seconds"] for entry in blind}
            cells = [
                _mean((run["values"].get(figure) for run in runs), 3),
                _mean((run["within_lengths"].get(label) for run in runs if run.get("within_lengths")), 3),
                _mean((entry["values"].get(figure) for entry in blind), 3),
                *(_floor(runs, floor, figure) for floor in ("event length", "level", "age, sex, location")),
            ]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    lengths = [f"{s:g} s" for s in sorted(seconds)]
    length = ", ".join(lengths) if len(lengths) < 4 else f"{lengths[0]} to {lengths[-1]}, by split,"
    middle = f"; the middle is {length} of every cycle" if seconds else ""
    lines += [
        "",
        f"AUROC, mean over runs ± their standard deviation{middle}. The last three columns are small models that hear "
        "nothing.",
    ]
    return "\n".join(lines)


def _floor(runs: list[dict[str, Any]], name: str, figure: str) -> str:
    values = {floor["values"].get(figure) for run in runs for floor in run["floors"] if floor["name"] == name}
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if known else ""


def geometry_table(content: dict[str, Any], options: Sequence[str]) -> str:
    """ADD's four properties of the embedding by method: how close and how even, within classes and between them."""
    lines = [
        "| method | runs | within classes: mean | variation | between classes: mean | variation | between / within |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in _rows(content, options).items():
        known = [run["geometry"] for run in runs if run.get("geometry")]
        if not known:
            continue
        cells = [_mean((entry[kind][key] for entry in known), 3) for kind in _KINDS for key in ("mean", "cv")]
        means = [[entry[kind]["mean"] for kind in reversed(_KINDS)] for entry in known]
        ratio = _mean((between / within if within and between else None for between, within in means), 2)
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {ratio} |")
    lines += [
        "",
        "Angular distance 1 - cos over all pairs of cycles of the four classes; variation is standard deviation / "
        "mean. Mean over runs ± their standard deviation.",
    ]
    return "\n".join(lines)
