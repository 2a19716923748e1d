import json
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import rank_cases
import torch

from forked import ranks
from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder
from laennec.ensemble import ensemble_models
from laennec.errors import InputError
from laennec.losses import AUXILIARY_LOSSES, AngularDistanceDistributionLoss, PatchMixContrastiveLoss, SupConLoss
from laennec.modeling import LaennecForAudioClassification
from laennec.training.arguments import LaennecTrainingArguments, resolved_arguments
from laennec.training.data.batches import CycleDataset
from laennec.training.data.targets import Targets
from laennec.training.samplers import EpochSampler
from laennec.training.tables import default_metrics
from laennec.training.trainer import LaennecTrainer


def make_trainer(folder, batch_size, accumulation, steps=2, losses=None, **settings):
    torch.manual_seed(0)
    encoder = load_encoder(None, type="statistics", num_mel_bins=64)
    config = LaennecConfig(encoder_config=encoder.config, id2label={0: "crackle", 1: "wheeze"})
    model = LaennecForAudioClassification(config, encoder)
    draw = np.random.default_rng(0)
    sound = [draw.standard_normal(8000).astype(np.float32) * 0.1 for _ in range(16)]
    flags = (draw.random((16, 2)) < 0.5).astype(np.float32)
    targets = Targets(["crackle", "wheeze"], flags, flags.sum(1).astype(np.int64), np.arange(16))
    dataset = CycleDataset(sound, targets, [str(i) for i in range(16)], 16000, 0)
    arguments = LaennecTrainingArguments(
        str(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation, max_steps=steps,
        use_cpu=True, report_to="none", save_strategy="no", learning_rate=0.1,
        max_grad_norm=0.0, lr_scheduler_type="constant", disable_tqdm=True, optim="sgd", weight_decay=0.0,
        **settings,
    )  # fmt: skip
    return LaennecTrainer(
        model, arguments, train_dataset=dataset, sampler=EpochSampler(16, seed=0), losses=losses,
        processing_class=LaennecFeatureExtractor("song2021", length="natural"),
    )  # fmt: skip


def test_accumulating_four_batches_of_two_is_one_batch_of_eight(tmp_path):
    whole, parts = make_trainer(tmp_path / "a", 8, 1), make_trainer(tmp_path / "b", 2, 4)
    whole.train()
    parts.train()
    one, two = whole.model.head.state_dict(), parts.model.head.state_dict()
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)


def test_a_loss_of_a_projection_that_the_model_does_not_have_is_refused_before_training(tmp_path):
    loss = AngularDistanceDistributionLoss()
    loss.on = "projection"
    with pytest.raises(InputError, match=r"losses\['add'\].on is projection, but .* set its projection_dim"):
        make_trainer(tmp_path, 8, 1, losses={"add": loss})


def test_accumulation_is_refused_for_losses_that_compare_cycles(tmp_path):
    with pytest.raises(InputError, match=r"losses\['mine'\] looks at pairs of a batch, and with gradient_accum"):
        make_trainer(tmp_path, 2, 4, losses={"mine": torch.nn.CosineEmbeddingLoss()})
    alone = torch.nn.CosineEmbeddingLoss()
    alone.across_cycles = False
    make_trainer(tmp_path, 2, 4, losses={"mine": alone})


def test_two_views_without_augmentation_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"without augmentation they are equal; set .* in Python augmentation"):
        make_trainer(tmp_path, 8, 1, losses={"supcon": SupConLoss()})


def test_age_bands_have_the_edges_of_recipes(tmp_path):
    first, loss = make_trainer(tmp_path, 8, 1), AngularDistanceDistributionLoss()
    first.train_dataset.targets.metadata["age_years"] = [3.0, 30.0] * 8
    loss.labels = "age_band"
    given = {"processing_class": first.processing_class, "losses": {"age": loss}}
    trainer = LaennecTrainer(first.model, first.args, first.train_dataset, **given)
    assert trainer.group_codes["age_band drop"].tolist() == [0, 1] * 8


@pytest.mark.parametrize("setting", [{"label_smoothing_factor": 0.5}, {"train_sampling_strategy": "sequential"}])
def test_arguments_without_effect_are_refused(tmp_path, setting):
    with pytest.raises(InputError, match=f"{next(iter(setting))} .*has no effect; leave it out"):
        make_trainer(tmp_path, 8, 1, **setting)


