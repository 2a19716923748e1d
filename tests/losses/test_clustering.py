"""Deep clustering losses against their formulas and the authors' numbers."""

import math

import pytest
import torch

from laennec.losses import ClusterSimilarityLoss, DeepClusteringLoss, ReconstructionLoss, WeightedSum


def with_centers(centers, **settings):
    loss = DeepClusteringLoss(*centers.shape, **settings)
    loss.centers.data = centers.clone()
    return loss


def test_golden_assignment_target_and_divergence(golden):
    case = golden("cycleguardian")["dec_soft_assignment_target_kl"]
    z = torch.tensor(case["inputs"]["z"])
    loss = with_centers(torch.tensor(case["inputs"]["cluster_centers"]), reduction="sum")
    q = loss.soft_assignment(z)
    torch.testing.assert_close(q, torch.tensor(case["expected"]["q"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.target(q), torch.tensor(case["expected"]["p"]), rtol=1e-5, atol=1e-6)
    assert q.argmax(dim=-1).tolist() == case["expected"]["cluster_ids"]
    assert loss(z)["clustering"].item() == pytest.approx(case["expected"]["kld"], rel=1e-5)
    mean = with_centers(loss.centers.data)
    assert mean(z)["clustering"].item() == pytest.approx(case["expected"]["kld"] / 10, rel=1e-5)
    assert mean.pairs == {"clustering": 10}


def naive_divergence(z, centers, alpha=1.0):
    total, clusters = 0.0, len(centers)
    for cycle in z.double():
        q = [
            [(1 + float((g - c).square().sum()) / alpha) ** (-(alpha + 1) / 2) for c in centers.double()] for g in cycle
        ]
        q = [[value / sum(row) for value in row] for row in q]
        frequency = [sum(row[k] for row in q) for k in range(clusters)]
        p = [[row[k] ** 2 / frequency[k] for k in range(clusters)] for row in q]
        p = [[value / sum(row) for value in row] for row in p]
        total += sum(p[g][k] * math.log(p[g][k] / q[g][k]) for g in range(len(q)) for k in range(clusters))
    return total


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_divergence_equals_the_loop(alpha):
    draw = torch.Generator().manual_seed(2)
    z = torch.randn(3, 4, 5, generator=draw, dtype=torch.float64)
    centers = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    found = with_centers(centers, alpha=alpha)(z)["clustering"].item()
    assert found == pytest.approx(naive_divergence(z, centers, alpha) / 12, rel=1e-6)


def test_gradcheck_with_and_without_a_constant_target():
    z = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    loss = with_centers(torch.randn(3, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda v: loss(v)["clustering"], z)
    constant = with_centers(loss.centers.data, detach_target=True)
    assert constant(z)["clustering"] == loss(z)["clustering"]
    grads = [torch.autograd.grad(one(z)["clustering"], z)[0] for one in (loss, constant)]
    assert not torch.allclose(*grads)


def naive_similarity(x, matrix):
    clusters, batch, _ = x.shape
    total = 0.0
    for i in range(clusters):
        for j in range(i + 1, clusters):
            for cycle in range(batch):
                a, b = x[i, cycle] @ matrix, x[j, cycle] @ matrix
                total += float((x[i, cycle] @ b).abs() / (a.norm() * b.norm() + 1e-10)) / batch
    return total


def test_similarity_equals_the_loop_and_the_golden_value(golden):
    case = golden("cycleguardian")["cluster_similarity_loss_random"]
    vectors, matrix = torch.tensor(case["inputs"]["vectors"]), torch.tensor(case["inputs"]["similarity_matrix"])
    loss = ClusterSimilarityLoss(4)
    assert torch.equal(loss.matrix.data, torch.eye(4))
    loss.matrix.data = matrix
    found = loss(vectors)["cluster_similarity"].item()
    assert found == pytest.approx(case["expected"]["loss"], rel=1e-5)
    assert found == pytest.approx(naive_similarity(vectors.double(), matrix.double()), rel=1e-5)
    assert loss.pairs == {"cluster_similarity": 6 * 3}


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 3, 4),
        torch.ones(2, 3, 4),
        torch.randn(2, 3, 4) * 1e-12,
        torch.randn(2, 3, 4) * 1e6,
        torch.randn(1, 1, 4),
        torch.randn(0, 3, 4),
        torch.randn(2, 0, 4),
    ],
)
def test_any_batch_gives_finite_values_and_gradients(x):
    for loss in (DeepClusteringLoss(5, 4), ClusterSimilarityLoss(4)):
        leaf = x.clone().requires_grad_()
        (value,) = loss(leaf).values()
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(leaf.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in loss.parameters())
        if 0 in x.shape:
            assert value.item() == 0
        assert torch.equal(*(next(iter(loss(v).values())) for v in (x.bfloat16(), x.bfloat16().float())))


