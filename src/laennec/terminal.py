"""What is printed for the user: the one place, so that nothing untrusted acts on a terminal or looks like another line.

Decisions: results go to standard output, from the first of several processes only, and what went wrong to standard
error. Every argument is one line: line ends and control characters in it, which come from names, labels and messages of
other people's files, are shown as escapes.
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
