"""What a run in context answers in evaluation, the exported model answers for the same recordings and annotations."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from laennec.audio.context import cycles_in_context
from laennec.audio.cycles import cut, prediction_windows, read_annotation
from laennec.audio.recording import ButterworthFilter, read_recording
from laennec.cli.main import main
from laennec.inference.decisions import probabilities_of
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


def test_windows_of_a_real_recording_are_predicted_in_context(run, shared_data, tmp_path):
    export = run.parent / "export"
    path = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[0]
    assert main(["predict", str(export), str(path), "--out", str(tmp_path), "--window-s", "2", "--hop-s", "1.25"]) == 0
    timeline = json.loads((tmp_path / f"{Path(path).stem}.laennec.json").read_text())["timeline"]
    model = AutoModelForAudioClassification.from_pretrained(export)
    features = AutoFeatureExtractor.from_pretrained(export)
    rate, k = features.sampling_rate, features.context_cycles
    filter_ = ButterworthFilter(**features.recording_filter) if features.recording_filter else None
    recording = read_recording(path, rate, filter=filter_)
    end = recording.duration_s
    plain = type(features).from_dict({**features.to_dict(), "context_cycles": 0})
    spans = prediction_windows(end, 2.0, 1.25)
    assert len(timeline) == len(spans) > 6
    for place in (0, 1, 3, len(spans) - 2, len(spans) - 1):
        start = spans[place][0]
        around = [(max(start + 2 * i, 0), min(start + 2 * i + 2, end)) for i in range(-k, k + 1)]
        frames = [
            plain(cut(recording.waveform, rate, *span), sampling_rate=rate, filtered=True).input_values
            for span in around
            if span[1] - span[0] >= 1 - 1e-3
        ]
        own = plain(cut(recording.waveform, rate, *spans[place]), sampling_rate=rate, filtered=True).input_values
        with torch.inference_mode():
            logits = model(own, context_values=torch.cat(frames, 1)).logits.numpy()
        wanted = probabilities_of(model.config, logits, "windows")[0]
        got = [timeline[place]["crackle_probability"], timeline[place]["wheeze_probability"]]
        assert got == pytest.approx(wanted.tolist(), abs=1e-4)