def test_a_model_is_not_trained_with_another_front_end(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1)
    other = LaennecFeatureExtractor("efficientat")
    with pytest.raises(InputError, match="processing_class has other settings than the one"):
        LaennecTrainer(trainer.model, trainer.args, trainer.train_dataset, processing_class=other)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.DataFrame({"crackle": [1]}), "a DataFrame is no data set"),
        (datasets.DatasetDict(), "a DatasetDict is no data set; pass one of its splits"),
        (datasets.Dataset.from_dict({"crackle": []}), "train_dataset has no rows"),
    ],
)
def test_what_is_no_training_set_is_refused(tmp_path, data, message):
    trainer = make_trainer(tmp_path, 8, 1)
    with pytest.raises(InputError, match=message):
        trainer._prepared(data, training=True)


def test_thresholds_need_one_set_of_labelled_cycles(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1)
    for data in (None, {"a": trainer.train_dataset}):
        with pytest.raises(InputError, match="fit_thresholds needs one data set"):
            trainer.fit_thresholds(data)
    with pytest.raises(InputError, match="the validation data have none"):
        trainer.fit_thresholds(torch.utils.data.Subset(trainer.train_dataset, []))
    with pytest.raises(InputError, match="sensitivity is 8"):
        trainer.fit_thresholds(trainer.train_dataset, rule="sensitivity", sensitivity=8)


def test_training_forgets_what_holds_for_the_old_weights(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1)
    model, config = trainer.model, trainer.model.config
    model.name_or_path, config.summary, config.temperatures = "old", "An old model.", {"crackle": 2.0}
    config.operating_points = {"windows": {"thresholds": {"crackle": 0.1}, "window_s": 3.0, "hop_s": 1.5}}
    points = config.operating_points
    trainer.train()
    assert (model.name_or_path, config.summary, config.temperatures, config.operating_points) == ("", None, {}, {})
    config.operating_points = points
    trainer.fit_thresholds(trainer.train_dataset)
    assert config.thresholds and not config.operating_points


def test_a_trained_ensemble_has_one_head(tmp_path):
    one, two = (make_trainer(tmp_path, 8, 1) for _ in range(2))
    torch.nn.init.normal_(two.model.head.classifier.weight)
    given = {"processing_class": one.processing_class}
    trainer = LaennecTrainer(ensemble_models([one.model, two.model]), one.args, one.train_dataset, **given)
    trainer.train()
    trainer.save_model()
    again = LaennecForAudioClassification.from_pretrained(tmp_path)
    assert again.config.head_members == again.head.members == 0
    torch.testing.assert_close(again.head.state_dict(), trainer.model.head.state_dict(), rtol=0, atol=0)


def test_evaluation_takes_every_row_and_its_loss_is_that_of_the_logits(tmp_path):
    trainer = make_trainer(tmp_path, 5, 1, dataloader_drop_last=True, per_device_eval_batch_size=5)
    assert (len(trainer.get_train_dataloader()), len(trainer.get_eval_dataloader(trainer.train_dataset))) == (3, 4)
    assert len(trainer.predict(trainer.train_dataset).label_ids) == 16
    wanted = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = None, lambda logits, _: logits[0].argmax(-1)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == pytest.approx(wanted, abs=1e-6)


def test_a_search_changes_the_moving_average(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1)
    trainer.args.moving_average = 0.999999
    before = trainer.model.head.classifier.weight.clone()
    trainer.train()
    torch.testing.assert_close(trainer.model.head.classifier.weight, before, atol=1e-4, rtol=0)


def test_an_auxiliary_task_cannot_have_the_name_of_another_term(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1)
    trainer.auxiliary_tasks = SimpleNamespace(
        append_recordings=lambda inputs, _: inputs, terms=lambda _, outputs, __: (outputs, {"bce": torch.zeros(())})
    )
    with pytest.raises(InputError, match="two terms of the loss are named 'bce'; rename"):
        trainer.train()


def test_encoder_and_head_learn_at_their_own_rates(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1, head_learning_rate=0.5)
    rates = {g["lr"] for g in trainer.create_optimizer().param_groups}
    assert rates == {0.5}  # an encoder without weights has nothing to learn
    learnt = [p for g in trainer.optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in learnt} == {id(p) for p in trainer.model.head.parameters()}


def test_evaluating_again_makes_no_further_loader(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1)
    loaders = []
    for _ in range(3):
        trainer.evaluate(trainer.train_dataset)
        loaders.append(len(trainer.accelerator._dataloaders))
    assert loaders == loaders[:1] * 3
    trainer.eval_dataset = torch.utils.data.Subset(trainer.train_dataset, [0, 1])
    assert len(trainer.get_eval_dataloader()) == 1 < len(trainer.get_eval_dataloader(trainer.train_dataset))


