"""On a Ray cluster of two workers everything is as on one machine, whatever dies on the way."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference import ray_engine
from laennec.inference.batch import Predictor, predict
from laennec.inference.embed import Embedder
from laennec.inference.ray_engine import RayWork, find_uris, put, run_on_ray
from work_units import KillingPredictor

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    paths = [str(TESTS.parent / "src"), str(TESTS)]
    with pytest.MonkeyPatch.context() as patch:
        # without what closes the network: Ray's own processes speak to one another by this machine's address
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        settings = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 200_000_000}
        ray.init(num_cpus=2, _node_ip_address="127.0.0.1", **settings)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def recordings(small_corpus, tmp_path_factory):
    """Ten recordings, a damaged one in the middle."""
    folder = tmp_path_factory.mktemp("recordings")
    for number, sound in enumerate(sorted(small_corpus.glob("*.wav"))[:10]):
        shutil.copy(sound, folder / f"r{number}.wav")
    (folder / "r5_bad.wav").write_text("no sound")
    return folder


@pytest.fixture(scope="module")
def predictor(frozen_run):
    return Predictor(*load_model(frozen_run), 2, 1)


@pytest.fixture(scope="module")
def work(predictor):
    return RayWork.of(predictor, predictor.identity(False))


@pytest.fixture(scope="module")
def alone(predictor, recordings, tmp_path_factory):
    """What a single process leaves."""
    out = tmp_path_factory.mktemp("alone")
    predict(predictor, [recordings], out, formats=("json", "parquet"))
    return out


def agree(out, alone, address=""):
    """The timelines and rows are those of a single process."""
    wanted = sorted(path.name for path in alone.glob("r*.json"))
    assert sorted(path.name for path in (out / "timelines").iterdir()) == wanted
    for name in wanted:
        here, there = (json.loads((folder / name).read_text()) for folder in (out / "timelines", alone))
        assert here | {"recording": here["recording"].removeprefix(address)} == there
    rows = pq.read_table(out / "predictions").to_pandas()
    rows["recording"] = rows["recording"].str.removeprefix(address)
    expected = pq.read_table(alone / "predictions.parquet").to_pandas()
    order = ["recording", "start_s"]
    assert rows.sort_values(order, ignore_index=True).equals(expected.sort_values(order, ignore_index=True))


def test_a_cluster_gives_what_a_process_gives_and_goes_on_where_it_stopped(cluster, work, alone, recordings, tmp_path):
    done = run_on_ray(work, [f"file://{recordings}"], f"file://{tmp_path}", workers=2)
    agree(tmp_path, alone, "file://")
    assert len(done.predicted) == 10 and "r5_bad.wav" in done.failed[0][1] and len(done.failed) == 1
    assert "r5_bad.wav" in (tmp_path / "failed.csv").read_text()
    parts = sorted((tmp_path / "predictions").iterdir())
    parts[0].unlink()
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    before = parts[1].stat().st_size
    again = run_on_ray(work, [f"file://{recordings}"], f"file://{tmp_path}", workers=2)
    assert again.resumed == 0 and before == 100
    agree(tmp_path, alone, "file://")
    last = run_on_ray(work, [f"file://{recordings / 'r1.wav'}"], f"file://{tmp_path}")
    assert last.resumed == 1 and not last.failed and not (tmp_path / "failed.csv").exists()
    other = dataclasses.replace(work, provenance={"spans": "others"})
    with pytest.raises(InputError, match="--overwrite"):
        run_on_ray(other, [str(recordings)], str(tmp_path))


def test_a_worker_that_is_killed_costs_nothing(cluster, work, alone, recordings, tmp_path):
    samples = _samples(recordings / "r3.wav", work.sampling_rate)
    killing = KillingPredictor(work.packed, samples, str(tmp_path / "killed"))
    run_on_ray(dataclasses.replace(work, packed=killing), [str(recordings)], str(tmp_path / "out"), workers=2)
    assert (tmp_path / "killed").exists()
    agree(tmp_path / "out", alone)


def test_a_recording_that_kills_its_workers_is_listed_alone(cluster, work, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_TRIES", 0)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("r0.wav", "r1.wav"):
        shutil.copy(recordings / name, folder)
    soundfile.write(
        folder / "long.wav", np.random.default_rng(0).normal(0, 0.1, 3 * work.sampling_rate), work.sampling_rate
    )
    killing = KillingPredictor(work.packed, _samples(folder / "long.wav", work.sampling_rate))
    done = run_on_ray(dataclasses.replace(work, packed=killing), [str(folder)], str(tmp_path / "out"), workers=1)
    assert [Path(path).name for path, _ in done.failed] == ["long.wav"] and "died" in done.failed[0][1]
    assert len(done.predicted) == 2


def _samples(path, rate):
    from laennec.audio.recording import read_recording

    return len(read_recording(path, rate).waveform)


def test_embeddings_are_those_of_a_process(cluster, predictor, recordings, tmp_path):
    embedder = Embedder(predictor)
    work = RayWork.of(predictor, embedder.provenance({}), embed=True)
    done = run_on_ray(work, [str(recordings / "r0.wav"), str(recordings / "r1.wav")], str(tmp_path), workers=1)
    rows = pq.read_table(tmp_path / "embeddings").to_pandas()
    for path in done.predicted:
        wanted = embedder(Path(path))
        own = rows[rows["recording"] == path]
        assert np.array_equal(np.stack(own["embedding"]), wanted.values)
        assert list(zip(own["start_s"], own["end_s"], strict=True)) == wanted.spans


def test_addresses_are_listed_and_written(tmp_path):
    files = fsspec.filesystem("memory")
    for name in ("a/two.WAV", "a/one.flac", "a/notes.txt", "a/.hidden.wav"):
        files.pipe_file(f"/bucket/{name}", b"x")
    assert find_uris(["memory://bucket"]) == ["memory:///bucket/a/one.flac", "memory:///bucket/a/two.WAV"]
    put("memory://bucket/out/x.json", b"{}")
    assert files.cat_file("/bucket/out/x.json") == b"{}"
    put(str(tmp_path / "deep" / "x.json"), b"{}")
    assert (tmp_path / "deep" / "x.json").read_bytes() == b"{}"
    for inputs, said in ((["nowhere://x"], "cannot be reached"), (["memory://empty"], "no recordings")):
        files.makedirs("/empty", exist_ok=True)
        with pytest.raises(InputError, match=said):
            find_uris(inputs)
