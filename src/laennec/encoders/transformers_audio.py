"""Transformers' audio encoders behind one door, at the true length of every cycle.

Decisions: what is learned stays in transformers' own modules; what would let padding in is done here. Whisper gets
positions up to a cycle's own end and no 30 s of silence; beyond its table the positions go on by the formula that the
table was made with. Its stem, the group norm of wav2vec 2.0's convolutions and data2vec's stacked positional
convolutions look at, or count, only what is real. w2v-BERT's convolutions look back only and need no more than its own
mask. CLAP is made for pictures of 10 s: a shorter cycle is repeated to that length, and a longer one is refused.
Attention never sees padding. The embedding is the masked mean over tokens. transformers' own SpecAugment and adapters
on top are switched off: laennec draws by counter, and embeddings are the encoder's.

References: Baevski et al. 2020 (wav2vec 2.0), Hsu et al. 2021 (HuBERT), Chen et al. 2022 (WavLM), Baevski et al. 2022
(data2vec), Radford et al. 2022 (Whisper), Seamless Communication 2023 (w2v-BERT 2.0), Wu et al. 2023 (CLAP).
"""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask

from laennec.encoders.output import EncoderOutput, TimeMask, refuse_shape
from laennec.errors import InputError

# type of a configuration -> where transformers keeps the encoder
_MODELS = {
    "whisper": ("whisper.modeling_whisper", "WhisperEncoder"),
    "wav2vec2": ("wav2vec2.modeling_wav2vec2", "Wav2Vec2Model"),
    "hubert": ("hubert.modeling_hubert", "HubertModel"),
    "wavlm": ("wavlm.modeling_wavlm", "WavLMModel"),
    "data2vec-audio": ("data2vec.modeling_data2vec_audio", "Data2VecAudioModel"),
    "unispeech": ("unispeech.modeling_unispeech", "UniSpeechModel"),
    "unispeech-sat": ("unispeech_sat.modeling_unispeech_sat", "UniSpeechSatModel"),
    "wav2vec2-bert": ("wav2vec2_bert.modeling_wav2vec2_bert", "Wav2Vec2BertModel"),
    "clap_audio_model": ("clap.modeling_clap", "ClapAudioModel"),
}
# 10 s at CLAP's hop of 10 ms, both ends included
_CLAP_FRAMES = 1001


class TransformersEncoder(PreTrainedModel):
    """What transformers' audio encoders have in common here; a subclass knows how one family treats time.

    `input_values` and the attention mask are those of `LaennecFeatureExtractor` with one of `presets`. The mask is a
    prefix of ones.
    """

    config: PreTrainedConfig
    base_model_prefix = "model"
    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    num_special_tokens = 0
    layers = "model.encoder.layers"
    presets: tuple[str, ...] = ()

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        module, name = _MODELS[config.model_type]
        # imported when needed: each family costs some tenths of a second
        self.model: Any = getattr(importlib.import_module(f"transformers.models.{module}"), name)(config)
        self._prepare()
        self.post_init()

    def _prepare(self) -> None:
        """Put what this family needs into `model`, before weights are loaded."""

    @property
    def feature_size(self) -> int:
        """Values of a frame that the encoder was made for."""
        raise NotImplementedError

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, frames, values) and true lengths to tokens (batch, tokens, dim) and how many are real, (batch,)."""
        raise NotImplementedError

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> EncoderOutput | tuple[Any, ...]:
        """Encode cycles.

        Args:
            input_values: (batch, frames, values).
            attention_mask: (batch, frames), ones on a cycle's frames and zeros after them; None where nothing is
                padded.
            return_dict: False for a plain tuple.

        Returns:
            Tokens (batch, tokens, dim), 0 beyond a cycle's end, their mask, and their mean (batch, dim).

        Raises:
            InputError: Features of another front end, or a cycle longer than the encoder can take.
        """
        refuse_shape(input_values, self.feature_size, self.config.model_type, self.presets)
        values = input_values.to(next(self.model.parameters()).dtype)
        tokens, real = self._encode(values, TimeMask.of(attention_mask).lengths)
        mask = TimeMask(real).tokens(tokens.transpose(1, 2))
        if real is not None:
            tokens = tokens.masked_fill(~mask[:, :, None], 0.0)
        number = mask.sum(1, keepdim=True).to(tokens.dtype)
        output = EncoderOutput(last_hidden_state=tokens, token_mask=mask, pooler_output=tokens.sum(1) / number)
        return output.to_tuple() if return_dict is False else output


class WhisperAudioEncoder(TransformersEncoder):
    """Whisper's encoder; a token stands for 2 frames (20 ms)."""

    presets = ("whisper",)
    layers = "model.layers"
    layers_after = ("model.layer_norm",)

    def _prepare(self) -> None:
        if self.feature_size == 128:
            self.presets = ("whisper-128",)

    @property
    def feature_size(self) -> int:
        """Mel bins: 80, or 128 from large-v3 on."""
        return int(self.config.num_mel_bins)

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        model = self.model
        hidden = F.gelu(model.conv1(_zero_beyond(values, lengths).transpose(1, 2)))
        hidden = _zero_beyond(hidden.transpose(1, 2), lengths).transpose(1, 2)
        hidden = F.gelu(model.conv2(hidden)).transpose(1, 2)  # (batch, ceil(frames / 2), dim)
        real = None if lengths is None else torch.div(lengths + 1, 2, rounding_mode="floor").clamp_min(1)
        hidden = F.dropout(hidden + self._positions(hidden.shape[1]), p=model.dropout, training=self.training)
        keys = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=_token_mask(hidden, real)
        )
        for layer in model.layers:
            if self.training and model.layerdrop and float(torch.rand([])) < model.layerdrop:
                continue
            hidden = layer(hidden, keys)
        return model.layer_norm(hidden), real

    def _positions(self, tokens: int) -> Tensor:
        """The first positions, (tokens, dim)."""
        table: Tensor = self.model.embed_positions.weight
        known = table.shape[0]
        if torch.compiler.is_exporting():  # a graph is for every length
            step = torch.arange(tokens, device=table.device)
            formula = sinusoids(tokens, table.shape[1], table.device).to(table.dtype)
            return torch.where((step < known)[:, None], table[step.clamp_max(known - 1)], formula)
        if tokens <= known:
            return table[:tokens]
        return torch.cat([table, sinusoids(tokens, table.shape[1], table.device)[known:].to(table.dtype)])


