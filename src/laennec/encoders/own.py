"""Encoders that users bring: any module that turns features into tokens.

Decisions: a class becomes known when its own module is imported (`register_encoder`) or when an instance is handed over
in Python; a name in a downloaded configuration is looked up among the known classes and never imported. Encoders of
users are built on the CPU with their own initialisation and then filled by name: transformers builds models on the meta
device, which leaves buffers that are not saved undefined.
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from laennec.audio.presets import PRESETS
from laennec.encoders.weights.checkpoints import differences, refuse_differences, wrong_settings
from laennec.encoders.weights.fingerprint import evaluating
from laennec.errors import InputError
from laennec.untrusted import refuse_names

Class = TypeVar("Class", bound=type[nn.Module])

_FACTS = ("preset", "citation", "licence", "num_special_tokens", "layers_after")
_PARTS = ("last_hidden_state", "token_mask", "pooler_output")
_FRAMES = 64  # of the features that `_width` tests an encoder with
_DEFAULT_MELS = 128

_models: dict[str, type[PreTrainedModel]] = {}  # by model type
_modules: dict[str, type[nn.Module]] = {}  # plain modules, by class name


def register_encoder(encoder: Class) -> Class:
    """Make an encoder class known, so that models with it can be loaded; a class decorator.

    The encoder takes `input_values` (batch, frames, mels) and `attention_mask` (batch, frames) by keyword. It returns
    an object with `last_hidden_state` (batch, tokens, dim), `token_mask` (batch, tokens) and `pooler_output`
    (batch, dim). Padding must not change the results of a cycle. Optional class attributes: `preset` (the front end
    that it was made for), `layers` (the name of its stack of layers, for last_n and LoRA), `layers_after` (names of
    modules that follow the stack), `citation` (BibTeX) and `licence`.

    Args:
        encoder: A `PreTrainedModel` subclass whose `config_class` has a model type of its own, or a plain `nn.Module`
            subclass whose instances have a dict `config` of their constructor's arguments.

    Raises:
        InputError: The name or the model type is taken by another class, or the class has no configuration of its own.
    """
    name, key, known = encoder.__name__, encoder.__name__, dict[str, Any](_modules)
    kind: Any = encoder
    if issubclass(encoder, PreTrainedModel):
        config, known = kind.config_class, dict(_models)
        key = getattr(config, "model_type", "") or ""
        if config is None or not key or (key in CONFIG_MAPPING and key not in _models):
            raise InputError(
                f"{name}: config_class must be a PreTrainedConfig subclass with a model_type of its own (found {key!r})"
            )
    if key in known and not _is_same(known[key], encoder):
        raise InputError(f"{name}: another encoder is known as {key!r} ({known[key].__module__}); choose another name")
    if issubclass(encoder, PreTrainedModel):
        AutoConfig.register(key, kind.config_class, exist_ok=True)
        AutoModel.register(kind.config_class, encoder, exist_ok=True)
        _models[key] = kind
    else:
        _modules[key] = encoder
    return encoder


def _is_same(known: type, new: type) -> bool:
    """Whether two classes are the same or one redefines the other, as in a notebook or an imported script."""
    return known.__qualname__ == new.__qualname__ and (
        known.__module__ == new.__module__ or "__main__" in (known.__module__, new.__module__)
    )


class ModuleConfig(PreTrainedConfig):
    """Configuration of a plain module: name of its class, arguments of its constructor, width of its embedding."""

    model_type = "laennec-module"

    encoder_class: str = ""
    arguments: dict[str, Any] = None  # type: ignore[assignment]
    hidden_size: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Turn missing arguments into an empty dict."""
        self.arguments = self.arguments or {}
        super().__post_init__(**kwargs)


class ModuleEncoder(PreTrainedModel):
    """A plain module as an encoder."""

    config_class = ModuleConfig
    config: ModuleConfig
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    layers: str | None

    def __init__(self, config: ModuleConfig, module: nn.Module | None = None) -> None:
        super().__init__(config)
        if module is None:
            kind = _modules.get(str(config.encoder_class))
            if kind is None:
                raise unknown_encoder(str(config.encoder_class))
            module = _construct(kind, **config.arguments)
        self.module = module
        for fact in _FACTS:
            if hasattr(module, fact):
                setattr(self, fact, getattr(module, fact))
        self.layers_after = tuple(f"module.{name}" for name in getattr(module, "layers_after", ()))
        layers = getattr(module, "layers", None)
        path = layers if isinstance(layers, str) else "layers" if isinstance(layers, nn.Module) else None
        self.layers = None if path is None else f"module.{path}"
        if hasattr(module, "token_grid"):
            self.token_grid = module.token_grid
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Keep the initialisation of the module's own class."""

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **mixing: Any) -> Any:
        """Encode cycles as the module does: (batch, frames, mels), (batch, frames) -> its output."""
        return self.module(input_values=input_values, attention_mask=attention_mask, **mixing)


AutoConfig.register(ModuleConfig.model_type, ModuleConfig)
AutoModel.register(ModuleConfig, ModuleEncoder)


def unknown_encoder(name: str) -> InputError:
    """The error for a model whose encoder class was not imported."""
    return InputError(
        f"the encoder class {name!r} of the model was not imported; import the module that defines it with "
        f"@laennec.register_encoder (on the command line: --import my_code:{name})"
    )


