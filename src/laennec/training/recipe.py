"""Every setting of a recipe, in one typed tree.

Decisions: YAML gives values, flags override them, nothing else does. An unknown key is an error that names the
nearest valid one. Types are checked when a recipe is read, not when a value is first used hours later. A recipe names
no machine: folders are given by flag or by paths relative to where the command runs.
"""

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from laennec.training.recipe_checks import check_recipe
from laennec.training.recipe_settings import (
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
from laennec.untrusted import parse_yaml, read_yaml

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
    check_recipe(recipe, where)
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
    groups = _groups(keys)
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
    if name not in keys and name not in _groups(keys):
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
    before = target.get(last)
    whole = name in keys or not isinstance(value, dict)
    target[last] = value if whole else (dict(before) if isinstance(before, dict) else {}) | value


def _groups(keys: list[str]) -> list[str]:
    """Dotted names of the groups that settings stand in."""
    return sorted({".".join(parts[:n]) for key in keys for parts in [key.split(".")] for n in range(1, len(parts))})
