"""Training from Python, without a recipe and without an edit of the package: what a user of transformers expects."""

import inspect
import json
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Trainer, TrainingArguments

import laennec
from laennec.audio.augmentation import Gain, WaveformAugmentation
from laennec.audio.recording import read_recording
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.training.arguments import LaennecTrainingArguments
from laennec.training.checkpoints import damage
from laennec.training.data.training_data import AudioColumn
from laennec.training.trainer import LaennecTrainer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUIET = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def corpus(small_corpus):
    return laennec.load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")


def make_model(labels=("crackle", "wheeze"), **settings):
    return laennec.LaennecForAudioClassification.from_encoder(
        None, labels=list(labels), type="cnn", encoder_config={"channels": [4, 8]}, **settings
    )


def make_trainer(folder, corpus, arguments=None, losses=None, model=None, **settings):
    arguments = arguments or TrainingArguments(str(folder), max_steps=2, logging_steps=1, save_strategy="no", **QUIET)
    if "model_init" not in settings:
        model = model or make_model()
    return LaennecTrainer(
        model, arguments, train_dataset=corpus["train"], eval_dataset=corpus["validation"],
        processing_class=laennec.LaennecFeatureExtractor("song2021", length="natural"), losses=losses, **settings,
    )  # fmt: skip


class MeanNorm(torch.nn.Module):
    """A loss that returns a scalar."""

    labels, views = "patient", 2

    def forward(self, embeddings, labels):
        assert embeddings.ndim == 3 and embeddings.shape[1] == 2 and len(labels) == len(embeddings)
        return embeddings.square().mean()


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_plain_arguments_train_evaluate_and_predict_with_several_losses(tmp_path, corpus):
    trainer = make_trainer(
        tmp_path, corpus, losses={"add": laennec.AngularDistanceDistributionLoss(), "mine": MeanNorm()},
        loss_weights={"mine": 0.5}, augmentation=WaveformAugmentation(gain=Gain(1.0)),
        compute_metrics=lambda p: {"shape": p.predictions.shape[1], "rows": len(p.label_ids)},
    )  # fmt: skip
    trainer.train()
    assert len(logged(trainer, "term_mine")) == 2 and {"term_bce", "term_add_mu_pos"} <= set(
        trainer.state.log_history[0]
    )
    assert logged(trainer, "loss")[0] == pytest.approx(
        sum(value for name, value in trainer.state.log_history[0].items() if name.startswith("term_"))
    )
    found = trainer.evaluate()
    assert (found["eval_shape"], found["eval_rows"]) == (2, len(corpus["validation"])) and found["eval_loss"] > 0
    assert trainer.predict(corpus["validation"]).predictions.shape == (len(corpus["validation"]), 2)
    assert not any("auxiliary" in name for name in trainer.model.state_dict())


def test_any_table_with_audio_and_labels_trains(tmp_path):
    draw, rows = np.random.default_rng(0), []
    for number in range(8):
        soundfile.write(tmp_path / f"{number}.wav", draw.standard_normal(8000) * 0.1, 16000)
        rows.append(
            {"audio": {"bytes": None, "path": str(tmp_path / f"{number}.wav")}, "label": ("a", "b")[number % 2]}
        )
    table = datasets.Dataset.from_list(rows)
    trainer = make_trainer(
        tmp_path / "out", {"train": table, "validation": table}, model=make_model("ab", problem_type="single_label")
    )
    trainer.train()
    assert len(logged(trainer, "term_ce")) == 2 and np.isfinite(trainer.evaluate()["eval_loss"])
    assert trainer.model.config.span == "recording"  # a row without times is a whole recording


