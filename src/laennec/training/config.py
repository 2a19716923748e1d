"""Stage 8, training: every setting of a recipe, in one typed tree.

Decided here: YAML gives values, flags override them, nothing else does. An unknown key is an error that names the
nearest valid one. Types are checked when a recipe is read, not when a value is first used hours later. A recipe names
no machine: folders are given by flag or by paths relative to where the command runs.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from laennec.audio.augment import Gain, PitchShift, SpecAugment, TimeShift, TimeStretch, WhiteNoise
from laennec.errors import InputError


class ConfigError(InputError):
    """A recipe or a flag that cannot be used: which key, why, and what would be right."""


@dataclass
class CorpusSettings:
    """What to train on and how it is split."""

    name: str = "synthetic"  # icbhi2017 | sprsound | folder | synthetic
    data_dir: str | None = None
    protocol: str | None = None
    fold: int = 0
    validation_fraction: float = 0.2
    split_seed: int = 0  # of the split alone: runs of several seeds share their parts
    tables_dir: str | None = None
    allow_missing: bool = False
    level: str = "event"
    options: dict[str, Any] = field(default_factory=dict)  # for the synthetic corpus: patients, seed, ...


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


@dataclass
class EncoderSettings:
    """The network that turns features into an embedding."""

    type: str = "mobilenet"  # mobilenet | cnn | ast | statistics (no network: mean and spread of each mel bin)
    weights: str | None = None  # None: random initialisation; else a released file, a folder or a Hub id
    revision: str | None = None
    frozen: bool = False
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
    auxiliary: dict[str, Any] = field(
        default_factory=dict
    )  # name -> {weight, start, warm_up, on, and the loss's own arguments}


@dataclass
class SamplerSettings:
    """Which cycles meet in a batch."""

    name: str = "shuffle"
    negatives: int = 16  # tuplet: negatives for each anchor
    classes: int = 4  # classes_times_samples: classes in a batch
    patients: int = 4  # patient_balanced: patients in a batch
    samples: int = 8  # of each class or patient


@dataclass
class ScheduleSettings:
    """Which part learns from what, when."""

    name: str = "joint"  # joint | alternating | two_stage
    pretrain_epochs: int = 0
    pretrain_learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3


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
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    lr_schedule: str = "cosine"  # constant | linear | cosine
    warmup_fraction: float = 0.0
    max_grad_norm: float = 1.0
    patience: int = 0  # epochs without improvement before stopping; 0: never
    selection_metric: str = "icbhi_score"  # icbhi_score | auroc_macro | loss
    bf16: bool = False
    workers: int = 0
    threads: int = 1  # torch threads on a CPU


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
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return dataclasses.asdict(self)


_CHOICES: dict[str, tuple[str, ...]] = {
    "target.problem_type": ("multi_label", "single_label"),
    "head.pooling": ("encoder", "mean"),
    "loss.task": ("bce", "ce", "focal"),
    "sampler.name": ("shuffle", "anchor_positive", "patient_balanced", "classes_times_samples"),
    "schedule.name": ("joint", "alternating", "two_stage"),
    "train.optimizer": ("adamw", "adam"),
    "train.lr_schedule": ("constant", "linear", "cosine"),
    "train.selection_metric": ("icbhi_score", "sprsound_score", "auroc_macro", "loss"),
    "encoder.type": ("mobilenet", "cnn", "ast", "statistics"),
    "features.preset": ("ast", "beats", "song2021", "efficientat"),
    "corpus.level": ("event", "record"),
}


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: A YAML file.
        overrides: Dotted key ("train.epochs"), or the last part alone where it is unambiguous, to a value;
            text is read as YAML.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown (the nearest valid one is named), a value has
            the wrong type.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the recipe: {error.strerror}; give the path of a YAML recipe"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the recipe is not UTF-8 text; give a YAML recipe") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, this is a {type(values).__name__}")
    for key, value in (overrides or {}).items():
        _override(values, key, value)
    return recipe_from_dict(values, where=str(path))


def recipe_from_dict(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe of plain values, as `Recipe.to_dict` gives them.

    Raises:
        ConfigError: As in `load_recipe`.
    """
    recipe = _build(Recipe, values, where, "")
    _check(recipe, where)
    return recipe


def _group(hint: Any) -> Any:
    """The dataclass of a group of settings, also of one that may be left out; None for a plain setting."""
    return next((o for o in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(o)), None)


