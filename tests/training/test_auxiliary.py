"""Entries of loss.auxiliary, and their additional layers."""

import pytest
import torch
import yaml

from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.losses import DeviceAdversarialLoss, SupConLoss
from laennec.losses.device import reversal_strength
from laennec.modeling import LaennecForAudioClassification
from laennec.training.objectives.auxiliary_layers import AuxiliaryHeads, attached
from laennec.training.objectives.loss_specs import loss_specs, specs_of
from laennec.training.recipe import LossSettings


def test_one_loss_can_have_two_entries_with_different_names():
    given = yaml.safe_load(
        "{supcon: {views: 1}, by_sex: {loss: supcon, labels: sex, missing: own_group, on: projection}}"
    )
    first, second = loss_specs(LossSettings(auxiliary=given).auxiliary)
    assert (first.is_a(SupConLoss), first.labels, first.views, first.group_key) == (True, "class", 1, None)
    assert (second.is_a(SupConLoss), second.labels, second.views, second.on) == (True, "sex", 2, "projection")
    assert second.group_key == "sex own_group"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"add": 3}, r"loss.auxiliary.add is a group of settings, not 3"),
        ({"keys": {"loss": "add"}}, r"'keys' cannot name a loss"),
        ({"a.b": {"loss": "add"}}, r"'a.b' cannot name a loss"),
        ({"who": {}}, r"has 'who': there is no such loss"),
        ({"add": {"views": 2}}, r"add.views is 2; AngularDistanceDistributionLoss takes 1"),
        ({"supcon": {"views": 3}}, r"supcon.views is 3; SupConLoss takes 1 or 2"),
        ({"supcon": {"missing": "guess"}}, r"supcon.missing is 'guess'"),
        ({"supcon": {"projection_dim": -1}}, r"projection_dim is -1"),
        ({"supcon": {"projection_dim": 8, "on": "projection"}}, r"leave out on: projection"),
        ({"supcon": {"views": 1, "detach_other_views": True}}, r"detach_other_views needs views: 2"),
        ({"ntxent": {"views": 1}}, r"ntxent: one view of a cycle has no positive pair"),
        ({"opl": {"labels": "cycle"}}, r"opl.labels is cycle, but OrthogonalProjectionLoss does not take two views"),
        ({"tuplet": {"labels": "device"}}, r"TupletContrastiveLoss takes only class"),
        ({"device_adversarial": {"labels": "class"}}, r"labels is class, which the embedding should keep"),
        ({"device_adversarial": {"labels": "device+class"}}, r"labels is device\+class, which the"),
        ({"device_adversarial": {"temperature": 1}}, r"device_adversarial: .*temperature"),
        ({"supcon": {"temperature": 0}}, r"loss.auxiliary.supcon: .*temperature"),
        ({"supcon": {"start": 2}}, r"loss.auxiliary.supcon: .*start"),
        ({"add": {"on": "logits"}}, "it can be embedding or projection"),
        ({"add": {"variant": "new"}}, r"loss.auxiliary.add: "),
        ({"add": {"weight": "big"}}, "weight is 'big'; it must be finite and 0 or more"),
        ({"training": {"loss": "add"}}, "'training' cannot name a loss"),
        ({"mine": {"class": "math:sqrt"}}, "mine.class: math:sqrt is no subclass of torch.nn.Module"),
        ({"mine": {"class": "torch.nn:Identity", "bad": 1, "labels": 3, "views": "2"}}, "views is '2'"),
        ({"mine": {"class": "torch.nn:MSELoss", "sizeaverage": 1}}, "did you mean 'size_average'"),
        ({"mine": {"class": "torch.nn:Softsign", "arg": 1}}, "did you mean '(?!args)"),
        ({"add": {"weight": -1}}, "it must be finite and 0 or more"),
        ({"add": {"weight": float("inf")}}, "it must be finite and 0 or more"),
        ({"add": {"weight": float("nan")}}, "it must be finite and 0 or more"),
    ],
)
def test_an_invalid_entry_is_refused_by_name(given, message):
    with pytest.raises(InputError, match=message):
        loss_specs(given)


class WithoutSuper(torch.nn.Module):
    def __init__(self):
        self.setting = 1


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ([SupConLoss()], None, "have a name for each loss"),
        ({"a": SupConLoss()}, 0.5, "have a name for each loss"),
        ({"a": SupConLoss()}, {"a": None}, r"loss_weights\['a'\] is None; it must be finite"),
        ({0: SupConLoss()}, None, "0 cannot name a loss"),
        ({"a": SupConLoss}, None, r"losses\['a'\] is a type; give an object of a subclass of torch.nn.Module"),
        ({"a": torch.mean}, None, "give an object of a subclass of torch.nn.Module"),
        ({"a": WithoutSuper()}, None, r"is a WithoutSuper; .* begins with super\(\).__init__\(\)"),
    ],
)
def test_what_is_no_loss_is_refused(losses, weights, message):
    with pytest.raises(InputError, match=message):
        specs_of(losses, weights)


def test_the_gradient_is_reversed_for_the_encoder_but_not_for_the_adversary():
    entries = loss_specs({"device_adversarial": {}})
    heads = AuxiliaryHeads(entries, 4, {"device_adversarial": 3}, seed=0)
    ids = torch.tensor([0, 1, 2, 1])
    gradients = {}
    for turned in (True, False):
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        heads.zero_grad()
        heads.reversal.set_progress(0.3)
        guess = heads.adversaries["device_adversarial"]
        logits = heads(x)["device_adversarial"] if turned else guess(x)
        DeviceAdversarialLoss()(logits, ids)["device_adversarial"].backward()
        gradients[turned] = x.grad, guess.weight.grad.clone()
    torch.testing.assert_close(gradients[True][0], -reversal_strength(0.3) * gradients[False][0])
    torch.testing.assert_close(gradients[True][1], gradients[False][1])


def test_ddp_sees_the_weights_of_an_own_loss_in_the_output():
    own = torch.nn.Bilinear(4, 4, 1)
    heads = AuxiliaryHeads(specs_of({"own": own}), 4, {}, seed=0)
    seen = heads(torch.zeros(2, 4))["weights of losses"]
    assert [weight.grad_fn is not None and tuple(weight.shape) for weight in seen] == [(1, 4, 4), (1,)]


def test_heads_are_in_the_model_during_training_and_removed_afterwards():
    torch.manual_seed(0)
    encoder = load_encoder(None, type="statistics", num_mel_bins=4)
    model = LaennecForAudioClassification(
        LaennecConfig(encoder_config=encoder.config, id2label={0: "a", 1: "b"}), encoder
    )
    entries = loss_specs({"supcon": {"projection_dim": 3}, "device_adversarial": {}, "add": {}})
    before, state = set(model.state_dict()), torch.get_rng_state()
    heads = AuxiliaryHeads(entries, 8, {"device_adversarial": 2}, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(5, 6, 4)
    with attached(model, heads):
        assert any(name.startswith("auxiliary_heads.") for name in model.state_dict())
        seen = model.train()(x).auxiliary
        assert {name: tuple(v.shape) for name, v in seen.items()} == {"supcon": (5, 3), "device_adversarial": (5, 2)}
        assert not hasattr(model.eval()(x), "auxiliary")
        heads.active = False
        assert not hasattr(model.train()(x), "auxiliary")
    assert set(model.state_dict()) == before and not hasattr(model(x), "auxiliary")
    again = AuxiliaryHeads(entries, 8, {"device_adversarial": 2}, seed=0).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in heads.state_dict().items())
