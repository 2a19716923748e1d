"""Mixed batches: what becomes of sounds, features and labels."""

import pytest
import torch
from torch.nn import functional

from laennec.losses import PatchMixCrossEntropy
from laennec.training.config import ConfigError, MixSettings
from laennec.training.mixtures import Mixer
from laennec.training.objective import soft_cross_entropy

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


@pytest.mark.parametrize("whole_columns", [False, True])
def test_patch_mix_takes_whole_patches_of_the_partner_and_returns_the_realised_share(whole_columns):
    settings = MixSettings("patch_mix", beta=1.0, patch=[3, 4], whole_columns=whole_columns)
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
    mixer = Mixer(MixSettings("patch_mix", beta=1.0, patch=[2, 2]), 0, 2, contrast=True)
    features = torch.randn(4, 6, 4)
    both, mask, _ = mixer.features(features, torch.ones(4, 6), FLAGS, CONTEXT)
    assert both.shape == (8, 6, 4) and mask.shape == (8, 6) and torch.equal(both[:4], features)


def test_a_draw_depends_on_seed_epoch_and_the_cycles_of_the_batch():
    def lam(seed=0, epoch=0, first=0):
        context = {"epochs": torch.full((4,), epoch), "cycle_numbers": torch.arange(4) + first}
        return Mixer(MixSettings(), seed, 2).waveforms(torch.ones(4, 5), torch.full((4,), 5), FLAGS, context)[2].lam

    assert lam() == lam()
    assert len({lam(), lam(seed=1), lam(epoch=1), lam(first=1)}) == 4


def test_probability_0_leaves_a_batch_alone():
    settings = MixSettings(domain="features", probability=0.0)
    features = torch.randn(4, 6, 4)
    mixed, _, mixture = Mixer(settings, 0, 2).features(features, torch.ones(4, 6), FLAGS, CONTEXT)
    assert mixture.lam == 1 and torch.equal(mixed, features) and torch.equal(mixture.labels, FLAGS)
    patches = MixSettings("patch_mix", probability=0.0)
    assert torch.equal(Mixer(patches, 0, 2).features(features, torch.ones(4, 6), FLAGS, CONTEXT)[0], features)


def test_patch_mix_refuses_cycles_of_different_lengths():
    mask = torch.ones(4, 6)
    mask[1, 4:] = 0
    with pytest.raises(ConfigError, match="cycles of one length"):
        Mixer(MixSettings("patch_mix"), 0, 2).features(torch.randn(4, 6, 4), mask, FLAGS, CONTEXT)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 3, 0.5])])
def test_soft_cross_entropy_is_that_of_patch_mix_and_for_hard_rows_the_ordinary_one(weight):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    labels, index, lam = torch.tensor([0, 1, 2, 1, 0, 0]), torch.tensor([3, 0, 1, 2, 5, 4]), 0.3
    hard = functional.one_hot(labels).float()
    torch.testing.assert_close(
        soft_cross_entropy(logits, hard, weight), functional.cross_entropy(logits, labels, weight)
    )
    mixed = soft_cross_entropy(logits, lam * hard + (1 - lam) * hard[index], weight)
    torch.testing.assert_close(mixed, PatchMixCrossEntropy(weight)(logits, labels, labels[index], lam)["patch_mix_ce"])


@pytest.mark.parametrize("bad", [{"method": "cutmix"}, {"beta": -1}, {"probability": 2}, {"patch": [0, 4]}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError):
        MixSettings(**bad)
