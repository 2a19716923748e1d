"""What a run in context answers in evaluation, the exported model answers for the same recordings and annotations."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from laennec.audio.context import cycles_in_context
from laennec.audio.cycles import read_annotation
from laennec.audio.recording import ButterworthFilter, read_recording
from laennec.cli.main import main
from laennec.training.recipe import Recipe
from laennec.training.run import train


@pytest.fixture(scope="module", params=["frozen mobilenet, k=1", "trained cnn, k=2, repeat"])
def run(request, tiny_recipe, released, tmp_path_factory):
    """A scored run in context, and its export."""
    frozen = request.param.startswith("frozen")
    settings = tiny_recipe | {"head": {"threshold_rule": "youden"}, "train": tiny_recipe["train"] | {"max_steps": 2}}
    if frozen:
        settings["features"] = {
            "preset": "efficientat", "filter_kind": "lowpass", "filter_cutoff_hz": 1500, "context_cycles": 1,
        }  # fmt: skip
        settings["encoder"] = {"type": "mobilenet", "weights": str(released), "trainable": "frozen"}
    else:
        settings["features"] = {"preset": "song2021", "length": "repeat", "duration_s": 1.5, "context_cycles": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        recipe = Recipe(**settings)
        recipe.output_dir = str(tmp_path_factory.mktemp("context") / "run")
        out = train(recipe)
        assert main(["evaluate", str(out)]) == 0
        assert main(["export", str(out), "--out", str(out.parent / "export")]) == 0
        return out


def test_evaluation_and_prediction_of_annotated_recordings_are_one(run, small_corpus, tmp_path):
    table = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    recordings = sorted(table.recording_id.unique())
    paths = [str(small_corpus / f"{name}.wav") for name in recordings]
    export = run.parent / "export"
    assert json.loads((export / "preprocessor_config.json").read_text())["context_cycles"] in (1, 2)
    command = ["predict", str(export), *paths, "--annotation", str(small_corpus), "--out", str(tmp_path)]
    assert main(command) == 0
    model = AutoModelForAudioClassification.from_pretrained(export)
    for name in recordings:
        rows = table[table.recording_id == name].sort_values("start_s")
        logits = torch.tensor(rows[["logit_crackle", "logit_wheeze"]].to_numpy())
        wanted = model.probabilities(logits)
        timeline = sorted(
            json.loads((tmp_path / f"{name}.laennec.json").read_text())["timeline"], key=lambda row: row["start_s"]
        )
        got = [[row["crackle_probability"], row["wheeze_probability"]] for row in timeline]
        assert np.abs(np.array(got) - wanted.numpy()).max() < 2e-6


def test_neighbours_matter_and_auto_classes_take_them(run, small_corpus):
    """The few lines that the README gives, against the run's own evaluation."""
    table = pd.read_parquet(run / "evaluation-test" / "predictions.parquet")
    name = table.recording_id.iloc[0]
    rows = table[table.recording_id == name].sort_values("start_s")
    model = AutoModelForAudioClassification.from_pretrained(run.parent / "export")
    features = AutoFeatureExtractor.from_pretrained(run.parent / "export")
    settings = features.recording_filter
    recording = read_recording(
        small_corpus / f"{name}.wav", features.sampling_rate, filter=ButterworthFilter(**settings) if settings else None
    )
    spans = [(c.start_s, c.end_s) for c in read_annotation(small_corpus / f"{name}.txt")]
    cycles = cycles_in_context(recording.waveform, features.sampling_rate, spans, features.context_cycles)
    with torch.inference_mode():
        logits = model(**features(cycles, sampling_rate=features.sampling_rate, filtered=True)).logits
        alone = model(**features([c.own for c in cycles], sampling_rate=features.sampling_rate, filtered=True)).logits
    np.testing.assert_allclose(logits.numpy(), rows[["logit_crackle", "logit_wheeze"]].to_numpy(), atol=1e-4)
    assert (logits - alone).abs().max() > 1e-3
