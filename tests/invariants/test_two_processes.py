"""One of two training processes is killed: the other ends at once with a message, and the same command resumes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from laennec.cli.main import main
from runs import what_it_left

TOGETHER = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu_two_processes.yaml"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TOGETHER)]
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    train = {**tiny_recipe["train"], "epochs": 12, "batch_size": 4, "save_steps": 2}
    values = {**tiny_recipe, "train": train, "augment": {"noise": {"probability": 0.5}, "mix": {"method": "mixup"}}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(recipe, out):
    return [*LAUNCH, "-m", "laennec", "train", str(recipe), "--output_dir", str(out)]


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ranks_of(launcher):
    """Process ids by rank."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) != launcher:
                continue
            environment = (path.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        found |= {int(e[5:]): int(path.parent.name) for e in environment if e.startswith(b"RANK=")}
    return found


def killed(recipe, out, rank, after="epoch 2/"):
    """Kill one rank, wait until the other has ended too, and return stderr and the launcher's exit code."""
    launcher = subprocess.Popen(command(recipe, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in launcher.stdout:
        if after in line:
            break
    ranks = ranks_of(launcher.pid)
    os.kill(ranks[rank], signal.SIGKILL)
    _, said = launcher.communicate(timeout=600)
    assert not lives(ranks[1 - rank])
    return said, launcher.returncode


@needs_proc
def test_a_rank_that_is_killed_takes_the_other_with_it_in_a_line_and_another_number_is_refused(
    recipe, tmp_path, capsys
):
    said, code = killed(recipe, tmp_path / "run", 1)
    assert code != 0
    (line,) = [line for line in said.splitlines() if "laennec: process 0 of 2: another process" in line]
    assert "run the same command again to continue" in line
    assert "Traceback" not in said.split("ChildFailedError")[0].split("torch/distributed/elastic")[0]
    assert main(["train", str(recipe), "--output_dir", str(tmp_path / "run")]) == 2
    refusal = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the number of processes was 2, now it is 1; start 2 processes" in refusal


@needs_proc
@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_run_resumes_to_the_bits_of_an_undisturbed_run(recipe, tmp_path, rank):
    for after in ("epoch 2/", "epoch 6/"):
        said, code = killed(recipe, tmp_path / "run", rank, after)
        assert code != 0 and "another process of this launch has ended" in said
    for name in ("run", "straight"):
        subprocess.run(command(recipe, tmp_path / name), check=True, capture_output=True)
    assert what_it_left(tmp_path / "run") == what_it_left(tmp_path / "straight")
