"""Self-supervised pre-training from a recipe to an encoder that training starts from."""

import json
import math
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from transformers import ASTConfig

from forked import ranks
from laennec import load_encoder
from laennec.cli.main import main
from laennec.corpora import load_corpus
from laennec.encoders import AstEncoder, encoder_digest
from laennec.errors import InputError
from laennec.training.data.split_data import make_extractor
from laennec.training.pretraining.run import contrastive_loss, embedding_spread, make_pairs, pretrain, settings_of
from laennec.training.recipe import Recipe, full_key
from laennec.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
QUICK = {"epochs": 2, "batch_size": 8, "views": ["split", "spec"], "learning_rate": 1e-3}


def recipe_of(settings, out, pretraining=None, **changes):
    recipe = Recipe(**(settings | {"pretrain": QUICK | (pretraining or {})} | changes))
    recipe.output_dir = str(out)
    return recipe


def record_of(run):
    return json.loads((run / "pretrain.json").read_text())


def weights(run):
    return load_file(run / "encoder" / "model.safetensors")


def test_a_run_leaves_an_encoder_and_a_record(tiny_recipe, tmp_path):
    run = pretrain(recipe_of(tiny_recipe, tmp_path / "run"), command="laennec pretrain tiny.yaml")
    record = record_of(run)
    assert record["encoder_digest"] == encoder_digest(load_encoder(run / "encoder"))
    assert record["corpus"]["provenance"]["split_fingerprint"] and len(record["corpus"]["fingerprint"]) == 64
    assert record["seeds"] == {"recipe": 0} and record["versions"]["torch"] and record["timings"]["total"] > 0
    assert record["config"]["pretrain"]["views"] == ["split", "spec"] and record["initialised_from"] == "random"
    assert [row["epoch"] for row in record["history"]] == [1.0, 2.0]
    assert all(set(row["loss_terms"]) == {"ntxent"} for row in record["history"])
    assert record["losses"]["ntxent"].startswith("NTXentLoss(") and record["command"] == "laennec pretrain tiny.yaml"
    assert not (run / "checkpoints").exists()
    with pytest.raises(InputError, match="holds a finished run"):
        pretrain(recipe_of(tiny_recipe, tmp_path / "run"))
    with pytest.raises(InputError, match="holds a finished run"):
        train(recipe_of(tiny_recipe, tmp_path / "run"))


def test_the_loss_goes_down_and_the_embedding_does_not_collapse(tiny_recipe, tmp_path):
    chosen = {"epochs": 7, "views": ["split"], "temperature": 0.1, "learning_rate": 1e-2}
    record = record_of(pretrain(recipe_of(tiny_recipe, tmp_path / "run", chosen)))
    losses = [row["loss"] for row in record["history"]]
    assert losses[0] < math.log(2 * 8 - 1) and losses[-1] < 0.75 * losses[0]
    before, after = record["embeddings"]["before"], record["embeddings"]["after"]
    assert after["mean_cosine"] < before["mean_cosine"] and after["spread"] > before["spread"]


@pytest.mark.parametrize(
    ("pairs", "more"),
    [
        ("same_recording", {"match": ["sex"], "negatives": "other_patients"}),
        ("self", {"init": "random", "optimizer": "adam", "base_temperature": 0.5, "save_steps": 1}),
    ],
)
def test_pairs_negatives_and_steps_of_other_kinds_train(tiny_recipe, small_corpus, tmp_path, pairs, more):
    chosen = {"pairs": pairs, "max_steps": 2, **more}
    record = record_of(pretrain(recipe_of(tiny_recipe, tmp_path / "run", chosen)))
    assert math.isfinite(record["history"][0]["loss_terms"]["ntxent"]) and record["pairs"] == pairs
    here = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")["train"]
    left_out = sum(count for what, count in record["left_out"].items() if what.startswith("cycles"))
    assert record["cycles"] + left_out == len(here)


