"""Mix the cycles of a batch with one another.

Decisions: the draw of a batch (share, second cycles, places) is a pure function of the seed, the epoch and the set of
cycles in the batch, not of their order. A sampler's order depends on (seed, epoch) alone, so a resumed run mixes the
same cycles, with any number of workers. The second cycle must be in the batch, so another batch size, sampler or number
of processes gives other mixtures. Each process mixes its own rows, and so does each small batch of gradient
accumulation. Mixup of waveforms comes before the feature extractor and before masks, mixing of features after them,
mixing of tokens inside the encoder. Where a loss contrasts mixtures with clean cycles, both are encoded, clean rows
first. Patch-Mix of features exchanges patches; Group-Mix exchanges groups of frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laennec.audio.augmentation import STREAMS, SpecAugment
from laennec.audio.context_features import with_context
from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.mixing import LabelUnion, PatchMixDraw, draw_patch_mix, mix, mixup_lambda
from laennec.encoders import ENCODERS
from laennec.encoders.base import TokenMix
from laennec.errors import InputError
from laennec.training.data.batches import view_seed
from laennec.training.objectives.objective import step_key
from laennec.training.recipe import MixSettings, Recipe
from laennec.training.recipe.settings import MIX_DOMAINS

# batch entries that losses and draws need, and the model does not take
_CONTEXT = ("class_ids", "cycle_numbers", "epochs", "group_ids", "neighbour_numbers", "neighbour_epochs")


@dataclass(frozen=True)
class Mixture:
    """The mixture of one batch."""

    # realised share of each row's own cycle: one for the batch, or (batch,) where it is drawn for each cycle or
    # where cycles of different lengths exchanged tokens
    lam: float | Tensor
    index: Tensor  # (batch,) int64, the row that each row is mixed with
    labels: Tensor  # float32 (batch, labels), soft (or hard, under the Lungmix rule)
    clean_labels: Tensor  # float32 (batch, labels), before mixing


def check_mixing(recipe: Recipe) -> None:
    """Refuse mixing inside an encoder that has no tokens to mix."""
    chosen = recipe.augment.mix
    if chosen is None or chosen.domain != "tokens" or recipe.encoder.group_frames:
        return
    kind = recipe.encoder_type()
    if not hasattr(ENCODERS.get(kind, kind), "token_grid"):
        others = [domain for domain in MIX_DOMAINS[chosen.method] if domain != "tokens"]
        raise InputError(
            f"augment.mix.domain is tokens, but {recipe.encoder.class_ or recipe.encoder.type} encoders have no patch "
            f"tokens; with {chosen.method} they support {' or '.join(others)}"
            + (" (or tokens with encoder.group_frames)" if chosen.method == "group_mix" else "")
        )


@dataclass(eq=False)
class Mixer:
    """Mixes the batches of a run."""

    settings: MixSettings  # the recipe's augment.mix
    seed: int  # of the draws
    n_labels: int  # number of logits
    contrast: bool = False  # whether the clean rows are encoded too
    names: Sequence[str] = ()  # label names; the Lungmix rule needs them
    multi_label: bool = True  # whether labels are rows of flags; class numbers otherwise

    def __post_init__(self) -> None:
        hard, where = self.settings.labels == "lungmix", "augment.mix.labels: lungmix"
        self.union = label_union(self.names, self.multi_label, where) if hard else None

    def generator(self, context: Mapping[str, Tensor]) -> np.random.Generator:
        """The random generator of one batch, keyed by its `epochs` and `cycle_numbers` in any order."""
        order = torch.from_numpy(_order(context))
        key = step_key(self.seed, context["epochs"].cpu()[order], context["cycle_numbers"].cpu()[order])
        return np.random.Generator(np.random.Philox(key=np.array([key % 2**64, STREAMS["mixing"]], np.uint64)))

    def waveforms(
        self, waveforms: Tensor, lengths: Tensor, labels: Tensor, context: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Mixture]:
        """Mix waveforms (batch, samples) with true lengths (batch,); a mixture is as long as the longer of the two."""
        lam, index = self._shares(self.generator(context), len(waveforms), context)
        index, mixed = index.to(waveforms.device), torch.as_tensor(lam) < 1
        if bool(mixed.any()):
            waveforms = mix(waveforms, lam, index)
            lengths = torch.where(mixed.to(lengths.device), torch.maximum(lengths, lengths[index]), lengths)
        return waveforms, lengths, self._mixture(lam, index, labels)

    def features(
        self, features: Tensor, mask: Tensor, labels: Tensor, context: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Mixture]:
        """Mix features (batch, frames, mels) with their mask (batch, frames); if `contrast`, clean rows come first."""
        generator = self.generator(context)
        if self.settings.method != "mixup":
            if not bool(mask.bool().all()):
                name = "Patch-Mix" if self.settings.method == "patch_mix" else "Group-Mix"
                raise InputError(
                    f"augment.mix: {name} needs cycles of one length; set features.length: repeat (or zero) and "
                    "features.duration_s"
                )
            draw = self._patches(features, generator)
            lam: float | Tensor = draw.lam
            index = _rows(draw.index, context).to(features.device)
            taken = draw.mask.view(features.shape[1:]).to(features.device)  # (frames, mels)
            mixed, mixed_mask = torch.where(taken, features[index], features), mask
        else:
            lam, index = self._shares(generator, len(features), context)
            index, changed = index.to(features.device), (torch.as_tensor(lam) < 1).to(mask.device)[..., None]
            mixed, mixed_mask = mix(features, lam, index), torch.where(changed, torch.maximum(mask, mask[index]), mask)
        mixture = self._mixture(lam, index, labels)
        if self.contrast:
            return torch.cat([features, mixed]), torch.cat([mask, mixed_mask]), mixture
        return mixed, mixed_mask, mixture

    def tokens(
        self, features: Tensor, mask: Tensor, labels: Tensor, context: Mapping[str, Tensor], encoder: Any
    ) -> tuple[Tensor, Tensor, TokenMix, Mixture]:
        """Draw the tokens that an encoder exchanges between cycles.

        A token is exchanged only where both cycles have real frames, so each row keeps its own mask; its share is the
        fraction of its own real tokens that it keeps.
        """
        generator = self.generator(context)
        batch, frames, mels = features.shape
        bands, steps = encoder.token_grid(frames, mels)
        columns = self.settings.whole_columns or self.settings.method == "group_mix"
        beta = self._beta(generator)
        draw = draw_patch_mix(batch, bands * steps, beta, generator, grid=(bands, steps) if columns else None)
        index = _rows(draw.index, context)
        real = torch.tensor([encoder.token_grid(int(length), mels)[1] for length in mask.sum(1).tolist()])
        both = torch.arange(steps) < torch.minimum(real, real[index])[:, None]  # (batch, steps)
        taken = draw.mask.view(bands, steps) & both[:, None, :]  # (batch, bands, steps)
        lam: float | Tensor = draw.lam
        if not bool((real == steps).all()):
            lam = 1 - taken.sum((1, 2)) / (bands * real).float()
        mixture = self._mixture(lam, index.to(features.device), labels)
        if self.contrast:
            features, mask = torch.cat([features, features]), torch.cat([mask, mask])
            taken = torch.cat([torch.zeros_like(taken), taken])
            index = torch.cat([torch.arange(batch), batch + index])
        return features, mask, TokenMix(taken.to(features.device), index.to(features.device)), mixture

    def _shares(
        self, generator: np.random.Generator, batch: int, context: Mapping[str, Tensor]
    ) -> tuple[float | Tensor, Tensor]:
        """Shares of the own cycle, (batch,) or one for all, 1 for no mixing; and the row to mix each with, (batch,)."""
        if self.settings.each == "batch":
            lam = self._lam(generator)
            return lam, _rows(torch.from_numpy(generator.permutation(batch)), context)
        shares = torch.empty(batch)
        shares[torch.from_numpy(_order(context))] = torch.tensor([self._lam(generator) for _ in range(batch)])
        return shares, _rows(torch.from_numpy(generator.integers(batch, size=batch)), context)

    def _lam(self, generator: np.random.Generator) -> float:
        """Draw the share of the own cycle; 1 for no mixing."""
        happens = generator.random() < self.settings.probability
        lam = mixup_lambda(generator, self.settings.beta)
        return lam if happens else 1.0

    def _beta(self, generator: np.random.Generator) -> float:
        """Beta of a batch whose patches are exchanged; 0 for one that is not mixed."""
        return self.settings.beta if generator.random() < self.settings.probability else 0.0

    def _patches(self, features: Tensor, generator: np.random.Generator) -> PatchMixDraw:
        """A draw whose mask, (frames * mels,), marks every frame and bin of the exchanged patches or groups."""
        _, frames, mels = features.shape
        in_groups = self.settings.method == "group_mix"
        patch = (self.settings.group_frames, mels) if in_groups else tuple(self.settings.patch)
        in_time, in_frequency = (-(-n // size) for n, size in zip((frames, mels), patch, strict=True))
        beta = self._beta(generator)
        grid = (in_frequency, in_time) if self.settings.whole_columns else None
        draw = draw_patch_mix(len(features), in_time * in_frequency, beta, generator, grid=grid)
        # (mel patches, time patches) -> (frames, mels); patches beyond the edge are cut off
        taken = draw.mask.view(in_frequency, in_time).T.repeat_interleave(patch[0], 0)
        taken = taken.repeat_interleave(patch[1], 1)[:frames, :mels]
        return PatchMixDraw(draw.lam, draw.index, taken.flatten())

    def _mixture(self, lam: float | Tensor, index: Tensor, labels: Tensor) -> Mixture:
        """Labels of a mixed batch: rows (batch, labels), or class numbers (batch,)."""
        rows = labels.is_floating_point()
        clean = labels.float() if rows else torch.nn.functional.one_hot(labels.long(), self.n_labels).float()
        if self.union is None:
            return Mixture(lam, index, mix(clean, lam, index), clean)
        union = self.union(labels, labels[index])
        union = union.float() if rows else torch.nn.functional.one_hot(union, self.n_labels).float()
        share = torch.as_tensor(lam, device=clean.device).expand(len(clean))[:, None]
        # share 1 or 0: the row is a single cycle
        return Mixture(lam, index, torch.where(share == 1, clean, torch.where(share == 0, clean[index], union)), clean)


def label_union(names: Sequence[str], multi_label: bool, where: str) -> LabelUnion:
    """The label of a mixture of two cycles."""
    try:
        return LabelUnion(names, multi_label)
    except ValueError as error:
        raise InputError(f"{where}: {error}; set target.problem_type: multi_label, or leave it out") from error


def _order(context: Mapping[str, Tensor]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of a batch sorted by epoch and cycle, so that their order does not matter."""
    return np.lexsort((context["cycle_numbers"].cpu().numpy(), context["epochs"].cpu().numpy()))


