"""The machinery of the benchmarks; what they measure, `python -m benchmarks` alone measures."""

import importlib.util
import os
import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    ROWS,
    bench,
    breathing,
    cost,
    device,
    growth,
    losses,
    material,
    pipeline,
    prediction,
    row,
    sound,
    training,
    transformer,
)
from laennec.errors import InputError

HOLDS_40_MB = """
before = b"x" * 80_000_000
del before
begin()
kept = b"x" * 40_000_000
print(peak())
"""


def test_an_unknown_row_names_those_there_are():
    with pytest.raises(InputError, match=r"unknown row 'los'; the rows are .*losses"):
        bench(["los"], None, None, None)
    assert {"start", "read", "memory", "fbank", "frozen", "step", "losses"} <= set(ROWS)
    assert {"encoder", "finetune", "again", "predict", "pipeline", "growth", "processes", "rates"} <= set(ROWS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data_dir": "absent"}, "absent: no such folder; give the one that holds icbhi2017_subset"),
        ({"weights": "absent.pt"}, "absent.pt: no such file"),
        ({"weights": "text.pt"}, "text.pt: cannot be read as a file of tensors"),
        ({"out": "."}, "there is a folder of this name; give a file"),
        ({"out": "text.pt/bench.json"}, "text.pt/bench.json: cannot write: a part of this path is a file"),
        ({"repeats": 0}, "--repeats is 0; each side is measured once at least"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anything_is_measured(given, said, tmp_path, monkeypatch):
    (tmp_path / "text.pt").write_text("no weights")
    monkeypatch.setitem(ROWS, "start", lambda setting: pytest.fail("was measured"))
    paths = {name: value if name == "repeats" else str(tmp_path / value) for name, value in given.items()}
    with pytest.raises(InputError, match=re.escape(said)):
        bench(["start"], **{"data_dir": None, "weights": None, "out": None, **paths})
    assert [path.name for path in tmp_path.iterdir()] == ["text.pt"]


def test_peak_memory_is_counted_from_where_it_begins_whatever_the_starting_process_holds():
    held = b"x" * 300_000_000  # what a new process would inherit as its peak from getrusage
    (megabytes,) = row.in_a_new_process(row.PEAK_MEMORY + HOLDS_40_MB)
    assert 35 < megabytes < 60
    assert len(held) == 300_000_000


def test_a_failed_measurement_says_why():
    with pytest.raises(InputError, match="ZeroDivisionError"):
        row.in_a_new_process("1 / 0")


def test_large_batches_say_that_the_other_side_is_not_there(monkeypatch):
    monkeypatch.setattr(losses, "ROWS_IN_BATCH", 200)
    monkeypatch.setattr(losses, "DIM", 8)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pytorch_metric_learning" else find(n))
    rows = losses.large_batches(row.Setting(None, None, 1))
    assert [r.bound for r in rows] == ["<= 0.5", "<= 0.5", "<= 1.0", "<= 0.5"]
    assert all(r.other is r.ratio is None and "not measured here" in r.note for r in rows)
    assert all(r.ours > 0 for r in rows if r.unit == "s")


TINY_AST = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_BEATS = TINY_AST | {"position_kernel": 4, "position_groups": 2}
TEXT = ("name", "unit", "bound", "note")


@pytest.fixture
def setting(shared_root):
    return row.Setting(shared_root / "data", str(shared_root / "weights" / "mn04_as_mAP_432.pt"), 1)


@pytest.fixture
def tiny(monkeypatch):
    """Every row at its smallest."""
    monkeypatch.setattr(transformer, "SIZE", TINY_AST)
    monkeypatch.setattr(transformer, "BEATS_SIZE", TINY_BEATS)
    monkeypatch.setattr(transformer, "CYCLES", {"cpu": (5, 5)})
    monkeypatch.setattr(pipeline, "CYCLES", {"cpu": 8})
    monkeypatch.setattr(pipeline, "BATCH", {"cpu": 4})
    monkeypatch.setattr(prediction, "RECORDINGS", {"mobilenet": 1, "ast": 1, "jobs": 2})
    monkeypatch.setattr(training, "SUBSET", 8)
    monkeypatch.setattr(training, "EPOCHS", 2)
    monkeypatch.setattr(growth, "SIZES", (100,))
    monkeypatch.setattr(growth, "RANK_CYCLES", 4)
    monkeypatch.setattr(growth, "RANK_BATCH", 2)
    monkeypatch.setattr(cost, "RECORDINGS", 2)
    monkeypatch.setattr(cost, "CYCLES", {"cpu": 3})


def check(rows):
    """What holds for every row: plain words, and a ratio that is the two sides' (more is better where it counts up)."""
    assert rows and all(all(isinstance(getattr(r, name), str) for name in TEXT) for r in rows)
    for r in rows:
        if r.ours is None:
            assert r.other is r.ratio is None and ("not measured here" in r.note or "n/a" in r.note)
            continue
        assert r.ours >= 0
        if r.other is None:
            assert r.ratio is None
        else:
            assert r.ratio == pytest.approx(r.ours / r.other) or r.ratio == pytest.approx(r.other / r.ours)
    return {r.name: r for r in rows}


def test_ast_rows_compare_natural_length_with_1024_frames(setting, tiny):
    rows = check(transformer.encoder_forward(setting) + transformer.fine_tuning(setting))
    forward, tuned = rows["AST-base forward"], rows["AST-base fine-tuning"]
    assert forward.ratio == pytest.approx(forward.ours / forward.other) and forward.bound == ">= 3"
    assert tuned.ratio == pytest.approx(tuned.ours / tuned.other) and "limited by" in tuned.note
    assert 2.4 < forward.sound_s < 3.0 and "6898 published cycles" in forward.note
    assert "n/a: no peak is on record for a CPU" in rows["AST-base fine-tuning, model-FLOP utilisation"].note


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and its rows are measured")
def test_without_a_gpu_its_rows_say_so(setting, tiny):
    rows = [*transformer.encoder_forward(setting), *cost.rates(setting), sound._filter_bank_on_gpu(setting)]
    for r in (r for r in rows if r.name.endswith("on a GPU")):
        assert r.ours is None and r.note == "not measured here: no GPU"
    assert sum(r.name.endswith("on a GPU") for r in rows) == 4


def test_waiting_is_a_share_of_the_real_trainers_step(setting, tiny):
    rows = check(pipeline.waiting_for_data(setting))
    assert 0 < rows["waiting for data"].ours < 1 and 0 < rows["waiting for data, stretch and pitch"].ours < 1
    assert "stretch" not in rows["waiting for data"].note


def test_recordings_are_predicted_and_frozen_epochs_encoded_again(setting, tiny):
    rows = check(prediction.whole_recordings(setting) + training.encoding_again(setting))
    assert rows["whole recordings, mobilenet"].bound == ">= 100" and "mn04" in rows["whole recordings, mobilenet"].note
    assert rows["whole recordings on a GPU"].ours is None or torch.cuda.is_available()
    again = rows["frozen encoder and head"]
    assert again.ratio == pytest.approx(again.other / again.ours) and "2 epochs over 8 events" in again.note


@pytest.mark.soak
def test_the_model_in_the_package_and_what_masks_and_batches_cost(setting, tiny):
    rows = check([*prediction.in_the_package(setting), *training.validation(setting), *training.padded_step(setting)])
    assert rows["command to answer"].ours < rows["command to answer"].other
    assert {"whole recordings, ONNX", "sound to logits, ONNX"} < rows.keys()


@pytest.mark.soak
def test_commands_are_measured_in_one_and_two_processes_and_from_the_cache(setting, tiny):
    rows = check([*prediction.two_jobs(setting), *prediction.evaluation(setting)])
    assert len(rows) == 7 and rows["evaluate, cached"].ours < rows["evaluate, nothing cached"].ours


@pytest.mark.soak
def test_a_size_runs_in_a_process_of_its_own(tiny):
    rows = check(growth.growth(row.Setting(None, None, 1)))
    assert list(rows) == ["100 cycles", "100 cycles, memory"] and all(r.other is None for r in rows.values())
    assert rows["100 cycles"].ours > 0 and rows["100 cycles, memory"].ours > 100


def test_every_size_is_compared_with_the_smallest(monkeypatch):
    monkeypatch.setattr(growth, "SIZES", (1000, 10_000))
    rows = check(growth._compared([[2.0, 500.0], [10.0, 518.0]]))
    assert rows["1,000 cycles"].other is rows["1,000 cycles"].ratio is None and rows["1,000 cycles"].ours == 500
    assert (rows["10,000 cycles"].ours, rows["10,000 cycles"].other, rows["10,000 cycles"].ratio) == (1000, 500, 2)
    memory = rows["10,000 cycles, memory"]
    assert memory.ratio == pytest.approx(518 / 500) and "; 2 kB for each cycle more" in memory.note


@pytest.mark.soak
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_two_processes_train_one_model(tiny):
    assert growth._rate(2) > 0


@pytest.mark.soak
def test_processes_that_fail_say_why(tiny, monkeypatch):
    monkeypatch.setattr(growth, "RANK_BATCH", "none")
    with pytest.raises(InputError, match="a measurement failed: ValueError"):
        growth._rate(1)


def test_rows_that_need_recordings_say_so():
    nowhere = row.Setting(None, None, 1)
    for measure in (pipeline.waiting_for_data, prediction.whole_recordings, cost.rates):
        with pytest.raises(InputError, match="needs icbhi2017_subset below --data-dir"):
            measure(nowhere)
    with pytest.raises(InputError, match="needs sprsound"):
        training.encoding_again(nowhere)


def test_lengths_are_those_of_all_annotations_or_of_the_quantiles_kept_here(shared_data, tmp_path):
    real, source = material.cycle_lengths(row.Setting(shared_data, None, 1), 500)
    kept, other = material.cycle_lengths(row.Setting(None, None, 1), 500)
    assert source == "6898 published cycles of ICBHI" and "quantiles" in other
    assert np.abs(real[10:-10] - kept[10:-10]).max() < 0.2 and abs(real.mean() - kept.mean()) < 0.02
    assert (np.diff(kept) >= 0).all() and abs(kept.mean() - 2.70) < 0.03
    (tmp_path / "icbhi2017_annotations").mkdir()
    with pytest.raises(InputError, match="no annotated cycle"):
        material.cycle_lengths(row.Setting(tmp_path, None, 1), 5)


def test_flops_are_those_that_torch_counts():
    from laennec.encoders import load_encoder

    encoder = load_encoder(None, type="ast", **TINY_AST)
    encoder.config._attn_implementation = "eager"  # torch does not count what its fused attention does on a CPU
    for frames in (16, 203, 1024):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(torch.zeros(1, frames, 128))
        assert device.ast_flops(encoder.config, frames) == counter.get_total_flops()


def test_a_peak_is_known_by_the_devices_whole_name():
    assert device.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert device.peak_flops("NVIDIA H100 PCIe") == 756e12 and device.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert device.peak_flops("NVIDIA L4") == 121e12 and device.peak_flops("NVIDIA L40S") == 362e12
    assert device.peak_flops("NVIDIA RTX A4000") is None and device.peak_flops("CPU") is None


def made(name, ours, unit="x real time", sound_s=None):
    return row.Row(name, ours, None, unit, None, "", "", sound_s)


def test_the_cost_page_is_arithmetic_on_measured_rates():
    rows = [
        made("decode and resample", 2000.0),
        made("features", 4000.0),
        made("encode once", 500.0),
        made("AST-base forward", 2.0, "cycles/s", 2.5),
        made("AST-base fine-tuning", 0.4, "cycles/s", 2.5),
        made("AST-base forward on a GPU", 4000.0, "cycles/s", 2.5),
        made("FLAC at 16 kHz", 0.25, "of WAV"),
        row.Row("two processes that embed", 10.0, 19.0, "s", 1.9, "", ""),
        row.Row("two processes", 10.0, 16.0, "s", 1.6, "", ""),
    ]
    page = cost.as_page(rows, {"hardware": {"processor": "P", "gpus": ["G"]}})
    # 5,000 h at 500 x, by 8 and 64 processes that each run at 95 % of one, as two that embed do
    assert "| embed cycles with mn04 | 500 x | 1.32 h | 0.164 h | not measured here | `laennec embed" in page
    assert "| embed cycles with AST-base | 5 x | 132 h | 16.4 h | 0.5 h | `accelerate launch" in page
    assert "| one epoch of training AST-base | 1 x | 781 h | 97.7 h | not measured here |" in page  # at 80 %
    assert "576 GB of WAV, or 144 GB of FLAC" in page
    nothing = cost.as_page([], {"hardware": {"processor": "P", "gpus": []}})
    assert nothing.count("not measured here") == 19


def test_breaths_are_scored_by_hand():
    cycles = [(0.0, 2.0), (2.0, 4.0), (4.0, 7.0), (7.0, 9.0)]
    found = [(0.0, 2.5), (2.5, 4.1), (4.1, 5.0), (5.0, 9.0)]
    assert breathing.boundary_distances(cycles, found) == pytest.approx([0.5, 0.1, 2.0])
    assert breathing.overlap((2.0, 4.0), (2.5, 4.1)) == pytest.approx(1.5 / 2.1)
    assert breathing.overlap((0.0, 1.0), (2.0, 3.0)) == 0
    # of the two inner cycles the first is found; of the three spans whose middles lie between 2 and 7 s one is right
    median, high, recall, precision = breathing._scores([cycles], [found])
    assert (median, recall, precision) == (pytest.approx(0.5), 50.0, pytest.approx(100 / 3)) and high == pytest.approx(
        1.7
    )
