"""Patch-Mix contrastive loss.

Decisions: rows are mixed cycles and columns clean ones. The clean side is detached by default, as its authors train it.
A row mixed with itself has one positive of weight 1.
"""

from typing import ClassVar

import torch
from torch import Tensor

from laennec.losses.base import (
    Loss,
    absent,
    check_embeddings,
    check_positive,
    class_indices,
    full_precision,
    normalise,
    widened,
)


class PatchMixContrastiveLoss(Loss):
    """Match each mixed cycle to the two clean cycles it was made of.

    Formula: cross entropy of `softmax_j(mixed_i . clean_j / t)` over the clean cycles j of the batch, with target lam
    on j = i and 1 - lam on j = index[i]; mean over rows.

    Batch: embeddings of a shuffled batch and of the same batch after Patch-Mix or Group-Mix (`augment.mix`).

    Returns: `patch_mix`; `pairs` counts the (mixed, clean) positives.

    Prefer: `SupConLoss` for views that keep their label.

    Args:
        temperature: Divides the similarities.
        negatives: "all" clean cycles, or "different_label" to leave out those of the row's own label (but for the two
            positives).
        detach_clean: True treats clean embeddings as constants.

    Raises:
        ValueError: if the temperature is not positive or the choice of negatives unknown.

    Reference: Bae et al., Patch-Mix Contrastive Learning, Interspeech 2023.
    """

    soft_labels: ClassVar[bool] = True
    citation: ClassVar[str] = """@inproceedings{bae2023patchmix,
  title={Patch-Mix Contrastive Learning with Audio Spectrogram Transformer on Respiratory Sound Classification},
  author={Bae, Sangmin and Kim, June-Woo and Cho, Won-Yang and Baek, Hyerim and Son, Soyoun and Lee, Byungjo and
    Ha, Changwan and Tae, Kyongpil and Kim, Sungnyun and Yun, Se-Young},
  booktitle={Interspeech},
  year={2023}
}"""

    def __init__(self, temperature: float = 0.06, negatives: str = "all", detach_clean: bool = True) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        if negatives not in ("all", "different_label"):
            raise ValueError(f"negatives must be 'all' or 'different_label', not {negatives!r}")
        self.temperature = float(temperature)
        self.negatives = negatives
        self.detach_clean = detach_clean
        self.variant = f"{negatives} negatives, clean side {'detached' if detach_clean else 'with gradient'}"

    def forward(
        self, mixed: Tensor, clean: Tensor, lam: Tensor | float, index: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return `{"patch_mix": scalar}`; `pairs` counts (mixed, clean) positives.

        Args:
            mixed: (batch, dim). Normalised here.
            clean: (batch, dim). Normalised here.
            lam: Share of the row's own cycle, one number or (batch,).
            index: Integers (batch,), the row that each row was mixed with.
            labels: Integers (batch,) of the clean cycles; needed for "different_label".

        Raises:
            ValueError: if the shapes do not fit, a share or an index is out of range, or labels are missing.
        """
        check_embeddings(mixed, index)
        check_embeddings(clean, labels)
        if mixed.shape != clean.shape:
            raise ValueError(f"mixed {tuple(mixed.shape)} and clean {tuple(clean.shape)} embeddings must match")
        if not len(mixed):
            self.pairs = {"patch_mix": 0}
            return {"patch_mix": absent(mixed) + absent(clean)}
        own = torch.arange(len(mixed), device=mixed.device)
        index = _checked_index(index, len(mixed)).to(own)
        share = _checked_share(lam, widened(mixed))
        with full_precision(mixed):
            logits = normalise(mixed) @ normalise(clean.detach() if self.detach_clean else clean).T / self.temperature
            if self.negatives == "different_label":
                if labels is None:
                    raise ValueError("negatives='different_label' needs labels")
                classes = class_indices(labels)
                left_out = classes[:, None] == classes[None, :]
                left_out[own, own] = left_out[own, index] = False
                logits = logits.masked_fill(left_out, -torch.inf)
            log_p = logits.log_softmax(dim=1)
            each = -(share * log_p[own, own] + (1 - share) * log_p[own, index])
        self.pairs = {"patch_mix": len(mixed) + int((index != own).sum())}
        return {"patch_mix": each.mean()}


def _checked_share(lam: Tensor | float, like: Tensor) -> Tensor:
    """The share of the own cycle as a scalar or (batch,) tensor."""
    share = torch.as_tensor(lam, dtype=like.dtype, device=like.device)
    if share.shape not in ((), (1,), (len(like),)):
        raise ValueError(f"lam must be one number or ({len(like)},), one for each row, not {tuple(share.shape)}")
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"lam is a share and must lie in [0, 1], not {share.tolist()}")
    return share


def _checked_index(index: Tensor, batch: int) -> Tensor:
    """The row that each row was mixed with."""
    if index.shape != (batch,) or index.is_floating_point() or index.dtype == torch.bool:
        raise ValueError(f"index must be integers ({batch},), not {index.dtype} {tuple(index.shape)}")
    if bool(((index < 0) | (index >= batch)).any()):
        raise ValueError(f"index must lie in 0 .. {batch - 1}, not {index.min().item()} .. {index.max().item()}")
    return index
