"""From embeddings to a predictions table, the input of evaluation.

Decisions: truth and metadata are copied from the cycle table, so that a predictions table is complete by itself.
Logits are raw, before temperature and threshold, so that any rule can be applied to the same table.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from laennec.corpora.base import class_names, column_of
from laennec.encoders.weights.fingerprint import evaluating
from laennec.errors import InputError
from laennec.evaluation.calibration.operating_point import (
    ICBHI_RULES,
    FittingRule,
    fit_operating_point,
    set_operating_point,
)
from laennec.evaluation.predictions import predictions_metrics
from laennec.modeling import LaennecForAudioClassification
from laennec.training.data.targets import FOUR_CLASSES
from laennec.training.recipe import HeadSettings

_log = logging.getLogger(__name__)
_COPIED = (
    "cycle_id", "recording_id", "patient_id", "device", "chest_location", "acquisition_mode", "sex", "age_years", "bmi",
    "diagnosis", "start_s", "end_s", "crackle", "wheeze", "events", "database", "signal_quality", "fold",
    "corpus",
)  # fmt: skip
SELECTION_METRICS = {
    "icbhi_score": "icbhi.Score",
    "sprsound_score": "sprsound.Score",
    "auroc_macro": "roc_auc_macro",
    "accuracy": "accuracy",
    "uar": "uar",
    "f1_macro": "f1_macro",
    "loss": "loss",
}


def truth_table(table: Any, split: str, column: str | None = None, names: Sequence[str] = ()) -> pd.DataFrame:
    """A predictions table without predictions: metadata and truth of each cycle, and the split's name."""
    copied = dict.fromkeys((*_COPIED, *(names if column is None else ())))
    frame = pd.DataFrame({name: column_of(table, name) for name in copied if name in table.column_names})
    for flag in ("crackle", "wheeze"):
        frame[flag] = frame[flag].astype("Int8")
    truth = column_of(table, column or "label")
    if column == "events":
        frame["label"] = [v[0] if v else None for v in truth]
        frame = frame.assign(
            **{name: [None if v is None else int(name in v) for v in truth] for name in names if name not in frame}
        )
    else:
        classes = class_names(table, column or "label") or (list(FOUR_CLASSES) if column in (None, "label") else [])
        frame["label"] = [None if v is None else classes[v] for v in truth] if classes else truth
    frame["split"] = split
    return frame


def predictions_table(
    model: LaennecForAudioClassification, truth: pd.DataFrame, embeddings: NDArray[np.float32]
) -> pd.DataFrame:
    """Add one `logit_<name>` column for each label of the model."""
    logits = head_logits(model.head, embeddings)
    return truth.assign(**{f"logit_{name}": logits[:, i] for i, name in enumerate(model.config.label_names)})


