"""Patient alignment against loops over patients, and the authors' numbers."""

import pytest
import torch

from laennec.losses import PatientAlignmentLoss


def naive(x, patients, within, between):
    x = x.double()
    members = {p: x[[q == p for q in patients]] for p in sorted(set(patients))}
    centroids = [m.mean(dim=0) for m in members.values()]
    if len(centroids) < 2:
        return [0.0, 0.0]
    scatter = sum(float((m - m.mean(dim=0)).square().sum()) for m in members.values())
    apart = sum(
        float((centroids[i] - centroids[j]).square().sum())
        for i in range(len(centroids))
        for j in range(i + 1, len(centroids))
    )
    centre = sum(centroids) / len(centroids)
    spread = sum(float((c - centre).square().sum()) for c in centroids) / len(centroids)
    return [within * scatter / (apart + 1e-6), between * spread]


def test_golden_value_and_gradient(golden):
    case = golden("pafa")["pafa_pcsl0.1_gpal0.1"]
    x = torch.tensor(case["inputs"]["features"], requires_grad=True)
    total = sum(PatientAlignmentLoss(0.1, 0.1)(x, torch.tensor(case["inputs"]["patient_ids"])).values())
    total.backward()
    assert total.item() == pytest.approx(case["expected"]["loss"], rel=1e-5)
    torch.testing.assert_close(x.grad, torch.tensor(case["expected"]["grad_features"]), rtol=1e-4, atol=1e-6)