def test_a_table_of_arrays_is_resampled_like_a_file(tmp_path):
    sounds = np.random.default_rng(0).standard_normal((4, 4000)).astype(np.float32) * 0.1
    audio = [{"array": sound, "sampling_rate": 8000} for sound in sounds]
    table = datasets.Dataset.from_dict({"audio": audio, "crackle": [0, 1, 0, 1], "wheeze": [0, 0, 1, 1]})
    data = make_trainer(tmp_path, {"train": table, "validation": table}, model=make_model()).train_dataset
    soundfile.write(tmp_path / "same.wav", sounds[2], 8000, subtype="FLOAT")
    assert np.array_equal(data.waveforms[2], read_recording(tmp_path / "same.wav", 16000).waveform)
    wrong = datasets.Dataset.from_dict({"audio": [{"array": sounds.tolist(), "sampling_rate": 8000}], "label": ["a"]})
    with pytest.raises(InputError, match=r"row 0: audio\.array must hold finite samples of one channel"):
        AudioColumn(wrong, 16000)[0]


def test_thresholds_are_fitted_on_the_validation_data(tmp_path, corpus, small_corpus, capsys):
    trainer = make_trainer(tmp_path / "run", corpus)
    sound = str(next(small_corpus.glob("*.wav")))
    trainer.save_model(str(tmp_path / "before"))
    fitted = trainer.fit_thresholds(rule="sensitivity", sensitivity=0.8, calibration="none")
    logits, truth, _ = trainer.predict(corpus["validation"])
    logits = logits[0] if isinstance(logits, tuple) else logits
    for k, name in enumerate(("crackle", "wheeze")):
        found = logits[truth[:, k] == 1, k] > fitted["thresholds"][name]
        assert found.mean() >= 0.8 and fitted["fitted_on"]["cycles"] == len(corpus["validation"])
    trainer.save_model(str(tmp_path / "after"))
    config = AutoModelForAudioClassification.from_pretrained(tmp_path / "after").config
    assert config.thresholds == fitted["threshold_probabilities"]
    for name, said in (("before", "nothing was fitted"), ("after", "rule sensitivity, fitted on events")):
        assert main(["predict", str(tmp_path / name), sound]) == 0
        assert said in capsys.readouterr().out


def test_a_saved_model_is_loaded_by_transformers_and_by_predict(tmp_path, corpus, small_corpus):
    trainer = make_trainer(tmp_path / "run", corpus)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "model")
    features = AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    assert features.fingerprint() == trainer.processing_class.fingerprint()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trainer.model.state_dict().items())
    sound = next(small_corpus.glob("*.wav"))
    assert main(["predict", str(tmp_path / "model"), str(sound), "--out", str(tmp_path / "predictions")]) == 0


def run_of(folder, corpus, **settings):
    arguments = LaennecTrainingArguments(
        str(folder), num_train_epochs=2, save_strategy="steps", save_steps=3, logging_strategy="epoch", **QUIET
    )
    return make_trainer(folder, corpus, arguments, {"mine": MeanNorm()}, **settings)


def test_a_resumed_training_is_the_uninterrupted_one_and_a_damaged_checkpoint_is_refused(tmp_path, corpus):
    draws = {"augmentation": WaveformAugmentation(gain=Gain(1.0))}
    straight = run_of(tmp_path / "straight", corpus, **draws)
    straight.train(resume_from_checkpoint=True)  # there is none: a new training
    cut = run_of(tmp_path / "cut", corpus, **draws)
    honest = cut.training_step

    def killed(*arguments):
        if cut.state.global_step == 4:
            raise KeyboardInterrupt
        return honest(*arguments)

    cut.training_step = killed
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    assert damage(tmp_path / "cut" / "checkpoint-3") is None
    again = run_of(tmp_path / "cut", corpus, **draws)
    again.train(resume_from_checkpoint=True)
    wanted = straight.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.model.state_dict().items())
    assert logged(again, "term_mine") == logged(straight, "term_mine")
    (tmp_path / "cut" / "checkpoint-3" / "optimizer.pt").unlink()
    with pytest.raises(InputError, match=r"optimizer\.pt is missing"):
        run_of(tmp_path / "cut", corpus, **draws).train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))


