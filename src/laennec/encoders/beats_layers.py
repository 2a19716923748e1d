"""The configuration and the transformer blocks of BEATs.

Decisions: the relative position bias is one table for all blocks; each block scales it by a gate from its own queries,
so it is an additive attention mask, which "sdpa" supports. The released code rescales scores against overflow in half
precision, which changes no result and is left out.

References: Chen et al., BEATs, ICML 2023; the gate is that of Chi et al., XLM-E, ACL 2022; the residual factor that of
Wang et al., DeepNet, 2022.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from laennec.errors import InputError

_GATE_PARTS = 4  # each of the two gates is the sum of so many projections
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_dropout")
_COUNTS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_dim", "patch_size"),
    *("num_mel_bins", "position_kernel", "position_groups", "audioset_classes", "num_buckets", "max_distance"),
)
# settings of the authors' code that all released checkpoints share
FIXED: dict[str, Any] = {
    "hidden_act": "gelu", "patch_bias": False, "pre_norm": False, "deep_norm": True, "relative_positions": True,
    "gated_positions": True,
}  # fmt: skip


class BeatsConfig(PreTrainedConfig):
    """Size of a BEATs encoder; the defaults are those of the released ones (90 million parameters)."""

    model_type = "laennec-beats"

    hidden_size: int = 768  # width of the tokens
    num_hidden_layers: int = 12  # number of blocks
    num_attention_heads: int = 12  # heads of each
    intermediate_size: int = 3072  # width of the dense layer inside a block
    patch_dim: int = 512  # width of a patch before it is brought to `hidden_size`
    patch_size: int = 16  # side of a patch in frames and mel bins
    num_mel_bins: int = 128  # mel bins of the features
    position_kernel: int = 128  # kernel size of the position convolution, in tokens
    position_groups: int = 16  # its groups
    num_buckets: int = 320  # rows of the table of relative positions
    max_distance: int = 800  # distance from which on all share one bucket
    dropout: float = 0.0  # of each residual branch
    attention_dropout: float = 0.0  # of attention weights
    activation_dropout: float = 0.0  # inside a block's dense layers
    input_dropout: float = 0.0  # of the patches
    layer_dropout: float = 0.0  # share of blocks that a training step skips
    layer_norm_eps: float = 1e-5  # of all normalisations
    audioset_head: bool = False  # whether the AudioSet classifier is kept
    audioset_classes: int = 527  # number of its classes
    audioset_labels: list[str] | None = None  # their AudioSet ids, where the checkpoint had them
    # the embedding of a fixed input when the encoder was saved, see `laennec.encoders.weights.fingerprint`
    fingerprint: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check that the sizes fit together."""
        for name, value in FIXED.items():
            if (given := kwargs.pop(name, value)) != value:
                raise InputError(f"BEATs: {name} is {given!r}; it must be {value!r}, as in all released checkpoints")
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"BEATs: {name} is {value!r}; it must be a whole number from 1")
        for name in DROPOUTS:
            rate = getattr(self, name)
            if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate <= 1:
                raise InputError(f"BEATs: {name} is {rate!r}; it must be a number from 0 to 1")
        for name in ("num_attention_heads", "position_groups"):
            if self.hidden_size % getattr(self, name):
                raise InputError(
                    f"BEATs: {name} is {getattr(self, name)}; it must divide hidden_size {self.hidden_size}"
                )
        if self.num_mel_bins % self.patch_size:
            raise InputError(
                f"BEATs: patches of {self.patch_size} mel bins do not fit num_mel_bins {self.num_mel_bins}; the first "
                "must divide the second"
            )
        if not 4 <= self.num_buckets < 4 * self.max_distance:
            raise InputError(
                f"BEATs: num_buckets is {self.num_buckets} and max_distance {self.max_distance}; it takes at least 4 "
                "buckets, and a quarter of them must lie below max_distance"
            )


