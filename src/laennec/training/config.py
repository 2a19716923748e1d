"""Stage 8, training: every setting of a recipe, in one typed tree.

Decided here: YAML gives values, flags override them, nothing else does. An unknown key is an error that names the
nearest valid one. Types are checked when a recipe is read, not when a value is first used hours later. A recipe names
no machine: folders are given by flag or by paths relative to where the command runs.
"""

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from laennec.foreign import parse_yaml, read_yaml
from laennec.training.settings import (
    AugmentSettings,
    CardSettings,
    ConfigError,
    CorpusSettings,
    EncoderSettings,
    FeatureSettings,
    HeadSettings,
    LoraSettings,
    LossSettings,
    MetadataSettings,
    MixSettings,
    PretrainSettings,
    Recipe,
    SamplerSettings,
    ScheduleSettings,
    TargetSettings,
    TrainSettings,
)

__all__ = [
    "AugmentSettings",
    "CardSettings",
    "ConfigError",
    "CorpusSettings",
    "EncoderSettings",
    "FeatureSettings",
    "HeadSettings",
    "LoraSettings",
    "LossSettings",
    "MetadataSettings",
    "MixSettings",
    "PretrainSettings",
    "Recipe",
    "SamplerSettings",
    "ScheduleSettings",
    "TargetSettings",
    "TrainSettings",
    "load_recipe",
    "recipe_from_dict",
    "setting_keys",
    "with_overrides",
]

