import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import batch_of
from transformers import AutoModel

from laennec.encoders import BeatsConfig, BeatsEncoder, encoder_digest, encoder_from_config, load_encoder
from laennec.encoders.beats_layers import RelativeBias
from laennec.encoders.weights.fingerprint import check_fingerprint, fingerprint
from laennec.errors import InputError


def load_released(path):
    return load_encoder(path, type="beats")


GOLDEN = json.loads((Path(__file__).parents[1] / "golden/encoders/beats_tiny.json").read_text())
SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "patch_dim": 12,
    "position_kernel": 9, "position_groups": 2, "num_buckets": 16, "max_distance": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def released(shared_root: Path) -> Path:
    return shared_root / "conformance/beats_tiny.pt"


@pytest.fixture(scope="module")
def checkpoint(released: Path) -> dict[str, Any]:
    return torch.load(released, weights_only=True)


def make(**kwargs: Any) -> BeatsEncoder:
    torch.manual_seed(0)
    encoder = encoder_from_config(BeatsConfig(**(SIZES | kwargs))).eval()
    for parameter in encoder.parameters():  # every weight matters
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return encoder


def naive_bucket(distance: int, buckets: int, max_distance: int) -> int:
    half = buckets // 2
    near, far = half // 2, abs(distance)
    if far >= near:
        far = min(half - 1, near + int(np.log(far / near) / np.log(max_distance / near) * (half - near)))
    return far + half * (distance > 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_authors_network(released: Path, shared_root: Path, attention: str) -> None:
    reference = np.load(shared_root / "conformance/beats_tiny_io.npz")
    encoder = load_released(released)
    encoder.set_attn_implementation(attention)
    fbank = torch.from_numpy(reference["fbank"])
    mask = torch.from_numpy(~reference["frame_padding_mask"]).long()
    with torch.no_grad():
        plain, padded = encoder(fbank), encoder(fbank, mask)
    np.testing.assert_allclose(plain.last_hidden_state, reference["tokens_no_padding"], atol=1e-4)
    keep = ~reference["token_padding_mask"]
    np.testing.assert_array_equal(padded.token_mask, keep)
    np.testing.assert_allclose(padded.last_hidden_state.numpy()[keep], reference["tokens_padded"][keep], atol=1e-4)
    for row, real in enumerate(keep):
        expected = reference["tokens_padded"][row][real].mean(0)
        np.testing.assert_allclose(padded.pooler_output[row], expected, atol=1e-4)


def test_buckets_are_exact_near_by_and_widen_with_distance() -> None:
    bias = RelativeBias(BeatsConfig(num_buckets=320, max_distance=800))
    distance = torch.arange(-1300, 1301)
    assert bias.buckets(distance).tolist() == [naive_bucket(int(d), 320, 800) for d in distance]
    table = torch.arange(320.0)[:, None].expand(-1, 12)
    bias.weight.data.copy_(table)
    scores = bias(5)[0, 7]
    assert scores[0].tolist() == [0, 161, 162, 163, 164] and scores[4].tolist() == [4, 3, 2, 1, 0]


def test_dropout_and_skipped_layers_are_for_training_only() -> None:
    values, mask = batch_of([40, 96])
    rates = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "input_dropout"), 0.3)
    for settings in (rates, {"layer_dropout": 0.5}):
        encoder = make(**settings)
        with torch.no_grad():
            torch.testing.assert_close(encoder(values, mask).pooler_output, make()(values, mask).pooler_output)
            encoder.train()
            drawn = torch.stack([encoder(values, mask).pooler_output for _ in range(8)])
        assert float(drawn.std(0).max()) > 1e-3
    encoder = make(layer_dropout=1.0).train()
    encoder(values, mask).pooler_output.sum().backward()
    gradient = encoder.layers[0].fc1.weight.grad
    assert gradient is not None and float(gradient.abs().sum()) == 0  # skipped, and yet known to other processes


