"""transformers' pipeline for audio classification: ours for our models, its own for all others."""

import json

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    pipeline,
)
from transformers.pipelines.audio_classification import AudioClassificationPipeline

from laennec import LaennecPipeline, Recipe, train
from laennec.audio.recording import ButterworthFilter, read_recording
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.inference.batch.run import Predictor
from laennec.inference.page.app import Limits, predict_html
from laennec.modeling import LaennecForAudioClassification

TASK = "audio-classification"


@pytest.fixture(scope="module")
def model(frozen_run):
    """With temperatures and thresholds that are not those of no calibration."""
    model, extractor = load_model(frozen_run)
    model.config.temperatures = {"crackle": 2.5, "wheeze": 0.4}
    model.config.intercepts = {"crackle": 0.5}
    model.config.thresholds = {"crackle": 0.1, "wheeze": 0.9}
    model.config.operating_points = {}
    return model, extractor


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline(TASK, model=model[0], feature_extractor=model[1], device="cpu")


@pytest.fixture(scope="module")
def recordings(shared_data):
    """Real ones, of several rates and lengths."""
    return [*sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[:2],
            *sorted((shared_data / "sprsound" / "train" / "wav").glob("*.flac"))[:2]]  # fmt: skip


def test_real_recordings_are_predicted_as_by_predict(pipe, model, recordings):
    assert isinstance(pipe, LaennecPipeline) and model[1].recording_filter
    predictor = Predictor(*model, window_s=1000.0, hop_s=1000.0)
    many = pipe([str(p) for p in recordings], batch_size=3)
    for path, together in zip(recordings, many, strict=True):
        wanted = predictor(path)
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        for said in (pipe(str(path)), pipe(path), together, pipe({"array": samples.mean(1), "sampling_rate": rate})):
            for row in said:
                place = wanted.labels.index(row["label"])
                assert abs(row["score"] - float(wanted.probabilities[0, place])) < 1e-6
                assert row["present"] == bool(wanted.present[0, place])
    assert len({tuple(row["present"] for row in said) for said in many}) >= 1


def test_five_ways_to_predict_a_recording_agree(tiny_recipe, recordings, tmp_path):
    import onnxruntime

    features = tiny_recipe["features"] | {"filter_kind": "lowpass", "filter_cutoff_hz": 700}
    settings = tiny_recipe | {"features": features, "head": {"calibration": "platt", "threshold_rule": "youden"}}
    run = train(Recipe(**settings | {"output_dir": str(tmp_path / "run")}))
    assert main(["export", str(run), "--format", "full", "--out", str(tmp_path / "full")]) == 0
    assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    recording = recordings[2]
    ours, extractor = load_model(tmp_path / "full")
    ours.config.operating_points = {}  # a sound as a whole is decided as an annotated event
    predictor = Predictor(ours, extractor, window_s=1000.0, hop_s=1000.0)
    wanted = predictor(recording).probabilities[0]
    names = ours.config.label_names
    assert set(ours.config.intercepts) == set(names)
    # the Auto classes of transformers, with the sound as it is
    auto = AutoModelForAudioClassification.from_pretrained(tmp_path / "full").eval()
    features = AutoFeatureExtractor.from_pretrained(tmp_path / "full")
    assert features.recording_filter
    sound = read_recording(recording, features.sampling_rate).waveform
    with torch.inference_mode():
        logits = auto(**features(sound, sampling_rate=features.sampling_rate)).logits
    found = {"Auto classes": auto.probabilities(logits)[0].numpy()}
    piped = pipeline(TASK, model=str(tmp_path / "full"), device="cpu")(str(recording))
    found["pipeline"] = np.array([next(row["score"] for row in piped if row["label"] == name) for name in names])
    # ONNX takes the filtered sound; onnx.json names the filter
    facts = json.loads((tmp_path / "onnx" / "onnx.json").read_text())
    filtered = ButterworthFilter(**facts["recording_filter"]).apply(sound, facts["sampling_rate"])
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / facts["file"])
    given = {"waveforms": filtered[None], "lengths": np.array([len(filtered)])}
    found["ONNX"] = session.run(["probabilities"], given)[0][0]
    for way, probabilities in found.items():
        np.testing.assert_allclose(probabilities, wanted, atol=1e-5, err_msg=way)
    page = predict_html(predictor, str(recording), None, Limits())
    for probability in wanted:
        assert f">{probability:.2f}" in page


