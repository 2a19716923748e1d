"""Models exported to ONNX, run by onnxruntime without torch.

Decisions: a command that predicts with such a model starts in about a second, because it imports neither torch nor
transformers. Sounds go through the network one by one, so an output depends on its sound alone. The settings of a file
are untrusted and checked like those of any model.
"""

import hashlib
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, model_validator

from laennec.audio.context import InContext
from laennec.audio.recording import Waveform
from laennec.cache import sha256_of
from laennec.errors import InputError
from laennec.model_settings import (
    FILLED,
    NEUTRAL,
    Decisions,
    DecisionSettings,
    Filtered,
    Kind,
    Line,
    Names,
    SoundSettings,
    checked,
)
from laennec.untrusted import read_json, refuse_model_folder, refuse_settings

FACTS = "onnx.json"
SOURCES = ("config.json", "model.safetensors", "preprocessor_config.json")
_FRONT_END = "preprocessor_config.json"
_REMEDY = "export the run again"


class OnnxFacts(Decisions, Filtered, DecisionSettings):  # type: ignore[misc]
    """The content of onnx.json: what a program needs to run the file and to apply calibration and thresholds."""

    file: Annotated[str, Field(pattern=r"^[\w.-]+\.onnx$")]
    label_names: Annotated[Names, Field(alias="labels")]
    problem_type: Literal["multi_label_classification", "single_label_classification"]
    min_samples: Annotated[int, Field(ge=1, le=10_000_000)]
    fingerprint: Line | None = None
    sources: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _as_a_configuration(self) -> Self:
        """Convert to the plain values of a configuration, empty where nothing was fitted."""
        self.refuse_others(self.label_names)
        for setting, neutral in NEUTRAL.items():
            if set(getattr(self, setting).values()) == {neutral}:
                setattr(self, setting, {})
        for name in ("operating_points", "operating_point", "recording_filter"):
            setattr(self, name, TypeAdapter(Any).dump_python(getattr(self, name), exclude_unset=True))
        return self


class OnnxFrontEnd:
    """What prediction needs to know about the front end inside an ONNX file.

    Attributes:
        sampling_rate: In Hz.
        recording_filter: Filter of whole recordings, which is not in the file; or None.
        context_cycles: 0.
        length: Length rule.
        duration_s: Length in seconds that the rule brings a sound to; None for natural length.
        keep: Which part of longer sounds is used.
        window_ms: Length of a frame in milliseconds, the shortest sound that can be predicted.
    """

    context_cycles = 0

    def __init__(self, facts: OnnxFacts, settings: SoundSettings) -> None:
        self.sampling_rate, self.recording_filter = facts.sampling_rate, facts.recording_filter
        self.length, self.duration_s, self.keep = settings.length, settings.duration_s, settings.keep
        self._min_samples = facts.min_samples
        self.window_ms = 1000 * facts.min_samples / facts.sampling_rate

    def frames(self, samples: int) -> int:
        """1 where a sound of so many samples can be predicted, 0 otherwise."""
        return int(samples >= (1 if self.length in FILLED else self._min_samples))


