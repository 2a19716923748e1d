"""Ratios of the gradients of auxiliary losses to that of the task loss, and the rule that keeps them constant."""

import json

import numpy as np
import pytest
import rank_cases
import torch
from objectives import make_objective
from safetensors.torch import load_file
from test_trainer import make_trainer

from forked import ranks
from laennec.errors import InputError
from laennec.losses import AngularDistanceDistributionLoss
from laennec.training.objectives.gradients import DECAY, gradient_ratios, head_inputs, weigh
from laennec.training.objectives.loss_specs import loss_specs
from laennec.training.objectives.objective import Stage, TermSums
from laennec.training.recipe import LossSettings, Recipe
from laennec.training.run import train
from laennec.training.trainer import LaennecTrainer
from runs import what_it_left
from ways import NOISE


def run(tiny_recipe, out, loss, **changes):
    settings = {**tiny_recipe, "loss": loss, **changes, "output_dir": str(out)}
    return train(Recipe(**settings | {"train": tiny_recipe["train"] | changes.get("train", {})}))


def history(out):
    return json.loads((out / "run.json").read_text())["history"]


def step(settings, progress=1.0, seed=0):
    """The objective, terms and embeddings of one step over eight rows, and the layer between embeddings and logits."""
    draw = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(8, 5, generator=draw, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 0, 1, 2, 1])
    batch = {"labels": labels, "class_ids": labels, "epochs": torch.zeros(8).long(), "cycle_numbers": torch.arange(8)}
    objective = make_objective(settings, False, labels.numpy(), 3)
    logits = embeddings @ torch.randn(5, 3, generator=draw)
    outputs = type("", (), {"logits": logits, "embeddings": embeddings, "projections": None})
    return objective, objective(outputs, batch, Stage(), progress), embeddings


def gradient(loss, embeddings):
    """Norm of the gradient of one loss, from a separate backward pass."""
    embeddings.grad = None
    loss.backward(retain_graph=True)
    return float(embeddings.grad.norm())


def test_a_ratio_is_that_of_two_backward_passes():
    auxiliary = {"add": {"weight": 0.3}, "supcon": {"views": 1}, "opl": {"weight": 0.0}}
    settings = LossSettings(task="ce", task_weight=0.5, auxiliary=auxiliary)
    objective, terms, embeddings = step(settings)
    kept, logged = weigh(terms, [embeddings], objective, None, {})
    assert all(kept[name] is value for name, value in terms.items()) and embeddings.grad is None
    task = gradient(terms["ce"], embeddings)
    add = gradient(sum(value for name, value in terms.items() if name.startswith("add")), embeddings)
    supcon = gradient(terms["supcon"], embeddings)
    assert logged == pytest.approx({"grad_ratio_add": add / task, "grad_ratio_supcon": supcon / task}, rel=1e-5)


def test_no_ratio_without_two_gradients():
    embeddings = torch.randn(4, 3, requires_grad=True)
    loss, elsewhere = embeddings.square().sum(), torch.randn(2, requires_grad=True).sum()
    losses = {"real": loss, "zero": 0 * loss, "constant": torch.tensor(2.0), "elsewhere": elsewhere}
    assert gradient_ratios(loss, losses, embeddings) == {"real": 1.0}
    assert gradient_ratios(0 * loss, losses, embeddings) == gradient_ratios(elsewhere, losses, embeddings) == {}
    objective, terms, frozen = step(LossSettings(task="ce", auxiliary={"add": {}}))
    assert weigh(terms, [frozen.detach()], objective, 0.5, {}) == (terms, {})


def test_the_factor_is_the_balance_over_the_moving_average_at_the_largest_weight():
    auxiliary = {"add": {"weight": 2.0}, "supcon": {"views": 1, "weight": 0.5, "warm_up": 0.5}}
    running, seen = {}, {"add": [], "supcon": []}
    for number in range(4):
        objective, terms, embeddings = step(LossSettings(task="ce", auxiliary=auxiliary), 0.25, seed=number)
        ratios = weigh(terms, [embeddings], objective, None, {})[1]
        balanced, logged = weigh(terms, [embeddings], objective, 0.5, running)
        for name, share in (("add", 1.0), ("supcon", 0.5 / 2 / 2)):  # a quarter of the weight, half warmed up
            seen[name].append(ratios[f"grad_ratio_{name}"] / share)
            decays = DECAY ** np.arange(number, -1, -1)
            factor = 0.5 / np.average(seen[name], weights=decays)
            assert logged[f"balance_{name}"] == pytest.approx(factor)
            assert logged[f"grad_ratio_{name}"] == pytest.approx(factor * ratios[f"grad_ratio_{name}"])
        own = [name for name in terms if name.startswith("add")]
        torch.testing.assert_close([balanced[n] for n in own], [logged["balance_add"] * terms[n] for n in own])
        assert balanced["ce"] is terms["ce"]
        if number == 0:
            assert logged["grad_ratio_add"] == pytest.approx(0.5)
            assert logged["grad_ratio_supcon"] == pytest.approx(0.5 / 8)


def test_sums_of_an_interrupted_epoch_resume_bit_for_bit():
    sums = TermSums()
    sums.add({"ce": torch.tensor(1.0)}, None, {"grad_ratio_add": 0.1 + 0.2})
    sums.add({"ce": torch.tensor(2.0)}, None)
    sums.running["add"] = (1 / 3, 1.9)
    again = TermSums.from_dict(json.loads(json.dumps(sums.to_dict())))
    assert again.means() == sums.means() and sums.means()["grad_ratio_add"] == 0.1 + 0.2  # over one step
    assert again.running == sums.running
    assert TermSums.from_dict({"terms": {}, "counts": {}, "steps": 0}).running == {}  # from before 0.2


