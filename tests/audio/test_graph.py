"""The front end as a graph gives the features of the front end as it is, on real recordings and every setting."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.filterbanks import GraphFrontEnd, frame_mean
from laennec.audio.presets import PRESETS
from laennec.audio.recording import read_recording


@pytest.fixture(scope="module")
def sounds(shared_data: Path) -> list[Path]:
    """Real recordings of both corpora, one of them made at 4 kHz: its upper bands hold rounding alone."""
    icbhi = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))
    low = [path for path in icbhi if soundfile.info(path).samplerate == 4000]
    children = sorted((shared_data / "sprsound" / "train" / "wav").glob("*.flac"))
    return [icbhi[0], low[0], children[0]]


@pytest.mark.parametrize("width", [32, 40, 77, 400, 511])
def test_the_mean_of_a_frame_is_added_up_in_torchs_order(width: int) -> None:
    frames = (torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)) + 0.3).unfold(1, width, 160)
    torch.testing.assert_close(frame_mean(frames), frames.mean(-1, keepdim=True), atol=1e-6, rtol=0)
    eighth = frames[..., : width // 8 * 8].unflatten(-1, (-1, 8))
    if width == 32:  # four sums of one each, so the order is easily said
        a, b, c, d = eighth.unbind(-2)
        lanes = (((a + b) + c) + d).unbind(-1)
        by_hand = torch.zeros_like(lanes[0])
        for lane in lanes:
            by_hand = by_hand + lane
        assert torch.equal(frame_mean(frames)[..., 0], by_hand / width)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("length", ["natural", "repeat", "zero_frames"])
def test_the_graph_gives_the_features_of_the_extractor(preset: str, length: str, sounds: list[Path]) -> None:
    if length == "zero_frames" and preset not in ("ast", "beats"):
        pytest.skip("a rule of whole frames alone")
    duration = {} if length == "natural" else {"duration_s": 2.0}
    extractor = LaennecFeatureExtractor(preset, length=length, **duration)
    rate = extractor.sampling_rate
    spans = (round(0.4 * rate), round(2.3 * rate), extractor.front.min_samples + 7)
    graph = GraphFrontEnd(extractor)
    for path in sounds:
        waveform = read_recording(path, rate).waveform
        cut = [torch.from_numpy(waveform[rate // 2 : rate // 2 + n]) for n in spans]
        for sound in cut:
            wanted, mask = extractor.features(sound[None], torch.tensor([len(sound)]))
            assert bool(mask.all())
            values = graph(sound[None])
            # the transform rounds otherwise, which shows where 16-bit values (beats) hold rounding alone; CLAP's are
            # decibels
            spread = max(1.0, float(wanted.std()))
            largest, mean = (0.03, 3e-4) if preset == "beats" else (5e-4 * spread, 1e-5 * spread)
            assert values.shape == wanted.shape
            assert float((values - wanted).abs().max()) < largest
            assert float((values - wanted).abs().mean()) < mean


def test_zero_frames_are_what_transformers_fills_ast_up_with(sounds: list[Path]) -> None:
    from transformers import ASTFeatureExtractor

    extractor = LaennecFeatureExtractor("ast", length="zero_frames", duration_s=10.24)
    theirs = ASTFeatureExtractor(max_length=1024)
    for path, samples in zip(2 * sounds, (400, 16000, 163841, 164080, 200000, 43210), strict=True):
        waveform = read_recording(path, 16000).waveform
        waveform = np.tile(waveform, 1 + samples // len(waveform))[:samples]
        out = extractor(waveform, sampling_rate=16000)
        assert extractor.frames(samples) == 1024 == int(out.attention_mask.sum())
        expected = theirs(waveform, sampling_rate=16000, return_tensors="pt").input_values
        torch.testing.assert_close(out.input_values, expected, atol=4e-4, rtol=0)


def test_zero_frames_of_a_batch_are_those_of_each_sound() -> None:
    extractor = LaennecFeatureExtractor("beats", length="zero_frames", duration_s=1.0)
    draw = np.random.default_rng(0)
    waves = [0.1 * draw.standard_normal(n).astype(np.float32) for n in (400, 9000, 16400, 40000)]
    batch = extractor(waves, sampling_rate=16000)
    assert batch.input_values.shape == (4, 100, 128)
    for row, wave in zip(batch.input_values, waves, strict=True):
        alone = extractor(wave, sampling_rate=16000).input_values[0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)
        frames = min(extractor.front.frames(len(wave)), 100)
        assert bool((row[frames:] == -extractor.front.mean * 0.5 / extractor.front.std).all())


@pytest.mark.parametrize(
    "settings",
    [{"preset": "efficientat"}, {"preset": "waveform"}, {"preset": "ast", "keep": "last"}, {"preset": "w2v-bert"}],
)
def test_zero_frames_are_refused_where_frames_are_not_by_themselves(settings: dict) -> None:
    with pytest.raises(ValueError, match="zero_frames"):
        LaennecFeatureExtractor(length="zero_frames", duration_s=1.0, **settings)
