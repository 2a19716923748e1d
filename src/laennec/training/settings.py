"""Stage 8, training: every setting of a recipe, with its default.

Decided here: the defaults are the plain method (joint training, every cycle once an epoch, one view, no mixing); what
a published system did differently is a setting that has to be named. The optimisation rules of the literature are off
unless a recipe asks for them.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from laennec.audio.augment import Gain, PitchShift, SpecAugment, TimeShift, TimeStretch, WhiteNoise
from laennec.errors import InputError


class ConfigError(InputError):
    """A recipe or a flag that cannot be used: which key, why, and what would be right."""


@dataclass
class CorpusSettings:
    """What to train on and how it is split."""

    name: str = "synthetic"  # icbhi2017 | sprsound | physionet2016 | folder | hub | synthetic
    data_dir: str | None = None
    protocol: str | None = None
    fold: int = 0
    validation_fraction: float = 0.2
    split_seed: int = 0  # of the split alone: runs of several seeds share their parts
    tables_dir: str | None = None
    allow_missing: bool = False
    level: str | None = None  # sprsound: event | record; physionet2016: recording | window; None: the first of these
    options: dict[str, Any] = field(default_factory=dict)  # of this corpus alone: patients, repo, window_s, ...


@dataclass
class TargetSettings:
    """What the head answers."""

    problem_type: str = "multi_label"  # multi_label | single_label
    column: str | None = None  # single_label: the column to predict; multi_label: "events" for event names
    names: list[str] = field(default_factory=list)


@dataclass
class FeatureSettings:
    """The front end: the same object serves training and prediction."""

    preset: str = "efficientat"
    length: str | None = None
    duration_s: float | None = None
    fade_s: float = 0.0
    filter_kind: str | None = None  # lowpass | highpass | bandpass (Butterworth, on the recording)
    filter_cutoff_hz: float | list[float] | None = None
    filter_order: int = 4
    context_cycles: int = 0  # cycles before and after of the same recording that join a cycle; only it is labelled


@dataclass
class EncoderSettings:
    """The network that turns features into an embedding."""

    type: str = "mobilenet"  # mobilenet | cnn | ast | beats | statistics (no network: mean and spread of each mel bin)
    weights: str | None = None  # None: random initialisation; else a released file, a folder or a Hub id
    revision: str | None = None
    frozen: bool = False
    group_frames: int = 0  # encode overlapping groups of so many frames each by itself (CycleGuardian: 20); 0: whole
    group_step: int = 15  # frames from the start of a group to that of the next
    config: dict[str, Any] = field(default_factory=dict)


@dataclass
class HeadSettings:
    """From the embedding to the labels."""

    pooling: str = "encoder"  # encoder | mean
    hidden_dim: int = 0
    dropout: float = 0.0
    projection_dim: int = 0
    standardise: bool = True
    threshold_rule: str | None = None  # youden | f1 | icbhi | sensitivity, fitted on validation; None: probability 0.5


@dataclass
class LossSettings:
    """The objective: a task loss and any number of auxiliary losses, each with its own arguments."""

    task: str = "bce"  # bce | ce | focal
    task_weight: float = 1.0
    class_weights: str | list[float] | None = None  # None | "balanced" | one number a label
    focal_gamma: float = 2.0
    task_views: str = "first"  # first | all: which views (or clean and mixed copies) the task loss sees
    # name -> {loss, weight, start, warm_up, on, projection_dim, labels, missing, views, and the loss's own arguments}
    auxiliary: dict[str, Any] = field(default_factory=dict)


@dataclass
class MetadataSettings:
    """How columns become groups, for losses and samplers that look at them."""

    age_edges_years: list[float] = field(default_factory=lambda: [5.0, 12.0, 18.0, 40.0, 65.0])  # of age_band


@dataclass
class SamplerSettings:
    """Which cycles meet in a batch."""

    # shuffle | anchor_positive | classes_times_samples | patient_balanced | metadata_matched | device_balanced
    name: str = "shuffle"
    negatives: int = 16  # tuplet: negatives for each anchor
    classes: int = 4  # classes_times_samples: classes in a batch
    patients: int = 4  # patient_balanced: patients in a batch
    devices: int = 0  # device_balanced: devices in a batch; 0: all there are
    samples: int = 8  # of each class, patient or device
    columns: list[str] = field(default_factory=list)  # metadata_matched: equal within a batch, e.g. [age_band, sex]
    missing: str = "drop"  # drop | own_group: cycles whose columns are unknown


@dataclass
class ScheduleSettings:
    """Which part learns from what, when."""

    name: str = "joint"  # joint | alternating | two_stage
    pretrain_epochs: int = 0
    pretrain_learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3


# where each way of mixing can happen, its default first
MIX_DOMAINS = {
    "mixup": ("waveform", "features"),
    "patch_mix": ("features", "tokens"),
    "group_mix": ("features", "tokens"),
}


@dataclass
class MixSettings:
    """Cycles of a batch mixed with one another, and their labels with them."""

    method: str = "mixup"  # mixup | patch_mix | group_mix (whole groups of frames)
    domain: str = ""  # waveform | features | tokens (inside the encoder); left out: the first of MIX_DOMAINS
    labels: str = "soft"  # soft (by share) | lungmix (normal + x = x, two different abnormal ones = both)
    beta: float = 10.0  # the share of the own cycle comes from Beta(beta, beta)
    probability: float = 1.0  # share of batches that are mixed
    patch: list[int] = field(default_factory=lambda: [16, 16])  # patch_mix of features: frames and mel bins of a patch
    whole_columns: bool = False  # patch_mix: exchange whole time columns
    group_frames: int = 20  # group_mix of features: frames of a group

    def __post_init__(self) -> None:
        if self.method not in MIX_DOMAINS:
            raise ValueError(f"method can be {' or '.join(MIX_DOMAINS)}: {self.method!r}")
        possible = MIX_DOMAINS[self.method]
        # records of earlier versions say waveform for patch_mix too, which always mixed features
        if not self.domain or (self.method == "patch_mix" and self.domain == "waveform"):
            self.domain = possible[0]
        if self.domain not in possible:
            raise ValueError(f"{self.method} mixes {' or '.join(possible)}: domain {self.domain!r}")
        if self.labels not in ("soft", "lungmix"):
            raise ValueError(f"labels can be soft or lungmix: {self.labels!r}")
        if self.beta < 0 or not 0 <= self.probability <= 1:
            raise ValueError(f"beta must not be negative, probability within [0, 1]: {self.beta}, {self.probability}")
        if len(self.patch) != 2 or min(self.patch) < 1 or self.group_frames < 1:
            raise ValueError(
                f"patch must be the frames and the mel bins of a patch, two numbers, not {self.patch}; group_frames at "
                f"least 1, not {self.group_frames}"
            )


@dataclass
class AugmentSettings:
    """Draws on training cycles; a part that is left out never happens."""

    noise: WhiteNoise | None = None
    shift: TimeShift | None = None
    stretch: TimeStretch | None = None
    pitch: PitchShift | None = None
    gain: Gain | None = None
    spec: SpecAugment | None = None
    concatenate_probability: float = 0.0
    concatenate_label: str | None = None  # partners must carry this label; None: any cycle
    mix: MixSettings | None = None
    copies: int = 1  # frozen encoder: how many augmented copies of each cycle are embedded


@dataclass
class TrainSettings:
    """How long, how fast, and which epoch is kept."""

    epochs: int = 20
    max_steps: int = -1
    batch_size: int = 32
    evaluation_batch_size: int = 64
    gradient_accumulation: int = 1
    optimizer: str = "adamw"  # adamw | adam
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of either optimizer
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    lr_schedule: str = "cosine"  # constant | linear | cosine
    warmup_fraction: float = 0.0
    max_grad_norm: float = 1.0
    patience: int = 0  # epochs without improvement before stopping; 0: never
    selection_metric: str = "icbhi_score"  # icbhi_score | sprsound_score | auroc_macro | accuracy | uar | loss
    bf16: bool = False
    workers: int = 0
    threads: int = 1  # torch threads on a CPU
    # rules of published systems, for reproducing them
    epoch_cosine: bool = False  # the rate falls once an epoch, from below the full one (in place of lr_schedule)
    moving_average: float | None = None  # beta: after each step, weights <- beta * before + (1 - beta) * after
    sam_rho: float | None = None  # sharpness-aware minimisation; every batch runs twice
    sam_adaptive: bool = False


@dataclass
class Recipe:
    """One experiment, whole."""

    name: str = "unnamed"
    description: str = ""
    seed: int = 0
    output_dir: str | None = None
    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    target: TargetSettings = field(default_factory=TargetSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    head: HeadSettings = field(default_factory=HeadSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    metadata: MetadataSettings = field(default_factory=MetadataSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return dataclasses.asdict(self)
