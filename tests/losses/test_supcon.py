"""SupCon and NT-Xent against double loops, published numbers and batches without positives."""

import math

import pytest
import torch

from laennec.losses import NTXentLoss, SupConLoss, blocks


def naive(views, temperature, labels=None, mask=None, first_view_only=False, groups=None):
    batch, count, _ = views.shape
    rows = [(b, v) for v in range(count) for b in range(batch)]
    z = {row: views[row].double() / views[row].double().norm() for row in rows}
    total, anchors, found = 0.0, 0, 0
    for i in rows:
        if first_view_only and i[1]:
            continue
        anchors += 1
        others = [j for j in rows if j != i]
        if mask is not None:
            positives = [j for j in others if mask[i[0], j[0]]]
        elif labels is None:
            positives = [j for j in others if j[0] == i[0]]
        else:
            positives = [j for j in others if labels[j[0]] == labels[i[0]]]
        found += len(positives)
        if positives:
            counted = others
            if groups is not None:
                counted = [j for j in others if j in positives or groups[i[0]] < 0 or groups[j[0]] != groups[i[0]]]
            norm = math.log(sum(math.exp(float(z[i] @ z[j]) / temperature) for j in counted))
            total -= sum(float(z[i] @ z[p]) / temperature - norm for p in positives) / len(positives)
    return total / anchors, found


def drawn(batch, views, dim, classes, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, views, dim, generator=draw, dtype=dtype), torch.randint(classes, (batch,), generator=draw)


@pytest.mark.parametrize("mode", ["all", "one"])
def test_a_large_batch_in_blocks_equals_the_full_matrix(monkeypatch, mode):
    x, labels = drawn(7, 2, 5, 3, 4)
    mask = labels[:, None] == labels[None, :]
    for given in ({"labels": labels}, {}, {"mask": mask}):
        found = []
        for largest in (1024, 3):
            monkeypatch.setattr(blocks, "LARGEST_MATRIX", largest)
            leaf = x.clone().requires_grad_()
            value = NTXentLoss(0.1, contrast_mode=mode)(leaf, **given)["ntxent"]
            value.backward()
            found.append((value, leaf.grad))
        torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_one_view_may_go_without_its_dimension():
    x, labels = drawn(8, 1, 5, 3, 7)
    torch.testing.assert_close(SupConLoss()(x[:, 0], labels)["supcon"], SupConLoss()(x, labels)["supcon"])


@pytest.mark.parametrize("mode", ["all", "one"])
def test_ntxent_equals_the_double_loop_times_its_factor(mode):
    x, labels = drawn(6, 2, 5, 3, 3)
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) > 0.6
    loss = NTXentLoss(0.5, 0.07, contrast_mode=mode)
    patients = torch.tensor([0, 0, 1, -1, -1, 1])
    for given in ({}, {"labels": labels}, {"mask": mask.float()}, {"mask": mask}, {"groups": patients}):
        expected, count = naive(x, 0.5, **given, first_view_only=mode == "one")
        assert loss(x, **given)["ntxent"].item() == pytest.approx(0.5 / 0.07 * expected, rel=1e-10)
        assert loss.pairs == {"ntxent": count}


def test_negatives_of_other_patients_alone_leave_a_batch_of_one_patient_without_any():
    x, _ = drawn(4, 2, 5, 2, 1)
    x.requires_grad_()
    value = NTXentLoss()(x, groups=torch.zeros(4).long())["ntxent"]
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12) and x.grad.abs().max() < 1e-9
    unknown = NTXentLoss()(x, groups=torch.full((4,), -1))["ntxent"]
    torch.testing.assert_close(unknown, NTXentLoss()(x)["ntxent"])
    with pytest.raises(ValueError, match="groups must be"):
        NTXentLoss()(x, groups=torch.zeros(3).long())


def test_golden_values_and_gradients(golden):
    cases = golden("supcon_family")

    def views_of(case, dtype=torch.float32):
        names = [n for n in ("projection1", "projection2", "view1", "view2") if n in case["inputs"]]
        return [torch.tensor(case["inputs"][name], dtype=dtype, requires_grad=True) for name in names]

    for name, labels, loss in [
        ("supcon_labels_T0.06", "labels", SupConLoss(0.06)),
        ("sgscl_metacl_project1_project2block", "meta_labels", SupConLoss(0.06, detach_other_views=True)),
    ]:
        first, second = views_of(cases[name])
        expected = cases[name]["expected"]
        value = loss(torch.stack([first, second], dim=1), torch.tensor(cases[name]["inputs"][labels]))["supcon"]
        value.backward()
        assert value.item() == pytest.approx(expected["loss"], rel=1e-5)
        torch.testing.assert_close(first.grad, torch.tensor(expected["grad_projection1"]), rtol=1e-4, atol=1e-6)
        if expected["grad_projection2"] is None:
            assert second.grad.abs().max() == 0
        else:
            torch.testing.assert_close(second.grad, torch.tensor(expected["grad_projection2"]), rtol=1e-4, atol=1e-6)
    for name, loss in [("ntxent_T0.5_base0.07", NTXentLoss(0.5, 0.07)), ("ntxent_mask", NTXentLoss())]:
        case = cases[name]
        mask = case["inputs"]["mask"]
        for views in (torch.stack(views_of(case), dim=1), torch.tensor(case["inputs"]["features_normalised"])):
            value = loss(views, mask=None if mask is None else torch.tensor(mask))["ntxent"]
            assert value.item() == pytest.approx(case["expected"]["loss"], rel=1e-5)


def test_golden_hybrid_of_supcon_and_weighted_cross_entropy(golden):
    case = golden("supcon_family")["supcon_ce_hybrid_alpha0.5"]
    given = {name: torch.tensor(value) for name, value in case["inputs"].items()}
    views = torch.stack([given["projection1"], given["projection2"]], dim=1)
    contrast = SupConLoss(0.06)(views, given["target"])["supcon"]
    logits = torch.cat([given["prediction1"], given["prediction2"]])
    task = torch.nn.functional.cross_entropy(logits, given["target"].repeat(2), given["weights"])
    assert (0.5 * contrast + 0.5 * task).item() == pytest.approx(case["expected"]["loss"], rel=1e-5)
