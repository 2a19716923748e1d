"""The ICBHI Score as an `evaluate.Metric`.

Decisions: only this module imports `evaluate`, because that takes 4 s; the formulas are those of `metrics`.
`evaluate.load` is not used, because it calls the Hub. Data stay in memory, so no cache is written.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from laennec.evaluation.metrics import (
    ANY_ABNORMAL_DEFINITION,
    CLASSES,
    ICBHI_SCORE_DEFINITION,
    any_abnormal_score,
    confusion_matrix,
    four_class,
    icbhi_score,
    none_if_nan,
)

_CITATION = (
    "Rocha B. M. et al., An open access database for the evaluation of respiratory sound classification algorithms, "
    "Physiological Measurement 40, 035001 (2019)."
)


class IcbhiScore(evaluate.Metric):  # type: ignore[misc]
    """The ICBHI Score for class ids or for (crackle, wheeze) flags.

    `IcbhiScore().compute(predictions=[0, 1, 3], references=[0, 1, 2])` takes class ids (normal 0, crackle 1, wheeze
    2, both 3); `predictions=[[0, 1], ...]` takes two flags per cycle, crackle first. `add_batch` takes both formats.

    `compute` returns {"Sp", "Se", "Score", "any_abnormal_Se", "any_abnormal_Score"} in percent, None where
    undefined.
    """

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("keep_in_memory", settings.get("num_process", 1) == 1)
        super().__init__(**settings)

    def _info(self) -> evaluate.MetricInfo:
        """Two formats: class ids, or two flags."""
        one, two = datasets.Value("int64"), datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=f"{ICBHI_SCORE_DEFINITION}. Also the {ANY_ABNORMAL_DEFINITION}.",
            citation=_CITATION,
            inputs_description="class ids (cycles,), 0 normal, 1 crackle, 2 wheeze, 3 both; or 0/1 flags (cycles, 2)",
            features=[
                datasets.Features({"predictions": two, "references": two}),
                datasets.Features({"predictions": one, "references": one}),
            ],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
        predicted, true = _class_ids(predictions), _class_ids(references)
        confusion = confusion_matrix(true, predicted, len(CLASSES))
        score, any_abnormal = icbhi_score(confusion), any_abnormal_score(confusion)
        values = score | {f"any_abnormal_{name}": any_abnormal[name] for name in ("Se", "Score")}
        return {name: none_if_nan(value) for name, value in values.items()}


def _class_ids(given: Any) -> Any:
    """Class ids (cycles,) of class ids or of flags (cycles, 2)."""
    values = np.asarray(given)
    if values.ndim == 1:
        return values
    if values.shape[1:] != (2,):
        raise ValueError(f"flags must be (cycles, 2), crackle then wheeze, not {values.shape}")
    return four_class(values[:, 0], values[:, 1])
