"""Read the plain values of a recipe from YAML, flags or an old record; explain a wrong value in one line.

Decisions: YAML gives values, flags override them, nothing else does. An unknown key is an error that names the nearest
valid one; a key of the first edition is an error that names today's. Records of the first edition keep loading:
`renewed` translates their keys, for records only.
"""

import copy
import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

import laennec
from laennec.errors import InputError, did_you_mean
from laennec.untrusted import parse_yaml, read_mapping

# keys of the first edition -> today's
OLD_KEYS = {
    "encoder.frozen": "encoder.trainable: frozen",
    "train.gradient_accumulation": "train.gradient_accumulation_steps",
    "train.lr_schedule": "train.lr_scheduler_type",
    "train.warmup_fraction": "train.warmup_ratio",
    "pretrain.lr_schedule": "pretrain.lr_scheduler_type",
    "pretrain.warmup_fraction": "pretrain.warmup_ratio",
    "pretrain.no_partner": "pretrain.unpaired",
    "pretrain.parts": "pretrain.splits",
    "pretrain.longest_s": "pretrain.max_duration_s",
}
# settings of a corpus that can be given for all corpora of a list at once
_OF_ALL = ("split_seed", "validation_fraction", "validation_fold", "allow_missing")
# folders of recipes/ that hold other files than recipes
_OTHERS = ("accelerate", "searches", "studies")


@dataclass(frozen=True)
class Setting:
    """One setting of a recipe."""

    key: str  # dotted key, such as train.epochs
    values: str  # what it can be, in words
    default: Any  # its default, as JSON would hold it
    description: str  # what it does
    free: bool  # whether it is a mapping whose keys the user chooses


@functools.cache
def settings_of(model: type[BaseModel]) -> dict[str, Setting]:
    """Every setting by its dotted key, in the order of the recipe."""
    schema = model.model_json_schema()
    return {setting.key: setting for setting in _flattened(schema, schema.get("$defs", {}), "")}


