"""Hours cost no more memory than minutes: the peaks of a process of its own, whose only work they are."""

import json

import numpy as np
import pytest
import soundfile
from benchmarks.row import PEAK_MEMORY, in_a_new_process

MINUTES = (5, 60)
RATE = 1000

SCRIPT = (
    (
        PEAK_MEMORY
        + """
import torch
from laennec.audio.segmentation import BreathSegmentation
from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders.cnn import CnnConfig
from laennec.configuration import LaennecConfig
from laennec.modeling import LaennecForAudioClassification
from laennec.inference.batch.run import Predictor, predict
torch.set_num_threads(1)
torch.manual_seed(0)
folder, out = sys.argv[1:]
extractor = LaennecFeatureExtractor("song2021", sampling_rate=RATE, high_hz=RATE / 2, num_mel_bins=16)
config = LaennecConfig(encoder_config=CnnConfig(num_mel_bins=16, channels=[2, 2]), id2label={0: "crackle", 1: "wheeze"})
model = LaennecForAudioClassification(config)
whole = Predictor(model, extractor, 20, 20, 0.5, neighbours=1)
breaths = Predictor(model, extractor, segmentation=BreathSegmentation())
def both(path, folder):
    predict(whole, [path], folder, formats=("json", "csv", "audacity", "raven", "picture"))
    predict(breaths, [path], folder + "-breaths")
both(folder + "/5.wav", out + "/warm")  # libraries and buffers that every recording needs
peaks = []
for minutes in MINUTES:
    begin()
    both(f"{folder}/{minutes}.wav", f"{out}/{minutes}")
    peaks.append(peak())
print(*peaks)
"""
    )
    .replace("RATE", str(4 * RATE))
    .replace("MINUTES", str(MINUTES))
)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """The same noise, for minutes and for hours, written minute by minute."""
    folder = tmp_path_factory.mktemp("long")
    minute = np.random.default_rng(0).standard_normal(60 * RATE) * 0.05
    minute *= 1.1 + np.sin(2 * np.pi * np.arange(60 * RATE) / RATE / 3)
    for minutes in MINUTES:
        with soundfile.SoundFile(folder / f"{minutes}.wav", "w", RATE, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(minute)
    return folder


def test_an_hour_costs_the_memory_of_five_minutes(sounds, tmp_path):
    """By windows, all formats and a picture; and by breaths."""
    short, long = in_a_new_process(SCRIPT, str(sounds), str(tmp_path))
    for minutes in MINUTES:
        for folder in (tmp_path / f"{minutes}", tmp_path / f"{minutes}-breaths"):
            made = json.loads((folder / f"{minutes}.laennec.json").read_text())
            assert made["duration_s"] == 60 * minutes == made["timeline"][-1]["end_s"]
            assert len(made["timeline"]) > 2 * minutes
    # the sound alone, read whole at the rate of the model, is 55 MiB; the answers themselves may grow
    assert long < short + 24, (short, long)
