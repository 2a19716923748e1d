"""Types, ranges and defaults of the settings of a model, in config.json and onnx.json.

Decisions: a model may be untrusted. Types are those of JSON and never converted ("2" is not a number, 1 is not a
boolean); a range includes the values of every valid model; a wrong value is reported in one line. Labels become columns
of tables, so a label has no name of another column, differs from the others in more than case, and is printable. This
module does not import torch, because ONNX models run without it.
"""

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    model_validator,
)

from laennec.errors import InputError

PROBLEM_TYPES = {"multi_label": "multi_label_classification", "single_label": "single_label_classification"}
# values of a label for which nothing was fitted
NEUTRAL = {"thresholds": 0.5, "temperatures": 1.0, "intercepts": 0.0, "second_thresholds": 0.0}
REMEDY = "correct it"
# columns of the tables of cycles, predictions and scores
COLUMNS = frozenset(
    (
        "cycle_id", "recording_id", "patient_id", "cycle_index", "start_s", "end_s", "label", "events",
        "chest_location", "acquisition_mode", "device", "age_years", "sex", "bmi", "diagnosis", "source_sampling_rate",
        "recording_path", "audio_sha256", "part", "split", "recording", "database", "signal_quality", "fold", "corpus",
        "spans", "duration_s",
    )
)  # fmt: skip
LENGTH_RULES = ("natural", "repeat", "repeat_pad", "zero", "crop", "zero_frames")
FILLED = ("repeat", "repeat_pad", "zero")  # rules under which every cycle fills duration_s
_LABEL_COLUMNS = ("{}", "{}_probability", "{}_highest", "{}_share", "logit_{}", "smoothed_logit_{}")
_MOST_LABELS = 10_000
_DAY_S = 86_400

Kind = TypeVar("Kind", bound=BaseModel)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of printable characters")
    return text


def _label(name: str) -> str:
    if not name.strip() or name != name.strip():
        raise ValueError("a name without space around it")
    return name


def _distinct(names: list[str]) -> list[str]:
    if len({unicodedata.normalize("NFKC", name).casefold() for name in names}) < len(names):
        raise ValueError("labels that are distinct, whatever their case")
    return names


def _no_column(names: list[str]) -> list[str]:
    columns = [form.format(name) for name in names for form in _LABEL_COLUMNS]
    taken = COLUMNS.intersection(columns) or {name for name in names if columns.count(name) > 1}
    if taken:
        raise ValueError(f"labels other than {min(taken)}, a column of the tables")
    return names


Line = Annotated[str, Field(max_length=10_000), AfterValidator(_printable)]
Labels = Annotated[
    list[Annotated[str, Field(max_length=200), AfterValidator(_printable), AfterValidator(_label)]],
    Field(min_length=1, max_length=_MOST_LABELS),
    AfterValidator(_distinct),
]
Names = Annotated[Labels, AfterValidator(_no_column)]
Probability = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Seconds = Annotated[float, Field(gt=0, le=_DAY_S)]
Rate = Annotated[int, Field(ge=1, le=192_000)]
Width = Annotated[int, Field(ge=0, le=1_000_000)]
_Temperatures = dict[str, Annotated[float, Field(ge=1e-6, le=1e6)]]


class Checked(BaseModel):
    """Settings of a file: plain values of JSON, finite; unknown keys are allowed."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class DecisionSettings:
    """Calibration and thresholds by label name, of torch and ONNX models; see `LaennecConfig`."""

    label_names: Sequence[str]
    problem_type: Any
    operating_point: Any
    operating_points: Any

    def per_label(self, setting: str, spans: str = "events") -> dict[str, float]:
        """One of the settings of `NEUTRAL` for every label; the neutral value where none is recorded."""
        points = self.operating_points
        values = points[spans].get(setting, {}) if spans in points else getattr(self, setting)
        return {name: values.get(name, NEUTRAL[setting]) for name in self.label_names}

    def labels_with_second(self, spans: str = "events") -> dict[str, float]:
        """The second thresholds, of the labels that have one."""
        return {name: p for name, p in self.per_label("second_thresholds", spans).items() if p}

    @property
    def smoothing(self) -> float:
        """The weight of the recording's mean in the logits of its annotated cycles; 0 for no smoothing."""
        return float(self.operating_point.get("smoothing", 0.0))

    @property
    def is_multi_label(self) -> bool:
        """Whether labels are independent of each other."""
        return bool(self.problem_type == PROBLEM_TYPES["multi_label"])


