"""An own sampler and an own augmentation, from Python and from a recipe."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainingArguments

import laennec
from laennec.audio.augmentation import WaveformAugmentation
from laennec.corpora import load_corpus
from laennec.errors import InputError
from laennec.training.recipe import Recipe
from laennec.training.run import train

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def in_examples(monkeypatch):
    """The folder of the examples is the working directory, as for a user."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


@pytest.fixture
def tiny(tiny_recipe, tmp_path):
    settings = tiny_recipe | {"output_dir": str(tmp_path / "run")}
    return settings | {"train": settings["train"] | {"max_steps": 3}}


def losses(run):
    return [entry["loss"] for entry in json.loads((run / "run.json").read_text())["history"] if "loss" in entry]


def test_an_own_sampler_yields_each_patient_once_a_round(in_examples, small_corpus):
    from own_sampler import OneCyclePerPatient

    table = load_corpus("synthetic", small_corpus)["train"]
    sampler = OneCyclePerPatient(table, 8, seed=3, rounds=5)
    patients, rows = set(table["patient_id"]), list(sampler)
    assert len(rows) == len(sampler) == 5 * len(patients) and list(sampler) == rows
    for start in range(0, len(rows), len(patients)):
        assert {table["patient_id"][row] for row in rows[start : start + len(patients)]} == patients
    sampler.set_epoch(1)
    assert list(sampler) != rows


def test_an_own_sampler_in_a_recipe_decides_the_batches(in_examples, tiny, tmp_path):
    run = train(Recipe(**tiny | {"sampler": {"class": "own_sampler:OneCyclePerPatient", "rounds": 2}}))
    plain = train(Recipe(**tiny | {"output_dir": str(tmp_path / "plain")}))
    assert losses(run) and losses(run) != losses(plain)
    recorded = json.loads((run / "run.json").read_text())["config"]["sampler"]
    assert recorded["class"] == "own_sampler:OneCyclePerPatient" and recorded["rounds"] == 2


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ({"class": "own_sampler:OneCyclePerPatient", "size": 3}, "unexpected keyword argument 'size'"),
        ({"class": "no_such_module:Sampler"}, "cannot import no_such_module"),
    ],
)
def test_a_sampler_that_cannot_be_made_is_one_line_before_anything_is_written(in_examples, tiny, sampler, said):
    with pytest.raises(InputError, match=said):
        train(Recipe(**tiny | {"sampler": sampler}))
    assert not Path(tiny["output_dir"]).exists()


def test_an_own_augmentation_is_a_function_of_seed_epoch_and_cycle(in_examples):
    from own_augmentation import Muffle

    noise = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    augmentation = WaveformAugmentation(transforms=(Muffle(probability=1.0),))
    first, again, other = (augmentation(noise, 8000, seed=0, epoch=e, cycle_index=5) for e in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other) and first.var() < noise.var()


def test_an_own_augmentation_in_a_recipe_changes_training(in_examples, tiny, tmp_path):
    augment = {"custom": [{"class": "own_augmentation:Muffle", "probability": 1.0}]}
    run = train(Recipe(**tiny | {"augment": augment}))
    plain = train(Recipe(**tiny | {"output_dir": str(tmp_path / "plain")}))
    assert losses(run) and losses(run) != losses(plain)


def test_the_trainer_takes_both_as_objects(in_examples, tmp_path, small_corpus):
    from own_augmentation import Muffle
    from own_sampler import OneCyclePerPatient

    table = load_corpus("synthetic", small_corpus, protocol="patient-60-20-20")["train"]
    features = laennec.LaennecFeatureExtractor("song2021", length="natural")

    def trainer(name, **own):
        torch.manual_seed(0)
        model = laennec.LaennecForAudioClassification.from_encoder(
            None, type="cnn", encoder_config={"channels": [4]}, features=features, labels=["crackle", "wheeze"]
        )
        arguments = TrainingArguments(str(tmp_path / name), max_steps=2, logging_steps=1, report_to="none", seed=0)
        return laennec.LaennecTrainer(model, arguments, train_dataset=table, processing_class=features, **own)

    found = {}
    for name, own in {
        "plain": {},
        "augmentation": {"augmentation": Muffle(probability=1.0)},
        "sampler": {"sampler": OneCyclePerPatient(table, 8, seed=0)},
    }.items():
        made = trainer(name, **own)
        made.train()
        found[name] = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert len({str(values) for values in found.values()}) == 3 and all(len(values) == 2 for values in found.values())
    with pytest.raises(InputError, match="sampler OneCyclePerPatient cannot be made of the data alone"):
        trainer("class", sampler=OneCyclePerPatient)


@pytest.mark.parametrize("name", ["own_sampler", "own_augmentation"])
def test_the_examples_run(in_examples, name, tmp_path, monkeypatch, small_corpus):
    module = __import__(name)
    source = Recipe.from_yaml
    monkeypatch.setattr(Recipe, "from_yaml", lambda *a, **k: source(*a, **k, corpus__data_dir=str(small_corpus)))
    module.main(str(tmp_path / "run"), steps=2)
    assert (tmp_path / "run" / "run.json").exists()
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60
