"""Encoders made of other encoders: several layers of one, overlapping groups of frames (CycleGuardian), and ensembles.

Decisions: a wrapper keeps the configuration of the inner encoder; the width of its embedding follows from that and is
never read from a file. Groups that would extend beyond a cycle's end are left out, as by the authors, but a cycle
shorter than one group is one padded group, masked for the inner encoder. Group-Mix exchanges groups after they were
encoded, because overlapping windows share frames. The embedding of an ensemble concatenates those of its members, so
that one linear layer can be the mean of their heads. Outputs of layers are collected by hooks; their widths are
measured when the wrapper is made.

Reference: Chu et al., CycleGuardian, 2025.
"""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from laennec.encoders.adapters import layers_path, stack_of
from laennec.encoders.base import AudioEncoder, EncoderOutput, TokenMix
from laennec.encoders.masks import TimeMask, token_mean, within
from laennec.encoders.own import config_from_dict
from laennec.encoders.weights.fingerprint import fixed_input
from laennec.errors import InputError

_MOST_MEMBERS = 100
EMBEDDING = "embedding"  # in a list of layers: the encoder's own embedding
COMBINATIONS = ("concatenate", "weighted_mean")


class WrapperConfig(PreTrainedConfig):
    """A wrapper's configuration around that of the inner encoder.

    Where the inner configuration has a number of mel bins, `fingerprint` holds the embedding of the fixed input of
    `laennec.encoders.weights.fingerprint`, or None where the wrapper was never saved.
    """

    encoder_config: Any = None  # of the inner encoder (or its dict)

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the inner configuration; the width of the embedding follows from it."""
        if isinstance(self.encoder_config, dict):
            self.encoder_config = config_from_dict(self.encoder_config)
        fingerprint, _ = kwargs.pop("fingerprint", None), kwargs.pop("num_mel_bins", None)
        super().__post_init__(**kwargs)
        self.hidden_size = int(getattr(self.encoder_config, "hidden_size", 0))
        mels = getattr(self.encoder_config, "num_mel_bins", None)
        if self.has_fingerprint and mels:
            self.num_mel_bins, self.fingerprint = mels, fingerprint

    geometry_names: ClassVar[str] = ""
    has_fingerprint: ClassVar[bool] = True

    @property
    def geometry(self) -> list[int]:
        """Settings that cannot be read from weights; error messages call them `geometry_names`."""
        raise NotImplementedError


class GroupsConfig(WrapperConfig):
    """Configuration of `GroupsEncoder`, which has no fingerprint."""

    model_type = "laennec-groups"

    geometry_names: ClassVar[str] = "group_frames and group_step"
    has_fingerprint: ClassVar[bool] = False
    group_frames: int = 20  # frames of a group
    group_step: int = 15  # frames from the start of a group to that of the next

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the sizes."""
        sizes = (self.group_frames, self.group_step)
        if not all(isinstance(frames, int) and frames >= 1 for frames in sizes):
            raise ValueError(f"group_frames {sizes[0]} and group_step {sizes[1]} must be at least 1")
        super().__post_init__(**kwargs)

    @property
    def geometry(self) -> list[int]:
        """Frames of a group and of a step."""
        return [self.group_frames, self.group_step]


