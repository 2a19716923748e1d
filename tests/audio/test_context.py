"""A cycle between its neighbours: real recordings, edges, and a naive loop beside the joined features."""

import numpy as np
import pytest
import torch

from audio_twins import windows_in_context
from laennec.audio.context import InContext, cycles_in_context, neighbour_rows
from laennec.audio.context_features import with_context
from laennec.audio.cycles import cut, read_annotation, sliding_windows
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_recording
from laennec.errors import InputError

PRESETS = {
    "ast": {},
    "efficientat": {},
    "efficientat of 2 s": {"preset": "efficientat", "length": "repeat", "duration_s": 2.0, "fade_s": 0.5},
    "song2021": {},
}


def naive_neighbours(spans, place, k):
    """Those that begin earlier and later, counted outwards from the cycle."""
    earlier = [i for i in range(len(spans)) if (spans[i], i) < (spans[place], place)]
    later = [i for i in range(len(spans)) if (spans[i], i) > (spans[place], place)]
    before = sorted(earlier, key=lambda i: (spans[i], i))[-k:] if k else []
    return before, sorted(later, key=lambda i: (spans[i], i))[:k]


def test_neighbours_never_come_from_another_recording():
    recordings, spans = ["b", "a", "b", "a", "c"], [(1.0, 2.0), (0.0, 1.0), (0.0, 1.0), (1.0, 2.0), (0.5, 1.0)]
    assert neighbour_rows(recordings, spans, 1) == [([2], []), ([], [3]), ([], [0]), ([1], []), ([], [])]


@pytest.fixture(scope="module")
def annotated(shared_data):
    """Real recordings with their cycles: the one with most and the one with fewest cycles of the first ten."""
    paths = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[:10]
    cycles = {path: read_annotation(path.with_suffix(".txt")) for path in paths}
    return [
        (path, [(c.start_s, c.end_s) for c in cycles[path]])
        for path in (max(paths, key=lambda p: len(cycles[p])), min(paths, key=lambda p: len(cycles[p])))
    ]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("k", [1, 2])
def test_real_cycles_are_concatenated_as_by_a_naive_loop(annotated, name, k):
    settings = {"preset": name} | PRESETS[name]
    plain, extractor = LaennecFeatureExtractor(**settings), LaennecFeatureExtractor(**settings, context_cycles=k)
    rate, items, wanted = extractor.sampling_rate, [], []
    for path, spans in annotated:
        sound = read_recording(path, rate).waveform
        items += cycles_in_context(sound, rate, spans, k)
        features = [plain(cut(sound, rate, *span), sampling_rate=rate).input_values[0] for span in spans]
        for place in range(len(spans)):
            before, after = naive_neighbours(spans, place, k)
            joined = torch.cat([features[i] for i in (*before, place, *after)])
            assert len(items[len(wanted)].before) == min(place, k)  # fewer at the edges
            wanted.append((features[place], joined))
    batch = extractor(items, sampling_rate=rate)
    for row, (own, joined) in enumerate(wanted):
        for values, mask, frames in (
            (batch.input_values, batch.attention_mask, own),
            (batch.context_values, batch.context_mask, joined),
        ):
            assert int(mask[row].sum()) == len(frames) and bool(mask[row, : len(frames)].all())
            torch.testing.assert_close(values[row, : len(frames)], frames, atol=2e-4, rtol=0)
            assert not values[row, len(frames) :].any()


def test_a_bare_waveform_has_no_neighbours_and_no_context():
    extractor = LaennecFeatureExtractor("efficientat", context_cycles=1)
    sound = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    for given in (sound, [sound], InContext(sound), torch.from_numpy(sound)[None]):
        batch = extractor(given, sampling_rate=32000)
        assert torch.equal(batch.context_values, batch.input_values)
        assert torch.equal(batch.context_mask, batch.attention_mask)
    assert set(extractor(sound, sampling_rate=32000, return_attention_mask=False)) == {"input_values", "context_values"}


