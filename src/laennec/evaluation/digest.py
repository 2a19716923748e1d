"""What of an evaluation its run remembers.

Decisions: the figures that a model card shows go into the run's own record when a part is scored, so that one file
is enough to write the card. Curves, bins and geometry stay in the evaluation's folder.
"""

from collections.abc import Mapping
from typing import Any

_KEPT = (
    "problem_type", "label_names", "class_names", "thresholds", "temperatures", "intercepts", "counts", "definitions",
    "headline", "bootstrap", "confusion", "warnings", "notes", "failures", "within_lengths", "duration_blind",
    "official",
)  # fmt: skip
_MOST_LABELS = 4  # figures of single labels are shown for so many


def digest(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an evaluation that a card needs.

    Args:
        metrics: What `evaluate_predictions` returned, and what scoring added to it.
    """
    kept = {name: metrics.get(name) for name in _KEPT}
    names = shown_figures(metrics)
    kept["calibration"] = {k: v for k, v in metrics["calibration"].items() if k != "bins"}
    kept["values"] = {name: metrics["values"][name] for name in names}
    kept["intervals"] = {name: metrics["intervals"].get(name) for name in names}
    own = [name for name in names if name == metrics["headline"] or name.endswith(".roc_auc")]
    kept["floors"] = [_only(row, own) for row in metrics["floors"]]
    kept["subgroups"] = {grouping: [_only(row, own) for row in rows] for grouping, rows in metrics["subgroups"].items()}
    return kept


def shown_figures(metrics: Mapping[str, Any]) -> list[str]:
    """The figures of an evaluation that a card shows, in its order."""
    values, labels = metrics["values"], metrics["label_names"]
    names = ["icbhi.Score", "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "sprsound.Score", "accuracy", "uar"]
    if "icbhi.Score" in values:
        names = [name for name in names if name not in ("accuracy", "uar")]
    if len(labels) <= _MOST_LABELS:
        names += [f"{label}.{kind}" for kind in ("roc_auc", "average_precision") for label in labels]
        names += [f"{label}.{kind}" for label in labels for kind in ("recall", "precision")]
    else:
        names += ["roc_auc_macro", "average_precision_macro", "f1_macro"]
    names += (metrics.get("own_metrics") or {}).get("names", [])
    return [name for name in names if name in values]


def _only(row: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """A floor or subgroup with these figures alone."""
    figures = {of: {n: row[of].get(n) for n in names} for of in ("values", "intervals") if row.get(of)}
    return {**row, **figures}