def config_from_dict(values: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of an encoder, from plain values; names in them are looked up and never imported."""
    values = dict(values)
    kind = values.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        names = values.get("architectures")
        raise unknown_encoder(str(names[0] if isinstance(names, list) and names else kind))
    refuse_names(values, CONFIG_MAPPING[kind], f"{kind} encoder")
    with wrong_settings(f"{kind} encoder"):
        config: PreTrainedConfig = AutoConfig.for_model(kind, **values)
    return config


def known_class(name: str) -> type[nn.Module] | None:
    """The registered class of this name."""
    known: list[type[nn.Module]] = [*_modules.values(), *_models.values()]
    return next((kind for kind in known if kind.__name__ == name), None)


def known_types() -> set[str]:
    """The model types of users' encoders, plain modules among them."""
    return {ModuleConfig.model_type, *_models}


def is_own(config: Any) -> bool:
    """Whether a configuration is that of an encoder that a user brought."""
    return isinstance(config, ModuleConfig) or type(config) in {kind.config_class for kind in _models.values()}


def contains_own(config: Any) -> bool:
    """Whether an encoder, or the one that it is wrapped around, is one that a user brought."""
    return is_own(config) or (config is not None and contains_own(getattr(config, "encoder_config", None)))


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A user's encoder with its own initial weights, on the CPU."""
    kind = ModuleEncoder if isinstance(config, ModuleConfig) else _models[config.model_type]
    with torch.device("cpu"):
        return _construct(kind, config)


def from_class(kind: type[nn.Module], settings: Mapping[str, Any]) -> PreTrainedModel:
    """A user's encoder with its own initial weights."""
    if issubclass(kind, PreTrainedModel):
        model: Any = kind
        return as_encoder(_construct(model, _construct(model.config_class, **settings)))
    module = _construct(kind, **settings)
    if not isinstance(getattr(module, "config", None), Mapping):
        module.config = dict(settings)  # type: ignore[assignment]
    return as_encoder(module)


def as_encoder(module: nn.Module, mels: int | None = None) -> PreTrainedModel:
    """A user's module as an encoder, its output checked and its class registered."""
    name = type(module).__name__
    register_encoder(type(module))
    if isinstance(module, PreTrainedModel):
        encoder = module
    else:
        arguments = getattr(module, "config", None)
        try:
            arguments = json.loads(json.dumps(dict(arguments or {})))
            inspect.signature(type(module)).bind(**arguments)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name}: its attribute config must be a dict of its constructor's arguments, plain values ({error})"
            ) from error
        encoder = ModuleEncoder(ModuleConfig(encoder_class=name, arguments=arguments), module)
    encoder.config.hidden_size = _width(encoder, name, mels)
    encoder.config.architectures = [name]
    return encoder


def load_weights(encoder: PreTrainedModel, state: Mapping[str, Tensor], source: str | Path) -> PreTrainedModel:
    """Fill a user's encoder with saved weights, strictly."""
    if isinstance(encoder, ModuleEncoder) and not any(name.startswith("module.") for name in state):
        state = {f"module.{name}": value for name, value in state.items()}
    what = type(getattr(encoder, "module", encoder)).__name__
    refuse_differences(source, what, differences(state, encoder.state_dict()))
    encoder.load_state_dict(dict(state))
    return encoder.eval()


def _construct(kind: Any, *args: Any, **settings: Any) -> Any:
    try:
        return kind(*args, **settings)
    except TypeError as error:
        raise InputError(f"{kind.__name__}: {error}; correct the encoder's configuration") from error


def _width(encoder: PreTrainedModel, name: str, mels: int | None) -> int:
    """The width of an encoder's embedding; checks the form of the encoder's output."""
    preset = PRESETS.get(str(getattr(encoder, "preset", None)))
    config = getattr(encoder.config, "arguments", None) or encoder.config.to_dict()
    size = mels or (preset.feature_size if preset else int(config.get("num_mel_bins") or _DEFAULT_MELS))
    frames = 16_000 if preset is not None and preset.is_waveform else _FRAMES
    weight = next(encoder.parameters(), torch.zeros(()))
    values = torch.linspace(-1.0, 1.0, frames * size).reshape(1, frames, size).to(weight)
    mask = torch.ones(1, frames, dtype=torch.int64, device=weight.device)
    try:
        with evaluating(encoder):
            output = encoder(input_values=values, attention_mask=mask)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{name}: cannot encode features of shape {tuple(values.shape)} ({said}); it is called as "
            "encoder(input_values=..., attention_mask=...)"
        ) from error
    missing = [part for part in _PARTS if not isinstance(getattr(output, part, None), Tensor)]
    if missing:
        raise InputError(
            f"{name}: its output has no {' and no '.join(missing)}; return an object with {', '.join(_PARTS)}"
        )
    tokens, mask, pooled = (getattr(output, part) for part in _PARTS)
    if tokens.ndim != 3 or mask.shape != tokens.shape[:2] or pooled.shape != (1, tokens.shape[2]):
        shapes = ", ".join(f"{part} {tuple(getattr(output, part).shape)}" for part in _PARTS)
        raise InputError(f"{name}: {shapes}; it must be (batch, tokens, dim), (batch, tokens) and (batch, dim)")
    return int(pooled.shape[1])
