"""Song's loss against its formula, and the negatives it is given."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laennec.losses import TupletContrastiveLoss, draw_negatives


def naive(anchors, positives, negatives, temperature=1.0, mask=None):
    total = 0.0
    for i in range(len(anchors)):

        def similar(other, i=i):
            return math.exp(float(torch.cosine_similarity(anchors[i].double(), other.double(), dim=0)) / temperature)

        positive = similar(positives[i])
        others = sum(similar(n) for k, n in enumerate(negatives[i]) if mask is None or mask[i, k])
        total -= math.log(positive / (positive + others))
    return total / len(anchors)


def drawn(anchors, n, dim, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, generator=draw, dtype=dtype)
        for shape in [(anchors, dim), (anchors, dim), (anchors, n, dim)]
    ]


def test_golden_values_and_gradient(golden):
    cases = golden("song2021")
    for name in ["song_loss_N3", "song_loss_worked_2d"]:
        given_, expected = cases[name]["inputs"], cases[name]["expected"]
        anchor = torch.tensor([given_["anchor"]], dtype=torch.float64, requires_grad=True)
        positive = torch.tensor([given_["positive"]], dtype=torch.float64)
        negatives = torch.tensor([given_["negatives"]], dtype=torch.float64)
        value = TupletContrastiveLoss(given_["temperature"])(anchor, positive, negatives)["tuplet"]
        value.backward()
        assert value.item() == pytest.approx(expected["loss"], rel=1e-9)
        if "grad_anchor" in expected:
            assert anchor.grad[0].tolist() == pytest.approx(expected["grad_anchor"], rel=1e-6)


def test_an_anchor_without_negatives_adds_nothing():
    a, p, n = (t.requires_grad_() for t in drawn(2, 3, 4, 8))
    mask = torch.tensor([[False] * 3, [True] * 3])
    loss = TupletContrastiveLoss()
    value = loss(a, p, n, mask)["tuplet"]
    value.backward()
    assert a.grad[0].abs().max() == p.grad[0].abs().max() == n.grad[0].abs().max() == 0
    assert value.item() == pytest.approx(loss(a[1:], p[1:], n[1:])["tuplet"].item() / 2)
    for nothing in [(a[:0], p[:0], n[:0]), (a, p, n[:, :0])]:
        assert loss(*nothing)["tuplet"].item() == 0
        assert loss.pairs == {"tuplet": 0}
        loss(*nothing)["tuplet"].backward()


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=24),
    n=st.integers(0, 30),
    seed=st.integers(0, 2**31),
    anchors=st.integers(1, 24),
)
def test_negatives_are_other_classes_drawn_without_replacement(labels, n, seed, anchors):
    everyone = torch.tensor(labels)
    own = everyone[: min(anchors, len(everyone))]
    indices, mask = draw_negatives(own, everyone, n, torch.Generator().manual_seed(seed))
    assert indices.shape == mask.shape == (len(own), n)
    assert indices.dtype == torch.int64
    for label, row, there in zip(own, indices, mask, strict=True):
        chosen = row[there].tolist()
        assert len(chosen) == min(n, int((everyone != label).sum()))
        assert len(set(chosen)) == len(chosen)
        assert all(everyone[index] != label for index in chosen)
    again, _ = draw_negatives(own, everyone, n, torch.Generator().manual_seed(seed))
    assert torch.equal(indices, again)


def test_every_candidate_is_drawn_about_equally_often():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    generator = torch.Generator().manual_seed(3)
    counts = torch.zeros(6)
    for _ in range(2000):
        indices, _mask = draw_negatives(labels[:1], labels, 2, generator)
        counts[indices[0]] += 1
    assert counts[:2].tolist() == [0, 0]
    assert counts[2:].tolist() == pytest.approx([1000] * 4, abs=120)
