"""From a batch of waveforms to the inputs of the model.

Decisions: features are computed where the model is, once a batch. The keys of the draws (seed, epoch, cycle) stay on
the host as arrays, so that no step waits for the device to read them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laennec.audio.augmentation import SpecAugment
from laennec.audio.context import with_context
from laennec.audio.features import LaennecFeatureExtractor
from laennec.training.data import view_seed
from laennec.training.mixing import Mixer

# what losses and draws need of a batch, and the model does not
_CONTEXT = ("class_ids", "cycle_numbers", "epochs", "group_ids", "neighbour_numbers", "neighbour_epochs")


class BatchFeatures:
    """Mixes and masks a batch, and computes its features.

    Args:
        extractor: The front end; None where batches hold embeddings.
        seed: Of the draws.
        spec_augment: Masks of the features of training cycles; None for none.
        mixer: Mixes the cycles of a training batch; None for none.
    """

    def __init__(
        self,
        extractor: LaennecFeatureExtractor | None,
        seed: int = 0,
        spec_augment: SpecAugment | None = None,
        mixer: Mixer | None = None,
    ) -> None:
        self.extractor = extractor
        self.seed = seed
        self.spec_augment = spec_augment
        self.mixer = mixer

    def __call__(
        self, inputs: Mapping[str, Any], training: bool, encoder: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs of the model, and what losses need besides.

        Args:
            inputs: A batch as `collate_cycles` or `collate_embeddings` makes it, on the device of the model.
            training: Whether cycles may be mixed and masked.
            encoder: The model's encoder, for mixtures of its tokens.
        """
        inputs = dict(inputs)
        context = {name: inputs.pop(name) for name in _CONTEXT if name in inputs}
        context["host"] = host = inputs.pop("on_host", {})
        if "waveforms" not in inputs:
            return inputs, context
        assert self.extractor is not None
        draws = training and bool((host["epochs"] >= 0).all())
        mixer = self.mixer if draws else None
        with torch.no_grad():
            waveforms, lengths = inputs.pop("waveforms"), inputs.pop("lengths")
            labels: Any = inputs.get("labels")
            joined = inputs.pop("joined", None)
            if mixer is not None and mixer.on_waveforms:
                waveforms, lengths, context["mixture"] = mixer.waveforms(waveforms, lengths, labels, _keys(context))
            features, mask = self.extractor.features(waveforms, lengths)
            if self.spec_augment is not None and draws:
                features = self._masked(self.spec_augment, features, mask, host)
            if mixer is not None and mixer.on_tokens:
                features, mask, context["token_mix"], context["mixture"] = mixer.tokens(
                    features, mask, labels, _keys(context), encoder
                )
            elif mixer is not None and not mixer.on_waveforms:
                features, mask, context["mixture"] = mixer.features(features, mask, labels, _keys(context))
            if joined is None:
                return inputs | {"input_values": features, "attention_mask": mask}, context
            return inputs | with_context(features, mask, joined), context

    def _masked(self, spec_augment: SpecAugment, features: Tensor, mask: Tensor, host: Mapping[str, Any]) -> Tensor:
        """SpecAugment of each view on its own: (views * batch, frames, mels), followed by the neighbours."""
        drawn = _drawn_for(len(features), host)
        sizes = [len(epochs) for _, epochs, _ in drawn]
        parts = zip(drawn, features.split(sizes), mask.split(sizes), strict=True)
        masked = [
            spec_augment(part, shown, seed=view_seed(self.seed, view), epochs=epochs, cycle_indices=numbers)
            for (view, epochs, numbers), part, shown in parts
        ]
        return masked[0] if len(masked) == 1 else torch.cat(masked)


def _keys(context: Mapping[str, Any]) -> dict[str, Any]:
    """What a mixture is a function of, as tensors that the host can read at once."""
    host = context["host"]
    return {**context, **{name: torch.from_numpy(host[name]) for name in ("epochs", "cycle_numbers")}}


def _drawn_for(rows: int, host: Mapping[str, Any]) -> list[tuple[int, Any, Any]]:
    """View, epochs and cycle numbers of the parts of a batch: cycles of all views, then neighbours of all views."""
    around = len(host.get("neighbour_epochs", ()))
    views = rows // (len(host["epochs"]) + around)
    drawn = [(view, host["epochs"], host["cycle_numbers"]) for view in range(views)]
    if around:
        drawn += [(view, host["neighbour_epochs"], host["neighbour_numbers"]) for view in range(views)]
    return drawn
