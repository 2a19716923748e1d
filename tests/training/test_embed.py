import numpy as np
import pytest
import torch

from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders import load_encoder
from laennec.model import LaennecConfig, LaennecForAudioClassification
from laennec.training.embed import EmbeddingCache, cycle_keys, embed_waveforms, length_batches


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = load_encoder(None, type="cnn", channels=[4, 8])
    return LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, num_labels=2), encoder)


@pytest.fixture(scope="module")
def extractor():
    return LaennecFeatureExtractor("song2021", length="natural")


def sounds(n=20):
    draw = np.random.default_rng(0)
    return [draw.standard_normal(int(draw.integers(4000, 40000))).astype(np.float32) for _ in range(n)]


def test_batches_hold_every_row_once_and_little_padding():
    lengths = np.random.default_rng(1).integers(1000, 90000, 300).tolist()
    batches = list(length_batches(lengths, max_cycles=16, max_samples=400_000))
    assert sorted(row for b in batches for row in b) == list(range(300))
    for rows in batches:
        longest = max(lengths[r] for r in rows)
        assert len(rows) <= 16 and (len(rows) == 1 or len(rows) * longest <= 400_000)
        assert min(lengths[r] for r in rows) >= 0.85 * longest


def test_an_embedding_does_not_depend_on_its_neighbours(model, extractor):
    waveforms = sounds()
    together = embed_waveforms(model, extractor, waveforms)
    alone = np.concatenate([embed_waveforms(model, extractor, [w]) for w in waveforms])
    assert np.abs(together - alone).max() < 1e-5
    assert embed_waveforms(model, extractor, []).shape == (0, 8)


def test_the_cache_is_addressed_by_what_makes_an_embedding(model, extractor, tmp_path):
    def folder(m=model, e=extractor):
        return EmbeddingCache(tmp_path, m, e).folder

    torch.manual_seed(1)
    other = load_encoder(None, type="cnn", channels=[4, 8])
    other_model = LaennecForAudioClassification(LaennecConfig(encoder_config=other.config, num_labels=2), other)
    mean = LaennecForAudioClassification(
        LaennecConfig(encoder_config=model.encoder.config, num_labels=2, pooling="mean"), model.encoder
    )
    places = {folder(), folder(other_model), folder(mean), folder(e=LaennecFeatureExtractor("song2021"))}
    assert len(places) == 4 and folder() == folder()


def test_a_cycle_key_changes_with_sound_span_rate_filter_and_draw():
    def key(sha="s", start=0.0, end=1.0, settings="16000 None", draw=""):
        table = {"audio_sha256": [sha], "start_s": [start], "end_s": [end], "cycle_id": ["c"]}
        return cycle_keys(table, settings, draw)[0]

    keys = {key(), key(sha="t"), key(start=0.1), key(end=1.1), key(settings="16000 low"), key(draw="1"), key(draw="2")}
    assert len(keys) == 7 and key() == key()


def test_a_torn_shard_is_named_and_made_again(model, extractor, tmp_path, caplog):
    cache = EmbeddingCache(tmp_path, model, extractor)
    keys = [bytes([i]) * 32 for i in range(3)]
    cache.add(keys, np.ones((3, 8), np.float32))
    assert all(k in EmbeddingCache(tmp_path, model, extractor) for k in keys)
    (shard,) = cache.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-10])
    again = EmbeddingCache(tmp_path, model, extractor)
    assert not any(k in again for k in keys) and shard.name in caplog.text
    again.add(keys, np.ones((3, 8), np.float32))
    assert keys[0] in EmbeddingCache(tmp_path, model, extractor)
