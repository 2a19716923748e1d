"""Runs that train a part of a transformer: scored, exported, answering recordings."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from laennec.cli.main import main
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.training.recipe import Recipe
from laennec.training.run import train
from runs import one_line

pytestmark = pytest.mark.usefixtures("unpainted")

LORA = {"trainable": "lora", "lora": {"rank": 2, "alpha": 8, "target_modules": ["q_proj", "v_proj", "fc1"]}}


@pytest.fixture(scope="module")
def base(shared_root):
    return shared_root / "conformance" / "beats_tiny.pt"


@pytest.fixture(scope="module")
def settings(tiny_recipe, base):
    return tiny_recipe | {
        "features": {"preset": "beats"},
        "encoder": {"type": "beats", "weights": str(base), **LORA},
        "sampler": {"name": "length_bucketed"},
        "train": tiny_recipe["train"] | {"learning_rate": 1e-2},
    }


def run(settings, out, **changes):
    recipe = Recipe(**(settings | changes))
    recipe.output_dir = str(out)
    return train(recipe)


@pytest.fixture(scope="module")
def lora_run(settings, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAENNEC_CACHE", str(tmp_path_factory.getbasetemp() / "laennec-cache"))
        return run(settings, tmp_path_factory.mktemp("runs") / "lora")


def weights(run):
    files = [run / "model" / "model.safetensors", *(run / "model").glob("adapter/*.safetensors")]
    return {name: value for file in files for name, value in load_file(file).items()}


def logits(model, extractor):
    sound = np.random.default_rng(0).standard_normal(2 * extractor.sampling_rate).astype(np.float32) * 0.1
    with torch.inference_mode():
        return model.eval()(**extractor(sound, sampling_rate=extractor.sampling_rate)).logits


def test_a_run_keeps_head_and_adapters_alone(lora_run, base):
    kept = weights(lora_run)
    assert all(n.startswith(("head.", "base_model.model.")) for n in kept) and sum(".lora_" in n for n in kept) == 12
    record = json.loads((lora_run / "run.json").read_text())
    assert record["config"]["encoder"]["trainable"] == "lora"
    model, _ = load_model(lora_run)
    original = load_encoder(base).state_dict()
    state = {n.replace(".base_layer.", "."): v for n, v in model.encoder.state_dict().items() if ".lora_" not in n}
    torch.testing.assert_close(state, dict(original), rtol=0, atol=0)
    assert any(float(v.abs().sum()) > 0 for n, v in kept.items() if ".lora_B." in n)


def test_a_lora_run_is_scored_and_predicts_recordings(lora_run, shared_data, tmp_path, capsys):
    assert main(["evaluate", str(lora_run), "--out", str(tmp_path / "e")]) == 0
    assert "ICBHI" in capsys.readouterr().out
    recording = sorted((shared_data / "icbhi2017_subset").glob("*.flac"))[0]
    assert main(["predict", str(lora_run), str(recording), "--out", str(tmp_path / "p"), "--format", "json"]) == 0


def test_a_lora_export_loads_alone_onto_its_base(lora_run, base, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    arguments = ["export", str(lora_run), "--format", "adapter", "--out", str(out), "--base-name", "someone/beats"]
    assert main(arguments) == 0
    assert "verified by loading it" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "adapter",
    }
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (out / "adapter").iterdir()}
    assert sum(p.stat().st_size for p in out.rglob("*") if p.is_file()) < 40_000
    assert (
        json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/beats"
    )
    wanted = logits(*load_model(lora_run))
    load_encoder(base).save_pretrained(tmp_path / "base")
    for place in (base, tmp_path / "base"):
        assert torch.equal(logits(*load_model(out, str(place))), wanted)
    theirs = PeftModel.from_pretrained(load_encoder(base), out / "adapter").eval()
    features = torch.randn(1, 64, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = load_model(lora_run)[0].embed(features)
        torch.testing.assert_close(theirs(input_values=features).pooler_output, ours)
    capsys.readouterr()
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "another-machine"))
    assert main(["predict", str(out), __file__, "--out", str(tmp_path / "p")]) == 2
    one_line(capsys, "someone/beats", "--base")


def test_a_full_export_has_the_adapters_merged_and_needs_no_base(lora_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(lora_run), "--out", str(out)]) == 0
    capsys.readouterr()
    config = json.loads((out / "config.json").read_text())
    assert config["lora"] is None and not any("lora" in name for name in load_file(out / "model.safetensors"))
    shutil.copytree(out, tmp_path / "elsewhere")
    model, extractor = load_model(tmp_path / "elsewhere")
    torch.testing.assert_close(logits(model, extractor), logits(*load_model(lora_run)), atol=1e-4, rtol=1e-4)


def test_formats_that_do_not_fit_the_run_are_refused(lora_run, tiny_run, base, tmp_path, capsys):
    assert main(["export", str(lora_run), "--format", "head"]) == 2
    one_line(capsys, "its encoder was trained", "--format lora or full")
    assert main(["export", str(tiny_run), "--format", "lora"]) == 2
    one_line(capsys, "has no adapters")
    other = load_encoder(base)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="not the encoder this head was trained on"):
        load_model(lora_run, str(tmp_path / "other"))


def test_adapters_and_last_layers_that_are_not_there_stop_before_training(settings, base, tmp_path):
    def refused(said, **encoder):
        with pytest.raises(InputError, match=said):
            run(settings, tmp_path / "out", encoder={"type": "beats", "weights": str(base), **encoder})
        assert not (tmp_path / "out").exists()

    refused("'query' names no linear layer", trainable="lora", lora={"target_modules": ["query"]})
    refused("has 2 layers: give 1 to 2", trainable="last_n", train_last_layers=3)


def test_adapters_on_the_encoder_of_a_model_are_merged_into_the_run(settings, lora_run, tmp_path):
    out = run(settings, tmp_path / "run", initial_model=str(lora_run), encoder={"type": "beats", **LORA})
    model, _ = load_model(out)
    assert model.config.lora is None and model.config.base_model_name_or_path is None
    assert json.loads((out / "run.json").read_text())["config"]["encoder"]["trainable"] == "lora"
