"""NaN or infinity stops a run at once; the message names its source, and saved checkpoints stay valid."""

import json
import shutil
import warnings

import numpy as np
import pytest
import soundfile
import torch
import yaml

from laennec.audio.augmentation import (
    Gain,
    PitchShift,
    SpecAugment,
    TimeShift,
    TimeStretch,
    WaveformAugmentation,
    WhiteNoise,
)
from laennec.audio.features import PRESETS, LaennecFeatureExtractor
from laennec.cli.main import main
from laennec.errors import InputError
from laennec.training.checkpoints import last_whole
from laennec.training.objectives.objective import Objective
from laennec.training.trainer import LaennecTrainer
from runs import what_it_left


class Overflow(torch.autograd.Function):
    """The identity with an infinite gradient, as a low-precision backward pass may give for a finite loss."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


def run(recipe, out):
    return main(["train", str(recipe), "--output_dir", str(out)])


@pytest.fixture
def recipe(tiny_recipe, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_it_stops_within_the_step_and_goes_on_from_the_last_good_checkpoint(
    recipe, tmp_path, capsys, monkeypatch, kind
):
    assert run(recipe, tmp_path / "straight") == 0
    original, calls = Objective.forward, []

    def spoilt(self, outputs, *arguments):
        calls.append(1)
        if len(calls) == 7:  # an epoch has 5 steps
            outputs.logits = outputs.logits * float("nan") if kind == "loss" else Overflow.apply(outputs.logits)
        return original(self, outputs, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", spoilt)
        assert run(recipe, tmp_path / "run") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("laennec: step 7: ") and "is not a finite number (batch: " in said[0]
    assert "_1b1_" in said[0] and len(calls) == 7
    assert last_whole(tmp_path / "run" / "checkpoints" / "train").name == "checkpoint-5"
    assert run(recipe, tmp_path / "run") == 0
    assert what_it_left(tmp_path / "run") == what_it_left(tmp_path / "straight")


# other sources of NaN: an auxiliary term, pre-training, bfloat16, a frozen encoder
ELSEWHERE = {
    "auxiliary": {"loss": {"auxiliary": {"add": {"weight": 0.2}}}},
    "pretrain": {"pretrain": {"views": ["raw"], "epochs": 3, "batch_size": 8}},
    "bf16": {"train": {"bf16": True}},
    "frozen": {"encoder": {"type": "cnn", "config": {"channels": [4, 8]}, "trainable": "frozen"}},
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_wherever_it_comes_from_it_stops_at_once_and_names_the_batch(tiny_recipe, tmp_path, capsys, monkeypatch, where):
    way = ELSEWHERE[where]
    train = {**tiny_recipe["train"], **way.get("train", {})}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tiny_recipe, **way, "train": train}))
    original, steps = Objective.forward, []

    def spoilt(self, *arguments):
        terms = original(self, *arguments)
        steps.append(1)
        if len(steps) == 7:
            name = list(terms)[-1]  # the auxiliary term, if there is one
            terms[name] = terms[name] * float("inf")
        return terms

    monkeypatch.setattr(Objective, "forward", spoilt)
    command = "pretrain" if where == "pretrain" else "train"
    assert main([command, str(path), "--output_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    wanted = {"auxiliary": "add", "pretrain": "ntxent"}.get(where, "bce")
    assert said.startswith(f"laennec: step 7: {wanted}") and "is not a finite number (batch: " in said
    assert "_1b1_" in said and len(steps) == 7
    folder = "self-supervision" if where == "pretrain" else "train"
    assert last_whole(tmp_path / "run" / "checkpoints" / folder) is not None


@pytest.mark.parametrize("what", ["a weight", "a running statistic"])
def test_a_model_that_is_lost_is_not_saved(recipe, tmp_path, capsys, monkeypatch, what):
    """An update may overflow although loss and gradient are finite; the checkpoint before it is kept."""
    original = LaennecTrainer._save_checkpoint

    def spoilt(self, *arguments):
        original(self, *arguments)
        tensors = self.model.named_parameters() if what == "a weight" else self.model.named_buffers()
        name, tensor = next((n, t) for n, t in tensors if "running_var" in n or what == "a weight")
        hurt.append(name)
        # after the last step of the second epoch, when no further forward pass can detect it
        original_log = self.log

        def log(*given):
            if self.state.global_step == 10:
                tensor.data.view(-1)[0] = float("inf")
            original_log(*given)

        self.log = log

    hurt = []
    with monkeypatch.context() as patch:
        patch.setattr(LaennecTrainer, "_save_checkpoint", spoilt)
        assert run(recipe, tmp_path / "run") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"laennec: step 10: {hurt[0]} holds values that are not finite") and "is kept" in said
    assert last_whole(tmp_path / "run" / "checkpoints" / "train").name == "checkpoint-5"
    assert not (tmp_path / "run" / "run.json").exists()
    assert run(recipe, tmp_path / "run") == 0


# ---------------------------------------------------------------- degenerate sounds


def odd_sounds(rate):
    """Degenerate float32 waveforms of half a second that may occur in recordings."""
    size = rate // 2
    time = np.arange(size) / rate
    made = {
        "silent": np.zeros(size),
        "constant": np.full(size, 0.25),
        "full scale": np.sign(np.sin(2 * np.pi * 100 * time) + 1e-9),
        "offset": np.full(size, -1.0),
        "one sample": np.eye(1, size, size // 2)[0],
        "denormal": np.full(size, 1e-40) * np.sign(np.sin(2 * np.pi * 100 * time) + 1e-9),
        "hardly there": np.sin(2 * np.pi * 100 * time) * 1e-20,
        "far too loud": np.sin(2 * np.pi * 100 * time) * 1e4,
        "a sign now and then": np.where(np.arange(size) % 997, 0.0, -1.0),
    }
    return {name: sound.astype(np.float32) for name, sound in made.items()}


DRAWS = WaveformAugmentation(
    noise=WhiteNoise(1.0), shift=TimeShift(1.0), stretch=TimeStretch(1.0), pitch=PitchShift(1.0), gain=Gain(1.0)
)
SINGLE = [{name: getattr(DRAWS, name)} for name in ("noise", "shift", "stretch", "pitch", "gain")]


@pytest.mark.parametrize("preset", PRESETS)
def test_odd_sounds_have_finite_features_in_every_batch_and_augmentation(preset):
    extractor = LaennecFeatureExtractor(preset)
    rate = extractor.sampling_rate
    sounds = odd_sounds(rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "far too loud" gives a warning
        for name, sound in sounds.items():
            alone = extractor([sound], sampling_rate=rate)["input_values"]
            assert bool(torch.isfinite(alone).all()), name
            for draws in [DRAWS, *(WaveformAugmentation(**one) for one in SINGLE)]:
                made = draws(sound, rate, seed=1, epoch=2, cycle_index=3)
                assert np.isfinite(made).all(), (name, draws)
                assert bool(torch.isfinite(extractor([made], sampling_rate=rate)["input_values"]).all()), (name, draws)
        together = extractor(list(sounds.values()), sampling_rate=rate)
    masked = SpecAugment()(together["input_values"], None, seed=0, epochs=[0] * len(sounds), cycle_indices=range(9))
    assert bool(torch.isfinite(masked).all())


def test_a_cycle_of_one_sample_is_refused_by_name_or_filled_up():
    one = np.ones(1, np.float32)
    with pytest.raises(InputError, match="waveform 0"):
        LaennecFeatureExtractor("song2021", length="natural")([one], sampling_rate=16000)
    filled = LaennecFeatureExtractor("song2021", length="repeat", duration_s=1.0)([one], sampling_rate=16000)
    assert bool(torch.isfinite(filled["input_values"]).all())
    for draws in [DRAWS, *(WaveformAugmentation(**part) for part in SINGLE)]:
        made = draws(one, 16000, seed=1, epoch=2, cycle_index=3)
        assert len(made) >= 1 and np.isfinite(made).all()


@pytest.mark.parametrize("how", ["silent", "constant", "far too loud"])
def test_a_corpus_of_nothing_but_that_trains_with_finite_losses(tiny_recipe, tmp_path, how):
    folder = shutil.copytree(tiny_recipe["corpus"]["data_dir"], tmp_path / "corpus")
    for path in sorted(folder.glob("*.wav")):
        samples, rate = soundfile.read(path)
        wrong = {"silent": samples * 1e-7, "constant": samples * 0 + 0.3, "far too loud": np.sign(samples)}[how]
        wrong[: rate // 100] = 0.5 * np.random.default_rng(len(samples)).standard_normal(rate // 100)  # a click
        soundfile.write(path, np.clip(wrong, -1, 1), rate, subtype="FLOAT")
    loss = {"auxiliary": {"add": {"weight": 0.2}, "supcon": {"views": 2, "on": "projection"}}}
    recipe = {**tiny_recipe, "loss": {"task": "ce", **loss}, "head": {"projection_dim": 8}}
    recipe |= {"target": {"problem_type": "single_label", "column": "label"}}
    recipe |= {"augment": {"noise": {"probability": 0.5}, "gain": {"probability": 0.5}}}
    recipe["corpus"] = {**recipe["corpus"], "data_dir": str(folder)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "r.yaml"), "--output_dir", str(tmp_path / "run")]) == 0
    for row in json.loads((tmp_path / "run" / "run.json").read_text())["history"]:
        assert np.isfinite(row["loss"]) and np.isfinite(row["validation"]["loss"])
