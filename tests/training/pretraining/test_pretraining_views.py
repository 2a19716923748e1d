"""Two views of a pair: crops, counter-based draws, types of masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laennec.training.pretraining.dataset import PairDataset, crop, mask_views, waveform_views
from laennec.training.pretraining.pairs import PositivePairs
from laennec.training.recipe import PretrainSettings

SOUNDS = [np.arange(1000, dtype=np.float32) + 10_000 * row for row in range(6)]
NAMES = [f"r{row}#00" for row in range(6)]


def dataset(partners=None, names=NAMES, sounds=SOUNDS, **changes):
    return PairDataset(sounds, names, 1000, 3, PretrainSettings(**changes), 20, partners)


@given(length=st.integers(1, 50), samples=st.integers(1, 60), where=st.floats(0, 1, exclude_max=True))
def test_a_crop_is_a_stretch_of_the_cycle(length, samples, where):
    found = crop(np.arange(length, dtype=np.float32), samples, where)
    assert len(found) == min(length, samples)
    assert np.array_equal(found, np.arange(found[0], found[0] + len(found)))


def test_crops_start_at_every_position():
    places = {int(crop(np.arange(10, dtype=np.float32), 4, u)[0]) for u in np.linspace(0, 0.999, 200)}
    assert places == set(range(7))


def test_split_gives_two_crops_of_one_cycle_and_longest_s_shortens_them():
    data = dataset(views=["split"], crop_fraction=0.25)
    pairs = [data[(2, epoch)] for epoch in range(30)]
    for item in pairs:
        (second,) = item["other_views"]
        assert len(item["waveform"]) == len(second) == 250
        assert 20_000 <= min(item["waveform"][0], second[0]) <= max(item["waveform"][-1], second[-1]) < 21_000
    starts = {(item["waveform"][0], item["other_views"][0][0]) for item in pairs}
    assert len(starts) == 30 and sum(one == other for one, other in starts) < 3
    assert len(dataset(views=["spec"], max_duration_s=0.1)[(0, 0)]["waveform"]) == 100
    assert len(dataset(views=["split"], crop_fraction=0.001)[(0, 0)]["waveform"]) == 20  # at least one frame


def test_the_second_view_is_of_the_paired_cycle():
    partners = PositivePairs(np.array([0, 0, 0, 1, 1, 2]))
    data = dataset(partners, views=["spec"])
    for row in range(6):
        others = {int(data[(row, epoch)]["other_views"][0][0]) // 10_000 for epoch in range(40)}
        assert others == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {4}, 4: {3}, 5: {5}}[row]


def test_a_view_depends_on_seed_epoch_and_cycle_alone():
    whole = dataset(views=["raw", "split"])
    part = dataset(views=["raw", "split"], names=NAMES[3:], sounds=SOUNDS[3:])  # other rows, other numbering
    for epoch in (0, 5):
        one, again, moved = whole[(4, epoch)], whole[(4, epoch)], part[(1, epoch)]
        for other in (again, moved):
            assert np.array_equal(one["waveform"], other["waveform"])
            assert np.array_equal(one["other_views"][0], other["other_views"][0])
    draws = [whole[(4, epoch)]["waveform"] for epoch in range(4)]
    assert len({(len(d), float(d[0])) for d in draws}) > 1


@pytest.mark.parametrize(
    ("views", "masks"), [(["raw"], None), (["spec"], (2, 5)), (["time"], (0, 5)), (["frequency", "raw"], (2, 0)),
                         (["time", "frequency"], (2, 5)), (["split"], None)],
)  # fmt: skip
def test_families_of_masks(views, masks):
    found = mask_views(PretrainSettings(views=views))
    assert (found and (found.freq_masks, found.time_masks)) == masks
    assert (waveform_views(PretrainSettings(views=views)) is not None) == ("raw" in views)


def test_raw_views_have_the_published_bounds():
    raw = waveform_views(PretrainSettings())
    assert raw.shift.max_shift_fraction == 0.25 and (raw.stretch.min_rate, raw.stretch.max_rate) == (0.9, 1.1)
    assert raw.gain and raw.pitch and raw.noise is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": []}, "views"), ({"views": ["mirror"]}, "views"), ({"pairs": "twins"}, "pairs"),
        ({"splits": ["test"]}, "splits"), ({"splits": []}, "splits"), ({"batch_size": 1}, "batch_size"),
        ({"hop_s": 4.0}, "hop_s"), ({"temperature": 0.0}, "temperature"), ({"missing": "guess"}, "missing"),
        ({"pairs": "age_band", "match": ["age_band"]}, "no negatives"), ({"unpaired": "x"}, "unpaired"),
        ({"gain": None, "pitch": None, "shift": None, "stretch": None}, "raw alone"),
        ({"max_duration_s": 0.0}, "max_duration_s"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        PretrainSettings(**changes)
