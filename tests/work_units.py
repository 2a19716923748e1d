"""Work for processes that tests start; they import it by name."""

import os
import signal
import time
from pathlib import Path


def doubler():
    return lambda number: 2 * number


def dier(folder):
    """Work that kills its process on negative numbers, the first time only where there is a fraction."""

    def work(number):
        if number < 0:
            mark = Path(folder) / str(number)
            if number == int(number) or not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number

    return work


def sleeper(folder):
    """Work that never ends; says which process does it."""

    def work(number):
        (Path(folder) / str(os.getpid())).touch()
        time.sleep(600)

    return work


def failer():
    def work(number):
        raise ZeroDivisionError(number)

    return work
