"""The rows of reliability.json, each written by the script that tests one promise.

`keep` makes the rows, and the table of `docs/results/reliability.md` shows them:

    name      key of the row, one for each promise ("kills", "decoders", ...)
    promise   the promise in a sentence
    command   the command line
    figures   counts and measurements by name; numbers or short texts, in the order of the table
    held      whether the promise holds; a row whose promise does not hold is written too
    date      YYYY-MM-DD
    seconds   duration of the script
    hardware, versions   as in a run record

The file is `{"rows": [...]}`, sorted by name. A script replaces its own row and keeps the others. Without `--out`
nothing is written, so that a short trial does not replace the row of a long run.
"""

import argparse
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import Any

_PLACES = ("--out", "--found")
_BEGUN = time.perf_counter()


def parser_of(module_docstring: str) -> argparse.ArgumentParser:
    """A parser with the options that all scripts share."""
    parser = argparse.ArgumentParser(description=module_docstring.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="put the row into this file")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def command() -> str:
    """The command line, without the options for output paths."""
    words, kept = sys.argv[1:], []
    while words:
        word = words.pop(0)
        if word in _PLACES:
            words = words[1:]
        elif not word.startswith(tuple(f"{place}=" for place in _PLACES)):
            kept.append(word)
    return shlex.join(["python", f"tests/soak/{Path(sys.argv[0]).name}", *kept])


def keep(out: Path | None, name: str, promise: str, figures: dict[str, Any], held: bool) -> None:
    """As `put`, and exit with 1 if the promise does not hold."""
    put(out, name, promise, figures, held)
    if not held:
        raise SystemExit(1)


def put(
    out: Path | None, name: str, promise: str, figures: dict[str, Any], held: bool, begun: float | None = None
) -> None:
    """Print the row and write it to the file.

    Args:
        out: The file, or None to print only.
        name: Key of the row; an earlier row with this name is replaced.
        promise: The promise in a sentence.
        figures: Name to number or short text.
        held: Whether the promise holds.
        begun: Start time by `time.perf_counter`; None for the start of the script.
    """
    from laennec.errors import InputError
    from laennec.files import wait_for_lock
    from laennec.training.record import hardware, read_record, versions, write_record

    begun = _BEGUN if begun is None else begun
    row = {
        "name": name, "promise": promise, "command": command(), "figures": figures, "held": held,
        "date": datetime.date.today().isoformat(), "seconds": round(time.perf_counter() - begun),
        "hardware": {k: v for k, v in hardware().items() if k in ("processor", "cores", "system")},
        "versions": versions(),
    }  # fmt: skip
    print(f"{name}: {'held' if held else 'NOT HELD'}: {', '.join(f'{k} {v}' for k, v in figures.items())}", flush=True)
    if out is not None:
        with wait_for_lock(out):
            try:
                rows = read_record(out)["rows"] if out.exists() else []
            except (InputError, KeyError) as error:
                raise SystemExit(f"{out}: no table of rows ({error})") from error
            others = [other for other in rows if other["name"] != name]
            write_record(out, {"rows": sorted([*others, row], key=lambda each: each["name"])})
