"""The two commands of the recipe lead from heart sounds to a scored model of lung sounds."""

import json
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

import audio_twins
from laennec.cli.main import main

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "sprsound" / "heart_to_lung_cnn.yaml"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.usefixtures("unpainted")
def test_the_commands_of_the_recipe_lead_from_heart_sounds_to_a_scored_model(
    small_corpus, some_recordings, tmp_path, monkeypatch
):
    pretrain, train = (
        shlex.split(line.removeprefix("#   laennec "))
        for line in RECIPE.read_text().splitlines()
        if line.startswith("#   laennec ")
    )
    audio_twins.physionet2016(tmp_path / "data" / "challenge-2016", some_recordings)
    (tmp_path / pretrain[1]).parent.mkdir(parents=True)
    (tmp_path / pretrain[1]).write_text(RECIPE.read_text())
    monkeypatch.chdir(tmp_path)
    small = ["--pretrain.max_steps", "3", "--pretrain.batch_size", "8", "--encoder.config.channels", "[4, 8]"]
    assert main([*pretrain, *small]) == 0
    heart = Path("runs/sprsound_heart_to_lung_cnn-pretrain")
    record = json.loads((heart / "pretrain.json").read_text())
    assert record["corpus"]["name"] == "physionet2016" and record["windows"] == record["cycles"] == 20 * 3
    assert record["pairs"] == "same_recording" and record["history"][0]["loss_terms"]["ntxent"] > 0

    corpus = ["--corpus.name", "synthetic", "--corpus.data_dir", str(small_corpus)]
    corpus += ["--corpus.protocol", "patient-60-20-20"]
    # a learning rate of 0 keeps the weights of the encoder
    assert main([*train, *corpus, "--train.max_steps", "2", "--train.learning_rate", "0"]) == 0
    run = Path("runs/sprsound_heart_to_lung_cnn")
    trained = json.loads((run / "run.json").read_text())
    assert trained["corpus"]["name"] == "synthetic"
    assert trained["pretraining"]["corpus_fingerprint"] == record["corpus"]["fingerprint"]
    before, after = load_file(heart / "encoder" / "model.safetensors"), load_file(run / "model" / "model.safetensors")
    learnt = [name for name in before if name.endswith("weight")]
    assert learnt and all(before[name].equal(after[f"encoder.{name}"]) for name in learnt)
    assert main(["evaluate", str(run)]) == 0
    values = json.loads((run / "evaluation-test" / "metrics.json").read_text())["values"]
    assert 0 <= values["icbhi.Score"] <= 100
