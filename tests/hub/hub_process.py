"""A user of the Hub in a process of its own, for the address of the Hub is read when a process starts.

One process serves many commands, since it takes seconds to start; the token can be another for each of them.
"""

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from hub_server import TOKEN, HubServer

_LISTENS = """
import contextlib, io, json, os, sys, traceback
from laennec.cli.main import main
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if asked["token"]:
        os.environ["HF_TOKEN"] = asked["token"]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if "script" in asked:
                sys.argv = ["script", *asked["words"]]
                exec(compile(asked["script"], "script", "exec"), {"__name__": "__main__"})
            else:
                code = main(asked["words"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = 1
            traceback.print_exc()
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


class Said(NamedTuple):
    """What a command or a script said."""

    code: int
    out: str
    err: str

    def refused(self, *parts: object) -> None:
        """It ended with one line of error that holds all of these."""
        assert self.code == 2, self
        last = [line for line in self.err.splitlines() if line.startswith("laennec: ")]
        assert len(last) == 1 and "Traceback" not in self.err, self.err
        assert all(str(part) in last[0] for part in parts), last[0]

    def done(self) -> "Said":
        """It ended well."""
        assert self.code == 0, f"{self.out}\n{self.err}"
        return self

    def json(self) -> Any:
        """What it printed last, read."""
        return json.loads(self.done().out.splitlines()[-1])


class HubUser:
    """Someone who types commands, at a Hub that runs here.

    Args:
        hub: The Hub.
        home: Where caches and the login lie.
        **environment: What is set beside that.
    """

    def __init__(self, hub: HubServer, home: Path, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LISTENS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=hub.environment(home, None, **environment),
        )

    def __enter__(self) -> "HubUser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def types(self, *words: object, token: str | None = TOKEN) -> Said:
        """Run a command line of laennec."""
        return self._ask({"words": [str(word) for word in words], "token": token})

    def runs(self, script: str, *words: object, token: str | None = TOKEN) -> Said:
        """Run a script."""
        return self._ask({"script": script, "words": [str(word) for word in words], "token": token})

    def _ask(self, asked: dict[str, Any]) -> Said:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Said(*json.loads(self._process.stdout.readline()))
