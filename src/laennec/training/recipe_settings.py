"""Every setting of a recipe, with its default.

Decisions: the defaults are the plain method (joint training, every cycle once an epoch, one view, no mixing); what
a published system did differently is a setting that has to be named. The optimisation rules of the literature are off
unless a recipe asks for them.
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from typing import Any

from laennec.audio.augmentation import Gain, PitchShift, SpecAugment, TimeShift, TimeStretch, WhiteNoise
from laennec.errors import InputError


class ConfigError(InputError):
    """A recipe or a flag that cannot be used: which key, why, and what would be right."""


@dataclass
class CorpusSettings:
    """What to train on and how it is split."""

    name: str = "synthetic"  # icbhi2017 | sprsound | physionet2016 | folder | hub | synthetic
    data_dir: str | None = None  # folder, zip, or an export of the corpus: its folder or hf://datasets/OWNER/NAME
    protocol: str | None = None
    fold: int = 0
    validation_fraction: float = 0.2
    split_seed: int = 0  # of the split alone: runs of several seeds share their parts
    tables_dir: str | None = None
    allow_missing: bool = False
    level: str | None = None  # sprsound: event | record; physionet2016: recording | window; None: the first of these
    label_fraction: float = 1.0  # share of the labelled training cycles; validation and test stay whole
    label_draw: int = 0  # which draw of that share
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

    # efficientat | ast | beats | song2021 | whisper | whisper-128 | w2v-bert | clap | clap-fused | waveform |
    # waveform-raw (do_normalize: false in the checkpoint's preprocessor_config.json)
    preset: str = "efficientat"
    length: str | None = None
    duration_s: float | None = None
    fade_s: float = 0.0
    filter_kind: str | None = None  # lowpass | highpass | bandpass (Butterworth, on the recording)
    filter_cutoff_hz: float | list[float] | None = None
    filter_order: int = 4
    context_cycles: int = 0  # cycles before and after of the same recording that join a cycle; only it is labelled


@dataclass
class LoraSettings:
    """Low-rank adapters beside an encoder that itself is_frozen."""

    rank: int = 8
    alpha: float = 16.0  # adapters count alpha / rank
    dropout: float = 0.0  # of what an adapter sees
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])  # names of linear layers

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or not self.target_modules:
            raise ValueError(
                f"rank {self.rank}, alpha {self.alpha:g}, dropout {self.dropout:g}, target_modules "
                f"{self.target_modules}; give a rank of at least 1, alpha above 0, dropout in [0, 1) and a name"
            )


@dataclass
class EncoderSettings:
    """The network that turns features into an embedding."""

    # mobilenet | cnn | ast | beats | statistics (no network: mean and spread of each mel bin), or of transformers:
    # whisper | wav2vec2 | hubert | wavlm | data2vec-audio | unispeech | unispeech-sat | wav2vec2-bert | clap
    type: str = "mobilenet"
    weights: str | None = None  # None: random initialisation; else a released file, a folder or a Hub id
    revision: str | None = None
    frozen: bool = False  # the same as trainable: frozen
    trainable: str = "full"  # full | frozen | last_n (train_last_layers) | lora (a transformer with adapters)
    train_last_layers: int = 0  # last_n: how many, counted from the end
    lora: LoraSettings = field(default_factory=LoraSettings)
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
    layer_norm: bool = False  # of the embedding, first of all, as in AST's own classifier
    standardise: bool = True
    # both fitted on validation patients and stored in the model's config
    calibration: str = "temperature"  # none | temperature | platt (a slope and an intercept for each yes/no label)
    threshold_rule: str | None = None  # youden | f1 | icbhi | sensitivity; None: probability 0.5
    sensitivity: float = 0.9  # threshold_rule sensitivity: the share of cycles with the label that is to be found


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

    # shuffle | length_bucketed (like lengths meet: little padding) | anchor_positive | classes_times_samples |
    # patient_balanced | metadata_matched | device_balanced
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
    evaluation_batch_size: int = 64  # beside a GPU; on a CPU each cycle is evaluated by itself
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
    sync_batch_norm: bool = False  # several processes: batch statistics over the cycles of all of them
    bf16: bool = False  # activations in bfloat16 while training
    compile: bool = False  # the layers of a transformer, once for all lengths: worth its minute on long GPU runs
    gradient_checkpointing: bool = False  # less memory for about a third more time
    save_steps: int = 0  # a checkpoint every so many steps, beside the one an epoch; 0: no others
    workers: int | None = None  # processes that read batches ahead; None: none on a CPU, up to 8 beside a GPU
    threads: int = 1  # torch threads on a CPU
    # rules of published systems, for reproducing them
    epoch_cosine: bool = False  # the rate falls once an epoch, from below the full one (in place of lr_schedule)
    moving_average: float | None = None  # beta: after each step, weights <- beta * before + (1 - beta) * after
    sam_rho: float | None = None  # sharpness-aware minimisation; every batch runs twice
    sam_adaptive: bool = False


VIEW_FAMILIES = ("split", "raw", "spec", "time", "frequency")
PAIR_MODES = (
    "self",
    "same_patient_same_location",
    "same_patient_other_location",
    "same_location_across_patients",
    "age_band",
)


@dataclass
class PretrainSettings:
    """Self-supervision on cycles whose labels are never read: which views, which pairs, how long."""

    # how the two views of a pair come about, one or several together: split (a crop each) | raw (gain, pitch, shift,
    # stretch) | spec (masks in time and frequency) | time | frequency (masks in one of them)
    views: list[str] = field(default_factory=lambda: ["raw"])
    # what the two views are of: self (one cycle) | same_patient_same_location (another cycle) |
    # same_patient_other_location | same_location_across_patients | age_band (self, all of an age band drawn together)
    pairs: str = "self"
    no_partner: str = "own_views"  # own_views | drop: cycles without a partner under the pair mode
    match: list[str] = field(
        default_factory=list
    )  # columns equal within a batch (hard negatives), e.g. [age_band, sex]
    missing: str = "drop"  # drop | own_group: cycles whose columns (of pairs or match) are unknown
    parts: list[str] = field(default_factory=lambda: ["train"])  # train | validation; a test part never
    init: str = "weights"  # weights (the recipe's encoder.weights) | random
    window_s: float = 3.0  # a recording that nobody annotated is cut into windows of this length
    hop_s: float = 3.0  # from window to window
    crop_fraction: float = 0.5  # split: share of the cycle in a crop
    longest_s: float | None = None  # a view is at most this long, from a random place; None: as long as it is
    gain: Gain | None = Gain()  # noqa: RUF009 (frozen)
    pitch: PitchShift | None = PitchShift()  # noqa: RUF009
    shift: TimeShift | None = TimeShift(max_shift_fraction=0.25)  # noqa: RUF009
    stretch: TimeStretch | None = TimeStretch()  # noqa: RUF009
    masks: SpecAugment = SpecAugment(16, 12, freq_masks=2, time_masks=5)  # noqa: RUF009 (of spec, time, frequency)
    temperature: float = 0.07
    base_temperature: float | None = None  # the loss is multiplied by temperature / base_temperature; None: by 1
    projection_dim: int = 256  # behind a hidden layer as wide as the embedding; thrown away afterwards
    epochs: int = 10
    max_steps: int = -1
    batch_size: int = 16
    optimizer: str = "adamw"  # adamw | adam (without decay)
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    lr_schedule: str = "cosine"  # constant | linear | cosine
    warmup_fraction: float = 0.0
    max_grad_norm: float = 1.0
    save_steps: int = 0  # a checkpoint every so many steps, beside the one an epoch; 0: no others

    def __post_init__(self) -> None:
        if not self.views or (unknown := [v for v in self.views if v not in VIEW_FAMILIES]):
            what = repr(unknown[0]) if self.views else "nothing"
            raise ValueError(f"views has {what}; it names one or several of {', '.join(VIEW_FAMILIES)}")
        choices = {
            "pairs": PAIR_MODES,
            "no_partner": ("own_views", "drop"),
            "missing": ("drop", "own_group"),
            "init": ("weights", "random"),
            "optimizer": ("adamw", "adam"),
            "lr_schedule": ("constant", "linear", "cosine"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it can be {', '.join(values)}")
        if not self.parts or set(self.parts) - {"train", "validation"}:
            raise ValueError(f"parts is {self.parts}; it can hold train and validation, and never a test part")
        if not 0 < self.crop_fraction <= 1 or not 0 < self.hop_s <= self.window_s:
            raise ValueError(
                f"need 0 < crop_fraction <= 1 and 0 < hop_s <= window_s, not {self.crop_fraction}, {self.hop_s}, "
                f"{self.window_s}"
            )
        if self.longest_s is not None and self.longest_s <= 0:
            raise ValueError(f"longest_s must be positive, not {self.longest_s}")
        if min(self.epochs, self.projection_dim) < 1 or self.batch_size < 2 or self.save_steps < 0:
            raise ValueError("epochs and projection_dim must be at least 1, batch_size 2, save_steps 0")
        if self.views == ["raw"] and not (self.gain or self.pitch or self.shift or self.stretch):
            raise ValueError("views is raw alone, and gain, pitch, shift and stretch are all left out; set one of them")
        if self.pairs == "age_band" and "age_band" in self.match:
            raise ValueError("pairs is age_band and match makes batches of one age band: nothing is left to tell apart")
        temperatures = (self.temperature, self.temperature if self.base_temperature is None else self.base_temperature)
        if min(temperatures) <= 0:
            raise ValueError(f"temperatures must be positive, not {temperatures}")


# licence ids of the Hub that fit a model; "other" needs card.licence_name
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "mpl-2.0", "gpl-3.0", "lgpl-3.0",
    "agpl-3.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-nc-nd-4.0", "odc-by", "odbl", "pddl", "unlicense", "openrail", "other",
)  # fmt: skip


@dataclass
class CardSettings:
    """What a model card says that no record can know; each is free text unless it says otherwise."""

    licence: str | None = None  # of the model, an id of LICENCES
    licence_name: str | None = None  # where licence is other
    licence_link: str | None = None  # https address of its text
    base_model: str | None = None  # Hub id of the encoder's weights, where encoder.weights is a file
    dataset: str | None = None  # Hub id of the data, where they are there
    authors: str | None = None
    contact: str | None = None
    intended_use: str | None = None
    out_of_scope: str | None = None
    users: str | None = None
    health_inequalities: str | None = None
    data_origin: str | None = None  # known for published corpora, like the next two
    reference_standard: str | None = None
    data_licence: str | None = None
    ethics: str | None = None
    funding: str | None = None
    conflicts: str | None = None
    registration: str | None = None
    patient_involvement: str | None = None
    next_steps: str | None = None

    def __post_init__(self) -> None:
        empty = [name for name, value in vars(self).items() if value is not None and not value.strip()]
        if empty:
            raise ValueError(f"{empty[0]} is empty; write something (none is an answer), or leave it out")
        if self.licence is not None and self.licence not in LICENCES:
            near = difflib.get_close_matches(self.licence.lower(), LICENCES, n=1, cutoff=0.0)[0]
            raise ValueError(f"licence is {self.licence!r}, which is no licence id of the Hub; did you mean {near!r}?")
        if self.licence == "other" and self.licence_name is None:
            raise ValueError("licence is other; say which in licence_name, and give its text in licence_link")
        if self.licence_link is not None and not re.fullmatch(r"https://[\w./%~#?&=+-]+", self.licence_link):
            raise ValueError(f"licence_link is {self.licence_link!r}; it must be an https address")
        for name in ("base_model", "dataset"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value):
                raise ValueError(f"{name} is {value!r}; it must be a Hub id like owner/name")


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
    # further questions, each with a head of its own: name -> {labels, column, level, weight, batch_size, crop_s}
    tasks: dict[str, Any] = field(default_factory=dict)
    metadata: MetadataSettings = field(default_factory=MetadataSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    card: CardSettings = field(default_factory=CardSettings)  # read by `laennec card` alone
    pretrain: PretrainSettings | None = None  # read by `laennec pretrain` alone

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return dataclasses.asdict(self)
