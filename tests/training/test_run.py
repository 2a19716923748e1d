import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from forked import ranks
from laennec.audio.features import LaennecFeatureExtractor
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.evaluation import predictions_metrics
from laennec.modeling import LaennecForAudioClassification
from laennec.training import run as experiment
from laennec.training.data.split_data import labelled_split, load_splits, make_extractor
from laennec.training.recipe import Recipe
from laennec.training.run import train


def run(settings, out, **changes):
    recipe = Recipe(**(settings | changes))
    recipe.output_dir = str(out)
    return train(recipe)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_a_run_leaves_model_predictions_and_record(tiny_run):
    record = json.loads((tiny_run / "run.json").read_text())
    assert record["selection_set"] == "validation"
    assert record["corpus"]["provenance"]["protocol"] == "patient-60-20-20"
    assert len(record["corpus"]["provenance"]["split_fingerprint"]) == 64
    assert record["versions"]["torch"] and record["hardware"]["cores"] and record["timings"]["total"] > 0
    assert record["losses"]["add"].startswith("AngularDistanceDistributionLoss(") and "paper" in record["losses"]["add"]
    predictions = pd.read_parquet(tiny_run / "predictions-validation.parquet")
    assert len(predictions) == record["cycles"]["validation"] and set(predictions["split"]) == {"validation"}
    assert predictions[["logit_crackle", "logit_wheeze"]].notna().all(axis=None)
    assert not (tiny_run / "checkpoints").exists()


def test_loss_terms_are_logged_by_name_and_add_up(tiny_run):
    history = json.loads((tiny_run / "run.json").read_text())["history"]
    assert [h["epoch"] for h in history] == [1.0, 2.0]
    for row in history:
        assert set(row["loss_terms"]) == {"bce", "add_mu_pos", "add_sigma_pos", "add_mu_neg", "add_sigma_neg"}
        assert math.isclose(sum(row["loss_terms"].values()), row["loss"], rel_tol=1e-3)
        assert "icbhi.Score" in row["validation"]


def test_thresholds_and_temperatures_come_from_validation(tiny_run):
    record = json.loads((tiny_run / "run.json").read_text())
    assert record["operating_points"]["fitted_on"]["split"] == "validation"
    config = LaennecForAudioClassification.from_pretrained(tiny_run / "model").config
    assert set(config.thresholds) == {"crackle", "wheeze"} and set(config.temperatures) == {"crackle", "wheeze"}


@pytest.mark.parametrize(("encoder", "metric"), [("cnn", "loss"), ("ast", "auroc_macro")])
def test_the_best_epoch_is_restored_not_the_last(tiny_recipe, tiny_ast, tmp_path, encoder, metric):
    """Independent of the names of the encoder's weights."""
    settings = {"epochs": 4, "batch_size": 8, "selection_metric": metric}
    # learning rates so large that the epochs differ and the last one is not the best
    settings |= {"learning_rate": 0.05, "lr_scheduler_type": "constant"}
    other = {"features": {"preset": "ast"}, "encoder": {"type": "ast", "weights": str(tiny_ast)}}
    out = run(tiny_recipe, tmp_path / "run", train=settings, **other if encoder == "ast" else {})
    record = json.loads((out / "run.json").read_text())
    table = pd.read_parquet(out / "predictions-validation.parquet")
    if metric == "loss":
        logits = torch.tensor(table[["logit_crackle", "logit_wheeze"]].to_numpy())
        truth = torch.tensor(table[["crackle", "wheeze"]].to_numpy(dtype=float))
        found = float(torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), truth))
        by_epoch, best = {h["epoch"]: h["validation"]["loss"] for h in record["history"]}, min
    else:
        values = predictions_metrics(table, problem_type="multi_label", label_names=["crackle", "wheeze"])["values"]
        found = values["roc_auc_macro"]
        by_epoch, best = {h["epoch"]: h["validation"]["roc_auc_macro"] for h in record["history"]}, max
        assert record["best_metric"] == max(by_epoch.values())
    assert len(by_epoch) == 4 and len(set(by_epoch.values())) > 1
    assert record["best_epoch"] == best(by_epoch, key=by_epoch.get)
    assert math.isclose(found, best(by_epoch.values()), rel_tol=1e-3 if metric == "loss" else 1e-9)


