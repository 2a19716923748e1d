"""Checks before the first training step."""

import logging

import datasets
import numpy as np
import pytest
from torch.utils.data import SequentialSampler

from laennec.errors import InputError
from laennec.training.coverage import coverage_lines
from laennec.training.data.batches import CycleDataset
from laennec.training.data.targets import Targets, refuse_one_class
from laennec.training.objectives.loss_specs import check_draws, groups_of_data, loss_specs
from laennec.training.recipe import Recipe
from laennec.training.samplers import (
    ClassesTimesSamplesSampler,
    EpochSampler,
    MetadataMatchedSampler,
)
from laennec.training.schedules import sampler_of_recipe

CLASSES = np.arange(12) % 3


def dataset_of(rows, metadata):
    """A data set with these metadata columns."""
    ids = np.arange(rows)
    return CycleDataset(None, Targets(["a"], ids, ids, ids, metadata), list(map(str, ids)), 8000, 0)


def lines_of(specs, sampler, size, devices):
    """The lines about positive pairs, without the line about the sampler."""
    return coverage_lines("shuffle", sampler, size, CLASSES, specs, {"device drop": devices})[1:]


def test_labels_of_one_class_are_refused():
    flags = np.tile(np.float32([1, 0]), (4, 1))
    with pytest.raises(InputError, match=r"all 4 training cycles have the same label \(crackle 1, wheeze 0\)"):
        refuse_one_class(Targets(["crackle", "wheeze"], flags, np.ones(4, int), np.arange(4)))
    with pytest.raises(InputError, match=r"have the same label \(COPD\)"):
        refuse_one_class(Targets(["Asthma", "COPD"], np.ones(4, int), np.ones(4, int), np.arange(4)))
    refuse_one_class(Targets(["a", "b"], CLASSES[:2], CLASSES[:2], np.arange(2)))


def test_groups_follow_the_entries_and_unknown_cycles_are_named(caplog):
    entries = loss_specs({"add": {}, "x": {"loss": "supcon", "labels": "sex"}, "patient": {}})
    metadata = {"cycle_id": list("pqrs"), "sex": ["F", None, "M", "F"], "patient_id": list("aabb")}
    with caplog.at_level(logging.WARNING):
        found = groups_of_data(dataset_of(4, metadata), entries)
    assert {name: codes.tolist() for name, codes in found.items()} == {
        "sex drop": [0, -1, 1, 0],
        "patient drop": [0, 0, 1, 1],
    }
    assert "loss.auxiliary.x: sex is unknown for 1 of 4 cycles (q)" in caplog.text
    with pytest.raises(InputError, match=r"loss.auxiliary.d.labels is 'device', which is the same for all"):
        groups_of_data(dataset_of(2, {"device": ["m", "m"]}), loss_specs({"d": {"loss": "supcon", "labels": "device"}}))


def test_two_views_need_augmentation_without_mixing():
    entries = loss_specs({"supcon": {}})
    check_draws(entries, mixes=False, draws=True)
    check_draws(loss_specs({"add": {}}), mixes=True, draws=False)
    with pytest.raises(InputError, match="without augmentation they are equal"):
        check_draws(entries, mixes=False, draws=False)
    with pytest.raises(InputError, match="mixes them; drop one"):
        check_draws(loss_specs({"patch_mix": {}, "supcon": {}}), mixes=True, draws=True)


def test_groups_by_label_need_labels_that_augmentation_keeps():
    entries = loss_specs({"add": {"labels": "class + patient"}})
    check_draws(entries, mixes=False, draws=True)
    for name, draws in (("mix", {"mixes": True}), ("concatenate_probability", {"mixes": False, "concatenates": True})):
        with pytest.raises(InputError, match=rf"groups by the label of a cycle, and augment.{name} changes it"):
            check_draws(entries, draws=True, **draws)
    check_draws(loss_specs({"add": {"labels": "patient"}}), mixes=True, draws=True)
    with pytest.raises(InputError, match="labels is stridor, which groups by the label"):
        check_draws(loss_specs({"add": {"labels": "stridor"}}), mixes=True, draws=True, names=["stridor"])


@pytest.mark.parametrize(
    ("given", "sampler", "size", "message"),
    [
        ({"add": {}}, EpochSampler(12), 1, "holds two cycles of one class; set sampler.name: classes_times_samples"),
        ({"patient": {}}, EpochSampler(12), 1, "holds two cycles of one patient; set sampler.name: patient_balanced"),
        ({"patient": {}}, ClassesTimesSamplesSampler(np.arange(12) // 2, 1, 2), 2, "two groups by patient; set"),
        ({"d": {"loss": "opl", "labels": "device"}}, EpochSampler(12), 1, "set sampler.name: device_balanced"),
        ({"s": {"loss": "opl", "labels": "sex"}}, EpochSampler(12), 1, "set sampler.name: shuffle with a larger"),
        (
            {"s": {"loss": "supcon", "labels": "sex"}},
            MetadataMatchedSampler(np.arange(12) % 2, 4),
            4,
            "two groups by sex",
        ),
    ],
)
def test_batches_without_a_pair_stop_the_run_and_name_the_sampler(given, sampler, size, message):
    groups = {"patient drop": np.arange(12) // 2, "device drop": CLASSES, "sex drop": np.arange(12) % 2}
    with pytest.raises(InputError, match=message):
        coverage_lines("shuffle", sampler, size, CLASSES, loss_specs(given), groups)


def test_positive_pairs_of_batches_are_reported_without_unknown_cycles():
    entries = loss_specs({"add": {}, "d": {"loss": "opl", "labels": "device"}, "ntxent": {}, "device_adversarial": {}})
    devices = np.array([-1] * 8 + [0, 0, 1, 1])
    lines = lines_of(entries, EpochSampler(12), 12, devices)
    rest = "an epoch of 1 batches covers 100.0 % of the cycles"
    assert lines == [
        f"add: by class, 36 positive pairs in a batch of 12 (fewest 36); {rest}",
        f"d: by device, 4 positive pairs in a batch of 12 (fewest 4); {rest}",
    ]
    few = ClassesTimesSamplesSampler(devices, 2, 2)
    assert "covers 33.3 % of the cycles" in lines_of(entries[1:2], few, 4, devices)[0]
    assert lines_of(entries, SequentialSampler(range(12)), 4, devices) == []


def test_cycles_that_a_sampler_leaves_out_are_named(caplog):
    rows = np.arange(4)
    targets = Targets(["a"], rows, rows, rows, {"cycle_id": list("pqrs"), "device": ["m", None, "l", "m"]})
    recipe = Recipe(sampler={"name": "device_balanced", "samples": 1})
    table = datasets.Dataset.from_dict({"patient_id": list("aabb")})
    sampler, size = sampler_of_recipe("device_balanced", recipe, targets, table)
    assert size == 2 and 1 not in sampler.order(0)
    assert "device unknown for 1 of 4 cycles (q)" in caplog.text and "own_group keeps them" in caplog.text