@pytest.mark.parametrize("bf16", [False, True])
def test_logging_changes_no_bit_of_the_training(tiny_recipe, tmp_path, bf16):
    loss = {"auxiliary": {"add": {"weight": 0.2}, "supcon": {"views": 1, "projection_dim": 4}}}
    changes = {"augment": NOISE, "train": {"bf16": bf16}}
    plain = run(tiny_recipe, tmp_path / "plain", loss, **changes)
    logged = run(tiny_recipe, tmp_path / "logged", loss | {"log_gradients": True}, **changes)
    found = history(logged)
    ratios = [row.pop("grad_ratios") for row in found]
    assert all(set(row) == {"add", "supcon"} and min(row.values()) > 0 for row in ratios)
    assert found == history(plain) and "balance" not in found[0]
    assert what_it_left(logged)[:2] == what_it_left(plain)[:2]


def test_a_balanced_training_has_the_wanted_ratio_whatever_the_weight(tiny_recipe, tmp_path):
    means = {}
    for weight in (0.01, 10.0):
        auxiliary = {"add": {"weight": weight}, "supcon": {"views": 1, "weight": weight / 4}}
        loss = {"auxiliary": auxiliary, "balance": 0.5}
        out = run(tiny_recipe, tmp_path / str(weight), loss, train={"epochs": 4})
        rows = history(out)
        means[weight] = {name: np.mean([row["grad_ratios"][name] for row in rows]) for name in auxiliary}
        assert means[weight] == pytest.approx({"add": 0.5, "supcon": 0.125}, rel=0.15)
        assert all(set(row["balance"]) == set(auxiliary) for row in rows)
        for name in ("run.json", "recipe.json"):
            record = json.loads((out / name).read_text())
            assert record.get("config", record)["loss"]["balance"] == 0.5
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("0.01", "10.0")]
    assert means[0.01] == pytest.approx(means[10.0], rel=1e-2)
    assert all(torch.allclose(value, weights[1][name], atol=1e-2) for name, value in weights[0].items())


def test_the_trainer_takes_a_balance_too(tmp_path):
    losses = {"add": AngularDistanceDistributionLoss()}
    with pytest.raises(InputError, match=r"loss.balance is 0.5, which needs a trained encoder, and an auxiliary"):
        make_trainer(tmp_path, 8, 1, balance=0.5)
    for wrong in ({"balance": 0.0}, {"balance": 0.5, "task_weight": 0.0}):
        with pytest.raises(InputError, match="above 0"):
            make_trainer(tmp_path, 8, 1, losses=losses, **wrong)
    clusters = loss_specs({"clustering": {}})[0]
    with pytest.raises(InputError, match=r"loss.auxiliary.clustering has no gradient of its own at the embedding"):
        make_trainer(tmp_path, 8, 1, losses={"clustering": clusters}, balance=0.5)
    frozen = make_trainer(tmp_path, 8, 1, losses=losses)
    frozen.model.freeze_encoder()
    with pytest.raises(InputError, match=r"loss.balance is 0.5, which needs a trained encoder"):
        LaennecTrainer(
            frozen.model, make_trainer(tmp_path, 8, 1, losses=losses, balance=0.5).args,
            train_dataset=frozen.train_dataset, losses=losses, processing_class=frozen.processing_class,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"balance": 0.5}}, "but loss.auxiliary is empty"),
        ({"loss": {"balance": 0.5}, "encoder": {"trainable": "frozen"}}, "but loss.auxiliary is empty"),
        ({"loss": {"balance": 0.5, "auxiliary": {"add": {}}, "task_weight": 0}}, "but loss.task_weight is 0"),
        ({"loss": {"balance": 0.5, "auxiliary": {"add": {}}}, "encoder": {"trainable": "frozen"}}, "nothing to train"),
        ({"loss": {"balance": 0, "auxiliary": {"add": {}}}}, "loss.balance is 0; it must be greater than 0"),
        (
            {
                "loss": {"balance": 0.5, "auxiliary": {"tuplet": {}}},
                "sampler": {"name": "anchor_positive"},
                "schedule": {"name": "alternating"},
            },
            "schedule.name: alternating trains the encoder without the task loss",
        ),
        (
            {"loss": {"balance": 0.5, "auxiliary": {"add": {}}}, "schedule": {"name": "two_stage"}},
            "schedule.name: two_stage trains the encoder without the task loss",
        ),
    ],
)
def test_a_recipe_without_two_gradients_to_balance_is_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message):
        Recipe(**changes)


def test_the_head_takes_what_the_logits_come_from(tmp_path):
    model = make_trainer(tmp_path, 8, 1).model
    with head_inputs(model) as taken:
        outputs = model(torch.randn(3, 6, 64))
    assert len(taken) == 1 and torch.equal(taken[0], outputs.embeddings)
    model(torch.randn(3, 6, 64))
    assert len(taken) == 1


def test_two_processes_measure_the_ratio_of_the_whole_batch():
    def measure(rows):
        vectors, _, batch = rank_cases.drawn(rows)
        settings = LossSettings(task="ce", auxiliary={"add": {"weight": 0.5}, "supcon": {"temperature": 0.5}})
        objective = make_objective(settings, False, rank_cases.LABELS, 3)
        outputs = type("", (), {"logits": vectors[:, :3], "embeddings": vectors, "projections": None})
        return weigh(objective(outputs, batch, Stage(), 1.0), [vectors], objective, 0.5, {})[1]

    def one_of_two():
        torch.distributed.init_process_group("gloo")
        print(json.dumps(measure(rank_cases.UNEQUAL[torch.distributed.get_rank()])), flush=True)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    done = ranks(2, one_of_two)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == second
    assert first == pytest.approx(measure(list(range(8))), rel=1e-6)
