"""What `pipeline("audio-classification", model=...)` of transformers makes of a laennec model.

Decisions: one sound in, one answer for the whole of it, with the model's own front end, filter, temperatures and
thresholds, so that it equals `laennec predict` for the same span. Sounds are read as everywhere else (soundfile and
soxr): transformers' own pipeline needs ffmpeg for a file and torchaudio for another sampling rate. The class below is
registered for the task; for the models of others it makes transformers' own pipeline. It is registered whenever
`laennec.modeling` is imported, so what prediction needs is imported when it is used.
"""

import os
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
from laennec.audio.recording import ButterworthFilter, read_recording, resample
from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification

_TASK = "audio-classification"
_FUNCTIONS = ("sigmoid", "softmax", "none")
_SOUNDS = "give a path, the bytes of a file, an array at the model's rate, or a dict with array and sampling_rate"


class LaennecPipeline(AudioClassificationPipeline):  # type: ignore[misc]
    """transformers' audio classification pipeline for laennec models.

    Each answer is a list of {"label", "score", "present"}, the highest score first. `score` is the calibrated
    probability (temperatures applied); `present` says whether it passes the label's threshold
    (`model.config.thresholds`, 0.5 where there is none), or is the most probable class of a single-label model.

    A sound may be a path, a URL, the bytes of a file, an array or tensor of shape (samples,) at the extractor's rate,
    {"array" or "raw", "sampling_rate"} at any rate, or {"bytes", "path"} as data sets keep them. `top_k` is how many
    labels are answered; `function_to_apply` ("sigmoid", "softmax", "none") replaces the calibrated probabilities by
    that function of the plain logits.

    Raises:
        InputError: A sound that cannot be read or is too short.
    """

    def __new__(cls, model: Any = None, *args: Any, **settings: Any) -> Any:
        """Ours for our models, transformers' own for all others."""
        if not isinstance(model, LaennecForAudioClassification):
            return AudioClassificationPipeline(model, *args, **settings)
        return super().__new__(cls)

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None, **settings: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if function_to_apply not in (None, *_FUNCTIONS):
            raise ValueError(f"function_to_apply is {function_to_apply!r}; it can be {', '.join(_FUNCTIONS)}")
        labels = self.model.config.num_labels
        answer = {"top_k": labels if top_k is None else min(top_k, labels)}
        return {}, {}, answer | ({"function_to_apply": function_to_apply} if function_to_apply else {})

    def preprocess(self, inputs: Any) -> dict[str, InContext]:
        """A sound of any kind -> a waveform at the model's rate, filtered as the model's recordings were."""
        rate = self.feature_extractor.sampling_rate
        settings = self.feature_extractor.recording_filter
        filter = ButterworthFilter(**settings) if settings else None
        if isinstance(inputs, Mapping) and inputs.get("array", inputs.get("raw")) is None:
            inputs = inputs.get("bytes") or inputs.get("path")
        if isinstance(inputs, str) and inputs.startswith(("http://", "https://")):
            inputs = _fetched(inputs)
        if isinstance(inputs, bytearray | memoryview):
            inputs = bytes(inputs)
        if isinstance(inputs, str | os.PathLike | bytes):
            return {"waveform": InContext(read_recording(inputs, rate, filter=filter).waveform)}
        samples, source_rate = _samples(inputs, rate)
        waveform = resample(samples, source_rate, rate)
        return {"waveform": InContext(waveform if filter is None else filter.apply(waveform, rate))}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Tensor]:
        from laennec.training.embeddings import embed_waveforms
        from laennec.training.tables import head_logits

        given = model_inputs["waveform"]
        waveforms = given if isinstance(given, list) else [given]
        embeddings = embed_waveforms(self.model, self.feature_extractor, waveforms)
        return {"logits": torch.from_numpy(head_logits(self.model, embeddings))}

    def postprocess(
        self, model_outputs: dict[str, Tensor], top_k: int = 5, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        """Logits (1, labels) -> the labels with their scores, the highest first."""
        logits, config = model_outputs["logits"], self.model.config
        calibrated = self.model.probabilities(logits)[0]
        if config.is_multi_label:
            thresholds = torch.tensor([config.thresholds.get(name, 0.5) for name in config.label_names])
            # as where they were chosen: in float64, a label is present above its threshold
            present = calibrated.double() > thresholds.double()
        else:
            present = torch.arange(config.num_labels) == calibrated.argmax()
        plain = {"sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1), "none": logits}
        scores = calibrated if function_to_apply is None else plain[function_to_apply][0]
        return [
            {"label": config.label_names[i], "score": float(scores[i]), "present": bool(present[i])}
            for i in scores.argsort(descending=True, stable=True)[:top_k].tolist()
        ]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save model and front end; transformers would copy this file beside them, as code to be trusted."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.feature_extractor.save_pretrained(save_directory, **kwargs)


def _fetched(address: str) -> bytes:
    """The file behind an address."""
    from huggingface_hub.utils import httpx

    try:
        answer = httpx.get(address, follow_redirects=True)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise InputError(f"{address}: cannot be fetched ({error}); check the address, or give a file") from error
    content: bytes = answer.content
    return content


def _samples(sound: Any, rate: int) -> tuple[NDArray[np.float32], int]:
    """The samples of an array, tensor or dict, and their sampling rate."""
    if hasattr(sound, "get_all_samples"):  # torchcodec's decoder
        found = sound.get_all_samples()
        sound, rate = found.data.mean(0), int(found.sample_rate)
    if isinstance(sound, Mapping):
        if "sampling_rate" not in sound:
            raise InputError(f"a sound came as {sorted(sound)} without its sampling_rate; {_SOUNDS}")
        rate, sound = int(sound["sampling_rate"]), sound.get("array", sound.get("raw"))
    values = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
    if values.ndim != 1 or not len(values):
        raise InputError(f"a sound came in the shape {values.shape}; {_SOUNDS}, of one channel")
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"a sound came as {values.dtype}; give floats in [-1, 1] (16-bit values / 32768)")
    if rate < 1:
        raise InputError(f"a sound came with sampling_rate {rate}; give its rate in Hz")
    return np.ascontiguousarray(values, dtype=np.float32), rate


def _register() -> None:
    """Make the class that of the task; transformers' warning that the task had one already is left out."""
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
