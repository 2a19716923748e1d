"""Stage 1: every way a recording can be stored comes back the same, and every way it can be broken is named."""

import io
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from scipy import signal

from laennec.audio.containers import SoundBytes
from laennec.audio.recording import ButterworthFilter, DecodeError, read_header, read_recording
from laennec.errors import one_line

RATE = 8000
TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
CONTAINERS = {
    "wav": {"format": "WAV"},
    "wav24": {"format": "WAV", "subtype": "PCM_24"},
    "wavex": {"format": "WAVEX"},
    "rf64": {"format": "RF64"},
    "w64": {"format": "W64"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


def encoded(sound: np.ndarray = TONE, rate: int = RATE, **settings: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, sound, rate, **{"format": "WAV", **settings})
    return stream.getvalue()


def reason(content: object, **settings: object) -> str:
    with pytest.raises(DecodeError) as caught:
        read_recording(content, **settings)  # type: ignore[arg-type]
    assert str(caught.value) == one_line(f"{caught.value.path}: {caught.value.reason}")
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_real_recordings_equal_a_bare_soundfile_and_soxr_loop(shared_data: Path) -> None:
    folder = shared_data / "icbhi2017_subset"
    for path in sorted(folder.glob("*.flac"))[::20]:
        sound, rate = soundfile.read(path, dtype="float32")
        native = read_recording(path)
        np.testing.assert_array_equal(native.waveform, sound)
        assert (native.sampling_rate, native.source_sampling_rate, native.path) == (rate, rate, str(path))
        assert native.duration_s == pytest.approx(len(sound) / rate)
        at_16k = read_recording(path, 16_000)
        np.testing.assert_array_equal(at_16k.waveform, soxr.resample(sound, rate, 16_000, quality="HQ"))
        assert at_16k.waveform.dtype == np.float32
        assert read_header(path) == (rate, len(sound))


@pytest.mark.parametrize(
    ("subtype", "error"),
    [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 1e-7), ("FLOAT", 0), ("DOUBLE", 0)],
)
def test_sample_formats(subtype: str, error: float) -> None:
    recording = read_recording(encoded(subtype=subtype))
    assert np.abs(recording.waveform - TONE).max() <= error


def test_floats_in_the_scale_of_integers_are_refused() -> None:
    assert "a sample is 1.6" in reason(encoded(TONE / np.abs(TONE).max() * 16_384, subtype="FLOAT"))
    assert np.abs(read_recording(encoded(TONE * 20, subtype="FLOAT")).waveform).max() > 1  # a high gain


@pytest.mark.parametrize("name", CONTAINERS)
def test_an_error_of_the_disk_is_not_a_damaged_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "sound", []
    path.write_bytes(
        encoded(np.random.default_rng(0).uniform(-0.5, 0.5, 30 * RATE).astype(np.float32), **CONTAINERS[name])
    )

    class Failing(SoundBytes):
        def __init__(self, file: Any, at: int | None) -> None:
            super().__init__(Disk(file), at)

    class Disk:
        def __init__(self, file: Any) -> None:
            self.tell, self.seek, self._file = file.tell, file.seek, file

        def readinto(self, buffer: Any) -> int:
            reads.append(len(buffer))
            if sum(reads) > path.stat().st_size // 2:
                raise OSError(5, "Input/output error")
            return int(self._file.readinto(buffer))

    monkeypatch.setattr("laennec.audio.recording.SoundBytes", Failing)
    with pytest.raises(DecodeError, match=r"cannot be read \(Input/output error\); check the disk"):
        read_recording(path)


@pytest.mark.parametrize("rate", [999, 192_001, 1, 4_000_000])
def test_absurd_rates_are_refused(rate: int) -> None:
    assert f"{rate} Hz" in reason(encoded(rate=rate))


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged(channels: int) -> None:
    many = np.stack([TONE * (k + 1) / channels for k in range(channels)], axis=1)
    recording = read_recording(encoded(many, subtype="FLOAT"))
    np.testing.assert_allclose(recording.waveform, many.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("name", CONTAINERS)
def test_content_decides_not_the_extension(name: str, tmp_path: Path) -> None:
    path = tmp_path / "lies.raw"
    path.write_bytes(encoded(**CONTAINERS[name]))
    assert len(read_recording(path).waveform) >= len(TONE)
    assert read_header(path)[0] == RATE


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("kept", [0.95, 0.1])
def test_a_file_cut_short_is_noticed(name: str, kept: float) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE).astype(np.float32)
    whole = encoded(noise, **CONTAINERS[name])
    read_recording(whole)
    assert reason(whole[: int(len(whole) * kept)])


@pytest.mark.parametrize("riff", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("data", [0, 0xFFFFFFFF])
def test_a_streamed_wav_states_no_length(riff: int, data: int) -> None:
    whole = encoded()
    at = whole.index(b"data") + 4
    streamed = whole[:4] + struct.pack("<I", riff) + whole[8:at] + struct.pack("<I", data) + whole[at + 4 :]
    np.testing.assert_array_equal(read_recording(streamed).waveform, read_recording(whole).waveform)
    assert read_header(streamed) == (RATE, len(TONE))


def test_a_flac_of_unstated_length_is_read_and_counted() -> None:
    content = bytearray(encoded(format="FLAC"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    assert len(read_recording(bytes(content)).waveform) == len(TONE)
    assert read_header(bytes(content)) == (RATE, len(TONE))


def test_a_flac_with_a_flipped_bit_is_damaged() -> None:
    content = bytearray(encoded(format="FLAC"))
    content[len(content) // 2] ^= 4
    assert "damaged" in reason(bytes(content))


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_a_header_is_not_trusted_with_memory(name: str) -> None:
    content = bytearray(encoded(**CONTAINERS[name]))
    if name == "wav":
        at = content.index(b"data") + 4
        content[at : at + 4] = struct.pack("<I", 0x80000000)
    else:
        content[21] |= 0x0F
        content[22:26] = b"\xff" * 4
    tracemalloc.start()
    assert "cut short" in reason(bytes(content))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_no_channels_is_refused() -> None:
    content = bytearray(encoded())
    content[22:24] = bytes(2)
    assert reason(bytes(content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"start\tend\n" * 100, "not audio"),
        (bytes(5000), "not audio"),
        (b"RIFF\x00\x00\x00\x00WAVE", "not audio"),
        (b"ID3" + b"\xff" * 40, "not audio"),
        (b"\xff\xfb\x90\x64" + bytes(5000), "not audio"),
    ],
)
def test_what_is_no_audio(content: bytes, words: str) -> None:
    assert words in reason(content)


def test_places_that_are_no_files(tmp_path: Path) -> None:
    assert "folder" in reason(tmp_path)
    assert "no such file" in reason(tmp_path / "absent.wav")
    reason("nul\0byte.wav")
    os.mkfifo(tmp_path / "pipe")
    assert "regular file" in reason(tmp_path / "pipe")


def test_a_wav_without_samples() -> None:
    assert "no samples" in reason(encoded(np.zeros(0, np.float32)))
    with pytest.raises(DecodeError, match="no samples"):
        read_header(encoded(np.zeros(0, np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(value: float) -> None:
    broken = TONE.copy()
    broken[17] = value
    assert "sample 17 is NaN or infinite" in reason(encoded(broken, subtype="FLOAT"))


@pytest.mark.parametrize("level", [0.0, 0.25])
def test_silence_is_refused_unless_allowed(level: float) -> None:
    content = encoded(np.full(RATE, level, np.float32), subtype="FLOAT")
    assert "silent" in reason(content)
    assert len(read_recording(content, allow_silent=True).waveform) == RATE


def test_file_objects_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded())
    with path.open("rb") as file:
        opened = read_recording(file)
    np.testing.assert_array_equal(opened.waveform, read_recording(path.read_bytes()).waveform)
    assert opened.path == str(path)
    with pytest.raises(TypeError, match="path, bytes or a binary file"):
        read_recording(3)  # type: ignore[arg-type]


def test_random_damage_is_always_a_decode_error() -> None:
    rng = np.random.default_rng(3)
    sources = [encoded(TONE[:2000], **settings) for settings in CONTAINERS.values()]
    refused = 0
    for _ in range(300):
        content = bytearray(sources[rng.integers(len(sources))])
        for place in rng.integers(0, min(len(content), 120), 4):
            content[place] = rng.choice([0, 127, 128, 255, rng.integers(256)])
        try:
            assert np.isfinite(read_recording(bytes(content), 16_000).waveform).all()
        except DecodeError:
            refused += 1
    assert 25 < refused < 300


def test_the_filter_is_designed_at_the_rate_it_is_applied_at() -> None:
    content = encoded()
    filtered = read_recording(content, 16_000, filter=ButterworthFilter("lowpass", 2000.0))
    plain = read_recording(content, 16_000)
    sections = signal.butter(4, 2000.0, "lowpass", fs=16_000, output="sos")
    np.testing.assert_allclose(filtered.waveform, signal.sosfilt(sections, plain.waveform), atol=1e-6)


def gain(filter: ButterworthFilter, frequency_hz: float, rate: int) -> float:
    tone = np.sin(2 * np.pi * frequency_hz * np.arange(rate) / rate).astype(np.float32)
    return float(np.std(filter.apply(tone, rate)[rate // 2 :]) / np.std(tone))


def test_filter_passes_and_stops_where_it_says() -> None:
    for rate in (8000, 16_000, 44_100):
        low = ButterworthFilter("lowpass", 2000.0)
        assert gain(low, 2000, rate) == pytest.approx(0.5**0.5, abs=0.01)
        assert gain(low, 200, rate) == pytest.approx(1, abs=0.01)
        assert gain(low, 3900, rate) < 0.1
        band = ButterworthFilter("bandpass", (100.0, 1000.0))
        assert gain(band, 400, rate) == pytest.approx(1, abs=0.02)
        assert gain(band, 20, rate) < 0.01
        assert gain(ButterworthFilter("highpass", 100.0), 20, rate) < 0.01


def test_filters_at_and_above_half_the_rate() -> None:
    np.testing.assert_array_equal(ButterworthFilter("lowpass", 2000.0).apply(TONE, 4000), TONE)
    with pytest.raises(ValueError, match="leaves nothing"):
        ButterworthFilter("highpass", 2000.0).apply(TONE, 4000)
    wide = ButterworthFilter("bandpass", (100.0, 2500.0)).apply(TONE, 4000)
    np.testing.assert_array_equal(wide, ButterworthFilter("highpass", 100.0).apply(TONE, 4000))
    assert ButterworthFilter("bandpass", [100, 200]) == ButterworthFilter("bandpass", (100.0, 200.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "cutoff", "order"),
    [
        ("lowpas", 100, 4),
        ("lowpass", (1, 2), 4),
        ("bandpass", 100, 4),
        ("bandpass", (200, 100), 4),
        ("lowpass", 0, 4),
        ("lowpass", float("nan"), 4),
        ("lowpass", float("inf"), 4),
        ("lowpass", 100, 0),
    ],
)
def test_filters_that_are_none(kind: str, cutoff: object, order: int) -> None:
    with pytest.raises(ValueError):
        ButterworthFilter(kind, cutoff, order)  # type: ignore[arg-type]