def _build(kind: Any, values: dict[str, Any], where: str, prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(_unknown(where, f"{prefix}{key}"))
        group = _group(hints[key])
        if group is None:
            given[key] = _typed(value, hints[key], where, f"{prefix}{key}")
        elif value is None and group is not hints[key]:
            given[key] = None
        elif isinstance(value, dict):
            given[key] = _build(group, value, where, f"{prefix}{key}.")
        else:
            raise ConfigError(f"{where}: {prefix}{key} is a group of settings, not {value!r}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ConfigError(f"{where}: {prefix.rstrip('.')}: {error}") from error


def _typed(value: Any, hint: Any, where: str, key: str) -> Any:
    """The value as the type its setting has, or a ConfigError."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if option is type(None) and value is None:
            return None
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                continue
        if origin is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if origin is list and isinstance(value, list):
            return [_typed(v, typing.get_args(option)[0], where, key) for v in value]
        if origin is dict and isinstance(value, dict):
            return value
        if isinstance(origin, type) and isinstance(value, origin) and not (origin is int and isinstance(value, bool)):
            return value
    names = " or ".join("nothing" if o is type(None) else getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{where}: {key} is {value!r}; it must be {names}")


def setting_keys(kind: Any = Recipe, prefix: str = "") -> list[str]:
    """Every setting as a dotted key, in the order of the recipe."""
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        group = _group(hint)
        keys += setting_keys(group, f"{prefix}{name}.") if group else [f"{prefix}{name}"]
    return keys


def _unknown(where: str, key: str) -> str:
    """The message for an unknown key: the same last part elsewhere first, then the most alike."""
    keys = setting_keys()
    groups = sorted({k.rsplit(".", 1)[0] for k in keys if "." in k})
    last = key.rsplit(".", 1)[-1]
    elsewhere = [k for k in keys if k.rsplit(".", 1)[-1] == last]
    near = elsewhere or difflib.get_close_matches(key, keys + groups, n=1, cutoff=0.0)
    return f"{where}: unknown key {key!r}; did you mean {near[0]!r}?"


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    """Put one flag's value in its place among a recipe's plain values."""
    keys = setting_keys()
    name = key.replace("-", "_")
    if name not in keys:
        by_last = [k for k in keys if k.rsplit(".", 1)[-1] == name]
        free_form = name.startswith(("loss.auxiliary.", "corpus.options.", "encoder.config."))
        if len(by_last) == 1:
            name = by_last[0]
        elif len(by_last) > 1:
            raise ConfigError(
                f"--{key}: several settings have this name; write {' or '.join('--' + k for k in by_last)}"
            )
        elif not free_form:
            raise ConfigError(_unknown("command line", key))
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value) if value else None
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key}: {value!r} is not a YAML value") from error
    *groups, last = name.split(".")
    target = values
    for group in groups:
        inner = target.get(group)
        target[group] = dict(inner) if isinstance(inner, dict) else {}
        target = target[group]
    target[last] = value


def _check(recipe: Recipe, where: str) -> None:
    """Refuse values that would fail later, or fail to mean anything."""
    for key, choices in _CHOICES.items():
        group, name = key.split(".")
        value = getattr(getattr(recipe, group), name)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}: {key} is {value!r}; it can be {', '.join(choices)} (did you mean {near!r}?)")
    task, problem = recipe.loss.task, recipe.target.problem_type
    if (task == "bce") != (problem == "multi_label"):
        right = "bce" if problem == "multi_label" else "ce or focal"
        raise ConfigError(f"{where}: loss.task is {task!r}, but a {problem} head needs {right}")
    if recipe.head.threshold_rule not in (None, "youden", "f1", "icbhi", "sensitivity"):
        raise ConfigError(
            f"{where}: head.threshold_rule is {recipe.head.threshold_rule!r}; "
            "it can be youden, f1, icbhi, sensitivity or left out"
        )
    for key, minimum in {
        "train.batch_size": 1,
        "train.gradient_accumulation": 1,
        "augment.copies": 1,
        "train.epochs": 1,
    }.items():
        group, name = key.split(".")
        if getattr(getattr(recipe, group), name) < minimum:
            raise ConfigError(f"{where}: {key} must be at least {minimum}")
    if not 0 < recipe.corpus.validation_fraction < 1:
        raise ConfigError(f"{where}: corpus.validation_fraction must lie between 0 and 1")
    if (
        recipe.schedule.name == "alternating"
        and "tuplet" in recipe.loss.auxiliary
        and recipe.sampler.name != "anchor_positive"
    ):
        raise ConfigError(f"{where}: the tuplet loss needs sampler.name: anchor_positive")
    if recipe.encoder.frozen and recipe.loss.auxiliary:
        raise ConfigError(
            f"{where}: loss.auxiliary has nothing to train while encoder.frozen is true; set one of them otherwise"
        )
