"""Several encoders of one architecture side by side.

Decisions: the embedding of an ensemble is its members' embeddings one after the other. A linear layer on it can then
be the mean of what the members' own heads answer, so an ensemble is one model, and whatever takes a model takes it.
Members hear the same features and make the same tokens; only their weights differ.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from laennec.encoders.output import EncoderOutput, TokenMix
from laennec.encoders.wrapper import WrapperConfig


class EnsembleConfig(WrapperConfig):
    """How many encoders of which configuration.

    Args:
        encoder_config: The configuration of each member (or its dict).
        members: How many there are.
        fingerprint: What the ensemble answered to the fixed input of `laennec.encoders.fingerprint`; None where it was
            never saved, or the members' configuration does not say how many mel bands they hear.
        **kwargs: Handed to transformers.

    Raises:
        ValueError: `members` is no number of members.
    """

    model_type = "laennec-ensemble"

    def __init__(
        self,
        encoder_config: PreTrainedConfig | dict[str, Any] | None = None,
        members: int = 1,
        fingerprint: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(members, int) or members < 1:
            raise ValueError(f"members is {members!r}; it must be a whole number above 0")
        self.members = members
        kwargs.pop("num_mel_bins", None)  # the members'
        super().__init__(encoder_config, **kwargs)
        if mels := getattr(self.encoder_config, "num_mel_bins", None):
            self.num_mel_bins, self.fingerprint = mels, fingerprint

    def width_factor(self) -> int:
        """The members' embeddings stand one after the other."""
        return self.members


class EnsembleEncoder(PreTrainedModel):
    """Encode with each member; tokens and `pooler_output` are theirs, one after the other.

    Args:
        config: How many members, and their configuration.
        members: The members; made from the configuration with random weights where they are left out.
    """

    config_class = EnsembleConfig
    config: EnsembleConfig
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: EnsembleConfig, members: Sequence[PreTrainedModel] = ()) -> None:
        super().__init__(config)
        if not members:
            from laennec.encoders import encoder_from_config

            assert isinstance(config.encoder_config, PreTrainedConfig)
            members = [encoder_from_config(config.encoder_config) for _ in range(config.members)]
        self.members = nn.ModuleList(members)
        self.num_special_tokens = int(getattr(members[0], "num_special_tokens", 0))
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """Leave the members as their own class made them."""

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
            token_mix: Handed to each member; None in all but some training.

        Returns:
            Tokens (batch, tokens, members * dim), which are real (batch, tokens), and the pooled embedding
            (batch, members * dim).
        """
        mixing = {} if token_mix is None else {"token_mix": token_mix}
        outputs = [
            member(input_values=input_values, attention_mask=attention_mask, **mixing) for member in self.members
        ]
        output = EncoderOutput(
            last_hidden_state=torch.cat([one.last_hidden_state for one in outputs], -1),
            token_mask=outputs[0].token_mask,
            pooler_output=torch.cat([one.pooler_output for one in outputs], -1),
        )
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(EnsembleConfig.model_type, EnsembleConfig)
AutoModel.register(EnsembleConfig, EnsembleEncoder)