def test_pinned_outputs_of_the_tiny_checkpoint(released: Path) -> None:
    encoder = load_released(released)
    np.testing.assert_allclose(fingerprint(encoder), GOLDEN["fingerprint"], atol=1e-4)
    assert encoder_digest(encoder) == GOLDEN["encoder_digest"]
    assert encoder.config.fingerprint == fingerprint(encoder)


def test_a_model_that_predicts_differently_after_saving_is_refused(tmp_path: Path, released: Path) -> None:
    encoder = load_encoder(released)
    encoder.save_pretrained(tmp_path)
    config_file, weights_file = tmp_path / "config.json", tmp_path / "model.safetensors"
    values, state = json.loads(config_file.read_text()), load_file(weights_file)
    config_file.write_text(json.dumps(values | {"max_distance": 1280}))  # a setting that no shape shows
    with pytest.raises(InputError, match="its outputs differ from when it was saved"):
        load_encoder(tmp_path)
    for name, value in {"deep_norm": False, "hidden_act": "relu"}.items():
        config_file.write_text(json.dumps(values | {name: value}))
        with pytest.raises(InputError, match=f"{name} is {value!r}; it must be"):
            load_encoder(tmp_path)
    config_file.write_text(json.dumps(values))
    swapped = state | {
        "layers.0.attention.q_proj.weight": state["layers.0.attention.k_proj.weight"],
        "layers.0.attention.k_proj.weight": state["layers.0.attention.q_proj.weight"],
    }
    save_file(swapped, weights_file, metadata={"format": "pt"})
    for load in (load_encoder, AutoModel.from_pretrained):
        with pytest.raises(InputError, match="its outputs differ from when it was saved"):
            load(tmp_path)
    save_file(state, weights_file, metadata={"format": "pt"})
    check_fingerprint(load_encoder(tmp_path), tmp_path)


def test_classes_of_a_fine_tuned_checkpoint_are_kept_on_request_only(
    tmp_path: Path, checkpoint: dict[str, Any]
) -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "finetuned.pt"
    predictor = {"predictor.weight": weight, "predictor.bias": torch.arange(5.0)}
    content = {
        "cfg": checkpoint["cfg"] | {"finetuned_model": True, "predictor_class": 5},
        "model": checkpoint["model"] | predictor,
        "label_dict": {i: f"/m/{i}" for i in range(5)},
    }
    torch.save(content, path)
    plain, full = load_encoder(path), load_encoder(path, type="beats", audioset_head=True)
    assert plain.audioset_head is None and encoder_digest(plain) == encoder_digest(full) == GOLDEN["encoder_digest"]
    with pytest.raises(ValueError, match="audioset_head=True"):
        plain.audioset_logits(torch.zeros(1, 64))
    values, mask = batch_of([60, 100])
    with torch.no_grad():
        out = full(values, mask)
        by_token = out.last_hidden_state @ weight.T + torch.arange(5.0)  # as the authors average it
        for row, real in enumerate(out.token_mask):
            expected = by_token[row][real].mean(0)
            torch.testing.assert_close(full.audioset_logits(out.pooler_output)[row], expected, atol=1e-5, rtol=1e-5)
    assert full.config.audioset_labels == [f"/m/{i}" for i in range(5)]
    full.save_pretrained(tmp_path / "folder")
    assert load_encoder(tmp_path / "folder").audioset_head is not None
    torch.save(content | {"model": checkpoint["model"]}, path)
    with pytest.raises(InputError, match=r"predictor\.bias is missing \(and predictor\.weight"):
        load_released(path)
    torch.save(content | {"cfg": checkpoint["cfg"]}, path)
    with pytest.raises(InputError, match=r"predictor\.bias is left over"):
        load_released(path)


def test_a_pre_trained_checkpoint_has_no_classes_to_ask_for(released: Path) -> None:
    with pytest.raises(InputError, match="no AudioSet classes"):
        load_encoder(released, audioset_head=True)


