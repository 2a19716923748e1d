"""What the first edition wrote and answered is loaded and answered alike.

tests/golden/first_edition/make.py recorded the golden files with the functions of this file, so both ask the same.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

import numpy_twins
from audio_twins import write
from laennec import Predictor, load_model
from laennec.cli import main

GOLDEN = Path(__file__).with_name("golden") / "first_edition"
MODELS = GOLDEN / "models"
BASES = {"head": MODELS / "base_ast", "lora": MODELS / "base_ast"}
LOADED = ("full", "head", "lora", "mobilenet", "ensemble", "tasks", "context")  # by `load_model`


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def close(values, **tolerance):
    """Equal but for the order in which a processor adds."""
    return pytest.approx(np.asarray(values), **{"rel": 1e-5, "abs": 2e-6} | tolerance)


def sound_file(folder):
    return write(folder / "sound.wav", numpy_twins.waveform(), 8000)


def logits_of(model, extractor):
    """Logits (1, labels) of the fixed sound at the model's own rate, its embedding, and the logits of each further task."""
    sound = numpy_twins.waveform(rate_hz=extractor.sampling_rate).astype(np.float32)
    values = extractor(sound, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    with torch.inference_mode():
        answered = model.eval()(**values)
        embeddings = getattr(answered, "embeddings", None)
        tasks = {name: task(embeddings).tolist() for name, task in getattr(model, "tasks", {}).items()}
    return {
        "logits": answered.logits.tolist(),
        "embeddings": None if embeddings is None else embeddings.tolist(),
        "tasks": tasks,
    }


def answers_of(name, folder):
    """What an exported model answers: logits of the whole sound, and the timeline of its file."""
    model, extractor = load_model(MODELS / name, BASES.get(name))
    timeline = Predictor(model, extractor, window_s=1.0, hop_s=0.5)(sound_file(folder))
    return {
        "labels": list(timeline.labels),
        **logits_of(model, extractor),
        "spans": [list(span) for span in timeline.spans],
        "probabilities": timeline.probabilities.tolist(),
        "present": timeline.present.astype(int).tolist(),
    }


def stock_answers():
    """What transformers' own classes answer."""
    folder = MODELS / "stock"
    model = AutoModelForAudioClassification.from_pretrained(folder)
    return logits_of(model, AutoFeatureExtractor.from_pretrained(folder))


def onnx_answers():
    """What onnxruntime answers to a batch of two lengths."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    facts = json.loads((MODELS / "onnx" / "onnx.json").read_text())
    sound = numpy_twins.waveform(rate_hz=facts["sampling_rate"]).astype(np.float32)
    lengths = np.array([len(sound), len(sound) // 3], np.int64)
    batch = np.stack([np.where(np.arange(len(sound)) < length, sound, 0) for length in lengths])
    session = onnxruntime.InferenceSession(MODELS / "onnx" / facts["file"], providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(None, {"waveforms": batch, "lengths": lengths})
    return {"labels": facts["labels"], "logits": logits.tolist(), "probabilities": probabilities.tolist()}


@pytest.mark.parametrize("name", LOADED)
def test_an_exported_model_answers_as_it_did(name, tmp_path):
    wanted, got = golden("predictions")[name], answers_of(name, tmp_path)
    assert got["labels"] == wanted["labels"] and got["present"] == wanted["present"]
    assert set(got["tasks"]) == set(wanted["tasks"])
    for task, logits in wanted["tasks"].items():
        assert got["tasks"][task] == close(logits)
    for key in ("embeddings", "logits", "spans", "probabilities"):
        assert got[key] == close(wanted[key])


@pytest.mark.parametrize("name", ["full", "mobilenet", "ensemble", "tasks", "context"])
def test_the_auto_classes_load_it(name):
    model = AutoModelForAudioClassification.from_pretrained(MODELS / name)
    extractor = AutoFeatureExtractor.from_pretrained(MODELS / name)
    assert logits_of(model, extractor)["logits"] == close(golden("predictions")[name]["logits"])


def test_stock_and_onnx_files_answer_as_they_did():
    wanted = golden("predictions")
    assert stock_answers()["logits"] == close(wanted["stock"]["logits"])
    got = onnx_answers()
    assert got["labels"] == wanted["onnx"]["labels"]
    assert got["logits"] == close(wanted["onnx"]["logits"])
    assert got["probabilities"] == close(wanted["onnx"]["probabilities"])


def test_the_command_line_writes_the_same_timeline(tmp_path):
    sound = sound_file(tmp_path)
    assert main(["predict", str(MODELS / "full"), str(sound), "--out", str(tmp_path / "out")]) == 0
    got, wanted = json.loads((tmp_path / "out" / "sound.json").read_text()), golden("timeline")
    assert set(wanted) <= set(got)
    for key in set(wanted) - {"recording", "timeline", "decision"}:
        assert got[key] == wanted[key], key
    assert len(got["timeline"]) == len(wanted["timeline"])
    for row, expected in zip(got["timeline"], wanted["timeline"], strict=True):
        assert row == pytest.approx(expected, abs=2e-6)


@pytest.fixture
def study_place(tmp_path, monkeypatch):
    """A folder as the run had it when it was trained: the corpus in icbhi, the run in run."""
    numpy_twins.icbhi2017(tmp_path / "icbhi")
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    shutil.copytree(GOLDEN / "interrupted", tmp_path / "interrupted")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("unpainted")
def test_a_finished_run_is_scored_and_exported(study_place):
    stored = GOLDEN / "run"
    assert main(["evaluate", "run", "--out", "again", "--draws", "50"]) == 0
    wanted, got = (pd.read_parquet(p / "predictions.parquet") for p in (stored / "evaluation-test", Path("again")))
    pd.testing.assert_frame_equal(got[wanted.columns], wanted, check_exact=False, rtol=1e-5, atol=1e-5)
    figures = json.loads((stored / "evaluation-test" / "metrics.json").read_text())["values"]
    assert json.loads(Path("again/metrics.json").read_text())["values"] == pytest.approx(figures, rel=1e-4)
    scored = json.loads(Path("run/run.json").read_text())["evaluations"]
    before = json.loads((stored / "run.json").read_text())["evaluations"]
    assert len(scored) == len(before) + 1 == 2
    assert main(["export", "run", "--out", "exported"]) == 0
    assert logits_of(*load_model("exported"))["logits"] == close(golden("predictions")["full"]["logits"])


def test_an_interrupted_run_goes_on_to_the_same_weights(study_place):
    """The recipe and the seed are those of the finished run; it was stopped after an epoch."""
    recipe = ["train", str(GOLDEN / "run.yaml"), "--output_dir"]
    checkpoint = Path("interrupted/checkpoints/train/checkpoint-5")
    assert checkpoint.is_dir() and not Path("interrupted/run.json").exists()
    steps = []
    counted = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    assert main([*recipe, "interrupted"]) == 0
    counted.remove()
    assert len(steps) == 5, "five of ten steps were left"
    wanted, got = (load_file(Path(run) / "model" / "model.safetensors") for run in ("run", "interrupted"))
    assert set(got) == set(wanted)
    for name, weight in wanted.items():
        np.testing.assert_allclose(got[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)
    histories = [json.loads((Path(run) / "run.json").read_text())["history"] for run in ("run", "interrupted")]
    assert histories[1][-1]["loss"] == pytest.approx(histories[0][-1]["loss"], rel=1e-5)
    assert len(histories[0]) == len(histories[1]) == 2
