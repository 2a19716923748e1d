"""Patient-aware feature alignment (PAFA).

Decisions: embeddings are not normalised, as the published weights assume. A batch of one patient has neither term. The
sum over pairs of centroids is computed as patients * sum of squared deviations from their mean, which is equal and
avoids cancellation errors.
"""

from typing import ClassVar

import torch
from torch import Tensor

from laennec.losses.base import Loss, absent, check_embeddings, class_indices, full_precision, widened


class PatientAlignmentLoss(Loss):
    """Make the cycles of a patient close relative to the distance between patients, which stay near a common centre.

    Formula: with centroids c_p of the patients in the batch,
    `within * sum_i |x_i - c_p(i)|^2 / (sum_{p<q} |c_p - c_q|^2 + 1e-6) + between * mean_p |c_p - mean c|^2`.

    Batch: two or more patients with several cycles each (`ClassesTimesSamplesSampler` of patients). Embeddings are not
    normalised, and the default weights fit the scale of the published encoder; other encoders need other weights.

    Returns: `pcsl` and `gpal`, weights applied; `pairs` counts pairs of patients, and patients.

    Prefer: the losses by stethoscope (`laennec.losses.device`, `SupConLoss`) where devices, not patients, differ
    between training and test.

    Args:
        within: Weight of the term `pcsl` (patient cohesion and separation).
        between: Weight of the term `gpal` (global patient alignment).

    Reference: Jeong and Kim, Patient-Aware Feature Alignment for Robust Lung Sound Classification, Interspeech 2025.
    """

    citation: ClassVar[str] = """@inproceedings{jeong2025patient,
  title={Patient-Aware Feature Alignment for Robust Lung Sound Classification: Cohesion-Separation and Global
    Alignment Losses},
  author={Jeong, Seung Gyu and Kim, Seong Eun},
  booktitle={Interspeech},
  year={2025}
}"""
    labels: ClassVar[str] = "patient"
    sampler: ClassVar[str | None] = "ClassesTimesSamplesSampler"

    def __init__(self, within: float = 50.0, between: float = 5e-4) -> None:
        super().__init__()
        self.within = float(within)
        self.between = float(between)

    def forward(self, embeddings: Tensor, patient_ids: Tensor) -> dict[str, Tensor]:
        """Return `{"pcsl", "gpal"}`, scalars; `pairs` counts pairs of patients and patients.

        Args:
            embeddings: (batch, dim), not normalised.
            patient_ids: Integers (batch,).

        Raises:
            ValueError: if the shapes do not fit, or a patient's number is negative.
        """
        check_embeddings(embeddings, patient_ids)
        codes, cycles = torch.unique(class_indices(patient_ids), return_inverse=True, return_counts=True)[1:]
        patients = len(cycles)
        self.pairs = {"pcsl": patients * (patients - 1) // 2, "gpal": patients if patients > 1 else 0}
        if patients < 2:
            return {"pcsl": absent(embeddings), "gpal": absent(embeddings)}
        with full_precision(embeddings):
            x = widened(embeddings)
            centroids = x.new_zeros(patients, x.shape[1]).index_add(0, codes, x) / cycles[:, None]
            scatter = (x - centroids[codes]).square().sum()
            centred = (centroids - centroids.mean(dim=0)).square().sum()
            return {
                "pcsl": self.within * scatter / (patients * centred + 1e-6),
                "gpal": self.between * centred / patients,
            }
