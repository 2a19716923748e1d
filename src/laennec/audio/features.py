"""Feature extractor: cycles of any length to log-mel frames, the same object for training and for prediction.

Decisions: every number that shapes the output is saved in preprocessor_config.json, not only the preset's name, so that
a later change of a preset cannot change an old model. Cycles keep their natural length unless told otherwise; frames
beyond a cycle's end are 0 after normalisation and masked. Encoders of raw waveforms get them through the same object,
as frames of one sample.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor

from laennec.audio.context import InContext
from laennec.audio.context_features import unfold, with_context
from laennec.audio.filterbanks import TooShortError, log_mel, own, padded_batch, waveform_frames
from laennec.audio.presets import PRESET_LENGTHS, PRESETS, FrontEnd
from laennec.audio.recording import ButterworthFilter
from laennec.errors import InputError, did_you_mean
from laennec.model_settings import FILLED, LENGTH_RULES, REMEDY, SoundSettings, checked, settings_error
from laennec.untrusted import refuse_settings

__all__ = ["FEATURE_VERSION", "LENGTH_RULES", "PRESETS", "LaennecFeatureExtractor", "preset_length"]

# raised whenever the same settings give other features; stored in caches and saved extractors
FEATURE_VERSION = 1

_FRONT_END_FIELDS = tuple(f.name for f in fields(FrontEnd))
# keys that transformers writes or passes along
_BOOKKEEPING = ("feature_extractor_type", "image_processor_type", "processor_class", "auto_map", "padding_side")
_PADDINGS = (None, False, True, "longest", "do_not_pad")  # values that pipelines pass; none has an effect
_PEAK_WARNING = 16.0
_WHOLE_FRAMES: dict[str, Any] = {
    "kind": "log_mel", "reflect_samples": 0, "dynamic_range": 0.0, "drop_last_frame": False, "normalise": "fixed",
    "stack_frames": 1, "pre_emphasis_on": "frame",
}  # fmt: skip
# settings added later: at their defaults they do not enter the fingerprint, so that older fingerprints stay valid
_LATER = ("kind", "mel_scale", "dynamic_range", "drop_last_frame", "normalise", "stack_frames")


class LaennecFeatureExtractor(SequenceFeatureExtractor):
    """Log-mel features of respiratory cycles, batched, on any device.

    Args:
        preset: "ast" (Gong et al. 2021), "beats" (Chen et al. 2022), "song2021" (Song et al. 2021), "efficientat"
            (Schmid et al. 2023), "whisper" and "whisper-128" (Radford et al. 2022; 80 or 128 mel bins), "w2v-bert"
            (Seamless Communication 2023), "clap" and "clap-fused" (Wu et al. 2023), "waveform" and "waveform-raw"
            (wav2vec 2.0, HuBERT, WavLM, data2vec; each cycle standardised, or as it is).
        length: "natural" keeps each cycle's length; "repeat" repeats short cycles and keeps the first `duration_s` of
            long ones; "repeat_pad" repeats short ones a whole number of times, then pads with zeros; "zero" centres
            short ones in zeros; "crop" keeps the first `duration_s` of long ones and leaves short ones; "zero_frames"
            pads with frames of log-mel 0 that are not masked, as AST's authors and transformers' ASTFeatureExtractor
            do. None for the preset's rule.
        duration_s: The length in seconds for every rule but "natural".
        fade_s: Length of the linear fade-out at the end of repeated cycles, in seconds.
        keep: Which part of a long cycle is kept, the "first", "last" or "center" `duration_s`.
        recording_filter: Fields of the `laennec.audio.recording.ButterworthFilter` that whole recordings were filtered
            with in training. Saved here so that prediction filters recordings before it cuts cycles; the extractor
            itself does not apply it.
        context_cycles: Number of cycles before and after, of the same recording, that are concatenated with a cycle
            (given as a `laennec.audio.context.InContext`) to `context_values`.
        **overrides: Any field of `laennec.audio.filterbanks.FrontEnd`, such as mean and std: features are (x - mean)
            / (2 std).

    Raises:
        ValueError: Unknown preset or length rule, or values that do not fit together.
        TypeError: An override that does not exist.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012 - transformers reads a plain list

    def __init__(
        self,
        preset: str = "ast",
        *,
        length: str | None = None,
        duration_s: float | None = None,
        fade_s: float = 0.0,
        keep: str = "first",
        recording_filter: dict[str, Any] | None = None,
        context_cycles: int = 0,
        **overrides: Any,
    ) -> None:
        if preset not in [*PRESETS]:
            raise ValueError(f"preset is {preset!r}; it can be {', '.join(PRESETS)}")
        saved_version = overrides.pop("feature_version", FEATURE_VERSION)
        if saved_version != FEATURE_VERSION:
            raise InputError(
                f"feature_version: the settings were written for feature version {saved_version}, this laennec "
                f"computes version {FEATURE_VERSION}; install the laennec release the model was trained with"
            )
        front = _front_end(overrides, PRESETS[preset])
        default = PRESET_LENGTHS.get(preset, {})
        length = default.get("length", "natural") if length is None else length
        if duration_s is None and length != "natural":
            duration_s = default.get("duration_s")
        sound = {"length": length, "duration_s": duration_s, "fade_s": fade_s, "keep": keep}
        sound |= {"recording_filter": recording_filter, "context_cycles": context_cycles}
        checked(SoundSettings, {**sound, "sampling_rate": front.sampling_rate})
        bookkeeping = {k: v for k, v in overrides.items() if k in _BOOKKEEPING and k != "feature_extractor_type"}
        super().__init__(
            feature_size=front.feature_size, sampling_rate=front.sampling_rate, padding_value=0.0, **bookkeeping
        )
        self.return_attention_mask = overrides.get("return_attention_mask", True)
        self.preset = preset
        self.feature_version = FEATURE_VERSION
        for name, value in asdict(front).items():
            setattr(self, name, value)
        self.length: str = length
        self.duration_s, self.fade_s, self.keep = duration_s, float(fade_s), keep
        self.recording_filter = recording_filter
        self.context_cycles = context_cycles
        self._check_length()

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make an extractor from saved settings, which are untrusted."""
        where = "preprocessor_config.json"
        refuse_settings(feature_extractor_dict, where)
        try:
            return super().from_dict(feature_extractor_dict, **kwargs)
        except InputError as error:
            raise InputError(f"{where}: no usable front end: {error}") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: no usable front end: {error}; {REMEDY}") from error

    def _check_length(self) -> None:
        if self.length == "natural":
            if self.duration_s is not None:
                raise ValueError(
                    f"duration_s={self.duration_s} has no effect with length='natural'; "
                    "choose length='repeat', 'zero' or 'crop', or leave duration_s out"
                )
        elif self.duration_s is None:
            raise ValueError(f"length={self.length!r} needs duration_s, in seconds")
        elif self.length == "zero_frames" and (
            self.keep != "first" or any(getattr(self, name) != value for name, value in _WHOLE_FRAMES.items())
        ):
            raise ValueError(
                "length='zero_frames' needs keep='first' and a front end whose frames depend on their own samples "
                "alone; use preset ast or beats"
            )
        elif self.front.frames(self._target_samples) < 1:
            raise ValueError(f"duration_s={self.duration_s} is shorter than one window of {self.window_ms:g} ms")
        if self.fade_s and (self.length != "repeat" or not 0 < self.fade_s <= (self.duration_s or 0)):
            raise ValueError(f"fade_s={self.fade_s} needs length='repeat' and lies between 0 and duration_s")

    @property
    def front(self) -> FrontEnd:
        """The settings of the filter bank."""
        return FrontEnd(**{name: getattr(self, name) for name in _FRONT_END_FIELDS})

    @property
    def window_ms(self) -> float:
        """Length of a frame in milliseconds, the shortest sound with features."""
        return 1000 * self.front.min_samples / self.front.sampling_rate

    @property
    def frames_per_second(self) -> float:
        """Frames per second of sound."""
        return self.front.sampling_rate / (self.front.hop_samples * self.front.stack_frames)

    @property
    def _target_samples(self) -> int:
        if self.length == "zero_frames":  # the number that gives all frames
            return self.front.window_samples + (self._target_frames - 1) * self.front.hop_samples
        return round((self.duration_s or 0.0) * self.sampling_rate)

    @property
    def _target_frames(self) -> int:
        return round((self.duration_s or 0.0) * self.sampling_rate / self.front.hop_samples)

    def frames(self, samples: int) -> int:
        """Number of real frames of a cycle of `samples` samples; 0 where it is too short for one."""
        if self.length in FILLED:
            return self.front.frames(self._target_samples) if samples else 0
        if self.length == "zero_frames":
            return self._target_frames if samples >= self.front.min_samples else 0
        return self.front.frames(min(samples, self._target_samples) if self.length == "crop" else samples)

    def features(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a padded batch, on its own device, without checks and without device synchronisation.

        Args:
            waveforms: (batch, samples); samples beyond a cycle's length are never used.
            lengths: (batch,), integer, the true number of samples.

        Returns:
            input_values (batch, frames, mels) float32 and attention_mask (batch, frames) int64, all 0 for a cycle that
            is shorter than one frame.
        """
        lengths = lengths.to(device=waveforms.device, dtype=torch.int64)
        waveforms, lengths = self.fit(waveforms, lengths)
        front = self.front
        if front.is_waveform:
            values, counts = waveform_frames(waveforms, lengths, front)
        else:
            values, counts = log_mel(waveforms, lengths, front)
        if self.length == "zero_frames":
            values, counts = self.with_zero_frames(values, counts)
        return values, own(counts, values.shape[1]).long()

    def fit(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the length rule to a batch: waveforms (batch, samples) and their lengths (batch,)."""
        if self.length == "natural":
            return waveforms, lengths
        target = self._target_samples
        waveforms = waveforms.float()
        if self.length in ("crop", "zero_frames") and self.keep == "first":
            return self.cropped(waveforms), lengths.clamp_max(target)
        fade = round(self.fade_s * self.sampling_rate)
        checkable = self.length == "repeat" and not fade and waveforms.numel() and waveforms.device.type == "cpu"
        if checkable and int(lengths.min()) == waveforms.shape[1]:  # without padding no gather is needed
            return self.repeated(waveforms), torch.full_like(lengths, target)
        length = lengths[:, None]
        step = torch.arange(target, device=waveforms.device)[None, :]
        beyond = (length - target).clamp_min(0)
        skipped = {"first": torch.zeros_like(length), "last": beyond, "center": beyond.bitwise_right_shift(1)}
        place = step + skipped[self.keep]
        if self.length in ("repeat", "repeat_pad"):
            place = torch.where(length > target, place, step % length.clamp_min(1))
            if self.length == "repeat_pad":
                # a number divided by a tensor cannot be exported to a graph
                whole = torch.div(torch.full_like(length, target), length.clamp_min(1), rounding_mode="floor") * length
                place = torch.where((length <= target) & (step >= whole), -1, place)
        elif self.length == "zero":
            place = place - torch.div((target - length).clamp_min(0), 2, rounding_mode="floor")
        inside = (place >= 0) & (place < length)
        fitted = waveforms.gather(1, place.clamp(0, waveforms.shape[1] - 1)).masked_fill(~inside, 0.0)
        if fade:
            ramp = torch.linspace(1.0, 0.0, fade, device=waveforms.device)
            # cycles that were cut do not fade; one of exactly the length does, as in the published code
            fitted[:, -fade:] = torch.where(length > target, fitted[:, -fade:], fitted[:, -fade:] * ramp)
        if self.length == "crop":
            return fitted, lengths.clamp_max(target)
        return fitted, torch.where(lengths > 0, target, 0)

    def cropped(self, waveforms: Tensor) -> Tensor:
        """Crop waveforms without padding as `keep` says: (batch, samples) -> (batch, at most duration_s)."""
        beyond = torch.sym_max(waveforms.shape[1] - self._target_samples, 0)
        skipped = {"first": 0, "last": beyond, "center": beyond // 2}[self.keep]
        return waveforms[:, skipped : skipped + self._target_samples]

    def repeated(self, waveforms: Tensor) -> Tensor:
        """Repeat (or crop) waveforms without padding to duration_s: (batch, samples) -> (batch, target samples)."""
        waveforms = self.cropped(waveforms)
        times = (self._target_samples + waveforms.shape[1] - 1) // waveforms.shape[1]
        return waveforms.repeat(1, times)[:, : self._target_samples]

    def with_zero_frames(self, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Pad cycles with frames of log-mel 0, normalised like all others: (batch, n, mels) -> (batch, m, mels)."""
        front, total = self.front, self._target_frames
        behind = ~own(counts, total)[:, :, None]
        filled = torch.nn.functional.pad(values, (0, 0, 0, total - values.shape[1]))
        return filled.masked_fill(behind, -front.mean * 0.5 / front.std), torch.where(counts > 0, total, 0)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        device: str | torch.device | None = None,
        return_tensors: str | None = "pt",
        lengths: Sequence[int] | Tensor | None = None,
        return_attention_mask: bool | None = None,
        filtered: bool = False,
        **padding: Any,
    ) -> BatchFeature:
        """Features of one cycle or many.

        Args:
            raw_speech: The waveforms, in [-1, 1]: one of shape (samples,), a list of them, or (batch, samples). With
                `context_cycles`, an `InContext` may replace a waveform; a plain waveform has no context.
            sampling_rate: Their rate in Hz; it must be the extractor's.
            device: Where to compute; None for where the waveforms are.
            return_tensors: "pt" or "np".
            lengths: (batch,), true numbers of samples, where `raw_speech` is a padded (batch, samples).
            return_attention_mask: False omits the mask.
            filtered: Whether the waveforms were cut from recordings that `recording_filter` was applied to, as in
                training; others are filtered here.
            **padding: `padding`, `truncation` and `pad_to_multiple_of` as pipelines pass them; batches are always
                padded to their longest cycle.

        Returns:
            input_values (batch, frames, mels) float32 and attention_mask (batch, frames) int64, 1 on frames of sound.
            With `context_cycles`, context_values and context_mask likewise: a cycle and its context in time order.

        Raises:
            InputError: Waveforms or a rate that the extractor cannot take; `TooShortError` for less than one frame.
        """
        _check_padding(padding)
        self._check_rate(sampling_rate)
        raw_speech, context_rows = self._unfolded(raw_speech)
        batch, counts = padded_batch(raw_speech, lengths)
        if self.recording_filter and not filtered:
            batch = self._filtered(batch, counts)
        if device is not None:
            batch = batch.to(device)
        if context_rows is None:
            context_rows = torch.arange(len(counts))[:, None]
        self._check_waveforms(batch, counts, len(context_rows))
        values, mask = self.features(batch, torch.tensor(counts))
        data = {"input_values": values, "attention_mask": mask}
        if self.context_cycles:
            data = with_context(values, mask, context_rows)
        if not (self.return_attention_mask if return_attention_mask is None else return_attention_mask):
            data = {name: value for name, value in data.items() if not name.endswith("mask")}
        if return_tensors == "np":
            return BatchFeature({k: v.cpu().numpy() for k, v in data.items()})
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is {return_tensors!r}; it can be 'pt' or 'np'")
        return BatchFeature(data)

    def _filtered(self, batch: Tensor, counts: list[int]) -> Tensor:
        """The batch (rows, samples) with the recording filter applied to the sound of each row."""
        assert self.recording_filter is not None
        filter, made = ButterworthFilter(**self.recording_filter), batch.clone()
        for row, count in enumerate(counts):
            sound = batch[row, :count].cpu().numpy().astype(np.float32)
            made[row, :count] = torch.from_numpy(filter.apply(sound, self.sampling_rate)).to(batch)
        return made

    def _unfolded(self, raw_speech: Any) -> tuple[Any, Tensor | None]:
        """Cycles and their context as one list of waveforms, and the rows of each item's context; None without any."""
        items = [raw_speech] if isinstance(raw_speech, InContext) else raw_speech
        if not isinstance(items, list | tuple) or not any(isinstance(item, InContext) for item in items):
            return raw_speech, None
        return unfold(items, self.context_cycles)

    def _check_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            raise InputError(
                f"no sampling_rate was given; pass sampling_rate={self.sampling_rate}, and "
                "resample first if the waveforms have another"
            )
        if sampling_rate != self.sampling_rate:
            raise InputError(
                f"the waveforms have {sampling_rate} Hz but these features need {self.sampling_rate} Hz; "
                f"resample first: laennec.audio.recording.resample(waveform, {sampling_rate}, {self.sampling_rate})"
            )

    def _check_waveforms(self, batch: Tensor, counts: list[int], cycles: int) -> None:
        """Refuse values that are not finite, and cycles shorter than a frame (rows from `cycles` on are context)."""
        needed = 1 if self.length in FILLED else self.front.min_samples
        for index, samples in enumerate(counts[:cycles]):
            if samples < needed:
                raise TooShortError(index, samples, self.sampling_rate, self.front.min_samples)
        peak = float(batch.abs().amax())
        if not math.isfinite(peak):
            row = int((~torch.isfinite(batch)).any(1).nonzero()[0])
            raise InputError(
                f"waveform {row} holds values that are not finite; decode the recording again or leave it out"
            )
        if peak > _PEAK_WARNING:
            warnings.warn(
                f"a waveform reaches {peak:.4g}, but features expect [-1, 1]; divide 16-bit values by 32768",
                stacklevel=3,
            )

    def to_dict(self) -> dict[str, Any]:
        """Every setting, as saved in preprocessor_config.json."""
        values: dict[str, Any] = super().to_dict()
        # transformers mistakes `window` for an array and drops it
        values = {**values, "window": self.front.window}
        if not self.context_cycles:
            del values["context_cycles"]
        return values

    def push_to_hub(self, repo_id: str, *, private: bool = True, **settings: Any) -> Any:
        """Upload preprocessor_config.json to the Hub, as transformers does, but private by default."""
        return super().push_to_hub(repo_id, private=private, **settings)

    def fingerprint(self) -> str:
        """sha256 of everything that determines the output (not of the preset's name)."""
        default = FrontEnd()
        front = {k: v for k, v in asdict(self.front).items() if k not in _LATER or v != getattr(default, k)}
        values = front | {k: getattr(self, k) for k in ("length", "duration_s", "fade_s", "keep", "feature_version")}
        if self.context_cycles:  # absent at its default, so that older fingerprints stay valid
            values["context_cycles"] = self.context_cycles
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def preset_length(preset: str) -> str:
    """The default length rule of a preset."""
    return str(PRESET_LENGTHS.get(preset, {}).get("length", "natural"))


