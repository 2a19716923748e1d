"""Shared fixtures: one thread, no network, and the real recordings where they are to be had."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never read or fill the user's caches."""
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
