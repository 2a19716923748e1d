"""Read untrusted files, with limits.

Decisions: only regular files are read (a pipe or a device may never end), up to a size above that of any valid file of
the kind. The depth of JSON and YAML is limited; YAML has no tags and a limited number of values, aliases expanded,
because a few lines can otherwise expand to more than any memory. Problems raise the errors that callers handle anyway
(OSError, ValueError, yaml.YAMLError).
"""

import errno
import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml

from laennec.errors import InputError

MOST_BYTES = 1 << 29  # of tables and annotations
MOST_SETTINGS_BYTES = 1 << 24  # of recipes, configurations, records
_MOST_DEPTH = 100
_MOST_NODES = 200_000
# limits of a model's settings: building a larger model would fill any memory or never end
_MOST_SIZE = 10_000_000
_MOST_LABELS = 100_000
_MOST_LAYERS = 1_000
_MOST_NESTED = 20
_ATTENTION = (None, "eager", "sdpa")
_DTYPES = ("None", "float32", "float16", "bfloat16", "float64")
_REFUSED_SETTINGS = {
    "quantization_config": "weights in a form that other packages unpack",
    "configuration_files": "another file to take its settings from",
    "distributed_config": "machines to divide the model among",
    "output_attentions": "outputs that no audio classifier has",
}
# the files of a model that are read; a symbolic link among them could lead to private files
_MODEL_FILES = (
    "*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "adapter", "adapter/*.json", "adapter/*.safetensors",
)  # fmt: skip
_INDEX = "*.index.json"
_ADAPTER = "adapter_config.json"


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file for reading bytes; an OSError for a pipe, which would block, or a device."""
    # checked before opening, which can affect a device, and again after it, because the file may have been replaced
    _refuse_irregular(path, os.stat(path).st_mode)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _refuse_irregular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _refuse_irregular(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def read_bytes(path: str | os.PathLike[str], most: int | None = MOST_BYTES) -> bytes:
    """The content of a regular file."""
    content, large = b"", False
    with open_regular(path) as file:
        # the size is checked first, because a read with a limit allocates that much memory at once
        large = most is not None and os.fstat(file.fileno()).st_size > most
        if not large:
            content = file.read()
    if most is not None and (large or len(content) > most):
        raise OSError(errno.EFBIG, f"holds more than {most >> 20} MiB, which no such file does", os.fspath(path))
    return content


def read_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark, every line end a line feed."""
    return read_bytes(path, most).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes, **how: Any) -> Any:
    """JSON as `json.loads` reads it; a ValueError where it is nested too deeply."""
    try:
        return json.loads(text, **how)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | os.PathLike[str], most: int = MOST_SETTINGS_BYTES) -> Any:
    """The content of a JSON file; a ValueError where an object has a key twice."""
    return parse_json(read_text(path, most), object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def parse_yaml(text: str) -> Any:
    """YAML as `yaml.safe_load` reads it, within limits."""
    if len(text) > MOST_SETTINGS_BYTES:
        raise yaml.YAMLError(f"holds more than {MOST_SETTINGS_BYTES >> 20} MiB, which no such file does")
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values alone
    except (yaml.YAMLError, MemoryError):
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except Exception as error:  # numbers of too many digits, days that no month has
        raise yaml.YAMLError(f"contains an invalid value ({str(error)[:80]})") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The content of a YAML file."""
    return parse_yaml(read_text(path, MOST_SETTINGS_BYTES))


def read_mapping(path: str | os.PathLike[str], what: str, remedy: str) -> dict[str, Any]:
    """The keys and values of a YAML file, none where it is empty.

    Raises:
        InputError: It cannot be read, or does not hold keys and values; `what` it should be, and what to do.
    """
    try:
        values = read_yaml(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read the {what}: {error.strerror}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot read the {what}: not UTF-8 text; {remedy}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}; {remedy}") from error
    if not isinstance(values, dict | None):
        raise InputError(f"{path}: not `key: value` lines, as the {what} must be; {remedy}")
    return values or {}


class _Loader(yaml.SafeLoader):
    """Counts values with aliases expanded while a document is composed, before any value is constructed."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, and count its values."""
        alias: bool = self.check_event(yaml.AliasEvent)
        before, self._depth = self._nodes, self._depth + 1
        if self._depth > _MOST_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if alias:
            if id(node) not in self._sizes:
                raise yaml.YAMLError("an alias refers to its own parent")
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > _MOST_NODES:
            raise yaml.YAMLError(f"expands to more than {_MOST_NODES} values, aliases counted")
        return node


def is_plain(name: str) -> bool:
    """Whether a relative path from a table or an archive stays below its folder on every system."""
    elsewhere = PureWindowsPath(name)
    parts = name.replace("\\", "/").split("/")
    return bool(name) and name.isprintable() and not elsewhere.drive and not elsewhere.root and ".." not in parts


def leads_outside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a file lies outside a folder once links are followed.

    The files of a snapshot in the Hub's cache are links into the same repository's blobs, which count as inside.
    """
    target, inside = Path(path).resolve(), Path(folder).resolve()
    if target.is_relative_to(inside):
        return False
    parts = inside.parts
    if "snapshots" in parts:
        at = len(parts) - 1 - parts[::-1].index("snapshots")
        return not target.is_relative_to(Path(*parts[:at], "blobs"))
    return True


def refuse_settings(values: Any, where: object, key: str = "", depth: int = 0) -> None:
    """Refuse settings of a model that would load code or other files, or that no real model has.

    Settings that name code (`auto_map` and the like) are allowed, because they are never read.
    """
    remedy = "do not use this model, or correct its settings"
    name = key.rpartition(".")[2]
    if depth > _MOST_NESTED:
        raise InputError(f"{where}: {key[:80]} ... is nested too deeply; {remedy}")
    if name in _REFUSED_SETTINGS and values:
        raise InputError(f"{where}: {key} names {_REFUSED_SETTINGS[name]}, which laennec does not load; {remedy}")
    if "attn_implementation" in name and values not in _ATTENTION:
        raise InputError(f"{where}: {key} is {str(values)[:80]!r}, which is code to be downloaded and run; {remedy}")
    if name in ("dtype", "torch_dtype") and str(values).removeprefix("torch.") not in _DTYPES:
        raise InputError(f"{where}: {key} is {str(values)[:80]!r}; models have {', '.join(_DTYPES[1:])}; {remedy}")
    most = _MOST_LABELS if "label" in name else _MOST_LAYERS if _counts_layers(key) else _MOST_SIZE
    if isinstance(values, int | float) and not -_MOST_SIZE <= values <= most:
        raise InputError(f"{where}: {key} is {repr(values)[:40]}, which no model has; {remedy}")
    if isinstance(values, list | dict):
        if len(values) > (_MOST_LABELS if "label" in name else _MOST_LAYERS):
            raise InputError(f"{where}: {key} holds {len(values)} values, which no model has; {remedy}")
        for inner, value in values.items() if isinstance(values, dict) else enumerate(values):
            refuse_settings(value, where, f"{key}.{inner}".lstrip("."), depth + 1)


def refuse_names(values: Mapping[str, Any], kind: type, where: object) -> None:
    """Refuse settings whose names would overwrite methods or computed properties of their configuration."""
    for name in values:
        found = getattr(kind, name, None)
        computed = callable(found) or (isinstance(found, property) and found.fset is None)
        if computed or name.startswith("__") or name in ("attribute_map", "sub_configs"):
            raise InputError(f"{where}: {name[:80]} cannot be the name of a setting; remove it")


def _counts_layers(key: str) -> bool:
    name = key.rpartition(".")[2]
    return ".depths." in f".{key}." or (name.endswith("layers") and not name.startswith("trained"))


def refuse_model_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse a model's folder with links or an index to files elsewhere, special files, or adapters of peft."""
    place = Path(folder)
    if not place.is_dir():
        return
    remedy = "do not use this model, or put the file itself there"
    if (place / _ADAPTER).exists():
        raise adapters_error(place / _ADAPTER)
    for path in sorted(found for pattern in _MODEL_FILES for found in place.glob(pattern)):
        if leads_outside(path, place):
            raise InputError(f"{path}: is a link to a file elsewhere ({path.resolve()}); {remedy}")
        if not (path.is_file() or path.is_dir()):
            raise InputError(f"{path}: is not a regular file; {remedy}")
    for index in place.glob(_INDEX):
        refuse_index(index)


def adapters_error(place: object) -> InputError:
    """The error for adapters beside a config.json."""
    return InputError(
        f"{place}: adapters beside a config.json can name any other model as their base; a laennec model keeps its own "
        "in the folder adapter: export the run again"
    )


def refuse_index(index: Path) -> list[str]:
    """The files of weights that an index names; refuses an index of files that are not beside it."""
    try:
        names = sorted(set(read_json(index, MOST_BYTES)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: is not an index of weights; get the checkpoint again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise InputError(f"{index}: names {name!r}, no file of weights beside it; do not use this model")
    return names
