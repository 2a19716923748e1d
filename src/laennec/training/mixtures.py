"""Stage 8, training: cycles of a batch mixed with one another.

Decided here: a batch's draw depends on the seed, the epoch and which cycles the batch holds, so a resumed run mixes
alike; each process mixes its own rows. Mixup of waveforms comes before the front end and before masks, mixing of
features after them. Where a loss contrasts mixtures with what they were made of, both are encoded, clean rows first.
Patch-Mix exchanges patches of the features, so that it works before any encoder; whole time columns on request.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laennec.audio.augment import STREAMS
from laennec.audio.mixing import PatchMixDraw, draw_patch_mix, mix, mixup_lambda, soft_labels
from laennec.training.objective import step_key
from laennec.training.settings import ConfigError, MixSettings


@dataclass(frozen=True)
class Mixture:
    """What was mixed in one batch.

    Attributes:
        lam: Realised share of each row's own cycle.
        index: (batch,) int64, the partner of each row.
        labels: float32 (batch, labels), soft.
        clean_labels: float32 (batch, labels), before mixing.
    """

    lam: float
    index: Tensor
    labels: Tensor
    clean_labels: Tensor


class Mixer:
    """Mixes the batches of a run.

    Args:
        settings: The recipe's augment.mix.
        seed: Of the draws.
        n_labels: Number of logits.
        contrast: Whether the clean rows are encoded too.
    """

    def __init__(self, settings: MixSettings, seed: int, n_labels: int, contrast: bool = False) -> None:
        self.settings = settings
        self.seed = seed
        self.n_labels = n_labels
        self.contrast = contrast

    @property
    def on_waveforms(self) -> bool:
        """Whether cycles are mixed before the front end."""
        return self.settings.method == "mixup" and self.settings.domain == "waveform"

    def generator(self, context: Mapping[str, Tensor]) -> np.random.Generator:
        """The random numbers of one batch, from its `epochs` and `cycle_numbers`."""
        key = step_key(self.seed, context["epochs"], context["cycle_numbers"])
        return np.random.Generator(np.random.Philox(key=[key, STREAMS["mixing"]]))

    def waveforms(
        self, waveforms: Tensor, lengths: Tensor, labels: Tensor, context: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Mixture]:
        """Mix waveforms (batch, samples) with true lengths (batch,); a mixture is as long as the longer of the two."""
        generator = self.generator(context)
        lam = self._lam(generator)
        index = torch.from_numpy(generator.permutation(len(waveforms))).to(waveforms.device)
        if lam < 1:
            waveforms, lengths = mix(waveforms, lam, index), torch.maximum(lengths, lengths[index])
        return waveforms, lengths, self._mixture(lam, index, labels)

    def features(
        self, features: Tensor, mask: Tensor, labels: Tensor, context: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Mixture]:
        """Mix features (batch, frames, mels) with their mask (batch, frames); clean rows stay in front if need be.

        Raises:
            ConfigError: Patch-Mix of cycles of different lengths.
        """
        generator = self.generator(context)
        if self.settings.method == "patch_mix":
            if not bool(mask.bool().all()):
                raise ConfigError(
                    "augment.mix: Patch-Mix needs cycles of one length; set features.length: repeat (or zero) and "
                    "features.duration_s"
                )
            draw = self._patches(features, generator)
            lam, index = draw.lam, draw.index.to(features.device)
            taken = draw.mask.view(features.shape[1:]).to(features.device)  # (frames, mels)
            mixed, mixed_mask = torch.where(taken, features[index], features), mask
        else:
            lam = self._lam(generator)
            index = torch.from_numpy(generator.permutation(len(features))).to(features.device)
            mixed, mixed_mask = mix(features, lam, index), torch.maximum(mask, mask[index])
        mixture = self._mixture(lam, index, labels)
        if self.contrast:
            return torch.cat([features, mixed]), torch.cat([mask, mixed_mask]), mixture
        return mixed, mixed_mask, mixture

    def _lam(self, generator: np.random.Generator) -> float:
        """Share of the own cycle; 1 for a batch that is left alone."""
        happens = generator.random() < self.settings.probability
        lam = mixup_lambda(generator, self.settings.beta)
        return lam if happens else 1.0

    def _patches(self, features: Tensor, generator: np.random.Generator) -> PatchMixDraw:
        """A draw whose mask, (frames * mels,), marks every frame and bin of the exchanged patches."""
        _, frames, mels = features.shape
        in_time, in_frequency = (-(-n // size) for n, size in zip((frames, mels), self.settings.patch, strict=True))
        beta = self.settings.beta if generator.random() < self.settings.probability else 0.0
        grid = (in_frequency, in_time) if self.settings.whole_columns else None
        draw = draw_patch_mix(len(features), in_time * in_frequency, beta, generator, grid=grid)
        # (mel patches, time patches) -> (frames, mels); what reaches over the edge is cut off
        taken = draw.mask.view(in_frequency, in_time).T.repeat_interleave(self.settings.patch[0], 0)
        taken = taken.repeat_interleave(self.settings.patch[1], 1)[:frames, :mels]
        return PatchMixDraw(draw.lam, draw.index, taken.flatten())

    def _mixture(self, lam: float, index: Tensor, labels: Tensor) -> Mixture:
        """Labels of a mixed batch: rows (batch, labels), or class numbers (batch,)."""
        if labels.is_floating_point():
            return Mixture(lam, index, mix(labels.float(), lam, index), labels.float())
        clean = torch.nn.functional.one_hot(labels.long(), self.n_labels).float()
        return Mixture(lam, index, soft_labels(labels, lam, index, self.n_labels), clean)
