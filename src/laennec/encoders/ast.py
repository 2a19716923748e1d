"""The Audio Spectrogram Transformer at any length, on transformers' own model and checkpoints.

Decisions: the position table is fitted along TIME only (its rows are frequency bands, its columns time steps; swapping
them loads without an error). "cut" takes the first columns, "interpolate" stretches the table; a cycle longer than the
table is interpolated in both cases. A patch is real if all its frames are, and the first column always is. Padded
patches are masked as attention keys. Patches are exchanged between cycles (Patch-Mix) before positions are added, as
its authors do.

Reference: Gong, Chung and Glass, AST: Audio Spectrogram Transformer, Interspeech 2021.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ASTConfig, ASTModel
from transformers.masking_utils import create_bidirectional_mask

from laennec.encoders.base import AudioEncoder, EncoderOutput, TokenMix
from laennec.encoders.masks import within, zero_beyond
from laennec.errors import InputError

TIME_POSITIONS = ("cut", "interpolate")


class AstEncoder(AudioEncoder):
    """transformers' AST for cycles of any length.

    `config` is transformers' `ASTConfig`; its extra setting `time_positions` is "cut" (default) or "interpolate".
    Tokens 0 and 1 are the class and distillation tokens, whose mean after the last layer norm is `pooler_output`;
    patches follow, frequency by frequency, each with all its time steps. The attention mask is a prefix of ones.
    """

    kind = "ast"
    title = "Audio Spectrogram Transformer, pre-trained on AudioSet"
    licence = "BSD-3-Clause"
    homepage = "https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593"
    citation = """@inproceedings{gong2021ast,
  title={AST: Audio Spectrogram Transformer},
  author={Gong, Yuan and Chung, Yu-An and Glass, James},
  booktitle={Interspeech},
  year={2021}
}"""
    preset = "ast"
    config_class = ASTConfig
    config: ASTConfig
    base_model_prefix = "audio_spectrogram_transformer"
    _supports_sdpa = True
    # the AudioSet classifier of a published checkpoint
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # noqa: RUF012 - transformers reads a plain list
    num_special_tokens = 2
    layers = "audio_spectrogram_transformer.layers"
    layers_after = ("audio_spectrogram_transformer.layernorm",)

    def __init__(self, config: ASTConfig) -> None:
        choice = getattr(config, "time_positions", "cut")
        if choice not in TIME_POSITIONS:
            raise InputError(f"time_positions is {choice!r}; it can be {' or '.join(TIME_POSITIONS)}")
        super().__init__(config)
        self.audio_spectrogram_transformer = ASTModel(config)
        self.post_init()
        # transformers initialises special tokens and positions with zeros: gradients explode in the first layer norm
        for table in (
            self._embeddings.cls_token,
            self._embeddings.distillation_token,
            self._embeddings.position_embeddings,
        ):
            nn.init.trunc_normal_(table, std=0.02)

    @property
    def _embeddings(self) -> Any:
        return self.audio_spectrogram_transformer.embeddings

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, token_mix: TokenMix | None = None
    ) -> EncoderOutput:
        """Encode cycles, see `AudioEncoder`.

        Cycles of fewer frames than a patch has are filled with zeros. Tokens are the two special ones and then
        bands * steps patches; the embedding is the mean of the special tokens.
        """
        self.check_features(input_values, int(self.config.num_mel_bins))
        patch = _patch_size(self.config)
        embeddings = self._embeddings
        values = input_values.to(embeddings.patch_embeddings.projection.weight.dtype)
        if torch.compiler.is_exporting() or values.shape[1] < patch:
            values = F.pad(values, (0, 0, 0, torch.sym_max(patch - values.shape[1], 0)))
        lengths = None if attention_mask is None else attention_mask.to(torch.int64).sum(1)
        grid = embeddings.patch_embeddings.projection(zero_beyond(values, lengths).transpose(1, 2).unsqueeze(1))
        if token_mix is not None:
            grid = token_mix.mix(grid)
        bands, steps = grid.shape[2:]
        known = embeddings.get_shape(self.config)[1]
        patches = grid.flatten(2).transpose(1, 2)  # (batch, dim, bands, steps) -> (batch, bands * steps, dim)
        real = self._real_steps(lengths, steps, patches)
        positions = self._positions(bands, known, steps, real).to(patches.dtype)
        special = torch.cat([embeddings.cls_token, embeddings.distillation_token], 1).to(patches.dtype)
        hidden = torch.cat([special.expand(patches.shape[0], -1, -1), patches], 1)
        hidden = embeddings.dropout(hidden + positions)
        time_mask = within(real, steps).expand(hidden.shape[0], -1)  # (batch, steps)
        patch_mask = time_mask[:, None, :].expand(-1, bands, -1).flatten(1)
        mask = torch.cat([time_mask.new_ones(hidden.shape[0], 2), patch_mask], 1)
        keys = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=None if lengths is None else mask
        )
        for layer in self.audio_spectrogram_transformer.layers:
            hidden = layer(hidden, keys)
        hidden = self.audio_spectrogram_transformer.layernorm(hidden)
        return EncoderOutput(last_hidden_state=hidden, token_mask=mask, pooler_output=(hidden[:, 0] + hidden[:, 1]) / 2)

    def token_grid(self, frames: int, mels: int) -> tuple[int, int]:
        """Patches of a cycle of so many frames: frequency bands, time steps."""
        size = _patch_size(self.config)
        bands = (mels - size) // int(self.config.frequency_stride) + 1
        return bands, (max(frames, size) - size) // int(self.config.time_stride) + 1

    def _real_steps(self, lengths: Tensor | None, steps: int, like: Tensor) -> Tensor:
        """Number of real time steps of each cycle, (batch,), or (1,) where nothing is padded."""
        if lengths is None:
            return torch.full((1,), steps, device=like.device)
        beyond = lengths - _patch_size(self.config)
        return (torch.div(beyond, self.config.time_stride, rounding_mode="floor") + 1).clamp_min(1)

    def _positions(self, bands: int, known: int, steps: int, real: Tensor) -> Tensor:
        """Positions of each cycle by its OWN number of steps, (batch or 1, 2 + bands * steps, dim)."""
        table = self._embeddings.position_embeddings
        special, grid = table[:, :2], table[0, 2:].unflatten(0, (bands, known))  # (bands, known, dim)
        cut = getattr(self.config, "time_positions", "cut") == "cut"
        # an exported graph uses the code below for every length; for these lengths the result is the same
        if cut and not torch.compiler.is_exporting() and steps <= known:
            return torch.cat([special, grid[:, :steps].flatten(0, 1)[None]], 1)
        step = torch.arange(steps, device=table.device, dtype=torch.float32)[None, :]
        # the middle of a step in a cycle of n steps lies at the same share of the table (half-pixel centres)
        place = ((step + 0.5) * (known / real.float()[:, None]) - 0.5).clamp(0, known - 1)  # (batch, steps)
        if cut:
            place = torch.where(real[:, None] <= known, step.clamp_max(known - 1), place)
        left = place.floor().long()
        share = (place - left)[None, :, :, None]
        # (bands, batch, steps, dim) -> (batch, bands * steps, dim)
        mixed = torch.lerp(grid[:, left].float(), grid[:, (left + 1).clamp_max(known - 1)].float(), share)
        mixed = mixed.transpose(0, 1).flatten(1, 2).to(table.dtype)
        return torch.cat([special.expand(mixed.shape[0], -1, -1), mixed], 1)


def _patch_size(config: ASTConfig) -> int:
    """Side of a patch in frames and mels; AST's are square."""
    return int(config.patch_size)  # type: ignore[arg-type]
