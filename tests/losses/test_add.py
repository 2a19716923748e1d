"""ADD against double loops, the authors' numbers and batches without pairs."""

import math

import pytest
import torch

from laennec.losses import AngularDistanceDistributionLoss, blocks

NAMES = ["add_mu_pos", "add_sigma_pos", "add_mu_neg", "add_sigma_neg"]
VARIANT = {"add_current": "released", "add_old": "legacy", "add_paper": "paper"}


def spread(values):
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def mean_of(values):
    return sum(values) / len(values) if values else 0.0


def cosine(a, b):
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


def naive(embeddings, labels, variant):
    """The definitions, one ordered pair at a time."""
    batch = len(embeddings)
    pairs = [(i, j) for i in range(batch) for j in range(batch) if i != j]
    distance = {(i, j): 1 - cosine(embeddings[i], embeddings[j]) for i, j in pairs}
    if labels.ndim == 2 and variant == "paper":
        gap = {(i, j): 1 - cosine(labels[i], labels[j]) for i, j in pairs}
        identical = [distance[p] ** 2 for p in pairs if gap[p] < 1e-3]
        return {"add_mu": mean_of([(gap[p] - distance[p]) ** 2 for p in pairs]), "add_sigma_pos": spread(identical)}
    if variant == "released":
        total = sum(((labels[i] != labels[j]).item() - distance[i, j]) ** 2 for i, j in pairs)
        return {"add_mu": total / batch**2}
    pos = [distance[p] for p in pairs if labels[p[0]] == labels[p[1]]]
    neg = [distance[p] for p in pairs if labels[p[0]] != labels[p[1]]]
    if variant == "legacy":
        values = [mean_of(pos) ** 2, spread(pos), (1 - mean_of(neg)) ** 2 if neg else 0.0, spread(neg)]
    else:
        pos, neg = [d**2 for d in pos], [(1 - d) ** 2 for d in neg]
        values = [mean_of(pos), spread(pos), mean_of(neg), spread(neg)]
    return dict(zip(NAMES, values, strict=True))


def batch_of(size, dim, classes, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=draw, dtype=dtype), torch.randint(classes, (size,), generator=draw)


def test_a_large_batch_in_blocks_equals_the_full_matrix(monkeypatch):
    for size, classes, seed in [(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 3, 1), (14, 4, 3)]:
        embeddings, labels = batch_of(size, 5, classes, seed)
        found = []
        for largest in (1024, 3):
            monkeypatch.setattr(blocks, "LARGEST_MATRIX", largest)
            x = embeddings.clone().requires_grad_()
            loss = AngularDistanceDistributionLoss(weights=(1.0, 0.5, 2.0, 0.7))
            terms = loss(x, labels)
            sum(terms.values()).backward()
            found.append((torch.stack(list(terms.values())), x.grad, loss.pairs))
        torch.testing.assert_close(found[0][:2], found[1][:2], rtol=1e-10, atol=1e-12)
        assert found[0][2] == found[1][2]


def test_a_batch_above_1024_rows_is_computed_in_blocks(monkeypatch):
    sizes, plain = [], blocks.by_row_blocks
    monkeypatch.setattr(blocks, "by_row_blocks", lambda f, *shape: sizes.append(shape) or plain(f, *shape))
    for size in (1024, 1025):
        AngularDistanceDistributionLoss()(*batch_of(size, 2, 2, 0, torch.float32))
    assert sizes == [(1025, 1025)]


def test_the_released_form_of_one_row_counts_one_pair():
    # the row with itself: an angle that a row of zeros does not have is a distance of 1 from its own label's 0
    found = AngularDistanceDistributionLoss(variant="released")(torch.zeros(1, 3), torch.tensor([0]))
    assert found["add_mu"].item() == 1.0


def test_soft_labels_equal_the_double_loop():
    embeddings, hard = batch_of(10, 4, 3, 5)
    soft = torch.nn.functional.one_hot(hard, 3).double() * 0.7 + 0.3 * torch.nn.functional.one_hot(hard.flip(0), 3)
    loss = AngularDistanceDistributionLoss(weights=(2.0, 3.0, 9.0, 9.0))
    expected = naive(embeddings, soft, "paper")
    found = loss(embeddings, soft)
    assert found["add_mu"].item() == pytest.approx(2 * expected["add_mu"], rel=1e-10)
    assert found["add_sigma_pos"].item() == pytest.approx(3 * expected["add_sigma_pos"], rel=1e-10)
    assert loss.pairs["add_mu"] == 90
    assert 0 < loss.pairs["add_sigma_pos"] < 90


