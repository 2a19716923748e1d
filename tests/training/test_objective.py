from types import SimpleNamespace

import numpy as np
import pytest
import torch
from objectives import make_objective
from torch import nn
from torch.nn import functional

from laennec.errors import InputError
from laennec.losses import AngularDistanceDistributionLoss, PatientAlignmentLoss, SupConLoss
from laennec.training.data.mixing import Mixture
from laennec.training.objectives.loss_specs import check_draws, specs_of
from laennec.training.objectives.objective import Objective, Stage, TaskLoss, task_weights
from laennec.training.recipe import LossSettings

LABELS = np.array([0] * 2063 + [1] * 1215 + [2] * 501 + [3] * 363)


def outputs(n=8, labels=2, dim=5):
    generator = torch.Generator().manual_seed(0)
    return SimpleNamespace(
        logits=torch.randn(n, labels, generator=generator),
        embeddings=torch.randn(n, dim, generator=generator),
        projections=None,
    )


def batch(labels, class_ids):
    n = len(labels)
    return {"labels": labels, "class_ids": class_ids, "cycle_numbers": torch.arange(n), "epochs": torch.zeros(n).long()}


def test_balanced_class_weights_are_those_of_the_literature():
    weights = task_weights(LABELS, 4, False, "balanced")
    assert torch.allclose(weights, torch.tensor([0.0800, 0.1358, 0.3295, 0.4547]), atol=1e-4)
    assert task_weights(LABELS, 4, False, None) is None
    assert torch.equal(task_weights(LABELS, 4, False, [1, 2, 3, 4]), torch.tensor([1.0, 2, 3, 4]))


def test_balanced_positives_weigh_as_much_as_negatives():
    flags = np.array([[1, 0], [0, 0], [0, 0], [0, 1]], np.float32)
    assert task_weights(flags, 2, True, "balanced").tolist() == [3, 3]


@pytest.mark.parametrize("weights", [[1, -1], [1, float("inf")], [float("nan"), 1], [0, 0]])
def test_class_weights_are_finite_and_not_negative(weights):
    with pytest.raises(InputError, match="give finite numbers of at least 0, not all of them 0"):
        task_weights(LABELS, 2, False, weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "bec"}, "task_loss is 'bec'; it can be bce, ce, focal, or a torch module; did you mean 'bce'"),
        ({"kind": torch.mean}, "task_loss is <.*it can be bce, ce, focal"),
        ({"views": "al"}, "task_views is 'al'; it can be first or all"),
        ({"weight": -1.0}, "task_weight is -1.0; it must be finite and 0 or more"),
    ],
)
def test_an_unknown_task_loss_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TaskLoss(**{"kind": "bce", "multi_label": True, "labels": None, "n_labels": 2, **settings})


@pytest.mark.parametrize("kind", ["bce", nn.MSELoss()])
def test_an_auxiliary_loss_cannot_have_the_name_of_the_task_loss(kind):
    task = TaskLoss(kind, True, None, 2)
    with pytest.raises(InputError, match=f"two terms of the loss are named '{task.name}'"):
        Objective(task, specs_of({task.name: AngularDistanceDistributionLoss()}))


def test_an_own_task_loss_returns_a_scalar():
    logits, labels = torch.ones(2, 3), torch.zeros(2, 3)
    assert TaskLoss(nn.MSELoss(), True, None, 3, weight=0.5)(logits, labels)["task"] == 0.5
    with pytest.raises(InputError, match=r"loss task_loss returns a tensor of shape \(2, 3\)"):
        TaskLoss(nn.MSELoss(reduction="none"), True, None, 3)(logits, labels)


def test_a_batch_of_classes_of_weight_0_has_no_loss():
    loss, logits = TaskLoss("ce", False, None, 3, [1, 0.5, 0]), torch.randn(4, 3, requires_grad=True)
    value = loss(logits, torch.tensor([2, 2, 2, 2]))["ce"]
    value.backward()
    assert value == 0 and not logits.grad.any()
    mixed, expected = torch.tensor([0, 1, 2, 1]), nn.CrossEntropyLoss(torch.tensor([1, 0.5, 0]))
    assert torch.allclose(loss(logits, mixed)["ce"], expected(logits, mixed))
    ignored = torch.tensor([0, -100, 1, 1])
    assert torch.allclose(loss(logits, ignored)["ce"], expected(logits, ignored))
    plain = TaskLoss("ce", False, None, 3)
    assert torch.allclose(plain(logits, mixed.to(torch.uint8))["ce"], nn.CrossEntropyLoss()(logits, mixed))


