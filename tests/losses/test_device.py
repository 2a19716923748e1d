"""Gradient reversal."""

import math

import pytest
import torch

from laennec.losses import GradientReversal
from laennec.losses.device import reversal_strength


def test_strength_follows_the_published_curve():
    assert reversal_strength(0.0) == 0
    assert reversal_strength(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert reversal_strength(1.0) == pytest.approx(0.99990920426)


def test_values_pass_and_gradients_turn_round():
    x = torch.randn(3, 4, requires_grad=True)
    layer = GradientReversal()
    for progress in (0.0, 0.3, 1.0):
        layer.set_progress(progress)
        x.grad = None
        y = layer(x)
        assert torch.equal(y, x)
        (y * torch.arange(4.0)).sum().backward()
        torch.testing.assert_close(x.grad, -reversal_strength(progress) * torch.arange(4.0).expand(3, 4))
    assert "strength=1.000" in repr(layer)
    with pytest.raises(ValueError, match="progress"):
        layer.set_progress(2.0)