def test_golden_total_is_a_weighted_sum(golden):
    given = golden("cycleguardian")["cycleguardian_total"]["inputs"]

    class Given(torch.nn.Module):
        def forward(self, value):
            return {"value": torch.tensor(value)}

    weights = {"clu": given["p_cluster"], "contra": given["p_contra"], "fus": given["p_cos_sim"]}
    names = ["class_ce", "clu_ori", "clu_mix", "fus_ori", "fus_mix", "contra"]
    chosen = {name: weights.get(name.split("_")[0], 1.0) for name in names}
    objective = WeightedSum({name: Given() for name in names}, chosen)
    total = sum(objective({name: (given[name],) for name in names}).values())
    assert total.item() == pytest.approx(7.89)


def test_misuse_is_named():
    for make, message in [
        (lambda: DeepClusteringLoss(0, 4), "must be positive"),
        (lambda: DeepClusteringLoss(3, 4, reduction="max"), "reduction"),
        (lambda: DeepClusteringLoss(3, 4)(torch.ones(2, 4)), "embeddings must be"),
        (lambda: ClusterSimilarityLoss(4)(torch.ones(2, 4)), "embeddings must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_masked_groups_count_nowhere():
    draw = torch.Generator().manual_seed(3)
    z, counts = torch.randn(3, 5, 4, generator=draw), [5, 2, 3]
    mask = torch.arange(5) < torch.tensor(counts)[:, None]
    for reduction in ("sum", "mean"):
        loss = DeepClusteringLoss(3, 4, reduction=reduction)
        poisoned = z.masked_fill(~mask[..., None], 1e3).requires_grad_()
        value = loss(poisoned, mask)["clustering"]
        alone = [loss(z[i : i + 1, :n])["clustering"] for i, n in enumerate(counts)]
        share = [1.0] * 3 if reduction == "sum" else [n / 10 for n in counts]
        torch.testing.assert_close(value, sum(a * s for a, s in zip(alone, share, strict=True)))
        assert loss(poisoned, mask) and loss.pairs == {"clustering": 10}
        value.backward()
        assert (poisoned.grad[~mask] == 0).all() and (poisoned.grad[mask] != 0).any()
    with pytest.raises(ValueError, match="does not fit groups"):
        loss(z, mask[:, :4])


def test_reconstruction_is_the_mean_square_over_real_groups():
    draw = torch.Generator().manual_seed(4)
    decoded, groups = (torch.randn(2, 3, 4, generator=draw, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    loss = ReconstructionLoss()
    value = loss(decoded, groups, mask)["reconstruction"]
    squares = [(decoded[i, g, k] - groups[i, g, k]).item() ** 2 for i, g in mask.nonzero().tolist() for k in range(4)]
    assert value.item() == pytest.approx(sum(squares) / len(squares), rel=1e-5) and loss.pairs == {"reconstruction": 4}
    value.backward()
    assert groups.grad is None and (decoded.grad[1, 1:] == 0).all() and decoded.grad[0].abs().min() > 0
    empty = loss(decoded[:0], groups[:0])["reconstruction"]
    empty.backward()
    assert empty.item() == 0
    with pytest.raises(ValueError, match="must match"):
        loss(decoded, groups[:, :2])


def test_weights_can_be_drawn_again():
    loss, similarity = DeepClusteringLoss(3, 4), ClusterSimilarityLoss(4)
    before = loss.centers.detach().clone()
    similarity.matrix.data.zero_()
    for module in (loss, similarity):
        module.reset_parameters()
    assert not torch.equal(loss.centers, before) and torch.equal(similarity.matrix.data, torch.eye(4))
