"""Mean and spread of each mel bin, the baseline without a network.

Decisions: it is an encoder like any other (frozen, it has nothing to train), so that the baseline goes through the
same split, head, selection and evaluation as what it is compared with.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from laennec.encoders.output import EncoderOutput, refuse_shape


class StatisticsConfig(PreTrainedConfig):
    """Configuration of `StatisticsEncoder`.

    Args:
        num_mel_bins: Mel bins of the features.
        **kwargs: Handed to transformers.
    """

    model_type = "laennec-statistics"

    def __init__(self, num_mel_bins: int = 128, **kwargs: Any) -> None:
        self.num_mel_bins = num_mel_bins
        kwargs.pop("hidden_size", None)  # follows from the bins
        self.hidden_size = 2 * num_mel_bins
        super().__init__(**kwargs)


class StatisticsEncoder(PreTrainedModel):
    """Mean and standard deviation over the real frames of each mel bin: (batch, frames, mels) -> (batch, 2 mels)."""

    config_class = StatisticsConfig
    main_input_name = "input_values"
    num_special_tokens = 0

    def __init__(self, config: StatisticsConfig) -> None:
        super().__init__(config)
        # transformers asks a model for its device and dtype by its parameters
        self.anchor = torch.nn.Parameter(torch.zeros(()), requires_grad=False)
        self.post_init()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> EncoderOutput:
        """Pool the features.

        Args:
            input_values: (batch, frames, mels).
            attention_mask: (batch, frames), 1 on real frames; None where all are.

        Returns:
            The features as tokens (batch, frames, mels), their mask, and (batch, 2 mels).
        """
        refuse_shape(input_values, self.config.num_mel_bins, "statistics", ("efficientat",))
        if attention_mask is None:
            attention_mask = torch.ones(input_values.shape[:2], dtype=torch.bool, device=input_values.device)
        mask = attention_mask.bool()
        weight = mask.unsqueeze(-1).to(input_values.dtype)
        count = weight.sum(1).clamp_min(1)
        mean = (input_values * weight).sum(1) / count
        variance = ((input_values - mean.unsqueeze(1)).square() * weight).sum(1) / count
        return EncoderOutput(input_values, mask, torch.cat([mean, variance.sqrt()], dim=1))


AutoConfig.register("laennec-statistics", StatisticsConfig)
AutoModel.register(StatisticsConfig, StatisticsEncoder)