def test_an_array_at_the_models_rate_is_filtered_like_its_recordings(pipe, model, recordings):
    ours, extractor = model
    rate = extractor.sampling_rate
    waveform = read_recording(recordings[0], rate).waveform[: 2 * rate]
    with torch.inference_mode():
        logits = ours.eval()(**extractor(waveform, sampling_rate=rate)).logits
    wanted = dict(zip(ours.config.label_names, ours.probabilities(logits)[0].tolist(), strict=True))
    for sound in (waveform, torch.from_numpy(waveform), waveform.astype(np.float64)):
        assert {row["label"]: row["score"] for row in pipe(sound)} == pytest.approx(wanted, abs=1e-6)
    plain = {row["label"]: row["score"] for row in pipe(waveform, function_to_apply="none")}
    names = ours.config.label_names
    assert plain == pytest.approx(dict(zip(names, logits[0].tolist(), strict=True)), abs=1e-5)
    uncalibrated = {row["label"]: row["score"] for row in pipe(waveform, function_to_apply="sigmoid")}
    assert uncalibrated == pytest.approx({n: float(torch.tensor(v).sigmoid()) for n, v in plain.items()}, abs=1e-6)
    assert any(abs(uncalibrated[n] - wanted[n]) > 1e-3 for n in names)
    assert len(pipe(waveform, top_k=1)) == 1


def test_one_class_of_several_is_the_most_probable(tiny_run, tmp_path):
    model, extractor = load_model(tiny_run)
    model.config.problem_type = "single_label_classification"
    said = pipeline(TASK, model=model, feature_extractor=extractor, device="cpu")(
        np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    )
    assert sum(row["score"] for row in said) == pytest.approx(1.0, abs=1e-6)
    assert [row["present"] for row in said] == [True] + [False] * (len(said) - 1)


@pytest.mark.parametrize(
    ("sound", "says"),
    [
        (np.zeros((2, 100), np.float32), "one channel"),
        (np.zeros(100, np.int16), "floats"),
        (np.full(100, 3.7e4), "reaches 3.7e\\+04; give floats in .* divide 16-bit values by 32768"),
        (np.zeros(0, np.float32), "shape"),
        ({"array": np.zeros(100, np.float32)}, "sampling_rate"),
        ({"array": np.zeros(100, np.float32), "sampling_rate": 0}, "rate in Hz"),
        ("nowhere.wav", "no such file"),
        (b"no sound at all", "not audio"),
        (np.linspace(0, 1, 10, dtype=np.float32), "too few"),
        (np.zeros(8000, np.float32), "silent: every sample is 0"),
        ({"array": np.linspace(0, 1, 100), "sampling_rate": "8k"}, "sampling_rate is '8k'"),
        ({"array": np.linspace(0, 1, 100), "sampling_rate": 384_000}, "a whole number up to 192000"),
    ],
)
def test_unusable_input_is_one_line(pipe, sound, says):
    with pytest.raises(InputError, match=says):
        pipe(sound)
    with pytest.raises(ValueError, match="function_to_apply"):
        pipe(sound, function_to_apply="tanh")


def test_other_models_get_transformers_own_pipeline():
    config = ASTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_length=64, num_labels=3
    )
    theirs = pipeline(
        TASK,
        model=ASTForAudioClassification(config),
        feature_extractor=ASTFeatureExtractor(max_length=64),
        device="cpu",
    )
    assert type(theirs) is AudioClassificationPipeline
    said = theirs(np.random.default_rng(0).standard_normal(8000).astype(np.float32))
    assert len(said) == 3 and set(said[0]) == {"label", "score"}


def test_weights_that_could_hold_code_are_not_read(frozen_run, tmp_path):
    model, _ = load_model(frozen_run)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        LaennecForAudioClassification.from_pretrained(tmp_path)


def test_a_saved_pipeline_is_a_model_and_its_front_end_and_no_code(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.py")) and "custom_pipelines" not in (tmp_path / "config.json").read_text()
    again = pipeline(TASK, model=str(tmp_path), device="cpu")
    sound = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    assert again(sound) == pipe(sound)
