"""Whether what makes training faster changes what is learned: the row's figures, and one row for real."""

import json

import numpy as np
import pytest

from benchmarks import bench, curves


def test_the_largest_difference_counts_against_the_noise_over_seeds():
    plain = np.array([[0.9, 0.5], [0.7, 0.5], [0.8, 0.5]])
    losses = plain + np.array([[0.0, 0.01], [-0.02, 0.0], [0.0, 0.0]])
    noise = float(np.sqrt((0.1**2 + 0.0) / 2))  # standard deviations of 0.1 and 0 over seeds
    row = curves._row("bf16", plain, losses, noise, 12.0, "", "synthetic")
    assert row.name == "loss curve with train.bf16" and row.bound == "< 1"
    assert np.isclose(row.ours, 0.02) and row.other == noise and np.isclose(row.ratio, 0.02 / noise)
    assert "losses from 0.800 to 0.500" in row.note
    absent = curves._row("compile", plain, losses, noise, 1.0, "train.compile: no compiler", "synthetic")
    assert absent.ours is None and absent.ratio is None and "not measured here: train.compile" in absent.note


@pytest.mark.soak
def test_recomputing_activations_changes_less_than_running_again(monkeypatch, tmp_path):
    monkeypatch.setattr(curves, "KEYS", ("gradient_checkpointing",))
    monkeypatch.setattr(curves, "_SEEDS", (0, 1))
    monkeypatch.setattr(curves, "_EPOCHS", 1)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    monkeypatch.setattr(curves, "_AST", curves._AST | small)
    monkeypatch.setattr(curves, "_OPTIONS", {"patients": 8, "recordings_per_patient": 1, "max_rate_hz": 4000})
    table = bench(["curves"], None, None, str(tmp_path / "curves.json"))
    assert "| loss curve with train.gradient_checkpointing |" in table
    (row,) = json.loads((tmp_path / "curves.json").read_text())["rows"]
    assert 0 <= row["ratio"] < 0.01 and row["other"] > 0
