"""Comparison with other toolkits on the same recordings with the same network: `python -m benchmarks.peers`.

Decisions: each peer has its own environment with the same torch, and each of its jobs is a separate process. CPU
seconds are measured, not wall time, because machines are shared; the sides take turns, and the fastest of several runs
counts. Weights are random, because released ones are not available offline and do not change the cost. A peer that
cannot do a job here gets a row with the reason. Peers that are not named keep their rows in the result file; each row
has laennec's figure from the same run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import soundfile

import laennec
from benchmarks import as_table
from benchmarks.row import Row, Setting, needs
from laennec.corpora import load_corpus
from laennec.corpora.base import column_of
from laennec.errors import InputError
from laennec.files import atomic_write
from laennec.training.record import hardware, versions

TORCH = "torch==2.13.0"
JOBS = {"embed": "embed {clips} clips", "train": "one training epoch over {clips} clips"}
CLIP_S, CLIPS_OF_A_RECORDING, FIRST = 2.0, 4, 2  # two-second windows; recordings before the clock starts
PATIENCE_S = 60


@dataclass(frozen=True)
class Peer:
    """A toolkit that is compared with laennec.

    Attributes:
        requirement: The package to install.
        how: How it does the jobs, in words.
        script: Python code whose error shows why the peer cannot do the jobs here; empty if peers_sides.py has them.
    """

    requirement: str
    how: str = ""
    script: str = ""


PEERS = {
    "opensoundscape": Peer(
        "opensoundscape==0.13.2",
        "CNN.embed and CNN.train with TorchSpectrogramPreprocessor: reads each clip by itself, decibels, no "
        "augmentation; training also scores itself and saves two models",
    ),
    "speechbrain": Peer(
        "speechbrain==1.1.2",
        "DynamicItemDataset, Resample (torchaudio), Fbank, Brain.fit: reads each clip by itself, decibels",
    ),
    "autrainer": Peer(
        "autrainer==0.10.0",
        "Inference.embed_directory file by file, ModularTaskTrainer, PannMel, decibels: the clips are first cut into "
        "files; training also scores 16 clips twice, draws its curves and saves its state",
    ),
    "birdnet": Peer(
        "birdnet==1.3.1",
        "its own network, a download",
        "import birdnet; birdnet.load('acoustic', '2.4', 'tf', library='litert')",
    ),
    "perch-hoplite": Peer(
        "perch-hoplite==1.0.2",
        "a database of embeddings of released networks, TensorFlow's and downloads",
        "from perch_hoplite.zoo import model_configs; model_configs.load_model_by_name('perch_v2_cpu')",
    ),
    "avex": Peer(
        "avex==1.4.0",
        "released networks, a download",
        "import avex; avex.load_model('esp_aves2_sl_beats_all', device='cpu')",
    ),
    "bacpipe": Peer("bacpipe"),
}


def clips_of(folder: Path, recordings: int) -> list[dict[str, Any]]:
    """The first windows of evenly spaced recordings, with the labels of the events that they overlap.

    Args:
        folder: SPRSound's folder, with train/wav and train/json.
        recordings: Number of recordings.
    """
    table = load_corpus("sprsound", folder, protocol="none")["all"]
    columns = ("recording_path", "start_s", "end_s", "crackle", "wheeze", "part")
    events: dict[str, list[tuple[float, float, int, int]]] = {}
    for path, start, end, crackle, wheeze, part in zip(*(column_of(table, name) for name in columns), strict=True):
        if part == "train":
            events.setdefault(path, []).append((start, end, crackle, wheeze))
    needed = CLIP_S * CLIPS_OF_A_RECORDING
    chosen: list[dict[str, Any]] = []
    paths = [path for path in sorted(events) if soundfile.info(path).duration >= needed]
    if len(paths) < recordings:
        raise InputError(f"{folder}: {len(paths)} recordings of at least {needed:g} s; {recordings} are needed")
    for path in paths[:: len(paths) // recordings][:recordings]:
        rate = soundfile.info(path).samplerate
        for number in range(CLIPS_OF_A_RECORDING):
            start, end = number * CLIP_S, (number + 1) * CLIP_S
            inside = [event for event in events[path] if event[0] < end and event[1] > start]
            flags = {
                name: max((event[2 + i] for event in inside), default=0) for i, name in enumerate(("crackle", "wheeze"))
            }
            chosen.append({"path": path, "rate": rate, "start_s": start, "end_s": end, **flags})
    return chosen


def environment(name: str, peer: Peer, folder: Path) -> Path:
    """The Python of a peer's environment, which is created if it is missing."""
    python = folder / name / "bin" / "python"
    done = folder / name / "installed"
    if done.exists():
        return python
    uv = [str(Path(sys.executable).with_name("uv"))]
    _install([*uv, "venv", "--quiet", "--clear", "--seed", "--python", sys.executable, str(folder / name)])
    # by pip, as in the Makefile: pip takes the CPU build of torch if it is available
    _install([str(python), "-m", "pip", "install", "-qq", TORCH])
    _install([*uv, "pip", "install", "--quiet", "--python", str(python), TORCH, peer.requirement])
    if "+cpu" in next((folder / name).glob("lib/*/site-packages/torch/version.py")).read_text():
        # torchaudio's wheel needs CUDA; it can be imported without its compiled part, which is not used here
        for library in (folder / name).glob("lib/*/site-packages/torchaudio/lib/*.so"):
            library.unlink()
    done.touch()
    return python


