"""AudioMAE's released names and sizes, against a forward pass of plain torch."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from laennec.encoders import AudioMaeConfig, AudioMaeEncoder, encoder_digest, load_encoder
from laennec.errors import InputError

DIM, WIDE, BLOCKS, HEADS = 128, 48, 2, 2


def released_state(norm: str, steps: int = 64) -> dict[str, Tensor]:
    """A checkpoint by the authors' names, decoder or classifier included."""
    shapes = {
        "cls_token": (1, 1, DIM), "pos_embed": (1, 1 + 8 * steps, DIM), "patch_embed.proj.weight": (DIM, 1, 16, 16),
        "patch_embed.proj.bias": (DIM,), f"{norm}.weight": (DIM,), f"{norm}.bias": (DIM,),
    }  # fmt: skip
    for n in range(BLOCKS):
        for layer, out, into in (("attn.qkv", 3 * DIM, DIM), ("attn.proj", DIM, DIM), ("mlp.fc1", WIDE, DIM),
                                 ("mlp.fc2", DIM, WIDE)):  # fmt: skip
            shapes |= {f"blocks.{n}.{layer}.weight": (out, into), f"blocks.{n}.{layer}.bias": (out,)}
        for layer in ("norm1", "norm2"):
            shapes |= {f"blocks.{n}.{layer}.weight": (DIM,), f"blocks.{n}.{layer}.bias": (DIM,)}
    if norm == "norm":
        shapes |= {"mask_token": (1, 1, 8), "decoder_embed.weight": (8, DIM), "decoder_blocks.0.norm1.weight": (8,)}
    else:
        shapes |= {"head.weight": (5, DIM), "head.bias": (5,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.15 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def reference(state: dict[str, Tensor], frames: Tensor) -> Tensor:
    """The authors' forward pass for one cycle, (frames, mels) -> (dim,), patch by patch and head by head."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    steps = -(-len(frames) // 16)
    frames = torch.cat([frames, torch.zeros(16 * steps - len(frames), 128)])
    kernel = state["patch_embed.proj.weight"].reshape(DIM, 256)
    tokens = [state["cls_token"][0, 0]]
    for step in range(steps):  # time is the slow axis
        for band in range(8):
            patch = frames[16 * step : 16 * step + 16, 16 * band : 16 * band + 16]
            tokens.append(kernel @ patch.reshape(256) + state["patch_embed.proj.bias"])
    x = torch.stack(tokens) + state["pos_embed"][0, : len(tokens)]
    for n in range(BLOCKS):
        query, key, value = linear(norm(x, f"blocks.{n}.norm1"), f"blocks.{n}.attn.qkv").split(DIM, 1)
        seen = []
        for head in range(HEADS):
            own = slice(head * 64, head * 64 + 64)
            seen.append(((query[:, own] @ key[:, own].T) / 8).softmax(1) @ value[:, own])
        x = x + linear(torch.cat(seen, 1), f"blocks.{n}.attn.proj")
        hidden = linear(norm(x, f"blocks.{n}.norm2"), f"blocks.{n}.mlp.fc1")
        x = x + linear(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)), f"blocks.{n}.mlp.fc2")
    if "fc_norm.weight" in state:
        return norm(x[1:].mean(0), "fc_norm")
    return norm(x[1:], "norm").mean(0)


@pytest.mark.parametrize("norm", ["norm", "fc_norm"])
@pytest.mark.parametrize("file", ["pretrained.pth", "bare.pt", "bare.safetensors"])
def test_a_released_checkpoint_gives_what_plain_torch_gives(norm: str, file: str, tmp_path: Path) -> None:
    state = released_state(norm)
    if file == "bare.safetensors":
        save_file(state, tmp_path / file)
    else:  # the authors' script keeps its arguments, too
        whole = {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
        torch.save(whole if file == "pretrained.pth" else state, tmp_path / file)
    encoder = load_encoder(tmp_path / file, type="audiomae")
    assert isinstance(encoder, AudioMaeEncoder) and not encoder.training and encoder.config.max_length == 1024
    values = torch.randn(2, 1024, 128, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(1024)[None] < torch.tensor([1024, 100])[:, None]).long()
    with torch.no_grad():
        found = encoder(values, mask)
        assert found.token_mask.sum(1).tolist() == [64 * 8, 7 * 8]
        for row, frames in enumerate((1024, 100)):
            expected = reference(state, values[row, :frames])
            torch.testing.assert_close(found.pooler_output[row], expected, atol=1e-5, rtol=1e-5)
            alone = encoder(values[row : row + 1, :frames]).pooler_output[0]
            torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    encoder.save_pretrained(tmp_path / "folder")
    assert encoder_digest(load_encoder(tmp_path / "folder")) == encoder_digest(encoder)


def test_the_default_size_is_the_published_one() -> None:
    with torch.device("meta"):
        weights = dict(AudioMaeEncoder(AudioMaeConfig()).named_parameters())
    table = weights.pop("model.embeddings.position_embeddings")
    assert table.shape == (1, 513, 768)
    # n_parameters in the authors' log: positions are fixed there, and 527 classes trained
    assert sum(value.numel() for value in weights.values()) + 527 * 769 == 85_659_407


def test_a_checkpoint_of_shorter_clips_takes_shorter_cycles(tmp_path: Path) -> None:
    torch.save(released_state("norm", steps=32), tmp_path / "esc50.pt")
    encoder = load_encoder(tmp_path / "esc50.pt")
    assert encoder.config.max_length == 512
    with pytest.raises(InputError, match=r"600 frames.* 512 at most; set features.length: crop .*duration_s: 5\.12"):
        encoder(torch.zeros(1, 600, 128))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks.1.attn.qkv.weight": None}, r"blocks\.1\.attn\.qkv\.weight is missing"),
        ({"blocks.1.attn.qkv.weight": torch.zeros(DIM, DIM)}, r"128 x 128 instead of 384 x 128"),
        ({"blocks.1.ls1.gamma": torch.zeros(DIM)}, r"blocks\.1\.ls1\.gamma is left over"),
        ({"pos_embed": torch.zeros(1, 1 + 101 * 12, DIM)}, r"pos_embed \(1 x 1213 x 128 instead of"),  # overlapping
        ({"patch_embed.proj.weight": torch.zeros(DIM, 3, 16, 16)}, r"128 x 3 x 16 x 16 instead of 128 x 1 x 16 x 16"),
        ({"pos_embed": None}, "not an AudioMAE"),
        ({"cls_token": torch.full((1, 1, DIM), float("nan"))}, "cls_token holds values that are not finite"),
    ],
)
def test_other_weights_are_refused(change: dict[str, Tensor | None], said: str, tmp_path: Path) -> None:
    state = {name: value for name, value in (released_state("norm") | change).items() if value is not None}
    torch.save({"model": state}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=said) as refused:
        load_encoder(tmp_path / "bad.pth", type="audiomae")
    assert "bad.pth" in str(refused.value)


def test_files_of_others_and_sizes_that_are_given_twice_are_refused(tmp_path: Path) -> None:
    torch.save({"model": released_state("norm")}, tmp_path / "released.pth")
    with pytest.raises(InputError, match="holds a audiomae encoder, not beats"):
        load_encoder(tmp_path / "released.pth", type="beats")
    with pytest.raises(InputError, match="remove hidden_size"):
        load_encoder(tmp_path / "released.pth", hidden_size=64)
    assert load_encoder(tmp_path / "released.pth", hidden_dropout_prob=0.2).config.hidden_dropout_prob == 0.2
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: holds the weights of no encoder"):
        load_encoder(tmp_path / "other.pth")
    with pytest.raises(InputError, match="max_length 100 and num_mel_bins 128 must be multiples of patch_size 16"):
        load_encoder(None, type="audiomae", max_length=100)
