"""kill -9 at any moment: the same command, run again, ends as if it had not been killed.

    python tests/soak/kills.py --kills 50 --aimed 100 --out docs/results/reliability.json

Each command runs on a synthetic corpus and is killed, either at a random moment or (where the system allows ptrace)
exactly before a random change of its output folder or of the caches: a file created, written, synced, renamed or
removed. It is run again until it ends by itself. Its files must be bit for bit those of an undisturbed run, with no
temporary file beside them, in the caches or in the temporary folder; needing any manual step counts as a failure. The
commands run in forks of a process that has imported the libraries, so that kills hit work and not imports.
"""

import hashlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import pandas as pd  # noqa: E402
import yaml  # noqa: E402
from rows import parser_of, put  # noqa: E402
from traced import NEEDS_ROOM, Traced, adopt, outlived, run_traced, timed  # noqa: E402

from runs import what_it_left  # noqa: E402

RECIPE: dict[str, Any] = {
    "corpus": {"name": "synthetic", "protocol": "patient-60-20-20"},
    "features": {"preset": "song2021", "length": "natural"},
    "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
    "augment": {"noise": {"probability": 0.5}, "mix": {"method": "mixup", "domain": "features"}},
    "train": {"epochs": 4, "batch_size": 8, "selection_metric": "loss", "save_steps": 2},
    "head": {"threshold_rule": "youden"},
}
FROZEN = {
    **RECIPE,
    "encoder": {**RECIPE["encoder"], "trainable": "frozen"},
    "augment": {"noise": {"probability": 0.5}, "copies": 2},
}
CORPUS = {"patients": 16, "recordings_per_patient": 1, "cycles_per_recording": 4, "max_rate_hz": 4000}
TEMPORARY = (".part", ".old", ".incomplete", ".tmp", ".writing")
TIMED = (".log", ".cost.json", "-cost.png", "report.html")
# keys of records that say when, where and how long a command ran
PASSING = ("created", "command", "line", "timings", "hardware", "seconds", "peak_memory_mb", "cost")


def command(arguments: list[str], cache: Path, said: Path) -> Callable[[], int]:
    """A function for a child process: run one command with its own caches, and write its output to the file `said`."""

    def work() -> int:
        words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(words, stream)
        # the imported libraries have read the environment already
        os.environ.update(LAENNEC_CACHE=str(cache), TMPDIR=str(cache.parent / f"{cache.name}-tmp"))
        tempfile.tempdir = os.environ["TMPDIR"]
        from laennec.cli.main import main

        return main(arguments)

    return work


def digest(path: Path) -> str:
    """The hash of a file's content; records are hashed without the keys of PASSING."""
    content = path.read_bytes()
    if path.name in ("run.json", "laennec.json", "recipe.json", "results.json"):
        content = json.dumps(lasting(json.loads(content)), sort_keys=True).encode()
    if path.suffix == ".parquet":
        content = pd.read_parquet(io.BytesIO(content)).to_csv().encode()
    return hashlib.sha256(content).hexdigest()


def lasting(value: Any) -> Any:
    """A record without the values that differ from run to run."""
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if k not in PASSING}
    return [lasting(v) for v in value] if isinstance(value, list) else value


