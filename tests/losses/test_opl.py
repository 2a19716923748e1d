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


def drawn(size, classes, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, 5, generator=draw, dtype=dtype), torch.randint(classes, (size,), generator=draw)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("variant", ["abs_each", "abs_mean"])
def test_equals_the_double_loop(variant, dtype, tolerance):
    loss = OrthogonalProjectionLoss(1.5, 0.3, variant)
    for seed, (size, classes) in enumerate([(12, 3), (5, 1), (2, 2)]):
        x, labels = drawn(size, classes, seed, dtype)
        found = [term.item() for term in loss(x, labels).values()]
        rounding = 1e-12 if dtype == torch.float64 else 1e-7
        assert found == pytest.approx(naive(x, labels, 1.5, 0.3, variant), rel=tolerance, abs=rounding)


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


@pytest.mark.parametrize("variant", ["abs_each", "abs_mean"])
def test_gradcheck(variant):
    x, labels = drawn(7, 3, 4)
    loss = OrthogonalProjectionLoss(variant=variant)
    assert torch.autograd.gradcheck(lambda v: tuple(loss(v, labels).values()), x.requires_grad_())


@pytest.mark.parametrize("variant", ["abs_each", "abs_mean"])
def test_any_batch_gives_finite_values_and_gradients(degenerate, variant):
    embeddings, labels = degenerate
    x = embeddings.clone().requires_grad_()
    terms = OrthogonalProjectionLoss(variant=variant)(x, labels)
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(x.grad).all()


def test_no_negative_pair_is_zero_without_gradient():
    x, _ = drawn(4, 1, 5)
    x.requires_grad_()
    term = OrthogonalProjectionLoss()(x, torch.zeros(4, dtype=torch.long))["opl_neg"]
    term.backward()
    assert term.item() == 0
    assert x.grad.abs().max() == 0


def test_rotation_does_not_matter_and_bf16_is_widened():
    x, labels = drawn(10, 3, 6)
    loss = OrthogonalProjectionLoss()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    for name, term in loss(x @ rotation, labels).items():
        torch.testing.assert_close(term, loss(x, labels)[name])
    assert loss(x.bfloat16(), labels) == loss(x.bfloat16().float(), labels)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="unknown OPL variant"):
        OrthogonalProjectionLoss(variant="abs")
    with pytest.raises(ValueError, match="no soft labels"):
        OrthogonalProjectionLoss()(torch.ones(2, 3), torch.tensor([[0.5, 0.5], [1, 0]]))
    assert "abs_each" in repr(OrthogonalProjectionLoss())
