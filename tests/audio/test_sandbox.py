"""An untrusted file decoded in a process of its own: the same sound, or one line, within its limits."""

import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from laennec.audio.recording import ButterworthFilter, DecodeError, read_recording
from laennec.audio.sandbox import plain_file, read_recording_sandboxed


def tone(seconds=1.0, rate=8000, channels=1):
    t = np.arange(int(seconds * rate)) / rate
    sound = 0.3 * np.sin(2 * np.pi * 220 * t)
    return np.stack([sound * (1 + c) / channels for c in range(channels)], 1)


def wav(seconds=1.0, rate=8000, channels=1, subtype="PCM_16", spoilt=None):
    sound, file = tone(seconds, rate, channels), io.BytesIO()
    if spoilt is not None:
        sound[1234] = spoilt
    soundfile.write(file, sound, rate, format="WAV", subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """Half an hour of silence with one click, in little FLAC: 318 MB of samples."""
    path = tmp_path_factory.mktemp("bomb") / "silence.flac"
    with soundfile.SoundFile(path, "w", 44100, 1, "PCM_16") as file:
        file.write(np.array([0.5, -0.5]))
        for _ in range(30):
            file.write(np.zeros(44100 * 60, np.int16))
    return path


def refused(path, **limits):
    with pytest.raises(DecodeError) as caught:
        read_recording_sandboxed(path, 8000, **limits)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said and len(said) < 400 + len(str(path))
    return caught.value.reason


def test_real_recordings_are_the_same_bit_for_bit(shared_data):
    low = ButterworthFilter("lowpass", 1500.0)
    names = ["icbhi2017_subset/103_2b2_Ar_mc_LittC2SE.flac", "sprsound/train/wav/40069321_15.3_0_p1_981.flac"]
    for path in (shared_data / name for name in names):
        for wanted in ({}, {"sampling_rate": 16000, "filter": low}):
            guarded, plain = read_recording_sandboxed(path, **wanted), read_recording(path, **wanted)
            assert np.array_equal(guarded.waveform, plain.waveform)
            assert (guarded.sampling_rate, guarded.source_sampling_rate, guarded.path) == (
                plain.sampling_rate, plain.source_sampling_rate, str(path),
            )  # fmt: skip


def test_a_plain_file_reads_to_the_same_samples(tmp_path):
    (tmp_path / "sound.wav").write_bytes(wav(channels=2, subtype="PCM_24", rate=44100))
    recording = read_recording_sandboxed(tmp_path / "sound.wav")
    with plain_file(recording) as path:
        again = read_recording(path)
    assert np.array_equal(again.waveform, recording.waveform) and again.sampling_rate == 44100
    assert not path.exists()


def test_channels_are_averaged_and_strange_names_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-c.wav", "a b\nc'\".wav", "ärger.wav"):
        (tmp_path / name).write_bytes(wav(channels=3))
        assert np.array_equal(read_recording_sandboxed(name).waveform, read_recording(name).waveform)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (wav()[:5000], "cut short"),
        (wav()[:30], "not audio|cut short"),
        (b"dear doctor, this is no sound\n" * 50, "not audio"),
        (b"", "empty"),
        (wav()[:40] + struct.pack("<I", 2**32 - 2) + wav()[44:], "cut short"),  # of 16 bits each
        (wav()[:22] + struct.pack("<H", 0) + wav()[24:], "not audio|damaged"),
        (wav()[:24] + struct.pack("<I", 7) + wav()[28:], "header says 7 Hz"),
        (wav(subtype="FLOAT", spoilt=np.nan), "sample 1234 is NaN"),
        (np.random.default_rng(0).bytes(20000), "not audio"),
        (b"fLaC" + np.random.default_rng(1).bytes(20000), "not audio|damaged"),
        (b"OggS" + np.random.default_rng(2).bytes(20000), "cut short|not audio|damaged"),
    ],
    ids=["cut", "cut header", "text", "empty", "2^31 samples", "no channels", "7 Hz", "NaN", "noise", "FLAC", "Ogg"],
)  # fmt: skip
def test_a_broken_or_crafted_file_is_one_line(content, reason, tmp_path):
    path = tmp_path / "crafted.wav"
    path.write_bytes(content)
    said = refused(path)
    assert any(part in said for part in reason.split("|")), said
    with pytest.raises(DecodeError) as plain:
        read_recording(path)
    assert plain.value.reason == said


