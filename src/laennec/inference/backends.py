"""What runs the network of a prediction: torch, or onnxruntime.

Decisions: "auto" uses the ONNX file in the folder of the model if the machine has no GPU, and torch otherwise; it never
exports a file or uses one from the cache. The logits of both agree within 1e-4, not to the bit, so results name the
backend.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from laennec.audio.context import InContext
from laennec.audio.recording import Waveform
from laennec.errors import InputError
from laennec.inference.onnx_model import FACTS, SOURCES, OnnxModel, OnnxSession, is_current, read_facts

if TYPE_CHECKING:
    from laennec.audio.features import LaennecFeatureExtractor
    from laennec.modeling import LaennecForAudioClassification

BACKENDS = ("auto", "torch", "onnx")


class TorchBackend:
    """The model in torch, for sounds at its sampling rate; an output depends on its own sound alone."""

    name = "torch"

    def __init__(self, model: "LaennecForAudioClassification", extractor: "LaennecFeatureExtractor") -> None:
        self.model, self.extractor = model.eval(), extractor

    def embed(self, waveforms: Sequence[Waveform | InContext]) -> NDArray[np.float32]:
        """Embeddings (sounds, dim)."""
        from laennec.training.embeddings import embed_waveforms

        return embed_waveforms(self.model, self.extractor, waveforms)

    def logits(self, waveforms: Sequence[Waveform | InContext]) -> NDArray[np.float32]:
        """Logits (sounds, labels)."""
        from laennec.training.tables import head_logits

        return head_logits(self.model.head, self.embed(waveforms))


def finite(outputs: NDArray[np.float32], model: Any, recording: str) -> NDArray[np.float32]:
    """Return embeddings or logits; raises if they contain NaN or infinity."""
    if np.isfinite(outputs).all():
        return outputs
    source = model.path if isinstance(model, OnnxModel) else model.name_or_path
    raise InputError(
        f"{recording}: the model {source or 'in memory'} outputs NaN or infinity; check its front end (mean, std) "
        "and weights, or use another model"
    )


def make_backend(model: Any, extractor: Any = None, name: str = "auto") -> OnnxSession | TorchBackend:
    """The backend of a loaded model."""
    if name not in BACKENDS:
        raise InputError(f"backend {name!r}: it can be {', '.join(BACKENDS)}")
    if isinstance(model, OnnxModel):
        if name == "torch":
            raise InputError(f"{model.path}: an ONNX file, which torch does not run; choose backend auto or onnx")
        return model
    if name == "onnx":
        return OnnxSession(_exported(model, extractor, fingerprint_of(model, extractor)))
    return TorchBackend(model, extractor)


def encoder_session(model: "LaennecForAudioClassification", extractor: "LaennecFeatureExtractor") -> OnnxSession:
    """The encoder of a model in onnxruntime, whatever its head; exported once, and kept in the cache."""
    return OnnxSession(_exported(model, extractor, _digest(model, extractor)))


def _exported(model: "LaennecForAudioClassification", extractor: "LaennecFeatureExtractor", fingerprint: str) -> Path:
    """An ONNX file of this fingerprint, from the cache or made now."""
    import copy

    from laennec.cache import cache_root, cached_folder
    from laennec.hub.onnx import write_onnx

    def export(folder: Path) -> None:
        write_onnx(folder, copy.deepcopy(model), extractor, model.name_or_path or "this model")
        extractor.save_pretrained(folder)

    return OnnxModel(cached_folder(cache_root() / "onnx" / fingerprint[:32], export)).path


def fingerprint_of(model: Any, extractor: Any = None) -> str:
    """sha256 of weights, settings of the network and front end; equal for a run and its exports."""
    if isinstance(model, OnnxModel):
        return model.fingerprint()
    from laennec.encoders import encoder_digest

    config = model.config
    head = [encoder_digest(model.head), config.head_hidden_dim, config.head_layer_norm, config.head_relu]
    return _digest(model, extractor, *head)


def _digest(model: Any, extractor: Any, *head: Any) -> str:
    from laennec.encoders import encoder_identity

    front_end = [extractor.fingerprint(), extractor.recording_filter]
    made_of = [*encoder_identity(model.encoder), *front_end, model.config.pooling, *head]
    return sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def load_for_prediction(source: str | Path, base: str | None = None, backend: str = "auto") -> tuple[Any, Any]:
    """The model and front end of a folder or Hub id: an `OnnxModel` where the backend is its ONNX file.

    In torch the model is on this process's GPU, if there is one.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r}: it can be {', '.join(BACKENDS)}")
    folder = Path(source) / "model" if (Path(source) / "model" / "config.json").exists() else Path(source)
    wanted = base is None and (backend == "onnx" or (backend == "auto" and not _has_gpu()))
    if wanted and not folder.exists():
        folder = _from_hub(str(source)) or folder
    alone = (folder / FACTS).is_file() and not (folder / "config.json").exists()
    if (wanted or (alone and backend == "auto")) and is_current(folder):
        model = OnnxModel(folder)
        return model, model.extractor
    if alone:
        if backend == "torch" or base is not None:
            raise InputError(f"{folder}: an ONNX export, which torch does not run; choose backend onnx")
        raise InputError(
            f"{folder / read_facts(folder).file}: is missing; get the model again, or export the run again"
        )
    from laennec.evaluation.evaluate import load_model
    from laennec.training.devices import training_device

    model, extractor = load_model(source, base)
    return model.to(training_device()), extractor


def _from_hub(name: str) -> Path | None:
    """The folder of the ONNX file of a Hub repository, downloaded without the weights; None where it has none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    small = [FACTS, *(source for source in SOURCES if source.endswith(".json"))]
    try:
        folder = Path(snapshot_download(name, allow_patterns=small))
        if not (folder / FACTS).is_file():
            return None
        file = read_facts(folder).file
        return Path(snapshot_download(name, allow_patterns=[*small, file, f"{file}.data"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None  # loading with torch reports in one line what is wrong


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/version").exists()
