"""Progress: a bar on terminals, a line every half minute elsewhere, nothing for short work."""

import sys

import pytest

from laennec import progress


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now_s = 1000.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_short_work_prints_nothing(clock, capsys):
    assert list(progress.track(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_a_line_every_half_minute_with_the_remaining_time(clock, capsys):
    for _ in progress.track(range(10), "counting"):
        clock.now_s += 20
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "laennec: note: counting: 2 of 10, 3 min left"
    assert len(lines) == 4 and lines[-1] == "laennec: note: counting: 8 of 10, 40 s left"


def test_work_that_was_done_before_does_not_count_in_the_remaining_time(clock, capsys):
    shown = progress.Progress("predicting")
    shown(90, 100)
    clock.now_s += 40
    shown(95.5, 100)
    assert capsys.readouterr().err == "laennec: note: predicting: 95 of 100, 33 s left\n"


def test_other_processes_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for _ in progress.track(range(3), "counting"):
        clock.now_s += 60
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_whole_numbers(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_FIRST_S", 0.0)
    shown = progress.Progress("predicting")
    shown(0, 4)
    for done in (0.6, 1.7, 4):
        shown(done, 4)
    bar = capsys.readouterr().err
    assert "predicting" in bar and "4 of 4" in bar and "0.6" not in bar and "1.7" not in bar
