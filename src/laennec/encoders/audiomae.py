"""AudioMAE, the masked autoencoder of spectrograms, from its authors' checkpoints, for cycles of up to 10.24 s.

Decisions: the layers are transformers' ViT. Time is the first axis of the grid of patches: 64 steps of 8 bands, of
which a shorter cycle uses the first steps. A last patch that is not full is padded with zeros. The authors pad every
clip with frames of log-mel 0, as features.length: zero_frames does. The embedding is the mean of the patches without
the class token. Fine-tuned checkpoints apply a layer norm to that mean (fc_norm), pre-trained ones to each patch.

Reference: Huang et al., Masked Autoencoders that Listen, NeurIPS 2022.
"""

from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig, ViTConfig
from transformers.masking_utils import create_bidirectional_mask

from laennec.encoders.base import EncoderOutput
from laennec.encoders.masks import zero_beyond
from laennec.encoders.transformers_audio import TransformersEncoder, token_mask
from laennec.encoders.weights.checkpoints import checked_state, released_error, renamed
from laennec.errors import InputError

_HEAD_DIM = 64  # of all released sizes; it cannot be read from the weights
# names in checkpoints that are not of the encoder
_OTHER_PARTS = ("decoder_", "mask_token", "head.")


class AudioMaeConfig(ViTConfig):
    """Size of an AudioMAE encoder, beside the settings of `ViTConfig`."""

    model_type = "laennec-audiomae"

    layer_norm_eps: float = 1e-6
    max_length: int = 1024
    num_mel_bins: int = 128
    fc_norm: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the sizes and derive ViT's image size from them."""
        side = self.patch_size
        if not isinstance(side, int) or any(n < side or n % side for n in (self.max_length, self.num_mel_bins)):
            raise InputError(
                f"audiomae: max_length {self.max_length} and num_mel_bins {self.num_mel_bins} must be multiples of "
                f"patch_size {side}"
            )
        self.image_size, self.num_channels = [self.max_length, self.num_mel_bins], 1
        super().__post_init__(**kwargs)


class AudioMaeEncoder(TransformersEncoder):
    """AudioMAE's encoder; a token stands for 16 frames (0.16 s) and 16 mel bins, ordered by time, then frequency.

    The output has no class token. `pooler_output` is the mean of the real patches, after a layer norm of that mean
    (`config.fc_norm`) or of each patch.
    """

    kind = "audiomae"
    title = "AudioMAE, pre-trained on AudioSet"
    licence = "CC-BY-NC-4.0"
    homepage = "https://github.com/facebookresearch/AudioMAE"
    citation = """@inproceedings{huang2022masked,
  title={Masked Autoencoders that Listen},
  author={Huang, Po-Yao and Xu, Hu and Li, Juncheng and Baevski, Alexei and Auli, Michael and Galuba, Wojciech and
          Metze, Florian and Feichtenhofer, Christoph},
  booktitle={Advances in Neural Information Processing Systems (NeurIPS)},
  year={2022}
}"""
    preset = "ast"
    released_settings = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    config_class = AudioMaeConfig
    config: AudioMaeConfig
    source = ("vit.modeling_vit", "ViTModel")
    layers = "model.layers"
    layers_after = ("model.layernorm",)
    dropped_tokens = 1  # the class token, which the layers output and the encoder does not

    def _prepare(self) -> None:
        self.model.pooler = None  # AudioMAE has none

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`; there are ceil(frames / 16) * bands tokens."""
        output = super().forward(input_values, attention_mask)
        if self.config.fc_norm:
            output.pooler_output = self.model.layernorm(output.pooler_output)
        return output

    def _encode(self, values: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        model, side, longest, frames = self.model, int(self.config.patch_size), self.config.max_length, values.shape[1]
        if frames > longest:
            raise InputError(
                f"a cycle has {frames} frames, but this AudioMAE takes {longest} at most; set features.length: crop "
                f"with features.duration_s: {longest / 100:g}"
            )
        values = F.pad(zero_beyond(values, lengths), (0, 0, 0, -frames % side))
        patches = model.embeddings.patch_embeddings(values.unsqueeze(1))  # (batch, steps * bands, dim)
        hidden = torch.cat([model.embeddings.cls_token.expand(patches.shape[0], -1, -1), patches], 1)
        hidden = model.embeddings.dropout(hidden + model.embeddings.position_embeddings[:, : hidden.shape[1]])
        real = keys = None
        if lengths is not None:
            bands = self.config.num_mel_bins // side
            real = torch.div(lengths + side - 1, side, rounding_mode="floor").clamp_min(1) * bands
            keys = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden, attention_mask=token_mask(hidden, real + 1)
            )
        for layer in model.layers:
            hidden = layer(hidden, keys)
        return (hidden if self.config.fc_norm else model.layernorm(hidden))[:, 1:], real

    @classmethod
    def load(cls, source: str | Path, config: PreTrainedConfig, revision: str | None) -> "AudioMaeEncoder":
        """See `AudioEncoder.load`; transformers saves ViT under earlier names, which its own loader translates."""
        return super(TransformersEncoder, cls).load(source, config, revision)  # type: ignore[return-value]

    @classmethod
    def reads(cls, content: dict[str, Any]) -> bool:
        """Whether a released file holds a vision transformer by timm's names, alone or under "model"."""
        return "patch_embed.proj.weight" in _weights_of(content)

    @classmethod
    def from_released(cls, path: str | Path, content: dict[str, Any], **dropouts: float) -> "AudioMaeEncoder":
        """The encoder of a checkpoint as AudioMAE's authors publish it, pre-trained or fine-tuned."""
        state = checked_state(path, _weights_of(content))
        state = {name: value for name, value in state.items() if not name.startswith(_OTHER_PARTS)}
        config = _config_of(path, state)
        encoder: AudioMaeEncoder = renamed(path, cls, config, state, partial(_released_name, config), dropouts)
        return encoder


def _weights_of(content: dict[str, Any]) -> dict[str, Any]:
    weights = content.get("model")
    return weights if isinstance(weights, dict) else content


def _config_of(path: str | Path, state: dict[str, Tensor]) -> AudioMaeConfig:
    """The configuration that follows from the shapes in a released file."""
    shapes = [state[n].shape for n in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight") if n in state]
    if [len(shape) for shape in shapes] != [4, 3, 2]:
        raise released_error(path, "not an AudioMAE (no patch_embed.proj.weight, pos_embed or blocks.0.mlp.fc1.weight)")
    (dim, *_), (_, positions, _), (wide, _) = shapes
    default = AudioMaeConfig()
    side = int(default.patch_size)
    return AudioMaeConfig(
        hidden_size=dim,
        num_hidden_layers=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_attention_heads=max(1, dim // _HEAD_DIM),
        intermediate_size=wide,
        max_length=(positions - 1) // (default.num_mel_bins // side) * side,
        fc_norm="fc_norm.weight" in state,
    )


def _released_name(config: AudioMaeConfig, name: str, _: Container[str]) -> str:
    # the authors store queries, keys and values as one weight, in this order
    for ours, theirs in (
        ("model.", ""),
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.cls_token", "cls_token"),
        ("layers.", "blocks."),
        *((f".attention.{which}_proj.", ".attn.qkv.") for which in "qkv"),
        (".attention.o_proj.", ".attn.proj."),
        (".layernorm_before.", ".norm1."),
        (".layernorm_after.", ".norm2."),
        ("layernorm.", "fc_norm." if config.fc_norm else "norm."),
    ):
        name = name.replace(ours, theirs)
    return name
