"""Auxiliary losses on embeddings, in pure torch. `AUXILIARY_LOSSES` maps their names in recipes to classes."""

from torch import nn

from laennec.losses.add import AngularDistanceDistributionLoss
from laennec.losses.base import Loss
from laennec.losses.clustering import ClusterSimilarityLoss, DeepClusteringLoss
from laennec.losses.combine import WeightedSum, WeightSchedule
from laennec.losses.device import DeviceAdversarialLoss, GradientReversal
from laennec.losses.focal import FocalLoss
from laennec.losses.opl import OrthogonalProjectionLoss
from laennec.losses.patch_mix import PatchMixContrastiveLoss
from laennec.losses.patient import PatientAlignmentLoss
from laennec.losses.supcon import NTXentLoss, SupConLoss
from laennec.losses.tuplet import TupletContrastiveLoss, draw_negatives

AUXILIARY_LOSSES: dict[str, type[nn.Module]] = {
    "add": AngularDistanceDistributionLoss,
    "tuplet": TupletContrastiveLoss,
    "supcon": SupConLoss,
    "ntxent": NTXentLoss,
    "opl": OrthogonalProjectionLoss,
    "patient": PatientAlignmentLoss,
    "patch_mix": PatchMixContrastiveLoss,
    "device_adversarial": DeviceAdversarialLoss,
    "clustering": DeepClusteringLoss,
    "cluster_similarity": ClusterSimilarityLoss,
}

__all__ = [
    "AUXILIARY_LOSSES",
    "AngularDistanceDistributionLoss",
    "ClusterSimilarityLoss",
    "DeepClusteringLoss",
    "DeviceAdversarialLoss",
    "FocalLoss",
    "GradientReversal",
    "Loss",
    "NTXentLoss",
    "OrthogonalProjectionLoss",
    "PatchMixContrastiveLoss",
    "PatientAlignmentLoss",
    "SupConLoss",
    "TupletContrastiveLoss",
    "WeightSchedule",
    "WeightedSum",
    "draw_negatives",
]
