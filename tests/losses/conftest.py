"""Golden cases."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, dict[str, Any]]]:
    """Cases of a suite by id: numbers that public reference code or the published formula gave."""

    def load(suite: str) -> dict[str, dict[str, Any]]:
        return {case["id"]: case for case in json.loads((GOLDEN / f"{suite}.json").read_text())["cases"]}

    return load