class _How(Checked):
    """How an operating point was fitted; shown in reports."""

    rule: Line | None = None
    calibration: Line | None = None
    sensitivity: Probability | None = None
    smoothing: Probability = 0.0
    fitted_on: dict[Line, int | float | Line | None] = {}
    notes: list[Line] = []


class _Numbers(Checked):
    thresholds: dict[str, Probability] = {}
    temperatures: _Temperatures = {}
    intercepts: dict[str, Number] = {}
    second_thresholds: dict[str, Probability] = {}


class _Point(_Numbers, _How):
    window_s: Seconds
    hop_s: Seconds


class Decisions(_Numbers):
    """Calibration, thresholds and their origin in config.json and onnx.json; see `LaennecConfig`."""

    problem_type: Literal[*PROBLEM_TYPES, *PROBLEM_TYPES.values()]  # type: ignore[valid-type]
    operating_point: _How = Field(default_factory=dict)  # type: ignore[assignment]
    operating_points: dict[Literal["windows", "recordings"], _Point] = {}
    span: Literal["cycle", "recording"] | Seconds = "cycle"
    summary: Line | None = None

    def refuse_others(self, names: Sequence[str]) -> None:
        """Refuse values for labels that the model does not have, which would be ignored silently."""
        points = {f"operating_points.{spans}.": point for spans, point in self.operating_points.items()}
        for where, numbers in {"": self, **points}.items():
            for setting in NEUTRAL:
                for name in getattr(numbers, setting).keys() - set(names):
                    near = difflib.get_close_matches(name, names, 1) or names[:5]
                    raise ValueError(f"{where}{setting} has {name!r}, not a label; labels are {', '.join(near)}")


_Hz = Annotated[float, Field(gt=0, le=1e6)]
_Longest = Annotated[float, Field(gt=0, le=3600)]


class FilterSettings(Checked, extra="forbid"):
    """See `laennec.audio.recording.ButterworthFilter`."""

    kind: Literal["lowpass", "highpass", "bandpass"]
    cutoff_hz: _Hz | Annotated[tuple[_Hz, _Hz], Strict(False)]
    order: Annotated[int, Field(ge=1, le=32)] = 4

    @model_validator(mode="after")
    def _edges(self) -> Self:
        if isinstance(self.cutoff_hz, tuple) != (self.kind == "bandpass"):
            raise ValueError(f"cutoff_hz={self.cutoff_hz}: a bandpass takes two frequencies, any other filter one")
        if isinstance(self.cutoff_hz, tuple) and self.cutoff_hz[0] >= self.cutoff_hz[1]:
            raise ValueError(f"cutoff_hz={self.cutoff_hz}: frequencies must be rising")
        return self


class Filtered(Checked):
    """Sampling rate of the model's input, and the filter of whole recordings."""

    sampling_rate: Rate
    recording_filter: FilterSettings | None = None

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        chosen = self.recording_filter
        if chosen is not None and chosen.kind != "lowpass":
            lower = chosen.cutoff_hz[0] if isinstance(chosen.cutoff_hz, tuple) else chosen.cutoff_hz
            if lower >= self.sampling_rate / 2:
                raise ValueError(f"recording_filter leaves nothing of sound at {self.sampling_rate} Hz")
        return self


class SoundSettings(Filtered):
    """How a sound is cut or padded to its length, see `laennec.audio.features.LaennecFeatureExtractor`."""

    length: Literal[LENGTH_RULES] = "natural"  # type: ignore[valid-type]
    duration_s: _Longest | None = None
    fade_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    keep: Literal["first", "last", "center"] = "first"
    context_cycles: Annotated[int, Field(ge=0, le=100)] = 0


