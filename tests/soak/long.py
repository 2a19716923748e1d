"""10,000 training steps and 10,000 predicted recordings: memory, open files, threads and temporary files do not grow.

    python tests/soak/long.py --steps 10000 --files 10000 --out docs/results/reliability.json

Both are ordinary commands, each in its own process, which is watched from outside: resident memory, open files, threads
and progress (the last checkpoint, or the lines of the journal). The first fifth is warm-up; the tenth after it is
compared with the last tenth.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import soundfile
import yaml
from rows import parser_of, put

MOST_GROWTH = 0.02
RECIPE = {
    "name": "long",
    "features": {"preset": "song2021", "length": "natural"},
    "encoder": {"type": "cnn", "config": {"channels": [4]}},
    "augment": {"noise": {"probability": 0.5}},
}
BATCH, EPOCH_STEPS = 2, 100


@dataclass(frozen=True)
class Sight:
    """Measurements of a process at one time."""

    done: float
    memory_mb: float
    files: int
    threads: int


def look(pid: int, done: float) -> Sight | None:
    """Measure a process; None once it is gone."""
    place = Path(f"/proc/{pid}")
    try:
        pages = int((place / "statm").read_text().split()[1])
        files, threads = len(os.listdir(place / "fd")), len(os.listdir(place / "task"))
        if not pages or not files:  # it is ending
            return None
        return Sight(done, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads)
    except (OSError, ValueError, IndexError):
        return None


def watch(arguments: list[str], place: Path, done: Callable[[], float | None]) -> list[Sight]:
    """Run a command to its end and measure it ten times a second.

    Raises:
        SystemExit: The command failed.
    """
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        **os.environ, "LAENNEC_CACHE": str(place / "cache"), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"),
    }  # fmt: skip
    sights: list[Sight] = []
    with (place / "said.txt").open("w") as said:
        command = [sys.executable, "-m", "laennec", *arguments]
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        while process.poll() is None:
            far = done()
            if far is not None and (seen := look(process.pid, far)):
                sights.append(seen)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {(place / 'said.txt').read_text()[-2000:]}")
    return sights


_FILES, _THREADS = attrgetter("files"), attrgetter("threads")


def judge(
    out: Path | None, name: str, promise: str, wanted: int, sights: list[Sight], left: list[str], begun: float
) -> bool:
    """Compare the first tenth after warm-up with the last tenth, and write the row."""
    most = max((sight.done for sight in sights), default=0.0)
    early = [s for s in sights if 0.2 * most <= s.done <= 0.3 * most]
    late = [s for s in sights if s.done >= 0.9 * most]
    if not early or not late or most < 0.9 * wanted:
        raise SystemExit(f"{name}: too few sights ({len(early)} and {len(late)}, up to {most:g} of {wanted})")
    memory = [statistics.median(s.memory_mb for s in part) for part in (early, late)]
    growth = memory[1] / memory[0] - 1
    # the minimum of each period, because a file that is just being written is no leak
    files, threads = ([min(of(s) for s in part) for part in (early, late)] for of in (_FILES, _THREADS))
    held = growth < MOST_GROWTH and files[1] <= files[0] and threads[1] <= threads[0] and not left
    figures = {
        "done": wanted, "memory after warm-up": f"{memory[0]:.1f} MB", "at the end": f"{memory[1]:.1f} MB",
        "growth": f"{100 * growth:+.2f} %", "open files": f"{files[0]} and {files[1]}",
        "threads": f"{threads[0]} and {threads[1]}", "temporary files left": len(left),
    }  # fmt: skip
    if left:
        print(f"left: {', '.join(left[:9])}", flush=True)
    put(out, name, promise, figures, held, begun)
    return held


def leftovers(place: Path) -> list[str]:
    """Temporary files and locks that a finished command left."""
    found = [p.name for p in place.rglob(".*") if p.name.endswith((".part", ".old", ".lock", ".writing"))]
    return found + [p.name for p in (place / "tmp").iterdir()]


def train(place: Path, steps: int, out: Path | None) -> bool:
    """Train so many steps on a synthetic corpus, with 100 checkpoints."""
    from laennec.corpora.synthetic import write_corpus

    begun = time.perf_counter()
    # 60 % of the patients are in train
    cycles = math.ceil(BATCH * EPOCH_STEPS / 12 / 0.97)
    corpus = write_corpus(
        place / "corpus", patients=20, recordings_per_patient=1, cycles_per_recording=cycles, max_rate_hz=4000
    )
    recipe, run = place / "recipe.yaml", place / "run"
    settings = {
        **RECIPE,
        "corpus": {"name": "synthetic", "protocol": "patient-60-20-20", "data_dir": str(corpus)},
        "train": {
            "epochs": math.ceil(steps / EPOCH_STEPS), "batch_size": BATCH, "selection_metric": "loss", "threads": 1,
            "save_steps": max(1, steps // 100),
        },
        "output_dir": str(run),
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(settings))

    def done() -> float | None:
        found = [int(m[1]) for p in run.glob("checkpoints/*/checkpoint-*") if (m := re.search(r"-(\d+)$", p.name))]
        return max(found, default=None)

    sights = watch(["train", str(recipe)], place, done)
    promise = f"{steps} training steps: memory grows under 2 % after warm-up, no file is left open or behind"
    return judge(out, "long training", promise, steps, sights, leftovers(place), begun)


def predict(place: Path, files: int, out: Path | None) -> bool:
    """Predict so many recordings of a third of a second, one after the other, into one folder."""
    begun = time.perf_counter()
    sounds, answers = place / "sounds", place / "answers"
    sounds.mkdir()
    draw = np.random.default_rng(0)
    for number in range(files):
        soundfile.write(sounds / f"{number:05d}.wav", draw.normal(0, 0.1, 1200 + number % 300), 4000)
    journal = answers / "laennec.journal.jsonl"

    def done() -> float | None:
        # all lines have nearly the same length
        return journal.stat().st_size if journal.exists() else None

    arguments = ["predict", str(place / "run"), str(sounds), "--out", str(answers), "--format", "json,csv,audacity"]
    sights = watch(arguments, place, done)
    if len(list(answers.glob("*.laennec.json"))) != files:
        raise SystemExit(f"only {len(list(answers.glob('*.laennec.json')))} of {files} recordings were answered")
    bytes_a_file = journal.stat().st_size / files
    sights = [Sight(s.done / bytes_a_file, s.memory_mb, s.files, s.threads) for s in sights]
    promise = f"{files} predicted recordings: memory grows under 2 % after warm-up, no open file is left"
    return judge(out, "long prediction", promise, files, sights, leftovers(place), begun)


def main() -> None:
    """Train, then predict with the trained model."""
    parser: argparse.ArgumentParser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        held = [train(Path(scratch), options.steps, options.out), predict(Path(scratch), options.files, options.out)]
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
