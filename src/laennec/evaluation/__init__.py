"""Evaluation of predictions: scores with definitions, intervals, baselines and subgroups; plots and the report.

Decisions: names are imported on first use, so that computing a metric does not import matplotlib.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "calibration.probabilities": (
        "decision_curve",
        "expected_calibration_error",
        "fit_temperature_on_validation",
        "reliability_bins",
    ),
    "baselines": ("shortcut_baselines",),
    "intervals": ("patient_intervals",),
    "evaluate_metric": ("IcbhiScore",),
    "geometry": ("class_distances", "four_properties"),
    "metrics": (
        "CLASSES",
        "ICBHI_SCORE_DEFINITION",
        "any_abnormal_score",
        "confusion_matrix",
        "four_class",
        "icbhi_score",
        "macro_one_vs_rest",
        "multilabel_metrics",
        "sprsound_score",
    ),
    "calibration.operating_point": ("fit_on_validation", "fit_thresholds_on_validation"),
    "predictions": ("predictions_metrics",),
    "report.write": ("write_report",),
    "sprsound_tasks": ("sprsound_task", "sprsound_total"),
    "summary": ("evaluate_predictions", "format_summary"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a name from its module on first use."""
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
