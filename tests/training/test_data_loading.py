"""What a Trainer beside a GPU is given; its arithmetic is run on a CPU here."""

import numpy as np
import torch

from laennec.training.data import CycleDataset, collate_cycles
from laennec.training.devices import device_settings, has_gpu, training_device
from laennec.training.targets import Targets


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


def test_what_draws_hang_on_stays_on_the_host():
    batch = collate_cycles([make_dataset(None)[(row, 2)] for row in range(4)])
    host = batch["on_host"]
    assert all(isinstance(values, np.ndarray) for values in host.values())
    assert host["epochs"].tolist() == [2] * 4 and host["lengths"].tolist() == batch["lengths"].tolist()
