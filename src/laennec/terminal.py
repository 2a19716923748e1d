"""Printing for the user, in one place, so that untrusted text cannot control a terminal or imitate another line.

Decisions: results go to standard output, from the first of several processes only; errors and notes go to standard
error. Every argument is one line: line ends and control characters in it, which may come from names, labels and
messages of untrusted files, are shown as escapes.
"""

import logging
import os
import sys

from laennec.errors import InputError, one_line


def rank_and_size() -> tuple[int, int]:
    """The number of this process, from 0, and of all processes of a launch (environment variables RANK, WORLD_SIZE).

    Raises:
        InputError: They are no such numbers.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
        return int(rank), int(size)
    given = os.environ.get("WORLD_SIZE", "not set")
    raise InputError(
        f"RANK is {rank} and WORLD_SIZE {given}: the processes of a launch are numbered from 0 to WORLD_SIZE - 1; "
        "correct these environment variables, or unset both"
    )


def say(*lines: str) -> None:
    """Print lines of output, from the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        for line in lines:
            print(one_line(line), flush=True)


def complain(*lines: str) -> None:
    """Print what went wrong, from every process."""
    for line in lines:
        print(one_line(f"laennec: {line}"), file=sys.stderr)


class OneLine(logging.Formatter):
    """A logged message as one line."""

    def format(self, record: logging.LogRecord) -> str:
        """The message."""
        return one_line(record.getMessage())