def tree(folder: Path) -> dict[str, str]:
    """Hashes of all files in a folder, temporary ones included."""
    return {p.relative_to(folder).as_posix(): digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def run_left(out: Path) -> object:
    """Weights, predictions and record of a training, and the names of all its files."""
    return what_it_left(out), sorted(p.relative_to(out).as_posix() for p in out.rglob("*"))


def evaluation_left(out: Path) -> tuple[object, int]:
    """Metrics, predictions and report of an evaluation, and the number of evaluations in the run record."""
    place = out / "evaluation-test"
    # the report and the copied record also contain this number, which is compared separately
    files = {name: text for name, text in tree(place).items() if name not in ("report.html", "run.json")}
    record = {k: v for k, v in json.loads((place / "run.json").read_text()).items() if k != "evaluations"}
    report = (place / "report.html").stat().st_size > 10_000
    return (files, lasting(record), report), len(json.loads((out / "run.json").read_text())["evaluations"])


def evaluation_left_late(out: Path) -> object:
    """As `evaluation_left`, after a kill when the results were in place: the second run is another evaluation."""
    kept, times = evaluation_left(out)
    return kept, times > 1


def study_left(out: Path) -> object:
    """Runs, scores and results of a study without files that contain times, and the names of all its files."""
    files = {name: text for name, text in tree(out).items() if not name.endswith(TIMED)}
    return files, sorted(p.relative_to(out).as_posix() for p in out.rglob("*"))


def cache_left(cache: Path) -> object:
    """Contents of the cached waveforms and embeddings, and the names of all files in the caches."""
    if not cache.exists():
        return None
    made = {part: tree(cache / part) for part in ("waveforms", "embeddings") if (cache / part).exists()}
    # `datasets` keeps its locks after every run; hashes are stored only for files older than some seconds
    kept = [p for p in cache.rglob("*") if p.suffix != ".lock" or p.name.startswith(".")]
    names = sorted(p.relative_to(cache).as_posix() for p in kept if p.relative_to(cache).parts[0] != "hashes")
    return made, names


@dataclass
class Case:
    """A command, the function that reads its results, and the preparation it needs."""

    name: str
    arguments: Callable[[Path], list[str]]
    left: Callable[[Path], object]
    is_done: Callable[[Path], bool] = lambda out: False
    late: Callable[[Path], object] | None = None  # compared after a kill of a finished command; None: `left`
    prepare: Callable[[Path], object] = lambda out: None
    share: int = 1


class Soak:
    """One case under kills."""

    def __init__(self, case: Case, place: Path, draw: random.Random) -> None:
        self.case, self.place, self.draw = case, place, draw
        self.killed, self.rounds, self.hits = 0, 0, Counter[str]()
        self.full, self.survived = 0, 0
        self.faults: list[str] = []
        place.mkdir()
        self.out, self.cache, self.said = place / "out", place / "cache", place / "said.txt"
        self._begin()
        work = command(case.arguments(self.out), self.cache, self.said)
        begun = time.perf_counter()
        if timed(work, None) != 0:
            raise SystemExit(f"{case.name}: does not even run undisturbed: {self.said.read_text()[-2000:]}")
        self.seconds = time.perf_counter() - begun
        self.wanted = self._left(case.left)

    def _begin(self) -> None:
        """Start a new round: remove all files, and prepare what the case needs."""
        for path in (self.out, self.cache, self.place / "cache-tmp"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.place.glob(".*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.place / "cache-tmp").mkdir()
        self.said.write_text("")
        self.case.prepare(self.out)

    def _temporary(self) -> list[str]:
        """Temporary files that a command left."""
        temporary = [
            p.relative_to(self.place).as_posix()
            for p in self.place.rglob("*")
            if p.name.endswith(TEMPORARY) or (p.name.startswith(".") and p.name.endswith(".lock"))
        ]
        # onnxruntime writes the id of a session to .ses, in some processes
        return temporary + [f"cache-tmp/{p.name}" for p in (self.place / "cache-tmp").iterdir() if p.name != ".ses"]

    def _left(self, left: Callable[[Path], object]) -> Any:
        return left(self.out), cache_left(self.cache), self._temporary()

    def at_moments(self, kills: int) -> None:
        """Kill at moments drawn over the length of an undisturbed run."""
        wanted = self.killed + kills

        def once(work: Callable[[], int]) -> int | None:
            after = self.draw.uniform(0.02, 1.0) * self.seconds if self.killed < wanted else None
            return timed(work, after)

        while self.killed < wanted:
            self._round(once)

    def at_changes(self, kills: int) -> None:
        """Kill before random changes: 30 % drawn from all, 70 % from those that are no write or chmod."""
        self._begin()
        folders = [self.out, self.cache, self.place]
        changes = run_traced(command(self.case.arguments(self.out), self.cache, self.said), folders).changes
        changes = [change for change in changes if change[1] != str(self.said)]
        telling = [n for n, (what, _) in enumerate(changes, 1) if what not in ("write", "chmod")]
        wanted = self.killed + kills

        def once(work: Callable[[], int]) -> int | None:
            if self.killed >= wanted:
                return timed(work, None)
            at = self.draw.choice(telling) if self.draw.random() < 0.7 else self.draw.randint(1, len(changes))
            seen = run_traced(work, folders, at)
            if seen.code is None:
                self.hits[seen.changes[at - 1][0]] += 1
            return seen.code

        while self.killed < wanted:
            before = self.killed
            self._round(once)
            if self.killed == before:  # the command ended before the drawn change
                wanted -= 1

    def at_full_disks(self, tries: int) -> None:
        """Fill the disk at a random change: the command reports it, and continues once there is room."""
        self._begin()
        folders = [self.out, self.cache, self.place / "cache-tmp"]
        changes = run_traced(command(self.case.arguments(self.out), self.cache, self.said), folders).changes
        killed = self.killed
        needing = [n for n, (what, _) in enumerate(changes, 1) if what in NEEDS_ROOM]
        for at in self.draw.sample(needing, min(tries, len(needing))):
            full = [at]

            def once(work: Callable[[], int], full: list[int] = full, at: int = at) -> int | None:
                if not full:
                    return timed(work, None)
                code = run_traced(work, folders, full_from=full.pop()).code
                said = "".join(path.read_text() for path in (*self.out.rglob("*.log"), self.said))
                temporary = sorted({*self._temporary()} - {*self.wanted[2]})
                if code not in (0, 2) or "Traceback" in said or temporary:
                    self.faults.append(f"full disk: exit {code}, left {temporary}: {said[-300:]}")
                    print(f"  {self.case.name}, full at {changes[at - 1]}: {self.faults[-1]}", flush=True)
                self.survived += code == 0
                return 0 if code == 0 else None

            self._round(once)
            self.full += 1
        self.killed = killed  # full disks are no kills

    def _round(self, once: Callable[[Callable[[], int]], int | None]) -> None:
        """Run the command until it ends by itself, then compare its files."""
        self.rounds += 1
        self._begin()
        work = command(self.case.arguments(self.out), self.cache, self.said)
        compare, wanted = self.case.left, self.wanted
        for _ in range(50):
            code = once(work)
            if left := outlived():
                self.faults.append(f"still at work after the command's end: {left}")
            if code is not None:
                break
            self.killed += 1
            if self.case.is_done(self.out):
                code = once_more(work)
                if self.case.late is not None:
                    compare, wanted = self.case.late, ((self.wanted[0][0], True), *self.wanted[1:])
                break
        if code != 0:
            self.faults.append(f"exit {code}: {self.said.read_text().strip().splitlines()[-1:]}")
        elif (left := self._left(compare)) != wanted:
            self.faults.append(f"differs: {difference(wanted, left)}")
        else:
            return
        print(f"  {self.case.name}, run {self.rounds}: {self.faults[-1]}", flush=True)


def once_more(work: Callable[[], int]) -> int:
    """Exit code of running a finished command again; 2 counts as 0, because it may refuse to run again."""
    code = timed(work, None)
    return 0 if code == 2 else int(code or 0)


def difference(wanted: Any, left: Any, path: str = "") -> str:
    """The first difference between two results, in words."""
    if type(wanted) is not type(left):
        return f"{path}: {str(wanted)[:200]} -> {str(left)[:200]}"
    if isinstance(wanted, dict):
        for key in [*wanted, *(k for k in left if k not in wanted)]:
            if wanted.get(key) != left.get(key):
                return difference(wanted.get(key), left.get(key), f"{path}/{key}")
    if isinstance(wanted, list | tuple):
        if len(wanted) != len(left):
            extra = [v for v in left if v not in wanted], [v for v in wanted if v not in left]
            return f"{path}: more {str(extra[0])[:300]}, less {str(extra[1])[:300]}"
        for number, (one, other) in enumerate(zip(wanted, left, strict=True)):
            if one != other:
                return difference(one, other, f"{path}/{number}")
    return f"{path}: {str(wanted)[:200]} -> {str(left)[:200]}"


def cases_in(place: Path, quick: bool) -> list[Case]:
    """Every command that writes results."""
    corpus, finished = place / "corpus", place / "finished"

    def recipe(values: dict[str, Any]) -> Callable[[Path], list[str]]:
        def arguments(out: Path) -> list[str]:
            path = place / f"{hashlib.sha256(str((out, values)).encode()).hexdigest()[:8]}.yaml"
            corpus_settings = {**values["corpus"], "data_dir": str(corpus)}
            path.write_text(
                yaml.safe_dump({**values, "corpus": corpus_settings, "name": "soak", "output_dir": str(out)})
            )
            return ["train", str(path)]

        return arguments

    def flags(*words: str) -> list[str]:
        return [word for key, value in CORPUS.items() for word in ("--option", f"{key}={value}")] + list(words)

    for arguments in (["prepare", "synthetic", "--data-dir", str(corpus), *flags()], recipe(RECIPE)(finished)):
        said = place / "said.txt"
        (place / "first-tmp").mkdir(exist_ok=True)
        if timed(command(arguments, place / "first", said), None) != 0:
            raise SystemExit(f"nothing to work with: {said.read_text()[-2000:]}")

    def is_run(out: Path) -> bool:
        return (out / "run.json").exists()

    def study(out: Path) -> list[str]:
        methods = [{"name": "one", "recipe": recipe(RECIPE)(out)[1]}]
        methods.append({**methods[0], "name": "two", "set": {"train.epochs": 2}})
        content = {"methods": methods, "seeds": [0, 1], "baseline": "one", "output_dir": str(out)}
        (place / "study.yaml").write_text(yaml.safe_dump(content))
        return ["study", str(place / "study.yaml")]

    def copy(out: Path) -> object:
        return shutil.copytree(finished, out)

    formats = "json,csv,audacity,raven,picture"
    return [
        Case("train", recipe(RECIPE), run_left, is_run, share=3),
        Case("train on embeddings", recipe(FROZEN), run_left, is_run, share=3),
        Case(
            "evaluate",
            lambda out: ["evaluate", str(out)],
            evaluation_left,
            is_done=lambda out: (out / "evaluation-test").exists(),
            late=evaluation_left_late,
            prepare=copy,
            share=2,
        ),
        Case("export", lambda out: ["export", str(finished), "--out", str(out)], tree),
        Case(
            "export again",
            lambda out: ["export", str(finished), "--out", str(out)],
            tree,
            prepare=lambda out: shutil.copytree(finished / "model", out),
        ),
        *(
            [Case("export onnx", lambda out: ["export", str(finished), "--out", str(out), "--format", "onnx"], tree)]
            if not quick
            else []
        ),
        Case(
            "export a corpus",
            lambda out: ["prepare", "synthetic", "--data-dir", str(corpus), "--export", str(out)],
            tree,
            share=2,
        ),
        Case("write a corpus", lambda out: ["prepare", "synthetic", "--data-dir", str(out), *flags()], tree),
        Case(
            "predict",
            lambda out: ["predict", str(finished), str(corpus), "--out", str(out), "--format", formats],
            tree,
            share=2,
        ),
        Case("study", study, study_left),
    ]


def import_all() -> None:
    """Import the libraries of the commands once, before forking; nothing may be computed here."""
    import torch

    torch.set_num_threads(1)


def main() -> None:
    """Kill every command and write the rows."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    parser = parser_of(__doc__)
    parser.add_argument("--kills", type=int, default=50, help="at random moments, over all commands")
    parser.add_argument("--aimed", type=int, default=100, help="before changes of files, over all commands")
    parser.add_argument("--full", type=int, default=50, help="disks full from a drawn change on, over all commands")
    parser.add_argument("--quick", action="store_true", help="without ONNX")
    parser.add_argument("--only", help="commands whose name holds this")
    options = parser.parse_args()
    import_all()
    adopt()
    aims = Traced.possible()
    draw = random.Random(options.seed)
    figures: dict[str, Any] = {"at random moments": 0, "before a change of a file": 0, "runs": 0}
    disks = {"full from a drawn change on": 0, "of these the command ended well nevertheless": 0}
    by_command: dict[str, int] = {}
    hits, faults, disk_faults = Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        cases = [c for c in cases_in(Path(scratch), options.quick) if not options.only or options.only in c.name]
        whole = sum(case.share for case in cases)
        for number, case in enumerate(cases):
            soak = Soak(case, Path(scratch) / f"case-{number}", draw)
            soak.at_moments(-(-options.kills * case.share // whole))
            figures["at random moments"] += soak.killed
            if aims:
                before = soak.killed
                soak.at_changes(-(-options.aimed * case.share // whole))
                figures["before a change of a file"] += soak.killed - before
            figures["runs"] += soak.rounds
            faults_before = len(soak.faults)
            faults += faults_before
            hits += soak.hits
            if aims:
                soak.at_full_disks(-(-options.full * case.share // whole))
                disk_faults += len(soak.faults) - faults_before
            for name, count in zip(disks, (soak.full, soak.survived), strict=True):
                disks[name] += count
            by_command[case.name] = soak.killed
            seen = f"{soak.killed} kills, {soak.full} full disks, {soak.rounds} runs, {len(soak.faults)} at fault"
            print(f"{case.name}: {seen}", flush=True)
    disks["not continued, a temporary file left, or not the same bits"] = disk_faults
    figures["not continued, or not the same bits"] = faults
    figures["of the commands"] = ", ".join(f"{name} {kills}" for name, kills in by_command.items())
    figures["of the changes"] = ", ".join(f"{name} {kills}" for name, kills in sorted(hits.items())) or "none aimed at"
    of = f" of {options.only}" if options.only else ""  # a run with --only must not replace the row of all commands
    if disks["full from a drawn change on"]:
        goes_on = "one line says so; with room again the same command goes on, bit for bit"
        put(options.out, f"full disks{of}", f"a full disk at any write{of}: {goes_on}", disks, held=disk_faults == 0)
    if any(by_command.values()):
        goes_on = "the same command goes on, and leaves what an undisturbed run leaves, bit for bit"
        put(options.out, f"kills{of}", f"kill -9 at any moment{of}: {goes_on}", figures, held=faults == 0)
    sys.exit(bool(faults or disk_faults))


if __name__ == "__main__":
    main()
