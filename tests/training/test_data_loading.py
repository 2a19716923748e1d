"""What a Trainer beside a GPU is given; its arithmetic is run on a CPU here."""

import numpy as np
import pytest
import torch

from laennec.audio.augmentation import Gain, TimeShift, TimeStretch, WaveformAugmentation, WhiteNoise
from laennec.audio.features import LaennecFeatureExtractor
from laennec.training.data import CycleDataset, Targets, collate_cycles
from laennec.training.data_loading import augment_on_device, device_settings, has_gpu, training_device
from laennec.training.recipe_settings import LossSettings, Recipe
from laennec.training.schedules import make_arguments, phases_of
from laennec.training.trainer import LaennecTrainer


def make_dataset(augmentation, views=1):
    rng = np.random.default_rng(0)
    sound = [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (16000, 24000, 20000, 17001)]
    flags = np.eye(4, 2, dtype=np.float32)
    dataset = CycleDataset(
        sound, Targets(["crackle", "wheeze"], flags, flags.sum(1).astype(np.int64), np.arange(4)), list("abcd"), 16000,
        3, augmentation,
    )  # fmt: skip
    dataset.views = views
    return dataset


def make_trainer(folder, dataset, augmentation):
    from laennec.configuration import LaennecConfig
    from laennec.encoders import load_encoder
    from laennec.modeling import LaennecForAudioClassification
    from laennec.training.objective import Objective

    encoder = load_encoder(None, type="statistics", num_mel_bins=64)
    config = LaennecConfig(encoder_config=encoder.config, id2label={0: "crackle", 1: "wheeze"})
    recipe = Recipe()
    return LaennecTrainer(
        LaennecForAudioClassification(config, encoder), make_arguments(recipe, phases_of(recipe)[0], folder, 4),
        objective=Objective(LossSettings(), True, dataset.targets.labels, 2), data_collator=collate_cycles, seed=3,
        feature_extractor=LaennecFeatureExtractor("song2021", length="natural"), train_dataset=dataset,
        eval_dataset=dataset, waveform_augment=augmentation,
    )  # fmt: skip


def test_only_beside_a_gpu_batches_are_read_ahead_and_pinned():
    alone, beside = device_settings(None, False), device_settings(None, True)
    assert alone["use_cpu"] and not beside["use_cpu"]
    assert (alone["dataloader_num_workers"], alone["dataloader_pin_memory"]) == (0, False)
    assert 1 <= beside["dataloader_num_workers"] <= 8 and beside["dataloader_prefetch_factor"]
    assert beside["dataloader_pin_memory"] and beside["accelerator_config"] == {"non_blocking": True}
    assert (
        device_settings(3, False)["dataloader_num_workers"] == device_settings(3, True)["dataloader_num_workers"] == 3
    )


def test_several_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert device_settings(None, True)["dataloader_num_workers"] == 7
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_settings(None, True)["dataloader_num_workers"] == 1


def test_a_gpu_that_accelerate_is_told_to_leave_alone_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert has_gpu() and training_device() == torch.device("cuda", 1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not has_gpu() and training_device() == torch.device("cpu")


def test_a_dataset_is_augmented_by_itself_or_by_the_trainer():
    parts = WaveformAugmentation(gain=Gain(1.0))
    dataset = make_dataset(parts)
    assert augment_on_device(dataset, False) is None
    assert not np.array_equal(dataset[(0, 1)]["waveform"], dataset.waveforms[0])
    assert augment_on_device(dataset, True) is parts
    assert np.array_equal(dataset[(0, 1)]["waveform"], dataset.waveforms[0])
    assert augment_on_device([1, 2], True) is None  # embeddings


@pytest.mark.parametrize("views", [1, 2])
def test_a_batch_augmented_by_the_trainer_is_the_one_augmented_by_the_dataset(tmp_path, views):
    parts = WaveformAugmentation(shift=TimeShift(0.7), gain=Gain(0.7), stretch=TimeStretch(0.7))
    dataset = make_dataset(parts, views)
    keys = [(2, 5), (0, 5), (3, 5), (1, 5)]
    one = make_trainer(tmp_path / "a", dataset, None)
    one.model.train()
    expected = one._prepare_inputs(collate_cycles([dataset[key] for key in keys]))
    assert augment_on_device(dataset, True) is parts
    later = make_trainer(tmp_path / "b", dataset, parts)
    later.model.train()
    found = later._prepare_inputs(collate_cycles([dataset[key] for key in keys]))
    assert found["input_values"].shape == expected["input_values"].shape
    torch.testing.assert_close(found["input_values"], expected["input_values"], atol=1e-3, rtol=0)
    assert torch.equal(found["attention_mask"], expected["attention_mask"])


def test_the_trainer_augments_training_cycles_and_no_others(tmp_path):
    parts = WaveformAugmentation(noise=WhiteNoise(1.0))
    dataset = make_dataset(parts)
    augment_on_device(dataset, True)
    trainer = make_trainer(tmp_path, dataset, parts)
    plain = trainer._prepare_inputs(collate_cycles([dataset[row] for row in range(4)]))["input_values"]
    trainer.model.train()
    noisy = trainer._prepare_inputs(collate_cycles([dataset[(row, 0)] for row in range(4)]))["input_values"]
    trainer.model.eval()
    assert not torch.equal(plain, noisy)
    again = trainer._prepare_inputs(collate_cycles([dataset[(row, 0)] for row in range(4)]))["input_values"]
    assert torch.equal(plain, again)


def test_what_draws_hang_on_stays_on_the_host():
    batch = collate_cycles([make_dataset(None)[(row, 2)] for row in range(4)])
    host = batch["on_host"]
    assert all(isinstance(values, np.ndarray) for values in host.values())
    assert host["epochs"].tolist() == [2] * 4 and host["lengths"].tolist() == batch["lengths"].tolist()
