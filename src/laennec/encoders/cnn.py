"""The small CNN of Song et al., trained from scratch.

Decisions: poolings round up along time, so that a single frame still gives a token (at the paper's 64 x 320
nothing changes); what lies beyond a cycle's end is 0 before every convolution, and after the ReLU a 0 never wins a
maximum, so poolings need no mask of their own.

Reference: Song, Han and Jiao, Contrastive Embedding Learning Method for Respiratory Sound Classification, ICASSP
2021, Table 1.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from laennec.encoders.output import EncoderOutput, MaskedBatchNorm2d, TimeMask, refuse_shape


class CnnConfig(PreTrainedConfig):
    """Size of the CNN.

    Args:
        channels: Channels of each block of two 3x3 convolutions; all blocks but the last end in a 2x2 maximum.
        num_mel_bins: Mel bins of the features it is made for; others work as long as the poolings leave one.
        **kwargs: Handed to transformers.
    """

    model_type = "laennec-cnn"

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128, 256), num_mel_bins: int = 64, **kwargs: Any) -> None:
        self.channels = list(channels)
        if not self.channels or not all(isinstance(count, int) and count > 0 for count in self.channels):
            raise ValueError(f"channels is {channels}; it must be a list of whole numbers above 0")
        if not isinstance(num_mel_bins, int) or num_mel_bins < 1:
            raise ValueError(f"num_mel_bins is {num_mel_bins!r}; it must be a whole number above 0")
        self.num_mel_bins = num_mel_bins
        kwargs.pop("hidden_size", None)  # follows from the channels
        self.hidden_size = self.channels[-1]
        super().__init__(**kwargs)


class CnnBlock(nn.Module):
    """Two times 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, after, 3, padding=1, bias=False) for c in (before, after))
        self.norms = nn.ModuleList(MaskedBatchNorm2d(after) for _ in range(2))

    def forward(self, x: Tensor, mask: TimeMask) -> Tensor:
        """(batch, before, frequency, time) -> (batch, after, frequency, time), 0 beyond each cycle's end."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = mask.zero_beyond(norm(conv(x), mask).relu())
        return x


class CnnEncoder(PreTrainedModel):
    """Four blocks of two 3x3 convolutions (32, 64, 128, 256 channels) and global average pooling.

    A token stands for 8 frames, averaged over frequency; `pooler_output` is the mean of the real tokens. The
    attention mask is a prefix of ones. In training, batch statistics come from real frames only.
    """

    config_class = CnnConfig
    config: CnnConfig
    main_input_name = "input_values"
    num_special_tokens = 0
    layers = "blocks"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        sizes = [1, *config.channels]
        self.blocks = nn.ModuleList(CnnBlock(a, b) for a, b in pairwise(sizes))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He's initialisation for convolutions before a ReLU."""
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> EncoderOutput | tuple[Tensor, ...]:
        """Encode cycles.

        Args:
            input_values: (batch, frames, mels).
            attention_mask: (batch, frames), ones on a cycle's frames and zeros after them; None where nothing is
                padded.
            return_dict: False for a plain tuple.

        Returns:
            Tokens (batch, ceil(frames / 8), dim), their mask, and their mean (batch, dim).
        """
        refuse_shape(input_values, None, "cnn", ())
        mask = TimeMask.of(attention_mask)
        first: Any = self.blocks[0]
        # (batch, frames, mels) -> (batch, 1, mels, frames)
        x = mask.zero_beyond(input_values.to(first.convs[0].weight.dtype).transpose(1, 2).unsqueeze(1))
        for number, block in enumerate(self.blocks):
            if number:
                x, mask = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2), mask.halved()  # rounds up
            x = block(x, mask)
            if x.device.type == "cpu":
                # channels side by side: training is a quarter faster on a CPU
                x = x.contiguous(memory_format=torch.channels_last)
        output = EncoderOutput(
            last_hidden_state=x.mean(2).transpose(1, 2),
            token_mask=mask.tokens(x),
            pooler_output=mask.mean(x),
        )
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(CnnConfig.model_type, CnnConfig)
AutoModel.register(CnnConfig, CnnEncoder)
