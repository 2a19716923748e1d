"""The class behind `pipeline("audio-classification", model=...)` of transformers for laennec models.

Decisions: one sound in, one prediction for all of it, with the model's own front end, filter, temperatures and
thresholds, so it equals `laennec predict` for the same span. Sounds are read as everywhere in laennec (soundfile and
soxr): transformers' own pipeline needs ffmpeg for a file and torchaudio for another sampling rate. The class is
registered for the whole task, so for models that are not laennec's it returns transformers' own pipeline. It is
registered whenever `laennec.modeling` is imported, so it imports what prediction needs only when it is used.
"""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForAudioClassification
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.audio_classification import AudioClassificationPipeline
from transformers.utils import logging

from laennec.audio.context import InContext
from laennec.audio.cycles import input_length_s
from laennec.audio.recording import ButterworthFilter, read_recording, wave_file
from laennec.errors import InputError
from laennec.inference.decisions import decision_of, present_labels
from laennec.modeling import LaennecForAudioClassification

_TASK = "audio-classification"
_FUNCTIONS = ("sigmoid", "softmax", "none")
_SOUNDS = "give a path, the bytes of a file, an array at the model's rate, or a dict with array and sampling_rate"


class LaennecPipeline(AudioClassificationPipeline):  # type: ignore[misc]
    """transformers' audio classification pipeline for laennec models.

    The result is a list of {"label", "score", "present"}, the highest score first. `score` is the calibrated
    probability; `present` states whether it is above the label's threshold (`model.config.thresholds`, 0.5 if there
    is none, and `second_thresholds` where another label is likelier), or for a single-label model whether the label is
    the most probable one.

    A sound may be a path, a URL, the bytes of a file, an array or tensor of shape (samples,) at the extractor's
    sampling rate, {"array" or "raw", "sampling_rate"} at any rate, or {"bytes", "path"} as data sets store it.
    `top_k` is the number of labels in the result; `function_to_apply` ("sigmoid", "softmax", "none") replaces the
    calibrated probabilities by that function of the raw logits. Calibration and thresholds are those of annotated
    events; `spans="windows"` takes those of windows, for sounds that were cut without annotation.

    Raises:
        InputError: A sound cannot be read or is too short.
    """

    def __new__(cls, model: Any = None, *args: Any, **settings: Any) -> Any:
        """This class for laennec models, transformers' own for all others."""
        if not isinstance(model, LaennecForAudioClassification):
            return AudioClassificationPipeline(model, *args, **settings)
        return super().__new__(cls)

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None, spans: str = "events", **settings: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if function_to_apply not in (None, *_FUNCTIONS):
            raise ValueError(f"function_to_apply is {function_to_apply!r}; it can be {', '.join(_FUNCTIONS)}")
        if spans not in ("events", "windows"):
            raise ValueError(f"spans is {spans!r}; it can be events or windows")
        labels = self.model.config.num_labels
        shown: dict[str, Any] = {"top_k": labels if top_k is None else min(top_k, labels), "spans": spans}
        return {}, {}, shown | ({"function_to_apply": function_to_apply} if function_to_apply else {})

    def preprocess(self, inputs: Any) -> dict[str, InContext]:
        """Read a sound of any kind and filter it as in training."""
        rate = self.feature_extractor.sampling_rate
        settings = self.feature_extractor.recording_filter
        filter = ButterworthFilter(**settings) if settings else None
        if isinstance(inputs, Mapping) and inputs.get("array", inputs.get("raw")) is None:
            inputs = inputs.get("bytes") or inputs.get("path")
        if isinstance(inputs, str) and inputs.startswith(("http://", "https://")):
            inputs = _fetched(inputs)
        if isinstance(inputs, bytearray | memoryview):
            inputs = bytes(inputs)
        if not isinstance(inputs, str | os.PathLike | bytes):
            inputs = wave_file(*_samples(inputs, rate))
        waveform = read_recording(inputs, rate, filter=filter).waveform
        longest = input_length_s(self.feature_extractor)
        if len(waveform) > longest * rate + 1:
            warnings.warn(
                f"a sound of {len(waveform) / rate:.1f} s: this model takes {longest:g} s of it; `laennec predict` and "
                "laennec.Predictor go through all of it in windows",
                stacklevel=2,
            )
        return {"waveform": InContext(waveform)}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Tensor]:
        from laennec.inference.backends import TorchBackend, finite

        given = model_inputs["waveform"]
        waveforms = given if isinstance(given, list) else [given]
        logits = TorchBackend(self.model, self.feature_extractor).logits(waveforms)
        return {"logits": torch.from_numpy(finite(logits, self.model, "a sound"))}

    def postprocess(
        self,
        model_outputs: dict[str, Tensor],
        top_k: int = 5,
        function_to_apply: str | None = None,
        spans: str = "events",
    ) -> list[dict[str, Any]]:
        """Logits (1, labels) -> the labels with their scores, the highest first."""
        logits, config = model_outputs["logits"], self.model.config
        calibrated = self.model.probabilities(logits, spans)[0]
        present = present_labels(config, calibrated[None].numpy(), decision_of(config, {}, spans))[0]
        plain = {"sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1), "none": logits}
        scores = calibrated if function_to_apply is None else plain[function_to_apply][0]
        return [
            {"label": config.label_names[i], "score": float(scores[i]), "present": bool(present[i])}
            for i in scores.argsort(descending=True, stable=True)[:top_k].tolist()
        ]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save model and front end; transformers' method would also copy this file, as remote code."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.feature_extractor.save_pretrained(save_directory, **kwargs)


def _fetched(address: str) -> bytes:
    from huggingface_hub.utils import httpx

    try:
        response = httpx.get(address, follow_redirects=True)
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise InputError(f"{address}: cannot be downloaded ({error}); check the address, or give a file") from error
    content: bytes = response.content
    return content


def _samples(sound: Any, rate: int) -> tuple[NDArray[Any], int]:
    """The samples of an array, tensor or dict, and their sampling rate."""
    if hasattr(sound, "get_all_samples"):  # torchcodec's decoder
        found = sound.get_all_samples()
        sound, rate = found.data.mean(0), int(found.sample_rate)
    if isinstance(sound, Mapping):
        if "sampling_rate" not in sound:
            raise InputError(f"the sound is a dict of {sorted(sound)} without sampling_rate; {_SOUNDS}")
        rate, sound = sound["sampling_rate"], sound.get("array", sound.get("raw"))
    values = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
    if values.ndim != 1 or not len(values):
        raise InputError(f"the sound has the shape {values.shape}; {_SOUNDS}, of one channel")
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"the sound is {values.dtype}; give floats in [-1, 1] (16-bit values / 32768)")
    return values, rate


def _register() -> None:
    """Register the class for the task, without transformers' warning that the task already has one."""
    verbosity = logging.get_verbosity()
    default = PIPELINE_REGISTRY.check_task(_TASK)[1].get("default")
    logging.set_verbosity_error()
    try:
        PIPELINE_REGISTRY.register_pipeline(
            _TASK, LaennecPipeline, AutoModelForAudioClassification, default=default, type="audio"
        )
    finally:
        logging.set_verbosity(verbosity)


_register()
