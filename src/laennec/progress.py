"""Progress of long work: a bar with the remaining time, or a line every half minute where there is no terminal.

Decisions: nothing is shown in the first seconds, so short work prints nothing. A notebook shows tqdm's own widget.
Everything goes to standard error, from the first of several processes only.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_FIRST_S = 2.0
_LINE_S = 30.0
_SHAPE = "{desc}: {percentage:3.0f}%|{bar}| {postfix[0]} of {total:.0f} [{elapsed}<{remaining}]"


class Progress:
    """The progress of one piece of work; call it with the amount done and the total."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None
        self.started: tuple[float, float] | None = None
        self.said_s = time.monotonic()

    def __call__(self, done: float, total: float) -> None:
        """Show the state."""
        if self.started is None:
            self.started = time.monotonic(), done
        if os.environ.get("RANK", "0") != "0":
            return
        if sys.stderr.isatty() or "ipykernel" in sys.modules:  # a terminal, or a notebook
            self._move(done, total)
        elif done < total and time.monotonic() - self.said_s > _LINE_S:
            self.said_s = time.monotonic()
            start_s, before = self.started
            left_s = (time.monotonic() - start_s) * (total - done) / max(done - before, 1e-9)
            print(f"laennec: note: {self.title}: {int(done)} of {int(total)}, {_span(left_s)} left", file=sys.stderr)

    def _move(self, done: float, total: float) -> None:
        from tqdm.auto import tqdm

        if self.bar is None:
            settings = {"bar_format": _SHAPE, "postfix": [0], "mininterval": 0.5, "delay": _FIRST_S}
            self.bar = tqdm(desc=self.title, file=sys.stderr, total=total, initial=done, **settings)
        self.bar.total, self.bar.postfix = total, [int(done)]
        self.bar.update(max(done - self.bar.n, 0))
        if done >= total:
            self.close()

    def close(self) -> None:
        """Close the bar if the work ends early."""
        if self.bar is not None:
            self.bar.close()


def track(items: Iterable[_Item], title: str, total: int | None = None) -> Iterator[_Item]:
    """Iterate with progress."""
    if total is None:
        assert isinstance(items, Sized), "a total is needed"
        total = len(items)
    shown = Progress(title)
    for done, item in enumerate(items):
        shown(done, total)
        yield item
    shown(total, total)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
