"""The sections of a recipe for single steps: training, evaluation, pre-training, model card."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StrictBool, StrictInt, field_validator, model_validator

from laennec.audio.augmentation import Gain, PitchShift, SpecAugment, TimeShift, TimeStretch
from laennec.training.recipe.settings import DottedName, Missing, OwnObject, Settings


class StepSettings(Settings):
    """The settings that training and pre-training share."""

    max_steps: StrictInt = Field(default=-1, description="steps after which training ends; -1: no limit")
    optimizer: Literal["adamw", "adam", "adam_l2"] = Field(
        default="adamw", description="adamw: decoupled weight decay; adam: none; adam_l2: added to the gradient (L2)"
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="how the learning rate falls after the warm-up"
    )
    warmup_ratio: float = Field(
        default=0.0, ge=0, lt=1, description="share of the steps in which the learning rate rises"
    )
    max_grad_norm: float = Field(default=1.0, ge=0, description="gradients are clipped to this norm; 0: never")
    save_steps: StrictInt = Field(
        default=0, ge=0, description="steps between checkpoints, besides one per epoch; 0: no others"
    )


class TaskSettings(Settings):
    """An auxiliary task: additional classes of the cycles, or of whole recordings, with its own head."""

    labels: list[str] = Field(default_factory=list, description="its classes, two or more, the normal one first")
    column: str = Field(default="events", description="column of the cycle table with the class")
    level: str | None = Field(
        default=None, description="what it classifies: left out, the cycles; else a level of the corpus, such as record"
    )
    weight: float = Field(default=1.0, gt=0, description="weight of its cross entropy in the objective")
    batch_size: StrictInt = Field(default=5, ge=1, description="with level: recordings added to each batch")
    windows: StrictInt = Field(default=3, ge=1, description="with level: windows of each of these recordings")
    window_s: float | None = Field(
        default=None, gt=0, description="with level: length of a window; left out: features.duration_s"
    )
    smooth: StrictBool = Field(
        default=False,
        description="without level: smooth logits over the recording, by a strength fitted on validation patients",
    )

    @model_validator(mode="after")
    def _rules(self) -> "TaskSettings":
        if len(set(self.labels)) < 2:
            raise ValueError("give its labels, two or more, e.g. labels: [Normal, Wheeze]")
        if self.smooth and self.level is not None:
            raise ValueError("smooth is only for tasks about cycles; leave smooth or level out")
        return self


class TrainSettings(StepSettings):
    """How long, how fast, and which epoch is kept."""

    epochs: StrictInt = Field(default=20, ge=1, description="passes over the training cycles")
    spans: Literal["events", "windows", "both"] = Field(
        default="events",
        description="training examples: annotated events (or cycles), the windows of prediction, or both; a window has "
        "the labels of the spans that overlap it by half",
    )
    background: bool = Field(
        default=False,
        description="with windows: those that no annotated span overlaps are training examples too, without any label",
    )
    batch_size: StrictInt = Field(default=32, ge=1, description="cycles in a batch of one process")
    evaluation_batch_size: StrictInt = Field(
        default=64, ge=1, description="cycles in a batch of evaluation on a GPU; a CPU takes one by one"
    )
    gradient_accumulation_steps: StrictInt = Field(default=1, ge=1, description="batches whose gradients make one step")
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=[0.9, 0.999], min_length=2, max_length=2, description="betas of the optimizer"
    )
    learning_rate: float = Field(default=1e-3, ge=0, description="highest learning rate")
    weight_decay: float = Field(default=1e-2, ge=0, description="weight decay of adamw and adam_l2")
    patience: StrictInt = Field(
        default=0, ge=0, description="epochs without improvement before training stops; 0: never"
    )
    selection_metric: Literal[
        "icbhi_score", "sprsound_score", "auroc_macro", "accuracy", "uar", "f1_macro", "loss"
    ] = Field(default="icbhi_score", description="validation metric that chooses the epoch")  # fmt: skip
    sync_batch_norm: StrictBool = Field(
        default=False, description="several processes: batch statistics over all of them"
    )
    bf16: StrictBool = Field(default=False, description="activations in bfloat16 while training")
    compile: StrictBool = Field(default=False, description="compile the layers of a transformer; pays on long GPU runs")
    gradient_checkpointing: StrictBool = Field(default=False, description="less memory for about a third more time")
    workers: Annotated[StrictInt, Field(ge=0)] | None = Field(
        default=None, description="processes that load data; left out: none on a CPU, up to 8 on a GPU"
    )
    threads: StrictInt = Field(default=1, ge=1, description="torch threads on a CPU")
    epoch_cosine: StrictBool = Field(
        default=False,
        description="published rule: cosine by epoch, below the full rate from the start (no lr_scheduler_type)",
    )
    moving_average: float | None = Field(
        default=None, ge=0, lt=1, description="published rule: after each step, weights <- b * before + (1 - b) * after"
    )
    sam_rho: float | None = Field(default=None, ge=0, description="published rule: sharpness-aware minimisation")
    sam_adaptive: StrictBool = Field(default=False, description="adaptive variant of sam_rho")
    callbacks: list[OwnObject] = Field(
        default_factory=list, description="own callbacks: package.module:Name, or {class: ..., own arguments}"
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="further fields of transformers.TrainingArguments, such as report_to"
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_callbacks(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(given := values.get("callbacks"), list):
            values = values | {"callbacks": [{"class": item} if isinstance(item, str) else item for item in given]}
        return values

    @model_validator(mode="after")
    def _rules(self) -> "TrainSettings":
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"train.max_steps is {self.max_steps}; it must be at least 1, or -1 for no limit")
        if self.sam_rho is not None and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "train.sam_rho needs the gradient of the whole batch; set train.gradient_accumulation_steps to 1"
            )
        if self.epoch_cosine and self.warmup_ratio:
            raise ValueError("train.epoch_cosine has no warm-up; set train.warmup_ratio to 0")
        return self


class EvaluationSettings(Settings):
    """What `laennec evaluate` computes besides its own figures."""

    metrics: list[DottedName] = Field(
        default_factory=list, description="own metrics: package.module:function of the predictions table"
    )


# licence ids of the Hub that fit a model; "other" needs card.licence_name
Licence = Literal[
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "mpl-2.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0", "odc-by", "odbl", "pddl", "unlicense", "openrail", "other",
]  # fmt: skip
LICENCES = get_args(Licence)


class PretrainSettings(StepSettings):
    """Self-supervised pre-training: labels are never read."""

    views: list[Literal["split", "raw", "spec", "time", "frequency"]] = Field(
        default=["raw"],
        min_length=1,
        description="how two views of a pair differ: split (a crop each), raw (gain, pitch, shift, stretch), spec "
        "(masks in time and frequency), time, frequency (masks in one of them)",
    )
    pairs: Literal[
        "self",
        "same_recording",
        "same_patient_same_location",
        "same_patient_other_location",
        "same_location_across_patients",
        "age_band",
    ] = Field(
        default="self",
        description="positive pairs: two views of one cycle, or of two; age_band: self, and all cycles of an age band",
    )
    unpaired: Literal["own_views", "drop"] = Field(
        default="own_views",
        description="cycles without a second cycle for their pair: paired with themselves, or left out",
    )
    negatives: Literal["all", "other_patients"] = Field(
        default="all", description="negatives of a cycle: all others in the batch, or only those of other patients"
    )
    match: list[str] = Field(
        default_factory=list, description="columns equal within a batch (hard negatives), e.g. [age_band, sex]"
    )
    missing: Missing = Field(
        default="drop", description="cycles whose columns (of pairs or match) are unknown: left out, or one group"
    )
    splits: list[Literal["train", "validation"]] = Field(
        default=["train"], min_length=1, description="splits that make the pre-training set; a test split never does"
    )
    init: Literal["weights", "random"] = Field(
        default="weights", description="first weights: encoder.weights, or random ones"
    )
    window_s: float = Field(
        default=3.0, description="recordings without annotation are cut into windows of this length"
    )
    hop_s: float = Field(default=3.0, gt=0, description="seconds from window to window")
    crop_fraction: float = Field(default=0.5, gt=0, le=1, description="split: share of the cycle in a crop")
    max_duration_s: float | None = Field(
        default=None, gt=0, description="longest view, cut at a random place; no limit if left out"
    )
    gain: Gain | None = Gain()
    pitch: PitchShift | None = PitchShift()
    shift: TimeShift | None = TimeShift(max_shift_fraction=0.25)
    stretch: TimeStretch | None = TimeStretch()
    masks: SpecAugment = Field(
        default=SpecAugment(16, 12, freq_masks=2, time_masks=5),
        description="masks of the views spec, time and frequency",
    )
    temperature: float = Field(default=0.07, gt=0, description="temperature of the contrastive loss")
    base_temperature: float | None = Field(
        default=None, gt=0, description="the loss is multiplied by temperature / base_temperature; by 1 if left out"
    )
    projection_dim: StrictInt = Field(
        default=256, ge=1, description="width of the projection, which is dropped afterwards"
    )
    epochs: StrictInt = Field(default=10, ge=1, description="passes over the pre-training set")
    batch_size: StrictInt = Field(default=16, ge=2, description="pairs in a batch of one process")
    learning_rate: float = Field(default=1e-4, ge=0, description="highest learning rate")
    weight_decay: float = Field(default=1e-6, ge=0, description="weight decay of adamw and adam_l2")

    @model_validator(mode="after")
    def _rules(self) -> "PretrainSettings":
        if self.hop_s > self.window_s:
            raise ValueError(f"pretrain.hop_s is {self.hop_s:g}, more than pretrain.window_s {self.window_s:g}")
        if self.views == ["raw"] and not (self.gain or self.pitch or self.shift or self.stretch):
            raise ValueError("pretrain.views is raw alone; set one of gain, pitch, shift and stretch")
        if self.pairs == "age_band" and "age_band" in self.match:
            raise ValueError("pretrain.pairs is age_band, so batches of one age band have no negatives; change match")
        if self.pairs == "age_band" and self.negatives != "all":
            raise ValueError("pretrain.pairs is age_band, whose negatives are other age bands; drop pretrain.negatives")
        return self


class CardSettings(Settings):
    """What a model card states that no record holds; free text unless its description names a form."""

    licence: Licence | None = Field(default=None, description="of the model: a licence id of the Hub")
    licence_name: str | None = Field(default=None, description="where licence is other")
    licence_link: str | None = Field(default=None, description="https address of its text")
    base_model: str | None = Field(
        default=None, description="Hub id of the encoder's weights, where encoder.weights is a file"
    )
    dataset: str | None = Field(default=None, description="Hub id of the data, where they are there")
    authors: str | None = Field(default=None, description="who made the model")
    contact: str | None = Field(default=None, description="how to reach them")
    intended_use: str | None = Field(default=None, description="what it is for")
    out_of_scope: str | None = Field(default=None, description="what it is not for")
    users: str | None = Field(default=None, description="who is meant to use it")
    health_inequalities: str | None = Field(default=None, description="known differences between groups of patients")
    data_origin: str | None = Field(default=None, description="where the data come from; known for published corpora")
    reference_standard: str | None = Field(
        default=None, description="who annotated, and how; known for published corpora"
    )
    data_licence: str | None = Field(default=None, description="licence of the data; known for published corpora")
    ethics: str | None = Field(default=None, description="ethics approval")
    funding: str | None = Field(default=None, description="who paid")
    conflicts: str | None = Field(default=None, description="conflicts of interest")
    registration: str | None = Field(default=None, description="registration and protocol of the study")
    patient_involvement: str | None = Field(default=None, description="involvement of patients and the public")
    next_steps: str | None = Field(default=None, description="what is to be done next")

    @field_validator("*")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value is not None and not value.strip():
            raise ValueError("it is empty; give a text ('none' is allowed), or remove the key")
        return value

    @field_validator("licence_link")
    @classmethod
    def _https(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https://[\w./%~#?&=+-]+", value):
            raise ValueError(f"{value!r} is not an https address")
        return value

    @field_validator("base_model", "dataset")
    @classmethod
    def _hub_id(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value):
            raise ValueError(f"{value!r} is not a Hub id like owner/name")
        return value

    @model_validator(mode="after")
    def _named_licence(self) -> "CardSettings":
        if self.licence == "other" and self.licence_name is None:
            raise ValueError("card.licence is other; name it in licence_name, and give its text in licence_link")
        return self
