"""Focal loss against its formula, the authors' numbers, and their detached factor."""

import math

import pytest
import torch

from laennec.losses import FocalLoss


def naive(logits, labels, gamma, alpha):
    total = 0.0
    for row, label in zip(logits.double(), labels, strict=True):
        p = math.exp(row[label]) / sum(math.exp(x) for x in row)
        total += -(1.0 if alpha is None else alpha[label]) * (1 - p) ** gamma * math.log(p)
    return total / len(labels)


def batch_of(size, classes, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, classes, generator=draw, dtype=dtype) * 2, torch.randint(classes, (size,), generator=draw)


def test_gamma_zero_is_cross_entropy():
    logits, labels = batch_of(9, 4, 2)
    torch.testing.assert_close(
        FocalLoss(0.0)(logits, labels)["focal"], torch.nn.functional.cross_entropy(logits, labels)
    )


def test_golden_values(golden):
    for name, settings in [
        ("focal_gamma2", {"gamma": 2.0}),
        ("focal_gamma1_5_alpha_scalar_binary", {"gamma": 1.5, "alpha": 0.25}),
    ]:
        case = golden("opl_focal")[name]
        logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
        one_hot = torch.tensor(case["inputs"]["labels"])
        each = FocalLoss(**settings, reduction="none")(logits, one_hot)["focal"]
        assert each.tolist() == pytest.approx(case["expected"]["per_sample"], rel=1e-5)
        assert FocalLoss(**settings)(logits, one_hot.argmax(1))["focal"].item() == pytest.approx(
            case["expected"]["mean"], rel=1e-5
        )


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
def test_certain_and_hopeless_logits_stay_finite(gamma):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]], requires_grad=True)
    for detach in (True, False):
        logits.grad = None
        FocalLoss(gamma, detach_factor=detach)(logits, torch.tensor([0, 0, 1]))["focal"].backward()
        assert torch.isfinite(logits.grad).all()
