"""The launch files of recipes/accelerate: accelerate reads each; two processes equal one with twice the batch size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from safetensors.numpy import load, load_file

from forked import ranks
from laennec.cache import read_entry
from laennec.cli.main import main

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
AST = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "max_length": 128,
    "layer_norm_eps": 1e-6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
# name -> kind, processes, machines
FILES = {
    "one_gpu": ("NO", 1, 1),
    "one_node": ("MULTI_GPU", 8, 1),
    "two_nodes": ("MULTI_GPU", 16, 2),
    "fsdp": ("FSDP", 8, 1),
    "cpu_two_processes": ("MULTI_GPU", 2, 1),
}


def launch(name, *command, settings=(), **environment):
    """Run a command under accelerate with a launch file."""
    file = ["--config_file", str(FOLDER / f"{name}.yaml"), "--main_process_port", "0", *settings]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *file, *map(str, command)],
        capture_output=True, text=True, timeout=300, env=os.environ | environment,
    )  # fmt: skip


def test_every_launch_file_is_known_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_the_launch_file(name, monkeypatch):
    kind, processes, machines = FILES[name]
    path = str(FOLDER / f"{name}.yaml")
    read = load_config_from_file(path)  # refuses keys that it does not know
    assert (read.distributed_type.value, read.num_processes, read.num_machines) == (kind, processes, machines)
    arguments = launch_command_parser().parse_args(["--config_file", path, "-m", "laennec", "train", "r.yaml"])
    arguments, *_ = _validate_launch_command(arguments)
    assert (arguments.use_fsdp, arguments.multi_gpu) == (kind == "FSDP", kind == "MULTI_GPU")
    assert arguments.num_processes == processes and arguments.num_machines == machines
    # precision and compilation are settings of the recipe, so that run.json records them
    assert arguments.mixed_precision == "no" and arguments.dynamo_backend == "no"
    if kind == "FSDP":
        assert arguments.fsdp_version == 2 and arguments.fsdp_state_dict_type == "FULL_STATE_DICT"


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    """A transformer on the small corpus, two epochs, batches of four."""
    values = tiny_recipe | {
        "features": {"preset": "ast"},
        "encoder": {"type": "ast", "config": AST},
        "train": {"epochs": 2, "batch_size": 4, "selection_metric": "loss"},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def compare(one, two, tolerance=3e-5):  # gradients of two halves are summed in another order, and Adam divides them
    """Check that two runs have equal loss curves, weights, best epochs and validation predictions."""
    records = [json.loads((run / "run.json").read_text()) for run in (one, two)]
    for first, second in zip(*(record["history"] for record in records), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=tolerance), (first, second)
        assert first["validation"]["loss"] == pytest.approx(second["validation"]["loss"], abs=tolerance)
    assert records[0]["best_epoch"] == records[1]["best_epoch"]
    weights = [load_file(run / "model" / "model.safetensors") for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        # a bias of the keys does not change attention: its gradient is rounding noise, which Adam scales up
        if not name.endswith("key.bias"):
            assert np.abs(value - weights[1][name]).max() < tolerance, name
    answers = [pd.read_parquet(run / "predictions-validation.parquet") for run in (one, two)]
    columns = [name for name in answers[0] if name.startswith("logit_")]
    assert np.abs(answers[0][columns].to_numpy() - answers[1][columns].to_numpy()).max() < tolerance


@pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.soak), True])
def test_two_processes_are_one_of_twice_the_batch(recipe, frozen, tmp_path, monkeypatch):
    settings = ["--encoder.trainable", "frozen"] if frozen else []
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache of two"))
    command = ["train", str(recipe), "--output_dir", str(tmp_path / "two"), *settings]
    # one case uses the launch file, the other starts the same processes directly
    done = ranks(2, lambda: main(command)) if frozen else launch("cpu_two_processes", "-m", "laennec", *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run: ") == 1
    assert json.loads((tmp_path / "two" / "run.json").read_text())["hardware"]["processes"] == 2
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache of one"))
    one = ["train", str(recipe), "--output_dir", str(tmp_path / "one"), "--train.batch_size", "8", *settings]
    assert main(one) == 0
    compare(tmp_path / "one", tmp_path / "two")
    caches = [read_cache(tmp_path / f"cache of {number}") for number in ("one", "two")]
    assert caches[0].keys() == caches[1].keys() and caches[0]
    if frozen:  # embeddings of two processes equal those of one bit for bit
        assert all(np.array_equal(caches[0][key], caches[1][key]) for key in caches[0])


def read_cache(folder):
    """Embeddings by key; checks that no key occurs twice."""
    found = {}
    for shard in (folder / "embeddings").rglob("*.safetensors"):
        tensors = load(read_entry(shard))
        for key, value in zip(tensors["keys"], tensors["embeddings"], strict=True):
            assert key.tobytes() not in found
            found[key.tobytes()] = value
    return found


@pytest.mark.soak
def test_sharded_weights_train_as_copies_do_and_are_whole_in_the_end(recipe, tmp_path):
    script = Path(__file__).with_name("fsdp_ranks.py")
    command = [script, "train", recipe, "--output_dir", tmp_path / "sharded"]
    done = launch("fsdp", *command, settings=["--num_processes", "2"])
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):  # the root and two layers are separate FSDP units
        assert f"rank {rank}: FSDP ['DTensor'] 3" in done.stdout, done.stdout
    assert main(["train", str(recipe), "--output_dir", str(tmp_path / "one"), "--train.batch_size", "8"]) == 0
    compare(tmp_path / "one", tmp_path / "sharded", 1e-4)
    assert main(["evaluate", str(tmp_path / "sharded")]) == 0
