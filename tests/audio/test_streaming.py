"""A recording in blocks is the recording read whole; its windows and cycles are those cut out of the whole."""

import io
import struct

import numpy as np
import pytest
import soundfile

from audio_twins import windows_in_context
from laennec.audio import recording, streaming
from laennec.audio.context import cycles_in_context
from laennec.audio.cycles import prediction_windows, read_annotation
from laennec.audio.recording import ButterworthFilter, DecodeError, read_frames, read_recording, resample
from laennec.audio.streaming import open_recording, passing_cycles, passing_windows

FILTERS = {
    "none": None,
    "lowpass": ButterworthFilter("lowpass", 1500),
    "bandpass": ButterworthFilter("bandpass", (50, 1800), order=5),
    "nothing to remove": ButterworthFilter("lowpass", 90_000),
}


@pytest.fixture(params=[0.1, 0.73, 10.0], autouse=True)
def block_s(request, monkeypatch):
    """Blocks shorter than a window, with odd edges, and as they are."""
    monkeypatch.setattr(recording, "_BLOCK_S", request.param)
    return request.param


def resampled(path, rate, filter=None):
    """A recording decoded, resampled and filtered in one piece each."""
    frames, source, _ = read_frames(path)
    sound = resample(np.ascontiguousarray(frames.mean(axis=1)), source, rate or source)
    return filter.apply(sound, rate or source) if filter else sound


def streamed(path, rate=None, **settings):
    with open_recording(path, rate, **settings) as stream:
        sound = np.concatenate(list(stream.blocks()))
        assert stream.samples == len(sound) and stream.duration_s == len(sound) / stream.sampling_rate
        assert stream.fraction in (0.0, 1.0)
    return sound


@pytest.fixture(scope="module")
def real(shared_data):
    """Real recordings of every rate, each with its annotation."""
    folder = shared_data / "icbhi2017_subset"
    names = ["103_2b2_Ar_mc_LittC2SE", "112_1p1_Ll_sc_Litt3200", "159_1b1_Ar_sc_Meditron"]
    return [(folder / f"{name}.flac", folder / f"{name}.txt") for name in names]


@pytest.mark.parametrize("filter", FILTERS, ids=list(FILTERS))
@pytest.mark.parametrize("rate", [None, 16000])
def test_blocks_are_the_recording_to_the_bit(real, filter, rate):
    for path, _ in real:
        whole = resampled(path, rate, FILTERS[filter])
        np.testing.assert_array_equal(streamed(path, rate, filter=FILTERS[filter]), whole)
        np.testing.assert_array_equal(read_recording(path, rate, filter=FILTERS[filter]).waveform, whole)


@pytest.mark.parametrize("samples", [1, 7, 44_123])
@pytest.mark.parametrize("source", [1000, 11_025, 192_000])
def test_every_length_and_rate(samples, source):
    sound = np.random.default_rng(samples).standard_normal((samples, 2)) * 0.1
    file = io.BytesIO()
    soundfile.write(file, sound, source, format="WAV", subtype="PCM_24")
    whole = resampled(file.getvalue(), 16_000)
    if len(whole):
        np.testing.assert_array_equal(streamed(file.getvalue(), 16_000, allow_silent=True), whole)
    else:
        with pytest.raises(DecodeError, match="too few for 16000 Hz"):
            streamed(file.getvalue(), 16_000, allow_silent=True)


def test_a_wav_that_a_recorder_could_not_finish_is_read_without_a_copy_in_memory(tmp_path):
    sound = (np.random.default_rng(1).standard_normal(20_000) * 3000).astype("<i2")
    head = b"RIFF" + struct.pack("<I", 0) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16_000, 2, 16)
    (tmp_path / "x.wav").write_bytes(head + b"data" + struct.pack("<I", 0) + sound.tobytes())
    np.testing.assert_array_equal(streamed(tmp_path / "x.wav"), sound / np.float32(32768))
    np.testing.assert_array_equal(read_recording(tmp_path / "x.wav").waveform, sound / np.float32(32768))


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize(("window_s", "hop_s"), [(2, 1.25), (100, 50), (20, 20), (1 / 3, 0.1)])
def test_windows_are_those_of_the_whole(real, context, window_s, hop_s):
    for path, _ in real[1:]:
        whole = read_recording(path, 8000)
        spans = prediction_windows(whole.duration_s, window_s, hop_s)
        with open_recording(path, 8000) as stream:
            found = list(passing_windows(stream, window_s, hop_s, context))
        assert [span for span, _ in found] == spans
        same_sounds([sound for _, sound in found], list(windows_in_context(whole.waveform, 8000, spans, context)))


