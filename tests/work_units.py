"""Functions and predictors for child processes of the tests, which import this module by name."""

import os
import signal
import time
from pathlib import Path

from laennec.inference.predictor import Predictor, _unpickled


def double(number):
    return 2 * number


def die(folder, number):
    """Kill this process on a negative number: a whole number each time, a fractional one only the first time."""
    if number < 0:
        mark = Path(folder) / str(number)
        if number == int(number) or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def sleep(folder, number):
    """Write a file named by the process id, then sleep for ten minutes."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def fail(number):
    raise ZeroDivisionError(number)


class Elsewhere(Predictor):
    """A predictor that can do something more when another process unpickles it."""

    def __init__(self, predictor, *more):
        self.__dict__ |= vars(predictor) | {"more": more}

    def __reduce__(self):
        _, (_, *packed) = super().__reduce__()
        return self.made_again, (packed, self.more)

    @classmethod
    def made_again(cls, packed, more):
        return cls(_unpickled(Predictor, *packed), *more)


class KillingPredictor(Elsewhere):
    """Kills its process on sound of one length: each time or, with a marker file, only the first time."""

    def __call__(self, sound, *arguments, **settings):
        samples, mark = self.more
        if len(sound) == samples and (mark is None or not Path(mark).exists()):
            if mark:
                Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sound, *arguments, **settings)


class TellingPredictor(Elsewhere):
    """Writes the GPUs that its process may use to a file."""

    @classmethod
    def made_again(cls, packed, more):
        Path(*more).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        return super().made_again(packed, more)
