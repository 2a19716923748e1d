"""The run record, the only source of report and card.

Decisions: one JSON file beside every result (`run.json`), plain values only, written whole or not at all. It states the
data, split, settings, seeds, versions, machine and time of a result.
"""

import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from laennec.errors import InputError
from laennec.files import atomic_write, json_text, wait_for_lock
from laennec.memory import peak_memory_mb
from laennec.untrusted import MOST_BYTES, read_json

_PACKAGES = (
    "laennec", "torch", "transformers", "datasets", "accelerate", "peft", "huggingface_hub", "numpy", "scipy",
    "scikit-learn", "soundfile", "soxr",
)  # fmt: skip
_RUNS = ("run.json", "pretrain.json")
_COMING = "coming"  # key that marks an evaluation that is counted but not shown yet
# types of the entries of a run's record, where it has them
_KINDS: dict[str, type] = {
    **dict.fromkeys(("config", "corpus", "operating_points", "evaluated", "versions", "hardware", "timings"), dict),
    **dict.fromkeys(("evaluations", "history", "calibrations", "labels"), list),
}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """What the computation ran on: processor, cores, memory, accelerator."""
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "system": f"{platform.system()} {platform.machine()}",
        "peak_memory_mb": round(peak_memory_mb()),
    }


class Timings:
    """Wall-clock seconds of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the block's time to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


def training_history(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry per phase and epoch of transformers' log: loss, named loss terms, and validation results."""
    epochs: dict[tuple[str, float], dict[str, Any]] = {}
    for entry in log_history:
        epoch = entry.get("epoch")
        if epoch is None or "train_runtime" in entry:
            continue
        key = (str(entry.get("phase", "")), round(epoch, 6))
        row = epochs.setdefault(key, {"phase": key[0], "epoch": key[1]})
        if "loss" in entry:
            row["loss"] = entry["loss"]
            row["learning_rate"] = entry.get("learning_rate")
            row["loss_terms"] = {k.removeprefix("term_"): v for k, v in entry.items() if k.startswith("term_")}
            # how many pairs (or groups of frames, or rows) each term had in a step
            row["loss_counts"] = {k.removeprefix("count_"): v for k, v in entry.items() if k.startswith("count_")}
            for name, prefix in (("grad_ratios", "grad_ratio_"), ("balance", "balance_")):
                if found := {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}:
                    row[name] = found
        validation = {k.removeprefix("eval_"): v for k, v in entry.items() if k.startswith("eval_")}
        if validation:
            row["validation"] = {k: v for k, v in validation.items() if not k.endswith(("runtime", "per_second"))}
    # in the order of phases and of their epochs
    return list(epochs.values())


def write_record(path: str | Path, record: dict[str, Any]) -> None:
    """Write a run record as JSON; numbers that are not finite become null."""
    plain = to_jsonable_python(record, inf_nan_mode="null", fallback=_plain)
    text = json_text(plain, indent=2, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # a file name that is not valid UTF-8
        text = json_text(plain, indent=2)
    with atomic_write(path) as file:
        file.write(text)


@contextmanager
def counted_evaluation(
    path: str | Path, evaluation: dict[str, Any], shown_in: str | Path | None = None
) -> Iterator[None]:
    """Count an evaluation in a run's record before the block shows its results.

    The count is written first, so that no result is seen uncounted; if the process is killed before it shows the
    results, `settled_evaluations` removes the count. A "result" replaces that of an earlier evaluation in the same
    "folder".
    """
    with wait_for_lock(path):
        record = read_record(path)
        before = [*(record.get("evaluations") or [])]
        if shown_in is not None:
            write_record(path, record | {"evaluations": [*before, evaluation | {_COMING: str(shown_in)}]})
        yield
        write_record(path, record | {"evaluations": _latest_results([*before, evaluation])})


def settled_evaluations(path: str | Path) -> dict[str, Any]:
    """A run's record, without evaluations that were counted but never shown because of a kill."""
    record = read_record(path)
    if not any(_COMING in evaluation for evaluation in record.get("evaluations") or []):
        return record
    with wait_for_lock(path):  # another evaluation of this run has ended by then
        record = read_record(path)
        record["evaluations"] = shown_evaluations(record)
        write_record(path, record)
    return record


def shown_evaluations(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluations that a run's record counts, without those that were never shown because of a kill."""
    shown = []
    for evaluation in record.get("evaluations") or []:
        place = evaluation.get(_COMING)
        if place is None:
            shown.append(evaluation)
        elif _shows(Path(place), evaluation):
            shown.append({name: value for name, value in evaluation.items() if name != _COMING})
    return _latest_results(shown)


def without_results(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations, without their results."""
    results = ("result", "folder")
    return [{name: value for name, value in evaluation.items() if name not in results} for evaluation in evaluations]


def _latest_results(evaluations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations; of several with results in one folder only the last keeps its result."""
    last = {evaluation.get("folder"): row for row, evaluation in enumerate(evaluations) if "result" in evaluation}
    return [
        evaluation if last.get(evaluation.get("folder")) in (row, None) else without_results([evaluation])[0]
        for row, evaluation in enumerate(evaluations)
    ]


def _shows(folder: Path, evaluation: dict[str, Any]) -> bool:
    """Whether a folder holds the results of this evaluation."""
    try:
        evaluated = read_record(folder / "run.json").get("evaluated") or {}
    except InputError:
        return False
    return all(evaluated.get(name) == evaluation.get(name) for name in ("split", "created", "command"))


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a run record."""
    try:
        record = read_json(path, MOST_BYTES)
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the run record: {error.strerror}; give the folder of a finished run"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: the run record is not valid JSON ({error}); train the run again") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: the run record is no JSON object; train the run again")
    for name, kind in _KINDS.items() if Path(path).name in _RUNS else ():
        if not isinstance(record.get(name), kind | None):
            raise InputError(f"{path}: {name} of the run record is no {kind.__name__}; train the run again")
    evaluations = record.get("evaluations") or []
    if not isinstance(evaluations, list) or not all(isinstance(evaluation, dict) for evaluation in evaluations):
        raise InputError(f"{path}: evaluations of the run record are no list of dicts; train the run again")
    return record


def read_run(path: str | Path) -> dict[str, Any]:
    """Read the record of a run, which must hold its settings, corpus and split."""
    record = read_record(path)
    corpus = record.get("corpus") or {}
    if not record.get("config") or not isinstance(corpus.get("name"), str):
        raise InputError(f"{path}: the run record has no settings or no corpus; train the run again")
    if not isinstance(corpus.get("provenance"), dict):
        raise InputError(f"{path}: the run record has no split; train the run again")
    return record


def refuse_absent_split(run: dict[str, Any], split: str) -> None:
    """Refuse a split that the corpus of a run does not have, before anything slow begins."""
    if "held_out" not in run:  # early records
        return
    corpus, known = run["corpus"], ["train", "validation", *run["held_out"]]
    published = ("test_intra", "test_inter") if corpus["provenance"].get("protocol") == "sprsound-official" else ()
    if split in known or split in published:  # may have been added since training
        return
    lacking = [name for name in published if name not in known]
    also = f"; {' and '.join(lacking)} had no recordings in training" if lacking else ""
    raise InputError(f"{corpus['name']}: no split {split!r}; choose split (--split) from {', '.join(known)}{also}")


def _plain(value: Any) -> Any:
    """A number or an array of numpy or torch as numbers, any other object as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