def test_neither_crackle_nor_wheeze_is_a_class_of_its_own():
    embeddings, _ = batch_of(6, 4, 2, 6)
    two_bits = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
    four_classes = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 2, 2]))
    loss = AngularDistanceDistributionLoss()
    assert loss(embeddings, two_bits) == loss(embeddings, four_classes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_values_and_gradients(golden, dtype):
    for name, case in golden("add_loss").items():
        variant = next(ours for theirs, ours in VARIANT.items() if name.startswith(theirs))
        embeddings = torch.tensor(case["inputs"]["features"], dtype=dtype, requires_grad=True)
        loss = AngularDistanceDistributionLoss(variant=variant)
        terms = loss(embeddings, torch.tensor(case["inputs"]["labels"]))
        total = sum(terms.values())
        total.backward()
        expected = case["expected"]
        if "grad_features" in expected:
            torch.testing.assert_close(
                embeddings.grad, torch.tensor(expected["grad_features"], dtype=dtype), rtol=1e-5, atol=1e-6
            )
        value = expected.get("loss", expected.get("L_ADD", expected.get("L_soft")))
        if value == "nan":  # the reference's defect: the absent terms are zero here, the rest is as it was
            assert torch.isfinite(total)
            assert terms["add_mu_pos"] == terms["add_sigma_pos"] == 0
        else:
            assert total.item() == pytest.approx(value, rel=1e-5 if dtype == torch.float32 else 1e-6)
        for theirs, ours in [("mu_p", NAMES[0]), ("sigma_p", NAMES[1]), ("mu_n", NAMES[2]), ("sigma_n", NAMES[3])]:
            if theirs in expected:
                assert terms[ours].item() == pytest.approx(expected[theirs], rel=1e-5)
        if "n_pos_ordered" in expected:
            assert loss.pairs["add_sigma_pos"] == expected["n_pos_ordered"]


def test_worked_example_and_weight_order():
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    loss = AngularDistanceDistributionLoss(weights=(1, 10, 100, 1000))
    found = loss(z, torch.tensor([0, 0, 1, 1]))
    expected = dict(zip(NAMES, [0.58, 4.84974, 50.0, 392.501], strict=True))
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, rel=1e-5)
    assert loss.pairs == {"add_mu_pos": 4, "add_sigma_pos": 4, "add_mu_neg": 8, "add_sigma_neg": 8}


def test_the_three_variants_differ_as_documented(golden):
    case = golden("add_loss")["add_current_int_labels"]
    z, labels = torch.tensor(case["inputs"]["features"]), torch.tensor(case["inputs"]["labels"])
    totals = [
        sum(AngularDistanceDistributionLoss(variant=variant)(z, labels).values()).item()
        for variant in ("released", "legacy", "paper")
    ]
    assert totals == pytest.approx([0.2071, 1.1620, 1.3087], abs=5e-5)


def test_the_spread_of_one_couple_is_zero_without_gradient():
    x, _ = batch_of(2, 3, 1, 11)
    x.requires_grad_()
    loss = AngularDistanceDistributionLoss()
    sigma = loss(x, torch.tensor([4, 4]))["add_sigma_pos"]
    sigma.backward()
    assert sigma.item() == 0
    assert x.grad.abs().max() == 0
    assert loss.pairs["add_sigma_pos"] == 2


def test_a_narrow_spread_survives_float32():
    """Negatives at nearly one distance: the naive E[x^2] - E[x]^2 loses the spread altogether."""
    draw = torch.Generator().manual_seed(0)
    base = torch.zeros(40, 42, dtype=torch.float64)
    base[:, 0] = 3.0
    base[torch.arange(40), torch.arange(40) + 1] = 1 + 1e-3 * torch.rand(40, generator=draw, dtype=torch.float64)
    labels = torch.arange(40)
    loss = AngularDistanceDistributionLoss()
    exact = loss(base, labels)["add_sigma_neg"].item()
    assert exact < 1e-3
    assert loss(base.float(), labels)["add_sigma_neg"].item() == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("variant", ["released", "legacy"])
def test_the_released_classes_average_over_tokens(variant):
    draw = torch.Generator().manual_seed(1)
    tokens, labels = torch.randn(6, 3, 4, generator=draw, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = AngularDistanceDistributionLoss(variant=variant)
    assert loss(tokens, labels) == loss(tokens.mean(dim=1), labels)


def test_soft_takes_hard_labels_too_and_equals_paper_on_their_one_hot_rows():
    generator = torch.Generator().manual_seed(3)
    embeddings = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 0])
    soft = AngularDistanceDistributionLoss(variant="soft")(embeddings, labels)
    rows = torch.nn.functional.one_hot(labels, 4).double()
    paper = AngularDistanceDistributionLoss()(embeddings, rows)
    assert set(soft) == {"add_mu", "add_sigma_pos"}
    assert all(torch.allclose(soft[name], paper[name]) for name in soft)