BAD_CFG = {
    "another depth": ({"encoder_layers": 3}, r"encoder\.layers\.2\S+ is missing .*and \d+ more"),
    "less depth": ({"encoder_layers": 1}, r"encoder\.layers\.1\S+ is left over"),
    "another width": ({"encoder_embed_dim": 96, "conv_pos_groups": 4}, "instead of"),
    "other heads": ({"encoder_attention_heads": 8}, "instead of"),
    "other groups": ({"conv_pos_groups": 8}, r"pos_conv.*instead of"),
    "groups that do not divide": ({"conv_pos_groups": 7}, "position_groups is 7; it must divide"),
    "no gate": ({"gru_rel_pos": False}, "gated_positions is False; it must be True"),
    "activation": ({"activation_fn": "glu"}, "hidden_act is 'glu'; it must be 'gelu'"),
    "other norms": ({"layer_norm_first": True}, "pre_norm is True; it must be False"),
    "a word": ({"encoder_layers": "two"}, "cfg has 'two' for encoder_layers"),
    "half a layer": ({"encoder_layers": 2.5}, r"num_hidden_layers is 2\.5; it must be a whole number from 1"),
    "less than no layer": ({"encoder_layers": -2}, "num_hidden_layers is -2"),
    "layers without end": ({"encoder_layers": 10**9}, "num_hidden_layers is 1000000000, which no model has"),
    "no kernel": ({"conv_pos": 0}, "position_kernel is 0"),
    "more than all dropped": ({"dropout": 2.0}, r"dropout is 2\.0; it must be a number from 0 to 1"),
    "no patch size": ({"input_patch_size": None}, "cfg has None for input_patch_size"),
}


@pytest.mark.parametrize("name", BAD_CFG)
def test_weights_that_are_not_those_of_cfg_are_refused(tmp_path: Path, checkpoint: dict[str, Any], name: str) -> None:
    change, said = BAD_CFG[name]
    torch.save({"cfg": checkpoint["cfg"] | change, "model": checkpoint["model"]}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=said) as refused:
        load_released(tmp_path / "bad.pt")
    assert "bad.pt" in str(refused.value)


def test_files_that_are_something_else_are_refused(
    tmp_path: Path, checkpoint: dict[str, Any], shared_root: Path, released: Path
) -> None:
    path = tmp_path / "bad.pt"
    shared = {"encoder.layers.1.self_attn.relative_attention_bias.weight": torch.zeros(320, 4)}
    nan = checkpoint["model"] | {"layer_norm.bias": torch.full((32,), float("nan"))}
    for content, said in (
        ({"cfg": checkpoint["cfg"], "model": checkpoint["model"] | shared}, "not that of layer 0"),
        (checkpoint["model"], "holds a mobilenet encoder, not beats"),
        ({"cfg": checkpoint["cfg"], "model": nan}, "not finite"),
        ({"cfg": checkpoint["cfg"], "model": {"layer_norm.bias": 3}}, "holds int under"),
        ([1], "holds no state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=said):
            load_released(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(path, type="beats")
    with pytest.raises(InputError, match="no such file"):
        load_encoder(tmp_path / "absent.pt", type="beats")
    with pytest.raises(InputError, match="holds a beats encoder, not mobilenet"):
        load_encoder(released, type="mobilenet")
    with pytest.raises(InputError, match="holds a mobilenet encoder, not beats"):
        load_encoder(shared_root / "weights/mn04_as_mAP_432.pt", type="beats")


def test_a_released_checkpoint_rules_its_size_but_not_its_dropout(released: Path) -> None:
    with pytest.raises(InputError, match="remove hidden_size"):
        load_encoder(released, hidden_size=32)
    encoder = load_encoder(released, dropout=0.2, layer_dropout=0.1)
    assert (encoder.config.dropout, encoder.config.layer_dropout) == (0.2, 0.1)
