"""Published optimisation rules against their numbers."""

import json
from pathlib import Path

import pytest
import torch

from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification
from laennec.training.arguments import (
    LaennecTrainingArguments,
    MovingAverageCallback,
    epoch_cosine,
    epoch_cosine_schedule,
    sharpness_aware,
)
from laennec.training.trainer import LaennecTrainer

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "training" / "training_rules.json"
CASES = {case["id"]: case for case in json.loads(GOLDEN.read_text())["cases"]}


def test_epoch_cosine():
    given, expected = CASES["kaist_cosine_lr"]["inputs"], CASES["kaist_cosine_lr"]["expected"]["lr"]
    assert given["lr_decay_rate"] == 0.1
    found = [given["learning_rate"] * epoch_cosine(epoch, given["epochs"]) for epoch in given["epoch_1_based"]]
    assert found == pytest.approx(expected, rel=1e-9)


def test_epoch_cosine_as_a_scheduler_changes_once_an_epoch():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 1.0}])
    scheduler = epoch_cosine_schedule(optimizer, epochs=4, steps_per_epoch=3)
    seen = []
    for _ in range(14):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([epoch_cosine(min(step // 3 + 1, 4), 4) for step in range(14)])
    assert seen[-1] == pytest.approx(1e-3)


def test_moving_average_of_live_weights():
    given = CASES["kaist_ma_update"]["inputs"]
    layer = torch.nn.Linear(2, 2)
    before, after = given["previous_iteration"], given["after_optimizer_step"]
    layer.load_state_dict({name: torch.tensor(value) for name, value in before.items()})
    average = MovingAverageCallback(given["beta"])
    average.on_step_begin(None, None, None, model=layer)
    layer.load_state_dict({name: torch.tensor(value) for name, value in after.items()})
    average.on_step_end(None, None, None)
    for name, value in CASES["kaist_ma_update"]["expected"]["new"].items():
        torch.testing.assert_close(layer.state_dict()[name], torch.tensor(value), rtol=1e-6, atol=1e-7)
    with pytest.raises(InputError, match="moving_average must lie in"):
        MovingAverageCallback(1.0)


@pytest.mark.parametrize("adam_l2", [False, True])
def test_weight_decay_is_taken_off_the_weights_or_added_to_the_gradient(tmp_path, adam_l2):
    arguments = LaennecTrainingArguments(
        output_dir=str(tmp_path), learning_rate=0.1, weight_decay=0.5, adam_beta1=0.95, adam_l2=adam_l2, use_cpu=True
    )
    model = LaennecForAudioClassification.from_encoder(None, type="statistics")
    optimizer = LaennecTrainer(model, arguments).create_optimizer()
    assert type(optimizer) is (torch.optim.Adam if adam_l2 else torch.optim.AdamW)
    weight = model.head.classifier.weight
    twin = torch.nn.Parameter(weight.detach().clone())
    settings = {"lr": 0.1, "betas": (0.95, 0.999), "eps": 1e-8, "weight_decay": 0.5}
    plain = (torch.optim.Adam if adam_l2 else torch.optim.AdamW)([twin], **settings)
    for seed in range(3):
        gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        weight.grad, twin.grad = gradient.clone(), gradient.clone()
        optimizer.step(), plain.step()
    torch.testing.assert_close(weight, twin)


def test_sharpness_aware_step():
    given, expected = CASES["sam_step"]["inputs"], CASES["sam_step"]["expected"]
    weight = torch.nn.Parameter(torch.tensor(given["W"]))
    x, target = torch.tensor(given["X"]), torch.tensor(given["T"])
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def backward():
        ((x @ weight.T - target) ** 2).mean().backward()

    backward()
    torch.testing.assert_close(weight.grad, torch.tensor(expected["grad_first"]), rtol=1e-5, atol=1e-6)
    with sharpness_aware([weight], given["rho"]):
        moved = weight.detach() - torch.tensor(given["W"])
        torch.testing.assert_close(moved, torch.tensor(expected["perturbation"]), rtol=1e-4, atol=1e-6)
        backward()
        torch.testing.assert_close(weight.grad, torch.tensor(expected["grad_at_perturbed"]), rtol=1e-5, atol=1e-6)
    assert torch.equal(weight.detach(), torch.tensor(given["W"]))
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor(expected["W_new"]), rtol=1e-5, atol=1e-6)


def test_adaptive_climb_is_scaled_by_the_weights():
    weights = [torch.nn.Parameter(torch.tensor([1.0, -2.0])), torch.nn.Parameter(torch.tensor([3.0]))]
    gradients = [torch.tensor([0.5, 0.1]), torch.tensor([-0.2])]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    frozen = torch.nn.Parameter(torch.ones(2))
    before = [weight.detach().clone() for weight in weights]
    norm = torch.cat([w.abs() * g for w, g in zip(before, gradients, strict=True)]).norm()
    with sharpness_aware([*weights, frozen], rho=0.1, adaptive=True):
        for weight, old, gradient in zip(weights, before, gradients, strict=True):
            torch.testing.assert_close(weight.detach() - old, 0.1 * old**2 * gradient / norm)
            assert weight.grad is None
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert torch.equal(frozen, torch.ones(2))
