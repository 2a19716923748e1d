"""Cycles come from whole recordings, once, and a broken cache is never believed."""

import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from laennec.audio.cycles import cut
from laennec.audio.recording import ButterworthFilter, read_recording
from laennec.corpora import waveforms as module
from laennec.corpora.icbhi2017 import Icbhi2017
from laennec.corpora.synthetic import Synthetic
from laennec.corpora.waveforms import CycleWaveforms, with_audio
from laennec.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def table(tmp_path: Path) -> datasets.Dataset:
    """Three recordings of three cycles."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        name = f"10{number}_1b1_Al_sc_Meditron"
        soundfile.write(folder / f"{name}.wav", rng.uniform(-0.5, 0.5, 12_000), 4000)
        (folder / f"{name}.txt").write_text("0.000\t0.777\t0\t0\n0.777\t1.9\t1\t0\n1.9\t3.001\t0\t1\n")
    return Synthetic(folder, cache_dir=tmp_path / "cache").table()


def naive(row: dict[str, object], rate: int, filter: ButterworthFilter | None = None) -> np.ndarray:
    recording = read_recording(str(row["recording_path"]), rate, filter=filter)
    return cut(recording.waveform, rate, row["start_s"], row["end_s"])  # type: ignore[arg-type]


def test_real_cycles_equal_the_naive_loop(shared_data: Path, tmp_path: Path) -> None:
    table = Icbhi2017(shared_data / "icbhi2017_subset", cache_dir=tmp_path).table()
    some = table.select(np.random.default_rng(0).choice(len(table), 40, replace=False))
    filter = ButterworthFilter("lowpass", 2000.0)
    waveforms = CycleWaveforms(some, 16_000, filter, cache_dir=tmp_path)
    waveforms.prepare()
    assert len(waveforms) == 40
    for index in (0, 7, 39, -1):
        found = waveforms[index]
        assert found.dtype == np.float32 and found.flags.writeable
        np.testing.assert_array_equal(found, naive(some[index], 16_000, filter))
        assert waveforms.lengths[index] == len(found)


def test_each_recording_is_decoded_once_and_then_never(table: datasets.Dataset, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    decoded = []
    real = module.open_recording
    monkeypatch.setattr(module, "open_recording", lambda *a, **k: decoded.append(1) or real(*a, **k))
    seen: list[tuple[int, int]] = []
    CycleWaveforms(table, 8000, cache_dir=tmp_path).prepare(progress=lambda *done: seen.append(done))
    assert len(decoded) == 3 and seen == [(1, 3), (2, 3), (3, 3)]
    again = CycleWaveforms(table, 8000, cache_dir=tmp_path)
    again.prepare()
    assert [len(waveform) for waveform in again] == again.lengths.tolist()
    shuffled = table.select([8, 0, 4, 3, 1, 2, 7, 5, 6])
    other = CycleWaveforms(shuffled, 8000, cache_dir=tmp_path)
    np.testing.assert_array_equal(other[1], again[0])
    np.testing.assert_array_equal(other[0], again[8])
    assert len(decoded) == 3


def test_the_key_says_what_was_made(table: datasets.Dataset, tmp_path: Path) -> None:
    base = CycleWaveforms(table, 8000, cache_dir=tmp_path)
    assert base.key == CycleWaveforms(table, 8000, cache_dir=tmp_path / "elsewhere").key
    others = [
        CycleWaveforms(table, 16_000, cache_dir=tmp_path),
        CycleWaveforms(table, 8000, ButterworthFilter("lowpass", 1000.0), cache_dir=tmp_path),
        CycleWaveforms(table, 8000, ButterworthFilter("lowpass", 1000.0, 2), cache_dir=tmp_path),
        CycleWaveforms(table.select([1, 0, *range(2, 9)]), 8000, cache_dir=tmp_path),
        CycleWaveforms(table.select(range(8)), 8000, cache_dir=tmp_path),
    ]
    assert len({base.key, *(other.key for other in others)}) == 6


@pytest.mark.parametrize("damage", ["cut", "other", "absent"])
def test_a_torn_cache_is_made_again(table: datasets.Dataset, tmp_path: Path, damage: str) -> None:
    CycleWaveforms(table, 8000, cache_dir=tmp_path).prepare()
    for shard in (tmp_path / "waveforms").rglob("*.f32"):
        content = shard.read_bytes()
        if damage == "absent":
            shard.unlink()
        else:
            shard.write_bytes(content[:-4] if damage == "cut" else b"?" + content[1:])
    waveforms = CycleWaveforms(table, 8000, cache_dir=tmp_path)
    np.testing.assert_array_equal(waveforms[2], naive(table[2], 8000))
    waveforms.prepare()
    for index in range(9):
        np.testing.assert_array_equal(waveforms[index], naive(table[index], 8000))


def test_all_failures_are_listed_and_the_others_are_kept(table: datasets.Dataset, tmp_path: Path) -> None:
    paths = list(dict.fromkeys(table["recording_path"]))
    Path(paths[0]).unlink()
    Path(paths[2]).write_bytes(b"changed")
    waveforms = CycleWaveforms(table, 8000, cache_dir=tmp_path)
    with pytest.raises(InputError, match="2 of 3 recordings cannot be used: ") as caught:
        waveforms.prepare()
    first, second = caught.value.problems
    assert first.startswith(f"{paths[0]}: cannot be read")
    assert second.startswith(f"{paths[2]}: has changed since the table was made")
    np.testing.assert_array_equal(waveforms[3], naive(table[3], 8000))
    with pytest.raises(InputError, match="cannot be read"):
        waveforms[0]


def test_an_empty_cycle_is_named(table: datasets.Dataset, tmp_path: Path) -> None:
    row = table[0]
    short = datasets.Dataset.from_list([row | {"end_s": 0.0001}, table[3]], features=table.features)
    waveforms = CycleWaveforms(short, 8000, cache_dir=tmp_path)
    with pytest.raises(InputError, match=r"the cycle at 0 to 0.0001 s is empty at 8000 Hz"):
        waveforms.prepare()


def test_a_cycle_that_memory_cannot_hold_is_one_line(table: datasets.Dataset, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "passing_cycles", full)
    with pytest.raises(InputError, match="a cycle is too long for this machine's memory"):
        CycleWaveforms(table, 8000, cache_dir=tmp_path).prepare()
    assert not list((tmp_path / "waveforms").rglob("*.f32"))


def test_rows_without_audio_are_refused(table: datasets.Dataset, tmp_path: Path) -> None:
    mute = datasets.Dataset.from_list([table[0] | {"recording_path": None}], features=table.features)
    with pytest.raises(InputError, match="1 cycles have no audio"):
        CycleWaveforms(mute, 8000, cache_dir=tmp_path)
    assert len(CycleWaveforms(table.select([]), 8000, cache_dir=tmp_path)) == 0
    with pytest.raises(IndexError):
        CycleWaveforms(table, 8000, cache_dir=tmp_path)[9]


def test_nothing_stays_open(table: datasets.Dataset, tmp_path: Path) -> None:
    waveforms = CycleWaveforms(table, 8000, cache_dir=tmp_path)
    waveforms.prepare()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        for index in range(9):
            waveforms[index]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_rows_get_their_sound_when_they_are_read(table: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    rows = with_audio(table.select([4, 0, 7]), 4000)
    for row in (rows[1], *rows):
        assert row["audio"]["sampling_rate"] == 4000
        np.testing.assert_array_equal(row["audio"]["array"], naive(row, 4000))
    assert [len(sound["array"]) for sound in rows[:2]["audio"]] == [len(naive(row, 4000)) for row in list(rows)[:2]]


def test_equal_cycle_ids_of_two_corpora_have_their_own_sound(table: datasets.Dataset, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "corpus", other)
    for path in other.glob("*.wav"):
        sound, rate = soundfile.read(path)
        soundfile.write(path, sound[::-1], rate)
    assert with_audio(table, 4000).select_columns(["cycle_id"])[0]["audio"]["sampling_rate"] == 4000
    rows = with_audio(datasets.concatenate_datasets([table, Synthetic(other, cache_dir=tmp_path / "c").table()]), 4000)
    assert rows[0]["cycle_id"] == rows[9]["cycle_id"]
    for row in rows:
        np.testing.assert_array_equal(row["audio"]["array"], naive(row, 4000))
