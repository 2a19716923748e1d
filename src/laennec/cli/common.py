"""What several commands say, show and ask.

Decisions: answers go to standard output, one process alone speaks; a bar is shown on a terminal and nowhere else.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from laennec.errors import InputError


def say(text: str) -> None:
    """Print a line of a command's answer (once, under several processes)."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(text, flush=True)


def without_library_bars() -> None:
    """Have transformers load and save weights without a bar of its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` pairs."""
    given: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise InputError(f"command line: {item!r} is no setting; write --group.key value, e.g. --train.epochs 5")
        key, sign, value = item[2:].partition("=")
        if not sign:
            following = next(items, None)
            if following is None:
                raise InputError(f"command line: --{key} has no value; write --{key} VALUE")
            value = following
        given[key] = value
    return given


def progress(title: str) -> Callable[[float, int], None] | None:
    """A progress bar with the time left on a terminal, nothing elsewhere.

    Returns:
        What is called with (done, in all). What is done at the first call was done before, and has no say in the time
        left.
    """
    if not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar: tqdm | None = None

    def show(done: float, total: int) -> None:
        nonlocal bar
        if bar is None:
            shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.5g}/{total} [{elapsed}<{remaining}]"
            bar = tqdm(desc=title, file=sys.stderr, total=total, initial=done, bar_format=shape, mininterval=0.5)
        bar.total = total
        bar.update(max(done - bar.n, 0))
        if done >= total:
            bar.close()

    return show


def corpus_flags(parser: argparse.ArgumentParser) -> None:
    """Which data to read, and how they are split."""
    parser.add_argument(
        "--tables-dir", help="folder with split, demographics and diagnosis tables, if not beside the recordings"
    )
    parser.add_argument("--fold", type=int, help="test fold, where the protocol has folds")
    parser.add_argument(
        "--level", help="sprsound: event (default) or record; physionet2016: recording (default) or window"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="go on where the published corpus has more recordings",
    )