def sinusoids(positions: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Whisper's position table, (positions, dim): sines of `dim` / 2 rates from 1 down to 1 / 10000, then cosines."""
    rates = torch.logspace(0.0, -4.0, dim // 2, dtype=torch.float64, device=device)
    angles = torch.arange(positions, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).float()


class WaveformEncoder(TransformersEncoder):
    """wav2vec 2.0 and what has its layout: HuBERT, data2vec, UniSpeech. A token stands for 20 ms.

    A cycle shorter than the convolutions' view (25 ms) is filled up with zeros, which then count as sound.
    """

    presets = ("waveform", "waveform-raw")
    feature_size = 1  # a frame is a sample

    def __init__(self, config: PreTrainedConfig) -> None:
        if getattr(config, "conv_pos_batch_norm", False):
            raise InputError(
                "conv_pos_batch_norm: true in config.json: batch normalisation before the positional convolution lets "
                "padding into the sound, which is not supported; give a checkpoint without it"
            )
        super().__init__(config)

    def _prepare(self) -> None:
        positions = self.model.encoder.pos_conv_embed
        if isinstance(getattr(positions, "layers", None), nn.ModuleList):
            self.model.encoder.pos_conv_embed = StackedPositions(positions.layers)

    @property
    def view(self) -> int:
        """Samples that one token looks at."""
        view = 1
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride), strict=True):
            view = (view - 1) * stride + kernel
        return int(view)

    @property
    def layers_after(self) -> tuple[str, ...]:
        """The normalisation, where it comes after the layers."""
        return ("model.encoder.layer_norm",) if getattr(self.config, "do_stable_layer_norm", False) else ()

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        values = _zero_beyond(values, lengths)
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
        mask = _token_mask(hidden, real)
        positions = self.model.encoder.pos_conv_embed
        if isinstance(positions, StackedPositions):
            positions.mask = mask
        return self.model.encoder(hidden, attention_mask=mask).last_hidden_state, real


class WavLMAudioEncoder(WaveformEncoder):
    """WavLM, whose attention is computed by torch's own multi-head function."""

    _supports_sdpa = False
    # layers that torch's function takes the weights of, so that LoRA on them would have no effect
    read_past_adapters = ("q_proj", "k_proj", "v_proj", "out_proj")

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with warnings.catch_warnings():
            # transformers gives a float bias and a bool mask together, which torch announces to stop liking
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            return super()._encode(values, lengths)