def _front_end(overrides: dict[str, Any], preset: FrontEnd) -> FrontEnd:
    """A preset's front end with the overrides that are settings of it; unknown names are refused."""
    if overrides.get("padding_value", 0.0) != 0.0:
        raise ValueError("padding_value can only be 0.0, which encoders expect")
    if not isinstance(overrides.get("return_attention_mask", True), bool):
        raise ValueError("return_attention_mask can be true or false")
    known = (*_FRONT_END_FIELDS, "length", "duration_s", "fade_s", "keep", "context_cycles")
    for name in overrides:
        if name not in (*known, *_BOOKKEEPING, "feature_size", "padding_value", "return_attention_mask"):
            raise TypeError(f"features have no setting {name!r}{did_you_mean(name, known)}")
    settings = asdict(preset) | {k: v for k, v in overrides.items() if k in _FRONT_END_FIELDS}
    size = overrides.get("feature_size", 0)
    try:
        front = FrontEnd(**settings)
    except ValidationError as error:
        raise settings_error(error, settings) from error
    if "feature_size" in overrides and "num_mel_bins" not in overrides and isinstance(size, int):
        return _front_end(overrides | {"num_mel_bins": size // front.stack_frames}, preset)
    if "feature_size" in overrides and size != front.feature_size:
        raise ValueError(
            f"feature_size={size!r} and num_mel_bins={front.num_mel_bins} must be equal"
            + (f" ({front.stack_frames} frames stacked)" if front.stack_frames > 1 else "")
        )
    return front


def _check_padding(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        harmless = name in ("truncation", "padding", "pad_to_multiple_of") and value in _PADDINGS
        if not harmless and not (name == "max_length" and value is None):
            raise TypeError(
                f"{name}={value!r} is not supported by this feature extractor; its settings length, duration_s and "
                "fade_s determine the length"
            )
