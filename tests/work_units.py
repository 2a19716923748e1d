"""Work for processes that tests start; they import it by name."""

import os
import signal
import time
from pathlib import Path

from laennec.inference.predictor import Predictor, _unpickled


def double(number):
    return 2 * number


def die(folder, number):
    """Kill this process on negative numbers, the first time only where there is a fraction."""
    if number < 0:
        mark = Path(folder) / str(number)
        if number == int(number) or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def sleep(folder, number):
    """Never end; say which process this is."""
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def fail(number):
    raise ZeroDivisionError(number)


class Elsewhere(Predictor):
    """A predictor that does something more in the process that it is sent to."""

    def __init__(self, predictor, *more):
        self.__dict__ |= vars(predictor) | {"more": more}

    def __reduce__(self):
        _, (_, *packed) = super().__reduce__()
        return self.made_again, (packed, self.more)

    @classmethod
    def made_again(cls, packed, more):
        return cls(_unpickled(Predictor, *packed), *more)


class KillingPredictor(Elsewhere):
    """Kills its process on sound of one length, each time or, with a file to mark it, the first time only."""

    def __call__(self, sound, *arguments, **settings):
        samples, mark = self.more
        if len(sound) == samples and (mark is None or not Path(mark).exists()):
            if mark:
                Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(sound, *arguments, **settings)


class TellingPredictor(Elsewhere):
    """Writes down which GPUs its process may use."""

    @classmethod
    def made_again(cls, packed, more):
        Path(*more).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        return super().made_again(packed, more)
