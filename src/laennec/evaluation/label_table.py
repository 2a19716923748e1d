"""What a model reaches with a fraction of the labels, as a table.

Decisions: the figure of a mode and fraction is the mean over its draws. Its interval draws patients, and takes the
mean over the draws of labels within each: it says what other patients would change, while the standard deviation says
what other labels would. All draws of labels and all fractions see the same draws of patients. A figure that is
undefined in one draw of labels is undefined in their mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from laennec.errors import InputError
from laennec.evaluation.bootstrap import bootstrap_values, interval, patient_codes
from laennec.evaluation.metrics import none_if_nan
from laennec.evaluation.predictions import ProblemType, answer_statistics, headline, point_values, read_predictions
from laennec.evaluation.summary import figure_name, is_percent

MODE_NAMES = {"linear": "linear (encoder frozen)", "finetune": "fine-tuned"}


def label_table(
    cells: Sequence[Mapping[str, Any]],
    *,
    problem_type: ProblemType,
    label_names: Sequence[str],
    n_draws: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Mean, standard deviation and interval of every shown figure, for each mode and fraction.

    Args:
        cells: One mapping for each mode, fraction and draw of labels: "mode", "fraction", "draw", "cycles", "patients"
            (that the labels are of), "predictions" (the predictions table of the scored part) and "thresholds" (in
            logits, or None).
        problem_type: "multi_label" or "single_label".
        label_names: Names of the outputs.
        n_draws: Bootstrap draws of patients.
        seed: Seed of the draws.

    Returns:
        Tidy rows {"mode", "fraction", "cycles", "patients", "draws", "figure", "mean", "sd", "low", "high", "values"},
        by mode and ascending fraction; the figures are the mean AUROC of the labels, each label's, and the headline
        score; "sd" is None for one draw, "values" are those of the draws of labels in order.

    Raises:
        InputError: The cells were not scored on the same cycles.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: (_mode_rank(cell["mode"]), cell["fraction"], cell["draw"])):
        groups.setdefault((cell["mode"], cell["fraction"]), []).append(cell)
    _refuse_other_cycles(cells)
    rows: list[dict[str, Any]] = []
    for (mode, fraction), members in groups.items():
        points, drawn, n_patients = [], [], 0
        for cell in members:
            answers = read_predictions(
                cell["predictions"], problem_type=problem_type, label_names=label_names, thresholds=cell["thresholds"]
            )
            points.append(point_values(answers))
            drawn.append(bootstrap_values(answers.table, answer_statistics(answers), n_draws, seed))
            _, n_patients = patient_codes(answers.table)
        about = {
            "mode": mode,
            "fraction": fraction,
            "cycles": round(float(np.mean([cell["cycles"] for cell in members]))),
            "patients": round(float(np.mean([cell["patients"] for cell in members]))),
            "draws": len(members),
        }
        for figure in shown_figures(points[0]):
            values = np.array([np.nan if p[figure] is None else p[figure] for p in points], dtype=float)
            means = np.mean([side.get(figure, np.zeros(0)) for side in drawn], axis=0)
            bounds = interval(means, n_patients) or (None, None)
            rows.append(
                about
                | {
                    "figure": figure,
                    "mean": none_if_nan(values.mean()),
                    "sd": none_if_nan(values.std(ddof=1)) if len(values) > 1 else None,
                    "low": bounds[0],
                    "high": bounds[1],
                    "values": [none_if_nan(value) for value in values],
                }
            )
    return rows


def shown_figures(values: Mapping[str, float | None]) -> list[str]:
    """The figures of a label-efficiency table among all that an evaluation has."""
    labels = [name for name in values if name.endswith(".roc_auc")]
    score = headline(dict(values))
    return [*(["roc_auc_macro"] if len(labels) != 1 else []), *labels, *([score] if score not in labels else [])]


def format_label_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as plain text, a line for each mode and fraction.

    Args:
        rows: What `label_table` returned.
    """
    figures = list(dict.fromkeys(row["figure"] for row in rows))
    cells = {(row["mode"], row["fraction"], row["figure"]): row for row in rows}
    header = ["mode", "labels", "cycles", "patients", "draws", *map(figure_name, figures)]
    lines = [header]
    for mode, fraction in dict.fromkeys((row["mode"], row["fraction"]) for row in rows):
        known = [cells[mode, fraction, figure] for figure in figures if (mode, fraction, figure) in cells]
        first = known[0]
        texts = [_cell_text(cells.get((mode, fraction, figure))) for figure in figures]
        counts = [f"{first[name]:,}" for name in ("cycles", "patients", "draws")]
        lines.append([mode, percent(fraction), *counts, *texts])
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def percent(fraction: float) -> str:
    """A fraction as percent: "1 %", "0.5 %"."""
    return f"{100 * fraction:.6g} %"


def _cell_text(row: Mapping[str, Any] | None) -> str:
    """Mean ± standard deviation [interval]."""
    if row is None or row["mean"] is None:
        return "undefined"
    digits = 1 if is_percent(row["figure"]) else 3
    text = f"{row['mean']:.{digits}f}"
    text += "" if row["sd"] is None else f" ± {row['sd']:.{digits}f}"
    return text if row["low"] is None else f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _mode_rank(mode: str) -> int:
    return list(MODE_NAMES).index(mode) if mode in MODE_NAMES else len(MODE_NAMES)


def _refuse_other_cycles(cells: Sequence[Mapping[str, Any]]) -> None:
    """Refuse cells that were scored on different cycles, whose draws of patients would not be the same."""
    first: list[str] | None = None
    for cell in cells:
        ids = sorted(map(str, cell["predictions"]["cycle_id"]))
        first = first or ids
        if ids != first:
            name = f"{cell['mode']} {percent(cell['fraction'])} draw {cell['draw']}"
            raise InputError(f"{name}: was scored on other cycles than the rest of the table; use another --out")
