"""Runs in onnxruntime, from the sound on: the logits of torch, whatever the length, the batch and the padding."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import ASTConfig

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_recording
from laennec.cli.main import main
from laennec.configuration import LaennecConfig
from laennec.encoders import at_layers, load_encoder
from laennec.encoders.ast import AstEncoder
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.hub import onnx
from laennec.inference.onnx_model import OnnxSession, padded
from laennec.modeling import LaennecForAudioClassification
from laennec.training.recipe import Recipe
from laennec.training.run import train


@pytest.fixture(scope="module")
def sounds(shared_data):
    """Cuts of real recordings by rate: several batches of several lengths."""
    paths = [*sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[:2],
             *sorted((shared_data / "sprsound" / "train" / "wav").glob("*.flac"))[:1]]  # fmt: skip

    def cuts(rate):
        whole = [read_recording(path, rate).waveform for path in paths]
        return [
            [whole[0][: round(0.2 * rate)]],
            [whole[0][: 2 * rate], whole[1][rate : round(1.7 * rate)], whole[2][: round(0.33 * rate)]],
            [whole[1][: 7 * rate], whole[0][: 7 * rate]],
            [whole[0][: round(0.07 * rate)]],  # fewer frames than a patch has
            # more than a published AST has places for
            [np.tile(whole[0], 2)[: 12 * rate], whole[1][: round(0.1 * rate)]],
        ]

    return cuts


def encoder_of(kind, shared_root):
    if kind == "ast":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        return AstEncoder._from_config(ASTConfig(**sizes, max_length=1024, layer_norm_eps=1e-6)), "ast"
    if kind == "whisper":
        sizes = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
        return load_encoder(None, type="whisper", max_source_positions=400, **sizes), "whisper"
    if kind == "clap":
        sizes = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2], "window_size": 4}
        return load_encoder(None, type="clap", patch_stride=[16, 16], patch_size=16, **sizes), "clap"
    if kind == "audiomae":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return load_encoder(None, type="audiomae", **sizes), "ast"
    if kind == "resnet":
        return load_encoder(None, type="resnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), "efficientat"
    if kind == "beats":
        return load_encoder(shared_root / "conformance" / "beats_tiny.pt"), "beats"
    if kind == "layers":
        layered = at_layers(load_encoder(None, type="mobilenet", width_mult=0.1), [3, -1, "embedding"])
        return layered, "efficientat"
    return load_encoder(None, type="cnn", channels=[4, 8]), "song2021"


@pytest.mark.parametrize("kind", ["ast", "audiomae", "beats", "clap", "cnn", "layers", "resnet", "whisper"])
def test_an_encoder_gives_the_logits_of_torch(kind, shared_root, sounds, tmp_path):
    torch.manual_seed(0)
    encoder, preset = encoder_of(kind, shared_root)
    length = {
        "clap": {},
        "audiomae": {"length": "crop", "duration_s": 10.24},
        "resnet": {"length": "repeat", "duration_s": 2.0},
    }.get(kind, {"length": "natural"})
    labels = {"id2label": {0: "crackle", 1: "wheeze"}, "label2id": {"crackle": 0, "wheeze": 1}}
    config = LaennecConfig(
        encoder_config=encoder.config,
        **labels,
        pooling="encoder" if kind in ("clap", "layers") else "mean",
        temperatures={"crackle": 2.0, "wheeze": 0.7},
        intercepts={"crackle": -0.3},
    )
    model = LaennecForAudioClassification(config, encoder).eval()
    extractor = LaennecFeatureExtractor(preset, **length)
    facts = onnx.write_onnx(tmp_path, model, extractor, "this run")
    compare(tmp_path / "model.onnx", model, extractor, sounds)
    assert facts["opset"] == onnx.OPSET == 18 and facts["labels"] == ["crackle", "wheeze"]
    if kind == "cnn":  # the comparison after writing is not for show
        with torch.no_grad():
            model.head.classifier.bias += 0.01
        with pytest.raises(InputError, match="differs from the run"):
            onnx._compare(tmp_path / "model.onnx", OnnxSession(tmp_path / "model.onnx"), model, extractor)


def test_half_precision_weights_are_exported_in_float32(sounds, tmp_path):
    model, extractor = LaennecForAudioClassification.from_encoder(None, type="cnn"), LaennecFeatureExtractor("song2021")
    onnx.write_onnx(tmp_path, model.to(torch.bfloat16), extractor, "this run")
    assert model.dtype == torch.bfloat16
    compare(tmp_path / "model.onnx", model.float().eval(), extractor, sounds)


def compare(path, model, extractor, sounds):
    """The file's answers against the model's, each batch and each sound alone."""
    runs = OnnxSession(path)
    for batch in sounds(extractor.sampling_rate):
        with torch.inference_mode():
            wanted = model(**extractor(batch, sampling_rate=extractor.sampling_rate, filtered=True)).logits
        logits, probabilities = runs(batch)
        np.testing.assert_allclose(logits, wanted.numpy(), atol=1e-4)
        np.testing.assert_allclose(probabilities, model.probabilities(wanted).numpy(), atol=1e-5)
        for row, sound in zip(logits, batch, strict=True):
            np.testing.assert_allclose(runs([sound])[0][0], row, atol=1e-4)
    if extractor.frames(30):  # a sound of any length is repeated or padded
        (long, *_), *_ = sounds(extractor.sampling_rate)
        np.testing.assert_allclose(runs([long[-30:], long])[0][0], runs([long[-30:]])[0][0], atol=1e-4)


def test_openvino_runs_the_same_model(tiny_run, sounds, tmp_path):
    openvino = pytest.importorskip("openvino")
    out = tmp_path / "out"
    assert main(["export", str(tiny_run), "--format", "openvino", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} - {"README.md"} == {"model.xml", "model.bin", "openvino.json"}
    model, extractor = load_model(tiny_run)
    facts = json.loads((out / "openvino.json").read_text())
    assert facts["thresholds"] == model.config.thresholds and facts["largest_difference_of_logits"] < 1e-4
    runs = openvino.Core().compile_model(out / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in sounds(extractor.sampling_rate):
        if min(map(len, batch)) < extractor.front.min_samples:
            continue
        with torch.inference_mode():
            wanted = model(**extractor(batch, sampling_rate=extractor.sampling_rate, filtered=True)).logits
        found = runs(padded(batch))
        np.testing.assert_allclose(found["logits"], wanted.numpy(), atol=1e-4)
        np.testing.assert_allclose(found["probabilities"], model.probabilities(wanted).numpy(), atol=1e-5)


@pytest.mark.parametrize("which", ["tiny_run", pytest.param("frozen_run", marks=pytest.mark.soak)])
def test_a_run_is_exported_and_its_file_says_what_one_must_know(which, request, sounds, tmp_path, capsys):
    out, run = tmp_path / "out", request.getfixturevalue(which)
    assert main(["export", str(run), "--format", "onnx-int8", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert {p.name for p in out.iterdir()} - {"README.md"} == {
        "model_int8.onnx", "onnx.json", "preprocessor_config.json"
    }  # fmt: skip
    facts = json.loads((out / "onnx.json").read_text())
    int8 = facts["int8"]
    assert int8["part"] == "validation"
    if which == "frozen_run":  # of so few weights as the other one's the front end is the larger part
        assert int8["bytes_int8"] < 0.7 * int8["bytes_float"]
    model, extractor = load_model(run)
    assert facts["thresholds"] == model.config.thresholds and facts["recording_filter"] == extractor.recording_filter
    for name in model.config.label_names:
        loss = int8["auroc_float"][name] - int8["auroc_int8"][name]
        assert int8["auroc_loss"][name] == pytest.approx(loss) and abs(loss) < 0.05
        assert f"{name} {int8['auroc_int8'][name]:.4f} instead of {int8['auroc_float'][name]:.4f}" in said
    # the float figure is that of the run's own predictions
    import pandas as pd

    from laennec.evaluation.metrics import auroc

    table = pd.read_parquet(run / "predictions-validation.parquet")
    assert int8["cycles"] == len(table)
    for name, value in int8["auroc_float"].items():
        assert value == pytest.approx(auroc(table[name].to_numpy(), table[f"logit_{name}"].to_numpy()), abs=1e-3)
    assert str(Path(onnx.__file__).parent).encode() not in (out / facts["file"]).read_bytes()
    # a plain user of onnxruntime, by what the file itself says
    session = onnxruntime.InferenceSession(str(out / facts["file"]), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(facts["inputs"])
    sound = sounds(facts["sampling_rate"])[2][0]
    logits, probabilities, _ = session.run(None, {"waveforms": sound[None], "lengths": np.array([len(sound)])})
    divisor, offset = (np.array([facts[k][n] for n in facts["labels"]]) for k in ("temperatures", "intercepts"))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits / divisor - offset)), atol=1e-6)
    with torch.inference_mode():
        wanted = model(**extractor(sound, sampling_rate=facts["sampling_rate"], filtered=True)).logits.numpy()
    assert float(np.abs(logits - wanted).max()) < 0.5 and not np.array_equal(logits, wanted)


def test_float_runs_of_fixed_length_give_the_logits_of_torch(frozen_run, sounds, tmp_path):
    model, _ = load_model(frozen_run)
    extractor = LaennecFeatureExtractor("efficientat", length="repeat", duration_s=2.0, fade_s=0.1)
    onnx.write_onnx(tmp_path, model, extractor, frozen_run)
    compare(tmp_path / "model.onnx", model, extractor, sounds)


def test_what_cannot_be_exported_is_one_line(tiny_recipe, tiny_run, tmp_path, capsys, monkeypatch):
    recipe = Recipe(**(tiny_recipe | {"features": {"preset": "ast", "context_cycles": 1}}))
    recipe.train.max_steps, recipe.output_dir = 1, str(tmp_path / "run")
    run = train(recipe)
    assert main(["export", str(run), "--format", "onnx"]) == 2
    assert "uses concatenated context" in capsys.readouterr().err
    moved = tmp_path / "moved"
    model, extractor = load_model(tiny_run)
    model.save_pretrained(moved)
    extractor.save_pretrained(moved)
    with pytest.raises(InputError, match="compared on the validation cycles of a run"):
        onnx.write_onnx(tmp_path, model, extractor, moved, int8=True)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"laennec\[onnx\]"):
        onnx.write_onnx(tmp_path, model, extractor, tiny_run)
