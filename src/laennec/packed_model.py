"""A model and its front end as plain values and bytes, for other processes.

Decisions: a model is passed on as configuration and weights, so that it keeps changes made in memory and needs no file
on the other machine. torch is imported when it is needed, because prediction with an ONNX file runs without it.
"""

import importlib
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PackedModel:
    """A model in torch and its front end as plain values and bytes.

    Attributes:
        config: The model's configuration.
        weights: Its weights as safetensors.
        kind: Type of the weights, e.g. "float32".
        device: Device of the weights.
        front_end: The front end's configuration.
        modules: Modules that define encoder classes of the user, which are imported first.
        name: Where the model came from.
    """

    config: dict[str, Any]
    weights: bytes
    kind: str
    device: str
    front_end: dict[str, Any]
    modules: tuple[str, ...]
    name: str

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
        """Rebuild the model and its front end."""
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
