"""The sections of a recipe that `laennec pretrain` and `laennec card` read."""

import re
from typing import Any, Literal, get_args

from pydantic import Field, StrictInt, field_validator, model_validator

from laennec.audio.augmentation import Gain, PitchShift, SpecAugment, TimeShift, TimeStretch
from laennec.training.recipe.settings import Missing, Settings

# licence ids of the Hub that fit a model; "other" needs card.licence_name
Licence = Literal[
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "mpl-2.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0", "odc-by", "odbl", "pddl", "unlicense", "openrail", "other",
]  # fmt: skip
LICENCES = get_args(Licence)


class PretrainSettings(Settings):
    """Self-supervised pre-training: labels are never read."""

    views: list[Literal["split", "raw", "spec", "time", "frequency"]] = Field(
        ["raw"],
        min_length=1,
        description="how two views of a pair differ: split (a crop each), raw (gain, pitch, shift, stretch), spec "
        "(masks in time and frequency), time, frequency (masks in one of them)",
    )
    pairs: Literal[
        "self", "same_patient_same_location", "same_patient_other_location", "same_location_across_patients", "age_band"
    ] = Field(
        "self",
        description="positive pairs: two views of one cycle, or of two; age_band: self, and all cycles of an age band",
    )
    unpaired: Literal["own_views", "drop"] = Field(
        "own_views", description="cycles without a second cycle for their pair: paired with themselves, or left out"
    )
    match: list[str] = Field(
        default_factory=list, description="columns equal within a batch (hard negatives), e.g. [age_band, sex]"
    )
    missing: Missing = Field(
        "drop", description="cycles whose columns (of pairs or match) are unknown: left out, or one group"
    )
    splits: list[Literal["train", "validation"]] = Field(
        ["train"], min_length=1, description="splits that make the pre-training set; a test split never does"
    )
    init: Literal["weights", "random"] = Field("weights", description="first weights: encoder.weights, or random ones")
    window_s: float = Field(3.0, description="recordings without annotation are cut into windows of this length")
    hop_s: float = Field(3.0, gt=0, description="seconds from window to window")
    crop_fraction: float = Field(0.5, gt=0, le=1, description="split: share of the cycle in a crop")
    max_duration_s: float | None = Field(
        None, gt=0, description="longest view, cut at a random place; no limit if left out"
    )
    gain: Gain | None = Gain()
    pitch: PitchShift | None = PitchShift()
    shift: TimeShift | None = TimeShift(max_shift_fraction=0.25)
    stretch: TimeStretch | None = TimeStretch()
    masks: SpecAugment = Field(
        SpecAugment(16, 12, freq_masks=2, time_masks=5), description="masks of the views spec, time and frequency"
    )
    temperature: float = Field(0.07, gt=0, description="temperature of the contrastive loss")
    base_temperature: float | None = Field(
        None, gt=0, description="the loss is multiplied by temperature / base_temperature; by 1 if left out"
    )
    projection_dim: StrictInt = Field(256, ge=1, description="width of the projection, which is dropped afterwards")
    epochs: StrictInt = Field(10, ge=1, description="passes over the pre-training set")
    max_steps: StrictInt = Field(-1, description="steps after which pre-training ends; -1: no limit")
    batch_size: StrictInt = Field(16, ge=2, description="pairs in a batch of one process")
    optimizer: Literal["adamw", "adam"] = Field("adamw", description="optimizer; adam has no weight decay")
    learning_rate: float = Field(1e-4, ge=0, description="highest learning rate")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay of adamw")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: never")
    save_steps: StrictInt = Field(0, ge=0, description="steps between checkpoints, beside one an epoch; 0: no others")

    @model_validator(mode="after")
    def _rules(self) -> "PretrainSettings":
        if self.hop_s > self.window_s:
            raise ValueError(f"pretrain.hop_s is {self.hop_s:g}, more than pretrain.window_s {self.window_s:g}")
        if self.views == ["raw"] and not (self.gain or self.pitch or self.shift or self.stretch):
            raise ValueError("pretrain.views is raw alone; set one of gain, pitch, shift and stretch")
        if self.pairs == "age_band" and "age_band" in self.match:
            raise ValueError("pretrain.pairs is age_band, so batches of one age band have no negatives; change match")
        return self


class CardSettings(Settings):
    """What a model card says that no record holds; free text where nothing else is said."""

    licence: Licence | None = Field(None, description="of the model: a licence id of the Hub")
    licence_name: str | None = Field(None, description="where licence is other")
    licence_link: str | None = Field(None, description="https address of its text")
    base_model: str | None = Field(None, description="Hub id of the encoder's weights, where encoder.weights is a file")
    dataset: str | None = Field(None, description="Hub id of the data, where they are there")
    authors: str | None = Field(None, description="who made the model")
    contact: str | None = Field(None, description="how to reach them")
    intended_use: str | None = Field(None, description="what it is for")
    out_of_scope: str | None = Field(None, description="what it is not for")
    users: str | None = Field(None, description="who is meant to use it")
    health_inequalities: str | None = Field(None, description="known differences between groups of patients")
    data_origin: str | None = Field(None, description="where the data come from; known for published corpora")
    reference_standard: str | None = Field(None, description="who annotated, and how; known for published corpora")
    data_licence: str | None = Field(None, description="licence of the data; known for published corpora")
    ethics: str | None = Field(None, description="ethics approval")
    funding: str | None = Field(None, description="who paid")
    conflicts: str | None = Field(None, description="conflicts of interest")
    registration: str | None = Field(None, description="registration and protocol of the study")
    patient_involvement: str | None = Field(None, description="involvement of patients and the public")
    next_steps: str | None = Field(None, description="what is to be done next")

    @field_validator("*")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value is not None and not value.strip():
            raise ValueError("it is empty; write something (none is an answer), or leave it out")
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
