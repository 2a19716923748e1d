"""tests/soak/traced.py: children of a command are traced too, and those that outlive it are killed and named."""

import subprocess
import sys
from pathlib import Path

import pytest

from forked import Forked

sys.path.insert(0, str(Path(__file__).resolve().parent / "soak"))

from traced import Traced, adopt, outlived, run_traced, timed

WRITES = "import pathlib, sys; [pathlib.Path(sys.argv[1], name).mkdir() for name in 'ab']"
STAYS = "import time; time.sleep(3600)"


def seen(work):
    """The result of `work` in a process that adopts orphans; a fork, so that it does not adopt the tests' children."""

    def adopting():
        adopt()
        print(work())

    done = Forked(adopting).done()
    assert not done.returncode, done
    return done.stdout.strip()


@pytest.mark.skipif(not Traced.possible(), reason="the system does not let us trace")
def test_changes_of_a_child_count_and_its_parent_is_killed_at_them(tmp_path):
    def parent():
        child = subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path)])
        child.wait()
        (tmp_path / "after").mkdir()
        return 0

    def both():
        killed, left = run_traced(parent, [tmp_path], kill_at=1), outlived()
        assert killed.code is None and killed.changes[0] == ("mkdir", str(tmp_path / "a")) and not left
        return (tmp_path / "after").exists()

    assert seen(both) == "False"


def test_a_child_that_outlives_its_command_is_killed_and_named():
    def command():
        subprocess.Popen([sys.executable, "-c", STAYS])
        return 0

    def left():
        code = timed(command, None)
        return code, [STAYS in line for line in outlived(0.5)], outlived()

    assert seen(left) == "(0, [True], [])"
