"""Adversarial removal of the recording device from an embedding: gradient reversal and its loss.

Decisions: the strength of the reversal is a function of training progress alone, so that a resumed run needs no extra
state. During training the head is a layer of the model, not of the loss. The stethoscope-guided contrast is
`SupConLoss(detach_other_views=True)` with the device as label.
"""

import math
from typing import ClassVar

from torch import Tensor, nn

from laennec.losses.base import Loss, check_embeddings, class_indices, full_precision, widened


def reversal_strength(progress: float) -> float:
    """Strength 2 / (1 + e^(-10 p)) - 1 at progress p in [0, 1]: 0 at the start, about 1 from the middle."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class GradientReversal(nn.Module):
    """Identity with reversed gradient, between encoder and device head.

    The head learns to predict the device, and the encoder learns to make that impossible.

    Formula: the identity; its gradient is multiplied by `-(2 / (1 + e^(-10 p)) - 1)` at training progress p.

    Batch: several devices (`ClassesTimesSamplesSampler` of devices).

    Returns: the embeddings, unchanged; it has no terms. `DeviceAdversarialLoss` is the loss of the head.

    Prefer: `SupConLoss(detach_other_views=True)` to pull the cycles of each device together instead.

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
        """Set the progress of training, in [0, 1].

        Raises:
            ValueError: if the progress lies outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress is a share of training in [0, 1], not {progress}")
        self.progress = float(progress)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the embeddings, (batch, dim), unchanged."""
        strength, same = reversal_strength(self.progress), embeddings.view_as(embeddings)
        if same.requires_grad:
            same.register_hook(lambda gradient: -strength * gradient)
        return same

    def extra_repr(self) -> str:
        """Present strength."""
        return f"strength={reversal_strength(self.progress):.3f}"


class DeviceAdversarialLoss(Loss):
    """Cross entropy of a device head behind a `GradientReversal`: the encoder learns to hide the device.

    Formula: mean cross entropy of `head(reversal(embedding))` against the device, over cycles of known device.

    Batch: several devices (`ClassesTimesSamplesSampler` of devices), otherwise a constant prediction is correct.

    Returns: `device_adversarial`; `pairs` counts the cycles whose device is known.

    Prefer: `SupConLoss(detach_other_views=True)` with the device as label where a device recorded only some of the
    classes: differences between devices may then come from the disease, and this loss would remove them too.

    Reference: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016; for stethoscopes Kim et al.,
    ICASSP 2024.
    """

    labels: ClassVar[str] = "device"
    across_cycles: ClassVar[bool] = False
    on: ClassVar[str] = "reversed_logits"
    sampler: ClassVar[str | None] = "ClassesTimesSamplesSampler"
    citation: ClassVar[str] = GradientReversal.citation
    variant = "gradient reversal"

    def forward(self, logits: Tensor, device_ids: Tensor) -> dict[str, Tensor]:
        """Return `{"device_adversarial": scalar}`.

        Args:
            logits: (batch, devices), of a head whose input passed a `GradientReversal`.
            device_ids: Integers (batch,); -1 where the device is unknown.

        Raises:
            ValueError: if the shapes do not fit, or the head has too few outputs.
        """
        check_embeddings(logits, device_ids)
        known = device_ids >= 0
        ids = class_indices(device_ids[known], logits.shape[1]).long()
        with full_precision(logits):
            total = nn.functional.cross_entropy(widened(logits[known]), ids, reduction="sum")
        self.pairs = {"device_adversarial": len(ids)}
        return {"device_adversarial": total / max(1, len(ids))}