class Wrapper(AudioEncoder):
    """An encoder around another one."""

    config: WrapperConfig
    _supports_sdpa = True
    geometry: Tensor

    def __init__(self, config: WrapperConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            from laennec.encoders import encoder_from_config

            assert isinstance(config.encoder_config, PreTrainedConfig)
            encoder = encoder_from_config(config.encoder_config)
        self.encoder = encoder
        # a buffer, so that the digest of the weights depends on these settings
        self.register_buffer("geometry", torch.tensor(config.geometry))

    def _init_weights(self, module: Any) -> None:
        """Keep the initialisation of the inner encoder's own class."""
        if module is self:
            self.geometry.copy_(torch.tensor(self.config.geometry))

    @property
    def layers(self) -> str | None:
        """The inner encoder's stack of layers."""
        path = layers_path(self.encoder)
        return None if path is None else f"encoder.{path}"

    @property
    def layers_after(self) -> tuple[str, ...]:
        """The inner encoder's modules after its layers."""
        return tuple(f"encoder.{name}" for name in getattr(self.encoder, "layers_after", ()))


class GroupsEncoder(Wrapper):
    """Encode each group of frames by itself; `pooler_output` is the mean of a cycle's groups."""

    config_class = GroupsConfig
    config: GroupsConfig

    def __init__(self, config: GroupsConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config, encoder)
        self.post_init()

    def token_grid(self, frames: int, mels: int) -> tuple[int, int]:
        """One band of as many groups as lie within so many frames, one at least."""
        return 1, max(1, (frames - self.config.group_frames) // self.config.group_step + 1)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, token_mix: TokenMix | None = None
    ) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`; a token is a group, and the embedding is their mean."""
        self.check_features(input_values)
        size, step = self.config.group_frames, self.config.group_step
        values = F.pad(input_values, (0, 0, 0, max(0, size - input_values.shape[1])))
        # (batch, frames, mels) -> (batch, groups, group_frames, mels)
        windows = values.unfold(1, size, step).transpose(2, 3)
        number = torch.arange(windows.shape[1], device=values.device)
        if attention_mask is None:
            lengths = torch.full((len(values),), input_values.shape[1], device=values.device)
        else:
            lengths = attention_mask.to(torch.int64).sum(1)
        real = (number * step + size <= lengths[:, None]) | (number == 0)  # (batch, groups)
        inside = (lengths[:, None] - number * step).clamp(0, size)[real]  # frames of each group, (real groups,)
        mask = within(inside, size).to(torch.int64)
        encoded = self.encoder(input_values=windows[real], attention_mask=mask).pooler_output
        tokens = encoded.new_zeros(*real.shape, encoded.shape[-1])
        tokens = tokens.masked_scatter(real[..., None], encoded)
        if token_mix is not None:
            # (batch, groups, dim) -> (batch, dim, 1, groups) and back
            tokens = token_mix.mix(tokens.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        return EncoderOutput(last_hidden_state=tokens, token_mask=real, pooler_output=token_mean(tokens, real))


class LayersConfig(WrapperConfig):
    """Configuration of `LayersEncoder`."""

    model_type = "laennec-layers"
    geometry_names: ClassVar[str] = "layers and combination"

    # numbers from 1 or from -1 backwards; "embedding" for the inner encoder's own embedding
    layers: list[int | str] = None  # type: ignore[assignment]
    widths: list[int] = None  # type: ignore[assignment]  # of each layer
    combination: str = COMBINATIONS[0]  # or "weighted_mean" of layers of one width, with weights that are trained

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the layers; the width of the embedding follows from theirs."""
        chosen, widths = self.layers or [EMBEDDING], self.widths or [0]
        numbers = [0 if layer == EMBEDDING else layer for layer in chosen]
        whole = all(type(n) is int for n in (*numbers, *widths)) and len(set(map(str, chosen))) == len(chosen)
        if not whole or len(widths) != len(chosen) or len(chosen) > _MOST_MEMBERS or min(widths) < 0:
            raise ValueError(f"layers {chosen} with widths {widths}: give numbers of layers or embedding, each once")
        if self.combination not in COMBINATIONS:
            raise ValueError(f"combination is {self.combination!r}; it can be {' or '.join(COMBINATIONS)}")
        if self.combination != COMBINATIONS[0] and len(set(widths)) > 1:
            raise ValueError(f"layers {chosen} have widths {widths} and no mean; concatenate them")
        super().__post_init__(**kwargs)
        self.layers, self.widths = list(chosen), list(widths)
        self.hidden_size = sum(widths) if self.combination == COMBINATIONS[0] else widths[0]

    @property
    def geometry(self) -> list[int]:
        """The layers, 0 for the encoder's own embedding, and the number of the combination."""
        numbers = [0 if layer == EMBEDDING else int(layer) for layer in self.layers]
        return [*numbers, COMBINATIONS.index(self.combination)]


class LayersEncoder(Wrapper):
    """An encoder whose `pooler_output` is made of the means over time (and frequency) of several of its layers."""

    config_class = LayersConfig
    config: LayersConfig

    def __init__(self, config: LayersConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config, encoder)
        self.num_special_tokens = int(getattr(self.encoder, "num_special_tokens", 0))
        self.batched_frames = int(getattr(self.encoder, "batched_frames", 0))
        self.layer_weights = None
        if config.combination != COMBINATIONS[0]:
            self.layer_weights = nn.Parameter(torch.zeros(len(config.layers)))  # before a softmax
        _chosen_layers(self.encoder, config.layers)
        self.post_init()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **mixing: Any) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`; tokens are the inner encoder's."""
        out, pooled = pooled_layers(
            self.encoder, self.config.layers, input_values=input_values, attention_mask=attention_mask, **mixing
        )
        if self.layer_weights is None:
            embedding = torch.cat(pooled, 1)
        else:
            embedding = torch.einsum("lbd,l->bd", torch.stack(pooled), self.layer_weights.softmax(0))
        return EncoderOutput(
            last_hidden_state=out.last_hidden_state, token_mask=out.token_mask, pooler_output=embedding
        )


def at_layers(
    encoder: PreTrainedModel, layers: Sequence[int | str], combination: str = COMBINATIONS[0], mels: int | None = None
) -> LayersEncoder:
    """An encoder whose embedding is made of those of several layers.

    Args:
        encoder: With a stack of layers (see `AudioEncoder.layers`).
        layers: Numbers from 1 or from -1 backwards, or "embedding" for the encoder's own.
        combination: "concatenate" or "weighted_mean".
        mels: Values a frame, where the encoder's configuration does not say.

    Raises:
        InputError: The encoder has no such layers, or they do not combine.
    """
    values = int(getattr(encoder.config, "num_mel_bins", None) or mels or 1)
    sound = fixed_input(values) if values > 1 else torch.zeros(1, 16_000, 1)  # a raw waveform
    weight = next(encoder.parameters())
    with torch.no_grad():
        _, pooled = pooled_layers(encoder, layers, input_values=sound.to(weight.device, weight.dtype))
    widths = [part.shape[1] for part in pooled]
    try:
        config = LayersConfig(
            encoder_config=encoder.config, layers=list(layers), widths=widths, combination=combination
        )
    except ValueError as error:
        raise InputError(f"encoder.layers: {error}") from error
    return LayersEncoder(config, encoder).eval()


def pooled_layers(encoder: nn.Module, layers: Sequence[int | str], **inputs: Any) -> tuple[Any, list[Tensor]]:
    """An encoder's output, and the embedding (batch, width) of each of these layers."""
    chosen, thread = _chosen_layers(encoder, layers), threading.get_ident()
    taken: dict[int, Tensor] = {}

    def take(place: int, module: nn.Module, given: Any, output: Any) -> None:
        if threading.get_ident() == thread:  # other threads may run the encoder at the same time
            hidden = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)
            if isinstance(hidden, Tensor) and hidden.ndim == 4:  # pooled now: the next layer may overwrite it
                around = (*(output if isinstance(output, tuple) else ()), *given)
                mask = next((one for one in around if isinstance(one, TimeMask)), TimeMask(None))
                hidden = mask.mean(hidden)
            taken[place] = hidden

    with ExitStack() as hooks:
        for place, module in enumerate(chosen):
            if module is not None:
                hooks.callback(module.register_forward_hook(partial(take, place)).remove)
        out = encoder(**inputs)
    pooled = []
    for place, layer in enumerate(layers):
        hidden = out.pooler_output if chosen[place] is None else taken.get(place)
        if isinstance(hidden, Tensor) and hidden.ndim == 3:
            hidden = hidden[:, int(getattr(encoder, "dropped_tokens", 0)) :]
            hidden = hidden.mean(1) if getattr(encoder, "all_tokens_real", False) else hidden
        if isinstance(hidden, Tensor) and hidden.ndim == 3 and hidden.shape[:2] == out.token_mask.shape:
            hidden = token_mean(hidden, out.token_mask, int(getattr(encoder, "num_special_tokens", 0)))
        if not isinstance(hidden, Tensor) or hidden.ndim != 2:
            raise InputError(f"layer {layer}: the layers of this encoder output no vector for each token")
        pooled.append(hidden)
    return out, pooled


