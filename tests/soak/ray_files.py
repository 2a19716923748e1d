"""10,000 recordings on a Ray cluster of two workers: every recording is predicted, and memory does not grow.

    python tests/soak/ray_files.py --files 10000 --out docs/results/reliability.json

The recordings are synthetic, half a second to a second long, and the model is the one in the package. A thread measures
the private memory of this process and Ray's workers (without shared memory, which is Ray's object store). The largest
process during the second half of the recordings may have at most 10 % more than that during the first half.
"""

import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import soundfile
from rows import keep, parser_of

MOST_GROWTH = 0.10
EVERY_S = 1.0
RATE = 4000


@dataclass(frozen=True)
class Sight:
    """Memory at one time, in MB."""

    done: float
    driver: float
    largest_worker: float
    all_workers: float


def own_mb(process: Path) -> float:
    """Memory of a process that it shares with no other; 0 once it is gone."""
    try:
        lines = (process / "status").read_text().splitlines()
        return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon:")), 0.0)
    except OSError:
        return 0.0


def workers() -> list[Path]:
    """Ray's worker processes on this machine that this process started."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            above = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
            if above == os.getpid() and (process / "cmdline").read_bytes().startswith(b"ray::"):
                found.append(process)
        except (OSError, IndexError):
            continue
    return found


class Watch(threading.Thread):
    """Measures memory until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.sights, self.ended = 0.0, list[Sight](), threading.Event()

    def run(self) -> None:
        """Measure memory repeatedly."""
        while not self.ended.wait(EVERY_S):
            sizes = [own_mb(process) for process in workers()]
            self.sights.append(Sight(self.done, own_mb(Path("/proc/self")), max(sizes, default=0.0), sum(sizes)))

    def tell(self, done: float, total: int) -> None:
        """Store the progress."""
        self.done = done


def write_recordings(folder: Path, files: int, seed: int) -> None:
    """Write so many recordings of noise."""
    draw = np.random.default_rng(seed)
    for number in range(files):
        soundfile.write(folder / f"{number:06d}.wav", draw.normal(0, 0.1, draw.integers(RATE // 2, RATE)), RATE)


def answered(out: Path) -> tuple[int, int, int]:
    """Numbers of rows, of recordings in them, and of timelines."""
    import pyarrow.parquet as pq

    names = pq.read_table(out / "laennec.predictions", columns=["recording"])["recording"].to_pylist()
    return len(names), len(set(names)), len(list((out / "laennec.timelines").iterdir()))


def run(sounds: Path, out: Path, watch: Watch) -> int:
    """Predict on a Ray cluster on this machine; return the number of failed recordings."""
    import ray

    from laennec import DEFAULT_MODEL
    from laennec.inference.backends import load_for_prediction
    from laennec.inference.batch.ray_engine import RayWork, run_on_ray
    from laennec.inference.predictor import Predictor

    predictor = Predictor(*load_for_prediction(DEFAULT_MODEL, backend="onnx"), backend="onnx")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
    watch.start()
    work = RayWork(predictor, predictor.identity(False))
    done = run_on_ray(work, [str(sounds)], str(out), workers=2, progress=watch.tell)
    watch.ended.set()
    watch.join()
    ray.shutdown()
    return len(done.failed)


def main() -> None:
    """Write the recordings, predict them and write the row."""
    parser = parser_of(__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sounds, out = Path(scratch, "sounds"), Path(scratch, "out")
        sounds.mkdir()
        write_recordings(sounds, options.files, options.seed)
        watch = Watch()
        failed = run(sounds, out, watch)
        rows, recordings, timelines = answered(out)
    middle = options.files / 2
    early = [sight for sight in watch.sights if 0 < sight.done <= middle]
    late = [sight for sight in watch.sights if sight.done > middle]
    if len(early) < 5 or len(late) < 5:
        raise SystemExit(f"too few sights ({len(early)} and {len(late)}); give more --files")
    figures: dict[str, object] = {
        "recordings": recordings, "rows": rows, "timelines": timelines, "failed": failed,
        "sights": f"{len(early)} and {len(late)}",
    }  # fmt: skip
    flat = True
    for name in ("driver", "largest_worker", "all_workers"):
        before, after = (max(getattr(sight, name) for sight in half) for half in (early, late))
        figures[name.replace("_", " ")] = f"{before:.0f} MB, then {after:.0f} MB ({100 * (after / before - 1):+.1f} %)"
        flat &= name == "all_workers" or after <= (1 + MOST_GROWTH) * before
    every_one = (recordings, rows, timelines, failed) == (options.files, options.files, options.files, 0)
    promise = f"{options.files} recordings on a Ray cluster of two workers: each has its rows, memory grows under 10 %"
    keep(options.out, "ray files", promise, figures, flat and every_one)


if __name__ == "__main__":
    main()