def same_sounds(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert [len(side) for side in (ours.before, ours.after)] == [
            len(side) for side in (theirs.before, theirs.after)
        ]
        for piece, other in zip(ours.pieces, theirs.pieces, strict=True):
            np.testing.assert_array_equal(piece, other)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("order", ["as they are", "backwards", "overlapping and apart"])
def test_cycles_are_those_of_the_whole(real, context, order):
    for path, annotation in real:
        whole = read_recording(path, 8000)
        spans = [(c.start_s, c.end_s) for c in read_annotation(annotation)]
        if order == "backwards":
            spans = spans[::-1]
        if order == "overlapping and apart":
            spans = [(12.0, 13.0), (0.2, 11.5), (0.3, 0.9), (0.3, 0.9), (whole.duration_s - 0.1, whole.duration_s)]
        told = []
        with open_recording(path, 8000) as stream:
            found = dict(passing_cycles(stream, spans, context, told.append))
        assert told == [whole.duration_s]
        same_sounds([found[i] for i in range(len(spans))], cycles_in_context(whole.waveform, 8000, spans, context))


def test_no_more_sound_is_held_than_the_spans_need(block_s):
    """Two hours of sound, counted in samples that are held at once."""
    sound = np.tile(np.random.default_rng(0).standard_normal(1000).astype(np.float32), 300)
    file = io.BytesIO()
    soundfile.write(file, sound, 1000, format="WAV")
    most = []
    honest = streaming._Buffer.add

    def counting(tape, block, needed):
        honest(tape, block, needed)
        most.append(sum(map(len, tape.blocks)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming._Buffer, "add", counting)
        for spans in (None, [(float(t), t + 1.5) for t in range(0, 298, 2)]):
            with open_recording(file.getvalue()) as stream:
                for _ in passing_windows(stream, 2, 1, 1) if spans is None else passing_cycles(stream, spans, 1):
                    pass
    assert max(most) <= 1000 * (2 * block_s + 2 * 3 + 1)


def test_what_only_the_end_tells_is_told_at_the_end(tmp_path):
    tone = (0.3 * np.sin(np.arange(80_000) / 5)).astype(np.float32)
    soundfile.write(tmp_path / "cut.flac", tone, 4000)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    soundfile.write(tmp_path / "silent.wav", np.full(80_000, 0.25), 4000)
    soundfile.write(tmp_path / "late.wav", np.concatenate([np.zeros(60_000), tone]), 4000)
    tone[70_001] = np.nan
    soundfile.write(tmp_path / "nan.wav", tone, 4000, subtype="FLOAT")
    for name, said in (
        ("cut.flac", "cut short"),
        ("silent.wav", "silent: every sample is 0.25"),
        ("nan.wav", "sample 70001 is NaN"),
    ):
        with pytest.raises(DecodeError, match=said), open_recording(tmp_path / name) as stream:
            list(passing_windows(stream, 2, 1))
    assert len(streamed(tmp_path / "late.wav")) == 140_000  # a silent beginning is no silent recording
    assert len(streamed(tmp_path / "silent.wav", allow_silent=True)) == 80_000


def test_a_listener_gets_every_block_when_it_is_yielded(real):
    heard = []
    with open_recording(real[0][0], 4000, listener=lambda stream, block: heard.append(block)) as stream:
        for _ in passing_windows(stream, 3, 1.5):
            pass
    np.testing.assert_array_equal(np.concatenate(heard), read_recording(real[0][0], 4000).waveform)
