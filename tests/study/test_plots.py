"""Plots of a study: runs and axes."""

import json
from pathlib import Path

import pytest

from laennec.evaluation.report import plots_runs
from laennec.evaluation.report.plots_runs import study_plots

RECORDED = Path(__file__).resolve().parents[2] / "docs" / "results" / "studies" / "leakage_icbhi_subset.json"


@pytest.fixture
def content():
    return json.loads(RECORDED.read_text())


def test_a_picture_of_methods_and_of_each_axis_and_the_same_each_time(content):
    made = study_plots(content)
    assert set(made) == {"test-methods.png", "test-protocols.png"}
    assert all(png.startswith(b"\x89PNG") for png in made.values()) and study_plots(content) == made


def test_what_was_not_measured_has_no_picture(content):
    content["study"]["methods"] = {name: {} for name in content["study"]["methods"]}
    assert set(study_plots(content)) == {"test-methods.png"}
    for row in content["results"]:
        row["values"] = dict.fromkeys(row["values"])
    assert study_plots(content) == {}


def test_every_run_is_a_dot_and_the_mean_is_theirs(content, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots_runs, "figure_png", lambda figure: drawn.append(figure) or b"")
    study_plots(content)
    panel = drawn[0].axes[0]
    lines = [line.get_xdata() for line in panel.lines]
    runs = [row["values"]["icbhi.Score"] for row in content["results"] if row["name"] == "frozen mobilenet, patients"]
    assert list(lines[0]) == runs and lines[1][0] == pytest.approx(sum(runs) / len(runs))
