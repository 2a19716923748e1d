"""Augmentation: what it does to sound, and that every draw depends on (seed, epoch, cycle index) alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laennec.audio.augmentation import (
    FrequencyResponse,
    Gain,
    PitchShift,
    RandomCrop,
    SpecAugment,
    TimeShift,
    TimeStretch,
    WaveformAugmentation,
    WhiteNoise,
    counter_generator,
    cycle_to_concatenate,
    shift_pitch,
    stretch_time,
)
from laennec.errors import InputError

RATE_HZ = 16000
ALWAYS = WaveformAugmentation(
    WhiteNoise(1.0), TimeShift(1.0), TimeStretch(1.0), PitchShift(1.0), Gain(1.0), FrequencyResponse(1.0),
    RandomCrop(1.0),
)  # fmt: skip


def tone(hz, seconds=1.0):
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ).astype(np.float32)


def peak_hz(waveform):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum)) * RATE_HZ / len(waveform)


def level(waveform):
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def augmented(augmentation, waveform, index=0, epoch=0, seed=0):
    return augmentation(waveform, RATE_HZ, seed=seed, epoch=epoch, cycle_index=index)


def test_a_draw_depends_on_seed_epoch_and_cycle_and_on_nothing_else():
    waveform = tone(300)
    first = augmented(ALWAYS, waveform, index=5, epoch=2, seed=7)
    np.random.seed(1)
    torch.manual_seed(1)
    for index in range(4):
        augmented(ALWAYS, waveform, index=index)
    assert np.array_equal(first, augmented(ALWAYS, waveform, index=5, epoch=2, seed=7))
    draws = {str(ALWAYS.draw(seed=s, epoch=e, cycle_index=i)) for s in range(3) for e in range(3) for i in range(3)}
    assert len(draws) == 27


def test_the_stream_of_draws_is_frozen():
    """Published results depend on these numbers."""
    assert counter_generator(0, 0, 0, "noise").random(2) == pytest.approx([0.8133540609793564, 0.7513314251083365])
    assert counter_generator(3, 1, 2, "gain").random(2) == pytest.approx([0.9199873555221463, 0.5199743207840285])


def test_switching_one_part_off_leaves_the_others_draws_alone():
    assert np.array_equal(augmented(WaveformAugmentation(), tone(300)), tone(300))
    fewer = WaveformAugmentation(noise=ALWAYS.noise, pitch=ALWAYS.pitch)
    every = ALWAYS.draw(seed=1, epoch=2, cycle_index=3)
    some = fewer.draw(seed=1, epoch=2, cycle_index=3)
    assert some == {"pitch": every["pitch"], "noise": every["noise"]}
    assert list(every) == ["stretch", "pitch", "shift", "response", "noise", "gain", "crop"]


def test_draws_fill_their_ranges_and_happen_as_often_as_asked():
    augmentation = WaveformAugmentation(
        WhiteNoise(0.3, 5, 25), TimeShift(0.5, 0.4), TimeStretch(0.7, 0.8, 1.2), PitchShift(1.0, 3), Gain(0.0)
    )
    draws = [augmentation.draw(seed=0, epoch=0, cycle_index=i) for i in range(1500)]
    for name, low, high, share in [
        ("noise", 5, 25, 0.3),
        ("shift", -0.4, 0.4, 0.5),
        ("stretch", 0.8, 1.2, 0.7),
        ("pitch", -3, 3, 1.0),
    ]:
        values = [draw[name] for draw in draws if name in draw]
        assert len(values) / 1500 == pytest.approx(share, abs=0.05)
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high
    assert not any("gain" in draw for draw in draws)


def test_each_part_does_what_it_says():
    waveform = tone(300)
    louder = augmented(WaveformAugmentation(gain=Gain(1.0, 6.0, 6.0)), waveform)
    assert level(louder) / level(waveform) == pytest.approx(10 ** (6 / 20), rel=1e-5)
    noise = WaveformAugmentation(noise=WhiteNoise(1.0, 10.0, 10.0))
    noisy = augmented(noise, waveform)
    assert 20 * np.log10(level(waveform) / level(noisy - waveform)) == pytest.approx(10, abs=0.2)
    assert not np.array_equal(noisy, augmented(noise, waveform, epoch=1))
    shift = WaveformAugmentation(shift=TimeShift(1.0))
    places = round(shift.draw(seed=0, epoch=0, cycle_index=0)["shift"] * len(waveform))
    assert np.array_equal(augmented(shift, waveform), np.roll(waveform, places))


def test_a_frequency_response_is_smooth_and_within_its_range():
    """Measured on a click, whose spectrum is flat: the spectrum afterwards is the response."""
    click = np.zeros(RATE_HZ, dtype=np.float32)
    click[RATE_HZ // 2] = 1
    augmentation = WaveformAugmentation(response=FrequencyResponse(1.0, 12.0))
    curves = [20 * np.log10(np.abs(np.fft.rfft(augmented(augmentation, click, index=i)))) for i in range(100)]
    assert 11 < np.max(np.abs(curves)) <= 12.01
    assert np.std([curve[1000] for curve in curves]) > 2 and np.std([curve[100] - curve[1000] for curve in curves]) > 2
    hertz = np.arange(40, 8000)
    slopes = np.diff([curve[hertz] for curve in curves]) / np.diff(np.log2(hertz))
    assert np.max(np.abs(slopes)) <= 24.1, "decibels an octave: two octaves differ by twice the largest change at most"
    for curve, index in zip(curves, range(100), strict=True):
        assert np.max(np.abs(curve)) <= augmentation.draw(seed=0, epoch=0, cycle_index=index)["response"] + 0.01
    filtered = augmented(augmentation, click, index=3)
    assert np.abs(filtered).argmax() == RATE_HZ // 2 and len(filtered) == len(click), "no sound moves in time"
    for length in (0, 1, 2):
        assert len(augmented(augmentation, click[:length])) == length


def test_a_crop_is_a_part_of_the_cycle_of_any_length_above_the_least():
    ramp = np.arange(RATE_HZ, dtype=np.float32)
    augmentation = WaveformAugmentation(crop=RandomCrop(1.0, 0.4))
    parts = [augmented(augmentation, ramp, index=i) for i in range(400)]
    assert all(np.array_equal(part, np.arange(part[0], part[0] + len(part))) for part in parts)
    lengths, starts = np.array([len(part) for part in parts]), np.array([part[0] for part in parts])
    assert 0.4 * RATE_HZ <= lengths.min() < 0.41 * RATE_HZ and 0.99 * RATE_HZ < lengths.max() <= RATE_HZ
    assert lengths.mean() == pytest.approx(0.7 * RATE_HZ, rel=0.05)
    assert (starts / (RATE_HZ - lengths + 1e-9)).mean() == pytest.approx(0.5, abs=0.06)
    short = ramp[: round(0.3 * RATE_HZ)]
    assert np.array_equal(augmented(augmentation, short), short)


def test_a_transform_of_ones_own_draws_from_its_own_generator():
    def add_click(waveform, sampling_rate, generator):
        clicked = waveform.copy()
        clicked[generator.integers(len(clicked))] = sampling_rate
        return clicked

    waveform = tone(300)
    augmentation = WaveformAugmentation(gain=Gain(1.0), transforms=(add_click, add_click))
    changed = augmented(augmentation, waveform, index=3, epoch=1)
    assert (changed == RATE_HZ).sum() == 2
    assert np.array_equal(changed, augmented(augmentation, waveform, index=3, epoch=1))
    assert not np.array_equal(changed, augmented(augmentation, waveform, index=3, epoch=2))
    plain = augmented(WaveformAugmentation(gain=Gain(1.0)), waveform, index=3, epoch=1)
    assert np.array_equal(changed[changed != RATE_HZ], plain[changed != RATE_HZ])


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (lambda w, rate, generator: w[None], r"must return one dimension \(samples,\), not \(1, "),
        (lambda w, rate, generator: None, r"must return one dimension \(samples,\), not \(\)"),
        (lambda w, rate, generator: {}["absent"], "KeyError: 'absent'; correct"),
    ],
)
def test_a_transform_that_fails_is_one_line(transform, said):
    with pytest.raises(InputError, match=rf"the transform <lambda>:? {said}"):
        augmented(WaveformAugmentation(transforms=(transform,)), tone(300))


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95, 1.1, 1.5, 2.0])
def test_stretching_changes_the_length_and_keeps_pitch_and_level(rate):
    waveform = tone(400)
    stretched = stretch_time(waveform, RATE_HZ, rate)
    assert len(stretched) == round(16000 / rate)
    assert peak_hz(stretched) == pytest.approx(400, abs=2)
    assert level(stretched) == pytest.approx(level(waveform), rel=0.02)


@pytest.mark.parametrize("semitones", [-12, -3, 2, 12])
def test_shifting_pitch_keeps_length_and_level(semitones):
    waveform = tone(400)
    shifted = shift_pitch(waveform, RATE_HZ, semitones)
    assert len(shifted) == len(waveform)
    assert peak_hz(shifted) == pytest.approx(400 * 2 ** (semitones / 12), abs=2)
    assert level(shifted) == pytest.approx(level(waveform), rel=0.02)


def test_a_crackle_keeps_its_shape():
    """A click of 5 ms in silence stays within a few milliseconds: its energy is not spread over a window."""
    waveform = np.zeros(RATE_HZ, dtype=np.float32)
    waveform[8000:8080] = tone(600)[:80]
    for rate in (0.9, 1.1):
        stretched = stretch_time(waveform, RATE_HZ, rate)
        centre = round(8040 / rate)
        near = stretched[centre - 400 : centre + 400]
        assert np.square(near).sum() > 0.99 * np.square(stretched).sum()
        assert np.count_nonzero(np.abs(stretched) > 0.05 * np.abs(stretched).max()) < 200


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(0, 3000),
    kind=st.sampled_from(["noise", "silent", "constant", "click", "loud"]),
    index=st.integers(0, 10_000),
    sampling_rate=st.sampled_from([4000, 16000, 44100]),
)
def test_any_cycle_stays_finite_float32_and_at_most_twice_as_long(samples, kind, index, sampling_rate):
    waveform = np.zeros(samples, dtype=np.float32)
    if kind in ("noise", "loud"):
        waveform = counter_generator(0, 0, index, "mixing").standard_normal(samples, dtype=np.float32)
        waveform *= np.float32(1e6 if kind == "loud" else 0.1)
    elif kind == "constant":
        waveform += 0.5
    elif kind == "click" and samples:
        waveform[samples // 2] = 1.0
    strong = WaveformAugmentation(
        *(WhiteNoise(0.5), TimeShift(0.5, 1.0), TimeStretch(0.9, 0.5, 2.0), PitchShift(0.5, 12.0), Gain(0.5, -20, 20)),
        FrequencyResponse(0.5, 40),
        RandomCrop(0.5, 0.1),
    )
    before = waveform.copy()
    changed = strong(waveform, sampling_rate, seed=0, epoch=0, cycle_index=index)
    assert changed.dtype == np.float32
    assert changed.ndim == 1
    assert np.isfinite(changed).all()
    assert min(samples, 1) <= len(changed) <= 2 * samples
    assert np.array_equal(waveform, before)
    if kind == "silent":
        assert not changed.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: WhiteNoise(1.5),
        lambda: WhiteNoise(0.5, 20, 10),
        lambda: FrequencyResponse(0.5, -1),
        lambda: FrequencyResponse(0.5, 61),
        lambda: RandomCrop(0.5, 0.0),
        lambda: RandomCrop(0.5, float("inf")),
        lambda: TimeShift(0.5, 2.0),
        lambda: TimeStretch(0.5, 0.3, 1.0),
        lambda: TimeStretch(0.5, 1.2, 1.0),
        lambda: PitchShift(0.5, 13),
        lambda: Gain(0.5, 1, -1),
        lambda: SpecAugment(freq_masks=-1),
        lambda: SpecAugment(probability=2.0),
        lambda: augmented(WaveformAugmentation(), np.zeros((2, 10), dtype=np.float32)),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must|one-dimensional"):
        make()


def ones(batch, frames, mels, true_frames):
    mask = torch.zeros(batch, frames, dtype=torch.long)
    for row, count in enumerate(true_frames):
        mask[row, :count] = 1
    return torch.ones(batch, frames, mels), mask


def test_masks_lie_within_the_true_frames_and_have_the_width_they_may():
    true_frames = [50, 7, 1, 0, 33]
    features, mask = ones(5, 50, 16, true_frames)
    for spec in (SpecAugment(4, 9, 0, 1), SpecAugment(4, 9, 1, 0)):
        widths = set()
        for epoch in range(200):
            hidden = spec(features, mask, seed=0, epochs=[epoch] * 5, cycle_indices=range(5)) == 0
            assert not (hidden & (mask == 0)[:, :, None]).any()
            for row, count in enumerate(true_frames):
                frames = hidden[row, :count].all(dim=1).nonzero().flatten()
                bins = hidden[row, :count].all(dim=0).nonzero().flatten()
                found = (frames if spec.time_masks else bins) if count else torch.zeros(0)
                if 0 < len(found) < (count if spec.time_masks else 16):
                    assert found[-1] - found[0] + 1 == len(found) <= (9 if spec.time_masks else 4)
                if row == 0:
                    widths.add(len(found))
        assert widths == set(range(10 if spec.time_masks else 5))


def test_a_cycle_is_masked_alike_in_any_batch():
    draw = torch.Generator().manual_seed(0)
    features, (_, mask) = torch.randn(6, 40, 12, generator=draw), ones(6, 40, 12, [40, 30, 20, 10, 5, 40])
    spec = SpecAugment(5, 10, 2, 2, probability=0.8)
    epochs, indices = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([3, 1, 4, 1, 5, 9])
    together = spec(features, mask, seed=4, epochs=epochs, cycle_indices=indices)
    order = [4, 2, 0]
    apart = spec(features[order], mask[order], seed=4, epochs=epochs[order], cycle_indices=indices[order])
    assert torch.equal(together[order], apart)
    alone = spec(features[4:5, :8], mask[4:5, :8], seed=4, epochs=[2], cycle_indices=[5])  # less padding
    assert torch.equal(together[4, :8], alone[0])
    assert not torch.equal(features, together)


def test_spec_augment_without_mask_keeps_dtype_and_input():
    features = torch.ones(2, 20, 8, dtype=torch.bfloat16)
    changed = SpecAugment(8, 20, 1, 1)(features, None, seed=0, epochs=[0, 1], cycle_indices=[0, 1])
    assert changed.dtype == torch.bfloat16
    assert (features == 1).all()
    never = SpecAugment(8, 20, 1, 1, probability=0.0)(features, None, seed=0, epochs=[0, 1], cycle_indices=[0, 1])
    assert torch.equal(never, features)
    with pytest.raises(ValueError, match="2 rows need"):
        SpecAugment()(features, None, seed=0, epochs=[0], cycle_indices=[0, 1])


def test_second_cycles_come_from_the_candidates_and_never_from_the_cycle_itself():
    candidates = np.array([2, 3, 5, 7])
    chosen = [cycle_to_concatenate(0, 0, index, candidates, 0.5) for index in range(1000)]
    assert sum(partner is not None for partner in chosen) == pytest.approx(500, abs=60)
    assert {partner for partner in chosen if partner is not None} == {2, 3, 5, 7}
    assert all(partner != index for index, partner in enumerate(chosen))
    assert chosen == [cycle_to_concatenate(0, 0, index, candidates, 0.5) for index in range(1000)]
    assert cycle_to_concatenate(0, 0, 2, np.array([2]), 1.0) is None
    assert cycle_to_concatenate(0, 0, 2, candidates, 0.0) is None


@pytest.mark.parametrize("seed", [0, 2**53, 2**63, 2**63 + 12345, 2**64 - 2])
def test_neighbouring_seeds_draw_other_numbers_however_large_they_are(seed):
    """A second view's seed is the run's, moved by more than half of 2^64."""
    draws = [counter_generator(seed + more, 1, 2, "noise").random(4).tolist() for more in (0, 1)]
    assert draws[0] != draws[1]
