"""Encoders from features to tokens, and loading the weights that their authors released.

Decisions: `load_encoder` takes any source: None (random weights), a released .pt file, a folder or a Hub id. The digest
covers only what an embedding depends on: batch counters and the AudioSet classifier are left out.
"""

import builtins
import contextlib
import copy
import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from laennec.encoders import own
from laennec.encoders.ast import AstEncoder
from laennec.encoders.audiomae import AudioMaeConfig, AudioMaeEncoder
from laennec.encoders.base import AudioEncoder, TokenMix
from laennec.encoders.beats import BeatsEncoder
from laennec.encoders.beats_layers import BeatsConfig
from laennec.encoders.cnn import CnnConfig, CnnEncoder, StatisticsEncoder
from laennec.encoders.composite import (
    WRAPPERS,
    EnsembleConfig,
    EnsembleEncoder,
    GroupsConfig,
    GroupsEncoder,
    LayersConfig,
    Wrapper,
    WrapperConfig,
    at_layers,
)
from laennec.encoders.mobilenet import MobileNetEncoder
from laennec.encoders.own import as_encoder, config_from_dict, register_encoder
from laennec.encoders.resnet import ResNetAudioEncoder
from laennec.encoders.speech import (
    Data2VecEncoder,
    HubertEncoder,
    UniSpeechEncoder,
    UniSpeechSatEncoder,
    Wav2Vec2Encoder,
    WavLMAudioEncoder,
)
from laennec.encoders.transformers_audio import (
    ClapAudioEncoder,
    TransformersEncoder,
    W2vBertAudioEncoder,
    WhisperAudioEncoder,
    encoder_values,
)
from laennec.encoders.weights.checkpoints import (
    LOADING_ERRORS,
    out_of_reach,
    read_released,
    read_tensors,
    read_weights,
    reason,
    refuse_larger,
    released_error,
    weight_files,
    wrong_settings,
)
from laennec.errors import InputError, did_you_mean
from laennec.untrusted import refuse_model_folder, refuse_settings

_CLASSES: tuple[type[AudioEncoder], ...] = (
    AstEncoder,
    BeatsEncoder,
    CnnEncoder,
    MobileNetEncoder,
    StatisticsEncoder,
    WhisperAudioEncoder,
    Wav2Vec2Encoder,
    HubertEncoder,
    WavLMAudioEncoder,
    Data2VecEncoder,
    UniSpeechEncoder,
    UniSpeechSatEncoder,
    W2vBertAudioEncoder,
    ClapAudioEncoder,
    AudioMaeEncoder,
    ResNetAudioEncoder,
)
_RELEASED_AS_FILES: tuple[type[BeatsEncoder | AudioMaeEncoder | MobileNetEncoder], ...]
_RELEASED_AS_FILES = (BeatsEncoder, AudioMaeEncoder, MobileNetEncoder)
ENCODERS: dict[str, type[AudioEncoder]] = {encoder.kind: encoder for encoder in _CLASSES}
for _kind in (*_CLASSES, *WRAPPERS.values()):
    if _kind.config_class.model_type.startswith("laennec-"):  # transformers registers its own
        AutoConfig.register(_kind.config_class.model_type, _kind.config_class)
        AutoModel.register(_kind.config_class, _kind)

__all__ = [
    "ENCODERS",
    "AstEncoder",
    "AudioEncoder",
    "AudioMaeConfig",
    "AudioMaeEncoder",
    "BeatsConfig",
    "BeatsEncoder",
    "CnnConfig",
    "CnnEncoder",
    "EnsembleConfig",
    "EnsembleEncoder",
    "LayersConfig",
    "ResNetAudioEncoder",
    "TokenMix",
    "TransformersEncoder",
    "Wrapper",
    "as_encoder",
    "at_layers",
    "config_from_dict",
    "encoder_class",
    "encoder_digest",
    "encoder_from_config",
    "load_encoder",
    "register_encoder",
    "wrapped",
]


