"""Damaged caches, and files replaced by others of equal path, size and time: the result is that of an empty cache."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from forked import on_another_machine
from laennec import cache, files
from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig
from laennec.corpora import CycleWaveforms, check_duplicates, load_corpus
from laennec.corpora.synthetic import write_corpus
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification
from laennec.training.embeddings import EmbeddingCache
from runs import half_made

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

KINDS = ("unpacked", "hashes", "tables", "waveforms", "embeddings", "audio_fingerprints")
DAMAGES = {
    "zeroed": lambda content: bytes(len(content)),
    "a bit in the middle": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
    ),
    "cut": lambda content: content[:-5],
    "another dtype": lambda content: content.replace(b'"F32"', b'"I32"').replace(b'"F64"', b'"I64"')[:-1] + b"?",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("corpus")
    write_corpus(place / "sounds", patients=6, recordings_per_patient=1, cycles_per_recording=2, max_rate_hz=4000)
    return Path(shutil.make_archive(str(place / "sounds"), "zip", place / "sounds"))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> tuple[LaennecForAudioClassification, LaennecFeatureExtractor]:
    torch.manual_seed(0)
    encoder = load_encoder(None, type="cnn", channels=[4, 8])
    model = LaennecForAudioClassification(LaennecConfig(encoder_config=encoder.config, num_labels=2), encoder)
    return model, LaennecFeatureExtractor("song2021", length="natural")


def result(corpus: Path, root: Path, embedder: tuple) -> str:
    """The hash of everything that a training would read, as in a new process that has verified no entry yet."""
    cache._verified.clear()
    table = load_corpus("synthetic", corpus, protocol="none", cache_dir=root)
    duplicates = check_duplicates(table, root)
    rows = table["all"]
    waveforms = CycleWaveforms(rows, 4000, cache_dir=root)
    waveforms.prepare()
    embeddings = EmbeddingCache(root, *embedder)
    keys = [hashlib.sha256(sound.tobytes()).digest() for sound in waveforms]
    for half in (keys[::2], keys[1::2]):
        if missing := [key for key in half if key not in embeddings]:
            embeddings.add(half, embeddings.embed([waveforms[keys.index(key)] for key in half]))
        assert not missing or all(key in embeddings for key in missing)
    values = np.stack([embeddings[key] for key in keys])
    facts = repr([rows.to_pandas().to_dict(), duplicates, waveforms.lengths.tolist()]).replace(str(root), "")
    return hashlib.sha256(facts.encode() + b"".join(keys) + values.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def synced() -> set[Path]:
    """Files of the filled cache that were written with fsync."""
    return set()


@pytest.fixture(scope="module")
def filled(
    corpus: Path, embedder: tuple, synced: set[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    root, sync, inodes = tmp_path_factory.mktemp("filled") / "cache", os.fsync, set()

    def noted(handle: int) -> None:
        sync(handle)
        inodes.add(os.fstat(handle).st_ino)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache, "_SETTLED_S", -1.0)
        patched.setattr(os, "fsync", noted)
        expected = result(corpus, root, embedder)
    synced.update(path for path in root.rglob("*") if path.stat().st_ino in inodes)
    return root, expected


@pytest.fixture
def damaged(filled: tuple[Path, str]) -> tuple[Path, str]:
    """The filled cache, restored after each test; at its original path, which its tables contain."""
    kept = filled[0].with_name("kept")
    shutil.copytree(filled[0], kept, copy_function=shutil.copy2)
    yield filled
    shutil.rmtree(filled[0])
    kept.rename(filled[0])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_entry_changes_no_bit(damaged, corpus, embedder, kind, damage):
    root, expected = damaged
    entries = [path for path in (root / kind).rglob("*") if path.is_file() and path.name != "files.json"]
    assert entries
    for path in entries:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert result(corpus, root, embedder) == expected
    assert result(corpus, root, embedder) == expected


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hashes"])
def test_exchanged_entries_change_no_bit(damaged, corpus, embedder, kind):
    root, expected = damaged
    entries = sorted(path for path in (root / kind).rglob("*") if path.is_file() and path.name != "files.json")
    contents = [path.read_bytes() for path in entries]
    for path, content in zip(entries, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    assert result(corpus, root, embedder) == expected


# ---------------------------------------------------------------- power cuts


def cut_the_power(root: Path, synced: set[Path], draw: random.Random) -> None:
    """Simulate a power cut: files written without fsync lose blocks, ends and names at random.

    Where only blocks are lost, sizes and times stay those of the complete files.
    """
    shares = {part: draw.choice([0, 0.1, 1]) for part in KINDS}
    of_blocks, ends, names = draw.choice([0.2, 1]), draw.choice([0, 0, 0.5]), draw.choice([0, 0, 0.2])
    unpacked = next((root / "unpacked").iterdir())

    def at(path: Path, share: float = 1) -> bool:
        return draw.random() < share * shares[path.relative_to(root).parts[0]]

    def lose(path: Path) -> None:
        content = path.read_bytes()
        blocks = [content[begin : begin + 4096] for begin in range(0, len(content), 4096)]
        kept = draw.randint(0, len(blocks)) if draw.random() < ends else len(blocks)
        path.write_bytes(b"".join(bytes(len(b)) if draw.random() < of_blocks else b for b in blocks[:kept]))

    entries = sorted(path for path in root.rglob("*") if path.is_file())
    stores = [path for path in entries if path.parent == root / "hashes"]
    for path in entries:
        if path not in synced and path not in stores and at(path):
            lose(path)
    for store in stores:  # the stored sizes and times must match the damaged files, else these would be hashed again
        known = json.loads(cache.read_entry(store))
        for name, (size, *_, sha256) in known.items():
            now = os.stat(name)
            known[name] = [size, now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, sha256]
        cache.write_entry(store, json.dumps(known).encode())
        if at(store):
            lose(store)
    for path in [unpacked, *(path for path in entries if unpacked not in path.parents)]:
        if at(path, names):  # not renamed yet
            path.rename(path.with_name(f".{path.name}.{files._MACHINE}abcd1234.part"))


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.soak] * (seed > 7)) for seed in range(300)])
def test_a_power_cut_changes_no_bit(damaged, corpus, embedder, synced, seed):
    root, expected = damaged
    cut_the_power(root, synced, random.Random(seed))
    assert result(corpus, root, embedder) == expected
    assert result(corpus, root, embedder) == expected


def test_a_damaged_entry_is_named_and_removed(tmp_path, caplog):
    place = tmp_path / "entry"
    cache.write_entry(place, b"con", b"tent")
    assert cache.read_entry(place) == b"content"
    place.write_bytes(place.read_bytes().replace(b"con", b"can"))
    assert cache.read_entry(place) is None and not place.exists() and str(place) in caplog.text


def test_a_non_finite_embedding_is_not_cached(tmp_path, embedder):
    embeddings = EmbeddingCache(tmp_path, *embedder)
    with pytest.raises(InputError, match="not a number"):
        embeddings.add([b"k" * 32], np.full((1, 8), np.nan, np.float32))
    assert not list(tmp_path.rglob("*.safetensors")) and b"k" * 32 not in embeddings


# ---------------------------------------------------------------- identity of files


def same_size_and_time(path: Path, content: bytes) -> None:
    """Replace a file by another one of equal size and modification time."""
    status = path.stat()
    assert len(content) == status.st_size
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("how", ["written", "renamed", "copied"])
def test_a_replaced_file_of_equal_size_and_time_is_detected(tmp_path, monkeypatch, how):
    monkeypatch.setattr(cache, "_SETTLED_S", -1.0)
    one, other = tmp_path / "one.wav", tmp_path / "other.wav"
    for path, content in ((one, b"one"), (other, b"two")):
        path.write_bytes(content)
        os.utime(path, (1e9, 1e9))
    first = cache.hash_files([one], tmp_path / "cache")[one]
    if how == "written":
        same_size_and_time(one, b"two")
    elif how == "renamed":
        other.rename(one)
    else:
        shutil.copy2(other, one)
    assert cache.hash_files([one], tmp_path / "cache")[one] == hashlib.sha256(b"two").hexdigest() != first


def test_equal_relative_paths_in_two_folders_are_two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_SETTLED_S", -1.0)
    found = {}
    for ward in ("ward-1", "ward-2"):
        (tmp_path / ward).mkdir()
        (tmp_path / ward / "a.wav").write_bytes(ward.encode())
        os.utime(tmp_path / ward / "a.wav", (1e9, 1e9))
        monkeypatch.chdir(tmp_path / ward)
        found[ward] = cache.hash_files([Path("a.wav")], tmp_path / "cache")[Path("a.wav")]
    assert found == {ward: hashlib.sha256(ward.encode()).hexdigest() for ward in found}


def test_a_known_file_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_SETTLED_S", -1.0)
    path = tmp_path / "a.wav"
    path.write_bytes(b"one")
    first = cache.hash_files([path], tmp_path / "cache")
    monkeypatch.delattr(cache, "sha256_of")
    assert cache.hash_files([path], tmp_path / "cache") == first


@pytest.mark.parametrize("suffix", [".wav", ".txt"])
def test_labels_or_audio_replaced_change_the_fingerprint(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(cache, "_SETTLED_S", -1.0)
    folder = tmp_path / "sounds"
    write_corpus(folder, patients=4, recordings_per_patient=1, cycles_per_recording=2, max_rate_hz=4000)

    def fingerprint():
        table = load_corpus("synthetic", folder, protocol="none", cache_dir=tmp_path / "cache")["all"]
        return table.info.description, table.to_pandas().to_json()

    first = fingerprint()
    path = next(path for path in sorted(folder.rglob(f"*{suffix}")) if "#" not in path.name)
    content = path.read_bytes()
    changed = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    same_size_and_time(path, changed)
    assert fingerprint()[0] != first[0]


# ---------------------------------------------------------------- two machines on a folder without shared locks


def test_machines_without_shared_locks_fill_one_cache(corpus, embedder, tmp_path):
    alone = result(corpus, tmp_path / "alone", embedder)
    place = tmp_path / "shared"
    names = ["one", "more", "third"]
    machines = [
        on_another_machine(lambda: result(corpus, place / "cache", embedder), tmp_path, name, len(names))
        for name in names
    ]
    ended = [machine.done() for machine in machines]
    assert half_made(place) == []
    place.rename(tmp_path / "kept")
    assert [(done.returncode, done.stdout.strip()[-64:], done.stderr) for done in ended] == [(0, alone, "")] * 3


@pytest.mark.parametrize("kind", ["waveforms", "tables"])
def test_a_folder_in_the_place_of_an_entry_is_removed(damaged, corpus, embedder, kind):
    root, expected = damaged
    for path in [path for path in (root / kind).rglob("*") if path.is_file()]:
        path.unlink()
        (path / "x").mkdir(parents=True)
    assert result(corpus, root, embedder) == expected


def test_moved_entries_and_folders_are_not_used(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cache.write_entry(tmp_path / name / "entry", name.encode())
        cache.cached_folder(tmp_path / "folders" / name, lambda folder, name=name: (folder / "a").write_text(name))
    os.replace(tmp_path / "one" / "entry", tmp_path / "two" / "entry")
    assert cache.read_entry(tmp_path / "two" / "entry") is None
    (tmp_path / "folders" / "two").rename(tmp_path / "folders" / "kept")
    (tmp_path / "folders" / "one").rename(tmp_path / "folders" / "two")
    made = cache.cached_folder(tmp_path / "folders" / "two", lambda folder: (folder / "a").write_text("two"))
    assert (made / "a").read_text() == "two"
