"""What several processes need to work on the recordings of one batch: the model, and which of them takes which.

Decisions: a model is handed over as its configuration and its weights, so that it is the model as it is, wherever it
came from, and needs no file on another machine. Ranks of a launch claim a recording by a lock, which ends with its
owner: what a dead rank had in hand is free again. A rank keeps the claim of a recording that failed, so that no other
one tries it in vain; the first rank does once the others have ended, to give the reason.
"""

import importlib
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig
from laennec.encoders import adapters, encoder_digest
from laennec.encoders.own import contains_own
from laennec.errors import InputError
from laennec.files import try_lock
from laennec.modeling import LaennecForAudioClassification

CLAIMS = ".claims"
Model = LaennecForAudioClassification


@dataclass(frozen=True)
class PackedModel:
    """A model and its front end as plain values and bytes.

    Attributes:
        config: The model's configuration.
        weights: Its weights as safetensors.
        kind: Type of the weights, e.g. "float32".
        device: Where it computes.
        front_end: The front end's configuration.
        modules: Modules that define encoder classes of the user, which are imported first.
        digest: Of the encoder's weights.
    """

    config: dict[str, Any]
    weights: bytes
    kind: str
    device: str
    front_end: dict[str, Any]
    modules: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, model: Model, extractor: LaennecFeatureExtractor) -> "PackedModel":
        """Pack a model."""
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
            encoder_digest(model.encoder),
        )

    def unpack(self) -> tuple[Model, LaennecFeatureExtractor]:
        """Make the model again, in evaluation mode.

        Raises:
            InputError: It is not the same model.
        """
        for name in self.modules:
            if name not in sys.modules and name != "__main__":
                importlib.import_module(name)
        config = LaennecConfig.from_dict(self.config)
        model = Model(config)
        if config.lora:
            adapters.add_lora(model.encoder, config.lora)
        model.to(getattr(torch, self.kind))
        model.load_state_dict(load(self.weights))
        if encoder_digest(model.encoder) != self.digest:
            raise InputError("this model cannot be handed to other processes; leave --jobs and --engine out")
        model.to(self.device).eval()  # type: ignore[arg-type]
        return model, LaennecFeatureExtractor.from_dict(self.front_end)


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
        """Release all."""
        for name in list(self._held):
            self.release(name)