def load_encoder(
    source: str | Path | None,
    *,
    type: str | builtins.type[nn.Module] | None = None,
    revision: str | None = None,
    **config_overrides: Any,
) -> PreTrainedModel:
    """Get an encoder, in eval mode.

    Args:
        source: None for random weights; a released checkpoint file (.pt); a folder; or a Hub id.
        type: A key of `ENCODERS`, or an encoder class of your own (see `register_encoder`); needed where `source` is
            None, a check elsewhere.
        revision: Of a Hub id.
        **config_overrides: Settings of the encoder's configuration, such as width_mult or time_positions.

    Raises:
        InputError: The source cannot be found, read or reached, or holds another architecture.
        ValueError: Unknown type, or none for random weights.
    """
    if isinstance(type, builtins.type):
        return _load_own(source, type, revision, config_overrides)
    if type is not None and type not in ENCODERS:
        raise ValueError(f"encoder type is {type!r}; it can be {', '.join(ENCODERS)}")
    if source is None:
        if type is None:
            raise ValueError(f"an encoder with random weights needs its type: {', '.join(ENCODERS)}")
        config = _configuration(type, {}, config_overrides)
        with wrong_settings(f"{type} encoder"):
            return encoder_from_config(config).eval()
    if _is_released_file(source):
        return _from_file(source, type, config_overrides)
    refuse_model_folder(source)
    if type is None and (values := saved_config(source, revision)).get("model_type") in own.known_types():
        return fill_own(own.build(own.config_from_dict(values)), source, revision)
    encoder, config = _config_of(source, type, revision, config_overrides)
    with _one_line_errors(source):
        refuse_larger(lambda: encoder(copy.deepcopy(config)), weight_files(source, revision=revision), source)
        return encoder.load(source, config, revision)


def _load_own(
    source: str | Path | None, kind: type[nn.Module], revision: str | None, settings: dict[str, Any]
) -> PreTrainedModel:
    """An encoder of the user's own class, with random weights or those of a file, a folder or the Hub."""
    if source is None or _is_released_file(source):
        encoder = own.from_class(kind, settings)
        return encoder.eval() if source is None else fill_own(encoder, source)
    own.register_encoder(kind)
    refuse_model_folder(source)
    values = saved_config(source, revision)
    config = own.config_from_dict(values | settings if issubclass(kind, PreTrainedModel) else values)
    if isinstance(config, own.ModuleConfig):
        config.arguments |= settings
    encoder = own.build(config)
    if not isinstance(getattr(encoder, "module", encoder), kind):
        raise InputError(f"{source}: holds another encoder than {kind.__name__}; correct the class or the weights")
    return fill_own(encoder, source, revision)


def fill_own(encoder: PreTrainedModel, source: str | Path, revision: str | None = None) -> PreTrainedModel:
    """Load the weights of a file, a folder or the Hub into a user's encoder, strictly."""
    with _one_line_errors(source):
        if not _is_released_file(source):
            refuse_model_folder(source)
            state = read_weights(source, revision)
        else:
            state = read_tensors(Path(source))
        return own.load_weights(encoder, state, source)


def encoder_class(settings: Mapping[str, Any]) -> builtins.type[nn.Module] | None:
    """The class of the encoder of a recipe: the user's own where `class` names one that is known, or that of `type`."""
    if dotted := settings.get("class"):
        return own.known_class(str(dotted).rpartition(":")[2])
    return ENCODERS.get(str(settings.get("type")))


def wrapped(
    encoder: PreTrainedModel,
    group_frames: int = 0,
    group_step: int = 15,
    layers: Sequence[int | str] = (),
    combine_layers: str = "concatenate",
    mels: int | None = None,
) -> PreTrainedModel:
    """Wrap an encoder to encode groups of frames or to embed several layers; without either, return it unchanged."""
    if layers:
        return at_layers(encoder, layers, combine_layers, mels)
    if not group_frames:
        return encoder
    return GroupsEncoder(
        GroupsConfig(encoder_config=encoder.config, group_frames=group_frames, group_step=group_step), encoder
    ).eval()


def encoder_from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder with random weights, by its configuration."""
    if isinstance(config, WrapperConfig):
        wrapped: PreTrainedModel = WRAPPERS[type(config)]._from_config(config)
        return wrapped
    if own.is_own(config):
        return own.build(config)
    for kind in _CLASSES:
        if isinstance(config, kind.config_class):
            # _from_config chooses the attention implementation, which a constructor does not
            encoder: PreTrainedModel = kind._from_config(config)
            return encoder
    raise InputError(
        f"no encoder for a {getattr(config, 'model_type', config)!r} configuration; known: {', '.join(ENCODERS)}"
    )


def encoder_digest(encoder: PreTrainedModel) -> str:
    """sha256 over names (sorted), shapes and float32 values of an encoder's weights, on any device."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        if name.endswith("num_batches_tracked") or name.startswith("audioset_head."):
            continue
        array = value.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def encoder_identity(encoder: PreTrainedModel) -> list[Any]:
    """What the embeddings of an encoder depend on: its digest, its type, and its settings, which weights do not show.

    Settings that do not describe the network (labels, dtype, source) are left out.
    """
    generic = PreTrainedConfig().to_dict().keys() | {"transformers_version", "_name_or_path"}

    def own(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: own(v) for name, v in value.items() if name not in generic or name == "model_type"}
        return [own(v) for v in value] if isinstance(value, list | tuple) else value

    return [encoder_digest(encoder), own(encoder.config.to_dict())]