class Centre(torch.nn.Module):
    """A loss with a weight and a running mean, as an auxiliary loss or of the logits."""

    def __init__(self, width):
        super().__init__()
        self.centre = torch.nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, vectors, labels):
        self.mean = 0.9 * self.mean + 0.1 * vectors.detach().mean(0)
        return (vectors - self.centre - self.mean).square().mean()


class RunningMean(torch.nn.BatchNorm1d):
    """A loss with buffers alone."""

    def __init__(self, width):
        super().__init__(width, affine=False)

    def forward(self, embeddings, labels):
        super().forward(embeddings.detach())
        return (embeddings - self.running_mean).square().mean()


def test_losses_with_a_state_are_trained_saved_and_resumed(tmp_path, corpus):
    def run_in(folder, steps):
        arguments = LaennecTrainingArguments(
            str(tmp_path / folder), max_steps=steps, save_strategy="steps", save_steps=2, learning_rate=0.01,
            lr_scheduler_type="constant", **QUIET,
        )  # fmt: skip
        torch.manual_seed(0)
        own = {"losses": {"mean": RunningMean(8)}, "task_loss": Centre(2)}
        trainer = make_trainer(tmp_path / folder, corpus, arguments, **own)
        trainer.train(resume_from_checkpoint=True)
        assert own["task_loss"].centre.abs().sum() > 0
        return trainer.model.state_dict() | {f"loss.{k}": v for k, v in trainer.training_objective.state_dict().items()}

    straight = run_in("straight", 4)
    run_in("cut", 2)
    resumed = run_in("cut", 4)
    assert {"loss.task.own.centre", "loss.task.own.mean", "loss.auxiliary.losses.mean.running_mean"} <= set(resumed)
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


def test_a_new_model_is_trained_with_untrained_losses(tmp_path, corpus):
    trainer = make_trainer(tmp_path, corpus, losses={"mine": Centre(8)}, model_init=lambda: make_model())
    ends = []
    for _ in range(2):
        trainer.train()
        ends.append(trainer.training_objective.auxiliary.losses["mine"].mean.clone())
    assert torch.equal(*ends)


def test_a_search_over_hyperparameters_makes_a_new_model_for_each_trial(tmp_path, corpus):
    pytest.importorskip("optuna")
    made = []

    def model_init():
        made.append(1)
        return make_model()

    trainer = make_trainer(tmp_path, corpus, losses={"device": adversarial()}, model_init=model_init)
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)},
        n_trials=2, direction="minimize", backend="optuna",
    )  # fmt: skip
    assert len(made) == 3 and set(best.hyperparameters) == {"learning_rate"}
    assert 0 < best.objective < 5  # the loss; a sum of metrics holds percentages


def adversarial():
    from laennec.losses import DeviceAdversarialLoss

    loss = DeviceAdversarialLoss()
    loss.labels = "patient"
    return loss


def test_reports_go_where_transformers_sends_them(tmp_path, corpus, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, logging_steps=1, save_strategy="no", **{**QUIET, "report_to": "tensorboard"}
    )
    make_trainer(tmp_path, corpus, arguments).train()
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_what_cannot_be_followed_is_refused(tmp_path, corpus):
    for settings, message in (
        ({"push_to_hub": True, "hub_strategy": "every_save"}, "uploads the output folder"),
        ({"sam_rho": 0.1, "gradient_accumulation_steps": 2}, "set gradient_accumulation_steps to 1"),
    ):
        with pytest.raises(InputError, match=message):
            make_trainer(tmp_path, corpus, LaennecTrainingArguments(str(tmp_path), **QUIET, **settings))
    with pytest.raises(InputError, match=r"loss_weights has 'ad'; the losses are add"):
        make_trainer(tmp_path, corpus, losses={"add": MeanNorm()}, loss_weights={"ad": 1.0})


