"""On a Ray cluster of two workers everything is as on one machine, whatever dies on the way."""

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
from batches import copied
from fsspec.implementations.local import LocalFileSystem

from laennec import DEFAULT_MODEL
from laennec.audio.recording import read_recording
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.backends import load_for_prediction
from laennec.inference.batch import ray_engine
from laennec.inference.batch.addresses import find_uris, put
from laennec.inference.batch.ray_engine import RayWork, run_on_ray
from laennec.inference.batch.run import Predictor, predict
from laennec.inference.embed import Embedder
from work_units import KillingPredictor, TellingPredictor

TESTS = Path(__file__).parents[1]
RATE = 32_000  # of the model in the package


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    paths = [str(TESTS.parent / "src"), str(TESTS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # each of Ray's ten processes would compile Ray
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for whatever else runs on this machine
        # without what closes the network: Ray's own processes speak to one another by this machine's address
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        settings = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 200_000_000}
        ray.init(num_cpus=2, num_gpus=1, _node_ip_address="127.0.0.1", **settings)
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def recordings(small_corpus, tmp_path_factory):
    names = [f"r{number}" for number in range(10)]
    return copied(small_corpus, tmp_path_factory.mktemp("recordings"), *names, "r5_bad")


@pytest.fixture(scope="module")
def predictor():
    """The model in the package: it needs no torch, which takes each worker seconds to import."""
    return Predictor(*load_for_prediction(DEFAULT_MODEL, backend="onnx"), 2, 1, backend="onnx")


@pytest.fixture(scope="module")
def work(predictor):
    return RayWork(predictor, predictor.identity(False))


@pytest.fixture(scope="module")
def alone(predictor, recordings, tmp_path_factory):
    """What a single process leaves."""
    out = tmp_path_factory.mktemp("alone")
    predict(predictor, [recordings], out, formats=("json", "parquet"))
    return out


def agree(out, alone, address=""):
    """The timelines and rows are those of a single process."""
    wanted = sorted(path.name for path in alone.glob("r*.laennec.json"))
    assert sorted(path.name for path in (out / "laennec.timelines").iterdir()) == wanted
    for name in wanted:
        here, there = (json.loads((folder / name).read_text()) for folder in (out / "laennec.timelines", alone))
        assert here | {"recording": here["recording"].removeprefix(address)} == there
    rows = pq.read_table(out / "laennec.predictions").to_pandas()
    rows["recording"] = rows["recording"].str.removeprefix(address)
    expected = pq.read_table(alone / "laennec.predictions.parquet").to_pandas()
    order = ["recording", "start_s"]
    assert rows.sort_values(order, ignore_index=True).equals(expected.sort_values(order, ignore_index=True))


def test_a_cluster_gives_what_a_process_gives_although_a_worker_is_killed(cluster, work, alone, recordings, tmp_path):
    out, killed = tmp_path / "out", tmp_path / "killed"
    killing = KillingPredictor(work.predictor, _samples(recordings / "r3.wav"), str(killed))
    inputs, place = [f"file://{recordings}"], f"file://{out}"
    done = run_on_ray(dataclasses.replace(work, predictor=killing), inputs, place, workers=2)
    assert killed.exists()
    agree(out, alone, "file://")
    assert len(done.predicted) == 10 and "r5_bad.wav" in done.failed[0][1] and len(done.failed) == 1
    assert "r5_bad.wav" in (out / "laennec.failed.csv").read_text()

    first, *_, last = sorted((out / "laennec.predictions").iterdir())
    whole = last.read_bytes()
    lost = set(pq.read_table(first)["recording"].to_pylist())
    first.unlink()
    seen = []
    again = run_on_ray(work, inputs, place, progress=lambda done, total: seen.append((done, total)))
    assert again.resumed == 10 - len(lost) and len(again.predicted) == 10
    assert seen[0] == (again.resumed, 11) and seen[-1] == (11, 11)
    assert last.read_bytes() == whole
    agree(out, alone, "file://")


@pytest.mark.soak
def test_a_recording_that_kills_its_workers_is_listed_alone(cluster, work, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_TRIES", 0)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("r0.wav", "r1.wav"):
        shutil.copy(recordings / name, folder)
    soundfile.write(folder / "long.wav", np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)
    killing = KillingPredictor(work.predictor, _samples(folder / "long.wav"), None)
    done = run_on_ray(dataclasses.replace(work, predictor=killing), [str(folder)], str(tmp_path / "out"), workers=1)
    assert [Path(path).name for path, _ in done.failed] == ["long.wav"] and "died" in done.failed[0][1]
    assert len(done.predicted) == 2


def _samples(path):
    return len(read_recording(path, RATE).waveform)


@pytest.mark.soak
def test_embeddings_of_a_model_in_torch_are_those_of_a_process(cluster, frozen_run, recordings, tmp_path):
    predictor = Predictor(*load_model(frozen_run), 2, 1)
    embedder = Embedder(predictor)
    work = RayWork(predictor, embedder.provenance({}), embedder=embedder)
    done = run_on_ray(work, [str(recordings / "r0.wav"), str(recordings / "r1.wav")], str(tmp_path), workers=1)
    rows = pq.read_table(tmp_path / "laennec.embeddings").to_pandas()
    for path in done.predicted:
        wanted = embedder(Path(path))
        own = rows[rows["recording"] == path]
        assert np.array_equal(np.stack(own["embedding"]), wanted.values)
        assert list(zip(own["start_s"], own["end_s"], strict=True)) == wanted.spans


class Blocks:
    """Takes the place of the pipelines: each one does so many recordings, and then ends as it is told."""

    def __init__(self, *ends):
        self.ends, self.sizes = list(ends), []

    def __call__(self, ray, work, todo, out, workers, size):
        self.sizes.append(size)
        number, end = self.ends.pop(0)
        for item in todo[:number]:
            timeline = f"{item['name']}.laennec.json"
            digest = hashlib.sha256(b"{}").hexdigest()
            put(f"{out}/laennec.timelines/{timeline}", b"{}")
            known = {"state": item["state"], "timeline": timeline, "digest": digest}
            ray_engine._write_part(
                out,
                work,
                pa.table({"recording": [item["recording"]]}).replace_schema_metadata({}),
                {item["recording"]: known},
            )
            yield [{"recording": item["recording"], "reason": None}]
        if end:
            raise ray_engine._PipelineError(end)


@pytest.mark.parametrize(
    ("ends", "sizes", "finished", "said"),
    [
        ([(3, "lost"), (7, None)], [8, 8], 10, None),
        ([(3, "lost"), (0, "lost"), (7, None)], [8, 8, 1], 10, None),
        ([(9, None), (0, "the cluster is gone")], [8, 1], 9, "the cluster is gone"),
        ([(9, None), (0, None)], [8, 1], 9, "died"),
        ([(0, "no"), (1, "no"), (1, "no"), (0, "no")], [8, 1, 1, 1], 2, "no"),
    ],
)
def test_a_pipeline_that_ray_ends_does_not_end_the_command(
    ends, sizes, finished, said, work, recordings, tmp_path, monkeypatch
):
    blocks = Blocks(*ends)
    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    monkeypatch.setattr(ray_engine, "_blocks", blocks)
    done = run_on_ray(work, [str(path) for path in recordings.glob("r?.wav")], str(tmp_path))
    assert (blocks.sizes, len(done.predicted), len(done.failed)) == (sizes, finished, 10 - finished)
    assert all(path in reason and said in reason for path, reason in done.failed)
    assert (tmp_path / "laennec.failed.csv").exists() == bool(done.failed)


def test_a_folder_forgets_damaged_files_and_refuses_other_settings(work, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    monkeypatch.setattr(ray_engine, "_blocks", Blocks((10, None), (1, None)))
    inputs = [str(path) for path in recordings.glob("r?.wav")]
    run_on_ray(work, inputs, str(tmp_path))
    damaged = next((tmp_path / "laennec.predictions").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    again = run_on_ray(work, inputs, str(tmp_path))
    assert again.resumed == 9 and len(again.predicted) == 10
    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "_open", lambda *_, **__: (_ for _ in ()).throw(TimeoutError("no answer")))
        with pytest.raises(InputError, match=r"cannot be read \(TimeoutError: no answer\); run the same command again"):
            ray_engine._finished(str(tmp_path), work, {}, False)
    assert len(list((tmp_path / "laennec.predictions").iterdir())) == 10
    other = dataclasses.replace(work, provenance={"spans": "others"})
    with pytest.raises(InputError, match="--overwrite"):
        run_on_ray(other, inputs, str(tmp_path))


@pytest.mark.parametrize(("backend", "gpus"), [("torch", ("0",)), ("onnx", ("", "all"))])
def test_actors_share_the_gpus_of_a_cluster_where_torch_runs(cluster, recordings, tmp_path, backend, gpus):
    """This cluster says that it has a GPU; it has none, so the network runs on the CPU all the same."""
    predictor = Predictor(*load_for_prediction(DEFAULT_MODEL, backend=backend), 2, 1, backend=backend)
    work = RayWork(predictor, predictor.identity(False))
    telling = dataclasses.replace(work, predictor=TellingPredictor(predictor, str(tmp_path / "said")))
    done = run_on_ray(telling, [str(recordings / "r0.wav")], str(tmp_path / "out"))
    assert not done.failed and (tmp_path / "said").read_text() in gpus


def test_a_recording_or_annotation_that_changed_is_computed_again(work, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    for name in ("r0", "r1"):
        shutil.copy(recordings / f"{name}.wav", folder)
        (folder / f"{name}.txt").write_text("0.1\t1.5\t1\t0\n")
    annotated = dataclasses.replace(work, annotation=str(folder))
    before = (folder / "r1.wav").stat()
    for number, change in enumerate((None, None, "recording", "annotation")):
        if change == "recording":  # of the same size and time
            shutil.copy(folder / "r1.wav", folder / "new.wav")
            os.replace(folder / "new.wav", folder / "r1.wav")
            os.utime(folder / "r1.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
        if change == "annotation":
            (folder / "r1.txt").write_text("0.2\t1.5\t1\t0\n")
        monkeypatch.setattr(ray_engine, "_blocks", Blocks((2, None)))
        done = run_on_ray(annotated, [str(folder)], out)
        assert done.resumed == (0, 2, 1, 1)[number] and len(done.predicted) == 2


def test_only_a_changed_recording_loses_its_rows_and_no_corrected_timeline(work, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = ("r0.wav", "r1.wav", "r2.wav")
    for name in names:
        shutil.copy(recordings / name, folder)
    put(f"{out}/{ray_engine.IDENTITY}", json.dumps({**work.provenance, "annotation": None}).encode())
    states = find_uris([str(folder)])
    items = [{"recording": uri, "name": Path(uri).stem, "state": state} for uri, state in states.items()]
    decoded = ray_engine._decoded(pa.Table.from_pylist(items), RATE)
    assert all(reason is None for reason in ray_engine._Worker(work, str(out))(decoded)["reason"].to_pylist())
    (part,) = (out / work.table).iterdir()
    rows = pq.read_table(part)
    (folder / "r1.wav").write_bytes((recordings / "r3.wav").read_bytes())
    timeline = out / "laennec.timelines" / "r1.laennec.json"
    timeline.write_text("corrected")
    inputs = [str(folder / name) for name in names[:2]]  # the third is none of this run
    with pytest.raises(InputError, match=r"r1.laennec.json: was changed after it was written.*--overwrite"):
        run_on_ray(work, inputs, str(out))
    assert (timeline.read_text(), pq.read_table(part)) == ("corrected", rows)
    monkeypatch.setattr(ray_engine, "_blocks", Blocks((1, None), (1, None)))
    assert run_on_ray(work, inputs, str(out), overwrite=True).resumed == 1
    assert timeline.read_text() == "{}"
    assert not part.exists()
    kept = [pq.read_table(file) for file in (out / work.table).iterdir()]
    for name in ("r0.wav", "r2.wav"):
        there = [table.filter(pc.equal(table["recording"], str(folder / name))) for table in kept]
        (there,) = [table for table in there if len(table)]
        assert there.equals(rows.filter(pc.equal(rows["recording"], str(folder / name))))
    # as it was written, a timeline is replaced when its recording is
    timeline.write_bytes(b"{}")
    (folder / "r1.wav").write_bytes((recordings / "r4.wav").read_bytes())
    assert run_on_ray(work, inputs, str(out)).resumed == 1


@pytest.mark.parametrize("name", ["laennec.predictions", "laennec.timelines", "laennec.failed.csv"])
def test_what_is_not_of_a_run_is_replaced_by_overwriting_alone(work, recordings, tmp_path, monkeypatch, name):
    monkeypatch.setattr(ray_engine, "_ray", lambda: None)
    monkeypatch.setattr(ray_engine, "_blocks", Blocks((1, None)))
    theirs = tmp_path / name if name.endswith(".csv") else tmp_path / name / "theirs"
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("theirs")
    with pytest.raises(InputError, match=rf"{name}: was not written by an earlier run .* or pass --overwrite"):
        run_on_ray(work, [str(recordings / "r0.wav")], str(tmp_path))
    assert theirs.read_text() == "theirs" and len(list(tmp_path.iterdir())) == 1
    assert len(run_on_ray(work, [str(recordings / "r0.wav")], str(tmp_path), overwrite=True).predicted) == 1


def test_a_recording_that_fails_in_a_worker_or_cannot_be_kept_has_a_reason(work, recordings, tmp_path, monkeypatch):
    items = [{"recording": str(recordings / name), "name": name, "state": ""} for name in ("r0.wav", "r1.wav")]
    decoded = ray_engine._decoded(pa.Table.from_pylist(items), RATE)
    worker = ray_engine._Worker(work, str(tmp_path))

    class Failing(RayWork):
        def run(self, sound, rate, annotation):
            if len(sound) == len(decoded["sound"][0].as_py()) // 4:
                raise RuntimeError("no memory\nfor it")
            return super().run(sound, rate, annotation)

    worker.work = Failing(work.predictor, work.provenance)
    told = worker(decoded).to_pylist()
    assert [row["reason"] for row in told] == [f"{recordings}/r0.wav: RuntimeError: no memory for it", None]
    monkeypatch.setattr(ray_engine.pq, "write_table", lambda *_, **__: (_ for _ in ()).throw(OSError("access denied")))
    told = worker(decoded).to_pylist()
    assert "no memory" in told[0]["reason"] and "cannot be written (OSError: access denied)" in told[1]["reason"]


@pytest.fixture
def without_ray(monkeypatch):
    """Ray is not installed, as far as the package can see."""
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("predict {r} --engine ray", "need --out"),
        ("predict {r} --engine ray --out {o}", "needs Ray: pip install 'laennec[ray]'"),
        ("embed {r} --engine ray --out {o}", "needs Ray: pip install 'laennec[ray]'"),
        ("predict {r} --engine ray --out {o} --segment", "cannot be combined with --engine ray"),
        ("predict {r} --engine ray --out {o} --format csv", "cannot be combined with --engine ray"),
        ("embed {r} --engine ray --out {o} --format npz", "--engine ray embeds recordings, into Parquet"),
        ("predict {r} --engine ray --out {o} --annotation s3://b/a", "--annotation s3://b/a: it must be a path"),
        ("embed {r} --engine ray --out {o} --annotation s3://b/a", "--annotation s3://b/a: it must be a path"),
        ("predict {r} --engine ray --out {o} --jobs 0", "jobs 0: the number of processes"),
        ("predict s3://b/r --out {o}", "s3://b/r: an address, which only --engine ray"),
        ("embed {r} --out s3://b/o", "s3://b/o: an address, which only --engine ray"),
    ],
)
def test_what_ray_cannot_do_is_one_line(arguments, said, without_ray, recordings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = arguments.format(r=recordings / "r0.wav", o=tmp_path / "out").split()
    assert main(command) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("laennec: ") and said in last
    assert not list(tmp_path.iterdir())


def test_a_cluster_or_a_store_out_of_reach_is_one_line(recordings, tmp_path, monkeypatch, capsys):
    class NotAsked:
        is_initialized = staticmethod(lambda: False)

        def init(self, **settings):
            pytest.fail("Ray tries for a quarter of an hour")

    monkeypatch.setattr(ray_engine, "_ray", NotAsked)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        nowhere = f"127.0.0.1:{listening.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    # as s3:// where s3fs is not installed
    fsspec.register_implementation("absent", "no_such_client.Files", clobber=True, errtxt="Install absentfs")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "laennec.identity.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    sound, out = str(recordings / "r0.wav"), str(tmp_path / "out")
    for inputs, place, said in (
        (sound, out, f"{nowhere}: cannot connect (ConnectionRefusedError: "),
        ("absent://bucket/in", out, "absent://bucket/in: cannot be reached (ImportError: Install absentfs)"),
        (sound, "absent://bucket/out", "cannot be reached (ImportError: Install absentfs)"),
        (sound, str(tmp_path / "other"), "choose another --out, or pass --overwrite"),
        (str(tmp_path / "empty"), out, "no recordings in"),
        (str(recordings), f"{out} --annotation {sound}", "one annotation for 11 recordings"),
    ):
        assert main(["predict", inputs, "--engine", "ray", "--out", *place.split()]) == 2
        *_, last = capsys.readouterr().err.splitlines()
        assert last.startswith("laennec: ") and said in last


def test_addresses_are_listed_and_written(tmp_path):
    files = fsspec.filesystem("memory")
    for name in ("a/two.WAV", "a/one.flac", "a/notes.txt", "a/.hidden.wav"):
        files.pipe_file(f"/bucket/{name}", b"x")
    assert list(find_uris(["memory://bucket"])) == ["memory:///bucket/a/one.flac", "memory:///bucket/a/two.WAV"]
    put("memory://bucket/out/x.json", b"{}")
    assert files.cat_file("/bucket/out/x.json") == b"{}"
    put(str(tmp_path / "deep" / "x.json"), b"{}")
    assert (tmp_path / "deep" / "x.json").read_bytes() == b"{}"
    for inputs, said in ((["nowhere://x"], "cannot be reached"), (["memory://empty"], "no recordings")):
        files.makedirs("/empty", exist_ok=True)
        with pytest.raises(InputError, match=said):
            find_uris(inputs)