def test_a_neighbour_without_a_frame_adds_nothing_and_a_cycle_without_one_is_refused():
    extractor = LaennecFeatureExtractor("efficientat", context_cycles=2)
    sound, blink = np.random.default_rng(0).standard_normal(20000).astype(np.float32), np.ones(10, np.float32)
    with_blink = extractor([InContext(sound, [sound[:5000], blink], [blink[:0]])], sampling_rate=32000)
    without = extractor([InContext(sound, [sound[:5000]])], sampling_rate=32000)
    assert torch.equal(with_blink.context_values, without.context_values)
    with pytest.raises(InputError, match="waveform 1: 10 samples"):
        extractor([sound, InContext(blink, [sound])], sampling_rate=32000)


def test_more_neighbours_than_were_trained_with_are_refused_in_one_line():
    sound = np.zeros(20000, np.float32)
    for k in (0, 1):
        extractor = LaennecFeatureExtractor("efficientat", context_cycles=k)
        with pytest.raises(InputError, match=f"waveform 0 has 2 cycles before and 0 after.*at most {k}"):
            extractor(InContext(sound, [sound, sound]), sampling_rate=32000)
    for wrong in (-1, 1.5, True, "1"):
        with pytest.raises(ValueError, match="context_cycles is"):
            LaennecFeatureExtractor("ast", context_cycles=wrong)


def test_the_front_end_keeps_how_many_neighbours_it_joins(tmp_path):
    extractor = LaennecFeatureExtractor("efficientat", context_cycles=2)
    extractor.save_pretrained(tmp_path)
    again = LaennecFeatureExtractor.from_pretrained(tmp_path)
    assert again.context_cycles == 2 and again.fingerprint() == extractor.fingerprint()
    prints = {LaennecFeatureExtractor("efficientat", context_cycles=k).fingerprint() for k in range(3)}
    assert len(prints) == 3
    assert "context_cycles" not in LaennecFeatureExtractor("efficientat").to_dict()


def test_joining_in_a_batch_is_joining_alone():
    """Any counts, also none, in any places."""
    values = torch.randn(9, 6, 3)
    counts = torch.tensor([4, 6, 1, 0, 6, 2, 5, 0, 3])
    mask = (torch.arange(6)[None] < counts[:, None]).long()
    joined = [[5, 0, 6], [1, -1, -1], [7, 2, 8], [3, 4, -1]]
    joined = [sorted(row, key=lambda i: i < 0) for row in joined]
    out = with_context(values, mask, torch.tensor(joined))
    for row, pieces in enumerate(joined):
        frames = torch.cat([values[i, : counts[i]] for i in pieces if i >= 0])
        assert int(out["context_mask"][row].sum()) == len(frames)
        assert torch.equal(out["context_values"][row, : len(frames)], frames)
        assert not out["context_values"][row, len(frames) :].any()
    assert out["input_values"].shape == (4, 6, 3) and out["context_values"].shape[1] == 11


@pytest.mark.parametrize("k", [1, 2])
def test_a_window_is_concatenated_with_the_sound_right_beside_it(k):
    rate = 1000
    sound = np.arange(10_300, dtype=np.float32)  # each sample says where it is
    spans = sliding_windows(10.3, 3.0, 1.5)
    for (start, end), item in zip(spans, windows_in_context(sound, rate, spans, k), strict=True):
        assert np.array_equal(item.own, cut(sound, rate, start, end))
        around = np.concatenate(item.pieces)
        assert np.array_equal(around, np.arange(around[0], around[-1] + 1))  # one stretch, no overlap, no gap
        left, right = start - around[0] / rate, (around[-1] + 1) / rate - end
        for reach, room in ((left, start), (right, 10.3 - end)):
            whole, rest = divmod(min(room, 3.0 * k) + 1e-6, 3.0)
            assert reach == pytest.approx(whole * 3.0 + (rest if rest >= 1.5 - 0.003 else 0.0), abs=2e-3)
    (alone,) = windows_in_context(sound[:2000], rate, sliding_windows(2.0, 3.0, 1.5), k)
    assert not alone.before and not alone.after
