"""Which part of an encoder is trained: all of it, its last layers, or LoRA adapters.

Decisions: adapters are peft's, injected into the encoder without changing its class. They are saved in peft's format in
a subfolder of the model's, because transformers loads an adapter_config.json beside a config.json by itself. Frozen
layers stay in evaluation mode, so that neither dropout nor batch statistics change them.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils import cached_file

from laennec.encoders.weights.checkpoints import differences, reason, refuse_differences
from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.untrusted import refuse_model_folder

ADAPTER_FOLDER = "adapter"
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ADAPTER, _PREFIX, _NAME = "lora_", "base_model.model.", "default"


def layer_classes(encoder: Any) -> set[str]:
    """Names of the classes of an encoder's layers; none where it has no stack of them."""
    layers = stack_of(encoder)[0] if layers_path(encoder) else []
    return {type(layer).__name__ for layer in layers}


def layers_path(encoder: nn.Module) -> str | None:
    """The name of an encoder's stack of layers: that of its attribute `layers`, or "layers" where that is the stack."""
    layers = getattr(encoder, "layers", None)
    if isinstance(layers, str):
        return layers
    return "layers" if isinstance(layers, nn.ModuleList | nn.Sequential) else None


def stack_of(encoder: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers of an encoder in order, and the modules after the last of them (its `layers_after`)."""
    path = layers_path(encoder)
    if path is None:
        raise InputError(
            f"{_kind(encoder)} has no stack of layers to train in part; set encoder.trainable: full or frozen"
        )
    try:
        layers: Any = encoder.get_submodule(path)
        after = [encoder.get_submodule(name) for name in getattr(encoder, "layers_after", ())]
        return list(layers), after
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"{_kind(encoder)}: its attribute layers is {path!r}, which names no stack of modules ({error}); correct it"
        ) from error


def freeze_all_but_last(encoder: PreTrainedModel, layers: int) -> None:
    """Freeze all but the last layers and the modules after them."""
    stack, after = stack_of(encoder)
    if not 1 <= layers <= len(stack):
        raise InputError(
            f"encoder.train_last_layers is {layers}; {_kind(encoder)} has {len(stack)} layers: give 1 to {len(stack)}"
        )
    encoder.requires_grad_(False)
    for module in (*stack[-layers:], *after):
        module.requires_grad_(True)
    if (weights := getattr(encoder, "layer_weights", None)) is not None:  # of a weighted mean of layers
        weights.requires_grad_(True)


def set_mode(encoder: PreTrainedModel, config: Any, mode: bool) -> None:
    """Put the trained layers into training mode, or all into evaluation mode; `config` is a `LaennecConfig`."""
    if config.frozen_encoder and not encoder.training:
        return  # called at each step, and an encoder has many modules
    encoder.train(mode and not config.frozen_encoder and not config.trained_layers)
    if mode and config.trained_layers and not config.frozen_encoder:
        stack, after = stack_of(encoder)
        for module in (*stack[-config.trained_layers :], *after):
            module.train()
    for module in encoder.modules() if mode and config.lora else ():
        if isinstance(module, _BatchNorm):
            module.eval()


def is_frozen(config: Any, name: str) -> bool:
    """Whether a weight of an encoder is frozen, as in the base; `config` is a `LaennecConfig`."""
    return bool(config.frozen_encoder or (config.lora and not is_adapter(name)))


def add_lora(encoder: PreTrainedModel, lora: Mapping[str, Any]) -> None:
    """Inject adapters into an encoder, in place; only they are trained. New adapters change no output."""
    from peft import LoraConfig, inject_adapter_in_model

    linear = {n for n, m in encoder.named_modules() if isinstance(m, nn.Linear) and not n.startswith("audioset_head")}
    if not linear:
        raise InputError(
            f"{_kind(encoder)} has no linear layers, which LoRA is for; set encoder.trainable: last_n, full or frozen"
        )
    past = [t for t in lora["target_modules"] if t.rsplit(".", 1)[-1] in getattr(encoder, "read_past_adapters", ())]
    if past:
        raise InputError(
            f"encoder.lora.target_modules: {_kind(encoder)} uses the weights of {past[0]} directly, so adapters there "
            "would learn nothing; give intermediate_dense and output_dense"
        )
    for target in lora["target_modules"]:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise InputError(
                f"encoder.lora.target_modules: {target!r} names no linear layer of {_kind(encoder)}; it has "
                f"{', '.join(known)}"
            )
    inject_adapter_in_model(LoraConfig(**_peft_settings(lora)), encoder)


def merge_lora(encoder: PreTrainedModel) -> None:
    """Merge adapters into the weights that they adapt, in place; the result is an ordinary encoder."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)  # type: ignore[operator]
            parent, _, last = name.rpartition(".")
            setattr(encoder.get_submodule(parent), last, module.get_base_layer())
    encoder.__dict__.pop("peft_config", None)


def is_adapter(name: str) -> bool:
    """Whether a weight of an encoder belongs to an adapter."""
    return f".{_ADAPTER}" in name


def save_adapter(encoder: PreTrainedModel, config: Any, folder: str | Path) -> None:
    """Write adapters, if there are any, into `folder`/adapter, as `peft.PeftModel.from_pretrained` reads them."""
    if not config.lora:
        return
    from peft import LoraConfig

    lora, base = config.lora, config.base_model_name_or_path
    place = Path(folder) / ADAPTER_FOLDER
    place.mkdir(parents=True, exist_ok=True)
    LoraConfig(**_peft_settings(lora), base_model_name_or_path=base, inference_mode=True).save_pretrained(str(place))
    weights = {name: value for name, value in encoder.state_dict().items() if is_adapter(name)}
    state = {_kept_name(name): value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_write(place / _WEIGHTS, "wb") as file:
        file.write(save(state, metadata={"format": "pt"}))


def with_adapter(
    encoder: PreTrainedModel, config: Any, source: str | Path, hub: Mapping[str, Any] | None = None
) -> PreTrainedModel:
    """The base encoder of a model, or a copy of it with its saved adapters where it has some."""
    if not config.lora:
        return encoder
    try:
        refuse_model_folder(source)
        file = cached_file(str(source), f"{ADAPTER_FOLDER}/{_WEIGHTS}", **(hub or {}))
        state = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{source}: cannot read the adapters in {ADAPTER_FOLDER}/{_WEIGHTS} ({reason(error)})"
        ) from error
    encoder = copy.deepcopy(encoder)  # the caller's encoder stays unchanged
    add_lora(encoder, config.lora)
    wanted = {_kept_name(name): name for name in encoder.state_dict() if is_adapter(name)}
    own = encoder.state_dict()
    refuse_differences(source, "adapters", differences(state, {kept: own[name] for kept, name in wanted.items()}))
    encoder.load_state_dict({wanted[name]: value for name, value in state.items()}, strict=False)
    return encoder


def _peft_settings(lora: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "r": lora["rank"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora["dropout"],
        "target_modules": list(lora["target_modules"]),
        "bias": "none",
    }


def _kept_name(name: str) -> str:
    return _PREFIX + name.replace(f".{_NAME}.", ".")


def _kind(encoder: nn.Module) -> str:
    """The class of an encoder, or of the module that is wrapped as one."""
    return type(getattr(encoder, "module", encoder)).__name__