class _Task(Checked):
    labels: Labels
    level: Line | None = None
    window_s: Seconds | None = None
    smoothing: Probability = 0.0
    logit_adjustment: dict[str, Number] = {}


class _Lora(Checked):
    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Number
    dropout: Probability
    target_modules: Annotated[list[Line], Field(min_length=1, max_length=100)]


_TaskName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$", max_length=100)]


def _in_order(values: Any) -> Any:
    """The names of labels as a list in the order of their numbers, which are strings in JSON."""
    if not isinstance(values, Mapping):
        raise ValueError("each label by its number")
    by_number = {str(number): name for number, name in values.items()}
    if len(by_number) < len(values) or by_number.keys() != {str(k) for k in range(len(values))}:
        raise ValueError(f"labels of the numbers from 0 to {len(values) - 1}")
    return [by_number[str(k)] for k in range(len(values))]


class ModelSettings(Decisions):
    """The settings of a `laennec.configuration.LaennecConfig`, where they are explained."""

    id2label: Annotated[Names, BeforeValidator(_in_order)] | None = None
    label2id: dict[str, int] | None = None
    num_labels: Annotated[int, Field(ge=1, le=_MOST_LABELS)] | None = None
    pooling: Literal["encoder", "mean"] = "encoder"
    concatenated_context: bool = False
    head_hidden_dim: Width = 0
    head_dropout: Probability = 0.0
    head_layer_norm: bool = False
    head_relu: bool = False
    head_members: Annotated[int, Field(ge=0, le=100)] = 0
    projection_dim: Width = 0
    frozen_encoder: bool = False
    trained_layers: Annotated[int, Field(ge=0)] | None = None
    lora: _Lora | None = None
    base_model_name_or_path: Line | None = None
    base_model_revision: Line | None = None
    encoder_digest: Line | None = None
    head_only: bool = False
    tasks: dict[_TaskName, _Task] = {}
    sampling_rate: Rate | None = None
    selection_set: Line | None = None
    features_fingerprint: Line | None = None

    @model_validator(mode="after")
    def _one_set_of_labels(self) -> Self:
        names = self.id2label or [f"LABEL_{k}" for k in range(self.num_labels or 2)]
        if self.num_labels not in (None, len(names)):
            raise ValueError(f"num_labels is {self.num_labels}, but id2label has {len(names)}")
        if self.label2id not in (None, {name: k for k, name in enumerate(names)}):
            raise ValueError("label2id has other numbers than id2label")
        self.refuse_others(names)
        return self


def checked(kind: type[Kind], values: Mapping[str, Any], remedy: str = REMEDY) -> Kind:
    """Check types and ranges of settings."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise settings_error(error, values, remedy) from error


def settings_error(error: ValidationError, values: Any, remedy: str = REMEDY) -> InputError:
    """The first problem that pydantic found, in one line: the setting, its value, what it can be."""
    problems = error.errors(include_url=False, include_context=False)
    place, value = _place(problems[0]["loc"], values)
    said = dict.fromkeys(p["msg"] for p in problems if _place(p["loc"], values)[0] == place)
    what = " or ".join(msg.removeprefix("Value error, ").removeprefix("Input should be ") for msg in said)
    if problems[0]["type"] in ("missing", "extra_forbidden") or not place:
        return InputError(f"{place + ': ' if place else ''}{what}; {remedy}")
    return InputError(f"{place} is {repr(value)[:80]}; it should be {what}; {remedy}")


def _place(parts: Sequence[str | int], values: Any) -> tuple[str, Any]:
    """The dotted key of a problem and the value there; pydantic also counts the alternatives of a type as parts."""
    keys = []
    for number, part in enumerate(parts):
        if isinstance(values, Mapping) and (part in values or number == len(parts) - 1):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        else:
            continue
        keys.append(str(part))
    return ".".join(keys), values
