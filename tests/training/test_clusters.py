"""CycleGuardian's layers and loss terms, against loops over single groups."""

import math
from pathlib import Path

import pytest
import torch
from objectives import make_objective
from torch.nn import functional

from laennec.configuration import LaennecConfig
from laennec.encoders import load_encoder, wrapped
from laennec.errors import InputError
from laennec.losses import ClusterSimilarityLoss, DeepClusteringLoss, PatchMixContrastiveLoss
from laennec.modeling import LaennecForAudioClassification
from laennec.training.data.mixing import Mixer
from laennec.training.objectives.auxiliary_layers import AuxiliaryHeads, GroupClusters, attached
from laennec.training.objectives.loss_specs import CleanAndMixed, loss_specs
from laennec.training.objectives.objective import Stage
from laennec.training.recipe import LossSettings, MixSettings, Recipe

ROOT = Path(__file__).resolve().parents[2]
AUXILIARY = {
    "clustering": {"clusters": 3, "dim": 5},
    "cluster_similarity": {"weight": 0.2, "dim": 7},
    "contrast": {"loss": "patch_mix", "weight": 0.5, "detach_clean": False, "on": "clusters", "projection_dim": 4},
}
FLAGS = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
CONTEXT = {"epochs": torch.zeros(4).long(), "cycle_numbers": torch.arange(4)}


def model_in_groups():
    torch.manual_seed(0)
    encoder = wrapped(load_encoder(None, type="cnn", channels=[4, 6], num_mel_bins=8), 20, 15)
    config = LaennecConfig(encoder_config=encoder.config, id2label={0: "crackle", 1: "wheeze"})
    return LaennecForAudioClassification(config, encoder).train()


def step(model, objective, heads, lengths=(95, 50, 20, 80), contrast=True):
    """Terms of one step on mixed groups, with what the model returned and the mixture."""
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(4, 95, 8, generator=draw)
    mask = (torch.arange(95) < torch.tensor(lengths)[:, None]).long()
    mixer = Mixer(MixSettings(method="group_mix", domain="tokens", beta=1.0), 3, 2, contrast=contrast)
    features, mask, token_mix, mixture = mixer.tokens(features, mask, FLAGS, CONTEXT, model.encoder)
    with attached(model, heads):
        outputs = model(features, mask, token_mix=token_mix)
    batch = {"labels": FLAGS, "class_ids": torch.arange(4), "mixture": mixture, **CONTEXT}
    return objective(outputs, batch, Stage(), 1.0), outputs, mixture


def make(auxiliary=AUXILIARY):
    objective = make_objective(LossSettings(auxiliary=auxiliary), True, FLAGS.numpy(), 2)
    return objective, AuxiliaryHeads(objective.specs, 6, {}, seed=0)


def test_groups_belong_to_their_most_likely_cluster():
    torch.manual_seed(0)
    loss, clusters = DeepClusteringLoss(3, 5), GroupClusters(3, 5, 6, 7, {"vectors", "joint"})
    groups = torch.randn(2, 4, 6)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    view = clusters(groups.masked_fill(~mask[..., None], 50.0), mask, loss)
    for cycle in range(2):
        described = []
        for cluster in range(3):
            members = []
            for group in range(4):
                narrow = functional.relu(clusters.reduce[0](groups[cycle, group]))
                away = [(narrow - center).square().sum().item() for center in loss.centers]
                if mask[cycle, group] and min(range(3), key=away.__getitem__) == cluster:
                    members.append(groups[cycle, group])
            mean = torch.stack(members).mean(0) if members else torch.zeros(6)
            described.append(clusters.describe(mean))
        torch.testing.assert_close(view.vectors[cycle], torch.stack(described), atol=1e-5, rtol=1e-4)
        joint = sum(w * v for w, v in zip(clusters.join.weight[0], described, strict=True)) + clusters.join.bias
        torch.testing.assert_close(view.joint[cycle], clusters.finish(joint), atol=1e-5, rtol=1e-4)
    view.joint.square().sum().backward()
    assert loss.centers.grad.abs().sum() > 0  # through the soft assignment


