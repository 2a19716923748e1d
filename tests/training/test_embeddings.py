import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import embed_ranks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from forked import Forked
from laennec.audio.context import InContext
from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder
from laennec.files import wait_for_lock
from laennec.head import HeadModel
from laennec.modeling import LaennecForAudioClassification
from laennec.training import embeddings as embed_module
from laennec.training.data.batches import EmbeddingDataset
from laennec.training.embeddings import (
    EmbeddingCache,
    cycle_keys,
    embed_cycles,
    embed_waveforms,
    length_batches,
    shards_of,
)
from laennec.training.trainer import LaennecTrainer


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


def embedded_together(model, extractor, waveforms):
    """Embed in batches, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_module, "encodes_one_by_one", lambda device: False)
        return embed_waveforms(model, extractor, waveforms)


def test_an_embedding_does_not_depend_on_its_neighbours(model, extractor):
    waveforms = sounds()
    together = embed_waveforms(model, extractor, waveforms)
    alone = np.concatenate([embed_waveforms(model, extractor, [w]) for w in waveforms])
    assert np.array_equal(together, alone)  # bit for bit, with any number of threads
    torch.set_num_threads(3)
    try:
        assert np.array_equal(embed_waveforms(model, extractor, waveforms), alone)
    finally:
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
    assert np.abs(embedded_together(model, extractor, waveforms) - alone).max() < 1e-5
    assert embed_waveforms(model, extractor, []).shape == (0, 8)


@pytest.mark.parametrize("context", [0, 1])
def test_cycles_that_share_a_batch_have_the_bits_that_they_have_alone(context):
    torch.manual_seed(0)
    extractor = LaennecFeatureExtractor("efficientat", context_cycles=context)
    encoder = load_encoder(None, type="mobilenet", width_mult=0.2)
    config = LaennecConfig(encoder_config=encoder.config, num_labels=2, concatenated_context=context > 0)
    model = LaennecForAudioClassification(config, encoder).eval()
    draw = np.random.default_rng(0)
    # 0.1 to 0.9 s: batches of 1 to 16 cycles, some without padding
    cycles = [draw.standard_normal(n).astype(np.float32) for n in [*draw.integers(3200, 28800, 40), *[16 * 320] * 3]]
    if context:
        cycles = [InContext(own, cycles[row : row + 1], []) for row, own in enumerate(cycles[1:])]
    alone = np.concatenate([embed_waveforms(model, extractor, [cycle]) for cycle in cycles])
    for seed, rows in enumerate((len(cycles), len(cycles), 17, 5)):
        order = np.random.default_rng(seed).permutation(len(cycles))[:rows]
        assert np.array_equal(embed_waveforms(model, extractor, [cycles[row] for row in order]), alone[order])
    torch.set_num_threads(3)
    try:
        assert np.array_equal(embed_waveforms(model, extractor, cycles), alone)
    finally:
        torch.set_num_threads(1)
    assert np.abs(embedded_together(model, extractor, cycles) - alone).max() < 1e-5


def test_the_cache_folder_depends_on_model_and_front_end(model, extractor, tmp_path):
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


def test_a_damaged_shard_is_named_and_made_again(model, extractor, tmp_path, caplog):
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


# ---------------------------------------------------------------- several processes


def start(folder, name, others=1, pause_s=0.0):
    return Forked(lambda: embed_ranks.main(folder, name, others, pause_s))


def finish(*processes):
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The embeddings of a single process."""
    values, own = embed_ranks.embedded(tmp_path_factory.mktemp("alone"))
    assert sum(own) == embed_ranks.CYCLES - 1 and len(own) >= 8
    return values


@settings(max_examples=60, deadline=None)
@given(samples=st.lists(st.integers(1, 10**6), min_size=1, max_size=300), data=st.data())
def test_shards_hold_every_row_once_in_order_of_length(samples, data):
    rows = data.draw(st.lists(st.integers(0, len(samples) - 1), unique=True))
    shards = shards_of(samples, rows)
    assert sorted(row for shard in shards for row in shard) == sorted(rows)
    flat = [samples[row] for shard in shards for row in shard]
    assert flat == sorted(flat, reverse=True)
    assert all(len(shard) <= 512 for shard in shards) and all(len(shard) >= 16 for shard in shards[:-1])
    total = sum(samples[row] for row in rows)
    for shard in shards:  # without its last cycle, a shard of more than 16 cycles is less than 1/16 of the work
        held = [samples[row] for row in shard]
        assert sum(held[:-1]) < total / 16 or len(shard) <= 16


def test_shards_of_a_killed_process_are_reused_and_no_process_waits_for_it(alone, tmp_path):
    killed, beside = start(tmp_path, "killed", 2, 1.5), start(tmp_path, "beside", 2, 0.6)
    deadline = time.monotonic() + 600
    while not (tmp_path / "at.killed.2").exists():  # it has finished one shard and started the second
        time.sleep(0.01)
        assert killed.poll() is None and time.monotonic() < deadline
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    finish(beside)
    assert np.array_equal(np.load(tmp_path / "values.beside.npy"), alone)
    values, own = embed_ranks.embedded(tmp_path)
    assert own == [] and np.array_equal(values, alone) and list(tmp_path.rglob("*.part")) == []
    # the finished shard of the killed process was not made again, the unfinished one was
    made = json.loads((tmp_path / "own.beside.json").read_text())
    assert len(made) == len(list(tmp_path.rglob("*.safetensors"))) - 1


