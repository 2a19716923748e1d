"""Settings of front ends, and those that published encoders were trained with.

Decisions: a preset is a set of numbers and nothing else. mean and std follow AST's convention, (x - mean) / (2 std).
Song et al. give 64 mel bins, window 1024, hop 256 and 64 x 320 at 16 kHz; we take Hann (periodic), power, Kaldi's mel
scale over 0 to 8000 Hz, log(x + 1e-5), frames centred on their hops by reflection, so that 5.12 s are exactly 320
frames, and mean and std of real recordings. Whisper raises values more than 8 decades below a clip's maximum; here the
clip is the cycle alone, without Whisper's padding to 30 s.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from laennec.model_settings import Number, Rate

_LN_10 = math.log(10.0)
_MOST_OVERLAP = 128  # most windows that may cover one sample, to limit memory


@dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False))
class FrontEnd:
    """Settings that turn a waveform into log-mel frames."""

    sampling_rate: Rate = 16000  # rate of the waveform in Hz
    num_mel_bins: int = Field(default=128, ge=1, le=1024)  # number of mel filters
    # "hann" or "povey" (hann to the power .85), both symmetric, or "hann_periodic"
    window: Literal["hann", "povey", "hann_periodic"] = "hann"
    window_samples: int = Field(default=400, ge=2, le=65_536)  # length of a frame
    hop_samples: int = Field(default=160, ge=1, le=65_536)  # step between frames
    fft_samples: int = Field(default=512, ge=2, le=65_536)  # FFT length; frames are filled with zeros up to it
    # samples reflected at either end; 0 keeps whole frames only (Kaldi's snip_edges), half a window centres frames on
    # hops
    reflect_samples: int = Field(default=0, ge=0)
    pre_emphasis: float = Field(default=0.97, ge=0, le=1)  # c in x[t] - c x[t-1]; 0 for none
    # "frame" (the first sample's predecessor is itself, as Kaldi) or "signal" (the first sample is dropped, as
    # EfficientAT)
    pre_emphasis_on: Literal["frame", "signal"] = "frame"
    remove_frame_mean: bool = True  # whether each frame's mean is subtracted
    subtract_mean: bool = False  # whether the waveform's mean is subtracted
    # factor on the waveform; 2^15 turns [-1, 1] into 16-bit values
    waveform_scale: float = Field(default=1.0, gt=0, le=1e9)
    low_hz: float = Field(default=20.0, ge=0)  # lower end of the first filter
    high_hz: float = Field(default=8000.0, gt=0)  # upper end of the last filter
    # smallest mel energy, or what is added to it
    log_floor: float = Field(default=1.1920928955078125e-07, gt=0, le=1e6)
    log_floor_rule: Literal["max", "add"] = "max"  # "max" (log of the larger of both) or "add"
    mean: Number = 0.0  # mean that is subtracted from the log-mel values
    std: float = Field(default=0.5, ge=1e-6, le=1e6)  # half of the divisor, as in AST: (x - mean) / (2 std)
    # "log_mel", or "waveform" for encoders of raw waveforms: a frame is one sample
    kind: Literal["log_mel", "waveform"] = "log_mel"
    # "kaldi", or triangles in Hz: "slaney" (with area normalisation) or "htk" (without)
    mel_scale: Literal["kaldi", "slaney", "htk"] = "kaldi"
    # values further than this below a cycle's maximum are raised to that bound, in natural log units; 0 for never
    dynamic_range: float = Field(default=0.0, ge=0, le=1e6)
    drop_last_frame: bool = False  # whether the last frame is dropped
    # "fixed" (by mean and std alone), "bins" (then each mel bin of a cycle to mean 0 and variance 1) or "cycle" (a
    # waveform to mean 0 and variance 1)
    normalise: Literal["fixed", "bins", "cycle"] = "fixed"
    stack_frames: int = Field(default=1, ge=1, le=64)  # how many consecutive frames are stacked into one

    def __post_init__(self) -> None:
        if not self.low_hz < self.high_hz <= self.sampling_rate / 2:
            raise ValueError(
                f"filters from low_hz={self.low_hz} to high_hz={self.high_hz} do not fit {self.sampling_rate} Hz "
                f"audio; need low_hz < high_hz <= {self.sampling_rate / 2:g}"
            )
        if self.window_samples > self.fft_samples:
            raise ValueError(f"window_samples={self.window_samples} is more than fft_samples={self.fft_samples}")
        if self.fft_samples > _MOST_OVERLAP * self.hop_samples and not self.is_waveform:
            raise ValueError(f"hop_samples={self.hop_samples} is less than 1/{_MOST_OVERLAP} of {self.fft_samples}")
        if self.reflect_samples > self.window_samples // 2:
            raise ValueError(f"reflect_samples is {self.reflect_samples}; it can be 0 to half a window")
        if self.normalise == ("bins" if self.is_waveform else "cycle") or (self.is_waveform and self.num_mel_bins != 1):
            raise ValueError('normalise "bins" is for log-mel frames, "cycle" for waveforms, which have one "mel bin"')

    @property
    def is_waveform(self) -> bool:
        """Whether frames are the samples themselves."""
        return self.kind == "waveform"

    @property
    def feature_size(self) -> int:
        """Values of a frame."""
        return self.num_mel_bins * self.stack_frames

    @property
    def min_samples(self) -> int:
        """The fewest samples that give a frame: one window, or as many windows as are stacked."""
        return self.window_samples + (self.stack_frames - 1) * self.hop_samples

    @property
    def lost_samples(self) -> int:
        """Samples that pre-emphasis of the whole signal drops."""
        return int(bool(self.pre_emphasis) and self.pre_emphasis_on == "signal")

    @property
    def wide(self) -> bool:
        """Whether energies are computed in float64: float32 rounding would be visible in bands without sound.

        Normalising bins to variance 1 amplifies it, and the floor of CLAP's decibels lies below it.
        """
        return self.normalise == "bins" or (self.log_floor < 1e-9 and not self.dynamic_range)

    def frames(self, samples: int) -> int:
        """Number of frames of a waveform; 0 where it is shorter than `min_samples`."""
        return int(self.windows_of(torch.tensor(samples))) // self.stack_frames

    def windows_of(self, lengths: Tensor) -> Tensor:
        """Numbers of frames before any are stacked, for a tensor of lengths (batch,)."""
        if self.is_waveform:
            return torch.where(lengths < self.min_samples, 0, lengths)
        padded = lengths - self.lost_samples + 2 * self.reflect_samples
        count = torch.div(padded - self.window_samples, self.hop_samples, rounding_mode="floor")
        return torch.where(lengths < self.min_samples, 0, count + (0 if self.drop_last_frame else 1))


_WHISPER = FrontEnd(
    num_mel_bins=80,
    window="hann_periodic",
    fft_samples=400,
    reflect_samples=200,
    pre_emphasis=0.0,
    remove_frame_mean=False,
    low_hz=0.0,
    mel_scale="slaney",
    log_floor=1e-10,
    dynamic_range=8.0 * _LN_10,
    drop_last_frame=True,
    # (log10 x + 4) / 4
    mean=-4.0 * _LN_10,
    std=2.0 * _LN_10,
)
_CLAP = FrontEnd(
    sampling_rate=48000,
    num_mel_bins=64,
    window="hann_periodic",
    window_samples=1024,
    hop_samples=480,
    fft_samples=1024,
    reflect_samples=512,
    pre_emphasis=0.0,
    remove_frame_mean=False,
    low_hz=50.0,
    high_hz=14000.0,
    mel_scale="slaney",
    log_floor=1e-10,
    # decibels: 10 log10 x
    std=_LN_10 / 20.0,
)
# a frame is one sample; the shortest sound is the receptive field of wav2vec 2.0's convolutions
_WAVEFORM = FrontEnd(kind="waveform", num_mel_bins=1, hop_samples=1, normalise="cycle")

PRESETS: dict[str, FrontEnd] = {
    "ast": FrontEnd(subtract_mean=True, mean=-4.2677393, std=4.5689974),
    "beats": FrontEnd(window="povey", waveform_scale=32768.0, mean=15.41663, std=6.55582),
    "song2021": FrontEnd(
        num_mel_bins=64,
        window="hann_periodic",
        window_samples=1024,
        hop_samples=256,
        fft_samples=1024,
        reflect_samples=384,
        pre_emphasis=0.0,
        remove_frame_mean=False,
        low_hz=0.0,
        log_floor=1e-5,
        log_floor_rule="add",
        mean=-7.2,
        std=2.3,
    ),
    "efficientat": FrontEnd(
        sampling_rate=32000,
        window_samples=800,
        hop_samples=320,
        fft_samples=1024,
        reflect_samples=400,
        pre_emphasis_on="signal",
        remove_frame_mean=False,
        low_hz=0.0,
        high_hz=15000.0,
        log_floor=1e-5,
        log_floor_rule="add",
        mean=-4.5,
        std=2.5,
    ),
    "whisper": _WHISPER,
    # large-v3 and its relatives
    "whisper-128": replace(_WHISPER, num_mel_bins=128),
    "w2v-bert": FrontEnd(num_mel_bins=80, window="povey", waveform_scale=32768.0, normalise="bins", stack_frames=2),
    "clap": _CLAP,
    # checkpoints with feature fusion were trained on other mel filters
    "clap-fused": replace(_CLAP, mel_scale="htk"),
    "waveform": _WAVEFORM,
    # for checkpoints whose preprocessor_config.json says do_normalize: false, such as WavLM base
    "waveform-raw": replace(_WAVEFORM, normalise="fixed"),
}
PRESET_LENGTHS: dict[str, dict[str, Any]] = {
    "song2021": {"length": "repeat", "duration_s": 5.12},
    "clap": {"length": "repeat_pad", "duration_s": 10.0},
    "clap-fused": {"length": "repeat_pad", "duration_s": 10.0},
}
