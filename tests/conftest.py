"""Shared fixtures: one thread, no network, and the real recordings where they are available."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("LAENNEC_DATA", None)  # where the user keeps data

import gc
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from network_guard import close_the_network

close_the_network()  # for this session and every process that it starts
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
LONGEST = ("tests/test_wheel.py", "tests/examples/", "tests/hub/", "tests/inference/")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow.txt (named with or without parameters) as soak; only `make soak` runs them."""
    lines = Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").splitlines()
    slow = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in slow or item.nodeid.partition("[")[0] in slow:
            item.add_marker(pytest.mark.soak)
    # the slowest files first, so that no worker is idle at the end
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_collection_finish() -> None:
    """Exclude all imported modules from garbage collection, because scanning torch and transformers is slow."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _shared_root() -> Path:
    data = os.environ.get("LAENNEC_SHARED_DATA")
    return Path(data).parent if data else ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_root() -> Path:
    """The folder that holds data/, weights/ and conformance/."""
    root = _shared_root()
    if not (root / "data").is_dir():
        pytest.skip(f"no real recordings at {root / 'data'}; set LAENNEC_SHARED_DATA to the folder that holds them")
    return root


@pytest.fixture(scope="session")
def shared_data(shared_root: Path) -> Path:
    """The folder with the real ICBHI 2017 and SPRSound recordings."""
    return shared_root / "data"


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests never read or fill the user's caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        yield


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the images of reports by one white pixel: drawing them takes most of the time of a report."""
    image = io.BytesIO()
    Image.new("L", (1, 1), 255).save(image, "png")
    monkeypatch.setattr("laennec.evaluation.report.write.figure_png", lambda _: image.getvalue())


@pytest.fixture
def disk(tmp_path: Path):
    """A function that mounts a tmpfs of a given size in kB on a folder (relative to tmp_path).

    After `mount -o remount,ro` it is read-only even for root.
    """
    mounted = []

    def make(folder: str | Path, kilobytes: int = 20_000) -> Path:
        folder = tmp_path / folder
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        mounted.append(folder)
        return folder

    yield make
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic corpus of 16 patients in ICBHI's layout, at low rates so that tests are quick."""
    from laennec.corpora.synthetic import write_corpus

    folder = tmp_path_factory.mktemp("corpus") / "synthetic"
    return write_corpus(folder, patients=16, recordings_per_patient=1, cycles_per_recording=4, max_rate_hz=4000)


@pytest.fixture(scope="session")
def tiny_recipe(small_corpus: Path) -> dict:
    """Plain settings of a small CNN on the small corpus: a second to train."""
    return {
        "name": "tiny",
        "corpus": {"name": "synthetic", "data_dir": str(small_corpus), "protocol": "patient-60-20-20"},
        "features": {"preset": "song2021", "length": "natural"},
        "encoder": {"type": "cnn", "config": {"channels": [4, 8]}},
        "train": {"epochs": 2, "batch_size": 8, "selection_metric": "loss"},
    }


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny recipe with the ADD loss."""
    from laennec.training.recipe import Recipe
    from laennec.training.run import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = Recipe(
            **(tiny_recipe | {"loss": {"auxiliary": {"add": {"weight": 0.2}}}, "head": {"threshold_rule": "youden"}})
        )
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "tiny")
        return train(recipe)


@pytest.fixture(scope="session")
def some_recordings(small_corpus: Path) -> list[Path]:
    """Recordings whose sound goes into small copies of other corpora; synthetic where real ones are missing."""
    real = sorted((_shared_root() / "data" / "sprsound" / "train" / "wav").glob("*.flac"))[:24]
    return real or sorted(small_corpus.rglob("*.wav"))


@pytest.fixture(scope="session")
def tiny_ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AST with random weights, in the folder layout of a download."""
    from transformers import ASTConfig

    from laennec.encoders import AstEncoder

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=256,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("ast")
    AstEncoder._from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def released(shared_root):
    """A released checkpoint of EfficientAT's smallest MobileNet."""
    return shared_root / "weights" / "mn04_as_mAP_432.pt"


@pytest.fixture(scope="session")
def frozen_run(tiny_recipe, released, tmp_path_factory):
    """A head trained on the embeddings of the released encoder."""
    from laennec.training.recipe import Recipe
    from laennec.training.run import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = Recipe(
            **(
                tiny_recipe
                | {
                    "features": {"preset": "efficientat", "filter_kind": "lowpass", "filter_cutoff_hz": 1500},
                    "encoder": {"type": "mobilenet", "weights": str(released), "trainable": "frozen"},
                    "head": {"threshold_rule": "youden"},
                }
            )
        )
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "frozen")
        return train(recipe)


@pytest.fixture(scope="module")
def pushed_run(frozen_run, tmp_path_factory):
    """A scored run on a real frozen encoder, in its own folder, with a complete card."""
    from laennec.evaluation.evaluate import score

    run = shutil.copytree(frozen_run, tmp_path_factory.mktemp("runs") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        score(run)
    record = json.loads((run / "run.json").read_text())
    texts = ("authors", "contact", "intended_use", "users", "health_inequalities", "ethics", "funding", "conflicts")
    answers = dict.fromkeys((*texts, "registration", "patient_involvement", "next_steps"), "none")
    (run / "run.json").write_text(json.dumps(record | {"card": answers | {"licence": "mit"}}))
    return run


@pytest.fixture(scope="module")
def hub():
    """A local Hub server."""
    from hub_server import HubServer

    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def user(hub, tmp_path_factory):
    """A process that uses this Hub."""
    from hub_process import HubUser

    with HubUser(hub, tmp_path_factory.mktemp("home")) as someone:
        yield someone


@pytest.fixture(scope="module")
def breath(tmp_path_factory):
    """Three seconds of noise at 11,025 Hz."""
    path = tmp_path_factory.mktemp("sound") / "breath.wav"
    draw = np.random.default_rng(1)
    soundfile.write(path, 0.1 * draw.standard_normal(3 * 11025), 11025, subtype="PCM_16")
    return path
