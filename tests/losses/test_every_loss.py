"""Every loss against the same demands, so that none is left out: one row a loss, one test a demand.

A loss is called with embeddings (batch, 2, dim) and labels (batch,); losses of one view take the first.
"""

import importlib
import inspect
import math
from dataclasses import dataclass, field

import pytest
import test_add
import test_clustering
import test_focal
import test_opl
import test_patch_mix
import test_patient
import test_supcon
import test_tuplet
import torch

import laennec.losses
from laennec.losses import (
    AUXILIARY_LOSSES,
    AngularDistanceDistributionLoss,
    ClusterSimilarityLoss,
    DeepClusteringLoss,
    DeviceAdversarialLoss,
    FocalLoss,
    GradientReversal,
    Loss,
    NTXentLoss,
    OrthogonalProjectionLoss,
    PatchMixContrastiveLoss,
    PatientAlignmentLoss,
    SupConLoss,
    TupletContrastiveLoss,
    WeightedSum,
    WeightSchedule,
    draw_negatives,
)

DIM, CLASSES, LAM, T = 6, 4, 0.3, 0.2


def rows_of(y):
    """Soft labels: mostly the own class, some of the next one."""
    hard = torch.nn.functional.one_hot(y % CLASSES, CLASSES).double()
    return 0.75 * hard + 0.25 * hard.roll(1, dims=1)


