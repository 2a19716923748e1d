"""The command line: one subcommand per stage.

Decisions: slow imports happen only when a command runs, so that help is fast. An error that a user can fix is one line
on standard error and exit code 2 (`--debug` shows the traceback); an interruption is 130, a termination 143.
"""

import argparse
import atexit
import contextlib
import difflib
import gc
import importlib
import logging
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from laennec import __version__
from laennec.errors import InputError, Terminated, one_line
from laennec.extension import load_object
from laennec.files import system_error
from laennec.memory import asked_for, ran_out
from laennec.terminal import OneLine, complain, rank_and_size

# name of a module in this folder -> its help
COMMANDS = {
    "recipes": "list the recipes that come with laennec, or copy one",
    "prepare": "check a corpus on disk, count its cycles, decode it into the cache, or export it",
    "train": "train a model from a recipe",
    "pretrain": "pre-train the encoder of a recipe without labels",
    "evaluate": "score a model on a test split and write a report",
    "benchmark": "enter a model or predictions in a benchmark with fixed splits, or check result files",
    "calibrate": "fit the calibration and thresholds of a run again on its validation predictions",
    "ensemble": "combine runs with different seeds into one ensemble",
    "report": "write the report of an evaluation again, with an embedding map and the worst errors",
    "compare": "compare runs that were scored on the same split, paired by patients",
    "study": "run a study (many recipes, seeds and settings) and compare its methods",
    "export": "export the model of a run in a format for sharing",
    "card": "write the model card of a run",
    "push": "upload the model of a run to the Hub (private by default)",
    "predict": "predict crackles and wheezes over time in recordings",
    "embed": "embed recordings, or the cycles of a corpus, into Parquet",
    "search": "find the embedded spans that sound most like a recording",
    "map": "write a page with a map of embedded spans, their sounds, and linear probes of the embedding",
    "review": "review what a model predicts, span by span; the answers become a corpus",
    "app": "serve a web page that predicts uploaded recordings",
    "env": "print versions for a bug report, and check decoding, the cache and a model",
}
_SOON_S = 0.02  # repeats a termination that was received inside a callback
_AGAIN_S = 8.0  # repeats a termination that did not end the command
_TRAIN = ("train", "pretrain")
_SETTINGS = (
    "Any setting of the recipe is also an option, --section.key VALUE, e.g. --train.epochs 5; "
    "`laennec recipes --settings` lists all settings."
)
# at exit the interpreter collects garbage several times, which takes seconds each for objects of torch and Gradio
atexit.register(gc.freeze)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code: 0 success, 2 bad input or some recordings failed, 130 interrupted, 143 terminated.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser()
    known, given = parser.parse_known_args(arguments)
    if given and known.command not in _TRAIN:
        flags = [f"--{name.replace('_', '-')}" for name in vars(known)]
        near = difflib.get_close_matches(given[0].partition("=")[0], flags, n=1)
        meant = f"did you mean {near[0]}? See" if near else "see"
        if not given[0].startswith("-"):
            meant = "give all paths together, before or after the options; see"
        parser.error(f"unknown argument {given[0]}; {meant} laennec {known.command} --help")
    # an empty argument, e.g. from an unset shell variable, would as a path be the current folder
    if empty := [name for name, value in vars(known).items() if value == "" or (type(value) is list and "" in value)]:
        parser.error(f"{empty[0]} is empty; give a value, or leave it out")
    if not sys.stderr.isatty():  # no progress bars among the errors in files and pipes
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not known.debug:  # the Hub's client logs each retry; laennec reports the last failure
        logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine())
    known.overrides, known.line = given, shlex.join(["laennec", *arguments])
    try:
        with warnings.catch_warnings(), _handle_signals():
            if not known.debug:
                warnings.showwarning = _note  # type: ignore[assignment]
            for name in known.imports:
                load_object(name, "--import")
            rank_and_size()
            return int(known.run(known) or 0)
    except KeyboardInterrupt:
        complain("interrupted; run the same command again to continue")
        return 130
    except Terminated as asked:
        complain(f"{asked}; run the same command again to continue")
        return 143
    except BrokenPipeError:
        return 0
    except Exception as error:
        line = _one_line(error)
        if line is None or known.debug:
            raise
        complain(line)
        return 2


