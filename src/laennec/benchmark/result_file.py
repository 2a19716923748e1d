"""Result files of benchmarks: their fields, and checks that these are consistent.

Decisions: a file is checked without the corpus. Its confusion must have the published cycles of each class, and the
scores must follow from it. AUROC and calibration are absent for probabilities that are all 0 or 1.
"""

import datetime
import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from laennec.benchmark.definitions import FixedSplit, benchmark_named
from laennec.errors import InputError
from laennec.evaluation.baselines import ALWAYS_NORMAL, SHORTCUTS
from laennec.evaluation.intervals import LEAST_EFFECTIVE, MIN_PATIENTS
from laennec.evaluation.metrics import CLASSES, is_percent
from laennec.evaluation.predictions import class_scores
from laennec.files import atomic_write, json_text
from laennec.model_settings import checked
from laennec.untrusted import read_json


def one_line(text: str) -> str:
    """Return the text if it is one line and not empty."""
    if not text.strip() or len(text.splitlines()) > 1 or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("one line of text in UTF-8")
    return text


def _in_range(values: dict[str, float | None]) -> dict[str, float | None]:
    for name, value in values.items():
        top = 100 if is_percent(name) else 1
        if not 0 <= (value or 0) <= top:
            raise ValueError(f"from 0 to {top} for {name}")
    return values


def _of_labels(values: dict[str, float | None]) -> dict[str, float | None]:
    if None in (values.get("crackle"), values.get("wheeze")):
        raise ValueError("values of crackle and wheeze")
    return values


def _a_baseline(name: str) -> str:
    if name not in BASELINES:
        raise ValueError(f"one of {'; '.join(BASELINES)}")
    return name


def _a_day(text: str) -> str:
    datetime.date.fromisoformat(text)
    return text


def _with_score(values: dict[str, float | None]) -> dict[str, float | None]:
    if values.get(SCORE) is None:
        raise ValueError(f"values with {SCORE}")
    return values


