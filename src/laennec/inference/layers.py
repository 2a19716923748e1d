"""Embeddings from a layer of the encoder.

Decisions: a layer is counted from 1, as transformers counts hidden states, or from -1 at the end; its embedding is the
mean over the tokens of real sound, without special tokens, and over frequency and time in a convolutional encoder.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders.adapters import stack_of
from laennec.encoders.masks import TimeMask, token_mean
from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification
from laennec.training.embeddings import embed_waveforms


def layer_embedder(
    model: LaennecForAudioClassification, extractor: LaennecFeatureExtractor, layer: int
) -> Callable[[Sequence[Any]], NDArray[np.float32]]:
    """What embeds waveforms or `InContext`s, at the extractor's rate, at a layer: float32 (sounds, dim)."""
    return partial(embed_waveforms, _AtLayer(model, layer).eval(), extractor)  # type: ignore[arg-type]


class _AtLayer(nn.Module):
    """A model whose embedding is that of a layer of its encoder."""

    def __init__(self, model: LaennecForAudioClassification, layer: int) -> None:
        super().__init__()
        self.model = model
        try:
            layers = stack_of(model.encoder)[0]
        except InputError as error:
            raise InputError(f"--layer {layer}: this encoder has no stack of layers; leave --layer out") from error
        if layer == 0 or not -len(layers) <= layer <= len(layers):
            raise InputError(f"--layer {layer}: the encoder has {len(layers)} layers: give 1 to {len(layers)}, or -1")
        self.at = layers[layer - 1 if layer > 0 else layer]
        self.embedding_dim = model.embedding_dim

    def embed(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        context_values: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """(batch, frames, mels), (batch, frames) -> (batch, dim), with context (batch, 2 dim)."""
        own = self._pooled(input_values, attention_mask)
        if not self.model.config.concatenated_context:
            return own
        return torch.cat([own, own if context_values is None else self._pooled(context_values, context_mask)], 1)

    def _pooled(self, values: Tensor, mask: Tensor | None) -> Tensor:
        taken: list[Any] = []
        hook = self.at.register_forward_hook(lambda module, inputs, output: taken.append(output))
        try:
            out = self.model.encoder(input_values=values, attention_mask=mask)
        finally:
            hook.remove()
        states = taken[0] if len(taken) == 1 else None
        inside = states[1] if isinstance(states, tuple) and isinstance(states[-1], TimeMask) else TimeMask(None)
        hidden = states[0] if isinstance(states, tuple) else getattr(states, "last_hidden_state", states)
        if isinstance(hidden, Tensor) and hidden.ndim == 4:
            return inside.mean(hidden)
        if isinstance(hidden, Tensor) and hidden.ndim == 3 and hidden.shape[:2] == out.token_mask.shape:
            return token_mean(hidden, out.token_mask, int(getattr(self.model.encoder, "num_special_tokens", 0)))
        raise InputError("--layer: the layers of this encoder output no vector for each token; leave --layer out")