def test_the_terms_of_the_published_total_are_those_of_loops_over_cycles():
    objective, heads = make()
    model = model_in_groups()
    terms, outputs, mixture = step(model, objective, heads)
    plain = {"clustering", "cluster_similarity"}
    named = {f"{name}_{copy}" for name in plain for copy in ("clean", "mixed")}
    assert set(terms) == {"bce", "contrast/patch_mix"} | named
    z, mask = outputs.auxiliary["clustering"]
    (vectors,) = outputs.auxiliary["cluster_similarity"]
    centers = heads.losses["clustering"].loss
    for copy, rows in (("clean", slice(0, 4)), ("mixed", slice(4, 8))):
        kl, groups = 0.0, 0
        for cycle in range(rows.start, rows.stop):
            alone = DeepClusteringLoss(3, 5, reduction="sum")
            alone.centers = centers.centers
            kl += alone(z[cycle, mask[cycle]][None])["clustering"].item()
            groups += int(mask[cycle].sum())
        assert terms[f"clustering_{copy}"].item() == pytest.approx(kl / groups, rel=1e-4)
        likeness = ClusterSimilarityLoss(7)(vectors[rows].transpose(0, 1))["cluster_similarity"]
        assert terms[f"cluster_similarity_{copy}"].item() == pytest.approx(0.2 * likeness.item(), rel=1e-5)
        assert objective.auxiliary.pairs[f"clustering_{copy}"] == groups == 6 + 3 + 1 + 5
        assert objective.auxiliary.pairs[f"cluster_similarity_{copy}"] == 4 * 3
    projected = outputs.auxiliary["contrast"]
    contrast = PatchMixContrastiveLoss(detach_clean=False)(projected[4:], projected[:4], mixture.lam, mixture.index)
    assert terms["contrast/patch_mix"].item() == pytest.approx(0.5 * contrast["patch_mix"].item(), rel=1e-5)
    task = functional.binary_cross_entropy_with_logits(outputs.logits[:4], FLAGS)
    assert terms["bce"].item() == pytest.approx(task.item())
    torch.stack(list(terms.values())).sum().backward()


@pytest.mark.parametrize("left_out", [(), ("contrast",), ("contrast", "cluster_similarity")])
def test_gradients_reach_every_part_that_is_there(left_out):
    objective, heads = make({k: v for k, v in AUXILIARY.items() if k not in left_out} | {"patch_mix": {}})
    model = model_in_groups()
    terms, _, _ = step(model, objective, heads)
    torch.stack(list(terms.values())).sum().backward()
    parts = {**dict(model.named_parameters()), **{f"heads.{n}": p for n, p in heads.named_parameters()}}
    still = [name for name, part in parts.items() if part.grad is None or not part.grad.abs().sum() > 0]
    assert not still, still
    assert all(torch.isfinite(part.grad).all() for part in parts.values())


def test_the_weights_of_losses_are_the_models_while_it_trains_and_come_from_the_seed():
    state = torch.get_rng_state()
    _, heads = make()
    _, again = make()
    assert torch.equal(torch.get_rng_state(), state)
    one, two = heads.state_dict(), again.state_dict()
    assert set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)
    assert {"losses.clustering.loss.centers", "losses.cluster_similarity.loss.matrix"} <= set(one)
    assert len({id(p) for p in heads.parameters()}) == len(one)
    model = model_in_groups()
    before = set(model.state_dict())
    with attached(model, heads):
        assert "auxiliary_heads.losses.clustering.loss.centers" in dict(model.named_parameters())
    assert set(model.state_dict()) == before and not model.encoder._forward_hooks


def test_without_a_contrast_there_is_one_term_of_the_cycles_as_they_are():
    objective, heads = make({k: v for k, v in AUXILIARY.items() if k in ("clustering", "cluster_similarity")})
    terms, _, _ = step(model_in_groups(), objective, heads, contrast=False)
    assert set(terms) == {"bce", "clustering", "cluster_similarity"}
    assert objective.auxiliary.pairs["clustering"] == 15


def test_any_encoders_tokens_are_groups_without_its_special_ones():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = load_encoder(None, type="ast", layer_norm_eps=1e-6, num_mel_bins=36, max_length=64, **sizes)
    model = LaennecForAudioClassification(
        LaennecConfig(encoder_config=encoder.config, id2label={0: "a", 1: "b"}), encoder
    ).train()
    heads = AuxiliaryHeads(loss_specs({"clustering": {}}), 8, {}, seed=0)
    with attached(model, heads):
        z, mask = model(torch.randn(2, 64, 36)).auxiliary["clustering"]
        assert z.shape == (2, 15, 128) and mask.shape == (2, 15)
        assert not hasattr(model.eval()(torch.randn(2, 64, 36)), "auxiliary") and heads._tokens is None