def _configuration(kind: str, values: dict[str, Any], overrides: dict[str, Any]) -> PreTrainedConfig:
    """The configuration `values`, changed by the user's settings."""
    encoder, config_class = ENCODERS[kind], ENCODERS[kind].config_class
    if issubclass(encoder, TransformersEncoder):
        values = encoder.settled(values, overrides)
    known = [*config_class().to_dict(), *(["time_positions"] if kind == "ast" else [])]
    for name in overrides:
        if name not in known:
            raise InputError(f"{kind} encoders have no setting {name!r}{did_you_mean(name, known)}")
    refuse_settings(overrides, f"{kind} encoder: encoder.config")
    with wrong_settings(f"{kind} encoder"):
        config = config_class.from_dict(values | overrides)
    if getattr(config, "num_hidden_layers", 1) < 1:  # transformers would build an encoder without layers
        raise InputError(f"{kind} encoder: num_hidden_layers is {config.num_hidden_layers}; it must be at least 1")
    return config


def _is_released_file(source: str | Path) -> bool:
    path = Path(source)
    return not path.is_dir() and (path.is_file() or path.suffix in (".pt", ".pth", ".bin", ".safetensors"))


def _from_file(source: str | Path, type: str | None, overrides: dict[str, Any]) -> PreTrainedModel:
    if type is not None and not ENCODERS[type].released_settings:
        raise InputError(
            f"{source}: {type} encoders are read from a folder or the Hub, not from a file; give the folder"
        )
    content = read_released(source)
    found = next((encoder for encoder in _RELEASED_AS_FILES if encoder.reads(content)), None)
    if found is None:
        raise released_error(source, "holds the weights of no encoder that is released as a file")
    if type not in (None, found.kind):
        raise InputError(
            f"{source}: holds a {found.kind} encoder, not {type}; give another file or type={found.kind!r}"
        )
    if fixed := sorted(set(overrides) - set(found.released_settings)):
        raise InputError(f"{source}: the checkpoint fixes these settings; remove {', '.join(fixed)}")
    return found.from_released(source, content, **overrides)


def _config_of(
    source: str | Path, type: str | None, revision: str | None, overrides: dict[str, Any]
) -> tuple[builtins.type[AudioEncoder], PreTrainedConfig]:
    values = encoder_values(saved_config(source, revision))
    model_type = values.get("model_type")
    for kind, encoder in ENCODERS.items():
        if model_type == encoder.config_class.model_type:
            if type not in (None, kind):
                raise InputError(f"{source}: holds a {kind} encoder, not {type}; give another source or type={kind!r}")
            try:
                config = _configuration(kind, values, overrides)
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
            # models trained on the encoder record its commit, as transformers' configurations once did
            config._commit_hash = hub_commit(source, revision)
            return encoder, config
    known = ", ".join(str(encoder.config_class.model_type) for encoder in _CLASSES)
    raise InputError(f"{source}: holds a {model_type!r} model, which is not a supported encoder; give one of {known}")


def saved_config(source: str | Path, revision: str | None) -> dict[str, Any]:
    """The values of a config.json, checked by `refuse_settings`."""
    with _one_line_errors(source):
        values, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        if not values:
            raise FileNotFoundError("its config.json is not there, or holds no settings")
    refuse_settings(values, source)
    return dict(values)


def hub_commit(source: str | Path, revision: str | None = None) -> str | None:
    """The commit of the Hub that a model was fetched at; None for a folder."""
    if Path(source).is_dir():
        return None
    return extract_commit_hash(cached_file(str(source), CONFIG_NAME, revision=revision), None)


@contextlib.contextmanager
def _one_line_errors(source: str | Path) -> Iterator[None]:
    """Turn errors of file readers and of the Hub client into one line."""
    try:
        yield
    except InputError:
        raise
    except LOADING_ERRORS as error:
        if Path(source).is_dir():
            raise InputError(
                f"{source}: no encoder can be loaded from this folder ({reason(error)}); give a folder with "
                "config.json and model.safetensors"
            ) from error
        if isinstance(error, pickle.PickleError | SafetensorError):
            raise InputError(
                f"{source}: its weights cannot be read ({reason(error)}); give a checkpoint of safetensors"
            ) from error
        raise out_of_reach(source, error) from error
