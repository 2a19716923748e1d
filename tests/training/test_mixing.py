"""Mixed batches: sounds, features and labels."""

import functools
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from laennec.audio.mixing import lungmix_label
from laennec.encoders import load_encoder, wrapped
from laennec.errors import InputError
from laennec.training.data.mixing import Mixer, check_mixing
from laennec.training.objectives.objective import soft_cross_entropy
from laennec.training.recipe import MixSettings, Recipe

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CONTEXT = {"epochs": torch.zeros(4).long(), "cycle_numbers": torch.arange(4)}
FLAGS = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])


def test_mixup_of_waveforms_mixes_sound_length_and_labels_alike():
    sounds, lengths = torch.randn(4, 10), torch.tensor([10, 3, 7, 5])
    mixed, long, mixture = Mixer(MixSettings(beta=10), 0, 2).waveforms(sounds, lengths, FLAGS, CONTEXT)
    assert 0 < mixture.lam < 1 and sorted(mixture.index.tolist()) == [0, 1, 2, 3]
    for row, partner in enumerate(mixture.index):
        torch.testing.assert_close(mixed[row], mixture.lam * sounds[row] + (1 - mixture.lam) * sounds[partner])
        torch.testing.assert_close(mixture.labels[row], mixture.lam * FLAGS[row] + (1 - mixture.lam) * FLAGS[partner])
        assert long[row] == max(lengths[row], lengths[partner])
    assert torch.equal(mixture.clean_labels, FLAGS)


@pytest.mark.parametrize("domain", ["waveform", "features"])
def test_mixup_of_each_cycle_draws_a_share_and_a_second_cycle_for_each_and_leaves_the_others_alone(domain):
    sounds, lengths = torch.randn(64, 10, 1), torch.arange(64) % 7 + 3
    mask, labels = (torch.arange(10) < lengths[:, None]).long(), torch.rand(64, 2).round()
    context = {"epochs": torch.zeros(64).long(), "cycle_numbers": torch.arange(64)}
    mixer = Mixer(MixSettings(beta=10, probability=0.5, each="cycle", domain=domain), 0, 2)
    if domain == "waveform":
        mixed, long, mixture = mixer.waveforms(sounds[..., 0], lengths, labels, context)
        mixed = mixed[..., None]
    else:
        mixed, seen, mixture = mixer.features(sounds, mask, labels, context)
        long = seen.sum(1)
    share = mixture.lam
    assert share.shape == (64,) and 16 < int((share < 1).sum()) < 48 and len(share[share < 1].unique()) > 16
    assert len(mixture.index.unique()) < 64  # partners are drawn independently, so some cycles are drawn twice
    partner = mixture.index
    torch.testing.assert_close(mixed, share[:, None, None] * sounds + (1 - share)[:, None, None] * sounds[partner])
    torch.testing.assert_close(mixture.labels, share[:, None] * labels + (1 - share)[:, None] * labels[partner])
    assert torch.equal(long, torch.where(share < 1, torch.maximum(lengths, lengths[partner]), lengths))


@pytest.mark.parametrize("whole_columns", [False, True])
def test_patch_mix_takes_whole_patches_of_the_other_cycle_and_returns_the_realised_share(whole_columns):
    settings = MixSettings(method="patch_mix", beta=1.0, patch=[3, 4], whole_columns=whole_columns)
    features = torch.arange(4.0)[:, None, None].expand(4, 10, 8).contiguous()  # each cycle filled with its number
    mask = torch.ones(4, 10)
    mixed, _, mixture = Mixer(settings, 1, 2).features(features, mask, FLAGS, CONTEXT)
    moved = mixture.index != torch.arange(4)
    assert moved.any()
    row = int(moved.nonzero()[0])
    taken = mixed[row] != features[row]
    assert torch.equal(mixed[row][taken], features[mixture.index[row]][taken])
    corners = taken[::3, ::4]  # 4 x 2 patches, the last of 1 frame
    assert torch.equal(taken, corners.repeat_interleave(3, 0)[:10].repeat_interleave(4, 1))
    assert mixture.lam == pytest.approx(1 - corners.float().mean().item())
    assert not whole_columns or torch.equal(corners[:, 0], corners[:, 1])