def test_two_processes_of_half_the_batch_give_the_encoder_of_one(tiny_recipe, tmp_path):
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    AstEncoder._from_config(config).save_pretrained(tmp_path / "ast")
    settings = tiny_recipe | {
        "encoder": {"type": "ast", "weights": str(tmp_path / "ast")},
        "features": {"preset": "ast", "length": "natural"},
        "pretrain": QUICK | {"max_steps": 3, "max_duration_s": 0.5},
    }  # fmt: skip
    one = pretrain(recipe_of(settings, tmp_path / "one", settings["pretrain"]))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    command = ["pretrain", str(tmp_path / "recipe.yaml"), "--batch_size", "4", "--output_dir", str(tmp_path / "two")]
    done = ranks(2, lambda: main(command))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("encoder: ") == 1
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights(one)[name], rtol=1e-4, atol=1e-4, msg=name)
    assert record_of(tmp_path / "two")["history"][0]["loss"] == pytest.approx(
        record_of(one)["history"][0]["loss"], 1e-4
    )
    load_encoder(one / "encoder", type="ast")


def test_training_takes_the_encoder_up_and_refuses_to_be_tested_on_its_patients(tiny_recipe, tmp_path):
    run = pretrain(recipe_of(tiny_recipe, tmp_path / "pre", {"max_steps": 2}))
    encoder = {"type": "cnn", "weights": str(run / "encoder"), "trainable": "frozen"}
    trained = train(recipe_of(tiny_recipe, tmp_path / "run", encoder=encoder))
    record = json.loads((trained / "run.json").read_text())
    assert record["pretraining"]["protocol"] == "patient-60-20-20"
    head = json.loads((trained / "model" / "config.json").read_text())
    assert head["encoder_digest"] == record_of(run)["encoder_digest"]
    with pytest.raises(InputError, match="was pre-trained on patients of test"):
        train(
            recipe_of(
                tiny_recipe, tmp_path / "other", encoder=encoder, corpus=tiny_recipe["corpus"] | {"split_seed": 1}
            )
        )


def folder_of(root, recordings, seconds, rate=4000):
    root.mkdir()
    generator = np.random.default_rng(0)
    for number in range(recordings):
        soundfile.write(root / f"p{number:02d}.wav", 0.1 * generator.standard_normal(seconds * rate), rate)
    return root


def unlabelled(tiny_recipe, folder, **corpus):
    options = {"unlabelled": True}
    return tiny_recipe | {"corpus": {"name": "folder", "data_dir": str(folder), "options": options, **corpus}}


def test_a_folder_that_nobody_annotated_is_enough(tiny_recipe, tmp_path):
    folder = folder_of(tmp_path / "sounds", 10, 7)
    settings = unlabelled(tiny_recipe, folder, protocol="patient-60-20-20")
    record = record_of(pretrain(recipe_of(settings, tmp_path / "run", {"max_steps": 2, "batch_size": 4})))
    assert record["windows"] == record["cycles"] == 3 * len(record["patients"]) == 18
    everything = unlabelled(tiny_recipe, folder, protocol="none")
    record = record_of(pretrain(recipe_of(everything, tmp_path / "all", {"max_steps": 2, "batch_size": 4})))
    assert record["cycles"] == 30 and record["corpus"]["provenance"]["protocol"] == "none"


def test_memory_does_not_grow_with_the_number_of_recordings(tiny_recipe, tmp_path, monkeypatch):
    def peak(recordings):
        monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / f"cache{recordings}"))
        folder = folder_of(tmp_path / f"sounds{recordings}", recordings, 60)
        recipe = recipe_of(unlabelled(tiny_recipe, folder, protocol="none"), tmp_path / "run")
        extractor = make_extractor(recipe.features)
        tracemalloc.start()
        try:
            part = make_pairs(recipe, settings_of(recipe), extractor)
            samples = sum(len(part.dataset[(row, 0)]["waveform"]) for row in range(len(part.dataset)))
            return tracemalloc.get_traced_memory()[1], samples
        finally:
            tracemalloc.stop()

    peak(2)  # imports
    (few, heard), (many, heard_many) = peak(4), peak(16)
    assert heard_many == 4 * heard and 4 * (heard_many - heard) > 15e6  # bytes of additional sound
    assert many - few < 2e6


