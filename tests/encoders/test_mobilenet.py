from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_encoders import batch_of

from laennec.encoders import encoder_digest, encoder_from_config, load_encoder
from laennec.encoders.masks import MaskedBatchNorm2d, TimeMask
from laennec.encoders.mobilenet import MobileNetConfig, MobileNetEncoder, _released_name
from laennec.errors import InputError


def load_released(path):
    return load_encoder(path, type="mobilenet", audioset_head=True)


@pytest.fixture(scope="module")
def encoder(released: Path) -> MobileNetEncoder:
    return load_released(released)


def small(**kwargs: object) -> MobileNetEncoder:
    torch.manual_seed(0)
    encoder = encoder_from_config(MobileNetConfig(width_mult=0.1, **kwargs)).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # shifts, so that padding would become visible
            torch.nn.init.normal_(module.bias, 0.3, 0.3)
    return encoder


def released_form(encoder: MobileNetEncoder) -> dict[str, torch.Tensor]:
    state = encoder.state_dict()
    return {_released_name(name, state): value for name, value in state.items()}


@pytest.mark.parametrize("grad", [False, True])
def test_equals_the_authors_network(encoder: MobileNetEncoder, shared_root: Path, grad: bool) -> None:
    reference = np.load(shared_root / "conformance/mn04_reference.npz")
    log_mel = torch.from_numpy(reference["log_mel"])[:, 0].transpose(1, 2)
    with torch.set_grad_enabled(grad):
        out = encoder(log_mel)
        logits = encoder.audioset_logits(out.pooler_output)
    np.testing.assert_allclose(out.pooler_output.detach(), reference["embedding"], atol=1e-3)
    np.testing.assert_allclose(logits.detach(), reference["logits"], atol=1e-3)
    assert out.last_hidden_state.shape == (2, 13, 384)
    torch.testing.assert_close(out.last_hidden_state.mean(1), out.pooler_output)


