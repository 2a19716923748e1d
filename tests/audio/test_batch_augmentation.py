"""Whole batches on a device are augmented as cycles are one by one."""

import numpy as np
import pytest
import torch

from laennec.audio.augmentation import (
    STREAMS,
    Gain,
    PitchShift,
    TimeShift,
    TimeStretch,
    WaveformAugmentation,
    WhiteNoise,
    counter_generator,
)
from laennec.audio.batch_augmentation import Keys, augment_batch, draw, stretch_rows
from laennec.audio.counters import normals, uniforms, uniforms_32, words
from laennec.audio.stretch import stretch_time
from laennec.training.data import view_seed

RATE = 4000
ALL = WaveformAugmentation(WhiteNoise(0.5), TimeShift(0.5), TimeStretch(0.5), PitchShift(0.5), Gain(0.5))


@pytest.fixture
def batch():
    """Breath-like cycles of several lengths, a silent one and one of three samples."""
    rng = np.random.default_rng(0)
    sounds = [np.convolve(rng.standard_normal(n), np.ones(8) / 8, "same") for n in (4000, 7321, 9000, 5555, 11000)]
    sounds = [s.astype(np.float32) for s in (*sounds, np.zeros(3000), np.ones(3) * 0.1)]
    lengths = np.array([len(s) for s in sounds])
    rows = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s) for s in sounds], batch_first=True)
    keys = Keys(np.full(7, 5, np.uint64), np.arange(7), np.array([3, 2**62, 7, 7, 0, 2**63 - 1, 9]))
    return sounds, rows, lengths, keys


@pytest.mark.parametrize("seed", [0, 5, view_seed(5, 1)])
def test_words_are_those_of_a_generator_for_each_cycle(seed):
    epochs, indices = np.array([0, 1, 250]), np.array([0, 2**63 - 1, 12345])
    found = words(seed, STREAMS["noise"], epochs, indices, 11)
    for row, (epoch, index) in enumerate(zip(epochs, indices, strict=True)):
        generator = counter_generator(seed, int(epoch), int(index), "noise")
        assert np.array_equal(generator.random(3), uniforms(found[row, :3]))
        assert np.array_equal(generator.random(16, dtype=np.float32), uniforms_32(found[row : row + 1, 3:])[0])


def test_parameters_are_drawn_as_one_by_one(batch):
    _, _, _, keys = batch
    drawn = draw(ALL, keys)
    names = {"noise": "snr_db", "shift": "shift_fraction", "stretch": "rate", "pitch": "semitones", "gain": "gain_db"}
    for row in range(7):
        alone = ALL.draw(seed=5, epoch=int(keys.epochs[row]), cycle_index=int(keys.indices[row]))
        for part, name in names.items():
            value = getattr(alone, name)
            assert (np.isnan(drawn[part][row]) and value is None) or drawn[part][row] == value


def test_parts_without_device_arithmetic_are_the_same_to_the_bit(batch):
    sounds, rows, lengths, keys = batch
    parts = WaveformAugmentation(shift=TimeShift(0.8), gain=Gain(0.8))
    out, counts = augment_batch(parts, rows, lengths, RATE, keys)
    for row, sound in enumerate(sounds):
        alone = parts(sound, RATE, seed=5, epoch=int(keys.epochs[row]), cycle_index=int(keys.indices[row]))
        assert int(counts[row]) == len(alone) and np.array_equal(out[row, : len(alone)].numpy(), alone)
        assert not out[row, len(alone) :].any()


@pytest.mark.parametrize("rate", [0.8, 0.93, 1.17])
def test_stretched_pieces_are_the_same_ones(batch, rate):
    sounds, rows, lengths, _ = batch
    out, counts = stretch_rows(rows, lengths, np.full(7, rate), RATE)
    for row, sound in enumerate(sounds):
        alone = stretch_time(sound, RATE, rate)
        assert counts[row] == len(alone)
        torch.testing.assert_close(out[row, : len(alone)], torch.from_numpy(alone), atol=1e-5, rtol=0)


def test_shifted_pitch_sounds_as_one_by_one(batch):
    sounds, rows, lengths, keys = batch
    parts = WaveformAugmentation(pitch=PitchShift(1.0, 5.0))
    out, counts = augment_batch(parts, rows, lengths, RATE, keys)
    assert counts.tolist() == lengths.tolist()
    for row, sound in enumerate(sounds[:5]):
        alone = parts(sound, RATE, seed=5, epoch=int(keys.epochs[row]), cycle_index=int(keys.indices[row]))
        assert np.corrcoef(out[row, : len(sound)].numpy(), alone)[0, 1] > 0.99


def test_noise_has_its_level_and_hangs_on_the_cycle_alone(batch):
    sounds, rows, lengths, keys = batch
    parts = WaveformAugmentation(noise=WhiteNoise(1.0, 5, 25))
    out, _ = augment_batch(parts, rows, lengths, RATE, keys)
    for row, sound in enumerate(sounds[:5]):
        added = out[row, : len(sound)].numpy() - sound
        wanted = parts.draw(seed=5, epoch=int(keys.epochs[row]), cycle_index=int(keys.indices[row])).snr_db
        assert 10 * np.log10(np.mean(sound**2) / np.mean(added**2)) == pytest.approx(wanted, abs=0.3)
    assert not out[5].any()  # a silent cycle stays silent
    order = np.array([4, 0, 2])
    some = Keys(keys.seeds[order], keys.epochs[order], keys.indices[order])
    again, _ = augment_batch(parts, rows[order, :11000], lengths[order], RATE, some)
    assert torch.equal(again, out[order, :11000])
    other = augment_batch(parts, rows, lengths, RATE, Keys(keys.seeds + np.uint64(1), keys.epochs, keys.indices))[0]
    assert not torch.equal(other, out)


def test_device_noise_is_normal_and_rows_are_independent():
    noise = normals([1, 1, 2], [0, 1, 0], [5, 5, 5], 40001, "cpu")
    assert noise.shape == (3, 40001) and noise.dtype == torch.float32
    assert noise.mean(1).abs().max() < 0.03 and (noise.std(1) - 1).abs().max() < 0.03
    assert abs(float((noise**4).mean()) - 3) < 0.2 and noise.isfinite().all()
    assert (np.corrcoef(noise.numpy()) - np.eye(3)).__abs__().max() < 0.03
    assert abs(float((noise[0, 1:] * noise[0, :-1]).mean())) < 0.03


def test_all_parts_together_stay_finite_and_zero_beyond_the_end(batch):
    _, rows, lengths, keys = batch
    out, counts = augment_batch(ALL, rows, lengths, RATE, keys)
    assert out.isfinite().all() and out.shape[1] >= int(counts.max())
    for row, count in enumerate(counts.tolist()):
        assert not out[row, count:].any()