def _install(command: Sequence[str]) -> None:
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise InputError(f"cannot be installed: {_why(made.stderr)}")


def _why(text: str) -> str:
    """The message of a resolver or an exception as one line, without what stands in brackets after it."""
    lines = [line.strip() for line in text.strip().splitlines() if not line.startswith("WARNING")]
    causes = [line for line in lines if "Because" in line or "cause:" in line or "╰─▶" in line]
    said = (causes or lines[-1:] or ["no message"])[0]
    return said.removeprefix("cause:").removeprefix("╰─▶").strip().replace("|", "/").split(" (")[0][:300]


def measure(python: Path, side: str, job: str, clips: Path) -> dict[str, float]:
    """Run a job of a side in its environment.

    Returns:
        cpu_s, before_s and peak_mb.
    """
    with tempfile.TemporaryDirectory() as scratch:
        alone = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LAENNEC_CACHE": scratch}
        # this checkout of laennec, by its absolute path
        alone["PYTHONPATH"] = str(Path(laennec.__file__).parents[1]) if side == "laennec" else ""
        script = str(Path(__file__).with_name("peers_sides.py"))
        done = subprocess.run(
            [str(python), script, side, job, str(clips)], capture_output=True, text=True, env=os.environ | alone,
            cwd=scratch,
        )  # fmt: skip
    if done.returncode:
        raise InputError(f"{job} failed: {_why(done.stderr)}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def refusal(python: Path, peer: Peer) -> str:
    """Why a peer cannot do the jobs here: the last line of the error of its documentation's first step."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(python), "-c", peer.script]
        try:
            tried = subprocess.run(command, capture_output=True, text=True, cwd=scratch, timeout=PATIENCE_S)
            said = tried.stderr if tried.returncode else "it can be had, but no side is written for it"
        except subprocess.TimeoutExpired as error:  # it retries without end
            said = (error.stderr or b"no answer").decode(errors="replace")
    return f"{peer.how}: {_why(said)}"


def compare(peers: Sequence[str], clips: list[dict[str, Any]], environments: Path, repeats: int) -> list[Row]:
    """The rows of all peers."""
    rows: list[Row] = []
    sides: dict[str, Path] = {"laennec": Path(sys.executable)}
    for name in peers:
        try:
            python = environment(name, PEERS[name], environments)
            if PEERS[name].script:
                raise InputError(refusal(python, PEERS[name]))
            sides[name] = python
        except InputError as error:
            rows.append(Row(f"{PEERS[name].requirement}", None, None, "", None, "", f"not measured here: {error}"))
    if len(sides) == 1:
        return rows
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "clips.json")
        first = FIRST * CLIPS_OF_A_RECORDING
        file.write_text(json.dumps({"first": clips[:first], "clips": clips[first:]}))
        best, failed = _best(sides, file, repeats)
    measured = []
    for job, name in product(JOBS, [name for name in sides if name != "laennec"]):
        measured += _rows(job, name, len(clips) - first, best, failed)
    return measured + rows


def _best(sides: dict[str, Path], file: Path, repeats: int) -> tuple[dict[Any, dict[str, float]], dict[Any, str]]:
    """The minimum of each figure over the repeats, by side and job, and the reasons of failures."""
    best: dict[Any, dict[str, float]] = {}
    failed: dict[Any, str] = {}
    for _, job, (side, python) in product(range(repeats), JOBS, sides.items()):
        if (side, job) in failed:
            continue
        try:
            figures = measure(python, side, job, file)
        except InputError as error:
            failed[side, job] = str(error)
            continue
        known = best.get((side, job), figures)
        best[side, job] = {name: min(known[name], figures[name]) for name in figures}
    return best, failed


def _rows(job: str, peer: str, clips: int, best: dict[Any, dict[str, float]], failed: dict[Any, str]) -> list[Row]:
    """CPU seconds and memory of one job, laennec against one peer."""
    what = f"{JOBS[job].format(clips=clips)}: {PEERS[peer].requirement}"
    if ("laennec", job) in failed:
        raise InputError(f"laennec: {failed['laennec', job]}")
    own, other = best["laennec", job], best.get((peer, job))
    if other is None:
        return [Row(what, own["cpu_s"], None, "CPU s", None, "", f"not measured here: {failed[peer, job]}")]
    before = f"imports and first clips, before the clock: {own['before_s']:.1f} s, theirs {other['before_s']:.1f} s"
    note = f"theirs: {PEERS[peer].how}; {before}"
    memory = "peak of the whole process, imports included"
    return [
        Row(what, own["cpu_s"], other["cpu_s"], "CPU s", own["cpu_s"] / other["cpu_s"], "", note),
        Row(f"{what}, memory", own["peak_mb"], other["peak_mb"], "MB", own["peak_mb"] / other["peak_mb"], "", memory),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("peers", nargs="*", help=f"which peers (default: all): {', '.join(PEERS)}")
    parser.add_argument("--data-dir", required=True, help="folder with sprsound")
    parser.add_argument("--out", help="write the table as JSON here")
    parser.add_argument("--recordings", type=int, default=64, help="how many, four clips of each (default: 64)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; the fastest counts (default: 3)")
    default = Path(tempfile.gettempdir()) / "laennec-peers"
    parser.add_argument("--environments", type=Path, default=default, help=f"folder for them (default: {default})")
    options = parser.parse_args()
    if unknown := [name for name in options.peers if name not in PEERS]:
        raise InputError(f"unknown peer {unknown[0]!r}; the peers are {', '.join(PEERS)}")
    folder = needs(Setting(Path(options.data_dir), None, options.repeats), "sprsound")
    clips = clips_of(folder, options.recordings + FIRST)
    rows = compare(options.peers or list(PEERS), clips, options.environments.resolve(), options.repeats)
    result: dict[str, Any] = {"versions": versions(), "hardware": hardware(), "rows": [asdict(row) for row in rows]}
    if options.out:
        if Path(options.out).is_file():  # peers that are not named keep their rows
            asked = [PEERS[name].requirement for name in options.peers or PEERS]
            kept = json.loads(Path(options.out).read_text(encoding="utf-8"))["rows"]
            result["rows"] += [row for row in kept if not any(name in row["name"] for name in asked)]
        with atomic_write(options.out) as file:
            json.dump(result, file, indent=2, allow_nan=False)
    print(as_table(rows, result))


if __name__ == "__main__":
    main()
