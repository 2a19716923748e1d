"""The sections of a recipe: what can be set, with which values, and what each setting does.

Decisions: the defaults are the plain method (joint training, every cycle once an epoch, one view, no mixing); what a
published system did differently has to be set. The description of a field is its documentation: the reference page,
`laennec train --help` and the JSON schema take it from here. A dotted name (package.module:Name) is checked for its
form only and imported when training begins, so that the recipe of a finished run can be read without its code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from laennec.audio.augmentation import (
    FrequencyResponse,
    Gain,
    PitchShift,
    RandomCrop,
    SpecAugment,
    TimeShift,
    TimeStretch,
    WhiteNoise,
)
from laennec.errors import InputError
from laennec.extension import is_dotted_name, load_object


def _dotted(name: str) -> str:
    if not is_dotted_name(name):
        raise ValueError(f"{name!r} is not a dotted name; write package.module:Name")
    return name


DottedName = Annotated[str, AfterValidator(_dotted)]
Missing = Literal["drop", "own_group"]
_MISSING = "cycles whose columns are unknown: drop leaves them out, own_group makes them one group"


class Settings(BaseModel):
    """A section of a recipe: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, populate_by_name=True)


class OwnObject(Settings):
    """A user's own object: a dotted name and its arguments."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    class_: DottedName = Field(alias="class", description="package.module:Name; further keys are its arguments")

    @property
    def arguments(self) -> dict[str, Any]:
        """All keys but the class."""
        return dict(self.model_extra or {})

    def make(self, where: str, folders: Sequence[Path] = ()) -> Any:
        """Import the class and call it with its arguments."""
        kind = load_object(self.class_, where, folders)
        try:
            return kind(**self.arguments)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: {self.class_}: {error}") from error


class TargetSettings(Settings):
    """What the head predicts."""

    problem_type: Literal["multi_label", "single_label"] | None = Field(
        default=None,
        description="each label independently, or one class of several; left out: what the corpus holds (multi_label: "
        "crackle and wheeze, and own labels of which a row can have several; single_label: all others)",
    )
    column: str | None = Field(
        default=None,
        description="single_label: the column to predict, such as diagnosis, or abnormal (normal or any other class); "
        "multi_label: events, for names of events",
    )
    names: list[str] = Field(
        default_factory=list, description="label names, in the order of the logits; left out: those of the corpus"
    )


class FeatureSettings(Settings):
    """The features, the same in training and prediction."""

    preset: Literal[
        "efficientat", "ast", "beats", "song2021", "whisper", "whisper-128", "w2v-bert", "clap", "clap-fused",
        "waveform", "waveform-raw",
    ] = Field(default="efficientat", description="front end; waveform-raw: not standardised")  # fmt: skip
    length: str | None = Field(
        default=None,
        description="natural, repeat, repeat_pad, zero, crop or zero_frames (unmasked frames of zeros, as stock AST); "
        "the preset's own where left out",
    )
    duration_s: float | None = Field(
        default=None, description="length in seconds that cycles are repeated, padded or cut to"
    )
    fade_s: float = Field(default=0.0, description="fade between repetitions, in seconds")
    keep: Literal["first", "last", "center", "random"] = Field(
        default="first",
        description="part that is kept of cycles longer than duration_s; random: drawn in each epoch, the center in "
        "prediction",
    )
    mean: float | Literal["train"] | None = Field(
        default=None,
        description="mean in (x - mean) / (2 std), which normalises the features: a number, or train: mean and std of "
        "the training cycles, stored with the model; the preset's own where left out",
    )
    std: float | None = Field(default=None, gt=0, description="std in that formula; needed where mean is a number")
    filter_kind: Literal["lowpass", "highpass", "bandpass"] | None = Field(
        default=None, description="Butterworth filter of the recording"
    )
    filter_cutoff_hz: float | list[float] | None = Field(
        default=None, description="cutoff in Hz; two of them for bandpass"
    )
    filter_order: StrictInt = Field(default=4, description="order of the filter")
    context_cycles: StrictInt = Field(
        default=0,
        ge=0,
        description="concatenated context: cycles before and after, from the same recording; not labelled",
    )

    @model_validator(mode="after")
    def _rules(self) -> "FeatureSettings":
        if isinstance(self.mean, float) != (self.std is not None):
            raise ValueError("give features.mean and features.std as two numbers, or features.mean: train alone")
        if self.keep == "random" and self.duration_s is None:
            raise ValueError("features.keep is random; give features.duration_s, in seconds")
        return self


class LoraSettings(Settings):
    """Low-rank adapters of a frozen encoder."""

    rank: StrictInt = Field(default=8, ge=1, description="rank of the adapters")
    alpha: float = Field(default=16.0, gt=0, description="adapters are scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the adapters' input")
    target_modules: list[str] = Field(default=["q_proj", "v_proj"], min_length=1, description="names of linear layers")


class EncoderSettings(Settings):
    """The network that turns features into an embedding."""

    class_: DottedName | None = Field(
        default=None, alias="class", description="package.module:Name of your own encoder, in place of type"
    )
    type: Literal[
        "mobilenet", "cnn", "ast", "beats", "statistics", "whisper", "wav2vec2", "hubert", "wavlm", "data2vec-audio",
        "unispeech", "unispeech-sat", "wav2vec2-bert", "clap", "audiomae", "resnet",
    ] = Field(
        default="mobilenet",
        description="architecture; statistics: mean and spread of mel bins; resnet: for cycles of one length",
    )  # fmt: skip
    weights: str | None = Field(
        default=None, description="a released file, a folder or a Hub id; random weights if left out"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a Hub id")
    trainable: Literal["full", "frozen", "last_n", "lora"] = Field(
        default="full", description="what is trained: everything, nothing, the last layers, or low-rank adapters"
    )
    train_last_layers: StrictInt = Field(default=0, ge=0, description="last_n: how many layers, counted from the end")
    lora: LoraSettings = Field(default_factory=LoraSettings)
    backend: Literal["torch", "onnx"] = Field(
        default="torch", description="what runs a frozen encoder; onnx: onnxruntime on the CPU, exported once"
    )
    group_frames: StrictInt = Field(
        default=0, ge=0, description="encode overlapping groups of this many frames; 0: whole cycles"
    )
    group_step: StrictInt = Field(default=15, ge=1, description="frames between the starts of two groups")
    layers: list[StrictInt | Literal["embedding"]] = Field(
        default_factory=list,
        description="layers whose means over time make up the embedding, counted from 1, or from -1 for the last; "
        "embedding: the encoder's own embedding; left out: only that",
    )
    combine_layers: Literal["concatenate", "weighted_mean"] = Field(
        default="concatenate",
        description="how layers are combined; weighted_mean: with trained weights, encoder.trainable: full or last_n",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="arguments of the encoder's configuration")

    @property
    def frozen(self) -> bool:
        """Whether no weight of the encoder is trained."""
        return self.trainable == "frozen"

    @model_validator(mode="after")
    def _rules(self) -> "EncoderSettings":
        if (self.trainable == "last_n") != (self.train_last_layers != 0):
            raise ValueError(
                f"encoder.trainable is {self.trainable} and encoder.train_last_layers {self.train_last_layers}; "
                "last_n needs a number of layers, and nothing else uses one"
            )
        if self.backend == "onnx" and not self.frozen:
            raise ValueError("encoder.backend: onnx runs a frozen encoder; set encoder.trainable: frozen")
        if self.frozen and self.group_frames:
            raise ValueError("encoder.group_frames is for an encoder that is trained; set encoder.trainable: full")
        if self.layers and self.group_frames:
            raise ValueError("encoder.layers and encoder.group_frames cannot both be set; leave one of them out")
        part = self.trainable not in ("full", "last_n")
        lacks = {"two encoder.layers": len(self.layers) < 2, "encoder.trainable: full or last_n": part}
        if self.combine_layers == "weighted_mean" and any(lacks.values()):
            raise ValueError(
                f"encoder.combine_layers is weighted_mean, which needs {' and '.join(k for k in lacks if lacks[k])}; "
                "with concatenate the head weighs the layers itself"
            )
        return self


class HeadSettings(Settings):
    """From the embedding to the labels."""

    pooling: Literal["encoder", "mean"] = Field(default="encoder", description="how tokens become one embedding")
    hidden_dim: StrictInt = Field(default=0, ge=0, description="width of a hidden layer; 0: the head is linear")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the embedding")
    projection_dim: StrictInt = Field(
        default=0, ge=0, description="width of a shared projection for auxiliary losses; 0: none"
    )
    layer_norm: StrictBool = Field(default=False, description="layer norm of the embedding, as in AST's classifier")
    relu: StrictBool = Field(
        default=False, description="apply a ReLU to the (standardised) embedding, before the dropout"
    )
    standardise: StrictBool | None = Field(
        default=None,
        description="scale the embedding by mean and spread of the training cycles; left out: only if the encoder is "
        "frozen",
    )
    calibration: Literal["none", "temperature", "platt"] = Field(
        default="temperature",
        description="fitted on validation patients; platt: slope and intercept of each yes/no label",
    )
    threshold_rule: Literal["youden", "f1", "icbhi", "icbhi_likeliest", "sensitivity"] | None = Field(
        default=None,
        description="how thresholds are chosen on validation patients; probability 0.5 where left out; "
        "icbhi_likeliest: as icbhi, but the less likely label of a cycle needs the probability 0.5 too",
    )
    sensitivity: float = Field(
        default=0.9, gt=0, le=1, description="threshold_rule sensitivity: the sensitivity to reach"
    )
    smoothing: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="weight of the recording's mean logits in the logits of annotated cycles; auto: the weight that "
        "ranks validation patients best",
    )


class LossSettings(Settings):
    """The objective: a task loss and any number of auxiliary losses."""

    task: Literal["bce", "ce", "focal"] | None = Field(
        default=None,
        description="loss of the labels; left out: bce for multi_label, ce for single_label; bce with single_label: "
        "a binary cross entropy for each class",
    )
    task_weight: float = Field(default=1.0, ge=0, description="weight of the task loss")
    class_weights: Literal["balanced"] | list[float] | None = Field(
        default=None, description="balanced (inverse frequency) or one number for each label"
    )
    focal_gamma: float = Field(default=2.0, ge=0, description="exponent of the focal loss")
    task_views: Literal["first", "all"] = Field(
        default="first", description="views (or clean and mixed copies) of a cycle that the task loss takes"
    )
    teacher: str | None = Field(
        default=None,
        description="a trained model whose probabilities are mixed into the training labels (distillation): folder of "
        "a run, an ensemble or an exported model, or Hub id",
    )
    teacher_weight: float = Field(default=0.5, gt=0, le=1, description="share of the teacher in the training labels")
    auxiliary: dict[str, Any] = Field(
        default_factory=dict,
        description="name: {loss (or class: package.module:Name), weight, start, warm_up, on, projection_dim, labels, "
        "missing, views, and the loss's own arguments}",
    )
    log_gradients: StrictBool = Field(
        default=False,
        description="log the norm of each auxiliary loss's gradient at the embedding, divided by that of the task loss",
    )
    balance: float | None = Field(
        default=None,
        gt=0,
        description="hold the ratio of log_gradients at this value by rescaling the auxiliary losses during training; "
        "several losses keep their relative weights, and the one with the largest weight has this ratio",
    )

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _named_on(cls, given: Any) -> Any:
        """YAML 1.1 reads a bare `on` as true, which JSON then writes as "true" or "True"."""
        if not isinstance(given, dict):
            return given
        words = (True, "true", "True")
        return {
            name: {"on" if key in words else key: value for key, value in entry.items()}
            if isinstance(entry, dict)
            else entry
            for name, entry in given.items()
        }


class MetadataSettings(Settings):
    """How columns become groups, for losses and samplers."""

    age_edges_years: list[float] = Field(
        default=[5.0, 12.0, 18.0, 40.0, 65.0], description="edges of the column age_band"
    )


class SamplerSettings(Settings):
    """Which cycles are in a batch together."""

    model_config = ConfigDict(extra="allow")

    class_: DottedName | None = Field(
        default=None, alias="class", description="package.module:Name of your own sampler; other keys are its arguments"
    )
    name: Literal[
        "shuffle", "length_bucketed", "anchor_positive", "classes_times_samples", "patient_balanced",
        "metadata_matched", "device_balanced", "balanced",
    ] = Field(default="shuffle", description="built-in sampler; length_bucketed: cycles of similar length")  # fmt: skip
    negatives: StrictInt = Field(default=16, ge=1, description="tuplet loss: negatives for each anchor")
    classes: StrictInt = Field(default=4, ge=1, description="classes_times_samples: classes in a batch")
    patients: StrictInt = Field(default=4, ge=1, description="patient_balanced: patients in a batch")
    devices: StrictInt = Field(default=0, ge=0, description="device_balanced: devices in a batch; 0: all")
    samples: StrictInt = Field(default=8, ge=1, description="cycles of each class, patient or device in a batch")
    columns: list[str] = Field(
        default_factory=list,
        description="metadata_matched: columns equal within a batch, e.g. [age_band, sex]; balanced: "
        "columns whose values are drawn equally often, e.g. [corpus, device] for devices within each corpus",
    )
    missing: Missing = Field(default="drop", description=_MISSING)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of a user's own sampler."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _rules(self) -> "SamplerSettings":
        if self.class_ is None and self.model_extra:
            raise PydanticCustomError("unknown_key", "unknown key", {"key": f"sampler.{next(iter(self.model_extra))}"})
        if self.name in ("metadata_matched", "balanced") and not self.columns:
            example = "[age_band, sex]" if self.name == "metadata_matched" else "[corpus, device]"
            raise ValueError(f"sampler.name is {self.name}; name sampler.columns, e.g. {example}")
        return self


class ScheduleSettings(Settings):
    """What is trained when."""

    name: Literal["joint", "alternating", "two_stage"] = Field(
        default="joint", description="encoder and head together, in turns, or one after the other"
    )
    pretrain_epochs: StrictInt = Field(
        default=0, ge=0, description="epochs of the task loss alone, before the schedule"
    )
    pretrain_learning_rate: float = Field(default=1e-3, ge=0, description="learning rate of those epochs")
    head_learning_rate: float = Field(
        default=1e-3, ge=0, description="learning rate of phases that train the head alone"
    )


# where each way of mixing can happen, its default first
MIX_DOMAINS = {
    "mixup": ("waveform", "features"),
    "patch_mix": ("features", "tokens"),
    "group_mix": ("features", "tokens"),
}


class MixSettings(Settings):
    """Cycles of a batch mixed with one another, and their labels with them."""

    method: Literal["mixup", "patch_mix", "group_mix"] = Field(
        default="mixup", description="whole cycles, patches, or groups of frames"
    )
    domain: Literal["waveform", "features", "tokens"] = Field(
        default="waveform", description="where cycles are mixed; left out: waveform for mixup, features otherwise"
    )
    labels: Literal["soft", "lungmix"] = Field(
        default="soft", description="soft: by share; lungmix: normal + x = x, two different abnormal classes = both"
    )
    beta: float = Field(default=10.0, ge=0, description="the share of the own cycle is drawn from Beta(beta, beta)")
    probability: float = Field(
        default=1.0, ge=0, le=1, description="share of batches that are mixed; with each: cycle, share of cycles"
    )
    each: Literal["batch", "cycle"] = Field(
        default="batch", description="mixup: draw whether and how much to mix once for the batch, or for each cycle"
    )
    patch: list[Annotated[StrictInt, Field(ge=1)]] = Field(
        default=[16, 16],
        min_length=2,
        max_length=2,
        description="patch_mix of features: frames and mel bins of a patch",
    )
    whole_columns: StrictBool = Field(default=False, description="patch_mix: exchange whole time columns")
    group_frames: StrictInt = Field(default=20, ge=1, description="group_mix of features: frames of a group")

    @model_validator(mode="before")
    @classmethod
    def _default_domain(cls, values: Any) -> Any:
        method = values.get("method", "mixup") if isinstance(values, dict) else None
        if isinstance(method, str) and method in MIX_DOMAINS:
            values = {"domain": MIX_DOMAINS[method][0]} | values
        return values

    @model_validator(mode="after")
    def _rules(self) -> "MixSettings":
        if self.domain not in MIX_DOMAINS[self.method]:
            possible = " or ".join(MIX_DOMAINS[self.method])
            raise ValueError(f"augment.mix.domain is {self.domain!r}; {self.method} mixes {possible}")
        if self.each == "cycle" and self.method != "mixup":
            raise ValueError(f"augment.mix.each is cycle, which only mixup can do; {self.method} needs each: batch")
        return self


class AugmentSettings(Settings):
    """Random changes of training cycles; a change that is left out is not made."""

    noise: WhiteNoise | None = None
    shift: TimeShift | None = None
    stretch: TimeStretch | None = None
    pitch: PitchShift | None = None
    gain: Gain | None = None
    response: FrequencyResponse | None = None
    crop: RandomCrop | None = None
    spec: SpecAugment | None = None
    custom: list[OwnObject] = Field(
        default_factory=list, description="own augmentations of the waveform, applied last, in this order"
    )
    concatenate_probability: float = Field(
        default=0.0, ge=0, le=1, description="how often a cycle is concatenated with another one, their labels OR-ed"
    )
    concatenate_label: str | None = Field(
        default=None, description="label that the second cycle must have; any if left out"
    )
    mix: MixSettings | None = None
    copies: StrictInt = Field(
        default=1, ge=1, description="frozen encoder: augmented copies of each cycle that are embedded"
    )
