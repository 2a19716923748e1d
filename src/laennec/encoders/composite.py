"""Encoders made of other encoders: overlapping groups of frames (CycleGuardian), and ensembles.

Decisions: a wrapper keeps the whole configuration of what is inside, so that it is saved and made again without knowing
what it holds; the width of its embedding follows from that and is never read from a file. Groups start every
`group_step` frames. Those that would reach over a cycle's end are left out, as the authors do, but a cycle shorter than
one group has one, padded under the inner encoder's own mask. Groups of padding are never encoded, so they do not move
batch statistics. Group-Mix exchanges groups between cycles after they were encoded, because overlapping windows share
frames. The embedding of an ensemble is those of its members, one after the other: a linear layer on it can be the mean
of the members' own heads, so an ensemble is one model.

Reference: Chu et al., CycleGuardian, 2025.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from laennec.encoders.adapters import layers_path
from laennec.encoders.base import AudioEncoder, EncoderOutput, TokenMix
from laennec.encoders.own import config_from_dict

_MOST_MEMBERS = 100


class WrapperConfig(PreTrainedConfig):
    """A wrapper's configuration around that of the inner encoder (or its dict)."""

    encoder_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the inner configuration; the width of the embedding follows from it."""
        if isinstance(self.encoder_config, dict):
            self.encoder_config = config_from_dict(self.encoder_config)
        super().__post_init__(**kwargs)
        self.hidden_size = int(getattr(self.encoder_config, "hidden_size", 0))


class GroupsConfig(WrapperConfig):
    """Configuration of `GroupsEncoder`.

    Args:
        encoder_config: The inner encoder's configuration (or its dict).
        group_frames: Frames of a group.
        group_step: Frames from the start of a group to that of the next.
    """

    model_type = "laennec-groups"

    group_frames: int = 20
    group_step: int = 15

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the sizes."""
        sizes = (self.group_frames, self.group_step)
        if not all(isinstance(frames, int) and frames >= 1 for frames in sizes):
            raise ValueError(f"group_frames {sizes[0]} and group_step {sizes[1]} must be at least 1")
        super().__post_init__(**kwargs)


class GroupsEncoder(AudioEncoder):
    """Encode each group of frames by itself; `pooler_output` is the mean of a cycle's groups."""

    config_class = GroupsConfig
    config: GroupsConfig
    _supports_sdpa = True
    geometry: Tensor

    def __init__(self, config: GroupsConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            from laennec.encoders import encoder_from_config

            assert isinstance(config.encoder_config, PreTrainedConfig)
            encoder = encoder_from_config(config.encoder_config)
        self.encoder = encoder
        # among the weights, so that a digest of them tells groups of another size apart
        self.register_buffer("geometry", torch.tensor([config.group_frames, config.group_step]))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Leave the inner encoder as its own class made it."""
        if module is self:
            self.geometry.copy_(torch.tensor([self.config.group_frames, self.config.group_step]))

    @property
    def layers(self) -> str | None:
        """The inner encoder's stack of layers."""
        path = layers_path(self.encoder)
        return None if path is None else f"encoder.{path}"

    @property
    def layers_after(self) -> tuple[str, ...]:
        """The inner encoder's modules after its layers."""
        return tuple(f"encoder.{name}" for name in getattr(self.encoder, "layers_after", ()))

    def token_grid(self, frames: int, mels: int) -> tuple[int, int]:
        """One band of as many groups as lie within so many frames, one at least."""
        return 1, max(1, (frames - self.config.group_frames) // self.config.group_step + 1)

    def forward(  # type: ignore[override]
        self, input_values: Tensor, attention_mask: Tensor | None = None, token_mix: TokenMix | None = None
    ) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder.forward`; a token is a group, and the embedding is their mean."""
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
        frames = torch.arange(size, device=values.device) < inside[:, None]
        encoded = self.encoder(input_values=windows[real], attention_mask=frames.to(torch.int64)).pooler_output
        tokens = encoded.new_zeros(*real.shape, encoded.shape[-1])
        tokens = tokens.masked_scatter(real[..., None], encoded)
        if token_mix is not None:
            # (batch, groups, dim) -> (batch, dim, 1, groups) and back
            tokens = token_mix.mix(tokens.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        weight = real.to(tokens.dtype)[..., None]
        pooled = (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
        return EncoderOutput(last_hidden_state=tokens, token_mask=real, pooler_output=pooled)


class EnsembleConfig(WrapperConfig):
    """Configuration of `EnsembleEncoder`.

    Args:
        encoder_config: The configuration of each member (or its dict).
        members: How many there are.
        fingerprint: The ensemble's embedding of the fixed input of `laennec.encoders.fingerprint`; None where it was
            never saved, or the members' configuration has no number of mel bins.
    """

    model_type = "laennec-ensemble"

    members: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the number; the embeddings of the members are concatenated."""
        if not isinstance(self.members, int) or not 1 <= self.members <= _MOST_MEMBERS:
            raise ValueError(f"members is {self.members!r}; it must be a whole number from 1 to {_MOST_MEMBERS}")
        fingerprint, _ = kwargs.pop("fingerprint", None), kwargs.pop("num_mel_bins", None)
        super().__post_init__(**kwargs)
        self.hidden_size *= self.members
        if mels := getattr(self.encoder_config, "num_mel_bins", None):
            self.num_mel_bins, self.fingerprint = mels, fingerprint


class EnsembleEncoder(AudioEncoder):
    """Encode with each member; tokens and `pooler_output` are theirs, one after the other."""

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
        """Leave the members as their own class made them."""

    def forward(  # type: ignore[override]
        self, input_values: Tensor, attention_mask: Tensor | None = None, token_mix: TokenMix | None = None
    ) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder.forward`; dimensions are those of the members, one after the other."""
        mixing = {} if token_mix is None else {"token_mix": token_mix}
        outputs = [
            member(input_values=input_values, attention_mask=attention_mask, **mixing) for member in self.members
        ]
        return EncoderOutput(
            last_hidden_state=torch.cat([one.last_hidden_state for one in outputs], -1),
            token_mask=outputs[0].token_mask,
            pooler_output=torch.cat([one.pooler_output for one in outputs], -1),
        )


AutoConfig.register(GroupsConfig.model_type, GroupsConfig)
AutoModel.register(GroupsConfig, GroupsEncoder)
AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
AutoModel.register(EnsembleConfig, EnsembleEncoder)
