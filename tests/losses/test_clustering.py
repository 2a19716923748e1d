"""Deep clustering losses against their formulas and the authors' numbers."""

import math

import pytest
import torch

from laennec.losses import ClusterSimilarityLoss, DeepClusteringLoss


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
    assert loss(vectors[:1])["cluster_similarity"].item() == 0 and loss.pairs == {"cluster_similarity": 0}


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


def test_weights_can_be_drawn_again():
    loss, similarity = DeepClusteringLoss(3, 4), ClusterSimilarityLoss(4)
    before = loss.centers.detach().clone()
    similarity.matrix.data.zero_()
    for module in (loss, similarity):
        module.reset_parameters()
    assert not torch.equal(loss.centers, before) and torch.equal(similarity.matrix.data, torch.eye(4))
