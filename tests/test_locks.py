"""Processes that create the same files at the same time, and lock owners that are killed."""

import os
import signal
import time
import zipfile
from pathlib import Path

import pytest

from forked import Forked, script
from laennec.corpora.recordings import unpack
from laennec.files import _MACHINE, atomic_folder, wait_for_lock

# each script prints a line when it starts to create the files, so that a test sees which process worked or waited
UNPACK = """
import sys
from pathlib import Path
from laennec.corpora import recordings
original = recordings.zipfile.ZipFile.open
def slow(self, member):
    print("made by me", flush=True)
    if "hang" in sys.argv:
        import time; time.sleep(600)
    return original(self, member)
recordings.zipfile.ZipFile.open = slow
folder = recordings.unpack(Path(sys.argv[1]), sys.argv[2])
print(sorted((p.name, p.stat().st_size) for p in folder.iterdir()), flush=True)
"""
SYNTHETIC = """
import sys
from laennec.corpora import synthetic
from laennec.corpora.load import locate_corpus
original = synthetic._write_tables
def said(*arguments):
    print("made by me", flush=True)
    original(*arguments)
synthetic._write_tables = said
options = dict(patients=2, recordings_per_patient=1, cycles_per_recording=2, max_rate_hz=4000)
_, folder, _ = locate_corpus("synthetic", sys.argv[1] if sys.argv[1] != "-" else None, cache_dir=sys.argv[2], **options)
print(sorted((p.name, p.stat().st_size) for p in folder.iterdir()), flush=True)
"""


def answers(processes: list[Forked]) -> list[list[str]]:
    said = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        said.append(out.splitlines())
    return said


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(3):
            file.writestr(f"{number}.wav", bytes([number]) * 200_000)
    return path


def test_of_two_processes_one_unpacks_and_both_have_it(archive: Path, tmp_path: Path) -> None:
    said = answers([script(UNPACK, archive, tmp_path / "cache") for _ in range(2)])
    assert sum(lines.count("made by me") for lines in said) == 3  # three members, once
    assert said[0][-1] == said[1][-1] == str([(f"{n}.wav", 200_000) for n in range(3)])
    (folder,) = (tmp_path / "cache" / "unpacked").iterdir()
    assert [p.read_bytes()[:1] for p in sorted((folder / "content").iterdir())] == [b"\0", b"\1", b"\2"]


def test_an_owner_that_is_killed_is_not_waited_for(archive: Path, tmp_path: Path) -> None:
    owner = script(UNPACK, archive, tmp_path / "cache", "hang")
    assert owner.stdout.readline() == "made by me\n"
    waiting = script(UNPACK, archive, tmp_path / "cache")
    assert "another process is making it; waiting" in waiting.stderr.readline()
    time.sleep(0.2)
    assert waiting.poll() is None  # it waits as long as the owner lives
    os.kill(owner.pid, signal.SIGKILL)
    (lines,) = answers([waiting])
    owner.communicate()
    assert lines == ["made by me"] * 3 + [str([(f"{n}.wav", 200_000) for n in range(3)])]
    # the unfinished files of the killed owner are gone, and so is its lock
    (folder,) = (tmp_path / "cache" / "unpacked").iterdir()
    assert unpack(archive, tmp_path / "cache") == folder / "content"


@pytest.mark.parametrize("place", ["cache", "folder"])
def test_of_two_processes_one_writes_the_synthetic_corpus(place: str, tmp_path: Path) -> None:
    folder = "-" if place == "cache" else tmp_path / "corpus"
    said = answers([script(SYNTHETIC, folder, tmp_path / "cache") for _ in range(2)])
    assert sum(lines.count("made by me") for lines in said) == 1
    assert said[0][-1] == said[1][-1] and "synthetic.json" in said[0][-1]
    made = tmp_path / "cache" / "synthetic" if place == "cache" else tmp_path
    assert not [p for p in made.iterdir() if p.name.startswith(".")]


def test_a_lock_removes_only_its_own_leftovers(tmp_path: Path) -> None:
    kept = [f".a.{_MACHINE}abcd1234.part2", f".a.b.{_MACHINE}abcd1234.part", f".b.{_MACHINE}abcd1234.part"]
    for name in (f".a.{_MACHINE}abcd1234.part", *kept):
        (tmp_path / name).mkdir()
    with wait_for_lock(tmp_path / "a"), atomic_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
    assert {p.name for p in tmp_path.iterdir()} == {*kept, "a"}
