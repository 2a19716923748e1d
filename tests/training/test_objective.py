from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from laennec.losses import AngularDistanceDistributionLoss
from laennec.training.config import ConfigError, LossSettings
from laennec.training.objective import RECIPE_LOSSES, Objective, Stage, class_weights, positive_weights

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
    weights = class_weights(LABELS, 4, "balanced")
    assert torch.allclose(weights, torch.tensor([0.0800, 0.1358, 0.3295, 0.4547]), atol=1e-4)
    assert class_weights(LABELS, 4, None) is None
    assert torch.equal(class_weights(LABELS, 4, [1, 2, 3, 4]), torch.tensor([1.0, 2, 3, 4]))


def test_balanced_positives_weigh_as_much_as_negatives():
    flags = np.array([[1, 0], [0, 0], [0, 0], [0, 1]], np.float32)
    assert positive_weights(flags, "balanced").tolist() == [3, 3]


def test_the_objective_is_the_sum_of_named_terms():
    out, flags = outputs(), torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]] * 2).float()
    ids = torch.tensor([0, 1, 2, 3] * 2)
    objective = Objective(LossSettings(auxiliary={"add": {"weight": 0.5}}), True, flags.numpy(), 2)
    terms = objective(out, batch(flags, ids), Stage(), 0.0)
    add = AngularDistanceDistributionLoss()(out.embeddings, ids)
    assert set(terms) == {"bce", *add}
    assert torch.allclose(terms["bce"], functional.binary_cross_entropy_with_logits(out.logits, flags))
    assert all(torch.allclose(terms[name], 0.5 * value) for name, value in add.items())


def test_a_weight_warms_up_with_progress():
    flags = torch.zeros(8, 2)
    objective = Objective(LossSettings(auxiliary={"add": {"warm_up": 0.5}}), True, flags.numpy(), 2)
    ids = torch.tensor([0, 1] * 4)
    values = [float(objective(outputs(), batch(flags, ids), Stage(), p)["add_mu_neg"]) for p in (0.0, 0.25, 0.5, 1.0)]
    assert values[0] == 0 and values[1] == pytest.approx(values[2] / 2) and values[2] == values[3] > 0


def test_a_stage_leaves_out_what_it_does_not_train():
    flags, ids = torch.zeros(8, 2), torch.tensor([0, 1] * 4)
    objective = Objective(LossSettings(auxiliary={"add": {}}), True, flags.numpy(), 2)
    assert set(objective(outputs(), batch(flags, ids), Stage(encoder=False), 0)) == {"bce"}
    assert "bce" not in objective(outputs(), batch(flags, ids), Stage(head=False), 0)


def test_tuplets_take_the_first_half_as_anchors_and_repeat_their_draw():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    objective = Objective(LossSettings(task="ce", auxiliary={"tuplet": {}}), False, labels.numpy(), 3, negatives=2)
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
    with pytest.raises(ConfigError, match="anchor_positive"):
        objective(outputs(5, 3), batch(labels[:5], labels[:5]), Stage(), 0)


@pytest.mark.parametrize(
    ("auxiliary", "message"),
    [
        ({"triplet": {}}, "there is no such loss"),
        ({"clustering": {}}, "a recipe cannot give it its inputs"),
        ({"add": {"variant": "new"}}, r"loss.auxiliary.add: "),
        ({"add": {"lambda": 3}}, r"loss.auxiliary.add: .*lambda"),
        ({"add": {"on": "logits"}}, "it can be embedding or projection"),
    ],
)
def test_what_a_recipe_cannot_have_is_refused_with_its_name(auxiliary, message):
    with pytest.raises(ConfigError, match=message):
        Objective(LossSettings(auxiliary=auxiliary), True, np.zeros((4, 2), np.float32), 2)


def test_class_weights_of_the_wrong_number_are_refused():
    with pytest.raises(ConfigError, match="has 3 numbers; there are 2 labels"):
        Objective(LossSettings(class_weights=[1, 2, 3]), True, np.zeros((4, 2), np.float32), 2)
    assert set(RECIPE_LOSSES) == {"add", "tuplet", "supcon", "opl"}


@pytest.mark.parametrize("task", ["ce", "focal"])
def test_single_label_tasks_use_their_weights(task):
    labels = torch.tensor([0, 1, 2, 3] * 2)
    plain = Objective(LossSettings(task=task), False, labels.numpy(), 4)
    weighted = Objective(LossSettings(task=task, class_weights=[1.0, 5, 5, 5]), False, labels.numpy(), 4)
    out = outputs(8, 4)
    assert plain.task_terms(out.logits, labels)[task] != weighted.task_terms(out.logits, labels)[task]
