"""Front ends of transformers' encoders: what transformers' own extractors give, on real recordings, and one more thing:
a cycle's values do not depend on what it is batched with."""

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from transformers import (
    ClapFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.presets import PRESETS
from laennec.errors import InputError

THEIRS = {
    "whisper": WhisperFeatureExtractor(),
    "whisper-128": WhisperFeatureExtractor(feature_size=128),
    "w2v-bert": SeamlessM4TFeatureExtractor(),
    # as laion's checkpoints are configured
    "clap": ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc"),
    "clap-fused": ClapFeatureExtractor(frequency_min=50),
    "waveform": Wav2Vec2FeatureExtractor(),
    "waveform-raw": Wav2Vec2FeatureExtractor(do_normalize=False),
}
# decibels have larger numbers than decades
TOLERANCE = {"w2v-bert": 5e-4, "clap": 5e-3, "clap-fused": 5e-3}


def recordings(folder: Path, rate: int) -> list[np.ndarray]:
    """Real sound of several lengths, from both corpora."""
    paths = [
        *sorted((folder / "icbhi2017_subset").glob("*.flac"))[:2],
        *sorted((folder / "sprsound/train/wav").iterdir())[:1],
    ]
    waves = []
    for path, seconds in zip(paths, (2.713, 9.871, 1.05), strict=True):
        wave, own = sf.read(path, dtype="float32", frames=10 * sf.info(path).samplerate)
        waves.append(soxr.resample(wave, own, rate)[: round(seconds * rate)])
    return waves


@pytest.mark.parametrize("preset", THEIRS)
def test_equals_transformers_own_extractor(preset: str, shared_data: Path) -> None:
    theirs, ours = THEIRS[preset], LaennecFeatureExtractor(preset)
    assert ours.sampling_rate == theirs.sampling_rate
    for wave in recordings(shared_data, ours.sampling_rate):
        arguments = {"padding": "do_not_pad"} if "whisper" in preset else {}
        out = theirs(wave, sampling_rate=theirs.sampling_rate, return_tensors="pt", **arguments)
        if "waveform" in preset:
            expected = out.input_values[0][:, None]
        elif "whisper" in preset:
            expected = out.input_features[0].T
        elif "clap" in preset:
            expected = out.input_features[0, 0]
        else:
            expected = out.input_features[0][: int(out.attention_mask.sum())]
        values = ours(wave, sampling_rate=ours.sampling_rate)
        assert bool(values.attention_mask.all())
        assert values.input_values[0].shape == expected.shape == (ours.frames(len(wave)), ours.feature_size)
        torch.testing.assert_close(
            values.input_values[0], expected.float(), atol=TOLERANCE.get(preset, 1e-5), rtol=1e-5
        )


def test_whispers_dynamic_range_is_the_cycles_own(shared_data: Path) -> None:
    ours = LaennecFeatureExtractor("whisper")
    loud, _, quiet = (w / np.abs(w).max() for w in recordings(shared_data, 16000))
    loud = 15 * loud
    quiet[4000:6000] = 0.0
    alone = ours(quiet, sampling_rate=16000).input_values[0]
    together = ours([loud, quiet], sampling_rate=16000).input_values[1, : len(alone)]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    # 8 decades, in quarters of a decade
    assert float(alone.max() - alone.min()) == pytest.approx(2.0, abs=1e-5)


def test_the_shortest_sound() -> None:
    for preset, needed, frames in (("whisper", 400, 2), ("w2v-bert", 560, 1), ("waveform", 400, 400)):
        ours = LaennecFeatureExtractor(preset)
        assert ours.front.min_samples == needed and ours.frames(needed) == frames and ours.frames(needed - 1) == 0
        values = ours(np.ones(needed, np.float32), sampling_rate=16000).input_values
        assert values.shape[:2] == (1, frames) and bool(torch.isfinite(values).all())
        with pytest.raises(InputError, match=f"{needed - 1} samples"):
            ours(np.ones(needed - 1, np.float32), sampling_rate=16000)


def test_fingerprints_from_before_the_later_settings_hold() -> None:
    # written down before those settings existed: caches of embeddings stay good
    old = {
        "ast": "b55959a2e9308a8fe595eb7816a31833dd64585ab91970db4c329e6ed92320dd",
        "efficientat": "fd6c89268f69d6b6da003df780119760901e807455a7ed696f8dd0c141ecb672",
    }
    for preset, digest in old.items():
        assert LaennecFeatureExtractor(preset).fingerprint() == digest
    assert len({LaennecFeatureExtractor(p).fingerprint() for p in PRESETS}) == len(PRESETS)


def test_feature_size_counts_stacked_frames() -> None:
    assert LaennecFeatureExtractor("w2v-bert", feature_size=80).num_mel_bins == 40
    with pytest.raises(ValueError, match=r"must be equal \(2 frames stacked\)"):
        LaennecFeatureExtractor("w2v-bert", feature_size=80, num_mel_bins=80)
    assert LaennecFeatureExtractor("w2v-bert").frames_per_second == 50
