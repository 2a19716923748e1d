"""What every encoder returns and states about itself.

Decisions: a fact about an encoder (its name in recipes, its front end, its stack of layers, licence, citation) is
stated once, on its class. An encoder that can exchange its patches between cycles has a method `token_grid(frames,
mels) -> (bands, steps)`, the patches of a cycle of so many frames, and takes `token_mix` in `forward`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from laennec.encoders.masks import in_graph
from laennec.encoders.weights.checkpoints import loaded_strictly
from laennec.errors import InputError


@dataclass
class EncoderOutput(ModelOutput):
    """Tokens of a batch of cycles and one vector for each."""

    last_hidden_state: Tensor | None = None  # (batch, tokens, dim); convolutional encoders hold 0 beyond a cycle's end
    token_mask: Tensor | None = None  # (batch, tokens) bool, True on special tokens and on tokens of real frames
    pooler_output: Tensor | None = None  # (batch, dim), pooled as the encoder was released with


class TokenMix(NamedTuple):
    """Which patches each cycle of a batch takes from another one (Patch-Mix inside an encoder)."""

    # (batch, bands, steps) bool, True on patches of the other cycle; only where both cycles have real frames, so that
    # masks stay those of the own cycle
    taken: Tensor
    source: Tensor  # (batch,) int64, the row of the other cycle

    def mix(self, grid: Tensor) -> Tensor:
        """Exchange patches that have no positions yet: (batch, dim, bands, steps) -> the same shape, a new tensor."""
        batch, _, bands, steps = grid.shape
        if self.taken.shape != (batch, bands, steps):
            raise ValueError(
                f"a mixture of {tuple(self.taken.shape)} patches does not fit a grid of {(batch, bands, steps)}"
            )
        return torch.where(self.taken[:, None].to(grid.device), grid[self.source.to(grid.device)], grid)


class AudioEncoder(PreTrainedModel):
    """An encoder of laennec: features to tokens and one embedding a cycle.

    `forward` takes `input_values` (batch, frames, values), features of the encoder's front end, and `attention_mask`
    (batch, frames), ones on a cycle's frames and zeros after them, or None where nothing is padded. It returns tokens
    (batch, tokens, dim), their mask (batch, tokens) and the embedding (batch, dim).

    Attributes:
        kind: The encoder's type in recipes.
        title: Name of the weights that its authors released.
        licence: Of these weights.
        homepage: Where these weights are released.
        citation: BibTeX of the publication.
        preset: The front end that these weights were trained with; None for any.
        other_presets: Front ends that some checkpoints need instead.
        num_special_tokens: Tokens at the start that stand for no frames.
        released_settings: Settings that a released checkpoint file does not fix.
        batched_frames: On a CPU, cycles that are padded to the same multiple of so many frames are encoded in one
            batch, which does not change their results by a bit; 0 where cycles are encoded one by one.
    """

    kind: ClassVar[str] = ""
    title: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    released_settings: ClassVar[tuple[str, ...]] = ()
    preset: str | None = None
    other_presets: tuple[str, ...] = ()
    num_special_tokens = 0
    batched_frames = 0
    main_input_name = "input_values"
    audioset_head: nn.Module | None

    @property
    def supports_gradient_checkpointing(self) -> bool:  # type: ignore[override]
        """Whether layers can recompute their activations; those of convolutional encoders cannot."""
        return any(hasattr(module, "gradient_checkpointing") for module in self.modules())

    @property
    def presets(self) -> tuple[str, ...]:
        """The front ends that checkpoints of this encoder were trained with; none for any."""
        return (self.preset, *self.other_presets) if self.preset else ()

    def check_features(self, features: Tensor, size: int | None = None) -> None:
        """Refuse features that are no batch of cycles, or of another front end than the encoder was made for."""
        if in_graph():
            return
        shape = tuple(features.shape)
        if len(shape) != 3:
            raise InputError(
                f"features of shape {shape} instead of (batch, frames, values); give a batch, as a "
                "LaennecFeatureExtractor makes it"
            )
        if 0 in shape[:2]:
            raise InputError(
                f"features of shape {shape} hold no {'frame' if shape[0] else 'cycle'}; leave out cycles shorter than "
                "one frame, or set features.length to repeat or zero with features.duration_s"
            )
        if size is not None and shape[2] != size:
            raise InputError(
                f"features have {shape[2]} values a frame, but this {self.kind or type(self).__name__} encoder was "
                f"made for {size}; set features.preset to {' or '.join(self.presets) or f'one with {size} mel bins'}"
            )

    def audioset_logits(self, pooler_output: Tensor) -> Tensor:
        """Scores of AudioSet's classes: (batch, dim) -> (batch, classes), before the sigmoid."""
        head = getattr(self, "audioset_head", None)
        if head is None:
            raise ValueError("this encoder holds no AudioSet classifier; load it with audioset_head=True")
        logits: Tensor = head(pooler_output)
        return logits

    @classmethod
    def load(cls, source: str | Path, config: PreTrainedConfig, revision: str | None) -> "AudioEncoder":
        """An encoder with the weights of a checkpoint, float32, in eval mode."""
        settings = {"config": config, "revision": revision or "main", "dtype": torch.float32}
        encoder: AudioEncoder = loaded_strictly(cls.from_pretrained, source, cls.__name__, **settings)[0].eval()
        return encoder