class OnnxSession:
    """An exported file in onnxruntime, on the CPU."""

    name = "onnx"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        onnxruntime: Any = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # a list has a number for each nesting
        options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has an exception class for each kind of damage
            reason = str(error).splitlines()[0][:160]
            raise InputError(f"{path}: onnxruntime cannot load this file ({reason}); export it again") from error

    def __call__(self, waveforms: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits and probabilities, (sounds, labels) each, of waveforms (samples,) run as one batch."""
        logits, probabilities = self._run(["logits", "probabilities"], *padded(waveforms))
        return logits, probabilities

    def _run(self, outputs: list[str], waveforms: NDArray[np.float32], lengths: NDArray[np.int64]) -> Any:
        """The outputs of a batch; onnxruntime has an exception class for each kind of failure."""
        try:
            found = self._session.run(outputs, {"waveforms": waveforms, "lengths": lengths})
        except Exception as error:
            reason = " ".join(str(error).split())
            if "allocate memory" in reason:
                raise MemoryError(reason) from error
            raise InputError(f"{self.path}: onnxruntime cannot run this file ({reason[:160]}); {_REMEDY}") from error
        if any(values.dtype != np.float32 or values.ndim != 2 for values in found):
            raise InputError(f"{self.path}: {outputs[0]} are not rows of float32; {_REMEDY}")
        return found

    def logits(self, waveforms: Sequence[Waveform | InContext]) -> NDArray[np.float32]:
        """Logits (sounds, labels) of waveforms (samples,) at the model's rate."""
        return self._outputs("logits", waveforms)

    def embed(self, waveforms: Sequence[Waveform | InContext]) -> NDArray[np.float32]:
        """Embeddings (sounds, dim) of waveforms (samples,) at the model's rate."""
        if "embeddings" not in {output.name for output in self._session.get_outputs()}:
            raise InputError(f"{self.path}: has no output for embeddings; export the run again")
        return self._outputs("embeddings", waveforms)

    def _outputs(self, name: str, waveforms: Sequence[Any]) -> NDArray[np.float32]:
        return np.concatenate([self._run([name], *padded([item]))[0] for item in waveforms])


def padded(waveforms: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Waveforms (samples,) as one batch (sounds, samples), and their lengths (sounds,)."""
    sounds = [np.asarray(w.own if isinstance(w, InContext) else w, np.float32) for w in waveforms]
    lengths = np.array([len(sound) for sound in sounds], np.int64)
    batch = np.zeros((len(sounds), int(lengths.max())), np.float32)
    for row, sound in zip(batch, sounds, strict=True):
        row[: len(sound)] = sound
    return batch, lengths


class OnnxModel(OnnxSession):
    """An exported ONNX model with its settings.

    Attributes:
        config: Labels, calibration, thresholds.
        extractor: The front end.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        refuse_model_folder(folder)
        self.config = read_facts(folder)
        sound = _read(SoundSettings, folder / _FRONT_END)
        if sound.sampling_rate != self.config.sampling_rate:
            raise InputError(
                f"{folder / _FRONT_END}: says {sound.sampling_rate} Hz, but {FACTS} {self.config.sampling_rate} Hz; "
                f"{_REMEDY}"
            )
        self.extractor = OnnxFrontEnd(self.config, sound)
        path = folder / self.config.file
        for name, digest in file_digests(path).items() if path.is_file() else ():
            if self.config.sources.get(name, digest) != digest:
                raise InputError(f"{folder / name}: damaged, or not the file that {FACTS} was written with; {_REMEDY}")
        super().__init__(path)
        width = self._session.get_outputs()[0].shape[-1]
        if isinstance(width, int) and width != len(self.config.label_names):
            names = ", ".join(self.config.label_names[:5])
            raise InputError(
                f"{folder / FACTS}: labels are {names}, but {self.path.name} has {width} logits; {_REMEDY}"
            )

    def fingerprint(self) -> str:
        """The fingerprint of the exported run; a hash of the files if onnx.json lacks their SHA-256."""
        files = file_digests(self.path)
        if self.config.fingerprint and files.keys() <= self.config.sources.keys():
            return self.config.fingerprint
        return hashlib.sha256(repr([sorted(files.items()), self.extractor.recording_filter]).encode()).hexdigest()


def read_facts(folder: Path) -> OnnxFacts:
    """The checked content of a folder's onnx.json."""
    return _read(OnnxFacts, folder / FACTS)


def _read(kind: type[Kind], path: Path) -> Kind:
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(getattr(error, "strerror", None) or error)[:80]
        raise InputError(f"{path}: cannot be read ({reason}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings; {_REMEDY}")
    refuse_settings(content, path)
    try:
        return checked(kind, content, _REMEDY)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def is_current(folder: Path) -> bool:
    """Whether a folder has an ONNX file that was made from the weights and settings beside it, if there are any."""
    if not (folder / FACTS).is_file():
        return False
    facts = read_facts(folder)
    beside = {name: folder / name for name in facts.sources if name in SOURCES and (folder / name).is_file()}
    return (folder / facts.file).is_file() and all(
        sha256_of(path) == facts.sources[name] for name, path in beside.items()
    )


def file_digests(path: Path) -> dict[str, str]:
    """sha256 of an ONNX file and of its weights, where they are in a file of their own, by name."""
    return {p.name: sha256_of(p) for p in (path, path.with_name(f"{path.name}.data")) if p.is_file()}
