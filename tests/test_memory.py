"""Real lack of memory: one line with the batch, its length and smaller settings, exit code 2."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from laennec.cli.main import main
from laennec.memory import asked_for, in_one_line, ran_out
from laennec.training.recipe import Recipe
from laennec.training.schedules import batch_setting

AST = {
    "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 384, "max_length": 512,
    "layer_norm_eps": 1e-6,
}  # fmt: skip
LIMITED = """
import resource, sys
import torch, transformers, datasets, sklearn.metrics
torch.set_num_threads(1)
import laennec.training.run
from laennec.cli.main import main
size = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + int(float(sys.argv[1]) * 2**20),) * 2)
sys.exit(main(sys.argv[2:]))
"""
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def limited(megabytes, *arguments):
    """Run a command in a process that may allocate so many megabytes after its imports.

    It is not a fork: a fork could reuse memory that earlier tests freed.
    """
    command = [sys.executable, "-c", LIMITED, str(megabytes), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_way_in_which_memory_runs_out_is_recognised():
    said = []
    for allocate in (
        lambda: torch.empty(10**15),
        lambda: np.empty(10**15),
        lambda: bytearray(10**15),
        lambda: torch.zeros(1).expand(10**14).contiguous(),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as failed:
            allocate()
        assert ran_out(failed.value)
        said.append(asked_for(failed.value))
    assert said[0] == " (3.73e+06 GiB more were asked for)"
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.20 GiB. GPU 0 has a total capacity of 15 GiB")
    assert " (3.73 GiB" in asked_for(RuntimeError("you tried to allocate 4000000000 bytes."))
    assert ran_out(gpu) and asked_for(gpu) == " (3.20 GiB more were asked for)"
    assert ran_out(RuntimeError("std::bad_alloc")) and asked_for(RuntimeError("std::bad_alloc")) == ""
    for other in (RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")):
        assert not ran_out(other)
        with pytest.raises(type(other)), in_one_line("what", "remedy"):
            raise other


@pytest.fixture
def large_recipe(tiny_recipe, tmp_path):
    """A recipe whose batches need more memory than a limited process has."""
    recipe = tiny_recipe | {
        "features": {"preset": "ast"},
        "encoder": {"type": "ast", "config": AST},
        "train": {"epochs": 1, "batch_size": 32, "evaluation_batch_size": 4, "selection_metric": "loss"},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "r.yaml"


@needs_proc
def test_a_training_batch_that_does_not_fit_names_a_smaller_one(large_recipe, tmp_path):
    done = limited(400, "train", large_recipe, "--output_dir", tmp_path / "run")
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("laennec: ")]
    assert "Traceback" not in done.stderr and "step 1: not enough memory for a batch of " in line
    found = re.search(
        r"a batch of (\d+) cycles, the longest ([\d.]+) s \((\d+) frames\).*train.batch_size: (\d+) with "
        r"train.gradient_accumulation_steps: (\d+), or features.length: crop with "
        r"features.duration_s: ([\d.]+), or train.gradient_checkpointing: true$",
        line,
    )
    assert found is not None, line
    rows, seconds, frames, size, accumulation = (float(found[number]) for number in range(1, 6))
    assert rows == 32 and abs(frames / 100 - seconds) < 0.05 and size * accumulation == 32


@needs_proc
@pytest.mark.soak
@pytest.mark.parametrize(("size", "accumulation", "code"), [(32, 1, 2), (4, 8, 0)])
def test_smaller_batches_are_trained_where_a_large_one_is_refused(large_recipe, tmp_path, size, accumulation, code):
    batches = ["--train.batch_size", size, "--train.gradient_accumulation_steps", accumulation]
    done = limited(400, "train", large_recipe, "--output_dir", tmp_path / "run", *batches)
    assert done.returncode == code, done.stderr[-3000:]


@needs_proc
def test_a_cycle_too_long_for_memory_is_one_line_and_keeps_the_earlier_run(tiny_recipe, tmp_path):
    recipe = tiny_recipe | {"features": {"preset": "song2021", "length": "zero", "duration_s": 3600}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = limited(400, "train", tmp_path / "r.yaml", "--output_dir", tmp_path / "run")
    assert done.returncode == 2 and "not enough memory for a batch of 8 cycles, the longest 3.6e+03 s" in done.stderr
    assert "train.batch_size: 4" in done.stderr and "features.duration_s: 1.8e+03" in done.stderr
    recipe["encoder"] = recipe["encoder"] | {"trainable": "frozen"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    done = limited(400, "train", tmp_path / "r.yaml", "--output_dir", tmp_path / "frozen")
    assert done.returncode == 2 and "not enough memory for a single cycle of 3.6e+03 s" in done.stderr
    assert not (tmp_path / "frozen").exists()


def test_the_message_names_the_setting_of_the_batch_size(tiny_recipe):
    for sampler, key in (
        ({"name": "patient_balanced", "patients": 2, "samples": 4}, "sampler.samples"),
        ({"name": "shuffle"}, "train.batch_size"),
    ):
        recipe = tiny_recipe | {"sampler": sampler, "loss": {"auxiliary": {"patient": {"weight": 0.1}}}}
        setting = batch_setting(Recipe(**recipe), sampler["name"], 8)
        assert setting.key == key and setting.accumulation == 0  # accumulation would change a loss over pairs


def test_validation_that_does_not_fit_names_its_own_batch(tiny_recipe, tmp_path, capsys, monkeypatch):
    from laennec.modeling import LaennecForAudioClassification
    from laennec.training import embeddings as embed
    from laennec.training import schedules as schedule

    original = LaennecForAudioClassification.embed

    def greedy(self, values, *arguments, **settings):
        if not self.training and values.shape[0] > 4:
            torch.empty(len(values) * 10**14)
        return original(self, values, *arguments, **settings)

    monkeypatch.setattr(LaennecForAudioClassification, "embed", greedy)
    for module in (schedule, embed):  # in batches, as on a GPU; a CPU encodes one cycle at a time
        monkeypatch.setattr(module, "encodes_one_by_one", lambda device: False)
    recipe = tiny_recipe | {"train": tiny_recipe["train"] | {"epochs": 1}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = ["train", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "run"), "--overwrite"]
    # embedding halves its batches itself, so the run succeeds once validation uses the batch size of the message
    advised, sizes = [], []
    while main([*command, *advised]) == 2:
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "evaluation: not enough memory for a batch of" in err
        sizes.append(int(re.search(r"train.evaluation_batch_size: (\d+)", err)[1]))
        advised = ["--train.evaluation_batch_size", str(sizes[-1])]
    assert sizes and sizes[-1] <= 4 and sizes == sorted({*sizes}, reverse=True)
    sound = next(Path(tiny_recipe["corpus"]["data_dir"]).glob("*.wav"))
    windows = ["--window-s", "0.5", "--hop-s", "0.1"]
    assert main(["predict", str(tmp_path / "run"), str(sound), *windows, "--out", str(tmp_path / "out")]) == 0
