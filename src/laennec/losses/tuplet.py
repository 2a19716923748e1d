"""Contrastive loss over one positive and N negatives of Song et al. (2021).

Decisions: negatives are drawn from the embeddings of the batch (2M forward passes, not M(N+2)). An anchor with fewer
than N negatives uses all of them, and an anchor without any contributes 0. Missing negatives are masked, not filled by
repetition, so that none counts twice.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from laennec.losses.base import Loss, check_embeddings, check_positive, full_precision, normalise


def draw_negatives(
    labels_anchor: Tensor, labels_all: Tensor, n: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw N embeddings of other classes for each anchor, without replacement.

    Args:
        labels_anchor: Integers (anchors,).
        labels_all: Integers (candidates,), of the anchors and positives of the batch.
        n: Negatives for each anchor.
        generator: Source of the draw, on its own device; None for torch's global one.

    Returns:
        Indices (anchors, n) int64 into the candidates, and mask (anchors, n) bool. An anchor with fewer than n
        candidates of other classes gets all of them; the rest of its row is masked (False) and has index 0.

    Raises:
        ValueError: if n is negative.
    """
    if n < 0:
        raise ValueError(f"the number of negatives cannot be {n}")
    device = labels_all.device
    shape = (len(labels_anchor), len(labels_all))
    keys = torch.rand(shape, generator=generator, device=device if generator is None else generator.device).to(device)
    keys = keys.masked_fill(labels_anchor.to(device)[:, None] == labels_all[None, :], 2.0)  # draws lie below 1
    smallest, indices = keys.topk(min(n, shape[1]), dim=1, largest=False)
    mask = smallest < 2.0
    lacking = n - indices.shape[1]
    indices = nn.functional.pad(indices.masked_fill(~mask, 0), (0, lacking))
    return indices, nn.functional.pad(mask, (0, lacking), value=False)


class TupletContrastiveLoss(Loss):
    """Make each anchor more similar to its positive than to N negatives.

    Formula: `-log( e^{a.p/t} / (e^{a.p/t} + sum_k e^{a.n_k/t}) )`, mean over anchors, all embeddings normalised.

    Batch: that of `laennec.training.samplers.AnchorPositiveSampler` (M anchors, then one positive each) and the
    indices of `draw_negatives`; for example::

        indices, mask = draw_negatives(labels[:m], labels, n, generator)
        terms = loss(embeddings[:m], embeddings[m:], embeddings[indices], mask)

    Returns: `tuplet`; `pairs` counts the (anchor, negative) pairs.

    Prefer: `SupConLoss` where a batch holds several positives of an anchor: it uses all of them.

    Args:
        temperature: Divides the similarities; the paper has none (1).

    Raises:
        ValueError: if the temperature is not positive.

    Reference: Song, Han and Song, Contrastive Embedding Learning Method for Respiratory Sound Classification, ICASSP
    2021.
    """

    citation: ClassVar[str] = """@inproceedings{song2021contrastive,
  title={Contrastive Embedding Learning Method for Respiratory Sound Classification},
  author={Song, Wenjie and Han, Jiqing and Song, Hongwei},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2021}
}"""
    sampler: ClassVar[str | None] = "AnchorPositiveSampler"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        self.temperature = float(temperature)

    def forward(
        self, anchors: Tensor, positives: Tensor, negatives: Tensor, negatives_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return `{"tuplet": scalar}`; `pairs` counts the (anchor, negative) pairs.

        Args:
            anchors: (anchors, dim).
            positives: (anchors, dim), row by row of the anchors' classes.
            negatives: (anchors, n, dim).
            negatives_mask: (anchors, n) bool, False where a negative is missing; None where none is.

        Raises:
            ValueError: if the shapes do not fit together.
        """
        check_embeddings(anchors)
        if positives.shape != anchors.shape or negatives.shape[:1] + negatives.shape[2:] != anchors.shape:
            raise ValueError(
                f"anchors {tuple(anchors.shape)}, positives {tuple(positives.shape)} and negatives "
                f"{tuple(negatives.shape)} must be (anchors, dim), (anchors, dim) and (anchors, n, dim)"
            )
        if negatives_mask is not None and negatives_mask.shape != negatives.shape[:2]:
            raise ValueError(f"negatives_mask must be {tuple(negatives.shape[:2])}, not {tuple(negatives_mask.shape)}")
        with full_precision(anchors):
            a, p, n = normalise(anchors), normalise(positives), normalise(negatives)
            positive = (a * p).sum(dim=1) / self.temperature  # a.p, (anchors,)
            negative = (n @ a[:, :, None]).squeeze(2) / self.temperature  # a.n_k, (anchors, n)
            if negatives_mask is not None:
                negative = negative.masked_fill(~negatives_mask.bool(), -torch.inf)
            # -log( e^(a.p) / (e^(a.p) + sum_k e^(a.n_k)) )
            each = torch.cat([positive[:, None], negative], dim=1).logsumexp(dim=1) - positive
            self.pairs = {"tuplet": negative.numel() if negatives_mask is None else int(negatives_mask.sum())}
            return {"tuplet": each.sum() / max(1, len(anchors))}
