"""EfficientAT's MobileNetV3, pre-trained on AudioSet, for sounds of any length.

Decisions: padding is zeroed before every convolution over time and left out of squeeze-excitation and pooling, so a
cycle has the same embedding as when it is encoded alone. Without gradients, batch normalisation is folded into the
convolution. On a CPU the other cycles of a batch do not change a cycle's result by a bit: each cycle's matrices are
multiplied separately, in an order that depends on its (padded) shape alone.

References: Howard et al., Searching for MobileNetV3, ICCV 2019; Schmid, Koutini and Widmer, Efficient Large-Scale Audio
Tagging via Transformer-to-CNN Knowledge Distillation, ICASSP 2023.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers import initialization as init

from laennec.encoders.base import AudioEncoder, EncoderOutput
from laennec.encoders.masks import MaskedBatchNorm2d, TimeMask, in_graph
from laennec.encoders.weights.checkpoints import checked_state, released_error, renamed
from laennec.errors import InputError

# MobileNetV3-Large: kernel, expanded channels, output channels, squeeze-excitation, activation, stride
_LAYOUT: tuple[tuple[int, int, int, bool, type[nn.Module], int], ...] = (
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)
_STEM_CHANNELS, _HEAD_CHANNELS = 16, 1280
_VECTOR = 32  # floats in a vector instruction of torch, on the widest CPU
_MOST_WIDTH = 100.0  # the largest published one has 4


def _eights(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8 and never below 90 % of it (MobileNet's rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class MobileNetConfig(PreTrainedConfig):
    """Size of an EfficientAT MobileNetV3."""

    model_type = "laennec-mobilenet"

    width_mult: float = 0.4  # factor on all channel numbers; 0.4 for mn04_as, 1.0 for mn10_as, 4.0 for mn40_as
    audioset_head: bool = False  # whether the AudioSet classifier is kept
    audioset_classes: int = 527  # number of its classes
    num_mel_bins: int = 128  # mel bins of the features it was trained with

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the width; that of the embedding follows from it."""
        width = self.width_mult
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < _MOST_WIDTH:
            raise InputError(
                f"mobilenet: width_mult is {width!r}; it must be a number above 0 (0.4 for mn04, 4.0 for mn40)"
            )
        super().__post_init__(**kwargs)
        self.hidden_size = 6 * _eights(_LAYOUT[-1][2] * width)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, activation."""

    def __init__(
        self, channels: tuple[int, int], kernel: int, activation: type[nn.Module], stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(*channels, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        self.norm = MaskedBatchNorm2d(channels[1], eps=1e-3, momentum=0.01)
        self.activation = activation()
        self._kept: tuple[list[Any], list[Tensor], Tensor, Tensor] | None = None

    def train(self, mode: bool = True) -> "ConvNorm":
        """As in torch; forget folded weights, because training changes statistics but not their version."""
        self._kept = None
        return super().train(mode)

    def forward(self, x: Tensor, mask: TimeMask) -> Tensor:
        """(batch, in, frequency, time) -> (batch, out, frequency, time); `mask` is that of the output."""
        if self.training or torch.is_grad_enabled():
            return self.activation(self.norm(self.conv(x), mask))
        conv = self.conv
        weight, shift = self._fold() if in_graph() else self._folded()
        if x.device.type == "cpu" and conv.kernel_size == (1, 1) and not in_graph():
            # (batch, in, frequency, time) -> (batch, positions, in) -> (batch, out, frequency, time)
            rows = rows_times(x.permute(0, 2, 3, 1).flatten(1, 2), weight.flatten(1), shift)
            return self._activated(rows.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2))
        return self._activated(F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups))

    def _activated(self, x: Tensor) -> Tensor:
        """The activation, in place: the input is not used elsewhere."""
        if isinstance(self.activation, nn.Identity):
            return x
        return F.relu_(x) if isinstance(self.activation, nn.ReLU) else F.hardswish(x, inplace=True)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """As `_fold`, but cached until a weight is changed or replaced."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        sources = [self.conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
        if any(value.is_inference() for value in sources):  # these have no version counter
            return self._fold()
        state = [(value.data_ptr(), value._version) for value in sources]
        kept = self._kept
        if kept is None or kept[0] != state:
            # holding the tensors prevents the reuse of their addresses
            kept = self._kept = state, [value.detach() for value in sources], *self._fold()
        return kept[2], kept[3]

    def _fold(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one convolution that replaces convolution and normalisation: half the memory traffic."""
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def rows_times(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer, applied to each row separately: (batch, positions, in) -> (batch, positions, out).

    In one product of all rows, the order of summation, and so the last bit, would depend on their number.
    """
    return torch.baddbmm(bias, x, weight.t().expand(len(x), -1, -1))


class SqueezeExcitation(nn.Module):
    """Weigh channels by their mean over frequency and real time."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, squeezed)
        self.expand = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor, mask: TimeMask) -> Tensor:
        """(batch, channels, frequency, time) -> the same shape."""
        mean = mask.mean(x)
        if torch.is_grad_enabled() or x.device.type != "cpu" or in_graph():
            return x * self.expand(self.reduce(mean).relu()).sigmoid()[:, :, None, None]
        # padded to whole vectors: torch computes the remainder with another implementation of exp
        scale = self._by_rows(self.expand, self._by_rows(self.reduce, mean[:, None]).relu_())[:, 0]
        scale = F.pad(scale, (0, -scale.shape[1] % _VECTOR)).sigmoid()[:, : scale.shape[1]]
        return x.mul_(scale[:, :, None, None])

    def _by_rows(self, layer: nn.Module, x: Tensor) -> Tensor:
        """As `rows_times`, of a layer that may hold an adapter."""
        if type(layer) is nn.Linear:
            return rows_times(x, layer.weight, layer.bias)
        return torch.cat([layer(row[None]) for row in x])


class InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, weigh, project; added to the input where the shape allows."""

    def __init__(self, channels: tuple[int, int, int], kernel: int, squeeze: bool, act: type[nn.Module], stride: int):
        super().__init__()
        before, inside, after = channels
        self.stride = stride
        self.expand = ConvNorm((before, inside), 1, act) if inside != before else None
        self.depthwise = ConvNorm((inside, inside), kernel, act, stride, groups=inside)
        self.squeeze = SqueezeExcitation(inside, _eights(inside / 4)) if squeeze else None
        self.project = ConvNorm((inside, after), 1, nn.Identity)
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor, mask: TimeMask) -> tuple[Tensor, TimeMask]:
        """(batch, before, frequency, time) -> (batch, after, frequency / stride, time / stride) and its mask."""
        hidden = x if self.expand is None else self.expand(x, mask)
        after = mask.halved() if self.stride == 2 else mask
        if self.expand is None or not self.training:  # in training, batch normalisation writes these zeros
            hidden = mask.zero_beyond(hidden)
        hidden = self.depthwise(hidden, after)
        if self.squeeze is not None:
            hidden = self.squeeze(hidden, after)
        hidden = self.project(hidden, after)
        return (x + hidden if self.residual else hidden), after


