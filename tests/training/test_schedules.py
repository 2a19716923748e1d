"""Errors that stop a training before its first step, and the effect of optimisation rules."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from laennec.errors import InputError
from laennec.training.arguments import epoch_cosine, further_arguments
from laennec.training.data.batches import CycleDataset
from laennec.training.recipe import Recipe
from laennec.training.run import train
from laennec.training.tables import ValidationMetrics
from laennec.training.trainer import LaennecTrainer

DRAWS = {"gain": {"probability": 1.0}, "spec": {}}


def run(settings, out, **changes):
    changes = {"augment": DRAWS} | changes
    changes["train"] = settings["train"] | changes.get("train", {})
    recipe = Recipe(**(settings | changes))
    recipe.output_dir = str(out)
    return train(recipe)


def history(out):
    return json.loads((out / "run.json").read_text())["history"]


# `make soak` runs the others; tests/invariants/test_resume.py also stops and resumes them
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"auxiliary": {"supcon": {}}}, "augment": {}}, "without augmentation they are equal"),
        ({"loss": {"auxiliary": {"add": {}}}, "train": {"batch_size": 1}}, "set sampler.name: classes_times_samples"),
        ({"schedule": {"name": "alternating"}}, "alternating trains the encoder with loss.auxiliary, which is empty"),
        ({"train": {"arguments": {"report_too": "none"}}}, "no field of TrainingArguments; did you mean 'report_to'"),
        ({"train": {"arguments": {"output_dir": "x"}}}, "the recipe determines itself; set output_dir"),
        ({"train": {"arguments": {"gradient_accumulation_steps": 2}}}, "set train.gradient_accumulation_steps"),
        ({"train": {"arguments": {"num_train_epochs": 3}}}, "set train.epochs"),
        ({"train": {"arguments": {"save_strategy": "no"}}}, "the recipe determines itself; leave it out"),
        ({"train": {"arguments": {"logging_steps": "abc"}}}, "logging_steps is 'abc'; it must be a valid number"),
        ({"train": {"arguments": {"report_to": "absent"}}}, "train.arguments: absent is not supported"),
        ({"train": {"arguments": {"optim": "absent"}}}, "train.arguments: absent is not a valid Optimizer"),
        ({"train": {"callbacks": ["json:JSONDecoder"]}}, r"callbacks\[0\]: json:JSONDecoder must be a subclass of"),
        ({"evaluation": {"metrics": ["json:absent"]}}, "evaluation.metrics: json:absent: json has no absent"),
        ({"loss": {"auxiliary": {"x": {"loss": "opl", "labels": "mood"}}}}, "x.labels has 'mood'"),
        ({"sampler": {"name": "metadata_matched", "columns": ["mood"]}}, "sampler.columns has 'mood'"),
        ({"sampler": {"name": "device_balanced", "devices": 9}}, "sampler.name is device_balanced: .*cannot be drawn"),
        ({"sampler": {"name": "patient_balanced", "patients": 99}}, "patient_balanced: .*cannot be drawn"),
        ({"train": {"moving_average": 1.0}}, r"must be less than 1"),
        ({"loss": {"auxiliary": {"patch_mix": {}}}}, "needs augment.mix with method: patch_mix"),
        ({"loss": {"auxiliary": {"opl": {}}}, "augment": {"mix": {}}}, "augment.mix gives soft labels; drop"),
        ({"loss": {"task": "focal"}, "augment": {"mix": {}}}, "not defined for the soft labels"),
        ({"augment": {"mix": {"method": "cut"}}}, "augment.mix.method is .cut."),
    ],
)
def test_contradicting_settings_stop_before_training_in_one_line(tiny_recipe, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(tiny_recipe, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_number_that_yaml_reads_as_text_is_an_argument_of_the_trainer():
    assert further_arguments({"adam_epsilon": "1e-6", "report_to": "none"}, {"report_to": "none"}) == {
        "adam_epsilon": 1e-6,
        "report_to": "none",
    }


@pytest.mark.parametrize(
    ("given", "values", "message"),
    [
        ({"save_only_model": True}, {}, "cannot be continued; leave it out"),
        ({"push_to_hub": True}, {}, "run laennec push"),
        ({"data_seed": 1}, {}, "no effect; set seed"),
        ({"dataloader_drop_last": True}, {}, "set sampler.name"),
        ({"optim": "sgd"}, {"adam_l2": True}, "train.optimizer is adam_l2"),
        ({"eval_delay": 3}, {"load_best_model_at_end": True, "num_train_epochs": 2}, "none of 2 epochs"),
    ],
)
def test_arguments_that_break_a_recipe_or_do_nothing_are_refused(given, values, message):
    with pytest.raises(InputError, match=message):
        further_arguments(given, values)


def test_an_argument_that_is_at_its_default_is_no_contradiction():
    assert further_arguments({"save_only_model": False, "do_train": False}, {})


def test_each_optimisation_rule_changes_what_it_should(tiny_recipe, tmp_path, monkeypatch):
    passes, original = [], LaennecTrainer.compute_loss

    def counted(self, model, *arguments, **settings):
        passes.append(model.training)
        return original(self, model, *arguments, **settings)

    monkeypatch.setattr(LaennecTrainer, "compute_loss", counted)
    found = {}
    for name, rule in {
        "plain": {"lr_scheduler_type": "constant"},
        "cosine": {"lr_scheduler_type": "constant", "epoch_cosine": True},
        "average": {"lr_scheduler_type": "constant", "moving_average": 0.5},
        "sam": {"lr_scheduler_type": "constant", "sam_rho": 0.1},
        "still": {"lr_scheduler_type": "constant", "sam_rho": 0.0},
    }.items():
        passes.clear()
        out = run(
            tiny_recipe,
            tmp_path / name,
            train=rule,
            augment={},
            encoder={"type": "statistics", "config": {"num_mel_bins": 64}},
        )
        found[name] = load_file(out / "model" / "model.safetensors"), history(out), passes.count(True)
    plain = found["plain"]
    assert [row["learning_rate"] for row in plain[1]] == [1e-3, 1e-3]
    rates = [row["learning_rate"] for row in found["cosine"][1]]
    assert rates == pytest.approx([1e-3 * epoch_cosine(e, 2) for e in (1, 2)])
    assert found["sam"][2] == found["still"][2] == 2 * plain[2]
    # without a climb (rho 0) both passes are equal; the logged loss is that of the first pass
    assert all(torch.allclose(found["still"][0][k], v, atol=1e-7) for k, v in plain[0].items())
    assert found["still"][1][0]["loss_terms"] == pytest.approx(plain[1][0]["loss_terms"])
    for name in ("cosine", "average", "sam"):
        assert not all(torch.equal(found[name][0][k], v) for k, v in plain[0].items()), name


def test_a_non_finite_embedding_stops_the_run_and_names_step_and_cycle(tiny_recipe, tmp_path, monkeypatch):
    original, seen = CycleDataset.__getitem__, []

    def spoilt(self, key):
        item = original(self, key)
        if isinstance(key, tuple) and key[0] == 3:
            seen.append(self.cycle_ids[3])
            item["waveform"] = np.full_like(item["waveform"], np.nan)
        return item

    monkeypatch.setattr(CycleDataset, "__getitem__", spoilt)
    with pytest.raises(InputError, match=r"step \d+: the embedding of .* is not finite \(bce\)") as caught:
        run(tiny_recipe, tmp_path / "run", augment={}, encoder={"type": "statistics", "config": {"num_mel_bins": 64}})
    assert f"embedding of {seen[0]} is" in str(caught.value)


def test_one_class_stops_before_training(tiny_recipe, tmp_path, monkeypatch):
    from laennec.training.data import split_data as parts

    original = parts.targets_of

    def alike(*arguments):
        targets = original(*arguments)
        targets.labels[:] = 0
        targets.class_ids[:] = 0
        return targets

    monkeypatch.setattr(parts, "targets_of", alike)
    with pytest.raises(InputError, match="have the same label"):
        run(tiny_recipe, tmp_path / "run")


def test_a_figure_that_validation_leaves_undefined_is_refused_before_training():
    truth = pd.DataFrame({"cycle_id": list("abcd"), "patient_id": list("ppqq"), "crackle": [0, 1, 0, 1]})
    truth = truth.assign(wheeze=0, label=["normal", "crackle", "normal", "crackle"]).astype({"crackle": "Int8"})
    metrics = ValidationMetrics(truth, "multi_label", ["crackle", "wheeze"])
    with pytest.raises(InputError, match=r"for the 4 validation cycles \(all or none have wheeze\); set train"):
        metrics.refuse_undefined("auroc_macro")
    metrics.refuse_undefined("icbhi_score")
    metrics.refuse_undefined("loss")
    truth["wheeze"] = [0, 1, 1, 0]
    ValidationMetrics(truth, "multi_label", ["crackle", "wheeze"]).refuse_undefined("auroc_macro")
