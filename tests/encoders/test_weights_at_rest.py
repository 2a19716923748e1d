"""What layers keep of their weights for many calls changes no bit, and is gone when the weights may change."""

import pytest
import torch

from laennec.encoders import load_encoder
from laennec.encoders.masks import frozen_weights
from laennec.encoders.mobilenet import ConvNorm


@pytest.fixture
def encoder():
    torch.manual_seed(3)
    encoder = load_encoder(None, type="mobilenet", width_mult=0.2).eval()
    for layer in encoder.modules():
        if isinstance(layer, ConvNorm):
            layer.norm.running_mean.normal_()
            layer.norm.running_var.uniform_(0.5, 2)
    return encoder


def answer(encoder, features):
    with torch.inference_mode():
        return encoder(features).pooler_output


def test_no_bit_changes_inside_and_nothing_is_kept_afterwards(encoder):
    features = torch.randn(2, 70, 128)
    before = answer(encoder, features)
    with frozen_weights(encoder):
        layers = [layer for layer in encoder.modules() if isinstance(layer, ConvNorm)]
        assert all(layer.folded is not None for layer in layers)
        assert torch.equal(answer(encoder, features), before)
        with frozen_weights(encoder):
            pass
        assert all(layer.folded is not None for layer in layers)  # the inner block keeps nothing of its own
    assert all(layer.folded is None for layer in layers)
    with torch.no_grad():
        layers[3].conv.weight.mul_(1.5)
    assert not torch.equal(answer(encoder, features), before)


def test_an_error_inside_leaves_nothing_kept(encoder):
    with pytest.raises(ZeroDivisionError), frozen_weights(encoder):
        1 / 0  # noqa: B018
    assert all(layer.folded is None for layer in encoder.modules() if isinstance(layer, ConvNorm))


def test_gradients_see_batch_normalisation_even_inside(encoder):
    features = torch.randn(2, 70, 128)
    with frozen_weights(encoder):
        encoder(features).pooler_output.sum().backward()
    norm = encoder.blocks[0].depthwise.norm
    assert norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0
