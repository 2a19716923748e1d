"""What several processes need to work on the recordings of one batch: the model, and which of them takes which.

Decisions: a model is handed over as its configuration and its weights, so that it is the model as it is, wherever it
came from, and needs no file on another machine. Ranks of a launch claim a recording by a lock, which ends with its
owner: what a dead rank had in hand is free again. A rank keeps the claim of a recording that failed, so that no other
one tries it in vain; the first rank does once the others have ended, to give the reason.
"""

import contextlib
import importlib
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.files import remove_stale_lock, try_lock
from laennec.inference.onnx_model import OnnxModel
from laennec.inference.predictor import Predictor

CLAIMS = ".laennec.claims"


@dataclass(frozen=True)
class PackedModel:
    """A model in torch and its front end as plain values and bytes."""

    config: dict[str, Any]  # the model's configuration
    weights: bytes  # its weights as safetensors
    kind: str  # type of the weights, e.g. "float32"
    device: str  # where it computes
    front_end: dict[str, Any]  # the front end's configuration
    modules: tuple[str, ...]  # modules that define encoder classes of the user, which are imported first
    name: str  # where the model came from

    @classmethod
    def of(cls, model: Any, extractor: Any) -> "PackedModel":
        """Pack a model."""
        from safetensors.torch import save

        from laennec.encoders.own import contains_own

        parameter = next(model.parameters())
        state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
        own = contains_own(model.encoder.config)
        classes = {type(part).__module__ for part in model.encoder.modules()} if own else set()
        return cls(
            model.config.to_dict(),
            save(state),
            str(parameter.dtype).removeprefix("torch."),
            str(parameter.device),
            extractor.to_dict(),
            tuple(sorted(name for name in classes if name.split(".")[0] not in ("torch", "laennec", "transformers"))),
            str(model.name_or_path or ""),
        )

    def unpack(self) -> tuple[Any, Any]:
        """Make the model and its front end again."""
        import torch
        from safetensors.torch import load

        from laennec.audio.features import LaennecFeatureExtractor
        from laennec.configuration import LaennecConfig
        from laennec.encoders import adapters
        from laennec.modeling import LaennecForAudioClassification

        torch.set_num_threads(1)
        for name in self.modules:
            if name not in sys.modules and name != "__main__":
                importlib.import_module(name)
        config = LaennecConfig.from_dict(self.config)
        model = LaennecForAudioClassification(config)
        if config.lora:
            adapters.add_lora(model.encoder, config.lora)
        model.to(getattr(torch, self.kind))
        model.load_state_dict(load(self.weights))
        model.name_or_path = self.name
        return model.to(self.device), LaennecFeatureExtractor.from_dict(self.front_end)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PackedPredictor:
    """A predictor that can be pickled."""

    model: PackedModel | Path  # the model; the folder of one that was exported to ONNX
    settings: dict[str, Any]  # the other arguments of the predictor
    fingerprint: str  # of the model

    @classmethod
    def of(cls, predictor: Predictor) -> "PackedPredictor":
        """Pack a predictor."""
        model = predictor.model
        exported = isinstance(model, OnnxModel)
        settings = {
            "window_s": None if predictor.whole else predictor.window_s,
            "hop_s": None if predictor.whole else predictor.hop_s,
            "smoothing": predictor.smoothing,
            "neighbours": predictor.neighbours,
            "thresholds": predictor.given_thresholds,
            "segmentation": predictor.segmentation,
            "backend": predictor.backend.name,
        }
        packed = Path(model.path).parent if exported else PackedModel.of(model, predictor.extractor)
        return cls(packed, settings, predictor.fingerprint())

    def unpack(self) -> Predictor:
        """Make the predictor again; it computes on one thread."""
        parts = (OnnxModel(self.model), None) if isinstance(self.model, Path) else self.model.unpack()
        predictor = Predictor(*parts, **self.settings)
        if predictor.fingerprint() != self.fingerprint:
            raise InputError("this model cannot be handed to other processes; leave --jobs and --engine out")
        return predictor


class Ranks:
    """The processes of a launch that share an output folder (environment variables RANK and WORLD_SIZE).

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    def __init__(self, folder: Path) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._folder = folder / CLAIMS
        self._held: dict[str, ExitStack] = {}

    def claim(self, name: str) -> bool:
        """Claim a recording by the name of its files; False where another rank works on it."""
        if self.size == 1 or name in self._held:
            return True
        stack = ExitStack()
        ours = stack.enter_context(try_lock(self._folder / name))
        if ours:
            self._held[name] = stack
        return ours

    def release(self, name: str) -> None:
        """Release a claimed recording, if it is claimed."""
        if name in self._held:
            self._held.pop(name).close()

    def close(self) -> None:
        """Release all, and remove what dead ranks left of their claims."""
        for name in list(self._held):
            self.release(name)
        with contextlib.suppress(OSError):  # another rank has claims
            for left in self._folder.glob(".*.lock"):
                remove_stale_lock(self._folder / left.name[1:].removesuffix(".lock"))
            self._folder.rmdir()