def test_a_contrast_keeps_clean_rows_in_front():
    mixer = Mixer(MixSettings(method="patch_mix", beta=1.0, patch=[2, 2]), 0, 2, contrast=True)
    features = torch.randn(4, 6, 4)
    both, mask, _ = mixer.features(features, torch.ones(4, 6), FLAGS, CONTEXT)
    assert both.shape == (8, 6, 4) and mask.shape == (8, 6) and torch.equal(both[:4], features)


def test_patch_mix_refuses_cycles_of_different_lengths():
    mask = torch.ones(4, 6)
    mask[1, 4:] = 0
    with pytest.raises(InputError, match="cycles of one length"):
        Mixer(MixSettings(method="patch_mix"), 0, 2).features(torch.randn(4, 6, 4), mask, FLAGS, CONTEXT)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 3, 0.5])])
def test_soft_cross_entropy_is_that_of_patch_mix_and_for_hard_rows_the_ordinary_one(weight):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels, index, lam = torch.tensor([0, 1, 2, 1, 0, 0]), torch.tensor([3, 0, 1, 2, 5, 4]), 0.3
    hard = functional.one_hot(labels).float()
    torch.testing.assert_close(
        soft_cross_entropy(logits, hard, weight), functional.cross_entropy(logits, labels, weight)
    )
    mixed = soft_cross_entropy(logits, lam * hard + (1 - lam) * hard[index], weight)
    own, other = (functional.cross_entropy(logits, rows, weight) for rows in (labels, labels[index]))
    torch.testing.assert_close(mixed, lam * own + (1 - lam) * other)


def test_cross_entropy_of_mixed_cycles_is_that_of_the_authors():
    cases = json.loads((GOLDEN / "losses" / "patchmix_groupmix.json").read_text())["cases"]
    given = next(case for case in cases if case["id"] == "patchmix_ce")
    logits, own, other = (torch.tensor(given["inputs"][name]) for name in ("pred", "y_a", "y_b"))
    lam, classes = given["inputs"]["lam"], logits.shape[1]
    rows = lam * functional.one_hot(own, classes) + (1 - lam) * functional.one_hot(other, classes)
    assert soft_cross_entropy(logits, rows).item() == pytest.approx(given["expected"]["loss"], rel=1e-5)


def test_every_mixing_method_has_a_default_domain():
    domains = {method: MixSettings(method=method).domain for method in ("mixup", "patch_mix", "group_mix")}
    assert domains == {"mixup": "waveform", "patch_mix": "features", "group_mix": "features"}


def shuffled(values, order):
    return {key: value[order] for key, value in values.items()}


METHODS = {
    "mixup of waveforms": MixSettings(method="mixup"),
    "mixup of features": MixSettings(method="mixup", domain="features"),
    "mixup of each cycle": MixSettings(method="mixup", each="cycle"),
    "patch_mix": MixSettings(method="patch_mix", beta=1.0, patch=[3, 4]),
    "patch_mix of columns": MixSettings(method="patch_mix", beta=1.0, patch=[3, 4], whole_columns=True),
    "group_mix": MixSettings(method="group_mix", beta=1.0, group_frames=3),
    "patch_mix of tokens": MixSettings(method="patch_mix", domain="tokens", beta=1.0),
    "patch_mix of token columns": MixSettings(method="patch_mix", domain="tokens", beta=1.0, whole_columns=True),
    "group_mix of tokens": MixSettings(method="group_mix", domain="tokens", beta=1.0),
}


@functools.cache
def tiny_ast():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return load_encoder(None, type="ast", layer_norm_eps=1e-6, num_mel_bins=36, max_length=64, **sizes)