def _rows(drawn: Tensor, context: Mapping[str, Tensor]) -> Tensor:
    """Second cycles drawn for the sorted batch, (batch,), as rows of the unsorted batch."""
    order = torch.from_numpy(_order(context))
    index = torch.empty_like(order)
    index[order] = order[drawn]
    return index


@dataclass(eq=False)
class BatchFeatures:
    """Mixes and masks a batch, and computes its features."""

    extractor: LaennecFeatureExtractor | None  # the front end; None where batches hold embeddings
    seed: int = 0  # of the draws
    spec_augment: SpecAugment | None = None  # masks of the features of training cycles; None for none
    mixer: Mixer | None = None  # mixes the cycles of a training batch; None for none

    def __call__(
        self, inputs: Mapping[str, Any], training: bool, model: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The inputs of the model, and what losses need besides."""
        inputs = dict(inputs)
        context = {name: inputs.pop(name) for name in _CONTEXT if name in inputs}
        context["host"] = host = inputs.pop("on_host", {})
        if "waveforms" not in inputs:
            return inputs, context
        assert self.extractor is not None
        waveforms, lengths = inputs.pop("waveforms"), inputs.pop("lengths")
        labels: Any = inputs.get("labels")
        context_rows = inputs.pop("context_rows", None)
        draws = training and bool((host["epochs"] >= 0).all())
        mixer = self.mixer if draws else None
        domain = None if mixer is None else mixer.settings.domain
        # the key of the mixing draw, as tensors on the CPU
        keys = {name: torch.from_numpy(host[name]) for name in ("epochs", "cycle_numbers")}
        with torch.no_grad():
            if mixer is not None and domain == "waveform":
                waveforms, lengths, context["mixture"] = mixer.waveforms(waveforms, lengths, labels, keys)
            features, mask = self.extractor.features(waveforms, lengths)
            if self.spec_augment is not None and draws:
                features = self._masked(self.spec_augment, features, mask, host)
            if mixer is not None and domain == "tokens":
                features, mask, context["token_mix"], context["mixture"] = mixer.tokens(
                    features, mask, labels, keys, model.encoder
                )
            elif mixer is not None and domain == "features":
                features, mask, context["mixture"] = mixer.features(features, mask, labels, keys)
            if context_rows is None:
                return inputs | {"input_values": features, "attention_mask": mask}, context
            return inputs | with_context(features, mask, context_rows), context

    def _masked(self, spec_augment: SpecAugment, features: Tensor, mask: Tensor, host: Mapping[str, Any]) -> Tensor:
        """Apply SpecAugment to each view separately: cycles of all views, then neighbours of all views."""
        kinds = [("epochs", "cycle_numbers")]
        if len(host.get("neighbour_epochs", ())):
            kinds.append(("neighbour_epochs", "neighbour_numbers"))
        views = len(features) // sum(len(host[epochs]) for epochs, _ in kinds)
        drawn = [(view, host[epochs], host[numbers]) for epochs, numbers in kinds for view in range(views)]
        sizes = [len(epochs) for _, epochs, _ in drawn]
        masked = [
            spec_augment(part, shown, seed=view_seed(self.seed, view), epochs=epochs, cycle_indices=numbers)
            for (view, epochs, numbers), part, shown in zip(
                drawn, features.split(sizes), mask.split(sizes), strict=True
            )
        ]
        return torch.cat(masked)
