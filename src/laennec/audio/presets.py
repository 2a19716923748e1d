"""The front ends that published encoders were trained with.

Decisions: a preset is a set of numbers and nothing else. mean and std count as AST's do, (x - mean) / (2 std), so
published values can be typed in. Song et al. give 64 mel bins, window 1024, hop 256 and 64 x 320 at 16 kHz and leave
the rest open. We take Hann (periodic), power, Kaldi's mel scale over 0 to 8000 Hz (27 Hz between the lowest filters,
so none is empty), log(x + 1e-5) (100 dB below the loudest), frames centred on their hops by mirroring, so that 5.12 s
are exactly 320 frames, and mean and std of real recordings (shared ICBHI 2017 subset). Whisper raises what is more
than 8 decades below a clip's loudest value; here the clip is the cycle alone, not the 30 s it is padded to elsewhere.
"""

import math
from dataclasses import replace
from typing import Any

from laennec.audio.filterbanks import FrontEnd

_LN_10 = math.log(10.0)

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
# a frame is one sample; the shortest sound is what one output of wav2vec 2.0's convolutions looks at
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