def mixed_rows(order):
    """The row that each row is mixed with: three places on, in the order before any permutation."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return place[(order + 3) % len(order)]


def naive_tuplet(x, y):
    negatives, mask = negatives_of(x, y)
    return test_tuplet.naive(x[:, 0], x[:, 1], negatives, T, mask)


def negatives_of(x, y):
    return x[:, 0][None].expand(len(x), -1, -1), y[:, None] != y[None, :]


def weighted_ce(logits, labels, weight=(1.0,) * CLASSES):
    """Mean over rows, one row at a time."""
    rows = [
        (weight[int(y)], -math.log(float(row.double().softmax(0)[y]))) for row, y in zip(logits, labels, strict=True)
    ]
    return sum(w * v for w, v in rows) / sum(w for w, _ in rows)


@dataclass
class Case:
    """One loss: how it is made and called, and what a loop says."""

    make: object
    call: object  # (loss, x, y, order) -> terms
    naive: object  # (loss, x, y, order) -> sum of the terms
    learns: tuple = (0, 1)  # which of the two views have an ordinary gradient; () where it is tested elsewhere
    constant: dict = field(default_factory=dict)  # value of a term without pairs, where its formula gives one


def add(variant):
    return Case(
        lambda: AngularDistanceDistributionLoss(variant=variant),
        lambda loss, x, y, order: loss(x[:, 0], y),
        lambda loss, x, y, order: sum(test_add.naive(x[:, 0], y, variant).values()),
    )


CASES = {
    "add paper": add("paper"),
    "add released": add("released"),
    "add legacy": add("legacy"),
    "add paper, soft labels": Case(
        AngularDistanceDistributionLoss,
        lambda loss, x, y, order: loss(x[:, 0], rows_of(y)),
        lambda loss, x, y, order: sum(test_add.naive(x[:, 0], rows_of(y), "paper").values()),
    ),
    "tuplet": Case(
        lambda: TupletContrastiveLoss(T),
        lambda loss, x, y, order: loss(x[:, 0], x[:, 1], *negatives_of(x, y)),
        lambda loss, x, y, order: naive_tuplet(x, y),
    ),
    "supcon": Case(
        lambda: SupConLoss(T),
        lambda loss, x, y, order: loss(x, y),
        lambda loss, x, y, order: test_supcon.naive(x, T, y)[0],
    ),
    "supcon, one view": Case(
        lambda: SupConLoss(T),
        lambda loss, x, y, order: loss(x[:, :1], y),
        lambda loss, x, y, order: test_supcon.naive(x[:, :1], T, y)[0],
    ),
    "supcon without labels": Case(
        lambda: SupConLoss(T),
        lambda loss, x, y, order: loss(x),
        lambda loss, x, y, order: test_supcon.naive(x, T)[0],
    ),
    "ntxent": Case(
        lambda: NTXentLoss(T),
        lambda loss, x, y, order: loss(x),
        lambda loss, x, y, order: T / 0.07 * test_supcon.naive(x, T)[0],
    ),
    "ntxent, mask, first view": Case(
        lambda: NTXentLoss(T, contrast_mode="one"),
        lambda loss, x, y, order: loss(x, mask=y[:, None] == y[None, :]),
        lambda loss, x, y, order: (
            T / 0.07 * test_supcon.naive(x, T, mask=y[:, None] == y[None, :], first_view_only=True)[0]
        ),
    ),
    "opl": Case(
        OrthogonalProjectionLoss,
        lambda loss, x, y, order: loss(x[:, 0], y),
        lambda loss, x, y, order: sum(test_opl.naive(x[:, 0], y, 2.0, 0.1, "abs_each")),
        constant={"opl_pos": 0.1},
    ),
    "opl, mean": Case(
        lambda: OrthogonalProjectionLoss(variant="abs_mean"),
        lambda loss, x, y, order: loss(x[:, 0], y),
        lambda loss, x, y, order: sum(test_opl.naive(x[:, 0], y, 2.0, 0.1, "abs_mean")),
        constant={"opl_pos": 0.1},
    ),
    "focal": Case(
        FocalLoss,
        lambda loss, x, y, order: loss(x[:, 0], y),
        lambda loss, x, y, order: test_focal.naive(x[:, 0], y, 2.0, None),
        learns=(),
    ),
    "focal, textbook": Case(
        lambda: FocalLoss(1.5, [0.1] * DIM, detach_factor=False),
        lambda loss, x, y, order: loss(x[:, 0], y),
        lambda loss, x, y, order: test_focal.naive(x[:, 0], y, 1.5, [0.1] * DIM),
    ),
    "patient": Case(
        lambda: PatientAlignmentLoss(0.5, 0.3),
        lambda loss, x, y, order: loss(x[:, 0], y),
        lambda loss, x, y, order: sum(test_patient.naive(x[:, 0], y.tolist(), 0.5, 0.3)),
    ),
    "patch_mix": Case(
        PatchMixContrastiveLoss,
        lambda loss, x, y, order: loss(x[:, 1], x[:, 0], LAM, mixed_rows(order), y),
        lambda loss, x, y, order: test_patch_mix.naive(x[:, 1], x[:, 0], LAM, mixed_rows(order), y, "all"),
        learns=(1,),
    ),
    "patch_mix, other labels": Case(
        lambda: PatchMixContrastiveLoss(negatives="different_label", detach_clean=False),
        lambda loss, x, y, order: loss(x[:, 1], x[:, 0], LAM, mixed_rows(order), y),
        lambda loss, x, y, order: test_patch_mix.naive(x[:, 1], x[:, 0], LAM, mixed_rows(order), y, "different_label"),
    ),
    "clustering": Case(
        lambda: DeepClusteringLoss(3, DIM),
        lambda loss, x, y, order: loss(x),
        lambda loss, x, y, order: test_clustering.naive_divergence(x, loss.centers.detach()) / (2 * len(x)),
    ),
    "clustering, sum": Case(
        lambda: DeepClusteringLoss(3, DIM, alpha=2.5, reduction="sum"),
        lambda loss, x, y, order: loss(x),
        lambda loss, x, y, order: test_clustering.naive_divergence(x, loss.centers.detach(), 2.5),
    ),
    "cluster_similarity": Case(
        lambda: ClusterSimilarityLoss(DIM),
        lambda loss, x, y, order: loss(x.transpose(0, 1)),
        lambda loss, x, y, order: test_clustering.naive_similarity(
            x.double().transpose(0, 1), loss.matrix.detach().double()
        ),
    ),
    "device_adversarial": Case(
        DeviceAdversarialLoss,
        lambda loss, x, y, order: loss(x[:, 0], y),
        lambda loss, x, y, order: weighted_ce(x[:, 0], y, (1,) * DIM),
    ),
    "weighted sum": Case(
        lambda: WeightedSum({"class": SupConLoss(T), "opl": OrthogonalProjectionLoss()}, {"class": 0.5}),
        lambda loss, x, y, order: loss({"class": (x, y), "opl": (x[:, 0], y)}),
        lambda loss, x, y, order: (
            0.5 * test_supcon.naive(x, T, y)[0] + sum(test_opl.naive(x[:, 0], y, 2.0, 0.1, "abs_each"))
        ),
        constant={"opl_pos": 0.1},
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("name", CASES)


def drawn(name, dtype=torch.float64, batch=9, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 2, DIM, generator=generator, dtype=torch.float64).to(dtype)
    torch.manual_seed(1)
    return CASES[name].make(), x, torch.randint(classes, (batch,), generator=generator), torch.arange(batch)


def total(case, loss, x, y, order):
    return torch.stack([term.double() for term in case.call(loss, x, y, order).values()]).sum()


@EVERY
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-5)])
def test_it_is_what_the_loops_say(name, dtype, tolerance):
    for batch, classes, seed in [(9, 4, 0), (7, 2, 1), (12, 3, 2)]:
        loss, x, y, order = drawn(name, dtype, batch, classes, seed)
        # parameters that a loss learns stay float32, so its loop reads them as they are
        found, expected = total(CASES[name], loss, x, y, order).item(), CASES[name].naive(loss, x, y, order)
        assert found == pytest.approx(float(expected), rel=tolerance, abs=1e-7)


@EVERY
def test_gradcheck(name):
    case = CASES[name]
    loss, x, y, order = drawn(name, batch=6)
    loss = loss.double()
    if not case.learns:
        return _check_unusual_gradient(name)

    def of(*views):
        both = [views[case.learns.index(v)] if v in case.learns else x[:, v].clone() for v in (0, 1)]
        return total(case, loss, torch.stack(both, dim=1), y, order)

    views = [x[:, v].clone().requires_grad_() for v in case.learns]
    assert torch.autograd.gradcheck(of, views)
    # and what is said to be constant carries none
    leaf = x.clone().requires_grad_()
    total(case, loss, leaf, y, order).backward()
    for v in {0, 1} - set(case.learns):
        assert leaf.grad[:, v].abs().max() == 0


def _check_unusual_gradient(name):
    """The focal loss, whose gradient is by definition not that of its value."""
    loss, x, y, order = drawn(name)
    x.requires_grad_()
    factor = (1 - x[:, 0].detach().softmax(1)[order, y]) ** 2
    expected = (factor * torch.nn.functional.cross_entropy(x[:, 0], y, reduction="none")).mean()
    (wanted,) = torch.autograd.grad(expected, x)
    (found,) = torch.autograd.grad(total(CASES[name], loss, x, y, order), x)
    torch.testing.assert_close(found, wanted)


@EVERY
def test_bf16_and_autocast_are_widened(name):
    case = CASES[name]
    for narrow in (torch.bfloat16, torch.float16):
        loss, x, y, order = drawn(name, narrow)
        leaf = x.clone().requires_grad_()
        found = case.call(loss, leaf, y, order)
        expected = case.call(loss, x.float(), y, order)
        assert all(torch.equal(found[term], expected[term]) for term in expected)
        assert all(value.dtype == torch.float32 for value in found.values())
        sum(found.values()).backward()
        assert leaf.grad.dtype == narrow and torch.isfinite(leaf.grad).all()
    loss, x, y, order = drawn(name, torch.float32)
    inside, outside = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrowed = case.call(loss, inside, y, order)
    sum(narrowed.values()).backward()
    plain = case.call(loss, outside, y, order)
    sum(plain.values()).backward()
    assert all(torch.equal(narrowed[term], plain[term]) for term in plain)
    torch.testing.assert_close(inside.grad, outside.grad, rtol=1e-6, atol=1e-7)


ONES = torch.ones(6, dtype=torch.long)
BATCHES = {
    "empty": (0, lambda x: x, ONES[:0]),
    "one sample": (1, lambda x: x, ONES[:1]),
    "one class": (6, lambda x: x, ONES),
    "all classes different": (6, lambda x: x, torch.arange(6)),
    "identical embeddings": (6, lambda x: x[:1, :1].expand(6, 2, DIM), torch.arange(6) // 2),
    "zero vectors": (6, torch.zeros_like, torch.arange(6) // 2),
    "one zero vector": (6, lambda x: x * (torch.arange(6) != 2)[:, None, None], torch.arange(6) // 2),
    "opposite": (6, lambda x: torch.cat([x[:3], -x[:3]]), torch.arange(6) % 3),
    "tiny": (6, lambda x: x * 1e-20, torch.arange(6) // 2),
    "huge": (6, lambda x: x * 1e20, torch.arange(6) // 2),
}


# these take embeddings as they are, and squares of huge ones are beyond float32
UNSCALED = ("patient", "clustering", "clustering, sum", "cluster_similarity")


@pytest.mark.parametrize(
    ("name", "batch"), [(n, b) for n in CASES for b in BATCHES if (b, n in UNSCALED) != ("huge", True)]
)
def test_a_degenerate_batch_is_finite_and_what_is_absent_has_no_gradient(name, batch):
    case = CASES[name]
    size, change, y = BATCHES[batch]
    loss, x, _, order = drawn(name, torch.float32, batch=size)
    x = change(x).clone()
    for temperature in [None, 0.01]:
        if temperature is not None:
            sharpened = [m for m in loss.modules() if hasattr(m, "temperature")]
            for module in sharpened:
                module.temperature = temperature
            if not sharpened:
                break
        leaf = x.clone().requires_grad_()
        terms = case.call(loss, leaf, y, order)
        assert set(loss.pairs) == set(terms)
        for term, value in terms.items():
            assert value.ndim == 0 and torch.isfinite(value), term
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            assert torch.isfinite(gradient).all(), term
            assert isinstance(loss.pairs[term], int) and loss.pairs[term] >= 0
            if not loss.pairs[term]:
                assert value.item() == pytest.approx(case.constant.get(term, 0.0)), term
                assert not gradient.any(), term
        parameters = [p for p in loss.parameters() if p.requires_grad]
        if parameters:
            for gradient in torch.autograd.grad(sum(terms.values()), parameters, allow_unused=True):
                assert gradient is None or torch.isfinite(gradient).all()


@EVERY
def test_pairs_say_what_was_there(name):
    """Counts of one batch that can be counted by hand: classes 0, 0, 1, 1, 1, 2."""
    loss, x, _, order = drawn(name, batch=6)
    CASES[name].call(loss, x, torch.tensor([0, 0, 1, 1, 1, 2]), order)
    same, different = 2 + 6, 30 - 8
    both_views = 6 * 2 + same * 4  # of each row its cycle's other view, and both views of the cycle's mates
    expected = {
        "add paper": [same, same, different, different],
        "add legacy": [same, same, different, different],
        "add released": [36],
        "add paper, soft labels": [30, same],
        "tuplet": [different],
        "supcon": [both_views],
        "supcon, one view": [same],
        "supcon without labels": [12],
        "ntxent": [12],
        "ntxent, mask, first view": [6 + 2 * same],
        "opl": [same, different],
        "opl, mean": [same, different],
        "focal": [6],
        "focal, textbook": [6],
        "patient": [3, 3],
        "patch_mix": [12],
        "patch_mix, other labels": [12],
        "clustering": [12],
        "clustering, sum": [12],
        "cluster_similarity": [6],
        "device_adversarial": [6],
        "weighted sum": [both_views, same, different],
    }
    assert list(loss.pairs.values()) == expected[name]


def classes_of_losses():
    named = [getattr(laennec.losses, name) for name in laennec.losses.__all__]
    classes = [thing for thing in named if inspect.isclass(thing) and issubclass(thing, torch.nn.Module)]
    return [kind for kind in classes if kind is not Loss]


@pytest.mark.parametrize("kind", classes_of_losses(), ids=lambda kind: kind.__name__)
def test_a_docstring_can_be_acted_on_and_cites(kind):
    text = inspect.getdoc(kind)
    first = text.split("\n\n")[0]
    assert first.endswith(".") and first.count(".") == 1, "one sentence"
    places = [text.find(f"\n{heading}: ") for heading in ("Formula", "Batch", "Returns", "Prefer", "Reference")]
    assert -1 not in places and places == sorted(places), places
    if kind is not WeightedSum:
        assert kind.citation.startswith("@") and kind.citation.count("{") == kind.citation.count("}")
        assert all(f"  {key}={{" in kind.citation for key in ("title", "author", "year"))


def test_a_class_states_its_facts():
    samplers = importlib.import_module("laennec.training.samplers")
    for name, kind in AUXILIARY_LOSSES.items():
        assert kind.labels in ("class", "cycle", "patient", "device"), name
        assert kind.views == (2 if name in ("supcon", "ntxent") else 1)
        assert kind.sampler is None or hasattr(samplers, kind.sampler)


def test_every_loss_is_in_the_table_above():
    covered = {type(case.make()) for case in CASES.values()} | {GradientReversal}
    assert covered == set(classes_of_losses())


# ---------------------------------------------------------------- labels, shares and shapes of every kind

LABELLED = ["add paper", "add released", "add legacy", "supcon", "opl", "focal", "patient"]


@pytest.mark.parametrize("name", LABELLED)
def test_labels_may_have_any_integer_type_and_be_one_column(name):
    loss, x, y, order = drawn(name, classes=2)
    plain = CASES[name].call(loss, x, y, order)
    kinds = (torch.int32, torch.uint8, torch.int16, torch.bool)
    given = [y.to(kind) for kind in kinds]
    given += [y[:, None], y[:, None].bool()]
    if name != "focal":
        given.append(y * 40 + 7)
    for labels in given:
        for term, value in CASES[name].call(loss, x, labels, order).items():
            assert torch.equal(value, plain[term]), (labels.dtype, labels.shape)


@pytest.mark.parametrize("name", ["supcon", "opl", "focal", "patient"])  # to ADD, rows are soft labels
def test_one_hot_rows_of_any_type_are_classes(name):
    loss, x, y, order = drawn(name)
    rows = torch.nn.functional.one_hot(y, DIM)
    plain = CASES[name].call(loss, x, y, order)
    for given in (rows, rows.bool(), rows.float(), rows.bfloat16()):
        for term, value in CASES[name].call(loss, x, given, order).items():
            assert torch.equal(value, plain[term]), given.dtype


@pytest.mark.parametrize("name", LABELLED)
def test_a_negative_label_is_refused_and_its_row_named(name):
    loss, x, y, order = drawn(name)
    y[3] = -1
    with pytest.raises(ValueError, match="label -1 of row 3 lies outside 0"):
        CASES[name].call(loss, x, y, order)


@pytest.mark.parametrize("name", ["focal", "device_adversarial"])
def test_a_label_beyond_the_classes_is_refused(name):
    loss, x, y, order = drawn(name)
    y[2] = 99
    with pytest.raises(ValueError, match=r"label 99 of row 2 lies outside 0 \.\. "):
        CASES[name].call(loss, x, y, order)


@pytest.mark.parametrize("variant", ["paper", "soft", "released", "legacy"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, 0.0, 0.0], "soft label row 1 is empty"),
        ([0.5, -0.5, 1.0], "soft label row 1 is negative"),
        ([math.nan, 0.0, 1.0], "soft label row 1 is not finite"),
    ],
)
def test_soft_labels_that_are_none_are_refused(variant, row, message):
    rows = torch.tensor([[0.5, 0.5, 0.0], row, [0.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        AngularDistanceDistributionLoss(variant=variant)(torch.randn(3, DIM), rows)
    with pytest.raises(ValueError, match="at least one class"):
        AngularDistanceDistributionLoss(variant=variant)(torch.randn(3, DIM), rows[:, :0])


def test_weights_of_an_ntxent_mask_weigh_positives():
    loss, x, y, _ = drawn("ntxent")
    mask = (y[:, None] == y[None, :]).double()
    plain = NTXentLoss(T)(x, mask=mask)["ntxent"]
    torch.testing.assert_close(NTXentLoss(T)(x, mask=0.25 * mask)["ntxent"], plain)
    assert not loss(x, mask=0 * mask)["ntxent"]
    for wrong in (-mask, mask * math.nan):
        with pytest.raises(ValueError, match="negative or NaN"):
            loss(x, mask=wrong)


@pytest.mark.parametrize(
    ("lam", "index", "message"),
    [
        (torch.rand(4), None, r"lam must be one number or \(9,\)"),
        (torch.rand(9, 1), None, r"lam must be one number or \(9,\)"),
        ([0.5, 0.5], None, r"lam must be one number or \(9,\)"),
        (1.5, None, r"must lie in \[0, 1\]"),
        (math.nan, None, r"must lie in \[0, 1\]"),
        (0.5, torch.arange(9) + 1, "index must lie in 0 .. 8"),
        (0.5, torch.arange(9) - 1, "index must lie in 0 .. 8"),
        (0.5, torch.arange(9) / 2, "index must be integers"),
        (0.5, torch.arange(9)[:, None], "index must be integers"),
    ],
)
def test_shares_and_indices_out_of_range_are_refused(lam, index, message):
    _, x, _, order = drawn("patch_mix")
    index = mixed_rows(order) if index is None else index
    with pytest.raises(ValueError, match=message):
        PatchMixContrastiveLoss()(x[:, 1], x[:, 0], lam, index)


def test_a_share_may_differ_from_row_to_row():
    _, x, y, order = drawn("patch_mix")
    shares = torch.linspace(0, 1, 9, dtype=torch.float64)
    index = mixed_rows(order)
    mixed = PatchMixContrastiveLoss()(x[:, 1], x[:, 0], shares, index)["patch_mix"].item()
    assert mixed == pytest.approx(test_patch_mix.naive(x[:, 1], x[:, 0], shares, index, y, "all"), rel=1e-9)


ADD, PATCH_MIX, ROWS = AngularDistanceDistributionLoss, PatchMixContrastiveLoss, torch.arange(3)
X, VIEWS, GROUPS = torch.ones(3, 2), torch.ones(3, 2, 4), torch.ones(2, 4)
NEGATIVES, LABELS = torch.ones(3, 4, 5), torch.zeros(3, dtype=torch.long)
MISUSES = [
    (lambda: ADD(variant="old"), "unknown ADD variant"),
    (lambda: ADD(weights=(1, 1)), "four weights"),
    (lambda: ADD(weights=(1, 1, 1, math.nan)), "four weights"),
    (lambda: ADD()(torch.ones(4), torch.ones(4)), "embeddings must be"),
    (lambda: ADD()(torch.ones(4, 2, 2), torch.arange(4)), "embeddings must be"),
    (lambda: ADD()(torch.ones(4, 2), torch.arange(3)), "4 embeddings"),
    (lambda: ADD()(torch.ones(4, 2), torch.ones(4)), "integer labels"),
    (lambda: DeepClusteringLoss(0, 4), "must be positive"),
    (lambda: DeepClusteringLoss(3, 4, reduction="max"), "reduction"),
    (lambda: DeepClusteringLoss(3, 4)(GROUPS), "embeddings must be"),
    (lambda: ClusterSimilarityLoss(4)(GROUPS), "embeddings must be"),
    (lambda: WeightedSum({"focal": FocalLoss()}, {"fcal": 1.0}), "name no loss"),
    (lambda: WeightedSum({}), "no loss"),
    (lambda: WeightedSum({"focal": FocalLoss()})({}), "the losses are"),
    (lambda: WeightedSum({"focal": FocalLoss()}).set_progress(1.5), "progress"),
    (lambda: WeightSchedule(1.0, warm_up=2.0), "shares of training"),
    (lambda: FocalLoss(-1.0), "gamma"),
    (lambda: FocalLoss(reduction="sum"), "reduction"),
    (lambda: FocalLoss(alpha=1.5), "no negative weight"),
    (lambda: FocalLoss(alpha=0.25)(torch.zeros(3, 4), LABELS), "alpha has weights for 2"),
    (lambda: FocalLoss()(torch.zeros(2, 2), torch.tensor([[0.7, 0.3], [1, 0]])), "soft labels"),
    (lambda: FocalLoss()(torch.zeros(2, 2), LABELS), "must share"),
    (lambda: OrthogonalProjectionLoss(variant="abs"), "unknown OPL variant"),
    (lambda: OrthogonalProjectionLoss()(X[:2], torch.tensor([[1, 1], [1, 0]])), "one class for each cycle"),
    (lambda: OrthogonalProjectionLoss()(X[:2], torch.tensor([[0, 0], [1, 0]])), "one class for each cycle"),
    (lambda: PATCH_MIX(0.0), "temperature"),
    (lambda: PATCH_MIX(negatives="some"), "negatives must be"),
    (lambda: PATCH_MIX(negatives="different_label")(X, X, 0.5, ROWS), "needs labels"),
    (lambda: PATCH_MIX()(X, torch.ones(3, 4), 0.5, ROWS), "must match"),
    (lambda: PATCH_MIX()(X, X, 0.5, ROWS[:2]), "3 embeddings"),
    (lambda: SupConLoss(0.0), "temperature must be positive"),
    (lambda: SupConLoss()(torch.ones(3, 2, 2, 2), ONES[:3]), "embeddings must be"),
    (lambda: SupConLoss()(ONES.view(3, 2), ONES[:3]), "must be floating"),
    (lambda: SupConLoss()(VIEWS, torch.arange(2)), "3 embeddings"),
    (lambda: SupConLoss()(VIEWS, torch.rand(3)), "integer labels"),
    (lambda: NTXentLoss(base_temperature=-1.0), "base_temperature must be positive"),
    (lambda: NTXentLoss(contrast_mode="two"), "contrast_mode"),
    (lambda: NTXentLoss()(VIEWS, torch.arange(3), torch.ones(3, 3)), "not from both"),
    (lambda: NTXentLoss()(VIEWS, mask=torch.ones(6, 6)), "mask must be"),
    (lambda: TupletContrastiveLoss(0.0), "temperature"),
    (lambda: TupletContrastiveLoss()(NEGATIVES[:, 0], NEGATIVES[:, 1], NEGATIVES[:2]), "must be"),
    (
        lambda: TupletContrastiveLoss()(
            NEGATIVES[:, 0], NEGATIVES[:, 1], NEGATIVES, torch.ones(3, 5, dtype=torch.bool)
        ),
        "negatives_mask",
    ),
    (lambda: draw_negatives(torch.zeros(1), torch.zeros(2), -1), "cannot be"),
]


@pytest.mark.parametrize(("make", "message"), MISUSES)
def test_misuse_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_each_loss_states_what_it_takes():
    kinds = AUXILIARY_LOSSES.items()
    assert {name for name, kind in kinds if kind.soft_labels} == {
        "add",
        "clustering",
        "cluster_similarity",
        "patch_mix",
    }
    alone = {name for name, kind in kinds if not kind.across_cycles}
    assert alone == {"clustering", "cluster_similarity", "device_adversarial"}
    assert not Loss.soft_labels and Loss.across_cycles  # an own loss that states nothing


def test_default_weights_of_pafa_are_the_published_ones():
    loss = PatientAlignmentLoss()
    assert (loss.within, loss.between) == (50.0, 5e-4)