@contextlib.contextmanager
def _handle_signals() -> Iterator[None]:
    """Stop without half-written files, on SIGTERM as on Ctrl-C."""
    asked: BaseException | None = None

    def end(number: int, frame: FrameType | None) -> None:
        # an exception in a callback from C would be lost, so it is raised a moment later; a termination is raised again
        # if it had no effect
        nonlocal asked
        if number != signal.SIGALRM:
            asked = KeyboardInterrupt() if number == signal.SIGINT else Terminated("terminated")
        inside = _called_back(frame)
        again = 0 if isinstance(asked, KeyboardInterrupt) else _AGAIN_S
        signal.setitimer(signal.ITIMER_REAL, _SOON_S if inside else again, again)
        if not inside and asked is not None:
            raise asked

    # Windows has no SIGALRM; there SIGTERM ends a process at once, and atomic writes keep its files whole
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    handled = [signal.SIGTERM, signal.SIGALRM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and shells can ignore it
        handled.append(signal.SIGINT)
    before = [signal.signal(number, end) for number in handled]
    try:
        try:
            yield
        except Exception:
            if isinstance(asked, Terminated):  # the termination caused it
                raise asked from None
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


def _called_back(frame: FrameType | None) -> bool:
    """Whether libsndfile is in a callback for reading: it would take an exception for a damaged file."""
    while frame is not None and not frame.f_code.co_name.startswith("vio_"):
        frame = frame.f_back
    return frame is not None


def _one_line(error: Exception) -> str | None:
    """The one-line message of an error that a user can fix; None for a bug of laennec."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if ran_out(error):
        return (
            f"not enough memory{asked_for(error)}; close other programs, set smaller batches (train.batch_size) or "
            "shorter cycles (features.length: crop, features.duration_s), or use a machine with more memory"
        )
    mended = system_error(getattr(error, "filename", None) or "output", error)
    return None if mended is None else str(mended)


def _note(message: Warning | str, category: Any, filename: str, *_: Any) -> None:
    """Print a warning of this package as one line; warnings of libraries appear with --debug only."""
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        complain(f"note: {' '.join(str(message).split())}")


class _Parser(argparse.ArgumentParser):
    """Suggests the nearest command for a mistyped one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        if wrong := re.match(r"argument (\S+): invalid choice: '([^']*)'", message):
            flag, typed = wrong.groups()
            asked = next((action for action in self._actions if flag in (*action.option_strings, action.metavar)), None)
            known = [str(name) for name in (asked.choices if asked is not None else None) or ()]
            near = difflib.get_close_matches(typed, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"it can be {', '.join(known)}"
            message = f"unknown command {typed!r}; {meant}" if flag == "COMMAND" else f"{flag} {typed}: {meant}"
        self.exit(2, one_line(f"{self.prog}: {message}") + "\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command, with its flags."""
    parser = _Parser(
        prog="laennec",
        description="Train, evaluate and share models that detect crackles and wheezes in lung sounds.",
        epilog="`laennec COMMAND --help` lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"laennec {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        module = importlib.import_module(f"laennec.cli.{name}")
        epilog = _SETTINGS if name in _TRAIN else None
        # no abbreviations: --over could mean --overwrite or a setting of the recipe
        made = commands.add_parser(name, help=help, description=help, epilog=epilog, allow_abbrev=False)
        made.add_argument("--debug", action="store_true", help="show the traceback of an error")
        made.add_argument(
            "--import", dest="imports", action="append", default=[], metavar="my_code:MyEncoder",
            help="import this object first, e.g. to load a model with your own encoder; repeatable",
        )  # fmt: skip
        made.set_defaults(run=module.run)
        module.flags(made)
    return parser
