"""Printing for the user, in one place, so that untrusted text cannot control a terminal or imitate another line.

Decisions: results go to standard output, from the first of several processes only; errors and notes go to standard
error. Every argument is one line: line ends and control characters in it, which may come from names, labels and
messages of untrusted files, are shown as escapes.
"""

import logging
import os
import sys

from laennec.errors import one_line


def say(*lines: str) -> None:
    """Print lines of output, from the first of several processes only."""
    if int(os.environ.get("RANK", "0")) == 0:
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