def _chosen_layers(encoder: nn.Module, layers: Sequence[int | str]) -> list[nn.Module | None]:
    """The modules of layers; None for the encoder's own embedding."""
    if all(layer == EMBEDDING for layer in layers):
        return [None for _ in layers]
    if layers_path(encoder) is None:
        raise InputError("this encoder has no stack of layers; leave encoder.layers out")
    stack = stack_of(encoder)[0]
    for layer in layers:
        if layer != EMBEDDING and (layer == 0 or not -len(stack) <= int(layer) <= len(stack)):
            raise InputError(f"layer {layer}: the encoder has {len(stack)} layers: give 1 to {len(stack)}, or -1")
    chosen = [None if n == EMBEDDING else stack[int(n) - 1 if int(n) > 0 else int(n)] for n in layers]
    if twice := [layer for place, layer in enumerate(layers) if chosen[place] in chosen[:place]]:
        raise InputError(f"encoder.layers: layer {twice[0]} is given twice; give each layer once")
    return chosen


class EnsembleConfig(WrapperConfig):
    """Configuration of `EnsembleEncoder`; the inner encoder is that of each member."""

    model_type = "laennec-ensemble"

    members: int = 1  # how many there are

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the number; the embeddings of the members are concatenated."""
        if not isinstance(self.members, int) or not 1 <= self.members <= _MOST_MEMBERS:
            raise ValueError(f"members is {self.members!r}; it must be a whole number from 1 to {_MOST_MEMBERS}")
        super().__post_init__(**kwargs)
        self.hidden_size *= self.members


class EnsembleEncoder(AudioEncoder):
    """Encode with each member; tokens and `pooler_output` are theirs, concatenated."""

    config_class = EnsembleConfig
    config: EnsembleConfig
    _supports_sdpa = True

    def __init__(self, config: EnsembleConfig, members: Sequence[PreTrainedModel] = ()) -> None:
        super().__init__(config)
        if not members:
            from laennec.encoders import encoder_from_config

            assert isinstance(config.encoder_config, PreTrainedConfig)
            members = [encoder_from_config(config.encoder_config) for _ in range(config.members)]
        self.members = nn.ModuleList(members)
        self.num_special_tokens = int(getattr(members[0], "num_special_tokens", 0))
        self.batched_frames = int(getattr(members[0], "batched_frames", 0))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Keep the initialisation of the members' own class."""

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **mixing: Any) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`; the embeddings of the members are concatenated."""
        outputs = [
            member(input_values=input_values, attention_mask=attention_mask, **mixing) for member in self.members
        ]
        return EncoderOutput(
            last_hidden_state=torch.cat([one.last_hidden_state for one in outputs], -1),
            token_mask=outputs[0].token_mask,
            pooler_output=torch.cat([one.pooler_output for one in outputs], -1),
        )


WRAPPERS: dict[type[WrapperConfig], type[Any]] = {
    kind.config_class: kind for kind in (GroupsEncoder, LayersEncoder, EnsembleEncoder)
}
