"""One of several processes that embed the same cycles into one cache; it records how many cycles it embedded itself."""

import json
import time
from pathlib import Path

import numpy as np
import torch

from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder
from laennec.modeling import LaennecForAudioClassification
from laennec.training import embeddings as embed
from laennec.training.data.batches import CycleDataset
from laennec.training.data.targets import Targets

CYCLES = 200


class Sounds(list):
    """Waveforms whose lengths are known without reading them."""

    @property
    def lengths(self):
        return np.array([len(sound) for sound in self])


def material(seed=0):
    """A tiny AST, its front end, 200 cycles of different lengths (two of them equal), and their keys."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = load_encoder(None, type="ast", max_length=128, layer_norm_eps=1e-6, **sizes)
    model = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, num_labels=2), encoder)
    draw = np.random.default_rng(seed)
    sounds = [draw.standard_normal(int(draw.integers(3000, 20000))).astype(np.float32) * 0.1 for _ in range(CYCLES)]
    sounds[-1] = sounds[7]
    labels = np.zeros((CYCLES, 2), np.float32)
    targets = Targets(["crackle", "wheeze"], labels, labels[:, 0].astype(np.int64), np.arange(CYCLES))
    dataset = CycleDataset(Sounds(sounds), targets, [str(n) for n in range(CYCLES)], 16000, 0)
    keys = [number.to_bytes(32, "big") for number in range(CYCLES - 1)]
    return model, LaennecFeatureExtractor("ast"), dataset, [*keys, keys[7]]


def embedded(folder, pause_s=0.0, announce=None):
    """All embeddings, and the number of cycles of each embedding call of this process."""
    model, extractor, dataset, keys = material()
    own, original = [], embed.embed_waveforms

    def counted(model, extractor, waveforms):
        own.append(len(waveforms))
        if announce is not None:
            announce(len(own))
        time.sleep(pause_s)
        return original(model, extractor, waveforms)

    embed.embed_waveforms = counted
    try:
        cache = embed.EmbeddingCache(Path(folder), model, extractor)
        return embed.embed_cycles(dataset, keys, cache), own
    finally:
        embed.embed_waveforms = original


def main(folder, name, others, pause_s):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"ready.{name}").touch()
    while len(list(folder.glob("ready.*"))) < int(others):  # start together
        time.sleep(0.01)
    values, own = embedded(folder, float(pause_s), lambda n: (folder / f"at.{name}.{n}").touch())
    np.save(folder / f"values.{name}.npy", values)
    (folder / f"own.{name}.json").write_text(json.dumps(own))
