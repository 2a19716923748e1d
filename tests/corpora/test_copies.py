"""Copies of recordings: what is the same sound, at the limits of each rule."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import soundfile

from laennec.corpora import copies
from laennec.corpora.copies import AudioFingerprint, describe_audio, find_described, find_duplicates

RNG = np.random.default_rng(3)
NOISE = RNG.standard_normal(16000).astype(np.float32) * 0.1


def write(path: Path, waveform: np.ndarray, rate: int = 4000) -> tuple[Path, str]:
    soundfile.write(path, waveform, rate, subtype="PCM_16")
    return path, sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (NOISE[:-2], True),
        (NOISE[:-3], False),
        (0.995 * NOISE, True),
        (0.98 * NOISE, False),  # the power of a copy is that of the original
        (NOISE + 0.01 * RNG.standard_normal(16000), True),
        (NOISE[::-1], False),
        (-NOISE, False),
        (0.5 * NOISE + 0.866 * NOISE[::-1], False),
        (np.zeros(16000), False),
    ],
)
def test_a_copy_differs_by_rounding_only(other, same):
    assert copies._is_same(NOISE, np.asarray(other, np.float32)) is same
    assert copies._is_same(np.asarray(other, np.float32), NOISE) is same


def test_silence_has_neither_windows_nor_an_envelope():
    for waveform in (np.zeros(4000, np.float32), NOISE[:63]):
        envelope = copies._envelope([waveform], len(waveform), float(waveform.mean()))
        assert not envelope.any() and envelope.shape == (64,)
        assert not len(copies._windows([waveform]))


def test_a_recording_too_long_to_be_held_has_the_same_fingerprint(tmp_path, monkeypatch):
    path, _ = write(tmp_path / "long.wav", np.tile(NOISE, 5))
    held = copies._fingerprint_of((path, tmp_path / "held"))
    monkeypatch.setattr(copies, "_HELD", 20000)  # the first block is shorter, the recording longer
    again = copies._fingerprint_of((path, tmp_path / "again"))
    np.testing.assert_array_equal(held.windows, again.windows)
    np.testing.assert_array_equal(held.envelope, again.envelope)


def prints(windows):
    return {
        Path(name): AudioFingerprint(np.array(own, np.uint64), np.zeros(64))
        for name, own in zip("ab", windows, strict=True)
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (range(3), range(3), True),
        (range(30), range(27, 57), True),  # three windows, a tenth
        (range(40), range(37, 77), False),  # three windows, less than a tenth
        (range(20), range(18, 38), False),  # a tenth, but two windows
        ([7, 8], [7, 8], True),  # as many as there are
        ([7, 8], [8, 9], False),
    ],
)
def test_recordings_share_three_windows_and_a_tenth_of_them(one, other, same):
    found = list(copies._by_windows([Path("a"), Path("b")], prints([one, other])))
    assert found == ([(Path("a"), Path("b"))] if same else [])


def test_copies_of_copies_are_one_group(tmp_path):
    files = dict(
        [
            write(tmp_path / "whole.wav", NOISE),
            write(tmp_path / "first.wav", NOISE[:9000]),
            write(tmp_path / "last.wav", NOISE[7000:]),
            write(tmp_path / "again.wav", NOISE),
            write(tmp_path / "other.wav", NOISE[::-1]),
        ]
    )
    group = tuple(tmp_path / f"{name}.wav" for name in ("again", "first", "last", "whole"))
    assert find_duplicates(files, tmp_path / "cache") == [group]


def test_a_sound_of_pre_training_is_found_in_a_cut(tmp_path):
    def table(*files: tuple[Path, str]) -> dict[str, list[str]]:
        return {"recording_path": [str(path) for path, _ in files], "audio_sha256": [digest for _, digest in files]}

    heard = write(tmp_path / "heard.wav", NOISE)
    cut, other = write(tmp_path / "cut.wav", NOISE[:-50]), write(tmp_path / "other.wav", NOISE[::-1])
    described = describe_audio([table(heard)], tmp_path)
    assert len(described["stretches"]) == 8
    assert find_described(described, table(cut, other), tmp_path) == [str(cut[0])]
    assert find_described({"files": described["files"]}, table(heard, cut), tmp_path) == [str(heard[0])]