def test_the_objective_is_the_sum_of_named_terms():
    out, flags = outputs(), torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]] * 2).float()
    ids = torch.tensor([0, 1, 2, 3] * 2)
    objective = make_objective(LossSettings(auxiliary={"add": {"weight": 0.5}}), True, flags.numpy(), 2)
    terms = objective(out, batch(flags, ids), Stage(), 0.0)
    add = AngularDistanceDistributionLoss()(out.embeddings, ids)
    assert set(terms) == {"bce", *add}
    assert torch.allclose(terms["bce"], functional.binary_cross_entropy_with_logits(out.logits, flags))
    assert all(torch.allclose(terms[name], 0.5 * value) for name, value in add.items())


def test_a_stage_leaves_out_what_it_does_not_train():
    flags, ids = torch.zeros(8, 2), torch.tensor([0, 1] * 4)
    objective = make_objective(LossSettings(auxiliary={"add": {}}), True, flags.numpy(), 2)
    assert set(objective(outputs(), batch(flags, ids), Stage(encoder=False), 0)) == {"bce"}
    assert "bce" not in objective(outputs(), batch(flags, ids), Stage(head=False), 0)


def test_tuplets_take_the_first_half_as_anchors_and_repeat_their_draw():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    objective = make_objective(LossSettings(task="ce", auxiliary={"tuplet": {}}), False, labels.numpy(), 3, negatives=2)
    out = outputs(6, 3)
    given = batch(labels, labels)
    first = objective(out, given, Stage(), 0)["tuplet"]
    assert torch.equal(objective(out, given, Stage(), 0)["tuplet"], first)
    z = functional.normalize(out.embeddings, dim=1)
    lowest, highest = [], []
    for i in range(3):
        others = sorted((z[i] @ z[j]).exp() for j in range(6) if labels[j] != labels[i])
        positive = (z[i] @ z[i + 3]).exp()
        lowest.append(-torch.log(positive / (positive + others[0] + others[1])))
        highest.append(-torch.log(positive / (positive + others[-1] + others[-2])))
    assert sum(lowest) / 3 <= first <= sum(highest) / 3
    with pytest.raises(InputError, match="anchor_positive"):
        objective(outputs(5, 3), batch(labels[:5], labels[:5]), Stage(), 0)


def test_class_weights_of_the_wrong_number_are_refused():
    with pytest.raises(InputError, match="has 3 numbers; there are 2 labels"):
        make_objective(LossSettings(class_weights=[1, 2, 3]), True, np.zeros((4, 2), np.float32), 2)


@pytest.mark.parametrize("task", ["ce", "focal"])
def test_single_label_tasks_use_their_weights(task):
    labels = torch.tensor([0, 1, 2, 3] * 2)
    plain = make_objective(LossSettings(task=task), False, labels.numpy(), 4)
    weighted = make_objective(LossSettings(task=task, class_weights=[1.0, 5, 5, 5]), False, labels.numpy(), 4)
    out = outputs(8, 4)
    assert plain.task(out.logits, labels)[task] != weighted.task(out.logits, labels)[task]


def test_bce_of_classes_takes_each_class_as_a_yes_no_label_also_of_mixtures():
    labels = torch.tensor([0, 1, 2, 3] * 2)
    made = make_objective(LossSettings(task="bce"), False, labels.numpy(), 4)
    logits = outputs(8, 4).logits
    mixed = torch.rand(8, 4)
    for given, rows in ((labels, torch.eye(4)[labels]), (mixed, mixed)):
        p = logits.sigmoid()
        expected = -(rows * p.log() + (1 - rows) * (1 - p).log()).mean()
        torch.testing.assert_close(made.task(logits, given)["bce"], expected)
    weighted = make_objective(LossSettings(task="bce", class_weights=[1.0, 2, 3, 4]), False, labels.numpy(), 4)
    each = -(torch.eye(4)[labels] * p.log() + (1 - torch.eye(4)[labels]) * (1 - p).log())
    torch.testing.assert_close(weighted.task(logits, labels)["bce"], (each * torch.tensor([1.0, 2, 3, 4])).mean())