def test_the_loss_is_that_of_soni_or_supcon_by_age(tiny_recipe, tmp_path):
    scaled = recipe_of(tiny_recipe, tmp_path, {"temperature": 0.5, "base_temperature": 0.07})
    loss = contrastive_loss(scaled.pretrain)[0].loss
    assert (loss.temperature, loss.base_temperature) == (0.5, 0.07)
    plain = recipe_of(tiny_recipe, tmp_path, {"temperature": 0.5})
    loss = contrastive_loss(plain.pretrain)[0].loss
    assert loss.temperature == loss.base_temperature == 0.5


def test_spread_detects_a_collapsed_embedding(tiny_recipe, tmp_path):
    recipe = recipe_of(tiny_recipe, tmp_path)
    extractor = make_extractor(recipe.features)
    part = make_pairs(recipe, recipe.pretrain, extractor)

    class Model(torch.nn.Module):
        def __init__(self, collapsed):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.config = None
            self.collapsed, self.embedding_dim = collapsed, 8

        def embed(self, values, mask):
            draw = torch.Generator().manual_seed(int(values.sum().abs()))
            varied = torch.randn(len(values), 8, generator=draw)
            return torch.ones(len(values), 8) + 1e-3 * varied if self.collapsed else varied

    alike, varied = (embedding_spread(Model(c), extractor, part.dataset) for c in (True, False))
    assert alike["mean_cosine"] > 0.99 and alike["spread"] < 0.01
    assert abs(varied["mean_cosine"]) < 0.3 and varied["spread"] > 0.8 and varied["effective_rank"] > 5


# ---------------------------------------------------------------- command line


@pytest.fixture
def written(tiny_recipe, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe | {"pretrain": QUICK}))
    return path


def test_the_command_says_where_the_encoder_is_and_what_comes_next(written, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "pretrain",
        str(written),
        "--output_dir",
        str(out),
        "--epochs",
        "1",
        "--max_steps=1",
        "--batch_size",
        "4",
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    assert f"next: laennec train {written} --encoder.weights {out / 'encoder'}" in said.out and said.err == ""
    config = record_of(out)["config"]
    assert config["pretrain"]["max_steps"] == 1 and config["pretrain"]["batch_size"] == 4
    assert config["train"]["batch_size"] == 8 and config["train"]["max_steps"] == -1
    assert main(["train", str(written), "--encoder.weights", str(out / "encoder"), "--output_dir", str(tmp_path / "t"),
                 "--max_steps", "1"]) == 0  # fmt: skip


def test_short_flags_mean_the_settings_of_their_step(written):
    assert Recipe.from_yaml(written, epochs=7).train.epochs == 7
    assert full_key(Recipe, "epochs", step="pretrain") == "pretrain.epochs"
    assert Recipe.from_yaml(written, init="random").pretrain.init == "random"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pairs", "twins"], "pretrain.pairs is 'twins'; it must be 'self'"),
        (["--pretrain.viwes", "[raw]"], "unknown key 'pretrain.viwes'; did you mean 'pretrain.views'?"),
        (["--views", "[mirror]"], "pretrain.views is 'mirror'"),
        (["--splits", "[train, test]"], "pretrain.splits is 'test'"),
        (["--batch_size", "1000"], "pretrain.batch_size is 1000"),
        (["--match", "[height]"], "pretrain.match has 'height'"),
        (["--corpus.protocol", "sprsound-official"], "synthetic has no protocol 'sprsound-official'"),
        (["--encoder.type", "statistics"], "nothing to pre-train"),
        (["--encoder.weights", "nowhere/encoder"], "nowhere/encoder: not found"),
        (["--corpus.name", "folder", "--corpus.data_dir", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(written, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = [*flags, "--encoder.config", "{}"] if flags[0].startswith("--encoder") else flags
    assert main(["pretrain", str(written), "--output_dir", str(tmp_path / "out"), *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith("laennec: ") and err.splitlines()[-1].startswith("laennec: ") and words in err
    assert "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_recipe_without_the_section_says_so(tiny_recipe, tmp_path, capsys):
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    assert main(["pretrain", str(path)]) == 2
    assert "has no section pretrain; add one" in capsys.readouterr().err
