"""Two processes with one folder: the results are the same, no process waits for ever, a killed one holds no lock."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import yaml

from forked import laennec
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.files import atomic_folder, lock_of, lock_or_refuse, wait_for_lock
from laennec.training.record import counted_evaluation
from runs import one_line, what_it_left

HOLD = """
import sys, time
from pathlib import Path
from laennec.files import _MACHINE, lock_or_refuse, wait_for_lock
with {lock}(Path(sys.argv[1])):
    print("mine", flush=True)
    while True:
        if "at work" in sys.argv:
            part = Path(sys.argv[1]).with_name(f".{{Path(sys.argv[1]).name}}.{{_MACHINE}}abcd1234.part")
            part.write_text(str(time.time()))
        time.sleep(0.1)
"""


@pytest.fixture
def holder():
    """A function that starts a process which holds the lock of a path; the processes are killed at the end."""
    started = []

    def hold(path, *more, lock="lock_or_refuse"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD.format(lock=lock), str(path), *more], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "mine\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_folder_that_is_trained_into_is_refused_until_its_owner_is_dead(tiny_recipe, tmp_path, capsys):
    settings = {**tiny_recipe, "train": {**tiny_recipe["train"], "epochs": 6}, "output_dir": str(tmp_path / "run")}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(settings))
    line = ["train", str(tmp_path / "r.yaml")]
    lock = lock_of(tmp_path / "run" / "run.json")
    lock.parent.mkdir()
    lock.write_text("1 another-host.example\n")  # the text in a lock file has no effect
    owner = laennec(*line)
    assert any("epoch 2/" in said for said in owner.stdout)
    os.kill(owner.pid, signal.SIGSTOP)  # the owner is alive, but paused
    capsys.readouterr()
    for arguments in (line, [*line, "--overwrite"], [*line, "--seed", "3", "--overwrite"]):
        assert main(arguments) == 2
        one_line(capsys, tmp_path / "run", "another process is writing to this folder")
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert lock.exists()
    assert main(line) == 0
    assert not lock.exists()
    assert main([*line, "--output_dir", str(tmp_path / "alone")]) == 0
    assert what_it_left(tmp_path / "run") == what_it_left(tmp_path / "alone")


def test_a_folder_that_is_predicted_into_is_refused_until_its_owner_is_dead(
    tiny_run, small_corpus, tmp_path, holder, capsys
):
    out = tmp_path / "out"
    line = ["predict", str(tiny_run), str(small_corpus), "--out", str(out)]
    assert main(line) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    owner = holder(out / "laennec.journal.jsonl")
    capsys.readouterr()
    assert main([*line, "--overwrite", "--window-s", "0.5", "--hop-s", "0.5"]) == 2
    one_line(capsys, out, "another process is writing to this folder")
    assert {path: path.read_bytes() for path in before} == before
    owner.kill()
    owner.wait()
    assert main(line) == 0
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_process_that_hangs_is_named_after_a_while(tmp_path, holder):
    holder(tmp_path / "stuck", lock="wait_for_lock")
    with (
        pytest.raises(InputError, match="has been making it for 1 s; end that process"),
        wait_for_lock(tmp_path / "stuck", 1),
    ):
        raise AssertionError("another process has it")


def test_in_one_process_too_a_folder_has_one_owner(tmp_path):
    with (
        lock_or_refuse(tmp_path / "a"),
        pytest.raises(InputError, match="another process"),
        lock_or_refuse(tmp_path / "a"),
    ):
        raise AssertionError("it is another's")
    with lock_or_refuse(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def together(work, times=8):
    """Call `work(number)` in `times` threads at the same time; return the errors."""
    errors, barrier = [], threading.Barrier(times)

    def one(number):
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def test_folders_written_to_one_path_at_once_replace_each_other_completely(tmp_path):
    def write(number):
        for turn in range(5):
            with atomic_folder(tmp_path / "result") as folder:
                for name in "ab":
                    (folder / name).write_text(f"{number} {turn}")

    assert together(write) == []
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert (tmp_path / "result" / "a").read_text() == (tmp_path / "result" / "b").read_text()


def test_every_scoring_is_counted_however_many_there_are_at_once(tiny_run, tmp_path):
    record = tmp_path / "run.json"
    # other tests may have scored that run
    record.write_text(json.dumps(json.loads((tiny_run / "run.json").read_text()) | {"evaluations": []}))

    def score(number):
        with counted_evaluation(record, {"split": f"test {number}"}):
            pass

    assert together(score) == []
    counted = [entry["split"] for entry in json.loads(record.read_text())["evaluations"]]
    assert sorted(counted) == [f"test {number}" for number in range(8)]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