class StackedPositions(nn.Module):
    """data2vec's positional convolutions, one on top of the other: each sees zeros beyond a cycle's end.

    Attributes:
        mask: (batch, tokens) of the batch that comes next; None where all of it is real.
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


class W2vBertAudioEncoder(TransformersEncoder):
    """w2v-BERT 2.0; a token stands for two stacked frames (20 ms)."""

    presets = ("w2v-bert",)

    @property
    def feature_size(self) -> int:
        """80 mel bins of two frames."""
        return int(self.config.feature_projection_input_dim)

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        real = None if lengths is None else lengths.clamp_min(1)
        return self.model(values, attention_mask=_token_mask(values, real)).last_hidden_state, real


class ClapAudioEncoder(TransformersEncoder):
    """CLAP's audio tower; its 64 tokens stand for places in a picture of 10 s, all of them real."""

    presets = ("clap",)
    layers = "model.audio_encoder.layers"
    layers_after = ("model.audio_encoder.norm",)
    _supports_sdpa = False

    def __init__(self, config: PreTrainedConfig) -> None:
        # what comes out; checkpoints may say otherwise
        config.hidden_size = config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1)
        super().__init__(config)

    def _prepare(self) -> None:
        if self.config.enable_fusion:
            self.presets = ("clap-fused",)

    @property
    def feature_size(self) -> int:
        """Mel bins."""
        return int(self.config.num_mel_bins)

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        picture = self.config.spec_size * (self.config.spec_size // self.config.num_mel_bins)
        frames = min(_CLAP_FRAMES, picture)
        if values.shape[1] > frames:
            raise InputError(
                f"a cycle has {values.shape[1]} frames, but CLAP takes {frames} at most (10 s); set features.length "
                "to repeat_pad, repeat or zero, with features.duration_s: 10"
            )
        if lengths is None:
            lengths = torch.full((values.shape[0],), values.shape[1], device=values.device)
        step = torch.arange(frames, device=values.device)[None, :]
        place = step % lengths.clamp_min(1)[:, None]  # (batch, frames), each cycle from its start again and again
        repeated = values.gather(1, place[:, :, None].expand(-1, -1, values.shape[2]))[:, None]
        fused: dict[str, Any] = {}
        if self.config.enable_fusion:
            # three more views belong to clips longer than 10 s; without one they are never looked at
            repeated = repeated.expand(-1, 4, -1, -1)
            fused["is_longer"] = torch.zeros(len(repeated), 1, dtype=torch.bool, device=values.device)
        grid = self.model(input_features=repeated, **fused).last_hidden_state  # (batch, dim, frequency, time)
        return grid.flatten(2).transpose(1, 2), None


ADAPTERS: dict[str, type[TransformersEncoder]] = {
    "whisper": WhisperAudioEncoder,
    "wav2vec2": WaveformEncoder,
    "hubert": WaveformEncoder,
    "wavlm": WavLMAudioEncoder,
    "data2vec-audio": WaveformEncoder,
    "unispeech": WaveformEncoder,
    "unispeech-sat": WaveformEncoder,
    "wav2vec2-bert": W2vBertAudioEncoder,
    "clap": ClapAudioEncoder,
}


def _zero_beyond(values: Tensor, lengths: Tensor | None) -> Tensor:
    """(batch, time, values) with zeros beyond each cycle's end."""
    if lengths is None:
        return values
    inside = torch.arange(values.shape[1], device=values.device)[None, :] < lengths[:, None]
    return values.masked_fill(~inside[:, :, None], 0.0)


def _token_mask(hidden: Tensor, real: Tensor | None) -> Tensor | None:
    """(batch, tokens) bool, True on real tokens; None where all are."""
    return None if real is None else torch.arange(hidden.shape[1], device=hidden.device)[None, :] < real[:, None]


def _channel_norm(norm: nn.GroupNorm, x: Tensor, real: Tensor) -> Tensor:
    """Group normalisation with a group for each channel, over real time alone: (batch, channels, time)."""
    keep = (torch.arange(x.shape[2], device=x.device)[None, :] < real[:, None])[:, None, :]
    number = real[:, None, None].to(torch.float32)
    wide = x.float()
    mean = (wide * keep).sum(2, keepdim=True) / number
    variance = ((wide - mean).square() * keep).sum(2, keepdim=True) / number
    normal = (wide - mean) * (variance + norm.eps).rsqrt()
    return (normal * norm.weight.float()[:, None] + norm.bias.float()[:, None]).to(x.dtype)