class MobileNetEncoder(AudioEncoder):
    """EfficientAT's MobileNetV3: log-mel features of the "efficientat" preset to one vector a cycle.

    A token stands for 32 frames (0.32 s), averaged over frequency; `pooler_output` is the mean of the real tokens,
    the embedding before the AudioSet classifier. The attention mask is a prefix of ones. In training, batch
    statistics come from real frames only.
    """

    kind = "mobilenet"
    title = "EfficientAT MobileNetV3, pre-trained on AudioSet"
    licence = "MIT"
    homepage = "https://github.com/fschmid56/EfficientAT/releases"
    citation = """@inproceedings{schmid2023efficient,
  title={Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation},
  author={Schmid, Florian and Koutini, Khaled and Widmer, Gerhard},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2023}
}"""
    preset = "efficientat"
    released_settings = ("audioset_head",)
    config_class = MobileNetConfig
    config: MobileNetConfig
    layers = "blocks"
    layers_after = ("last",)
    batched_frames = 16  # few distinct lengths, because torch prepares kernels for each

    def __init__(self, config: MobileNetConfig) -> None:
        super().__init__(config)
        width = config.width_mult
        channels = _eights(_STEM_CHANNELS * width)
        self.stem = ConvNorm((1, channels), 3, nn.Hardswish, stride=2)
        blocks = []
        for kernel, inside, after, squeeze, activation, stride in _LAYOUT:
            sizes = (channels, _eights(inside * width), _eights(after * width))
            blocks.append(InvertedResidual(sizes, kernel, squeeze, activation, stride))
            channels = sizes[2]
        self.blocks = nn.ModuleList(blocks)
        self.last = ConvNorm((channels, config.hidden_size), 1, nn.Hardswish)
        self.audioset_head = None
        if config.audioset_head:
            hidden = _eights(_HEAD_CHANNELS * width)
            self.audioset_head = nn.Sequential(
                nn.Linear(config.hidden_size, hidden),
                nn.Hardswish(),
                nn.Dropout(0.2),
                nn.Linear(hidden, config.audioset_classes),
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, 0.0, 0.01)
            init.zeros_(module.bias)

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`; there are ceil(frames / 32) tokens."""
        self.check_features(input_values, self.config.num_mel_bins)
        mask = TimeMask.of(attention_mask)
        # (batch, frames, mels) -> (batch, 1, mels, frames)
        x = input_values.to(self.stem.conv.weight.dtype).transpose(1, 2).unsqueeze(1)
        # contiguous: for other strides torch's choice of layout depends on the number of rows, among others
        x = mask.zero_beyond(x.clone(memory_format=torch.contiguous_format))
        mask = mask.halved()
        x = self.stem(x, mask)
        if x.device.type == "cpu":
            # channels last: up to twice as fast on a CPU
            x = x.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x, mask = block(x, mask)
        x = mask.zero_beyond(self.last(x, mask))
        return EncoderOutput(
            last_hidden_state=x.mean(2).transpose(1, 2), token_mask=mask.tokens(x), pooler_output=mask.mean(x)
        )

    @classmethod
    def reads(cls, content: dict[str, Any]) -> bool:
        """Whether a released file holds tensors alone, as EfficientAT's do."""
        return not isinstance(content.get("model"), dict)

    @classmethod
    def from_released(
        cls, path: str | Path, content: dict[str, Any], audioset_head: bool = False
    ) -> "MobileNetEncoder":
        """The encoder of a state dict as EfficientAT publishes it (mn04_as, mn10_as, mn40_as, ...)."""
        state = checked_state(path, content)
        if "in_c.0.weight" in state and "out_c.0.weight" in state:
            raise InputError(
                f"{path}: a dynamic MobileNet of EfficientAT (dymn), which is not supported; give one of its plain "
                "ones (mn04_as, mn10_as, mn20_as, mn40_as)"
            )
        last = state.get("classifier.5.weight")
        hidden = state.get("classifier.2.weight")
        if "features.16.0.weight" not in state or last is None or hidden is None or last.ndim != 2 or hidden.ndim != 2:
            raise released_error(
                path, "not an EfficientAT MobileNetV3 (no features.16.0.weight or classifier.5.weight)"
            )
        if not len(hidden):
            raise released_error(path, "classifier.2.weight has no rows, which would be a width of 0")
        config = MobileNetConfig(width_mult=hidden.shape[0] / _HEAD_CHANNELS, audioset_head=True)
        encoder: MobileNetEncoder = renamed(path, cls, config, state, _released_name, {"audioset_head": audioset_head})
        return encoder


def _released_name(name: str, present: Container[str]) -> str:
    """The authors' name of one of our weights; a layer's number depends on which others the block has."""
    parts = name.split(".")
    if parts[0] == "audioset_head":
        return f"classifier.{int(parts[1]) + 2}.{parts[2]}"
    if parts[0] in ("stem", "last"):
        number = 0 if parts[0] == "stem" else len(_LAYOUT) + 1
        return f"features.{number}.{_released_layer(parts[1:])}"
    number, layer = int(parts[1]), parts[2]
    block = f"blocks.{number}"
    probes = {"expand": "conv.weight", "depthwise": "conv.weight", "squeeze": "reduce.weight", "project": "conv.weight"}
    order = [kind for kind, probe in probes.items() if f"{block}.{kind}.{probe}" in present]
    place = f"features.{number + 1}.block.{order.index(layer)}"
    if layer == "squeeze":
        return f"{place}.conc_se_layers.0.{'fc1' if parts[3] == 'reduce' else 'fc2'}.{parts[4]}"
    return f"{place}.{_released_layer(parts[3:])}"


def _released_layer(parts: list[str]) -> str:
    return f"{0 if parts[0] == 'conv' else 1}.{parts[1]}"