def mixed_by(settings, features, context, labels=FLAGS, seed=0, names=("crackle", "wheeze")):
    """Each mixed cycle with its label, share and partner, for any mixing method."""
    mixer = Mixer(settings, seed, len(names), names=names, multi_label=labels.is_floating_point())
    mask = torch.ones(features.shape[:2])
    if settings.domain == "waveform":
        values, _, mixture = mixer.waveforms(features[:, :, 0], mask.sum(1).long(), labels, context)
    elif settings.domain == "tokens":
        _, _, token_mix, mixture = mixer.tokens(features, mask, labels, context, tiny_ast())
        values = token_mix.taken.float()
    else:
        values, _, mixture = mixer.features(features, mask, labels, context)
    return values, mixture


@pytest.mark.parametrize("name", METHODS)
def test_a_mixture_depends_on_which_cycles_share_the_batch_and_not_on_their_order(name):
    features = torch.randn(4, 40, 36, generator=torch.Generator().manual_seed(0))
    tiny_ast()
    state, order = torch.get_rng_state(), torch.tensor([2, 0, 3, 1])
    for epoch in range(5):
        context = {"epochs": torch.full((4,), epoch), "cycle_numbers": torch.tensor([7, 3, 9, 2**60])}
        values, mixture = mixed_by(METHODS[name], features, context)
        again, other = mixed_by(METHODS[name], features[order], shuffled(context, order), FLAGS[order])
        share = mixture.lam[order] if isinstance(mixture.lam, torch.Tensor) else mixture.lam
        assert torch.equal(again, values[order]) and torch.equal(torch.as_tensor(other.lam), torch.as_tensor(share))
        assert torch.equal(context["cycle_numbers"][order][other.index], context["cycle_numbers"][mixture.index][order])
        assert torch.equal(other.labels, mixture.labels[order])
    draws = [mixed_by(METHODS[name], features, context, seed=seed)[1] for seed in range(3)]
    assert len({(str(draw.lam), tuple(draw.index.tolist())) for draw in draws}) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_group_mix_exchanges_whole_groups_of_frames():
    features = torch.arange(4.0)[:, None, None].expand(4, 11, 5).contiguous()
    for seed in range(10):
        mixed, mixture = mixed_by(METHODS["group_mix"], features, CONTEXT, seed=seed)
        for row, partner in enumerate(mixture.index.tolist()):
            kept = 0
            for group in range(4):  # of 3 frames, the last of 2
                block = mixed[row, 3 * group : 3 * group + 3]
                assert block.unique().numel() == 1 and float(block[0, 0]) in (row, partner)
                kept += float(block[0, 0]) == row
            if partner != row:
                assert mixture.lam == pytest.approx(kept / 4)


@pytest.mark.parametrize("columns", [False, True])
def test_tokens_are_drawn_on_the_grid_of_the_encoder_with_their_realised_share(columns):
    settings = METHODS["patch_mix of token columns" if columns else "patch_mix of tokens"]
    shares = set()
    for seed in range(20):
        taken, mixture = mixed_by(settings, torch.zeros(4, 64, 36), CONTEXT, seed=seed)
        assert taken.shape == (4, 3, 5)  # (36 - 16) // 10 + 1 bands, (64 - 16) // 10 + 1 steps
        assert (taken == taken[0]).all() and mixture.lam == pytest.approx(1 - taken[0].mean().item())
        if columns:
            assert (taken[0] == taken[0, 0]).all()
        rows = [mixture.lam * FLAGS[i] + (1 - mixture.lam) * FLAGS[j] for i, j in enumerate(mixture.index)]
        torch.testing.assert_close(mixture.labels, torch.stack(rows))
        shares.add(round(mixture.lam, 3))
    assert len(shares) > 3
    groups, _ = mixed_by(METHODS["group_mix of tokens"], torch.zeros(4, 64, 36), CONTEXT)
    assert (groups == groups[:, :1]).all()