def test_clean_and_mixed_terms_are_those_of_the_loss_twice():
    loss = DeepClusteringLoss(3, 4)
    both, clean, mixed = CleanAndMixed(loss), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    found = both((clean,), (mixed,))
    assert found["clustering_clean"] == loss(clean)["clustering"]
    assert found["clustering_mixed"] == loss(mixed)["clustering"]
    assert both((clean,)) == loss(clean) and "DeepClusteringLoss" in repr(both)
    assert "chu2025" in both.citation


@pytest.mark.parametrize(
    ("auxiliary", "message"),
    [
        ({"cluster_similarity": {}}, "cluster_similarity needs the clusters that loss.auxiliary.clustering makes"),
        ({"supcon": {"on": "clusters"}}, "supcon needs the clusters"),
        ({"clustering": {}, "more": {"loss": "clustering"}}, "more: a training can have one DeepClusteringLoss"),
        ({"clustering": {"clusters": 0}}, "clustering: .*must be positive"),
        ({"clustering": {"reduction": "max"}}, "reduction must be"),
        ({"clustering": {"groups": 4}}, "clustering: .*groups"),
        ({"patch_mix": {"project_mixed": "yes"}}, "project_mixed is 'yes'; it is true or false"),
        ({"patch_mix": {"project_mixed": True, "projection_dim": 4}}, "leave out projection_dim"),
        ({"supcon": {"project_mixed": True}}, "supcon: .*project_mixed"),
    ],
)
def test_what_a_recipe_cannot_have_is_refused_in_one_line(auxiliary, message):
    with pytest.raises(InputError, match=message):
        loss_specs(auxiliary)


def test_groups_need_an_encoder_that_is_trained():
    with pytest.raises(InputError, match=r"encoder.group_frames is for an encoder that is trained"):
        Recipe(**{"encoder": {"group_frames": 20, "trainable": "frozen"}})
    with pytest.raises(InputError, match=r"group_step is 0"):
        Recipe(**{"encoder": {"group_frames": 20, "group_step": 0}})


def test_only_mixed_rows_are_projected_where_a_recipe_says_so():
    objective, heads = make({"patch_mix": {"project_mixed": True, "temperature": 0.5}})
    terms, outputs, mixture = step(model_in_groups(), objective, heads)
    projection = heads.projections["patch_mix"]
    mixed, clean = projection(outputs.embeddings[4:]), outputs.embeddings[:4]
    expected = PatchMixContrastiveLoss(0.5)(mixed, clean, mixture.lam, mixture.index)["patch_mix"]
    assert terms["patch_mix"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["icbhi2017_official/cycleguardian", "sprsound/cycleguardian_mobilenet"])
def test_the_recipes_have_the_published_weights(name):
    recipe = Recipe.from_yaml(ROOT / "recipes" / f"{name}.yaml")
    auxiliary, mix = recipe.loss.auxiliary, recipe.augment.mix
    assert {k: v["weight"] for k, v in auxiliary.items()} == {
        "clustering": 1.0, "cluster_similarity": 0.2, "group_mix": 0.5,
    }  # fmt: skip
    assert auxiliary["group_mix"]["temperature"] == 0.06 and auxiliary["clustering"]["dim"] == 128
    assert (mix.method, mix.domain) == ("group_mix", "tokens")
    assert (recipe.encoder.group_frames, recipe.encoder.group_step) == (20, 15)
    assert math.isclose(recipe.loss.task_weight, 1.0)


def test_a_second_view_is_no_mixture():
    objective, heads = make({"clustering": {"clusters": 3, "dim": 5}, "supcon": {"weight": 0.1}})
    model, features = model_in_groups(), torch.randn(8, 50, 8)
    with attached(model, heads):
        outputs = model(features)
    batch = {"labels": FLAGS, "class_ids": torch.arange(4), **CONTEXT}
    terms = objective(outputs, batch, Stage(), 1.0)
    z, _ = outputs.auxiliary["clustering"]
    assert set(terms) == {"bce", "clustering", "supcon"}
    torch.testing.assert_close(terms["clustering"], heads.losses["clustering"].loss(z[:4])["clustering"])
