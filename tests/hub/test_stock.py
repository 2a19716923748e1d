"""Runs as transformers' own AST: the same logits where laennec cannot even be imported."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import ASTForAudioClassification

from laennec.audio.features import LaennecFeatureExtractor
from laennec.audio.recording import read_recording
from laennec.cli.main import main
from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder
from laennec.evaluation.evaluate import load_model
from laennec.hub import stock
from laennec.modeling import LaennecForAudioClassification
from laennec.training.recipe import Recipe
from laennec.training.run import train

# in a process where `import laennec` fails
STOCK = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "laennec":
            raise ImportError("laennec is not installed here")
sys.meta_path.insert(0, Blocked())
import numpy as np, torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
folder, sounds = sys.argv[1:]
model = AutoModelForAudioClassification.from_pretrained(folder).eval()
extractor = AutoFeatureExtractor.from_pretrained(folder)
pipe = pipeline("audio-classification", model=folder, device="cpu")
answers = []
for sound in np.load(sounds).values():
    with torch.inference_mode():
        logits = model(**extractor(sound, sampling_rate=16000, return_tensors="pt")).logits[0]
    answers.append([logits.tolist(), {row["label"]: row["score"] for row in pipe(sound)}])
assert "laennec" not in sys.modules
print(json.dumps([type(model).__name__, type(extractor).__name__, model.config.thresholds, answers]))
"""


@pytest.fixture(scope="module")
def stock_run(small_corpus, tiny_ast, tmp_path_factory):
    """The recipe for stock models, on small things."""
    flags = {"corpus.name": "synthetic", "corpus.data_dir": str(small_corpus), "encoder.weights": str(tiny_ast)}
    flags |= {"corpus.protocol": "patient-60-20-20", "train.epochs": 1, "train.learning_rate": 1e-2}
    flags |= {"features.duration_s": 2.0}  # shorter than the table of positions: it is cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = Recipe.from_yaml("recipes/icbhi2017_official/stock_ast.yaml", **flags)
        recipe.output_dir = str(tmp_path_factory.mktemp("runs") / "stock")
        return train(recipe)


def test_a_stock_export_predicts_the_same_without_laennec(stock_run, shared_data, tmp_path, capsys):
    assert main(["export", str(stock_run), "--format", "stock", "--out", str(tmp_path / "out")]) == 0
    files = {p.name for p in (tmp_path / "out").iterdir()} - {"README.md"}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["ASTForAudioClassification"] and config["max_length"] == 200
    model, extractor = load_model(stock_run)
    assert model.config.temperatures and model.config.thresholds
    path = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[0]
    waveform = read_recording(path, 16000).waveform
    sounds = [waveform[:n] for n in (400, 6000, 31999, 32240, 32241, 90000)]
    np.savez(tmp_path / "sounds.npz", *sounds)
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(tmp_path / "out"), str(tmp_path / "sounds.npz")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kind, front_end, thresholds, answers = json.loads(done.stdout.splitlines()[-1])
    assert (kind, front_end) == ("ASTForAudioClassification", "ASTFeatureExtractor")
    assert thresholds == model.config.thresholds
    names = model.config.label_names
    for sound, (logits, scores) in zip(sounds, answers, strict=True):
        with torch.inference_mode():
            own = model(**extractor(sound, sampling_rate=16000)).logits
        calibrated = model.probabilities(own)[0]
        divisors, offsets = (list(model.config.per_label(name).values()) for name in ("temperatures", "intercepts"))
        wanted = own[0] / torch.tensor(divisors) + torch.tensor(offsets)
        assert logits == pytest.approx(wanted.tolist(), rel=1e-5, abs=1e-5)
        assert scores == pytest.approx(dict(zip(names, calibrated.tolist(), strict=True)), abs=1e-5)


@pytest.mark.parametrize(("frames", "positions"), [(256, "cut"), (120, "cut"), (120, "interpolate"), (400, "cut")])
def test_positions_and_folded_numbers_are_those_of_the_model(tiny_ast, tmp_path, frames, positions):
    """Any length, any choice of positions, a head with every number of its own."""
    torch.manual_seed(1)
    encoder = load_encoder(tiny_ast, time_positions=positions)
    extractor = LaennecFeatureExtractor("ast", length="zero_frames", duration_s=frames / 100, mean=-5.0, std=3.0)
    config = LaennecConfig(
        encoder_config=encoder.config,
        head_layer_norm=True, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2},
        temperatures={"a": 1.7, "c": 0.4}, intercepts={"a": 0.9, "b": -2.0},
    )  # fmt: skip
    model = LaennecForAudioClassification(config, encoder).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_()
        model.head.standardise(torch.randn(50, 16))
    assert stock.differences(model, extractor) == []
    for part in stock.to_stock(model, extractor):
        part.save_pretrained(tmp_path)
    stock.compare(tmp_path, model, extractor)
    again = ASTForAudioClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        again.classifier.dense.bias += 1e-3
    again.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="differ from the run"):
        stock.compare(tmp_path, model, extractor)


def test_what_stock_cannot_express_is_one_line_with_the_settings(tiny_run, tiny_recipe, tiny_ast, tmp_path, capsys):
    assert main(["export", str(tiny_run), "--format", "stock", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("laennec: ") and err.count("\n") == 1
    said = ("CnnEncoder", "encoder.type: ast", "features.preset: ast", "zero_frames", "head.layer_norm: true")
    assert all(part in err for part in said), err
    changed = {
        "features": {"preset": "ast", "filter_kind": "lowpass", "filter_cutoff_hz": 1000, "context_cycles": 1},
        "encoder": {"type": "ast", "weights": str(tiny_ast)},
        "head": {"pooling": "mean", "hidden_dim": 4},
    }
    recipe = Recipe(**(tiny_recipe | changed))
    recipe.train.max_steps, recipe.output_dir = 1, str(tmp_path / "run")
    assert main(["export", str(train(recipe)), "--format", "stock"]) == 2
    err = capsys.readouterr().err
    for setting in ("features.length: zero_frames", "filter_kind: null", "context_cycles: 0", "pooling: encoder",
                    "hidden_dim: 0", "layer_norm: true"):  # fmt: skip
        assert setting in err, err
    assert "encoder.type" not in err and "features.preset" not in err and not (tmp_path / "out").exists()


def test_a_head_with_a_layer_norm_is_standardised_behind_it(tiny_ast):
    encoder = load_encoder(tiny_ast)
    config = LaennecConfig(encoder_config=encoder.config, head_layer_norm=True, id2label={0: "a"}, label2id={"a": 0})
    model = LaennecForAudioClassification(config, encoder)
    embeddings = 100.0 * torch.randn(400, 16, generator=torch.Generator().manual_seed(0)) + 7.0
    model.head.standardise(embeddings)
    normed = torch.nn.functional.layer_norm(embeddings, (16,), eps=encoder.config.layer_norm_eps)
    torch.testing.assert_close(model.head.mean, normed.mean(0))
    torch.testing.assert_close(model.head.spread, normed.std(0, correction=0))
    expected = ((normed - model.head.mean) / model.head.spread) @ model.head.classifier.weight.T
    torch.testing.assert_close(model.head(embeddings), expected + model.head.classifier.bias)
