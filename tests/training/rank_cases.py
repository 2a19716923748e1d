"""One training of a small transformer and one objective, run by one process or by two; prints what came out.

Run as a script by `accelerate launch`, imported by the test for the single process.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import ASTConfig, TrainingArguments

from laennec.audio.augment import Gain, TimeShift, WaveformAugmentation
from laennec.audio.features import LaennecFeatureExtractor
from laennec.encoders import AstEncoder
from laennec.model import LaennecConfig, LaennecForAudioClassification
from laennec.training.auxiliary import Attached, AuxiliaryHeads
from laennec.training.batches import CycleDataset, Targets, collate_cycles
from laennec.training.config import LossSettings
from laennec.training.mixtures import Mixture
from laennec.training.objective import Objective, Stage
from laennec.training.sampler import EpochSampler
from laennec.training.trainer import LaennecTrainer

AUXILIARY = {
    "add": {"weight": 0.5},
    "opl": {"weight": 0.5},
    "supcon": {"temperature": 0.5, "projection_dim": 6},
    "device": {"loss": "supcon", "labels": "device", "detach_other_views": True, "temperature": 0.5},
    "ntxent": {"temperature": 0.5},
    "patient": {"within": 1.0, "between": 0.1},
    "device_adversarial": {"weight": 0.3},
    "clustering": {"clusters": 3, "dim": 4},
    "cluster_similarity": {"dim": 5},
    "reconstruction": {"weight": 0.1},
}
# each process mixes its own rows: cycles 0, 1, 2, 4, 5, 6 here, 3 and 7 there
PARTNERS = torch.tensor([4, 2, 1, 7, 5, 0, 6, 3])
SHARES = torch.linspace(0.2, 0.9, 8)
ROWS = 16
LABELS = np.arange(ROWS) % 3
GROUPS = {"device drop": np.array([0, 1, -1, 1] * 4), "patient drop": np.arange(ROWS) // 2 % 5}


def train(folder, batch_size):
    """Loss of two steps and the weights after them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ast = ASTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_length=64,
        layer_norm_eps=1e-6, initializer_range=0.5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = AstEncoder._from_config(ast)
    names = dict(enumerate("abc"))
    config = LaennecConfig(encoder.config, problem_type="single_label", pooling="mean", id2label=names)
    model = LaennecForAudioClassification(config, encoder)
    noise, seconds = np.random.default_rng(0), np.arange(9000) / 16000
    tones = [np.sin(2 * np.pi * 150 * 1.3**row * seconds) for row in range(ROWS)]
    sound = [(tone + 0.01 * noise.standard_normal(9000)).astype(np.float32) * 0.1 for tone in tones]
    targets = Targets(list("abc"), LABELS, LABELS, np.arange(ROWS))
    augmentation = WaveformAugmentation(gain=Gain(1.0), shift=TimeShift(1.0))
    dataset = CycleDataset(sound, targets, [str(i) for i in range(ROWS)], 16000, 0, augmentation)
    dataset.views, dataset.groups = 2, GROUPS
    settings = LossSettings(task="ce", class_weights=[1.0, 5.0, 0.2], task_views="all", auxiliary=AUXILIARY)
    objective = Objective(settings, False, LABELS, 3)
    heads = AuxiliaryHeads(objective.entries, 8, {"device_adversarial": 2}, 0)
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, max_steps=2, use_cpu=True, report_to="none",
        save_strategy="no", remove_unused_columns=False, learning_rate=0.01, max_grad_norm=0.0,
        lr_scheduler_type="constant", disable_tqdm=True, optim="sgd", weight_decay=0.0, logging_steps=1,
        dataloader_pin_memory=False,
    )  # fmt: skip
    with Attached(model, heads):
        trainer = LaennecTrainer(
            model, arguments, objective=objective, data_collator=collate_cycles, sampler=EpochSampler(ROWS, seed=0),
            feature_extractor=LaennecFeatureExtractor("ast", length="natural"), train_dataset=dataset,
        )  # fmt: skip
        trainer.train()
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trainer.accelerator.wait_for_everyone()
    return losses, weights


def objective_alone(rows):
    """Terms and the gradient of a shared weight when this process has only these rows of eight."""
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(2, 8, 4, generator=draw, dtype=torch.float64)[:, rows].flatten(0, 1)
    weight = torch.randn(4, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    vectors = features @ weight
    auxiliary = {k: v for k, v in AUXILIARY.items() if k != "device_adversarial"} | {"tuplet": {}}
    auxiliary |= {"supcon": {"temperature": 0.5}, "patch_mix": {"temperature": 0.5, "detach_clean": False}}
    settings = LossSettings(task="ce", class_weights=[1.0, 5.0, 0.2], auxiliary=auxiliary)
    objective = Objective(settings, False, LABELS, 3, negatives=50)
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])[rows]  # anchors 0-3, positives 4-7
    count = len(labels)
    batch = {
        "labels": labels, "class_ids": labels, "epochs": torch.zeros(count).long(), "cycle_numbers": torch.tensor(rows),
        "group_ids": {k: torch.tensor(v[:8])[rows] for k, v in GROUPS.items()},
    }  # fmt: skip
    place = {cycle: row for row, cycle in enumerate(rows)}
    index = torch.tensor([place[int(PARTNERS[cycle])] for cycle in rows])
    batch["mixture"] = Mixture(SHARES[rows], index, torch.zeros(count, 3), torch.zeros(count, 3))
    seen = groups_alone(rows, weight, objective)
    outputs = SimpleNamespace(logits=vectors[:, :3], embeddings=vectors, projections=None, auxiliary=seen)
    terms = objective(outputs, batch, Stage(), 1.0)
    torch.stack([t.double() for t in terms.values()]).sum().backward()
    return {name: float(value.detach()) for name, value in terms.items()}, weight.grad


def groups_alone(rows, weight, objective):
    """Frame groups of these cycles, clean and mixed: as many places as the one with most groups has."""
    draw = torch.Generator().manual_seed(2)
    centers = torch.randn(3, 4, generator=draw)
    objective.auxiliary.losses["clustering"].loss.centers.data = centers.double()
    objective.auxiliary.losses["cluster_similarity"].loss.double()
    counts = torch.tensor([3, 1, 5, 2, 4, 5, 1, 2])[rows].repeat(2)
    tokens = torch.randn(2, 8, 5, 4, generator=draw, dtype=torch.float64)[:, rows].flatten(0, 1)[:, : counts.max()]
    mask = torch.arange(int(counts.max())) < counts[:, None]
    seen = tokens @ weight
    return {
        "clustering": (seen[..., :4], mask),
        "cluster_similarity": (seen.mean(1, keepdim=True) * torch.arange(1.0, 4)[:, None],),
        "reconstruction": (seen[..., :4], tokens, mask),
    }


if __name__ == "__main__":
    out = Path(sys.argv[1])
    losses, weights = train(out / "two", 4)
    rank = torch.distributed.get_rank()
    # unequal halves; each keeps the order anchors, positives
    terms, gradient = objective_alone([0, 1, 2, 4, 5, 6] if rank == 0 else [3, 7])
    torch.distributed.all_reduce(gradient)
    if rank == 0:
        torch.save({"weights": weights, "gradient": gradient / 2}, out / "two.pt")
        (out / "two.json").write_text(json.dumps({"losses": losses, "terms": terms}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