def by_plain_operations(norm: torch.nn.BatchNorm2d, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Batch normalisation by the statistics of real frames, as one would write it."""
    keep = (torch.arange(x.shape[3]) < lengths[:, None])[:, None, None].to(x.dtype)
    count = keep.sum() * x.shape[2]
    mean = (x * keep).sum((0, 2, 3), keepdim=True) / count
    variance = ((x - mean).square() * keep).sum((0, 2, 3), keepdim=True) / count
    normal = (x - mean) / (variance + norm.eps).sqrt()
    return (normal * norm.weight[:, None, None] + norm.bias[:, None, None]) * keep


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_batch_norm_is_that_of_the_real_frames_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, plain = MaskedBatchNorm2d(3).to(dtype), torch.nn.BatchNorm2d(3).to(dtype)
    for values in (norm.weight, norm.bias):
        torch.nn.init.normal_(values)
    x = (3 * torch.randn(4, 3, 4, 6, dtype=dtype) + 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    lengths, weights = torch.tensor([2, 6, 5, 1]), torch.randn(4, 3, 4, 6, dtype=dtype)
    found = []
    for out in (norm(x.clone(), TimeMask(lengths)), by_plain_operations(norm, x, lengths)):
        gradients = torch.autograd.grad((out * weights).sum(), (x, norm.weight, norm.bias))
        found.append([out, *gradients])
    close = {"rtol": 1e-6, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(*found, **close)
    plain(torch.cat([row[:, :, :length] for row, length in zip(x, lengths, strict=True)], -1)[None])
    torch.testing.assert_close(norm.running_mean, plain.running_mean, **close)
    torch.testing.assert_close(norm.running_var, plain.running_var, **close)


def test_folded_weights_never_outlive_a_change() -> None:
    encoder, other = small(), small()
    for value in other.state_dict().values():
        value.mul_(1.1) if value.is_floating_point() else None
    values, mask = batch_of([40, 64])

    def changed(change: object) -> bool:
        """Whether, after a change, the folded network is the one that learns."""
        with torch.no_grad():
            before = encoder(values, mask).pooler_output
            change()  # type: ignore[operator]
            after = encoder(values, mask).pooler_output
        torch.testing.assert_close(after, encoder(values, mask).pooler_output.detach(), rtol=1e-4, atol=1e-5)
        return not torch.equal(before, after)

    stem, last = encoder.stem, encoder.last
    assert not changed(lambda: None)
    assert changed(lambda: encoder.load_state_dict(other.state_dict()))
    assert changed(lambda: stem.conv.weight.mul_(2.0))
    assert changed(lambda: last.norm.bias.add_(1.0))
    assert changed(lambda: setattr(last.conv, "weight", torch.nn.Parameter(last.conv.weight.flip(0))))
    assert changed(lambda: setattr(stem.norm.weight, "data", stem.norm.weight.data * 1.5))
    assert changed(lambda: [encoder.train(), encoder(values, mask), encoder.eval()])  # statistics


def test_classes_are_saved_on_request_only(tmp_path: Path, released: Path) -> None:
    encoder = load_encoder(released)
    assert encoder.audioset_head is None
    assert encoder_digest(encoder) == encoder_digest(load_released(released))
    with_head = load_encoder(released, audioset_head=True)
    with_head.save_pretrained(tmp_path / "head")
    assert load_encoder(tmp_path / "head").audioset_head is not None
    with pytest.raises(ValueError, match="audioset_head=True"):
        encoder.audioset_logits(torch.zeros(1, 384))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("features.5.block.1.1.running_var"), r"features\.5\.block\.1\.1\.running_var is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is left over"),
        (lambda s: s.update({"features.3.block.0.0.weight": torch.zeros(4, 4, 1, 1)}), r"\(4 x 4 x 1 x 1 instead"),
        (
            lambda s: s.update({"classifier.5.weight": torch.zeros(50, 128)}),
            r"classifier\.5\.weight \(50 x 128 instead",
        ),
        (
            lambda s: s["features.0.0.weight"].fill_(float("nan")),
            r"features\.0\.0\.weight holds values that are not finite",
        ),
        (lambda s: s.update(epoch=3), "holds int under 'epoch'"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("classifier")], "not an EfficientAT MobileNetV3"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change: object, message: str, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in released_form(small(audioset_head=True)).items()}
    change(state)  # type: ignore[operator]
    path = tmp_path / "bad.pt"
    torch.save(state, path)
    with pytest.raises(InputError, match=message) as error:
        load_released(path)
    assert str(error.value).startswith(str(path))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, shared_root: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_released(tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        load_released(tmp_path / "text.pt")
    (tmp_path / "empty.pt").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        load_released(tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="no state dict"):
        load_released(tmp_path / "list.pt")
    torch.save(Path("code"), tmp_path / "pickle.pt")
    with pytest.raises(InputError, match="cannot be read"):
        load_released(tmp_path / "pickle.pt")
    with pytest.raises(InputError, match="holds a beats encoder, not mobilenet"):
        load_released(shared_root / "conformance/beats_tiny.pt")
    whole = (shared_root / "weights/mn04_as_mAP_432.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_released(tmp_path / "torn.pt")


def made_state(width: float) -> dict[str, torch.Tensor]:
    """A state dict as the authors publish it, of any width; the values take no room."""
    with torch.device("meta"):
        state = MobileNetEncoder(MobileNetConfig(width_mult=width, audioset_head=True)).state_dict()
    ones = {"weight": 0.02, "running_var": 1.0, "num_batches_tracked": 0}
    values = {name: torch.tensor(ones.get(name.rpartition(".")[2], 0.0), dtype=v.dtype) for name, v in state.items()}
    return {_released_name(name, state): values[name].expand(v.shape) for name, v in state.items()}


@pytest.mark.parametrize(("width", "dim", "millions"), [(0.4, 384, 0.98), (1.0, 960, 4.88), (2.0, 1920, 17.91)])
def test_larger_siblings_are_told_by_their_shapes(width: float, dim: int, millions: float, tmp_path: Path) -> None:
    path = tmp_path / f"mn{int(10 * width):02d}_as.pt"
    torch.save(made_state(width), path)
    encoder = load_encoder(path, type="mobilenet", audioset_head=True)
    assert encoder.config.width_mult == pytest.approx(width) and encoder.config.hidden_size == dim
    # the sizes that the authors give for their models
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == millions
    with torch.no_grad():
        assert encoder(torch.zeros(1, 64, 128)).pooler_output.shape == (1, dim)


def test_the_largest_sibling_has_its_published_size() -> None:
    with torch.device("meta"):
        encoder = MobileNetEncoder(MobileNetConfig(width_mult=4.0, audioset_head=True))
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == 68.43
    assert encoder.config.hidden_size == 3840
    assert MobileNetConfig(width_mult=made_state(4.0)["classifier.2.weight"].shape[0] / 1280).width_mult == 4.0


def test_a_dynamic_mobilenet_is_refused_in_one_line(tmp_path: Path) -> None:
    state = {"in_c.0.weight": torch.zeros(8, 1, 3, 3), "layers.0.depth_conv.weight": torch.zeros(1)}
    state |= {"out_c.0.weight": torch.zeros(8, 8, 1, 1), "classifier.2.weight": torch.zeros(512, 384)}
    torch.save(state | {"classifier.5.weight": torch.zeros(527, 512)}, tmp_path / "dymn04_as.pt")
    with pytest.raises(InputError, match=r"dymn04_as.pt: a dynamic MobileNet of EfficientAT \(dymn\).*mn10_as"):
        load_encoder(tmp_path / "dymn04_as.pt")
