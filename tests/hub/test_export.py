"""What is exported loads elsewhere and answers as the run does."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from laennec.cli.main import main
from laennec.encoders import load_encoder
from laennec.errors import InputError
from laennec.evaluation.evaluate import load_model
from laennec.hub import export
from laennec.modeling import LaennecForAudioClassification
from runs import one_line

FULL = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def logits(model, extractor, seconds=2.0):
    sound = np.random.default_rng(0).standard_normal(int(seconds * extractor.sampling_rate)).astype(np.float32) * 0.1
    with torch.inference_mode():
        return model.eval()(**extractor(sound, sampling_rate=extractor.sampling_rate)).logits


@pytest.mark.parametrize("which", ["tiny_run", "frozen_run"])
def test_a_full_export_stands_alone_and_predicts_the_same_bits(which, request, tmp_path, capsys):
    run = request.getfixturevalue(which)
    assert main(["export", str(run), "--format", "full", "--out", str(tmp_path / "out")]) == 0
    assert "verified by loading it" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == FULL
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    if which == "frozen_run":  # nothing of the base's place may be needed
        config["base_model_name_or_path"] = "/nowhere/base.pt"
        (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "out")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    ours, front_end = load_model(run)
    assert torch.equal(logits(model, extractor), logits(ours, front_end))
    assert model.config.thresholds == ours.config.thresholds and model.config.temperatures == ours.config.temperatures
    assert extractor.recording_filter == front_end.recording_filter


def test_a_head_export_is_a_few_kilobytes_and_loads_with_its_base(frozen_run, released, tmp_path, capsys, monkeypatch):
    out = tmp_path / "head"
    base_name = "someone/mn04"
    assert main(["export", str(frozen_run), "--format", "head", "--out", str(out), "--base-name", base_name]) == 0
    assert {p.name for p in out.iterdir()} == FULL and (out / "model.safetensors").stat().st_size < 20_000
    config = json.loads((out / "config.json").read_text())
    assert config["base_model_name_or_path"] == base_name and len(config["encoder_digest"]) == 64
    wanted = logits(*load_model(frozen_run))
    load_encoder(released).save_pretrained(tmp_path / "base")
    for base in (str(released), str(tmp_path / "base")):
        assert torch.equal(logits(*load_model(out, base)), wanted)
    capsys.readouterr()
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "another-machine"))
    assert main(["predict", str(out), __file__, "--out", str(tmp_path / "p")]) == 2
    one_line(capsys, "someone/mn04", "--base")


def test_the_default_folder_is_in_the_run_and_is_replaced_by_the_next_export(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for _ in range(2):
        assert main(["export", str(run)]) == 0
    assert {p.name for p in (run / "export-full").iterdir()} == FULL
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "onyx"], "unknown format 'onyx'"),
        (["--format", "head"], "its encoder was trained"),
        (["--out", "FOREIGN"], "holds other files (thesis.txt)"),
        (["--out", "FOREIGN/thesis.txt"], "is a file"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tiny_run, tmp_path, capsys, arguments, said):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    (foreign / "thesis.txt").write_text("precious")
    arguments = [a.replace("FOREIGN", str(foreign)) for a in arguments]
    before = sorted(p.name for p in tiny_run.iterdir())
    assert main(["export", str(tiny_run), *arguments]) == 2
    one_line(capsys, said)
    assert sorted(p.name for p in foreign.iterdir()) == ["config.json", "thesis.txt"]
    assert sorted(p.name for p in tiny_run.iterdir()) == before


def test_an_export_that_predicts_differently_is_not_kept(tiny_run, tmp_path, monkeypatch):
    """The check after writing is not for show."""
    honest = LaennecForAudioClassification.save_pretrained

    def spoilt(self, folder, **settings):
        honest(self, folder, **settings)
        with torch.no_grad():
            self.head.classifier.bias += 1e-3

    monkeypatch.setattr(LaennecForAudioClassification, "save_pretrained", spoilt)
    with pytest.raises(InputError, match="differs from the run"):
        export.export_run(tiny_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_projection_that_only_training_needs_stays_behind(tiny_recipe, tmp_path):
    from laennec.training.recipe import Recipe
    from laennec.training.run import train

    recipe = Recipe(**(tiny_recipe | {"head": {"projection_dim": 8}, "loss": {"auxiliary": {"supcon": {"views": 1}}}}))
    recipe.train.epochs = 1
    recipe.output_dir = str(tmp_path / "run")
    run = train(recipe)
    out = export.export_run(run)
    model, extractor = load_model(out)
    assert model.projection is None
    assert torch.equal(logits(model, extractor), logits(*load_model(run)))
