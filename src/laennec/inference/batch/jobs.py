"""What several processes need to work on the recordings of one batch: the predictor, and which of them takes which.

Decisions: ranks of a launch claim a recording by a lock, which ends with its
owner: what a dead rank had in hand is free again. A rank keeps the claim of a recording that failed, so that no other
one tries it in vain; the first rank does once the others have ended, to give the reason.
"""

import contextlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laennec.errors import InputError
from laennec.files import remove_stale_lock, try_lock
from laennec.inference.onnx_model import OnnxModel
from laennec.inference.predictor import Predictor
from laennec.packed_model import PackedModel

CLAIMS = ".laennec.claims"


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
            raise InputError("this model cannot be handed to other processes; leave jobs and --engine out")
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
