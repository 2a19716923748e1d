"""Stage 5, losses: what pulls embeddings together or apart, in pure torch."""

from torch import nn

from laennec.losses.add import AngularDistanceDistributionLoss
from laennec.losses.combine import WeightedSum, WeightSchedule
from laennec.losses.focal import FocalLoss
from laennec.losses.tuplet import TupletContrastiveLoss, draw_negatives

AUXILIARY_LOSSES: dict[str, type[nn.Module]] = {
    "add": AngularDistanceDistributionLoss,
    "tuplet": TupletContrastiveLoss,
}

__all__ = [
    "AUXILIARY_LOSSES",
    "AngularDistanceDistributionLoss",
    "FocalLoss",
    "TupletContrastiveLoss",
    "WeightSchedule",
    "WeightedSum",
    "draw_negatives",
]
