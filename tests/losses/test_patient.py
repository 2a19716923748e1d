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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_the_loops(dtype, tolerance):
    draw = torch.Generator().manual_seed(0)
    loss = PatientAlignmentLoss(0.7, 0.3)
    for patients in ([5, 5, 9, 9, 9, 1], [3, 3, 3], [1, 2], [4]):
        x = torch.randn(len(patients), 6, generator=draw, dtype=dtype) * 3 + 1
        found = [term.item() for term in loss(x, torch.tensor(patients)).values()]
        assert found == pytest.approx(naive(x, patients, 0.7, 0.3), rel=tolerance)
    loss(torch.randn(6, 2), torch.tensor([5, 5, 9, 9, 9, 1]))
    assert loss.pairs == {"pcsl": 3, "gpal": 3}


def test_golden_value_and_gradient(golden):
    case = golden("pafa")["pafa_pcsl0.1_gpal0.1"]
    x = torch.tensor(case["inputs"]["features"], requires_grad=True)
    total = sum(PatientAlignmentLoss(0.1, 0.1)(x, torch.tensor(case["inputs"]["patient_ids"])).values())
    total.backward()
    assert total.item() == pytest.approx(case["expected"]["loss"], rel=1e-5)
    torch.testing.assert_close(x.grad, torch.tensor(case["expected"]["grad_features"]), rtol=1e-4, atol=1e-6)


def test_one_patient_is_zero_without_gradient(golden):
    case = golden("pafa")["pafa_single_patient_zero"]
    x = torch.tensor(case["inputs"]["features"], requires_grad=True)
    loss = PatientAlignmentLoss()
    total = sum(loss(x, torch.tensor(case["inputs"]["patient_ids"])).values())
    total.backward()
    assert total.item() == 0
    assert x.grad.abs().max() == 0
    assert loss.pairs == {"pcsl": 0, "gpal": 0}
