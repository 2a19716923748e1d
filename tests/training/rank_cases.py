"""Trainings of small encoders and single objectives in one process or in two; main writes the results to a file."""

import json
from types import SimpleNamespace

import numpy as np
import torch
from objectives import make_objective
from transformers import ASTConfig, TrainerCallback

from laennec.audio.augmentation import Gain, TimeShift, WaveformAugmentation
from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig
from laennec.encoders import AstEncoder, CnnConfig, CnnEncoder
from laennec.encoders.masks import MaskedBatchNorm2d
from laennec.modeling import LaennecForAudioClassification
from laennec.training.arguments import LaennecTrainingArguments
from laennec.training.data.batches import CycleDataset
from laennec.training.data.mixing import Mixture
from laennec.training.data.targets import Targets
from laennec.training.objectives.loss_specs import loss_specs
from laennec.training.objectives.objective import Stage
from laennec.training.recipe import LossSettings
from laennec.training.samplers import EpochSampler
from laennec.training.trainer import LaennecTrainer

AUXILIARY = {
    "add": {"weight": 0.5},
    "opl": {"weight": 0.5},
    "supcon": {"temperature": 0.5, "projection_dim": 6},
    "device": {"loss": "supcon", "labels": "device", "detach_other_views": True, "temperature": 0.5},
    "age_sex": {"loss": "supcon", "labels": "patient", "views": 1, "temperature": 0.5},
    "ntxent": {"temperature": 0.5},
    "patient": {"within": 1.0, "between": 0.1},
    "device_adversarial": {"weight": 0.3},
    "clustering": {"clusters": 3, "dim": 4},
    "cluster_similarity": {"dim": 5},
}
ROWS = 13  # in batches of 8: the second has 5, which two processes share as 3 and 2
LABELS = np.arange(ROWS) % 3
GROUPS = {"device drop": np.array([0, 1, -1, 1] * 4)[:ROWS], "patient drop": np.arange(ROWS) // 2 % 5}
# mixing shares, partners and rows of each process, by rank
SHARES, PARTNERS = {0: 0.7, 1: 0.4}, {0: [1, 2, 0, 4, 5, 3], 1: [1, 0]}
UNEQUAL = {0: [0, 1, 2, 4, 5, 6], 1: [3, 7]}


def make_encoder(kind):
    """A transformer, or a CNN with batch statistics over all processes, and its front end."""
    if kind == "ast":
        ast = ASTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_length=64,
            layer_norm_eps=1e-6, initializer_range=0.5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        return AstEncoder._from_config(ast), LaennecFeatureExtractor("ast", length="natural")
    encoder = CnnEncoder(CnnConfig(channels=[4, 8]))
    for module in encoder.modules():
        if isinstance(module, MaskedBatchNorm2d):
            module.synchronised = True
    return encoder, LaennecFeatureExtractor("song2021", length="natural")


class WeightsAtEnd(TrainerCallback):
    """Keeps the weights after the last step, including those of auxiliary losses."""

    def __init__(self, model, weights):
        self.model, self.weights = model, weights

    def on_train_end(self, *_, **kwargs):
        state = self.model.state_dict()
        self.weights |= {n: p.detach().clone() for n, p in state.items() if p.is_floating_point()}


def train(folder, batch_size, kind="ast"):
    """Losses and ratios of gradients of two steps (a whole epoch), and the weights after them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    encoder, extractor = make_encoder(kind)
    names = dict(enumerate("abc"))
    config = LaennecConfig(encoder_config=encoder.config, problem_type="single_label", pooling="mean", id2label=names)
    model = LaennecForAudioClassification(config, encoder)
    noise, seconds = np.random.default_rng(0), np.arange(9000) / 16000
    tones = [np.sin(2 * np.pi * 150 * 1.3**row * seconds) for row in range(ROWS)]
    sound = [(tone + 0.01 * noise.standard_normal(9000)).astype(np.float32) * 0.1 for tone in tones]
    sound = [s[: 9000 - 300 * (row % 4)] for row, s in enumerate(sound)]
    targets = Targets(list("abc"), LABELS, LABELS, np.arange(ROWS))
    augmentation = WaveformAugmentation(gain=Gain(1.0), shift=TimeShift(1.0))
    # with this seed no activation is so near to zero that rounding would switch its ReLU
    dataset = CycleDataset(sound, targets, [str(i) for i in range(ROWS)], 16000, 1, augmentation)
    dataset.views, dataset.groups = 2, GROUPS
    arguments = LaennecTrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, max_steps=2, use_cpu=True, report_to="none",
        save_strategy="no", learning_rate=0.01, max_grad_norm=0.0,
        lr_scheduler_type="constant", disable_tqdm=True, optim="sgd", weight_decay=0.0, logging_steps=1,
        dataloader_pin_memory=False, seed=0, class_weights=[1.0, 5.0, 0.2], task_views="all",
        log_gradients=True,
    )  # fmt: skip
    trainer = LaennecTrainer(
        model, arguments, train_dataset=dataset, processing_class=extractor, sampler=EpochSampler(ROWS, seed=0),
        losses={spec.name: spec for spec in loss_specs(AUXILIARY)},
    )  # fmt: skip
    weights = {}
    trainer.add_callback(WeightsAtEnd(model, weights))
    trainer.train()
    logs = [entry.items() for entry in trainer.state.log_history if "loss" in entry]
    losses = {f"{n} {k}": v for n, log in enumerate(logs) for k, v in log if k == "loss" or k.startswith("grad_ratio_")}
    trainer.accelerator.wait_for_everyone()
    return losses, weights


def drawn(rows):
    """Embeddings (2 * rows, 5) of both views of some of eight rows, first views first, their weight, and the batch."""
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(2, 8, 4, generator=draw, dtype=torch.float64)[:, rows].flatten(0, 1)
    weight = torch.randn(4, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0])[rows]  # anchors 0-3, positives 4-7
    batch = {
        "labels": labels, "class_ids": labels, "epochs": torch.zeros(len(rows)).long(),
        "cycle_numbers": torch.tensor(rows),
        "group_ids": {k: torch.tensor(v[:8])[rows] for k, v in GROUPS.items()},
    }  # fmt: skip
    return features @ weight, weight, batch


def terms_and_gradient(settings, vectors, weight, batch, multi_label=False, seen=lambda objective: None):
    """Loss terms by name, and the gradient of the shared weight; `seen` gives the inputs of single auxiliary losses."""
    flags = np.eye(3, dtype=np.float32)[LABELS]
    objective = make_objective(settings, multi_label, flags if multi_label else LABELS, 3, negatives=50)
    outputs = SimpleNamespace(logits=vectors[:, :3], embeddings=vectors, projections=None, auxiliary=seen(objective))
    terms = objective(outputs, batch, Stage(), 1.0)
    torch.stack([t.double() for t in terms.values()]).sum().backward()
    return {name: float(value.detach()) for name, value in terms.items()}, weight.grad


def objective_alone(rows):
    """All losses over pairs, for a process that has only these of eight rows."""
    vectors, weight, batch = drawn(rows)
    auxiliary = AUXILIARY | {"tuplet": {}, "supcon": {"temperature": 0.5}}
    settings = LossSettings(task="ce", class_weights=[1.0, 5.0, 0.2], auxiliary=auxiliary)

    def seen(objective):
        return {"device_adversarial": vectors[:, :2]} | groups_alone(rows, weight, objective)

    return terms_and_gradient(settings, vectors, weight, batch, seen=seen)


def groups_alone(rows, weight, objective):
    """Frame groups of both views of these cycles, padded to the largest number of groups."""
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
    }


def mixture_of(rank, labels):
    """The mixture of one process, with its own share and partners."""
    index = torch.tensor(PARTNERS[rank])
    flags = torch.nn.functional.one_hot(labels, 3).double()
    flags[labels == 2] = 0  # class 2 has neither label
    return Mixture(SHARES[rank], index, SHARES[rank] * flags + (1 - SHARES[rank]) * flags[index], flags)


def mixtures_alone(rank, rows):
    """The losses on mixtures: Patch-Mix contrast of clean and mixed copies, and ADD and BCE on soft labels."""
    found = []
    for auxiliary, task in (({"patch_mix": {"detach_clean": False}}, "focal"), ({"add": {}}, "bce")):
        vectors, weight, batch = drawn(rows)
        flags = torch.nn.functional.one_hot(batch["labels"], 3).double()
        batch |= {"labels": flags, "mixture": mixture_of(rank, batch["labels"])}
        settings = LossSettings(task=task, class_weights=[1.0, 5.0, 0.2], auxiliary=auxiliary)
        vectors = vectors if "patch_mix" in auxiliary else vectors[: len(rows)]
        found.append(terms_and_gradient(settings, vectors, weight, batch, multi_label=True))
    return found


def main(out):
    found, tensors, rank = {"train": {}, "terms": []}, {}, 0
    for kind in ("ast", "cnn"):
        losses, weights = train(out / "two", 4, kind)
        rank = torch.distributed.get_rank()
        found["train"][kind] = losses
        tensors |= {f"{kind}.{name}": value for name, value in weights.items()}
    # unequal halves; each half has its anchors before its positives
    for place, (terms, gradient) in enumerate([objective_alone(UNEQUAL[rank]), *mixtures_alone(rank, UNEQUAL[rank])]):
        torch.distributed.all_reduce(gradient)
        found["terms"].append(terms)
        tensors[f"gradient.{place}"] = gradient / 2
    if rank == 0:
        torch.save(tensors, out / "two.pt")
        (out / "two.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