_CHOICES: dict[str, tuple[str, ...]] = {
    "target.problem_type": ("multi_label", "single_label"),
    "head.pooling": ("encoder", "mean"),
    "head.calibration": ("none", "temperature", "platt"),
    "loss.task": ("bce", "ce", "focal"),
    "loss.task_views": ("first", "all"),
    "sampler.name": (
        *("shuffle", "length_bucketed", "anchor_positive", "classes_times_samples"),
        *("patient_balanced", "device_balanced", "metadata_matched"),
    ),
    "sampler.missing": ("drop", "own_group"),
    "schedule.name": ("joint", "alternating", "two_stage"),
    "train.optimizer": ("adamw", "adam"),
    "train.lr_schedule": ("constant", "linear", "cosine"),
    "train.selection_metric": ("icbhi_score", "sprsound_score", "auroc_macro", "accuracy", "uar", "f1_macro", "loss"),
    "encoder.type": (
        *("mobilenet", "cnn", "ast", "beats", "statistics"),
        *("whisper", "wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "wav2vec2-bert"),
        "clap",
    ),
    "encoder.trainable": ("full", "frozen", "last_n", "lora"),
    "features.preset": (
        *("ast", "beats", "song2021", "efficientat", "whisper", "whisper-128"),
        *("w2v-bert", "clap", "clap-fused", "waveform", "waveform-raw"),
    ),
}

_MINIMA: dict[int, tuple[str, ...]] = {
    1: (
        *("train.batch_size", "train.gradient_accumulation", "train.epochs", "train.evaluation_batch_size"),
        *("train.threads", "augment.copies"),
    ),
    0: (
        *("train.workers", "train.save_steps", "train.patience", "train.max_grad_norm", "train.weight_decay"),
        *("train.learning_rate", "schedule.pretrain_learning_rate", "schedule.head_learning_rate"),
        *("schedule.pretrain_epochs", "head.hidden_dim", "head.projection_dim"),
    ),
}


def load_recipe(path: str | Path, overrides: dict[str, Any] | None = None, section: str = "train") -> Recipe:
    """Read a recipe file and apply overrides.

    Args:
        path: A YAML file.
        overrides: Dotted key ("train.epochs"), or the last part alone where it is unambiguous, to a value;
            text is read as YAML.
        section: What it is read for, "train" or "pretrain": a last part alone means a setting of that step.

    Raises:
        ConfigError: The file is missing or no YAML, a key is unknown (the nearest valid one is named), a value has
            the wrong type.
    """
    path = Path(path)
    try:
        values = read_yaml(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the recipe: {error.strerror}; give the path of a YAML recipe"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the recipe is not UTF-8 text; give a YAML recipe") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, this is a {type(values).__name__}")
    for key, value in (overrides or {}).items():
        _override(values, key, value, section)
    return recipe_from_dict(values, where=str(path))


def recipe_from_dict(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe of plain values, as `Recipe.to_dict` gives them.

    Raises:
        ConfigError: As in `load_recipe`.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a recipe is a mapping of keys to values, this is a {type(values).__name__}")
    recipe = _build(Recipe, values, where, "")
    _check(recipe, where)
    return recipe


def with_overrides(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """A copy of a recipe with some settings replaced, as flags replace those of a recipe file.

    Raises:
        ConfigError: As in `load_recipe`.
    """
    values = recipe.to_dict()
    for key, value in overrides.items():
        _override(values, key, value)
    return recipe_from_dict(values, "command line")


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
    """The message for an unknown key: the same last part elsewhere first, then the most alike beside it, then any."""
    if key == "features.sampling_rate":
        return (
            f"{where}: unknown key {key!r}; the rate is the preset's and recordings are resampled to it: leave it out"
        )
    keys = setting_keys()
    groups = sorted({k.rsplit(".", 1)[0] for k in keys if "." in k})
    last = key.rsplit(".", 1)[-1]
    elsewhere = [k for k in keys if k.rsplit(".", 1)[-1] == last]
    beside = [k for k in keys + groups if k.rpartition(".")[0] == key.rpartition(".")[0]]
    near = (
        elsewhere
        or difflib.get_close_matches(key, beside, n=1)
        or difflib.get_close_matches(key, keys + groups, n=1, cutoff=0.0)
    )
    return f"{where}: unknown key {key!r}; did you mean {near[0]!r}?"


def _override(values: dict[str, Any], key: str, value: Any, section: str = "train") -> None:
    """Put one flag's value in its place among a recipe's plain values."""
    keys = setting_keys()
    name = key.replace("-", "_")
    if name not in keys:
        by_last = [k for k in keys if k.rsplit(".", 1)[-1] == name]
        # the two steps have settings of the same name, such as epochs
        of_step = [k for k in by_last if k.startswith("pretrain.") == (section == "pretrain")]
        by_last = of_step or by_last
        free_form = name.startswith(("loss.auxiliary.", "corpus.options.", "encoder.config.", "tasks."))
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
            value = parse_yaml(value) if value else None
        except yaml.YAMLError as error:
            raise ConfigError(f"--{key}: {value[:80]!r} is not a YAML value") from error
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
    if (task, problem) in (("bce", "single_label"), ("ce", "multi_label")):
        right = "bce or focal" if problem == "multi_label" else "ce or focal"
        raise ConfigError(f"{where}: loss.task is {task!r}, but a {problem} head needs {right}")
    check_head(recipe, where)
    for minimum, keys in _MINIMA.items():
        for key in keys:
            group, name = key.split(".")
            value = getattr(getattr(recipe, group), name)
            if value is not None and not (value >= minimum and math.isfinite(value)):
                raise ConfigError(f"{where}: {key} is {value:g}; it must be at least {minimum}")
    if not 0 < recipe.corpus.validation_fraction < 1:
        raise ConfigError(f"{where}: corpus.validation_fraction must lie between 0 and 1")
    if not 0 < recipe.corpus.label_fraction <= 1 or recipe.corpus.label_draw < 0:
        raise ConfigError(
            f"{where}: corpus.label_fraction is {recipe.corpus.label_fraction:g}, label_draw "
            f"{recipe.corpus.label_draw}; give a fraction above 0 and at most 1, and a draw from 0"
        )
    _check_trainable(recipe, where)
    if recipe.encoder.frozen and recipe.loss.auxiliary:
        raise ConfigError(
            f"{where}: loss.auxiliary has nothing to train while encoder.frozen is true; set one of them otherwise"
        )
    _check_context(recipe, where)
    if recipe.encoder.group_frames < 0 or recipe.encoder.group_step < 1:
        raise ConfigError(f"{where}: encoder.group_frames must not be negative, encoder.group_step at least 1")
    if recipe.encoder.frozen and recipe.encoder.group_frames:
        raise ConfigError(f"{where}: encoder.group_frames is for an encoder that is trained; set encoder.frozen: false")
    _check_meetings(recipe, where)
    _check_rules(recipe, where)


def check_head(recipe: Recipe, where: str) -> None:
    """Refuse operating points that a head cannot have.

    Raises:
        ConfigError: An unknown rule, a sensitivity that no threshold reaches, or Platt for classes.
    """
    head, single = recipe.head, recipe.target.problem_type == "single_label"
    if head.threshold_rule not in (None, "youden", "f1", "icbhi", "sensitivity"):
        raise ConfigError(
            f"{where}: head.threshold_rule is {head.threshold_rule!r}; "
            "it can be youden, f1, icbhi, sensitivity or left out"
        )
    if not 0 < head.sensitivity <= 1:
        raise ConfigError(f"{where}: head.sensitivity is {head.sensitivity:g}; it must lie above 0 and at most at 1")
    if single and head.calibration == "platt":
        raise ConfigError(
            f"{where}: head.calibration is platt, which is for yes/no labels; a single_label head takes temperature"
        )


def _check_context(recipe: Recipe, where: str) -> None:
    """Refuse neighbours where there are none, and mixtures whose neighbours would be nobody's."""
    key, k = "features.context_cycles", recipe.features.context_cycles
    if k < 0:
        raise ConfigError(f"{where}: {key} is {k}; it must be a whole number from 0")
    if not k:
        return
    if recipe.corpus.level == "record":
        raise ConfigError(f"{where}: {key} is {k}, but with corpus.level: record a recording is one row without others")
    for name, given in (
        ("augment.mix", recipe.augment.mix is not None),
        ("augment.concatenate_probability", recipe.augment.concatenate_probability > 0),
    ):
        if given:
            raise ConfigError(
                f"{where}: {name} puts cycles of several recordings together, and {key} needs the neighbours of one; "
                "leave one of them out"
            )


def _check_trainable(recipe: Recipe, where: str) -> None:
    """Bring `frozen` and `trainable` together, and refuse what contradicts them."""
    e = recipe.encoder
    if e.frozen and e.trainable in ("last_n", "lora"):
        raise ConfigError(f"{where}: encoder.frozen is true, but encoder.trainable is {e.trainable}; drop one of them")
    e.frozen = e.frozen or e.trainable == "frozen"
    e.trainable = "frozen" if e.frozen else e.trainable
    if (e.trainable == "last_n") != (e.train_last_layers != 0):
        raise ConfigError(
            f"{where}: encoder.trainable is {e.trainable} and encoder.train_last_layers {e.train_last_layers}; "
            "last_n needs a number of layers, and nothing else has use for one"
        )
    if e.trainable in ("last_n", "lora") and e.weights is None:
        raise ConfigError(
            f"{where}: encoder.trainable is {e.trainable}, which would leave random weights as they are; give "
            "encoder.weights"
        )
    if e.frozen and recipe.sampler.name == "length_bucketed":
        raise ConfigError(
            f"{where}: sampler.name is length_bucketed, but batches of a frozen encoder hold embeddings, which have no "
            "length; set sampler.name: shuffle"
        )


def auxiliary_kinds(recipe: Recipe) -> dict[str, str]:
    """Which loss each entry of loss.auxiliary is: its key `loss`, or else its name."""
    given = recipe.loss.auxiliary.items()
    return {name: str(values.get("loss", name)) if isinstance(values, dict) else name for name, values in given}


def _check_meetings(recipe: Recipe, where: str) -> None:
    """Refuse losses, samplers and mixtures that contradict one another."""
    kinds, mix, s = auxiliary_kinds(recipe), recipe.augment.mix, recipe.sampler
    if "tuplet" in kinds.values() and s.name != "anchor_positive":
        raise ConfigError(f"{where}: the tuplet loss needs sampler.name: anchor_positive")
    if s.name == "metadata_matched" and not s.columns:
        raise ConfigError(f"{where}: sampler.name is metadata_matched; name sampler.columns, e.g. [age_band, sex]")
    by_cycle = ("device_adversarial", "clustering", "cluster_similarity", "reconstruction")
    alone = [name for name, kind in kinds.items() if kind not in by_cycle]
    if recipe.train.gradient_accumulation > 1 and alone:
        raise ConfigError(
            f"{where}: loss.auxiliary.{alone[0]} looks at pairs of a batch, and under train.gradient_accumulation it "
            "would see those of each small batch only: raise train.batch_size or use more processes instead"
        )
    contrast = [name for name, kind in kinds.items() if kind == "patch_mix"]
    if contrast and (mix is None or mix.method == "mixup"):
        raise ConfigError(
            f"{where}: loss.auxiliary.{contrast[0]} needs augment.mix with method: patch_mix (or group_mix)"
        )
    if mix is None:
        return
    if recipe.encoder.frozen:
        raise ConfigError(
            f"{where}: augment.mix comes before the encoder, which runs once while encoder.frozen is true"
        )
    if recipe.loss.task == "focal" and (not contrast or recipe.loss.task_views == "all"):
        raise ConfigError(f"{where}: the focal loss is not defined for the soft labels of augment.mix; use ce or bce")
    knows_none = ("clustering", "cluster_similarity", "reconstruction")
    without_class = [name for name, kind in kinds.items() if kind not in ("add", "patch_mix", *knows_none)]
    if without_class and not contrast:
        raise ConfigError(
            f"{where}: loss.auxiliary.{without_class[0]} needs one class or group for each cycle, and augment.mix "
            "leaves none; of the auxiliary losses add knows soft labels"
        )


def _check_rules(recipe: Recipe, where: str) -> None:
    """Refuse optimisation rules that cannot be followed."""
    t = recipe.train
    if t.sam_rho is not None and (t.sam_rho < 0 or t.gradient_accumulation > 1):
        raise ConfigError(
            f"{where}: train.sam_rho must not be negative, and its climb needs the gradient of the whole batch: set "
            "train.gradient_accumulation to 1"
        )
    if len(t.betas) != 2 or not all(0 <= beta < 1 for beta in t.betas):
        raise ConfigError(f"{where}: train.betas is {t.betas}; it must be two numbers in [0, 1)")
    if t.moving_average is not None and not 0 <= t.moving_average < 1:
        raise ConfigError(f"{where}: train.moving_average is {t.moving_average}; it must lie in [0, 1)")
    if not 0 <= t.warmup_fraction < 1:  # from 1 on, transformers would count steps
        raise ConfigError(f"{where}: train.warmup_fraction is {t.warmup_fraction:g}; it must lie in [0, 1)")
    if t.max_steps != -1 and t.max_steps < 1:
        raise ConfigError(f"{where}: train.max_steps is {t.max_steps}; it must be at least 1, or -1 for no limit")
    if t.epoch_cosine and t.warmup_fraction:
        raise ConfigError(f"{where}: train.epoch_cosine has no warm-up; set train.warmup_fraction to 0")