def _flattened(group: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> list[Setting]:
    found = []
    for name, field in group["properties"].items():
        options = field.get("anyOf", [field])
        inner = next((definitions[o["$ref"].rsplit("/", 1)[-1]] for o in options if "$ref" in o), None)
        if inner is not None:
            found += _flattened(inner, definitions, f"{prefix}{name}.")
            continue
        values = " or ".join(str(value) for option in options for value in _values_of(option))
        free = field.get("type") == "object"
        found.append(Setting(f"{prefix}{name}", values, field.get("default"), field.get("description", ""), free))
    return found


def _values_of(option: Mapping[str, Any]) -> list[Any]:
    if "enum" in option or "const" in option:
        return list(option.get("enum", [option.get("const")]))
    names = {"integer": "whole number", "boolean": "true or false", "string": "text", "array": "list"}
    return [] if option.get("type") == "null" else [names.get(option.get("type", ""), option.get("type"))]


def groups_of(model: type[BaseModel]) -> set[str]:
    """Dotted names of the sections and subsections."""
    return {key.rsplit(".", n)[0] for key in settings_of(model) for n in range(1, key.count(".") + 1)}


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a recipe file."""
    return read_mapping(path, "recipe", "give a YAML recipe, or start from `laennec recipes copy NAME`")


def full_key(model: type[BaseModel], name: str, step: str = "train") -> str:
    """The dotted key that a flag means: itself, or the one setting whose last part it is."""
    keys, key = settings_of(model), name.replace("-", "_")
    if key.startswith("corpus.") and key.count(".") > 1 and not key.startswith("corpus.options."):
        _, name, setting = key.split(".", 2)
        return f"corpus.{name}.{full_key(model, f'corpus.{setting}').removeprefix('corpus.')}"
    own = key.startswith("sampler.") or any(s.free and key.startswith(f"{s.key}.") for s in keys.values())
    if key in keys or key in groups_of(model) or own or key in OLD_KEYS:
        return key
    found = [k for k in keys if k.rpartition(".")[2] == key]
    found = [k for k in found if k.startswith("pretrain.") == (step == "pretrain")] or found
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"--{name}: several settings have this name; write {' or '.join('--' + k for k in found)}")
    raise InputError(f"command line: {unknown_key(model, key)}")


def corpora_of(values: Mapping[str, Any]) -> list[Any]:
    """The plain settings of each corpus of a recipe's plain values."""
    corpus = values.get("corpus")
    listed = corpus.get("corpora") if isinstance(corpus, dict) else corpus
    return listed if isinstance(listed, list) and listed else [corpus]


def _override_listed(model: type[BaseModel], values: dict[str, Any], key: str, value: Any) -> bool:
    """Set a value in the named corpus of a list, or in all of them; False if there is no list."""
    corpora = corpora_of(values)
    if not key.startswith("corpus.") or corpora == [values.get("corpus")]:
        return False
    named = {str(one["name"]): one for one in corpora if isinstance(one, dict) and "name" in one}
    _, name, *rest = key.split(".", 2)
    if name in named and rest:
        meant, key = [named[name]], f"corpus.{rest[0]}"
    elif name == "fold":
        from laennec.corpora.splits import WITH_FOLDS  # imports datasets

        meant = [one for one in named.values() if one.get("protocol") in WITH_FOLDS]
    else:
        meant = list(named.values()) if name in _OF_ALL else []
    if not meant and rest and name != "options":
        raise InputError(f"--{key}: the recipe has no corpus {name!r}{did_you_mean(name, named)}")
    if not meant:
        flags = " or ".join(f"--corpus.{one}.{name}" for one in named)
        raise InputError(f"--{key}: the recipe has several corpora; write {flags}")
    for one in meant:
        inner = {"corpus": one}
        override(model, inner, key, value)
        one.update(inner["corpus"])
    return True


def override(model: type[BaseModel], values: dict[str, Any], key: str, value: Any) -> None:
    """Set one value, by its dotted key, in a recipe's plain values."""
    if _override_listed(model, values, key, value):
        return
    if isinstance(value, str):
        try:
            value = parse_yaml(value) if value else None
        except yaml.YAMLError as error:
            raise InputError(f"--{key}: {value[:80]!r} is not a YAML value") from error
    *sections, last = key.split(".")
    target = values
    for section in sections:
        inner = target.get(section)
        target[section] = dict(inner) if isinstance(inner, dict) else {}
        target = target[section]
    before = target.get(last)
    merged = key not in settings_of(model) and isinstance(value, dict)
    target[last] = (dict(before) if isinstance(before, dict) else {}) | value if merged else value


def refuse_old_keys(values: Mapping[str, Any]) -> None:
    """Refuse keys of the first edition."""
    for old, new in OLD_KEYS.items():
        section, _, name = old.partition(".")
        if isinstance(inner := values.get(section), dict) and name in inner:
            raise InputError(f"{old} is an old key; write {new}")


def renewed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record's settings under today's keys."""
    found = copy.deepcopy(dict(values))
    for old, new in OLD_KEYS.items():
        section, _, name = old.partition(".")
        if not isinstance(inner := found.get(section), dict) or name not in inner:
            continue
        value = inner.pop(name)
        if old != "encoder.frozen":
            inner[new.partition(".")[2]] = value
        elif value:
            inner["trainable"] = "frozen"
    mix = (found.get("augment") or {}).get("mix") or {}
    if mix.get("method") == "patch_mix" and mix.get("domain") == "waveform":  # patch_mix always mixed features
        mix["domain"] = "features"
    return found


def unknown_key(model: type[BaseModel], key: str) -> str:
    """The message for an unknown key, with the key of the same last part or the most similar key."""
    if today := next((new for old, new in OLD_KEYS.items() if key in (old, old.partition(".")[2])), None):
        return f"{key} is an old key; write {today}"
    keys = list(settings_of(model))
    every = keys + sorted(groups_of(model))
    beside = [k for k in every if k.rpartition(".")[0] == key.rpartition(".")[0]]
    last = key.rpartition(".")[2]
    alike = difflib.get_close_matches(last, [k.rpartition(".")[2] for k in keys], n=1)
    near = (
        [k for k in keys if k.rpartition(".")[2] == last]
        or [k for k in beside if "".join(word[0] for word in k.rpartition(".")[2].split("_")) == last]  # lr
        or difflib.get_close_matches(key, beside, n=1)
        or [k for k in keys if alike and k.rpartition(".")[2] == alike[0]]
        or difflib.get_close_matches(key, every, n=1, cutoff=0.0)
    )
    return f"unknown key {key!r}; did you mean {near[0]!r}?"


def explained(model: type[BaseModel], error: ValidationError) -> str:
    """What is wrong with a recipe, in one line: key, value, and what is allowed."""
    problems = error.errors(include_url=False)
    for problem in problems:  # name a key of a listed corpus as a key of `corpus`
        if problem["loc"][:2] == ("corpus", "corpora") and len(problem["loc"]) > 3:
            problem["loc"] = ("corpus", *problem["loc"][3:])
    first = problems[0]
    key = _key_of(model, first["loc"])
    if first["type"] == "extra_forbidden" and first["loc"][0] == "tasks":
        *names, last = map(str, first["loc"])
        return f"{'.'.join(names)}: {unknown_key(get_args(model.model_fields['tasks'].annotation)[1], last)}"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_key(model, ".".join(map(str, first["loc"])))
    if first["type"] == "unknown_key":
        return unknown_key(model, first["ctx"]["key"])
    if first["type"] in ("model_type", "dataclass_type"):
        return f"{key} is a group of settings, not {first['input']!r}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return message if message.startswith(f"{key}.") or not key else f"{key}: {message}"
    said = [p["msg"].partition(", unable")[0] for p in problems if _key_of(model, p["loc"]) == key]
    allowed = " or ".join(dict.fromkeys(text.removeprefix("Input should be ") for text in said))
    return f"{key} is {first['input']!r:.80}; {'it must be ' if said[0].startswith('Input') else ''}{allowed}"


def _key_of(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    """The dotted key of a place, without the members of a union that pydantic adds to it."""
    settings, groups = settings_of(model), groups_of(model)
    whole = ".".join(map(str, place))
    for length in range(len(place), 0, -1):
        if (key := ".".join(map(str, place[:length]))) in settings or key in groups:
            return whole if key in settings and settings[key].free else key  # a free mapping has keys of the user
    return whole


def recipe_folder() -> Path:
    """The folder of the recipes that come with the package."""
    return Path(laennec.__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, such as "sprsound/bce_mobilenet"."""
    paths = (path.relative_to(recipe_folder()) for path in recipe_folder().glob("*/*.yaml"))
    names = (path.with_suffix("").as_posix() for path in paths if path.parts[0] not in _OTHERS)
    return sorted(names, key=lambda name: (name.startswith("general_audio"), name))  # lung sounds first


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe."""
    path = Path(name)
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return path
    names = recipe_names()
    if str(name) in names:
        return recipe_folder() / f"{name}.yaml"
    hint = did_you_mean(str(name), names, cutoff=0)
    raise InputError(f"{name}: no such file, and no recipe of this name{hint} `laennec recipes` lists them")