def head_logits(head: nn.Module, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of a head of a model, in evaluation mode: (cycles, dim) -> (cycles, labels)."""
    with evaluating(head), torch.inference_mode():
        device = next(head.parameters()).device
        logits: NDArray[np.float32] = head(torch.from_numpy(embeddings).to(device)).float().cpu().numpy()
    return logits


@dataclass(eq=False)
class ValidationMetrics:
    """transformers' `compute_metrics`: every metric of evaluation on the validation split.

    With several corpora a metric is the mean of those of each corpus, so corpora of all sizes count equally.
    """

    table: pd.DataFrame  # truth table of the validation split, in the order of evaluation
    problem_type: Any
    names: list[str]  # labels in the order of the logits

    def __call__(self, prediction: Any) -> dict[str, float]:
        """Metrics by name; undefined ones are left out."""
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return self._values(logits)

    def refuse_undefined(self, choice: str) -> None:
        """Refuse a selection metric that is undefined for this truth, whatever the predictions."""
        if choice == "loss":
            return
        name, table = SELECTION_METRICS[choice], self.table.assign(**{f"logit_{label}": 0.0 for label in self.names})
        for corpus, rows in table.groupby("corpus", sort=False) if "corpus" in table else [("", table)]:
            values = self._metrics(rows)
            if name in values:
                continue
            alike = ", ".join(label for label in self.names if f"{label}.roc_auc" not in values)
            why = f"all or none have {alike}" if alike else "none is normal, or the score is not for these labels"
            raise InputError(
                f"train.selection_metric is {choice}, which is undefined for the {len(rows)} validation cycles"
                f"{corpus and f' of {corpus}'} ({why}); set train.selection_metric: loss, or choose other patients: "
                "corpus.validation_fraction, corpus.split_seed"
            )

    def _values(self, logits: NDArray[np.float32]) -> dict[str, float]:
        frame = self.table.assign(**{f"logit_{name}": logits[:, i] for i, name in enumerate(self.names)})
        if "corpus" not in frame:
            return self._metrics(frame)
        each = {corpus: self._metrics(rows) for corpus, rows in frame.groupby("corpus", sort=False)}
        common = set.intersection(*(set(values) for values in each.values()))
        means = {name: sum(values[name] for values in each.values()) / len(each) for name in common}
        return means | {f"{corpus}_{name}": value for corpus, values in each.items() for name, value in values.items()}

    def _metrics(self, frame: pd.DataFrame) -> dict[str, float]:
        values = predictions_metrics(frame, problem_type=self.problem_type, label_names=self.names)["values"]
        return {name: value for name, value in values.items() if value is not None}


def default_metrics(config: Any) -> Callable[[Any], dict[str, float]]:
    """Transformers' `compute_metrics` for a model without one: the metrics of evaluation by the batches' labels."""
    names, problem = config.label_names, "multi_label" if config.is_multi_label else "single_label"

    def compute(prediction: Any) -> dict[str, float]:
        return ValidationMetrics(_truth_frame(prediction.label_ids, names), problem, names)(prediction)

    return compute


def _truth_frame(labels: Any, names: Sequence[str]) -> pd.DataFrame:
    """The labels of batches as the columns of a truth table."""
    truth = np.asarray(labels)
    if truth.ndim == 1:
        return pd.DataFrame({"label": [names[number] for number in truth]})
    return pd.DataFrame({name: truth[:, i].astype(int) for i, name in enumerate(names)})


def fit_on_outputs(config: Any, prediction: Any, rule: FittingRule) -> dict[str, Any]:
    """Fit calibration and thresholds on what a Trainer predicted, and store them in the model's config."""
    if prediction.predictions is None or prediction.label_ids is None:
        raise InputError("thresholds are fitted on labelled cycles, and the validation data have none")
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    columns = {f"logit_{name}": logits[:, i] for i, name in enumerate(config.label_names)}
    table = _truth_frame(prediction.label_ids, config.label_names).assign(**columns)
    config.operating_points = {}  # of windows and recordings, fitted earlier
    return _fit(config, table, rule)


def _fit(config: Any, table: pd.DataFrame, rule: FittingRule | HeadSettings) -> dict[str, Any]:
    """Fit an operating point, log its notes and store it in a model's config."""
    fitted = fit_operating_point(table, config.label_names, config.is_multi_label, rule)
    for note in fitted["notes"]:
        _log.warning("%s", note)
    set_operating_point(config, fitted)
    return fitted


def calibrate(
    model: LaennecForAudioClassification, predictions: pd.DataFrame, settings: HeadSettings
) -> dict[str, Any] | None:
    """Fit calibration and thresholds on validation predictions and store them in the model's config.

    Returns:
        The fitted values, for the run record; None if there are none.
    """
    if settings.threshold_rule is None and settings.calibration == "none" and not settings.smoothing:
        set_operating_point(model.config, None)
        return None
    return _fit(model.config, predictions, settings)


def check_rule(settings: HeadSettings, names: Sequence[str], multi_label: bool) -> None:
    """Refuse a threshold rule that does not apply to these labels."""
    if multi_label and settings.threshold_rule in ICBHI_RULES and set(names) != {"crackle", "wheeze"}:
        raise InputError(
            f"head.threshold_rule is {settings.threshold_rule}, which is for crackle and wheeze, but the labels are "
            f"{', '.join(names)}; take youden, f1 or sensitivity"
        )
