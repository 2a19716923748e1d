"""wav2vec 2.0 and encoders of the same architecture, at the true length of every cycle.

Decisions: wav2vec 2.0's group norm and data2vec's stacked positional convolutions use real samples only.

References: Baevski et al. 2020 (wav2vec 2.0), Hsu et al. 2021 (HuBERT), Chen et al. 2022 (WavLM), Baevski et al. 2022
(data2vec).
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Data2VecAudioConfig,
    HubertConfig,
    PreTrainedConfig,
    UniSpeechConfig,
    UniSpeechSatConfig,
    Wav2Vec2Config,
    WavLMConfig,
)

from laennec.encoders.masks import within, zero_beyond
from laennec.encoders.transformers_audio import TransformersEncoder, token_mask
from laennec.errors import InputError


class WaveformEncoder(TransformersEncoder):
    """wav2vec 2.0 and encoders of its architecture: HuBERT, data2vec, UniSpeech. A token stands for 20 ms.

    A cycle shorter than the receptive field of a token (25 ms) is padded with zeros, which are not masked.
    """

    preset = "waveform"
    other_presets = ("waveform-raw",)
    feature_size = 1  # a frame is a sample

    def __init__(self, config: PreTrainedConfig) -> None:
        if getattr(config, "conv_pos_batch_norm", False):
            raise InputError(
                "conv_pos_batch_norm: true in config.json: batch normalisation before the positional convolution "
                "mixes padding into the sound, which is not supported; give a checkpoint without it"
            )
        super().__init__(config)

    def _prepare(self) -> None:
        positions = self.model.encoder.pos_conv_embed
        if isinstance(getattr(positions, "layers", None), nn.ModuleList):
            self.model.encoder.pos_conv_embed = StackedPositions(positions.layers)

    @property
    def view(self) -> int:
        """Receptive field of a token, in samples."""
        view = 1
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True):
            view = (view - 1) * stride + kernel
        return int(view)

    @property
    def layers_after(self) -> tuple[str, ...]:
        """The normalisation, where it comes after the layers."""
        return ("model.encoder.layer_norm",) if getattr(self.config, "do_stable_layer_norm", False) else ()

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        values = zero_beyond(values, lengths)
        if values.shape[1] < self.view:
            values = F.pad(values, (0, 0, 0, self.view - values.shape[1]))
        real = None if lengths is None else lengths.clamp_min(self.view)
        hidden = values.transpose(1, 2)  # (batch, 1, samples)
        for layer in self.model.feature_extractor.conv_layers:
            if real is not None:
                kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
                real = torch.div(real - kernel, stride, rounding_mode="floor") + 1
            norm = getattr(layer, "layer_norm", None)
            if real is not None and isinstance(norm, nn.GroupNorm):
                hidden = layer.activation(_channel_norm(norm, layer.conv(hidden), real))
            else:
                hidden = layer(hidden)
        projected = self.model.feature_projection(hidden.transpose(1, 2))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        mask = token_mask(hidden, real)
        positions = self.model.encoder.pos_conv_embed
        if isinstance(positions, StackedPositions):
            positions.mask = mask
        return self.model.encoder(hidden, attention_mask=mask).last_hidden_state, real


class Wav2Vec2Encoder(WaveformEncoder):
    """wav2vec 2.0."""

    kind = "wav2vec2"
    citation = """@inproceedings{baevski2020wav2vec,
  title={wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations},
  author={Baevski, Alexei and Zhou, Henry and Mohamed, Abdelrahman and Auli, Michael},
  booktitle={Advances in Neural Information Processing Systems (NeurIPS)},
  year={2020}
}"""
    config_class = Wav2Vec2Config
    source = ("wav2vec2.modeling_wav2vec2", "Wav2Vec2Model")


class HubertEncoder(WaveformEncoder):
    """HuBERT."""

    kind = "hubert"
    citation = """@article{hsu2021hubert,
  title={HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units},
  author={Hsu, Wei-Ning and others},
  journal={IEEE/ACM Transactions on Audio, Speech, and Language Processing},
  year={2021}
}"""
    config_class = HubertConfig
    source = ("hubert.modeling_hubert", "HubertModel")


class Data2VecEncoder(WaveformEncoder):
    """data2vec."""

    kind = "data2vec-audio"
    citation = """@inproceedings{baevski2022data2vec,
  title={data2vec: A General Framework for Self-supervised Learning in Speech, Vision and Language},
  author={Baevski, Alexei and others},
  booktitle={International Conference on Machine Learning (ICML)},
  year={2022}
}"""
    config_class = Data2VecAudioConfig
    source = ("data2vec.modeling_data2vec_audio", "Data2VecAudioModel")


class UniSpeechEncoder(WaveformEncoder):
    """UniSpeech."""

    kind = "unispeech"
    citation = """@inproceedings{wang2021unispeech,
  title={UniSpeech: Unified Speech Representation Learning with Labeled and Unlabeled Data},
  author={Wang, Chengyi and others},
  booktitle={International Conference on Machine Learning (ICML)},
  year={2021}
}"""
    config_class = UniSpeechConfig
    source = ("unispeech.modeling_unispeech", "UniSpeechModel")


class UniSpeechSatEncoder(WaveformEncoder):
    """UniSpeech-SAT."""

    kind = "unispeech-sat"
    citation = """@inproceedings{chen2022unispeechsat,
  title={UniSpeech-SAT: Universal Speech Representation Learning with Speaker Aware Pre-Training},
  author={Chen, Sanyuan and others},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2022}
}"""
    config_class = UniSpeechSatConfig
    source = ("unispeech_sat.modeling_unispeech_sat", "UniSpeechSatModel")


class WavLMAudioEncoder(WaveformEncoder):
    """WavLM, whose attention is computed by torch's own multi-head function."""

    kind = "wavlm"
    citation = """@article{chen2022wavlm,
  title={WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing},
  author={Chen, Sanyuan and others},
  journal={IEEE Journal of Selected Topics in Signal Processing},
  year={2022}
}"""
    config_class = WavLMConfig
    source = ("wavlm.modeling_wavlm", "WavLMModel")
    _supports_sdpa = False
    # layers whose weights torch's function reads directly, so that LoRA on them would have no effect
    read_past_adapters = ("q_proj", "k_proj", "v_proj", "out_proj")

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with warnings.catch_warnings():
            # transformers passes a float bias and a bool mask together, which torch has deprecated
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            return super()._encode(values, lengths)


class StackedPositions(nn.Module):
    """data2vec's positional convolutions, stacked; the output of each is zero beyond a cycle's end.

    Attributes:
        mask: Real tokens of the next batch, (batch, tokens); None where all are.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        self.mask: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same shape."""
        mask, self.mask = self.mask, None
        hidden = hidden_states.transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden)
            if mask is not None:
                hidden = hidden.masked_fill(~mask[:, None, :], 0.0)
        return hidden.transpose(1, 2)


def _channel_norm(norm: nn.GroupNorm, x: Tensor, real: Tensor) -> Tensor:
    """Group normalisation with a group for each channel, over real time alone: (batch, channels, time)."""
    keep = within(real, x.shape[2])[:, None, :]
    number = real[:, None, None].to(torch.float32)
    wide = x.float()
    mean = (wide * keep).sum(2, keepdim=True) / number
    variance = ((wide - mean).square() * keep).sum(2, keepdim=True) / number
    normal = (wide - mean) * (variance + norm.eps).rsqrt()
    return (normal * norm.weight.float()[:, None] + norm.bias.float()[:, None]).to(x.dtype)