def test_the_front_end_is_recorded_and_metrics_have_a_default(tmp_path):
    trainer = make_trainer(tmp_path, 8, 1)
    config = trainer.model.config
    assert config.sampling_rate == 16000
    assert config.features_fingerprint == trainer.processing_class.fingerprint()
    values = trainer.evaluate(trainer.train_dataset)
    assert {"eval_loss", "eval_icbhi.Score", "eval_roc_auc_macro"} <= set(values)
    single = SimpleNamespace(label_names=["a", "b", "c"], is_multi_label=False)
    logits, classes = np.eye(3, dtype=np.float32), np.arange(3)
    found = default_metrics(single)(SimpleNamespace(predictions=logits, label_ids=classes))
    assert found["accuracy"] == pytest.approx(100) and found["uar"] == pytest.approx(100)


def test_the_arguments_of_the_caller_stay_as_they_are(tmp_path):
    given = LaennecTrainingArguments(str(tmp_path), save_total_limit=1, push_to_hub=False, report_to=[])
    before = given.to_dict()
    found = resolved_arguments(given)
    assert given.to_dict() == before
    assert (found.save_total_limit, found.remove_unused_columns) == (2, False)


def test_two_processes_of_half_the_batch_are_one_of_the_whole(tmp_path):
    done = ranks(2, lambda: rank_cases.main(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "two.json").read_text())
    tensors = torch.load(tmp_path / "two.pt", weights_only=True)
    # an epoch of 13 cycles: a batch of 8 and one of 5, which the processes share as 3 and 2
    for kind in ("ast", "cnn"):
        losses, weights = rank_cases.train(tmp_path / "one", 8, kind)
        assert found["train"][kind] == pytest.approx(losses, rel=1e-4, abs=1e-5)
        assert {"0 loss", "1 loss", "1 grad_ratio_add", "1 grad_ratio_device_adversarial"} <= set(losses)
        for name, weight in weights.items():
            torch.testing.assert_close(tensors[f"{kind}.{name}"], weight, rtol=1e-5, atol=1e-5, msg=name)
        assert any(name.startswith("auxiliary_heads.adversaries") for name in weights)
    # the same for each objective on unequal halves, where the mean over both is not the mean of the halves' means
    terms, gradient = rank_cases.objective_alone(list(range(8)))
    assert found["terms"][0] == pytest.approx(terms, abs=1e-9)
    kinds = {entry.get("loss", name) for name, entry in (rank_cases.AUXILIARY | {"tuplet": {}}).items()}
    assert kinds | {"patch_mix"} == set(AUXILIARY_LOSSES)
    torch.testing.assert_close(tensors["gradient.0"], gradient, rtol=1e-9, atol=1e-9)
    for place, (terms, gradient) in enumerate(mixtures_of_both(), 1):
        assert found["terms"][place] == pytest.approx(terms, abs=1e-6)  # the task is taken in float32
        torch.testing.assert_close(tensors[f"gradient.{place}"], gradient, rtol=1e-5, atol=1e-6)


def mixtures_of_both():
    """Terms of one process for the rows of both, with each half mixed as in its own process."""
    order = rank_cases.UNEQUAL[0] + rank_cases.UNEQUAL[1]
    sizes = [len(rank_cases.UNEQUAL[rank]) for rank in (0, 1)]
    index = torch.tensor(rank_cases.PARTNERS[0] + [sizes[0] + i for i in rank_cases.PARTNERS[1]])
    lam = torch.tensor([rank_cases.SHARES[0]] * sizes[0] + [rank_cases.SHARES[1]] * sizes[1], dtype=torch.float64)
    positive = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)

    def graded(terms, weight):
        sum(terms.values()).backward()
        return {name: float(value.detach()) for name, value in terms.items()}, weight.grad

    vectors, weight, batch = rank_cases.drawn(order)
    clean, mixed = vectors.chunk(2)
    flags = torch.nn.functional.one_hot(batch["labels"], 3).double()
    p = clean[:, :3].float().double().sigmoid()
    focal = -torch.where(flags > 0, positive * (1 - p).detach() ** 2 * p.log(), p.detach() ** 2 * (1 - p).log()).mean()
    contrast = PatchMixContrastiveLoss(detach_clean=False)(mixed, clean, lam, index)["patch_mix"]
    yield graded({"focal": focal, "patch_mix": contrast}, weight)
    vectors, weight, batch = rank_cases.drawn(order)
    first = vectors[: len(order)]
    flags = torch.nn.functional.one_hot(batch["labels"], 3).double()
    flags[batch["labels"] == 2] = 0
    rows = lam[:, None] * flags + (1 - lam)[:, None] * flags[index]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(first[:, :3], rows, pos_weight=positive)
    rows = torch.cat([rows, (rows == 0).all(1, keepdim=True).double()], dim=1)
    yield graded({"bce": bce, **AngularDistanceDistributionLoss()(first, rows)}, weight)
