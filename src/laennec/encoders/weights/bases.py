"""Find and verify the base encoder of a head-only checkpoint.

Decisions: a head (or adapters) on another encoder gives wrong predictions without an error, so the base is compared
with the digest of the one it was trained on. A path in a config is not followed, because the model can come from
another machine; the base is found by its digest if a head on it was saved on this machine, or is given with base=.
"""

import contextlib
import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from laennec.cache import cache_root, read_entry, write_entry
from laennec.encoders import as_encoder, encoder_digest, fill_own, load_encoder
from laennec.encoders.composite import WRAPPERS, GroupsConfig, LayersConfig, Wrapper
from laennec.encoders.own import build, contains_own, is_own
from laennec.encoders.weights.checkpoints import out_of_reach, reason, refuse_larger, weight_files
from laennec.errors import InputError, hub_reason
from laennec.files import json_text
from laennec.untrusted import adapters_error

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_PLACES = 16
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def base_encoder(config: Any, base: str | Path | nn.Module | None) -> PreTrainedModel:
    """The encoder that a head-only checkpoint was trained on, its weights checked."""
    if isinstance(base, nn.Module):
        encoder, source = base if isinstance(base, PreTrainedModel) else as_encoder(base), type(base).__name__
    else:
        source = str(base or _named_base(config))
        local = base is not None or is_local(source)
        try:
            encoder = _load(config, source, None if local else config.base_model_revision)
        except InputError as error:
            raise InputError(
                f"{error} (this model is a head for that base: pass base=..., or --base on the command line)"
            ) from error
    outer = config.encoder_config
    if isinstance(outer, GroupsConfig | LayersConfig) and not isinstance(encoder, Wrapper):
        encoder = WRAPPERS[type(outer)](copy.deepcopy(outer), encoder).eval()
    digest = encoder_digest(encoder)
    if config.encoder_digest and digest != config.encoder_digest:
        revision = config.base_model_revision
        expected = f"{config.base_model_name_or_path!r}" + (f" at revision {revision}" if revision else "")
        raise InputError(
            f"{source}: not the encoder this head was trained on (weights {digest[:12]}, expected "
            f"{config.encoder_digest[:12]}); give the base {expected}"
            + ("" if revision else ", as it was when the head was trained: it names no revision")
        )
    return encoder


def _load(config: Any, source: str, revision: str | None) -> PreTrainedModel:
    """The base encoder of a source; one of a user's own class is built from the model's configuration."""
    inner = config.encoder_config
    inner = inner.encoder_config if isinstance(inner, GroupsConfig | LayersConfig) else inner
    if is_own(inner):
        return fill_own(build(inner), source, revision)
    return load_encoder(source, revision=revision)


def remember_base(config: Any) -> None:
    """Record the path of a head's base under the digest of its weights.

    A path in a downloaded config is not followed; these records map a digest to paths on this machine.
    """
    named = config.base_model_name_or_path
    if not named or not is_local(str(named)) or not Path(named).exists():
        return
    places = [str(Path(named).absolute()), *known_places(config.encoder_digest)]
    with contextlib.suppress(InputError):
        write_entry(_record_of(config.encoder_digest), json_text(list(dict.fromkeys(places))[:_MOST_PLACES]).encode())


def known_places(digest: str | None) -> list[str]:
    """The recorded paths of encoders of this digest."""
    if not digest or not _DIGEST.fullmatch(str(digest)):
        return []
    return list(json.loads(read_entry(_record_of(digest)) or "[]"))


def _record_of(digest: str) -> Path:
    return cache_root() / "bases" / f"{digest}.json"


def is_local(name: str) -> bool:
    """Whether a base is a file or folder of this machine; a Hub id is OWNER/NAME, and no file has that name here."""
    return bool(name) and (not _HUB_ID.fullmatch(name) or Path(name).exists())


def _named_base(config: Any) -> str:
    """The path recorded for the digest of the base's weights, or else the Hub id in the config."""
    for place in known_places(config.encoder_digest):  # before Hub ids: weights/mn04.pt looks like one
        if Path(place).exists():
            return place
    named = str(config.base_model_name_or_path)
    if not is_local(named):
        return named
    raise InputError(
        f"the model is a head for the base encoder {named!r}, a path on its author's machine; give the path of your "
        "copy: base=..., or --base on the command line"
    )


def refuse_untrusted_adapter(name: str | Path, hub: dict[str, Any]) -> None:
    """Refuse a repository of the Hub with adapters beside its config.json: they can name any folder as their base."""
    if Path(name).is_dir():
        return  # checked with the other files of the folder
    quietly = {
        f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")
    }
    if cached_file(str(name), "adapter_config.json", **hub, **quietly) is not None:
        raise adapters_error(name)


def refuse_larger_model(
    config: Any, build: Callable[[], nn.Module], base: nn.Module | None, source: str | Path, hub: Mapping[str, Any]
) -> None:
    """Refuse settings that describe a larger model than its weights and its base."""
    if contains_own(config.encoder_config):
        return  # the size of a user's own class is not checked
    known = 0 if base is None else sum(tensor.numel() for tensor in base.state_dict().values())
    refuse_larger(build, weight_files(source, **hub), source, known)


def refuse_wrong_buffers(model: nn.Module, source: str | Path) -> None:
    """Refuse buffers that training never makes: a spread that is not positive, or other settings than config.json's."""
    for name, module in model.named_modules():
        spread = getattr(module, "spread", None)
        if isinstance(spread, Tensor) and not bool((spread > 0).all()):
            raise InputError(f"{source}: {name}.spread must be positive everywhere; get the model again")
        if isinstance(module, Wrapper) and module.geometry.tolist() != module.config.geometry:
            raise InputError(
                f"{source}: config.json says {module.config.geometry_names} {module.config.geometry}, the weights "
                f"{module.geometry.tolist()}; get the model again"
            )


def loading_error(name: str | Path, error: BaseException) -> InputError:
    """The one-line error where transformers cannot load a model."""
    if not Path(name).exists() and (isinstance(error, OSError) or hub_reason(error)):
        return out_of_reach(name, error)
    if pickles := sorted(p.name for pattern in _PICKLES for p in Path(name).glob(pattern)):
        return InputError(
            f"{name}: {pickles[0]} is a pickle, which can hold code and is never run; a model's weights come as "
            "model.safetensors"
        )
    return InputError(
        f"{name}: cannot load a laennec model: {reason(error)}; give an exported folder or a Hub id of a laennec model"
    )
