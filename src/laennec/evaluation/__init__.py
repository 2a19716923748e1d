"""Stage 7, from predictions to claims: scores with definition, interval and floors, pictures and the report.

What needs matplotlib, jinja2 or `evaluate` is imported when its name is first used.
"""

from importlib import import_module
from typing import Any

from laennec.evaluation.baselines import floors
from laennec.evaluation.bootstrap import patient_bootstrap
from laennec.evaluation.calibration import (
    expected_calibration_error,
    fit_on_validation,
    fit_temperature_on_validation,
    reliability_bins,
)
from laennec.evaluation.decision import decision_curve
from laennec.evaluation.geometry import class_distances, four_properties
from laennec.evaluation.metrics import (
    CLASSES,
    ICBHI_SCORE_DEFINITION,
    any_abnormal_score,
    confusion_matrix,
    four_class,
    icbhi_score,
    macro_one_vs_rest,
    multilabel_metrics,
    sprsound_score,
)
from laennec.evaluation.predictions import predictions_metrics
from laennec.evaluation.sprsound import sprsound_task, sprsound_total
from laennec.evaluation.summary import evaluate_predictions, format_summary
from laennec.evaluation.thresholds import fit_thresholds_on_validation

_LAZY = {"IcbhiScore": "evaluate_metric", "write_pictures": "pictures", "write_report": "report"}

__all__ = [
    "CLASSES",
    "ICBHI_SCORE_DEFINITION",
    "any_abnormal_score",
    "class_distances",
    "confusion_matrix",
    "decision_curve",
    "evaluate_predictions",
    "expected_calibration_error",
    "fit_on_validation",
    "fit_temperature_on_validation",
    "fit_thresholds_on_validation",
    "floors",
    "format_summary",
    "four_class",
    "four_properties",
    "icbhi_score",
    "macro_one_vs_rest",
    "multilabel_metrics",
    "patient_bootstrap",
    "predictions_metrics",
    "reliability_bins",
    "sprsound_score",
    "sprsound_task",
    "sprsound_total",
]


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is asked for."""
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
