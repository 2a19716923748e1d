import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ASTConfig

from laennec.configuration import LaennecConfig
from laennec.encoders import BeatsConfig, encoder_digest, encoder_from_config, load_encoder, wrapped
from laennec.encoders.adapters import add_lora, is_adapter, merge_lora, stack_of
from laennec.errors import InputError
from laennec.modeling import LaennecForAudioClassification

LORA: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
KINDS = ("ast", "beats")


def make_encoder(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "ast":
        config: Any = ASTConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, max_length=96,
            layer_norm_eps=1e-6,
        )  # fmt: skip
    elif kind == "beats":
        config = BeatsConfig(
            hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, patch_dim=8,
            position_kernel=5, position_groups=2, dropout=0.1,
        )  # fmt: skip
    else:
        return load_encoder(None, type=kind, **({"width_mult": 0.1} if kind == "mobilenet" else {}))
    encoder = encoder_from_config(config).eval()
    for parameter in encoder.parameters():  # large enough that every layer has something to learn
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return encoder


@pytest.fixture(params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base as a folder."""
    make_encoder(request.param).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def make_model(base: Path) -> LaennecForAudioClassification:
    encoder = load_encoder(base)
    config = LaennecConfig(
        encoder_config=encoder.config, id2label={0: "crackle", 1: "wheeze"}, base_model_name_or_path=str(base)
    )
    torch.manual_seed(1)
    return LaennecForAudioClassification(config, encoder)


def batch_of(lengths: tuple[int, ...] = (40, 90)) -> tuple[Tensor, Tensor, Tensor]:
    values = torch.randn(len(lengths), max(lengths), 128, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return values, mask, torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def steps(model: LaennecForAudioClassification, count: int = 3) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    values, mask, labels = batch_of()
    for _ in range(count):
        optimizer.zero_grad()
        model(values, mask, labels).loss.backward()
        optimizer.step()
    model.eval()


def logits(model: LaennecForAudioClassification) -> Tensor:
    with torch.no_grad():
        return model.eval()(*batch_of()[:2]).logits


def trained(base: Path, lora: dict[str, Any] = LORA) -> LaennecForAudioClassification:
    model = make_model(base)
    model.add_adapters(lora)
    steps(model)
    return model


def test_fresh_adapters_change_nothing_and_alone_learn(saved: Path) -> None:
    model = make_model(saved)
    plain, digest = logits(model), encoder_digest(model.encoder)
    model.add_adapters(LORA)
    assert torch.equal(logits(model), plain) and model.config.encoder_digest == digest
    learn = {n for n, p in model.named_parameters() if p.requires_grad}
    encoder = {n for n in learn if n.startswith("encoder.")}
    assert len(encoder) == 3 * 2 * 2 and all(is_adapter(n) for n in encoder)  # layers x targets x (A and B)
    assert learn - encoder == {"head.classifier.weight", "head.classifier.bias"}
    before = {n: v.clone() for n, v in model.state_dict().items()}
    steps(model)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    # the gradient of some A is there, but below what float32 weights can show
    assert moved <= learn and {n for n in learn if ".lora_A." not in n} <= moved
    assert all(float(p.grad.abs().sum()) > 0 for n, p in model.named_parameters() if n in learn and p.grad is not None)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == learn
    assert not torch.allclose(logits(model), plain)


def test_an_adapter_adds_the_product_of_two_small_matrices(saved: Path) -> None:
    model = trained(saved)
    base = load_encoder(saved)
    state = model.encoder.state_dict()
    expected = copy.deepcopy(base.state_dict())
    for name in expected:
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_A.default.weight" in state:  # W + alpha / rank B A
            expected[name] += 2.0 * state[f"{stem}.lora_B.default.weight"] @ state[f"{stem}.lora_A.default.weight"]
    wanted = logits(model)
    model.merge_adapters()
    torch.testing.assert_close(dict(model.encoder.state_dict()), dict(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits(model), wanted, atol=1e-5, rtol=1e-5)
    assert model.config.lora is None


def test_head_and_adapters_are_saved_alone_and_load_onto_the_base(saved: Path, tmp_path: Path) -> None:
    model = trained(saved)
    model.save_pretrained(tmp_path / "out")
    assert set(load_file(tmp_path / "out/model.safetensors")) == {
        n for n in model.state_dict() if n.startswith("head.")
    }
    kept = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert len(kept) == 12 and all(n.startswith("base_model.model.") and ".lora_" in n for n in kept)
    for base in (None, load_encoder(saved), saved):
        again = LaennecForAudioClassification.from_pretrained(tmp_path / "out", base=base)
        assert torch.equal(logits(again), logits(model))
        assert again.config.lora == LORA and not again.config.head_only
        if base is not None and not isinstance(base, Path):  # the caller's encoder stays what it was
            assert not any(is_adapter(n) for n in base.state_dict())
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(LaennecForAudioClassification.from_pretrained(tmp_path / "again")), logits(model))
    with pytest.raises(ValueError, match="merge_adapters"):
        model.save_pretrained(tmp_path / "full", head_only=False)
    model.merge_adapters()
    model.save_pretrained(tmp_path / "full")
    assert torch.equal(logits(LaennecForAudioClassification.from_pretrained(tmp_path / "full")), logits(model))


@pytest.mark.parametrize("part", ["frozen", "lora"])
def test_groups_of_frames_over_a_base_find_it_again(part: str, tmp_path: Path) -> None:
    make_encoder("beats").save_pretrained(tmp_path / "base")
    encoder = wrapped(load_encoder(tmp_path / "base"), 20, 15)
    config = LaennecConfig(
        encoder_config=encoder.config, id2label={0: "crackle", 1: "wheeze"}, frozen_encoder=part == "frozen",
        base_model_name_or_path=str(tmp_path / "base"),
    )  # fmt: skip
    model = LaennecForAudioClassification(config, encoder)
    assert len(stack_of(model.encoder)[0]) == 3
    if part == "lora":
        model.add_adapters(LORA)
        steps(model)
    model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").stat().st_size < 5000
    assert torch.equal(logits(LaennecForAudioClassification.from_pretrained(tmp_path / "out")), logits(model))


def test_adapters_refuse_another_base_and_damage(saved: Path, tmp_path: Path) -> None:
    model = trained(saved)
    out = tmp_path / "out"
    model.save_pretrained(out)
    other = load_encoder(saved)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path / "other")
    file = out / "adapter/adapter_model.safetensors"
    state = load_file(file)
    first = min(state)

    def refused(said: str, **settings: Any) -> None:
        with pytest.raises(InputError, match=said):
            LaennecForAudioClassification.from_pretrained(out, **settings)

    refused("not the encoder this head was trained on", base=tmp_path / "other")
    save_file({n: v for n, v in state.items() if n != first}, file)
    refused("is missing")
    save_file(state | {first: torch.zeros(3, 3)}, file)
    refused("is of another shape")
    file.write_bytes(b"torn")
    refused("cannot read the adapters")
    file.unlink()
    refused("cannot read the adapters")


@pytest.mark.parametrize(
    ("kind", "targets", "said"),
    [
        ("ast", ["query"], "'query' names no linear layer of AstEncoder; it has fc1, fc2, k_proj, o_proj"),
        ("beats", ["o_proj"], "'o_proj' names no linear layer of BeatsEncoder; it has fc1, fc2, gate_linear, k_proj"),
        ("mobilenet", ["q_proj"], "'q_proj' names no linear layer of MobileNetEncoder; it has expand, reduce"),
        ("statistics", ["q_proj"], "StatisticsEncoder has no linear layers"),
        ("cnn", ["q_proj"], "CnnEncoder has no linear layers"),
    ],
)
def test_targets_that_are_not_there_are_refused_with_those_that_are(kind: str, targets: list[str], said: str) -> None:
    encoder = make_encoder(kind)
    with pytest.raises(InputError, match=said):
        add_lora(encoder, LORA | {"target_modules": targets})
    assert not any(is_adapter(name) for name in encoder.state_dict())


def test_one_layer_alone_can_be_adapted() -> None:
    encoder = make_encoder("beats")
    add_lora(encoder, LORA | {"target_modules": ["layers.2.fc1"]})
    assert {n.split(".lora_")[0] for n in encoder.state_dict() if is_adapter(n)} == {"layers.2.fc1"}
    merge_lora(encoder)
    assert not any(is_adapter(n) for n in encoder.state_dict())


@pytest.mark.parametrize("kind", ["ast", "beats", "mobilenet", "cnn"])
def test_the_last_layers_learn_and_the_others_rest(kind: str, tmp_path: Path) -> None:
    make_encoder(kind).save_pretrained(tmp_path)
    model = make_model(tmp_path)
    before = {n: v.clone() for n, v in model.encoder.state_dict().items()}
    model.train_last_layers(2)
    layers, after = stack_of(model.encoder)
    assert len(layers) == {"ast": 3, "beats": 3, "mobilenet": 15, "cnn": 4}[kind]
    inside = {id(p) for module in (*layers[-2:], *after) for p in module.parameters()}
    steps(model)
    for name, parameter in model.encoder.named_parameters():
        assert parameter.requires_grad == (id(parameter) in inside), name
    # weights and batch statistics of what is_frozen are what they were
    resting = {n for m in layers[:-2] for n in _names(model.encoder, m)}
    state = model.encoder.state_dict()
    assert resting and all(torch.equal(state[n], before[n]) for n in resting)
    moved = [n for n in state if not torch.equal(state[n], before[n])]
    assert moved and not set(moved) & resting
    model.train()
    assert [m.training for m in layers] == [False] * (len(layers) - 2) + [True] * 2
    assert not model.encoder.training
    model.eval()
    assert not any(m.training for m in model.modules())


def _names(encoder: Any, module: Any) -> list[str]:
    prefix = next(n for n, m in encoder.named_modules() if m is module)
    return [n for n in encoder.state_dict() if n.startswith(f"{prefix}.")]


def test_last_layers_are_remembered_with_the_model(saved: Path, tmp_path: Path) -> None:
    model = make_model(saved)
    model.train_last_layers(1)
    steps(model)
    model.save_pretrained(tmp_path / "out")
    again = LaennecForAudioClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), logits(model))
    learn = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
    assert learn[0] == learn[1]


def test_a_number_of_layers_that_is_not_there_is_refused() -> None:
    for layers in (0, 4, -1):
        with pytest.raises(InputError, match="has 3 layers: give 1 to 3"):
            LaennecForAudioClassification(
                LaennecConfig(encoder_config=make_encoder("ast").config), make_encoder("ast")
            ).train_last_layers(layers)
    with pytest.raises(InputError, match="no stack of layers to train in part"):
        stack_of(make_encoder("statistics"))
