"""Encoders without released weights: the small CNN of Song et al., and statistics of the features.

Decisions: the CNN's poolings round up along time, so that a single frame still gives a token (at the paper's 64 x 320
nothing changes); after the ReLU, zeros beyond a cycle's end change no maximum, so poolings need no mask. The statistics
baseline is an encoder, so that it uses the same split, head and evaluation as the networks.

Reference: Song, Han and Song, Contrastive Embedding Learning Method for Respiratory Sound Classification, ICASSP
2021, Table 1.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init

from laennec.encoders.base import AudioEncoder, EncoderOutput
from laennec.encoders.masks import MaskedBatchNorm2d, TimeMask, token_mean


class CnnConfig(PreTrainedConfig):
    """Size of the CNN."""

    model_type = "laennec-cnn"

    # channels of each block of two 3x3 convolutions; all blocks but the last end in 2x2 max pooling
    channels: list[int] | tuple[int, ...] = (32, 64, 128, 256)
    num_mel_bins: int = 64  # mel bins of the features it is made for; others work if the poolings leave at least one

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the sizes; the width of the embedding follows from them."""
        self.channels = list(self.channels)
        if not self.channels or not all(isinstance(count, int) and count > 0 for count in self.channels):
            raise ValueError(f"channels is {self.channels}; it must be a list of whole numbers above 0")
        if not isinstance(self.num_mel_bins, int) or self.num_mel_bins < 1:
            raise ValueError(f"num_mel_bins is {self.num_mel_bins!r}; it must be a whole number above 0")
        super().__post_init__(**kwargs)
        self.hidden_size = self.channels[-1]


class CnnBlock(nn.Module):
    """Two times 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, after, 3, padding=1, bias=False) for c in (before, after))
        self.norms = nn.ModuleList(MaskedBatchNorm2d(after) for _ in range(2))

    def forward(self, x: Tensor, mask: TimeMask) -> Tensor:
        """(batch, before, frequency, time) -> (batch, after, frequency, time), 0 beyond each cycle's end."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x), mask).relu()
            if not self.training:  # in training, batch normalisation writes these zeros
                x = mask.zero_beyond(x)
        return x


class CnnEncoder(AudioEncoder):
    """Four blocks of two 3x3 convolutions (32, 64, 128, 256 channels) and global average pooling.

    A token stands for 8 frames, averaged over frequency; `pooler_output` is the mean of the real tokens. The
    attention mask is a prefix of ones. In training, batch statistics come from real frames only.
    """

    kind = "cnn"
    citation = """@inproceedings{song2021contrastive,
  title={Contrastive Embedding Learning Method for Respiratory Sound Classification},
  author={Song, Wenjie and Han, Jiqing and Song, Hongwei},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2021}
}"""
    config_class = CnnConfig
    config: CnnConfig
    layers = "blocks"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(CnnBlock(a, b) for a, b in pairwise([1, *config.channels]))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`; there are ceil(frames / 8) tokens."""
        self.check_features(input_values)
        mask = TimeMask.of(attention_mask)
        first: Any = self.blocks[0]
        # (batch, frames, mels) -> (batch, 1, mels, frames)
        x = input_values.to(first.convs[0].weight.dtype).transpose(1, 2).unsqueeze(1)
        x = mask.zero_beyond(x.clone(memory_format=torch.contiguous_format))
        for number, block in enumerate(self.blocks):
            if number:
                x, mask = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2), mask.halved()  # rounds up
            x = block(x, mask)
            if x.device.type == "cpu":
                # channels last: training is a quarter faster on a CPU
                x = x.contiguous(memory_format=torch.channels_last)
        return EncoderOutput(
            last_hidden_state=x.mean(2).transpose(1, 2), token_mask=mask.tokens(x), pooler_output=mask.mean(x)
        )


class StatisticsConfig(PreTrainedConfig):
    """Configuration of `StatisticsEncoder`."""

    model_type = "laennec-statistics"

    num_mel_bins: int = 128

    def __post_init__(self, **kwargs: Any) -> None:
        """The width of the embedding follows from the bins."""
        super().__post_init__(**kwargs)
        self.hidden_size = 2 * self.num_mel_bins


class StatisticsEncoder(AudioEncoder):
    """Mean and standard deviation over the real frames of each mel bin: (batch, frames, mels) -> (batch, 2 mels)."""

    kind = "statistics"
    config_class = StatisticsConfig
    config: StatisticsConfig

    def __init__(self, config: StatisticsConfig) -> None:
        super().__init__(config)
        # transformers reads device and dtype from a model's parameters
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.post_init()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`; tokens are the frames, and the embedding is (batch, 2 mels)."""
        self.check_features(input_values, self.config.num_mel_bins)
        if attention_mask is None:
            attention_mask = torch.ones(input_values.shape[:2], dtype=torch.bool, device=input_values.device)
        mask = attention_mask.bool()
        mean = token_mean(input_values, mask)
        variance = token_mean((input_values - mean.unsqueeze(1)).square(), mask)
        return EncoderOutput(input_values, mask, torch.cat([mean, variance.sqrt()], dim=1))
