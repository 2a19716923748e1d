"""Orthogonal projection loss against double loops and the authors' numbers."""

import pytest
import torch

from laennec.losses import OrthogonalProjectionLoss


def naive(x, labels, gamma, ratio, variant):
    x = x.double() / x.double().norm(dim=1, keepdim=True)
    same = [float(x[i] @ x[j]) for i in range(len(x)) for j in range(len(x)) if i != j and labels[i] == labels[j]]
    other = [float(x[i] @ x[j]) for i in range(len(x)) for j in range(len(x)) if labels[i] != labels[j]]
    negative = sum(abs(s) for s in other) if variant == "abs_each" else abs(sum(other))
    return [ratio * (1 - sum(same) / (len(same) + 1e-6)), ratio * gamma * negative / (len(other) + 1e-6)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_values_and_gradients(golden, dtype):
    for name, ratio in [("opl_default", 0.1), ("opl_no_pos", 1.0)]:
        case = golden("opl_focal")[name]
        x = torch.tensor(case["inputs"]["features"], dtype=dtype, requires_grad=True)
        loss = OrthogonalProjectionLoss(2.0, ratio)
        terms = loss(x, torch.tensor(case["inputs"]["labels"]))
        total = sum(terms.values())
        total.backward()
        assert total.item() == pytest.approx(case["expected"]["loss"], rel=1e-5)
        expected = torch.tensor(case["expected"]["grad_features"], dtype=dtype)
        torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-6)
    assert loss.pairs == {"opl_pos": 0, "opl_neg": 12}
    assert terms["opl_pos"].item() == 1.0


def test_a_cycle_with_soft_labels_counts_as_its_most_probable_class():
    embeddings = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.tensor([[0.7, 0.3], [0.4, 0.6], [1.0, 0.0]])
    loss = OrthogonalProjectionLoss()
    assert loss(embeddings, soft) == loss(embeddings, torch.tensor([0, 1, 0]))
