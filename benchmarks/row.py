"""Rows of the benchmark, and how time and memory of their sides are measured.

Decisions: both sides of a row take turns and the fastest of several repeats of each counts, because machines are shared
and noisy. Memory is the peak of a separate process minus its memory at the start. It is read from /proc if possible,
because the peak that `getrusage` gives in a new process starts at the size of the parent.
"""

import cProfile
import os
import pstats
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.errors import InputError


@dataclass
class Row:
    """One measurement.

    Attributes:
        name: What was measured.
        ours: This project's figure.
        other: The alternative's figure; None where there is only a bound.
        unit: Unit of both.
        ratio: ours / other, or other / ours where more is better; None without an alternative.
        bound: The project's target, in words.
        note: Details of the comparison.
        sound_s: Seconds of sound in a cycle, if the unit counts cycles.
    """

    name: str
    ours: float | None
    other: float | None
    unit: str
    ratio: float | None
    bound: str
    note: str
    sound_s: float | None = None


@dataclass
class Setting:
    """Data and options of the rows."""

    data_dir: Path | None
    weights: str | None
    repeats: int


def fastest(*sides: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of the fastest of several runs of each side, the sides taking turns."""
    best = [float("inf")] * len(sides)
    for _ in range(repeats):
        for i, side in enumerate(sides):
            start = time.perf_counter()
            side()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def needs(setting: Setting, folder: str) -> Path:
    """A folder below --data-dir; raises InputError if it is missing."""
    path = setting.data_dir / folder if setting.data_dir else None
    if path is None or not path.is_dir():
        raise InputError(f"needs {folder} below --data-dir")
    return path


def profiled(side: Callable[[], Any], most: int = 6) -> str:
    """Shares of time by function and by calling package, from one more run of a side under a profiler."""
    profile = cProfile.Profile()
    profile.runcall(side)
    functions, packages = Counter[str](), Counter[str]()
    for (file, _, name), (_, _, took, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        builtin = re.search(r"(?:method )'?([\w.]+)", name)
        functions[builtin[1] if file == "~" and builtin else name.strip("<>")] += took
        if file == "~":  # a C function counts for the package that calls it
            for (of, _, _), (_, _, part, _) in callers.items():
                packages[_package(of)] += part
        else:
            packages[_package(file)] += took
    said = [
        ", ".join(
            f"{name} {100 * took / counts.total():.0f} %"
            for name, took in counts.most_common(most)
            if took >= counts.total() / 100
        )
        for counts in (functions, packages)
    ]
    return f"time, profiled: {said[0]}; by package: {said[1]}"


def stages(words: Sequence[str], functions: Mapping[str, str], cache: str) -> str:
    """Shares of a command's time that some functions and their callees take, profiled in a new process.

    `functions` maps names of stages, which may contain each other, to names of functions.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "cProfile", "-o", f"{scratch}/profile", "-m", "laennec", *words]
        environment = {**os.environ, "LAENNEC_CACHE": cache}
        run_command(*command, environment=environment)
        found = pstats.Stats(f"{scratch}/profile")
    took: dict[str, float] = {}
    for (_, _, name), (_, _, _, cumulative, _) in found.stats.items():  # type: ignore[attr-defined]
        took[name] = max(took.get(name, 0.0), cumulative)
    shares = [f"{stage} {100 * took.get(name, 0.0) / found.total_tt:.0f} %" for stage, name in functions.items()]  # type: ignore[attr-defined]
    return f"time, profiled: {', '.join(shares)}"


def _package(file: str) -> str:
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    return "laennec" if "laennec" in parts else "Python"


# start of scripts for separate processes; defines `begin()`, and `peak()` in MB since then
PEAK_MEMORY = """
import pathlib, resource, sys
status, refs = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")
def now(name):
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(name))
def begin():
    global start
    try:
        refs.write_text("5")  # forget the peak so far
    except OSError:
        pass
    start = now("VmRSS")
def peak():
    return now("VmHWM") - start
"""


def in_a_new_process(script: str, *arguments: str) -> list[float]:
    """Run a script in a new process; return the numbers of its last line."""
    said = run_command(sys.executable, "-c", script, *arguments)
    return [float(number) for number in said.strip().splitlines()[-1].split()]


def run_command(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Output of a command; raises InputError with the last line of stderr if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise InputError(f"a measurement failed: {said[-1]}")
    return done.stdout
