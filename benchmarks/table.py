"""The table of speed and memory ratios to what users would use instead.

Decisions: each row prints the ratio and the project's target. A row that cannot be measured here says so; nothing is
estimated.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.breathing import breathing
from benchmarks.cost import rates
from benchmarks.curves import curves
from benchmarks.encoders import natural_length
from benchmarks.growth import growth, processes
from benchmarks.losses import large_batches
from benchmarks.pipeline import waiting_for_data
from benchmarks.prediction import evaluation, in_the_package, two_jobs, whole_recordings
from benchmarks.row import Row, Setting, fastest, run_command
from benchmarks.sound import augmentation, filter_bank, memory, reading
from benchmarks.training import encoding_again, frozen_experiment, padded_step, trainer_step, validation
from benchmarks.transformer import encoder_forward, fine_tuning
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.files import atomic_write, scratch_folder
from laennec.rendering import plain_table
from laennec.training.record import hardware, versions


def start_up(setting: Setting) -> list[Row]:
    """Time until `import laennec` and `laennec --help` are done, in new processes."""

    def run(*arguments: str) -> Callable[[], Any]:
        return lambda: run_command(sys.executable, *arguments)

    bare, imported, helped = fastest(
        run("-c", "pass"), run("-c", "import laennec"), run("-m", "laennec", "--help"), repeats=setting.repeats
    )
    return [
        Row("import laennec", imported - bare, None, "s", None, "< 0.2", "a new process, less the bare interpreter"),
        Row("laennec --help", helped, None, "s", None, "< 0.5", "a new process, interpreter included"),
    ]


ROWS: dict[str, Callable[[Setting], list[Row]]] = {
    "start": start_up,
    "read": reading,
    "memory": memory,
    "fbank": filter_bank,
    "augment": augmentation,
    "breathing": breathing,
    "frozen": frozen_experiment,
    "again": encoding_again,
    "step": trainer_step,
    "padded": padded_step,
    "validation": validation,
    "losses": large_batches,
    "natural": natural_length,
    "encoder": encoder_forward,
    "finetune": fine_tuning,
    "pipeline": waiting_for_data,
    "predict": whole_recordings,
    "package": in_the_package,
    "jobs": two_jobs,
    "evaluate": evaluation,
    "growth": growth,
    "processes": processes,
    "rates": rates,
    "curves": curves,
}
_ON_REQUEST = ("curves",)  # it takes a dozen trainings
_GROUPS = {"gpu": ["fbank", "frozen", "encoder", "finetune", "pipeline", "predict", "rates"]}  # rows that use a GPU


def bench(names: Sequence[str], data_dir: str | None, weights: str | None, out: str | None, repeats: int = 5) -> str:
    """Run rows of the benchmark.

    Args:
        names: Rows to run; none for all but `curves`.
        data_dir: Folder with icbhi2017_subset and sprsound.
        weights: A released EfficientAT checkpoint.
        out: JSON file for the result.
        repeats: Number of runs of each side.

    Returns:
        The table as text.
    """
    names = [row for name in names for row in _GROUPS.get(name, [name])]
    _refuse_before_measuring(names, data_dir, weights, out, repeats)
    setting = Setting(Path(data_dir) if data_dir else None, weights, repeats)
    rows: list[Row] = []
    for name in names or [name for name in ROWS if name not in _ON_REQUEST]:
        try:
            rows += ROWS[name](setting)
        except InputError as error:
            if names:
                raise
            rows.append(Row(name, None, None, "", None, "", f"not measured here: {error}"))
    result = {"versions": versions(), "hardware": hardware(), "rows": [asdict(r) for r in rows]}
    if out:
        with atomic_write(out) as file:
            json.dump(result, file, indent=2, allow_nan=False)
    return as_table(rows, result)


def _refuse_before_measuring(
    names: Sequence[str], data_dir: str | None, weights: str | None, out: str | None, repeats: int
) -> None:
    """Refuse invalid arguments now, not after minutes or hours of measuring."""
    unknown = [n for n in names if n not in ROWS]
    if unknown:
        raise InputError(f"unknown row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    if repeats < 1:
        raise InputError(f"--repeats is {repeats}; each side is measured once at least")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise InputError(f"{data_dir}: no such folder; give the one that holds icbhi2017_subset and sprsound")
    if weights is not None:
        load_encoder(weights, type="mobilenet")
    if out is not None:
        if Path(out).is_dir():
            raise InputError(f"{out}: there is a folder of this name; give a file for the result (--out bench.json)")
        with scratch_folder(out):
            pass


def as_table(rows: Sequence[Row], result: dict[str, Any]) -> str:
    """Rows as Markdown, with machine and versions below."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    cells = [(r.name, number(r.ours), number(r.other), r.unit, number(r.ratio), r.bound, r.note) for r in rows]
    machine, version = result["hardware"], result["versions"]
    return (
        f"{plain_table(('what', 'laennec', 'alternative', 'unit', 'ratio', 'bound', 'how'), cells)}\n\n"
        f"{', '.join([*machine['gpus'], machine['processor']])}, {machine['cores']} cores; Python {version['python']}, "
        f"torch {version['torch']}, transformers {version['transformers']}"
    )
