"""Published checkpoints of transformers' audio encoders, from a folder or the Hub, strictly.

Decisions: only tensors are read: safetensors, or a pickle that holds nothing else. Checkpoints of whole models (with
a decoder, a text tower, a classifier) keep the encoder under a prefix, which is found; what belongs to their other
parts is left out, and every other name that is missing, left over or of another shape is refused by name: an encoder
that loads "almost" is a random one. Nothing is downloaded but the configuration and the weights.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    ClapAudioConfig,
    Data2VecAudioConfig,
    HubertConfig,
    PreTrainedConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
)
from transformers.utils.hub import cached_file

from laennec.encoders.released import checked_state, named, read_released
from laennec.encoders.transformers_audio import ADAPTERS, TransformersEncoder
from laennec.errors import InputError
from laennec.untrusted import read_json, refuse_index

ADAPTER_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "whisper": WhisperConfig,
    "wav2vec2": Wav2Vec2Config,
    "hubert": HubertConfig,
    "wavlm": WavLMConfig,
    "data2vec-audio": Data2VecAudioConfig,
    "unispeech": UniSpeechConfig,
    "unispeech-sat": UniSpeechSatConfig,
    "wav2vec2-bert": Wav2Vec2BertConfig,
    "clap": ClapAudioConfig,
}
# settings that are laennec's to decide: its own draws mask features, and adapters on top mix time steps
_FIXED: dict[str, Any] = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "add_adapter": False,
}
# dropping layers leaves weights without gradient, which training on several devices does not forgive; can be asked for
_DEFAULTS: dict[str, Any] = {"layerdrop": 0.0, "encoder_layerdrop": 0.0}
# where checkpoints of whole models keep the encoder
_PREFIXES = {
    "whisper": ("model.encoder.", "encoder."),
    "wav2vec2": ("wav2vec2.",),
    "hubert": ("hubert.",),
    "wavlm": ("wavlm.",),
    "data2vec-audio": ("data2vec_audio.",),
    "unispeech": ("unispeech.",),
    "unispeech-sat": ("unispeech_sat.",),
    "wav2vec2-bert": ("wav2vec2_bert.",),
    "clap": ("audio_model.",),
}
_SPEECH_HEADS = (
    *("lm_head.", "classifier.", "projector.", "layer_weights", "tdnn.", "objective."),
    *("quantizer.", "project_q.", "project_hid.", "speaker_proj.", "ctc_proj.", "label_embeddings_concat"),
    *("masked_spec_embed", "adapter."),
)
# parts of whole models that are no encoder
_OTHER_PARTS = {
    "whisper": ("model.decoder.", "decoder.", "proj_out.", "projector.", "classifier.", "layer_weights"),
    "clap": ("text_model.", "text_projection.", "audio_projection.", "logit_scale_"),
}
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def settled(kind: str, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A published configuration with laennec's decisions in it.

    Args:
        kind: The type of encoder.
        values: From config.json.
        overrides: What the user asks for.

    Raises:
        InputError: The user asks for something that laennec decides.
    """
    known = ADAPTER_CONFIGS[kind]().to_dict()
    for name in overrides:
        if name in _FIXED and name in known:
            raise InputError(f"{kind} encoders have {name} = {_FIXED[name]} here; masking draws are augment.spec's")
    return values | {k: v for k, v in (_FIXED | _DEFAULTS).items() if k in known}


def encoder_values(values: dict[str, Any]) -> dict[str, Any]:
    """The encoder's part of a config.json: CLAP's holds a text tower beside it."""
    if values.get("model_type") == "clap" and isinstance(values.get("audio_config"), dict):
        return {**values["audio_config"], "model_type": ClapAudioConfig.model_type}
    return values


def published_features(source: str | Path, revision: str | None = None) -> dict[str, Any]:
    """What a checkpoint's preprocessor_config.json says about its features; nothing where there is none.

    Args:
        source: A folder or a Hub id.
        revision: Of a Hub id.

    Raises:
        InputError: The file is there and cannot be read.
    """
    try:
        path = _file(source, "preprocessor_config.json", revision)
    except OSError:  # no network: the weights came from the cache, and this file is not in it
        return {}
    if path is None:
        return {}
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON; get the checkpoint again, or delete the file") from error
    return values if isinstance(values, dict) else {}


