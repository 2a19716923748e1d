"""BEATs, for cycles of any length, from the checkpoints its authors release.

Decisions: a patch is 16 frames by 16 mel bins and is real if all its frames are: a partial last patch is left out, as
when the cycle is encoded alone; only a cycle shorter than one patch is padded with zeros. Padded tokens are zeroed
before the position convolution, which mixes neighbouring tokens, and masked as attention keys. The authors' mask agrees
with this for whole patches only. Their smaller gradients for lower layers are part of training and not used here.

Reference: Chen et al., BEATs: Audio Pre-Training with Acoustic Tokenizers, ICML 2023.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from laennec.encoders.base import AudioEncoder, EncoderOutput, TokenMix
from laennec.encoders.beats_layers import DROPOUTS, BeatsConfig, BeatsLayer, PositionConvolution, RelativeBias
from laennec.encoders.masks import TimeMask, zero_beyond
from laennec.encoders.weights.checkpoints import checked_state, released_error, renamed
from laennec.encoders.weights.fingerprint import check_fingerprint, record_fingerprint
from laennec.errors import InputError
from laennec.untrusted import refuse_settings


class BeatsEncoder(AudioEncoder):
    """BEATs: features of the "beats" preset to one vector a cycle.

    A token stands for 16 frames (0.16 s) and 16 mel bins; tokens are ordered by time, then frequency. `pooler_output`
    is the mean over real tokens, over which the authors' classifier averages. The attention mask is a prefix of
    ones.
    """

    kind = "beats"
    title = "BEATs, pre-trained on AudioSet"
    licence = "MIT"
    homepage = "https://github.com/microsoft/unilm/tree/master/beats"
    citation = """@inproceedings{chen2023beats,
  title={BEATs: Audio Pre-Training with Acoustic Tokenizers},
  author={Chen, Sanyuan and others},
  booktitle={International Conference on Machine Learning (ICML)},
  year={2023}
}"""
    preset = "beats"
    released_settings = (*DROPOUTS, "audioset_head")
    config_class = BeatsConfig
    config: BeatsConfig
    _supports_sdpa = True

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        dim, eps = config.hidden_size, config.layer_norm_eps
        side = config.patch_size
        self.patch_embedding = nn.Conv2d(1, config.patch_dim, side, stride=side, bias=False)
        self.patch_norm = nn.LayerNorm(config.patch_dim, eps=eps)
        self.projection = nn.Linear(config.patch_dim, dim) if config.patch_dim != dim else None
        self.position_conv = PositionConvolution(config)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.relative_bias = RelativeBias(config)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.num_hidden_layers)])
        self.audioset_head = nn.Linear(dim, config.audioset_classes) if config.audioset_head else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The authors' initialisation; DeepNet's in the blocks."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, PositionConvolution):
            places = module.weight_v.shape[0] * module.weight_v.shape[-1]
            init.normal_(module.weight_v, 0.0, (4.0 * (1.0 - self.config.dropout) / places) ** 0.5)
            init.copy_(module.weight_g, module.weight_v.square().sum((0, 1), keepdim=True).sqrt())
            init.zeros_(module.bias)
        elif isinstance(module, RelativeBias):
            init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, BeatsLayer):
            a = module.attention
            init.ones_(a.gate_scale)
            for layer in (a.q_proj, a.k_proj):
                init.xavier_normal_(layer.weight)
            for layer in (a.v_proj, a.out_proj, module.fc1, module.fc2):
                init.xavier_normal_(layer.weight, gain=(8 * self.config.num_hidden_layers) ** -0.25)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, token_mix: TokenMix | None = None
    ) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`.

        Cycles of fewer frames than a patch has are filled with zeros. There are frames // 16 * bands tokens, 0 on
        padding, of which the embedding is the mean.
        """
        self.check_features(input_values, self.config.num_mel_bins)
        lengths = TimeMask.of(attention_mask).lengths
        tokens, mask = self._patches(input_values.to(self.patch_embedding.weight.dtype), lengths, token_mix)
        hidden = self._positioned(tokens, mask)
        bias = self.relative_bias(hidden.shape[1])
        keys = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            hidden = self._or_skipped(hidden, layer(hidden, bias, keys))
        if mask is None:
            pooled = hidden.float().mean(1)
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        else:
            hidden = hidden.masked_fill(~mask[:, :, None], 0.0)
            pooled = hidden.float().sum(1) / mask.sum(1, keepdim=True)
        return EncoderOutput(last_hidden_state=hidden, token_mask=mask, pooler_output=pooled.to(hidden.dtype))

    def token_grid(self, frames: int, mels: int) -> tuple[int, int]:
        """Patches of a cycle of so many frames: frequency bands, time steps."""
        side = int(self.config.patch_size)
        return mels // side, max(frames, side) // side

    def _patches(
        self, values: Tensor, lengths: Tensor | None, token_mix: TokenMix | None
    ) -> tuple[Tensor, Tensor | None]:
        """(batch, frames, mels) -> embedded patches (batch, tokens, patch dim) and the mask of real ones (or None)."""
        side = self.config.patch_size
        if torch.compiler.is_exporting() or values.shape[1] < side:
            values = F.pad(values, (0, 0, 0, torch.sym_max(side - values.shape[1], 0)))
        grid = self.patch_embedding(zero_beyond(values, lengths).unsqueeze(1))  # (batch, patch dim, steps, bands)
        if token_mix is not None:
            # before positions are added, as in AST
            grid = token_mix.mix(grid.transpose(2, 3)).transpose(2, 3)
        steps, bands = grid.shape[2:]
        tokens = self.patch_norm(grid.flatten(2).transpose(1, 2))
        if lengths is None:
            return tokens, None
        real = torch.div(lengths, side, rounding_mode="floor").clamp_min(1)
        step = torch.arange(steps, device=values.device).repeat_interleave(bands)
        return tokens, step[None, :] < real[:, None]

    def _positioned(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Project patches to the encoder's width and add positions: -> (batch, tokens, dim)."""
        hidden = tokens if self.projection is None else self.projection(tokens)
        hidden = F.dropout(hidden, self.config.input_dropout, self.training)
        if mask is not None:
            hidden = hidden.masked_fill(~mask[:, :, None], 0.0)
        hidden = self.norm(hidden + self.position_conv(hidden))
        return F.dropout(hidden, self.config.dropout, self.training)

    def _or_skipped(self, before: Tensor, after: Tensor) -> Tensor:
        """The output of a block, or its input where training skips the block."""
        if not self.training or not self.config.layer_dropout:
            return after
        # the block is always computed: several processes need its gradients, and a branch would wait for the device
        skipped = torch.rand((), device=after.device) < self.config.layer_dropout
        return torch.where(skipped, before, after)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> Any:  # type: ignore[override]
        """Save config (with a fingerprint of the outputs) and weights; `kwargs` are handed to transformers."""
        record_fingerprint(self)
        return super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load as transformers does, and compare with the fingerprint that was saved."""
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        # weights that are missing or left over are reported by the caller
        if not any(info[keys] for keys in ("missing_keys", "mismatched_keys", "unexpected_keys")):
            check_fingerprint(model, pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    @classmethod
    def reads(cls, content: dict[str, Any]) -> bool:
        """Whether a released file has the form of BEATs' checkpoints."""
        return isinstance(content.get("cfg"), dict) and isinstance(content.get("model"), dict)

    @classmethod
    def from_released(
        cls, path: str | Path, content: dict[str, Any], audioset_head: bool = False, **dropouts: float
    ) -> "BeatsEncoder":
        """The encoder of a checkpoint as BEATs' authors publish it, pre-trained or fine-tuned on AudioSet."""
        config = _config_of(path, content["cfg"])
        if audioset_head and not config.audioset_head:
            raise InputError(
                f"{path}: a pre-trained checkpoint has no AudioSet classes; leave out audioset_head, or give a "
                "fine-tuned one (BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt and the like)"
            )
        state = checked_state(path, content["model"])
        # all layers share one table, which checkpoints repeat
        copies = [_bias_name(i) for i in range(1, config.num_hidden_layers)]
        labels = _labels(content) if audioset_head else None
        settings = {**dropouts, "audioset_head": audioset_head, "audioset_labels": labels}
        encoder: BeatsEncoder = renamed(
            path, cls, config, state, _released_name, settings, dict.fromkeys(copies, _bias_name(0))
        )
        record_fingerprint(encoder)
        return encoder


# the authors' settings: our name, and the value where a checkpoint has none
_SETTINGS: dict[str, tuple[str, Any]] = {
    "input_patch_size": ("patch_size", -1),
    "embed_dim": ("patch_dim", 512),
    "conv_bias": ("patch_bias", False),
    "encoder_layers": ("num_hidden_layers", 12),
    "encoder_embed_dim": ("hidden_size", 768),
    "encoder_ffn_embed_dim": ("intermediate_size", 3072),
    "encoder_attention_heads": ("num_attention_heads", 12),
    "activation_fn": ("hidden_act", "gelu"),
    "layer_norm_first": ("pre_norm", False),
    "deep_norm": ("deep_norm", False),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "encoder_layerdrop": ("layer_dropout", 0.0),
    "dropout_input": ("input_dropout", 0.0),
    "conv_pos": ("position_kernel", 128),
    "conv_pos_groups": ("position_groups", 16),
    "relative_position_embedding": ("relative_positions", False),
    "num_buckets": ("num_buckets", 320),
    "max_distance": ("max_distance", 1280),
    "gru_rel_pos": ("gated_positions", False),
    "finetuned_model": ("audioset_head", False),
    "predictor_class": ("audioset_classes", 527),
}
_NAMES = (
    ("patch_norm.", "layer_norm."),
    ("projection.", "post_extract_proj."),
    ("position_conv.", "encoder.pos_conv.0."),
    ("norm.", "encoder.layer_norm."),
    ("relative_bias.", "encoder.layers.0.self_attn.relative_attention_bias."),
    ("layers.", "encoder.layers."),
    ("audioset_head.", "predictor."),
)
_INNER_NAMES = (
    (".attention.", ".self_attn."),
    (".attention_norm.", ".self_attn_layer_norm."),
    (".output_norm.", ".final_layer_norm."),
    (".gate_linear.", ".grep_linear."),
    (".gate_scale", ".grep_a"),
)


def _config_of(path: str | Path, cfg: dict[str, Any]) -> BeatsConfig:
    """Our configuration for the authors' settings; missing ones have the defaults of their code."""
    values = {ours: cfg.get(theirs, default) for theirs, (ours, default) in _SETTINGS.items()}
    for theirs, (ours, default) in _SETTINGS.items():
        number = isinstance(default, int | float) and not isinstance(default, bool)
        right = isinstance(values[ours], int | float) if number else isinstance(values[ours], type(default))
        if not right:
            raise released_error(path, f"cfg has {values[ours]!r} for {theirs}")
    refuse_settings(values, path)
    try:
        return BeatsConfig(**values)
    except InputError as error:
        raise released_error(path, f"cfg cannot be right: {error}") from error


def _labels(content: dict[str, Any]) -> list[str] | None:
    """AudioSet's class ids in the order of the classifier, where the checkpoint has them."""
    table = content.get("label_dict")
    if not isinstance(table, dict):
        return None
    return [str(table[number]) for number in sorted(table)]


def _bias_name(layer: int) -> str:
    return f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight"


def _released_name(name: str, _: Container[str] = ()) -> str:
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            name = theirs + name.removeprefix(ours)
            break
    for ours, theirs in _INNER_NAMES:
        name = name.replace(ours, theirs)
    return name