def views(n=6, dim=5):
    """Outputs for two views of n cycles, first views first."""
    out = outputs(2 * n, 2, dim)
    flags = torch.tensor([[0, 0], [1, 0], [0, 1]] * (n // 3)).float()
    return out, batch(flags, torch.arange(n) % 3)


def test_losses_of_one_view_see_the_first_and_those_of_two_see_both():
    out, given = views()
    objective = make_objective(LossSettings(auxiliary={"supcon": {}, "add": {}}), True, given["labels"].numpy(), 2)
    terms = objective(out, given, Stage(), 0)
    first, second = out.embeddings.split(6)
    both = torch.stack([first, second], dim=1)
    assert torch.allclose(terms["supcon"], SupConLoss()(both, given["class_ids"])["supcon"])
    assert torch.allclose(
        terms["add_mu_pos"], AngularDistanceDistributionLoss()(first, given["class_ids"])["add_mu_pos"]
    )
    one_logit_set = functional.binary_cross_entropy_with_logits(out.logits[:6], given["labels"])
    assert torch.allclose(terms["bce"], one_logit_set)


def test_hybrid_training_weighs_contrast_against_the_task_over_both_views():
    out, given = views()
    alpha = 0.3
    settings = LossSettings(task_weight=1 - alpha, task_views="all", auxiliary={"supcon": {"weight": alpha}})
    terms = make_objective(settings, True, given["labels"].numpy(), 2)(out, given, Stage(), 0)
    both = torch.stack(out.embeddings.split(6), dim=1)
    assert torch.allclose(terms["supcon"], alpha * SupConLoss()(both, given["class_ids"])["supcon"])
    task = functional.binary_cross_entropy_with_logits(out.logits, torch.cat([given["labels"]] * 2))
    assert torch.allclose(terms["bce"], (1 - alpha) * task)


def test_stethoscope_guided_contrast_looks_at_known_devices_and_moves_first_views_alone():
    out, given = views()
    given["group_ids"] = {"device drop": torch.tensor([0, 1, -1, 0, 1, -1])}
    entry = {"device": {"loss": "supcon", "labels": "device", "detach_other_views": True}}
    out.embeddings.requires_grad_()
    objective = make_objective(LossSettings(task_weight=0, auxiliary=entry), True, given["labels"].numpy(), 2)
    value = objective(out, given, Stage(), 0)["device/supcon"]
    known = torch.tensor([0, 1, 3, 4])
    expected = SupConLoss()(torch.stack(out.embeddings.split(6), dim=1)[known], torch.tensor([0, 1, 0, 1]))["supcon"]
    assert torch.allclose(value, expected)
    value.backward()
    moved = out.embeddings.grad.abs().sum(1) > 0
    assert moved.tolist() == [True, True, False, True, True, False] + [False] * 6


def test_patients_and_simclr_take_their_own_labels():
    out, given = views()
    patients = torch.tensor([0, 0, 1, 1, 2, 2])
    given["group_ids"] = {"patient drop": patients}
    settings = LossSettings(auxiliary={"patient": {}, "ntxent": {}, "cycle": {"loss": "supcon", "labels": "cycle"}})
    terms = make_objective(settings, True, given["labels"].numpy(), 2)(out, given, Stage(), 0)
    pafa = PatientAlignmentLoss()(out.embeddings[:6], patients)
    assert torch.allclose(terms["patient/pcsl"], pafa["pcsl"]) and torch.allclose(terms["patient/gpal"], pafa["gpal"])
    both = torch.stack(out.embeddings.split(6), dim=1)
    assert torch.allclose(terms["cycle/supcon"], SupConLoss()(both)["supcon"])
    assert float(terms["ntxent"]) > 0


class ViewsOfACycle(nn.Module):
    """A user's loss with the standard signature."""

    labels, views = "cycle", 2

    def forward(self, embeddings, labels):
        assert embeddings.shape[:2] == (6, 2) and labels.tolist() == [0, 1, 2, 3, 4, 5]
        return (embeddings[:, 0] - embeddings[:, 1]).norm(dim=-1).mean()


def test_an_own_loss_over_the_views_of_a_cycle_takes_one_label_a_cycle():
    out, given = views()
    task = TaskLoss("bce", True, given["labels"].numpy(), 2)
    terms = Objective(task, specs_of({"own": ViewsOfACycle()}))(out, given, Stage(), 0)
    assert float(terms["own"]) > 0


def mixture(labels, lam=0.7):
    index = torch.tensor([1, 2, 0, 4, 5, 3])
    return Mixture(lam, index, lam * labels + (1 - lam) * labels[index], labels)


def test_mixed_cycles_have_soft_labels_for_task_and_add():
    out, given = views()
    out = SimpleNamespace(logits=out.logits[:6], embeddings=out.embeddings[:6], projections=None)
    given["mixture"] = mixture(given["labels"])
    terms = make_objective(LossSettings(auxiliary={"add": {}}), True, given["labels"].numpy(), 2)(
        out, given, Stage(), 0
    )
    soft = given["mixture"].labels
    assert torch.allclose(terms["bce"], functional.binary_cross_entropy_with_logits(out.logits, soft))
    assert torch.allclose(terms["add_mu"], AngularDistanceDistributionLoss()(out.embeddings, soft)["add_mu"])


class RowsOfLabels(nn.Module):
    soft_labels = True

    def forward(self, embeddings, labels):
        return {"rows": labels.sum() * 0 + labels.shape[1]}


def test_an_own_loss_takes_soft_labels_only_if_it_says_so():
    out, given = views()
    out = SimpleNamespace(logits=out.logits[:6], embeddings=out.embeddings[:6], projections=None)
    given["mixture"] = mixture(given["labels"])
    specs = specs_of({"own": RowsOfLabels()})
    check_draws(specs, mixes=True, draws=True)
    terms = Objective(TaskLoss("bce", True, given["labels"].numpy(), 2), specs)(out, given, Stage(), 0)
    assert terms["own/rows"] == 3  # crackle, wheeze, neither
    with pytest.raises(InputError, match=r"own.* needs one class or group for each cycle"):
        check_draws(specs_of({"own": ViewsOfACycle()}), mixes=True, draws=True)


@pytest.mark.parametrize("task_views", ["first", "all"])
def test_patch_mix_contrasts_mixed_rows_with_the_clean_ones_they_were_made_of(task_views):
    out, given = views()
    given["mixture"] = mixture(given["labels"])
    settings = LossSettings(task_views=task_views, auxiliary={"patch_mix": {"temperature": 0.5}, "add": {}})
    objective = make_objective(settings, True, given["labels"].numpy(), 2)
    terms = objective(out, given, Stage(), 0)
    clean, mixed = (functional.normalize(half, dim=1) for half in out.embeddings.split(6))
    chance = (mixed @ clean.T / 0.5).log_softmax(1)
    each = [0.7 * chance[i, i] + 0.3 * chance[i, given["mixture"].index[i]] for i in range(6)]
    assert torch.allclose(terms["patch_mix"], -torch.stack(each).mean())
    rows = torch.cat([given["labels"], given["mixture"].labels])[: 12 if task_views == "all" else 6]
    assert torch.allclose(terms["bce"], functional.binary_cross_entropy_with_logits(out.logits[: len(rows)], rows))
    assert "add_mu_pos" in terms  # clean rows keep their class


def test_the_focal_loss_of_two_labels_is_that_of_each_label_by_itself():
    logits, flags = torch.randn(4, 2), torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]]).float()
    weights = [3.0, 0.5]
    settings = LossSettings(task="focal", focal_gamma=1.5, class_weights=weights)
    found = make_objective(settings, True, flags.numpy(), 2).task(logits, flags)["focal"]
    values = []
    for row in range(4):
        for label in range(2):
            p = logits[row, label].sigmoid()
            p = p if flags[row, label] else 1 - p
            values.append((weights[label] if flags[row, label] else 1) * -((1 - p) ** 1.5) * p.log())
    assert torch.allclose(found, torch.stack(values).mean(), atol=1e-6)
