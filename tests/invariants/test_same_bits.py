"""The same seed gives the same bits: on a CPU, the result of a run depends on the recipe and the data alone."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from safetensors.numpy import load_file

from laennec.cli.main import main
from runs import what_it_left
from ways import settings_of, ways

BOTH = """
import sys
from laennec.cli.main import main
for arguments in (["train", sys.argv[1], "--output_dir", sys.argv[2]], ["evaluate", sys.argv[2]]):
    assert main(arguments) == 0, arguments
"""
NAMES = list(ways("ast"))
QUICK = ("frozen", "contrast of mixtures")


@pytest.fixture
def recipe(tiny_recipe, tiny_ast, tmp_path):
    """A function that writes a recipe of one kind and returns its path."""

    def write(way, **train):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings_of(tiny_recipe, ways(tiny_ast)[way], **train)))
        return path

    return write


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """A function that sets another, empty cache for the commands."""

    def change(name):
        monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / f"cache {name}"))

    return change


def scored(run):
    """The bytes of an evaluation's files: predictions and metrics."""
    folder = run / "evaluation-test"
    return [(folder / name).read_bytes() for name in ("predictions.parquet", "metrics.json")]


@pytest.mark.parametrize("way", [n if n in QUICK else pytest.param(n, marks=pytest.mark.soak) for n in NAMES])
def test_workers_evaluation_batches_and_what_the_cache_holds_change_no_bit(recipe, tmp_path, fresh_cache, way):
    path = recipe(way)
    found = []
    for name, more in {"one": [], "two": ["--train.workers", "1", "--train.evaluation_batch_size", "7"]}.items():
        fresh_cache(name)
        out = tmp_path / name
        assert main(["train", str(path), "--output_dir", str(out), *more]) == 0
        assert main(["evaluate", str(out)]) == 0
        found.append((what_it_left(out), scored(out)))
    assert found[0] == found[1]


def test_zero_one_and_four_workers_and_any_batches_of_evaluation(recipe, tmp_path):
    path, found = recipe("draws and mixing", epochs=1), []
    for number, (workers, rows) in enumerate([(0, 64), (1, 1), (4, 7)]):
        out = tmp_path / str(number)
        more = ["--train.workers", str(workers), "--train.evaluation_batch_size", str(rows)]
        assert main(["train", str(path), "--output_dir", str(out), *more]) == 0
        found.append(what_it_left(out))
    assert found[0] == found[1] == found[2]


def test_a_loss_with_class_weights_is_that_of_all_cycles_whatever_the_batches(recipe, tmp_path):
    """A weighted mean of batch means is not the weighted mean of all cycles; it could change the best epoch."""
    path, losses = recipe("two stages", epochs=1), []
    for rows in (3, 64):
        out = tmp_path / str(rows)
        frozen = ["--encoder.trainable", "frozen", "--loss.auxiliary", "{}", "--schedule.name", "joint"]
        more = [*frozen, "--sampler.name", "shuffle", "--train.evaluation_batch_size", str(rows)]
        assert main(["train", str(path), "--output_dir", str(out), *more]) == 0
        losses.append([row["validation"]["loss"] for row in json.loads((out / "run.json").read_text())["history"]])
    assert losses[0] == losses[1]


def test_another_split_in_the_cache_another_folder_and_order_of_files(recipe, tmp_path, fresh_cache, monkeypatch):
    path = recipe("frozen")
    fresh_cache("cold")
    assert main(["train", str(path), "--output_dir", str(tmp_path / "cold")]) == 0
    fresh_cache("warm")  # with embeddings of the same cycles, but other neighbours in their shards
    assert main(["train", str(path), "--output_dir", str(tmp_path / "other"), "--corpus.split_seed", "5"]) == 0
    original, original_scan = os.listdir, os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def close(self):
            pass

    monkeypatch.setattr(os, "listdir", lambda *a: sorted(original(*a), reverse=True))
    monkeypatch.setattr(os, "scandir", lambda *a: Backwards(sorted(original_scan(*a), key=lambda e: e.name)[::-1]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", str(path), "--output_dir", "warm"]) == 0
    monkeypatch.undo()
    assert what_it_left(tmp_path / "elsewhere" / "warm") == what_it_left(tmp_path / "cold")


@pytest.mark.soak
def test_two_processes_with_other_hash_seeds_and_threads(recipe, tmp_path):
    """The recipe sets the number of training threads; evaluation uses the number from the environment."""
    path, found = recipe("mobilenet", epochs=1), []
    for seed, threads in (("1", "1"), ("2", "3")):
        out = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        environment |= {"OPENBLAS_NUM_THREADS": threads, "LAENNEC_CACHE": str(tmp_path / f"cache{seed}")}
        done = subprocess.run([sys.executable, "-c", BOTH, str(path), str(out)], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        found.append((what_it_left(out), scored(out)))
    assert found[0] == found[1]


def test_pre_training_too(recipe, tmp_path, fresh_cache):
    path, found = recipe("draws and mixing"), []
    more = ["--pretrain.views", "[raw, spec]", "--pretrain.epochs", "2", "--pretrain.batch_size", "8"]
    for name, workers in (("one", "0"), ("two", "4")):
        fresh_cache(name)
        out = tmp_path / name
        assert main(["pretrain", str(path), "--output_dir", str(out), "--train.workers", workers, *more]) == 0
        record = json.loads((out / "pretrain.json").read_text())
        weights = load_file(out / "encoder" / "model.safetensors")
        found.append(({k: v.tobytes() for k, v in weights.items()}, record["history"], record["embeddings"]))
    assert found[0] == found[1]
