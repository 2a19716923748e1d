"""Work in several processes: a killed process loses no results, and no process outlives its parent."""

import os
import time
from functools import partial

import pytest

from forked import Forked
from laennec.errors import InputError
from laennec.processes import Died, check_jobs, in_processes, module_process, used_by
from work_units import die, double, fail, sleep


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in open(f"/proc/{pid}/status").read()


def wait_until(true):
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def test_every_item_has_its_result_and_few_are_taken_ahead():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    found = {}
    for item, result in in_processes(double, items(), 2):
        found[item] = result
        assert len(taken) <= len(found) + 4 + 1
    assert found == {number: 2 * number for number in range(20)}
    assert not list(in_processes(double, [], 2))


def test_only_an_item_that_kills_two_processes_has_no_result(tmp_path):
    items = [1, -2, 3, -4.5, *range(5, 12)]
    found = dict(in_processes(partial(die, str(tmp_path)), items, 2))
    assert isinstance(found.pop(-2), Died)
    assert found == {item: 2 * item for item in items if item != -2}


def test_an_exception_of_the_work_is_raised_and_ends_all_processes():
    with pytest.raises(ZeroDivisionError):
        list(in_processes(fail, [1, 2], 2))
    with pytest.raises(InputError, match="1 or more"):
        check_jobs(0)


@pytest.mark.parametrize("ending", ["interrupted", "killed"])
def test_workers_end_with_their_parent(tmp_path, ending):
    parent = Forked(lambda: list(in_processes(partial(sleep, str(tmp_path)), range(4), 2)))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(map(is_alive, workers))
    parent.send_signal(2 if ending == "interrupted" else 9)
    assert parent.done(30).returncode != 0
    wait_until(lambda: not any(map(is_alive, workers)))


def test_a_file_in_the_working_directory_does_not_shadow_a_standard_module(tmp_path, monkeypatch):
    (tmp_path / "html.py").write_text("raise SystemExit('not the standard module')")
    (tmp_path / "my_own_code.py").write_text("import torch\n\n\nclass Mine(torch.nn.Module):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    for words in (["http.server", "--help"], ["laennec", "recipes", "--import", "my_own_code:Mine"]):
        with log.open("w") as out, module_process(words, out, tmp_path / "place") as process:
            used_by(process)
        assert process.returncode == 0, log.read_text()
