"""Output and options that several commands share.

Decisions: results go to standard output, from the first process only.
"""

import argparse
import os
from collections.abc import Sequence

from laennec.errors import InputError


def say(text: str) -> None:
    """Print a line of output, from the first of several processes only."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(text, flush=True)


def without_library_bars() -> None:
    """Disable the progress bars of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def overrides(rest: Sequence[str]) -> dict[str, str]:
    """Parse `--key value` and `--key=value` pairs."""
    given: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise InputError(
                f"command line: {item!r} is not a setting; write --section.key VALUE, e.g. --train.epochs 5"
            )
        key, sign, value = item[2:].partition("=")
        if not sign:
            following = next(items, None)
            if following is None:
                raise InputError(f"command line: --{key} has no value; write --{key} VALUE")
            value = following
        given[key] = value
    return given


def corpus_flags(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the data and their split."""
    parser.add_argument(
        "--tables-dir", help="folder with the split, demographics and diagnosis tables (default: beside the recordings)"
    )
    parser.add_argument("--fold", type=int, help="test fold, for protocols with folds")
    parser.add_argument(
        "--level",
        help="what one row is; sprsound: event (default) or record; physionet2016: recording (default) or window",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="continue if recordings of the published corpus are missing",
    )
