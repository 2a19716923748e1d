"""Stage 5, losses: gradient reversal, for a head that must not be able to tell the stethoscope.

Decided here: the strength follows training progress alone, so that a resumed run needs no extra state.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


def reversal_strength(progress: float) -> float:
    """Strength 2 / (1 + e^(-10 p)) - 1 at progress p in [0, 1]: 0 at first, close to 1 from the middle on."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -strength."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, strength: float) -> Tensor:
        """Return the values."""
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Turn the gradient round."""
        return -ctx.strength * gradient, None


class GradientReversal(nn.Module):
    """Pass embeddings on and turn their gradient round, between encoder and device head.

    The head learns to tell devices, the encoder to leave no trace of them. Wants batches that mix devices; the loss on
    the head's logits is ordinary cross entropy. Prefer `SupConLoss` with device labels to draw each device's cycles
    together instead.

    Reference: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016.
    """

    citation: ClassVar[str] = """@article{ganin2016domain,
  title={Domain-Adversarial Training of Neural Networks},
  author={Ganin, Yaroslav and Ustinova, Evgeniya and Ajakan, Hana and Germain, Pascal and Larochelle, Hugo and
    Laviolette, Fran{\\c{c}}ois and Marchand, Mario and Lempitsky, Victor},
  journal={Journal of Machine Learning Research},
  year={2016}
}"""

    def __init__(self) -> None:
        super().__init__()
        self.progress = 0.0

    def set_progress(self, progress: float) -> None:
        """Say how far training is, in [0, 1].

        Raises:
            ValueError: if the progress lies outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], not {progress}")
        self.progress = float(progress)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings, (batch, dim), unchanged."""
        reversed_: Tensor = _Reverse.apply(embeddings, reversal_strength(self.progress))
        return reversed_

    def extra_repr(self) -> str:
        """Say how strong it is now."""
        return f"strength={reversal_strength(self.progress):.3f}"
