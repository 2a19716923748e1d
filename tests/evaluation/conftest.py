"""A run to score, and scoring without its report."""

import json
import shutil

import pytest
from evaluation_tables import read


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run that nobody has scored."""
    copy = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation-*", "export-*"))
    (copy / "run.json").write_text(json.dumps(read(copy / "run.json") | {"evaluations": []}))
    return copy


@pytest.fixture
def no_pages(monkeypatch):
    """Leave out the report: its pictures take most of the time."""
    monkeypatch.setattr("laennec.evaluation.evaluate.write_report", lambda *_: None)