def test_cycles_of_different_lengths_exchange_real_tokens_only_and_count_their_own():
    encoder = wrapped(load_encoder(None, type="cnn", channels=[4, 6], num_mel_bins=8), 20, 15)
    lengths = torch.tensor([95, 50, 20, 7])  # 6, 3, 1, 1 groups
    mask = (torch.arange(95) < lengths[:, None]).long()
    groups = [6, 3, 1, 1]
    mixer = Mixer(METHODS["group_mix of tokens"], 5, 2)
    features, same, token_mix, mixture = mixer.tokens(torch.zeros(4, 95, 8), mask, FLAGS, CONTEXT, encoder)
    assert features.shape == (4, 95, 8) and torch.equal(same, mask)
    for row, partner in enumerate(mixture.index.tolist()):
        taken = token_mix.taken[row, 0].nonzero().flatten().tolist()
        assert all(place < min(groups[row], groups[partner]) for place in taken)
        lam = 1 - len(taken) / groups[row]
        assert mixture.lam[row].item() == pytest.approx(lam)
        torch.testing.assert_close(mixture.labels[row], lam * FLAGS[row] + (1 - lam) * FLAGS[partner])
    assert token_mix.taken.any()


def test_a_contrast_of_tokens_encodes_clean_rows_and_leaves_them_alone():
    mixer = Mixer(METHODS["patch_mix of tokens"], 1, 2, contrast=True)
    both, mask, token_mix, mixture = mixer.tokens(torch.randn(4, 64, 36), torch.ones(4, 64), FLAGS, CONTEXT, tiny_ast())
    assert both.shape[0] == mask.shape[0] == 8 and torch.equal(both[:4], both[4:])
    assert not token_mix.taken[:4].any() and token_mix.taken[4:].any()
    assert torch.equal(token_mix.source[4:], 4 + mixture.index)


CLASSES = ["normal", "crackle", "wheeze", "both"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("multi_label", [True, False])
def test_the_lungmix_rule_labels_mixtures(name, multi_label):
    settings = MixSettings(**(vars(METHODS[name]) | {"labels": "lungmix"}))
    names = ["crackle", "wheeze"] if multi_label else CLASSES
    labels = FLAGS if multi_label else torch.arange(4)
    rows = {"normal": [0, 0], "crackle": [1, 0], "wheeze": [0, 1], "both": [1, 1]}
    for seed in range(6):
        _, mixture = mixed_by(settings, torch.zeros(4, 64, 36), CONTEXT, labels, seed, names)
        for row, partner in enumerate(mixture.index.tolist()):
            heard = {1: CLASSES[row], 0: CLASSES[partner]}.get(mixture.lam)
            heard = heard or lungmix_label(CLASSES[row], CLASSES[partner])
            assert mixture.labels[row].tolist() == (rows[heard] if multi_label else [c == heard for c in CLASSES])


def test_a_mixture_with_share_zero_or_one_is_one_cycle():
    mixer = Mixer(MixSettings(labels="lungmix"), 0, 2, names=["crackle", "wheeze"])
    index = torch.tensor([1, 2, 3, 0])
    lam = torch.tensor([1.0, 0.0, 0.5, 0.25])
    assert mixer._mixture(lam, index, FLAGS).labels.tolist() == [[0, 0], [0, 1], [1, 1], [1, 1]]


def test_the_lungmix_rule_refuses_classes_it_does_not_know():
    with pytest.raises(InputError, match=r"augment.mix.labels: lungmix: COPD and Asthma have no combined class"):
        Mixer(MixSettings(labels="lungmix"), 0, 2, names=["COPD", "Asthma"], multi_label=False)


@pytest.mark.parametrize(
    ("encoder", "mix", "message"),
    [
        ({"type": "mobilenet"}, {"method": "patch_mix", "domain": "tokens"}, "mobilenet encoders have no patch tokens"),
        ({"type": "cnn"}, {"method": "group_mix", "domain": "tokens"}, "tokens with encoder.group_frames"),
        ({"type": "ast"}, {"method": "patch_mix", "domain": "tokens"}, None),
        ({"type": "cnn", "group_frames": 20}, {"method": "group_mix", "domain": "tokens"}, None),
        ({"type": "cnn"}, {"method": "patch_mix"}, None),
    ],
)
def test_mixing_tokens_needs_an_encoder_that_has_them(encoder, mix, message):
    recipe = Recipe(**{"encoder": encoder, "augment": {"mix": mix}})
    if message is None:
        return check_mixing(recipe)
    with pytest.raises(InputError, match=message):
        check_mixing(recipe)
