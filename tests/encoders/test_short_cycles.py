"""Cycles at the edge: shorter than a frame they are refused in one line, shorter than a patch they have an answer."""

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers_models import BERT, SPEECH, WHISPER

from laennec.audio.features import LaennecFeatureExtractor
from laennec.cli.main import main
from laennec.encoders import load_encoder
from laennec.errors import InputError

AST = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_length": 128,
    "layer_norm_eps": 1e-6,
}  # fmt: skip
BEATS = {
    "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 32, "patch_dim": 12,
    "position_kernel": 9, "position_groups": 2, "num_buckets": 16, "max_distance": 20,
}  # fmt: skip
# type -> front end, settings
CASES = {
    "mobilenet": ("efficientat", {"width_mult": 0.1}),
    "cnn": ("song2021", {"channels": [4, 8]}),
    "ast": ("ast", AST),
    "beats": ("beats", BEATS),
    "statistics": ("efficientat", {}),
    "whisper": ("whisper", WHISPER),
    "wav2vec2": ("waveform", SPEECH),
    "hubert": ("waveform", SPEECH),
    "wavlm": ("waveform", SPEECH),
    "wav2vec2-bert": ("w2v-bert", BERT),
}


@pytest.mark.parametrize("kind", CASES)
def test_from_one_frame_on_there_is_an_answer_that_company_does_not_change(kind):
    preset, settings = CASES[kind]
    torch.manual_seed(0)
    encoder, extractor = load_encoder(None, type=kind, **settings), LaennecFeatureExtractor(preset, length="natural")
    shortest = extractor.front.min_samples
    sound = np.random.default_rng(0).standard_normal(20000).astype(np.float32) * 0.1
    rate = extractor.sampling_rate
    with torch.inference_mode():
        for samples in (shortest, shortest + 1, 2 * shortest):
            alone = encoder(**extractor(sound[:samples], sampling_rate=rate)).pooler_output
            beside = encoder(**extractor([sound[:samples], sound], sampling_rate=rate)).pooler_output[:1]
            assert torch.isfinite(alone).all()
            torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=rf"waveform 0: {shortest - 1} samples .* one frame takes {shortest}"):
        extractor(sound[: shortest - 1], sampling_rate=rate)
    with pytest.raises(InputError, match=f"the waveforms have 8000 Hz but these features need {rate} Hz"):
        extractor(sound, sampling_rate=8000)


@pytest.mark.parametrize("kind", CASES)
def test_features_that_are_no_batch_of_frames_are_refused(kind):
    preset, settings = CASES[kind]
    encoder, size = load_encoder(None, type=kind, **settings), LaennecFeatureExtractor(preset).front.feature_size
    for shape, said in (((2, 0, size), "hold no frame"), ((0, 50, size), "hold no cycle"), ((50, size), "instead of")):
        with pytest.raises(InputError, match=said) as refused:
            encoder(input_values=torch.zeros(shape))
        assert "\n" not in str(refused.value) and ";" in str(refused.value)
    if kind != "cnn":  # which takes any number
        with pytest.raises(InputError, match=f"{size + 16}"):
            encoder(input_values=torch.zeros(2, 400, size + 16))


@pytest.fixture
def corpus(tmp_path):
    """A folder corpus of six patients whose cycles last a second, but for one that a test makes short."""

    def write(seconds):
        folder = tmp_path / "corpus"
        folder.mkdir(exist_ok=True)
        rows = ["recording,patient,start_s,end_s,label"]
        for number in range(12):
            sound = np.random.default_rng(number).standard_normal(8000).astype(np.float32) * 0.1
            soundfile.write(folder / f"r{number}.wav", sound, 4000)
            end = seconds if number == 3 else 1.0
            rows += [
                f"r{number},p{number},0,{end},{('normal', 'crackle')[number % 2]}",
                f"r{number},p{number},1,2,wheeze",
            ]
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")
        return folder

    return write


@pytest.mark.parametrize("kind", ["mobilenet", "ast", "beats", "whisper", "wav2vec2"])
def test_training_and_prediction_on_a_cycle_shorter_than_a_patch_and_than_a_frame(kind, corpus, tmp_path, capsys):
    preset, settings = CASES[kind]
    window_s = LaennecFeatureExtractor(preset).window_ms / 1000
    recipe = {
        "name": "short",
        "corpus": {"name": "folder", "data_dir": str(corpus(window_s + 0.005)), "protocol": "patient-60-20-20"},
        "features": {"preset": preset},
        "encoder": {"type": kind, "config": settings},
        "train": {"epochs": 1, "batch_size": 8, "selection_metric": "loss"},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = ["train", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "run")]
    assert main(command) == 0
    (tmp_path / "r3.txt").write_text(f"0\t{window_s + 0.005}\tcrackle\n")
    answer = ["predict", str(tmp_path / "run"), str(corpus(1.0) / "r3.wav"), "--annotation", str(tmp_path / "r3.txt")]
    assert main([*answer, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    corpus(window_s - 0.005)
    assert main([*command[:-1], str(tmp_path / "other")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "r3.wav: cycle at 0 to" in err and "shorter than one frame" in err
    assert not (tmp_path / "other").exists()
    (tmp_path / "r3.txt").write_text(f"0\t{window_s - 0.005}\tcrackle\n")
    assert main([*answer, "--out", str(tmp_path / "out2")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "r3.wav" in err and "shorter than one frame" in err
    assert "r3.wav" in (tmp_path / "out2" / "failed.csv").read_text() and not list((tmp_path / "out2").glob("r3*"))