def test_a_process_that_hangs_over_a_shard_is_not_waited_for_for_ever(alone, tmp_path, monkeypatch, caplog):
    model, extractor, dataset, keys = embed_ranks.material()
    cache = EmbeddingCache(tmp_path, model, extractor)
    shard = shards_of([dataset.samples(row) for row in range(len(dataset))], range(len(keys) - 1))[0]
    monkeypatch.setattr("laennec.training.embeddings._PATIENCE_S", 0.2)
    with wait_for_lock(cache.place([keys[row] for row in shard])):
        values = embed_cycles(dataset, keys, cache)
    assert np.array_equal(values, alone) and "embedding its cycles here too" in caplog.text


def test_a_set_of_cycles_reuses_the_embeddings_of_an_overlapping_set(alone, tmp_path):
    model, extractor, dataset, keys = embed_ranks.material()
    cache = EmbeddingCache(tmp_path, model, extractor)
    some = list(range(0, 200, 3))
    cache.add([keys[row] for row in some], alone[some])
    values = embed_cycles(dataset, keys, cache)
    assert np.array_equal(values[some], alone[some]) and np.abs(values - alone).max() < 1e-5


# ---------------------------------------------------------------- lack of memory

TIGHT = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from laennec.audio.context import InContext
from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders import load_encoder
from laennec.configuration import LaennecConfig
from laennec.modeling import LaennecForAudioClassification
from laennec.training import embeddings as embed
from laennec.training.embeddings import embed_waveforms
embed.encodes_one_by_one = lambda device: False  # as beside a GPU
torch.manual_seed(0)
encoder = load_encoder(None, type="ast", hidden_size=192, num_hidden_layers=2, num_attention_heads=3,
                       intermediate_size=768, max_length=1024, layer_norm_eps=1e-6)
model = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, num_labels=2), encoder)
extractor = LaennecFeatureExtractor("ast")
draw = np.random.default_rng(0)
sounds = [draw.standard_normal(int(s * 16000)).astype(np.float32) * 0.1 for s in [float(sys.argv[3])] * 16 + [1.0] * 4]
wanted = embed_waveforms(model, extractor, [sounds[0][:16000]] + sounds[16:])  # everything that loads once is loaded
size = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (size + int(float(sys.argv[2]) * 2**20), most))
values = embed_waveforms(model, extractor, sounds)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(float(np.abs(values[16:] - wanted[1:]).max()), float(np.abs(values[0] - values[15]).max() > 0))
"""


def tight(megabytes, seconds):
    script = [sys.executable, "-c", TIGHT, str(Path(__file__).parents[2] / "src"), str(megabytes), str(seconds)]
    return subprocess.run(script, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_batch_that_does_not_fit_is_halved_and_a_cycle_that_does_not_is_one_line():
    done = tight(55, 4.0)  # enough for one such cycle, but not for 15
    assert done.returncode == 0, done.stderr[-3000:]
    difference, distinct = map(float, done.stdout.split())
    assert difference < 1e-5 and distinct
    assert "not enough memory for 15 cycles at once; going on with 8" in done.stderr
    done = tight(60, 60.0)
    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "InputError: not enough memory for a single cycle of 60 s (5998 frames)" in said
    assert "features.duration_s: 30" in said


def test_a_batch_equals_its_single_rows():
    draw = np.random.default_rng(0)
    embeddings, labels = draw.normal(size=(3, 9, 4)).astype(np.float32), draw.random((3, 9, 2)).astype(np.float32)
    for ids in ((), [f"cycle {row}" for row in range(9)]):
        dataset = EmbeddingDataset(embeddings, labels, ids)
        keys = [(4, 0), (1, 7), (8, 2), 5]
        batch, single = dataset.__getitems__(keys), [dataset[key] for key in keys]
        assert batch.keys() == single[0].keys()
        assert all(torch.equal(batch[name], torch.stack([item[name] for item in single])) for name in batch)
        drawn = np.stack([embeddings[0, 4], embeddings[1, 1], embeddings[2, 8], embeddings[0, 5]])
        assert np.array_equal(batch["embeddings"].numpy(), drawn)


def test_training_a_head_alone_equals_training_it_in_its_model(tmp_path):
    draw = np.random.default_rng(0)
    data = EmbeddingDataset(draw.normal(size=(1, 8, 8)).astype(np.float32), draw.random((1, 8, 2)).astype(np.float32))
    weights = []
    for alone in (True, False):
        encoder = load_encoder(None, type="cnn", channels=[4, 8])
        model = LaennecForAudioClassification.from_encoder(encoder, trainable="frozen")
        arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True, max_steps=2, save_strategy="no")
        before = model.head.classifier.weight.clone()
        LaennecTrainer(HeadModel(model) if alone else model, arguments, data).train()
        weights.append(model.head.classifier.weight)
        assert not torch.equal(before, weights[-1])
    assert torch.equal(*weights)
