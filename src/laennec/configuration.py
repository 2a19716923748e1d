"""The configuration of a model, as config.json keeps it.

Decisions: calibration and thresholds are part of the model, by label name, so that every user gets the decisions of its
authors. A file without them is an uncalibrated model with thresholds of 0.5. `ModelSettings` defines the settings,
their ranges and their defaults; transformers keeps those that all its models have.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedConfig

from laennec.encoders import LayersConfig, config_from_dict
from laennec.encoders.weights.checkpoints import wrong_settings
from laennec.errors import InputError
from laennec.model_settings import NEUTRAL, PROBLEM_TYPES, DecisionSettings, ModelSettings, checked
from laennec.untrusted import refuse_names, refuse_settings

# name in the first edition, whose models are still read -> present name
_FORMER_NAMES = {"joins_context": "concatenated_context", "leanings": "logit_adjustment"}
# what the weights of a file are, which nobody can change by a setting
_OF_WEIGHTS = ("lora", "head_only", "encoder_digest")
CHANGEABLE = ModelSettings.model_fields.keys() - set(_OF_WEIGHTS)
_OF_TRANSFORMERS = ("id2label", "label2id", "num_labels", "problem_type")
SETTINGS = {name: field for name, field in ModelSettings.model_fields.items() if name not in _OF_TRANSFORMERS}

# what a model was trained on: "cycle", "recording", or the length of windows in seconds
Span = str | float


def span_noun(span: Span) -> str:
    """The word for one span: cycle, recording or window."""
    return span if isinstance(span, str) else "window"


def _present_names(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {_FORMER_NAMES.get(name, name): value for name, value in values.items()}


class LaennecConfig(DecisionSettings, PreTrainedConfig):
    """Configuration of a laennec model.

    Args:
        encoder_config: The encoder's own configuration (or its dict).
        problem_type: "multi_label" (independent labels, sigmoid) or "single_label" (exactly one class, softmax);
            transformers' longer names too.
        concatenated_context: Whether the embedding of a cycle is followed by that of its concatenated context (it
            and its neighbours; `context_cycles` of the feature extractor).
        pooling: "encoder" is the pooling of the released encoder, "mean" the masked mean over tokens of real frames.
        head_hidden_dim: Width of a hidden layer in the head; 0 for a linear head.
        head_dropout: Dropout before the last layer, 0 to 1.
        head_layer_norm: Whether the embedding is layer-normalised first, as in AST's own classifier.
        head_relu: Whether the (standardised) embedding goes through a ReLU.
        head_members: Number of models in an ensemble, whose heads are kept beside their mean; 0 for a single model.
        projection_dim: Width of the projection for auxiliary losses; 0 for none (they take the embedding).
        frozen_encoder: Whether the encoder is never trained.
        trained_layers: How many of the encoder's last layers are trained; None for all.
        lora: rank, alpha, dropout and target_modules of adapters in the encoder, whose own weights are then frozen.
        base_model_name_or_path: Where the encoder's weights came from: a Hub id, a folder or a released checkpoint
            file; None for random weights.
        base_model_revision: The Hub revision of the base.
        encoder_digest: sha256 of the base's weights; checked when a head-only checkpoint is loaded.
        head_only: Whether the saved weights leave the encoder out (adapters have a folder of their own).
        thresholds: Operating point of each label as a probability, by label name; 0.5 where absent.
        temperatures: Divisor of each label's logit, by label name; 1 where absent.
        intercepts: Added to the divided logit (Platt scaling), by label name; 0 where absent.
        second_thresholds: A second threshold, by label name, that a label must pass where another label of the span has
            a higher probability; 0 where absent.
        operating_point: How thresholds and calibration were fitted: "calibration", "rule", "sensitivity", "fitted_on",
            "notes"; and "smoothing", the weight of the recording's mean in the logits of its annotated events. All were
            fitted on annotated events.
        operating_points: The same for "windows" and for "recordings" (of the highest logit of a recording's windows),
            fitted on validation windows: {"thresholds", "temperatures", "intercepts", "window_s", "hop_s", ...}.
        tasks: Auxiliary tasks by name, each with a head: "labels", "level" (None for cycles), "logit_adjustment"
            (subtracted from the first class' logit) and "smoothing" (the weight of a recording's mean in the
            predictions for its cycles).
        summary: One line: what the model is, the patients it was trained on and its scores; written by export.
        span: What the model was trained on and predicts by default: "cycle" (by default it predicts windows of 3 s),
            "recording", or the length of windows in seconds.
        sampling_rate: Of the sound that features are computed from, in Hz; None where it is not known.
        selection_set: The split or other data on which the epoch was chosen; None where it is not known.
        features_fingerprint: Of the feature extractor that the model was trained with; None where it is not known.
    """

    model_type = "laennec"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["embeddings", "projections"]

    encoder_config: Any = None
    problem_type: str = "multi_label"

    def __setattr__(self, name: str, value: Any) -> None:
        """Store a problem type under transformers' name: some versions of transformers refuse any other."""
        known = name == "problem_type" and isinstance(value, str)
        super().__setattr__(name, PROBLEM_TYPES.get(value, value) if known else value)

    def __post_init__(self, **kwargs: Any) -> None:
        """Check every value, fill in defaults, and build the encoder's configuration from its dict."""
        for name, field in SETTINGS.items():
            default = field.get_default(call_default_factory=True, validated_data={})
            value = kwargs.pop(name, default)
            setattr(self, name, {} if value is None and default == {} else value)
        checked(ModelSettings, {name: vars(self).get(name, kwargs.get(name)) for name in ModelSettings.model_fields})
        if taken := [name for name in self.tasks if hasattr(nn.ModuleDict, name)]:
            raise InputError(f"tasks: {taken[0]!r} cannot name a task; rename it")
        if isinstance(self.encoder_config, dict):
            self.encoder_config = config_from_dict(self.encoder_config)
        if isinstance(self.encoder_config, LayersConfig) and self.pooling != "encoder":
            raise InputError("layers are averaged over time already; leave pooling (head.pooling) at encoder")
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """Make a configuration of values that may be untrusted.

        Raises:
            InputError: A value is invalid, see `laennec.model_settings` and `laennec.untrusted`.
        """
        where = Path(kwargs.get("name_or_path") or "") / "config.json"
        refuse_settings(config_dict, where)
        values = _present_names(config_dict)
        if isinstance(values.get("tasks"), dict):
            values["tasks"] = {name: _present_names(task) for name, task in values["tasks"].items()}
        if not isinstance(values.get("encoder_config"), dict | PreTrainedConfig):
            raise InputError(f"{where}: encoder_config does not hold the settings of an encoder; get the model again")
        refuse_names(values, cls, where)
        try:
            with wrong_settings("settings"):
                return super().from_dict(values, **kwargs)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    @classmethod
    def load(cls, name: str | Path, changes: Mapping[str, Any] | None = None, **hub: Any) -> "LaennecConfig":
        """Load the configuration of a laennec model; transformers would accept that of any model.

        Args:
            name: A folder or a Hub id.
            changes: Settings that replace those of the file.
            **hub: Revision, token and the like.

        Raises:
            InputError: The configuration is not that of a laennec model, or has an invalid value.
        """
        values, _ = cls.get_config_dict(name, **hub)
        values = values if isinstance(values, dict) else {}
        kind = values.get("model_type")
        if kind != cls.model_type:
            what = f"holds a {kind!r} model" if kind else "has no config.json that names a model"
            raise InputError(f"{name}: {what}, not a laennec model; give a run, an exported folder or a Hub id of one")
        config: LaennecConfig = cls.from_dict(values | dict(changes or {}), name_or_path=str(name))
        return config

    def forget_fits(self) -> None:
        """Reset what holds for the present weights alone: calibration, thresholds and summary."""
        for setting in (*NEUTRAL, "operating_point", "operating_points"):
            setattr(self, setting, {})
        self.summary: str | None = None

    @property
    def label_names(self) -> list[str]:  # type: ignore[override]
        """The labels in the order of the logits."""
        return [self.id2label[i] for i in range(self.num_labels)]
