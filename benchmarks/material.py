"""Cycles with the lengths of ICBHI 2017, and sound for them.

Decisions: the gain of natural length depends on the lengths of cycles, so lengths follow all 6,898 published
annotations: from the annotation files if they are available, else from stored quantiles. Cycles are taken at evenly
spaced quantiles, so that few of them represent all. Where only speed is measured, the sound is noise.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.row import Setting
from laennec.audio.cycles import read_annotation
from laennec.encoders import load_encoder
from laennec.errors import InputError

# durations in seconds of the cycles in the 920 annotation files of the ICBHI 2017 Respiratory Sound Database
# (Rocha et al. 2019): quantiles 0, 2.5 %, ..., 97.5 %, then 99 %, 99.5 % and 100 %
_SHARES = (*(step / 40 for step in range(40)), 0.99, 0.995, 1.0)
_QUANTILES_S = (
    0.200, 0.851, 1.047, 1.200, 1.334, 1.460, 1.554, 1.655, 1.740, 1.849, 1.932, 2.006, 2.086, 2.155, 2.214, 2.271,
    2.337, 2.381, 2.420, 2.488, 2.537, 2.602, 2.666, 2.737, 2.805, 2.888, 3.005, 3.113, 3.185, 3.280, 3.369, 3.456,
    3.557, 3.696, 3.833, 3.941, 4.107, 4.291, 4.591, 5.397, 6.411, 7.243, 16.163,
)  # fmt: skip


def cycle_lengths(setting: Setting, cycles: int) -> tuple[npt.NDArray[np.float64], str]:
    """Durations of cycles, distributed as those of ICBHI 2017.

    Args:
        setting: Its data folder may contain the annotations.
        cycles: Number of cycles.

    Returns:
        Seconds (cycles,) in ascending order, and their source in words.
    """
    shares = (np.arange(cycles) + 0.5) / cycles
    folder = setting.data_dir / "icbhi2017_annotations" if setting.data_dir else None
    if folder is None or not folder.is_dir():
        return np.interp(shares, _SHARES, _QUANTILES_S), "quantiles of ICBHI's published annotations"
    read = [read_annotation(path) for path in sorted(folder.glob("*.txt"))]
    durations = [cycle.end_s - cycle.start_s for annotation in read for cycle in annotation]
    if not durations:
        raise InputError(f"{folder}: no annotated cycle; give ICBHI's annotation files, or take the folder away")
    return np.quantile(durations, shares), f"{len(durations)} published cycles of ICBHI"


def noise(durations: npt.NDArray[np.float64], sampling_rate: int, key: int = 1) -> list[npt.NDArray[np.float32]]:
    """White noise of given durations: float32 (samples,) each, mostly below a third of full scale."""
    draw = np.random.Generator(np.random.Philox(key=key))
    return [draw.standard_normal(round(s * sampling_rate), dtype=np.float32) * np.float32(0.1) for s in durations]


def shuffled(cycles: int) -> npt.NDArray[np.int64]:
    """A fixed order without a trend in length."""
    return np.random.Generator(np.random.Philox(key=2)).permutation(cycles)


def mobilenet(setting: Setting) -> tuple[Any, str]:
    """The released mobilenet, or one of equal size with random weights, and its name."""
    if setting.weights:
        return load_encoder(setting.weights, type="mobilenet"), "mn04"
    return load_encoder(None, type="mobilenet", width_mult=0.4), "mobilenet of width 0.4, random weights"
