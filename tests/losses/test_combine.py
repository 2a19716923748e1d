"""Several losses as one objective."""

import pytest
import torch

from laennec.errors import InputError
from laennec.losses import (
    AngularDistanceDistributionLoss,
    FocalLoss,
    TupletContrastiveLoss,
    WeightedSum,
    WeightSchedule,
)


def test_a_schedule_starts_rises_and_stays():
    schedule = WeightSchedule(2.0, start=0.2, warm_up=0.4)
    assert [schedule.at(p) for p in (0.0, 0.19, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0, 1, 2, 2])
    assert [WeightSchedule(3.0).at(p) for p in (0.0, 1.0)] == [3.0, 3.0]
    assert [WeightSchedule(3.0, start=0.5).at(p) for p in (0.49, 0.5)] == [0.0, 3.0]


def test_terms_keep_their_names_and_follow_the_weights():
    draw = torch.Generator().manual_seed(0)
    embeddings, logits = torch.randn(8, 4, generator=draw), torch.randn(8, 3, generator=draw)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    add, focal = AngularDistanceDistributionLoss(), FocalLoss()
    objective = WeightedSum({"focal": FocalLoss(), "add": add}, {"add": WeightSchedule(0.5, warm_up=0.5), "focal": 2.0})
    for progress, share in [(0.0, 0.0), (0.25, 0.25), (1.0, 0.5)]:
        objective.set_progress(progress)
        terms = objective({"focal": (logits, labels), "add": {"embeddings": embeddings, "labels": labels}})
        assert terms["focal"].item() == pytest.approx(2 * focal(logits, labels)["focal"].item())
        for name, value in AngularDistanceDistributionLoss()(embeddings, labels).items():
            assert terms[name].item() == pytest.approx(share * value.item())
        assert objective.weights() == {"focal": 2.0, "add": share}
    assert objective.pairs == {"focal": 8, **add.pairs}


def test_the_same_loss_twice_gives_two_names():
    tensors = [torch.randn(2, 3), torch.randn(2, 3), torch.randn(2, 4, 3)]
    objective = WeightedSum({"class": TupletContrastiveLoss(), "device": TupletContrastiveLoss(0.5)})
    terms = objective({"class": tensors, "device": tensors})
    assert set(terms) == set(objective.pairs) == {"class/tuplet", "device/tuplet"}


def test_a_loss_of_ones_own_may_return_one_scalar():
    class Mine(torch.nn.Module):
        def forward(self, embeddings, labels):
            return embeddings.square().mean()

    terms = WeightedSum({"mine": Mine()}, {"mine": 0.5})({"mine": (torch.full((2, 3), 2.0), torch.zeros(2))})
    assert {name: term.item() for name, term in terms.items()} == {"mine": 2.0}


class Returning(torch.nn.Module):
    """A loss that returns what a function makes of its input."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, embeddings, labels):
        return self.made(embeddings)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda e: e[0][7], "loss mine: IndexError: .*; correct its forward"),
        (lambda e: {}["x"], "loss mine: KeyError: 'x'; correct its forward"),
        (lambda e: 0.5, "loss mine returns 0.5 for mine; return a scalar tensor"),
        (lambda e: None, "loss mine returns None for mine"),
        (lambda e: e.mean(1), r"loss mine returns a tensor of shape \(2,\) for mine"),
        (lambda e: (e.mean(), e.mean()), "loss mine returns .*tensor.* for mine"),
        (lambda e: {"a": 0.5}, "loss mine returns 0.5 for a"),
        (lambda e: {}, "loss mine returns {} for mine"),
    ],
)
def test_a_loss_that_fails_or_returns_no_scalar_is_named(made, message):
    with pytest.raises(InputError, match=message):
        WeightedSum({"mine": Returning(made)})({"mine": (torch.zeros(2, 3), torch.zeros(2))})


def test_a_loss_that_runs_out_of_memory_is_no_error_of_its_author():
    def exhaust(_):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        WeightedSum({"mine": Returning(exhaust)})({"mine": (torch.zeros(2, 3), torch.zeros(2))})


def test_two_terms_of_one_name_are_refused():
    losses = {"m": Returning(lambda e: {"m_x": e.mean()}), "m_x": Returning(torch.mean)}
    with pytest.raises(InputError, match="two terms of the loss are named 'm_x'; rename"):
        WeightedSum(losses)(dict.fromkeys(losses, (torch.zeros(2, 3), torch.zeros(2))))