def test_early_stopping_ends_before_the_last_epoch(tiny_recipe, tmp_path):
    settings = {
        "epochs": 30,
        "batch_size": 8,
        "selection_metric": "loss",
        "patience": 1,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
    }
    record = json.loads((run(tiny_recipe, tmp_path / "run", train=settings) / "run.json").read_text())
    assert len(record["history"]) < 30


def test_what_tensorboard_logged_is_kept_when_the_checkpoints_go(tiny_recipe, tmp_path):
    settings = {"epochs": 1, "batch_size": 8, "selection_metric": "loss", "arguments": {"report_to": "tensorboard"}}
    folder = run(tiny_recipe, tmp_path / "run", train=settings)
    (events,) = (folder / "logs" / "train").glob("*/events.*")
    assert b"train/term_bce" in events.read_bytes() and not (folder / "checkpoints").exists()


class StoppedError(Exception):
    pass


def test_an_output_folder_is_never_overwritten_unasked(tiny_run, tiny_recipe, tmp_path):
    with pytest.raises(InputError, match="holds a finished run"):
        run(tiny_recipe, tiny_run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        run(tiny_recipe, tmp_path / "mine")
    recipe = Recipe(**tiny_recipe)
    recipe.output_dir = str(tmp_path / "mine")
    with pytest.raises(InputError, match="not overwritten"):
        train(recipe, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_unfinished_run_of_another_recipe_is_refused(tiny_recipe, tmp_path, monkeypatch):
    def stop(*_):
        raise StoppedError

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(experiment, "run_phases", stop)
        run(tiny_recipe, tmp_path / "run")
    with pytest.raises(InputError, match="unfinished run of another recipe"):
        run(tiny_recipe, tmp_path / "run", seed=5)


@pytest.mark.parametrize("problem", ["multi_label", "single_label"])
def test_a_frozen_encoder_is_embedded_once_and_never_changes(tiny_recipe, tmp_path, monkeypatch, problem):
    loss = {"task": "bce" if problem == "multi_label" else "ce"}
    changes = {
        "encoder": {"type": "cnn", "config": {"channels": [4, 8]}, "trainable": "frozen"},
        "target": {"problem_type": problem},
        "loss": loss,
    }
    monkeypatch.setenv("LAENNEC_CACHE", str(tmp_path / "cache"))
    calls = []
    original = LaennecForAudioClassification.embed
    monkeypatch.setattr(
        LaennecForAudioClassification, "embed", lambda self, *a: calls.append(len(a[0])) or original(self, *a)
    )
    first = run(tiny_recipe, tmp_path / "a", **changes)
    record = json.loads((first / "run.json").read_text())
    windows = len(pd.read_parquet(first / "windows-validation.parquet"))
    assert sum(calls) == record["cycles"]["train"] + record["cycles"]["validation"] + windows
    calls.clear()
    again = run(tiny_recipe, tmp_path / "b", **changes)
    assert calls == []
    one, two = weights(first), weights(again)
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_augmented_copies_of_a_frozen_encoder_carry_or_ed_labels(tiny_recipe, tmp_path, monkeypatch):
    changes = {
        "encoder": {"type": "cnn", "config": {"channels": [4, 8]}, "trainable": "frozen"},
        "augment": {"concatenate_probability": 1.0, "concatenate_label": "wheeze", "copies": 2},
    }
    seen = {}
    original = experiment.EmbeddingDataset

    def remember(embeddings, labels, *ids):
        seen.setdefault("training", (embeddings, labels))
        return original(embeddings, labels, *ids)

    monkeypatch.setattr(experiment, "EmbeddingDataset", remember)
    run(tiny_recipe, tmp_path / "run", **changes)
    embeddings, labels = seen["training"]
    assert embeddings.shape[0] == labels.shape[0] == 2
    assert (labels[:, :, 1] == 1).all()
    assert not (embeddings[0] == embeddings[1]).all()


def test_concatenated_cycles_of_four_classes_train_and_other_classes_are_refused_in_one_line(tiny_recipe, tmp_path):
    changes = {
        "target": {"problem_type": "single_label"},
        "loss": {"task": "ce"},
        "augment": {"concatenate_probability": 1.0, "concatenate_label": "wheeze"},
    }
    history = json.loads((run(tiny_recipe, tmp_path / "run", **changes) / "run.json").read_text())["history"]
    assert math.isfinite(history[-1]["loss"])
    changes["target"] |= {"column": "chest_location"}
    with pytest.raises(InputError, match=r"augment.concatenate_probability: .* have no combined class among"):
        run(tiny_recipe, tmp_path / "other", **changes)


def test_mixing_tokens_of_an_encoder_without_any_stops_before_the_corpus_is_read(tiny_recipe, tmp_path):
    changes = {
        "augment": {"mix": {"method": "patch_mix", "domain": "tokens"}},
        "corpus": {"name": "synthetic", "data_dir": "nowhere"},
    }
    with pytest.raises(InputError, match="cnn encoders have no patch tokens; with patch_mix they support features"):
        run(tiny_recipe, tmp_path / "run", **changes)


def test_how_many_pairs_each_term_had_is_on_record(tiny_run):
    for row in json.loads((tiny_run / "run.json").read_text())["history"]:
        assert set(row["loss_counts"]) == {"add_mu_pos", "add_sigma_pos", "add_mu_neg", "add_sigma_neg"}
        assert all(count > 0 for count in row["loss_counts"].values())


# Song et al.'s schedule in its smallest form
SONG = {
    "target": {"problem_type": "single_label"},
    "loss": {"task": "ce", "auxiliary": {"tuplet": {}}},
    "sampler": {"name": "anchor_positive", "negatives": 4},
    "schedule": {"name": "alternating", "pretrain_epochs": 1},
    "train": {"epochs": 1, "batch_size": 8, "optimizer": "adam", "learning_rate": 1e-4, "selection_metric": "loss"},
}


@pytest.mark.parametrize("loss", ["tuplet", "add"])
def test_song_alternates_encoder_and_head_with_separate_gradients(tiny_recipe, tmp_path, monkeypatch, loss):
    from laennec.training.trainer import LaennecTrainer

    moved = []
    original = LaennecTrainer.training_step

    def watched(self, model, inputs, *rest):
        loss = original(self, model, inputs, *rest)
        gradients = {
            n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
        }
        moved.append((int(self.state.epoch or 0), frozenset(gradients), len(inputs.get("labels", []))))
        return loss

    monkeypatch.setattr(LaennecTrainer, "training_step", watched)
    # ADD takes any shuffled batch
    other = {"loss": {"task": "ce", "auxiliary": {"add": {}}}, "sampler": {}} if loss == "add" else {}
    out = run(tiny_recipe, tmp_path / "run", **SONG | other)
    kinds = [parts for _, parts, _ in moved]
    third = kinds.index(frozenset({"encoder"}))
    assert set(kinds[:third]) == {frozenset({"encoder", "head"})}
    assert set(kinds[third:]) == {frozenset({"encoder"}), frozenset({"head"})}
    history = json.loads((out / "run.json").read_text())["history"]
    assert [h["phase"] for h in history] == ["pretrain", "alternate", "alternate"]
    terms = [{name.split("_")[0] for name in h["loss_terms"]} for h in history if "loss_terms" in h]
    assert terms == [{"ce"}, {loss}, {"ce"}]


@pytest.mark.parametrize("labels", ["class+patient_id", "wheeze+patient_id"])
def test_add_pulls_together_cycles_of_one_label_and_one_patient(tiny_recipe, tmp_path, monkeypatch, labels):
    from laennec.losses import AngularDistanceDistributionLoss

    counted, original = [], AngularDistanceDistributionLoss.forward

    def watched(self, embeddings, ids):
        terms = original(self, embeddings, ids)
        counted.append((int((ids[:, None] == ids).sum()) - len(ids), self.pairs["add_mu_pos"]))
        return terms

    monkeypatch.setattr(AngularDistanceDistributionLoss, "forward", watched)
    settings = {"loss": {"auxiliary": {"add": {"labels": labels}}}, "sampler": {"name": "patient_balanced"}}
    settings["sampler"] |= {"patients": 2, "samples": 4}
    run(tiny_recipe, tmp_path / "run", **settings)
    # two patients with four cycles each give fewer than 2 x 4 x 3 pairs, because their labels differ
    assert all(pairs == wanted for wanted, pairs in counted) and 0 < np.mean(counted) < 24


def test_an_epoch_of_the_encoder_alone_cannot_be_the_best_epoch(tiny_recipe, tmp_path, capsys):
    settings = SONG | {"train": {"epochs": 2, "batch_size": 8, "selection_metric": "loss"}}
    record = json.loads((run(tiny_recipe, tmp_path / "run", **settings) / "run.json").read_text())
    rounds = [entry for entry in record["history"] if entry["phase"] == "alternate"]
    assert {entry["epoch"] for entry in rounds if "loss" in entry} == {1, 2, 3, 4}
    evaluated = {entry["epoch"]: entry["validation"]["loss"] for entry in rounds if "validation" in entry}
    assert set(evaluated) == {2, 4} and record["best_epoch"] == min(evaluated, key=evaluated.get)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("alternate epoch")]
    assert ["validation" in line for line in lines] == [False, True] * 2


def test_mean_and_std_of_the_training_features_are_stored_with_the_model(tiny_recipe, tmp_path):
    changed = {"features": tiny_recipe["features"] | {"mean": "train"}}
    out = run(tiny_recipe, tmp_path / "run", **changed)
    extractor = LaennecFeatureExtractor.from_pretrained(out / "model")
    settings = json.loads((out / "run.json").read_text())["config"]["features"]
    assert settings["mean"] == extractor.mean and settings["std"] == extractor.std
    recipe = Recipe(**tiny_recipe)
    part = labelled_split(recipe, load_splits(recipe)["train"], make_extractor(recipe.features))
    every = []
    for row in range(len(part.dataset)):
        seen = extractor(part.dataset.waveforms[row], extractor.sampling_rate)
        every.append(seen["input_values"][seen["attention_mask"].bool()].ravel())
    values = torch.cat(every)
    assert values.mean().item() == pytest.approx(0, abs=1e-4) and values.std().item() == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(InputError, match="normalises each cycle by itself"):
        run(tiny_recipe, tmp_path / "no", features={"preset": "waveform", "mean": "train"})


def test_a_recipe_refused_before_training_costs_no_earlier_run_and_leaves_no_folder(tiny_recipe, tmp_path):
    good = Recipe(**{**tiny_recipe, "output_dir": str(tmp_path / "run")})
    train(good)
    before = (tmp_path / "run" / "run.json").read_bytes()
    lonely = {"loss": {"auxiliary": {"add": {}}}, "train": {**tiny_recipe["train"], "batch_size": 1}}
    with pytest.raises(InputError, match="holds two cycles of one class"):
        train(Recipe(**{**tiny_recipe, **lonely, "output_dir": str(tmp_path / "run")}), overwrite=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    with pytest.raises(InputError, match="holds two cycles of one class"):
        train(Recipe(**{**tiny_recipe, **lonely, "output_dir": str(tmp_path / "other")}))
    assert not (tmp_path / "other").exists()


def test_overwriting_makes_a_folder_that_is_not_there_replaces_a_run_and_leaves_others_alone(tiny_recipe, tmp_path):
    short = tiny_recipe | {"train": tiny_recipe["train"] | {"epochs": 1, "max_steps": 1}}
    recipe = Recipe(**(short | {"output_dir": str(tmp_path / "new")}))
    assert train(recipe, overwrite=True) == train(recipe, overwrite=True) == tmp_path / "new"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds no laennec run"):
        train(Recipe(**(short | {"output_dir": str(tmp_path / "other")})), overwrite=True)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_songs_schedule_on_two_processes_is_that_of_one(tiny_recipe, tmp_path):
    """Each process has half of the anchors; with common batch statistics, every phase has the losses of one process."""
    settings = SONG | {"train": {"epochs": 1, "batch_size": 8, "sync_batch_norm": True, "selection_metric": "loss"}}
    one = run(tiny_recipe, tmp_path / "one", **settings)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe | settings))
    command = ["train", str(tmp_path / "recipe.yaml"), "--train.batch_size", "4", "--output_dir", str(tmp_path / "two")]
    done = ranks(2, lambda: main(command))
    assert done.returncode == 0, done.stderr[-3000:]
    histories = [json.loads((out / "run.json").read_text())["history"] for out in (one, tmp_path / "two")]
    losses = [[row["loss_terms"] for row in history if "loss_terms" in row] for history in histories]
    assert [set(terms) for terms in losses[0]] == [{"ce"}, {"tuplet"}, {"ce"}]
    for alone, shared in zip(*losses, strict=True):
        assert shared == pytest.approx(alone, rel=1e-5)
    validation = [[row["validation"]["loss"] for row in history if "validation" in row] for history in histories]
    assert len(validation[0]) == 2 and validation[1] == pytest.approx(validation[0], rel=1e-4)
