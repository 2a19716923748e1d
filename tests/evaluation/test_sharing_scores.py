"""Scoring and decoding by several processes: the same numbers, and one set of files."""

import json
import os

import pandas as pd
import pytest

from forked import ranks
from laennec.cli.main import main
from laennec.corpora import CycleWaveforms, load_corpus
from laennec.evaluation.evaluate import score


def scores(folder):
    return json.loads((folder / "metrics.json").read_text()), pd.read_parquet(folder / "predictions.parquet")


@pytest.fixture(scope="module")
def alone(tiny_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "alone"
    return scores(score(tiny_run, out=out, spans="windows").folder)


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """Caches with nothing in them."""
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cold"))
    return tmp_path / "cold"


def same(folder, alone):
    metrics, predictions = scores(folder)
    assert json.dumps(metrics, sort_keys=True) == json.dumps(alone[0], sort_keys=True)
    pd.testing.assert_frame_equal(predictions, alone[1], check_exact=True)


def test_ranks_score_as_one_process(tiny_run, alone, cold, tmp_path):
    def work():
        return main(["evaluate", str(tiny_run), "--out", str(tmp_path / "out"), "--spans", "windows"])

    done = ranks(2, work)
    assert done.returncode == 0 and done.stdout.count("report: ") == 1
    same(tmp_path / "out", alone)


def test_processes_score_as_one(tiny_run, alone, cold, tmp_path):
    command = ["evaluate", str(tiny_run), "--out", str(tmp_path / "out"), "--spans", "windows"]
    assert main([*command, "--jobs", "2"]) == 0
    same(tmp_path / "out", alone)
    assert main([*command, "--jobs", "0"]) == 2


def test_processes_decode_as_one(small_corpus, cold, tmp_path, monkeypatch, capsys):
    command = ["prepare", "synthetic", "--data-dir", str(small_corpus), "--sampling-rate", "4000"]
    assert main([*command, "--jobs", "2"]) == 0
    shards = {path.name: path.read_bytes() for path in (cold / "waveforms").rglob("*.f32")}
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "again"))
    assert main(command) == 0
    assert shards == {path.name: path.read_bytes() for path in (tmp_path / "again" / "waveforms").rglob("*.f32")}
    assert len(shards) >= 16 and not list(cold.rglob(".*.lock"))
    capsys.readouterr()
    assert main([*command[:-2], "--jobs", "2"]) == 2
    assert "add --sampling-rate" in capsys.readouterr().err


def test_processes_that_decode_at_once_share_the_recordings(small_corpus, cold, tmp_path):
    made = tmp_path / "made"
    made.mkdir()

    def work():
        from laennec.corpora import waveforms

        honest = waveforms._make

        def make(shard, *settings):
            (made / f"{os.getpid()}-{shard.path.name}").touch()
            honest(shard, *settings)

        waveforms._make = make
        CycleWaveforms(load_corpus("synthetic", small_corpus, protocol="none")["all"], 2000).prepare()

    assert ranks(2, work).returncode == 0
    names = [path.name.split("-")[1] for path in made.iterdir()]
    assert len(names) == len(set(names)) == 16
