"""Overlapping groups of frames, each encoded by itself (CycleGuardian).

Decisions: this is a wrapper that any encoder fits into, so that groups need no code of their own elsewhere: a token
is a group. Groups start every `group_step` frames; those that would reach over a cycle's end are left out, as the
authors do, but a cycle shorter than one group has one, padded under the inner encoder's own mask. Groups of padding are
never encoded, so they move no batch statistics either. Groups are exchanged between cycles (Group-Mix) after they were
encoded, where overlapping windows no longer share frames.

Reference: Chu et al., CycleGuardian, 2025.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from laennec.encoders.output import EncoderOutput, TokenMix, refuse_shape
from laennec.encoders.trainable import layers_path
from laennec.encoders.wrapper import WrapperConfig


class GroupsConfig(WrapperConfig):
    """Which encoder looks at groups of which size.

    Args:
        encoder_config: The inner encoder's configuration (or its dict).
        group_frames: Frames of a group.
        group_step: Frames from the start of a group to that of the next.
        **kwargs: Handed to transformers.

    Raises:
        ValueError: A group or a step has no frame.
    """

    model_type = "laennec-groups"

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        group_frames: int = 20,
        group_step: int = 15,
        **kwargs: Any,
    ) -> None:
        if not all(isinstance(frames, int) and frames >= 1 for frames in (group_frames, group_step)):
            raise ValueError(f"group_frames {group_frames} and group_step {group_step} must be at least 1")
        self.group_frames = group_frames
        self.group_step = group_step
        super().__init__(encoder_config, **kwargs)


class GroupsEncoder(PreTrainedModel):
    """Encode each group of frames by itself; `pooler_output` is the mean of a cycle's groups.

    Args:
        config: Sizes, and the inner encoder's configuration.
        encoder: The inner encoder; made from the configuration with random weights where it is left out.
    """

    config_class = GroupsConfig
    config: GroupsConfig
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    num_special_tokens = 0
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

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        token_mix: TokenMix | None = None,
    ) -> EncoderOutput | tuple[Tensor, ...]:
        """Encode cycles.

        Args:
            input_values: (batch, frames, mels).
            attention_mask: (batch, frames), ones on a cycle's frames and zeros after them; None where nothing is
                padded.
            return_dict: False for a plain tuple.
            token_mix: Which groups are another cycle's; None in all but some training.

        Returns:
            Groups (batch, groups, dim), which are real (batch, groups), and their mean (batch, dim).
        """
        refuse_shape(input_values, None, "groups", ())
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
        output = EncoderOutput(last_hidden_state=tokens, token_mask=real, pooler_output=pooled)
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(GroupsConfig.model_type, GroupsConfig)
AutoModel.register(GroupsConfig, GroupsEncoder)