class PositionConvolution(nn.Module):
    """Positions from neighbouring tokens: a grouped, weight-normalised convolution along the tokens, then GELU."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        dim, kernel, self.groups = config.hidden_size, config.position_kernel, config.position_groups
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.randn(dim, dim // self.groups, kernel))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) -> the same shape."""
        kernel = self.weight_v.shape[-1]
        direction = self.weight_v.float()
        norm = direction.square().sum((0, 1), keepdim=True).sqrt()
        weight = (direction * (self.weight_g.float() / norm)).to(x.dtype)
        y = F.conv1d(x.transpose(1, 2), weight, self.bias.to(x.dtype), padding=kernel // 2, groups=self.groups)
        # an even kernel gives one output too many
        return F.gelu(y[:, :, : x.shape[1]].transpose(1, 2))


class RelativeBias(nn.Module):
    """A score for each distance between two tokens: exact for near ones, in buckets that widen for far ones."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.max_distance = config.max_distance
        self.weight = nn.Parameter(torch.zeros(config.num_buckets, config.num_attention_heads))

    def forward(self, tokens: int) -> Tensor:
        """The scores (1, heads, queries, keys) of a sequence."""
        place = torch.arange(tokens, device=self.weight.device)
        distance = torch.arange(1 - tokens, tokens, device=self.weight.device)
        scores = F.embedding(self.buckets(distance), self.weight)  # (2 tokens - 1, heads)
        return scores[place[None, :] - place[:, None] + tokens - 1].permute(2, 0, 1)[None]

    def buckets(self, distance: Tensor) -> Tensor:
        """The row of the table for each distance (key's place less query's), of any shape."""
        half = len(self.weight) // 2
        near = half // 2
        far = distance.abs()
        ratio = torch.log(far.clamp_min(1).float() / near) / math.log(self.max_distance / near)
        wide = (near + (ratio * (half - near)).long()).clamp_max(half - 1)
        return torch.where(far < near, far, wide) + (distance > 0).long() * half


class BeatsAttention(nn.Module):
    """Attention with a gated relative position bias."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.num_attention_heads
        self.config = config
        self.head_dim = dim // self.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.gate_linear = nn.Linear(self.head_dim, 2 * _GATE_PARTS)
        self.gate_scale = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, hidden: Tensor, bias: Tensor, keys: Tensor | None) -> Tensor:
        """(batch, tokens, dim) -> the same shape; `bias` and `keys` as in `BeatsLayer`."""
        query, key, value = (
            layer(hidden).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)  # (batch, heads, tokens, head dim)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mask = self._mask(query, bias, keys)
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.config._attn_implementation == "sdpa":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        else:
            scores = query @ key.transpose(-1, -2) * self.head_dim**-0.5 + mask
            weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
            mixed = F.dropout(weights, dropout, self.training) @ value
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _mask(self, query: Tensor, bias: Tensor, keys: Tensor | None) -> Tensor:
        """What is added to the scores, (batch or 1, heads or 1, queries or 1, keys)."""
        parts = self.gate_linear(query).unflatten(-1, (2, _GATE_PARTS)).sum(-1).sigmoid()
        update, reset = parts.split(1, -1)  # (batch, heads, queries, 1) each
        mask = ((update * (reset * self.gate_scale - 1.0) + 2.0) * bias).to(query.dtype)
        return mask if keys is None else mask.masked_fill(~keys, torch.finfo(query.dtype).min)


class BeatsLayer(GradientCheckpointingLayer):
    """Attention and two dense layers, each with a weighted residual (DeepNet) and normalised after it."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = BeatsAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.residual = (2 * config.num_hidden_layers) ** 0.25

    def forward(self, hidden: Tensor, bias: Tensor, keys: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            hidden: (batch, tokens, dim).
            bias: Scores of relative positions, (1, heads, tokens, tokens), before the gate.
            keys: (batch, 1, 1, tokens) bool, True on real tokens; None where all are.

        Returns:
            (batch, tokens, dim).
        """
        attended = self._dropped(self.attention(hidden, bias, keys))
        hidden = self.attention_norm(hidden * self.residual + attended)
        return self.output_norm(hidden * self.residual + self._dense(hidden))

    def _dense(self, hidden: Tensor) -> Tensor:
        inside = F.dropout(F.gelu(self.fc1(hidden)), self.config.activation_dropout, self.training)
        return self._dropped(self.fc2(inside))

    def _dropped(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.config.dropout, self.training)
