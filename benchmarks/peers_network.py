"""The network that all sides of `benchmarks.peers` embed and train with; needs torch alone, not laennec."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

RATE, MELS, LABELS = 16_000, 64, ("crackle", "wheeze")
WINDOW, HOP, FFT = 400, 160, 512  # samples at RATE
_WIDTHS = (32, 64, 128, 256)


class Network(nn.Module):
    """Four convolutions with batch normalisation over log-mel frames, their mean, and a linear head.

    Args:
        config: Ignored; some libraries pass one.
    """

    layers = "convolutions"
    embedding_layer, classifier_layer = "embedding", "head"  # the names that opensoundscape looks for

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        torch.manual_seed(0)
        self.convolutions = nn.ModuleList()
        for before, width in zip((1, *_WIDTHS), _WIDTHS, strict=False):
            convolution = nn.Conv2d(before, width, kernel_size=3, padding=1, bias=False)
            self.convolutions.append(
                nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
            )
        self.embedding = nn.Identity()
        self.head = nn.Linear(_WIDTHS[-1], len(LABELS))

    def embed(self, values: Tensor) -> Tensor:
        """(batch, frames, mels) or (batch, 1, mels, frames) -> (batch, dim)."""
        return self._maps(values).mean((2, 3))

    def _maps(self, values: Tensor) -> Tensor:
        values = values[:, None] if values.ndim == 3 else values.transpose(2, 3)  # (batch, 1, frames, mels)
        for convolution in self.convolutions:
            values = convolution(values)
        return values

    def forward(self, values: Tensor) -> Tensor:
        """Logits (batch, labels)."""
        logits: Tensor = self.head(self.embedding(self.embed(values)))
        return logits


class Encoder(Network):
    """The same network as a laennec encoder: it returns tokens, and laennec adds the head."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        del self.embedding, self.head

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:  # type: ignore[override]
        """Tokens (batch, tokens, dim); the clips are equally long, and no frame is masked."""
        tokens = self._maps(input_values).mean(3).transpose(1, 2)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return SimpleNamespace(last_hidden_state=tokens, token_mask=mask, pooler_output=tokens.mean(1))
