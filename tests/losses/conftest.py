"""Golden cases, and the batches that break careless losses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, dict[str, Any]]]:
    """Cases of a suite by id: numbers that public reference code or the published formula gave."""

    def load(suite: str) -> dict[str, dict[str, Any]]:
        return {case["id"]: case for case in json.loads((GOLDEN / f"{suite}.json").read_text())["cases"]}

    return load


def degenerate_batches() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Embeddings (batch, dim) and labels (batch,) on which a pair, a spread or a direction does not exist."""
    draw = torch.Generator().manual_seed(0)
    some = torch.randn(6, 5, generator=draw)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    one_zero = some.clone()
    one_zero[2] = 0
    return {
        "empty": (some[:0], labels[:0]),
        "one_sample": (some[:1], labels[:1]),
        "one_class": (some, torch.zeros(6, dtype=torch.long)),
        "all_different": (some, torch.arange(6)),
        "one_couple": (some[:2], torch.tensor([0, 0])),
        "identical": (some[:1].repeat(6, 1), labels),
        "identical_within_class": (some[:3].repeat_interleave(2, dim=0), labels),
        "opposite": (torch.cat([some[:3], -some[:3]]), labels),
        "zero_vector": (one_zero, labels),
        "all_zero": (torch.zeros(6, 5), labels),
        "tiny": (some * 1e-30, labels),
        "huge": (some * 1e30, labels),
    }


@pytest.fixture(params=list(degenerate_batches()))
def degenerate(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    return degenerate_batches()[request.param]
