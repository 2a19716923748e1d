"""How many of laennec's functions one command calls, and in how many files (`python -m benchmarks.functions_called`).

Decisions: the count shows how much code somebody must read to follow a training, so it contains each function of the
package once and no others. The default command is one epoch of the demo.
"""

import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


def functions_called(arguments: Sequence[str]) -> tuple[int, int]:
    """Run a laennec command; returns how many functions and files of the package it called.

    Args:
        arguments: Words of the command line, without "laennec".
    """
    import laennec
    from laennec.cli.main import main

    package = str(Path(laennec.__file__).parent)
    seen: set[CodeType] = set()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            seen.add(frame.f_code)

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        main(list(arguments))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    functions = {code for code in seen if not code.co_name.startswith("<")}
    return len(functions), len({code.co_filename for code in functions})


def main() -> None:
    """Print the count of the given command, or of one epoch of the demo."""
    with tempfile.TemporaryDirectory() as out:
        demo = ["train", "recipes/demo/add_cnn.yaml", "--train.epochs", "1", "--output_dir", f"{out}/run"]
        functions, files = functions_called(sys.argv[1:] or demo)
    print(f"{functions} functions in {files} files")


if __name__ == "__main__":
    main()
