import datasets
import numpy as np
import pytest
import torch

from laennec.audio.augment import Gain, WaveformAugmentation
from laennec.training.batches import (
    Concatenation,
    CycleDataset,
    EmbeddingDataset,
    Targets,
    collate_cycles,
    collate_embeddings,
    cycle_numbers,
    targets_of,
)
from laennec.training.config import ConfigError, TargetSettings


@pytest.fixture
def table():
    return datasets.Dataset.from_dict(
        {
            "cycle_id": ["a", "b", "c", "d", "e"],
            "crackle": [0, 1, 0, 1, None],
            "wheeze": [0, 0, 1, 1, None],
            "label": [0, 1, 2, 3, None],
            "events": [["Normal"], ["Fine Crackle"], ["Wheeze"], ["Wheeze", "Fine Crackle"], []],
            "diagnosis": ["COPD", "Asthma", None, "COPD", "COPD"],
        }
    )


def test_two_labels_come_from_the_flags_and_rows_without_any_are_left_out(table):
    targets = targets_of(table, TargetSettings())
    assert targets.names == ["crackle", "wheeze"]
    assert targets.labels.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert targets.class_ids.tolist() == [0, 1, 2, 3]
    assert targets.kept.tolist() == [0, 1, 2, 3]


def test_four_classes_come_from_the_label(table):
    targets = targets_of(table, TargetSettings("single_label"))
    assert targets.names == ["normal", "crackle", "wheeze", "both"] and targets.labels.tolist() == [0, 1, 2, 3]


def test_any_column_can_be_the_answer(table):
    targets = targets_of(table, TargetSettings("single_label", "diagnosis"))
    assert targets.names == ["Asthma", "COPD"]
    assert targets.labels.tolist() == [1, 0, 1, 1] and targets.kept.tolist() == [0, 1, 3, 4]
    events = targets_of(table, TargetSettings("multi_label", "events"))
    assert events.names == ["Fine Crackle", "Normal", "Wheeze"]
    assert events.labels.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 1]]


def test_an_answer_that_training_did_not_have_is_an_error(table):
    with pytest.raises(ConfigError, match=r"'COPD' of column 'diagnosis' is none of Asthma"):
        targets_of(table, TargetSettings("single_label", "diagnosis"), ["Asthma"])
    with pytest.raises(ConfigError, match=r"target.column is 'mood'"):
        targets_of(table, TargetSettings("single_label", "mood"))
    with pytest.raises(ConfigError, match=r"'rhonchus', which is no column"):
        targets_of(table, TargetSettings(names=["crackle", "rhonchus"]))


def make(augmentation=None, concatenation=None, seed=0):
    sounds = [np.full(4 + row, float(row + 1), np.float32) for row in range(4)]
    flags = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    targets = Targets(["crackle", "wheeze"], flags, np.arange(4), np.arange(4))
    return CycleDataset(sounds, targets, ["a", "b", "c", "d"], 16000, seed, augmentation, concatenation)


def test_a_draw_depends_on_seed_epoch_and_cycle_and_on_nothing_else():
    augmentation = WaveformAugmentation(gain=Gain(1.0, -6.0, 6.0))
    dataset = make(augmentation)
    first = dataset[(2, 5)]["waveform"]
    dataset[(1, 5)], dataset[(2, 6)]
    assert np.array_equal(dataset[(2, 5)]["waveform"], first)
    assert np.array_equal(make(augmentation)[(2, 5)]["waveform"], first)
    assert not np.array_equal(dataset[(2, 6)]["waveform"], first)
    assert not np.array_equal(make(augmentation, seed=1)[(2, 5)]["waveform"], first)
    assert np.array_equal(dataset[2]["waveform"], np.full(6, 3.0, np.float32))


def test_joining_ors_the_labels_and_lengthens_the_sound():
    dataset = make(concatenation=Concatenation(1.0, np.array([2])))
    item = dataset[(1, 0)]
    assert len(item["waveform"]) == 5 + 6 and item["label"].tolist() == [1, 1] and item["class_id"] == 3
    assert dataset.label_at(1, 0).tolist() == [1, 1]
    assert dataset[1]["label"].tolist() == [1, 0]


def test_two_views_are_two_draws_of_which_the_first_is_that_of_one_view():
    augmentation = WaveformAugmentation(gain=Gain(1.0, -6.0, 6.0))
    single, double = make(augmentation), make(augmentation, Concatenation(1.0, np.array([2])))
    single.concatenation = double.concatenation
    double.views = 2
    item = double[(1, 5)]
    (second,) = item["other_views"]
    assert np.array_equal(item["waveform"], single[(1, 5)]["waveform"])
    assert len(second) == len(item["waveform"]) and not np.allclose(second, item["waveform"])
    assert np.array_equal(second, double[(1, 5)]["other_views"][0])
    assert not np.allclose(second, double[(1, 6)]["other_views"][0])
    assert double[1]["other_views"] == []


def test_first_views_stand_before_second_ones_and_labels_once():
    dataset = make(WaveformAugmentation(gain=Gain(1.0, -6.0, 6.0)))
    dataset.views, dataset.groups = 2, {"device drop": np.array([0, -1, 1, 1])}
    batch = collate_cycles([dataset[(0, 1)], dataset[(3, 1)]])
    assert batch["waveforms"].shape == (4, 7) and batch["lengths"].tolist() == [4, 7, 4, 7]
    assert np.array_equal(batch["waveforms"][3], dataset[(3, 1)]["other_views"][0])
    assert batch["labels"].shape == (2, 2) and batch["class_ids"].tolist() == [0, 3]
    assert batch["group_ids"]["device drop"].tolist() == [0, 1]


def test_targets_carry_the_metadata_of_the_rows_that_are_kept(table):
    assert targets_of(table, TargetSettings()).metadata["cycle_id"] == ["a", "b", "c", "d"]
    assert targets_of(table, TargetSettings()).metadata["diagnosis"] == ["COPD", "Asthma", None, "COPD"]


def test_cycle_numbers_follow_the_id_not_the_row():
    assert cycle_numbers(["x", "y"])[1] == cycle_numbers(["y"])[0]
    assert (cycle_numbers([str(i) for i in range(1000)]) >= 0).all()


def test_collating_pads_with_zeros_and_keeps_true_lengths():
    dataset = make()
    batch = collate_cycles([dataset[(0, 1)], dataset[(3, 1)]])
    assert batch["lengths"].tolist() == [4, 7] and batch["waveforms"].shape == (2, 7)
    assert batch["waveforms"][0].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert batch["epochs"].tolist() == [1, 1] and batch["labels"].dtype == torch.float32


def test_embeddings_take_the_copy_of_their_epoch():
    embeddings = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    dataset = EmbeddingDataset(embeddings, np.arange(6).reshape(2, 3))
    assert dataset[(1, 3)]["embeddings"].tolist() == embeddings[1, 1].tolist()
    assert dataset[1]["embeddings"].tolist() == embeddings[0, 1].tolist()
    assert collate_embeddings([dataset[(1, 3)], dataset[2]])["labels"].tolist() == [4, 2]