Values = Annotated[dict[str, float | None], AfterValidator(_in_range)]
OfLabels = Annotated[Values, AfterValidator(_of_labels)]
WithScore = Annotated[Values, AfterValidator(_with_score)]
Line = Annotated[str, AfterValidator(one_line)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$"), AfterValidator(_a_day)]
Bounds = tuple[float, float] | None
SCORE = "icbhi.Score"
VALUES = (
    SCORE, "icbhi.Sp", "icbhi.Se", "any_abnormal.Score", "sprsound.Score", "roc_auc_macro", "crackle.roc_auc",
    "wheeze.roc_auc", "crackle.average_precision", "wheeze.average_precision",
)  # fmt: skip
_OF_RECORDINGS = ("level", "bandwidth")  # baselines that need recordings
BASELINES = (ALWAYS_NORMAL, "majority class", *(name for name in SHORTCUTS if name not in ("database", "corpus")))
_REMEDY = "write it again with laennec benchmark"
_CLOSE = 1e-4  # tolerance, as a share of the largest value
_BASELINE = 1.0  # tolerance for baselines: another version of scikit-learn may fit them a little differently


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Baseline(_Part):
    """A shortcut baseline, and the ICBHI Score of the entry minus that of the baseline."""

    name: Annotated[str, AfterValidator(_a_baseline)]
    values: WithScore
    interval: Bounds
    difference: float
    difference_interval: Bounds


class SplitScores(_Part):
    """The scores on one test split."""

    fingerprint: str
    patients: int = Field(ge=1)
    effective_patients: Annotated[dict[str, float], AfterValidator(_of_labels)]  # with each label
    confusion: list[list[int]]  # true by predicted class, in the order normal, crackle, wheeze, both
    values: Values
    intervals: dict[str, Bounds]  # 95 %, over patients
    baselines: list[Baseline]
    within_lengths: OfLabels | None  # AUROC of each label among cycles of similar length
    middle: WithScore | None  # scores on segments of one length in the middle of cycles; None for files
    calibration_error: OfLabels | None


class Source(_Part):
    """The model or file that was entered."""

    kind: Literal["model", "predictions"]
    name: Line  # Hub id, or name of the folder or file
    revision: str | None  # commit on the Hub
    sha256: Digest  # of weights and front end, or of the file
    origin: Line | None  # where it comes from, as declared


class Cost(_Part):
    """Size and computing time of a model."""

    parameters: int = Field(ge=0)
    # CPU seconds of prediction for an hour of sound; None on a GPU
    cpu_s_per_hour: Annotated[float, Field(ge=0)] | None
    processor: Line


class Result(_Part):
    """One entry of a benchmark."""

    benchmark: str
    version: Annotated[int, Field(strict=True)]
    entry: Line
    source: Source
    trained_on: Line
    selection: Line  # what epochs, thresholds and settings were chosen on, as declared
    decisions: Line  # how labels were decided
    splits: dict[str, SplitScores | None]  # each test split of the benchmark; None for one that was not scored
    cost: Cost | None
    command: Line
    laennec: Line
    date: Day


def write_result(path: str | Path, result: Result) -> None:
    """Write a result file that `read_result` accepts."""
    _refuse_wrong(result)
    with atomic_write(path) as file:
        file.write(json_text(result.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")


def read_result(path: str | Path) -> Result:
    """Read a result file.

    Raises:
        InputError: The file is not a result, has another version or split, or its numbers are inconsistent.
    """
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise InputError(f"not a result of a benchmark; {_REMEDY}")
        result = checked(Result, values, _REMEDY)
        _refuse_wrong(result)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); {_REMEDY}") from error
    except ValueError as error:  # InputError too
        raise InputError(f"{path}: {error}") from error
    return result


def _refuse_wrong(result: Result) -> None:
    benchmark = benchmark_named(result.benchmark)
    if result.version != benchmark.version:
        raise InputError(f"version {result.version} of {benchmark.name}, which is at {benchmark.version}; {_REMEDY}")
    if result.splits.keys() != benchmark.tests.keys():
        raise InputError(f"splits {', '.join(result.splits)}, not {' and '.join(benchmark.tests)}; {_REMEDY}")
    benchmark.refuse_training_on(result.trained_on)
    if not any(result.splits.values()):
        raise InputError(f"no split is scored; {_REMEDY}")
    for name, scores in result.splits.items():
        if scores is not None and (problem := _wrong_parts(scores, result) or _problem(scores, benchmark.tests[name])):
            raise InputError(f"{name}: {problem}; {_REMEDY}")


def _wrong_parts(scores: SplitScores, result: Result) -> str | None:
    """The first part that a result of this kind should have, or cannot have."""
    of_model = result.source.kind == "model"
    ranked = of_model or any(not is_percent(name) for name in scores.values)
    if wrong := {name for name in VALUES if ranked or is_percent(name)} ^ scores.values.keys():
        return f"the values are not those of a result: {', '.join(sorted(wrong))}"
    parts = {
        "within_lengths": (scores.within_lengths, ranked),
        "calibration_error": (scores.calibration_error, ranked),
        "middle": (scores.middle, of_model),
        "cost": (result.cost, of_model),
    }
    for name, (part, needed) in parts.items():
        if needed != (part is not None):
            said = "is missing" if needed else "should not be there"
            return f"{name} {said} (source.kind is {result.source.kind})"
    few = min(scores.effective_patients.values()) < LEAST_EFFECTIVE
    for name, bounds in scores.intervals.items():
        top = 100.0 if is_percent(name) else 1.0
        if bounds is None and not few and scores.patients >= MIN_PATIENTS:
            return f"the interval of {name} is missing"
        if bounds is not None and not 0 <= bounds[0] <= bounds[1] <= top:
            return f"the interval of {name} is not within 0 and {top:g}"
    return None


def _problem(scores: SplitScores, fixed: FixedSplit) -> str | None:
    """The first thing that is wrong with the scores of a split."""
    if scores.fingerprint != fixed.fingerprint:
        return f"fingerprint {scores.fingerprint[:12]} is not that of the published split ({fixed.fingerprint[:12]})"
    if fixed.patients not in (None, scores.patients):
        return f"there are {scores.patients} patients, but {fixed.patients} in the published split"
    square = [len(row) for row in scores.confusion] == [len(CLASSES)] * len(CLASSES)
    counts = np.array(scores.confusion) if square else np.zeros((len(CLASSES), 1))
    classes = dict(zip(CLASSES, counts.sum(1).tolist(), strict=True))
    if counts.sum() != fixed.cycles or counts.min() < 0 or fixed.classes not in (None, classes):
        return f"the confusion is not of the {fixed.cycles} cycles of the published split"
    values, again = scores.values, class_scores(counts, CLASSES)
    areas = [values.get(f"{label}.roc_auc") for label in ("crackle", "wheeze")]
    expected = {name: float(again[name]) if name in again else value for name, value in values.items()}
    if None not in areas:
        expected["roc_auc_macro"] = sum(filter(None, areas)) / 2
    for name in (SCORE, *values):
        value, top = values.get(name), 100.0 if is_percent(name) else 1.0
        low, high = scores.intervals.get(name) or (0.0, top)
        if value is None:
            return f"{name} is missing"
        if abs(value - (expected[name] or 0.0)) > _CLOSE * top:
            return f"{name} is {value}, but {expected.get(name)} follows from the other numbers"
        if not max(0, low - _CLOSE * top) <= value <= min(top, high + _CLOSE * top):
            return f"{name} {value:g} is outside its interval"
    if scores.intervals.keys() != values.keys():
        return "the intervals are not of the same scores as the values"
    for row in scores.baselines:
        gap = (expected[SCORE] or 0.0) - (row.values.get(SCORE) or 0.0)
        low, high = row.difference_interval or (gap, gap)
        if abs(gap - row.difference) > _CLOSE * 100 or not low - _CLOSE * 100 <= gap <= high + _CLOSE * 100:
            return f"the difference from baseline {row.name!r} is not that of the scores, or outside its interval"
    given = {row.name: row.values[SCORE] or 0.0 for row in scores.baselines}
    if len(given) < len(scores.baselines):
        return "a baseline is there twice"
    for name, score in (fixed.baselines or {ALWAYS_NORMAL: 50.0}).items():
        absent = name in _OF_RECORDINGS and scores.middle is None  # files of predictions may come without recordings
        if abs(given.get(name, score if absent else np.inf) - score) > _BASELINE:
            return f"baseline {name!r}, whose {SCORE} is {score:g}, is missing or has another score"
    known = fixed.effective_patients or scores.effective_patients
    for name, number in scores.effective_patients.items():
        if not 0 <= number <= scores.patients + _CLOSE or abs(number - known.get(name, np.inf)) > _CLOSE * number:
            return f"the effective patients with {name} are {number:g}, not those of the split"
    return None