def load_pretrained(kind: str, source: str | Path, config: PreTrainedConfig, revision: str | None) -> Any:
    """An encoder with the weights of a checkpoint, float32, in eval mode.

    Args:
        kind: A key of `ADAPTERS`.
        source: A folder or a Hub id.
        config: The encoder's configuration.
        revision: Of a Hub id.

    Raises:
        InputError: Weights that are missing, left over or of another shape, a pickle that holds more than tensors.
        OSError: No weights there, or the Hub cannot be reached.
    """
    state = {_present_name(name): value for name, value in read_weights(source, revision).items()}
    encoder: TransformersEncoder = ADAPTERS[kind]._from_config(config, dtype=torch.float32)
    expected = encoder.model.state_dict()
    prefix = max(("model.", *_PREFIXES[kind], ""), key=lambda p: sum(p + name in state for name in expected))
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    others = _OTHER_PARTS.get(kind, _SPEECH_HEADS)
    extra = [n for n in state if not n.startswith(prefix)] + [n for n in found if n not in expected]
    wrong = {
        # index tables are computed, and not in every file
        "missing": [n for n, value in expected.items() if n not in found and value.is_floating_point()],
        "left over": [n for n in extra if not n.startswith(others)],
        "of another shape": [
            f"{n} ({_sizes(found[n])}, by config.json {_sizes(value)})"
            for n, value in expected.items()
            if n in found and found[n].shape != value.shape
        ],
    }
    refuse_differences(source, f"{kind} encoder", wrong)
    encoder.model.load_state_dict({n: found.get(n, value) for n, value in expected.items()})
    return encoder.eval()


def loaded_strictly(
    load: Callable[..., Any], source: str | Path, what: str, *args: Any, absent: tuple[str, ...] = (), **settings: Any
) -> tuple[Any, dict[str, Any]]:
    """Load as transformers does, and refuse what it would make do with: the model and its loading report.

    Args:
        load: A `from_pretrained`.
        source: A folder or a Hub id.
        what: The model it should hold.
        *args: Handed to `load`.
        absent: Beginnings of names that may be missing.
        **settings: Handed to `load`.

    Raises:
        InputError: Weights are missing, left over, of another shape or not finite.
    """
    # sizes that do not match are let through here only to be named in one line below
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _without_loading_report():
        model, info = load(source, *args, **settings)
    mismatched = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = {*(key for key in info["missing_keys"] if not key.startswith(absent)), *mismatched}
    wrong = {"missing or of another shape": sorted(missing), "left over": sorted(info["unexpected_keys"])}
    refuse_differences(source, what, wrong)
    for name, value in model.state_dict().items():
        # what may be missing holds whatever lay in memory until it is filled from elsewhere
        if not value.is_meta and not name.startswith(absent):
            _refuse_not_finite(source, name, value)
    return model, info


@contextlib.contextmanager
def _without_loading_report() -> Iterator[None]:
    """Keep transformers' table of missing keys off the screen: what matters of it becomes one error."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def refuse_differences(source: str | Path, what: str, wrong: dict[str, list[str]]) -> None:
    """Refuse a checkpoint that lacks weights, has too many, or has some in another size.

    Args:
        source: Where it lies.
        what: The encoder it should hold.
        wrong: What is wrong ("missing") -> the names of which it is true.

    Raises:
        InputError: Any name was given; the line lists them.
    """
    said = [named(names, f" is {how}") for how, names in wrong.items() if names]
    if said:
        raise InputError(
            f"{source}: the weights are not those of the {what} in config.json: {'; '.join(said)}; "
            "give the config.json that belongs to them (its depth or width differs), or get the checkpoint again"
        )


def _sizes(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def _present_name(name: str) -> str:
    """Weight norm's names of before torch 2.0, which published checkpoints have."""
    for old, new in ((".weight_g", "original0"), (".weight_v", "original1")):
        if name.endswith(old):
            return f"{name.removesuffix(old)}.parametrizations.weight.{new}"
    return name


def read_weights(source: str | Path, revision: str | None) -> dict[str, Tensor]:
    """All tensors of a checkpoint: one file or several, safetensors where there are any."""
    for name in _FILES:
        path = _file(source, name, revision)
        if path is None:
            continue
        if not name.endswith(".json"):
            return _read_tensors(path)
        state: dict[str, Tensor] = {}
        for shard in _shards(path, source):
            part = _file(source, shard, revision)
            if part is None:
                raise InputError(f"{source}: {shard} is missing, which {name} names; get the checkpoint again")
            state |= _read_tensors(part)
        return state
    raise FileNotFoundError(f"there is no {_FILES[0]}")


def _file(source: str | Path, name: str, revision: str | None) -> Path | None:
    """A file of the folder or the Hub repository; None where it holds none of that name."""
    path = cached_file(str(source), name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def _shards(index: Path, source: str | Path) -> list[str]:
    try:
        return refuse_index(index)
    except InputError as error:
        raise InputError(f"{source}: {str(error).removeprefix(str(index.parent)).lstrip('/')}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, finite, on the CPU."""
    return checked_state(path, read_released(path)) if path.suffix == ".bin" else read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, finite, on the CPU."""
    state: dict[str, Tensor] = load_file(path)
    for name, value in state.items():
        _refuse_not_finite(path, name, value)
    return state


def _refuse_not_finite(source: str | Path, name: str, value: Tensor) -> None:
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise InputError(f"{source}: {name} holds values that are not finite; get the checkpoint again")