def test_transformers_still_needs_what_is_overridden_in_private(tmp_path, corpus, monkeypatch, caplog):
    """Each override goes when this fails: upstream then does it, or has a public way."""
    own = [n for n in vars(LaennecTrainer) if n.startswith("_") and not n.startswith("__") and hasattr(Trainer, n)]
    assert sorted(own) == ["_get_train_sampler", "_issue_warnings_after_load", "_load_best_model"]
    assert not any("sampler" in name for name in inspect.signature(Trainer.__init__).parameters)
    trainer = make_trainer(tmp_path, corpus)
    missing = type("Result", (), {"missing_keys": ["head.weight"], "unexpected_keys": []})()
    Trainer._issue_warnings_after_load(trainer, missing)  # warns only
    with pytest.raises(InputError, match=r"does not fit the model \(head.weight is missing\)"):
        trainer._issue_warnings_after_load(missing)
    assert "manifest" not in inspect.getsource(Trainer._load_best_model)


@pytest.mark.parametrize("name", ["own_loss", "own_callback"])
def test_own_objects_are_named_in_a_recipe(tiny_recipe, tmp_path, name):
    own = {
        "own_loss": {"loss": {"auxiliary": {"mine": {"class": "own_loss:MyLoss", "weight": 0.5, "margin": -1.0}}}},
        "own_callback": {"train": {"callbacks": [{"class": "own_callback:StopAtLoss", "loss": 100.0}]}},
    }[name]
    recipe = {**tiny_recipe, **own, "output_dir": str(tmp_path / "run")}
    recipe["train"] = tiny_recipe["train"] | own.get("train", {})
    (tmp_path / f"{name}.py").write_text((EXAMPLES / f"{name}.py").read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    assert ("mine" in history[0]["loss_terms"]) == (name == "own_loss")
    assert len(history) == (1 if name == "own_callback" else 2)
    sys.modules.pop(name, None)


def test_the_example_trains(tmp_path, small_corpus, monkeypatch, capsys, unpainted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(laennec, "LaennecFeatureExtractor", lambda preset: _small_features(preset), raising=False)
    monkeypatch.setattr("sys.argv", ["train_without_yaml.py", "--data-dir", str(small_corpus)])
    runpy.run_path(str(EXAMPLES / "train_without_yaml.py"), run_name="__main__")
    assert "eval_loss" in capsys.readouterr().out
    assert load_file(tmp_path / "runs" / "mine" / "model" / "model.safetensors")
    where = ["--corpus", "synthetic", "--data-dir", str(small_corpus), "--out", "scored"]
    assert main(["evaluate", "runs/mine/model", *where]) == 0
    assert "selection set: validation;" in capsys.readouterr().out
    assert json.loads(Path("scored/run.json").read_text())["selection_set"] == "validation"


@pytest.mark.parametrize(("split", "named"), [("test", "test"), ("half", "a data set of 6 rows"), (None, None)])
def test_a_model_names_the_data_that_it_was_selected_on(tmp_path, corpus, split, named):
    tables = {**corpus, "half": corpus["validation"].select(range(6)), None: None}
    trainer = make_trainer(tmp_path, {"train": corpus["train"], "validation": tables[split]})
    assert trainer.model.config.selection_set is None
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert laennec.LaennecConfig.load(tmp_path / "model").selection_set == named


def _small_features(preset):
    from laennec.audio.features import LaennecFeatureExtractor

    assert preset == "efficientat"
    return LaennecFeatureExtractor("song2021", length="natural")


@pytest.mark.parametrize("name", ["own_loss", "own_callback"])
def test_the_examples_run(name, tmp_path, small_corpus, monkeypatch):
    load = laennec.load_corpus
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(laennec, "load_corpus", lambda name, **_: load(name, small_corpus), raising=False)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert any((tmp_path / "runs" / name).iterdir())
