"""The model in the package: its weights, card and recorded predictions match. `make box-model` makes all three.

Run as a script, this file records the digest of the weights and the predictions for a synthetic sound.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

import laennec
from laennec.cli.main import main

RECORD = Path(__file__).with_name("golden") / "default_model.json"
MODEL = Path(laennec.DEFAULT_MODEL)


def sound_file(folder: Path) -> Path:
    """Six seconds of breath-like noise with a whistling tone and some clicks."""
    rate, rng = 8000, np.random.default_rng(7)
    t = np.arange(6 * rate) / rate
    sound = rng.standard_normal(len(t)) * 0.02 * (1 + np.sin(2 * np.pi * 0.4 * t))
    sound[16_000:28_000] += 0.1 * np.sin(2 * np.pi * 380 * t[16_000:28_000])
    sound[rng.integers(32_000, len(t), 60)] += 0.3
    path = folder / "sound.wav"
    soundfile.write(path, sound.astype(np.float32), rate, subtype="FLOAT")
    return path


def made(folder: Path) -> dict:
    """The digest of the weights and the predictions for the sound."""
    prediction = laennec.Predictor(*laennec.load_model())(sound_file(folder))
    return {
        "sha256": hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest(),
        "labels": prediction.labels,
        "probabilities": prediction.probabilities.round(5).tolist(),
    }


def test_weights_and_predictions_are_those_on_record(tmp_path):
    recorded, found = json.loads(RECORD.read_text()), made(tmp_path)
    assert found["sha256"] == recorded["sha256"] and found["labels"] == recorded["labels"]
    np.testing.assert_allclose(found["probabilities"], recorded["probabilities"], atol=1e-4)
    assert (MODEL / "model.safetensors").stat().st_size <= 4_000_000


def test_the_card_states_scores_limits_and_licences():
    card = (MODEL / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    summary = json.loads((MODEL / "config.json").read_text())["summary"]
    scored = {result["dataset"]["name"] for result in metadata["model-index"][0]["results"]}
    assert scored == {"sprsound", "icbhi2017"} and metadata["license"] == "apache-2.0"
    for result in metadata["model-index"][0]["results"]:
        for metric in result["metrics"]:
            if metric["name"].endswith("AUROC"):
                shown = re.findall(rf"{metric['name']} (\d\.\d+)", summary)
                assert any(abs(float(value) - metric["value"]) <= 0.00055 for value in shown)
    assert "children" in card and "not a medical device" in card
    assert "MIT (EfficientAT" in card
    assert "/work" not in card + summary


def test_predict_names_the_training_data_whatever_the_description_is(tmp_path, capsys):
    model = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["summary"] = "Ours. Second try; quick; trained on Ward (3 patients). test (2 patients): ICBHI Score 50.0"
    (model / "config.json").write_text(json.dumps(config))
    assert main(["predict", str(model), str(sound_file(tmp_path)), "--backend", "torch"]) == 0
    assert f"model: {model}; trained on Ward (3 patients)\n" in capsys.readouterr().out


def test_predict_needs_no_model_named_and_says_which_one_it_uses(tmp_path, capsys):
    sound = sound_file(tmp_path)
    assert main(["predict", str(sound)]) == 0
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("model: "))
    assert line.startswith("model: the model in the package; trained on SPRSound") and len(line) < 120 and not err
    assert out.splitlines()[0] == f"{sound} (6.0 s)" and "not a medical device" in out
    assert main(["predict", str(sound), "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "sound.laennec.json").read_text())["timeline"]
    capsys.readouterr()
    assert main(["predict", str(sound), "--window-s", "-1"]) == 2
    assert "model:" not in "".join(capsys.readouterr())  # only the wrong flag is reported
    assert len(rows) == 5 and f"{rows[0]['crackle_probability']:.2f}" in out


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transformers_pipeline_takes_it(tmp_path):
    from transformers import pipeline

    sound = sound_file(tmp_path)
    rows = pipeline("audio-classification", model=laennec.DEFAULT_MODEL, device="cpu")(str(sound))
    assert {row["label"] for row in rows} == {"crackle", "wheeze"}


if __name__ == "__main__":
    RECORD.write_text(json.dumps(made(Path(sys.argv[1] if len(sys.argv) > 1 else ".")), indent=1) + "\n")