def test_what_is_no_file_is_one_line(tmp_path):
    assert "no such file" in refused(tmp_path / "absent.wav")
    assert "folder" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


def test_a_bomb_is_refused_for_its_length_its_memory_or_its_time(endless):
    assert endless.stat().st_size < 500_000
    assert "longer than 60 s" in refused(endless, most_s=60)
    assert "longer than 10 minutes" in refused(endless, most_s=600)  # decoded and then measured
    assert "64 MiB" in refused(endless, most_s=1e9, memory_mb=64)
    assert "longer than 0.01 s" in refused(endless, most_s=1e9, timeout_s=0.01)


def test_a_bomb_that_hides_its_length_is_refused_all_the_same(endless, tmp_path):
    content = bytearray(endless.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36 bits of "how many samples": 0 is unknown
    content[22:26] = bytes(4)
    path = tmp_path / "unstated.flac"
    path.write_bytes(content)
    assert "longer than 10 minutes" in refused(path, most_s=600, timeout_s=300)
    assert "200 MiB" in refused(path, most_s=600, memory_mb=200, timeout_s=300)


def test_nothing_is_left_running_and_this_process_does_not_grow(endless):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(endless, most_s=1e9, timeout_s=0.01)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_decoding_process_sees_no_secrets_and_starts_light(tmp_path, monkeypatch):
    """The command line of the real process, with a module that lists what is loaded."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = {}
    real = subprocess.Popen

    def watched(command, **settings):
        seen.update(command=command, env=settings["env"])
        return real(command, **settings)

    monkeypatch.setattr(subprocess, "Popen", watched)
    path = tmp_path / "sound.wav"
    path.write_bytes(wav())
    read_recording_sandboxed(path)
    assert not any("secret" in value for value in seen["env"].values())
    look = "import sys, laennec.audio.sandbox; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-S", "-P", "-c", look], env=seen["env"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "numpy" in loaded and not {"torch", "transformers", "scipy", "datasets", "pandas"} & set(loaded)


def test_limits_are_the_systems_own(tmp_path):
    """The limits are the operating system's, so a decoder cannot lift them."""
    look = (
        "import resource, laennec.audio.sandbox as g; g._limit(3, 50)\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_FSIZE)[0])\n"
        "try: bytearray(80 << 20); print('allocated')\n"
        "except MemoryError: print('refused')"
    )
    said = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout.split()
    assert said == ["4", str(50 << 20), "refused"]


def test_a_decoder_that_crashes_or_lies_is_one_line(tmp_path, monkeypatch):
    """Stand-ins for the process, with answers of an exploited decoder."""
    path = tmp_path / "sound.wav"
    path.write_bytes(wav())
    real = subprocess.Popen
    for script, reason in (
        ("import os; os.abort()", "signal 6"),
        ("raise SystemExit(3)", "exit code 3"),
        ("print('no json')", "stopped"),
        ('print(\'{"source_rate": 8000, "samples": 1000000000000}\')', "stopped"),
        ('print(\'{"source_rate": 1e999, "samples": 1}\')', "stopped"),
        ("print('[]')", "stopped"),
        ("print('x' * 10_000_000)", "stopped"),
        ('import sys; sys.stdout.buffer.write(b\'{"source_rate": 8000, "samples": 1}\\n\\0\\0\\xc0\\x7f\')', "stopped"),
        ('import sys; sys.stdout.buffer.write(b\'{"source_rate": 0, "samples": 1}\\n\\0\\0\\0\\0\')', "stopped"),
        ("import time; time.sleep(60)", "longer than 1 s"),
    ):
        monkeypatch.setattr(
            subprocess, "Popen", lambda _, script=script, **rest: real([sys.executable, "-c", script], **rest)
        )
        assert reason in refused(path, timeout_s=1), script


def test_impossible_limits_are_misuse(tmp_path):
    for limits in ({"timeout_s": 0}, {"memory_mb": 0}, {"most_s": -1}):
        with pytest.raises(ValueError, match="positive"):
            read_recording_sandboxed(tmp_path / "sound.wav", **limits)
