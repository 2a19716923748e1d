"""Audio encoders of transformers at the true length of every cycle.

Decisions: all weights stay in transformers' own modules; steps that padding would affect are implemented here. Whisper
gets positions up to the end of a cycle instead of 30 s of silence; beyond its table they follow the table's formula.
CLAP takes spectrograms of 10 s: a shorter cycle is repeated, a longer one refused. Checkpoints of whole models keep the
encoder under a prefix; their other parts are left out. transformers' own SpecAugment and adapters on top are switched
off: laennec masks features itself, and adapters change the embedding.

References: Radford et al. 2022 (Whisper), Seamless Communication 2023 (w2v-BERT 2.0), Wu et al. 2023 (CLAP).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapAudioConfig, PreTrainedConfig, Wav2Vec2BertConfig, WhisperConfig
from transformers.masking_utils import create_bidirectional_mask

from laennec.encoders.base import AudioEncoder, EncoderOutput
from laennec.encoders.masks import TimeMask, within, zero_beyond
from laennec.encoders.weights.checkpoints import differences, read_weights, refuse_differences
from laennec.errors import InputError

# settings that laennec fixes: it masks features itself, and adapters on top mix time steps
_FIXED: dict[str, Any] = {
    "apply_spec_augment": False,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
    "add_adapter": False,
}
# dropping layers leaves weights without gradient, which training on several devices does not allow; off by default
_DEFAULTS: dict[str, Any] = {"layerdrop": 0.0, "encoder_layerdrop": 0.0}
# parts of published speech models outside the encoder
_SPEECH_HEADS = (
    *("lm_head.", "classifier.", "projector.", "layer_weights", "tdnn.", "objective."),
    *("quantizer.", "project_q.", "project_hid.", "speaker_proj.", "ctc_proj.", "label_embeddings_concat"),
    *("masked_spec_embed", "adapter."),
)
# 10 s at CLAP's hop of 10 ms, both ends included
_CLAP_FRAMES = 1001


class TransformersEncoder(AudioEncoder):
    """Base class for audio encoders of transformers; a subclass handles the time axis of one family.

    `input_values` and the attention mask are those of `LaennecFeatureExtractor` with one of `presets`. The mask is a
    prefix of ones. Tokens are 0 beyond a cycle's end; the embedding is their mean.
    """

    source: ClassVar[tuple[str, str]] = ("", "")  # module of transformers.models, and class
    # prefixes of the encoder's weights in checkpoints of whole models, besides `base_model_prefix` of its class
    prefixes: ClassVar[tuple[str, ...]] = ()
    other_parts: ClassVar[tuple[str, ...]] = _SPEECH_HEADS  # names in such checkpoints outside the encoder
    config: PreTrainedConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    layers = "model.encoder.layers"

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        module, name = self.source
        # imported when needed: each family costs some tenths of a second
        self.model: Any = getattr(importlib.import_module(f"transformers.models.{module}"), name)(config)
        self._prepare()
        self.post_init()

    def _prepare(self) -> None:
        """Adapt `model` to this family, before weights are loaded."""

    @property
    def feature_size(self) -> int | None:
        """Values of a frame that the encoder was made for; None for any."""
        return int(self.config.num_mel_bins)

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(batch, frames, values) and true lengths to tokens (batch, tokens, dim) and how many are real, (batch,)."""
        raise NotImplementedError

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`."""
        self.check_features(input_values, self.feature_size)
        values = input_values.to(next(self.model.parameters()).dtype)
        tokens, real = self._encode(values, TimeMask.of(attention_mask).lengths)
        mask = TimeMask(real).tokens(tokens.transpose(1, 2))
        if real is not None:
            tokens = tokens.masked_fill(~mask[:, :, None], 0.0)
        number = mask.sum(1, keepdim=True).to(tokens.dtype)
        return EncoderOutput(last_hidden_state=tokens, token_mask=mask, pooler_output=tokens.sum(1) / number)

    @classmethod
    def settled(cls, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """A published configuration with laennec's fixed settings."""
        known = cls.config_class().to_dict()
        for name in overrides:
            if name in _FIXED and name in known:
                raise InputError(
                    f"{cls.kind} encoders have {name} = {_FIXED[name]} here; augment.spec draws feature masks"
                )
        return values | {k: v for k, v in (_FIXED | _DEFAULTS).items() if k in known}

    @classmethod
    def load(cls, source: str | Path, config: PreTrainedConfig, revision: str | None) -> "TransformersEncoder":
        """An encoder with the weights of a checkpoint, float32, in eval mode."""
        state = {_present_name(name): value for name, value in read_weights(source, revision).items()}
        encoder: TransformersEncoder = cls._from_config(config, dtype=torch.float32)
        expected = encoder.model.state_dict()
        known = ("model.", f"{encoder.model.base_model_prefix}.", *cls.prefixes, "")
        prefix = max(known, key=lambda p: sum(p + name in state for name in expected))
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        wrong = differences(found, expected)
        # index tables are computed, and not in every file
        wrong["missing"] = [name for name in wrong["missing"] if expected[name].is_floating_point()]
        others = [*wrong["left over"], *(name for name in state if not name.startswith(prefix))]
        wrong["left over"] = [name for name in others if not name.startswith(cls.other_parts)]
        refuse_differences(source, f"{cls.kind} encoder", wrong)
        encoder.model.load_state_dict({n: found.get(n, value) for n, value in expected.items()})
        encoder.eval()
        return encoder


class WhisperAudioEncoder(TransformersEncoder):
    """Whisper's encoder; a token stands for 2 frames (20 ms)."""

    kind = "whisper"
    title = "the encoder of Whisper, trained on speech"
    licence = "MIT"
    homepage = "https://huggingface.co/openai/whisper-base.en"
    citation = """@inproceedings{radford2023robust,
  title={Robust Speech Recognition via Large-Scale Weak Supervision},
  author={Radford, Alec and Kim, Jong Wook and Xu, Tao and Brockman, Greg and McLeavey, Christine and Sutskever, Ilya},
  booktitle={International Conference on Machine Learning (ICML)},
  year={2023}
}"""
    config_class = WhisperConfig
    source = ("whisper.modeling_whisper", "WhisperEncoder")
    prefixes = ("model.encoder.", "encoder.")
    other_parts = ("model.decoder.", "decoder.", "proj_out.", "projector.", "classifier.", "layer_weights")
    preset = "whisper"
    layers = "model.layers"
    layers_after = ("model.layer_norm",)

    def _prepare(self) -> None:
        if self.feature_size == 128:  # from large-v3 on
            self.preset = "whisper-128"

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        model = self.model
        hidden = F.gelu(model.conv1(zero_beyond(values, lengths).transpose(1, 2)))
        hidden = zero_beyond(hidden.transpose(1, 2), lengths).transpose(1, 2)
        hidden = F.gelu(model.conv2(hidden)).transpose(1, 2)  # (batch, ceil(frames / 2), dim)
        real = None if lengths is None else torch.div(lengths + 1, 2, rounding_mode="floor").clamp_min(1)
        hidden = F.dropout(hidden + self._positions(hidden.shape[1]), p=model.dropout, training=self.training)
        keys = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=token_mask(hidden, real)
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


class W2vBertAudioEncoder(TransformersEncoder):
    """w2v-BERT 2.0; a token stands for two stacked frames (20 ms)."""

    kind = "wav2vec2-bert"
    citation = """@article{seamless2023,
  title={Seamless: Multilingual Expressive and Streaming Speech Translation},
  author={{Seamless Communication} and others},
  year={2023}
}"""
    config_class = Wav2Vec2BertConfig
    source = ("wav2vec2_bert.modeling_wav2vec2_bert", "Wav2Vec2BertModel")
    preset = "w2v-bert"

    @property
    def feature_size(self) -> int:
        """80 mel bins of two frames."""
        return int(self.config.feature_projection_input_dim)

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        real = None if lengths is None else lengths.clamp_min(1)
        return self.model(values, attention_mask=token_mask(values, real)).last_hidden_state, real


class ClapAudioEncoder(TransformersEncoder):
    """CLAP's audio tower; its 64 tokens are patches of a 10 s spectrogram, all of them real."""

    kind = "clap"
    citation = """@inproceedings{wu2023clap,
  title={Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption Augmentation},
  author={Wu, Yusong and others},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2023}
}"""
    config_class = ClapAudioConfig
    source = ("clap.modeling_clap", "ClapAudioModel")
    prefixes = ("audio_model.",)
    other_parts = ("text_model.", "text_projection.", "audio_projection.", "logit_scale_")
    preset = "clap"
    layers = "model.audio_encoder.layers"
    layers_after = ("model.audio_encoder.norm",)
    all_tokens_real = True  # of the earlier layers too, which have more tokens
    _supports_sdpa = False

    def __init__(self, config: PreTrainedConfig) -> None:
        # the width of the output; published configurations differ
        config.hidden_size = config.patch_embeds_hidden_size * 2 ** (len(config.depths) - 1)
        super().__init__(config)

    def _prepare(self) -> None:
        if self.config.enable_fusion:
            self.preset = "clap-fused"

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
            # three more views are for clips longer than 10 s; for shorter clips their content is ignored
            repeated = repeated.expand(-1, 4, -1, -1)
            fused["is_longer"] = torch.zeros(len(repeated), 1, dtype=torch.bool, device=values.device)
        grid = self.model(input_features=repeated, **fused).last_hidden_state  # (batch, dim, frequency, time)
        return grid.flatten(2).transpose(1, 2), None


def encoder_values(values: dict[str, Any]) -> dict[str, Any]:
    """The encoder's part of a config.json; CLAP's describes a text tower too."""
    if values.get("model_type") == "clap" and isinstance(values.get("audio_config"), dict):
        return {**values["audio_config"], "model_type": ClapAudioConfig.model_type}
    return values


def _present_name(name: str) -> str:
    """The current name of a weight; published checkpoints have weight norm's names of before torch 2.0."""
    for old, new in ((".weight_g", "original0"), (".weight_v", "original1")):
        if name.endswith(old):
            return f"{name.removesuffix(old)}.parametrizations.weight.{new}"
    return name


def token_mask(hidden: Tensor, real: Tensor | None) -> Tensor | None:
    """(batch, tokens) bool, True on real tokens; None where all are."""
    return None if real is None else within(real, hidden.shape[1])
