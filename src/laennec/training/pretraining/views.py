"""Two views of a pair of cycles.

Decisions: a view is drawn as a pure function of (seed, epoch, cycle, view), the cycle by its own number, so a
resumed pre-training sees what an uninterrupted one sees and leaving out one cycle changes no other. Crops come first,
then changes of the waveform, then (where the model is) masks of the features. No label is read, and no more than the
cycles of a batch are in memory: they come from the files of the waveform cache, one recording each.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laennec.audio.augmentation import SpecAugment, WaveformAugmentation, counter_generator
from laennec.training.data import CycleDataset, view_seed
from laennec.training.metadata_groups import Codes
from laennec.training.pretraining.pairs import PositivePairs
from laennec.training.recipe import PretrainSettings
from laennec.training.targets import Targets

VIEWS = 2
Waveform = NDArray[np.float32]


def waveform_views(settings: PretrainSettings) -> WaveformAugmentation | None:
    """The draws on waveforms of the family `raw`; None where it is not among the views."""
    if "raw" not in settings.views:
        return None
    return WaveformAugmentation(
        gain=settings.gain, pitch=settings.pitch, shift=settings.shift, stretch=settings.stretch
    )


def mask_views(settings: PretrainSettings) -> SpecAugment | None:
    """The masks of the families `spec`, `time` and `frequency`; None where none is among the views."""
    in_time, in_frequency = ({"spec", name} & set(settings.views) for name in ("time", "frequency"))
    if not (in_time or in_frequency):
        return None
    masks = settings.masks
    return dataclasses.replace(
        masks,
        time_masks=masks.time_masks if in_time else 0,
        freq_masks=masks.freq_masks if in_frequency else 0,
    )


def crop(waveform: Waveform, samples: int, where: float) -> Waveform:
    """A stretch of a cycle.

    Args:
        waveform: (samples,).
        samples: How long; the whole of a cycle that is no longer.
        where: In [0, 1): from the start of the cycle to as late as it fits.
    """
    start = int(where * (max(len(waveform) - samples, 0) + 1))
    return waveform[start : start + samples]


class PairDataset(CycleDataset):
    """Pairs of views: `dataset[(row, epoch)]` is a view of the cycle and one of its partner (or of itself).

    Args:
        waveforms: Sequence of float32 (samples,) by row.
        cycle_ids: Cycle ids by row.
        sampling_rate: Of the waveforms, in Hz.
        seed: Of all draws.
        settings: The views.
        least_samples: What a crop keeps at least.
        partners: Who is paired with whom; None for two views of one cycle.
    """

    def __init__(
        self,
        waveforms: Any,
        cycle_ids: Sequence[str],
        sampling_rate: int,
        seed: int,
        settings: PretrainSettings,
        least_samples: int = 1,
        partners: PositivePairs | None = None,
    ) -> None:
        nothing: Codes = np.zeros(len(cycle_ids), dtype=np.int64)
        targets = Targets([], nothing, nothing, np.arange(len(cycle_ids)))
        super().__init__(waveforms, targets, cycle_ids, sampling_rate, seed, waveform_views(settings))
        self.settings = settings
        self.least_samples = least_samples
        self.positives = partners
        self.views = VIEWS

    def paired_row(self, row: int, epoch: int) -> int | None:
        """The row that a cycle is paired with in an epoch, if any."""
        return None if self.positives is None else self.positives.draw(row, self.seed, epoch, int(self.numbers[row]))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        row, epoch = key if isinstance(key, tuple) else (key, 0)
        partner = self.paired_row(row, epoch)
        number = int(self.numbers[row])
        own = self.waveforms[row]
        pair = (own, own if partner is None else self.waveforms[partner])
        first, second = (self._view(sound, number, epoch, view) for view, sound in enumerate(pair))
        return {
            "waveform": first,
            "other_views": [second],
            "label": self.targets.labels[row],
            "class_id": 0,
            "groups": {name: int(codes[row]) for name, codes in self.groups.items()},
            "cycle_number": number,
            "epoch": epoch,
        }

    def _view(self, waveform: Waveform, number: int, epoch: int, view: int) -> Waveform:
        places = counter_generator(view_seed(self.seed, view), epoch, number, "crops").random(2)
        if "split" in self.settings.views:
            samples = max(round(self.settings.crop_fraction * len(waveform)), self.least_samples)
            waveform = crop(waveform, samples, places[0])
        if self.settings.max_duration_s is not None:
            samples = max(round(self.settings.max_duration_s * self.sampling_rate), self.least_samples)
            waveform = crop(waveform, samples, places[1])
        return self._augmented(waveform, number, epoch, view)
