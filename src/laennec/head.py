"""From an embedding to the logits of the labels.

Decisions: the head takes a standardised embedding (mean and spread of the training embeddings are its buffers),
because raw embeddings of different encoders differ in scale by orders of magnitude and one learning rate should suit
all of them. A layer norm before that is optional; AST's own classifier has one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from laennec.encoders.masks import in_graph


@dataclass
class LaennecOutput(ModelOutput):
    """What the model returns."""

    loss: Tensor | None = None  # mean BCE or cross entropy; only where labels were given
    logits: Tensor | None = None  # (batch, labels), before temperatures
    embeddings: Tensor | None = None  # (batch, dim), pooled, not standardised
    projections: Tensor | None = None  # (batch, projection_dim), or None where the model has no projection


class Head(nn.Module):
    """Standardise the embedding, then a linear layer (or one hidden layer before it).

    Args:
        dim: Width of the embedding.
        labels: How many logits.
        hidden_dim: Width of a hidden layer; 0 for none.
        dropout: Before the last layer.
        norm_eps: Epsilon of a layer norm before all else; None for no layer norm.
        relu: Whether a ReLU comes before the dropout.
        members: Number of heads that this one is the mean of; 0 for an ordinary head.
    """

    mean: Tensor
    spread: Tensor
    member_weight: Tensor
    member_bias: Tensor
    kept = False  # whether it was taken from a trained model, with mean and spread

    def __init__(
        self,
        dim: int,
        labels: int,
        hidden_dim: int,
        dropout: float,
        norm_eps: float | None = None,
        relu: bool = False,
        members: int = 0,
    ) -> None:
        super().__init__()
        self.relu, self.members = relu, members
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim, eps=norm_eps)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.hidden = nn.Sequential(nn.Linear(dim, hidden_dim), nn.ReLU()) if hidden_dim else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_dim or dim, labels)
        if members:
            self.register_buffer("member_weight", torch.zeros(members, *self.classifier.weight.shape))
            self.register_buffer("member_bias", torch.zeros(members, labels))

    def standardise(self, embeddings: Tensor) -> None:
        """Set mean and spread from training embeddings (cycles, dim); a head that was kept has them already."""
        if self.kept:
            return
        with torch.no_grad():
            spread, mean = torch.std_mean(self.norm(embeddings.to(self.mean)), dim=0, correction=0)
        self.mean.copy_(mean)
        self.spread.copy_(spread.clamp_min(1e-6))

    def by_member(self, embeddings: Tensor) -> Tensor:
        """(batch, dim) -> logits of each member (members, batch, labels), whose mean `forward` returns."""
        x = self.hidden(embeddings.to(self.mean.dtype))  # the weights of an ensemble include the standardisation
        return torch.einsum("bi,mli->mbl", x, self.member_weight) + self.member_bias[:, None]

    def forward(self, embeddings: Tensor) -> Tensor:
        """(batch, dim) -> logits (batch, labels)."""
        x = (self.norm(embeddings.to(self.mean.dtype)) - self.mean) / self.spread
        x = x.relu() if self.relu else x
        if self.training or torch.is_grad_enabled() or x.device.type != "cpu" or in_graph():
            logits: Tensor = self.classifier(self.dropout(self.hidden(x)))
            return logits
        # the rounding of a matrix product depends on its shape: row by row, a prediction does not depend on the batch
        hidden = _by_rows(self.hidden[0], x).relu() if isinstance(self.hidden, nn.Sequential) else x
        return _by_rows(self.classifier, hidden)


class HeadModel(nn.Module):
    """The head of a model as a separate model that is trained on embeddings; both share the head's weights."""

    encoder_frozen_in_stage = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        self.head = model.head
        self.embedding_dim: int = model.embedding_dim

    def is_frozen(self, name: str) -> bool:
        """False: no weight of a head is frozen."""
        return False

    def forward(self, embeddings: Tensor) -> LaennecOutput:
        """(batch, dim) -> logits, and in training the embeddings."""
        return LaennecOutput(logits=self.head(embeddings), embeddings=embeddings if self.training else None)


def _by_rows(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    rows = [nn.functional.linear(row, layer.weight, layer.bias) for row in x.split(1)]
    return torch.cat(rows) if rows else x.new_empty(0, layer.out_features)
