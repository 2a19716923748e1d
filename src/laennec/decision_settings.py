"""The settings that a model decides with, in whatever form it comes: a transformers configuration or an ONNX file."""

from collections.abc import Sequence
from typing import Any

PROBLEM_TYPES = {"multi_label": "multi_label_classification", "single_label": "single_label_classification"}

# what a label has for which nothing was fitted
NEUTRAL = {"thresholds": 0.5, "temperatures": 1.0, "intercepts": 0.0}


class DecisionSettings:
    """Calibration and thresholds by label name; see `laennec.configuration.LaennecConfig` for the attributes."""

    label_names: Sequence[str]
    problem_type: Any
    operating_points: Any

    def per_label(self, setting: str, spans: str = "events") -> dict[str, float]:
        """The "thresholds", "temperatures" or "intercepts" of every label; the neutral value where none is recorded."""
        values = self.operating_points[spans][setting] if spans in self.operating_points else getattr(self, setting)
        return {name: values.get(name, NEUTRAL[setting]) for name in self.label_names}

    @property
    def is_multi_label(self) -> bool:
        """Whether each label is decided by itself."""
        return bool(self.problem_type == PROBLEM_TYPES["multi_label"])
