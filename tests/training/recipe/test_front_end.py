"""Recipes whose features do not match their encoder are refused before anything is computed."""

import json

import pytest
from transformers import HubertConfig

from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.training.recipe import Recipe
from laennec.training.run import train

HUBERT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": [4] * 7,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    """A tiny HuBERT with random weights, in the folder layout of a download."""
    folder = tmp_path_factory.mktemp("hubert")
    load_encoder(None, type="hubert", **HUBERT).save_pretrained(folder)
    return folder


def recipe(tiny_recipe, tmp_path, encoder, preset, **more):
    values = tiny_recipe | {"encoder": encoder, "features": {"preset": preset}, "output_dir": str(tmp_path / "run")}
    return Recipe(**(values | more))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_waveform_encoder_runs_as_a_recipe(tiny_recipe, hubert, tmp_path, frozen):
    encoder = {"type": "hubert", "weights": str(hubert), "trainable": "frozen" if frozen else "full"}
    augment = {"gain": {"probability": 0.5}}
    out = train(
        recipe(tiny_recipe, tmp_path, encoder, "waveform", train={"max_steps": 2, "batch_size": 4}, augment=augment)
    )
    assert json.loads((out / "run.json").read_text())["config"]["encoder"]["type"] == "hubert"


@pytest.mark.parametrize(
    ("encoder", "preset", "said"),
    [
        ({"type": "whisper", "config": {"encoder_layers": 1}}, "ast", "made for whisper; set features.preset: whisper"),
        ({"type": "whisper", "config": {"num_mel_bins": 128}}, "whisper", "set features.preset: whisper-128"),
        ({"type": "hubert", "config": HUBERT}, "whisper", "made for waveform or waveform-raw"),
        ({"type": "clap", "config": {"enable_fusion": True}}, "clap", "set features.preset: clap-fused"),
    ],
)
def test_another_preset(tiny_recipe, tmp_path, encoder, preset, said):
    with pytest.raises(InputError, match=said):
        train(recipe(tiny_recipe, tmp_path, encoder, preset))
    assert not (tmp_path / "run").exists()


def test_masks_on_waveforms(tiny_recipe, tmp_path):
    augment = {"spec": {"probability": 0.5}}
    with pytest.raises(InputError, match=r"augment.spec masks mel bins.*'waveform' has none"):
        train(recipe(tiny_recipe, tmp_path, {"type": "hubert", "config": HUBERT}, "waveform", augment=augment))


@pytest.mark.parametrize(
    ("published", "preset", "said"),
    [
        ({"sampling_rate": 8000}, "waveform", "made for 8000 Hz.*gives 16000 Hz"),
        ({"sampling_rate": 16000, "do_normalize": False}, "waveform", "set features.preset: waveform-raw"),
        ({"sampling_rate": 16000, "do_normalize": True}, "waveform-raw", "set features.preset: waveform$"),
    ],
)
def test_what_the_checkpoint_says_of_its_features_counts(tiny_recipe, tmp_path, published, preset, said):
    load_encoder(None, type="hubert", **HUBERT).save_pretrained(tmp_path / "base")
    assert HubertConfig.from_pretrained(tmp_path / "base").hidden_size == 16
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(published))
    with pytest.raises(InputError, match=said):
        train(recipe(tiny_recipe, tmp_path, {"type": "hubert", "weights": str(tmp_path / "base")}, preset))
    assert not (tmp_path / "run").exists()
